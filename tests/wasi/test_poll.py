"""poll_oneoff: clocks, descriptors, both, and what is wrong with a subscription."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import BuildFunction, FdSource, Ww
from tests.wasi.remote_cell import (
    EBADF,
    EFAULT,
    EINVAL,
    ENOTCAPABLE,
    EV_CLOCK,
    EV_READ,
    EV_WRITE,
    HANGUP,
    MONOTONIC,
    NONBLOCK,
    OK,
    PROCESS_CPU,
    REALTIME,
    THREAD_CPU,
    Clock,
    Event,
    R,
    Ready,
    Remote,
    W,
    remote,
    shared_ww,
)

MILLISECOND = 1_000_000
LONG = 3600 * 1_000_000_000


class Granted(NamedTuple):
    """A cell with a file at 10, a pipe's ends at 11 (reading) and 12, and a socket at 13."""

    cell: Remote
    into: int
    out: int
    peer: socket.socket


@contextmanager
def a_cell(ww: Ww, wasm: Path) -> Iterator[Granted]:
    inward, outward = os.pipe(), os.pipe()
    ours, its = socket.socketpair()
    flags = ["--fd", "f=3", "--fd", "in=4,move=true", "--fd", "out=5,move=true"]
    flags += ["--fd", "s=6,move=true"]
    fds: dict[int, FdSource] = {
        3: ww.file("f", b"content"),
        4: inward[0],
        5: outward[1],
        6: its,
    }
    with ours, its, remote(ww, wasm, *flags, fds=fds) as cell:
        os.close(inward[0])
        os.close(outward[1])
        its.close()
        try:
            yield Granted(cell, inward[1], outward[0], ours)
        finally:
            for fd in (inward[1], outward[0]):
                if is_open(fd):
                    os.close(fd)


@pytest.fixture(scope="module")
def kept(account_folders: Path, c_cell: BuildFunction) -> Iterator[Granted]:
    """One for all tests that do not need a cell of their own."""
    with a_cell(shared_ww(account_folders, "poll"), c_cell("remote")) as made:
        yield made


@pytest.fixture
def granted(kept: Granted) -> Granted:
    """The cell with everything at its start and empty."""
    cell = kept.cell
    assert cell.seek(10, 0) == (OK, 0)
    for number in (11, 13):
        assert cell.raw("fd_fdstat_set_flags", number, NONBLOCK) == OK
        cell.read(number, 65536)
        assert cell.raw("fd_fdstat_set_flags", number, 0) == OK
    return kept


@pytest.fixture
def own(ww: Ww, c_cell: BuildFunction) -> Iterator[Granted]:
    """The same, for a test that closes something."""
    with a_cell(ww, c_cell("remote")) as made:
        yield made


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def events_of(answer: tuple[int, list[Event] | None]) -> list[Event]:
    errno, events = answer
    assert errno == OK
    assert events is not None
    return events


@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_a_clock_fires_when_its_time_has_passed_and_not_before(
    granted: Granted, clock: int
) -> None:
    cell = granted.cell
    for duration in (0, 1, MILLISECOND, 30 * MILLISECOND + 1):
        started = time.monotonic_ns()
        events = events_of(cell.poll(Clock(77, duration, clock)))
        assert time.monotonic_ns() - started >= duration
        assert events == [Event(77, OK, EV_CLOCK, 0, 0)]


@pytest.mark.parametrize("clock", [REALTIME, MONOTONIC])
def test_an_absolute_time_is_waited_for_and_a_past_one_is_due(granted: Granted, clock: int) -> None:
    cell = granted.cell

    def now() -> int:
        errno, values = cell.result("<Q", "clock_time_get", clock, 1)
        assert errno == OK
        assert values is not None
        return values[0]

    due = now() + 20 * MILLISECOND
    assert len(events_of(cell.poll(Clock(1, due, clock, absolute=True)))) == 1
    assert now() >= due
    for past in (0, 1, now() - 1):
        assert events_of(cell.poll(Clock(2, past, clock, absolute=True))) == [
            Event(2, OK, EV_CLOCK, 0, 0)
        ]


def test_of_several_clocks_the_nearest_fires(granted: Granted) -> None:
    events = events_of(
        granted.cell.poll(
            Clock(1, LONG), Clock(2, MILLISECOND), Clock(3, LONG, REALTIME), Clock(4, 2**64 - 1)
        )
    )
    assert events == [Event(2, OK, EV_CLOCK, 0, 0)]


def test_clocks_that_are_due_together_all_fire(granted: Granted) -> None:
    events = events_of(granted.cell.poll(Clock(1, 0), Clock(2, LONG), Clock(3, 0, REALTIME)))
    assert sorted(event.userdata for event in events) == [1, 3]


@pytest.mark.parametrize("clock", [PROCESS_CPU, THREAD_CPU, 4, 1 << 31])
def test_clocks_that_nobody_can_wait_for_are_refused(granted: Granted, clock: int) -> None:
    errno, events = granted.cell.poll(Clock(1, 1, clock))
    refused = errno != OK or (events is not None and events[0].error != OK)
    assert refused


def test_a_descriptor_that_is_ready_is_told_with_its_userdata_and_size(granted: Granted) -> None:
    cell = granted.cell
    userdata = 0xFEDC_BA98_7654_3210
    os.write(granted.into, b"12345")
    assert events_of(cell.poll(Ready(userdata, EV_READ, 11))) == [
        Event(userdata, OK, EV_READ, 5, 0)
    ]
    granted.peer.sendall(b"123")
    assert events_of(cell.poll(Ready(1, EV_READ, 13))) == [Event(1, OK, EV_READ, 3, 0)]
    assert [event[:3] for event in events_of(cell.poll(Ready(2, EV_WRITE, 12)))] == [
        (2, OK, EV_WRITE)
    ]
    assert [event[:3] for event in events_of(cell.poll(Ready(3, EV_WRITE, 13)))] == [
        (3, OK, EV_WRITE)
    ]


def test_a_regular_file_is_always_ready_with_what_is_left_of_it(granted: Granted) -> None:
    cell = granted.cell
    assert events_of(cell.poll(Ready(1, EV_READ, 10))) == [Event(1, OK, EV_READ, 7, 0)]
    assert cell.seek(10, 5) == (OK, 5)
    assert events_of(cell.poll(Ready(1, EV_READ, 10))) == [Event(1, OK, EV_READ, 2, 0)]


def test_several_that_are_ready_at_once_are_all_told(granted: Granted) -> None:
    os.write(granted.into, b"x")
    granted.peer.sendall(b"yy")
    events = events_of(
        granted.cell.poll(
            Clock(1, LONG),
            Ready(2, EV_READ, 11),
            Ready(3, EV_WRITE, 12),
            Ready(4, EV_READ, 13),
            Ready(5, EV_WRITE, 13),
            Ready(6, EV_READ, 10),
            Ready(7, EV_READ, 11),
        )
    )
    assert sorted((event.userdata, event.error, event.type) for event in events) == [
        (2, OK, EV_READ),
        (3, OK, EV_WRITE),
        (4, OK, EV_READ),
        (5, OK, EV_WRITE),
        (6, OK, EV_READ),
        (7, OK, EV_READ),
    ]


def test_the_clock_bounds_the_wait_for_a_descriptor(granted: Granted) -> None:
    started = time.monotonic_ns()
    events = events_of(granted.cell.poll(Ready(1, EV_READ, 11), Clock(2, 20 * MILLISECOND)))
    assert events == [Event(2, OK, EV_CLOCK, 0, 0)]
    assert time.monotonic_ns() - started >= 20 * MILLISECOND


def test_a_descriptor_ends_the_wait_before_the_clock(granted: Granted) -> None:
    cell = granted.cell
    cell.tell_poll(Clock(1, LONG), Ready(2, EV_READ, 13), Ready(3, EV_READ, 11))
    os.write(granted.into, b"now")
    assert events_of(cell.poll_answer(3)) == [Event(3, OK, EV_READ, 3, 0)]


def test_a_wait_without_a_clock_lasts_until_something_happens(granted: Granted) -> None:
    cell = granted.cell
    cell.tell_poll(Ready(3, EV_READ, 13))
    granted.peer.sendall(b"x")
    assert events_of(cell.poll_answer(1)) == [Event(3, OK, EV_READ, 1, 0)]


def test_a_peer_that_left_is_a_hangup(own: Granted) -> None:
    cell = own.cell
    os.write(own.into, b"last")
    os.close(own.into)
    assert events_of(cell.poll(Ready(1, EV_READ, 11))) == [Event(1, OK, EV_READ, 4, HANGUP)]
    assert cell.read(11, 10) == (OK, b"last")
    assert events_of(cell.poll(Ready(1, EV_READ, 11))) == [Event(1, OK, EV_READ, 0, HANGUP)]
    os.close(own.out)
    events = events_of(cell.poll(Ready(2, EV_WRITE, 12)))
    assert [(event.userdata, event.type, event.flags) for event in events] == [
        (2, EV_WRITE, HANGUP)
    ]
    own.peer.close()
    events = events_of(cell.poll(Ready(3, EV_READ, 13)))
    assert [(event.userdata, event.type, event.flags) for event in events] == [(3, EV_READ, HANGUP)]


@pytest.mark.parametrize("number", [5, 14, 1000, 65535, 65536, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_number_that_was_not_granted_is_an_event_of_its_own(
    granted: Granted, number: int
) -> None:
    cell = granted.cell
    os.write(granted.into, b"x")
    for kind in (EV_READ, EV_WRITE):
        # At once, though nothing else is due; and beside the others, not in place of them.
        assert events_of(cell.poll(Ready(9, kind, number), Clock(1, LONG))) == [
            Event(9, EBADF, kind, 0, 0)
        ]
        events = events_of(cell.poll(Ready(9, kind, number), Ready(8, EV_READ, 11)))
        assert sorted(event[:3] for event in events) == [(8, OK, EV_READ), (9, EBADF, kind)]


def test_waiting_for_what_the_mode_does_not_allow_is_an_event_of_its_own(
    granted: Granted,
) -> None:
    for item in (Ready(1, EV_WRITE, 11), Ready(2, EV_READ, 12)):
        (event,) = events_of(granted.cell.poll(item))
        assert (event.userdata, event.type) == (item.userdata, item.type)
        assert event.error != OK


def test_a_closed_number_is_not_waited_for(own: Granted) -> None:
    cell = own.cell
    assert cell.raw("fd_close", 11) == OK
    assert events_of(cell.poll(Ready(1, EV_READ, 11))) == [Event(1, EBADF, EV_READ, 0, 0)]
    assert cell.raw("fd_renumber", 13, 12) == OK
    own.peer.sendall(b"ab")
    assert events_of(cell.poll(Ready(1, EV_READ, 12), Ready(2, EV_READ, 13), Clock(3, LONG))) == [
        Event(1, OK, EV_READ, 2, 0),
        Event(2, EBADF, EV_READ, 0, 0),
    ]
    assert events_of(cell.poll(Ready(1, EV_READ, 12))) == [Event(1, OK, EV_READ, 2, 0)]


def test_events_come_in_the_order_of_the_subscriptions(granted: Granted) -> None:
    """Whatever they are about: bad ones, clocks of every kind, and descriptors, all due."""
    cell = granted.cell
    os.write(granted.into, b"123")
    errno, values = cell.result("<Q", "clock_time_get", MONOTONIC, 1)
    assert errno == OK
    assert values is not None
    (now,) = values
    wanted: list[Clock | Ready] = [
        Clock(1, 0),
        Ready(2, EV_READ, 11),
        Clock(3, LONG),
        Ready(4, EV_WRITE, 5),
        Clock(5, 1, REALTIME, absolute=True),
        Ready(6, EV_READ, 10),
        Ready(7, EV_READ, 12),
        Clock(8, now, MONOTONIC, absolute=True),
        Ready(9, EV_WRITE, 12),
        Clock(10, now + LONG, MONOTONIC, absolute=True),
        Clock(11, 1 << 63, REALTIME, absolute=True),
        Ready(12, EV_READ, 13),
        Clock(13, 0, REALTIME),
    ]
    due = [(event.userdata, event.error, event.type) for event in events_of(cell.poll(*wanted))]
    assert due == [
        (1, OK, EV_CLOCK),
        (2, OK, EV_READ),
        (4, EBADF, EV_WRITE),
        (5, OK, EV_CLOCK),
        (6, OK, EV_READ),
        (7, EBADF, EV_READ),
        (8, OK, EV_CLOCK),
        (9, OK, EV_WRITE),
        (13, OK, EV_CLOCK),
    ]


def test_who_gave_up_waiting_is_told_so_and_can_read_still(own: Granted) -> None:
    cell = own.cell
    os.write(own.into, b"123")
    assert cell.raw("fd_fdstat_set_rights", 11, R, 0) == OK
    assert cell.raw("fd_fdstat_set_rights", 12, W, 0) == OK
    assert events_of(cell.poll(Ready(1, EV_READ, 11), Ready(2, EV_WRITE, 12))) == [
        Event(1, ENOTCAPABLE, EV_READ, 0, 0),
        Event(2, ENOTCAPABLE, EV_WRITE, 0, 0),
    ]
    assert cell.read(11, 10) == (OK, b"123")


def test_no_subscriptions_are_einval(granted: Granted) -> None:
    cell = granted.cell
    assert cell.poll() == (EINVAL, None)
    assert cell.raw("poll_oneoff", 0, 0, 0, 0) == EINVAL


def test_absurd_counts_are_an_errno(granted: Granted) -> None:
    cell = granted.cell
    at = cell.scratch
    for count in (1 << 16, 1 << 20, 1 << 24, 0x5555_5556, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert cell.raw("poll_oneoff", at, at, count, at) in (EINVAL, EFAULT), hex(count)
    assert cell.fdstat(10)[0] == OK


def test_two_thousand_subscriptions_are_served(granted: Granted) -> None:
    cell = granted.cell
    events = events_of(cell.poll(*(Ready(index, EV_READ, 10) for index in range(2000))))
    assert sorted(event.userdata for event in events) == list(range(2000))


@pytest.mark.parametrize("tag", [3, 4, 128, 255])
def test_a_type_of_event_that_does_not_exist_is_einval(granted: Granted, tag: int) -> None:
    cell = granted.cell
    at = cell.scratch + 0x9000
    cell.poke(at, struct.pack("<QB39x", 1, tag))
    assert cell.raw("poll_oneoff", at, at + 48, 1, at + 96) == EINVAL


def test_standard_descriptors_can_be_waited_for(ww: Ww, c_cell: BuildFunction) -> None:
    with remote(ww, c_cell("remote"), control=(20, 21)) as cell:
        # stdin is /dev/null here, and stdout too.
        assert events_of(cell.poll(Ready(1, EV_READ, 0)))[0][:3] == (1, OK, EV_READ)
        assert events_of(cell.poll(Ready(1, EV_WRITE, 1)))[0][:3] == (1, OK, EV_WRITE)


def test_a_position_past_the_end_leaves_nothing_to_read(own: Granted) -> None:
    for position in (1 << 20, 1 << 40):
        assert own.cell.seek(10, position) == (OK, position)
        (event,) = events_of(own.cell.poll(Ready(7, EV_READ, 10)))
        assert (event.userdata, event.error, event.nbytes) == (7, OK, 0)


def test_more_than_32_bits_to_read_are_told_as_they_are(ww: Ww, c_cell: BuildFunction) -> None:
    path = ww.file("sparse")
    os.truncate(path, 5 << 30)
    with remote(ww, c_cell("remote"), "--fd", "f=3", fds={3: path}) as cell:
        (event,) = events_of(cell.poll(Ready(7, EV_READ, 10)))
    assert event.nbytes == 5 << 30

"""Serving content to a process that may be hostile: the form, and what is bounded."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Limits, serving
from sandbox.content import (
    MAX_ANSWER,
    MAX_REQUEST,
    SEALS,
    Answer,
    Found,
    Kind,
    Name,
    Operation,
    Request,
    names,
)
from sandbox.serving import Server


class Shelf:
    """Content: an address is a number of bytes, or `list`, or a number of seconds to waste."""

    def __init__(self) -> None:
        self.go_on: Callable[[], None] = lambda: None
        self.reads = 0

    def find(self, base: str, path: str, *, follow: bool) -> tuple[Kind, int, int, str]:
        if not path.isdigit():
            raise OSError(errno.ENOENT, "")
        return "file", int(path), 1, path

    def read(self, address: str) -> Iterator[bytes | memoryview]:
        self.reads += 1
        if address == "slow":
            while True:
                self.go_on()
        if not address.isdigit():
            raise OSError(errno.EIO, "")
        left = int(address)
        while left:
            part = bytes(min(left, 1000))
            left -= len(part)
            yield part

    def names(self, address: str) -> Iterator[tuple[bytes, Kind | None, int]] | None:
        if address != "list":
            return None
        return ((b"%d" % number, None, number + 1) for number in range(20_000))


class Asker:
    """Both ends of a connection."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.shelf = Shelf()
        self.server = Server(lambda: self.shelf, limits or Limits())
        self.end = socket.socket(fileno=os.dup(self.server.theirs.fileno()))
        self.server.give_up_theirs()
        self.end.setblocking(False)

    def serve(self) -> None:
        self.server.serve(lambda: False)

    def ask(self, operation: Operation, base: str, path: str = "") -> tuple[Answer, int | None]:
        self.end.send(Request(operation, base, path).encode())
        self.serve()
        data, ancillary, flags, _ = self.end.recvmsg(MAX_ANSWER, socket.CMSG_SPACE(8))
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        fds = array.array("i")
        for _, _, value in ancillary:
            fds.frombytes(value)
        assert len(fds) <= 1
        return Answer.decode(data), fds[0] if fds else None

    def read(self, address: str) -> int:
        """The descriptor, or the negative errno."""
        answer, fd = self.ask("read", address)
        if fd is None:
            assert answer.errno
            return -answer.errno
        assert answer.found is not None
        assert answer.found.size == os.fstat(fd).st_size
        return fd

    def close(self) -> None:
        self.end.close()
        self.server.close()


@pytest.fixture
def asker() -> Iterator[Asker]:
    before = set(os.listdir("/proc/self/fd"))
    made = Asker()
    yield made
    made.close()
    left = [fd for fd in os.listdir("/proc/self/fd") if fd not in before]
    assert [fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")] == []


def test_bytes_arrive_sealed_for_reading_and_each_time_with_a_position(asker: Asker) -> None:
    one, other = asker.read("5000"), asker.read("5000")
    try:
        assert fcntl.fcntl(one, fcntl.F_GET_SEALS) == SEALS
        assert fcntl.fcntl(one, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert os.read(one, 9000) == os.read(other, 9000) == bytes(5000)
        assert asker.shelf.reads == 1, "what was read is kept"
    finally:
        os.close(one)
        os.close(other)


def test_errors_travel(asker: Asker) -> None:
    assert asker.ask("find", "", "x") == (Answer(errno.ENOENT), None)
    assert asker.ask("find-link", "", str(1 << 63)) == (Answer(errno.EOVERFLOW), None)
    assert asker.ask("find", "", "7") == (Answer(0, Found("file", 7, 1, "7")), None)
    assert asker.read("x") == -errno.EIO
    assert asker.server.is_open


def test_a_long_list_is_whole_and_a_longer_one_is_refused(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = asker.read("list")
    with open(fd, "rb") as file:
        read = [name for name, _ in names(file.read())]
    assert read == [Name(b"%d" % number, None, number + 1) for number in range(20_000)]
    monkeypatch.setattr(serving, "MOST_LISTING", 100_000)
    other = Asker()
    assert other.read("list") == -errno.EFBIG
    other.close()


def test_what_is_held_is_bounded_however_it_is_held(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_BYTES", 10_000)
    assert asker.read("10001") == -errno.ENOMEM
    first = asker.read("6000")
    assert asker.read("5000") == -errno.ENOMEM
    again = asker.read("6000")  # the same memory
    os.close(first)
    assert asker.read("5000") == -errno.ENOMEM
    mapped = mmap.mmap(again, 100, prot=mmap.PROT_READ)
    os.close(again)
    assert asker.read("5000") == -errno.ENOMEM, "mapped"
    mapped.close()
    fd = asker.read("5000")
    assert fd >= 0
    os.close(fd)


def test_files_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(Limits(nofile=3))
    fds = [asker.read(str(size)) for size in (1, 2, 3)]
    assert asker.read("4") == -errno.ENFILE
    assert asker.read("1") >= 0
    os.close(fds[1])
    fds[1] = asker.read("4")
    assert fds[1] >= 0
    asker.close()


def test_what_breaks_the_form_ends_the_connection(asker: Asker) -> None:
    asker.end.send(b"x" * (MAX_REQUEST + 1))
    asker.serve()
    assert not asker.server.is_open
    assert asker.end.recv(10) == b"", "its end"


def test_descriptors_are_not_taken(asker: Asker) -> None:
    before = len(os.listdir("/proc/self/fd"))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    asker.end.sendmsg([Request("find", "", "7").encode()], [rights])
    asker.serve()
    assert not asker.server.is_open
    assert len(os.listdir("/proc/self/fd")) == before - 1, "its own end is closed"


def test_who_asks_before_the_last_answer_was_taken_ends_the_connection(asker: Asker) -> None:
    # A descriptor on its way counts against the user, for the rest of the cell's life.
    for _ in range(2):
        assert asker.server.is_open
        asker.end.send(Request("read", "7").encode())
        asker.serve()
    assert not asker.server.is_open
    _, ancillary, _, _ = asker.end.recvmsg(MAX_ANSWER, socket.CMSG_SPACE(4))
    os.close(array.array("i", ancillary[0][2])[0])
    assert asker.end.recv(MAX_ANSWER) == b""


def test_work_ends_when_something_else_waits(asker: Asker) -> None:
    asker.end.send(Request("read", "slow").encode())
    looks = iter(range(10))
    asker.server.serve(lambda: next(looks, None) is None)
    assert asker.server.is_open
    assert not asker.server.out_of_time
    with pytest.raises(BlockingIOError):
        asker.end.recv(10)


def test_work_ends_when_it_has_taken_as_long_as_the_cell_may() -> None:
    asker = Asker(Limits(cpu=1))
    asker.end.send(Request("read", "slow").encode())
    asker.serve()
    assert asker.server.out_of_time
    assert not asker.server.is_open
    asker.close()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_value_error(data: bytes) -> None:
    try:
        request = Request.decode(data)
    except ValueError:
        return
    assert Request.decode(request.encode()) == request


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_value_error(data: bytes) -> None:
    try:
        answer = Answer.decode(data)
    except ValueError:
        return
    assert bool(answer.errno) == (answer.found is None)


@given(st.binary(max_size=300), st.integers(0, 20))
def test_any_bytes_are_a_listing_that_ends(data: bytes, start: int) -> None:
    ends = [end for _, end in names(data[start:])]
    assert ends == sorted(set(ends))
    assert all(end <= len(data) for end in ends)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_nothing_that_is_sent_makes_the_server_fail(packets: list[bytes]) -> None:
    asker = Asker()
    try:
        for packet in packets:
            if asker.server.is_open:
                asker.end.send(packet)
                asker.serve()
    finally:
        asker.close()

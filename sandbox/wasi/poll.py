"""poll_oneoff: waiting for descriptors and clocks at once."""

import errno
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sandbox.wasi import abi
from sandbox.wasi.directory import BaseDirectory
from sandbox.wasi.files import File
from sandbox.wasi.memory import GuestMemory

_LookUp = Callable[[int], File | BaseDirectory | None]
# The place of a subscription, and its event: events come in the order of the subscriptions.
_Due = tuple[int, bytes]
# What one wait may take: poll(2) counts milliseconds in an int. Longer ones go round again.
_LONGEST_MS = (1 << 31) - 1
# Subscriptions of one call. POSIX lets poll(2) refuse more descriptors than may be open.
_MOST = 4096


class _Clock(NamedTuple):
    """A subscription to a clock; due at a time of this machine's monotonic clock."""

    place: int
    userdata: int
    deadline: int


class _Subscriber(NamedTuple):
    """A subscription to a descriptor."""

    place: int
    userdata: int
    tag: int
    file: File


def wait(
    memory: GuestMemory,
    look_up: _LookUp,
    cell_now: int,
    subscriptions: int,
    events: int,
    count: int,
) -> int:
    """Wait until a subscription is due, and write the events of all that are, in their order.

    Args:
        memory: The cell's memory.
        look_up: Finds what one of the cell's descriptors stands for.
        cell_now: The time on the cell's monotonic clock, which does not begin where ours does.
        subscriptions: Address of the subscriptions.
        events: Address of room for as many events.
        count: How many subscriptions.

    Returns:
        The number of events written.

    Raises:
        OSError: EINVAL for none, too many, or a clock or type there is not; EFAULT.
    """
    if not 0 < count <= _MOST:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    raw = bytes(memory.view(subscriptions, count * abi.SUBSCRIPTION_SIZE))
    room = memory.view(events, count * abi.EVENT_SIZE)
    now = time.monotonic_ns()
    times = {abi.CLOCK_REALTIME: time.time_ns(), abi.CLOCK_MONOTONIC: cell_now}
    clocks: list[_Clock] = []
    waiting: dict[int, list[_Subscriber]] = {}  # by host fd
    due: list[_Due] = []
    for place, start in enumerate(range(0, len(raw), abi.SUBSCRIPTION_SIZE)):
        userdata, tag = abi.SUBSCRIPTION.unpack_from(raw, start)
        if tag == abi.EVENT_CLOCK:
            clocks.append(_Clock(place, userdata, now + _delay(raw, start + 16, times)))
        elif tag in (abi.EVENT_FD_READ, abi.EVENT_FD_WRITE):
            (number,) = abi.SUBSCRIPTION_FD.unpack_from(raw, start + 16)
            item = look_up(number)
            refusal = _refusal(item, tag)
            if refusal or not isinstance(item, File):
                due.append((place, abi.EVENT.pack(userdata, refusal, tag, 0, 0)))
            else:
                subscriber = _Subscriber(place, userdata, tag, item)
                waiting.setdefault(item.fd, []).append(subscriber)
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    due += _wait(waiting, clocks, immediately=bool(due))
    due.sort()
    room[: len(due) * abi.EVENT_SIZE] = b"".join(event for _, event in due)
    return len(due)


def _refusal(item: File | BaseDirectory | None, tag: int) -> int:
    """Return the errno of an event for what cannot be waited for; 0 for what can.

    It is EBADF also for reading or writing that is not allowed, as the call itself would say.
    """
    access = abi.FD_READ | abi.SOCK_ACCEPT if tag == abi.EVENT_FD_READ else abi.FD_WRITE
    if not isinstance(item, File) or not item.rights & access:
        return abi.EBADF
    return 0 if item.rights & abi.POLL_FD_READWRITE else abi.ENOTCAPABLE


def _delay(raw: bytes, at: int, times: Mapping[int, int]) -> int:
    """Return how long until a clock subscription is due, in nanoseconds; less than 0 if it was.

    Raises:
        OSError: EINVAL for the clocks of CPU time, which nobody can wait for.
    """
    clock, timeout, _, flags = abi.SUBSCRIPTION_CLOCK.unpack_from(raw, at)
    if clock not in times:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    absolute = flags & abi.SUBSCRIPTION_CLOCK_ABSTIME
    return int(timeout) - times[clock] if absolute else int(timeout)


def _wait(
    waiting: dict[int, list[_Subscriber]], clocks: list[_Clock], *, immediately: bool
) -> list[_Due]:
    poller = select.poll()
    for fd, subscribers in waiting.items():
        mask = 0
        for subscriber in subscribers:
            mask |= select.POLLIN if subscriber.tag == abi.EVENT_FD_READ else select.POLLOUT
        poller.register(fd, mask)
    nearest = min((clock.deadline for clock in clocks), default=None)
    while True:
        now = time.monotonic_ns()
        if immediately:
            timeout = 0
        elif nearest is None:
            timeout = _LONGEST_MS
        else:
            # Rounded up: a clock must never fire early.
            timeout = min(max(0, -(-(nearest - now) // 1_000_000)), _LONGEST_MS)
        ready = poller.poll(timeout)
        now = time.monotonic_ns()
        due = [
            (clock.place, abi.EVENT.pack(clock.userdata, 0, abi.EVENT_CLOCK, 0, 0))
            for clock in clocks
            if clock.deadline <= now
        ]
        for fd, told in ready:
            due += [
                (subscriber.place, event)
                for subscriber in waiting[fd]
                if (event := _event(subscriber, told)) is not None
            ]
        if due or immediately:
            return due


def _event(subscriber: _Subscriber, told: int) -> bytes | None:
    """Return the event of a descriptor that poll(2) found ready, if it is for this subscriber."""
    _, userdata, tag, file = subscriber
    wanted = select.POLLIN if tag == abi.EVENT_FD_READ else select.POLLOUT
    if not told & (wanted | select.POLLHUP | select.POLLERR | select.POLLNVAL):
        return None
    if told & select.POLLNVAL:
        return abi.EVENT.pack(userdata, abi.EBADF, tag, 0, 0)
    size = _readable(file) if tag == abi.EVENT_FD_READ else 0
    hangup = abi.EVENT_HANGUP if told & (select.POLLHUP | select.POLLERR) else 0
    return abi.EVENT.pack(userdata, 0, tag, size, hangup)


def _readable(file: File) -> int:
    """Return how many bytes can be read at once; 1 where the kernel does not say."""
    if file.rights & abi.SOCK_ACCEPT:
        return 1  # a connection; FIONREAD of a listening socket is EINVAL
    if file.filetype == abi.REGULAR_FILE:
        # FIONREAD counts with a sign and in 32 bits, and a position may lie past the end.
        return max(0, os.fstat(file.fd).st_size - os.lseek(file.fd, 0, os.SEEK_CUR))
    try:
        count = fcntl.ioctl(file.fd, termios.FIONREAD, bytes(4))
    except OSError:
        return 1
    return max(0, int(struct.unpack("i", count)[0]))

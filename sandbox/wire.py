"""Messages with descriptors between the runner and the spawner, over a stream socket.

The runner sends a plan, with the cell's bytes and the granted descriptors. The spawner answers
:data:`STARTED` and then an outcome, or the outcome alone if no cell came to be. Before that, if the
cell has to be compiled, it says :data:`COMPILING`, then :data:`COMPILED`, and goes on at the
runner's :data:`GO_ON`. When the runner closes its side, the cell is killed.

A plan after :data:`COMPILE` is to be compiled only: the answer is :data:`COMPILING`, unless that
was done before, and an outcome.

A message is a header of two 32-bit numbers (bytes of payload, count of descriptors), the
payload, and then the descriptors in groups, each with one byte of its own: SCM_RIGHTS takes at
most 253 at once (SCM_MAX_FD, unix(7)), and an ancillary message is delivered with the bytes it
was sent with.
"""

from __future__ import annotations

import os
import sys

from sandbox.light import socket, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# The descriptor at which a spawner finds its door; see :mod:`sandbox.door`.
SPAWNER_FD = 3
# What comes to the door of a program's own spawner with one end of each new connection. It is one
# byte, so several threads may send at a time.
ENTER = b"e"
# What a server says first to whom it lets in; anything else is why it does not. The number changes
# with anything of the form of what travels here, plans and outcomes among it.
GREETING = b"ww spawner 1"
# The answer when the cell's process is in its jail, with its own copies of the granted
# descriptors; a pidfd of it comes along.
STARTED = b"started"
# What is before a plan of which nothing is to be run.
COMPILE = b"compile "
# The answers when a compilation begins, and when it has ended well and its cell is about to start.
# In between, the runner may show something where the cell will write: so it is waited for.
COMPILING = b"compiling"
COMPILED = b"compiled"
GO_ON = b"go on"

# The end of the other side is an error, and not a signal that may end a program of somebody else's.
_QUIETLY = socket.MSG_NOSIGNAL
# As :mod:`errno` has it, which is not worth its import; the same on every architecture.
_EMFILE = 24
# Bytes of a number: of a header's, and of a descriptor's, which is an int.
_NUMBER = 4
# SCM_MAX_FD of include/net/scm.h.
_FDS_AT_ONCE = 253
# Both sides are ww's own; the bound keeps a broken one from taking the other's memory with it.
MAX_PAYLOAD = 64 << 20
# As many as a cell can have numbers, with its bytes and the connection for content.
MAX_FDS = 65536 + 2


class CutOffError(EOFError):
    """A connection ended inside a message."""


class FormError(ValueError):
    """A message breaks the form."""


def send(channel: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message, whole.

    Args:
        channel: A connected AF_UNIX stream socket.
        payload: At most :data:`MAX_PAYLOAD` bytes.
        fds: Descriptors to send copies of, in the order in which they arrive.

    Raises:
        OSError: As sendmsg(2) says; EPIPE if the other side is gone.
    """
    channel.sendall(_numbers(len(payload), len(fds)) + payload, _QUIETLY)
    for start in range(0, len(fds), _FDS_AT_ONCE):
        group = _numbers(*fds[start : start + _FDS_AT_ONCE])
        channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, group)], _QUIETLY)


def receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Receive one message, whole.

    Args:
        channel: A connected AF_UNIX stream socket.

    Returns:
        The payload and the descriptors, close-on-exec and the receiver's to close; ``None``
        if the other side closed the connection before a message began.

    Raises:
        CutOffError: If the connection ended inside a message.
        FormError: If a message breaks the form.
        OSError: As recvmsg(2) says; EMFILE if there is no number left for what was sent. No
            descriptor stays open after an error.
    """
    header = _receive_bytes(channel, 2 * _NUMBER, may_end=True)
    if header is None:
        return None
    size, count = _read_numbers(header)
    if size > MAX_PAYLOAD:
        raise FormError(f"message of {size} bytes, more than {MAX_PAYLOAD}")
    if count > MAX_FDS:
        raise FormError(f"message with {count} descriptors, more than {MAX_FDS}")
    payload = _receive_bytes(channel, size)
    fds: list[int] = []
    try:
        while len(fds) < count:
            fds += _receive_group(channel, min(count - len(fds), _FDS_AT_ONCE))
    except BaseException:
        close_all(fds)
        raise
    return payload or b"", fds


def close_all(fds: list[int]) -> None:
    """Close descriptors that came with a message, and forget their numbers.

    An error tells of what somebody wrote to a file before (close(2)), and the number is free all
    the same: so the rest is closed too, and nobody hears of it.
    """
    while fds:
        with suppress(OSError, IndexError):
            # Both in one step, between two of which a handler of a signal may raise something: each
            # is closed once.
            for _ in map(socket.close, iter(fds.pop, -1)):
                pass


def hand_in(door: socket.socket, connection: int) -> None:
    """Hand one end of a new connection in at a spawner's door.

    Raises:
        OSError: As sendmsg(2) says.
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _numbers(connection))
    door.sendmsg([ENTER], [rights], _QUIETLY)


def _receive_bytes(channel: socket.socket, size: int, *, may_end: bool = False) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            if may_end and len(view) == size:
                return None
            raise CutOffError("connection ended inside a message")
        view = view[got:]
    return bytes(data)


def _receive_group(channel: socket.socket, count: int) -> list[int]:
    """Receive one byte with ``count`` descriptors."""
    space = socket.CMSG_SPACE(_FDS_AT_ONCE * _NUMBER)
    came: list[tuple[bytes, list[tuple[int, int, bytes]], int, object]] = []
    try:
        # One call, so that a handler of a signal finds here what came, and can lose none of it.
        came.extend(map(channel.recvmsg, (1,), (space,), (socket.MSG_CMSG_CLOEXEC,)))
        data, ancillary, flags, _ = came[0]
        fds = _rights(ancillary)
        if data and not flags & socket.MSG_CTRUNC and len(fds) == count:
            return fds
        if not data:
            raise CutOffError("connection ended inside a message")
        if flags & socket.MSG_CTRUNC:
            # There is room for as many as can come: this process has no number left for them.
            raise OSError(_EMFILE, os.strerror(_EMFILE))
        raise FormError(f"{len(fds)} descriptors arrived where {count} were announced")
    except BaseException:
        for _, ancillary, _, _ in came:
            close_all(_rights(ancillary))
        raise


def _rights(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors that came with a byte."""
    fds: list[int] = []
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += _read_numbers(value)
    return fds


def _numbers(*numbers: int) -> bytes:
    """Return numbers as this machine has them in memory; :mod:`array` and :mod:`struct` do too."""
    return b"".join(number.to_bytes(_NUMBER, sys.byteorder) for number in numbers)


def _read_numbers(data: bytes) -> list[int]:
    """Read what :func:`_numbers` wrote; what is no whole number at the end is left out."""
    starts = range(0, len(data) - len(data) % _NUMBER, _NUMBER)
    return [int.from_bytes(data[at : at + _NUMBER], sys.byteorder) for at in starts]

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

import array
import socket
import struct
from collections.abc import Sequence

# The descriptor at which a spawner finds its connection.
SPAWNER_FD = 3
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

_HEADER = struct.Struct("=II")
# SCM_MAX_FD of include/net/scm.h.
_FDS_AT_ONCE = 253
# Both sides are ww's own; the bound keeps a broken one from taking the other's memory with it.
MAX_PAYLOAD = 64 << 20


def send(channel: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message, whole.

    Args:
        channel: A connected AF_UNIX stream socket.
        payload: At most :data:`MAX_PAYLOAD` bytes.
        fds: Descriptors to send copies of, in the order in which they arrive.

    Raises:
        OSError: As sendmsg(2) says; EPIPE if the other side is gone.
    """
    channel.sendall(_HEADER.pack(len(payload), len(fds)) + payload)
    for start in range(0, len(fds), _FDS_AT_ONCE):
        group = array.array("i", fds[start : start + _FDS_AT_ONCE])
        channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, group)])


def receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Receive one message, whole.

    Args:
        channel: A connected AF_UNIX stream socket.

    Returns:
        The payload and the descriptors, close-on-exec and the receiver's to close; ``None``
        if the other side closed the connection before a message began.

    Raises:
        EOFError: If the connection ended inside a message.
        ValueError: If a message breaks the form.
        OSError: As recvmsg(2) says. No descriptor stays open after an error.
    """
    header = _receive_bytes(channel, _HEADER.size, may_end=True)
    if header is None:
        return None
    size, count = _HEADER.unpack(header)
    if size > MAX_PAYLOAD:
        raise ValueError(f"message of {size} bytes, more than {MAX_PAYLOAD}")
    payload = _receive_bytes(channel, size)
    fds: list[int] = []
    try:
        while len(fds) < count:
            fds += _receive_group(channel, min(count - len(fds), _FDS_AT_ONCE))
    except BaseException:
        for fd in fds:
            socket.close(fd)
        raise
    return payload or b"", fds


def _receive_bytes(channel: socket.socket, size: int, *, may_end: bool = False) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            if may_end and len(view) == size:
                return None
            raise EOFError("connection ended inside a message")
        view = view[got:]
    return bytes(data)


def _receive_group(channel: socket.socket, count: int) -> list[int]:
    """Receive one byte with ``count`` descriptors."""
    space = socket.CMSG_SPACE(_FDS_AT_ONCE * array.array("i").itemsize)
    data, ancillary, flags, _ = channel.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    if data and not flags & socket.MSG_CTRUNC and len(fds) == count:
        return list(fds)
    for fd in fds:
        socket.close(fd)
    if not data:
        raise EOFError("connection ended inside a message")
    raise ValueError(f"{len(fds)} descriptors arrived where {count} were announced")

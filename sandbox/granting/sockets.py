"""What the kernel says about a socket: its family and protocol, a listener or connected."""

import socket
from typing import Final

from sandbox.grants import FdType

_IPPROTO_MPTCP: Final = 262  # include/uapi/linux/in.h; absent from Python 3.11's socket module
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_INTERNET_NAMES: Final = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "tcp",
    (socket.SOCK_STREAM, _IPPROTO_MPTCP): "mptcp",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "udp",
}


def describe_socket(fd: int) -> tuple[str, tuple[FdType, ...]]:
    """Name a socket (``listening tcp socket``) and the types it may be granted as.

    Every socket may be a ``socket``. One of SOCK_STREAM that is connected may also pass for a
    ``stream``: read(2) and write(2) do on it what they do on a pipe.
    """
    try:
        view = socket.socket(fileno=fd)
    except OSError:
        # AF_ALG and a few others have no getsockname(2), which Python starts with.
        return "socket of a family without addresses", ("socket",)
    try:
        listening = bool(view.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        name = ("listening " if listening else "") + _name(view) + " socket"
        if view.type == socket.SOCK_STREAM and _is_connected(view):
            return name, ("socket", "stream")
        return name, ("socket",)
    finally:
        view.detach()  # else the end of the view would close the source


def _name(view: socket.socket) -> str:
    """``tcp`` and ``udp`` by the names everybody uses, others as ``unix stream``."""
    if view.family in _INTERNET and (view.type, view.proto) in _INTERNET_NAMES:
        return _INTERNET_NAMES[view.type, view.proto]
    return f"{_word(view.family, 'AF_')} {_word(view.type, 'SOCK_')}"


def _word(constant: int, prefix: str) -> str:
    """``AF_UNIX`` to ``unix``; the number if Python has no name for it."""
    name: str = getattr(constant, "name", "")
    return name.removeprefix(prefix).lower() or str(constant)


def _is_connected(view: socket.socket) -> bool:
    """Whether there is a peer: getpeername(2) fails if there is none, as for a listener."""
    try:
        view.getpeername()
    except OSError:
        return False
    return True

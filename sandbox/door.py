"""Where a spawner's connections come from."""

import errno
import os
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from sandbox import wire
from sandbox.credentials import is_ambiguous

# struct ucred of unix(7): pid, uid, gid.
_CREDENTIALS = struct.Struct("=iII")
# Seconds that whoever was refused may take to hear it.
_PATIENCE = 0.1
# Seconds to wait where there is no descriptor left for a connection, which stays at the door.
_PAUSE = 0.05


# What accept(2) says there.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Bounds(NamedTuple):
    """How much a server does at a time; each connection runs one cell.

    Attributes:
        connections: Connections in all.
        each: Those of one client, which is a process.
    """

    connections: int
    each: int


class Guest(NamedTuple):
    """Who was let in.

    Attributes:
        connection: The connection.
        client: The pid of the process at its other end; 0 for the spawner's own program.
    """

    connection: socket.socket
    client: int


class Door(ABC):
    """Where connections come from.

    Attributes:
        is_open: Whether more can come.
    """

    def __init__(self, channel: socket.socket) -> None:
        """Take over a socket."""
        self._channel = channel
        self.is_open = True

    def fileno(self) -> int:
        """Return the descriptor that is readable when somebody is at the door."""
        return self._channel.fileno()

    @abstractmethod
    def accept(self, present: Sequence[int]) -> Guest | None:
        """Let in who is at the door; ``None`` if that is nobody.

        Args:
            present: The clients of all connections that there are.
        """

    def close(self) -> None:
        """Let nobody in any more."""
        self._channel.close()
        self.is_open = False


class Private(Door):
    """The door of a program's own spawner: the program hands connections in."""

    def accept(self, present: Sequence[int]) -> Guest | None:
        """Receive one end of a connection, or learn that there will be none any more."""
        try:
            said, fds, _, _ = socket.recv_fds(self._channel, len(wire.ENTER), 1)
        except OSError:
            said, fds = b"", []
        if not said:
            self.is_open = False
        # Without a descriptor there was no room for it here, and whoever sent it hears it end.
        return Guest(socket.socket(fileno=fds[0]), 0) if fds else None


class Public(Door):
    """The door of a server: a listening socket, open to its own user and to nobody else.

    The permissions of the socket's file say the same, but they are not ours alone to set.
    """

    def __init__(self, channel: socket.socket, bounds: Bounds) -> None:
        """Take over a socket.

        Args:
            channel: One that listens.
            bounds: How many may come.
        """
        super().__init__(channel)
        self._bounds = bounds
        channel.setblocking(False)

    def accept(self, present: Sequence[int]) -> Guest | None:
        """Accept a connection, and greet it or say why it is refused."""
        try:
            connection, _ = self._channel.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                time.sleep(_PAUSE)
            return None  # or who was there has gone
        size = _CREDENTIALS.size
        who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, gid = _CREDENTIALS.unpack(who)
        refusal = self._refusal(pid, uid, gid, present)
        connection.settimeout(_PATIENCE)
        try:
            wire.send(connection, refusal.encode() or wire.GREETING)
            connection.setblocking(True)
        except OSError:
            refusal = refusal or "gone"
        if refusal:
            connection.close()
            return None
        return Guest(connection, pid)

    def _refusal(self, pid: int, uid: int, gid: int, present: Sequence[int]) -> str:
        """Return why a client is refused, if it is."""
        if is_ambiguous(uid):
            return f"the kernel shows strangers as uid {uid} here, too"
        if uid != os.geteuid():
            return f"this server is for uid {os.geteuid()} only"
        if uid and gid != os.getegid():
            # An ordinary user's cells have the user's group, and a server can map its own only.
            return f"this server is for gid {os.getegid()} only"
        if len(present) >= self._bounds.connections:
            return f"busy: it has {self._bounds.connections} connections, the most it takes"
        if present.count(pid) >= self._bounds.each:
            return f"busy: this client has {self._bounds.each} connections, the most for one"
        return ""


def opened(channel: socket.socket, bounds: Bounds) -> Door:
    """Return the door that a socket is.

    Args:
        channel: One that listens, or the program's end of a pair.
        bounds: How many may come to one that listens.
    """
    listens = channel.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return Public(channel, bounds) if listens else Private(channel)


class SocketFile:
    """The name of a server's own socket in the file system."""

    def __init__(self, path: str) -> None:
        """Note which file it is now.

        Args:
            path: Its path; empty if it is not the server's to remove.
        """
        self._path = path
        self._file = self._found()

    def remove(self) -> None:
        """Remove it, unless another server's has taken its place."""
        if self._file is not None and self._found() == self._file:
            with suppress(OSError):
                os.unlink(self._path)

    def _found(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def notify(address: str, state: str) -> None:
    """Tell a service manager of a server's state; sd_notify(3).

    Args:
        address: ``$NOTIFY_SOCKET``: a path, or a name after ``@``; empty to tell nobody.
        state: As of that manual page.
    """
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), name)

"""What is opened for one run: bytes and paths; nothing is made or emptied before all is granted.

A path is opened without waiting for anybody and as it is. A file that is not there yet has a
stand-in until :meth:`Opened.settle`, so that a run of which a grant is refused, or whose cell is no
program at all, leaves no trace. What the engine says of the cell comes later.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from itertools import starmap
from typing import Final, NamedTuple

from sandbox import wire
from sandbox.errors import GrantError
from sandbox.granting import Descriptor, GrantRequest, describe
from sandbox.grants import Mode

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ACCESS: Final[Mapping[Mode, int]] = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
_FLAGS: Final = os.O_CLOEXEC | os.O_NOCTTY
# Of a file that is made, but for the umask; as by open().
_PERMISSIONS: Final = 0o666
# As a file that is made: regular, with a name, and there on every machine that runs cells.
_STAND_IN: Final = "/proc/self/stat"


class _Missing(NamedTuple):
    """A file that is to be made.

    Attributes:
        number: The descriptor of its stand-in, which becomes its own.
        path: Its path.
        mode: What it is opened for: ``w`` or ``rw``.
        origin: Who asked for it, for errors.
    """

    number: int
    path: str
    mode: Mode
    origin: str


class Opened:
    """Descriptors that are opened for one run, until :meth:`close`."""

    def __init__(self) -> None:
        """Begin without any."""
        self._fds: list[int] = []
        self._passing: list[int] = []  # is needed for a moment
        self._missing: list[_Missing] = []
        self._full: list[int] = []

    def close(self) -> None:
        """Close all of them."""
        wire.close_all(self._fds)
        wire.close_all(self._passing)

    def __del__(self) -> None:
        # A handler of a signal may have kept everybody from it. It may not have come to be.
        if hasattr(self, "_passing"):
            self.close()

    def own(self, make: Callable[..., int], *args: object) -> int:
        """Have a descriptor made, as by :func:`keep`, that is closed in the end."""
        return keep(self._fds, make, *args)

    def null(self) -> int:
        """Return a descriptor from which nothing is read."""
        return self.own(os.open, "/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def content(self, content: bytes, name: str) -> int:
        """Return a descriptor of bytes, for reading only.

        Args:
            content: The bytes.
            name: What their memory file is called in /proc.
        """
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            memory = keep(self._passing, os.memfd_create, name, flags)
            with open(memory, "wb", buffering=0, closefd=False) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            return self.own(os.open, f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            wire.close_all(self._passing)

    def path(self, path: str, mode: Mode, origin: str) -> int:
        """Open a path as :func:`open` does, and a directory for what can be done with one.

        A file that is to be emptied is emptied by :meth:`settle`; and one that is not there yet is
        made by that.

        Args:
            path: Of this process.
            mode: What it is opened for.
            origin: Who asks for it, for errors.

        Raises:
            GrantError: If it is a FIFO: opening one may never end.
            OSError: If it cannot be opened.
        """
        try:
            kind = stat.S_IFMT(os.stat(path).st_mode)
        except FileNotFoundError:
            if mode == "r":
                raise
            stand_in = self.own(os.open, _STAND_IN, os.O_RDONLY | os.O_CLOEXEC)
            self._missing.append(_Missing(stand_in, path, mode, origin))
            return stand_in
        if kind == stat.S_IFDIR:
            # Whoever opens one has it for reading; what may be written is for its mount to say.
            return self.own(os.open, path, _FLAGS | os.O_RDONLY | os.O_DIRECTORY)
        if kind == stat.S_IFIFO:
            raise _fifo(path, origin)
        fd = _open_at_once(self._fds, path, _ACCESS[mode], origin)
        if mode == "w":
            self._full.append(fd)
        return fd

    def inspect(self, request: GrantRequest) -> Descriptor:
        """Say what the source of a request is: of one that is to be made, what it will be.

        Raises:
            OSError: As of :func:`sandbox.granting.describe`.
            JailError: Likewise.
        """
        for missing in self._missing:
            if missing.number == request.source:
                return Descriptor("regular file", missing.mode, ("file",))
        return describe(request.source)

    def settle(self) -> None:
        """Make what is to be made, and then empty what is to be emptied.

        Raises:
            OSError: If a file cannot be made.
            GrantError: If there is a FIFO in its place by now.
        """
        for missing in self._missing:
            flags = _ACCESS[missing.mode] | os.O_CREAT
            try:
                fd = _open_at_once(self._passing, missing.path, flags, missing.origin)
                os.dup2(fd, missing.number, inheritable=False)
            finally:
                wire.close_all(self._passing)
            if missing.mode == "w":  # somebody else may have made it meanwhile
                self._full.append(missing.number)
        self._missing = []
        for fd in self._full:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
        self._full = []


def keep(fds: list[int], make: Callable[..., int], *args: object) -> int:
    """Have a descriptor made that is in a list at once, and return it.

    A handler of a signal may raise something after each call: what a call has returned would be
    nobody's then. This is one, which makes it and notes it.

    Args:
        fds: Descriptors for somebody to close, whatever happens.
        make: A function in C, which makes one.
        *args: What to call it with.
    """
    fds.extend(starmap(make, (args,)))
    return fds[-1]


def _open_at_once(fds: list[int], path: str, flags: int, origin: str) -> int:
    """Open what is no directory, without waiting for anybody else to open it too.

    Args:
        fds: As of :func:`keep`.
        path: Of this process.
        flags: For open(2).
        origin: Who asks for it, for errors.

    Raises:
        GrantError: If it is a FIFO, which has no other way to be opened.
        OSError: As open(2) says.
    """
    fd = keep(fds, os.open, path, _FLAGS | os.O_NONBLOCK | flags, _PERMISSIONS)
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        raise _fifo(path, origin)
    # That was for open(2) only: the cell waits where there is nothing to read yet.
    os.set_blocking(fd, True)
    return fd


def _fifo(path: str, origin: str) -> GrantError:
    return GrantError(
        origin,
        f"'{path}' is a FIFO, and to open one may take for ever",
        hint="open it, and grant its descriptor",
    )

"""A cell's bytes, sealed and known by their digest, for any number of runs."""

import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from typing import Final, Self, TypeAlias

from sandbox.errors import CellRejected
from sandbox.library.offer import MAX_FD
from sandbox.plan import COMPONENT_MAGIC

MAX_SIZE: Final = 256 << 20
"""Bytes of the largest cell, as for the program ``ww``."""

# How a core module begins, as of the host, whose module takes the engine to import.
_CORE_MAGIC: Final = b"\0asm\x01\0\0\0"
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK: Final = 1 << 20
_NAME: Final = "cell"


class Cell:
    """A program for the sandbox: bytes that nobody can change any more, and their SHA-256.

    Made once and run many times, it costs each run neither a copy nor a digest. It can be closed
    while it runs. Any number of threads may use it. It is pickled as its bytes.

    Attributes:
        name: What it is called, in errors and as its own first argument.
        digest: The SHA-256 of its bytes, as hexadecimal digits.
        size: Their number.
        component: Whether it is a component and not a core module.
    """

    __slots__ = ("_guard", "_memory", "component", "digest", "name", "size")

    def __init__(self, memory: int, name: str) -> None:
        """Take over a sealed memory file; use :meth:`load`."""
        # A number that is closed may be another file's at once. Again by the same thread, because
        # a cell may be closed in a handler of a signal.
        self._guard = threading.RLock()
        self._memory = memory
        self.name = name
        self.size = os.fstat(memory).st_size
        self.component = os.pread(memory, len(COMPONENT_MAGIC), 0) == COMPONENT_MAGIC
        # A descriptor of its own: the position of the caller's is the caller's.
        with open(self.open(), "rb", buffering=0) as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    @classmethod
    def load(cls, source: "CellSource", name: str | None = None) -> "Cell":
        """Take in a cell.

        Args:
            source: Its bytes; the path of a file; an open descriptor of a file, of which all is
                read, from the beginning, whatever its position (a sealed memory file is shared and
                not copied); or another cell, which is shared too.
            name: What to call it; by default the path, or ``cell``.

        Raises:
            CellRejected: If it is too large, or no regular file.
            OSError: If it cannot be read.
            ValueError: If the name holds a NUL character, or is not valid UTF-8.
            TypeError: If it is none of these.
        """
        if name is not None:
            if "\0" in name:
                raise ValueError("a cell's name cannot hold a NUL character")
            name.encode()  # UnicodeEncodeError, a ValueError: WASI strings are UTF-8
        if isinstance(source, Cell):
            return cls(source.open(), source.name if name is None else name)
        if isinstance(source, bool):
            raise TypeError(f"{source!r} is no cell")
        if isinstance(source, int):
            called = _NAME if name is None else name
            return cls(_shared(source) or _copy_of_file(source, called), called)
        if isinstance(source, (bytes, bytearray, memoryview)):
            called = _NAME if name is None else name
            return cls(_copy_of_bytes(source, called), called)
        path = os.fspath(source)
        # Its bytes may be no text, and the name has to be one.
        called = os.fsencode(path).decode(errors="backslashreplace") if name is None else name
        # Not blocking: a FIFO in the cell's place must not make anybody wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return cls(_copy_of_file(fd, called), called)
        finally:
            os.close(fd)

    def fileno(self) -> int:
        """Return the descriptor of its bytes.

        Raises:
            ValueError: If it was closed.
        """
        if self._memory < 0:
            raise ValueError(f"the cell {self.name} is closed")
        return self._memory

    def open(self) -> int:
        """Open its bytes anew, for reading, at position 0; the descriptor is the caller's.

        Raises:
            OSError: If there is no descriptor left, or no /proc.
            ValueError: If it was closed.
        """
        return self.open_by(os.open)

    def open_by(self, opener: Callable[[str, int], int]) -> int:
        """Have its bytes opened anew, as by :meth:`open`, by what keeps the descriptor.

        Args:
            opener: Gets what :func:`os.open` does, and is to call it at once.

        Raises:
            OSError: As of :meth:`open`.
            ValueError: Likewise.
        """
        with self._guard:
            self.fileno()
            return opener(f"/proc/self/fd/{self._memory}", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: If it was closed.
        """
        with open(self.open(), "rb", buffering=0) as file:
            return file.readall()

    def close(self) -> None:
        """Give up its bytes. What runs already, runs on."""
        with self._guard:
            memory, self._memory = self._memory, -1
            if memory >= 0:
                os.close(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # It may not have come to be.
        if getattr(self, "_memory", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"<Cell {self.name!r} {self.digest[:12]} of {self.size} bytes>"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle it as its bytes and its name."""
        return _load, (self.read(), self.name)


CellSource: TypeAlias = Cell | bytes | str | os.PathLike[str] | int
"""What a cell can be made of; see :meth:`Cell.load`."""


def check_kind(source: object) -> None:
    """Hold that something can be a cell at all.

    Raises:
        TypeError: If not.
    """
    kinds = (Cell, bytes, bytearray, memoryview, str, os.PathLike, int)
    if isinstance(source, bool) or not isinstance(source, kinds):
        raise TypeError(f"{source!r} is no cell: neither bytes nor a path, a descriptor or a Cell")


def check_program(code: int, name: str) -> None:
    """Hold that a cell begins as a program does; whether it is one is for the engine to say.

    Args:
        code: A descriptor of its bytes.
        name: What it is called.

    Raises:
        CellRejected: If not, as the host has it.
    """
    if os.pread(code, len(_CORE_MAGIC), 0) not in (_CORE_MAGIC, COMPONENT_MAGIC):
        raise CellRejected(name, "it is not a WebAssembly module")


def _load(code: bytes, name: str) -> Cell:
    return Cell.load(code, name)


def _new_memory() -> int:
    return os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _shared(fd: int) -> int | None:
    """Return another descriptor of a memory file that is sealed already; ``None`` for any other.

    Raises:
        OSError: EBADF if it is not open.
    """
    if not 0 <= fd <= MAX_FD:
        raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {fd}")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        os.fstat(fd)  # not open is an error, and no memory file is none
        del error
        return None
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if seals & _SEALS == _SEALS else None


def _copy_of_bytes(code: bytes | bytearray | memoryview, name: str) -> int:
    if len(code) > MAX_SIZE:
        raise _too_large(name)
    memory = _new_memory()
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(code)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _copy_of_file(fd: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CellRejected(name, "it is not a regular file")
    memory = _new_memory()
    try:
        total = 0
        while count := os.sendfile(memory, fd, total, _CHUNK):
            total += count
            if total > MAX_SIZE:
                raise _too_large(name)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _too_large(name: str) -> CellRejected:
    return CellRejected(name, f"it is larger than {MAX_SIZE} bytes, the most of a cell")

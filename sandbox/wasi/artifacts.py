"""The cache of compiled forms, of the host's own modules and of cells.

An artifact is machine code and is trusted like ww itself: a crafted one could do anything. So
only what ww compiled is ever loaded, and the cache is used only where nobody but the caller
(and root) can write. Losing the cache costs nothing but time, so what goes wrong with it is no
error: whatever is not as it should be is compiled anew.
"""

import os
import stat
import struct
import zlib
from contextlib import suppress

# At the end of each file, where the engine does not look: the size of what is before, its
# checksum, a mark. They are there to notice a cut or damaged file; against forgery only the
# owner and mode of the file and its directory count.
_TRAILER = struct.Struct("<QI4s")
_MARK = b"ww1\n"
_CHUNK = 1 << 20


class Cache:
    """A directory of artifacts, each under a name that says all that it depends on."""

    def __init__(self, directory: str | None) -> None:
        """Use a directory, which need not exist.

        Args:
            directory: Its path; ``None`` for no cache.
        """
        self._directory = directory

    def find(self, name: str) -> int | None:
        """Open an artifact.

        Args:
            name: As given to :meth:`keep`.

        Returns:
            A descriptor for reading, close-on-exec; or ``None`` if there is none that is whole.
        """
        if self._directory is None:
            return None
        try:
            directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _open(directory, name) if _private(os.fstat(directory)) else None
        except OSError:
            return None
        finally:
            os.close(directory)

    def keep(self, name: str, artifact: int) -> None:
        """Store a copy of an artifact.

        Args:
            name: What it is found by; it must be safe as a file's name.
            artifact: A descriptor of it, which nobody can change any more.
        """
        if self._directory is None:
            return
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if _private(os.fstat(directory)):
                _write(directory, name, artifact)
        except OSError:
            pass  # a full disk, say, or a file system without O_TMPFILE: open(2)
        finally:
            os.close(directory)


def _open(directory: int, name: str) -> int | None:
    """Open an artifact in a directory, if it is whole; see :meth:`Cache.find`.

    Raises:
        OSError: ENOENT; as open(2) and read(2) say.
    """
    # Not blocking: a FIFO in its place must not make anybody wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, dir_fd=directory)
    try:
        mapped = _mappable(fd) if _is_whole(fd) else None
    except BaseException:
        os.close(fd)
        raise
    if mapped != fd:
        os.close(fd)
    return mapped


def _write(directory: int, name: str, artifact: int) -> None:
    """Write a copy of an artifact under a name in a directory.

    Raises:
        OSError: As open(2), write(2) and link(2) say.
    """
    # A file without a name: nothing of it is left if this process is killed.
    flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
    with open(os.open(".", flags, 0o600, dir_fd=directory), "wb", buffering=0) as file:
        # A cell's process opens it again, and under root's ww that is another user's. Nobody else
        # gets this far: the directory is its owner's alone.
        os.fchmod(file.fileno(), 0o444)
        size, checksum = _copy(artifact, file.fileno())
        file.write(_TRAILER.pack(size, checksum, _MARK))
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)  # a damaged one, or another process's: the same
        os.link(f"/proc/self/fd/{file.fileno()}", name, dst_dir_fd=directory)


def _private(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(fd: int) -> bool:
    """Tell whether a file is as :meth:`Cache.keep` wrote it."""
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode) or not _private(state) or state.st_size < _TRAILER.size:
        return False
    expected = state.st_size - _TRAILER.size
    size, checksum, mark = _TRAILER.unpack(os.pread(fd, _TRAILER.size, expected))
    return (size, mark) == (expected, _MARK) and checksum == _checksum(fd, expected)


def _checksum(fd: int, size: int) -> int:
    value = at = 0
    while at < size and (data := os.pread(fd, min(_CHUNK, size - at), at)):
        value = zlib.crc32(data, value)
        at += len(data)
    return value


def _copy(source: int, target: int) -> tuple[int, int]:
    """Copy a whole file; return its size and checksum.

    Raises:
        OSError: As read(2) and write(2) say.
    """
    value = at = 0
    while data := os.pread(source, _CHUNK, at):
        value = zlib.crc32(data, value)
        at += len(data)
        while data:
            data = data[os.write(target, data) :]
    return at, value


def _mappable(fd: int) -> int:
    """Return a descriptor from which code can be mapped: a copy, if the file system forbids it.

    Raises:
        OSError: ENOMEM.
    """
    if not os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        return fd
    memory = os.memfd_create("artifact", os.MFD_CLOEXEC)
    try:
        _copy(fd, memory)
    except BaseException:
        os.close(memory)
        raise
    return memory

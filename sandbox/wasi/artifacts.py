"""The cache of compiled forms, of the host's own modules and of cells.

An artifact is machine code and is trusted like ww itself: a crafted one could do anything. So
only what ww compiled is ever loaded, and the cache is used only where nobody but the caller
(and root) can write. Losing the cache costs nothing but time, so what goes wrong with it is no
error: whatever is not as it should be is compiled anew.

The forms of cells together have a bound. Whoever adds one first removes those that were not used
for longest, which is also how the leftovers of older engines go. Each is opened once and loaded
from its descriptor, so whoever is about to load one that is removed does not notice.
"""

import errno
import fcntl
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

# At the end of each file, where the engine does not look: the size of what is before, its
# checksum, a mark. They are there to notice a cut or damaged file; against forgery only the
# owner and mode of the file and its directory count.
_TRAILER = struct.Struct("<QI4s")
_MARK = b"ww1\n"
_CHUNK = 1 << 20

# What a cell's form is called: the SHA-256 of its bytes, and what else it depends on. The host's
# own modules, which are few and small, have other names: they are not counted and not evicted.
_CELL = re.compile(r"([0-9a-f]{64})-[0-9a-z-]+\.cwasm")
_SUFFIX = ".cwasm"

# Seconds by which the recorded time of a use may be wrong, so that most uses write nothing.
_PRECISION = 60
# Seconds that one who adds an artifact waits for the others, who need milliseconds. One that was
# stopped while it held the lock must not make anybody wait for long.
_PATIENCE = 2.0
_PAUSE = 0.005


class Entry(NamedTuple):
    """A cell's compiled form in the cache.

    Attributes:
        name: Its file's.
        digest: The SHA-256 of the cell's bytes, as hexadecimal digits.
        size: Bytes of the file.
        used: When it was last used, in seconds since the epoch, to within a minute.
    """

    name: str
    digest: str
    size: int
    used: float


class Cache:
    """A directory of artifacts, each under a name that says all that it depends on."""

    def __init__(self, directory: str | None, most: int | None = None) -> None:
        """Use a directory, which need not exist.

        Args:
            directory: Its path; ``None`` for no cache.
            most: Bytes that the forms of cells may have together; ``None`` for no bound.
        """
        self._directory = directory
        self._most = most

    def find(self, name: str) -> int | None:
        """Open an artifact, and record that it was used.

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

    def keep(self, name: str, artifact: int) -> str:
        """Store a copy of an artifact, and remove what there is no more room for.

        Args:
            name: What it is found by; it must be safe as a file's name.
            artifact: A descriptor of it, which nobody can change any more.

        Returns:
            Why it was not stored; empty if it was.
        """
        if self._directory is None:
            return "there is no directory for it"
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return f"{self._directory}: {error.strerror}"
        try:
            _check_private(directory, self._directory)
            _write(directory, name, artifact, self._most if _CELL.fullmatch(name) else None)
        except OSError as error:
            # A full disk, say, or a file system without O_TMPFILE: open(2).
            return f"{self._directory}: {error.strerror}"
        finally:
            os.close(directory)
        return ""

    def entries(self) -> list[Entry]:
        """Return the forms of cells, the last used first.

        Raises:
            OSError: EPERM if the cache is not used because others could write to it; as open(2)
                and getdents(2) say. A cache that does not exist is empty.
        """
        with self._listed() as directory:
            return [] if directory is None else sorted(_entries(directory), key=_age, reverse=True)

    def clear(self) -> list[Entry]:
        """Remove everything, the host's own modules too.

        Returns:
            The forms of cells that there were.

        Raises:
            OSError: As :meth:`entries`; as unlink(2) says.
        """
        with self._listed() as directory:
            if directory is None:
                return []
            entries = list(_entries(directory))
            for name in os.listdir(directory):
                if name.endswith(_SUFFIX):
                    with suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(name, dir_fd=directory)
            return entries

    @contextmanager
    def _listed(self) -> Iterator[int | None]:
        """Open the directory for listing; ``None`` where there is none.

        Raises:
            OSError: As :meth:`entries`.
        """
        try:
            if self._directory is None:
                raise FileNotFoundError
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            _check_private(directory, self._directory)
            yield directory
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
        mapped = None
        if _is_whole(fd):
            _record_use(fd)
            mapped = _mappable(fd)
    except BaseException:
        os.close(fd)
        raise
    if mapped != fd:
        os.close(fd)
    return mapped


def _record_use(fd: int) -> None:
    """Let the file's time say that it was used now, unless it nearly does."""
    if abs(time.time() - os.fstat(fd).st_mtime) >= _PRECISION:
        with suppress(OSError):  # of a file system that is read-only, say
            os.utime(fd)


def _write(directory: int, name: str, artifact: int, most: int | None) -> None:
    """Write a copy of an artifact under a name in a directory.

    Args:
        directory: A descriptor of it.
        name: The file's.
        artifact: What to copy.
        most: Bytes that the forms of cells may have together with this one, which is one.

    Raises:
        OSError: EFBIG if it has more than that alone; ETIMEDOUT if somebody else is at it for too
            long; as open(2), write(2), unlink(2) and link(2) say.
    """
    size = os.fstat(artifact).st_size + _TRAILER.size
    if most is not None and size > most:
        with _locked(directory):
            _shrink(directory, most)  # it may have been more when the others were stored
        raise OSError(errno.EFBIG, f"it would have {size} bytes, and all may have {most}")
    try:
        file = _copy_without_name(directory, artifact)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Then the disk is the bound. Once: whatever else fills it is stronger.
        with _locked(directory):
            total = sum(entry.size for entry in _entries(directory))
            if total < size:
                raise
            _shrink(directory, total - size)
        file = _copy_without_name(directory, artifact)
    try:
        with _locked(directory):
            # A damaged one, or another process's, which is the same. Then it is not counted.
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            if most is not None:
                _shrink(directory, most - size)
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=directory)
    finally:
        os.close(file)


def _copy_without_name(directory: int, artifact: int) -> int:
    """Return a descriptor of a new file in a directory, without a name there: a copy and its end.

    Nothing of it is left if this process is killed.

    Raises:
        OSError: As open(2) and write(2) say.
    """
    fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        # A cell's process opens it again, and under root's ww that is another user's. Nobody else
        # gets this far: the directory is its owner's alone.
        os.fchmod(fd, 0o444)
        size, checksum = _copy(artifact, fd)
        _write_all(fd, _TRAILER.pack(size, checksum, _MARK))
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _locked(directory: int) -> Iterator[None]:
    """Keep other processes from adding to a directory; flock(2).

    The kernel releases the lock of whoever ends with it.

    Raises:
        OSError: ETIMEDOUT if somebody has it for too long; as flock(2) says.
    """
    over = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > over:
                raise OSError(errno.ETIMEDOUT, "another process has locked it") from None
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def _shrink(directory: int, most: int) -> None:
    """Remove forms of cells, those first that were not used for longest.

    Args:
        directory: A locked one.
        most: Bytes that they may have together afterwards.

    Raises:
        OSError: ENOSPC if not so much can be removed; as getdents(2) says.
    """
    entries = sorted(_entries(directory), key=_age)
    excess = sum(entry.size for entry in entries) - most
    for entry in entries:
        if excess <= 0:
            return
        try:
            os.unlink(entry.name, dir_fd=directory)
        except FileNotFoundError:
            pass  # `ww cache clear` takes no lock
        except OSError:
            continue  # it is immutable, say: chattr(1)
        excess -= entry.size
    if excess > 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _entries(directory: int) -> Iterator[Entry]:
    """Iterate over the forms of cells in a directory; what has such a name and is no file is none.

    Raises:
        OSError: As getdents(2) says.
    """
    with os.scandir(directory) as found:
        for item in found:
            match = _CELL.fullmatch(item.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):
                state = item.stat(follow_symlinks=False)
                if stat.S_ISREG(state.st_mode):
                    yield Entry(item.name, match[1], state.st_size, state.st_mtime)


def _age(entry: Entry) -> tuple[float, str]:
    return entry.used, entry.name


def _private(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _check_private(directory: int, path: str | None) -> None:
    """Hold that nobody else can write to a directory.

    Raises:
        OSError: EPERM.
    """
    if not _private(os.fstat(directory)):
        raise PermissionError(
            errno.EPERM, "it is not used, because others can write to it or own it", path
        )


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
        _write_all(target, data)
    return at, value


def _write_all(fd: int, data: bytes) -> None:
    """Write all of some data.

    Raises:
        OSError: As write(2) says.
    """
    while data:
        data = data[os.write(fd, data) :]


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

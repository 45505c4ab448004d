"""The embedded blockstore: one file a block, in Kubo's flatfs layout, verified at every read.

``HOME/blocks/XY/NAME.data``, where NAME is the multihash in base32 and XY are the two characters
before its last (``next-to-last/2`` of https://github.com/ipfs/go-ds-flatfs). So Kubo can read this
store, and a Kubo repository's blocks can be read as one.

What holds, and how:

*Whole or absent.* A block is written to a temporary file and renamed, so a reader or a process
killed in the middle never leaves part of a block under its name, and any number of processes may
write at once: two of them that write one block write the same bytes.

*Leftovers go.* A writer holds a shared lock on the directory of temporary files. The first write of
each :class:`Blockstore` tries for the exclusive lock; if it gets it, nobody is writing, and what
lies there was left by a process that died. The kernel drops the lock of a dead process, so this
needs no clock and no process numbers.

*Kept while it is used.* A store that has been read or written holds a shared lock on ``blocks``
until it is closed. :mod:`runner.content.gc` removes blocks only while it holds that lock alone, so
what has been found stays until its user is done, and an import that finds a block already there can
rely on it.

*Its last use is known.* A block's time of modification is that of its last use, to the hour: who
reads or puts a block whose time is older sets it. So a cell that is run again and again costs one
write an hour, and it does not matter whether the file system keeps access times.

*Durable once said.* :meth:`Blockstore.put` does not wait for the disk; :meth:`Blockstore.sync`
does, and an import calls it before it tells the CID. After a loss of power before that, a block may
be there with the wrong bytes; this is found when it is read, as any other damage is. Waiting at
every block would buy nothing more.

*Damage goes.* A block with the wrong bytes is named and removed by who finds it, so that it counts
as missing and can be had from elsewhere again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from runner.content import multibase, multihash
from runner.content.cid import Cid
from runner.errors import EXIT_NOT_FOUND, EXIT_USAGE, WwError
from runner.suppress import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from runner.content.varint import Buffer

MAX_BLOCK_SIZE = 2 * 1024 * 1024
"""Bytes of the largest block: what Bitswap carries, so no larger one travels."""

_SHARDING = b"/repo/flatfs/shard/v1/next-to-last/2\n"
_SYNC_BATCH = 4096  # blocks put and not yet synced: it bounds the list of their paths
_USE_PRECISION = 3600  # seconds
_REMOVAL_TRIES, _REMOVAL_PAUSE = 100, 0.01
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def store_home(environ: Mapping[str, str]) -> str:
    """Return the directory of the user's store: ``$WW_HOME``, else ``ww`` where data belongs.

    That is ``$XDG_DATA_HOME/ww``, else ``~/.local/share/ww``. An empty variable counts as unset,
    and a relative XDG_DATA_HOME is ignored (XDG Base Directory Specification).

    Args:
        environ: The environment.

    Raises:
        WwError: WW_HOME is not absolute, or neither variable nor HOME is set.
    """
    home = environ.get("WW_HOME", "")
    if home:
        if not os.path.isabs(home):
            raise WwError(
                "WW_HOME",
                f"{home!r} is not an absolute path",
                hint="the store must not depend on the working directory",
                code=EXIT_USAGE,
            )
        return home
    data_home = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data_home):
        return os.path.join(data_home, "ww")
    user_home = environ.get("HOME", "")
    if not os.path.isabs(user_home):
        raise WwError("HOME", "not set, so there is no place for the store", hint="set WW_HOME")
    return os.path.join(user_home, ".local", "share", "ww")


class DamagedBlock(WwError):
    """A block of the store does not have the bytes that its name stands for."""


class Blockstore:
    """Blocks in a directory. An instance is for one thread.

    Nothing is created before a block is put, and nothing is locked before one is asked for or put.
    Close it when the blocks are no longer needed, or use it in a ``with`` block; one that is
    forgotten is closed with its last reference.

    Attributes:
        home: The directory of the store.
    """

    marks_use = True
    """Whether reading a block counts as a use of it."""

    _lock: int | None = None

    def __init__(self, home: str) -> None:
        self.home = os.path.abspath(home)
        self._blocks = os.path.join(self.home, "blocks")
        self._temporary = os.path.join(self._blocks, ".temp")
        self._layout_checked = False
        self._prepared = False
        self._unsynced: dict[str, str] = {}  # path of a block -> its directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let others remove blocks again. The store can still be used, and is locked anew then."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def hold(self) -> None:
        """Keep every block that is there until the store is closed.

        Every use of the store does this by itself. It waits for a garbage collection that is
        under way. Without a store, there is nothing to keep.
        """
        if self._lock is not None:
            return
        try:
            lock = os.open(self._blocks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # there is none, or what is asked next will tell what is wrong with it
        try:
            # A file system without locks refuses them to a garbage collection too.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def path(self, cid: Cid) -> str:
        """Return the path of a block's file, whether there is one or not."""
        name = multibase.encode_base32_upper(cid.multihash)
        return f"{self._blocks}/{name[-3:-1]}/{name}.data"

    def has(self, cid: Cid) -> bool:
        """Tell whether the store has a file for a block, without reading it."""
        if _inlined(cid) is not None:
            return True
        self.hold()
        return os.path.exists(self.path(cid))

    def expect(self, cids: Iterable[Cid]) -> None:
        """Take note of what will be asked for next; a directory needs no such hint."""

    def get(self, cid: Cid) -> bytes:
        """Return a block whose hash has been verified.

        A CID with an identity hash is its own block and needs no file.

        Raises:
            DamagedBlock: Its file has the wrong bytes. It has been removed, if that was possible.
            WwError: There is no such block (code EXIT_NOT_FOUND), it cannot be read, or the store
                is in another layout.
        """
        inlined = _inlined(cid)
        if inlined is not None:
            return inlined
        self.hold()
        path = self.path(cid)
        try:
            data = _read_block(path, cid, used=self.marks_use)
        except FileNotFoundError:
            self._check_layout()
            raise WwError(
                f"block {cid}",
                f"not in the store {self.home}",
                hint="check the address, or export the content into this store",
                code=EXIT_NOT_FOUND,
            ) from None
        except OSError as error:
            raise _store_error(path, "cannot read", error) from None
        return self._replaced(path, cid) if data is None else data

    def _replaced(self, path: str, cid: Cid) -> bytes:
        """Remove a damaged block; or return it, if it has been replaced by a good one just now."""
        what = f"damaged: {path} does not have the bytes that the CID names"
        try:
            data = self._remove_damaged(path, cid)
        except (OSError, WwError) as error:
            what += f", and cannot be removed: {getattr(error, 'strerror', None) or error}"
        else:
            if data is not None:
                return data
            what = f"damaged: {path} did not have the bytes that the CID names; it has been removed"
        raise DamagedBlock(
            f"block {cid}", what, hint="export the content again, or fetch it from a source"
        )

    def _remove_damaged(self, path: str, cid: Cid) -> bytes | None:
        self._prepare()
        temporary = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # No block gets its name while this is held, so what is judged is what is removed.
            for _ in range(_REMOVAL_TRIES):
                with suppress(BlockingIOError):
                    fcntl.flock(temporary, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(_REMOVAL_PAUSE)
            else:
                raise BlockingIOError(errno.EBUSY, "the store is being written")
            with suppress(FileNotFoundError):
                data = _read_block(path, cid, used=False)
                if data is not None:
                    return data
                os.unlink(path)
            return None
        finally:
            os.close(temporary)

    def put(self, cid: Cid, data: Buffer, *, verified: bool = False) -> None:
        """Store a block; a damaged file in its place is replaced.

        Args:
            cid: Its address.
            data: The block. It is verified against the address, unless that has been done.
            verified: Whether the caller has computed this CID from this very data, or has verified
                the data against it. A wrong pair is refused by every :meth:`get`.

        Raises:
            WwError: The data is not the block, or too large, or the store cannot be created or
                written.
        """
        if len(data) > MAX_BLOCK_SIZE:
            raise WwError(f"block {cid}", f"larger than {MAX_BLOCK_SIZE} bytes")
        if not verified and not multihash.matches(cid.multihash, data):
            raise WwError(f"block {cid}", "the bytes are not those that the CID names")
        if _inlined(cid) is not None:
            return
        path = self.path(cid)
        directory = os.path.dirname(path)
        self.hold()
        if self._lock is None:
            self._prepare()  # before the look at the block: what is found must stay
        if not _has_bytes(path, data):
            self._prepare()
            try:
                self._write(path, directory, data)
            except OSError as error:
                raise _store_error(path, "cannot write", error) from None
        # A block that was there already may have been written a moment ago by a process that
        # has not waited for the disk either.
        self._unsynced[path] = directory
        if len(self._unsynced) >= _SYNC_BATCH:
            self.sync()

    def sync(self) -> None:
        """Wait until all blocks that were put are on the disk.

        Raises:
            WwError: The disk reports an error.
        """
        try:
            directories = {*self._unsynced.values(), self._blocks} if self._unsynced else ()
            for path in (*self._unsynced, *directories):
                fsync(path)
        except OSError as error:
            raise _store_error(self.home, "cannot write to the disk", error) from None
        self._unsynced.clear()

    def _prepare(self) -> None:
        if self._prepared:
            return
        try:
            _make_directories(self._temporary)
            self.hold()
            self._check_layout()
            self._remove_leftovers()
            if not self._layout_checked:
                sharding = os.path.join(self._blocks, "SHARDING")
                self._write(sharding, self._blocks, _SHARDING)
                self._unsynced[sharding] = self._blocks
        except OSError as error:
            raise _store_error(self.home, "cannot create or write the store", error) from None
        self._prepared = True

    def _check_layout(self) -> None:
        """Refuse a store of another layout, where no block would ever be found."""
        if self._layout_checked:
            return
        path = os.path.join(self._blocks, "SHARDING")
        try:
            layout = _read_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _store_error(path, "cannot read", error) from None
        if layout is not None and not layout.strip(b"\0"):
            return  # power was lost before it reached the disk; it will be written again
        if layout is None or layout.strip() != _SHARDING.strip():
            raise WwError(
                path,
                f"the store's layout is not {_SHARDING.decode().strip()}",
                hint="set WW_HOME to another directory",
            )
        self._layout_checked = True

    def _remove_leftovers(self) -> None:
        directory = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(directory):
                with suppress(IsADirectoryError):  # not of ww's making
                    os.unlink(name, dir_fd=directory)
        except BlockingIOError:
            pass  # somebody is writing; a later run will find the leftovers
        finally:
            os.close(directory)

    def _write(self, path: str, directory: str, data: Buffer) -> None:
        temporary = os.open(self._temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(temporary, fcntl.LOCK_SH)
            name = os.urandom(8).hex()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=temporary)
            try:
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(file, view) :]
                finally:
                    os.close(file)
                try:
                    os.rename(name, path, src_dir_fd=temporary)
                except FileNotFoundError:
                    with suppress(FileExistsError):
                        os.mkdir(directory, 0o700)
                    os.rename(name, path, src_dir_fd=temporary)
            except BaseException:
                # An interrupt may come when the file has its final name already.
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=temporary)
                raise
        finally:
            os.close(temporary)


def _inlined(cid: Cid) -> bytes | None:
    """Return the block that an identity hash is, or None for any other hash."""
    if cid.multihash[0] != multihash.IDENTITY:
        return None
    return multihash.decode(cid.multihash)[1]


def _has_bytes(path: str, data: Buffer) -> bool:
    try:
        # As bytes: a view is compared item by item.
        return _read_file(path, used=True) == bytes(data)
    except OSError:
        # Absent, or something that is no readable block: writing it will tell.
        return False


def _read_block(path: str, cid: Cid, *, used: bool) -> bytes | None:
    """Return a block's bytes, or None if its file has others.

    Args:
        path: Its file.
        cid: Its address.
        used: Whether to take note of this as a use of it.

    Raises:
        OSError: There is no such file, or it cannot be read for want of a permission.
    """
    try:
        data = _read_file(path, used=used)
    except OSError as error:
        # A symbolic link, or a disk that has lost what was on it: no second try would read it.
        if error.errno in (errno.ELOOP, errno.EIO):
            return None
        raise
    if data is None or not multihash.matches(cid.multihash, data):
        return None
    return data


def _read_file(path: str, *, used: bool = False) -> bytes | None:
    """Return a file's bytes, or None if it cannot be a block: not a file, or too large.

    Args:
        path: The file.
        used: As of :func:`_read_block`.
    """
    file = os.open(path, _READ_FLAGS)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BLOCK_SIZE:
            return None
        if used and abs(time.time() - status.st_mtime) > _USE_PRECISION:
            # A store that may only be read is read all the same.
            with suppress(OSError):
                os.utime(file)
        # One byte more than the size, so that one call reads the whole and its end.
        data = os.read(file, status.st_size + 1)
        while len(data) < status.st_size:
            more = os.read(file, status.st_size - len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(file)


def _make_directories(path: str) -> None:
    """Create a directory and its missing parents, each for its owner alone."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            # Made by another process in the meantime, or not a directory.
            if not os.path.isdir(directory):
                raise
        fsync(os.path.dirname(directory))


def fsync(path: str) -> None:
    """Wait until a file, or the names in a directory, are on the disk (fsync(2)).

    Raises:
        OSError: The disk reports an error, or there is no such file.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _store_error(path: str, what: str, error: OSError) -> WwError:
    return WwError(
        path,
        f"{what}: {error.strerror or error}",
        hint="the store is in $WW_HOME, else $XDG_DATA_HOME/ww, else ~/.local/share/ww",
    )

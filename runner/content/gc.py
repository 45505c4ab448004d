"""Garbage collection: the blocks that no pin needs are removed, the least recently used first.

Whoever uses a store holds its lock shared (:class:`runner.content.blockstore.Blockstore`), and a
collection removes only while it holds it alone, so no block goes that is in use, and none of an
import that is not done. What is pinned is found before that, because it takes long and stays true:
content never changes. Only pins that came since are followed while others wait.

A collection that cannot tell what a pin needs, because a block of it is missing, removes nothing.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from runner.content import multibase, multihash, pins
from runner.content.blockstore import Blockstore, DamagedBlock
from runner.content.cid import RAW, Cid
from runner.content.errors import ContentError
from runner.content.walk import below
from runner.errors import WwError

_SUFFIX = ".data"
_POLL = 0.05  # seconds


class Block(NamedTuple):
    """A block's file.

    Attributes:
        used: When it was last used, in nanoseconds of the clock.
        path: The file.
        size: Its size in bytes.
    """

    used: int
    path: str
    size: int

    @property
    def name(self) -> str:
        """The multihash in base32, as flatfs writes it."""
        return os.path.basename(self.path).removesuffix(_SUFFIX)

    @property
    def cid(self) -> Cid | None:
        """The CID as that of a raw block, or None for a file that cannot be a block of ww.

        A block does not say what it is, so this is how Kubo lists them too.
        """
        try:
            found = multibase.decode(f"B{self.name}")
            multihash.decode(found)
        except ContentError:
            return None
        return Cid(1, RAW, found)


class Collected(NamedTuple):
    """What a collection did, or would do.

    Attributes:
        removed: The blocks that went, in that order.
        kept: How many stayed.
        kept_size: Bytes of those.
    """

    removed: list[Block]
    kept: int
    kept_size: int

    @property
    def removed_size(self) -> int:
        """Bytes of the blocks that went."""
        return sum(block.size for block in self.removed)


class _Quiet(Blockstore):
    """A store that is read without being locked: the collection has the lock, or needs none."""

    marks_use = False

    def hold(self) -> None:
        """Do nothing."""

    def _replaced(self, path: str, cid: Cid) -> bytes:
        """Name a damaged block and leave it: whoever reads it for its content removes it."""
        raise DamagedBlock(f"block {cid}", f"damaged: {path} has other bytes than the CID names")


def blocks(home: str) -> Iterator[Block]:
    """Yield the blocks of a store, in no order; those that vanish meanwhile are left out.

    Raises:
        WwError: The store cannot be read.
    """
    directory = os.path.join(home, "blocks")
    try:
        with os.scandir(directory) as shards:
            names = [shard.name for shard in shards if len(shard.name) == 2 and shard.is_dir()]
        for name in names:
            with os.scandir(os.path.join(directory, name)) as files:
                for file in files:
                    if not file.name.endswith(_SUFFIX):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        yield Block(status.st_mtime_ns, file.path, status.st_size)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WwError(str(error.filename), f"cannot read: {error.strerror}") from None


def collect(home: str, *, max_size: int = 0, wait: float = 0, dry_run: bool = False) -> Collected:
    """Remove blocks until a store is no larger than it may be, or only pinned ones are left.

    Args:
        home: The directory of the store.
        max_size: Bytes that all blocks may have together. 0 removes all that is not pinned.
        wait: Seconds to wait for others to be done with the store.
        dry_run: Whether to remove nothing, and only tell.

    Raises:
        WwError: Somebody else uses the store, a block of a pin is missing or damaged, or the store
            cannot be read or written. Whatever has been removed, all that is pinned is there.
    """
    store = _Quiet(home)
    seen: set[tuple[int, bytes]] = set()
    kept: set[str] = set()
    _mark(store, seen, kept)
    with contextlib.nullcontext() if dry_run else _alone(home, wait):
        _mark(store, seen, kept)
        if not dry_run:
            pins.remove_leftovers(home)
        found = sorted(blocks(home))
        size = sum(block.size for block in found)
        removed = []
        for block in found:
            if size <= max_size:
                break
            if block.name in kept or block.cid is None:
                continue
            if not dry_run:
                _remove(block)
            removed.append(block)
            size -= block.size
        return Collected(removed, len(found) - len(removed), size)


def _mark(store: Blockstore, seen: set[tuple[int, bytes]], kept: set[str]) -> None:
    """Add the names of all blocks that pins need; what has been seen is not read again."""
    for pin in pins.pins(store.home):
        try:
            for cid in below(store.get, pin.cid, seen, leaves=False):
                kept.add(multibase.encode_base32_upper(cid.multihash))
        except WwError as error:
            raise WwError(
                f"pin /ipfs/{pin.cid}",
                f"what it needs cannot be told, so nothing is removed: {error.where}: {error.what}",
                hint="export or fetch it again, or unpin it",
            ) from None


def _remove(block: Block) -> None:
    try:
        os.unlink(block.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise WwError(block.path, f"cannot be removed: {error.strerror}") from None


@contextlib.contextmanager
def _alone(home: str, wait: float) -> Iterator[None]:
    """Keep everybody else out of a store.

    Raises:
        WwError: Others use it, and have not stopped within the time; it names them.
    """
    directory = os.path.join(home, "blocks")
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # no store: nothing to remove, and nothing to keep
        return
    except OSError as error:
        raise WwError(directory, f"cannot read: {error.strerror}") from None
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _in_use(home, lock) from None
            except OSError as error:
                raise WwError(directory, f"cannot be locked: {error.strerror}") from None
            time.sleep(_POLL)
        yield
    finally:
        os.close(lock)


def _in_use(home: str, lock: int) -> WwError:
    users = ", ".join(_holders(lock)) or "a process that cannot be seen from here"
    return WwError(
        home,
        f"the store is in use by {users}",
        hint="try again when that is done, or wait longer with --wait",
    )


def _holders(lock: int) -> Iterator[str]:
    """Yield who has a lock on an open directory, each as its number and what it runs."""
    status = os.fstat(lock)
    # N: FLOCK ADVISORY READ PID MAJOR:MINOR:INODE START END (proc_locks(5))
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if fields[1] != "FLOCK" or fields[5].rpartition(":")[2] != str(status.st_ino):
                continue
            pid = fields[4]
            if pid != str(os.getpid()) and _has_open(pid, status):
                yield f"process {pid}{_command(pid)}"


def _has_open(pid: str, status: os.stat_result) -> bool:
    """Whether a process has a file open: another file system may have the same inode number."""
    try:
        return any(
            os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), status)
            for number in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return True  # another user's, or one that is just ending


def _command(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(200).decode(errors="replace").split("\0")
        # A URL may hold a password.
        shown = ["..." if "://" in word or "@" in word else word for word in words]
        return f" ({' '.join(shown).strip()})"
    return ""

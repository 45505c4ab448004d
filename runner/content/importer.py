"""From a file or a directory to blocks, with the CID that Kubo's ``ipfs add -r`` gives.

A CID depends on how a file is cut and how the parts are tied together. The choices are a profile
(https://specs.ipfs.tech/ipips/ipip-0499/); within one, every importer makes the same blocks.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from runner.content import dagpb, directory, hamt, unixfs
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.dagpb import Link
from runner.content.errors import ContentError
from runner.content.reading import read_into
from runner.content.varint import Buffer
from runner.errors import WwError

SHARD_THRESHOLD = 256 * 1024
"""Bytes above which a directory is sharded. Kubo before 0.40 sharded at the very number too."""

MAX_DIRECTORY_DEPTH = 128
"""Directories in one another. Each holds a descriptor while it is read."""

_ROOM = 64
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Profile(NamedTuple):
    """How files and directories become blocks.

    Attributes:
        cid_version: 0 or 1.
        raw_leaves: Whether the chunks of a file are raw blocks, without a UnixFS message.
        chunk_size: Bytes of a chunk.
        width: The most links of a file's node.
        shard_by_block: Whether a directory is measured by the size of its block; if not, by the
            sum of the bytes of its names and CIDs.
    """

    cid_version: int
    raw_leaves: bool
    chunk_size: int
    width: int
    shard_by_block: bool


UNIXFS_V0_2015 = Profile(0, False, 256 * 1024, 174, False)
"""What ``ipfs add`` does by default."""

KUBO_CIDV1 = Profile(1, True, 256 * 1024, 174, False)
"""What ``ipfs add --cid-version=1`` does by default."""

UNIXFS_V1_2025 = Profile(1, True, 1024 * 1024, 1024, True)
"""The profile that IPIP-499 recommends: a file of one chunk has the CID of its own sha2-256."""

PROFILES = {"unixfs-v0-2015": UNIXFS_V0_2015, "unixfs-v1-2025": UNIXFS_V1_2025}
"""The profiles of IPIP-499, by the names that it gives them."""

BY_CID_VERSION = {0: UNIXFS_V0_2015, 1: KUBO_CIDV1}
"""What ``ipfs add --cid-version`` does, by the version."""


class Target(Protocol):
    """Where blocks go: a :class:`runner.content.blockstore.Blockstore`, or something like it."""

    def put(self, cid: Cid, data: Buffer, *, verified: bool = False) -> None:
        """Take a block, whose CID has been computed from it."""

    def sync(self) -> None:
        """Wait until all blocks are on the disk."""


class _Part(NamedTuple):
    """A finished piece of a file.

    Attributes:
        cid: Its block.
        tsize: Bytes of all its blocks.
        size: Bytes of the file in it.
    """

    cid: Cid
    tsize: int
    size: int


def import_path(
    store: Target,
    path: str,
    *,
    cid_version: int = 0,
    profile: Profile | None = None,
    hidden: bool = False,
) -> Cid:
    """Put a file, a directory or a symbolic link into a store, and wait until it is on the disk.

    A symbolic link is stored as a link, not followed, as ``ipfs add -r`` does it, ``path`` itself
    included. Modes and times are not stored. A file is read once, and in bounded memory.

    Args:
        store: Where the blocks go.
        path: What to import.
        cid_version: 0 or 1, to import as ``ipfs add --cid-version`` does.
        profile: How to import, in place of that.
        hidden: Whether to take entries whose name begins with a dot. ``path`` itself may.

    Returns:
        The CID of the root block.

    Raises:
        WwError: Something cannot be read, is not a file, a directory or a link, or has a name that
            is not UTF-8; or the store cannot be written.
    """
    chosen = profile or BY_CID_VERSION[cid_version]
    link = _Importer(store, chosen, hidden).add(path, path, None, 0)
    store.sync()
    return link.cid


def import_stream(store: Target, fd: int, shown: str, profile: Profile) -> Cid:
    """Put all that can be read from a descriptor into a store as one file, as :func:`import_path`.

    Args:
        store: Where the blocks go.
        fd: What to read: a file, a pipe or a socket.
        shown: What it is called in errors.
        profile: How to import.

    Returns:
        The CID of the root block.

    Raises:
        WwError: It cannot be read, or the store cannot be written.
    """
    try:
        part = _Importer(store, profile, hidden=False).add_file(fd)
    except OSError as error:
        raise WwError(shown, f"cannot read: {error.strerror}") from None
    store.sync()
    return part.cid


class _Importer:
    """The state of one import."""

    def __init__(self, store: Target, profile: Profile, hidden: bool) -> None:
        self._store = store
        self._profile = profile
        self._hidden = hidden
        # A whole chunk is read straight into its place in the block of its leaf, so that it is
        # copied once. The room before it keeps the copy off the first bytes of a page, where
        # some processors copy five times slower from another page's start.
        chunk = bytes(profile.chunk_size)
        leaf = chunk if profile.raw_leaves else _encode_leaf(chunk)
        start = leaf.index(bytes(16))  # no header has so many zeros
        self._leaf = memoryview(bytearray(_ROOM) + leaf)[_ROOM:]
        self._chunk = self._leaf[start : start + len(chunk)]

    def add(self, shown: str, name: str, parent: int | None, depth: int) -> Link:
        """Add one directory entry, and return a nameless link to it.

        Args:
            shown: Its path, for messages.
            name: Its name in ``parent``, or a path if that is None.
            parent: A descriptor of its directory.
            depth: Directories above it.
        """
        try:
            mode = os.lstat(name, dir_fd=parent).st_mode
            if stat.S_ISLNK(mode):
                return self._add_symlink(os.fsencode(os.readlink(name, dir_fd=parent)))
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise _refusal(shown, "not a file, a directory or a symbolic link")
            fd = os.open(name, _OPEN_FLAGS, dir_fd=parent)
            try:
                # Decided by what was opened: the entry may have been exchanged since.
                mode = os.fstat(fd).st_mode
                if stat.S_ISREG(mode):
                    part = self.add_file(fd)
                    return Link(part.cid, "", part.tsize)
                if stat.S_ISDIR(mode):
                    return self._add_directory(shown, fd, depth)
            finally:
                os.close(fd)
        except OSError as error:
            raise WwError(shown, f"cannot read: {error.strerror}") from None
        raise _refusal(shown, "changed its kind while it was read")

    def _add_symlink(self, target: bytes) -> Link:
        return self._put_node((), unixfs.Data(unixfs.SYMLINK, data=target))

    def _add_directory(self, shown: str, fd: int, depth: int) -> Link:
        if depth >= MAX_DIRECTORY_DEPTH:
            raise _refusal(shown, f"more than {MAX_DIRECTORY_DEPTH} directories deep")
        links = []
        for entry in os.listdir(fd):
            if entry.startswith(".") and not self._hidden:
                continue
            path = os.path.join(shown, entry)
            try:
                directory.check_name(entry)
            except UnicodeEncodeError:
                raise _refusal(path, "its name is not UTF-8") from None
            links.append(self.add(path, entry, fd, depth + 1)._replace(name=entry))
        block = dagpb.encode(links, unixfs.encode(unixfs.Data(unixfs.DIRECTORY)))
        if self._profile.shard_by_block:
            size = len(block)
        else:
            size = sum(len(link.name.encode()) + len(bytes(link.cid)) for link in links)
        if size > SHARD_THRESHOLD:
            try:
                return hamt.build(links, lambda shard: self._put(shard, DAG_PB))
            except ContentError as error:
                raise _refusal(shown, str(error)) from None
        return Link(self._put(block, DAG_PB), "", len(block) + sum(link.tsize for link in links))

    def add_file(self, fd: int) -> _Part:
        """Add what a descriptor holds, from its position to its end."""
        # Parts that wait for their node, by level: level 0 holds leaves. A node is made as soon as
        # it is full, so what waits is bounded by the width, whatever the size of the file.
        levels: list[list[_Part]] = [[]]
        for leaf in self._leaves(fd):
            levels[0].append(leaf)
            self._close_full(levels)
        # What is left becomes the right edge. A node of one link is kept, so that all leaves are
        # at one depth: the balanced layout.
        level = 0
        while level + 1 < len(levels) or len(levels[level]) > 1:
            if levels[level]:
                self._close(levels, level)
            level += 1
        return levels[level][0]

    def _close_full(self, levels: list[list[_Part]]) -> None:
        level = 0
        while len(levels[level]) == self._profile.width:
            self._close(levels, level)
            level += 1

    def _close(self, levels: list[list[_Part]], level: int) -> None:
        """Make one node of the parts that wait at a level; it waits at the next one."""
        parts = levels[level]
        size = sum(part.size for part in parts)
        node = self._put_node(
            [Link(part.cid, "", part.tsize) for part in parts],
            unixfs.Data(unixfs.FILE, filesize=size, blocksizes=tuple(part.size for part in parts)),
        )
        parts.clear()
        if level + 1 == len(levels):
            levels.append([])
        levels[level + 1].append(_Part(node.cid, node.tsize, size))

    def _leaves(self, fd: int) -> Iterator[_Part]:
        """Store the chunks of a file, at least one, and yield them."""
        size = self._read_chunk(fd)
        while True:
            if size == self._profile.chunk_size:
                block: Buffer = self._leaf
            else:
                chunk = bytes(self._chunk[:size])
                block = chunk if self._profile.raw_leaves else _encode_leaf(chunk)
            codec = RAW if self._profile.raw_leaves else DAG_PB
            yield _Part(self._put(block, codec), len(block), size)
            if size < self._profile.chunk_size:
                return
            size = self._read_chunk(fd)
            if not size:
                return

    def _read_chunk(self, fd: int) -> int:
        """Read the next chunk, and return its size, which is less than a whole one at the end."""
        size = 0
        while size < len(self._chunk):
            count = read_into(fd, self._chunk[size:])
            if not count:
                break
            size += count
        return size

    def _put_node(self, links: Sequence[Link], data: unixfs.Data) -> Link:
        block = dagpb.encode(links, unixfs.encode(data))
        tsize = len(block) + sum(link.tsize for link in links)
        return Link(self._put(block, DAG_PB), "", tsize)

    def _put(self, block: Buffer, codec: int) -> Cid:
        cid = Cid.of(block, codec=codec, version=self._profile.cid_version)
        self._store.put(cid, block, verified=True)
        return cid


def _encode_leaf(chunk: bytes) -> bytes:
    # An empty file has no data field, rather than an empty one.
    data = unixfs.Data(unixfs.FILE, data=chunk or None, filesize=len(chunk))
    return dagpb.encode((), unixfs.encode(data))


def _refusal(path: str, what: str) -> WwError:
    return WwError(path, what, hint="leave it out of what you export")

"""The directory ``/ipfs`` of a cell: paths of content, found and verified while it runs.

Everything comes from where ``ww run /ipfs/CID`` finds a cell, and is held against its hash. This is
imported when a cell asks for something, and not before.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from runner.cells import MAX_SIZE, FetchOptions
from runner.content import unixfs
from runner.content.blocks import Blocks
from runner.content.cid import RAW, Cid
from runner.content.errors import ContentError
from runner.content.fetch import Fetched, OverBudget
from runner.content.resolver import (
    MAX_PATH_LENGTH,
    ContentPath,
    File,
    Node,
    file_size,
    find_entry,
    list_entries,
    load_node,
)
from runner.content.sources import open_content
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, WwError

Kind = Literal["file", "directory", "link"]

_NOTHING_SAID: Final = FetchOptions()
# Symbolic links on the way of one path (path_resolution(7)).
_MOST_LINKS: Final = 40
# An inode's number has a sign in some of the cell's libraries.
_MAX_INODE: Final = (1 << 63) - 1
# Warnings of one run: a cell must not fill the terminal.
_MOST_WARNINGS: Final = 16
# What a cell is told of errors that are nobody's fault.
_QUIET: Final = {
    EXIT_NOT_FOUND: errno.ENOENT,
    EXIT_CANNOT_RUN: errno.EOPNOTSUPP,
    EXIT_LIMIT: errno.EFBIG,
}


class Entry(NamedTuple):
    """What a path leads to.

    Attributes:
        kind: What it is.
        size: Bytes of a file, or of what a symbolic link holds.
        inode: From its hash: the same content has the same.
        address: Its CID.
    """

    kind: Kind
    size: int
    inode: int
    address: str


class Ipfs:
    """Content by its CID, as :class:`sandbox.Spawner` serves it.

    Attributes:
        go_on: Called before each block is read, and while one is waited for; what it raises ends
            the work.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        warn: Callable[[str], None],
        fetch: FetchOptions = _NOTHING_SAID,
    ) -> None:
        """Describe it; nothing is read yet.

        Args:
            environ: ww's own environment, for the place of the store, and sources.
            warn: Tells the user what is wrong with the content.
            fetch: What the user says of sources.
        """
        self.go_on: Callable[[], None] = lambda: None
        self._environ = environ
        self._warn = warn
        self._warned: set[str] = set()
        self._fetch = fetch
        self._opened: Fetched | None = None

    def _store(self) -> Fetched:
        """Return the store.

        Raises:
            WwError: If there is no place for one.
        """
        if self._opened is None:
            # Nobody is asked over a connection: the addresses are the cell's to choose, and whoever
            # was asked for one would be told 32 bytes of whatever the cell likes.
            offline = self._fetch._replace(offline=True)
            self._opened = open_content(self._environ, offline, warn=self._warn_once, quiet=True)
            self._opened.pulse = lambda: self.go_on()
        return self._opened

    def find(self, base: str, path: str, *, follow: bool) -> Entry:
        """Return what a path leads to.

        Args:
            base: The CID of the directory where it begins, and that it may not leave; empty for
                the one whose names are CIDs.
            path: The path.
            follow: Whether to follow a symbolic link at its end.

        Raises:
            OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG; EPERM for a path or a link that leads out
                of the content where it begins; EOPNOTSUPP for what is no file of any kind; EIO for
                what is damaged.
        """
        if len(path.encode()) > MAX_PATH_LENGTH:
            raise _error(errno.ENAMETOOLONG)
        with self._told():
            return _entry(*_walk(self._store(), base, path, follow=follow))

    def read(self, address: str) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a file, or what a symbolic link holds.

        Raises:
            OSError: EFBIG for more than a cell may have; EDQUOT if a run has copied as much into
                the store as it may; EIO for what is missing or damaged.
        """
        with self._told(missing=errno.EIO):
            store = self._store()
            path = _path(address)
            node = load_node(store, path.root, path)
            entry = _entry(node, path)
            if entry.kind == "link":
                yield _link(node)
                return
            if entry.size > MAX_SIZE:
                raise _error(errno.EFBIG)
            yield from File(store, path, node, entry.size).chunks()

    def names(self, address: str) -> Iterator[tuple[bytes, Kind | None, int]] | None:
        """Return the names in a directory, each with its kind, if that can be told, and its inode.

        ``None`` for what is no directory.

        Raises:
            OSError: EIO for what is missing or damaged.
        """
        with self._told(missing=errno.EIO):
            path = _path(address)
            node = load_node(self._store(), path.root, path)
            return self._names(node, path) if _is_directory(node) else None

    def _names(self, node: Node, path: ContentPath) -> Iterator[tuple[bytes, Kind | None, int]]:
        with self._told(missing=errno.EIO):
            for link in list_entries(self._store(), node, path):
                # Only a raw block says by its address what it is.
                kind: Kind | None = "file" if link.cid.codec == RAW else None
                yield link.name.encode(), kind, _inode(link.cid)

    @contextmanager
    def _told(self, *, missing: int = errno.ENOENT) -> Iterator[None]:
        """Turn errors of the content into those of a file system, and warn of what is damaged.

        Args:
            missing: What a missing block is: where its name was found, it should be there.

        Raises:
            OSError: For the cell.
        """
        try:
            yield
        except OverBudget as error:
            # Of all that a run copies into the store, for a cell that reads on and on.
            self._warn_once(str(error))
            raise _error(errno.EDQUOT) from None
        except WwError as error:
            number = _QUIET.get(error.code, errno.EIO)
            if number == errno.ENOENT:
                number = missing
            if number == errno.EIO:
                self._warn_once(str(error))
            raise _error(number) from None

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(text)
            self._warn(text)


def _walk(store: Blocks, base: str, path: str, *, follow: bool) -> tuple[Node, ContentPath]:
    """Walk a path, and the symbolic links on it, within one root.

    Raises:
        OSError: As :meth:`Ipfs.find`.
        WwError: A block is missing, damaged or malformed.
    """
    rest = _parts(path)
    if not base:
        # The directory above all content has addresses for names, and nothing above it.
        while rest and rest[-1] == ".":
            rest.pop()
        base = rest.pop() if rest else ""
        if base == "..":
            raise _error(errno.EPERM)
    root = _path(base)
    # The nodes from the root down to here, each with the name that led to it.
    way = [("", load_node(store, root.root, root))]
    must_be_directory = path.endswith("/")
    links = 0
    while rest:
        node = way[-1][1]
        if not _is_directory(node):
            raise _error(errno.ENOTDIR)
        name = rest.pop()
        if name == ".":
            continue
        if name == "..":
            if len(way) == 1:
                raise _error(errno.EPERM)
            way.pop()
            continue
        here = _here(root, way)
        below = ContentPath(here.root, (*here.names, name))
        child = load_node(store, find_entry(store, node, name, here), below)
        if child.data.type != unixfs.SYMLINK or not (rest or follow or must_be_directory):
            way.append((name, child))
            continue
        links += 1
        target = _link(child).decode(errors="replace")
        if links > _MOST_LINKS or len(target.encode()) > MAX_PATH_LENGTH:
            raise _error(errno.ELOOP)
        if not target:
            raise _error(errno.ENOENT)
        if target.startswith("/"):
            raise _error(errno.EPERM)
        must_be_directory |= target.endswith("/") and not rest
        rest += _parts(target)
    node = way[-1][1]
    if must_be_directory and not _is_directory(node):
        raise _error(errno.ENOTDIR)
    return node, _here(root, way)


def _parts(path: str) -> list[str]:
    """Return the names of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part]


def _here(root: ContentPath, way: list[tuple[str, Node]]) -> ContentPath:
    return ContentPath(root.root, tuple(name for name, _ in way[1:]))


def _path(address: str) -> ContentPath:
    """Return the path of a CID.

    Raises:
        OSError: ENOENT for what is none: no directory has such a name.
    """
    try:
        return ContentPath(Cid.parse(address), ())
    except ContentError:
        raise _error(errno.ENOENT) from None


def _is_directory(node: Node) -> bool:
    return node.data.type in (unixfs.DIRECTORY, unixfs.HAMT_SHARD)


def _link(node: Node) -> bytes:
    """Return what a symbolic link holds."""
    return bytes(node.data.data or b"")


def _entry(node: Node, path: ContentPath) -> Entry:
    """Return what a node is.

    Raises:
        OSError: EOPNOTSUPP if it is neither a file, a directory nor a symbolic link.
        WwError: If it is malformed.
    """
    kind: Kind
    if _is_directory(node):
        kind, size = "directory", 0
    elif node.data.type == unixfs.SYMLINK:
        kind, size = "link", len(_link(node))
    elif node.data.type == unixfs.METADATA:
        raise _error(errno.EOPNOTSUPP)
    else:
        kind, size = "file", file_size(node, path)
    return Entry(kind, size, _inode(node.cid), str(node.cid))


def _inode(cid: Cid) -> int:
    """Return a number for a CID: the end of its hash. 0 would mean to some that there is none."""
    return int.from_bytes(cid.multihash[-8:], "big") & _MAX_INODE or 1


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

"""From ``/ipfs/CID/path`` to the verified bytes of one file.

Nothing is trusted but the hashes. Each block is verified by the blockstore; what a block *says* is
checked here before anything relies on it. The size of a file is known, and within the caller's
limit, before its first byte is handed out, and every part has the size that was promised for it:
a small DAG that names one block a million times is refused, or is as large as it said.
"""

from __future__ import annotations

import os

from runner.content import directory, unixfs
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError
from runner.errors import (
    EXIT_CANNOT_RUN,
    EXIT_FAILURE,
    EXIT_LIMIT,
    EXIT_NOT_FOUND,
    EXIT_USAGE,
    WwError,
)
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.content.blocks import Blocks
    from runner.content.dagpb import Link
    from runner.content.varint import Buffer

DEFAULT_MAX_SIZE = 256 * 1024 * 1024
"""Bytes of the largest file, unless the caller says otherwise."""

MAX_DEPTH = 32
"""Blocks from the root of a file to a leaf. Four levels of the default width hold 200 TB."""

MAX_BLOCKS = 1 << 18
"""Blocks of one file. It bounds the work on files of many tiny blocks, whose size says nothing
about their cost: at the default maximum size it allows blocks of 1 KiB on average."""

MAX_LINKS = 8192
"""Links of one node of a file: eight times those of the widest profile. It bounds the memory that
the nodes between the root and a leaf can take."""

MAX_PATH_LENGTH = 4096
"""Bytes of the longest path: PATH_MAX of Linux, limits.h."""

_PREFIX = "/ipfs/"


class ContentPath(Record):
    """A path into content.

    Attributes:
        root: The CID that the path starts from.
        names: The entries to walk through, none for the root itself.
    """

    root: Cid
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Return the path as text."""
        return _PREFIX + "/".join((str(self.root), *self.names))


class IsDirectory(WwError):
    """What a path names is a directory, and a file is needed."""


class Node(Record):
    """A block as UnixFS sees it; a raw block is a file without links."""

    cid: Cid
    links: tuple[Link, ...]
    data: unixfs.Data


class File:
    """One file, whose bytes are read and verified while they are handed out.

    Attributes:
        path: The path that it was found by, for messages.
        cid: The CID of its root block.
        size: Its size in bytes, exactly that of what :meth:`chunks` yields.
    """

    def __init__(self, store: Blocks, path: ContentPath, root: Node, size: int) -> None:
        self.path = path
        self.cid = root.cid
        self.size = size
        self._store = store
        self._root = root

    def chunks(self) -> Iterator[Buffer]:
        """Yield the bytes of the file in order, a block's worth at a time.

        Memory is bounded by the blocks from the root to one leaf.

        Raises:
            WwError: A block is missing, damaged or malformed. What was yielded before is verified
                all the same, but it is not the whole file.
        """
        yield from self._parts(self._root)
        self._expect(self._root)
        stack = [_children(self._root)]
        blocks = 1
        while stack:
            for cid, size in stack[-1]:
                blocks += 1
                if blocks > MAX_BLOCKS:
                    raise WwError(
                        str(self.path),
                        f"the file has more than {MAX_BLOCKS} blocks",
                        hint="export it again with the usual chunk size",
                        code=EXIT_LIMIT,
                    )
                node = load_node(self._store, cid, self.path)
                found = file_size(node, self.path)
                if found != size:
                    raise _malformed(
                        self.path, cid, f"it has {found} bytes of file, and {size} were promised"
                    )
                yield from self._parts(node)
                if node.links:
                    if len(stack) == MAX_DEPTH - 1:
                        raise _malformed(self.path, cid, f"more than {MAX_DEPTH} blocks deep")
                    self._expect(node)
                    stack.append(_children(node))
                    break
            else:
                stack.pop()

    def _expect(self, node: Node) -> None:
        if node.links:
            self._store.expect(link.cid for link in node.links)

    @staticmethod
    def _parts(node: Node) -> Iterator[Buffer]:
        if node.data.data:
            yield node.data.data

    def copy_to(self, fd: int) -> None:
        """Write the whole file to a descriptor.

        Args:
            fd: A writable descriptor, in blocking mode.

        Raises:
            WwError: As :meth:`chunks`, or the descriptor cannot be written.
        """
        for chunk in self.chunks():
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except OSError as error:
                    raise WwError(
                        str(self.path), f"cannot write the copy: {error.strerror}"
                    ) from None


def parse_path(text: str) -> ContentPath:
    """Read ``/ipfs/CID`` or ``/ipfs/CID/name/...``; one slash at the end is allowed.

    Raises:
        WwError: The text is not such a path (code EXIT_USAGE).
    """
    try:
        return _parse(text)
    except UnicodeEncodeError:
        what = "not UTF-8"
    except ContentError as error:
        what = str(error)
    hint = "write /ipfs/CID or /ipfs/CID/path"
    if text.startswith("/ipns/"):  # who takes names has resolved them before
        hint = "write the /ipfs/CID that 'ww resolve' prints for it"
    raise WwError(text[:MAX_PATH_LENGTH], f"not a valid path: {what}", hint=hint, code=EXIT_USAGE)


def _parse(text: str) -> ContentPath:
    if not text.startswith(_PREFIX):
        raise ContentError(f"it does not begin with {_PREFIX}")
    if len(text.encode()) > MAX_PATH_LENGTH:
        raise ContentError(f"longer than {MAX_PATH_LENGTH} bytes")
    root, *names = text.removeprefix(_PREFIX).split("/")
    if names and not names[-1]:
        names.pop()
    for name in names:
        directory.check_name(name)
    if not root:
        raise ContentError("the CID is missing")
    return ContentPath(Cid.parse(root), tuple(names))


def resolve_file(store: Blocks, path: str, *, max_size: int = DEFAULT_MAX_SIZE) -> File:
    """Find a file by its path, and check its size, without reading its content.

    Args:
        store: Where the blocks are.
        path: ``/ipfs/CID`` or ``/ipfs/CID/name/...``.
        max_size: Bytes of the largest file to accept.

    Returns:
        The file, ready to be read.

    Raises:
        WwError: The path is malformed (code EXIT_USAGE); a block or a name is not there
            (EXIT_NOT_FOUND); what is there is not a file (EXIT_CANNOT_RUN); the file is too large
            (EXIT_LIMIT); a block is damaged or malformed (EXIT_FAILURE).
    """
    parsed = parse_path(path)
    node = load_node(store, parsed.root, parsed)
    for index, name in enumerate(parsed.names):
        above = ContentPath(parsed.root, parsed.names[:index])
        node = load_node(store, find_entry(store, node, name, above), parsed)
    _check_is_file(node, parsed)
    size = file_size(node, parsed)
    if size > max_size:
        raise WwError(
            str(parsed),
            f"the file has {size} bytes, and the limit is {max_size}",
            hint="allow more with --max-size",
            code=EXIT_LIMIT,
        )
    return File(store, parsed, node, size)


def find_entry(store: Blocks, node: Node, name: str, above: ContentPath) -> Cid:
    """Return the CID of the entry ``name`` of the directory ``node``, which is at ``above``.

    Raises:
        WwError: There is none (code EXIT_NOT_FOUND), or as :func:`resolve_file`.
    """
    try:
        if node.data.type == unixfs.DIRECTORY:
            link = directory.entries(node.links).get(name)
        elif node.data.type == unixfs.HAMT_SHARD:
            from runner.content import hamt

            link = hamt.lookup(node.links, node.data, name, store.get)
        else:
            _check_is_file(node, above)
            raise WwError(str(above), "is not a directory", code=EXIT_NOT_FOUND)
    except ContentError as error:
        raise _malformed(above, node.cid, str(error)) from None
    if link is None:
        raise WwError(
            f"{above}/{name}",
            "no such file or directory",
            hint="names are case-sensitive",
            code=EXIT_NOT_FOUND,
        )
    return link.cid


def list_entries(store: Blocks, node: Node, path: ContentPath) -> Iterator[Link]:
    """Yield the entries of the directory ``node``, which is at ``path``.

    Raises:
        WwError: A part of the directory is missing, damaged or malformed.
    """
    try:
        if node.data.type == unixfs.HAMT_SHARD:
            from runner.content import hamt

            yield from hamt.entries(node.links, node.data, store.get, store.expect)
        else:
            yield from directory.entries(node.links).values()
    except ContentError as error:
        raise _malformed(path, node.cid, str(error)) from None


def load_node(store: Blocks, cid: Cid, path: ContentPath) -> Node:
    """Return a block as UnixFS sees it.

    Args:
        store: Where it is.
        cid: Its address.
        path: The path that led there, for messages.

    Raises:
        WwError: It is missing (code EXIT_NOT_FOUND), damaged or malformed (EXIT_FAILURE), or
            neither of a file nor of a directory (EXIT_CANNOT_RUN).
    """
    if cid.codec not in (RAW, DAG_PB):
        raise WwError(
            str(path),
            f"block {cid} has codec 0x{cid.codec:x}, which is not a file or a directory",
            hint="only raw (0x55) and dag-pb (0x70) are read",
            code=EXIT_CANNOT_RUN,
        )
    block = store.get(cid)
    if cid.codec == RAW:
        return Node(cid, (), unixfs.Data(unixfs.RAW, block, len(block)))
    try:
        return Node(cid, *unixfs.decode_node(block))
    except ContentError as error:
        raise _malformed(path, cid, str(error)) from None


def file_size(node: Node, path: ContentPath) -> int:
    """Return the size of the file under a node, if what the node says of sizes is consistent.

    Raises:
        WwError: It is not, or the node is not of a file.
    """
    data = node.data
    if data.type not in (unixfs.FILE, unixfs.RAW):
        raise _malformed(path, node.cid, "a part of a file is not a file")
    if len(node.links) > MAX_LINKS:
        raise _malformed(path, node.cid, f"more than {MAX_LINKS} links in a part of a file")
    if len(data.blocksizes) != len(node.links):
        raise _malformed(
            path, node.cid, f"{len(node.links)} links and {len(data.blocksizes)} block sizes"
        )
    if 0 in data.blocksizes:
        raise _malformed(path, node.cid, "a part of a file is empty")
    size = len(data.data or b"") + sum(data.blocksizes)
    if data.filesize not in (None, size):
        raise _malformed(
            path, node.cid, f"the file size is {data.filesize}, and its parts add up to {size}"
        )
    return size


def _children(node: Node) -> Iterator[tuple[Cid, int]]:
    return zip((link.cid for link in node.links), node.data.blocksizes, strict=True)


def _check_is_file(node: Node, path: ContentPath) -> None:
    """Refuse a node that was found under a path and is something else than a file."""
    match node.data.type:
        case unixfs.FILE | unixfs.RAW:
            return
        case unixfs.DIRECTORY | unixfs.HAMT_SHARD:
            raise IsDirectory(
                str(path),
                "is a directory",
                hint="add the path of a file in it",
                code=EXIT_CANNOT_RUN,
            )
        case unixfs.SYMLINK:
            what = "is a symbolic link, and links in content are not followed"
            hint = "use the path of the file itself"
        case _:
            what, hint = "is UnixFS metadata, not a file", ""
    raise WwError(str(path), what, hint=hint, code=EXIT_CANNOT_RUN)


def _malformed(path: ContentPath, cid: Cid, what: str) -> WwError:
    # Its hash is right, so a second copy would be no better: whoever made it has to repair it.
    return WwError(
        str(path),
        f"block {cid} is malformed: {what}",
        hint="the content was made this way; ask whoever made it",
        code=EXIT_FAILURE,
    )

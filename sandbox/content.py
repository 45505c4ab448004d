"""Content that the runner serves while a cell runs: the form of requests and answers.

The cell's process asks and the runner answers, one packet each, on a pair of SOCK_SEQPACKET sockets
(unix(7)). A path leads to an address, and for an address there are bytes: those of a file, the
names of a directory, or what a symbolic link holds. Bytes travel as a sealed memory file
(memfd_create(2)), so nobody copies them again.
"""

import fcntl
import struct
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

Kind = Literal["file", "directory", "link"]
Operation = Literal["find", "find-link", "read"]

MAX_PATH: Final = 4096
"""Bytes of the longest path: PATH_MAX of limits.h."""

MAX_ADDRESS: Final = 512
"""Bytes of the longest address."""

MAX_REQUEST: Final = 1 + MAX_ADDRESS + 1 + MAX_PATH
MAX_SIZE: Final = (1 << 63) - 1
"""The largest size and inode that an answer can tell; off_t has a sign."""

SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""What nobody can do any more to the bytes that were sent."""

_OPERATIONS: Final[tuple[Operation, ...]] = ("find", "find-link", "read")
_KINDS: Final[tuple[Kind | None, ...]] = (None, "file", "directory", "link")
# errno, kind, size, inode; then the address
_ANSWER: Final = struct.Struct("=iBQQ")
MAX_ANSWER: Final = _ANSWER.size + MAX_ADDRESS
# inode, kind, bytes of the name; then the name
_NAME: Final = struct.Struct("=QBH")


class Request(NamedTuple):
    """What the cell's process asks.

    Attributes:
        operation: ``find`` follows a symbolic link at the path's end, ``find-link`` does not;
            ``read`` asks for the bytes.
        base: The address where the path begins; empty for the directory above all content. For
            ``read``, the address of what is to be read.
        path: What to find from there; empty for ``read``.
    """

    operation: Operation
    base: str
    path: str = ""

    def encode(self) -> bytes:
        """Return the request as bytes for :meth:`decode`."""
        return bytes([_OPERATIONS.index(self.operation)]) + f"{self.base}\0{self.path}".encode()

    @classmethod
    def decode(cls, data: bytes) -> "Request":
        """Read a request, from a process that may be the cell's captive.

        Raises:
            ValueError: If the bytes are not a request.
        """
        if len(data) > MAX_REQUEST or not data or data[0] >= len(_OPERATIONS):
            raise ValueError("not a request")
        base, nul, path = data[1:].decode().partition("\0")
        if not nul or "\0" in path or len(base) > MAX_ADDRESS:
            raise ValueError("not a request")
        return cls(_OPERATIONS[data[0]], base, path)


class Found(NamedTuple):
    """What a path leads to.

    Attributes:
        kind: What it is.
        size: Its bytes; 0 for a directory.
        inode: A number that it shares with nothing else, as far as 63 bits can do that.
        address: By which it can be asked for again.
    """

    kind: Kind
    size: int
    inode: int
    address: str


class Answer(NamedTuple):
    """What the runner says.

    Attributes:
        errno: Why there is nothing to say, or 0.
        found: What was found, unless there is an error.
    """

    errno: int
    found: Found | None = None

    def encode(self) -> bytes:
        """Return the answer as bytes for :meth:`decode`."""
        if self.found is None:
            return _ANSWER.pack(self.errno, 0, 0, 0)
        kind, size, inode, address = self.found
        return _ANSWER.pack(0, _KINDS.index(kind), size, inode) + address.encode()

    @classmethod
    def decode(cls, data: bytes) -> "Answer":
        """Read an answer.

        Raises:
            ValueError: If the bytes are not an answer.
        """
        if len(data) < _ANSWER.size:
            raise ValueError("not an answer")
        errno, kind, size, inode = _ANSWER.unpack_from(data)
        if errno:
            return cls(errno)
        of = _KINDS[kind] if kind < len(_KINDS) else None
        if of is None:
            raise ValueError("not an answer")
        return cls(0, Found(of, size, inode, data[_ANSWER.size :].decode()))


class Name(NamedTuple):
    """One name of a directory.

    Attributes:
        name: The name.
        kind: What it leads to, where that is known.
        inode: The inode of that.
    """

    name: bytes
    kind: Kind | None
    inode: int

    def encode(self) -> bytes:
        """Return it as bytes for :func:`names`."""
        return _NAME.pack(self.inode, _KINDS.index(self.kind), len(self.name)) + self.name


def names(listing: bytes) -> Iterator[tuple[Name, int]]:
    """Read names from a part of a listing, each with the bytes up to its end.

    What is cut off at the end is left out. If the part does not begin where a name does, what comes
    is of no use, and no harm.

    Args:
        listing: Encoded names, one behind the other.
    """
    at = 0
    while at + _NAME.size <= len(listing):
        inode, kind, size = _NAME.unpack_from(listing, at)
        at += _NAME.size
        if at + size > len(listing):
            return
        name = listing[at : at + size]
        at += size
        yield Name(name, _KINDS[kind] if kind < len(_KINDS) else None, inode), at


LONGEST_NAME: Final = _NAME.size + 0xFFFF
"""Bytes of a listing that hold a whole name, wherever one begins."""

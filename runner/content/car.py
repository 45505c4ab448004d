"""CAR version 1: blocks in one file or stream (https://ipld.io/specs/transport/car/carv1/).

    header  = varint(length) DAG-CBOR({"roots": [CID, ...], "version": 1})
    section = varint(length) CID block

A CAR promises nothing: not that its blocks are those of its roots, that all of them are there, or
that they come in an order. Every block is held against its CID before it is handed out, one at a
time, and what a stream can cost is bounded. Whether a DAG is whole is for the caller to find out,
by walking it: the end of a stream proves nothing.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol

from runner.content import cbor, dagpb, multihash, varint
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import Cid
from runner.content.errors import ContentError

MAX_HEADER_SIZE = 32 * 1024
"""Bytes of the largest header."""

MAX_ROOTS = 64
"""Roots of one CAR."""

MAX_CID_SIZE = 200
"""Bytes of the longest CID in a section: an identity hash of the longest digest fits well."""

MAX_SECTION_SIZE = MAX_BLOCK_SIZE + MAX_CID_SIZE
"""Bytes of the largest section."""

MAX_SECTIONS = 1 << 18
"""Sections of one CAR, duplicates included: as many blocks as one file may have. It bounds what is
remembered of the blocks that came, to some tens of megabytes."""

MAX_EXTRAS = 1024
"""Blocks that nothing before them leads to, where only one DAG is wanted; and as many that came
before. Neither brings anything, and a source must not keep anybody waiting with them."""

_VERSION = 1
_MIN_CID_SIZE = 4
_MIN_SECTION = 1 + _MIN_CID_SIZE
_V0_PREFIX = b"\x12\x20"
_V0_SIZE = 34
_CID_VARINTS = 4  # version, codec, hash function, length of the digest


class Reader(Protocol):
    """What a CAR is read from: a binary file, or the body of a response."""

    def read(self, size: int, /) -> bytes:
        """Return up to that many bytes, and none only at the end."""


class Writer(Protocol):
    """What a CAR is written to: a binary file that takes all it is given."""

    def write(self, data: bytes, /) -> object:
        """Write all of the bytes."""


class CarError(ContentError):
    """A CAR breaks the rules of its format.

    Attributes:
        kind: What such an error is called.
        offset: Bytes from the start of the CAR to the header or section that is at fault.
    """

    kind: ClassVar[str] = "malformed CAR"

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"{self.kind}, at byte {offset}: {what}")
        self.offset = offset


class WrongBlock(CarError):
    """The bytes of a section do not have the hash that its CID names.

    Attributes:
        cid: The CID.
    """

    def __init__(self, offset: int, cid: Cid) -> None:
        super().__init__(offset, f"the bytes of block {cid} do not have the hash that it names")
        self.cid = cid


class TooLarge(CarError):
    """A CAR goes beyond a limit: has more bytes than the caller allows, or as :class:`TooMany`."""

    kind = "CAR too large"


class TooMany(TooLarge):
    """A CAR has too many sections, or too many of some kind."""


class UnknownVersion(CarError):
    """A CAR of another version than 1."""

    kind = "CAR of another version"


class Section(NamedTuple):
    """Where a section is.

    Attributes:
        start: Bytes from the start of the CAR to the section.
        cid: The CID that it names.
        offset: Bytes from the start of the CAR to the block, which follows the CID.
        size: Bytes of the block.
    """

    start: int
    cid: Cid
    offset: int
    size: int


class Sections:
    """The frame of a CAR: its header, and one section after the other.

    The header has been read when this has been made. After each :meth:`next` the caller has to
    :meth:`take` the block, or to pass over it by its own means and tell so with :meth:`passed`.

    Attributes:
        roots: The roots that the header names, in its order. There may be none, and they need not
            be there: a gateway may send the header before it knows them.
    """

    def __init__(self, stream: Reader, *, max_size: int, max_sections: int = MAX_SECTIONS) -> None:
        """Read the header.

        Args:
            stream: What to read from.
            max_size: Bytes of the largest CAR to accept.
            max_sections: The most sections to accept.

        Raises:
            CarError: The header is malformed.
        """
        self._stream = stream
        self._max_size = max_size
        self._max_sections = max_sections
        self._sections = 0
        self._position = 0
        self._start = 0
        self.roots = self._header()

    def next(self) -> Section | None:
        """Read up to the next block, or return None at the end of the CAR.

        Raises:
            CarError: The section is malformed, or goes beyond a limit.
        """
        self._start = self._position
        # The shortest section holds the whole of any length that is allowed.
        head = self._read(_MIN_SECTION)
        if not head:
            return None
        length, rest = self._length(head, MAX_SECTION_SIZE, "section")
        self._sections += 1
        if self._sections > self._max_sections:
            raise TooMany(self._start, f"more than {self._max_sections} sections")
        if length < _MIN_CID_SIZE:
            raise self._error(f"a section of {length} bytes has no room for a CID")
        self._check_size(length - len(rest))
        cid, used = self._cid(rest, length)
        size = length - used
        if size > MAX_BLOCK_SIZE:
            raise self._error(f"block {cid} has more than {MAX_BLOCK_SIZE} bytes")
        return Section(self._start, cid, self._position, size)

    def take(self, size: int) -> bytes:
        """Read exactly that many bytes.

        Raises:
            CarError: The CAR ends before.
        """
        data = self._read(size)
        if len(data) < size:
            raise self._error("it is cut off")
        return data

    def passed(self, size: int, end: int) -> None:
        """Count bytes that the caller has passed over in the stream.

        Args:
            size: How many.
            end: Bytes of the whole CAR.

        Raises:
            CarError: They go beyond its end.
        """
        self._position += size
        if self._position > end:
            raise self._error("it is cut off")

    def _header(self) -> tuple[Cid, ...]:
        head = self._read(_MIN_SECTION)
        if not head:
            raise self._error("it is empty")
        length, rest = self._length(head, MAX_HEADER_SIZE, "header")
        self._check_size(length - len(rest))
        # A header that is shorter than what was read of it is none: its keys alone are longer.
        data = rest[:length] + self.take(max(0, length - len(rest)))
        try:
            header = cbor.decode(data)
        except ContentError as error:
            raise self._error(f"the header is not one: {error}") from None
        if not isinstance(header, dict) or "version" not in header:
            raise self._error("the header has no version")
        version = header["version"]
        if type(version) is not int or version != _VERSION:
            shown = version if type(version) is int else "not a number"
            raise UnknownVersion(0, f"it has version {shown}, and only version 1 is read")
        if header.keys() != {"roots", "version"}:
            raise self._error("the header has other keys than roots and version")
        roots = header["roots"]
        if not isinstance(roots, list):
            raise self._error("the header's roots are not a list of CIDs")
        if len(roots) > MAX_ROOTS:
            raise self._error(f"more than {MAX_ROOTS} roots")
        cids = tuple(root for root in roots if isinstance(root, Cid))
        if len(cids) != len(roots):
            raise self._error("the header's roots are not a list of CIDs")
        return cids

    def _length(self, head: bytes, limit: int, what: str) -> tuple[int, bytes]:
        """Return the length that these first bytes begin with, and the bytes after it."""
        try:
            length, offset = varint.decode(head)
        except ContentError as error:
            # A varint that does not end within them is cut off, or is of a longer length.
            if len(head) < _MIN_SECTION or min(head) < 0x80:
                raise self._error(f"the length of a {what}: {error}") from None
            length, offset = limit + 1, 0
        if length > limit:
            raise self._error(f"a {what} has more than {limit} bytes")
        if not length:
            raise self._error(f"a {what} is empty")
        return length, head[offset:]

    def _cid(self, data: bytes, room: int) -> tuple[Cid, int]:
        """Read the CID of a section.

        Args:
            data: The first bytes of the section, at most as many as the shortest CID has.
            room: Bytes of the section.

        Returns:
            The CID, and how many bytes it has.
        """
        data += self.take(_MIN_CID_SIZE - len(data))
        try:
            if data.startswith(_V0_PREFIX):
                size = _V0_SIZE
            else:
                offset = value = 0
                for _ in range(_CID_VARINTS):
                    while data[offset:] == b"" or (
                        data[-1] >= 0x80 and len(data) - offset < varint.MAX_LENGTH
                    ):
                        data += self.take(1)
                    value, offset = varint.decode(data, offset)
                size = offset + value
            if size > min(room, MAX_CID_SIZE):
                raise ContentError("it is longer than its section or than any CID")
            data += self.take(size - len(data))
            return Cid.from_bytes(data), size
        except CarError:
            raise
        except ContentError as error:
            raise self._error(f"the CID of a section: {error}") from None

    def _check_size(self, more: int) -> None:
        if self._position + more > self._max_size:
            raise TooLarge(self._start, f"more than {self._max_size} bytes")

    def _read(self, size: int) -> bytes:
        """Read that many bytes, or less at the end."""
        data = self._more(size) if size else b""
        self._position += len(data)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and (data := self._more(missing)):
            parts.append(data)
            self._position += len(data)
            missing -= len(data)
        return b"".join(parts)

    def _more(self, size: int) -> bytes:
        # A copy of what the stream may go on writing to, which would not stay verified.
        return bytes(self._stream.read(size))

    def _error(self, what: str) -> CarError:
        return CarError(self._start, what)


class Car:
    """The blocks of a CAR, each verified; iterate over it once.

    Each block is handed out once, by its multihash: a second one is verified, counted and passed
    over. So is a block with an identity hash, which is its own address and needs no copy.

    Attributes:
        roots: The roots that the header names; see :attr:`Sections.roots`.
        seen: The multihashes of the blocks that have been handed out.
        duplicates: Sections whose block had come before.
        extras: Blocks that nothing before them leads to, if only one DAG is wanted.
    """

    def __init__(self, sections: Sections, wanted: Cid | None, max_extras: int) -> None:
        self.roots = sections.roots
        self.seen: set[bytes] = set()
        self.duplicates = 0
        self.extras = 0
        self._sections = sections
        self._max_extras = max_extras
        # The multihashes of what is wanted, as far as it is known.
        self._wanted: set[bytes] | None = None
        if wanted is not None:
            self._wanted = {wanted.multihash}
            if wanted.multihash[0] == multihash.IDENTITY:
                # It does not come as a block, and can lead on all the same.
                self._want_links(self._wanted, wanted, multihash.decode(wanted.multihash)[1])

    def __iter__(self) -> Iterator[tuple[Cid, bytes]]:
        """Yield each block with its CID.

        Raises:
            CarError: The CAR is malformed from here on. What was yielded before is verified all
                the same.
        """
        while section := self._sections.next():
            cid = section.cid
            block = self._sections.take(section.size)
            if not multihash.matches(cid.multihash, block):
                raise WrongBlock(section.start, cid)
            if cid.multihash[0] == multihash.IDENTITY:
                continue
            if cid.multihash in self.seen:
                self._count_duplicate(section)
            elif self._wanted is not None and cid.multihash not in self._wanted:
                self._count_extra(section)
            else:
                self.seen.add(cid.multihash)
                if self._wanted is not None:
                    self._want_links(self._wanted, cid, block)
                    if len(self._wanted) > MAX_SECTIONS:
                        what = f"its blocks have more than {MAX_SECTIONS} links"
                        raise TooMany(section.start, what)
                yield cid, block

    def _count_duplicate(self, section: Section) -> None:
        self.duplicates += 1
        if self._wanted is not None and self.duplicates > self._max_extras:
            raise TooMany(section.start, f"more than {self._max_extras} blocks that came before")

    def _count_extra(self, section: Section) -> None:
        self.extras += 1
        if self.extras > self._max_extras:
            raise TooMany(
                section.start, f"more than {self._max_extras} blocks that were not asked for"
            )

    def _want_links(self, wanted: set[bytes], cid: Cid, block: bytes) -> None:
        # A malformed block leads nowhere; whoever needs it will find out.
        with contextlib.suppress(ContentError):
            wanted.update(found.multihash for found in dagpb.leads_to(cid, block))


def read_car(
    stream: Reader,
    *,
    max_size: int,
    max_sections: int = MAX_SECTIONS,
    wanted: Cid | None = None,
    max_extras: int = MAX_EXTRAS,
) -> Car:
    """Read a CAR from a stream, as far as its header; iterate over the result for the blocks.

    Memory is bounded by one section, and by what is remembered of each block that came. Nothing is
    read beyond what is handed out.

    Args:
        stream: What to read from. Reads are small beside those of blocks, so that it is better
            buffered. What it raises is passed on.
        max_size: Bytes of the largest CAR to accept.
        max_sections: The most sections to accept.
        wanted: The root of the only DAG that is wanted, which need not be the header's. A block
            that neither is it nor is linked from a block before is verified, counted and passed
            over. This asks for a CAR in the order "dfs" or another that has parents first.
        max_extras: The most blocks to pass over for that reason, and the most to pass over because
            they came before.

    Raises:
        CarError: The header is malformed.
    """
    sections = Sections(stream, max_size=max_size, max_sections=max_sections)
    return Car(sections, wanted, max_extras)


def write_car(out: Writer, roots: Sequence[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> None:
    """Write a CAR that :func:`read_car` accepts.

    Args:
        out: Where it goes.
        roots: The roots for the header.
        blocks: The blocks, in the order in which they are to be written. Those with an identity
            hash are left out.

    Raises:
        ValueError: There are more roots, larger blocks or more blocks than a CAR may have here.
    """
    if len(roots) > MAX_ROOTS:
        raise ValueError(f"{len(roots)} roots")
    header = cbor.encode({"roots": list(roots), "version": _VERSION})
    out.write(varint.encode(len(header)) + header)
    count = 0
    for cid, block in blocks:
        if cid.multihash[0] == multihash.IDENTITY:
            continue
        count += 1
        if count > MAX_SECTIONS or len(block) > MAX_BLOCK_SIZE:
            raise ValueError(f"block {cid} does not fit into a CAR")
        address = bytes(cid)
        # The block by itself, which saves a copy of it.
        out.write(varint.encode(len(address) + len(block)) + address)
        out.write(block)

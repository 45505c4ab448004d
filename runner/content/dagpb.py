"""dag-pb: the codec of blocks that link to others (https://ipld.io/specs/codecs/dag-pb/spec/).

    message PBLink { bytes Hash = 1; string Name = 2; uint64 Tsize = 3; }
    message PBNode { repeated PBLink Links = 2; bytes Data = 1; }

Links are written before Data, though their number is higher: an old mistake that every hash since
depends on. Some writers did it the other way round; both are read, and nothing else.
"""

from __future__ import annotations

from runner.content import multihash, protobuf, varint
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runner.content.varint import Buffer

_NODE_DATA = 1 << 3 | protobuf.LEN
_NODE_LINKS = 2 << 3 | protobuf.LEN
_LINK_HASH = 1 << 3 | protobuf.LEN
_LINK_NAME = 2 << 3 | protobuf.LEN
_LINK_TSIZE = 3 << 3 | protobuf.VARINT


class Link(Record):
    """A link to another block.

    Attributes:
        cid: The block's address.
        name: The name in a directory; empty in a file. A missing name is read as empty.
        tsize: Bytes of all blocks under the link, as the writer says. Nothing checks it, so
            nothing may depend on it. A missing one is read as 0.
    """

    cid: Cid
    name: str
    tsize: int


class Node(Record):
    """A dag-pb block.

    Attributes:
        links: Its links, in the order of the block.
        data: Its data, a view into the block, or None where there is none.
    """

    links: tuple[Link, ...]
    data: Buffer | None


def decode(block: Buffer) -> Node:
    """Read a dag-pb block.

    Raises:
        ContentError: The block is not dag-pb, or has unknown, repeated or misplaced fields.
    """
    links: list[Link] = []
    data: memoryview | None = None
    closed = False  # links have ended, because data came after them
    for tag, _, content in protobuf.fields(memoryview(block)):
        if tag == _NODE_LINKS:
            if closed:
                raise ContentError("dag-pb: links on both sides of the data")
            links.append(_decode_link(content))
        elif tag == _NODE_DATA:
            if data is not None:
                raise ContentError("dag-pb: the data is given twice")
            data, closed = content, bool(links)
        else:
            raise ContentError(f"dag-pb: unknown field {tag >> 3} (wire type {tag & 7})")
    return Node(tuple(links), data)


def leads_to(cid: Cid, block: Buffer) -> Iterator[Cid]:
    """Yield the CIDs that a block links, in its order and as often as it does.

    A link with an identity hash brings its block along. In its place is yielded what that leads to,
    which is nothing for a raw one.

    Args:
        cid: The block's address. Only as dag-pb does a block lead anywhere.
        block: The block.

    Raises:
        ContentError: As :func:`decode`, for the block and for what comes within it.
    """
    if cid.codec != DAG_PB:
        return
    for link in decode(block).links:
        within = link.cid.multihash[0] == multihash.IDENTITY and link.cid.codec in (RAW, DAG_PB)
        if within:
            yield from leads_to(link.cid, multihash.decode(link.cid.multihash)[1])
        else:
            yield link.cid


def _decode_link(message: memoryview) -> Link:
    cid: Cid | None = None
    name, tsize, previous = "", 0, 0
    for tag, value, content in protobuf.fields(message):
        if tag <= previous:
            raise ContentError("dag-pb: a link's fields are repeated or out of order")
        previous = tag
        if tag == _LINK_HASH:
            cid = Cid.from_bytes(bytes(content))
        elif tag == _LINK_NAME:
            try:
                name = str(content, "utf-8")
            except UnicodeDecodeError:
                raise ContentError("dag-pb: a link's name is not UTF-8") from None
        elif tag == _LINK_TSIZE:
            tsize = value
        else:
            raise ContentError(f"dag-pb: unknown link field {tag >> 3} (wire type {tag & 7})")
    if cid is None:
        raise ContentError("dag-pb: a link without a hash")
    return Link(cid, name, tsize)


def encode(links: Sequence[Link], data: Buffer | None) -> bytes:
    """Return the canonical block: links sorted by the bytes of their names, then the data.

    Links of equal names, such as those of a file, keep their order.
    """
    named = sorted(((link.name.encode(), link) for link in links), key=lambda pair: pair[0])
    parts: list[Buffer] = []
    for name, link in named:
        message = (
            protobuf.len_field(_LINK_HASH, bytes(link.cid))
            + protobuf.len_field(_LINK_NAME, name)
            + protobuf.varint_field(_LINK_TSIZE, link.tsize)
        )
        parts.append(protobuf.len_field(_NODE_LINKS, message))
    if data is not None:
        # The field is not built on its own, which would copy a chunk of file once more.
        parts += (varint.encode(_NODE_DATA), varint.encode(len(data)), data)
    return b"".join(parts)

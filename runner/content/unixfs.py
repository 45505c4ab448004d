"""UnixFS: what a dag-pb node is in a file system (https://specs.ipfs.tech/unixfs/).

    message Data {
      enum DataType { Raw = 0; Directory = 1; File = 2; Metadata = 3; Symlink = 4; HAMTShard = 5; }
      required DataType Type = 1;  optional bytes Data = 2;  optional uint64 filesize = 3;
      repeated uint64 blocksizes = 4;  optional uint64 hashType = 5;  optional uint64 fanout = 6;
      optional uint32 mode = 7;  optional UnixTime mtime = 8;
    }
    message UnixTime { required int64 Seconds = 1; optional fixed32 FractionalNanoseconds = 2; }

Every known writer puts the fields in the order of their numbers and blocksizes unpacked, so
nothing else is read.
"""

from __future__ import annotations

from runner.content import dagpb, protobuf, varint
from runner.content.errors import ContentError
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.content.varint import Buffer

# DataType
RAW = 0
DIRECTORY = 1
FILE = 2
METADATA = 3
SYMLINK = 4
HAMT_SHARD = 5

_TYPE = 1 << 3 | protobuf.VARINT
_DATA = 2 << 3 | protobuf.LEN
_FILESIZE = 3 << 3 | protobuf.VARINT
_BLOCKSIZES = 4 << 3 | protobuf.VARINT
_HASH_TYPE = 5 << 3 | protobuf.VARINT
_FANOUT = 6 << 3 | protobuf.VARINT
_MODE = 7 << 3 | protobuf.VARINT
_MTIME = 8 << 3 | protobuf.LEN
_TIME_SECONDS = 1 << 3 | protobuf.VARINT
_TIME_NANOSECONDS = 2 << 3 | protobuf.I32


class Data(Record):
    """A UnixFS message. What is not set is None, or empty for the block sizes.

    Attributes:
        type: The kind of node, one of the constants of this module.
        data: Bytes of the file, the symlink's target, or the shard's bit field.
        filesize: Bytes of the file under this node.
        blocksizes: Bytes of the file under each link, in the order of the links.
        hash_type: Multicodec of the shard's hash function.
        fanout: How many children the shard can have.
        mode: Permission bits. Not applied: a cell gets no rights from its content.
        mtime: The UnixTime message, checked and kept as it is. Not applied either.
    """

    type: int
    data: Buffer | None = None
    filesize: int | None = None
    blocksizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None
    mode: int | None = None
    mtime: bytes | None = None


def decode_node(block: Buffer) -> tuple[tuple[dagpb.Link, ...], Data]:
    """Read a dag-pb block that holds a UnixFS message.

    Returns:
        The block's links and the message.

    Raises:
        ContentError: The block is not dag-pb, or its data is not a UnixFS message.
    """
    node = dagpb.decode(block)
    if node.data is None:
        raise ContentError("a dag-pb node without UnixFS data")
    return node.links, decode(node.data)


def decode(message: Buffer) -> Data:
    """Read a UnixFS message.

    Raises:
        ContentError: It is not one, or has unknown, repeated or misplaced fields.
    """
    values: dict[int, int] = {}
    blocksizes: list[int] = []
    data: memoryview | None = None
    mtime: bytes | None = None
    previous = 0
    for tag, value, content in protobuf.fields(memoryview(message)):
        if tag < previous or (tag == previous and tag != _BLOCKSIZES):
            raise ContentError("UnixFS: fields are repeated or out of order")
        previous = tag
        if tag == _DATA:
            data = content
        elif tag == _BLOCKSIZES:
            blocksizes.append(value)
        elif tag == _MTIME:
            mtime = bytes(content)
            _check_time(content)
        elif tag in (_TYPE, _FILESIZE, _HASH_TYPE, _FANOUT, _MODE):
            values[tag] = value
        else:
            raise ContentError(f"UnixFS: unknown field {tag >> 3} (wire type {tag & 7})")
    kind = values.get(_TYPE)
    if kind is None:
        raise ContentError("UnixFS: no type")
    if kind > HAMT_SHARD:
        raise ContentError(f"UnixFS: unknown type {kind}")
    return Data(
        kind,
        data,
        values.get(_FILESIZE),
        tuple(blocksizes),
        values.get(_HASH_TYPE),
        values.get(_FANOUT),
        values.get(_MODE),
        mtime,
    )


def _check_time(message: memoryview) -> None:
    seen: list[int] = []
    # A time before 1970 is a negative int64, which takes the ten bytes of 64 bits.
    for tag, value, _ in protobuf.fields(message, max_varint=10):
        if tag == _TIME_SECONDS:
            if value >> 64:
                raise ContentError("UnixFS: a time has more than 64 bits")
        elif tag == _TIME_NANOSECONDS:
            if not 0 < value < 1_000_000_000:
                raise ContentError(f"UnixFS: {value} is no fraction of a second in nanoseconds")
        else:
            raise ContentError(f"UnixFS: unknown time field {tag >> 3} (wire type {tag & 7})")
        seen.append(tag)
    if seen not in ([_TIME_SECONDS], [_TIME_SECONDS, _TIME_NANOSECONDS]):
        raise ContentError("UnixFS: a time's fields are missing, repeated or out of order")


def encode(message: Data) -> bytes:
    """Return the bytes of a UnixFS message, fields in the order of their numbers."""
    parts: list[Buffer] = [protobuf.varint_field(_TYPE, message.type)]
    if message.data is not None:
        # The field is not built on its own, which would copy a chunk of file once more.
        parts += (varint.encode(_DATA), varint.encode(len(message.data)), message.data)
    if message.filesize is not None:
        parts.append(protobuf.varint_field(_FILESIZE, message.filesize))
    parts += (protobuf.varint_field(_BLOCKSIZES, size) for size in message.blocksizes)
    for tag, value in (
        (_HASH_TYPE, message.hash_type),
        (_FANOUT, message.fanout),
        (_MODE, message.mode),
    ):
        if value is not None:
            parts.append(protobuf.varint_field(tag, value))
    if message.mtime is not None:
        parts.append(protobuf.len_field(_MTIME, message.mtime))
    return b"".join(parts)

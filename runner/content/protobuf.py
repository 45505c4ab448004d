"""The wire format of protocol buffers, as far as dag-pb and UnixFS use it, read strictly.

A field here is its tag, ``number << 3 | wire type``: each message has one wire type for a field,
so a known number with another type is as unknown as another number.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from runner.content import varint
from runner.content.errors import ContentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.content.varint import Buffer

# Wire types.
VARINT = 0
LEN = 2
I32 = 5

_NONE = memoryview(b"")


def fields(
    message: memoryview, max_varint: int = varint.MAX_LENGTH
) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the fields of a message in the order in which they are written.

    Args:
        message: The whole message: bytes left over are an error.
        max_varint: The most bytes of a VARINT field's value.

    Yields:
        The tag; the value of a VARINT or I32 field, else 0; the content of a LEN field, as a view
        into the message, else an empty one.

    Raises:
        ContentError: The message is cut off, or has a wire type that no message here uses.
    """
    offset, end = 0, len(message)
    while offset < end:
        tag, offset = varint.decode(message, offset)
        wire_type = tag & 7
        if wire_type == LEN:
            length, offset = varint.decode(message, offset)
            if length > end - offset:
                raise ContentError("a field is longer than its message")
            yield tag, 0, message[offset : offset + length]
            offset += length
        elif wire_type == VARINT:
            value, offset = varint.decode(message, offset, max_varint)
            yield tag, value, _NONE
        elif wire_type == I32:
            if end - offset < 4:
                raise ContentError("a field is longer than its message")
            yield tag, int.from_bytes(message[offset : offset + 4], "little"), _NONE
            offset += 4
        else:
            raise ContentError(f"wire type {wire_type} is not used in this format")


def varint_field(tag: int, value: int) -> bytes:
    """Return a VARINT field."""
    return varint.encode(tag) + varint.encode(value)


def len_field(tag: int, content: Buffer) -> bytes:
    """Return a LEN field."""
    return b"".join((varint.encode(tag), varint.encode(len(content)), content))

"""Unsigned varints: seven bits a byte, the least significant first, each in its shortest form."""

from runner.content.errors import ContentError

Buffer = bytes | memoryview
"""What is decoded: a block, or a view of a part of one that saves the copy."""

MAX_LENGTH = 9
"""Bytes of the longest varint, that is 63 bits of value (unsigned-varint of multiformats)."""


def encode(value: int) -> bytes:
    """Return the shortest varint of a value.

    Args:
        value: A number from 0 to 2**63 - 1.

    Raises:
        ValueError: The value is out of that range.
    """
    if not 0 <= value < 1 << 7 * MAX_LENGTH:
        raise ValueError(f"{value} has no unsigned varint")
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode(data: Buffer, offset: int = 0, max_length: int = MAX_LENGTH) -> tuple[int, int]:
    """Read the varint at an offset.

    Args:
        data: The bytes that hold it.
        offset: Where it starts, at most ``len(data)``.
        max_length: The most bytes it may have.

    Returns:
        The value, and the offset of the first byte after it.

    Raises:
        ContentError: The varint is cut off, too long, or not the shortest one of its value.
    """
    value = 0
    for position in range(offset, min(len(data), offset + max_length)):
        byte = data[position]
        value |= (byte & 0x7F) << 7 * (position - offset)
        if byte < 0x80:
            if byte == 0 and position > offset:
                raise ContentError("a varint is longer than its value needs")
            return value, position + 1
    if len(data) < offset + max_length:
        raise ContentError("a varint is cut off")
    raise ContentError(f"a varint has more than {max_length} bytes")

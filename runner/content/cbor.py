"""DAG-CBOR, as far as the header of a CAR and the data of an IPNS record use it, read strictly.

After https://ipld.io/specs/codecs/dag-cbor/spec/: one value has one form. Numbers and lengths are
in their shortest form, lengths are given, keys are text, sorted by length and then by their bytes,
and the only tag is that of a CID. Floating point numbers are not read: nothing here has any.
"""

from runner.content.cid import Cid
from runner.content.errors import ContentError

Value = None | bool | int | str | bytes | Cid | list["Value"] | dict[str, "Value"]

MAX_DEPTH = 16
"""Lists and maps in one another."""

# Major types (RFC 8949, section 3.1).
_UNSIGNED = 0
_NEGATIVE = 1
_BYTES = 2
_TEXT = 3
_LIST = 4
_MAP = 5
_TAG = 6

_TAG_CID = 42
_CID_PREFIX = b"\0"  # "identity" of multibase: the CID follows in binary
_SIMPLE: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}


def decode(data: bytes) -> Value:
    """Read one value, which must end where the bytes end.

    The work and the memory are bounded by a multiple of the length; the caller bounds that.

    Args:
        data: The whole of the encoded value.

    Raises:
        ContentError: The bytes are not DAG-CBOR of the kinds that are read here.
    """
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise ContentError("CBOR: bytes are left over after the value")
    return value


def _decode(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    """Read the value at an offset; return it and the offset after it."""
    if depth > MAX_DEPTH:
        raise ContentError(f"CBOR: more than {MAX_DEPTH} lists and maps in one another")
    if offset < len(data) and data[offset] in _SIMPLE:
        return _SIMPLE[data[offset]], offset + 1
    kind, number, offset = _decode_head(data, offset)
    match kind:
        case 0:  # _UNSIGNED
            return number, offset
        case 1:  # _NEGATIVE
            return -1 - number, offset
        case 2:  # _BYTES
            return _take(data, offset, number)
        case 3:  # _TEXT
            return _decode_text(data, offset, number)
        case 4:  # _LIST
            return _decode_list(data, offset, number, depth)
        case 5:  # _MAP
            return _decode_map(data, offset, number, depth)
        case _:
            return _decode_cid(data, offset, number)


def _decode_head(data: bytes, offset: int) -> tuple[int, int, int]:
    """Read a major type and its argument; return both, and the offset after them."""
    if offset >= len(data):
        raise ContentError("CBOR: the value is cut off")
    kind, short = data[offset] >> 5, data[offset] & 0x1F
    if kind > _TAG:
        raise ContentError(f"CBOR: the kind of value 0x{data[offset]:02x} is not read here")
    offset += 1
    if short < 24:
        return kind, short, offset
    if short > 27:
        raise ContentError("CBOR: a length is not given, or reserved bits are set")
    size = 1 << short - 24
    if len(data) - offset < size:
        raise ContentError("CBOR: the value is cut off")
    number = int.from_bytes(data[offset : offset + size], "big")
    if number < 24 or (size > 1 and number >> 4 * size == 0):
        raise ContentError("CBOR: a number is longer than its value needs")
    return kind, number, offset + size


def _take(data: bytes, offset: int, size: int) -> tuple[bytes, int]:
    if size > len(data) - offset:
        raise ContentError("CBOR: the value is cut off")
    return data[offset : offset + size], offset + size


def _decode_text(data: bytes, offset: int, size: int) -> tuple[str, int]:
    text, offset = _take(data, offset, size)
    try:
        return text.decode(), offset
    except UnicodeDecodeError:
        raise ContentError("CBOR: a text is not UTF-8") from None


def _decode_list(data: bytes, offset: int, count: int, depth: int) -> tuple[list[Value], int]:
    values: list[Value] = []
    # A count that lies is found where the bytes end; nothing is reserved for it.
    for _ in range(count):
        value, offset = _decode(data, offset, depth + 1)
        values.append(value)
    return values, offset


def _decode_map(data: bytes, offset: int, count: int, depth: int) -> tuple[dict[str, Value], int]:
    values: dict[str, Value] = {}
    previous: tuple[int, bytes] | None = None
    for _ in range(count):
        kind, size, offset = _decode_head(data, offset)
        if kind != _TEXT:
            raise ContentError("CBOR: a key of a map is not text")
        key, end = _decode_text(data, offset, size)
        order = (size, data[offset:end])
        if previous is not None and order <= previous:
            raise ContentError("CBOR: the keys of a map are repeated or out of order")
        previous = order
        values[key], offset = _decode(data, end, depth + 1)
    return values, offset


def _decode_cid(data: bytes, offset: int, tag: int) -> tuple[Cid, int]:
    if tag != _TAG_CID:
        raise ContentError(f"CBOR: tag {tag} is not that of a CID")
    kind, size, offset = _decode_head(data, offset)
    if kind != _BYTES:
        raise ContentError("CBOR: a CID is not a string of bytes")
    content, offset = _take(data, offset, size)
    if content[:1] != _CID_PREFIX:
        raise ContentError("CBOR: a CID does not begin with a zero byte")
    return Cid.from_bytes(content[1:]), offset


def encode(value: Value) -> bytes:
    """Return the bytes of a value.

    Raises:
        ValueError: A number has more than 64 bits, or a text is not Unicode.
    """
    match value:
        case Cid():
            # Before anything else that a tuple might be.
            return _head(_TAG, _TAG_CID) + encode(_CID_PREFIX + bytes(value))
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case list():
            return _head(_LIST, len(value)) + b"".join(map(encode, value))
    # Shorter keys first: as encoded, with their lengths before them, keys sort by their bytes.
    pairs = sorted((encode(key), encode(content)) for key, content in value.items())
    return _head(_MAP, len(pairs)) + b"".join(key + content for key, content in pairs)


def _head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes((kind << 5 | number,))
    for short in range(4):
        if number >> (8 << short) == 0:
            return bytes((kind << 5 | 24 + short,)) + number.to_bytes(1 << short, "big")
    raise ValueError(f"{number} has more than 64 bits")

"""Multibase: bytes as text, with a first character that names the base.

Each base here gives every byte string exactly one text, so the decoder can decide strictness in
one place: what it decoded must encode to the very text it was given. That alone refuses padding,
white space, the wrong case, digits of other scripts and bits left over at the end.
"""

from runner.content.errors import ContentError

MAX_LENGTH = 512
"""Characters of the longest text that is decoded.

It bounds the work on base36 and base58, which is quadratic in the length. The longest CID accepted
here, an identity CID of 128 bytes, has 271 characters in its longest base.
"""

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
BASE58_BITCOIN = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_NAMES = {
    "b": "base32",
    "B": "base32upper",
    "f": "base16",
    "k": "base36",
    "u": "base64url",
    "z": "base58btc",
}


def encode(prefix: str, data: bytes) -> str:
    """Return the multibase text of some bytes.

    Args:
        prefix: The base, one of ``b`` (base32), ``B`` (base32upper), ``z`` (base58btc), ``k``
            (base36), ``f`` (base16) and ``u`` (base64url), as in the multibase table.
        data: Any bytes.
    """
    return prefix + _encode_digits(prefix, data)


def decode(text: str) -> bytes:
    """Return the bytes that a multibase text stands for.

    Raises:
        ContentError: The text is too long, in an unknown base, or not what :func:`encode` gives.
    """
    return _decode_digits(text[:1], text[1:])


def encode_base58(data: bytes) -> str:
    """Return the base58btc text of some bytes, without a prefix, as CIDv0 is written."""
    return _encode_digits("z", data)


def decode_base58(text: str) -> bytes:
    """Return the bytes of a base58btc text that has no prefix.

    Raises:
        ContentError: The text is too long or not what :func:`encode_base58` gives.
    """
    return _decode_digits("z", text)


def encode_base32_upper(data: bytes) -> str:
    """Return the upper case base32 text (RFC 4648, no padding) of some bytes, without a prefix."""
    return _encode_digits("B", data)


def _encode_digits(prefix: str, data: bytes) -> str:
    match prefix:
        case "b":
            return _encode_base32(data).lower()
        case "B":
            return _encode_base32(data)
        case "f":
            return data.hex()
        case "k":
            return _encode_radix(data, BASE36)
        case "u":
            from base64 import urlsafe_b64encode

            return urlsafe_b64encode(data).decode().rstrip("=")
        case "z":
            return _encode_radix(data, BASE58_BITCOIN)
    raise ContentError(f"unknown multibase prefix {prefix!r}")


def _decode_digits(prefix: str, text: str) -> bytes:
    if len(text) > MAX_LENGTH:
        raise ContentError(f"longer than {MAX_LENGTH} characters")
    if prefix not in _NAMES:
        raise ContentError(f"unknown multibase prefix {prefix!r}")
    try:
        data = _decode_leniently(prefix, text)
    except ValueError:
        well_formed = False
    else:
        well_formed = _encode_digits(prefix, data) == text
    if not well_formed:
        raise ContentError(f"not well-formed {_NAMES[prefix]}")
    return data


def _decode_leniently(prefix: str, text: str) -> bytes:
    match prefix:
        case "b":
            return _decode_base32(text.upper())
        case "B":
            return _decode_base32(text)
        case "f":
            return bytes.fromhex(text)
        case "k":
            return _decode_radix(text, BASE36)
        case "u":
            from base64 import urlsafe_b64decode

            return urlsafe_b64decode(text + "=" * (-len(text) % 4))
        case _:
            return _decode_radix(text, BASE58_BITCOIN)


def _encode_base32(data: bytes) -> str:
    # base64 has it too, and imports re and struct. Five bits a digit; the last is filled up.
    digits = (8 * len(data) + 4) // 5
    number = int.from_bytes(data, "big") << 5 * digits - 8 * len(data)
    return "".join(_BASE32[number >> 5 * place & 31] for place in reversed(range(digits)))


def _decode_base32(text: str) -> bytes:
    number = 0
    for digit in text:
        number = number << 5 | _BASE32.index(digit)
    length = 5 * len(text) // 8
    # What is left over at the end is lost: then this is not what it would be written as.
    return (number >> 5 * len(text) - 8 * length).to_bytes(length, "big")


def _encode_radix(data: bytes, alphabet: str) -> str:
    # The bytes as one big number; each leading zero byte, which a number loses, as one zero digit.
    number, digits = int.from_bytes(data, "big"), []
    while number:
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return alphabet[0] * zeros + "".join(reversed(digits))


def _decode_radix(text: str, alphabet: str) -> bytes:
    number = 0
    for digit in text:
        number = number * len(alphabet) + alphabet.index(digit)
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")

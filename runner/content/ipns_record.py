"""IPNS records: what a name stands for, signed with its key (https://specs.ipfs.tech/ipns/ipns-record/).

    message IpnsEntry {
      bytes value = 1;         bytes signatureV1 = 2;  ValidityType validityType = 3;
      bytes validity = 4;      uint64 sequence = 5;    uint64 ttl = 6;
      bytes pubKey = 7;        bytes signatureV2 = 8;  bytes data = 9;
    }

Only ``data``, a map in DAG-CBOR, is signed by ``signatureV2``, and only that is used. The first six
fields are copies for old readers. They count for nothing, but must agree: whoever shows a record to
two readers must not have them see different things.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from runner.content import cbor, ipns_name, multihash, protobuf
from runner.content.errors import ContentError
from runner.content.ipns_name import Name, NamePath
from runner.content.resolver import ContentPath
from runner.errors import WwError

MAX_SIZE = 10 * 1024
"""Bytes of the largest record."""

RSA_BITS = range(2048, 8192 + 1)
"""Sizes of the RSA keys that are used: no weaker ones, and none whose use takes long."""

_SIGNATURE_PREFIX = b"ipns-signature:"
_UINT64 = 1 << 64
_UINT64_LENGTH = 10  # bytes of its longest varint
_EPOCH = datetime(1970, 1, 1)
_PARTS = ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19))  # the numbers of a time
_SECOND = 10**9

# Tags of the fields, and what each is called.
_VALUE = 1 << 3 | protobuf.LEN
_SIGNATURE_V1 = 2 << 3 | protobuf.LEN
_VALIDITY_TYPE = 3 << 3 | protobuf.VARINT
_VALIDITY = 4 << 3 | protobuf.LEN
_SEQUENCE = 5 << 3 | protobuf.VARINT
_TTL = 6 << 3 | protobuf.VARINT
_KEY = 7 << 3 | protobuf.LEN
_SIGNATURE_V2 = 8 << 3 | protobuf.LEN
_DATA = 9 << 3 | protobuf.LEN

_FIELDS = frozenset(
    (_VALUE, _SIGNATURE_V1, _VALIDITY_TYPE, _VALIDITY, _SEQUENCE, _TTL, _KEY, _SIGNATURE_V2, _DATA)
)
_COPIES = {
    _VALUE: "Value",
    _VALIDITY_TYPE: "ValidityType",
    _VALIDITY: "Validity",
    _SEQUENCE: "Sequence",
    _TTL: "TTL",
}
"""Fields that are copies, and the keys of what they are copies of."""


class Record(NamedTuple):
    """A record that has the right form. Nothing of it is true before :func:`verify` says so.

    Attributes:
        target: What the name stands for.
        sequence: Its number: a later record has a higher one.
        validity: When it stops to be valid, in nanoseconds since 1970.
        ttl: How long it may be used before somebody is asked again, in nanoseconds.
        key: The serialized public key, if the record has it.
        data: What is signed.
        signature: The signature.
    """

    target: ContentPath | NamePath
    sequence: int
    validity: int
    ttl: int
    key: bytes | None
    data: bytes
    signature: bytes


def decode(record: bytes) -> Record:
    """Read a record.

    Raises:
        ContentError: It is too large, has unknown or repeated fields, no signature of version 2,
            copies that differ from what is signed, or a value that is no path.
    """
    if len(record) > MAX_SIZE:
        raise ContentError(f"it is larger than {MAX_SIZE} bytes")
    fields: dict[int, int | bytes] = {}
    for tag, number, content in protobuf.fields(memoryview(record), _UINT64_LENGTH):
        if tag not in _FIELDS:
            raise ContentError(f"it has an unknown field {tag >> 3} (wire type {tag & 7})")
        if tag in fields:
            raise ContentError(f"it has the field {tag >> 3} twice")
        fields[tag] = number if tag & 7 == protobuf.VARINT else bytes(content)
    signature, data, key = (_bytes(fields, tag) for tag in (_SIGNATURE_V2, _DATA, _KEY))
    if not signature or not data:
        raise ContentError("it has no signature of version 2, and others are not safe")
    signed = cbor.decode(data)
    if not isinstance(signed, dict):
        raise ContentError("what is signed is not a map")
    _check_copies(fields, signed)
    if _number(signed, "ValidityType") != 0:
        raise ContentError("its kind of validity is not an expiry date")
    return Record(
        target=_parse_value(_text(signed, "Value")),
        sequence=_number(signed, "Sequence"),
        validity=parse_time(_text(signed, "Validity")),
        ttl=_number(signed, "TTL"),
        key=key or None,
        data=data,
        signature=signature,
    )


def _bytes(fields: dict[int, int | bytes], tag: int) -> bytes:
    value = fields.get(tag)
    return value if isinstance(value, bytes) else b""


def _check_copies(fields: dict[int, int | bytes], signed: dict[str, cbor.Value]) -> None:
    # Where there is one of these two, a reader of version 1 would take a missing field for zero.
    complete = bool(_bytes(fields, _VALUE) or _bytes(fields, _SIGNATURE_V1))
    for tag, name in _COPIES.items():
        missing: int | bytes = 0 if tag & 7 == protobuf.VARINT else b""
        if (complete or tag in fields) and fields.get(tag, missing) != signed.get(name):
            raise ContentError(f"its field {name} differs from what is signed")


def _number(signed: dict[str, cbor.Value], name: str) -> int:
    value = signed.get(name)
    # A bool is an int in Python.
    if type(value) is not int or not 0 <= value < _UINT64:
        raise ContentError(f"{name} is not a number that fits")
    return value


def _text(signed: dict[str, cbor.Value], name: str) -> str:
    value = signed.get(name)
    if not isinstance(value, bytes):
        raise ContentError(f"{name} is not a string of bytes")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ContentError(f"{name} is not UTF-8") from None


def _parse_value(text: str) -> ContentPath | NamePath:
    try:
        return ipns_name.parse(text)
    except ContentError as error:
        raise ContentError(f"its value {text[:128]!r} is not a path: {error}") from None


def parse_time(text: str) -> int:
    """Read a point in time as RFC 3339 has it, down to the nanosecond.

    Returns:
        Nanoseconds since 1970; less than 0 for what was before.

    Raises:
        ContentError: It is written in another way, or there is no such time.
    """
    malformed = ContentError(f"{text[:40]!r} is not a time as in RFC 3339")
    clock, zone = (text[:-1], "+00:00") if text.endswith("Z") else (text[:-6], text[-6:])
    whole, point, fraction = clock.partition(".")
    if bool(point) != bool(fraction) or len(fraction) > 9:
        raise malformed
    # Compared by the kinds of its characters, so that int() gets digits only: it would take more.
    kinds = "".join("0" if "0" <= sign <= "9" else sign for sign in whole + fraction + zone)
    shape = "0000-00-00T00:00:00" + "0" * len(fraction)
    if kinds not in (shape + "+00:00", shape + "-00:00"):
        raise malformed
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    try:
        year, month, day, hour, minute, second = (int(whole[at:end]) for at, end in _PARTS)
        local = datetime(year, month, day, hour, minute, second)
    except ValueError:
        raise malformed from None
    if hours > 23 or minutes > 59:
        raise malformed
    offset = (hours * 60 + minutes) * 60 * (-1 if zone[0] == "-" else 1)
    seconds = (local - _EPOCH) // timedelta(seconds=1) - offset
    return seconds * _SECOND + int(fraction.ljust(9, "0"))


def verify(name: Name, record: Record) -> None:
    """Check that a record is signed with the key of a name. When it expires is not looked at.

    Raises:
        ContentError: It is not.
        WwError: The package for signatures is not installed.
    """
    key = name.inlined
    if key is None:
        key = record.key
        if key is None:
            raise ContentError("it has no public key, and the name is only the hash of one")
        if multihash.sha2_256(key) != name.multihash:
            raise ContentError("the key in it is not that of the name")
    elif record.key not in (None, key):
        raise ContentError("the key in it is not that of the name")
    if not _is_signed(ipns_name.decode_key(key), record):
        raise ContentError("its signature is wrong")


def _is_signed(key: ipns_name.PublicKey, record: Record) -> bool:
    check_signatures_can_be_verified()
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    message = _SIGNATURE_PREFIX + record.data
    try:
        if key.type == ipns_name.ED25519:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

            Ed25519PublicKey.from_public_bytes(key.data).verify(record.signature, message)
        else:
            from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
            from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.serialization import load_der_public_key

            public = load_der_public_key(key.data)
            if not isinstance(public, RSAPublicKey) or public.key_size not in RSA_BITS:
                raise ContentError(
                    f"its key is not RSA of {RSA_BITS.start} to {RSA_BITS.stop - 1} bits"
                )
            public.verify(record.signature, message, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    except ContentError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ContentError(f"its key cannot be read: {error}") from None
    return True


def check_signatures_can_be_verified() -> None:
    """Raise an error if the package for it is missing.

    Raises:
        WwError: It is.
    """
    from importlib import import_module

    try:
        import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError:
        raise WwError(
            "/ipns/",
            "records are signed, and the package that verifies signatures is not installed",
            hint="pip install 'wetware[ipns]'",
        ) from None

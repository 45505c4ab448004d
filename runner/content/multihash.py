"""Multihashes: a hash function's code, the digest's length, the digest.

Only functions with no known weakness and only whole digests are taken: a cut digest is as weak as
it is short, and with SHA-1 two programs can have one address.
"""

from __future__ import annotations

from runner.content import varint
from runner.content.errors import ContentError
from runner.digest import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.content.varint import Buffer

# Codes of the multicodec table.
IDENTITY = 0x00
SHA1 = 0x11
SHA2_256 = 0x12

MAX_IDENTITY_LENGTH = 128
"""Bytes of the longest identity digest, the limit of Kubo (``DefaultMaxIdentityDigestSize``)."""


_FUNCTIONS: dict[int, tuple[int, Callable[[Buffer], bytes]]] = {
    SHA2_256: (32, sha256),
    0x13: (64, lambda data: _other("sha512", data)),
    0x14: (64, lambda data: _other("sha3_512", data)),
    0x16: (32, lambda data: _other("sha3_256", data)),
    0xB220: (32, lambda data: _other("blake2b", data, digest_size=32)),
    0xB240: (64, lambda data: _other("blake2b", data)),
    0xB260: (32, lambda data: _other("blake2s", data)),
}
"""Multicodec code -> bytes of the digest, and the function."""


def _other(name: str, data: Buffer, **how: int) -> bytes:
    """Return the digest of some bytes by a function of hashlib, which is imported for it."""
    import hashlib

    digest: bytes = getattr(hashlib, name)(data, **how).digest()
    return digest


def sha2_256(data: Buffer) -> bytes:
    """Return the sha2-256 multihash of some bytes: the hash of every block that ww writes."""
    return b"\x12\x20" + sha256(data)


def decode(multihash: bytes) -> tuple[int, bytes]:
    """Split a multihash into the code of its function and the digest.

    Raises:
        ContentError: The function is not accepted, or the digest is not the whole one.
    """
    code, offset = varint.decode(multihash)
    length, offset = varint.decode(multihash, offset)
    digest = multihash[offset:]
    if len(digest) != length:
        raise ContentError(f"a multihash announces {length} bytes of digest and has {len(digest)}")
    if code == IDENTITY:
        if length > MAX_IDENTITY_LENGTH:
            raise ContentError(f"an identity hash has more than {MAX_IDENTITY_LENGTH} bytes")
    elif code not in _FUNCTIONS:
        name = "sha1" if code == SHA1 else f"0x{code:x}"
        raise ContentError(f"hash function {name} is not accepted")
    elif length != _FUNCTIONS[code][0]:
        raise ContentError(f"the digest is cut to {length} of {_FUNCTIONS[code][0]} bytes")
    return code, digest


def matches(multihash: bytes, data: Buffer) -> bool:
    """Tell whether some bytes have this multihash.

    Raises:
        ContentError: The multihash is one that :func:`decode` refuses.
    """
    code, digest = decode(multihash)
    if code == IDENTITY:
        return data == digest
    return _FUNCTIONS[code][1](data) == digest

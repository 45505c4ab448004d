"""Content identifiers: the version, the codec and the multihash of a block, as text and as bytes.

After https://github.com/multiformats/cid, read strictly: one text in one base stands for one CID.
"""

from __future__ import annotations

from runner.content import multibase, multihash, varint
from runner.content.errors import ContentError
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.content.varint import Buffer

# Codes of the multicodec table, category ipld.
RAW = 0x55
DAG_PB = 0x70

_V0_TEXT_LENGTH = 46  # base58btc of 34 bytes that start with 0x12 0x20: always Qm...
_V0_LENGTH = 34
_V0_PREFIX = b"\x12\x20"


class Cid(Record):
    """The address of one block.

    Made by :meth:`parse`, :meth:`from_bytes` and :meth:`of`, which hold the rules.

    Attributes:
        version: 0 or 1. Version 0 is always dag-pb with sha2-256.
        codec: How the block is to be decoded: :data:`RAW`, :data:`DAG_PB` or another multicodec.
        multihash: The hash function's code, the digest's length and the digest.
    """

    version: int
    codec: int
    multihash: bytes

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Read a CID from text: ``Qm...``, or multibase with the prefix b, B, z, k, f or u.

        Raises:
            ContentError: The text is not a CID, or one with a hash that is not accepted.
        """
        if text.startswith("Qm"):
            if len(text) != _V0_TEXT_LENGTH:
                raise ContentError(
                    f"a CID that begins with Qm has {_V0_TEXT_LENGTH} characters, and this has "
                    f"{len(text)}"
                )
            return cls.from_bytes(multibase.decode_base58(text))
        data = multibase.decode(text)
        if data[:1] == _V0_PREFIX[:1]:
            # The CID specification reserves this: version 0 is bare base58 and nothing else.
            raise ContentError("a CIDv0 has no multibase prefix")
        return cls.from_bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Cid:
        """Read a CID from its binary form, which must end where the bytes end.

        Raises:
            ContentError: The bytes are not a CID, or one with a hash that is not accepted.
        """
        if len(data) == _V0_LENGTH and data[:2] == _V0_PREFIX:
            return cls(0, DAG_PB, data)
        version, offset = varint.decode(data)
        if version != 1:
            raise ContentError(f"CID version {version} is unknown")
        codec, offset = varint.decode(data, offset)
        multihash.decode(data[offset:])
        return cls(1, codec, data[offset:])

    @classmethod
    def of(cls, data: Buffer, *, codec: int, version: int = 1) -> Cid:
        """Return the address of a block, with sha2-256.

        Args:
            data: The block.
            codec: Its codec.
            version: 0 or 1. A block that is not dag-pb has no version 0 and gets version 1.
        """
        return cls(version if codec == DAG_PB else 1, codec, multihash.sha2_256(data))

    def __bytes__(self) -> bytes:
        """Return the binary form."""
        if self.version == 0:
            return self.multihash
        return b"\x01" + varint.encode(self.codec) + self.multihash

    def __str__(self) -> str:
        """Return the usual text: base58btc for version 0, base32 for version 1."""
        if self.version == 0:
            return multibase.encode_base58(self.multihash)
        return multibase.encode("b", bytes(self))

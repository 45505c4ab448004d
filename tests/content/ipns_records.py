"""IPNS records that the tests make and sign, and keys to sign them with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runner.content import cbor, multihash
from runner.content.ipns_name import ED25519, RSA, Name
from runner.content.source import Source

HELLO = "/ipfs/bafkqabtimvwgy3yk"  # an identity hash: the six bytes of "hello\n" are in it
OTHER = "/ipfs/bafkqabtporugk4qk"

NOW = 1_800_000_000 * 10**9
MINUTE = 60 * 10**9
DAY = 24 * 60 * MINUTE

Answer = TypeVar("Answer")


def varint(value: int) -> bytes:
    """The varint of up to 64 bits."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def key_message(kind: int, data: bytes) -> bytes:
    """A public key as libp2p serializes it."""
    return field(1, kind) + field(2, data)


@dataclass(frozen=True)
class Key:
    """A key pair and its name."""

    sign: Callable[[bytes], bytes]
    public: bytes
    name: Name

    @property
    def is_inlined(self) -> bool:
        return self.name.inlined is not None


def inlined(public: bytes) -> Name:
    """The name of a key that has the key in it, not checked."""
    return Name(b"\0" + varint(len(public)) + public)


@functools.cache
def ed25519(seed: int = 1) -> Key:
    """The key pair of a seed."""
    pair = Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))
    public = key_message(ED25519, pair.public_key().public_bytes_raw())
    return Key(pair.sign, public, inlined(public))


@functools.cache
def rsa(bits: int = 2048) -> Key:
    """A key pair of so many bits."""
    pair = generate_private_key(65537, bits)
    der = pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    public = key_message(RSA, der)

    def sign(message: bytes) -> bytes:
        return pair.sign(message, PKCS1v15(), SHA256())

    return Key(sign, public, Name(multihash.sha2_256(public)))


def time_text(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def signed_data(
    value: str | bytes = HELLO, *, sequence: int = 0, validity: int = NOW + DAY, ttl: int = MINUTE
) -> dict[str, cbor.Value]:
    """What is signed, as a map."""
    return {
        "Value": value if isinstance(value, bytes) else value.encode(),
        "Sequence": sequence,
        "Validity": time_text(validity).encode(),
        "ValidityType": 0,
        "TTL": ttl,
    }


def copies(data: Mapping[str, cbor.Value]) -> dict[int, int | bytes]:
    """The fields of version 1, without its signature, for what is signed."""
    numbers = {1: "Value", 3: "ValidityType", 4: "Validity", 5: "Sequence", 6: "TTL"}
    found = ((number, data[name]) for number, name in numbers.items())
    return {number: value for number, value in found if isinstance(value, (int, bytes))}


def seal(
    data: bytes,
    key: Key,
    fields: Mapping[int, int | bytes | None] | None = None,
    *,
    prefix: bytes = b"ipns-signature:",
) -> bytes:
    """A record over some signed bytes.

    Args:
        data: What is signed.
        key: What it is signed with.
        fields: Other fields, which replace those that this makes; None stands for no such field.
        prefix: What is signed before the data.
    """
    made: dict[int, int | bytes | None] = {
        8: key.sign(prefix + data),
        9: data,
        7: None if key.is_inlined else key.public,
        **(fields or {}),
    }
    return b"".join(
        field(number, value) for number, value in sorted(made.items()) if value is not None
    )


def make(
    value: str | bytes = HELLO,
    key: Key | None = None,
    *,
    sequence: int = 0,
    validity: int = NOW + DAY,
    ttl: int = MINUTE,
) -> bytes:
    """A record as today's publishers make them: of version 2, with the fields of version 1."""
    key = key or ed25519()
    data = signed_data(value, sequence=sequence, validity=validity, ttl=ttl)
    fields = {**copies(data), 2: key.sign(b"of version 1")}
    return seal(cbor.encode(data), key, fields)


class Publisher(Source):
    """A source that has the records that it is given, and counts what it is asked."""

    def __init__(
        self,
        records: Mapping[str, bytes | Exception] | None = None,
        links: Mapping[str, str] | None = None,
        name: str = "gateway x",
        *,
        named: bool = True,
    ) -> None:
        self.name = name
        self.named = named
        self.records = dict(records or {})
        self.links = dict(links or {})
        self.asked: list[str] = []

    def get(self, cid: object) -> bytes | None:
        raise NotImplementedError

    def ipns(self, name: str) -> bytes | None:
        self.asked.append(name)
        record = self.records.get(name)
        if isinstance(record, Exception):
            raise record
        return record

    def dnslink(self, name: str) -> str | None:
        self.asked.append(name)
        return self.links.get(name)


class Asked:
    """Sources that are asked in their order, one after the other."""

    def __init__(self, *sources: Source) -> None:
        self.sources = sources

    def ask(self, question: Callable[[Source], Answer | None]) -> Iterator[tuple[str, Answer]]:
        for source in self.sources:
            try:
                answer = question(source)
            except Exception:
                continue
            if answer is not None:
                yield source.name, answer

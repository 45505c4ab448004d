"""IPNS: whatever a source says a name stands for, only its key's owner decides."""

import base64
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from runner.content import cbor, ipns, ipns_name, ipns_record, multibase, multihash
from runner.content.cid import RAW, Cid
from runner.content.errors import ContentError
from runner.content.ipns_name import ED25519, LIBP2P_KEY, Name
from runner.content.source import SourceError
from runner.errors import EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from tests.content import ipns_records as records
from tests.content.ipns_records import (
    DAY,
    HELLO,
    MINUTE,
    NOW,
    OTHER,
    Asked,
    Publisher,
    ed25519,
    make,
    rsa,
    seal,
    signed_data,
)

ROOT = Path(__file__).parents[2]
REAL = json.loads((ROOT / "tests/data/ipns-records.json").read_text())["records"]

KEY = ed25519()
NAME = KEY.name
X = f"/ipns/{NAME}"


def check(name: Name, record: bytes) -> str:
    """What a record says, if it is the name's."""
    decoded = ipns_record.decode(record)
    ipns_record.verify(name, decoded)
    return str(decoded.target)


# Records of others


@pytest.mark.parametrize("real", REAL, ids=lambda real: f"{real['what']} {real['name'][-5:]}")
def test_real_records_are_read_and_refused_as_their_specification_says(
    real: dict[str, str],
) -> None:
    name, record = Name.parse(real["name"]), base64.b64decode(real["record"])
    if "refused" in real:
        with pytest.raises(ContentError, match=real["refused"]):
            check(name, record)
    else:
        assert check(name, record) == real["value"]
        assert ipns_record.decode(record).validity > NOW


def test_a_real_record_is_of_no_other_name() -> None:
    names = [Name.parse(real["name"]) for real in REAL]
    for real in REAL:
        for name in names:
            if str(name) != str(Name.parse(real["name"])):
                with pytest.raises(ContentError):
                    check(name, base64.b64decode(real["record"]))


# Names


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        *(  # one Ed25519 key, from the tests of the gateway conformance suite
            (text, "k51qzi5uqu5dk3v4rmjber23h16xnr23bsggmqqil9z2gduiis5se8dht36dam")
            for text in (
                "12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2d",
                "k51qzi5uqu5dk3v4rmjber23h16xnr23bsggmqqil9z2gduiis5se8dht36dam",
            )
        ),
        *(  # one RSA key, from there
            (text, "k2k4r8m7xvggw5pxxk3abrkwyer625hg01hfyggrai7lk1m63fuihi7w")
            for text in (
                "QmVujd5Vb7moysJj8itnGufN7MEtPRCNHkKpNuA4onsRa3",
                "k2k4r8m7xvggw5pxxk3abrkwyer625hg01hfyggrai7lk1m63fuihi7w",
            )
        ),
        # From the specification of peer ids.
        (
            "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe",
            str(Name.parse("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")),
        ),
    ],
)
def test_a_name_has_several_forms(text: str, usual: str) -> None:
    assert str(Name.parse(text)) == usual


@pytest.mark.parametrize("key", [KEY, rsa()], ids=["Ed25519", "RSA"])
@pytest.mark.parametrize("prefix", "bBzkfu")
def test_a_name_is_read_in_every_base(key: records.Key, prefix: str) -> None:
    cid = bytes(Cid(1, LIBP2P_KEY, key.name.multihash))
    assert Name.parse(multibase.encode(prefix, cid)) == key.name
    assert Name.parse(multibase.encode_base58(key.name.multihash)) == key.name


def as_name(hashed: bytes, codec: int = LIBP2P_KEY) -> str:
    return multibase.encode("k", bytes(Cid(1, codec, hashed)))


SECP256K1 = bytes.fromhex(  # the public key of the specification of peer ids
    "08021221037777e994e452c21604f91de093ce415f5432f701dd8cd1a7a6fea0e630bfca99"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prefix"),
        ("x", "prefix"),
        ("Qm", "base58|multihash|varint"),
        ("1", "varint|multihash"),
        ("12D3KooW0", "not well-formed base58btc"),
        ("12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2", "."),
        (as_name(NAME.multihash, RAW), "codec 0x55"),
        (as_name(NAME.multihash, 0x70), "codec 0x70"),
        ("bafkqabtimvwgy3yk", "codec 0x55"),
        (as_name(multihash.sha2_256(b"")[:-1]), "announces 32"),
        (as_name(b"\x13\x40" + bytes(64)), "sha2-256"),
        (as_name(records.inlined(SECP256K1).multihash), "secp256k1"),
        (as_name(records.inlined(records.key_message(9, b"k")).multihash), "type 9"),
        (as_name(records.inlined(records.key_message(1, bytes(31))).multihash), "31 bytes"),
        (as_name(records.inlined(b"").multihash), "its type and then its data"),
        (as_name(records.inlined(KEY.public + b"\x18\x00").multihash), "its type and then"),
        (as_name(records.inlined(KEY.public[2:] + KEY.public[:2]).multihash), "its type and"),
        (as_name(records.inlined(KEY.public + b"\x00").multihash), "cut off"),
        ("k" + "1" * 600, "longer than 512"),
    ],
)
def test_other_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        Name.parse(text)


@given(st.text() | st.text("1Qmbkzfu2Dabc", max_size=80))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = Name.parse(text)
    except ContentError:
        return
    assert Name.parse(str(name)) == name


# Decoding


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(record: bytes) -> None:
    with pytest.raises(ContentError):
        check(NAME, record)


def check_mutated(record: bytes) -> None:
    """It is refused by an error of its own kind, or is what was signed."""
    try:
        target = check(NAME, record)
    except ContentError:
        return
    assert target == HELLO


@given(st.data())
def test_a_mutated_record_is_refused_or_says_the_same(data: st.DataObject) -> None:
    record = bytearray(make())
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    check_mutated(bytes(record[: data.draw(st.integers(0, len(record)))]))
    check_mutated(bytes(record))


numbers = st.integers(-(2**64), 2**64 - 1)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=6,
)


@given(
    data=st.dictionaries(
        st.sampled_from(["Value", "Sequence", "Validity", "ValidityType", "TTL", "_x"]), values
    )
    | values,
    fields=st.dictionaries(
        st.integers(1, 12), st.integers(0, 2**64 - 1) | st.binary(max_size=40), max_size=6
    ),
)
def test_a_record_of_anything_is_refused_or_complete(
    data: cbor.Value, fields: dict[int, int | bytes]
) -> None:
    record = b"".join(
        records.field(number, value)
        for number, value in {8: b"signature", 9: cbor.encode(data), **fields}.items()
    )
    try:
        decoded = ipns_record.decode(record)
    except ContentError:
        return
    assert decoded.signature
    assert decoded.data


def without(name: str) -> dict[str, cbor.Value]:
    return {key: value for key, value in signed_data().items() if key != name}


def changed(**values: cbor.Value) -> dict[str, cbor.Value]:
    return {**signed_data(), **values}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *((without(name), name) for name in signed_data()),
        (changed(Value="/ipfs/bafkqaaa"), "Value is not a string of bytes"),
        (changed(Value=b"\xff"), "UTF-8"),
        (changed(Sequence=-1), "Sequence"),
        (changed(Sequence=True), "Sequence"),
        (changed(Sequence=b"1"), "Sequence"),
        (changed(TTL=-1), "TTL"),
        (changed(TTL=None), "TTL"),
        (changed(ValidityType=1), "not an expiry date"),
        (changed(ValidityType=False), "ValidityType"),
        (changed(Validity=b"tomorrow"), "RFC 3339"),
        (changed(Validity=12), "Validity"),
        ([], "not a map"),
        (None, "not a map"),
    ],
)
def test_what_is_signed_must_be_complete_and_of_its_types(data: cbor.Value, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        ipns_record.decode(seal(cbor.encode(data), KEY))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/",
        "/ipfs",
        "/ipfs/",
        "/ipfs/x",
        "/ipfs/bafkqabtimvwgy3yk/../x",
        "/ipfs/bafkqabtimvwgy3yk//x",
        "/ipfs/bafkqabtimvwgy3yk/" + "n/" * 2100,
        "ipfs/bafkqabtimvwgy3yk",
        " /ipfs/bafkqabtimvwgy3yk",
        "bafkqabtimvwgy3yk",
        "/ipld/bafkqabtimvwgy3yk",
        "/etc/passwd",
        "https://example.org/",
        "/ipns/",
        "/ipns/bafkqabtimvwgy3yk",
        "/ipns/-x.org",
        "/ipns/a..org",
        "/ipns/ex ample.org",
        "/ipns/example.org/../x",
        f"{X}/..",
        bytes(Cid(1, RAW, b"\0\0")),
    ],
)
def test_a_value_that_is_no_path_is_refused(value: str | bytes) -> None:
    with pytest.raises(ContentError, match="is not a path"):
        ipns_record.decode(make(value))


def test_what_else_is_signed_does_not_matter() -> None:
    data = changed(_more={"a": [1, Cid.parse("bafkqaaa")]})
    assert check(NAME, seal(cbor.encode(data), KEY)) == HELLO


def test_what_is_signed_must_be_in_its_one_form() -> None:
    data = cbor.encode(signed_data())
    sequence = cbor.encode("Sequence") + b"\0"
    for other in (
        data.replace(sequence, cbor.encode("Sequence") + b"\x18\x00"),
        data + b"\0",
        b"\xa6" + data[1:] + sequence,
    ):
        assert other != data
        with pytest.raises(ContentError, match="CBOR"):
            ipns_record.decode(seal(other, KEY))


def test_the_largest_record_is_read_and_a_larger_one_is_not() -> None:
    def padded(size: int) -> bytes:
        return seal(cbor.encode(changed(_pad=bytes(size))), KEY)

    fits = 10 * 1024 - len(padded(9000)) + 9000
    assert len(padded(fits)) == 10 * 1024
    assert check(NAME, padded(fits)) == HELLO
    with pytest.raises(ContentError, match="larger than 10240 bytes"):
        ipns_record.decode(padded(fits + 1))


V1 = records.copies(signed_data())
SIGNATURE_V1 = {2: b"of version 1"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        V1,
        {**V1, **SIGNATURE_V1},
        {1: V1[1], 4: V1[4], 6: V1[6]},
        {5: 0},
        {6: MINUTE},
        {4: V1[4]},
    ],
)
def test_fields_of_version_1_may_be_there_if_they_agree(fields: dict[int, int | bytes]) -> None:
    assert check(NAME, seal(cbor.encode(signed_data()), KEY, fields)) == HELLO


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({1: OTHER.encode()}, "Value"),
        ({3: 1}, "ValidityType"),
        ({4: b"2100-01-01T00:00:00Z"}, "Validity"),
        ({5: 1}, "Sequence"),
        ({6: 1}, "TTL"),
    ],
)
@pytest.mark.parametrize("others", [{}, {**V1, **SIGNATURE_V1}], ids=["alone", "complete"])
def test_fields_of_version_1_that_differ_are_refused(
    fields: Mapping[int, int | bytes], name: str, others: Mapping[int, int | bytes]
) -> None:
    record = seal(cbor.encode(signed_data()), KEY, {**others, **fields})
    with pytest.raises(ContentError, match=f"its field {name} differs"):
        ipns_record.decode(record)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (SIGNATURE_V1, "Value"),
        ({1: V1[1]}, "Validity"),
        ({1: V1[1], 4: V1[4]}, "TTL"),
        ({**V1, 1: b"", **SIGNATURE_V1}, "Value"),
    ],
)
def test_fields_that_a_reader_of_version_1_would_miss_are_refused(
    fields: Mapping[int, int | bytes], name: str
) -> None:
    with pytest.raises(ContentError, match=f"its field {name} differs"):
        ipns_record.decode(seal(cbor.encode(signed_data()), KEY, fields))


def test_a_record_of_version_1_alone_is_refused() -> None:
    value, validity = HELLO.encode(), records.time_text(NOW + DAY).encode()
    old = {**V1, 2: KEY.sign(value + validity + b"0")}
    for more in ({}, {8: b""}, {9: b""}, {8: KEY.sign(b"")}):
        fields: dict[int, int | bytes] = {**old, **more}
        record = b"".join(records.field(number, content) for number, content in fields.items())
        with pytest.raises(ContentError, match="no signature of version 2"):
            ipns_record.decode(record)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (records.field(10, 1), "unknown field 10"),
        (records.field(1, 1), "unknown field 1 "),
        (records.field(5, b"\0"), "unknown field 5 "),
        (b"\x4d" + bytes(4), "unknown field 9 "),
        (b"\x49" + bytes(8), "wire type 1"),
        (records.field(9, b"x"), "the field 9 twice"),
        (records.field(8, b"x"), "the field 8 twice"),
        (records.field(6, 1) * 2, "the field 6 twice"),
        (b"\x28" + b"\xff" * 9 + b"\x7f", "Sequence differs"),
        (b"\x28" + b"\xff" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x28\x80\x00", "longer than its value needs"),
        (b"\x3a\x05x", "longer than its message"),
        (b"\x3a", "cut off"),
    ],
)
def test_fields_are_known_and_there_once(more: bytes, message: str) -> None:
    record = seal(cbor.encode(signed_data()), KEY)
    assert check(NAME, record) == HELLO
    with pytest.raises(ContentError, match=message):
        ipns_record.decode(record + more)


def test_the_highest_numbers_are_read() -> None:
    record = ipns_record.decode(make(sequence=2**64 - 1, ttl=2**64 - 1))
    assert (record.sequence, record.ttl) == (2**64 - 1, 2**64 - 1)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00.000000001Z", 1),  # the example of the specification
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T19:30:00-04:30", 0),
        ("2033-05-18T03:33:20.25Z", 2_000_000_000_250_000_000),
        ("1937-01-01T12:00:27.87+00:20", -1_041_337_172_130_000_000),  # of RFC 3339
        ("2024-02-29T00:00:00Z", 1_709_164_800 * 10**9),
        ("9999-12-31T23:59:59-23:59", 253_402_387_139 * 10**9),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140 * 10**9),
    ],
)
def test_times_are_read_as_rfc_3339_has_them(text: str, nanoseconds: int) -> None:
    assert ipns_record.parse_time(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01 00:00:00Z",
        "2024-01-01t00:00:00z",
        "2024-1-1T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:00:60Z",
        "0000-01-01T00:00:00Z",
        "+2024-01-01T00:00:00Z",
        "12024-01-01T00:00:00Z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00.1234567890Z",
        "2024-01-01T00:00:00,5Z",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+00:60",
        "2024-01-01T00:00:00+0000",
        "2024-01-01T00:00:00Z ",
        "\uff12024-01-01T00:00:00Z",
        "2024-01-01T00:00:00.\u096bZ",
        "2024-01-01T00:00:0 Z",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ContentError, match="RFC 3339"):
        ipns_record.parse_time(text)


@given(st.text(max_size=40) | st.text("0123456789-+:.TZ", max_size=40))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        ipns_record.parse_time(text)
    except ContentError:
        return
    assert text.isascii()


# Signatures and keys


@pytest.mark.parametrize("key", [KEY, rsa()], ids=["Ed25519", "RSA"])
def test_a_record_that_its_key_has_signed_is_taken(key: records.Key) -> None:
    assert check(key.name, make(OTHER, key)) == OTHER


@pytest.mark.parametrize("key", [KEY, rsa()], ids=["Ed25519", "RSA"])
def test_another_signature_is_refused(key: records.Key) -> None:
    data = cbor.encode(signed_data())
    good = key.sign(b"ipns-signature:" + data)
    flipped = good[:-1] + bytes((good[-1] ^ 1,))
    for forged in (flipped, good[:-1], good + b"\0", bytes(len(good)), b"x", key.sign(data)):
        with pytest.raises(ContentError, match="signature is wrong"):
            check(key.name, seal(data, key, {8: forged}))
    with pytest.raises(ContentError, match="signature is wrong"):
        check(key.name, seal(data, key, prefix=b"libp2p-peer-record:"))
    changed_data = cbor.encode(signed_data(OTHER))
    with pytest.raises(ContentError, match="signature is wrong"):
        check(key.name, seal(changed_data, key, {8: good}))


def test_a_signature_of_another_key_is_refused() -> None:
    data = cbor.encode(signed_data())
    mallory = ed25519(2)
    signature = mallory.sign(b"ipns-signature:" + data)
    with pytest.raises(ContentError, match="signature is wrong"):
        check(NAME, seal(data, KEY, {8: signature}))
    with pytest.raises(ContentError, match="key in it is not that of the name"):
        check(NAME, seal(data, mallory, {7: mallory.public}))
    with pytest.raises(ContentError, match="key in it is not that of the name"):
        check(rsa().name, seal(data, mallory, {7: mallory.public}))


def test_a_key_that_the_name_has_may_be_in_the_record_too() -> None:
    assert check(NAME, seal(cbor.encode(signed_data()), KEY, {7: KEY.public})) == HELLO


def test_a_name_that_is_a_hash_needs_the_key_in_the_record() -> None:
    key = rsa()
    for missing in (b"", None):
        with pytest.raises(ContentError, match="no public key"):
            check(key.name, seal(cbor.encode(signed_data()), key, {7: missing}))


def test_a_short_key_may_have_a_name_that_is_its_hash() -> None:
    name = Name(multihash.sha2_256(KEY.public))
    assert check(name, seal(cbor.encode(signed_data()), KEY, {7: KEY.public})) == HELLO


def hashed_key(public: bytes, key: records.Key) -> records.Key:
    return records.Key(key.sign, public, Name(multihash.sha2_256(public)))


def test_weak_and_other_keys_are_refused() -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = curve.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for public, message in (
        (rsa(1024).public, "RSA of 2048 to 8192 bits"),
        (records.key_message(0, der), "RSA of 2048 to 8192 bits"),
        (records.key_message(0, b"\x30\x00"), "cannot be read"),
        (records.key_message(0, b""), "cannot be read"),
        (records.key_message(0, rsa().public[5:] + b"\0"), "cannot be read"),
        (records.key_message(3, der), "type ECDSA"),
        (SECP256K1, "type secp256k1"),
        (b"\xff", "cut off"),
    ):
        key = hashed_key(public, rsa(1024) if public == rsa(1024).public else rsa())
        with pytest.raises(ContentError, match=message):
            check(key.name, make(HELLO, key))


@given(st.binary(max_size=100), st.integers(0, 3))
def test_a_key_of_any_bytes_is_refused(data: bytes, kind: int) -> None:
    key = hashed_key(records.key_message(kind, data), rsa())
    with pytest.raises(ContentError):
        check(key.name, make(HELLO, key))


@given(st.data())
def test_a_mutated_key_is_refused(data: st.DataObject) -> None:
    public = bytearray(rsa().public)
    at = data.draw(st.integers(0, len(public) - 1))
    public[at] ^= data.draw(st.integers(1, 255))
    key = hashed_key(bytes(public), rsa())
    with pytest.raises(ContentError):
        check(key.name, make(HELLO, key))


# Resolving


@dataclass
class Setting:
    """A user with a home, at a time."""

    home: str
    now: int = NOW
    lines: list[str] = field(default_factory=list)

    def resolve(
        self, address: str, *sources: Publisher, dnslink: bool = False, offline: bool = False
    ) -> str:
        self.lines.clear()
        return ipns.resolve(
            address,
            Asked(*sources),
            self.home,
            dnslink=dnslink,
            offline=offline,
            tell=self.lines.append,
            clock=lambda: self.now,
        )

    def refused(self, address: str, *sources: Publisher, **flags: bool) -> WwError:
        with pytest.raises(WwError) as caught:
            self.resolve(address, *sources, **flags)
        return caught.value

    @property
    def kept(self) -> Path:
        return Path(self.home, "ipns", str(NAME))


@pytest.fixture
def user(tmp_path: Path) -> Setting:
    return Setting(str(tmp_path / "home"))


def publisher(record: bytes | Exception | None = None, name: str = "gateway x") -> Publisher:
    return Publisher({str(NAME): make() if record is None else record}, name=name)


def test_a_name_is_resolved_and_a_line_says_to_what(user: Setting) -> None:
    assert user.resolve(X, publisher()) == HELLO
    assert user.lines == [f"resolved {X} -> {HELLO}"]


def test_every_form_of_a_name_asks_for_the_same(user: Setting) -> None:
    short = multibase.encode_base58(NAME.multihash)
    source = publisher(make(ttl=0))
    for form in (short, f"{short}/", multibase.encode("b", bytes(Cid(1, 0x72, NAME.multihash)))):
        assert user.resolve(f"/ipns/{form}", source) == HELLO
        assert user.lines == [f"resolved /ipns/{form} -> {HELLO}"]
    assert source.asked == [str(NAME)] * 3


def test_paths_are_put_together(user: Setting) -> None:
    assert user.resolve(f"{X}/c/d", publisher(make(f"{HELLO}/a/b"))) == f"{HELLO}/a/b/c/d"
    assert user.lines == [f"resolved {X}/c/d -> {HELLO}/a/b/c/d"]


def test_a_path_that_gets_too_long_is_refused(user: Setting) -> None:
    source = publisher(make(f"{HELLO}" + "/n" * 1500))
    assert "more than 4096 bytes" in user.refused(X + "/n" * 1500, source).what


def test_a_record_may_lead_to_another_name(user: Setting) -> None:
    first, second = ed25519(1), ed25519(2)
    chain = Publisher(
        {
            str(first.name): make(f"/ipns/{second.name}/b", first),
            str(second.name): make(f"{HELLO}/a", second),
        }
    )
    assert user.resolve(f"{X}/c", chain) == f"{HELLO}/a/b/c"
    assert user.lines == [
        f"resolved {X} -> /ipns/{second.name}/b",
        f"resolved {X}/c -> {HELLO}/a/b/c",
    ]


def chain_of(length: int) -> Publisher:
    keys = [ed25519(seed) for seed in range(1, length + 1)]
    targets = [*(f"/ipns/{key.name}" for key in keys[1:]), HELLO]
    return Publisher({str(key.name): make(to, key) for key, to in zip(keys, targets, strict=True)})


def test_a_way_of_a_few_names_is_followed_and_one_of_more_is_refused(user: Setting) -> None:
    assert user.resolve(X, chain_of(4)) == HELLO
    user.now += MINUTE
    source = chain_of(5)
    assert "more than 4 names" in user.refused(X, source).what
    assert len(source.asked) == 4


def test_a_circle_is_refused(user: Setting) -> None:
    second = ed25519(2)
    circle = Publisher({str(NAME): make(f"/ipns/{second.name}"), str(second.name): make(X, second)})
    error = user.refused(X, circle)
    assert "circle" in error.what
    assert error.code == EXIT_FAILURE
    assert "circle" in user.refused(X, publisher(make(f"{X}/x"))).what


@pytest.mark.parametrize(
    "address", [HELLO, "/ipns/", "/ipns/x", "/ipns//a", f"{X}/../a", f"{X}//a", "/ipns/\udc80.org"]
)
def test_what_is_no_name_is_wrong_usage(user: Setting, address: str) -> None:
    source = publisher()
    assert user.refused(address, source).code == EXIT_USAGE
    assert source.asked == []


# Who is asked


FORGED = seal(cbor.encode(signed_data(OTHER)), KEY, {8: bytes(64)})


def test_what_one_source_does_not_have_another_may(user: Setting) -> None:
    empty, failing = Publisher(), publisher(SourceError("connection refused"))
    assert user.resolve(X, empty, failing, publisher()) == HELLO
    assert user.lines == [f"resolved {X} -> {HELLO}"]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (FORGED, "signature is wrong"),
        (make(OTHER, ed25519(2)), "signature is wrong"),
        (make(OTHER, validity=NOW), "it has expired at 2027-01-15T08:00:00Z"),
        (make(OTHER, validity=NOW - 1), "it has expired"),
        (make("/x"), "is not a path"),
        (b"", "no signature"),
        (bytes(10 * 1024 + 1), "larger than 10240"),
    ],
)
def test_a_record_that_is_refused_is_told_and_the_next_source_is_asked(
    user: Setting, record: bytes, why: str
) -> None:
    liar = publisher(record, "gateway liar")
    assert user.resolve(X, liar, publisher(name="gateway y")) == HELLO
    assert user.lines[0].startswith(f"gateway liar: its record of {X} is refused: ")
    assert why in user.lines[0]
    assert user.lines[1:] == [f"resolved {X} -> {HELLO}"]


def test_if_every_record_is_refused_the_error_says_why_for_each(user: Setting) -> None:
    error = user.refused(
        X,
        publisher(FORGED, "gateway a"),
        publisher(make(validity=NOW - DAY), "gateway b"),
        publisher(SourceError("connection refused"), "gateway c"),
        Publisher(name="gateway d"),
    )
    assert error.code == EXIT_FAILURE
    assert error.what == (
        "its record is refused: gateway a: its signature is wrong; gateway b: it has expired at "
        "2027-01-14T08:00:00Z; gateway c: connection refused; gateway d: does not have it"
    )
    assert not user.kept.exists()


def test_a_record_that_nobody_has_is_not_found(user: Setting) -> None:
    error = user.refused(X, Publisher(), publisher(SourceError("HTTP 500"), "gateway b"))
    assert error.code == EXIT_NOT_FOUND
    assert error.what == ("nobody has its record: gateway x: does not have it; gateway b: HTTP 500")


def test_without_sources_the_error_says_how_to_name_one(user: Setting) -> None:
    error = user.refused(X)
    assert error.code == EXIT_NOT_FOUND
    assert "nobody to ask" in error.what
    assert "--gateway" in error.hint


def test_what_a_record_says_cannot_steer_a_terminal(user: Setting) -> None:
    user.resolve(X, publisher(make(f"{HELLO}/\x1b[2J\nresolved")))
    assert user.lines == [f"resolved {X} -> {HELLO}/\\x1b[2J\\nresolved"]


# What is remembered


def test_nobody_is_asked_again_before_the_records_time_is_over(user: Setting) -> None:
    source = publisher(make(ttl=MINUTE))
    user.resolve(X, source)
    for later in (0, 1, MINUTE - 1):
        user.now = NOW + later
        assert user.resolve(X, source) == HELLO
        assert user.lines == [f"resolved {X} -> {HELLO}"]
    assert len(source.asked) == 1
    user.now = NOW + MINUTE
    assert user.resolve(X, source) == HELLO
    assert len(source.asked) == 2
    user.now = NOW + 2 * MINUTE - 1  # what was confirmed a minute ago counts from there
    user.resolve(X, source)
    assert len(source.asked) == 2


def test_without_a_time_somebody_is_asked_every_time(user: Setting) -> None:
    source = publisher(make(ttl=0))
    user.resolve(X, source)
    user.resolve(X, source)
    assert len(source.asked) == 2


def test_a_time_of_years_is_a_day(user: Setting) -> None:
    source = publisher(make(ttl=2**63, validity=NOW + 9999 * DAY))
    user.resolve(X, source)
    user.now += DAY - 1
    user.resolve(X, source)
    assert len(source.asked) == 1
    user.now += 1
    user.resolve(X, source)
    assert len(source.asked) == 2


def test_no_record_is_used_when_it_has_expired(user: Setting) -> None:
    source = publisher(make(ttl=DAY, validity=NOW + MINUTE))
    user.resolve(X, source)
    user.now = NOW + MINUTE - 1
    assert user.resolve(X, source) == HELLO
    user.now = NOW + MINUTE
    assert "it has expired" in user.refused(X, source).what
    assert len(source.asked) == 2


def test_what_another_clock_has_confirmed_is_asked_for_again(user: Setting) -> None:
    source = publisher(make(ttl=DAY))
    user.resolve(X, source)
    user.now -= 1
    user.resolve(X, source)
    assert len(source.asked) == 2


def test_a_newer_record_replaces_the_one_that_is_remembered(user: Setting) -> None:
    user.resolve(X, publisher(make(sequence=1, ttl=0)))
    assert user.resolve(X, publisher(make(OTHER, sequence=2, ttl=0))) == OTHER
    assert user.kept.read_bytes() == make(OTHER, sequence=2, ttl=0)


@pytest.mark.parametrize("age", [0, 2 * DAY], ids=["valid", "expired"])
def test_an_older_record_than_the_one_that_was_seen_is_refused(user: Setting, age: int) -> None:
    user.resolve(X, publisher(make(OTHER, sequence=7, ttl=0)))
    user.now += age
    error = user.refused(X, publisher(make(sequence=6, ttl=0, validity=NOW + 9 * DAY)))
    assert error.code == EXIT_FAILURE
    assert "it is older, of sequence 6, than one that was seen before, of sequence 7" in error.what
    assert ("--offline" in error.hint) == (age == 0)
    assert user.kept.read_bytes() == make(OTHER, sequence=7, ttl=0)


def test_after_an_older_record_the_next_source_is_asked(user: Setting) -> None:
    user.resolve(X, publisher(make(sequence=7, ttl=0)))
    stale = publisher(make(sequence=6), "gateway stale")
    assert user.resolve(X, stale, publisher(make(OTHER, sequence=8))) == OTHER
    assert user.lines[0].startswith("gateway stale: ")


def test_a_record_that_was_only_prolonged_is_the_same(user: Setting) -> None:
    early, late = make(ttl=0), make(ttl=0, validity=NOW + 2 * DAY)
    user.resolve(X, publisher(early))
    user.resolve(X, publisher(late))
    assert user.kept.read_bytes() == late
    assert user.resolve(X, publisher(early)) == HELLO  # from a cache somewhere, it says the same
    assert user.kept.read_bytes() == late


def test_of_two_that_differ_with_one_sequence_the_one_that_is_valid_longer_is_newer(
    user: Setting,
) -> None:
    late = make(OTHER, ttl=0, validity=NOW + 2 * DAY)
    user.resolve(X, publisher(make(ttl=0)))
    assert user.resolve(X, publisher(late)) == OTHER
    assert "it is older, valid until" in user.refused(X, publisher(make(ttl=0))).what
    assert user.kept.read_bytes() == late


def test_names_are_remembered_apart(user: Setting) -> None:
    user.resolve(X, publisher(make(sequence=9)))
    key = ed25519(2)
    source = Publisher({str(key.name): make(OTHER, key)})
    assert user.resolve(f"/ipns/{key.name}", source) == OTHER


def test_what_is_remembered_is_private_and_nothing_else_is_left(user: Setting) -> None:
    user.resolve(X, publisher())
    assert os.listdir(Path(user.home, "ipns")) == [str(NAME)]
    assert user.kept.stat().st_mode & 0o777 == 0o600
    assert user.kept.stat().st_mtime_ns == NOW
    assert Path(user.home, "ipns").stat().st_mode & 0o777 == 0o700


def test_a_writer_that_died_is_no_obstacle(user: Setting) -> None:
    user.resolve(X, publisher(make(ttl=0)))
    user.kept.with_name(".new").write_bytes(b"half of a record")
    assert user.resolve(X, publisher(make(OTHER, sequence=1))) == OTHER
    assert os.listdir(Path(user.home, "ipns")) == [str(NAME)]


def damages() -> dict[str, Callable[[Path], object]]:
    return {
        "other bytes": lambda path: path.write_bytes(FORGED),
        "cut off": lambda path: os.truncate(path, 100),
        "empty": lambda path: os.truncate(path, 0),
        "of another key": lambda path: path.write_bytes(make(HELLO, ed25519(2))),
    }


@pytest.mark.parametrize("damage", damages().values(), ids=damages())
def test_damage_is_not_taken_for_having_seen_nothing(
    user: Setting, damage: Callable[[Path], object]
) -> None:
    user.resolve(X, publisher(make(sequence=7)))
    damage(user.kept)
    source = publisher(make(OTHER, sequence=6))
    error = user.refused(X, source)
    assert error.where == str(user.kept)
    assert "damaged" in error.what
    assert source.asked == []
    assert user.refused(X, source, offline=True).where == str(user.kept)


def test_a_symbolic_link_in_its_place_is_not_followed(user: Setting, tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(make())
    user.kept.parent.mkdir(parents=True)
    user.kept.symlink_to(tmp_path / "record")
    assert user.refused(X, publisher()).where == str(user.kept)


def test_a_home_that_cannot_be_written_is_an_error(user: Setting) -> None:
    Path(user.home).write_text("a file")
    assert user.refused(X, publisher()).where == str(user.kept)


KEEP = """
import sys
from runner.content import ipns, ipns_record
from runner.content.errors import ContentError
from tests.content.ipns_records import ed25519, make

memory = ipns.Memory(sys.argv[1], ed25519().name)
for sequence in range(int(sys.argv[2]), 60, 2):
    raw = make(sequence=sequence)
    try:
        memory.keep(ipns_record.decode(raw), raw, 1)
    except ContentError:
        pass
    print(memory.read().record.sequence >= sequence)
"""


def test_two_that_write_at_once_never_go_back(user: Setting) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", KEEP, user.home, first],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for first in "01"
    ]
    for writer in writers:
        out, _ = writer.communicate()
        assert writer.returncode == 0
        assert out.split() == ["True"] * 30
    assert ipns_record.decode(user.kept.read_bytes()).sequence == 59


def test_what_is_there_is_compared_and_replaced_under_a_lock(
    user: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = ipns.Memory(user.home, NAME)
    free: list[bool] = []

    def look(*_: object) -> None:
        directory = os.open(user.kept.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(True)
        except BlockingIOError:
            free.append(False)
        finally:
            os.close(directory)

    monkeypatch.setattr(memory, "read", look)
    monkeypatch.setattr(memory, "_write", look)
    memory.keep(ipns_record.decode(make()), make(), NOW)
    look()
    assert free == [False, False, True]


# Without sources


def test_offline_uses_what_is_remembered_while_it_is_valid_and_says_so(user: Setting) -> None:
    source = publisher(make(sequence=3, ttl=0))
    user.resolve(X, source)
    user.now += MINUTE
    assert user.resolve(X, source, offline=True) == HELLO
    assert user.lines == [
        f"{X}: --offline: the record remembered since 2027-01-15T08:00:00Z, of sequence 3, "
        "valid until 2027-01-16T08:00:00Z",
        f"resolved {X} -> {HELLO}",
    ]
    user.now = NOW + DAY
    error = user.refused(X, source, offline=True)
    assert "expired at 2027-01-16T08:00:00Z" in error.what
    assert error.code == EXIT_FAILURE
    assert len(source.asked) == 1


def test_offline_a_name_that_was_never_resolved_is_not_found(user: Setting) -> None:
    source = publisher()
    assert user.refused(X, source, offline=True).code == EXIT_NOT_FOUND
    assert source.asked == []
    assert not Path(user.home).exists()


# Domains


DOMAIN = "/ipns/Docs.example.org"


def test_a_domain_is_refused_unless_it_is_asked_for(user: Setting) -> None:
    source = Publisher(links={"docs.example.org": HELLO})
    error = user.refused(DOMAIN, source)
    assert error.code == EXIT_USAGE
    assert "--dnslink" in error.hint
    assert source.asked == []


def test_a_dnslink_is_taken_from_a_source_and_a_line_says_that_nothing_verifies_it(
    user: Setting,
) -> None:
    node = Publisher(links={"docs.example.org": f"{HELLO}/a"}, name="node n")
    assert user.resolve(f"{DOMAIN}/b", Publisher(), node, dnslink=True) == f"{HELLO}/a/b"
    assert user.lines == [
        "/ipns/docs.example.org: a DNSLink is not verified; this is what node n says",
        f"resolved {DOMAIN}/b -> {HELLO}/a/b",
    ]
    user.resolve(DOMAIN, node, dnslink=True)
    assert len(node.asked) == 2  # it is not remembered
    assert not Path(user.home).exists()


def test_a_node_that_the_user_has_not_named_is_not_asked_for_a_dnslink(user: Setting) -> None:
    found = Publisher(links={"docs.example.org": HELLO}, name="node n", named=False)
    error = user.refused(DOMAIN, found, dnslink=True)
    assert error.code == EXIT_NOT_FOUND
    assert "node n: nobody has named it" in error.what
    assert "--ipfs" in error.hint
    assert found.asked == []


def test_a_dnslink_may_lead_to_a_key_whose_record_is_verified(user: Setting) -> None:
    node = Publisher({str(NAME): make()}, {"docs.example.org": X})
    assert user.resolve(DOMAIN, node, dnslink=True) == HELLO
    node.records[str(NAME)] = FORGED
    user.now += MINUTE
    assert "signature is wrong" in user.refused(DOMAIN, node, dnslink=True).what


def test_a_record_leads_to_a_domain_only_if_that_is_asked_for(user: Setting) -> None:
    node = Publisher({str(NAME): make("/ipns/example.org")}, {"example.org": HELLO})
    assert user.refused(X, node).code == EXIT_USAGE
    assert user.resolve(X, node, dnslink=True) == HELLO


def test_a_dnslink_that_nobody_knows_or_that_is_no_path_is_an_error(user: Setting) -> None:
    assert user.refused(DOMAIN, Publisher(), dnslink=True).code == EXIT_NOT_FOUND
    error = user.refused(DOMAIN, Publisher(links={"docs.example.org": "/x"}), dnslink=True)
    assert error.code == EXIT_FAILURE
    assert "not a path" in error.what
    assert user.refused(DOMAIN, dnslink=True, offline=True).code == EXIT_NOT_FOUND


def test_a_domain_is_held_to_the_form_of_one(user: Setting) -> None:
    node = Publisher()
    for name in ("a b.org", "a?b.org", "..", "a..b", ".org", "a.", "-a.org", "ü.org", "a." * 130):
        assert user.refused(f"/ipns/{name}", node, dnslink=True).code == EXIT_USAGE
    assert node.asked == []


# The package for signatures


def test_without_the_package_an_error_says_how_to_install_it(
    user: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    source = publisher()
    error = user.refused(X, source)
    assert "not installed" in error.what
    assert "wetware[ipns]" in error.hint
    assert source.asked == []


def test_it_is_imported_only_when_a_signature_is_verified() -> None:
    code = "import runner.content.ipns, sys; print(any('cryptography' in m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_types_of_keys_are_those_of_libp2p() -> None:
    assert ipns_name.decode_key(KEY.public).type == ED25519
    assert ipns_name.decode_key(rsa().public).type == ipns_name.RSA

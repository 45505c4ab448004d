"""CIDs and multihashes."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.content import multibase, multihash, varint
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError

EMPTY_DIRECTORY = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
# The example of https://github.com/multiformats/cid: one CID in two bases.
EXAMPLE_BASE58 = "zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA"
EXAMPLE_BASE32 = "bafkreidon73zkcrwdb5iafqtijxildoonbwnpv7dyd6ef3qdgads2jc4su"


def a_multihash(code: int, digest: bytes) -> bytes:
    return varint.encode(code) + varint.encode(len(digest)) + digest


FUNCTIONS = {
    0x12: lambda data: hashlib.sha256(data).digest(),
    0x13: lambda data: hashlib.sha512(data).digest(),
    0x16: lambda data: hashlib.sha3_256(data).digest(),
    0x14: lambda data: hashlib.sha3_512(data).digest(),
    0xB220: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
    0xB240: lambda data: hashlib.blake2b(data).digest(),
    0xB260: lambda data: hashlib.blake2s(data).digest(),
}


def test_a_cid_of_version_0_is_read_and_written() -> None:
    cid = Cid.parse(EMPTY_DIRECTORY)
    assert (cid.version, cid.codec, len(cid.multihash)) == (0, DAG_PB, 34)
    assert str(cid) == EMPTY_DIRECTORY
    assert Cid.from_bytes(bytes(cid)) == cid
    assert Cid.of(bytes.fromhex("0a020801"), codec=DAG_PB, version=0) == cid


def test_a_cid_of_version_1_is_read_and_written() -> None:
    cid = Cid.parse(EXAMPLE_BASE32)
    assert (cid.version, cid.codec) == (1, RAW)
    assert str(cid) == EXAMPLE_BASE32
    assert Cid.from_bytes(bytes(cid)) == cid


def test_one_cid_in_two_bases_is_equal_and_hashes_equal() -> None:
    first, second = Cid.parse(EXAMPLE_BASE58), Cid.parse(EXAMPLE_BASE32)
    assert first == second
    assert len({first, second}) == 1


@pytest.mark.parametrize("prefix", "bBzkfu")
def test_every_base_is_read(prefix: str) -> None:
    cid = Cid.parse(EXAMPLE_BASE32)
    assert Cid.parse(multibase.encode(prefix, bytes(cid))) == cid


def test_a_cid_cannot_be_changed() -> None:
    cid = Cid.parse(EMPTY_DIRECTORY)
    with pytest.raises(AttributeError):
        cid.codec = RAW  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Qm",
        EMPTY_DIRECTORY[:-1],
        EMPTY_DIRECTORY + "1",
        EMPTY_DIRECTORY[:-1] + "0",
        "z" + EMPTY_DIRECTORY,
        multibase.encode("b", bytes(Cid.parse(EMPTY_DIRECTORY))),
        " " + EXAMPLE_BASE32,
        EXAMPLE_BASE32 + "\n",
        EXAMPLE_BASE32.capitalize(),
        EXAMPLE_BASE32 + "a",
        "b",
        "hello",
        "/ipfs/" + EXAMPLE_BASE32,
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ContentError):
        Cid.parse(text)


def test_a_very_long_text_is_refused() -> None:
    with pytest.raises(ContentError, match="longer than 512"):
        Cid.parse("b" + "a" * 2_000_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"\x00\x55\x12\x20" + bytes(32), "version 0 is unknown"),
        (b"\x02\x55\x12\x20" + bytes(32), "version 2 is unknown"),
        (b"\x12\x20" + bytes(31), "version 18 is unknown"),
        (b"\x12\x20" + bytes(33), "version 18 is unknown"),
        (b"\x81\x00\x55\x12\x20" + bytes(32), "longer than its value needs"),
        (b"\x01\xd5\x00\x12\x20" + bytes(32), "longer than its value needs"),
        (b"\x01\x55\x12\x20" + bytes(33), "announces 32 bytes of digest and has 33"),
        (b"\x01\x55\x12\x20" + bytes(31), "announces 32 bytes of digest and has 31"),
        (b"\x01\x55\x12\x1f" + bytes(31), "cut to 31 of 32"),
        (b"\x01\x55\x11\x14" + bytes(20), "sha1 is not accepted"),
        (b"\x01\x55\xd5\x01\x10" + bytes(16), "0xd5 is not accepted"),
        (b"\x01\x55\x00\x81\x01" + bytes(129), "more than 128"),
        (b"\x01\x55", "cut off"),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        Cid.from_bytes(data)


@pytest.mark.parametrize("code", FUNCTIONS)
def test_every_accepted_hash_function_verifies_and_refuses(code: int) -> None:
    data = b"cell"
    cid = Cid.from_bytes(b"\x01\x55" + a_multihash(code, FUNCTIONS[code](data)))
    assert multihash.matches(cid.multihash, data)
    assert multihash.matches(cid.multihash, memoryview(data))
    assert not multihash.matches(cid.multihash, b"cell!")


@pytest.mark.parametrize("code", FUNCTIONS)
def test_a_cut_digest_is_refused(code: int) -> None:
    digest = FUNCTIONS[code](b"cell")[:-1]
    with pytest.raises(ContentError, match="cut to"):
        multihash.decode(a_multihash(code, digest))


def test_an_identity_hash_is_the_data_itself() -> None:
    cid = Cid.from_bytes(b"\x01\x55\x00\x04cell")
    assert multihash.matches(cid.multihash, b"cell")
    assert not multihash.matches(cid.multihash, b"call")


def test_the_longest_cid_fits_in_the_longest_text() -> None:
    cid = Cid.from_bytes(b"\x01\x55" + a_multihash(0, b"\xff" * 128))
    for prefix in "bBzkfu":
        assert Cid.parse(multibase.encode(prefix, bytes(cid))) == cid


@given(st.binary(max_size=80))
@example(bytes.fromhex("1220") + bytes(32))
def test_random_bytes_are_refused_or_come_back(data: bytes) -> None:
    try:
        cid = Cid.from_bytes(data)
    except ContentError:
        return
    assert bytes(cid) == data
    assert Cid.parse(str(cid)) == cid


@given(st.data())
def test_a_changed_cid_is_refused_or_another_cid(data: st.DataObject) -> None:
    encoded = bytearray(bytes(Cid.parse(EXAMPLE_BASE32)))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        cid = Cid.from_bytes(bytes(encoded))
    except ContentError:
        return
    assert cid != Cid.parse(EXAMPLE_BASE32)
    assert bytes(cid) == encoded


@given(st.text(max_size=70))
def test_random_text_is_refused_or_comes_back(text: str) -> None:
    try:
        cid = Cid.parse(text)
    except ContentError:
        return
    assert Cid.parse(str(cid)) == cid

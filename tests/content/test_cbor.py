"""DAG-CBOR: one form for one value, and nothing that is not read here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import cbor
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.errors import ContentError

CID = Cid.of(b"some", codec=RAW)
CIDS = st.builds(
    Cid.of, st.binary(max_size=9), codec=st.sampled_from((RAW, DAG_PB)), version=st.integers(0, 1)
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | TEXT | st.binary() | CIDS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    # RFC 8949, appendix A, as far as DAG-CBOR has them.
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"),
        (18446744073709551615, "1bffffffffffffffff"),
        (-1, "20"),
        (-1000, "3903e7"),
        (-18446744073709551616, "3bffffffffffffffff"),
        (False, "f4"),
        (True, "f5"),
        (None, "f6"),
        (b"", "40"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("", "60"),
        ("IETF", "6449455446"),
        ("ü", "62c3bc"),
        ([], "80"),
        ([1, [2, 3], [4, 5]], "8301820203820405"),
        (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
        ({}, "a0"),
        ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
    ],
)
def test_values_have_the_form_of_the_standard(value: cbor.Value, encoded: str) -> None:
    assert cbor.encode(value).hex() == encoded
    decoded = cbor.decode(bytes.fromhex(encoded))
    assert decoded == value
    assert type(decoded) is type(value)


def test_a_cid_is_tag_42_of_its_bytes_after_a_zero() -> None:
    encoded = b"\xd8\x2a\x58\x25\x00" + bytes(CID)
    assert cbor.encode(CID) == encoded
    assert cbor.decode(encoded) == CID
    assert isinstance(cbor.decode(encoded), Cid)


def test_the_header_of_a_car_is_read() -> None:
    # As go-car and js-car write it.
    header = bytes.fromhex("a265726f6f747381d82a582500") + bytes(CID) + b"\x67version\x01"
    assert cbor.decode(header) == {"roots": [CID], "version": 1}
    assert cbor.encode({"version": 1, "roots": [CID]}) == header


def test_keys_are_sorted_by_length_and_then_by_their_bytes() -> None:
    # As an IPNS record has them, where Value is five bytes and TTL three.
    keys = ["Value", "Validity", "ValidityType", "Sequence", "TTL"]
    encoded = cbor.encode(dict.fromkeys(keys, 0))
    decoded = cbor.decode(encoded)
    assert isinstance(decoded, dict)
    assert list(decoded) == ["TTL", "Value", "Sequence", "Validity", "ValidityType"]


@given(VALUES)
def test_what_is_encoded_is_decoded(value: cbor.Value) -> None:
    assert cbor.decode(cbor.encode(value)) == value


@given(st.binary(max_size=64) | VALUES.map(cbor.encode))
def test_every_byte_string_is_the_one_form_of_its_value_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except ContentError:
        return
    assert cbor.encode(value) == data


@given(VALUES.map(cbor.encode), st.data())
def test_a_damaged_value_is_another_value_or_refused(encoded: bytes, data: st.DataObject) -> None:
    damaged = bytearray(encoded)
    at = data.draw(st.integers(0, len(encoded) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        value = cbor.decode(bytes(damaged))
    except ContentError:
        return
    assert cbor.encode(value) == damaged


@given(VALUES.map(cbor.encode), st.data())
def test_a_value_that_is_cut_off_is_refused(encoded: bytes, data: st.DataObject) -> None:
    with pytest.raises(ContentError):
        cbor.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("", "cut off"),
        ("0000", "left over"),
        ("1817", "longer than its value needs"),
        ("1900ff", "longer than its value needs"),
        ("1a0000ffff", "longer than its value needs"),
        ("1b00000000ffffffff", "longer than its value needs"),
        ("5803000000", "longer than its value needs"),
        ("1901", "cut off"),
        ("1c", "not given, or reserved"),
        ("5f4100ff", "not given, or reserved"),
        ("9fff", "not given, or reserved"),
        ("bfff", "not given, or reserved"),
        ("43ffff", "cut off"),
        ("62c328", "not UTF-8"),
        ("63eda080", "not UTF-8"),  # a surrogate
        ("82", "cut off"),
        ("9bffffffffffffffff", "cut off"),
        ("bbffffffffffffffff", "cut off"),
        ("5bffffffffffffffff", "cut off"),
        ("a10000", "not text"),
        ("a1410000", "not text"),
        ("a2616100616100", "repeated or out of order"),
        ("a2616200616100", "repeated or out of order"),
        ("a262616100616200", "repeated or out of order"),
        ("c0", "tag 0"),
        ("c249010000000000000000", "tag 2"),
        ("d82a00", "not a string of bytes"),
        ("d82a6100", "not a string of bytes"),
        ("d82a40", "zero byte"),
        ("d82a410a", "zero byte"),
        ("d82a4100", "cut off"),  # no CID at all
        ("d9002a4100", "longer than its value needs"),
        ("f0", "not read here"),
        ("f7", "not read here"),
        ("f820", "not read here"),
        ("f90000", "not read here"),
        ("fb3ff0000000000000", "not read here"),
        ("ff", "not read here"),
    ],
)
def test_anything_else_is_refused(encoded: str, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        cbor.decode(bytes.fromhex(encoded))


def test_a_cid_must_end_where_its_bytes_end() -> None:
    with pytest.raises(ContentError):
        cbor.decode(b"\xd8\x2a\x58\x26\x00" + bytes(CID) + b"\x00")


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x60"])
def test_depth_is_bounded(opening: bytes) -> None:
    cbor.decode(opening * cbor.MAX_DEPTH + b"\x00")
    with pytest.raises(ContentError, match="in one another"):
        cbor.decode(opening * (cbor.MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(ContentError, match="in one another"):
        cbor.decode(opening * 30_000)


@pytest.mark.parametrize("number", [2**64, -(2**64) - 1])
def test_a_number_of_more_than_64_bits_has_no_form(number: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        cbor.encode(number)

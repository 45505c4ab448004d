"""Unsigned varints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import varint
from runner.content.errors import ContentError


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # the examples of https://github.com/multiformats/unsigned-varint
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (255, "ff01"),
        (300, "ac02"),
        (16384, "808001"),
        (0, "00"),
        (2**63 - 1, "ffffffffffffffff7f"),
    ],
)
def test_known_varints_are_read_and_written(value: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert varint.encode(value) == data
    assert varint.decode(data) == (value, len(data))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("", "cut off"),
        ("80", "cut off"),
        ("ffffffffffffffff", "cut off"),
        ("8000", "longer than its value needs"),
        ("808000", "longer than its value needs"),
        ("ffffffffffffffffff01", "more than 9 bytes"),
        ("80" * 1000, "more than 9 bytes"),
    ],
)
def test_other_varints_are_refused(encoded: str, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        varint.decode(bytes.fromhex(encoded))


@pytest.mark.parametrize("value", [-1, 2**63])
def test_a_value_without_a_varint_is_not_encoded(value: int) -> None:
    with pytest.raises(ValueError):
        varint.encode(value)


@given(st.integers(0, 2**63 - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_a_varint_is_found_at_its_offset(value: int, before: bytes, after: bytes) -> None:
    encoded = varint.encode(value)
    data = before + encoded + after
    assert varint.decode(data, len(before)) == (value, len(before) + len(encoded))


@given(st.binary(max_size=12))
def test_what_is_accepted_is_the_only_form_of_its_value(data: bytes) -> None:
    try:
        value, end = varint.decode(data)
    except ContentError:
        return
    assert varint.encode(value) == data[:end]

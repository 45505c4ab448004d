"""Multibase text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import multibase
from runner.content.errors import ContentError

PREFIXES = "bBzkfu"

# https://github.com/multiformats/multibase/tree/master/tests
YES_MANI = b"yes mani !"
LEADING_ZERO = b"\x00yes mani !"
TWO_LEADING_ZEROS = b"\x00\x00yes mani !"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (YES_MANI, "f796573206d616e692021"),
        (YES_MANI, "bpfsxgidnmfxgsibb"),
        (YES_MANI, "BPFSXGIDNMFXGSIBB"),
        (YES_MANI, "k2lcpzo5yikidynfl"),
        (YES_MANI, "z7paNL19xttacUY"),
        (YES_MANI, "ueWVzIG1hbmkgIQ"),
        (LEADING_ZERO, "f00796573206d616e692021"),
        (LEADING_ZERO, "bab4wk4zanvqw42jaee"),
        (LEADING_ZERO, "k02lcpzo5yikidynfl"),
        (LEADING_ZERO, "z17paNL19xttacUY"),
        (LEADING_ZERO, "uAHllcyBtYW5pICE"),
        (TWO_LEADING_ZEROS, "f0000796573206d616e692021"),
        (TWO_LEADING_ZEROS, "baaahszltebwwc3tjeaqq"),
        (TWO_LEADING_ZEROS, "k002lcpzo5yikidynfl"),
        (TWO_LEADING_ZEROS, "z117paNL19xttacUY"),
        (TWO_LEADING_ZEROS, "uAAB5ZXMgbWFuaSAh"),
        (b"", "b"),
        (b"", "z"),
    ],
)
def test_known_texts_are_read_and_written(data: bytes, text: str) -> None:
    assert multibase.encode(text[0], data) == text
    assert multibase.decode(text) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [  # draft-msporny-base58, section 5
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (
            b"The quick brown fox jumps over the lazy dog.",
            "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z",
        ),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_known_base58_texts_are_read_and_written(data: bytes, text: str) -> None:
    assert multibase.encode_base58(data) == text
    assert multibase.decode_base58(text) == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "m",  # base64 with padding, not among the accepted
        "F00",  # base16upper, not among the accepted
        "f0",
        "f0g",
        "f 00",
        "fAB",
        "bPFSXGIDNMFXGSIBB",
        "Bpfsxgidnmfxgsibb",
        "bpfsxgidnmfxgsib1",
        "bpfsxgidnmfxgsibb=",
        "bab",  # bits left over that are not zero
        "ba",  # no whole byte
        "z0",
        "zO",
        "zI",
        "zl",
        "kA",
        "k-1",
        "k1_0",
        "k 1",
        "k\u0661",  # a digit one, in Arabic
        "uAB",
        "uA",
        "uAA==",
        "uA A",
        "uA+/A",
        "z\ud800",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ContentError):
        multibase.decode(text)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_text_that_is_too_long_is_refused_before_it_is_decoded(prefix: str) -> None:
    with pytest.raises(ContentError, match="longer than 512"):
        multibase.decode(prefix + "a" * 2_000_000)


def test_bare_base58_has_the_same_limit() -> None:
    with pytest.raises(ContentError, match="longer than 512"):
        multibase.decode_base58("a" * 2_000_000)


@given(st.sampled_from(PREFIXES), st.binary(max_size=200))
def test_bytes_come_back_from_every_base(prefix: str, data: bytes) -> None:
    assert multibase.decode(multibase.encode(prefix, data)) == data


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[bBzkfu][0-9a-zA-Z_=+/ -]{0,60}")))
def test_what_is_accepted_is_the_only_text_of_its_bytes(text: str) -> None:
    try:
        data = multibase.decode(text)
    except ContentError:
        return
    assert multibase.encode(text[0], data) == text

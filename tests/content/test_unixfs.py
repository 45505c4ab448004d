"""UnixFS messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import unixfs
from runner.content.errors import ContentError
from runner.content.unixfs import Data

numbers = st.none() | st.integers(0, 2**63 - 1)
messages = st.builds(
    Data,
    type=st.integers(0, 5),
    data=st.none() | st.binary(max_size=20),
    filesize=numbers,
    blocksizes=st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
    hash_type=numbers,
    fanout=numbers,
    mode=numbers,
    mtime=st.sampled_from([None, b"\x08\x01", b"\x08\x01\x15\x01\x00\x00\x00"]),
)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("0801", Data(unixfs.DIRECTORY)),
        ("08021800", Data(unixfs.FILE, filesize=0)),
        ("0802120568656c6c6f1805", Data(unixfs.FILE, b"hello", 5)),
        ("08021803200120 02".replace(" ", ""), Data(unixfs.FILE, None, 3, (1, 2))),
        ("0804120178", Data(unixfs.SYMLINK, b"x")),
        ("0805120101282230 8002".replace(" ", ""), Data(5, b"\x01", None, (), 0x22, 256)),
        ("0801 38ed03".replace(" ", ""), Data(unixfs.DIRECTORY, mode=0o755)),
        ("0801 42020801".replace(" ", ""), Data(unixfs.DIRECTORY, mtime=b"\x08\x01")),
        (
            "0801 420b08ffffffffffffffffff01".replace(" ", ""),  # one second before 1970
            Data(unixfs.DIRECTORY, mtime=b"\x08" + b"\xff" * 9 + b"\x01"),
        ),
    ],
)
def test_known_messages_are_read_and_written(encoded: str, message: Data) -> None:
    data = bytes.fromhex(encoded)
    assert unixfs.decode(data) == message
    assert unixfs.encode(message) == data


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ("", "no type"),
        ("1800", "no type"),
        ("0806", "unknown type 6"),
        ("08010801", "repeated or out of order"),
        ("18000801", "repeated or out of order"),
        ("080218001800", "repeated or out of order"),
        ("08021201611201 61".replace(" ", ""), "repeated or out of order"),
        ("080220011800", "repeated or out of order"),
        ("080222020102", "unknown field 4"),  # packed block sizes
        ("08014801", "unknown field 9"),
        ("0a0101", "unknown field 1"),
        ("080212056865", "longer than its message"),
        ("080118", "cut off"),
        ("08818000", "longer than its value needs"),
        ("080218ffffffffffffffffff01", "more than 9 bytes"),
        ("08014200", "missing"),
        ("0801420515ffffff00", "missing"),
        ("080142041801", "longer than its message"),
        ("080142021801", "unknown time field 3"),
        ("08014204080108 01".replace(" ", ""), "repeated"),
        ("08014207080115000000 00".replace(" ", ""), "no fraction"),
        ("0801420708011500ca9a3b", "no fraction"),
        ("0801420b08ffffffffffffffffff7f", "more than 64 bits"),
    ],
)
def test_other_messages_are_refused(encoded: str, text: str) -> None:
    with pytest.raises(ContentError, match=text):
        unixfs.decode(bytes.fromhex(encoded))


def test_a_dag_pb_block_without_data_is_no_node() -> None:
    with pytest.raises(ContentError, match="without UnixFS data"):
        unixfs.decode_node(b"")


@given(messages)
def test_a_message_comes_back(message: Data) -> None:
    assert unixfs.decode(unixfs.encode(message)) == message


def check(data: bytes) -> None:
    """A message is refused, or is the only form of what it says."""
    try:
        message = unixfs.decode(data)
    except ContentError:
        return
    assert unixfs.encode(message) == data


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_a_message(data: bytes) -> None:
    check(data)


@given(messages, st.data())
def test_mutated_messages_are_refused_or_a_message(message: Data, data: st.DataObject) -> None:
    encoded = bytearray(unixfs.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
    check(bytes(encoded))

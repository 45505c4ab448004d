"""dag-pb blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import dagpb
from runner.content.cid import RAW, Cid
from runner.content.dagpb import Link, Node
from runner.content.errors import ContentError

CID = Cid.of(b"child", codec=RAW)
HASH = b"\x0a\x24" + bytes(CID)
LINK = HASH + b"\x12\x01a" + b"\x18\x05"
DATA = b"\x0a\x04some"


def field(link: bytes) -> bytes:
    return b"\x12" + bytes([len(link)]) + link


links = st.builds(
    Link,
    st.binary(max_size=20).map(lambda data: Cid.of(data, codec=RAW)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.integers(0, 2**63 - 1),
)
nodes = st.tuples(st.lists(links, max_size=5), st.none() | st.binary(max_size=20))


def test_links_first_is_read() -> None:
    assert dagpb.decode(field(LINK) + field(LINK) + DATA) == Node(
        (Link(CID, "a", 5), Link(CID, "a", 5)), b"some"
    )


def test_data_first_is_read() -> None:
    assert dagpb.decode(DATA + field(LINK)) == Node((Link(CID, "a", 5),), b"some")


def test_no_data_and_empty_data_are_told_apart() -> None:
    assert dagpb.decode(b"") == Node((), None)
    assert dagpb.decode(b"\x0a\x00") == Node((), b"")


def test_a_missing_name_and_size_are_read_as_nothing() -> None:
    assert dagpb.decode(field(HASH)).links == (Link(CID, "", 0),)


def test_the_canonical_form_is_links_by_name_then_data() -> None:
    block = dagpb.encode([Link(CID, "b", 5), Link(CID, "a", 5)], b"some")
    assert block == field(LINK) + field(LINK.replace(b"\x01a", b"\x01b")) + DATA


def test_names_are_sorted_by_their_bytes() -> None:
    names = ["\U0001f600", "\uffff", "Z", "a", "é", "aa"]
    block = dagpb.encode([Link(CID, name, 0) for name in names], None)
    assert [link.name for link in dagpb.decode(block).links] == sorted(names, key=str.encode)


def test_links_of_equal_names_keep_their_order() -> None:
    given_links = tuple(Link(CID, "", size) for size in (3, 1, 2))
    assert dagpb.decode(dagpb.encode(given_links, None)).links == given_links


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (field(LINK) + DATA + field(LINK), "both sides"),
        (DATA + DATA, "twice"),
        (DATA + field(LINK) + DATA, "twice"),
        (DATA + b"\x1a\x00", "unknown field 3"),
        (b"\x08\x01", "unknown field 1"),
        (b"\x12\x04", "longer than its message"),
        (DATA[:-1], "longer than its message"),
        (DATA + b"\x0a", "cut off"),
        (DATA + b"\x00", "cut off"),
        (b"\x8a\x00\x00", "longer than its value needs"),
        (b"\x0a\x80\x00", "longer than its value needs"),
        (b"\x0a" + b"\xff" * 8 + b"\x7f", "longer than its message"),
        (b"\x0b", "wire type 3"),
        (b"\x09" + bytes(8), "wire type 1"),
        (b"\x0d\x00", "longer than its message"),
        (field(b""), "without a hash"),
        (field(b"\x12\x01a"), "without a hash"),
        (field(HASH + HASH), "repeated or out of order"),
        (field(b"\x12\x01a" + HASH), "repeated or out of order"),
        (field(HASH + b"\x18\x05\x12\x01a"), "repeated or out of order"),
        (field(LINK + b"\x20\x01"), "unknown link field 4"),
        (field(HASH + b"\x12\x01\xff"), "not UTF-8"),
        (field(HASH + b"\x12\x03\xed\xa0\x80"), "not UTF-8"),
        (field(HASH + b"\x18" + b"\xff" * 9 + b"\x01"), "more than 9 bytes"),
        (field(b"\x0a\x24" + bytes(CID)[:-1]), "longer than its message"),
        (field(b"\x0a\x23" + bytes(CID)[:-1]), "announces 32"),
        (field(b"\x0a\x25" + bytes(CID) + b"\x00"), "announces 32"),
    ],
)
def test_other_blocks_are_refused(block: bytes, message: str) -> None:
    with pytest.raises(ContentError, match=message):
        dagpb.decode(block)


@given(nodes)
def test_a_node_comes_back(node: tuple[list[Link], bytes | None]) -> None:
    expected = tuple(sorted(node[0], key=lambda link: link.name.encode()))
    assert dagpb.decode(dagpb.encode(*node)) == Node(expected, node[1])


def check(block: bytes) -> None:
    """A block is refused, or read as a node that has a canonical block of its own."""
    try:
        node = dagpb.decode(block)
    except ContentError:
        return
    again = dagpb.decode(dagpb.encode(*node))
    assert again.data == node.data
    assert sorted(again.links) == sorted(node.links)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_a_node(block: bytes) -> None:
    check(block)


@given(nodes, st.data())
def test_mutated_blocks_are_refused_or_a_node(
    node: tuple[list[Link], bytes | None], data: st.DataObject
) -> None:
    block = bytearray(dagpb.encode(*node) or b"\x00")
    for _ in range(data.draw(st.integers(1, 4))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(block[: data.draw(st.integers(0, len(block)))]))
    check(bytes(block))

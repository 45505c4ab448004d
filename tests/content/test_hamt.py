"""Sharded directories and the hash that spreads their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import dagpb, hamt, murmur3, unixfs
from runner.content.cid import RAW, Cid
from runner.content.dagpb import Link
from runner.content.errors import ContentError
from runner.content.unixfs import Data
from tests.content.dags import MemoryStore, put_block, put_node, put_raw


@pytest.mark.parametrize(
    ("text", "value"),
    [  # the tests of github.com/spaolacci/murmur3, which Kubo uses
        ("", 0),
        ("hello", 0xCBD8A7B341BD9B02),
        ("hello, world", 0x342FAC623A5EBC8E),
        ("19 Jan 2038 at 3:14:07 AM", 0xB89E5988B737AFFC),
        ("The quick brown fox jumps over the lazy dog.", 0xCD99481F9EE902C9),
    ],
)
def test_known_murmur3_hashes(text: str, value: int) -> None:
    assert murmur3.hash_64(text.encode()) == value


def build(store: MemoryStore, names: list[str]) -> tuple[tuple[Link, ...], Data]:
    child = put_raw(store, b"x")
    root = hamt.build([Link(child, name, 1) for name in names], lambda b: put_block(store, b))
    return unixfs.decode_node(store.get(root.cid))


def shard(store: MemoryStore, members: dict[int, tuple[str, Cid]], **changes: object) -> Cid:
    """Put a shard with fanout 256: slot -> name of an entry, or an empty one, and its CID."""
    field = sum(1 << slot for slot in members)
    data = Data(unixfs.HAMT_SHARD, field.to_bytes(32, "big"), None, (), 0x22, 256)
    links = [Link(cid, f"{slot:02X}{name}", 0) for slot, (name, cid) in members.items()]
    return put_node(store, links, data._replace(**changes))  # type: ignore[arg-type]


def read_all(store: MemoryStore, cid: Cid) -> list[str]:
    links, data = unixfs.decode_node(store.get(cid))
    return [link.name for link in hamt.entries(links, data, store.get)]


def slot_of(name: str, level: int = 0) -> int:
    return murmur3.hash_64(name.encode()) >> 56 - 8 * level & 255


def test_five_thousand_entries_are_listed_and_each_is_found() -> None:
    store = MemoryStore()
    names = [f"entry {number}" for number in range(5000)]
    links, data = build(store, names)
    assert sorted(link.name for link in hamt.entries(links, data, store.get)) == sorted(names)
    for name in names:
        found = hamt.lookup(links, data, name, store.get)
        assert found is not None
        assert found.name == name
    for name in ("entry 5000", "entry", "", "x" * 300):
        assert hamt.lookup(links, data, name, store.get) is None


def test_the_order_of_the_entries_does_not_matter() -> None:
    names = [f"n{number}" for number in range(600)]
    assert build(MemoryStore(), names) == build(MemoryStore(), names[::-1])


def test_a_lookup_reads_one_shard_a_level() -> None:
    store = MemoryStore()
    links, data = build(store, [f"entry {number}" for number in range(5000)])
    read: list[Cid] = []

    def load(cid: Cid) -> bytes:
        read.append(cid)
        return store.get(cid)

    hamt.lookup(links, data, "entry 77", load)
    assert 1 <= len(read) <= 3


@given(
    st.sets(
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
            min_size=1,
            max_size=20,
        ).filter(lambda name: name not in (".", ".."))
    )
)
def test_any_names_come_back(names: set[str]) -> None:
    store = MemoryStore()
    links, data = build(store, list(names))
    assert {link.name for link in hamt.entries(links, data, store.get)} == names


def test_names_whose_hashes_are_equal_cannot_be_built() -> None:
    with pytest.raises(ContentError, match="too many levels"):
        build(MemoryStore(), ["same", "same"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": unixfs.DIRECTORY}, "not a shard"),
        ({"hash_type": None}, "hash function is None"),
        ({"hash_type": 0x12}, "hash function is 18"),
        ({"fanout": None}, "fanout is 0"),
        ({"fanout": 4}, "fanout is 4"),
        ({"fanout": 100}, "fanout is 100"),
        ({"fanout": 2048}, "fanout is 2048"),
        ({"fanout": 2**62}, "fanout is"),
        ({"fanout": 512}, "not the one of slot"),
        ({"fanout": 8}, "wider than its fanout"),
        ({"data": None}, "as many links"),
        ({"data": b"\xff" * 32}, "as many links"),
        ({"data": b"\x02"}, "not the one of slot"),
        ({"data": b"\x01" + bytes(32)}, "wider than its fanout"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(
    changes: dict[str, object], message: str
) -> None:
    store = MemoryStore()
    cid = shard(store, {200: ("a", put_raw(store, b"x"))}, **changes)
    with pytest.raises(ContentError, match=message):
        read_all(store, cid)


@pytest.mark.parametrize("name", [".", "..", "a/b", "a\0b", "x" * 256])
def test_a_name_that_no_directory_can_hold_is_refused(name: str) -> None:
    store = MemoryStore()
    cid = shard(store, {slot_of(name): (name, put_raw(store, b"x"))})
    with pytest.raises(ContentError, match="directory entry"):
        read_all(store, cid)


def test_an_entry_in_the_wrong_slot_is_refused_by_a_listing() -> None:
    store = MemoryStore()
    cid = shard(store, {slot_of("a") ^ 1: ("a", put_raw(store, b"x"))})
    with pytest.raises(ContentError, match="wrong shard"):
        read_all(store, cid)


def test_a_name_in_two_places_is_refused_by_a_listing() -> None:
    store = MemoryStore()
    entry = ("a", put_raw(store, b"x"))
    below = shard(store, {slot_of("a", 1): entry})
    cid = shard(store, {slot_of("a"): ("", below), slot_of("a") ^ 1: ("", below)})
    with pytest.raises(ContentError, match="wrong shard"):
        read_all(store, cid)


def test_shards_without_an_end_are_refused_by_the_number_of_levels() -> None:
    store = MemoryStore()
    below = shard(store, {0: ("", put_raw(store, b"x"))})
    for _ in range(20):
        below = shard(store, dict.fromkeys(range(256), ("", below)))
    with pytest.raises(ContentError, match="too many levels"):
        read_all(store, below)
    links, data = unixfs.decode_node(store.get(below))
    with pytest.raises(ContentError, match="too many levels"):
        hamt.lookup(links, data, "name", store.get)


def test_one_shard_linked_from_everywhere_does_not_multiply_the_work() -> None:
    store = MemoryStore()
    loads = 0

    def load(cid: Cid) -> bytes:
        nonlocal loads
        loads += 1
        return store.get(cid)

    below = shard(store, {})
    for _ in range(7):
        below = shard(store, dict.fromkeys(range(256), ("", below)))
    links, data = unixfs.decode_node(store.get(below))
    with pytest.raises(ContentError, match="empty, though"):
        list(hamt.entries(links, data, load))
    assert loads <= 8


def test_a_child_of_another_fanout_or_kind_is_refused_and_named() -> None:
    store = MemoryStore()
    other = put_node(store, [], Data(unixfs.HAMT_SHARD, b"", None, (), 0x22, 512))
    directory = put_node(store, [], Data(unixfs.DIRECTORY))
    junk = put_block(store, b"junk")
    for child, message in ((other, "another fanout"), (directory, "not a shard"), (junk, "")):
        cid = shard(store, {7: ("", child)})
        with pytest.raises(ContentError, match=f"shard {child}.*{message}"):
            read_all(store, cid)


def test_a_child_under_another_codec_is_refused_as_a_pin_would_not_follow_it() -> None:
    store = MemoryStore()
    child = shard(store, {slot_of("a", 1): ("a", put_raw(store, b"x"))})
    for codec in (RAW, 0x71):
        cid = shard(store, {slot_of("a"): ("", Cid(1, codec, child.multihash))})
        with pytest.raises(ContentError, match=f"codec is 0x{codec:x}, not dag-pb"):
            read_all(store, cid)
        links, data = unixfs.decode_node(store.get(cid))
        with pytest.raises(ContentError, match=f"codec is 0x{codec:x}, not dag-pb"):
            hamt.lookup(links, data, "a", store.get)


def test_the_bit_field_is_written_without_leading_zeros() -> None:
    store = MemoryStore()
    links, data = build(store, ["a"])
    slot = slot_of("a")
    assert data.data == (1 << slot).to_bytes(slot // 8 + 1, "big")
    assert dagpb.encode(links, unixfs.encode(data)) in store.blocks.values()

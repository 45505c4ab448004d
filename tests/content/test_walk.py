"""Walking all that is below a block: each once, and never with more in memory than is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content import dagpb, walk
from runner.content.blockstore import Blockstore
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.dagpb import Link
from runner.content.walk import below
from runner.errors import EXIT_LIMIT, WwError
from tests.content.dags import put_directory, put_raw


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Blockstore]:
    with Blockstore(str(tmp_path)) as made:
        yield made


def test_each_block_is_walked_once_however_often_it_is_linked(store: Blockstore) -> None:
    leaf = put_raw(store, b"leaf")
    inner = put_directory(store, [("a", leaf), ("b", leaf)])
    root = put_directory(store, [("a", inner), ("b", inner), ("c", leaf)])
    assert sorted(map(str, below(store.get, root, set(), leaves=True))) == sorted(
        map(str, (root, inner, leaf))
    )


def test_blocks_that_come_within_a_link_lead_on_and_are_not_remembered(store: Blockstore) -> None:
    leaf = put_raw(store, b"leaf")
    inner = dagpb.encode([Link(leaf, "", 0)], None)
    outer = dagpb.encode([Link(_within(inner, DAG_PB), "", 0)], None)
    names = [(f"{number}", _within(b"%d" % number, RAW)) for number in range(50)]
    root = put_directory(store, [*names, ("z", _within(outer, DAG_PB))])
    seen: set[tuple[int, bytes]] = set()
    assert list(below(store.get, root, seen, leaves=True)) == [root, leaf]
    assert len(seen) == 2


def test_a_block_within_a_link_that_cannot_be_followed_is_an_error(store: Blockstore) -> None:
    for within in (_within(b"\xff", DAG_PB), _within(b"\xa0", 0x71)):
        root = put_directory(store, [("a", within)])
        with pytest.raises(WwError, match=r"malformed|its codec is 0x71"):
            list(below(store.get, root, set(), leaves=True))


def _within(data: bytes, codec: int) -> Cid:
    """A CID that is its own block."""
    return Cid.from_bytes(b"\x01" + bytes([codec, 0, len(data)]) + data)


def test_links_that_wait_are_bounded(store: Blockstore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_PENDING", 30)
    leaves = [(f"{number}", put_raw(store, b"%d" % number)) for number in range(20)]
    assert len(list(below(store.get, put_directory(store, leaves), set(), leaves=True))) == 21
    # What is deep is followed before what is beside it, whose links wait.
    inner = put_directory(store, leaves)
    others = [(f"x{number}", put_raw(store, b"x%d" % number)) for number in range(20)]
    root = put_directory(store, [("a", inner), *others])
    with pytest.raises(WwError) as caught:
        list(below(store.get, root, set(), leaves=True))
    assert caught.value.code == EXIT_LIMIT
    assert str(root) in str(caught.value)

"""Walking all that is below a block: each once, and never with more in memory than is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content import walk
from runner.content.blockstore import Blockstore
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

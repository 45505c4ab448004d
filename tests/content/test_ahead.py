"""Blocks that are read before they are asked for: the same bytes and errors, and no thread left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content.blockstore import Blockstore, DamagedBlock
from runner.content.cid import Cid
from runner.content.importer import import_path
from runner.content.resolver import load_node, parse_path, resolve_file
from runner.errors import EXIT_NOT_FOUND, WwError

BLOCK = 256 << 10
CONTENT = b"".join(bytes([i]) * BLOCK for i in range(40))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[Blockstore, str, list[Cid]]]:
    """A store with a file of forty blocks: the path, and the blocks in their order."""
    (tmp_path / "file").write_bytes(CONTENT)
    with Blockstore(str(tmp_path / "store")) as store:
        path = f"/ipfs/{import_path(store, str(tmp_path / 'file'))}"
        root = parse_path(path)
        yield store, path, [link.cid for link in load_node(store, root.root, root).links]


def read(store: Blockstore, path: str) -> bytes:
    return b"".join(resolve_file(store, path).chunks())


def no_reader_is_left() -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if all("_work" not in thread.name for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def test_a_large_file_is_read_whole_and_again(stored: tuple[Blockstore, str, list[Cid]]) -> None:
    store, path, _ = stored
    assert read(store, path) == CONTENT
    assert read(store, path) == CONTENT
    assert no_reader_is_left()


@pytest.mark.parametrize("which", [0, 17, 39])
def test_a_damaged_block_is_named_and_removed(
    stored: tuple[Blockstore, str, list[Cid]], which: int
) -> None:
    store, path, blocks = stored
    file = Path(store.path(blocks[which]))
    file.chmod(0o600)
    file.write_bytes(b"damage")
    with pytest.raises(DamagedBlock) as caught:
        read(store, path)
    assert str(blocks[which]) in str(caught.value)
    assert not file.exists()


def test_a_missing_block_is_not_found_by_its_name(
    stored: tuple[Blockstore, str, list[Cid]],
) -> None:
    store, path, blocks = stored
    os.unlink(store.path(blocks[20]))
    chunks = resolve_file(store, path).chunks()
    with pytest.raises(WwError) as caught:
        list(chunks)
    assert caught.value.code == EXIT_NOT_FOUND
    assert str(blocks[20]) in str(caught.value)


def test_blocks_that_are_asked_for_in_another_order_are_right_all_the_same(
    stored: tuple[Blockstore, str, list[Cid]],
) -> None:
    store, _, blocks = stored
    straight = [store.get(cid) for cid in blocks]
    store.expect(blocks)
    assert [store.get(cid) for cid in reversed(blocks)] == straight[::-1]
    store.expect(blocks)
    assert [store.get(cid) for cid in blocks] == straight


def test_who_reads_only_the_beginning_leaves_no_thread(
    stored: tuple[Blockstore, str, list[Cid]],
) -> None:
    store, path, _ = stored
    chunks = resolve_file(store, path).chunks()
    assert next(chunks) == CONTENT[:BLOCK]
    store.close()
    assert no_reader_is_left()
    assert read(store, path) == CONTENT

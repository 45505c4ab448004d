"""The folder of a Kubo repository: read as it is, and never touched."""

import os
from pathlib import Path

import pytest

from runner.content.blockstore import MAX_BLOCK_SIZE, Blockstore
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.repository import Repository
from runner.content.source import SourceError
from tests.content.dags import put_raw


@pytest.fixture
def store(tmp_path: Path) -> Blockstore:
    """A store, which has the layout of a Kubo repository."""
    return Blockstore(str(tmp_path / "repo"))


def state(home: str) -> list[tuple[str, int, int, bytes]]:
    found = []
    for folder, _, names in os.walk(home):
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            found.append((str(path), status.st_mtime_ns, status.st_mode, path.read_bytes()))
    return sorted(found)


def test_blocks_are_read_by_any_cid_and_nothing_is_written(store: Blockstore) -> None:
    cid = put_raw(store, b"a block")
    os.utime(store.path(cid), (1, 1))
    before = state(store.home)
    source = Repository(store.home)
    assert source.get(cid) == b"a block"
    assert source.get(Cid(0, DAG_PB, cid.multihash)) == b"a block"
    assert source.get(Cid.of(b"another", codec=RAW)) is None
    assert state(store.home) == before


def test_a_damaged_block_is_handed_on_as_it_is_and_stays(store: Blockstore) -> None:
    cid = put_raw(store, b"a block")
    Path(store.path(cid)).write_bytes(b"other bytes")
    assert Repository(store.home).get(cid) == b"other bytes"
    assert os.path.exists(store.path(cid))


def test_no_more_is_read_than_a_block_can_have(store: Blockstore) -> None:
    cid = put_raw(store, b"a block")
    with open(store.path(cid), "wb") as file:
        file.truncate(1 << 40)
    data = Repository(store.home).get(cid)
    assert data is not None
    assert len(data) == MAX_BLOCK_SIZE + 1


def test_what_is_no_file_is_no_block(store: Blockstore, tmp_path: Path) -> None:
    cid = put_raw(store, b"a block")
    os.unlink(store.path(cid))
    os.mkfifo(store.path(cid))
    assert Repository(store.home).get(cid) is None
    os.unlink(store.path(cid))
    tmp_path.joinpath("elsewhere").write_bytes(b"a block")
    os.symlink(tmp_path / "elsewhere", store.path(cid))
    with pytest.raises(SourceError, match="cannot be read"):
        Repository(store.home).get(cid)


@pytest.mark.parametrize("layout", [b"/repo/flatfs/shard/v1/prefix/2\n", b"", b"x" * 5000])
def test_another_layout_is_refused(store: Blockstore, layout: bytes) -> None:
    cid = put_raw(store, b"a block")
    Path(store.home, "blocks", "SHARDING").write_bytes(layout)
    with pytest.raises(SourceError, match="its layout is not") as caught:
        Repository(store.home).get(cid)
    assert caught.value.gone


def test_what_is_no_repository_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "another" / "blocks").mkdir(parents=True)
    for name in ("nothing", "file", "folder", "another"):
        source = Repository(str(tmp_path / name))
        assert source.name == f"repository {tmp_path}/{name}"
        with pytest.raises(SourceError) as caught:
            source.get(Cid.of(b"", codec=RAW))
        assert caught.value.text == "it is no Kubo repository: there is no blocks/SHARDING in it"
        assert caught.value.gone


def test_a_repository_that_cannot_be_read_is_one(store: Blockstore) -> None:
    cid = put_raw(store, b"a block")
    sharding = Path(store.home, "blocks", "SHARDING")
    sharding.unlink()
    sharding.symlink_to("SHARDING")
    with pytest.raises(SourceError, match="cannot be read: Too many levels") as caught:
        Repository(store.home).get(cid)
    assert caught.value.gone

"""The same content in ww and in a real Kubo: equal CIDs, and each reads the other's blocks."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content import hamt, unixfs
from runner.content.blockstore import Blockstore
from runner.content.importer import import_path
from runner.content.resolver import resolve_file
from runner.errors import WwError
from tests.content.peers import Kubo


@pytest.fixture
def store(tmp_path: Path) -> Blockstore:
    return Blockstore(str(tmp_path / "ww"))


@pytest.fixture
def seeded() -> random.Random:
    return random.Random(2015)


def files_under(path: Path) -> Iterator[Path]:
    """The files of a tree, of the large directory only some."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    few = [file for file in files if file.parent.name == "sharded"][::100]
    return (file for file in files if file.parent.name != "sharded" or file in few)


def make_tree(path: Path, seeded: random.Random) -> None:
    """A tree with every kind of entry, names of many lengths, and a directory to be sharded."""
    letters = "abcXYZ012 ._-~%é☃\U0001f600"
    for directory in (path, path / "a", path / "a" / "b b", path / "empty", path / ".hidden"):
        directory.mkdir()
    for length in range(1, 64):
        name = "".join(seeded.choices(letters, k=length))
        (path / "a" / f"n{name}").write_bytes(seeded.randbytes(seeded.randrange(300)))
    (path / "a" / ("x" * 255)).write_bytes(b"")
    (path / "a" / "b b" / "large").write_bytes(seeded.randbytes(700_000))
    (path / ".hidden" / ".file").write_bytes(b"hidden")
    (path / "link").symlink_to("a/b b/large")
    (path / "broken").symlink_to("../" * 20 + "é")
    (path / "sharded").mkdir()
    for number in range(2500):
        name = f"{number}-" + "".join(seeded.choices(letters, k=seeded.randrange(45, 60)))
        (path / "sharded" / name).write_bytes(b"%d" % (number % 7))


def test_files_of_random_sizes_have_the_cids_of_kubo(
    kubo: Kubo, store: Blockstore, tmp_path: Path, seeded: random.Random
) -> None:
    chunk = 256 * 1024
    sizes = [0, 1, chunk - 1, chunk, chunk + 1, 174 * chunk, 174 * chunk + 1]
    sizes += [seeded.randrange(3_000_000) for _ in range(8)]
    paths = []
    for number, size in enumerate(sizes):
        paths.append(tmp_path / f"file {number}")
        paths[-1].write_bytes(seeded.randbytes(size))
    assert [import_path(store, str(path)) for path in paths] == kubo.add(*paths)


def test_a_tree_has_the_cid_of_kubo_and_each_side_reads_the_blocks_of_the_other(
    kubo: Kubo, store: Blockstore, tmp_path: Path, seeded: random.Random
) -> None:
    tree = tmp_path / "tree"
    make_tree(tree, seeded)
    cid = import_path(store, str(tree), hidden=True)
    assert kubo.add(tree) == [cid]

    # ww reads the repository of Kubo, as a store of its own.
    theirs = Blockstore(str(kubo.repository))
    for file in files_under(tree):
        path = f"/ipfs/{cid}/{file.relative_to(tree)}"
        assert b"".join(resolve_file(theirs, path).chunks()) == file.read_bytes()
    with pytest.raises(WwError, match="symbolic link"):
        resolve_file(theirs, f"/ipfs/{cid}/link")
    links, _ = unixfs.decode_node(theirs.get(cid))
    sharded = next(link.cid for link in links if link.name == "sharded")
    shard_links, data = unixfs.decode_node(theirs.get(sharded))
    assert data.type == unixfs.HAMT_SHARD
    listed = {link.name for link in hamt.entries(shard_links, data, theirs.get)}
    assert listed == set(os.listdir(tree / "sharded"))

    # Kubo reads the blocks of ww, in a repository that has no others.
    other = Kubo(tmp_path / "other")
    assert not other.blocks().exists()
    shutil.copytree(Path(store.home) / "blocks", other.blocks())
    other.get(cid, tmp_path / "out")
    for file in files_under(tree):
        assert (tmp_path / "out" / file.relative_to(tree)).read_bytes() == file.read_bytes()


def test_a_damaged_block_of_kubo_is_refused(
    kubo: Kubo, tmp_path: Path, seeded: random.Random
) -> None:
    source = tmp_path / "source"
    source.write_bytes(seeded.randbytes(1000))
    (cid,) = kubo.add(source)
    theirs = Blockstore(str(kubo.repository))
    path = Path(theirs.path(cid))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WwError, match=f"{cid}: damaged"):
        resolve_file(theirs, f"/ipfs/{cid}")

"""Content from the repository of a real Kubo on disk, which ww reads and never writes."""

import os
from pathlib import Path

from runner.content.cid import Cid
from tests.conftest import EXAMPLES, Ww
from tests.content.peers import Kubo, check_whole, fill, long_name, read_tree

HELLO = EXAMPLES / "hello" / "hello.wasm"


def state(repository: Path) -> dict[str, tuple[int, int, int]]:
    """What would tell of a write: for each file its size, its time, and its number."""
    found = {}
    for path in (repository, *repository.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def test_ww_runs_and_reads_what_kubo_has_added(kubo: Kubo, ww: Ww, tree: Path) -> None:
    cell, root = kubo.add(HELLO, tree)
    before = state(kubo.repository)
    direct = ww.run("run", HELLO)
    for arguments, env in (
        (("--ipfs", str(kubo.repository)), {}),
        # Found where Kubo itself would look for it; no node runs there.
        ((), {"WW_IPFS": "", "IPFS_PATH": str(kubo.repository)}),
    ):
        for address in (f"/ipfs/{cell}", f"/ipfs/{root}/cells/hello.wasm"):
            done = ww.run("run", *arguments, address, env=env)
            assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr
    done = ww.run("import", "--ipfs", str(kubo.repository), f"/ipfs/{root}", "read")
    assert done.returncode == 0, done.stderr
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    assert state(kubo.repository) == before
    check_whole(ww.home)


def test_a_directory_that_kubo_has_split_is_read(kubo: Kubo, ww: Ww) -> None:
    folder = ww.tmp / "folder"
    folder.mkdir()
    fill(folder, 908)
    (root,) = kubo.add(folder)
    env = {"WW_IPFS": str(kubo.repository)}
    done = ww.run("import", f"/ipfs/{root}/{long_name(500)}", "-o", "entry", env=env)
    assert (done.returncode, (ww.tmp / "entry").read_bytes()) == (0, b"500"), done.stderr
    # The way to it, and not the directory.
    assert check_whole(ww.home) < 10
    done = ww.run("import", f"/ipfs/{root}/{long_name(908)}", "-o", "missing", env=env)
    assert (done.returncode, done.stdout) == (127, b"")


def test_a_damaged_block_of_kubo_is_neither_used_nor_removed(kubo: Kubo, ww: Ww) -> None:
    (root,) = kubo.add(HELLO)
    (block,) = (path for path in kubo.blocks().rglob("*.data") if path.stat().st_size > 20_000)
    block.chmod(0o600)
    damaged = bytearray(block.read_bytes())
    damaged[12_000] ^= 1
    block.write_bytes(damaged)
    done = ww.run("run", "--ipfs", str(kubo.repository), f"/ipfs/{root}")
    assert (done.returncode, done.stdout) == (127, b"")
    assert str(root).encode() in done.stderr
    assert str(kubo.repository).encode() in done.stderr
    assert block.read_bytes() == damaged
    assert check_whole(ww.home) == 0


def test_kubo_reads_what_ww_has_exported(kubo: Kubo, ww: Ww, tree: Path) -> None:
    address = ww.export(tree, "--hidden", "--cid-version=1")
    # Its folder of blocks is the one of ww from here on.
    (ww.home / "blocks").rename(kubo.blocks())
    kubo.get(Cid.parse(address.removeprefix("/ipfs/")), ww.tmp / "read")
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    assert not os.listdir(kubo.blocks() / ".temp")

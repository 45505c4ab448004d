"""`ww resolve`, as a user types it."""

import os
from pathlib import Path

import pytest

from runner.content.blockstore import Blockstore
from runner.content.cid import Cid
from tests.conftest import Ww
from tests.content.dags import block_files


@pytest.fixture
def tree(ww: Ww) -> str:
    (ww.tmp / "tree" / "sub").mkdir(parents=True)
    ww.file("tree/sub/file", b"hello world")
    return ww.export(ww.tmp / "tree")


def test_a_path_leads_to_the_address_of_what_it_names(ww: Ww, tree: str) -> None:
    file = ww.export(ww.tmp / "tree" / "sub" / "file")
    folder = ww.export(ww.tmp / "tree" / "sub")
    for path, address in (
        (tree, tree),
        (f"{tree}/", tree),
        (f"{tree}/sub", folder),
        (f"{tree}/sub/file", file),
        (f"{folder}/file", file),
    ):
        done = ww.run("resolve", path)
        assert (done.returncode, done.stdout.decode()) == (0, f"{address}\n"), done.stderr


def test_what_it_leads_to_need_not_be_there_and_what_is_on_the_way_must(ww: Ww, tree: str) -> None:
    file = ww.run("resolve", f"{tree}/sub/file").stdout.decode().strip()
    store = Blockstore(str(ww.home))
    os.unlink(store.path(Cid.parse(file.removeprefix("/ipfs/"))))
    assert ww.run("resolve", f"{tree}/sub/file").stdout.decode().strip() == file
    assert ww.run("resolve", file).stdout.decode().strip() == file
    os.unlink(store.path(Cid.parse(tree.removeprefix("/ipfs/"))))
    done = ww.run("resolve", f"{tree}/sub/file")
    assert (done.returncode, done.stdout) == (127, b"")


def test_directories_on_the_way_are_fetched_and_nothing_else(ww: Ww) -> None:
    (ww.tmp / "tree" / "sub").mkdir(parents=True)
    ww.file("tree/sub/file", b"hello world")
    elsewhere = str(ww.root / "elsewhere")  # read as a Kubo repository is
    tree = ww.run("export", "tree", env={"WW_HOME": elsewhere}).stdout.decode().strip()
    done = ww.run("resolve", "--ipfs", elsewhere, f"{tree}/sub/file")
    address = "/ipfs/Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
    assert (done.returncode, done.stdout.decode()) == (0, f"{address}\n"), done.stderr
    assert len(block_files(ww.home)) == 2


def test_a_name_needs_somebody_to_ask(ww: Ww) -> None:
    name = "/ipns/k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r"
    done = ww.run("resolve", "--offline", name)
    assert (done.returncode, done.stdout) == (127, b"")
    assert name.encode() in done.stderr


@pytest.mark.parametrize(
    ("below", "code", "what"),
    [
        ("/x", 127, b"no such file or directory"),
        ("/sub/file/x", 127, b"is not a directory"),
        ("/../x", 2, b"not a valid path"),
    ],
)
def test_what_leads_nowhere(ww: Ww, tree: str, below: str, code: int, what: bytes) -> None:
    done = ww.run("resolve", f"{tree}{below}")
    assert (done.returncode, done.stdout) == (code, b"")
    assert what in done.stderr


def test_an_empty_path_is_named_as_such(ww: Ww) -> None:
    done = ww.run("resolve", "")
    assert (done.returncode, done.stderr) == (2, b"ww: error: PATH: it is empty\n")


def test_nothing_is_made_where_there_is_no_store(ww: Ww, tmp_path: Path) -> None:
    address = "/ipfs/Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
    home = ww.root / "none"
    assert ww.run("resolve", address, env={"WW_HOME": str(home)}).returncode == 0
    assert ww.run("resolve", f"{address}/x", env={"WW_HOME": str(home)}).returncode == 127
    assert not home.exists()

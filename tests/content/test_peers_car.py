"""CAR files from ww to other implementations, and back."""

import os
from pathlib import Path

import pytest

from runner.content.blockstore import Blockstore
from runner.content.cid import Cid
from tests.conftest import EXAMPLES, Ww
from tests.content.peers import Gateway, Rpc, check_whole, fill, read_tree

HELLO = EXAMPLES / "hello" / "hello.wasm"

# As the importer of js-unixfs takes them, beside the profile of today's Kubo: other depths, other
# layouts, other fields first, other fanouts.
SHAPES = {
    "v0": {},
    "v1": {"profile": "unixfs-v1-2025"},
    "deep": {"chunk": 100, "layout": "balanced", "width": 3},
    "flat": {"chunk": 5000, "layout": "flat", "rawLeaves": True, "cidVersion": 1},
    "trickle": {
        "profile": None,
        "chunk": 1000,
        "layout": "trickle",
        "width": 5,
        "leafType": "raw",
        "rawLeaves": False,
        "reduceSingleLeafToSelf": False,
    },
    "data first": {"profile": None, "fieldOrder": "data-first", "chunk": 1000},
}


def export(ww: Ww, address: str, name: str = "exported.car") -> Path:
    done = ww.run("car", "export", "-o", name, address)
    assert done.returncode == 0, done.stderr
    return ww.tmp / name


@pytest.mark.parametrize("version", [0, 1])
def test_what_ww_exports_the_javascript_implementation_reads(
    gateway: Gateway, ww: Ww, tree: Path, version: int
) -> None:
    address = ww.export(tree, "--hidden", f"--cid-version={version}")
    root = Cid.parse(address.removeprefix("/ipfs/"))
    # It refuses nothing but what it cannot parse; that it holds each block to its CID is seen when
    # it reads the tree by them.
    assert gateway.load(export(ww, address)) == [root]
    gateway.read(address, ww.tmp / "read")
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    # The same DAG, written by the other side: as many blocks as ww has written.
    assert gateway.write(ww.tmp / "theirs.car", root) == check_whole(ww.home)


def test_the_javascript_implementation_reads_a_directory_that_ww_has_split(
    gateway: Gateway, ww: Ww
) -> None:
    folder = ww.tmp / "folder"
    folder.mkdir()
    fill(folder, 908)
    address = ww.export(folder)
    gateway.load(export(ww, address))
    gateway.read(address, ww.tmp / "read")
    assert read_tree(ww.tmp / "read") == read_tree(folder)
    root = Cid.parse(address.removeprefix("/ipfs/"))
    # It makes the same of it, and the shards are counted in what it writes.
    assert gateway.add(folder, shardSplitThresholdBytes=262144) == root
    assert gateway.write(ww.tmp / "theirs.car", root) == check_whole(ww.home) > 908 + 100


def test_what_ww_exports_a_node_imports_and_pins(rpc: Rpc, ww: Ww, tree: Path) -> None:
    address = ww.export(tree, "--hidden")
    assert rpc.load(export(ww, address)) == [Cid.parse(address.removeprefix("/ipfs/"))]
    assert rpc.names(f"{address}/names") == {path.name for path in (tree / "names").iterdir()}
    assert rpc.read(f"{address}/large") == (tree / "large").read_bytes()
    one = export(ww, f"{address}/cells/hello.wasm", "one.car")
    (root,) = rpc.load(one)
    assert rpc.read(root) == HELLO.read_bytes()


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_what_the_javascript_implementation_writes_ww_imports(
    gateway: Gateway, ww: Ww, tree: Path, options: dict[str, object]
) -> None:
    small = ww.tmp / "small"
    for folder in ("cells", "names", "empty"):
        (small / folder).mkdir(parents=True)
    (small / "cells" / "hello.wasm").write_bytes(HELLO.read_bytes())
    (small / "names" / "large").write_bytes((tree / "large").read_bytes()[:50_000])
    (small / "names" / "nothing").touch()
    root = gateway.add(small, **options)
    blocks = gateway.write(ww.tmp / "theirs.car", root)
    done = ww.run("car", "import", "theirs.car")
    assert (done.returncode, done.stdout.decode()) == (0, f"/ipfs/{root}\n"), done.stderr
    assert check_whole(ww.home) == blocks
    assert ww.run("import", f"/ipfs/{root}", "read").returncode == 0
    assert read_tree(ww.tmp / "read") == read_tree(small)


def test_a_cell_runs_from_a_car_of_the_javascript_implementation(
    gateway: Gateway, ww: Ww, tree: Path
) -> None:
    file = gateway.add(HELLO, chunk=1000)
    directory = gateway.add(tree)
    gateway.write(ww.tmp / "cell.car", file)
    gateway.write(ww.tmp / "tree.car", directory)
    gateway.write(ww.tmp / "both.car", file, directory)
    direct = ww.run("run", HELLO)
    assert direct.returncode == 0
    for cell in (
        "./cell.car",
        f"./cell.car#{file}",
        "./tree.car#/cells/hello.wasm",
        f"./both.car#{directory}/cells/hello.wasm",
    ):
        done = ww.run("run", cell)
        assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr
    # Of two roots, neither is the cell.
    done = ww.run("run", "./both.car")
    assert (done.returncode, done.stdout) == (126, b"")
    assert b"ww: error: ./both.car: " in done.stderr
    # Nothing of it is kept.
    assert not (ww.home / "blocks").exists()


def test_what_a_node_exports_ww_imports_and_runs(rpc: Rpc, ww: Ww, tree: Path) -> None:
    root = rpc.add(tree)
    ww.file("theirs.car", rpc.call("dag/export", arg=root))
    done = ww.run("car", "import", "./theirs.car")
    assert (done.returncode, done.stdout.decode()) == (0, f"/ipfs/{root}\n"), done.stderr
    done = ww.run("run", f"/ipfs/{root}/cells/hello.wasm")
    assert done.returncode == 0, done.stderr
    assert ww.run("import", f"/ipfs/{root}", "read").returncode == 0
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    done = ww.run("run", "./theirs.car#/cells/hello.wasm")
    assert done.returncode == 0, done.stderr


def test_a_car_without_what_its_root_names_is_told_from_a_whole_one(
    gateway: Gateway, rpc: Rpc, ww: Ww, tree: Path
) -> None:
    with Blockstore(str(ww.home)) as store:
        absent = Cid.parse(ww.export(ww.file("absent", b"in no peer")).removeprefix("/ipfs/"))
        Path(store.path(absent)).unlink()
    # What js-ipfs answers for a root that it does not have: a CAR that is valid, and empty.
    ww.file("empty.car", rpc.call("dag/export", arg=absent, timeout="1s"))
    done = ww.run("car", "import", "empty.car")
    assert (done.returncode, done.stdout) == (1, b"")
    assert str(absent).encode() in done.stderr
    done = ww.run("run", "./empty.car")
    assert done.returncode == 127
    assert str(absent).encode() in done.stderr
    # And one of which a block in the middle is missing.
    root = gateway.add(tree / "large", chunk=100_000)
    gateway.write(ww.tmp / "whole.car", root)
    whole = (ww.tmp / "whole.car").read_bytes()
    middle = (tree / "large").read_bytes()[300_000:400_000]
    where = whole.index(middle) + 500
    ww.file("damaged.car", whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :])
    ww.file("cut.car", whole[:where])
    for name in ("damaged.car", "cut.car"):
        for command in (("car", "import"), ("run",)):
            done = ww.run(*command, f"./{name}")
            assert (done.returncode, done.stdout) == (1, b""), (name, command, done.stderr)
    check_whole(ww.home)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("unixfs-v0-2015", "QmX24h41FD3G2s6ZzU1HU2sdfGNZNEFAQca7zxs6b9g9Xo"),
        ("unixfs-v1-2025", "bafybeiex64ykgtuenprtvjbu3a6dqxyrqnbur4bnazyri2bu24674pi6nq"),
    ],
)
def test_content_with_modes_and_times_is_read(
    gateway: Gateway, ww: Ww, profile: str, expected: str
) -> None:
    # The one case of the vectors that is not in tests/data: what ww exports has no modes and times,
    # as what `ipfs add` prints by default has none, so it cannot have these CIDs.
    folder = ww.tmp / "folder"
    folder.mkdir()
    for name, mode in (("run.sh", 0o755), ("plain", 0o644)):
        (folder / name).write_text(f"{name}\n")
        (folder / name).chmod(mode)
    os.utime(folder / "run.sh", (1_700_000_000, 1_700_000_000))
    root = gateway.add(folder, profile=profile, metadata=["run.sh"])
    assert str(root) == expected
    gateway.write(ww.tmp / "theirs.car", root)
    assert ww.run("car", "import", "theirs.car").returncode == 0
    assert ww.run("import", f"/ipfs/{root}", "read").returncode == 0
    # Both sides read the same, which is for v0 not what was there: when it keeps a mode, the
    # importer that these vectors are of takes the node of a dag-pb leaf for the leaf's bytes.
    gateway.read(root, ww.tmp / "theirs")
    assert read_tree(ww.tmp / "read") == read_tree(ww.tmp / "theirs")
    wrapped = b"\n\r\x08\x02\x12\x07run.sh\n\x18\x07"
    expected_content = b"run.sh\n" if root.version else wrapped
    assert (ww.tmp / "read" / "run.sh").read_bytes() == expected_content
    assert (ww.tmp / "read" / "plain").read_bytes() == b"plain\n"
    # ww decides itself what may be executed.
    assert not os.access(ww.tmp / "read" / "run.sh", os.X_OK)

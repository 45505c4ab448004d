"""Importing files and directories."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.content import hamt, unixfs
from runner.content.blockstore import Blockstore
from runner.content.importer import (
    KUBO_CIDV1,
    MAX_DIRECTORY_DEPTH,
    UNIXFS_V0_2015,
    UNIXFS_V1_2025,
    Profile,
    import_path,
)
from runner.content.resolver import resolve_file
from runner.errors import WwError
from tests.content.dags import MemoryStore

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "data" / "cid-vectors.json").read_text())["cases"]
PROFILES = {
    "unixfs-v0-2015": UNIXFS_V0_2015,
    "kubo-cidv1": KUBO_CIDV1,
    "unixfs-v1-2025": UNIXFS_V1_2025,
}
# IPIP-499 has this fixture in both of its profiles.
HELLO_WORLD_V0 = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
HELLO_WORLD_V1 = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


def create(case: dict, path: Path) -> None:  # type: ignore[type-arg]
    """Write the file or the directory of a vector."""
    import hashlib

    if case["kind"] == "file":
        content = hashlib.shake_128(case["seed"].encode()).digest(case["size"])
        assert hashlib.sha256(content).hexdigest() == case["sha256"]
        path.write_bytes(content)
        return
    path.mkdir()
    entries = case["entries"]
    if isinstance(entries, dict):
        for number in range(entries["count"]):
            name = entries["format"] % number
            (path / name).write_text(name + "\n")
        return
    for entry in entries:
        place = path / entry["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if entry["type"] == "dir":
            place.mkdir(exist_ok=True)
        else:
            place.write_text(entry["text"])


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_cids_and_blocks_are_those_of_other_implementations(
    case: dict,  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    create(case, source)
    for name, profile in PROFILES.items():
        store = MemoryStore()
        cid = import_path(store, str(source), profile=profile, hidden=True)
        assert str(cid) == case["cids"][name], name
        assert len(store.blocks) == case["blocks"][name], name
    if case["kind"] == "file":
        source.unlink()  # pytest keeps the directories of the last three runs


def test_the_fixture_of_ipip_499(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("hello world")
    store = MemoryStore()
    found = {str(import_path(store, str(source), profile=p)) for p in PROFILES.values()}
    assert found & {HELLO_WORLD_V0, HELLO_WORLD_V1}


def test_the_cid_version_chooses_the_profile_of_kubo(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    store = MemoryStore()
    for version, profile in ((0, UNIXFS_V0_2015), (1, KUBO_CIDV1)):
        cid = import_path(store, str(source), cid_version=version)
        assert cid.version == version
        assert cid == import_path(store, str(source), profile=profile)
    assert import_path(store, str(source)).version == 0


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 400), chunk=st.integers(16, 40), width=st.integers(2, 4), raw=...)
def test_any_file_comes_back_whatever_the_shape_of_its_tree(
    tmp_path_factory: pytest.TempPathFactory, size: int, chunk: int, width: int, raw: bool
) -> None:
    source = tmp_path_factory.mktemp("any") / "source"
    content = os.urandom(size)
    source.write_bytes(content)
    store = MemoryStore()
    cid = import_path(store, str(source), profile=Profile(1, raw, chunk, width, False))
    file = resolve_file(store, f"/ipfs/{cid}")
    assert file.size == size
    assert b"".join(file.chunks()) == content


def test_all_leaves_of_a_file_are_at_one_depth(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(16 * 10))  # 10 leaves, 3 a node: 9 + 1, a chain on the right
    store = MemoryStore()
    cid = import_path(store, str(source), profile=Profile(1, True, 16, 3, False))
    depths = set()
    pending = [(cid, 0)]
    while pending:
        cid, depth = pending.pop()
        if cid.codec == 0x55:
            depths.add(depth)
            continue
        links, _ = unixfs.decode_node(store.get(cid))
        pending += [(link.cid, depth + 1) for link in links]
    assert depths == {3}


def names_in(store: MemoryStore, path: Path, **options: bool) -> set[str]:
    links, _ = unixfs.decode_node(store.get(import_path(store, str(path), **options)))  # type: ignore[arg-type]
    return {link.name for link in links}


class TestDirectories:
    def test_hidden_entries_are_left_out_as_kubo_does_it(self, tmp_path: Path) -> None:
        (tmp_path / ".hidden").write_text("x")
        (tmp_path / ".git").mkdir()
        (tmp_path / "seen").write_text("x")
        store = MemoryStore()
        assert names_in(store, tmp_path) == {"seen"}
        assert names_in(store, tmp_path, hidden=True) == {"seen", ".hidden", ".git"}

    def test_the_root_itself_may_be_hidden(self, tmp_path: Path) -> None:
        hidden = tmp_path / ".hidden"
        hidden.mkdir()
        (hidden / "a").write_text("x")
        assert names_in(MemoryStore(), hidden) == {"a"}

    def test_a_symbolic_link_is_stored_and_never_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"what the file holds")
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "file").symlink_to("../outside/secret")
        (tree / "dir").symlink_to("../outside")
        (tree / "loop").symlink_to("loop")
        store = MemoryStore()
        links, _ = unixfs.decode_node(store.get(import_path(store, str(tree))))
        targets = {}
        for link in links:
            children, data = unixfs.decode_node(store.get(link.cid))
            assert (data.type, children) == (unixfs.SYMLINK, ())
            targets[link.name] = data.data
        assert targets == {"file": b"../outside/secret", "dir": b"../outside", "loop": b"loop"}
        assert not any(b"what the file holds" in block for block in store.blocks.values())

    def test_a_link_at_the_root_is_stored_too(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("target")
        store = MemoryStore()
        cid = import_path(store, str(tmp_path / "link"))
        assert unixfs.decode_node(store.get(cid))[1].data == b"target"

    def test_modes_and_times_do_not_change_the_cid(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("x")
        before = import_path(MemoryStore(), str(tmp_path))
        file.chmod(0o700)
        os.utime(file, (1, 1))
        assert import_path(MemoryStore(), str(tmp_path)) == before

    def test_special_files_are_refused_by_path(self, tmp_path: Path) -> None:
        tree = tmp_path / "t"
        tree.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tree / "socket"))
            with pytest.raises(WwError, match=r"t/socket: not a file"):
                import_path(MemoryStore(), str(tree))
        (tree / "socket").unlink()
        os.mkfifo(tree / "fifo")
        with pytest.raises(WwError, match=r"t/fifo: not a file"):
            import_path(MemoryStore(), str(tree))
        with pytest.raises(WwError, match="/dev/null: not a file"):
            import_path(MemoryStore(), "/dev/null")

    def test_a_name_that_is_not_utf_8_is_refused_on_one_printable_line(
        self, tmp_path: Path
    ) -> None:
        with open(os.fsencode(tmp_path) + b"/\xff\n", "wb"):
            pass
        with pytest.raises(WwError, match="not UTF-8") as caught:
            import_path(MemoryStore(), str(tmp_path))
        assert str(caught.value).isprintable()

    def test_a_path_that_is_not_there_is_refused_by_path(self, tmp_path: Path) -> None:
        with pytest.raises(WwError, match="missing: cannot read: No such file"):
            import_path(MemoryStore(), str(tmp_path / "missing"))

    def test_a_tree_that_is_too_deep_is_refused(self, tmp_path: Path) -> None:
        deep = tmp_path
        for _ in range(MAX_DIRECTORY_DEPTH + 1):
            deep /= "d"
        deep.mkdir(parents=True)
        with pytest.raises(WwError, match="directories deep"):
            import_path(MemoryStore(), str(tmp_path))

    def test_a_directory_is_sharded_above_the_threshold_not_at_it(self, tmp_path: Path) -> None:
        # 34 bytes of CID and 30 of name are 64 a link: 4096 links are exactly 262144 bytes.
        for number in range(4096):
            (tmp_path / f"n{number:029d}").touch()
        store = MemoryStore()
        _, data = unixfs.decode_node(store.get(import_path(store, str(tmp_path))))
        assert data.type == unixfs.DIRECTORY
        (tmp_path / "x").touch()
        links, data = unixfs.decode_node(store.get(import_path(store, str(tmp_path))))
        assert data.type == unixfs.HAMT_SHARD
        assert len(list(hamt.entries(links, data, store.get))) == 4097

    def test_the_order_in_the_directory_does_not_matter(self, tmp_path: Path) -> None:
        for name, order in (("one", 1), ("two", -1)):
            (tmp_path / name).mkdir()
            for number in list(range(50))[::order]:
                (tmp_path / name / str(number)).touch()
        one, two = (import_path(MemoryStore(), str(tmp_path / name)) for name in ("one", "two"))
        assert one == two


def test_a_damaged_block_is_repaired_by_importing_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1_000_000))
    store = Blockstore(str(tmp_path / "store"))
    cid = import_path(store, str(source))
    link = unixfs.decode_node(store.get(cid))[0][2]
    with open(store.path(link.cid), "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(WwError, match=f"{link.cid}: damaged"):
        b"".join(resolve_file(store, f"/ipfs/{cid}").chunks())
    assert import_path(store, str(source)) == cid
    assert b"".join(resolve_file(store, f"/ipfs/{cid}").chunks()) == source.read_bytes()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(200 << 20)
    code = (
        "import resource, sys\n"
        "from runner.content.blockstore import Blockstore\n"
        "from runner.content.importer import import_path\n"
        "from runner.content.resolver import resolve_file\n"
        "store = Blockstore(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "cid = import_path(store, sys.argv[2])\n"
        "with open('/dev/null', 'wb') as null:\n"
        "    resolve_file(store, f'/ipfs/{cid}').copy_to(null.fileno())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store"), str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(grown) < 16 * 1024  # KiB

"""Garbage collection: what goes, what stays, and who waits for whom."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content import blockstore, gc, importer, pins, unixfs
from runner.content.blockstore import Blockstore
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.dagpb import Link
from runner.content.gc import collect
from runner.content.importer import Profile, import_path
from runner.content.resolver import resolve_file
from runner.errors import EXIT_FAILURE, WwError
from tests.content.dags import block_files, put_file, put_node, put_raw

ROOT = Path(__file__).parents[2]
SMALL = Profile(0, False, 16, 3, False)  # files of many blocks, in levels


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def put_blocks(home: str, *contents: bytes) -> list[Cid]:
    with Blockstore(home) as store:
        return [put_raw(store, content) for content in contents]


def is_there(home: str, cid: Cid) -> bool:
    with Blockstore(home) as store:
        return store.has(cid)


def set_use(home: str, cid: Cid, when: int) -> None:
    os.utime(Blockstore(home).path(cid), (0, when))


class TestWhatGoes:
    def test_without_a_store_nothing_is_removed_or_made(self, home: str) -> None:
        assert collect(home) == ([], 0, 0)
        assert not os.path.exists(home)

    def test_everything_goes_that_is_not_pinned(self, home: str) -> None:
        kept, gone = put_blocks(home, b"kept", b"gone")
        pins.add(home, kept)
        done = collect(home)
        assert [block.cid for block in done.removed] == [gone]
        assert (done.removed_size, done.kept, done.kept_size) == (4, 1, 4)
        assert is_there(home, kept)
        assert not is_there(home, gone)

    def test_the_least_recently_used_goes_first_and_no_more_than_must(self, home: str) -> None:
        a, b, c, d = put_blocks(home, b"aaaa", b"bbbb", b"cccc", b"dddd")
        for cid, when in ((a, 40), (b, 10), (c, 30), (d, 20)):
            set_use(home, cid, when)
        pins.add(home, b)
        assert [block.cid for block in collect(home, max_size=16).removed] == []
        assert [block.cid for block in collect(home, max_size=15).removed] == [d]
        assert [block.cid for block in collect(home, max_size=8).removed] == [c]
        done = collect(home, max_size=3)
        assert [block.cid for block in done.removed] == [a]
        assert done.kept_size == 4  # b, which is pinned, and more than allowed

    def test_the_order_is_that_of_use_whatever_the_names_are(self, home: str) -> None:
        cids = put_blocks(home, *(b"block %d" % number for number in range(12)))
        for when, cid in enumerate(cids):
            set_use(home, cid, 1000 - when)
        assert [block.cid for block in collect(home, dry_run=True).removed] == cids[::-1]

    def test_reading_a_file_keeps_it_longer(self, home: str) -> None:
        read, other = put_blocks(home, b"read", b"else")
        set_use(home, read, 10)
        set_use(home, other, 20)
        with Blockstore(home) as store:
            store.get(read)
        collect(home, max_size=4)
        assert is_there(home, read)
        assert not is_there(home, other)

    def test_a_collection_itself_is_no_use(self, home: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(os.urandom(100))
        with Blockstore(home) as store:
            cid = import_path(store, str(source), profile=SMALL)
        pins.add(home, cid)
        for path in block_files(home):
            os.utime(path, (0, 10))
        collect(home)
        assert {os.stat(path).st_mtime for path in block_files(home)} == {10}

    def test_a_dry_run_tells_the_same_and_removes_nothing(self, home: str) -> None:
        cids = put_blocks(home, b"one", b"two")
        done = collect(home, dry_run=True)
        assert {block.cid for block in done.removed} == set(cids)
        assert all(is_there(home, cid) for cid in cids)
        assert collect(home) == done

    def test_files_that_are_no_blocks_stay(self, home: str) -> None:
        (cid,) = put_blocks(home, b"block")
        directory = Path(Blockstore(home).path(cid)).parent
        strange = [
            directory / "notes.txt",
            directory / "NOCID.data",
            Path(home, "blocks", "x.data"),
        ]
        for path in strange:
            path.write_bytes(b"strange")
        collect(home)
        assert all(path.exists() for path in strange)
        assert Path(home, "blocks", "SHARDING").exists()

    def test_a_block_that_cannot_be_removed_is_an_error(
        self, home: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (cid,) = put_blocks(home, b"block")

        def denied(path: str) -> None:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "unlink", denied)
        with pytest.raises(WwError, match="cannot be removed: Permission denied"):
            collect(home)
        assert is_there(home, cid)


class TestPins:
    def test_a_pin_keeps_everything_below_it(self, home: str, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "large").write_bytes(os.urandom(500))
        (tree / "sub" / "link").symlink_to("nowhere")
        for number in range(40):
            (tree / "sub" / f"{number}").write_bytes(b"%d" % number)
        before = importer.SHARD_THRESHOLD
        try:
            importer.SHARD_THRESHOLD = 500  # so that sub is a sharded directory
            with Blockstore(home) as store:
                root = import_path(store, str(tree), profile=SMALL)
        finally:
            importer.SHARD_THRESHOLD = before
        blocks = block_files(home)
        (other,) = put_blocks(home, b"something else")
        pins.add(home, root)
        assert [block.cid for block in collect(home).removed] == [other]
        assert block_files(home) == blocks
        with Blockstore(home) as store:
            assert b"".join(resolve_file(store, f"/ipfs/{root}/large").chunks()) == (
                (tree / "large").read_bytes()
            )
        pins.remove(home, root)
        collect(home)
        assert block_files(home) == []

    def test_what_two_pins_share_stays_with_the_second(self, home: str) -> None:
        with Blockstore(home) as store:
            leaf = put_raw(store, b"shared")
            one = put_file(store, [(leaf, 6)])
            two = put_file(store, [(leaf, 6), (leaf, 6)])
        pins.add(home, one)
        pins.add(home, two)
        pins.remove(home, one)
        collect(home)
        assert [is_there(home, cid) for cid in (leaf, one, two)] == [True, False, True]

    def test_a_block_pinned_as_raw_and_as_a_node_keeps_what_the_node_needs(self, home: str) -> None:
        with Blockstore(home) as store:
            leaf = put_raw(store, b"leaf")
            node = put_file(store, [(leaf, 4)])
        pins.add(home, Cid(1, RAW, node.multihash))
        pins.add(home, node)
        collect(home)
        assert is_there(home, leaf)

    def test_a_pin_made_while_the_others_were_followed_is_kept_too(
        self, home: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Blockstore(home) as store:
            leaf = put_raw(store, b"leaf")
            node = put_file(store, [(leaf, 4)])
        alone = gc._alone

        @contextlib.contextmanager
        def late(*arguments: object) -> Iterator[None]:
            pins.add(home, node)
            with alone(*arguments):  # type: ignore[arg-type]
                yield

        monkeypatch.setattr(gc, "_alone", late)
        assert collect(home).removed == []
        assert is_there(home, leaf)

    def test_nothing_goes_if_a_node_of_a_pin_is_missing_or_damaged(self, home: str) -> None:
        with Blockstore(home) as store:
            leaf = put_raw(store, b"leaf")
            node = put_file(store, [(leaf, 4)])
            root = put_node(store, [Link(node, "a", 0)], unixfs.Data(unixfs.DIRECTORY))
            path = store.path(node)
            store.hold()
        pins.add(home, root)
        Path(path).write_bytes(b"damaged")
        for what in ("damaged", "not in the store"):
            with pytest.raises(WwError, match=what) as caught:
                collect(home)
            # A collection removes nothing that is pinned, damaged or not.
            assert what != "damaged" or Path(path).read_bytes() == b"damaged"
            Path(path).unlink(missing_ok=True)
            assert caught.value.code == EXIT_FAILURE
            assert f"pin /ipfs/{root}" in str(caught.value)
            assert str(node) in str(caught.value)
            assert is_there(home, leaf)

    def test_a_missing_leaf_of_a_pin_is_in_nobodys_way(self, home: str) -> None:
        with Blockstore(home) as store:
            leaf = put_raw(store, b"leaf")
            node = put_file(store, [(leaf, 4)])
            os.unlink(store.path(leaf))
        pins.add(home, node)
        (other,) = put_blocks(home, b"other")
        assert [block.cid for block in collect(home).removed] == [other]
        assert is_there(home, node)

    def test_a_hostile_dag_is_followed_in_the_time_of_its_distinct_blocks(self, home: str) -> None:
        with Blockstore(home) as store:
            cid = put_raw(store, b"x")
            for _ in range(40):  # 100 ** 40 paths
                cid = put_node(store, [Link(cid, "", 0)] * 100, unixfs.Data(unixfs.FILE))
        pins.add(home, cid)
        assert collect(home).kept == 41

    def test_a_malformed_node_is_named(self, home: str) -> None:
        with Blockstore(home) as store:
            cid = Cid.of(b"no node", codec=DAG_PB)
            store.put(cid, b"no node")
        pins.add(home, cid)
        with pytest.raises(WwError, match="malformed"):
            collect(home)
        assert is_there(home, cid)


HOLDER = """
import sys
from runner.content.blockstore import Blockstore
store = Blockstore(sys.argv[1])
store.hold()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(home: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses the store until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, home],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


class TestLock:
    def test_a_store_in_use_is_left_alone_and_its_user_is_named(self, home: str) -> None:
        (cid,) = put_blocks(home, b"block")
        with holder(home) as process:
            with pytest.raises(WwError, match="the store is in use by") as caught:
                collect(home)
            assert f"process {process.pid} ({sys.executable} -c" in caught.value.what
            assert "\n" not in str(caught.value)
            assert is_there(home, cid)
            assert len(collect(home, dry_run=True).removed) == 1  # which removes nothing
        assert len(collect(home).removed) == 1

    def test_it_waits_for_the_user_to_be_done(
        self, home: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_blocks(home, b"block")
        user = Blockstore(home)
        user.hold()
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                user.close()

        monkeypatch.setattr(time, "sleep", sleep)
        assert len(collect(home, wait=60).removed) == 1
        assert len(waits) == 3

    @pytest.mark.parametrize("use", ["get", "has", "put", "put again"])
    def test_every_use_keeps_what_is_there_until_the_store_is_closed(
        self, home: str, use: str
    ) -> None:
        (cid,) = put_blocks(home, b"block")
        store = Blockstore(home)
        match use:
            case "get":
                store.get(cid)
            case "has":
                store.has(cid)
            case "put":
                put_raw(store, b"new")
            case "put again":
                put_raw(store, b"block")
        with pytest.raises(WwError, match="in use"):
            collect(home)
        store.close()
        store.close()
        assert collect(home).removed

    def test_a_forgotten_store_is_closed(self, home: str) -> None:
        (cid,) = put_blocks(home, b"block")
        Blockstore(home).get(cid)
        assert collect(home).removed

    def test_the_first_use_of_a_new_store_keeps_too(self, home: str) -> None:
        store = Blockstore(home)
        put_raw(store, b"first")
        with pytest.raises(WwError, match="in use"):
            collect(home)
        store.close()

    def test_a_block_found_in_a_store_that_another_has_just_made_is_kept(
        self, home: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has_bytes = blockstore._has_bytes

        def found(path: str, data: bytes) -> bool:
            monkeypatch.undo()
            put_blocks(home, b"block")
            return has_bytes(path, data)

        monkeypatch.setattr(blockstore, "_has_bytes", found)
        store = Blockstore(home)
        cid = put_raw(store, b"block")
        with pytest.raises(WwError, match="in use"):
            collect(home)
        assert is_there(home, cid)
        store.close()

    def test_a_closed_store_can_be_used_again(self, home: str) -> None:
        (cid,) = put_blocks(home, b"block")
        store = Blockstore(home)
        store.get(cid)
        store.close()
        store.get(cid)
        with pytest.raises(WwError, match="in use"):
            collect(home)
        store.close()

    def test_an_import_waits_until_a_collection_is_done(self, home: str, tmp_path: Path) -> None:
        put_blocks(home, b"block")
        source = tmp_path / "source"
        source.write_bytes(b"content")
        before = block_files(home)
        script = (
            "import sys; from runner.content.blockstore import Blockstore; "
            "from runner.content.importer import import_path; "
            "print(import_path(Blockstore(sys.argv[1]), sys.argv[2]))"
        )
        with gc._alone(home, 0):
            process = subprocess.Popen(
                [sys.executable, "-c", script, home, str(source)], cwd=ROOT, stdout=subprocess.PIPE
            )
            deadline = time.monotonic() + 60
            while not waits_for_a_lock(process.pid):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert block_files(home) == before
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert is_there(home, Cid.parse(out.decode().strip()))


def waits_for_a_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any(f"-> FLOCK ADVISORY READ {pid} " in " ".join(line.split()) + " " for line in lines)

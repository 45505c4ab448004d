"""The embedded blockstore on disk."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.content import blockstore, importer
from runner.content.blockstore import MAX_BLOCK_SIZE, Blockstore, DamagedBlock, store_home
from runner.content.cid import DAG_PB, RAW, Cid
from runner.errors import EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from tests.content.dags import block_files

DATA = b"a block"
CID = Cid.of(DATA, codec=RAW)
ROOT = Path(__file__).parents[2]

IMPORT = """
import sys
from runner.content.blockstore import Blockstore
from runner.content.importer import import_path
print(import_path(Blockstore(sys.argv[1]), sys.argv[2]))
"""


def start_import(home: Path, source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(home), str(source)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def store(tmp_path: Path) -> Blockstore:
    return Blockstore(str(tmp_path / "store"))


def replace(path: str, data: bytes) -> None:
    """Change a file of the store behind its back."""
    with open(path, "wb") as file:
        file.write(data)


class TestHome:
    def test_ww_home_comes_first(self) -> None:
        environ = {"WW_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}
        assert store_home(environ) == "/a"

    def test_then_the_data_directory_then_the_home_directory(self) -> None:
        assert store_home({"XDG_DATA_HOME": "/b", "HOME": "/c"}) == "/b/ww"
        assert store_home({"HOME": "/c"}) == "/c/.local/share/ww"

    def test_an_empty_variable_counts_as_unset(self) -> None:
        assert store_home({"WW_HOME": "", "XDG_DATA_HOME": "", "HOME": "/c"}) == (
            "/c/.local/share/ww"
        )

    def test_a_relative_data_directory_is_ignored_as_xdg_says(self) -> None:
        assert store_home({"XDG_DATA_HOME": "b", "HOME": "/c"}) == "/c/.local/share/ww"

    def test_a_relative_ww_home_is_an_error(self) -> None:
        with pytest.raises(WwError, match="not an absolute path") as caught:
            store_home({"WW_HOME": "a"})
        assert caught.value.code == EXIT_USAGE

    def test_no_home_at_all_is_an_error_that_names_the_variable_to_set(self) -> None:
        with pytest.raises(WwError, match="set WW_HOME"):
            store_home({})


class TestLayout:
    def test_a_block_is_where_flatfs_has_it(self, store: Blockstore) -> None:
        store.put(CID, DATA)
        # base32 of the multihash, which a CIDv1 in base32upper has after its first two bytes
        name = os.path.basename(store.path(CID))
        assert name.startswith("CIQ")
        assert store.path(CID) == f"{store.home}/blocks/{name[-8:-6]}/{name}"
        assert Path(store.path(CID)).read_bytes() == DATA

    def test_the_layout_is_written_down_as_kubo_does_it(self, store: Blockstore) -> None:
        store.put(CID, DATA)
        sharding = Path(store.home, "blocks", "SHARDING").read_text()
        assert sharding == "/repo/flatfs/shard/v1/next-to-last/2\n"

    def test_a_store_of_another_layout_is_refused(self, store: Blockstore) -> None:
        os.makedirs(os.path.join(store.home, "blocks"))
        replace(os.path.join(store.home, "blocks", "SHARDING"), b"/repo/flatfs/shard/v1/prefix/5\n")
        for use in (lambda: store.get(CID), lambda: store.put(CID, DATA)):
            with pytest.raises(WwError, match="layout is not /repo/flatfs"):
                use()

    @pytest.mark.parametrize("left", [b"", bytes(38)], ids=["nothing", "zeros"])
    def test_a_layout_that_a_loss_of_power_left_empty_is_written_again(
        self, store: Blockstore, left: bytes
    ) -> None:
        store.put(CID, DATA)
        replace(os.path.join(store.home, "blocks", "SHARDING"), left)
        again = Blockstore(store.home)
        assert again.get(CID) == DATA
        again.put(Cid.of(b"other", codec=RAW), b"other")
        assert Path(store.home, "blocks", "SHARDING").read_text().endswith("next-to-last/2\n")

    def test_directories_and_files_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        store = Blockstore(str(tmp_path / "new" / "store"))
        store.put(CID, DATA)
        for directory, _, files in os.walk(tmp_path / "new"):
            assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
            for name in files:
                assert stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) == 0o600

    def test_versions_and_codecs_of_one_multihash_share_the_block(self, store: Blockstore) -> None:
        store.put(CID, DATA)
        assert store.get(Cid.of(DATA, codec=DAG_PB, version=0)) == DATA

    def test_nothing_is_created_by_reading(self, store: Blockstore) -> None:
        assert not store.has(CID)
        with pytest.raises(WwError):
            store.get(CID)
        assert not os.path.exists(store.home)


class TestReading:
    def test_a_block_comes_back(self, store: Blockstore) -> None:
        assert not store.has(CID)
        store.put(CID, DATA)
        assert store.has(CID)
        assert store.get(CID) == DATA

    def test_a_missing_block_is_named_with_the_store_and_its_own_exit_code(
        self, store: Blockstore
    ) -> None:
        with pytest.raises(WwError) as caught:
            store.get(CID)
        assert caught.value.code == EXIT_NOT_FOUND
        assert str(CID) in str(caught.value)
        assert store.home in str(caught.value)

    def test_an_identity_cid_is_its_own_block(self, store: Blockstore) -> None:
        cid = Cid.from_bytes(b"\x01\x55\x00\x04cell")
        assert store.has(cid)
        assert store.get(cid) == b"cell"
        store.put(cid, b"cell")
        assert not os.path.exists(store.home)

    @pytest.mark.parametrize(
        "damage",
        [
            b"b block",
            DATA[:-1],
            b"",
            DATA + b"\0",
            b"another block",
            b"x" * (MAX_BLOCK_SIZE + 1),
        ],
        ids=["flipped", "truncated", "empty", "longer", "swapped", "huge"],
    )
    def test_a_damaged_block_is_refused_named_and_removed(
        self, store: Blockstore, damage: bytes
    ) -> None:
        store.put(CID, DATA)
        replace(store.path(CID), damage)
        with pytest.raises(WwError) as caught:
            store.get(CID)
        assert caught.value.code == EXIT_FAILURE
        assert str(CID) in str(caught.value)
        assert store.path(CID) in str(caught.value)
        assert "it has been removed" in caught.value.what
        assert "export the content again" in caught.value.hint
        assert not store.has(CID)
        with pytest.raises(WwError, match="not in the store"):
            store.get(CID)
        store.put(CID, DATA)
        assert store.get(CID) == DATA

    def test_a_damaged_block_is_repaired_by_a_put_before_anybody_reads_it(
        self, store: Blockstore
    ) -> None:
        store.put(CID, DATA)
        replace(store.path(CID), b"b block")
        store.put(CID, DATA)
        assert store.get(CID) == DATA

    def test_a_block_that_was_repaired_while_it_was_found_damaged_is_not_removed(
        self, store: Blockstore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(CID, DATA)
        replace(store.path(CID), b"b block")
        read = blockstore._read_block

        def repaired_after(path: str, cid: Cid, *, used: bool) -> bytes | None:
            found = read(path, cid, used=used)
            Blockstore(store.home).put(CID, DATA)
            return found

        monkeypatch.setattr(blockstore, "_read_block", repaired_after)
        assert store.get(CID) == DATA
        assert Path(store.path(CID)).read_bytes() == DATA

    def test_what_cannot_be_removed_is_named_all_the_same(self, store: Blockstore) -> None:
        store.put(CID, DATA)
        os.unlink(store.path(CID))
        os.makedirs(os.path.join(store.path(CID), "full"))
        with pytest.raises(DamagedBlock, match="cannot be removed") as caught:
            store.get(CID)
        assert store.path(CID) in str(caught.value)

    def test_a_symbolic_link_or_a_fifo_in_place_of_a_block_is_refused_and_replaced(
        self, store: Blockstore, tmp_path: Path
    ) -> None:
        store.put(CID, DATA)
        path = store.path(CID)
        replace(str(tmp_path / "elsewhere"), DATA)
        for kind in ("link", "fifo"):
            os.unlink(path)
            if kind == "link":
                os.symlink(tmp_path / "elsewhere", path)
            else:
                os.mkfifo(path)
            with pytest.raises(DamagedBlock, match="it has been removed"):
                store.get(CID)
            store.put(CID, DATA)
            assert store.get(CID) == DATA
        assert (tmp_path / "elsewhere").read_bytes() == DATA


class TestLastUse:
    HOUR = 3600

    @pytest.fixture
    def set_use(self, store: Blockstore) -> Callable[[float], float]:
        def set_use(age: float) -> float:
            store.put(CID, DATA)
            os.utime(store.path(CID), (0, time.time() - age))
            return os.stat(store.path(CID)).st_mtime

        return set_use

    def test_reading_and_putting_an_old_block_set_its_time(
        self, store: Blockstore, set_use: Callable[[float], float]
    ) -> None:
        for use in (lambda: store.get(CID), lambda: store.put(CID, DATA)):
            for age in (2 * self.HOUR, -2 * self.HOUR):  # also one that a wrong clock has made
                before = set_use(age)
                use()
                assert abs(os.stat(store.path(CID)).st_mtime - before) > self.HOUR

    def test_a_time_of_this_hour_is_left_so_that_most_uses_write_nothing(
        self, store: Blockstore, set_use: Callable[[float], float]
    ) -> None:
        before = set_use(self.HOUR / 2)
        store.get(CID)
        store.put(CID, DATA)
        assert os.stat(store.path(CID)).st_mtime == before

    def test_a_store_that_cannot_be_written_is_read_all_the_same(
        self,
        store: Blockstore,
        set_use: Callable[[float], float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        set_use(2 * self.HOUR)

        def denied(_file: int) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "utime", denied)
        assert store.get(CID) == DATA


class TestWriting:
    def test_other_bytes_than_the_cid_names_are_refused(self, store: Blockstore) -> None:
        with pytest.raises(WwError, match="the bytes are not those that the CID names"):
            store.put(CID, b"b block")
        with pytest.raises(WwError, match="the bytes are not those that the CID names"):
            store.put(Cid.from_bytes(b"\x01\x55\x00\x04cell"), b"call")
        assert not os.path.exists(store.home)

    def test_what_the_caller_has_verified_wrongly_is_refused_when_it_is_read(
        self, store: Blockstore
    ) -> None:
        store.put(CID, b"b block", verified=True)
        with pytest.raises(DamagedBlock):
            store.get(CID)

    def test_a_block_that_is_there_is_not_written_again(self, store: Blockstore) -> None:
        store.put(CID, DATA)
        before = os.stat(store.path(CID))
        store.put(CID, DATA)
        after = os.stat(store.path(CID))
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_a_view_of_a_buffer_is_stored(self, store: Blockstore) -> None:
        store.put(CID, memoryview(bytearray(DATA)))
        store.put(CID, memoryview(bytearray(DATA)))
        assert store.get(CID) == DATA

    def test_the_largest_block_fits_and_a_larger_one_is_refused(self, store: Blockstore) -> None:
        data = bytes(MAX_BLOCK_SIZE)
        cid = Cid.of(data, codec=RAW)
        store.put(cid, data)
        assert store.get(cid) == data
        with pytest.raises(WwError, match="larger than"):
            store.put(CID, data + b"\0")

    def test_sync_waits_for_each_new_block_and_its_directory(
        self, store: Blockstore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        monkeypatch.setattr(
            os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        store.put(CID, DATA)
        synced.clear()
        store.sync()
        block = store.path(CID)
        assert synced.index(block) < synced.index(os.path.dirname(block))
        assert {block, os.path.dirname(block), f"{store.home}/blocks"} <= set(synced)
        synced.clear()
        store.sync()
        assert not synced

    def test_a_place_that_cannot_be_a_store_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for home in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/store")):
            with pytest.raises(WwError) as caught:
                Blockstore(str(home)).put(CID, DATA)
            assert str(home) in caught.value.where
            assert "cannot create or write the store" in caught.value.what
            assert "WW_HOME" in caught.value.hint
            assert "\n" not in str(caught.value)

    def test_a_store_that_is_not_writable_is_one_clear_line(
        self, store: Blockstore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(path: str, _mode: int) -> None:
            raise PermissionError(13, "Permission denied", path)

        # Root, who may run this test, is refused nothing by modes.
        monkeypatch.setattr(os, "mkdir", denied)
        with pytest.raises(WwError, match="Permission denied") as caught:
            store.put(CID, DATA)
        assert caught.value.where == store.home
        assert "WW_HOME" in caught.value.hint

    def test_a_full_disk_leaves_no_temporary_file(
        self, store: Blockstore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(CID, DATA)

        def full(_fd: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        other = Cid.of(b"other", codec=RAW)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(WwError, match="No space left on device"):
                store.put(other, b"other")
        assert not os.listdir(os.path.join(store.home, "blocks", ".temp"))
        assert not store.has(other)


class TestLeftovers:
    def test_the_leftovers_of_a_dead_writer_are_removed_by_the_next_one(
        self, store: Blockstore
    ) -> None:
        store.put(CID, DATA)
        temporary = os.path.join(store.home, "blocks", ".temp")
        replace(os.path.join(temporary, "0123456789abcdef"), b"half of a blo")
        # What a person or a backup has made there is in nobody's way.
        os.mkdir(os.path.join(temporary, "directory"))
        Blockstore(store.home).put(Cid.of(b"other", codec=RAW), b"other")
        assert os.listdir(temporary) == ["directory"]

    def test_the_temporary_file_of_a_living_writer_stays(self, store: Blockstore) -> None:
        import fcntl

        store.put(CID, DATA)
        temporary = os.path.join(store.home, "blocks", ".temp")
        living = os.path.join(temporary, "0123456789abcdef")
        replace(living, b"half of a blo")
        lock = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            Blockstore(store.home).put(Cid.of(b"other", codec=RAW), b"other")
            assert os.path.exists(living)
        finally:
            os.close(lock)


class TestProcesses:
    def test_writers_at_once_write_one_whole_store(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(os.urandom(5_000_000))
        home = tmp_path / "store"
        writers = [start_import(home, source) for _ in range(6)]
        outputs = [writer.communicate(timeout=120)[0] for writer in writers]
        assert [writer.returncode for writer in writers] == [0] * 6
        assert len(set(outputs)) == 1
        check_whole(home)
        assert not os.listdir(home / "blocks" / ".temp")

    def test_a_writer_killed_at_any_moment_leaves_only_whole_blocks(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        with source.open("wb") as file:
            for _ in range(40):
                file.write(os.urandom(1 << 20))
        home = tmp_path / "store"
        blocks = home / "blocks"
        interrupted = 0
        # Each round kills the writer a little further into the file.
        for wanted in (1, 10, 30, 60, 100):
            writer = start_import(home, source)
            try:
                deadline = time.monotonic() + 60
                while writer.poll() is None and len(block_files(home)) < wanted:
                    assert time.monotonic() < deadline
            finally:
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
            interrupted += writer.returncode == -signal.SIGKILL
            check_whole(home)
            assert len(os.listdir(blocks / ".temp")) <= 1
        assert interrupted
        cid = importer.import_path(Blockstore(str(home)), str(source))
        assert not os.listdir(blocks / ".temp")
        check_whole(home)
        assert Blockstore(str(home)).has(cid)


def check_whole(home: Path) -> None:
    """Every file under a block's name has the bytes that the name stands for."""
    import base64
    import hashlib

    for path in block_files(home):
        name = os.path.basename(path).removesuffix(".data")
        digest = hashlib.sha256(Path(path).read_bytes()).digest()
        assert base64.b32decode(name + "=" * (-len(name) % 8)) == b"\x12\x20" + digest

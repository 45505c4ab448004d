"""`ww store` and `ww export`, as a user types them."""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from runner.content.blockstore import Blockstore
from runner.content.cid import Cid
from tests.conftest import EXAMPLES, Ww
from tests.content.dags import block_files

HELLO = EXAMPLES / "hello" / "hello.wasm"
# What Kubo's `ipfs add`, `ipfs add --cid-version 1` and IPIP-499 print for "hello world".
HELLO_WORLD = {
    (): "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
    ("--profile", "unixfs-v0-2015"): "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
    ("--cid-version", "1"): "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
    ("--profile", "unixfs-v1-2025"): "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
}


def good(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode()


def bad(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    assert done.returncode == code, (done.stdout, done.stderr)
    error = done.stderr.decode()
    assert error.startswith("ww: error: ")
    assert error.count("\n") == 1
    return error


def damage(ww: Ww, cid: Cid) -> Path:
    path = Path(Blockstore(str(ww.home)).path(cid))
    path.write_bytes(b"damaged")
    return path


def root_of(address: str) -> Cid:
    return Cid.parse(address.strip().removeprefix("/ipfs/"))


class TestExport:
    def test_a_file_and_stdin_have_the_cids_of_other_implementations(self, ww: Ww) -> None:
        file = ww.file("file", b"hello world")
        for flags, cid in HELLO_WORLD.items():
            assert good(ww.run("export", *flags, file)) == f"/ipfs/{cid}\n"
        assert good(ww.run("export", "-", stdin=b"hello world")) == f"/ipfs/{HELLO_WORLD[()]}\n"
        assert good(ww.run("export", "-", stdin=file)) == f"/ipfs/{HELLO_WORLD[()]}\n"
        ww.file("-", b"hello world")
        assert good(ww.run("export", "./-")) == f"/ipfs/{HELLO_WORLD[()]}\n"

    def test_a_large_stream_has_the_cid_of_the_file(self, ww: Ww) -> None:
        data = os.urandom(1_500_000)
        file = ww.file("file", data)
        assert good(ww.run("export", "-", stdin=data)) == good(ww.run("export", file))

    def test_a_stream_that_others_have_made_non_blocking_is_waited_for(self, ww: Ww) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK)
        process = ww.start([*ww.command, "export", "-"], stdin=reading)
        os.close(reading)
        time.sleep(1)  # more than ww needs to read for the first time
        os.write(writing, b"hello ")
        time.sleep(0.2)
        os.write(writing, b"world")
        os.close(writing)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert out.decode() == f"/ipfs/{HELLO_WORLD[()]}\n"

    def test_what_is_exported_is_pinned_under_its_name_unless_asked_otherwise(self, ww: Ww) -> None:
        file = ww.file("file", b"hello world")
        address = good(ww.run("export", "--no-pin", file)).strip()
        assert good(ww.run("store", "ls")) == ""
        assert good(ww.run("export", ".")) != address
        good(ww.run("export", file))
        good(ww.run("export", "-", stdin=b"x"))
        names = [line.partition("\t")[2] for line in good(ww.run("store", "ls")).splitlines()]
        assert names == ["", "file", "tmp"]
        good(ww.run("store", "gc"))
        assert good(ww.run("store", "cat", address)) == "hello world"

    def test_hidden_entries_are_taken_if_asked_for(self, ww: Ww) -> None:
        (ww.tmp / "d").mkdir()
        (ww.tmp / "d" / ".hidden").write_text("x")
        plain, all_ = (good(ww.run("export", *flags, "d")) for flags in ((), ("--hidden",)))
        assert good(ww.run("resolve", f"{all_.strip()}/.hidden"))
        assert "no such file" in bad(ww.run("resolve", f"{plain.strip()}/.hidden"), 127)

    def test_what_cannot_be_exported(self, ww: Ww) -> None:
        assert "missing: cannot read" in bad(ww.run("export", "missing"), 1)
        assert "ww export: Missing argument" in bad(ww.run("export"), 2)
        file = ww.file("file", b"hello world")
        for profile, version in (("unixfs-v0-2015", "1"), ("unixfs-v1-2025", "0")):
            error = bad(ww.run("export", "--profile", profile, "--cid-version", version, file), 2)
            assert "give one of --cid-version and --profile" in error
        closed = ww.shell("ww export - <&-")
        assert "stdin: it is closed" in bad(closed, 1)
        write_only = ww.shell("ww export - 0>/dev/null")
        assert "stdin: cannot read: Bad file descriptor" in bad(write_only, 1)
        assert not (ww.home / "pins").exists()
        # Not by `ww.shell`, whose own shell would complain too.
        export = f"exec {shlex.join(ww.command)} export ."
        gone = ww.call(["bash", "-c", f"mkdir gone && cd gone && rmdir ../gone && {export}"])
        assert ".: cannot read: No such file or directory (the working" in bad(gone, 1)
        assert os.listdir(ww.home) == []


class TestPath:
    def test_it_is_printed_and_not_made(self, ww: Ww) -> None:
        assert good(ww.run("store", "path")) == f"{ww.home}\n"
        elsewhere = str(ww.root / "data")
        done = ww.run("store", "path", env={"WW_HOME": "", "XDG_DATA_HOME": elsewhere})
        assert good(done) == f"{elsewhere}/ww\n"
        assert not os.path.exists(elsewhere)
        assert "WW_HOME" in bad(ww.run("store", "path", env={"WW_HOME": "store"}), 2)


class TestLs:
    def test_an_empty_store_has_nothing(self, ww: Ww) -> None:
        assert good(ww.run("store", "ls")) == ""
        assert good(ww.run("store", "ls", "--blocks")) == ""
        assert json.loads(good(ww.run("store", "ls", "--json"))) == []

    def test_pins_and_blocks(self, ww: Ww) -> None:
        file = ww.file("a\tb\x1b[31m", b"hello world")
        address = ww.export(file)
        assert good(ww.run("store", "ls")) == f"{address}\ta\\tb\\x1b[31m\n"
        assert json.loads(good(ww.run("store", "ls", "--json"))) == [
            {"path": address, "name": "a\tb\x1b[31m"}
        ]
        cid = root_of(address)
        size = len(Blockstore(str(ww.home)).get(cid))
        raw = str(Cid(1, 0x55, cid.multihash))
        assert good(ww.run("store", "ls", "--blocks")) == f"{raw}\t{size}\n"
        assert json.loads(good(ww.run("store", "ls", "--blocks", "--json"))) == [
            {"cid": raw, "size": size}
        ]


class TestCat:
    def test_bytes_come_out_as_they_went_in(self, ww: Ww) -> None:
        data = os.urandom(700_000)
        (ww.tmp / "d").mkdir()
        ww.file("d/file", data)
        address = ww.export(ww.tmp / "d")
        done = ww.run("store", "cat", f"{address}/file")
        assert (done.returncode, done.stdout) == (0, data)

    def test_what_is_no_file_or_not_there(self, ww: Ww) -> None:
        address = ww.export(EXAMPLES / "hello")
        assert "is a directory" in bad(ww.run("store", "cat", address), 126)
        assert "no such file" in bad(ww.run("store", "cat", f"{address}/x"), 127)
        missing = f"/ipfs/{HELLO_WORLD[()]}"
        assert HELLO_WORLD[()] in bad(ww.run("store", "cat", missing), 127)
        assert "not a valid path" in bad(ww.run("store", "cat", "hello"), 2)
        for command in ("cat", "pin", "unpin"):
            error = bad(ww.run("store", command, ""), 2)
            assert error == "ww: error: PATH: it is empty\n"

    def test_a_reader_that_has_seen_enough_is_no_error(self, ww: Ww) -> None:
        address = ww.export(ww.file("file", os.urandom(1_000_000)))
        done = ww.shell(f"ww store cat {address} | head -c 5 | wc -c; echo ${{PIPESTATUS[0]}}")
        assert done.stdout.split() == [b"5", b"141"]
        assert done.stderr == b""
        assert "stdout: it cannot be written" in bad(
            ww.shell(f"ww store cat {address} >/dev/full"), 1
        )

    def test_a_damaged_block_is_named_removed_and_repaired_by_an_export(self, ww: Ww) -> None:
        file = ww.file("file", b"hello world")
        address = ww.export(file)
        path = damage(ww, root_of(address))
        error = bad(ww.run("store", "cat", address), 1)
        assert f"block {root_of(address)}: damaged: {path}" in error
        assert "it has been removed" in error
        assert not path.exists()
        assert "not in the store" in bad(ww.run("store", "cat", address), 127)
        good(ww.run("export", file))
        assert good(ww.run("store", "cat", address)) == "hello world"

    def test_a_damaged_cell_does_not_run(self, ww: Ww) -> None:
        address = ww.export(HELLO)
        damage(ww, root_of(address))
        done = ww.run("run", address)
        assert b"damaged" in done.stderr
        assert (done.returncode, done.stdout) == (1, b"")
        ww.export(HELLO)
        assert ww.run("run", address).returncode == 0


class TestSources:
    @pytest.fixture
    def elsewhere(self, ww: Ww) -> str:
        """Another store, which is read as a Kubo repository is."""
        return str(ww.root / "elsewhere")

    def test_what_is_not_in_the_store_is_written_and_kept(self, ww: Ww, elsewhere: str) -> None:
        data = os.urandom(700_000)
        file = ww.file("file", data)
        address = ww.run("export", file, env={"WW_HOME": elsewhere}).stdout.decode().strip()
        assert "not in the store" in bad(ww.run("store", "cat", address), 127)
        for _ in range(2):
            done = ww.run("store", "cat", "--ipfs", elsewhere, address)
            assert (done.returncode, done.stdout) == (0, data), done.stderr
        assert ww.run("store", "cat", address).stdout == data

    def test_what_is_pinned_is_fetched_as_a_whole(self, ww: Ww, elsewhere: str) -> None:
        there = {"WW_HOME": elsewhere}
        address = ww.run("export", EXAMPLES, env=there).stdout.decode().strip()
        error = bad(ww.run("store", "pin", "--ipfs", elsewhere, "--max-size", "1K", address), 66)
        assert "allow more with --max-size" in error
        assert good(ww.run("store", "ls")) == ""
        done = ww.run("store", "pin", "--ipfs", elsewhere, address)
        assert (done.returncode, done.stdout.decode()) == (0, f"{address}\n"), done.stderr
        assert good(ww.run("store", "gc")).startswith("blocks removed: 0")
        assert len(block_files(ww.home)) == len(block_files(elsewhere))
        assert ww.run("run", f"{address}/hello/hello.wasm").returncode == 0

    def test_a_damaged_block_is_fetched_again(self, ww: Ww, elsewhere: str) -> None:
        file = ww.file("file", b"hello world")
        ww.run("export", file, env={"WW_HOME": elsewhere})
        address = ww.export(file)
        path = damage(ww, root_of(address))
        done = ww.run("store", "cat", "--ipfs", elsewhere, address)
        assert (done.returncode, done.stdout) == (0, b"hello world"), done.stderr
        assert str(path).encode() in done.stderr
        assert good(ww.run("store", "cat", address)) == "hello world"


class TestPins:
    def test_a_pin_lasts_until_it_is_taken_away(self, ww: Ww) -> None:
        address = good(ww.run("export", "--no-pin", EXAMPLES / "hello")).strip()
        file = good(ww.run("resolve", f"{address}/hello.wasm"))
        assert good(ww.run("store", "pin", "--name", "my cell", f"{address}/hello.wasm")) == file
        assert good(ww.run("store", "ls")) == f"{file.strip()}\tmy cell\n"
        good(ww.run("store", "gc"))
        assert ww.run("run", file.strip()).returncode == 0
        assert len(block_files(ww.home)) == 1
        assert good(ww.run("store", "unpin", file.strip())) == file
        assert good(ww.run("store", "ls")) == ""
        assert "is not pinned" in bad(ww.run("store", "unpin", file.strip()), 127)
        good(ww.run("store", "gc"))
        assert block_files(ww.home) == []

    def test_a_name_cannot_be_unpinned_and_what_to_do_is_told(self, ww: Ww) -> None:
        error = bad(ww.run("store", "unpin", "/ipns/example.org"), 2)
        assert error.endswith("(write the /ipfs/CID that 'ww resolve' prints for it)\n")

    def test_only_what_is_there_as_a_whole_is_pinned(self, ww: Ww) -> None:
        flags = ("--no-pin", "--cid-version", "1")  # the file is a raw block
        address = good(ww.run("export", *flags, EXAMPLES / "hello")).strip()
        file = root_of(good(ww.run("resolve", f"{address}/hello.wasm")))
        damage(ww, file)
        assert str(file) in bad(ww.run("store", "pin", address), 1)
        assert str(file) in bad(ww.run("store", "pin", address), 127)
        assert good(ww.run("store", "ls")) == ""


class TestGc:
    def test_what_is_removed_is_counted_and_can_be_asked_for_before(self, ww: Ww) -> None:
        kept = ww.export(ww.file("kept", b"k" * 100))
        good(ww.run("export", "--no-pin", ww.file("gone", b"g" * 2000)))
        listed = good(ww.run("store", "gc", "--dry-run")).splitlines()
        assert len(listed) == 2
        assert listed[0] in good(ww.run("store", "ls", "--blocks")).splitlines()
        assert listed[1] == "blocks to remove: 1, 2.0 KiB; left: 1, 108 B"
        assert good(ww.run("store", "gc", "--max-size", "10K")).startswith("blocks removed: 0, 0 B")
        assert good(ww.run("store", "gc")) == "blocks removed: 1, 2.0 KiB; left: 1, 108 B\n"
        assert good(ww.run("store", "cat", kept)) == "k" * 100
        done = ww.run("store", "gc", "--max-size", "1")
        assert done.stdout == b"blocks removed: 0, 0 B; left: 1, 108 B\n"
        assert "what is pinned has 108 bytes, more than 1" in bad(done, 1)

    def test_an_empty_store_is_none(self, ww: Ww) -> None:
        assert good(ww.run("store", "gc")) == "blocks removed: 0, 0 B; left: 0, 0 B\n"
        assert os.listdir(ww.home) == []

    @pytest.mark.parametrize(
        "flags", [("--max-size", "-1"), ("--max-size", "x"), ("--wait", "never")]
    )
    def test_wrong_values(self, ww: Ww, flags: tuple[str, str]) -> None:
        bad(ww.run("store", "gc", *flags), 2)

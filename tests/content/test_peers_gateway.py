"""Content from a trustless gateway of another implementation."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.content import varint
from runner.content.cid import RAW, Cid
from tests.conftest import EXAMPLES, Ww
from tests.content.peers import (
    MEASURE,
    Gateway,
    check_whole,
    long_name,
    read_tree,
    wait_for,
)

HELLO = EXAMPLES / "hello" / "hello.wasm"
MEBIBYTE = 1 << 20
PROFILES = ["unixfs-v0-2015", "unixfs-v1-2025"]


def run(ww: Ww, gateway: Gateway, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """`ww ARGUMENTS`, with the gateway named by the environment."""
    return ww.run(*arguments, env={"WW_GATEWAYS": gateway.url})


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_added_there_runs_here_and_is_asked_for_once(
    gateway: Gateway, ww: Ww, profile: str
) -> None:
    root = gateway.add(HELLO, profile=profile, chunk=1000)
    gateway.requests()
    direct = ww.run("run", HELLO)
    done = ww.run("run", "--gateway", gateway.url, f"/ipfs/{root}")
    assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr
    # All of it in one request, of which nothing is thrown away.
    (asked,) = gateway.requests()
    assert asked.startswith(f"GET /ipfs/{root}?")
    assert "format=car" in asked
    assert check_whole(ww.home) == gateway.write(ww.tmp / "theirs.car", root)
    # Then it is here.
    done = run(ww, gateway, "run", f"/ipfs/{root}")
    assert (done.returncode, done.stdout) == (0, direct.stdout), done.stderr
    assert gateway.requests() == []
    assert ww.run("run", "--offline", f"/ipfs/{root}").returncode == 0


def test_a_cell_below_a_directory_runs_and_nothing_else_of_it_is_fetched(
    gateway: Gateway, ww: Ww, tree: Path
) -> None:
    root = gateway.add(tree)
    gateway.requests()
    done = run(ww, gateway, "run", f"/ipfs/{root}/cells/hello.wasm")
    assert done.returncode == 0, done.stderr
    (asked,) = gateway.requests()
    assert asked.startswith(f"GET /ipfs/{root}/cells/hello.wasm?")
    # The cell, its directory, and the one above.
    assert check_whole(ww.home) == 3
    for path, code in (("cells", 126), ("cells/missing", 127)):
        done = run(ww, gateway, "run", f"/ipfs/{root}/{path}")
        assert (done.returncode, done.stdout) == (code, b""), done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_a_whole_tree_with_a_sharded_directory_comes_to_disk(
    gateway: Gateway, ww: Ww, tree: Path, profile: str
) -> None:
    root = gateway.add(tree, profile=profile)
    gateway.requests()
    done = run(ww, gateway, "import", f"/ipfs/{root}", "read")
    assert done.returncode == 0, done.stderr
    assert read_tree(ww.tmp / "read") == read_tree(tree)
    assert len(gateway.requests()) == 1
    check_whole(ww.home)


def test_an_entry_of_a_sharded_directory_is_found_without_the_others(
    gateway: Gateway, ww: Ww, tree: Path
) -> None:
    root = gateway.add(tree / "many", shardFanoutBits=4)
    for number in (0, 33, 59):
        ww.tmp.joinpath("entry").unlink(missing_ok=True)
        address = f"/ipfs/{root}/{long_name(number)}"
        assert run(ww, gateway, "import", address, "-o", "entry").returncode == 0
        assert (ww.tmp / "entry").read_bytes() == b"%d" % number
    done = run(ww, gateway, "import", f"/ipfs/{root}/{long_name(60)}", "-o", "missing")
    assert (done.returncode, done.stdout) == (127, b"")
    assert not (ww.tmp / "missing").exists()
    # Of sixty files, three; the rest are nodes of the directory.
    whole = gateway.write(ww.tmp / "theirs.car", root)
    assert 3 < check_whole(ww.home) < whole - 40


def test_content_that_the_gateway_has_not_is_told_so(gateway: Gateway, ww: Ww) -> None:
    absent = Cid.of(b"nobody has this", codec=RAW)
    done = run(ww, gateway, "run", f"/ipfs/{absent}")
    assert (done.returncode, done.stdout) == (127, b"")
    assert str(absent).encode() in done.stderr
    assert gateway.url.encode() in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_block_that_only_the_second_gateway_has_completes_what_the_first_sends(
    gateway: Gateway, ww: Ww, tree: Path
) -> None:
    with Gateway() as other:
        root = other.add(tree / "large", chunk=50_000)
        assert gateway.add(tree / "large", chunk=50_000) == root
        gateway.requests()
        leaf = ww.tmp / "leaf"
        leaf.write_bytes((tree / "large").read_bytes()[350_000:400_000])
        other.forget(other.add(leaf))
        done = ww.run(
            "import",
            f"/ipfs/{root}",
            "-o",
            "read",
            env={"WW_GATEWAYS": f"{other.url} {gateway.url}"},
        )
        assert done.returncode == 0, done.stderr
        assert (ww.tmp / "read").read_bytes() == (tree / "large").read_bytes()
        # The second one is asked for what is missing, not for all.
        assert all("format=raw" in asked for asked in gateway.requests())
        check_whole(ww.home)


def padded(cell: bytes, size: int) -> bytes:
    """The same program, with a custom section that makes it large."""
    content = b"\x03pad" + hashlib.shake_128(b"pad").digest(size)
    return cell + b"\x00" + varint.encode(len(content)) + content


class TestStoppedInTheMiddle:
    SIZE = 4 * MEBIBYTE
    CHUNK = 64 << 10

    @pytest.fixture
    def large(self, ww: Ww) -> Path:
        return ww.file("large", hashlib.shake_128(b"stopped").digest(self.SIZE))

    def test_a_second_one_finishes(self, gateway: Gateway, ww: Ww) -> None:
        cell = ww.file("cell.wasm", padded(HELLO.read_bytes(), self.SIZE))
        direct = ww.run("run", cell)
        assert direct.returncode == 0, direct.stderr
        root = gateway.add(cell, chunk=self.CHUNK)
        gateway.requests()
        with Gateway() as mortal:
            assert mortal.add(cell, chunk=self.CHUNK) == root
            mortal.hold_after(self.SIZE // 2)
            env = {"WW_GATEWAYS": f"{mortal.url} {gateway.url}"}
            with ww.popen("run", f"/ipfs/{root}", env=env) as process:
                mortal.wait_until_it_holds()
                mortal.kill()
                out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, direct.stdout), err
        check_whole(ww.home)
        # What the first one had sent was not asked for again.
        asked = gateway.requests()
        assert 0 < len(asked) < self.SIZE // self.CHUNK * 3 // 4

    def test_without_one_it_is_an_error_and_the_next_run_goes_on_from_there(
        self, ww: Ww, large: Path
    ) -> None:
        with Gateway() as mortal:
            root = mortal.add(large, chunk=self.CHUNK)
            mortal.hold_after(self.SIZE // 2)
            command = ("import", f"/ipfs/{root}", "-o", "read")
            with ww.popen(*command, env={"WW_GATEWAYS": mortal.url}) as process:
                mortal.wait_until_it_holds()
                mortal.kill()
                out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (127, b""), err
            assert mortal.url.encode() in err
            assert err.splitlines()[-1].startswith(b"ww: error: ")
            assert not (ww.tmp / "read").exists()
            kept = check_whole(ww.home)
            assert kept > 10
        with Gateway() as next_one:
            next_one.add(large, chunk=self.CHUNK)
            done = run(ww, next_one, *command)
            assert done.returncode == 0, done.stderr
            assert (ww.tmp / "read").read_bytes() == large.read_bytes()
            total = check_whole(ww.home)
            assert len(next_one.requests()) == total - kept

    @pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    def test_ww_itself_is_ended_and_the_next_run_goes_on_from_there(
        self, ww: Ww, large: Path, sign: signal.Signals
    ) -> None:
        with Gateway() as slow:
            root = slow.add(large, chunk=self.CHUNK)
            slow.hold_after(self.SIZE // 2)
            command = ("import", f"/ipfs/{root}", "-o", "read")
            with ww.popen(*command, env={"WW_GATEWAYS": slow.url}) as process:
                slow.wait_until_it_holds()
                # It takes what has come before it waits; this is one leaf of that.
                wait_for(lambda: len(list(ww.home.rglob("*.data"))) > 10, "blocks are kept")
                process.send_signal(sign)
                _, err = process.communicate(timeout=60)
            expected = -sign if sign == signal.SIGKILL else 128 + sign
            assert process.returncode == expected, err
            assert b"Traceback" not in err
            kept = check_whole(ww.home)
            assert kept > 10
            slow.hold_after(self.SIZE * 2)
            slow.requests()
            done = run(ww, slow, *command)
            assert done.returncode == 0, done.stderr
            assert (ww.tmp / "read").read_bytes() == large.read_bytes()
            assert len(slow.requests()) == check_whole(ww.home) - kept
            assert os.listdir(ww.home / "blocks" / ".temp") == []


def test_many_processes_fetch_run_and_export_the_same_and_other_content_at_once(
    gateway: Gateway, ww: Ww, tree: Path
) -> None:
    cells = [gateway.add(HELLO, chunk=1000), gateway.add(tree)]
    addresses = [f"/ipfs/{cells[0]}", f"/ipfs/{cells[1]}/cells/hello.wasm"]
    file = ww.file("file", os.urandom(900_000))
    theirs = gateway.add(file)
    started = []
    for number in range(2):
        env = {"WW_GATEWAYS": gateway.url}
        started += [ww.popen("run", address, env=env) for address in addresses]
        started += [ww.popen("import", f"/ipfs/{theirs}", "-o", f"out{number}", env=env)]
        started += [ww.popen("export", file), ww.popen("export", "--hidden", tree)]
    outputs = []
    for process in started:
        with process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        outputs.append(out)
    half = len(outputs) // 2
    assert outputs[0] == outputs[1] == outputs[half] == outputs[half + 1] != b""
    assert [outputs[3], outputs[4]] == outputs[half + 3 :]
    assert outputs[3].decode() == f"/ipfs/{theirs}\n"
    for number in range(2):
        assert (ww.tmp / f"out{number}").read_bytes() == file.read_bytes()
    check_whole(ww.home)
    assert os.listdir(ww.home / "blocks" / ".temp") == []


def test_a_file_of_100_mib_is_fetched_and_written_in_bounded_memory(
    gateway: Gateway, ww: Ww
) -> None:
    large = ww.tmp / "large"
    pattern = hashlib.shake_128(b"large").digest(MEBIBYTE - 8)
    with large.open("wb") as out:
        for number in range(100):
            out.write(number.to_bytes(8, "big") + pattern)  # every block is another one
    with Gateway() as own:  # it keeps all of it in memory
        root = own.add(large, profile="unixfs-v1-2025")
        command = [*ww.command, "import", f"/ipfs/{root}", "-o", "read"]
        env = {"WW_GATEWAYS": own.url}
        done = ww.call([sys.executable, "-c", MEASURE, *command], env=env)
        assert len(own.requests()) == 1
    assert done.returncode == 0, done.stderr
    name, kibibytes = done.stdout.split()
    assert name == b"read"
    assert int(kibibytes) < 80 * 1024
    with (ww.tmp / "read").open("rb") as ours, large.open("rb") as theirs:
        digests = [hashlib.file_digest(file, "sha256").digest() for file in (ours, theirs)]
    assert digests[0] == digests[1]
    assert check_whole(ww.home) == 101
    shutil.rmtree(ww.root)

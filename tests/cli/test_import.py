"""`ww import`, as a user types it."""

import os
import signal
import stat
import time

import pytest

from tests.conftest import EXAMPLES, Leftovers, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"


@pytest.fixture
def folder(ww_account: Ww) -> str:
    (ww_account.tmp / "tree").mkdir()
    ww_account.file("tree/a", b"a")
    (ww_account.tmp / "tree" / "b").mkdir()
    ww_account.file("tree/b/c", b"c" * 600_000)
    for path in (ww_account.tmp / "tree", ww_account.tmp / "tree" / "b"):
        os.chown(path, ww_account.account.uid, ww_account.account.gid)
    return ww_account.export(ww_account.tmp / "tree")


def test_a_file_comes_to_the_working_directory_or_where_it_is_asked_for(
    ww_account: Ww, folder: str
) -> None:
    for arguments, place in (
        ((), "./a"),
        (("one",), "one"),
        (("-o", "two"), "two"),
        (("--output", "new/deep/three"), "new/deep/three"),
        (("-o", "new"), "new/a"),
    ):
        done = ww_account.run("import", f"{folder}/a", *arguments)
        assert (done.returncode, done.stdout.decode()) == (0, f"{place}\n"), done.stderr
        assert (ww_account.tmp / place).read_bytes() == b"a"
        assert (ww_account.tmp / place).stat().st_uid == ww_account.account.uid


def test_a_directory_comes_whole(ww_account: Ww, folder: str) -> None:
    assert ww_account.run("import", folder, "-o", "new").returncode == 0
    assert (ww_account.tmp / "new" / "b" / "c").read_bytes() == b"c" * 600_000
    # Where there is a directory, what is in the content's goes into it.
    (ww_account.tmp / "tree" / "a").unlink()
    done = ww_account.run("import", folder, "new")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"ww: error: new/" in done.stderr
    assert b"exists already, and nothing is overwritten" in done.stderr
    done = ww_account.run("import", f"{folder}/b", "new")
    assert (done.returncode, done.stdout) == (0, b"new\n")
    assert sorted(os.listdir(ww_account.tmp / "new")) == ["a", "b", "c"]


def test_an_imported_cell_runs_as_a_program_that_path_finds(ww: Ww) -> None:
    address = ww.export(HELLO)
    assert ww.run("import", "-x", address, "-o", "bin/hello").returncode == 0
    file = ww.tmp / "bin" / "hello"
    assert stat.S_IMODE(file.stat().st_mode) & 0o111
    done = ww.run("run", "hello", env={"PATH": f"{file.parent}:/usr/bin"})
    assert done.returncode == 0, done.stderr
    assert ww.run("verify", address, file).returncode == 0


def test_what_is_not_in_the_store_is_fetched(ww: Ww) -> None:
    (ww.tmp / "tree" / "sub").mkdir(parents=True)
    contents = {f"sub/{number}": os.urandom(number * 1000) for number in range(20)}
    contents["large"] = os.urandom(600_000)
    for name, data in contents.items():
        ww.file(f"tree/{name}", data)
    elsewhere = str(ww.root / "elsewhere")  # read as a Kubo repository is
    done = ww.run("export", "tree", env={"WW_HOME": elsewhere})
    address = done.stdout.decode().strip()
    assert ww.run("import", address, "-o", "new").returncode == 127
    assert not (ww.tmp / "new").exists()
    done = ww.run("import", "--ipfs", elsewhere, address, "-o", "new")
    assert (done.returncode, done.stdout) == (0, b"new\n"), done.stderr
    for name, data in contents.items():
        assert (ww.tmp / "new" / name).read_bytes() == data
    assert ww.run("import", address, "-o", "again").returncode == 0
    done = ww.run("import", "--max-size", "700K", address, "-o", "small")
    assert done.returncode == 66
    assert b"allow more with --max-size" in done.stderr
    assert not (ww.tmp / "small").exists()


def test_symbolic_links_are_made_only_if_asked_for(ww: Ww) -> None:
    (ww.tmp / "tree").mkdir()
    (ww.tmp / "tree" / "link").symlink_to("/etc/passwd")
    address = ww.export(ww.tmp / "tree")
    done = ww.run("import", address, "-o", "new")
    assert (done.returncode, done.stdout) == (126, b"")
    assert (
        b"is a symbolic link, which may lead anywhere (allow links with --symlinks)" in done.stderr
    )
    assert not (ww.tmp / "new").exists()
    assert ww.run("import", "--symlinks", address, "-o", "new").returncode == 0
    assert os.readlink(ww.tmp / "new" / "link") == "/etc/passwd"


def test_a_file_on_the_way_to_where_it_is_to_come_is_named(ww: Ww) -> None:
    address = ww.export(HELLO)
    file = ww.file("file", b"kept")
    for destination in ("file/x", "file/new/x", f"{file}/x", "/dev/null/x"):
        done = ww.run("import", address, "-o", destination)
        assert (done.returncode, done.stdout) == (1, b"")
        above = destination.removesuffix("/x").removesuffix("/new")
        assert done.stderr.decode() == (
            f"ww: error: {above}: is no directory (give another DEST)\n"
        )
    assert file.read_bytes() == b"kept"
    assert os.listdir(ww.tmp) == ["file"]


@pytest.mark.parametrize(
    ("stdout", "what"),
    [(">/dev/full", "it cannot be written: No space left on device"), (">&-", "it is closed")],
)
def test_content_whose_place_cannot_be_printed_stays_and_that_is_said(
    ww: Ww, stdout: str, what: str
) -> None:
    address = ww.export(HELLO)
    done = ww.shell(f"ww import {address} new/cell {stdout}")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"ww: error: stdout: {what} (nothing else has failed: the content is in new/cell)\n"
    )
    assert (ww.tmp / "new" / "cell").read_bytes() == HELLO.read_bytes()


def test_wrong_usage(ww: Ww) -> None:
    address = ww.export(HELLO)
    for arguments, what in (
        ((), b"Missing argument"),
        ((address, "-o", "a", "b"), b"DEST is given twice"),
        ((address, "-o", "-"), b"use ww store cat"),
        ((address, "-"), b"use ww store cat"),
        (("hello",), b"not a valid path"),
        (("",), b"ww: error: PATH: it is empty\n"),
        ((address, ""), b"ww: error: DEST: it is empty\n"),
        ((address, "-o", ""), b"ww: error: DEST: it is empty\n"),
    ):
        done = ww.run("import", *arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert what in done.stderr
    assert ww.run("import", f"{address}/x").returncode == 127
    assert os.listdir(ww.tmp) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(
    ww: Ww, leftovers: type[Leftovers], number: signal.Signals
) -> None:
    # A directory of so many files that the signal comes in the middle of them.
    (ww.tmp / "tree").mkdir()
    for index in range(6000):
        (ww.tmp / "tree" / f"{index}").touch()
    address = ww.export(ww.tmp / "tree")
    (ww.tmp / "out").mkdir()
    with leftovers(ww), ww.popen("import", address, "-o", "out/new") as process:
        deadline = time.monotonic() + 60
        while not os.listdir(ww.tmp / "out"):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert (out, err) == (b"", b"")
        assert os.listdir(ww.tmp / "out") == []

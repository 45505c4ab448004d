"""CAR files, as a user has them: ``ww car``, and cells that are run straight from one."""

import os
import pty
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import cells
from runner.content import cbor, varint
from runner.content.car import write_car
from runner.content.carstore import export_blocks
from runner.content.cid import RAW, Cid
from runner.content.resolver import parse_path
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from tests.conftest import EXAMPLES, Leftovers, Ww
from tests.content.dags import MemoryStore, put_directory, put_file, put_raw

HELLO = EXAMPLES / "hello" / "hello.wasm"
PRAGMA = bytes.fromhex("0aa16776657273696f6e02")  # of CAR version 2


def section(cid: Cid, data: bytes) -> bytes:
    return varint.encode(len(bytes(cid)) + len(data)) + bytes(cid) + data


def archive(*blocks: bytes, roots: int | None = None) -> bytes:
    """A CAR of raw blocks, all of which are roots if nothing else is said."""
    cids = [Cid.of(data, codec=RAW) for data in blocks]
    header = cbor.encode({"roots": [*cids[:roots]], "version": 1})
    return b"".join(
        [varint.encode(len(header)) + header, *map(section, cids, blocks)],
    )


def store_is_empty(ww: Ww) -> bool:
    return not any(ww.home.iterdir())


# --- a cell from a CAR file -----------------------------------------------------------------------


def test_a_cell_is_run_from_a_car_and_nothing_is_left_of_it(
    ww_account: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    path = ww_account.export(HELLO)
    made = ww_account.run("car", "export", path, "-o", "cell.car")
    assert (made.returncode, made.stdout, made.stderr) == (0, b"", b"")
    elsewhere = {"WW_HOME": str(ww_account.root / "nowhere")}
    direct = ww_account.run("run", path)
    with leftovers(ww_account):
        done = ww_account.run("run", "./cell.car", env=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout == direct.stdout
    assert b"Hello" in done.stdout
    assert not (ww_account.root / "nowhere" / "blocks").exists()


def test_a_car_that_is_damaged_is_not_run(ww: Ww) -> None:
    whole = bytearray(archive(HELLO.read_bytes()))
    whole[-1] ^= 1
    ww.file("cell.car", bytes(whole))
    done = ww.run("run", "./cell.car")
    assert done.returncode == 1
    assert done.stdout == b""
    block = Cid.of(HELLO.read_bytes(), codec=RAW)
    assert f"block {block}: damaged: ./cell.car".encode() in done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Cid]:
    """A CAR of a directory with the entries a and d/b, and the CID of that directory."""
    store = MemoryStore()
    file = put_file(store, [(put_raw(store, b"a "), 2), (put_raw(store, b"file"), 4)])
    inner = put_directory(store, [("b", put_raw(store, b"inner"))])
    root = put_directory(store, [("a", file), ("d", inner)])
    path = tmp_path / "tree.car"
    with path.open("wb") as out:
        blocks = export_blocks(store, parse_path(f"/ipfs/{root}"), root, "all")
        write_car(out, [root], blocks)
    return path, root


def opened(address: str | Path, *, most: int = cells.MAX_SIZE) -> bytes:
    fd = cells.open_cell(str(address), {}, cells.FetchOptions(max_size=most))
    with open(fd, "rb") as memory:
        return memory.read()


def refused(address: str | Path) -> WwError:
    with pytest.raises(WwError) as caught:
        opened(address)
    return caught.value


def test_what_to_take_from_a_car_follows_its_path(tree: tuple[Path, Cid]) -> None:
    path, root = tree
    assert opened(f"{path}#/a") == b"a file"
    assert opened(f"{path}#/d/b") == b"inner"
    assert opened(f"{path}#{root}/d/b") == b"inner"
    assert opened(f"{path}#{Cid.of(b'inner', codec=RAW)}") == b"inner"


def test_what_a_car_cannot_give_is_told(tree: tuple[Path, Cid]) -> None:
    path, root = tree
    for whole in (path, f"{path}#", f"{path}#/", f"{path}#{root}"):
        assert refused(whole).code == EXIT_CANNOT_RUN
        assert "is a directory" in str(refused(whole))
    for whole, file in (("", "/FILE"), ("#/", "/FILE"), ("#/d/", "/d/FILE")):
        assert refused(f"{path}{whole}").hint == f"name a file in it: {path}#{file}"
    assert refused(f"{path}#{root}/d").hint == f"name a file in it: {path}#{root}/d/FILE"
    assert refused(f"{path}#/none").code == EXIT_NOT_FOUND
    assert refused(f"{path}#none").code == EXIT_USAGE
    absent = Cid.of(b"absent", codec=RAW)
    assert refused(f"{path}#{absent}").code == EXIT_NOT_FOUND
    assert f"block {absent}: not in {path}" in str(refused(f"{path}#{absent}"))


def test_a_file_with_the_sign_in_its_name_is_that_file(tmp_path: Path) -> None:
    folder = tmp_path / "a#b"
    folder.mkdir()
    (folder / "cell").write_bytes(archive(b"another"))
    (folder / "cell#1").write_bytes(b"program")
    (folder / "x#.car").write_bytes(archive(b"from the car"))
    assert opened(folder / "cell#1") == b"program"
    assert opened(folder / "x#.car") == b"from the car"
    assert opened(f"{folder}/x#.car#") == b"from the car"
    assert refused(folder / "none#1").code == EXIT_NOT_FOUND


def test_nothing_is_taken_from_what_is_no_car(tmp_path: Path) -> None:
    (tmp_path / "cell.car").write_bytes(b"\0asm....")
    error = refused(f"{tmp_path}/cell.car#/a")
    assert error.code == EXIT_CANNOT_RUN
    assert "not a CAR file" in str(error)


def test_a_file_is_a_car_by_what_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "cell.wasm").write_bytes(archive(b"from the car"))
    (tmp_path / "cell.car").write_bytes(b"\0asm")
    assert opened(tmp_path / "cell.wasm") == b"from the car"
    assert opened(tmp_path / "cell.car") == b"\0asm"


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (PRAGMA + bytes(40), EXIT_CANNOT_RUN, "it has version 2, and only version 1"),
        (archive(b"one")[:-1], 1, "cut off"),
        (archive(b"one") + b"\0", 1, "section is empty"),
        (archive(b"one", b"two"), EXIT_CANNOT_RUN, "names 2 roots"),
        (archive(b"one", roots=0), EXIT_CANNOT_RUN, "names 0 roots"),
    ],
)
def test_a_car_that_cannot_be_read_is_refused(
    tmp_path: Path, data: bytes, code: int, message: str
) -> None:
    (tmp_path / "cell.car").write_bytes(data)
    error = refused(tmp_path / "cell.car")
    assert error.code == code
    assert message in str(error)


def test_a_cell_in_a_car_has_the_largest_size_of_any(tmp_path: Path) -> None:
    (tmp_path / "cell.car").write_bytes(archive(b"four"))
    assert opened(tmp_path / "cell.car", most=4) == b"four"
    with pytest.raises(WwError) as caught:
        opened(tmp_path / "cell.car", most=3)
    assert caught.value.code == EXIT_LIMIT


# --- ww car ---------------------------------------------------------------------------------------


def test_a_directory_travels_through_a_pipe(ww: Ww) -> None:
    folder = ww.tmp / "tree" / "inner"
    folder.mkdir(parents=True)
    (folder / "large").write_bytes(os.urandom(700_000))
    (folder.parent / "small").write_bytes(b"small")
    path = ww.export(folder.parent, "--cid-version", "1")
    done = ww.shell(
        f"set -o pipefail; ww car export {path}/inner | WW_HOME=$PWD/other ww car import - && "
        f"ww resolve {path}/inner && "
        # The same bytes again, from the other store.
        f"cmp <(ww car export {path}/inner) "
        f"<(WW_HOME=$PWD/other ww car export $(ww resolve {path}/inner))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    printed, resolved = done.stdout.decode().split()
    assert printed == resolved
    out = ww.run("store", "cat", f"{printed}/large", env={"WW_HOME": str(ww.tmp / "other")})
    assert out.stdout == (folder / "large").read_bytes()


def test_an_import_pins_its_roots_unless_told_otherwise(ww: Ww) -> None:
    ww.file("two.car", archive(b"one", b"two"))
    roots = [f"/ipfs/{Cid.of(data, codec=RAW)}" for data in (b"one", b"two")]
    done = ww.run("car", "import", "--no-pin", "two.car")
    assert done.stdout.decode().split() == roots
    assert ww.run("store", "ls").stdout == b""
    ww.run("car", "import", "two.car")
    assert sorted(ww.run("store", "ls").stdout.decode().splitlines()) == sorted(
        f"{root}\ttwo.car" for root in roots
    )


def test_blocks_under_no_root_are_taken_and_told(ww: Ww) -> None:
    ww.file("cell.car", archive(b"one", b"two", b"three", roots=1))
    done = ww.run("car", "import", "cell.car")
    assert done.returncode == 0
    assert done.stdout.decode() == f"/ipfs/{Cid.of(b'one', codec=RAW)}\n"
    assert done.stderr == (
        b"ww: warning: cell.car: 2 of its 3 blocks are under none of its roots\n"
    )
    extra = ww.run("store", "cat", f"/ipfs/{Cid.of(b'two', codec=RAW)}")
    assert extra.stdout == b"two"


def test_an_import_that_fails_prints_and_pins_nothing(ww: Ww) -> None:
    ww.file("cell.car", archive(b"one")[:-1])
    done = ww.run("car", "import", "cell.car")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"ww: error: cell.car: malformed CAR, at byte 59: it is cut off")
    done = ww.run("car", "import", "--max-size", "50", "-", stdin=archive(b"one"))
    assert (done.returncode, done.stdout) == (EXIT_LIMIT, b"")
    assert done.stderr.startswith(b"ww: error: stdin: CAR too large, at byte 0: more than 50 bytes")
    assert not (ww.home / "pins").exists()


def test_a_stream_that_others_have_made_non_blocking_is_waited_for(ww: Ww) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    process = ww.start([*ww.command, "car", "import", "-"], stdin=reading)
    os.close(reading)
    data = archive(b"one")
    time.sleep(1)  # more than ww needs to read for the first time
    os.write(writing, data[:40])
    time.sleep(0.2)
    os.write(writing, data[40:])
    os.close(writing)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == f"/ipfs/{Cid.of(b'one', codec=RAW)}\n"


def test_what_cannot_be_imported_is_told(ww: Ww) -> None:
    done = ww.run("car", "import", "none.car")
    assert (done.returncode, done.stderr) == (
        1,
        b"ww: error: none.car: it cannot be read: No such file or directory\n",
    )
    done = ww.shell("ww car import - <&-")
    assert (done.returncode, done.stderr) == (1, b"ww: error: stdin: it is closed\n")
    done = ww.run("car", "import", "")
    assert (done.returncode, done.stderr) == (EXIT_USAGE, b"ww: error: FILE: it is empty\n")
    done = ww.run("car", "import", "--max-size", "much", "none.car")
    assert done.returncode == EXIT_USAGE
    assert store_is_empty(ww)


def test_a_car_is_written_whole_or_not_at_all(ww: Ww) -> None:
    ww.file("old.car", b"as it was")
    ww.file("lacking.car", archive(b"one"))
    path = ww.run("car", "import", "lacking.car").stdout.decode().strip()
    missing = f"/ipfs/{Cid.of(b'missing', codec=RAW)}"
    before = sorted(os.listdir(ww.tmp))
    done = ww.run("car", "export", missing, "-o", "old.car")
    assert done.returncode == EXIT_NOT_FOUND
    assert (ww.tmp / "old.car").read_bytes() == b"as it was"
    done = ww.run("car", "export", missing, "-o", "new.car")
    assert done.returncode == EXIT_NOT_FOUND
    assert sorted(os.listdir(ww.tmp)) == before
    done = ww.shell(f"umask 027 && ln -s old.car link.car && ww car export {path} -o link.car")
    assert done.returncode == 0, done.stderr
    assert (ww.tmp / "link.car").is_symlink()
    assert (ww.tmp / "old.car").read_bytes() == archive(b"one")
    assert (ww.tmp / "old.car").stat().st_mode & 0o777 == 0o640
    done = ww.run("car", "export", path, "-o", "none/new.car")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ww: error: none/new.car: it cannot be written: No such file")


def test_what_names_no_content_of_the_store_is_not_exported(ww: Ww) -> None:
    path = ww.export(ww.file("file", b"file"))
    for args, what in (
        (("",), "PATH: it is empty\n"),
        ((path, "-o", ""), "--output: it is empty\n"),
        (("/ipns/example.org", "-o", "x.car"), "/ipns/example.org: not a valid path: it does not"),
    ):
        done = ww.run("car", "export", *args)
        assert done.returncode == EXIT_USAGE
        assert done.stderr.decode().startswith(f"ww: error: {what}")
    assert done.stderr.endswith(b"(write the /ipfs/CID that 'ww resolve' prints for it)\n")


def test_the_entity_of_a_directory_is_exported_alone(ww: Ww) -> None:
    (ww.tmp / "tree").mkdir()
    (ww.tmp / "tree" / "file").write_bytes(b"file")
    path = ww.export(ww.tmp / "tree")
    sizes = [
        len(ww.run("car", "export", "--scope", scope, path).stdout) for scope in ("all", "entity")
    ]
    assert sizes[0] > sizes[1] > 59
    done = ww.shell(f"ww car export --scope entity {path} | WW_HOME=$PWD/other ww car import -")
    assert done.returncode == 1
    assert b"incomplete: " in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(ww: Ww) -> None:
    ww.file("large", os.urandom(1 << 20))
    path = ww.export(ww.tmp / "large")
    done = ww.shell(f"ww car export {path} | head -c 1 | wc -c; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.split() == [b"1", b"141"]
    assert done.stderr == b""
    done = ww.shell(f"ww car export {path} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"ww: error: stdout: it cannot be written: No space left on device\n"


def test_a_car_is_not_written_on_a_terminal(ww: Ww) -> None:
    ww.file("cell.car", archive(b"one"))
    path = ww.run("car", "import", "cell.car").stdout.decode().strip()
    master, slave = pty.openpty()
    try:
        with ww.popen("car", "export", path, stdout=slave) as process:
            assert process.stderr is not None
            assert b"not for a terminal (use -o)" in process.stderr.read()
        assert process.returncode == EXIT_USAGE
        done = ww.shell(f"ww car export -o - {path} | cmp - cell.car")
        assert done.returncode == 0, done.stderr
    finally:
        os.close(master)
        os.close(slave)

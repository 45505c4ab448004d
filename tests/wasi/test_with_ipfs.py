"""`--with-ipfs`: content by its address, which ww finds and verifies while the cell runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from runner.content import unixfs
from runner.content.blockstore import Blockstore
from runner.content.cid import Cid
from runner.content.dagpb import Link
from tests.conftest import EXAMPLES, BuildFunction, Ww
from tests.content.dags import (
    block_files,
    put_block,
    put_directory,
    put_file,
    put_node,
    put_raw,
)
from tests.features import EMULATED, lacks
from tests.jail.inside import running, variant
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    CREAT,
    DIRECTORY,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    EMFILE,
    ENOENT,
    ENOTCAPABLE,
    ENOTDIR,
    EROFS,
    EXCL,
    FT_DIRECTORY,
    FT_REGULAR,
    FT_SYMLINK,
    FT_UNKNOWN,
    NONBLOCK,
    OK,
    TRUNC,
    Errno,
    R,
    Remote,
    Right,
    W,
    remote,
)
from tests.wasi.test_directories import entries, listing

HELLO = EXAMPLES / "hello" / "hello.wasm"
MIB = 1 << 20
EPERM, EIO, ELOOP, EFBIG = Errno.PERM, Errno.IO, Errno.LOOP, Errno.FBIG


@pytest.fixture
def cell(c_cell: BuildFunction) -> Path:
    return c_cell("content")


@pytest.fixture
def asker(native_probe: BuildFunction) -> Path:
    return native_probe("asker")


def exported(ww: Ww, *flags: str) -> str:
    """A directory with some of everything, exported: its CID."""
    folder = ww.tmp / f"tree{len(os.listdir(ww.tmp))}"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "f").write_bytes(b"0123456789")
    (folder / "empty").write_bytes(b"")
    (folder / "sub" / "g").write_bytes(b"gg")
    for name, target in {
        "link": "f",
        "dlink": "sub",
        "up": "sub/../f",
        "dangling": "nothing",
        "absolute": "/ipfs/x",
        "out": "../x",
        "loop": "loop",
        "sub/back": "../f",
        "slash": "f/",
    }.items():
        (folder / name).symlink_to(target)
    for place, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(os.path.join(place, name), ww.account.uid, -1, follow_symlinks=False)
    return ww.export(folder, *flags).removeprefix("/ipfs/")


def own(ww: Ww) -> None:
    """Give the account what a test has put into its store."""
    for place, folders, files in os.walk(ww.home):
        for name in (".", *folders, *files):
            os.chown(os.path.join(place, name), ww.account.uid, ww.account.gid)


def large_file(store: Blockstore, size: int, last: bytes) -> Cid:
    """A file of many MiB that takes two blocks: all but the end of it is the same."""
    part, end = put_raw(store, bytes(MIB)), put_raw(store, last)
    count = (size - len(last)) // MIB
    return put_file(store, [*[(part, MIB)] * count, (end, len(last))])


def lines(ww: Ww, cell: Path, *args: str, flags: Iterable[str] = ()) -> list[str]:
    done = ww.run("run", "--with-ipfs", *flags, cell, *args)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


# What a C program sees


def test_files_and_directories_are_found_below_ipfs(ww_account: Ww, cell: Path) -> None:
    root = f"/ipfs/{exported(ww_account)}"
    paths = ["", "/f", "/empty", "/sub", "/sub/g", "/sub/deep", "/link", "/dlink/g", "/sub/back"]
    assert lines(ww_account, cell, *(root + path for path in paths)) == [
        f"{root}: directory of 13: . .. absolute dangling dlink empty f link",
        f"{root}/f: 10 bytes, 0123456789",
        f"{root}/empty: 0 bytes, ",
        f"{root}/sub: directory of 5: . .. back deep g",
        f"{root}/sub/g: 2 bytes, gg",
        f"{root}/sub/deep: directory of 2: . ..",
        f"{root}/link: 10 bytes, 0123456789",
        f"{root}/dlink/g: 2 bytes, gg",
        f"{root}/sub/back: 10 bytes, 0123456789",
    ]


def test_what_is_not_there_is_enoent_and_nobody_can_list_all_content(ww: Ww, cell: Path) -> None:
    root = f"/ipfs/{exported(ww)}"
    missing = str(Cid.of(b"nowhere", codec=0x55))
    said = lines(ww, cell, f"{root}/x", f"/ipfs/{missing}", "/ipfs/no-cid", f"{root}/f/x", "/ipfs")
    assert said == [
        f"{root}/x: stat: No such file or directory",
        f"/ipfs/{missing}: stat: No such file or directory",
        "/ipfs/no-cid: stat: No such file or directory",
        f"{root}/f/x: stat: Not a directory",
        "/ipfs: opendir: Operation not permitted",
    ]


def test_a_big_file_arrives_whole(ww_account: Ww, cell: Path) -> None:
    content = os.urandom(5 * MIB + 17)
    path = ww_account.export(ww_account.file("big", content))
    total = 0
    for byte in content:
        total = (total * 31 + byte) & 0xFFFFFFFF
    assert lines(ww_account, cell, "sum", path, path) == [f"{len(content)} bytes, sum {total}"] * 2


def test_every_version_of_an_address_leads_to_its_content(ww: Ww, cell: Path) -> None:
    path = ww.export(ww.file("f", b"small"), "--cid-version", "1")
    as_hex = "f" + bytes(Cid.parse(path.removeprefix("/ipfs/"))).hex()
    assert lines(ww, cell, path, f"/ipfs/{as_hex}") == [
        f"{path}: 5 bytes, small",
        f"/ipfs/{as_hex}: 5 bytes, small",
    ]


def test_a_sharded_directory_is_listed_and_searched(ww: Ww, cell: Path) -> None:
    folder = ww.tmp / "many"
    folder.mkdir()
    # Above 256 KiB of links a directory is sharded.
    for number in range(3000):
        (folder / f"{number:0>100}").write_bytes(b"%d" % number)
    root = ww.export(folder)
    (first, second) = lines(ww, cell, root, f"{root}/{1234:0>100}")
    assert first.startswith(f"{root}: directory of 3002: . .. {0:0>100} {1:0>100}")
    assert second.endswith(": 4 bytes, 1234")


def test_without_the_flag_there_is_no_ipfs_and_with_it_no_descriptor_more(ww: Ww) -> None:
    path = ww.export(ww.file("f", b"x"))
    flags = ("--fd-verbose", "--fd", "a=3", "--env", "X=1")
    bare = ww.run("run", *flags, HELLO, fds={3: ww.tmp / "f"})
    given = ww.run("run", *flags, "--with-ipfs", HELLO, fds={3: ww.tmp / "f"})
    assert bare.returncode == given.returncode == 0
    assert bare.stderr == given.stderr
    assert bare.stdout == given.stdout
    assert path


def test_without_the_flag_a_cell_finds_nothing_there(ww: Ww, cell: Path) -> None:
    path = ww.export(ww.file("f", b"x"))
    done = ww.run("run", cell, path)
    assert done.returncode == 0
    assert done.stdout.decode().startswith(f"{path}: stat: ")


@pytest.mark.parametrize("value", ["1", "true", "yes"])
@pytest.mark.parametrize("name", ["WW_WITH_IPFS", "WW_WITH_ALL"])
def test_a_variable_gives_it_too(ww: Ww, cell: Path, name: str, value: str) -> None:
    path = ww.export(ww.file("f", b"x"))
    done = ww.run("run", cell, path, env={name: value})
    assert done.stdout.decode() == f"{path}: 1 bytes, x\n"


def test_a_variable_that_says_neither_yes_nor_no_is_refused(ww: Ww, cell: Path) -> None:
    path = ww.export(ww.file("f", b"x"))
    assert b"1 bytes" not in ww.run("run", cell, path, env={"WW_WITH_IPFS": "0"}).stdout
    done = ww.run("run", cell, path, env={"WW_WITH_IPFS": "perhaps"})
    assert done.returncode == 2
    said = b"WW_WITH_IPFS is 'perhaps', which is neither yes nor no (1 or 0)"
    assert done.stderr.startswith(b"ww: error: ww run: " + said)


@pytest.mark.parametrize("env", [{"WW_WITH_EXEC": "1"}, {}])
def test_what_is_not_there_yet_says_so(ww: Ww, env: dict[str, str]) -> None:
    done = ww.run("run", *([] if env else ["--with-exec"]), HELLO, env=env)
    assert done.returncode == 2
    assert b"--with-exec is not available" in done.stderr


# Call by call


def opened(cell: Remote, path: str, rights: int = ALL_RIGHTS ^ W, **options: int) -> int:
    number, fd = cell.open(path, rights, inheriting=ALL_RIGHTS, **options)
    assert number == OK, (path, number)
    assert fd is not None
    return fd


def test_paths_stay_within_the_content_where_they_begin(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    root = exported(ww_account)
    with remote(ww_account, c_cell("remote"), "--with-ipfs") as cell:
        for path, expected in {
            f"{root}/sub/../f": OK,
            f"./{root}//./f": OK,
            f"{root}/up": OK,
            f"{root}/slash": ENOTDIR,
            f"{root}/f/": ENOTDIR,
            f"{root}/f/.": ENOTDIR,
            f"{root}/..": EPERM,
            f"{root}/../{root}/f": EPERM,
            "..": EPERM,
            f"./../{root}": EPERM,
            f"/{root}/f": EPERM,
            f"{root}/absolute": EPERM,
            f"{root}/out": EPERM,
            f"{root}/sub/../../{root}/f": EPERM,
            f"{root}/dangling": ENOENT,
            f"{root}/loop": ELOOP,
            "": ENOENT,
            "x" * 4095: ENOENT,
            f"{root}/{'x' * 300}": ENOENT,
            f"{root}/f\n": ENOENT,
        }.items():
            assert cell.open(path)[0] == expected, path
            assert cell.path_filestat(path)[0] == expected, path
        # A directory that is open is a root of its own.
        sub = opened(cell, f"{root}/sub")
        assert cell.open("g", fd=sub)[0] == OK
        assert cell.open("../f", fd=sub)[0] == EPERM
        assert cell.open("back", fd=sub)[0] == EPERM
        assert cell.open("deep/../g", fd=sub)[0] == OK


def test_symbolic_links_are_followed_read_and_told_apart(ww: Ww, c_cell: BuildFunction) -> None:
    root = exported(ww)
    with remote(ww, c_cell("remote"), "--with-ipfs") as cell:
        assert cell.readlink(f"{root}/up") == (OK, b"sub/../f")
        assert cell.readlink(f"{root}/absolute", 3) == (OK, b"/ip")
        assert cell.readlink(f"{root}/f")[0] == EINVAL
        assert cell.readlink(".")[0] == EINVAL
        for path, lookup, kind, size in (
            ("up", 0, FT_SYMLINK, 8),
            ("up", 1, FT_REGULAR, 10),
            ("dlink", 0, FT_SYMLINK, 3),
            ("dlink/", 0, FT_DIRECTORY, 0),
            ("dlink", 1, FT_DIRECTORY, 0),
        ):
            number, state = cell.path_filestat(f"{root}/{path}", lookup=lookup)
            assert number == OK
            assert state is not None
            assert (state.filetype, state.size) == (kind, size), path
        assert cell.open(f"{root}/up", lookup=0)[0] == ELOOP
        assert cell.open(f"{root}/up", lookup=1)[0] == OK


def test_nothing_can_be_written_or_made(ww: Ww, c_cell: BuildFunction) -> None:
    root = exported(ww)
    with remote(ww, c_cell("remote"), "--with-ipfs") as cell:
        for path, rights, oflags, expected in (
            ("f", R | W, 0, EROFS),
            ("f", W, 0, EROFS),
            ("f", R, TRUNC, EROFS),
            ("f", R, CREAT, OK),
            ("f", R, CREAT | EXCL, EEXIST),
            ("new", R, CREAT, EROFS),
            ("new/x", R, CREAT, EROFS),
            ("sub", R, CREAT, EISDIR),
            ("sub", W, 0, EISDIR),
            ("sub", 0, DIRECTORY, OK),
            ("f", 0, DIRECTORY, ENOTDIR),
            ("link", 0, DIRECTORY, ENOTDIR),
            ("f", R, CREAT | DIRECTORY, EINVAL),
            ("f", R, 1 << 9, EINVAL),
        ):
            assert cell.open(f"{root}/{path}", rights, oflags=oflags)[0] == expected, path
        assert cell.path("path_create_directory", 3, f"{root}/new") == EROFS
        assert cell.path("path_remove_directory", 3, f"{root}/sub") == EROFS
        assert cell.path("path_unlink_file", 3, f"{root}/f") == EROFS
        assert cell.path("path_symlink", "f", 3, f"{root}/new") == EROFS
        assert cell.path("path_rename", 3, f"{root}/f", 3, "new") == EROFS
        assert cell.path("path_link", 3, 0, f"{root}/f", 3, "new") == EROFS
        assert cell.path("path_filestat_set_times", 3, 1, f"{root}/f", 0, 0, 2) == EROFS
        file = opened(cell, f"{root}/f")
        assert cell.write(file, b"x")[0] == EBADF
        assert cell.pwrite(file, 0, b"x")[0] == EBADF
        assert cell.raw("fd_filestat_set_size", file, 1) == ENOTCAPABLE
        assert cell.raw("fd_allocate", file, 0, 100) == ENOTCAPABLE
        assert cell.raw("fd_filestat_set_times", file, 0, 0, 2) == ENOTCAPABLE
        assert cell.read(file, 100) == (OK, b"0123456789")


def test_an_open_file_is_like_any_other(ww_account: Ww, c_cell: BuildFunction) -> None:
    root = exported(ww_account)
    with remote(ww_account, c_cell("remote"), "--with-ipfs") as cell:
        one, other = opened(cell, f"{root}/f"), opened(cell, f"{root}/f", fdflags=NONBLOCK)
        assert cell.read(one, 4) == (OK, b"0123")
        assert cell.read(other, 4) == (OK, b"0123"), "each has its own position"
        assert cell.pread(one, 8, 100) == (OK, b"89")
        assert cell.seek(one, -1, 2) == (OK, 9)
        assert cell.read(one, 9) == (OK, b"9")
        assert cell.raw("fd_advise", one, 0, 0, 0) == OK
        number, state = cell.filestat(one)
        assert number == OK
        assert state is not None
        assert (state.filetype, state.size, state.nlink, state.mtim) == (FT_REGULAR, 10, 1, 0)
        assert state.ino == cell.path_filestat(f"{root}/link")[1].ino != 0  # type: ignore[union-attr]
        number, stat = cell.fdstat(one)
        assert stat is not None
        assert not stat.rights & (W | Right.FD_ALLOCATE | Right.FD_FILESTAT_SET_SIZE)
        assert stat.rights & R
        # Rights that were not asked for are not there.
        narrow = opened(cell, f"{root}/f", Right.FD_TELL)
        assert cell.read(narrow, 1)[0] == EBADF
        deep = opened(cell, f"{root}/sub", Right.PATH_OPEN)
        assert cell.readdir(deep)[0] == ENOTCAPABLE


def test_a_listing_goes_on_from_every_cookie(ww: Ww, c_cell: BuildFunction) -> None:
    root = exported(ww)
    with remote(ww, c_cell("remote"), "--with-ipfs") as cell:
        fd = opened(cell, root)
        whole = listing(cell, fd)
        assert [name for _, _, name, _ in whole[:2]] == [b".", b".."]
        assert sorted(name for _, _, name, _ in whole[2:]) == sorted(
            b"f empty sub link dlink up dangling absolute out loop slash".split()
        )
        # dag-pb does not say in its links what they lead to.
        assert {kind for _, _, _, kind in whole[2:]} == {FT_UNKNOWN}
        inodes = {name: inode for _, inode, name, _ in whole}
        for name in ("f", "sub", "link"):
            state = cell.path_filestat(f"{root}/{name}", lookup=0)[1]
            assert state is not None
            assert state.ino == inodes[name.encode()]
        assert listing(cell, fd, 40) == whole
        for index, (cookie, _, _, _) in enumerate(whole):
            raw = cell.readdir(fd, 4096, cookie)[1]
            assert raw is not None
            assert entries(raw) == whole[index + 1 :]
        # Cookies that the cell makes up do no harm.
        for cookie in (3, 7, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            assert cell.readdir(fd, 4096, cookie)[0] == OK
        assert cell.readdir(3)[0] == EPERM
        # What raw blocks lead to can be told.
        raw_root = exported(ww, "--cid-version", "1")
        kinds = {name: kind for _, _, name, kind in listing(cell, opened(cell, raw_root))}
        assert (kinds[b"f"], kinds[b"sub"]) == (FT_REGULAR, FT_UNKNOWN)


def test_no_more_may_be_open_than_any_cell_may_have_open(
    ww_account: Ww, cell: Path, c_cell: BuildFunction
) -> None:
    folder = ww_account.tmp / "many"
    folder.mkdir()
    for number in range(30):
        (folder / str(number)).write_bytes(b"%d" % number)
    os.chown(folder, ww_account.account.uid, -1)
    root = ww_account.export(folder)
    paths = [f"{root}/{number}" for number in range(30)]
    hold = ("hold", *paths)
    assert lines(ww_account, cell, *hold) == ["30, all"]
    assert lines(ww_account, cell, *hold, flags=["--nofile", "30"]) == ["30, all"]
    few = lines(ww_account, cell, *hold, flags=["--nofile", "20"])
    assert few == ["20, No file descriptors available"]
    with remote(ww_account, c_cell("remote"), "--with-ipfs", "--nofile", "3") as told:
        root = root.removeprefix("/ipfs/")
        for _ in range(5):
            fds = [opened(told, f"{root}/{number}") for number in range(3)]
            assert told.open(f"{root}/5")[0] == EMFILE
            for fd in fds:
                assert told.raw("fd_close", fd) == OK
        # A listing is a descriptor too, and there is room for it.
        folders = [opened(told, root) for _ in range(3)]
        assert {len(listing(told, fd)) for fd in folders} == {32}


def test_its_number_is_behind_the_directories_and_before_the_pathlinks(
    ww: Ww, c_cell: BuildFunction
) -> None:
    root = exported(ww)
    (ww.tmp / "dir").mkdir()
    flags = ("--with-ipfs", "--scratch", "1M", "--dir", f"{ww.tmp}/dir:/d", "--fd")
    with remote(
        ww, c_cell("remote"), *flags, "p=5,pathlink=true", fds={5: Path("/dev/null")}
    ) as cell:
        found = [cell.result("<B3xI", "fd_prestat_get", fd)[1] for fd in range(3, 8)]
        assert found == [(0, len("/d")), (0, len("/tmp")), (0, len("/ipfs")), (0, len("/")), None]
        assert cell.open(f"{root}/f", fd=5)[0] == OK
        # Nothing moves or links from one kind of directory to another.
        assert cell.path("path_rename", 5, f"{root}/f", 3, "f") == Errno.XDEV
        assert cell.path("path_link", 5, 0, f"{root}/f", 3, "f") == Errno.XDEV


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--fd", "a=5,target=3"), "the content that is served"),
        (("--fd", "ipfs=5,pathlink=true"), "a pathlink cannot be '/ipfs'"),
        (("--dir", "/tmp:/ipfs"), "cannot be at '/ipfs'"),
        (("--dir", "/tmp:ipfs"), "cannot be at 'ipfs'"),
    ],
)
def test_nothing_else_can_be_in_its_place(ww: Ww, flags: tuple[str, ...], words: str) -> None:
    done = ww.run("run", "--with-ipfs", *flags, HELLO, fds={5: Path("/dev/null")})
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert ww.run("run", *flags, HELLO, fds={5: Path("/dev/null")}).returncode == 0


def test_explain_shows_it(ww: Ww) -> None:
    text = ww.run("run", "--explain", "--with-ipfs", HELLO).stdout.decode()
    assert "with: ipfs: content of the store at /ipfs, for reading, verified by ww" in text
    plan = json.loads(ww.run("run", "--explain", "--json", "--with-all", HELLO).stdout)
    assert list(plan["with"]) == ["ipfs"], "there is no terminal here"
    assert "with:" not in ww.run("run", "--explain", HELLO).stdout.decode()


# Content that is not as it should be


def test_a_damaged_block_is_eio_and_gone_and_ww_names_it_once(ww_account: Ww, cell: Path) -> None:
    path = ww_account.export(ww_account.file("f", b"some content"), "--cid-version", "1")
    (block,) = block_files(ww_account.home)
    Path(block).chmod(0o600)
    Path(block).write_bytes(b"some Content")
    done = ww_account.run("run", "--with-ipfs", cell, path, path)
    assert done.returncode == 0
    told = (f"{path}: stat: {what}\n" for what in ("I/O error", "No such file or directory"))
    assert done.stdout.decode() == "".join(told)
    (warning,) = done.stderr.decode().splitlines()
    assert warning.startswith(f"ww: warning: block {path.removeprefix('/ipfs/')}: damaged: ")
    assert block in warning


def test_a_part_that_is_missing_or_damaged_is_eio_when_the_file_is_opened(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    content = os.urandom(600_000)
    path = ww_account.export(ww_account.file("f", content)).removeprefix("/ipfs/")
    size = {os.path.getsize(block): block for block in block_files(ww_account.home)}
    last = size[min(s for s in size if s > 1000)]
    with (ww_account.tmp / "err").open("w+b") as err:
        with remote(ww_account, c_cell("remote"), "--with-ipfs", stderr=err) as cell:
            os.rename(last, f"{last}.away")
            number, state = cell.path_filestat(path)
            assert (number, state and state.size) == (OK, 600_000)
            assert cell.open(path)[0] == EIO
            assert cell.open(path)[0] == EIO
            os.rename(f"{last}.away", last)
            fd = opened(cell, path)
            assert cell.pread(fd, 599_990, 100) == (OK, content[-10:])
        err.seek(0)
        (warning,) = err.read().splitlines()
    assert warning.startswith(b"ww: warning: block Qm")
    assert b": not in the store " in warning


@pytest.mark.parametrize("kind", ["malformed", "size", "metadata", "codec", "huge", "names"])
def test_content_that_lies_is_refused(ww_account: Ww, c_cell: BuildFunction, kind: str) -> None:
    store = Blockstore(str(ww_account.home))
    leaf = put_raw(store, b"leaf")
    makers = {
        "malformed": lambda: put_block(store, b"\x0a\x00garbage"),
        "size": lambda: put_file(store, [(leaf, 5)]),
        "metadata": lambda: put_node(store, [], unixfs.Data(unixfs.METADATA)),
        "codec": lambda: Cid.of(b"{}", codec=0x0129),
        "huge": lambda: put_node(
            store,
            [Link(leaf, "", 0)] * 3,
            unixfs.Data(unixfs.FILE, blocksizes=(1 << 62,) * 3),
        ),
        "names": lambda: put_directory(store, [("a", leaf), ("a", leaf)]),
    }
    cid = str(makers[kind]())
    own(ww_account)
    expected = {
        "malformed": (EIO, EIO),
        "size": (OK, EIO),
        "metadata": (Errno.NOTSUP, Errno.NOTSUP),
        "codec": (Errno.NOTSUP, Errno.NOTSUP),
        "huge": (Errno.OVERFLOW, Errno.OVERFLOW),
        "names": (OK, OK),
    }
    with remote(ww_account, c_cell("remote"), "--with-ipfs") as cell:
        number, fd = cell.open(cid, ALL_RIGHTS ^ W)
        assert (cell.path_filestat(cid)[0], number) == expected[kind]
        if fd is not None:
            assert cell.readdir(fd)[0] == EIO
        # And ww goes on.
        assert cell.path_filestat(str(leaf))[0] == OK


def test_a_file_that_is_too_large_is_efbig_and_its_size_can_be_seen(
    ww: Ww, c_cell: BuildFunction
) -> None:
    store = Blockstore(str(ww.home))
    cid = str(large_file(store, 256 * MIB + 1, b"x"))
    with remote(ww, c_cell("remote"), "--with-ipfs") as cell:
        number, state = cell.path_filestat(cid)
        assert (number, state and state.size) == (OK, 256 * MIB + 1)
        assert cell.open(cid)[0] == EFBIG


def test_what_is_open_at_once_is_bounded_and_what_was_closed_does_not_count(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    if shutil.disk_usage("/dev/shm").total < MIB or _available_memory() < 1 << 30:
        lacks("memory", "this takes 512 MiB of memory")
    store = Blockstore(str(ww_account.home))
    cids = [str(large_file(store, 200 * MIB, b"%d" % number)) for number in range(3)]
    own(ww_account)
    with remote(ww_account, c_cell("remote"), "--with-ipfs") as cell:
        first, second = (opened(cell, cid) for cid in cids[:2])
        assert cell.open(cids[2])[0] == Errno.NOMEM
        # The same content again is the same memory.
        again = opened(cell, cids[0])
        assert cell.raw("fd_close", first) == OK
        assert cell.open(cids[2])[0] == Errno.NOMEM
        assert cell.raw("fd_close", again) == OK
        third = opened(cell, cids[2])
        assert cell.pread(third, 200 * MIB - MIB - 4, 10)[0] == OK
        assert cell.pread(second, 0, 4) == (OK, bytes(4))


def _available_memory() -> int:
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) << 10


# The limits of the cell hold for what ww does for it


def test_a_cell_that_only_asks_ends_at_its_time(ww_account: Ww, cell: Path) -> None:
    root = f"/ipfs/{exported(ww_account)}"
    done = ww_account.run("run", "--with-ipfs", "--timeout", "1", cell, "spin", f"{root}/up")
    assert done.returncode == 66, done.stderr


def test_what_ww_does_for_a_cell_is_measured_against_its_processor_time(
    ww_account: Ww, cell: Path
) -> None:
    # So deep that a request costs the cell next to nothing and ww a lot.
    folder = ww_account.tmp / "deep"
    (folder / "/".join("abcdefghij" * 5)).mkdir(parents=True)
    for place, _, _ in os.walk(folder):
        os.chown(place, ww_account.account.uid, -1)
    path = "/".join([ww_account.export(folder), *("abcdefghij" * 5)])
    assert ww_account.run("cache", "warm", cell).returncode == 0  # that is not to take its time
    done = ww_account.run("run", "--with-ipfs", "--cpu-time", "1", cell, "spin", path, timeout=60)
    assert done.returncode == 66
    assert b"processor time while ww served its content" in done.stderr


def test_a_long_answer_does_not_hold_up_the_end(ww_account: Ww, cell: Path) -> None:
    # As many blocks as there may be, each of one byte: seconds of work for one request.
    store = Blockstore(str(ww_account.home))
    leaf = put_raw(store, b"x")
    part = put_file(store, [(leaf, 1)] * 8000)
    cid = put_file(store, [(part, 8000)] * 30)
    own(ww_account)
    begin = time.monotonic()
    done = ww_account.run("run", "--with-ipfs", "--timeout", "1", cell, f"/ipfs/{cid}")
    assert done.returncode == 66, (done.stdout, done.stderr)
    # Far less than the answer takes; a processor that is emulated is ten times as slow.
    assert time.monotonic() - begin < (60 if EMULATED else 4)


def test_a_signal_ends_ww_while_it_serves(ww_account: Ww, cell: Path) -> None:
    root = f"/ipfs/{exported(ww_account)}"
    command = [*ww_account.command, "run", "--with-ipfs", str(cell), "spin", f"{root}/up"]
    with running(ww_account, command) as (process, _, _):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


# What a cell can do that has broken out of the engine


def asked(ww: Ww, asker: Path, *args: str, how: str = "filtered") -> list[tuple[str, int, int]]:
    """What each call of the asker gave: its result, and errno."""
    done = ww.call([*variant(how), "run", "--with-ipfs", asker, *args])
    said = []
    for call in done.stdout.decode().splitlines():
        what, result, number = call.split()
        said.append((what, int(result), int(number)))
    assert said, done.stderr
    assert said[0][0] == "socket"
    assert said[0][1] >= 0
    # It ended when it wanted to, and ww said nothing but that: a real cell tells how it ended.
    (line,) = done.stderr.splitlines()
    assert b"the cell's process ended by itself, with 0" in line
    return said[1:]


def test_captured_it_gets_sealed_bytes_and_nothing_else(ww_account: Ww, asker: Path) -> None:
    path = ww_account.export(ww_account.file("f", b"0123456789"))
    said = asked(ww_account, asker, "read", path.removeprefix("/ipfs/"))
    assert said[1:] == [
        ("errno", 0, 0),
        ("size", 10, 0),
        ("write", -1, errno.EBADF),
        ("truncate", -1, errno.EINVAL),
        ("reopen", -1, errno.EPERM),
    ]


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "/etc/passwd", errno.ENOENT),
        ("/etc", "passwd", errno.ENOENT),
        ("..", "x", errno.ENOENT),
        ("", "../../../etc/passwd", errno.EPERM),
        ("", "/ipns/x", errno.ENOENT),
        ("", "", errno.ENOENT),
        ("", "x" * 4096, errno.ENOENT),
    ],
)
def test_captured_it_can_ask_for_content_only(
    ww: Ww, asker: Path, base: str, path: str, expected: int
) -> None:
    assert asked(ww, asker, "ask", base, path)[1] == ("errno", expected, 0)


@pytest.mark.parametrize(
    "args",
    [
        ("send", "1"),
        ("send", "4610"),
        ("send", "20000"),
        ("send", "150000"),
        ("send", "100000000"),
        ("empty",),
    ],
)
def test_captured_whatever_breaks_the_form_ends_the_connection_and_not_ww(
    ww_account: Ww, asker: Path, args: tuple[str, ...]
) -> None:
    said = asked(ww_account, asker, *args)
    if args[1:] == ("100000000",):
        # The kernel refuses to send that much at once, and ww sees nothing of it.
        assert said[0] == ("send", -1, errno.EMSGSIZE)
        assert said[-1] == ("errno", errno.ENOENT, 0)
    else:
        assert said[-1][:2] == ("errno", -1)


def test_captured_it_cannot_pass_descriptors_on(ww_account: Ww, asker: Path) -> None:
    assert asked(ww_account, asker, "rights")[0] == ("send", -1, errno.EPERM)
    # Without a filter, it is ww that takes none.
    said = asked(ww_account, asker, "rights", how="native")
    assert said[0] == ("send", 3, 0)
    assert said[-1][:2] == ("errno", -1)


def test_captured_it_cannot_have_more_than_one_answer_on_its_way(
    ww_account: Ww, asker: Path
) -> None:
    address = exported(ww_account).removeprefix("/ipfs/")
    said = dict(line[:2] for line in asked(ww_account, asker, "mute", "1000", address))
    # The second request ends the connection, whenever it is looked at.
    assert 2 <= said["sent"] < 1000
    assert said["taken"] == 1


def test_captured_it_cannot_ask_for_ever(ww_account: Ww, asker: Path) -> None:
    path = exported(ww_account)
    flags = ("--with-ipfs", "--cpu-time", "1")
    request = f"{path}/sub/../sub/../sub/deep"
    done = ww_account.call([*variant("filtered"), "run", *flags, asker, "flood", request])
    assert done.returncode == 66


def test_captured_it_ends_with_its_time_like_any_other(ww: Ww, asker: Path) -> None:
    done = ww.call(
        [*variant("filtered"), "run", "--with-ipfs", "--timeout", "1", str(asker), "stay"]
    )
    assert done.returncode == 66
    assert b"the cell hit its limit of time" in done.stderr

"""Granted directories: as the engine's own WASI serves them, and as a C program sees them."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BuildFunction, Ww
from tests.features import lacks
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    APPEND,
    ATIM,
    ATIM_NOW,
    CREAT,
    DIRECTORY,
    EV_READ,
    EV_WRITE,
    EXCL,
    FT_DIRECTORY,
    FT_REGULAR,
    FT_SYMLINK,
    MTIM,
    MTIM_NOW,
    NOBODY,
    NONBLOCK,
    OK,
    SYNC,
    TRUNC,
    Clock,
    Errno,
    R,
    Ready,
    Remote,
    Right,
    W,
    remote,
)
from tests.wasi.test_against_wasmtime import compare, size_and_type, times, type_and_flags

# Runs argv[1] under the engine's WASI: argv[2] is preopened as `/data`, to write if argv[3] is rw.
ENGINE = """
import sys
import wasmtime

engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
config = wasmtime.WasiConfig()
config.argv = ["remote"]
config.inherit_stdin()
config.inherit_stdout()
config.inherit_stderr()
config.preopen_dir(sys.argv[2], "/data", sys.argv[3] == "rw")
store = wasmtime.Store(engine)
store.set_wasi(config)
module = wasmtime.Module.from_file(engine, sys.argv[1])
start = linker.instantiate(store, module).exports(store)["_start"]
try:
    start(store)
except wasmtime.ExitTrap as end:
    sys.exit(end.code)
"""

LINKS = {
    "link": "f",
    "dlink": "sub",
    "dangling": "nothing",
    "abs": "/etc/passwd",
    "out": "../x",
    "loop": "loop",
    "updown": "sub/../f",
    "dslash": "sub/",
    "fslash": "f/",
}


def fill(folder: Path) -> Path:
    """A directory with some of everything, which the cell of either account may use."""
    folder.mkdir()
    (folder / "f").write_bytes(b"0123456789")
    (folder / "sub").mkdir()
    (folder / "sub" / "g").write_bytes(b"g")
    (folder / "empty").mkdir()
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo")
    return folder


def give(folder: Path, uid: int) -> None:
    """Make it the cell's own, where this is not the cell's account."""
    if os.geteuid() != 0:
        return
    for place, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(os.path.join(place, name), uid, -1, follow_symlinks=False)


Step = Callable[[Remote], Any]


def opening(path: str, rights: int = R, **options: int) -> tuple[str, Step]:
    """Open, tell what it is, and close."""

    def step(cell: Remote) -> object:
        number, opened = cell.open(path, rights, **options)
        if opened is None:
            return number
        told = type_and_flags(cell.fdstat(opened))
        cell.raw("fd_close", opened)
        return number, told

    words = [f"{key}={value}" for key, value in {"rights": int(rights), **options}.items()]
    return f"open {path[:20]!r} {' '.join(words)}", step


def calling(name: str, *numbers: int | str) -> tuple[str, Step]:
    return f"{name} {numbers}", lambda cell: cell.path(name, *numbers)


def stating(path: str, lookup: int) -> tuple[str, Step]:
    def step(cell: Remote) -> object:
        number, stat = cell.path_filestat(path, lookup=lookup)
        # How large a directory is is its file system's business.
        if stat is None or stat.filetype == FT_DIRECTORY:
            return number, stat and stat.nlink
        return size_and_type((number, stat))

    return f"stat {path!r} lookup={lookup}", step


def reading_link(path: str, room: int = 256) -> tuple[str, Step]:
    return f"readlink {path!r} {room}", lambda cell: cell.readlink(path, room)


def entries(raw: bytes) -> list[tuple[int, int, bytes, int]]:
    """Cookie, inode, name and type of each whole one."""
    found = []
    while len(raw) >= 24:
        cookie, inode, size, kind = struct.unpack_from("<QQIB", raw)
        if len(raw) < 24 + size:
            break
        found.append((cookie, inode, raw[24 : 24 + size], kind))
        raw = raw[24 + size :]
    return found


def listing(cell: Remote, fd: int = 3, size: int = 4096) -> list[tuple[int, int, bytes, int]]:
    """All entries, with as many calls as it takes."""
    found: list[tuple[int, int, bytes, int]] = []
    while True:
        number, raw = cell.readdir(fd, size, found[-1][0] if found else 0)
        assert (number, raw is None) == (OK, False)
        assert raw is not None
        part = entries(raw)
        if not part:
            assert not raw, "a buffer too small for one entry"
            return found
        found += part


def names_and_types(cell: Remote, size: int) -> object:
    """In order only as far as it is one: `.` and `..` come first."""
    found = [(name, kind) for _, _, name, kind in listing(cell, size=size)]
    return found[:2], sorted(found[2:])


def goes_on(cell: Remote, cookies: int) -> object:
    """Whether a listing goes on from each of its first cookies as it did the first time."""
    whole = listing(cell)
    for index in range(cookies):
        raw = cell.readdir(3, 4096, whole[index][0])[1]
        assert raw is not None
        assert entries(raw) == whole[index + 1 :]
    return len(whole)


LONG = "x" * 256
STEPS: dict[str, Step] = dict(
    [
        ("list", lambda cell: names_and_types(cell, 4096)),
        ("list in pieces", lambda cell: names_and_types(cell, 60)),
        ("list from each cookie", lambda cell: goes_on(cell, 8)),
        ("list into nothing", lambda cell: cell.readdir(3, 0)),
        ("list into one byte", lambda cell: len(cell.readdir(3, 1)[1] or b"")),
        ("list a head", lambda cell: len(cell.readdir(3, 24)[1] or b"")),
        ("list from nowhere", lambda cell: cell.readdir(3, 100, (1 << 64) - 1)),
        opening("f", ALL_RIGHTS),
        opening("f", R),
        opening("f", W),
        opening("f", 0),
        opening("sub", ALL_RIGHTS),
        opening("sub", R),
        opening("sub", W),
        opening("sub", W, oflags=DIRECTORY),
        opening("sub", R | Right.FD_READDIR, oflags=DIRECTORY),
        opening("sub", 0, oflags=CREAT),
        opening("sub", R, oflags=CREAT | DIRECTORY),
        opening("sub", 0, oflags=TRUNC),
        opening("new1", R | W, oflags=CREAT),
        opening("new2", R, oflags=CREAT),
        opening("new3", 0, oflags=CREAT | EXCL),
        opening("new3", R, oflags=CREAT | EXCL),
        opening("new4/", W, oflags=CREAT),
        opening("new5", W, oflags=CREAT | DIRECTORY),
        opening("sub/new6", R | W, oflags=CREAT),
        opening("f", R, oflags=DIRECTORY),
        opening("f", R, oflags=CREAT),
        opening("link", R, lookup=0),
        opening("link", R),
        opening("link", R, oflags=CREAT | EXCL),
        opening("link", R, lookup=0, oflags=DIRECTORY),
        opening("dlink", R, oflags=DIRECTORY),
        opening("dlink", R, lookup=0, oflags=DIRECTORY),
        opening("dlink/", R, lookup=0),
        opening("dlink/g", R, lookup=0),
        opening("dangling", R),
        opening("dangling", W, oflags=CREAT, lookup=0),
        opening("dangling", W, oflags=CREAT | EXCL),
        opening("dangling", W, oflags=CREAT),
        opening("abs", R),
        opening("abs", R, lookup=0),
        opening("abs", W, oflags=CREAT),
        opening("out", R),
        opening("out", W, oflags=CREAT),
        opening("loop", R),
        opening("loop", R, lookup=0),
        opening("updown", R),
        opening("dslash", R),
        opening("fslash", R),
        opening("fifo", R | W),
        opening("/", R),
        opening("/f", R),
        opening("..", R),
        opening(".", R),
        opening("./", R),
        opening("sub/..", R),
        opening("sub/../..", R),
        opening("missing/..", R),
        opening("missing/../..", R),
        opening("f/..", R),
        opening("f/../f", R),
        opening("f/.", R),
        opening("f/x", R),
        opening("sub/.", R),
        opening("f/", R),
        opening("f//", R),
        opening("", R),
        opening("f\0", R),
        opening("f\0g", R),
        opening(LONG, R),
        opening("x/" * 2100, R),
        opening("./" * 2047 + "f", R),
        opening("./" * 2048 + "f", R),
        ("open no text", lambda cell: cell.open(b"n\xff")),
        opening("f", R, fdflags=APPEND),
        opening("f", W, fdflags=APPEND),
        opening("f", R, fdflags=SYNC),
        opening("f", R, fdflags=NONBLOCK),
        opening("sub", R, fdflags=NONBLOCK),
        opening("f", R, oflags=TRUNC),
        opening("f", W, oflags=TRUNC),
        *(stating(path, 1) for path in ("f", "link", "link/", "f/", "", ".", "sub", "fifo")),
        *(stating(path, 1) for path in ("abs", "out", "dangling", "missing", "..", "/f", "loop")),
        *(stating(path, 0) for path in ("f", "link", "link/", "dlink/", "abs", "loop", "sub/")),
        *(reading_link(path) for path in ("link", "link/", "dlink/", "abs", "out", "f", ".", "")),
        *(reading_link(path) for path in ("missing", "..", "updown")),
        reading_link("updown", 3),
        reading_link("updown", 0),
        calling("path_create_directory", 3, "d1"),
        calling("path_create_directory", 3, "d1"),
        calling("path_create_directory", 3, "d2/"),
        calling("path_create_directory", 3, "d3/x"),
        calling("path_create_directory", 3, "f"),
        calling("path_create_directory", 3, "f/x"),
        calling("path_create_directory", 3, "."),
        calling("path_create_directory", 3, ".."),
        calling("path_create_directory", 3, "d1/.."),
        calling("path_create_directory", 3, ""),
        calling("path_create_directory", 3, "/d4"),
        calling("path_create_directory", 3, "link"),
        calling("path_create_directory", 3, "loop/"),
        calling("path_create_directory", 3, "dlink/d5"),
        calling("path_create_directory", 3, "out/d5"),
        calling("path_create_directory", 3, "abs"),
        calling("path_remove_directory", 3, "d1"),
        calling("path_remove_directory", 3, "d2/"),
        calling("path_remove_directory", 3, "sub"),
        calling("path_remove_directory", 3, "f"),
        calling("path_remove_directory", 3, "f/"),
        calling("path_remove_directory", 3, "."),
        calling("path_remove_directory", 3, ".."),
        calling("path_remove_directory", 3, "empty/."),
        calling("path_remove_directory", 3, "empty/.."),
        calling("path_remove_directory", 3, "missing"),
        calling("path_remove_directory", 3, ""),
        calling("path_remove_directory", 3, "dlink"),
        calling("path_remove_directory", 3, "dlink/"),
        calling("path_remove_directory", 3, "/"),
        calling("path_unlink_file", 3, "sub"),
        calling("path_unlink_file", 3, "sub/"),
        calling("path_unlink_file", 3, "f/"),
        calling("path_unlink_file", 3, "link/"),
        calling("path_unlink_file", 3, "dlink/"),
        calling("path_unlink_file", 3, "."),
        calling("path_unlink_file", 3, ".."),
        calling("path_unlink_file", 3, "missing"),
        calling("path_unlink_file", 3, "missing/"),
        calling("path_unlink_file", 3, ""),
        calling("path_unlink_file", 3, "new1"),
        calling("path_unlink_file", 3, "dangling"),
        calling("path_unlink_file", 3, "abs"),
        calling("path_symlink", "f", 3, "s1"),
        calling("path_symlink", "f", 3, "s1"),
        calling("path_symlink", "/etc/passwd", 3, "s2"),
        calling("path_symlink", "../..", 3, "s3"),
        calling("path_symlink", "", 3, "s4"),
        calling("path_symlink", "f", 3, "s5/"),
        calling("path_symlink", "f", 3, "sub/"),
        calling("path_symlink", "f", 3, ""),
        calling("path_symlink", "f", 3, "."),
        calling("path_symlink", "f", 3, ".."),
        calling("path_symlink", "f", 3, "/s6"),
        calling("path_symlink", "f", 3, "missing/s6"),
        opening("s3", R),
        opening("s3/etc/passwd", R),
        calling("path_link", 3, 0, "f", 3, "l1"),
        calling("path_link", 3, 1, "f", 3, "l2"),
        calling("path_link", 3, 0, "f", 3, "l1"),
        calling("path_link", 3, 0, "f/", 3, "l3"),
        calling("path_link", 3, 0, "f", 3, "l4/"),
        calling("path_link", 3, 0, "sub", 3, "l5"),
        calling("path_link", 3, 0, "sub/", 3, "l5"),
        calling("path_link", 3, 0, "link", 3, "l6"),
        calling("path_link", 3, 0, "missing", 3, "l9"),
        calling("path_link", 3, 0, "f", 3, "../l"),
        calling("path_link", 3, 0, "../f", 3, "l"),
        calling("path_link", 3, 0, "f", 3, ""),
        calling("path_link", 3, 0, "", 3, "l"),
        calling("path_link", 3, 0, ".", 3, "l"),
        calling("path_link", 3, 0, "f", 3, "."),
        calling("path_link", 3, 0, "f", 3, "sub/"),
        calling("path_link", 3, 0, "f", 3, "l1/"),
        calling("path_rename", 3, "l1", 3, "m1"),
        calling("path_rename", 3, "m1", 3, "m1"),
        calling("path_rename", 3, "missing", 3, "m2"),
        calling("path_rename", 3, "m1/", 3, "m2"),
        calling("path_rename", 3, "m1", 3, "m2/"),
        calling("path_rename", 3, "m1", 3, "empty"),
        calling("path_rename", 3, "m1", 3, "sub/"),
        calling("path_rename", 3, "m1", 3, "sub/m1"),
        calling("path_rename", 3, "empty", 3, "f"),
        calling("path_rename", 3, "empty", 3, "sub"),
        calling("path_rename", 3, "empty/", 3, "e2"),
        calling("path_rename", 3, "e2", 3, "e3/"),
        calling("path_rename", 3, "e3/", 3, "e4/"),
        calling("path_rename", 3, "dlink/", 3, "e5"),
        calling("path_rename", 3, "e4", 3, "e4/x"),
        calling("path_rename", 3, ".", 3, "e6"),
        calling("path_rename", 3, "e4", 3, "."),
        calling("path_rename", 3, "..", 3, "e6"),
        calling("path_rename", 3, "e4", 3, ".."),
        calling("path_rename", 3, "", 3, "e6"),
        calling("path_rename", 3, "e4", 3, ""),
        calling("path_rename", 3, "e4", 3, "/e7"),
        calling("path_rename", 3, "sub", 3, "e4/.."),
        calling("path_rename", 99, "f", 3, "g"),
        calling("path_filestat_set_times", 3, 1, "f", 10**18, 2 * 10**18 + 3, ATIM | MTIM),
        ("times of f", lambda cell: times(cell.path_filestat("f"))),
        calling("path_filestat_set_times", 3, 1, "link", 5 * 10**9, 6, ATIM),
        ("times of f again", lambda cell: times(cell.path_filestat("f"))),
        calling("path_filestat_set_times", 3, 0, "link", 7 * 10**9, 8 * 10**9, ATIM | MTIM),
        ("times of link", lambda cell: times(cell.path_filestat("link", lookup=0))),
        calling("path_filestat_set_times", 3, 1, "f", 5, 6, ATIM | ATIM_NOW),
        calling("path_filestat_set_times", 3, 1, "f", 5, 6, 0),
        calling("path_filestat_set_times", 3, 1, "f", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("path_filestat_set_times", 3, 1, "", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("path_filestat_set_times", 3, 1, ".", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("path_filestat_set_times", 3, 1, "missing", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("path_filestat_set_times", 3, 1, "f/", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("path_filestat_set_times", 3, 1, "out", 5, 6, ATIM_NOW | MTIM_NOW),
        calling("fd_filestat_set_times", 3, 5, 6, ATIM | MTIM),
        ("times of the directory", lambda cell: times(cell.filestat(3))),
        *(calling(name, 3) for name in ("fd_sync", "fd_datasync")),
        calling("fd_fdstat_set_flags", 3, 0),
        calling("fd_allocate", 3, 0, 1),
        calling("fd_advise", 3, 0, 1, 0),
        calling("fd_filestat_set_size", 3, 0),
        ("fd_fdstat_get", lambda cell: type_and_flags(cell.fdstat(3))),
        ("fd_fdstat_get: rights", lambda cell: cell.fdstat(3)),
        ("fd_read", lambda cell: cell.read(3, 1)),
        ("fd_write", lambda cell: cell.write(3, b"x")),
        ("fd_pread", lambda cell: cell.pread(3, 0, 1)),
        ("fd_pwrite", lambda cell: cell.pwrite(3, 0, b"x")),
        ("fd_seek", lambda cell: cell.seek(3, 0)),
        ("fd_tell", lambda cell: cell.tell_position(3)),
        ("sock_recv", lambda cell: cell.recv(3, 1)),
        ("sock_send", lambda cell: cell.send(3, b"x")),
        ("sock_accept", lambda cell: cell.accept(3)),
        ("sock_shutdown", lambda cell: cell.raw("sock_shutdown", 3, 1)),
        ("poll to read", lambda cell: cell.poll(Ready(1, EV_READ, 3))),
        ("poll to write", lambda cell: cell.poll(Ready(1, EV_WRITE, 3))),
        ("poll with a clock", lambda cell: cell.poll(Ready(1, EV_WRITE, 3), Clock(2, 0))),
        ("fd_prestat_get", lambda cell: cell.result("<B3xI", "fd_prestat_get", 3)),
        ("fd_prestat_dir_name", lambda cell: dir_name(cell, 5)),
        ("fd_prestat_dir_name, no room", lambda cell: dir_name(cell, 4)),
        ("fd_prestat_dir_name, more room", lambda cell: dir_name(cell, 9)),
        ("fd_prestat_get below", lambda cell: prestat_below(cell)),
        ("open from below", lambda cell: from_below(cell)),
        ("renumber and close", lambda cell: renumber(cell)),
        ("list in the end", lambda cell: names_and_types(cell, 4096)),
    ]
)


def dir_name(cell: Remote, size: int) -> object:
    at = cell.scratch + 0x9000
    cell.poke(at, bytes(16))
    return cell.raw("fd_prestat_dir_name", 3, at, size), cell.peek(at, 16)


def prestat_below(cell: Remote) -> object:
    number = cell.open("sub", ALL_RIGHTS & ~W, inheriting=ALL_RIGHTS)[1]
    assert number is not None
    said = cell.result("<B3xI", "fd_prestat_get", number)
    cell.raw("fd_close", number)
    return said


def from_below(cell: Remote) -> object:
    """What can be reached from a directory that was opened, and where its end is."""
    number = cell.open("sub", ALL_RIGHTS & ~W, inheriting=ALL_RIGHTS)[1]
    assert number is not None
    said: list[object] = [
        cell.open("../f", fd=number),
        cell.open("..", fd=number),
        size_and_type(cell.path_filestat("g", fd=number)),
        cell.path("path_create_directory", number, "made"),
        cell.path("path_rename", number, "made", 3, "from-below"),
        cell.path("path_remove_directory", 3, "from-below"),
        cell.path("path_link", number, 0, "g", 3, "g-linked"),
    ]
    errno_, file = cell.open("g", R | W | Right.FD_SEEK, fd=number)
    said.append(errno_)
    if file is not None:
        said += [cell.write(file, b"written"), cell.seek(file, 0), cell.read(file, 10)]
        cell.raw("fd_close", file)
    cell.raw("fd_close", number)
    return said


def renumber(cell: Remote) -> object:
    first, second = (cell.open("sub", ALL_RIGHTS & ~W)[1] for _ in range(2))
    assert first is not None
    assert second is not None
    said = [cell.raw("fd_renumber", first, second), cell.raw("fd_close", first)]
    return [*said, cell.path_filestat("g", fd=second)[0], cell.raw("fd_close", second)]


# Where this host is meant to answer otherwise than the engine, and why.
_POSIX_SLASH = "a trailing slash, as Linux and POSIX have it; the engine does not"
_IS_A_DIRECTORY = "EISDIR, as read(2) and the like say of a directory; the engine says EBADF"
_ITS_OWN_EVENT = "an event of its own, so that the others are told as well"
_NEVER_WAITS = "what is neither a file nor a directory is refused: opening it could wait or act"
EVERYWHERE = {
    opening("f", R, fdflags=SYNC)[0]: "the engine does not have it; open(2) does",
    **{calling(name, 3)[0]: "as fsync(2) of a directory" for name in ("fd_sync", "fd_datasync")},
    calling("fd_fdstat_set_flags", 3, 0)[0]: _IS_A_DIRECTORY,
    calling("fd_allocate", 3, 0, 1)[0]: _IS_A_DIRECTORY,
    calling("fd_advise", 3, 0, 1, 0)[0]: _IS_A_DIRECTORY,
    calling("fd_filestat_set_size", 3, 0)[0]: _IS_A_DIRECTORY,
    **dict.fromkeys(
        ("fd_read", "fd_write", "fd_pread", "fd_pwrite", "fd_seek", "fd_tell"), _IS_A_DIRECTORY
    ),
    "fd_fdstat_get: rights": "rights are exact here; the engine claims them all",
    **dict.fromkeys(("poll to read", "poll to write", "poll with a clock"), _ITS_OWN_EVENT),
}
DIFFERENCES = {
    "r": EVERYWHERE,
    "rw": {
        **EVERYWHERE,
        opening("fifo", R | W)[0]: _NEVER_WAITS,
        calling("path_remove_directory", 3, "d2/")[0]: _POSIX_SLASH,
        calling("path_remove_directory", 3, "dlink/")[0]: _POSIX_SLASH,
        calling("path_unlink_file", 3, "dlink/")[0]: _POSIX_SLASH,
        calling("path_link", 3, 0, "f", 3, "l1/")[0]: _POSIX_SLASH,
        calling("path_link", 3, 1, "f", 3, "l2")[0]: "links are followed if that is asked for",
        "list in the end": "follows from what was and was not taken away above",
    },
}


@contextmanager
def engine(wasm: Path, folder: Path, mode: str) -> Iterator[Remote]:
    commands_out, commands = os.pipe()
    answers, answers_in = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(wasm), str(folder), mode],
        stdin=commands_out,
        stdout=answers_in,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(commands_out)
    os.close(answers_in)
    cell = Remote(process, commands, answers)
    try:
        yield cell
        assert cell.end() == 0
    finally:
        cell.close()
        os.close(answers)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def snapshot(folder: Path) -> dict[str, tuple[int, object]]:
    found: dict[str, tuple[int, object]] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            state = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(folder))] = (state.st_mode & ~0o777, content)
    return found


@pytest.fixture
def beside(account_folders: Path, tmp_path: Path) -> Path:
    """A folder that every account can pass through."""
    folder = account_folders / tmp_path.name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_directory_behaves_as_under_the_engine(
    ww: Ww, c_cell: BuildFunction, beside: Path, mode: str
) -> None:
    folders = [fill(beside / name) for name in ("engine", "ww")]
    give(folders[1], ww.account.uid or NOBODY)
    before = snapshot(folders[1])
    # Where they cannot be set, they are those of the two directories.
    steps = {name: step for name, step in STEPS.items() if mode == "rw" or "times of" not in name}
    with engine(c_cell("remote"), folders[0], mode) as cell:
        theirs = {name: step(cell) for name, step in steps.items()}
    with (
        opened(folders[1]) as fd,
        remote(ww, c_cell("remote"), "--fd", f"data=3,mode={mode}", fds={3: fd}) as cell,
    ):
        ours = {name: step(cell) for name, step in steps.items()}
    compare(ours, theirs, DIFFERENCES[mode])
    if mode == "r":
        assert snapshot(folders[1]) == before
    else:
        left, right = snapshot(folders[0]), snapshot(folders[1])
        # What the differences above leave behind.
        assert left.pop("d2")
        assert right.pop("l2")
        assert left == right


# --- beyond what the engine has ------------------------------------------------------------------


def lines(ww: Ww, wasm: Path, flags: list[str], fds: dict[int, int], *calls: str) -> list[str]:
    done = ww.run("run", *flags, wasm, *calls, fds=fds)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


WASI = {
    number: Errno[name.removeprefix("E")].value
    for number, name in errno.errorcode.items()
    if name.removeprefix("E") in Errno.__members__
}


def failed(call: str, number: int) -> str:
    return f"{call} {WASI[number]} -1"


def test_a_directory_from_c(ww_account: Ww, c_cell: BuildFunction, beside: Path) -> None:
    folder = fill(beside / "d")
    give(folder, ww_account.account.uid or NOBODY)
    with opened(folder) as fd:
        said = lines(
            ww_account,
            c_cell("libc"),
            ["--fd", "data=3,mode=rw"],
            {3: fd},
            "fread /data/f",
            "fread /data/link",
            "fread /data/updown",
            "fputs /data/new w content",
            "fputs /data/new a -more",
            "fread /data/new",
            "mkdir /data/made",
            "rename /data/new /data/made/moved",
            "symlink ../f /data/made/up",
            "fread /data/made/up",
            "readlink /data/made/up",
            "link /data/made/moved /data/hard",
            "stat /data/hard",
            "unlink /data/hard",
            "truncate /data/made/moved 3",
            "utimens /data/made/moved",
            "opendir /data/empty",
            "rmdir /data/empty",
            "rmdir /data/made",
            "fread /data/out",
            "fread /data/abs",
            "fread /data/../etc/passwd",
            "fread /etc/passwd",
            "open /data r+directory",
            "open /data/fifo r",
            "open /data/f w+append",
            "getfl 5",
            "isatty 4",
        )
    assert said == [
        "fread 0 0123456789",
        "fread 0 0123456789",
        "fread 0 0123456789",
        "fputs 0 7",
        "fputs 0 5",
        "fread 0 content-more",
        "mkdir 0 0",
        "rename 0 0",
        "symlink 0 0",
        "fread 0 0123456789",
        "readlink 0 ../f",
        "link 0 0",
        "stat 0 file 12",
        "unlink 0 0",
        "truncate 0 0",
        "utimens 0 0",
        "opendir 0 . ..",
        "rmdir 0 0",
        failed("rmdir", errno.ENOTEMPTY),
        failed("fread", errno.EPERM),
        failed("fread", errno.EPERM),
        failed("fread", errno.EPERM),
        failed("fread", errno.ENOENT),
        "open 0 4",
        failed("open", errno.EACCES),
        "open 0 5",
        "getfl 0 w+append",
        f"isatty {WASI[errno.ENOTTY]} 0",
    ]
    assert (folder / "made" / "moved").read_bytes() == b"con"
    assert (folder / "made" / "moved").stat().st_uid == (ww_account.account.uid or NOBODY)
    assert os.readlink(folder / "made" / "up") == "../f"


def test_a_directory_to_read_from_c(ww_account: Ww, c_cell: BuildFunction, beside: Path) -> None:
    folder = fill(beside / "d")
    give(folder, ww_account.account.uid or NOBODY)
    before = snapshot(folder)
    calls = [
        "open /data/f rw",
        "open /data/f w",
        "open /data/f r+trunc",
        "open /data/f r+creat",
        "open /data/new w+creat",
        "mkdir /data/new",
        "rmdir /data/empty",
        "unlink /data/f",
        "rename /data/f /data/new",
        "symlink f /data/new",
        "link /data/f /data/new",
        "utimens /data/f",
        "truncate /data/f 0",
    ]
    with opened(folder) as fd:
        flags = ["--fd", "data=3,mode=r"]
        said = lines(ww_account, c_cell("libc"), flags, {3: fd}, *calls, "fread /data/f")
    assert said[-1] == "fread 0 0123456789"
    assert said[:-1] == [failed(call.split()[0], errno.EPERM) for call in calls]
    assert snapshot(folder) == before


def test_directories_and_pathlinks_side_by_side(
    ww: Ww, c_cell: BuildFunction, beside: Path
) -> None:
    folders = [fill(beside / name) for name in ("first", "second")]
    for folder in folders:
        give(folder, ww.account.uid or NOBODY)
    with opened(folders[0]) as first, opened(folders[1]) as second:
        flags = ["--fd", "a=3,mode=rw", "--fd", "b=4,mode=rw"]
        flags += ["--fd", "file=5,pathlink=true,mode=r"]
        with open(folders[0] / "f", "rb") as file:
            said = lines(
                ww,
                c_cell("libc"),
                flags,
                {3: first, 4: second, 5: file.fileno()},
                "opendir /",
                "fread /file",
                "mkdir /a/x",
                "rename /a/x /a/y",
                "rename /a/f /b/moved",
                "link /a/f /b/linked",
                "rename /a/f /moved",
                "rename /file /a/moved",
                "link /file /a/linked",
                "symlink x /link",
                "mkdir /c",
            )
    assert said == [
        "opendir 0 . .. file",
        "fread 0 0123456789",
        "mkdir 0 0",
        "rename 0 0",
        *[failed("rename", errno.EXDEV), failed("link", errno.EXDEV)],
        *[failed("rename", errno.EXDEV)] * 2,
        failed("link", errno.EXDEV),
        *[failed("symlink", errno.EROFS), failed("mkdir", errno.EROFS)],
    ]


@pytest.mark.parametrize("size", [300, 4096, 65536])
def test_a_big_directory_is_listed_in_many_calls(
    ww: Ww, c_cell: BuildFunction, beside: Path, size: int
) -> None:
    folder = beside / "d"
    folder.mkdir()
    for index in range(2000):
        (folder / f"{index:x<{1 + index % 200}}").touch()
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("x")
    give(folder, ww.account.uid or NOBODY)
    with (
        opened(folder) as fd,
        remote(ww, c_cell("remote"), "--fd", "data=3,mode=r", fds={3: fd}) as cell,
    ):
        found = listing(cell, size=size)
        assert listing(cell, fd=10, size=size) == found
        stat = cell.filestat(3)[1]
    assert stat is not None
    assert [entry[1:] for entry in found[:2]] == [
        (stat.ino, b".", FT_DIRECTORY),
        (stat.ino, b"..", FT_DIRECTORY),
    ]
    expected = {
        os.fsencode(entry.name): (
            entry.inode(),
            FT_SYMLINK if entry.is_symlink() else FT_DIRECTORY if entry.is_dir() else FT_REGULAR,
        )
        for entry in os.scandir(folder)
    }
    assert len(found) == 2 + len(expected)
    assert {name: (inode, kind) for _, inode, name, kind in found[2:]} == expected


def test_from_c_a_big_directory_is_whole(ww: Ww, c_cell: BuildFunction, beside: Path) -> None:
    folder = beside / "d"
    folder.mkdir()
    for index in range(1500):
        (folder / f"name-{index}").touch()
    give(folder, ww.account.uid or NOBODY)
    with opened(folder) as fd:
        (said,) = lines(ww, c_cell("libc"), ["--fd", "d=3,mode=r"], {3: fd}, "opendir /d")
    assert sorted(said.split()[2:]) == sorted([".", "..", *os.listdir(folder)])


def test_as_many_are_open_as_the_limit_says(ww: Ww, c_cell: BuildFunction, beside: Path) -> None:
    folder = fill(beside / "d")
    give(folder, ww.account.uid or NOBODY)
    flags = ["--fd", "data=3,mode=rw", "--nofile", "4"]
    with opened(folder) as fd, remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
        numbers = [cell.open("f")[1] for _ in range(4)]
        assert numbers == [4, 5, 6, 7]
        assert cell.open("f") == (Errno.MFILE, None)
        assert cell.open("new", W, oflags=CREAT) == (Errno.MFILE, None)
        assert cell.raw("fd_close", 5) == OK
        assert cell.open("sub/../f") == (OK, 5)
        # A path through many directories takes no more of them than of the kernel's.
        assert cell.path_filestat("sub/../" * 500 + "f")[0] == OK
    assert not (folder / "new").exists()


def test_what_is_written_below_counts_as_output(
    ww: Ww, c_cell: BuildFunction, beside: Path
) -> None:
    folder = fill(beside / "d")
    give(folder, ww.account.uid or NOBODY)
    calls = [f"open /data/{name} w+creat+trunc" for name in "ab"]
    calls += ["write 4 12345", "write 5 67890"]
    flags = ["--fd", "data=3,mode=rw", "--no-stdio", "--output"]
    with opened(folder) as fd:
        said = lines(ww, c_cell("libc"), [*flags, "1000"], {3: fd}, *calls, "write 4 more")
        assert said == []
        assert (folder / "a").read_bytes() == b"12345more"
        # The lines that the program prints count too: these until there.
        limit = len("open 0 4\nopen 0 5\nwrite 0 5\n") + len("12345") + 2
        flags.append(str(limit))
        done = ww.run("run", *flags, c_cell("libc"), *calls, "write 4 more", fds={3: fd})
    assert done.returncode == 66
    assert (folder / "b").read_bytes() == b"67"


def test_a_file_that_is_larger_than_the_output_may_be_is_written_all_the_same(
    ww_account: Ww, c_cell: BuildFunction, beside: Path
) -> None:
    folder = fill(beside / "d")
    with (folder / "a").open("wb") as log:
        log.truncate(1 << 20)
    give(folder, ww_account.account.uid or NOBODY)
    flags = ("--dir", f"{folder}:/d:rw", "--output", "1000")
    with remote(ww_account, c_cell("remote"), *flags) as cell:
        _, fd = cell.open("a", W, fdflags=APPEND)
        assert fd is not None
        assert cell.write(fd, b"more") == (OK, 4)
    assert (folder / "a").stat().st_size == (1 << 20) + 4


def test_a_directory_that_cannot_be_had_is_named_as_its_user_knows_it(
    ww_account: Ww, c_cell: BuildFunction, beside: Path
) -> None:
    gone = beside / "gone"
    gone.mkdir()
    give(gone, ww_account.account.uid or NOBODY)
    with opened(gone) as fd:
        gone.rmdir()
        done = ww_account.run("run", "--fd", "data=3", c_cell("libc"), fds={3: fd})
    assert done.returncode == 67
    said = b"ww: error: jail: directories: the directory granted as /data: cannot re-root it: "
    assert done.stderr == said + b"it was deleted\n"


def test_a_directory_that_the_cells_user_may_not_read_is_named_with_what_to_do(
    ww: Ww, c_cell: BuildFunction, beside: Path
) -> None:
    if os.geteuid() != 0:
        lacks("root", "the cells of an ordinary user are that user")
    closed = beside / "closed"
    closed.mkdir(mode=0o700)
    done = ww.run("run", "--dir", f"{beside}:/a", "--dir", f"{closed}:/b", c_cell("libc"))
    assert done.returncode == 67
    said = b"ww: error: jail: directories: the directory granted as /b: Permission denied ("
    assert done.stderr.startswith(said)
    assert b"--uid" in done.stderr

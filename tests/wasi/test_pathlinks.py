"""Grants that can be opened by name: what a program finds in `/`, and all it can do there."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import BuildFunction, Ww
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    APPEND,
    CREAT,
    DIRECTORY,
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOTCAPABLE,
    ENOTDIR,
    EV_READ,
    EXCL,
    FT_DIRECTORY,
    FT_REGULAR,
    FT_STREAM,
    FT_SYMLINK,
    FT_UNKNOWN,
    NONBLOCK,
    OK,
    TRUNC,
    Errno,
    R,
    Ready,
    Remote,
    Right,
    W,
    opened,
    remote,
    shared_ww,
)

CONTENT = b"0123456789"
DATA = ("--fd", "data=3,target=20,pathlink=true")
WRITING_CALLS = [
    "write 20 X",
    "mkdir /d",
    "mkdir /data",
    "rmdir /data",
    "rmdir /",
    "unlink /data",
    "rename /data /other",
    "rename /data /pipe",
    "symlink /data /other",
    "symlink target /data",
    "link /data /other",
    "utimens /data",
]


class Kept(NamedTuple):
    """A cell with a file at 20, as `/data`, and the host's number of the same."""

    cell: Remote
    host: int
    path: Path


@pytest.fixture(scope="module")
def kept(
    account_folders: Path, c_cell: BuildFunction, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    """One for all tests that do not need a cell of their own."""
    path = tmp_path_factory.mktemp("files") / "f"
    path.touch()
    ww = shared_ww(account_folders, "pathlinks")
    with opened(path) as fd, remote(ww, c_cell("remote"), *DATA, fds={3: fd}) as cell:
        yield Kept(cell, fd, path)


@pytest.fixture
def path(kept: Kept) -> Path:
    """The file, as new."""
    os.ftruncate(kept.host, 0)
    os.pwrite(kept.host, CONTENT, 0)
    os.lseek(kept.host, 0, os.SEEK_SET)
    fcntl.fcntl(kept.host, fcntl.F_SETFL, os.O_RDWR)
    return kept.path


@pytest.fixture
def host(kept: Kept, path: Path) -> int:
    return kept.host


@pytest.fixture
def cell(kept: Kept, path: Path) -> Remote:
    """The cell, with nothing open but what it was granted."""
    for number in range(4, 20):
        kept.cell.raw("fd_close", number)
    return kept.cell


@pytest.fixture
def own_cell(ww: Ww, c_cell: BuildFunction, host: int) -> Iterator[Remote]:
    """The same, for a test that closes or narrows what was granted."""
    with remote(ww, c_cell("remote"), *DATA, fds={3: host}) as made:
        yield made


def lines(ww: Ww, wasm: Path, flags: list[str], fds: dict[int, int], *calls: str) -> list[str]:
    done = ww.run("run", *flags, wasm, *calls, fds=fds)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


# --- as a C program sees it -----------------------------------------------------------------------


def test_a_file_is_opened_by_its_name_from_c(
    ww_account: Ww, c_cell: BuildFunction, host: int, path: Path
) -> None:
    assert lines(
        ww_account,
        c_cell("libc"),
        ["--fd", "data=3,target=20,pathlink=true"],
        {3: host},
        "open /data r",
        "read 4 4",
        "read 20 3",
        "lseek 4 0 0",
        "close 4",
        "read 20 2",
        "fputs /data r+ ab",
        "lseek 20 0 0",
        "fread /data",
        "open data r",
        "open ./data rw",
        "getfl 4",
        "getfl 5",
        "getfl 20",
        "open /data w+trunc",
        "stat /data",
    ) == [
        "open 0 4",
        "read 0 0123",
        "read 0 456",
        "lseek 0 0",
        "close 0 0",
        "read 0 01",
        "fputs 0 2",
        "lseek 0 0",
        "fread 0 01ab456789",
        "open 0 4",
        "open 0 5",
        "getfl 0 r",
        "getfl 0 rw",
        "getfl 0 rw",
        "open 0 6",
        "stat 0 file 0",
    ]
    assert path.read_bytes() == b""


def test_what_the_directory_shows_to_c(ww: Ww, c_cell: BuildFunction, host: int) -> None:
    out, into = os.pipe()
    left, right = socket.socketpair()
    try:
        flags = ["--fd", "data=3,target=20,pathlink=true", "--fd", "hidden=3,target=21"]
        flags += ["--fd", "pipe=4,target=22,pathlink=true"]
        flags += ["--fd", "sock=5,target=23,pathlink=true"]
        fds = {3: host, 4: out, 5: left.fileno()}
        assert lines(
            ww,
            c_cell("libc"),
            flags,
            fds,
            "opendir /",
            "opendir .",
            "stat /",
            "stat /data",
            "lstat /data",
            "readlink /data",
            "readlink /pipe",
            "readlink /sock",
            "readlink /",
            "lstat /sock",
            "stat /hidden",
            "stat /nothing",
            "stat /data/x",
            "access /data 0",
            "access /nothing 0",
            "opendir /data",
        ) == [
            "opendir 0 . .. data pipe sock",
            "opendir 0 . .. data pipe sock",
            "stat 0 directory 0",
            "stat 0 file 10",
            "lstat 0 link 16",
            "readlink 0 /proc/self/fd/20",
            "readlink 0 /proc/self/fd/22",
            "readlink 0 /proc/self/fd/23",
            f"readlink {EINVAL} -1",
            "lstat 0 link 16",
            f"stat {ENOENT} -1",
            f"stat {ENOENT} -1",
            f"stat {ENOTDIR} -1",
            "access 0 0",
            f"access {ENOENT} -1",
            f"opendir {ENOTDIR} -1",
        ]
    finally:
        os.close(out)
        os.close(into)
        left.close()
        right.close()


def test_opening_what_is_not_there_or_is_something_else(
    ww: Ww, c_cell: BuildFunction, host: int
) -> None:
    assert lines(
        ww,
        c_cell("libc"),
        ["--fd", "data=3,target=20,pathlink=true"],
        {3: host},
        "open /data rw+creat+excl",
        "open /data r+directory",
        "open /nothing r",
        "open /data/ r",
        "open /data/x r",
        "open /dat r",
        "open /DATA r",
        "open /data rw+creat",
        "open / r+directory",
        "open / w",
        "fread /nothing",
    ) == [
        f"open {EEXIST} -1",
        f"open {ENOTDIR} -1",
        f"open {ENOENT} -1",
        f"open {ENOTDIR} -1",
        f"open {ENOTDIR} -1",
        f"open {ENOENT} -1",
        f"open {ENOENT} -1",
        "open 0 4",
        "open 0 5",
        f"open {EISDIR} -1",
        f"fread {ENOENT} -1",
    ]


def test_nothing_can_be_made_changed_or_taken_away(
    ww: Ww, c_cell: BuildFunction, host: int, path: Path
) -> None:
    flags = ["--fd", "data=3,target=20,mode=r,pathlink=true"]
    flags += ["--fd", "pipe=3,mode=r,pathlink=true"]
    before = os.stat(path)
    said = lines(ww, c_cell("libc"), flags, {3: host}, *WRITING_CALLS, "opendir /")
    assert said[-1] == "opendir 0 . .. data pipe"
    for call, line in zip(WRITING_CALLS, said, strict=False):
        _, errno, result = line.split()
        assert (call, int(result)) == (call, -1)
        assert int(errno) > 0
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns, after.st_nlink) == (
        before.st_size,
        before.st_mtime_ns,
        1,
    )


def test_without_a_pathlink_there_is_no_directory_at_all(
    ww: Ww, c_cell: BuildFunction, host: int
) -> None:
    with remote(ww, c_cell("remote"), "--fd", "data=3,target=20", fds={3: host}) as cell:
        assert cell.raw("fd_prestat_get", 3, cell.scratch) == EBADF
        assert cell.open("data") == (EBADF, None)
        assert cell.open("data", fd=20) == (ENOTDIR, None)
    said = lines(
        ww,
        c_cell("libc"),
        ["--fd", "data=3"],
        {3: host},
        "open /data r",
        "open /etc/passwd r",
        "open data r",
        "opendir /",
        "stat /",
    )
    assert [line.split()[2] for line in said] == ["-1"] * 5


def test_any_legal_name_is_a_name_in_the_directory(
    ww: Ww, c_cell: BuildFunction, host: int
) -> None:
    names = ["A-b_c-9", "a", "stdin2", "x" * 63]
    flags = [word for name in names for word in ("--fd", f"{name}=3,pathlink=true")]
    opens = [f"open /{name} r" for name in names]
    assert lines(ww, c_cell("libc"), flags, {3: host}, "opendir /", *opens) == [
        f"opendir 0 . .. {' '.join(names)}",
        *[f"open 0 {number}" for number in range(4, 8)],
    ]


# --- call by call -------------------------------------------------------------------------------


def test_the_directory_is_preopened_as_the_root(cell: Remote) -> None:
    at = cell.scratch + 0x9000
    assert cell.raw("fd_prestat_get", 3, at) == OK
    assert struct.unpack("<B3xI", cell.peek(at, 8)) == (0, 1)
    assert cell.raw("fd_prestat_dir_name", 3, at, 1) == OK
    assert cell.peek(at, 1) == b"/"
    assert cell.raw("fd_prestat_dir_name", 3, at, 0) == Errno.NAMETOOLONG
    stat = cell.fdstat(3)[1]
    assert stat is not None
    assert (stat.filetype, stat.flags) == (FT_DIRECTORY, 0)
    assert Right(stat.rights) == (
        Right.PATH_OPEN
        | Right.FD_READDIR
        | Right.PATH_READLINK
        | Right.PATH_FILESTAT_GET
        | Right.FD_FILESTAT_GET
    )
    for number in (0, 1, 2, 4, 20):
        assert cell.raw("fd_prestat_get", number, at) == EBADF
        assert cell.raw("fd_prestat_dir_name", number, at, 1) == EBADF


@pytest.mark.parametrize("name", ["data", "/data", "./data", "//data", "/./data", "././data"])
def test_every_way_to_write_the_name_opens_it(cell: Remote, name: str) -> None:
    assert cell.open(name) == (OK, 4)
    assert cell.read(4, 100) == (OK, CONTENT)
    assert cell.path_filestat(name)[0] == OK
    assert cell.open(name, lookup=0)[0] in (OK, Errno.LOOP)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../",
        "../data",
        "../../etc/passwd",
        "data/..",
        "data/../data",
        "./../data",
        "/..",
        "/../data",
        "nothing/../data",
        "....//../etc",
        "/etc/passwd",
        "/proc/self/fd/20",
        "/proc/self/root/etc/passwd",
    ],
)
def test_a_path_that_leads_out_is_refused(cell: Remote, name: str) -> None:
    refusals = (ENOTCAPABLE, Errno.PERM, ENOENT, ENOTDIR, Errno.ACCES)
    assert cell.open(name)[0] in refusals
    assert cell.open(name, lookup=0, oflags=CREAT, rights=R | W)[0] in refusals
    assert cell.path_filestat(name)[0] in refusals
    assert cell.path_filestat(name, lookup=0)[0] in refusals
    assert cell.readlink(name)[0] in refusals
    for fd in (0, 1, 20):
        assert cell.open(name, fd=fd) == (ENOTDIR, None)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"data\0", b"da\0ta", b"", b" data", b"x" * 5000])
def test_a_name_that_is_no_name_is_an_errno(cell: Remote, name: bytes) -> None:
    assert cell.open(name)[0] in (ENOENT, EINVAL, Errno.ILSEQ, Errno.NAMETOOLONG)
    assert cell.path_filestat(name)[0] in (ENOENT, EINVAL, Errno.ILSEQ, Errno.NAMETOOLONG)


def test_the_opened_one_shares_the_offset_and_the_flags_with_the_grant(
    own_cell: Remote, host: int
) -> None:
    assert own_cell.open("data", ALL_RIGHTS) == (OK, 4)
    assert own_cell.seek(20, 3) == (OK, 3)
    assert own_cell.tell_position(4) == (OK, 3)
    assert own_cell.read(4, 2) == (OK, b"34")
    assert own_cell.read(20, 2) == (OK, b"56")
    assert os.lseek(host, 0, os.SEEK_CUR) == 7
    assert own_cell.raw("fd_fdstat_set_flags", 4, APPEND | NONBLOCK) == OK
    stat = own_cell.fdstat(20)[1]
    assert stat is not None
    assert stat.flags == APPEND | NONBLOCK
    # Closing either leaves the other.
    assert own_cell.raw("fd_close", 4) == OK
    assert own_cell.pread(20, 0, 2) == (OK, b"01")
    assert own_cell.open("data") == (OK, 4)
    assert own_cell.raw("fd_close", 20) == OK
    assert own_cell.pread(4, 0, 2)[0] in (OK, ENOTCAPABLE)


def test_stat_by_name_is_stat_by_number(cell: Remote) -> None:
    assert cell.path_filestat("data") == cell.filestat(20)
    link = cell.path_filestat("data", lookup=0)[1]
    assert link is not None
    assert (link.filetype, link.size) == (FT_SYMLINK, len("/proc/self/fd/20"))
    directory = cell.path_filestat(".")[1]
    assert directory is not None
    assert directory.filetype == FT_DIRECTORY
    assert cell.path_filestat("nothing")[0] == ENOENT
    stat = cell.filestat(3)[1]
    assert stat is not None
    assert stat.filetype == FT_DIRECTORY


def test_a_link_is_read_as_far_as_there_is_room(cell: Remote) -> None:
    assert cell.readlink("data") == (OK, b"/proc/self/fd/20")
    assert cell.readlink("data", 5) == (OK, b"/proc")
    assert cell.readlink("data", 0) == (OK, b"")
    assert cell.readlink(".")[0] == EINVAL
    assert cell.readlink("nothing")[0] == ENOENT


def test_a_listing_can_be_read_in_pieces(ww: Ww, c_cell: BuildFunction, host: int) -> None:
    names = [b"a", b"bb", b"ccc", b"longer-name"]
    flags = [w for n in names for w in ("--fd", f"{n.decode()}=3,pathlink=true")]
    with remote(ww, c_cell("remote"), *flags, fds={3: host}) as cell:
        errno, whole = cell.readdir(3)
        assert errno == OK
        assert whole is not None
        assert [name for _, name, _ in entries(whole)] == [b".", b"..", *names]
        assert [kind for _, _, kind in entries(whole)] == [FT_DIRECTORY] * 2 + [FT_SYMLINK] * 4
        # From each cookie on: the rest.
        for index, (cookie, _, _) in enumerate(entries(whole)):
            rest = cell.readdir(3, cookie=cookie)[1]
            assert rest is not None
            assert entries(rest) == entries(whole)[index + 1 :]
        # A buffer that is too small is filled to the last byte, whatever that cuts.
        for size in (0, 1, 23, 24, 25, 30, len(whole) - 1, len(whole)):
            assert cell.readdir(3, size) == (OK, whole[:size])
        assert cell.readdir(3, cookie=1000) == (OK, b"")
        assert cell.readdir(3, cookie=(1 << 64) - 1) == (OK, b"")
        assert cell.readdir(10)[0] in (ENOTDIR, EBADF, ENOTCAPABLE)


def entries(raw: bytes) -> list[tuple[int, bytes, int]]:
    """Cookie, name and type of each; an entry that is cut is an error of the test."""
    found = []
    while raw:
        cookie, _, size, kind = struct.unpack_from("<QQIB", raw)
        found.append((cookie, raw[24 : 24 + size], kind))
        assert len(raw) >= 24 + size
        raw = raw[24 + size :]
    return found


def test_open_flags(cell: Remote, path: Path) -> None:
    assert cell.open("data", R, oflags=CREAT | EXCL)[0] == EEXIST
    assert cell.open("data", R, oflags=CREAT) == (OK, 4)
    assert cell.open("data", R, oflags=DIRECTORY) == (ENOTDIR, None)
    assert cell.open("nothing", R | W, oflags=CREAT)[0] in (ENOENT, Errno.ROFS, ENOTCAPABLE)
    assert cell.open("nothing", R | W, oflags=CREAT | EXCL)[0] in (
        *(ENOENT, Errno.ROFS, ENOTCAPABLE),
    )
    assert path.read_bytes() == CONTENT
    assert cell.open("data", R | W, oflags=TRUNC) == (OK, 5)
    assert path.read_bytes() == b""


def test_open_flags_that_do_not_exist_are_einval(cell: Remote) -> None:
    assert cell.open("data", R, oflags=1 << 4)[0] == EINVAL
    assert cell.open("data", R, oflags=1 << 15)[0] == EINVAL
    assert cell.open("data", R | Right.FD_FDSTAT_SET_FLAGS, fdflags=1 << 5)[0] == EINVAL


def test_a_name_that_does_not_exist_is_not_called_existing(cell: Remote) -> None:
    assert cell.open("nothing", R, oflags=CREAT | EXCL)[0] != EEXIST


def test_opening_with_append_appends(cell: Remote, path: Path) -> None:
    rights = W | Right.FD_FDSTAT_SET_FLAGS
    assert cell.open("data", rights, fdflags=APPEND) == (OK, 4)
    stat = cell.fdstat(4)[1]
    assert stat is not None
    assert stat.flags == APPEND
    assert cell.write(4, b"end") == (OK, 3)
    assert path.read_bytes() == CONTENT + b"end"


def test_every_change_to_the_directory_is_refused(cell: Remote, path: Path) -> None:
    calls: list[tuple[str, list[int | str]]] = [
        ("path_create_directory", [3, "d"]),
        ("path_create_directory", [3, "data"]),
        ("path_remove_directory", [3, "data"]),
        ("path_unlink_file", [3, "data"]),
        ("path_unlink_file", [3, "nothing"]),
        ("path_rename", [3, "data", 3, "other"]),
        ("path_rename", [3, "data", 20, "other"]),
        ("path_link", [3, 0, "data", 3, "other"]),
        ("path_link", [3, 1, "data", 3, "other"]),
        ("path_symlink", ["/etc/passwd", 3, "other"]),
        ("path_symlink", ["x", 3, "data"]),
        ("path_filestat_set_times", [3, 1, "data", 0, 0, 5]),
    ]
    before = os.stat(path).st_mtime_ns
    for name, numbers in calls:
        assert cell.path(name, *numbers) != OK, (name, numbers)
    assert entries(cell.readdir(3)[1] or b"")[2:] == [(3, b"data", FT_SYMLINK)]
    assert os.stat(path).st_mtime_ns == before
    assert os.stat(path).st_nlink == 1


def test_files_are_no_directories_and_the_directory_is_no_file(cell: Remote) -> None:
    assert cell.open("data", fd=20) == (ENOTDIR, None)
    assert cell.path_filestat("data", fd=20) == (ENOTDIR, None)
    assert cell.readlink("data", fd=20) == (ENOTDIR, None)
    for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        assert cell.path(name, 20, "x") == ENOTDIR
    assert cell.read(3, 10)[0] in (EISDIR, EBADF)
    assert cell.write(3, b"x")[0] in (EISDIR, EBADF)
    assert cell.seek(3, 1)[0] != OK
    assert cell.raw("fd_filestat_set_size", 3, 0) != OK
    assert cell.recv(3, 1)[0] == Errno.NOTSOCK
    assert cell.accept(3)[0] == Errno.NOTSOCK


def test_the_directory_opens_itself_with_no_more_rights(own_cell: Remote) -> None:
    errno, number = own_cell.open(
        ".", Right.FD_READDIR | Right.PATH_OPEN | R, oflags=DIRECTORY, inheriting=R | Right.FD_SEEK
    )
    assert (errno, number) == (OK, 4)
    stat = own_cell.fdstat(4)[1]
    assert stat is not None
    assert Right(stat.rights) == Right.FD_READDIR | Right.PATH_OPEN
    assert Right(stat.inheriting) == R | Right.FD_SEEK
    assert own_cell.open("data", fd=4) == (OK, 5)
    assert own_cell.read(5, 3) == (OK, b"012")
    assert own_cell.open("data", W, fd=4) == (ENOTCAPABLE, None)
    assert own_cell.open("data", R, oflags=TRUNC, fd=4) == (ENOTCAPABLE, None)
    assert own_cell.open("data", ALL_RIGHTS & ~W, fd=4) == (OK, 6)
    stat = own_cell.fdstat(6)[1]
    assert stat is not None
    assert Right(stat.rights) == R | Right.FD_SEEK
    assert own_cell.raw("fd_close", 4) == OK
    assert own_cell.open("data", fd=4) == (EBADF, None)
    # The number of the directory can be closed like any other.
    assert own_cell.raw("fd_close", 3) == OK
    assert own_cell.open("data") == (EBADF, None)


def test_what_the_directory_gave_up_nothing_opened_from_it_has(own_cell: Remote) -> None:
    stat = own_cell.fdstat(3)[1]
    assert stat is not None
    left = R | Right.FD_SEEK | Right.FD_FILESTAT_SET_SIZE
    assert own_cell.raw("fd_fdstat_set_rights", 3, stat.rights, left) == OK
    for rights, oflags in ((W, 0), (R | W, 0), (ALL_RIGHTS, TRUNC)):
        assert own_cell.open("data", rights, oflags=oflags) == (ENOTCAPABLE, None)
    assert own_cell.open("data", ALL_RIGHTS & ~W) == (OK, 4)
    stat = own_cell.fdstat(4)[1]
    assert stat is not None
    assert Right(stat.rights) == left
    assert own_cell.raw("fd_fdstat_set_rights", 3, 0, 0) == OK
    assert own_cell.open("data") == (ENOTCAPABLE, None)
    assert own_cell.path_filestat("data") == (ENOTCAPABLE, None)


def test_a_pipe_opened_by_name_is_the_pipe(ww: Ww, c_cell: BuildFunction) -> None:
    out, into = os.pipe()
    try:
        flags = ["--fd", "in=3,target=20,pathlink=true", "--fd", "out=4,target=21,pathlink=true"]
        with remote(ww, c_cell("remote"), *flags, fds={3: out, 4: into}) as cell:
            assert cell.open("in") == (OK, 4)
            assert cell.open("out", W) == (OK, 5)
            assert cell.open("out", R)[0] == Errno.ACCES
            # What a C library asks for when it creates a file: nothing here can be cut.
            assert cell.open("out", W, oflags=CREAT | TRUNC) == (OK, 6)
            stat = cell.fdstat(4)[1]
            assert stat is not None
            assert stat.filetype == FT_UNKNOWN
            assert cell.write(5, b"12") == (OK, 2)
            assert cell.write(6, b"34") == (OK, 2)
            assert cell.write(21, b"56") == (OK, 2)
            assert cell.read(4, 3) == (OK, b"123")
            assert cell.read(20, 3) == (OK, b"456")
            assert cell.path_filestat("in") == cell.filestat(20)
    finally:
        os.close(out)
        os.close(into)


def test_a_socket_opened_by_name_is_the_socket(ww: Ww, c_cell: BuildFunction) -> None:
    ours, its = socket.socketpair()
    with (
        ours,
        its,
        remote(ww, c_cell("remote"), "--fd", "s=3,target=20,pathlink=true", fds={3: its}) as cell,
    ):
        assert cell.open("s", ALL_RIGHTS) == (OK, 4)
        assert cell.fdstat(4) == cell.fdstat(20)
        stat = cell.fdstat(4)[1]
        assert stat is not None
        assert stat.filetype == FT_STREAM
        ours.sendall(b"hello")
        assert cell.recv(4, 100) == (OK, (b"hello", 0))
        assert cell.send(4, b"back") == (OK, 4)
        assert ours.recv(10) == b"back"
        # Closing one of the two numbers does not end the connection.
        assert cell.raw("fd_close", 4) == OK
        assert cell.send(20, b"still") == (OK, 5)
        assert ours.recv(10) == b"still"


def test_a_listening_socket_opened_by_name_accepts(ww: Ww, c_cell: BuildFunction) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        remote(
            ww, c_cell("remote"), "--fd", "web=3,target=20,pathlink=true", fds={3: listener}
        ) as cell,
    ):
        assert cell.open("web", ALL_RIGHTS) == (OK, 4)
        with socket.create_connection(listener.getsockname()) as client:
            assert cell.poll(Ready(1, EV_READ, 4))[0] == OK
            assert cell.accept(4) == (OK, 5)
            client.sendall(b"x")
            assert cell.read(5, 10) == (OK, b"x")


def test_a_name_whose_grant_was_closed_never_opens_anything_else(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path
) -> None:
    """Numbers are used again; a name must not lead to who has its old number now."""
    paths = {name: tmp_path / name for name in ("writable", "secret")}
    for name, path in paths.items():
        path.write_bytes(name.encode())
    flags = ["--fd", "w=3,target=4,mode=rw,pathlink=true"]
    flags += ["--fd", "s=5,target=20,mode=r,pathlink=true"]
    with (
        opened(paths["writable"]) as writable,
        opened(paths["secret"]) as secret,
        remote(ww, c_cell("remote"), *flags, fds={3: writable, 5: secret}) as cell,
    ):
        assert cell.raw("fd_close", 4) == OK
        # Take every low number, of the cell and its process, for the one that may not be written.
        for _ in range(40):
            assert cell.open("s")[0] == OK
        for rights in (W, R | W, ALL_RIGHTS):
            errno, number = cell.open("w", rights)
            if errno == OK and number is not None:
                cell.pwrite(number, 0, b"BROKEN")
        found = cell.path_filestat("w")[1]
    assert paths["secret"].read_bytes() == b"secret"
    assert found is None or found.ino == os.stat(paths["writable"]).st_ino


def test_a_name_whose_grants_number_was_taken_over_does_not_open_the_other_with_its_rights(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("writable", "secret")}
    for name, path in paths.items():
        path.write_bytes(name.encode())
    flags = ["--fd", "w=3,target=4,mode=rw,pathlink=true"]
    flags += ["--fd", "s=5,target=20,mode=r,pathlink=true"]
    with (
        opened(paths["writable"]) as writable,
        opened(paths["secret"]) as secret,
        remote(ww, c_cell("remote"), *flags, fds={3: writable, 5: secret}) as cell,
    ):
        assert cell.raw("fd_renumber", 20, 4) == OK
        errno, number = cell.open("w", R | W)
        if errno == OK and number is not None:
            cell.pwrite(number, 0, b"BROKEN")
        for _ in range(40):
            assert cell.open("s")[0] in (OK, ENOENT, EBADF)
            errno, number = cell.open("w", R | W)
            if errno == OK and number is not None:
                cell.pwrite(number, 0, b"BROKEN")
    assert paths["secret"].read_bytes() == b"secret"


def test_the_given_up_rights_of_a_grant_do_not_come_back_by_its_name(
    own_cell: Remote, path: Path
) -> None:
    stat = own_cell.fdstat(20)[1]
    assert stat is not None
    left = stat.rights & ~(W | Right.FD_FILESTAT_SET_SIZE)
    assert own_cell.raw("fd_fdstat_set_rights", 20, left, 0) == OK
    assert own_cell.open("data", R | W)[0] == EACCES
    assert own_cell.open("data", R, oflags=TRUNC)[0] == EACCES
    assert own_cell.open("data", ALL_RIGHTS & ~W) == (OK, 4)
    stat = own_cell.fdstat(4)[1]
    assert stat is not None
    assert stat.rights == left
    assert own_cell.raw("fd_filestat_set_size", 4, 0) == ENOTCAPABLE
    assert path.read_bytes() == CONTENT


def test_an_opened_number_is_a_file_of_its_own_kind(cell: Remote) -> None:
    assert cell.open("data", ALL_RIGHTS) == (OK, 4)
    assert cell.fdstat(4) == cell.fdstat(20)
    stat = cell.fdstat(4)[1]
    assert stat is not None
    assert stat.filetype == FT_REGULAR
    assert cell.raw("fd_fdstat_set_rights", 4, 0, 0) == OK
    # Rights are of the number, and not of the file.
    assert cell.pread(20, 0, 2) == (OK, b"01")

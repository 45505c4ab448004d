"""A granted regular file, call by call, against what the host sees of the same file."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import BuildFunction, Ww
from tests.features import lacks
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    APPEND,
    ATIM,
    ATIM_NOW,
    DSYNC,
    EACCES,
    EBADF,
    EINVAL,
    ENOTCAPABLE,
    FT_REGULAR,
    MTIM,
    MTIM_NOW,
    NONBLOCK,
    OK,
    RSYNC,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
    SYNC,
    TRUNC,
    Errno,
    R,
    Remote,
    Right,
    W,
    give_to_the_cell,
    opened,
    remote,
    shared_ww,
)

CONTENT = b"0123456789abcdefghijklmnopqrstuvwxyz"
FILE_RIGHTS = (
    Right.FD_SEEK
    | Right.FD_TELL
    | Right.FD_ADVISE
    | Right.FD_SYNC
    | Right.FD_DATASYNC
    | Right.FD_FDSTAT_SET_FLAGS
    | Right.FD_FILESTAT_GET
    | Right.POLL_FD_READWRITE
)
WRITER_RIGHTS = Right.FD_ALLOCATE | Right.FD_FILESTAT_SET_SIZE | Right.FD_FILESTAT_SET_TIMES


class Kept(NamedTuple):
    """A cell with a file at 10, for reading and writing, and the host's number of the same."""

    cell: Remote
    host: int
    path: Path


@pytest.fixture(scope="module")
def kept(
    account_folders: Path, c_cell: BuildFunction, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    """One for all tests that do not need a cell of their own."""
    ww = shared_ww(account_folders, "files")
    path = tmp_path_factory.mktemp("files") / "f"
    path.touch()
    give_to_the_cell(ww, path)
    with (
        opened(path) as fd,
        remote(ww, c_cell("remote"), "--fd", "f=3", fds={3: fd}) as cell,
    ):
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
    """The host's own open file, which is the one that is granted."""
    return kept.host


@pytest.fixture
def cell(kept: Kept, path: Path) -> Remote:
    return kept.cell


def test_reading_and_writing_move_the_position_that_the_host_shares(
    cell: Remote, host: int, path: Path
) -> None:
    assert cell.read(10, 4) == (OK, b"0123")
    assert os.lseek(host, 0, os.SEEK_CUR) == 4
    assert os.read(host, 2) == b"45"
    assert cell.read(10, 2) == (OK, b"67")
    assert cell.write(10, b"XY") == (OK, 2)
    assert os.lseek(host, 0, os.SEEK_CUR) == 10
    assert path.read_bytes() == b"01234567XY" + CONTENT[10:]
    os.lseek(host, len(CONTENT) - 1, os.SEEK_SET)
    assert cell.read(10, 10) == (OK, b"z")
    assert cell.read(10, 10) == (OK, b"")
    assert cell.tell_position(10) == (OK, len(CONTENT))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1024])
def test_any_number_of_vectors_up_to_1024_is_one_read_and_one_write(
    cell: Remote, path: Path, count: int
) -> None:
    data = bytes(index % 251 for index in range(3 * count))
    parts = [data[3 * index : 3 * index + 3] for index in range(count)]
    assert cell.write(10, *parts) == (OK, len(data))
    assert path.read_bytes()[: len(data)] == data
    assert cell.pwrite(10, 5, *parts) == (OK, len(data))
    assert path.read_bytes()[5 : 5 + len(data)] == data
    assert cell.seek(10, 5) == (OK, 5)
    sizes = [3] * count
    assert cell.read(10, *sizes) == (OK, data)
    assert cell.tell_position(10) == (OK, 5 + len(data))
    assert cell.pread(10, 5, *sizes) == (OK, data)
    assert cell.tell_position(10) == (OK, 5 + len(data))


def test_more_than_1024_vectors_are_einval_and_do_nothing(cell: Remote, path: Path) -> None:
    for count in (1025, 4000):
        ones = [b"X"] * count
        assert cell.write(10, *ones)[0] == EINVAL
        assert cell.pwrite(10, 0, *ones)[0] == EINVAL
        assert cell.read(10, *[1] * count)[0] == EINVAL
        assert cell.pread(10, 0, *[1] * count)[0] == EINVAL
    at = cell.scratch
    assert cell.raw("fd_write", 10, at, 0xFFFFFFFF, at) == EINVAL
    assert path.read_bytes() == CONTENT
    assert cell.tell_position(10) == (OK, 0)


def test_empty_vectors_between_others_count_for_nothing(cell: Remote, path: Path) -> None:
    assert cell.write(10, b"", b"ab", b"", b"", b"c", b"") == (OK, 3)
    assert cell.pread(10, 0, 0, 2, 0, 3, 0) == (OK, b"abc34")
    assert path.read_bytes() == b"abc" + CONTENT[3:]
    assert cell.read(10, 0) == (OK, b"")
    assert cell.write(10, b"") == (OK, 0)
    assert cell.tell_position(10) == (OK, 3)


def test_seeking_from_the_start_the_position_and_the_end(cell: Remote, host: int) -> None:
    size = len(CONTENT)
    for offset, whence, expected in (
        (7, SEEK_SET, 7),
        (3, SEEK_CUR, 10),
        (-4, SEEK_CUR, 6),
        (0, SEEK_CUR, 6),
        (-1, SEEK_END, size - 1),
        (0, SEEK_END, size),
        (1000, SEEK_END, size + 1000),
        (1 << 40, SEEK_SET, 1 << 40),
        (0, SEEK_SET, 0),
    ):
        assert cell.seek(10, offset, whence) == (OK, expected)
        assert cell.tell_position(10) == (OK, expected)
        assert os.lseek(host, 0, os.SEEK_CUR) == expected


def test_a_seek_that_cannot_be_is_einval_and_moves_nothing(cell: Remote) -> None:
    assert cell.seek(10, 5) == (OK, 5)
    for offset, whence in (
        (-1, SEEK_SET),
        (-6, SEEK_CUR),
        (-len(CONTENT) - 1, SEEK_END),
        (-(1 << 63), SEEK_SET),
        (0, 3),
        (0, 4),  # SEEK_HOLE of Linux, which is no whence of WASI
        (0, 255),
        (0, 256),
    ):
        assert (offset, whence, cell.seek(10, offset, whence)) == (offset, whence, (EINVAL, None))
    assert cell.tell_position(10) == (OK, 5)


def test_a_position_beyond_the_end_reads_nothing_and_writes_a_hole(
    cell: Remote, path: Path
) -> None:
    assert cell.seek(10, 100) == (OK, 100)
    assert cell.read(10, 10) == (OK, b"")
    assert cell.write(10, b"end") == (OK, 3)
    assert path.read_bytes() == CONTENT + bytes(100 - len(CONTENT)) + b"end"
    assert cell.pread(10, 1000, 10) == (OK, b"")
    assert cell.pread(10, len(CONTENT) - 1, 3) == (OK, b"z\0\0")


def test_offsets_that_no_file_has_are_einval(cell: Remote, path: Path) -> None:
    for offset in (1 << 63, (1 << 64) - 1, -1):
        assert cell.pread(10, offset, 1)[0] == EINVAL
        assert cell.pwrite(10, offset, b"X")[0] == EINVAL
    assert path.read_bytes() == CONTENT


def test_filestat_is_what_the_host_says(cell: Remote, host: int, path: Path) -> None:
    os.link(path, path.with_name("second"))
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    found = os.fstat(host)
    errno, stat = cell.filestat(10)
    assert errno == OK
    assert stat is not None
    assert stat._asdict() == {
        "dev": found.st_dev,
        "ino": found.st_ino,
        "filetype": FT_REGULAR,
        "nlink": 2,
        "size": len(CONTENT),
        "atim": 1_234_567_890_123_456_789,
        "mtim": 987_654_321_987_654_321,
        "ctim": found.st_ctime_ns,
    }
    os.unlink(path.with_name("second"))
    stat = cell.filestat(10)[1]
    assert stat is not None
    assert stat.nlink == 1


def test_a_file_without_a_name_is_a_file(ww: Ww, c_cell: BuildFunction) -> None:
    fd = os.memfd_create("nameless")
    try:
        os.pwrite(fd, CONTENT, 0)
        with remote(ww, c_cell("remote"), "--fd", "f=3,mode=r", fds={3: fd}) as cell:
            stat = cell.filestat(10)[1]
            assert stat is not None
            assert (stat.filetype, stat.nlink, stat.size) == (FT_REGULAR, 0, len(CONTENT))
            assert cell.read(10, 100) == (OK, CONTENT)
            assert cell.write(10, b"X")[0] == EBADF
    finally:
        os.close(fd)


def test_set_size_cuts_and_extends_and_leaves_the_position(cell: Remote, path: Path) -> None:
    assert cell.seek(10, 20) == (OK, 20)
    for size in (5, 0, 70000, 10):
        before = path.read_bytes()
        assert cell.raw("fd_filestat_set_size", 10, size) == OK
        assert path.read_bytes() == before[:size] + bytes(max(0, size - len(before)))
        assert cell.tell_position(10) == (OK, 20)
    for size in (1 << 63, (1 << 64) - 1):
        assert cell.raw("fd_filestat_set_size", 10, size) in (EINVAL, Errno.FBIG)
    assert os.stat(path).st_size == 10


def test_set_times_sets_those_it_is_asked_to(cell: Remote, path: Path) -> None:
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))

    def times() -> tuple[int, int]:
        found = os.stat(path)
        return found.st_atime_ns, found.st_mtime_ns

    assert cell.raw("fd_filestat_set_times", 10, 5, 6, 0) == OK
    assert times() == (1_000_000_001, 2_000_000_002)
    assert cell.raw("fd_filestat_set_times", 10, 3_000_000_003, 6, ATIM) == OK
    assert times() == (3_000_000_003, 2_000_000_002)
    assert cell.raw("fd_filestat_set_times", 10, 5, 4_123_456_789, MTIM) == OK
    assert times() == (3_000_000_003, 4_123_456_789)
    assert cell.raw("fd_filestat_set_times", 10, 7, 8, ATIM | MTIM) == OK
    assert times() == (7, 8)
    assert cell.raw("fd_filestat_set_times", 10, 0, 0, ATIM | MTIM) == OK
    assert times() == (0, 0)

    # The kernel's clock for files is coarser than the one for programs: by one tick at most.
    started = time.time_ns() - 100_000_000
    assert cell.raw("fd_filestat_set_times", 10, 5, 6, ATIM_NOW) == OK
    assert started <= times()[0] <= time.time_ns()
    assert times()[1] == 0
    assert cell.raw("fd_filestat_set_times", 10, 9, 6, ATIM | MTIM_NOW) == OK
    assert times()[0] == 9
    assert started <= times()[1] <= time.time_ns()
    assert cell.raw("fd_filestat_set_times", 10, 5, 6, ATIM_NOW | MTIM_NOW) == OK
    assert min(times()) >= started


@pytest.mark.parametrize("which", [ATIM | ATIM_NOW, MTIM | MTIM_NOW, 15, 7, 13])
def test_times_that_contradict_each_other_are_einval(cell: Remote, path: Path, which: int) -> None:
    before = os.stat(path).st_mtime_ns
    assert cell.raw("fd_filestat_set_times", 10, 1, 1, which) == EINVAL
    assert os.stat(path).st_mtime_ns == before


@pytest.mark.parametrize("which", [16, 1 << 15])
def test_flags_of_set_times_that_do_not_exist_are_einval(
    cell: Remote, path: Path, which: int
) -> None:
    assert cell.raw("fd_filestat_set_times", 10, 1, 1, which) == EINVAL
    assert cell.raw("fd_filestat_set_times", 10, 1, 1, which | MTIM) == EINVAL
    assert os.stat(path).st_mtime_ns > 1


def test_a_writer_that_does_not_own_the_file_may_still_touch_it(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path
) -> None:
    # futimens(3): the owner may set any time; who may write, the present one.
    if os.geteuid() != 0:
        lacks("root", "only root can make a file of another owner")
    path = tmp_path / "others"
    path.write_bytes(CONTENT)
    path.chmod(0o666)
    os.utime(path, ns=(0, 0))
    with opened(path) as fd, remote(ww, c_cell("remote"), "--fd", "f=3", fds={3: fd}) as cell:
        assert cell.raw("fd_filestat_set_times", 10, 1, 1, ATIM | MTIM) == Errno.PERM
        # To set neither asks for nothing: utimensat(2).
        assert cell.raw("fd_filestat_set_times", 10, 1, 1, 0) == OK
        assert os.stat(path).st_mtime == 0
        assert cell.raw("fd_filestat_set_times", 10, 0, 0, ATIM_NOW | MTIM_NOW) == OK
    assert os.stat(path).st_mtime > 0


def test_allocate_reserves_and_extends_but_never_cuts(cell: Remote, path: Path) -> None:
    assert cell.raw("fd_allocate", 10, 0, 10) == OK
    assert path.read_bytes() == CONTENT
    assert cell.raw("fd_allocate", 10, 10, 90) == OK
    assert path.read_bytes() == CONTENT + bytes(100 - len(CONTENT))
    assert cell.raw("fd_allocate", 10, 50, 0) == EINVAL
    for offset, size in ((-1, 1), (0, -1), (1 << 63, 1)):
        assert cell.raw("fd_allocate", 10, offset, size) == EINVAL
    for offset, size in (((1 << 63) - 1, 1), (1, (1 << 63) - 1), ((1 << 63) - 1, (1 << 63) - 1)):
        assert cell.raw("fd_allocate", 10, offset, size) == Errno.FBIG
    assert os.stat(path).st_size == 100


def test_advice_is_taken_if_there_is_such_advice(cell: Remote) -> None:
    for advice in range(6):
        assert cell.raw("fd_advise", 10, 0, 0, advice) == OK
        assert cell.raw("fd_advise", 10, 5, 1 << 20, advice) == OK
    for advice in (6, 7, 255, 0x7FFFFFFF, -1):
        assert cell.raw("fd_advise", 10, 0, 0, advice) == EINVAL


def test_sync_and_datasync_succeed(cell: Remote) -> None:
    assert cell.write(10, b"X") == (OK, 1)
    assert cell.raw("fd_sync", 10) == OK
    assert cell.raw("fd_datasync", 10) == OK


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_fdstat_tells_exactly_the_rights_of_the_mode(
    ww: Ww, c_cell: BuildFunction, host: int, mode: str
) -> None:
    expected = FILE_RIGHTS
    if "r" in mode:
        expected |= R
    if "w" in mode:
        expected |= W | WRITER_RIGHTS
    with remote(ww, c_cell("remote"), "--fd", f"f=3,mode={mode}", fds={3: host}) as cell:
        errno, stat = cell.fdstat(10)
    assert errno == OK
    assert stat is not None
    assert (stat.filetype, stat.flags, stat.inheriting) == (FT_REGULAR, 0, 0)
    assert Right(stat.rights) == expected


def test_flags_are_set_on_the_open_file_and_taken_back(cell: Remote, host: int) -> None:
    def flags() -> int:
        stat = cell.fdstat(10)[1]
        assert stat is not None
        return stat.flags

    for wanted in (APPEND, APPEND | NONBLOCK, NONBLOCK, 0):
        assert cell.raw("fd_fdstat_set_flags", 10, wanted) == OK
        assert flags() == wanted
        assert os.get_blocking(host) == (not wanted & NONBLOCK)
    assert cell.raw("fd_fdstat_set_flags", 10, APPEND) == OK
    assert cell.write(10, b"end") == (OK, 3)
    assert os.pread(host, 100, 0) == CONTENT + b"end"
    assert cell.raw("fd_fdstat_set_flags", 10, 0) == OK
    assert cell.pwrite(10, 0, b"start") == (OK, 5)
    assert os.pread(host, 5, 0) == b"start"


@pytest.mark.parametrize("flag", [DSYNC, RSYNC, SYNC, SYNC | APPEND, 1 << 5, 1 << 15])
def test_flags_that_cannot_be_changed_are_refused_and_change_nothing(
    cell: Remote, flag: int
) -> None:
    before = cell.fdstat(10)
    assert cell.raw("fd_fdstat_set_flags", 10, flag) in (EINVAL, Errno.NOTSUP)
    assert cell.fdstat(10) == before


def test_an_append_only_grant_cannot_overwrite(ww: Ww, c_cell: BuildFunction, path: Path) -> None:
    flags = ("--fd", "log=3,mode=w,target=20,pathlink=true")
    with (
        opened(path, os.O_WRONLY | os.O_APPEND) as fd,
        remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell,
    ):
        for wanted in (0, NONBLOCK):
            assert cell.raw("fd_fdstat_set_flags", 20, wanted) == ENOTCAPABLE
        assert cell.raw("fd_fdstat_set_flags", 20, APPEND | NONBLOCK) == OK
        assert cell.raw("fd_fdstat_set_flags", 20, APPEND) == OK
        assert cell.seek(20, 0) == (OK, 0)
        assert cell.write(20, b"1") == (OK, 1)
        # Nor can it be cut, by a call or by opening it so.
        assert cell.raw("fd_filestat_set_size", 20, 0) == ENOTCAPABLE
        assert cell.open("log", ALL_RIGHTS & ~R, oflags=TRUNC)[0] == EACCES
        # Opened by its name it is the same; renumbered too.
        errno, number = cell.open("log", ALL_RIGHTS & ~R)
        assert errno == OK
        assert number is not None
        assert cell.raw("fd_fdstat_set_flags", number, APPEND) == OK
        assert cell.raw("fd_fdstat_set_flags", number, 0) == ENOTCAPABLE
        assert cell.raw("fd_renumber", number, 20) == OK
        assert cell.raw("fd_fdstat_set_flags", 20, 0) == ENOTCAPABLE
        assert cell.seek(20, 0) == (OK, 0)
        assert cell.write(20, b"2") == (OK, 1)
        cell.pwrite(20, 0, b"3")  # Linux appends, whatever the offset: pwrite(2), BUGS
        assert path.read_bytes() == CONTENT + b"123"


def test_a_grant_for_reading_cannot_decide_where_others_write(
    ww: Ww, c_cell: BuildFunction, host: int
) -> None:
    with remote(ww, c_cell("remote"), "--fd", "f=3,mode=r", fds={3: host}) as cell:
        assert cell.raw("fd_fdstat_set_flags", 10, APPEND) == EBADF
    assert not fcntl.fcntl(host, fcntl.F_GETFL) & os.O_APPEND


def test_flags_that_a_cell_has_changed_are_put_back_when_it_ends(
    ww: Ww, c_cell: BuildFunction, host: int
) -> None:
    before = fcntl.fcntl(host, fcntl.F_GETFL)
    with remote(ww, c_cell("remote"), "--fd", "f=3", fds={3: host}) as cell:
        assert cell.raw("fd_fdstat_set_flags", 10, APPEND | NONBLOCK) == OK
        assert fcntl.fcntl(host, fcntl.F_GETFL) == before | os.O_APPEND | os.O_NONBLOCK
        assert cell.end() == 0
    assert fcntl.fcntl(host, fcntl.F_GETFL) == before


def test_after_close_the_number_is_nothing(ww: Ww, c_cell: BuildFunction, host: int) -> None:
    with remote(ww, c_cell("remote"), "--fd", "f=3", fds={3: host}) as cell:
        assert cell.raw("fd_close", 10) == OK
        assert cell.raw("fd_close", 10) == EBADF
        assert cell.read(10, 1)[0] == EBADF
        assert cell.write(10, b"X")[0] == EBADF
        assert cell.fdstat(10)[0] == EBADF
        assert cell.filestat(10)[0] == EBADF
        assert cell.raw("fd_renumber", 10, 0) == EBADF
        assert cell.raw("fd_renumber", 0, 10) == EBADF
        assert os.read(host, 4) == b"0123"  # the host's own is as it was


def test_renumbering(ww: Ww, c_cell: BuildFunction, tmp_path: Path) -> None:
    names = {10: b"ten", 11: b"eleven", 12: b"twelve", 13: b"thirteen"}
    fds = {3 + index: ww.file(f"f{n}", data) for index, (n, data) in enumerate(names.items())}
    flags = [word for n in names for word in ("--fd", f"f{n}={n - 7},target={n}")]
    with remote(ww, c_cell("remote"), *flags, fds=fds, control=(50, 51)) as cell:

        def content(number: int) -> bytes | None:
            return cell.pread(number, 0, 20)[1]

        # Onto a grant: that one is closed, and the old number is.
        assert cell.raw("fd_renumber", 10, 11) == OK
        assert content(11) == b"ten"
        assert cell.fdstat(10)[0] == EBADF
        # Onto stdio, which then is closed like anything else.
        assert cell.raw("fd_renumber", 11, 0) == OK
        assert content(0) == b"ten"
        assert cell.fdstat(11)[0] == EBADF
        assert cell.raw("fd_close", 0) == OK
        assert cell.raw("fd_renumber", 12, 0) == EBADF
        assert content(12) == b"twelve"
        # Onto itself: nothing happens.
        assert cell.raw("fd_renumber", 12, 12) == OK
        assert content(12) == b"twelve"
        # Closed ones are neither source nor target.
        assert cell.raw("fd_renumber", 10, 12) == EBADF
        assert cell.raw("fd_renumber", 12, 10) == EBADF
        assert cell.raw("fd_renumber", 10, 10) == EBADF
        assert content(12) == b"twelve"
        # stdio onto a grant, and one standard descriptor onto another.
        before = cell.filestat(1)[1]
        assert cell.raw("fd_renumber", 1, 12) == OK
        assert cell.filestat(12)[1] == before
        assert cell.fdstat(1)[0] == EBADF
        assert cell.raw("fd_renumber", 13, 2) == OK
        assert content(2) == b"thirteen"
        assert cell.fdstat(13)[0] == EBADF


def test_numbers_handed_out_later_are_the_lowest_free_and_never_taken_ones(
    ww: Ww, c_cell: BuildFunction, path: Path
) -> None:
    taken = (5, 6, 9)
    flags = [word for n in taken for word in ("--fd", f"f{n}=3,target={n}")]
    flags += ["--fd", "link=3,target=12,pathlink=true"]
    with (
        opened(path) as fd,
        remote(ww, c_cell("remote"), *flags, fds={3: fd}, control=(50, 51)) as cell,
    ):
        # 0, 1, 2 are stdio and 3 is the directory of the pathlinks.
        handed = [cell.open("link")[1] for _ in range(8)]
        assert handed == [4, 7, 8, 10, 11, 13, 14, 15]
        assert cell.raw("fd_close", 10) == OK
        assert cell.raw("fd_close", 7) == OK
        assert cell.raw("fd_close", 2) == OK
        assert [cell.open("link")[1] for _ in range(4)] == [2, 7, 10, 16]
        # Each is one of its own.
        for number in (2, 4, 7, 16, *taken):
            assert cell.raw("fd_close", number) == OK
            assert cell.fdstat(number)[0] == EBADF
        assert cell.open("link")[1] == 2
        assert cell.open("link")[1] == 4
        assert cell.open("link")[1] == 5


def test_a_failed_open_costs_no_number(ww: Ww, c_cell: BuildFunction, path: Path) -> None:
    flags = ("--fd", "link=3,target=12,pathlink=true")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
        for name in ("nothing", "..", "link/", ""):
            assert cell.open(name)[0] != OK
        assert cell.open("link")[1] == 4


def test_when_descriptors_run_out_it_is_an_errno_and_closing_helps(
    ww: Ww, c_cell: BuildFunction, path: Path
) -> None:
    flags = ("--fd", "link=3,target=12,pathlink=true")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
        opens = 0
        while opens < 70000:
            errno, number = cell.open("link")
            if errno:
                break
            opens += 1
            assert number is not None
            # Leave some thousands to the calls; a soft limit may be as low as 1024.
            if opens == 3000:
                break
        else:
            errno = Errno.SUCCESS
        assert errno in (OK, Errno.MFILE)
        assert cell.raw("fd_close", 4) == OK
        assert cell.open("link") == (OK, 4)


# --- properties ---------------------------------------------------------------------------------

_OFFSETS = st.integers(0, 200)
_DATA = st.lists(st.binary(max_size=20), max_size=4)
_SIZES = st.lists(st.integers(0, 40), max_size=4)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), _SIZES),
        st.tuples(st.just("write"), _DATA),
        st.tuples(st.just("pread"), _OFFSETS, _SIZES),
        st.tuples(st.just("pwrite"), _OFFSETS, _DATA),
        st.tuples(st.just("seek"), st.integers(-250, 250), st.integers(0, 3)),
        st.tuples(st.just("tell")),
        st.tuples(st.just("size"), _OFFSETS),
        st.tuples(st.just("append"), st.booleans()),
    ),
    max_size=12,
)


def by_the_host(fd: int, step: tuple[object, ...]) -> tuple[int, object]:
    """One step with the host's own calls."""
    name, *rest = step
    try:
        match name, rest:
            case "read", [list(sizes)]:
                buffers = [bytearray(size) for size in sizes]
                count = os.readv(fd, buffers) if buffers else 0
                return 0, b"".join(buffers)[:count]
            case "write", [list(parts)]:
                return 0, os.writev(fd, parts) if parts else 0
            case "pread", [int(offset), list(sizes)]:
                buffers = [bytearray(size) for size in sizes]
                count = os.preadv(fd, buffers, offset) if buffers else 0
                return 0, b"".join(buffers)[:count]
            case "pwrite", [int(offset), list(parts)]:
                return 0, os.pwritev(fd, parts, offset) if parts else 0
            case "seek", [int(offset), int(whence)]:
                if whence > os.SEEK_END:
                    return EINVAL, None
                return 0, os.lseek(fd, offset, whence)
            case "tell", []:
                return 0, os.lseek(fd, 0, os.SEEK_CUR)
            case "size", [int(size)]:
                os.ftruncate(fd, size)
                return 0, None
    except OSError as error:
        return int(Errno[os_name(error)]), None
    raise ValueError(step)


def os_name(error: OSError) -> str:
    return errno.errorcode[error.errno or 0].removeprefix("E")


def by_the_cell(cell: Remote, step: tuple[object, ...]) -> tuple[int, object]:
    """The same step in the cell."""
    name, *rest = step
    match name, rest:
        case "read", [list(sizes)]:
            return cell.read(10, *sizes)
        case "write", [list(parts)]:
            return cell.write(10, *parts)
        case "pread", [int(offset), list(sizes)]:
            return cell.pread(10, offset, *sizes)
        case "pwrite", [int(offset), list(parts)]:
            return cell.pwrite(10, offset, *parts)
        case "seek", [int(offset), int(whence)]:
            return cell.seek(10, offset, whence)
        case "tell", []:
            return cell.tell_position(10)
        case "size", [int(size)]:
            return cell.raw("fd_filestat_set_size", 10, size), None
    raise ValueError(step)


def test_any_sequence_of_calls_does_what_the_same_does_on_the_host(
    cell: Remote, host: int, path: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.touch()

    with opened(model) as twin:

        @settings(
            max_examples=120,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(_STEPS)
        @example([("seek", -1, 0), ("tell",), ("seek", 60, 0), ("write", [b"x"]), ("tell",)])
        @example([("append", True), ("pwrite", 0, [b"x"]), ("write", [b"y", b"z"]), ("tell",)])
        def same(steps: list[tuple[object, ...]]) -> None:
            for fd in (host, twin):
                os.ftruncate(fd, 0)
                os.pwrite(fd, CONTENT, 0)
                os.lseek(fd, 0, os.SEEK_SET)
            assert cell.raw("fd_fdstat_set_flags", 10, 0) == OK
            fcntl.fcntl(twin, fcntl.F_SETFL, os.O_RDWR)
            for step in steps:
                if step[0] == "append":
                    assert cell.raw("fd_fdstat_set_flags", 10, int(bool(step[1]))) == OK
                    extra = os.O_APPEND if step[1] else 0
                    fcntl.fcntl(twin, fcntl.F_SETFL, os.O_RDWR | extra)
                    continue
                assert (step, by_the_cell(cell, step)) == (step, by_the_host(twin, step))
            assert path.read_bytes() == model.read_bytes()
            assert cell.tell_position(10) == (OK, os.lseek(twin, 0, os.SEEK_CUR))

        same()
    assert cell.calls > 500

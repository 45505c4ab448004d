"""What a mode leaves out is refused, on descriptors that the kernel itself would allow it on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    EACCES,
    EBADF,
    ENOTCAPABLE,
    ENOTSOCK,
    ESPIPE,
    EV_READ,
    EV_WRITE,
    MTIM,
    OK,
    SEEK_CUR,
    SHUT_RD,
    SHUT_WR,
    TRUNC,
    R,
    Ready,
    Remote,
    Right,
    W,
    give_to_the_cell,
    opened,
    remote,
)

MODES = ["r", "w", "rw"]
CONTENT = b"0123456789abcdef"
ONE_DAY_IN_1980 = 315_532_800_123_456_789

READING = ["fd_read", "fd_pread"]
WRITING = ["fd_write", "fd_pwrite"]
CHANGING = ["fd_allocate", "fd_filestat_set_size", "fd_filestat_set_times"]
SOCKETS = ["sock_accept", "sock_recv", "sock_send", "sock_shutdown"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "f"
    made.write_bytes(CONTENT)
    os.utime(made, ns=(ONE_DAY_IN_1980, ONE_DAY_IN_1980))
    return made


def state(path: Path) -> tuple[bytes, int, int]:
    """What a write of any kind would change."""
    return path.read_bytes(), os.stat(path).st_mtime_ns, os.stat(path).st_blocks


def attempt(cell: Remote, name: str, fd: int) -> int:
    """One call that the mode decides about; each would change the file if it got through."""
    sockets: dict[str, Callable[[], int]] = {
        "sock_accept": lambda: cell.accept(fd)[0],
        "sock_recv": lambda: cell.recv(fd, 1)[0],
        "sock_send": lambda: cell.send(fd, b"X")[0],
        "sock_shutdown": lambda: cell.raw("sock_shutdown", fd, SHUT_WR),
    }
    files: dict[str, Callable[[], int]] = {
        "fd_read": lambda: cell.read(fd, 1)[0],
        "fd_pread": lambda: cell.pread(fd, 0, 1)[0],
        "fd_write": lambda: cell.write(fd, b"X")[0],
        "fd_pwrite": lambda: cell.pwrite(fd, 2, b"X")[0],
        "fd_allocate": lambda: cell.raw("fd_allocate", fd, 0, 1 << 16),
        "fd_filestat_set_size": lambda: cell.raw("fd_filestat_set_size", fd, 3),
        "fd_filestat_set_times": lambda: cell.raw("fd_filestat_set_times", fd, 0, 7, MTIM),
    }
    return {**sockets, **files}[name]()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_narrows_a_file_that_is_open_for_everything(
    ww_account: Ww, c_cell: BuildFunction, path: Path, mode: str
) -> None:
    give_to_the_cell(ww_account, path)
    flags = ("--fd", f"f=3,mode={mode}")
    with opened(path) as fd, remote(ww_account, c_cell("remote"), *flags, fds={3: fd}) as cell:
        for names, needed, refusal in (
            (READING, "r", EBADF),
            (WRITING, "w", EBADF),
            (CHANGING, "w", ENOTCAPABLE),
        ):
            for name in names:
                before = state(path)
                got = attempt(cell, name, 10)
                if needed in mode:
                    assert (name, got) == (name, OK)
                else:
                    assert (name, got) == (name, refusal)
                    assert state(path) == before, name
        before = state(path)
        for name in SOCKETS:
            assert (name, attempt(cell, name, 10)) == (name, ENOTSOCK)
        assert state(path) == before
        if mode == "rw":
            # All of it went through, so the refusals above were the mode's doing.
            assert state(path)[:2] == (b"0XX", 7)


def test_who_may_seek_may_tell(ww: Ww, c_cell: BuildFunction, path: Path) -> None:
    """The witx: the right to seek implies the one to tell, and not the other way round."""
    flags = ("--fd", "f=3,mode=r", "--fd", "g=3,mode=r")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
        assert cell.raw("fd_fdstat_set_rights", 10, Right.FD_SEEK, 0) == OK
        assert cell.seek(10, 5) == (OK, 5)
        assert cell.tell_position(10) == (OK, 5)
        assert cell.seek(10, 0, SEEK_CUR) == (OK, 5)
        assert cell.raw("fd_fdstat_set_rights", 11, Right.FD_TELL, 0) == OK
        assert cell.tell_position(11) == (OK, 5)
        assert cell.seek(11, 0, SEEK_CUR) == (OK, 5)
        assert cell.seek(11, 1, SEEK_CUR) == (ENOTCAPABLE, None)


@pytest.mark.parametrize("mode", MODES)
def test_rights_can_be_given_up_but_never_gained(
    ww: Ww, c_cell: BuildFunction, path: Path, mode: str
) -> None:
    flags = ("--fd", f"f=3,mode={mode}")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
        stat = cell.fdstat(10)[1]
        assert stat is not None
        assert stat.inheriting == 0
        for bit in range(64):
            more = stat.rights | 1 << bit
            expected = OK if more == stat.rights else ENOTCAPABLE
            assert (bit, cell.raw("fd_fdstat_set_rights", 10, more, 0)) == (bit, expected)
        assert cell.raw("fd_fdstat_set_rights", 10, ALL_RIGHTS, 0) == ENOTCAPABLE
        assert cell.raw("fd_fdstat_set_rights", 10, stat.rights, ALL_RIGHTS) == ENOTCAPABLE
        assert cell.raw("fd_fdstat_set_rights", 10, 1 << 63, 1 << 63) == ENOTCAPABLE
        assert cell.fdstat(10) == (OK, stat)

        # Given up is gone: it does not come back, and the calls follow.
        kept = stat.rights & ~(R | W)
        assert cell.raw("fd_fdstat_set_rights", 10, kept, 0) == OK
        assert cell.raw("fd_fdstat_set_rights", 10, stat.rights, 0) == ENOTCAPABLE
        for name in (*READING, *WRITING):
            assert (name, attempt(cell, name, 10)) == (name, EBADF)
        assert cell.raw("fd_fdstat_set_rights", 10, 0, 0) == OK
        assert cell.fdstat(10) == (OK, stat._replace(rights=0))
        for name in ("fd_sync", "fd_datasync"):
            assert cell.raw(name, 10) == ENOTCAPABLE
        assert cell.seek(10, 1)[0] == ENOTCAPABLE
        assert cell.tell_position(10)[0] == ENOTCAPABLE
        assert cell.raw("fd_advise", 10, 0, 0, 0) == ENOTCAPABLE
        assert cell.raw("fd_fdstat_set_flags", 10, 0) == ENOTCAPABLE
        assert cell.filestat(10)[0] == ENOTCAPABLE
        for name in CHANGING:
            assert (name, attempt(cell, name, 10)) == (name, ENOTCAPABLE)
        errno, events = cell.poll(Ready(1, EV_READ, 10), Ready(2, EV_WRITE, 10))
        assert errno == OK
        assert events is not None
        assert {event.error for event in events} <= {EBADF, ENOTCAPABLE}
        assert cell.raw("fd_close", 10) == OK
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("mode", MODES)
def test_a_pathlink_gives_no_more_than_the_grant(
    ww: Ww, c_cell: BuildFunction, path: Path, mode: str
) -> None:
    flags = ("--fd", f"f=20,mode={mode},target=20,pathlink=true")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={20: fd}) as cell:
        grant = cell.fdstat(20)[1]
        assert grant is not None
        readable, writable = "r" in mode, "w" in mode

        assert cell.open("f", R)[0] == (OK if readable else EACCES)
        assert cell.open("f", W)[0] == (OK if writable else EACCES)
        assert cell.open("f", R | W)[0] == (OK if mode == "rw" else EACCES)
        assert path.read_bytes() == CONTENT
        if not writable:
            # Truncation writes, whatever else is asked for, and in whatever way.
            before = state(path)
            for rights in (0, R, W, R | W, ALL_RIGHTS):
                assert cell.open("f", rights, oflags=TRUNC)[0] == EACCES, rights
            assert state(path) == before
        else:
            errno, number = cell.open("f", W, oflags=TRUNC)
            assert errno == OK
            assert path.read_bytes() == b""
            assert number is not None
            assert cell.read(number, 1)[0] == EBADF
            assert cell.write(number, CONTENT) == (OK, len(CONTENT))

        # With nothing asked for that decides about opening, only what the grant has is there.
        errno, number = cell.open("f", ALL_RIGHTS & ~(R | W))
        assert errno == OK
        assert number is not None
        found = cell.fdstat(number)[1]
        assert found is not None
        assert found.rights & ~grant.rights == 0
        assert found.rights & (R | W) == 0
        assert cell.raw("fd_fdstat_set_rights", number, grant.rights, 0) == ENOTCAPABLE
        before = state(path)
        assert attempt(cell, "fd_write", number) == EBADF
        assert attempt(cell, "fd_read", number) == EBADF
        if not writable:
            for name in CHANGING:
                assert (name, attempt(cell, name, number)) == (name, ENOTCAPABLE)
        assert state(path) == before


def test_what_is_opened_to_read_cannot_write_although_the_grant_could(
    ww: Ww, c_cell: BuildFunction, path: Path
) -> None:
    flags = ("--fd", "f=20,mode=rw,target=20,pathlink=true")
    with opened(path) as fd, remote(ww, c_cell("remote"), *flags, fds={20: fd}) as cell:
        errno, number = cell.open("f", R | Right.FD_SEEK)
        assert errno == OK
        assert number is not None
        before = state(path)
        assert cell.write(number, b"X")[0] == EBADF
        assert cell.pwrite(number, 0, b"X")[0] == EBADF
        for name in CHANGING:
            assert (name, attempt(cell, name, number)) == (name, ENOTCAPABLE)
        assert state(path) == before
        # What was given up in one number is still there in the other.
        assert cell.write(20, b"Y") == (OK, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_narrows_a_pipe_that_is_open_both_ways(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path, mode: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with opened(fifo) as fd:
        os.write(fd, CONTENT)
        flags = ("--fd", f"p=3,mode={mode}")
        with remote(ww, c_cell("remote"), *flags, fds={3: fd}) as cell:
            assert cell.read(10, 4) == ((OK, b"0123") if "r" in mode else (EBADF, None))
            assert cell.write(10, b"X") == ((OK, 1) if "w" in mode else (EBADF, None))
            for name in CHANGING:
                assert (name, attempt(cell, name, 10)) == (name, ENOTCAPABLE)
            for name in SOCKETS:
                assert (name, attempt(cell, name, 10)) == (name, ENOTSOCK)
        left = (CONTENT[4:] if "r" in mode else CONTENT) + (b"X" if "w" in mode else b"")
        assert os.read(fd, 100) == left


@pytest.mark.parametrize("end", ["r", "w"])
def test_a_pipes_end_does_what_it_is_for_and_has_no_position(
    ww: Ww, c_cell: BuildFunction, end: str
) -> None:
    out, into = os.pipe()
    try:
        os.write(into, b"data")
        source = out if end == "r" else into
        with remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: source}) as cell:
            if end == "r":
                assert cell.read(10, 100) == (OK, b"data")
                assert cell.write(10, b"X")[0] == EBADF
            else:
                assert cell.write(10, b" more") == (OK, 5)
                assert cell.read(10, 100)[0] == EBADF
            assert without_a_position(cell, 10) == [ESPIPE] * 7
        if end == "w":
            assert os.read(out, 100) == b"data more"
    finally:
        os.close(out)
        os.close(into)


def without_a_position(cell: Remote, fd: int) -> list[int]:
    return [
        cell.seek(fd, 0, 0)[0],
        cell.seek(fd, 0, 1)[0],
        cell.seek(fd, 5, 1)[0],
        cell.seek(fd, 0, 2)[0],
        cell.tell_position(fd)[0],
        cell.pread(fd, 0, 1)[0],
        cell.pwrite(fd, 0, b"X")[0],
    ]


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_narrows_a_socket_in_every_way_to_use_it(
    ww: Ww, c_cell: BuildFunction, mode: str, kind: str
) -> None:
    kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
    ours, its = socket.socketpair(type=kinds[kind])
    ours.settimeout(60)
    with ours, its:
        flags = ("--fd", f"s=3,mode={mode}")
        with remote(ww, c_cell("remote"), *flags, fds={3: its}) as cell:
            readable, writable = "r" in mode, "w" in mode
            ours.sendall(b"a")
            assert cell.read(10, 1) == ((OK, b"a") if readable else (EBADF, None))
            if readable:
                ours.sendall(b"b")
                assert cell.recv(10, 1) == (OK, (b"b", 0))
            else:
                assert cell.recv(10, 1)[0] == EBADF
                # Nor does a look at it count as something else.
                assert cell.recv(10, 1, flags=1)[0] == EBADF
            assert cell.write(10, b"c") == ((OK, 1) if writable else (EBADF, None))
            assert cell.send(10, b"d") == ((OK, 1) if writable else (EBADF, None))
            assert without_a_position(cell, 10) == [ESPIPE] * 7
            for name in CHANGING:
                assert (name, attempt(cell, name, 10)) == (name, ENOTCAPABLE)
            assert cell.raw("fd_fdstat_set_rights", 10, ALL_RIGHTS, 0) == ENOTCAPABLE
            if writable:
                assert ours.recv(1) == b"c"
                assert ours.recv(1) == b"d"

            # Either direction is closed only by who holds it: for the peer it is closed too.
            if not writable:
                assert cell.raw("sock_shutdown", 10, SHUT_WR) == ENOTCAPABLE
                assert cell.raw("sock_shutdown", 10, SHUT_RD | SHUT_WR) == ENOTCAPABLE
                its.sendall(b"still open")
                assert ours.recv(100) == b"still open"
            if not readable:
                assert cell.raw("sock_shutdown", 10, SHUT_RD) == ENOTCAPABLE
                assert cell.raw("sock_shutdown", 10, SHUT_RD | SHUT_WR) == ENOTCAPABLE
                ours.sendall(b"still open")
            if readable:
                assert cell.raw("sock_shutdown", 10, SHUT_RD) == OK
                with pytest.raises(BrokenPipeError):
                    ours.sendall(b"x")
            if writable:
                assert cell.raw("sock_shutdown", 10, SHUT_WR) == OK
                if kind == "stream":
                    assert ours.recv(1) == b""


def test_a_number_moved_onto_another_brings_its_own_mode_with_it(
    ww: Ww, c_cell: BuildFunction, path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    flags = ("--fd", "a=3,mode=r", "--fd", "b=4,mode=rw")
    with (
        opened(path) as fd,
        opened(other) as second,
        remote(ww, c_cell("remote"), *flags, fds={3: fd, 4: second}) as cell,
    ):
        assert cell.raw("fd_renumber", 10, 11) == OK
        assert cell.write(11, b"X")[0] == EBADF
        assert cell.read(11, 100) == (OK, CONTENT)
        assert cell.raw("fd_fdstat_set_rights", 11, ALL_RIGHTS, 0) == ENOTCAPABLE
    assert path.read_bytes() == CONTENT
    assert other.read_bytes() == b"other"

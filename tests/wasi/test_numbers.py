"""A granted descriptor has its number in the cell, and a number that was not granted is nothing."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from sandbox.wasi import abi
from tests.conftest import BuildFunction, FdSource, Ww
from tests.wasi.host_here import Host
from tests.wasi.remote_cell import (
    EBADF,
    EV_READ,
    EV_WRITE,
    OK,
    Errno,
    Ready,
    Remote,
    remote,
)

HIGHEST = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65535) - 1
SPARSE = sorted({4, 10, 20, 63, 1000, HIGHEST})

# Every function on descriptors, with parameters that are fine but for the descriptor: `fd`, and
# `at` for memory that can be read and written.
BY_DESCRIPTOR = {
    "fd_advise": "fd 0 0 0",
    "fd_allocate": "fd 0 1",
    "fd_close": "fd",
    "fd_datasync": "fd",
    "fd_fdstat_get": "fd at",
    "fd_fdstat_set_flags": "fd 0",
    "fd_fdstat_set_rights": "fd 0 0",
    "fd_filestat_get": "fd at",
    "fd_filestat_set_size": "fd 1",
    "fd_filestat_set_times": "fd 0 0 1",
    "fd_pread": "fd at 0 0 at",
    "fd_prestat_get": "fd at",
    "fd_prestat_dir_name": "fd at 8",
    "fd_pwrite": "fd at 0 0 at",
    "fd_read": "fd at 0 at",
    "fd_readdir": "fd at 64 0 at",
    "fd_seek": "fd 0 0 at",
    "fd_sync": "fd",
    "fd_tell": "fd at",
    "fd_write": "fd at 0 at",
    "path_create_directory": "fd at 1",
    "path_filestat_get": "fd 0 at 1 at",
    "path_filestat_set_times": "fd 0 at 1 0 0 1",
    "path_link": "fd 0 at 1 fd at 1",
    "path_open": "fd 0 at 1 0 2 0 0 at",
    "path_readlink": "fd at 1 at 64 at",
    "path_remove_directory": "fd at 1",
    "path_rename": "fd at 1 fd at 1",
    "path_symlink": "at 1 fd at 1",
    "path_unlink_file": "fd at 1",
    "sock_accept": "fd 0 at",
    "sock_recv": "fd at 0 0 at at",
    "sock_send": "fd at 0 0 at",
    "sock_shutdown": "fd 3",
}


def every_errno(cell: Remote, fd: int) -> dict[str, Errno]:
    """What each function says of a number."""
    words = {"fd": fd, "at": cell.scratch + 0x200}
    said = {}
    for name, parameters in BY_DESCRIPTOR.items():
        numbers = [words.get(word, word) for word in parameters.split()]
        said[name] = cell.raw(name, *map(int, numbers))
    said["fd_renumber from it"] = cell.raw("fd_renumber", fd, 1)
    said["fd_renumber onto it"] = cell.raw("fd_renumber", 1, fd)
    return said


def test_each_descriptor_is_at_its_own_number_however_sparse(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    flags = []
    fds = {}
    for index, target in enumerate(SPARSE):
        source = 5 + index
        fds[source] = ww_account.file(f"f{target}", f"file {target}".encode())
        flags += ["--fd", f"f{target}={source},mode=r,target={target}"]
    with remote(ww_account, c_cell("remote"), *flags, fds=fds) as cell:
        for target in SPARSE:
            assert cell.read(target, 100) == (OK, f"file {target}".encode())
        # Nothing else: every number beside and between them is closed.
        for number in {n + step for n in SPARSE for step in (-1, 1)} - set(SPARSE):
            assert cell.raw("fd_close", number) == EBADF, number


def test_numbers_without_a_target_start_at_ten_in_the_order_of_the_flags(
    ww: Ww, c_cell: BuildFunction
) -> None:
    fds = {n: ww.file(f"f{n}", f"source {n}".encode()) for n in (3, 4, 5, 6)}
    flags = ["--fd", "b=4", "--fd", "a=3", "--fd", "d=6,target=11", "--fd", "c=5"]
    with remote(ww, c_cell("remote"), *flags, fds=fds) as cell:
        seen = {number: cell.read(number, 64)[1] for number in range(3, 15)}
    assert {n: data for n, data in seen.items() if data is not None} == {
        10: b"source 4",
        11: b"source 6",
        12: b"source 3",
        13: b"source 5",
    }


def test_targets_that_are_each_others_sources_are_swapped(ww: Ww, c_cell: BuildFunction) -> None:
    fds = {3: ww.file("three", b"source 3"), 4: ww.file("four", b"source 4")}
    flags = ["--fd", "a=3,target=4", "--fd", "b=4,target=3"]
    with remote(ww, c_cell("remote"), *flags, fds=fds) as cell:
        assert cell.read(4, 64) == (OK, b"source 3")
        assert cell.read(3, 64) == (OK, b"source 4")


def test_a_cycle_of_five_is_turned(ww: Ww, c_cell: BuildFunction) -> None:
    fds = {n: ww.file(f"f{n}", f"source {n}".encode()) for n in range(3, 8)}
    flags = [word for n in range(3, 8) for word in ("--fd", f"f{n}={n},target={3 + (n - 2) % 5}")]
    with remote(ww, c_cell("remote"), *flags, fds=fds) as cell:
        for n in range(3, 8):
            assert cell.read(3 + (n - 2) % 5, 64) == (OK, f"source {n}".encode())


def test_one_source_granted_three_times_is_one_open_file(ww: Ww, c_cell: BuildFunction) -> None:
    fds = {3: ww.file("f", b"abcdefghi")}
    flags = ["--fd", "a=3", "--fd", "b=3,target=40", "--fd", "c=3,target=0"]
    with remote(ww, c_cell("remote"), *flags, fds=fds, control=(50, 51)) as cell:
        assert [cell.read(n, 3) for n in (10, 40, 0)] == [(OK, b"abc"), (OK, b"def"), (OK, b"ghi")]


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_grant_replaces_a_standard_descriptor(
    ww: Ww, c_cell: BuildFunction, target: int, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"granted")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with remote(
            ww,
            c_cell("remote"),
            "--fd",
            f"f=3,target={target}",
            fds={3: fd},
            control=(100, 101),
        ) as cell:
            assert cell.read(target, 64) == (OK, b"granted")
            assert cell.write(target, b" twice") == (OK, 6)
            stat = cell.filestat(target)[1]
            assert stat is not None
            assert stat.ino == os.stat(path).st_ino
            # The other two are the caller's, still.
            others = [cell.filestat(n)[1] for n in {0, 1, 2} - {target}]
            assert all(other is not None and other.ino != stat.ino for other in others)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"granted twice"


def test_all_three_standard_descriptors_can_be_replaced_at_once(
    ww: Ww, c_cell: BuildFunction
) -> None:
    fds = {n: ww.file(f"f{n}", f"source {n}".encode()) for n in (3, 4, 5)}
    flags = [word for n in (3, 4, 5) for word in ("--fd", f"f{n}={n},target={5 - n}")]
    with remote(ww, c_cell("remote"), *flags, fds=fds, control=(20, 21)) as cell:
        for n in (3, 4, 5):
            assert cell.read(5 - n, 64) == (OK, f"source {n}".encode())


def test_standard_descriptors_can_themselves_be_granted_elsewhere(
    ww: Ww, c_cell: BuildFunction
) -> None:
    with remote(
        ww, c_cell("remote"), "--fd", "in=0,target=30", "--fd", "out=1,target=31", control=None
    ) as cell:
        found = [cell.filestat(n)[1] for n in (0, 30, 1, 31)]
    # Not their times: every answer of the cell changes those.
    places = [(state.dev, state.ino) for state in found if state is not None]
    assert len(places) == 4
    assert places[0] == places[1]
    assert places[2] == places[3]
    assert places[0] != places[2]


def test_what_the_caller_had_open_but_did_not_grant_is_ebadf_for_every_function(
    ww: Ww, c_cell: BuildFunction
) -> None:
    left, right = socket.socketpair()
    fds: dict[int, FdSource] = {3: ww.file("granted"), 5: ww.file("secret", b"secret"), 6: left}
    with (
        left,
        right,
        remote(ww, c_cell("remote"), "--fd", "f=3,mode=r", fds=fds) as cell,
    ):
        # The caller's, the source of a grant with another number, beside the grants, and far off.
        for number in (3, 5, 6, 9, 11, 1000, 65534, 65535, 65536, 0x7FFFFFFF, 0x80000000, -1, -10):
            said = every_errno(cell, number)
            assert said == dict.fromkeys(said, EBADF), number
        # None of these tries has hit what was granted.
        assert cell.fdstat(10)[0] == OK
        assert cell.fdstat(0)[0] == OK
        assert cell.fdstat(1)[0] == OK
        errno, events = cell.poll(Ready(1, EV_READ, 5), Ready(2, EV_WRITE, 0xFFFFFFFF))
    assert errno == OK
    assert events is not None
    assert [(event.userdata, event.error) for event in events] == [(1, EBADF), (2, EBADF)]


def test_without_stdio_the_standard_descriptors_are_empty(ww: Ww, c_cell: BuildFunction) -> None:
    with remote(
        ww,
        c_cell("remote"),
        "--no-stdio",
        control=(10, 11),
    ) as cell:
        assert cell.read(0, 10) == (OK, b"")
        assert cell.write(0, b"x")[0] == EBADF
        for number in (1, 2):
            assert cell.write(number, b"lost") == (OK, 4)
            assert cell.read(number, 10)[0] == EBADF


def test_of_the_engines_own_wasi_nothing_can_be_reached_that_is_about_a_descriptor() -> None:
    host = Host()
    reached = {found.name for found in host.switch.imports if found.module == abi.MODULE}
    assert reached == {
        *("args_get", "args_sizes_get", "environ_get", "environ_sizes_get"),
        *("clock_res_get", "clock_time_get", "random_get", "sched_yield", "proc_raise"),
    }

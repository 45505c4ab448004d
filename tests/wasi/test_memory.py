"""The cell's memory as the host uses it: addresses outside are EFAULT, all of the inside works."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import BuildFunction, Ww
from tests.wasi.remote_cell import EFAULT, EINVAL, EV_READ, OK, Ready, Remote, remote

CONTENT = bytes(range(256)) * 16


class Granted(NamedTuple):
    """A cell with a file at 10, a connected socket at 11, a listening one at 12, and `/` at 3."""

    cell: Remote
    peer: socket.socket
    listener: socket.socket


@contextmanager
def cell_with_grants(ww: Ww, wasm: Path, *more: str) -> Iterator[Granted]:
    ours, its = socket.socketpair()
    flags = ["--fd", "f=3,mode=rw,target=10,pathlink=true", "--fd", "s=4", "--fd", "l=5", *more]
    path = ww.file("f", CONTENT)
    with (
        ours,
        its,
        socket.create_server(("127.0.0.1", 0)) as listener,
        open(path, "r+b", buffering=0) as file,
        remote(ww, wasm, *flags, fds={3: file, 4: its, 5: listener}) as cell,
    ):
        yield Granted(cell, ours, listener)


@pytest.fixture
def granted(ww: Ww, c_cell: BuildFunction) -> Iterator[Granted]:
    with cell_with_grants(ww, c_cell("remote")) as given:
        yield given


@pytest.fixture
def granted_all(ww: Ww, c_cell: BuildFunction) -> Iterator[Granted]:
    """The same without a limit of memory."""
    with cell_with_grants(ww, c_cell("remote"), "--memory", "none") as given:
        yield given


# Each function with one pointer, `bad`, that leads out of memory; `v` is one good vector, `ok` is
# good memory, `vbad` a vector whose buffer is bad. The last word is how many bytes belong there.
BAD_POINTERS = {
    "descriptors": [
        "fd_fdstat_get 10 bad 24",
        "fd_filestat_get 10 bad 64",
        "fd_pread 10 bad 1 0 ok 8",
        "fd_pread 10 vbad 1 0 ok 8",
        "fd_pread 10 v 1 0 bad 4",
        "fd_prestat_get 3 bad 8",
        "fd_prestat_dir_name 3 bad 1 1",
        "fd_pwrite 10 bad 1 0 ok 8",
        "fd_pwrite 10 vbad 1 0 ok 8",
        "fd_pwrite 10 v 1 0 bad 4",
        "fd_read 10 bad 1 ok 8",
        "fd_read 10 vbad 1 ok 8",
        "fd_read 10 v 1 bad 4",
        "fd_readdir 3 bad 64 0 ok 64",
        "fd_readdir 3 ok 64 0 bad 4",
        "fd_seek 10 0 0 bad 8",
        "fd_tell 10 bad 8",
        "fd_write 10 bad 1 ok 8",
        "fd_write 10 vbad 1 ok 8",
        "fd_write 10 v 1 bad 4",
        "path_filestat_get 3 1 bad 1 ok 1",
        "path_filestat_get 3 1 name 1 bad 64",
        "path_open 3 1 bad 1 0 2 0 0 ok 1",
        "path_open 3 1 name 1 0 2 0 0 bad 4",
        "path_readlink 3 bad 1 ok 64 ok 1",
        "path_readlink 3 name 1 bad 64 ok 16",
        "path_readlink 3 name 1 ok 64 bad 4",
        "poll_oneoff bad ok 1 ok 48",
        "poll_oneoff poll bad 1 ok 32",
        "poll_oneoff poll ok 1 bad 4",
        "sock_accept 12 0 bad 4",
        "sock_recv 11 bad 1 0 ok ok 8",
        "sock_recv 11 vbad 1 0 ok ok 8",
        "sock_recv 11 v 1 0 bad ok 4",
        "sock_recv 11 v 1 0 ok bad 2",
        "sock_send 11 bad 1 0 ok 8",
        "sock_send 11 vbad 1 0 ok 8",
        "sock_send 11 v 1 0 bad 4",
    ],
}


@pytest.mark.parametrize("functions", BAD_POINTERS)
def test_a_bad_pointer_is_efault_in_every_place_of_every_function(
    granted: Granted, functions: str
) -> None:
    cell, peer, listener = granted
    end = cell.memory()
    ok, vector, buffer = cell.scratch + 0x4000, cell.scratch + 0x100, cell.scratch + 0x9000
    vbad, name, poll = cell.scratch + 0x200, cell.scratch + 0x300, cell.scratch + 0x400
    cell.poke(vector, struct.pack("<II", buffer, 16))
    cell.poke(name, b"f")
    cell.poke(poll, Ready(1, EV_READ, 10).pack())
    clients = []
    wrong = {}
    try:
        for line in BAD_POINTERS[functions]:
            function, *words, size = line.split()
            # Just outside, across the end, and at the very top of 32 bits, where sums wrap round.
            for bad in (end, end - int(size) + 1, 0xFFFFFFFF - int(size) + 1, 0xFFFFFFFF):
                peer.sendall(b"sixteen bytes ok")
                if function == "sock_accept":
                    clients.append(socket.create_connection(listener.getsockname()))
                cell.poke(vbad, struct.pack("<II", bad, int(size)))
                known = {
                    "bad": bad,
                    "ok": ok,
                    "v": vector,
                    "vbad": vbad,
                    "name": name,
                    "poll": poll,
                }
                numbers = [known[word] if word in known else int(word) for word in words]
                errno = cell.raw(function, *numbers)
                if errno != EFAULT:
                    wrong[line, hex(bad)] = errno
    finally:
        for client in clients:
            client.close()
    assert wrong == {}


def test_a_bad_path_is_efault_where_paths_are_read(granted: Granted) -> None:
    """Also where the call is refused whatever the path: the address is looked at, or it is not."""
    cell = granted.cell
    end = cell.memory()
    refused = {
        cell.raw("path_create_directory", 3, end, 1),
        cell.raw("path_remove_directory", 3, end, 1),
        cell.raw("path_unlink_file", 3, end, 1),
        cell.raw("path_rename", 3, end, 1, 3, end, 1),
        cell.raw("path_link", 3, 0, end, 1, 3, end, 1),
        cell.raw("path_symlink", end, 1, 3, end, 1),
        cell.raw("path_filestat_set_times", 3, 0, end, 1, 0, 0, 0),
    }
    assert OK not in refused
    for size in (0xFFFFFFFF, 0x80000000, end):
        assert cell.raw("path_open", 3, 1, cell.scratch, size, 0, 2, 0, 0, cell.scratch) == EFAULT


def test_vectors_that_lead_out_are_efault_and_nothing_is_moved(granted: Granted) -> None:
    cell = granted.cell
    end = cell.memory()
    good = struct.pack("<II", cell.scratch + 0x9000, 4)
    for address, size in (
        (end, 1),
        (end - 4, 5),
        (0, end + 1),
        (0, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 1),
        (end + 1, 0),
    ):
        cell.poke(cell.scratch, good + struct.pack("<II", address, size) + good)
        for name in ("fd_read", "fd_write"):
            assert cell.raw(name, 10, cell.scratch, 3, cell.scratch + 0x8000) == EFAULT
    assert cell.tell_position(10) == (OK, 0)
    # The table of vectors itself.
    at = cell.scratch
    for count, table in ((1, end - 7), (2, end - 8), (1024, end - 8 * 1024 + 1)):
        assert cell.raw("fd_read", 10, table, count, at) == EFAULT
    assert cell.raw("fd_read", 10, end - 8, 1025, at) in (EINVAL, EFAULT)


def test_the_very_end_of_memory_can_be_used_by_every_kind_of_result(granted: Granted) -> None:
    cell = granted.cell
    end = cell.memory()
    at = cell.scratch
    cell.poke(at, struct.pack("<II", end - 16, 16))
    assert cell.raw("fd_read", 10, at, 1, at + 0x8000) == OK
    assert cell.peek(end - 16, 16) == CONTENT[:16]
    assert cell.raw("fd_pwrite", 10, at, 1, 100, end - 4) == OK
    assert cell.peek(end - 4, 4) == struct.pack("<I", 16)
    assert cell.raw("fd_tell", 10, end - 8) == OK
    assert cell.peek(end - 8, 8) == struct.pack("<Q", 16)
    assert cell.raw("fd_filestat_get", 10, end - 64) == OK
    assert cell.raw("fd_fdstat_get", 10, end - 24) == OK
    assert cell.raw("clock_time_get", 0, 1, end - 8) == OK
    assert cell.raw("random_get", end - 64, 64) == OK
    # A table of vectors at the end, of one whose buffer is empty just at the end.
    cell.poke(end - 8, struct.pack("<II", end, 0))
    assert cell.raw("fd_read", 10, end - 8, 1, at) == OK
    assert cell.peek(at, 4) == bytes(4)


def test_memory_that_was_grown_between_calls_is_used(granted: Granted) -> None:
    cell = granted.cell
    before = cell.memory()
    at = cell.scratch
    cell.poke(at, struct.pack("<II", before, 4096))
    assert cell.raw("fd_pread", 10, at, 1, 0, at + 0x8000) == EFAULT
    assert cell.grow(1) == before >> 16
    assert cell.raw("fd_pread", 10, at, 1, 0, at + 0x8000) == OK
    assert cell.peek(before, 4096) == CONTENT
    # Across the old end, and at the end of what is new.
    cell.poke(at, struct.pack("<II", before - 100, 4096))
    assert cell.raw("fd_pread", 10, at, 1, 0, before + 0x10000 - 4) == OK
    assert cell.peek(before - 100, 4096) == CONTENT
    assert cell.peek(before + 0x10000 - 4, 4) == struct.pack("<I", 4096)
    for step in range(2, 20):
        cell.grow(step * 7)
        end = cell.memory()
        cell.poke(end - 64, b"A" * 64)
        cell.poke(at, struct.pack("<II", end - 64, 64))
        assert cell.raw("fd_pwrite", 10, at, 1, 0, at + 0x8000) == OK
        assert cell.raw("fd_filestat_get", 10, end - 64) == OK
        assert cell.peek(end - 32, 8) == struct.pack("<Q", len(CONTENT))
        assert cell.raw("fd_tell", 10, end) == EFAULT


def test_growth_without_end_fails_in_the_cell_and_harms_nothing(granted: Granted) -> None:
    cell = granted.cell
    before = cell.memory()
    # More than 32 bits can address.
    assert cell.grow(65536) == -1
    assert cell.grow(0xFFFFFFFF) == -1
    assert cell.memory() == before
    assert cell.grow(0) == before >> 16
    assert cell.read(10, 16) == (OK, CONTENT[:16])


def test_the_whole_address_space_can_be_had_untouched(
    granted_all: Granted,
) -> None:
    """4 GiB of memory that nobody touches cost nothing; its last byte is as good as the first."""
    cell = granted_all.cell
    assert cell.grow(65536 - (cell.memory() >> 16)) >= 0
    assert cell.memory() == 1 << 32
    at = cell.scratch
    top = (1 << 32) - 16
    cell.poke(at, struct.pack("<II", top, 16))
    assert cell.raw("fd_read", 10, at, 1, at + 0x8000) == OK
    assert cell.peek(top, 16) == CONTENT[:16]
    assert cell.raw("fd_tell", 10, (1 << 32) - 8) == OK
    assert cell.raw("fd_tell", 10, (1 << 32) - 7) == EFAULT
    assert cell.raw("fd_tell", 10, 0xFFFFFFFF) == EFAULT
    cell.poke(at, struct.pack("<II", 0xFFFFFFFF, 2))
    assert cell.raw("fd_read", 10, at, 1, at + 0x8000) == EFAULT


def test_overlapping_vectors_and_results_do_what_the_order_says(granted: Granted) -> None:
    cell = granted.cell
    buffer = cell.scratch + 0x9000
    cell.poke(cell.scratch, struct.pack("<IIII", buffer, 8, buffer + 4, 8))
    assert cell.raw("fd_read", 10, cell.scratch, 2, cell.scratch + 0x8000) == OK
    assert cell.peek(buffer, 12) == CONTENT[:4] + CONTENT[8:16]
    # The result where the vectors were: it is written last.
    cell.poke(cell.scratch, struct.pack("<II", buffer, 8))
    assert cell.raw("fd_read", 10, cell.scratch, 1, cell.scratch) == OK
    assert cell.peek(cell.scratch, 4) == struct.pack("<I", 8)
    # The number of bytes read on top of the bytes themselves.
    cell.poke(cell.scratch, struct.pack("<II", buffer, 8))
    assert cell.raw("fd_read", 10, cell.scratch, 1, buffer) == OK
    assert cell.peek(buffer, 8) == struct.pack("<I", 8) + CONTENT[28:32]


@pytest.mark.parametrize(
    "call", ["args_get 0xfffffff0 65536", "clock_time_get 0 1 0xfffffff0", "random_get 0xfff0000 9"]
)
def test_a_bad_pointer_in_what_the_engine_serves_ends_the_cell_as_a_trap(
    ww: Ww, c_cell: BuildFunction, call: str
) -> None:
    done = ww.run("run", c_cell("remote"), stdin=f"call {call}\n".encode())
    assert done.returncode == 134
    assert b"out of bounds" in done.stderr

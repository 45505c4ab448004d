"""What a call costs, as far as it can be counted: transitions to Python, and copies there."""

from __future__ import annotations

import os
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pytest
import wasmtime

from sandbox.wasi import abi
from sandbox.wasi.directory import BaseDirectory, RootDirectory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.tree import Directory
from tests.wasi.host_here import Host, LinkedCell
from tests.wasi.remote_cell import EBADF, EINVAL, OK
from tests.wasi.test_numbers import BY_DESCRIPTOR

TYPES = {"i": "i32", "I": "i64"}
# In the cell's memory: room for results, the letter `f`, a vector of 16 bytes, and its buffer.
AT, NAME, VECTOR, BUFFER = 0, 512, 1024, 65536
SIZE = 1 << 18
# These are always the host's: see sandbox.wasi.abi.
ALWAYS = {"poll_oneoff", "proc_exit"}
BESIDES = {
    "args_get": "at at",
    "args_sizes_get": "at at",
    "environ_get": "at at",
    "environ_sizes_get": "at at",
    "clock_res_get": "1 at",
    "clock_time_get": "1 1 at",
    "random_get": "at 8",
    "sched_yield": "",
    "proc_raise": "0",
}


def every_function() -> str:
    """A cell that exports what it imports, and `many`, which writes as often as it is told."""
    lines = []
    for name, kinds in abi.FUNCTIONS.items():
        parameters = " ".join(f"(param {TYPES[kind]})" for kind in kinds)
        result = "" if name == "proc_exit" else "(result i32)"
        lines.append(f'(import "{abi.MODULE}" "{name}" (func ${name} {parameters} {result}))')
        lines.append(f'(export "{name}" (func ${name}))')
    return f"""(module
      {" ".join(lines)}
      (memory (export "memory") {(BUFFER + 8 * SIZE) >> 16})
      (data (i32.const {NAME}) "f")
      (func (export "_start"))
      (func (export "peek") (param i32) (result i32) (i32.load (local.get 0)))
      (func (export "poke") (param i32) (param i32) (result i32)
        (i32.store (local.get 0) (local.get 1)) (i32.const 0))
      (func (export "many") (param $fd i32) (param $times i32) (result i32) (local $errno i32)
        (loop $next
          (local.set $errno (call $fd_write
            (local.get $fd) (i32.const {VECTOR}) (i32.const 1) (i32.const {AT})))
          (local.set $times (i32.sub (local.get $times) (i32.const 1)))
          (br_if $next (local.get $times)))
        (local.get $errno)))"""


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


@pytest.fixture(scope="module")
def module(host: Host) -> wasmtime.Module:
    return wasmtime.Module(host.engine, every_function())


@contextmanager
def linked(
    host: Host, module: wasmtime.Module, granted: dict[int, File | BaseDirectory]
) -> Iterator[LinkedCell]:
    cell = LinkedCell(host, module, granted)
    try:
        put_vectors(cell, 16)
        yield cell
    finally:
        cell.close()


def put_vectors(cell: LinkedCell, *sizes: int) -> None:
    """Lay out vectors over the buffer, one behind the other."""
    at = BUFFER
    for place, size in enumerate(sizes):
        cell.call("poke", VECTOR + 8 * place, at)
        cell.call("poke", VECTOR + 8 * place + 4, size)
        at += size


def numbers(words: str, fd: int) -> list[int]:
    known = {"fd": fd, "at": AT}
    return [known[word] if word in known else int(word) for word in words.split()]


@pytest.mark.parametrize("number", [0, 5, 9, 11, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_call_on_what_was_not_granted_never_enters_python(
    host: Host, module: wasmtime.Module, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "f"
    path.touch()
    file = open_grant(os.open(path, os.O_RDWR | os.O_CLOEXEC), "rw")
    with linked(host, module, {10: file}) as cell:
        for name, words in BY_DESCRIPTOR.items():
            assert (name, cell.call(name, *numbers(words, number))) == (name, EBADF)
        for pair in ((number, 10), (10, number), (number, number)):
            assert cell.call("fd_renumber", *pair) == EBADF
        # Where there are two directories, one that is open does not help.
        for pair in ((number, 10), (10, number)):
            assert cell.call("path_link", pair[0], 0, NAME, 1, pair[1], NAME, 1) == EBADF
            assert cell.call("path_rename", pair[0], NAME, 1, pair[1], NAME, 1) == EBADF
        assert not cell.entered


def test_what_is_about_no_descriptor_never_enters_python(
    host: Host, module: wasmtime.Module
) -> None:
    with linked(host, module, {}) as cell:
        for name, words in BESIDES.items():
            cell.call(name, *numbers(words, 0))
        for clock in (4, 0xFFFFFFFF):
            assert cell.call("clock_time_get", clock, 1, AT) == EINVAL
        assert not cell.entered
        assert {*BESIDES, *BY_DESCRIPTOR, "fd_renumber", *ALWAYS} == set(abi.FUNCTIONS)
        # Waiting is the host's in any case: the engine's would need threads.
        assert cell.call("poll_oneoff", AT, AT, 0, AT) == EINVAL
        assert cell.entered == {"poll_oneoff": 1}


@contextmanager
def one_of_each(folder: Path) -> Iterator[dict[int, File | BaseDirectory]]:
    """A file at 10, a directory at 11, a socket at 12, a listening one at 13, the root at 14."""
    (folder / "f").write_bytes(bytes(100))
    with ExitStack() as stack:
        ours, its = socket.socketpair()
        stack.enter_context(ours)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(socket.create_connection(server.getsockname()))
        ours.sendall(bytes(100))
        file = open_grant(os.open(folder / "f", os.O_RDWR | os.O_CLOEXEC), "rw")
        yield {
            10: file,
            11: Directory(os.open(folder, os.O_RDONLY | os.O_CLOEXEC), "rw", b"/d"),
            12: open_grant(its.detach(), "rw"),
            13: open_grant(os.dup(server.fileno()), "rw"),
            14: RootDirectory({b"f": (10, file)}),
        }


@pytest.mark.parametrize("fd", [10, 11, 12, 13, 14])
def test_a_call_on_a_grant_enters_python_once(
    host: Host, module: wasmtime.Module, tmp_path: Path, fd: int
) -> None:
    last = ("fd_fdstat_set_rights", "fd_close")
    with one_of_each(tmp_path) as granted, linked(host, module, granted) as cell:
        for name in (*(name for name in BY_DESCRIPTOR if name not in last), *last):
            words = BY_DESCRIPTOR[name].replace("at 1", f"{NAME} 1")
            cell.entered.clear()
            cell.call(name, *numbers(words, fd))
            assert cell.entered == {name: 1}, name
        cell.entered.clear()
        assert cell.call("fd_close", fd) == EBADF
        assert not cell.entered


def test_numbers_that_the_switch_hands_out_cost_no_more_than_the_call(
    host: Host, module: wasmtime.Module, tmp_path: Path
) -> None:
    with one_of_each(tmp_path) as granted, linked(host, module, granted) as cell:
        for directory in (11, 14):
            for expected in (0, 1, 2):
                cell.entered.clear()
                assert cell.call("path_open", directory, 0, NAME, 1, 0, 2, 0, 0, AT) == OK
                assert cell.call("peek", AT) == expected
                assert cell.entered == {"path_open": 1}
            # What is renumbered onto another closes that one, and says nothing else.
            cell.entered.clear()
            assert cell.call("fd_renumber", 2, 1) == OK
            assert cell.entered == {"fd_close": 1}
            for number in (0, 1):
                assert cell.call("fd_close", number) == OK
        cell.entered.clear()
        assert cell.call("sock_accept", 13, 0, AT) == OK
        assert cell.call("peek", AT) == 0
        assert cell.entered == {"sock_accept": 1}


class Profile:
    """How often Python is entered, whoever does it; by the names of the functions."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            name = frame.f_code.co_name
            self.calls[name] = self.calls.get(name, 0) + 1

    def of(self, cell: LinkedCell, fd: int, times: int) -> dict[str, int]:
        self.calls = {}
        sys.setprofile(self)
        try:
            cell.call("many", fd, times)
        finally:
            sys.setprofile(None)
        return self.calls


def test_a_thousand_calls_enter_python_as_often_as_they_must(
    host: Host, module: wasmtime.Module
) -> None:
    """Counted by the interpreter, so that no other way in is overlooked."""
    null = open_grant(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), "rw")
    with linked(host, module, {10: null}) as cell:
        profile = Profile()
        for fd in (9, 65536):
            once = profile.of(cell, fd, 1)
            assert profile.of(cell, fd, 1000) == once
            assert "callback" not in once
        once = profile.of(cell, 10, 1)
        thousand = profile.of(cell, 10, 1000)
        assert (once["callback"], thousand["callback"]) == (1, 1000)
        # Nor do all calls inside grow in number with anything else.
        assert sum(thousand.values()) - sum(once.values()) <= 999 * 10


# Eight buffers of 64 KiB, or one of 256 KiB.
SHAPES = {"one vector": [SIZE], "eight vectors": [1 << 16] * 8}
# Far less than any of the buffers, and room for the vectors' own objects.
SMALL = 1 << 14


def allocated(cell: LinkedCell, name: str, *parameters: int) -> int:
    """The most bytes that Python has allocated at once during a call, and that it succeeded."""
    assert cell.call(name, *parameters) == OK  # what is made only once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        errno = cell.call(name, *parameters)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert errno == OK
    return peak - before


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["fd_read", "fd_write", "fd_pread", "fd_pwrite"])
def test_no_data_of_a_file_is_copied_in_python(
    host: Host, module: wasmtime.Module, tmp_path: Path, name: str, shape: str
) -> None:
    path = tmp_path / "f"
    sizes = SHAPES[shape]
    path.write_bytes(bytes(4 * sum(sizes)))
    file = open_grant(os.open(path, os.O_RDWR | os.O_CLOEXEC), "rw")
    with linked(host, module, {10: file}) as cell:
        put_vectors(cell, *sizes)
        offset = [5] if name in ("fd_pread", "fd_pwrite") else []
        assert allocated(cell, name, 10, VECTOR, len(sizes), *offset, AT) < SMALL
        assert cell.call("peek", AT) == sum(sizes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["fd_read", "fd_write", "sock_recv", "sock_send"])
def test_no_data_of_a_socket_is_copied_in_python(
    host: Host, module: wasmtime.Module, name: str, shape: str
) -> None:
    ours, its = socket.socketpair()
    sizes = [size // 8 for size in SHAPES[shape]]
    with ours, linked(host, module, {10: open_grant(its.detach(), "rw")}) as cell:
        put_vectors(cell, *sizes)
        ours.sendall(bytes(2 * sum(sizes)))
        flags = [0] if name.startswith("sock_") else []
        more = [AT, AT + 8] if name == "sock_recv" else [AT]
        assert allocated(cell, name, 10, VECTOR, len(sizes), *flags, *more) < SMALL
        assert cell.call("peek", AT) > SMALL


def test_the_measure_of_copies_sees_one(host: Host, module: wasmtime.Module) -> None:
    """Otherwise the tests above could not fail."""
    file = open_grant(os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC), "rw")
    with linked(host, module, {10: file}) as cell:
        put_vectors(cell, SIZE)
        read = file.read

        def copying(buffers: list[memoryview]) -> int:
            return read([memoryview(bytearray(buffer)) for buffer in buffers])

        file.read = copying  # type: ignore[method-assign, assignment]
        assert allocated(cell, "fd_read", 10, VECTOR, 1, AT) > SIZE

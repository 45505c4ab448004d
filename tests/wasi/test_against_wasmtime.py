"""The engine's own WASI as the oracle: one cell does the same calls under both.

What the engine offers is stdio and preopened directories, so that is what can be compared: a file
opened by its name from a directory, and pipes as stdin and stdout.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import REPO, BuildFunction, Ww
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    APPEND,
    ATIM,
    ATIM_NOW,
    CREAT,
    DIRECTORY,
    EBADF,
    EFAULT,
    EINVAL,
    EISDIR,
    ENOTCAPABLE,
    ENOTDIR,
    ESPIPE,
    EV_READ,
    EV_WRITE,
    EXCL,
    MTIM,
    MTIM_NOW,
    NONBLOCK,
    OK,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
    SYNC,
    Clock,
    Errno,
    R,
    Ready,
    Remote,
    Right,
    W,
    give_to_the_cell,
    remote,
)
from tests.wasi.sequences import (
    BUFFER,
    FILESTAT,
    IOV_MAX,
    RESULT,
    VECTORS,
    At,
    Beyond,
    Laid,
    Outcome,
    Step,
    crowd,
    open_step,
    poll_step,
    read_step,
    steps,
    write_step,
)

CONTENT = b"0123456789abcdefghijklmnopqrstuvwxyz"

# Runs argv[1] under the engine's WASI: argv[2] is preopened as `/`, the rest are arguments.
ENGINE = """
import sys
import wasmtime

engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
config = wasmtime.WasiConfig()
config.argv = ["remote", *sys.argv[3:]]
config.inherit_stdin()
config.inherit_stdout()
config.inherit_stderr()
config.preopen_dir(sys.argv[2], "/")
store = wasmtime.Store(engine)
store.set_wasi(config)
module = wasmtime.Module.from_file(engine, sys.argv[1])
start = linker.instantiate(store, module).exports(store)["_start"]
try:
    start(store)
except wasmtime.ExitTrap as end:
    sys.exit(end.code)
"""

Call = Callable[[Remote], Any]
# In order, on one file: /f is opened first and is 4 under both.
STEPS: dict[str, Call] = {
    "path_open": lambda cell: cell.open("f", ALL_RIGHTS),
    "path_open of nothing": lambda cell: cell.open("nothing"),
    "path_open O_CREAT|O_EXCL": lambda cell: cell.open("f", R | W, oflags=CREAT | EXCL),
    "path_open O_DIRECTORY": lambda cell: cell.open("f", oflags=DIRECTORY),
    "path_open of ..": lambda cell: cell.open(".."),
    "path_open of ../x": lambda cell: cell.open("../x"),
    "path_open of f/..": lambda cell: cell.open("f/../f"),
    "path_open below a file": lambda cell: cell.open("f/x"),
    "path_open of f/": lambda cell: cell.open("f/"),
    "path_open of no name": lambda cell: cell.open(""),
    "path_open of the root to write": lambda cell: cell.open(".", W),
    "path_open from a file": lambda cell: cell.open("f", fd=4),
    "path_filestat_get": lambda cell: size_and_type(cell.path_filestat("f")),
    "path_filestat_get of nothing": lambda cell: cell.path_filestat("nothing"),
    "path_filestat_get from a file": lambda cell: cell.path_filestat("f", fd=4),
    "path_readlink of nothing": lambda cell: cell.readlink("nothing"),
    "path_readlink of the root": lambda cell: cell.readlink("."),
    "fd_prestat_get": lambda cell: cell.result("<II", "fd_prestat_get", 3),
    "fd_prestat_get of a file": lambda cell: cell.result("<II", "fd_prestat_get", 4),
    "fd_prestat_dir_name, no room": lambda cell: cell.raw(
        "fd_prestat_dir_name", 3, cell.scratch, 0
    ),
    "fd_fdstat_get: type and flags": lambda cell: type_and_flags(cell.fdstat(4)),
    "fd_fdstat_get: rights": lambda cell: rights(cell.fdstat(4)),
    "fd_fdstat_get of the root: type": lambda cell: type_and_flags(cell.fdstat(3)),
    "fd_filestat_get": lambda cell: size_and_type(cell.filestat(4)),
    "fd_read": lambda cell: cell.read(4, 5),
    "fd_read of two": lambda cell: cell.read(4, 3, 2),
    "fd_seek to 10": lambda cell: cell.seek(4, 10),
    "fd_read of none": lambda cell: cell.read(4),
    "fd_read of nothing": lambda cell: cell.read(4, 0),
    "fd_tell": lambda cell: cell.tell_position(4),
    "fd_pread": lambda cell: cell.pread(4, 30, 100),
    "fd_pread of none": lambda cell: cell.pread(4, 3),
    "fd_pread at the end": lambda cell: cell.pread(4, 36, 5),
    "fd_pread beyond the end": lambda cell: cell.pread(4, 1000, 5),
    "fd_tell after it": lambda cell: cell.tell_position(4),
    "fd_write": lambda cell: cell.write(4, b"AB"),
    "fd_write of two": lambda cell: cell.write(4, b"CD", b"EF"),
    "fd_write the rest": lambda cell: cell.pwrite(4, 14, b"EF"),
    "fd_seek to 16": lambda cell: cell.seek(4, 16),
    "fd_write of none": lambda cell: cell.write(4),
    "fd_write of nothing": lambda cell: cell.write(4, b""),
    "fd_pwrite": lambda cell: cell.pwrite(4, 0, b"xyz"),
    "fd_pwrite beyond the end": lambda cell: cell.pwrite(4, 40, b"end"),
    "fd_tell after both": lambda cell: cell.tell_position(4),
    "fd_seek SET": lambda cell: cell.seek(4, 2, SEEK_SET),
    "fd_seek CUR": lambda cell: cell.seek(4, 2, SEEK_CUR),
    "fd_seek CUR back": lambda cell: cell.seek(4, -1, SEEK_CUR),
    "fd_seek END": lambda cell: cell.seek(4, -3, SEEK_END),
    "fd_seek END beyond": lambda cell: cell.seek(4, 3, SEEK_END),
    "fd_seek before the start": lambda cell: cell.seek(4, -1, SEEK_SET),
    "fd_seek CUR before the start": lambda cell: cell.seek(4, -1000, SEEK_CUR),
    "fd_seek END before the start": lambda cell: cell.seek(4, -1000, SEEK_END),
    "fd_read at the end": lambda cell: cell.read(4, 5),
    "fd_filestat_set_size": lambda cell: cell.raw("fd_filestat_set_size", 4, 10),
    "fd_filestat_get of 10": lambda cell: size_and_type(cell.filestat(4)),
    "fd_filestat_set_size up": lambda cell: cell.raw("fd_filestat_set_size", 4, 20),
    "fd_allocate": lambda cell: cell.raw("fd_allocate", 4, 0, 100),
    "fd_filestat_set_size to 100": lambda cell: cell.raw("fd_filestat_set_size", 4, 100),
    "fd_filestat_get of 100": lambda cell: size_and_type(cell.filestat(4)),
    "fd_filestat_set_times": lambda cell: cell.raw(
        "fd_filestat_set_times", 4, 10**18 + 1, 2 * 10**18 + 2, ATIM | MTIM
    ),
    "fd_filestat_get: times": lambda cell: times(cell.filestat(4)),
    "fd_filestat_set_times, none": lambda cell: cell.raw("fd_filestat_set_times", 4, 1, 2, 0),
    "fd_filestat_set_times, one": lambda cell: cell.raw("fd_filestat_set_times", 4, 1, 7, MTIM),
    "fd_filestat_get: times again": lambda cell: times(cell.filestat(4)),
    "fd_filestat_set_times, now": lambda cell: cell.raw(
        "fd_filestat_set_times", 4, 1, 2, ATIM_NOW | MTIM_NOW
    ),
    "fd_filestat_set_times, both of one": lambda cell: cell.raw(
        "fd_filestat_set_times", 4, 1, 2, ATIM | ATIM_NOW
    ),
    "fd_advise": lambda cell: [cell.raw("fd_advise", 4, 0, 10, advice) for advice in range(6)],
    "fd_sync": lambda cell: cell.raw("fd_sync", 4),
    "fd_datasync": lambda cell: cell.raw("fd_datasync", 4),
    "fd_fdstat_set_flags APPEND": lambda cell: cell.raw("fd_fdstat_set_flags", 4, APPEND),
    "fd_fdstat_get: appending": lambda cell: type_and_flags(cell.fdstat(4)),
    "fd_write appending": lambda cell: cell.write(4, b"appended"),
    "fd_filestat_get of 108": lambda cell: size_and_type(cell.filestat(4)),
    "fd_fdstat_set_flags none": lambda cell: cell.raw("fd_fdstat_set_flags", 4, 0),
    "fd_fdstat_set_flags NONBLOCK": lambda cell: cell.raw("fd_fdstat_set_flags", 4, NONBLOCK),
    "fd_fdstat_get: nonblocking": lambda cell: type_and_flags(cell.fdstat(4)),
    "fd_fdstat_set_flags SYNC": lambda cell: cell.raw("fd_fdstat_set_flags", 4, SYNC),
    "fd_fdstat_set_flags none again": lambda cell: cell.raw("fd_fdstat_set_flags", 4, 0),
    "fd_readdir of a file": lambda cell: cell.readdir(4),
    "sock_recv of a file": lambda cell: cell.recv(4, 1),
    "sock_send to a file": lambda cell: cell.send(4, b"x"),
    "sock_accept from a file": lambda cell: cell.accept(4),
    "sock_shutdown of a file": lambda cell: cell.raw("sock_shutdown", 4, 1),
    "poll_oneoff": lambda cell: cell.poll(Ready(7, EV_WRITE, 4)),
    "poll_oneoff of a clock": lambda cell: cell.poll(Clock(8, 1000)),
    "poll_oneoff of nothing": lambda cell: cell.poll(),
    "poll_oneoff of a closed one": lambda cell: cell.poll(Ready(7, EV_READ, 99)),
    "path_open to read": lambda cell: cell.open("f", R | Right.FD_SEEK),
    "fd_write where it may not": lambda cell: cell.write(5, b"x"),
    "fd_pwrite where it may not": lambda cell: cell.pwrite(5, 0, b"x"),
    "fd_filestat_set_size where it may not": lambda cell: cell.raw("fd_filestat_set_size", 5, 1),
    "fd_read where it may": lambda cell: cell.read(5, 1)[0],
    "path_open to write": lambda cell: cell.open("f", W | Right.FD_SEEK),
    "fd_read where it may not": lambda cell: cell.read(6, 1),
    "fd_pread where it may not": lambda cell: cell.pread(6, 0, 1),
    "fd_renumber": lambda cell: cell.raw("fd_renumber", 5, 6),
    "fd_renumber of what moved": lambda cell: cell.raw("fd_renumber", 5, 6),
    "fd_renumber onto nothing": lambda cell: cell.raw("fd_renumber", 6, 77),
    "fd_renumber onto itself": lambda cell: cell.raw("fd_renumber", 4, 4),
    "path_open, the lowest number": lambda cell: cell.open("f"),
    "fd_close": lambda cell: cell.raw("fd_close", 4),
    "fd_close again": lambda cell: cell.raw("fd_close", 4),
    "fd_read of a closed one": lambda cell: cell.read(4, 1),
    "fd_tell of a closed one": lambda cell: cell.tell_position(4),
    "clock_res_get": lambda cell: cell.raw("clock_res_get", 1, cell.scratch),
}

# Where this host is meant to answer otherwise than the engine, and why.
_EXACT = "rights are exact here; the engine claims them all, or hardly any"
_WHOLE = "all vectors are one call, as readv(2) and writev(2); the engine takes the first"
_OUT = "a path with `..` is refused unseen, with the errno that preview 1 has for it"
_NOT_A_DIRECTORY = "ENOTDIR, as openat(2) says; the engine says EBADF"
_MISSING_RIGHT = "a missing right is ENOTCAPABLE, but for reading and writing"
_NO_POSITION = "a pipe has no position: ESPIPE, as lseek(2) and pwrite(2) say"

FILE_DIFFERENCES = {
    "path_open of ..": _OUT,
    "path_open of ../x": _OUT,
    "path_open of f/..": _OUT,
    "path_filestat_get from a file": _NOT_A_DIRECTORY,
    "fd_fdstat_get: rights": _EXACT,
    "fd_read of two": _WHOLE,
    "fd_write of two": _WHOLE,
    "fd_allocate": "the engine does not have it any more",
    "fd_readdir of a file": _NOT_A_DIRECTORY,
    "poll_oneoff": "poll(2) does not tell how much can be written; the engine makes up a 1",
    "poll_oneoff of a closed one": "an event of its own, so that the others are told as well",
    "fd_filestat_set_size where it may not": _MISSING_RIGHT,
}

PIPE_DIFFERENCES = {
    f"{call} {number}": reason
    for number in (0, 1)
    for call, reason in {
        "fd_fdstat_get of": _EXACT,
        "fd_allocate of": _MISSING_RIGHT,
        "fd_advise of": _NO_POSITION,
        "fd_sync of": _MISSING_RIGHT,
        "fd_datasync of": _MISSING_RIGHT,
        "fd_filestat_set_size of": _MISSING_RIGHT,
        "fd_filestat_set_times of": _MISSING_RIGHT,
        "fd_readdir of": _NOT_A_DIRECTORY,
        "path_open from": _NOT_A_DIRECTORY,
    }.items()
} | {"fd_pwrite of 0": _NO_POSITION, "fd_pread of 1": _NO_POSITION}


def size_and_type(answer: tuple[int, Any]) -> object:
    errno, stat = answer
    return errno, stat and (stat.filetype, stat.size, stat.nlink)


def times(answer: tuple[int, Any]) -> object:
    errno, stat = answer
    return errno, stat and (stat.atim, stat.mtim)


def type_and_flags(answer: tuple[int, Any]) -> object:
    errno, stat = answer
    return errno, stat and (stat.filetype, stat.flags)


def rights(answer: tuple[int, Any]) -> object:
    errno, stat = answer
    return errno, stat and (Right(stat.rights), Right(stat.inheriting))


def by_the_engine(wasm: Path, folder: Path) -> dict[str, object]:
    commands_out, commands = os.pipe()
    answers, answers_in = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(wasm), str(folder)],
        stdin=commands_out,
        stdout=answers_in,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(commands_out)
    os.close(answers_in)
    cell = Remote(process, commands, answers)
    try:
        said = {name: step(cell) for name, step in STEPS.items()}
        assert cell.end() == 0
    finally:
        cell.close()
        os.close(answers)
    return said


def test_a_file_behaves_as_under_the_engine(ww: Ww, c_cell: BuildFunction, tmp_path: Path) -> None:
    folders = [tmp_path / "engine", tmp_path / "ww"]
    for folder in folders:
        folder.mkdir()
        (folder / "f").write_bytes(CONTENT)
    theirs = by_the_engine(c_cell("remote"), folders[0])
    path = give_to_the_cell(ww, folders[1] / "f")
    with (
        open(path, "r+b", buffering=0) as file,
        remote(ww, c_cell("remote"), "--fd", "f=3,target=20,pathlink=true", fds={3: file}) as cell,
    ):
        ours = {name: step(cell) for name, step in STEPS.items()}
    compare(ours, theirs, FILE_DIFFERENCES)
    assert path.read_bytes() == (folders[0] / "f").read_bytes()


def compare(ours: dict[str, object], theirs: dict[str, object], accepted: dict[str, str]) -> None:
    """Nothing differs that is not accepted, and what is accepted does differ still."""
    different = {
        name: f"ww: {ours[name]}, wasmtime: {theirs[name]}"
        for name in theirs
        if ours[name] != theirs[name]
    }
    unexpected = [f"{name}: {text}" for name, text in different.items() if name not in accepted]
    assert not unexpected, "\n".join(unexpected)
    assert set(accepted) == set(different)


def pipe_commands(scratch: int) -> dict[str, list[str]]:
    """For each step its commands; the last answers count, after the pokes."""
    vectors, result, buffer, text = scratch, scratch + 64, scratch + 128, scratch + 1024
    vector = f"poke {vectors} {(buffer).to_bytes(4, 'little').hex()}04000000"
    output = f"poke {vectors} {(text).to_bytes(4, 'little').hex()}05000000"
    steps: dict[str, list[str]] = {}
    for number in (0, 1):
        steps |= {
            f"fd_fdstat_get of {number}": [
                f"call fd_fdstat_get {number} {result}",
                f"peek {result} 24",
            ],
            f"fd_filestat_get of {number}: errno": [f"call fd_filestat_get {number} {result}"],
            f"fd_filestat_get of {number}: type": [f"peek {result + 16} 1"],
            f"fd_seek of {number}": [f"call fd_seek {number} 0 0 {result}"],
            f"fd_tell of {number}": [f"call fd_tell {number} {result}"],
            f"fd_pread of {number}": [vector, f"call fd_pread {number} {vectors} 1 0 {result}"],
            f"fd_pwrite of {number}": [vector, f"call fd_pwrite {number} {vectors} 1 0 {result}"],
            f"fd_allocate of {number}": [f"call fd_allocate {number} 0 1"],
            f"fd_advise of {number}": [f"call fd_advise {number} 0 1 0"],
            f"fd_sync of {number}": [f"call fd_sync {number}"],
            f"fd_datasync of {number}": [f"call fd_datasync {number}"],
            f"fd_filestat_set_size of {number}": [f"call fd_filestat_set_size {number} 1"],
            f"fd_filestat_set_times of {number}": [f"call fd_filestat_set_times {number} 0 0 5"],
            f"fd_prestat_get of {number}": [f"call fd_prestat_get {number} {result}"],
            f"fd_readdir of {number}": [f"call fd_readdir {number} {buffer} 64 0 {result}"],
            f"path_open from {number}": [
                f"poke {text} 66",
                f"call path_open {number} 0 {text} 1 0 2 0 0 {result}",
            ],
            f"sock_recv of {number}": [
                vector,
                f"call sock_recv {number} {vectors} 1 0 {result} {result + 4}",
            ],
            f"sock_shutdown of {number}": [f"call sock_shutdown {number} 1"],
        }
    steps |= {
        "fd_write to stdin": [vector, f"call fd_write 0 {vectors} 1 {result}"],
        "fd_read from stdout": [vector, f"call fd_read 1 {vectors} 1 {result}"],
        "fd_read": [
            vector,
            f"call fd_read 0 {vectors} 1 {result}",
            f"peek {result} 4",
            f"peek {buffer} 4",
        ],
        "fd_read again": [
            vector,
            f"call fd_read 0 {vectors} 1 {result}",
            f"peek {result} 4",
            f"peek {buffer} 2",
        ],
        "fd_read at the end": [
            vector,
            f"call fd_read 0 {vectors} 1 {result}",
            f"peek {result} 4",
        ],
        "fd_write": [
            f"poke {text} {b'hello'.hex()}",
            output,
            f"call fd_write 1 {vectors} 1 {result}",
            f"peek {result} 4",
        ],
        "fd_write of none": [f"call fd_write 1 {vectors} 0 {result}", f"peek {result} 4"],
        "fd_close": ["call fd_close 0", "call fd_close 0"],
        "fd_read when closed": [f"call fd_read 0 {vectors} 1 {result}"],
        "fd_renumber": ["call fd_renumber 1 0", f"call fd_write 1 {vectors} 1 {result}"],
    }
    return steps


def test_pipes_as_stdio_behave_as_under_the_engine(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path
) -> None:
    wasm = c_cell("remote")
    with remote(ww, wasm) as cell:
        steps = pipe_commands(cell.scratch)
    commands = [command for step in steps.values() for command in step]
    mine = ww.run("run", wasm, "-", "2", *commands, stdin=b"012345")
    its = subprocess.run(
        [sys.executable, "-c", ENGINE, str(wasm), str(tmp_path), "-", "2", *commands],
        input=b"012345",
        capture_output=True,
        timeout=60,
    )
    assert (mine.returncode, its.returncode) == (0, 0), mine.stderr + its.stderr
    assert mine.stdout == its.stdout
    ours: dict[str, object] = {}
    theirs: dict[str, object] = {}
    for answers, said in ((ours, mine.stderr), (theirs, its.stderr)):
        lines = said.decode().splitlines()
        assert len(lines) == len(commands)
        for name, step in steps.items():
            answers[name] = lines[: len(step)]
            del lines[: len(step)]
    compare(ours, theirs, PIPE_DIFFERENCES)


# --- any calls in any order -----------------------------------------------------------------------


class Difference(NamedTuple):
    """Where the two are meant to differ in a call, with what a step and both outcomes are like.

    If `ends`, they are in different states afterwards, and are not compared any further.
    """

    reason: str
    applies: Callable[[Step, Outcome, Outcome], bool]
    ends: bool = False


def several(step: Step) -> bool:
    return sum(size > 0 for _, size in step.vectors) > 1


def leads_out(step: Step) -> bool:
    """Whether an address leads out of the memory, or may do so."""
    numbers = (*step.parameters, *(address for address, _ in step.vectors))
    return any(isinstance(number, Beyond) for number in numbers)


def refused(*errnos: int) -> tuple[Outcome, ...]:
    return tuple((errno,) for errno in errnos)


def errors(step: Step, outcome: Outcome) -> set[int]:
    """The errors among the events of a poll; none of any other call."""
    told = step.name == "poll_oneoff" and outcome[0] == OK
    return {event[1] for event in events(outcome)} if told else set()


def events(outcome: Outcome) -> set[tuple[int, ...]]:
    """The events of a poll, without how much there is and in what state."""
    _, count, raw = outcome
    assert isinstance(count, tuple)
    assert isinstance(raw, bytes)
    return {struct.unpack_from("<QHB", raw, 32 * index) for index in range(count[0])}


ANYWHERE = {
    "pointers": Difference(
        "a pointer that leads out of the memory is EFAULT, or another error if that is looked for"
        " first; the engine ends the cell, or never looks",
        lambda step, ours, theirs: (
            leads_out(step) and (ours == (EFAULT,) or OK not in (ours[0], theirs[0]))
        ),
        ends=True,
    ),
    "all vectors": Difference(
        _WHOLE,
        lambda step, ours, theirs: several(step) and (ours[0], theirs[0]) == (OK, OK),
        ends=True,
    ),
    "too many vectors": Difference(
        "more vectors than IOV_MAX are EINVAL, as readv(2) says; the engine reads into the first,"
        " or looks for another mistake before",
        lambda step, ours, theirs: len(step.vectors) > IOV_MAX and ours == (EINVAL,),
        ends=True,
    ),
    "no directory": Difference(
        _NOT_A_DIRECTORY,
        lambda step, ours, theirs: (
            step.name == "fd_readdir" and (ours, theirs) == refused(ENOTDIR, EBADF)
        ),
    ),
    "not preopened": Difference(
        "EBADF, as fd_prestat_get says under both; the engine says here that it is no directory",
        lambda step, ours, theirs: (
            step.name == "fd_prestat_dir_name" and (ours, theirs) == refused(EBADF, ENOTDIR)
        ),
    ),
    "times": Difference(
        "of two mistakes the descriptor is looked at first; in the engine the flags are",
        lambda step, ours, theirs: (
            step.name == "fd_filestat_set_times" and (ours, theirs) == refused(EBADF, EINVAL)
        ),
    ),
    "poll of a closed number": Difference(
        "an event of its own, so that the others are told as well; the engine refuses it all",
        lambda step, ours, theirs: (
            step.name == "poll_oneoff" and ours[0] == OK and theirs == (EBADF,)
        ),
    ),
    "poll": Difference(
        "all that are due are told, as poll(2) does, and how much can be read, as FIONREAD does;"
        " the engine stops at the first, makes up a 1, and calls the end of a file a hangup",
        lambda step, ours, theirs: (
            step.name == "poll_oneoff"
            and (ours[0], theirs[0]) == (OK, OK)
            and events(theirs) <= events(ours)
        ),
    ),
}
WITH_FILES = {
    **ANYWHERE,
    "rights": Difference(
        "rights can be given up; the engine has none",
        lambda step, ours, theirs: (
            step.name == "fd_fdstat_set_rights"
            and (ours, theirs) == refused(ENOTCAPABLE, Errno.NOTSUP)
        ),
    ),
    "a directory": Difference(
        "EISDIR, as read(2) says; the engine says EBADF",
        lambda step, ours, theirs: (ours, theirs) == refused(EISDIR, EBADF),
    ),
    "appending": Difference(
        "pwrite(2) refuses an offset whose end is beyond 2**63, also where it only appends",
        lambda step, ours, theirs: (
            step.name == "fd_pwrite" and ours == (EINVAL,) and theirs[0] == OK
        ),
        ends=True,
    ),
    "allocate": Difference(
        "the engine does not have it any more",
        lambda step, ours, theirs: step.name == "fd_allocate" and theirs == (Errno.NOTSUP,),
        ends=True,
    ),
    "missing right": Difference(
        "what is opened without a right does not have it; the engine has no rights",
        lambda step, ours, theirs: (
            (ours == (ENOTCAPABLE,) and theirs != ("died",))
            or (theirs[0] == OK and bool({EBADF, ENOTCAPABLE} & errors(step, ours)))
        ),
        ends=True,
    ),
}


WITH_PIPES = {
    **ANYWHERE,
    "missing right": Difference(
        _MISSING_RIGHT + "; the engine says EBADF of what is no file",
        lambda step, ours, theirs: ours == (ENOTCAPABLE,) and theirs in refused(EBADF, EINVAL),
    ),
    "no position": Difference(
        _NO_POSITION,
        lambda step, ours, theirs: (ours, theirs) == refused(ESPIPE, EBADF),
    ),
    "filestat": Difference(
        "one link, as fstat(2) says; the engine makes up a file of no links",
        lambda step, ours, theirs: (
            step.name == "fd_filestat_get" and (ours[0], theirs[0]) == (OK, OK)
        ),
    ),
    "flags": Difference(
        "a pipe has flags that can be set, as fcntl(2) does it; the engine's have none",
        lambda step, ours, theirs: (
            step.name == "fd_fdstat_set_flags"
            and ours in refused(OK, EINVAL)
            and theirs == (EBADF,)
        ),
    ),
    "read of nothing": Difference(
        "to read nothing is no error, as in readv(2)",
        lambda step, ours, theirs: (
            step.name == "fd_read" and ours[:2] == (OK, (0,)) and theirs == (Errno.INTR,)
        ),
    ),
}


class Twin:
    """The process that runs the same commands under both hosts; see tests/wasi/twin.py."""

    # So long are the commands of every request, together: how long they are decides how large
    # the cell's memory is, and so where it ends.
    COMMANDS, LENGTH = 120, 150_000

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        said = self.ask("pipes", ["scratch", "memory"])["ours"]["said"]
        self.scratch = int(said[0].split()[1])
        self.end = int(said[1].split()[1])

    def ask(
        self, what: str, commands: list[str], *, before: Sequence[str] = (), text: str = ""
    ) -> dict[str, Any]:
        last = "memory"
        padded = [*commands, *[last] * (self.COMMANDS - len(before) - len(commands))]
        assert len(padded) + len(before) == self.COMMANDS
        padded[-1] += " " * (self.LENGTH - sum(map(len, (*before, *padded))))
        request = {
            "what": what,
            "commands": padded,
            "before": before,
            "input": text,
            "read": True,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def twin(c_cell: BuildFunction, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    folder = tmp_path_factory.mktemp("twin") / "files"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.wasi.twin", str(c_cell("remote")), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO
    ) as process:
        yield Twin(process)


def compare_sequence(
    twin: Twin,
    what: str,
    sequence: list[Step],
    differences: dict[str, Difference],
    seen: set[str],
) -> None:
    """Nothing differs that is not listed; `seen` gets the names of what did."""
    before = []
    if what == "files":
        for name in "fg":
            before.append(f"poke {twin.scratch} {name.encode().hex()}")
            numbers = f"{twin.scratch} 1 0 {ALL_RIGHTS} 0 0 {twin.scratch + 8}"
            before.append(f"call path_open 3 1 {numbers}")
    commands = [step.commands(twin.scratch, twin.end) for step in sequence]
    flat = [command for group in commands for command in group]
    text = CONTENT.decode()
    answer = twin.ask(what, flat, before=before, text=text)
    ours, theirs = answer["ours"]["said"], answer["theirs"]["said"]
    at = 0
    done = []
    for step, group in zip(sequence, commands, strict=True):
        here = slice(at, at + len(group))
        at += len(group)
        mine, its = step.outcome(ours[here]), step.outcome(theirs[here])
        done.append(f"{step} -> {mine[:2]}")
        if mine == its:
            continue
        assert mine != ("died",), (ours[-1], done)
        names = [name for name, item in differences.items() if item.applies(step, mine, its)]
        assert names, ("not listed", done, f"ww: {mine}", f"wasmtime: {its}")
        seen |= set(names[:1])
        if differences[names[0]].ends:
            return
    for part in ("code", "written", "files"):
        assert answer["ours"][part] == answer["theirs"][part], (part, done)


def seen_in(twin: Twin, what: str, differences: dict[str, Difference]) -> dict[str, bool]:
    """Whether each listed difference is one still, in a sequence that must show it."""
    told = {}
    for name in differences:
        seen: set[str] = set()
        compare_sequence(twin, what, EXAMPLES[what][name], differences, seen)
        told[name] = name in seen
    return told


TWO: Laid = ((At(BUFFER), 3), (At(BUFFER + 3), 3))
EXAMPLES: dict[str, dict[str, list[Step]]] = {
    "files": {
        "pointers": [Step("fd_tell", (4, Beyond(4)), layout="<Q")],
        "all vectors": [read_step("fd_read", (4, At(VECTORS), 2, At(RESULT)), TWO)],
        "too many vectors": [
            read_step("fd_read", (4, At(VECTORS), IOV_MAX + 1, At(RESULT)), crowd(IOV_MAX + 1))
        ],
        "no directory": [Step("fd_readdir", (4, At(BUFFER), 64, 0, At(RESULT)), layout="<I")],
        "rights": [Step("fd_fdstat_set_rights", (4, ALL_RIGHTS, ALL_RIGHTS))],
        "not preopened": [Step("fd_prestat_dir_name", (4, At(BUFFER), 1))],
        "times": [Step("fd_filestat_set_times", (99, 0, 0, ATIM | ATIM_NOW))],
        "poll of a closed number": [poll_step(Ready(1, EV_READ, 99), Ready(2, EV_READ, 4))],
        "poll": [poll_step(Ready(1, EV_READ, 4), Ready(2, EV_WRITE, 4), Clock(3, 0))],
        "a directory": [open_step(3, b".", R), Step("fd_tell", (6, At(RESULT)), layout="<Q")],
        "appending": [
            Step("fd_fdstat_set_flags", (4, APPEND)),
            write_step("fd_pwrite", (4, At(VECTORS), 1, (1 << 63) - 1, At(RESULT)), TWO[:1]),
        ],
        "allocate": [Step("fd_allocate", (4, 0, 1))],
        "missing right": [open_step(3, b"f", R), Step("fd_advise", (6, 0, 0, 0))],
    },
    "pipes": {
        "pointers": [Step("fd_fdstat_get", (0, Beyond(4)), layout="<BxH4xQQ")],
        "all vectors": [write_step("fd_write", (1, At(VECTORS), 2, At(RESULT)), TWO)],
        "too many vectors": [
            read_step("fd_read", (0, At(VECTORS), IOV_MAX + 1, At(RESULT)), crowd(IOV_MAX + 1))
        ],
        "no directory": [Step("fd_readdir", (0, At(BUFFER), 64, 0, At(RESULT)), layout="<I")],
        "not preopened": [Step("fd_prestat_dir_name", (0, At(BUFFER), 1))],
        "times": [Step("fd_filestat_set_times", (99, 0, 0, ATIM | ATIM_NOW))],
        "poll of a closed number": [poll_step(Ready(1, EV_READ, 99), Ready(2, EV_READ, 0))],
        "poll": [poll_step(Ready(1, EV_WRITE, 1), Clock(3, 0), Clock(4, 0))],
        "missing right": [Step("fd_sync", (1,))],
        "no position": [Step("fd_advise", (0, 0, 0, 0))],
        "filestat": [Step("fd_filestat_get", (0, At(RESULT)), layout=FILESTAT)],
        "flags": [Step("fd_fdstat_set_flags", (1, 0))],
        "read of nothing": [read_step("fd_read", (0, At(VECTORS), 0, At(RESULT)), ())],
    },
}


@pytest.mark.parametrize(("what", "differences"), [("files", WITH_FILES), ("pipes", WITH_PIPES)])
def test_what_is_listed_as_different_is(
    twin: Twin, what: str, differences: dict[str, Difference]
) -> None:
    assert seen_in(twin, what, differences) == dict.fromkeys(differences, True)


DRAWN = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_any_calls_on_files_do_what_they_do_under_the_engine(twin: Twin) -> None:
    """On 4 and 5, which are open, 6 and 7, which may get open, and 99, which does not."""

    @settings(DRAWN, max_examples=400)
    @given(steps(fds=[4, 4, 5, 6, 7, 99], folder=3))
    def same(sequence: list[Step]) -> None:
        compare_sequence(twin, "files", sequence, WITH_FILES, set())

    same()


def test_any_calls_on_pipes_do_what_they_do_under_the_engine(twin: Twin) -> None:
    """On 0, a pipe whose writer has left, and 1, one that is read; the engine knows no others."""

    @settings(DRAWN, max_examples=200)
    @given(steps(fds=[0, 0, 1, 1, 7], folder=None))
    def same(sequence: list[Step]) -> None:
        compare_sequence(twin, "pipes", sequence, WITH_PIPES, set())

    same()

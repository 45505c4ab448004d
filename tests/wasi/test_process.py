"""A cell as a process: arguments, environment, clocks, random numbers, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, PROBES, BuildFunction, Ww
from tests.wasi.remote_cell import (
    EBADF,
    FT_CHARACTER,
    OK,
    Errno,
    R,
    Right,
    W,
    in_parallel,
    remote,
)


@pytest.fixture
def process(c_cell: BuildFunction) -> Path:
    return c_cell("process")


# --- arguments and environment ------------------------------------------------------------------


def test_arguments_arrive_as_they_are_after_the_name_of_the_cell(ww: Ww, process: Path) -> None:
    cases = [
        ["one"],
        [
            *["", "", "after two empty ones", "with spaces  and\ttabs", "new\nline", 'quo"te'],
            *["back\\slash", "--help", "-x", "--", "ünïcödé", "日本語", "🚀", "\u0301combining"],
            *["\x01\x7f", "x" * 100_000, ""],
        ],
        [str(index) for index in range(1000)],
    ]
    for args, done in zip(
        cases,
        in_parallel(lambda args: ww.run("run", process, "arguments", *args), cases),
        strict=True,
    ):
        assert done.returncode == 0
        expected = [str(process), "arguments", *args]
        assert done.stdout.decode() == f"argc {len(expected)}\n" + "".join(
            f"argv {index} [{arg}]\n" for index, arg in enumerate(expected)
        )


def test_the_name_is_as_the_user_wrote_it(ww_account: Ww, process: Path) -> None:
    ww_account.file("cell.wasm", process)
    done = ww_account.run("run", "./cell.wasm")
    assert done.stdout == b"argc 1\nargv 0 [./cell.wasm]\n"
    address = ww_account.export(process)
    done = ww_account.run("run", address)
    assert done.stdout.decode() == f"argc 1\nargv 0 [{address}]\n"


def test_the_environment_is_what_was_granted_and_nothing_of_the_callers(
    ww_account: Ww, process: Path
) -> None:
    fds = {3: ww_account.file("f"), 4: ww_account.file("g")}
    done = ww_account.run(
        "run",
        *("--fd", "my-db=3,mode=r", "--fd", "in=4,target=0"),
        *("--env", "A=1", "--env", "EMPTY=", "--env", "TEXT=a b=c ü"),
        process,
        "environment",
        fds=fds,
        env={"SECRET": "s", "LISTEN_FDS": "1", "LISTEN_PID": "1"},
    )
    assert done.returncode == 0
    assert sorted(done.stdout.decode().splitlines()) == sorted(
        [
            'env [WW_FDS=((in (fd 0) (mode "r") (type "file"))'
            ' (my-db (fd 10) (mode "r") (type "file")))]',
            "env [WW_FD_IN=0]",
            "env [WW_FD_MY_DB=10]",
            "env [A=1]",
            "env [EMPTY=]",
            "env [TEXT=a b=c ü]",
        ]
    )


def test_without_grants_the_environment_says_so(ww: Ww, process: Path) -> None:
    done = ww.run("run", process, "environment", env={"SECRET": "s"})
    assert done.stdout == b"env [WW_FDS=()]\n"


# --- the end ------------------------------------------------------------------------------------


def ends(ww: Ww, process: Path, *args: str) -> tuple[int, bytes, bytes]:
    done = ww.run("run", process, *args)
    return done.returncode, done.stdout, done.stderr


def test_the_exit_code_is_the_cells_own(ww: Ww, process: Path) -> None:
    codes = [0, 1, 42, 125, 126, 200, 255]
    ended = in_parallel(lambda code: ends(ww, process, "exit", str(code)), codes)
    assert ended == [(code, b"", b"") for code in codes]


def test_every_way_to_exit_gives_the_lowest_eight_bits(ww: Ww, process: Path) -> None:
    ways = {
        ("return", "7"): 7,
        ("_Exit", "9"): 9,
        ("exit", "256"): 0,
        ("exit", "-1"): 255,
        ("proc_exit", "0xffffffff"): 255,
    }
    ended = in_parallel(lambda way: ends(ww, process, *way), ways)
    assert dict(zip(ways, ended, strict=True)) == {
        way: (code, b"", b"") for way, code in ways.items()
    }


def test_a_trap_is_134_with_its_cause_and_backtrace(ww: Ww, process: Path) -> None:
    causes = {
        "abort": "unreachable",
        "unreachable": "unreachable",
        "divide": "divide by zero",
        "address": "out of bounds memory access",
        "call": "indirect call type mismatch",
        "overflow": "call stack exhausted",
    }
    ended = in_parallel(lambda way: ends(ww, process, way), causes)
    for (way, cause), (code, out, err) in zip(causes.items(), ended, strict=True):
        assert (way, code, out) == (way, 134, b"")
        first, *rest = err.decode().splitlines()
        assert first.startswith(f"ww: error: {process}: the cell trapped: ")
        text = "\n".join(rest)
        assert cause in first + text
        assert re.search(r"^ +0: .*<wasm function \d+>$", text, re.MULTILINE), "no backtrace"
        assert "Traceback" not in text


def test_a_trap_is_134_for_every_account(ww_account: Ww, process: Path) -> None:
    assert ww_account.run("run", process, "abort").returncode == 134


def test_what_was_written_before_a_trap_is_there(ww: Ww, c_cell: BuildFunction) -> None:
    # Peeking beyond the memory is a trap of the cell itself.
    done = ww.run("run", c_cell("remote"), stdin=b"call sched_yield\npeek 4294967280 8\nmemory\n")
    assert done.returncode == 134
    assert done.stdout == b"sched_yield 0\n"


def test_proc_raise_does_not_return_as_if_nothing_was(ww: Ww, c_cell: BuildFunction) -> None:
    done = ww.run("run", c_cell("remote"), stdin=b"call proc_raise 6\n")
    if done.returncode == 0:
        assert done.stdout.split()[1] != b"0"
    else:
        assert done.returncode in (134, 128 + 6)


# --- resources ----------------------------------------------------------------------------------


def test_memory_grows_to_the_last_address_and_then_says_no(ww: Ww, process: Path) -> None:
    done = ww.run("run", "--memory", "4G", process, "grow")
    assert done.returncode == 0, done.stderr
    grown, malloc = done.stdout.decode().splitlines()
    name, errno, pages, total = grown.split()
    assert (name, errno) == ("grow", "0")
    assert 0 < int(pages) < int(total) <= 65536
    # The C library takes the rest of it for its heap, and says when that is used up.
    name, errno, gibibytes = malloc.split()
    assert (name, int(errno)) == ("malloc", Errno.NOMEM)
    assert int(gibibytes) < 4


def test_clocks_go_forward_and_the_real_one_is_right(ww: Ww, process: Path) -> None:
    before = time.time_ns()
    done = ww.run("run", process, "clocks")
    after = time.time_ns()
    clocks = {line.split()[0]: line.split()[1:] for line in done.stdout.decode().splitlines()}
    assert set(clocks) == {"realtime", "monotonic"}
    for errno, now, passed, step in clocks.values():
        assert errno == "0"
        assert int(now) > 0
        assert int(passed) >= 0
        assert 0 < int(step) <= 1_000_000_000
    assert before <= int(clocks["realtime"][1]) <= after


def test_clocks_that_do_not_exist_are_einval(ww: Ww, c_cell: BuildFunction) -> None:
    with remote(ww, c_cell("remote")) as cell:
        for clock in (4, 100, 0xFFFFFFFF):
            assert cell.raw("clock_time_get", clock, 1, cell.scratch) == Errno.INVAL
            assert cell.raw("clock_res_get", clock, cell.scratch) == Errno.INVAL
        for clock in (0, 1):
            assert cell.raw("clock_time_get", clock, 0, cell.scratch) == OK
            assert cell.raw("clock_res_get", clock, cell.scratch) == OK


def test_sleeping_lasts_as_long_as_asked_and_until_when_asked(ww: Ww, process: Path) -> None:
    done = ww.run("run", process, "sleep")
    asleep, until = done.stdout.decode().splitlines()
    name, result, passed = asleep.split()
    assert (name, result) == ("sleep", "0")
    assert int(passed) >= 20_000_000
    assert until == "until 0 1"


def test_random_numbers_differ_within_a_run_and_between_runs(ww: Ww, process: Path) -> None:
    seen = [line for _ in range(2) for line in ww.run("run", process, "random").stdout.splitlines()]
    assert all(line.startswith(b"random 0 ") for line in seen)
    assert len(set(seen)) == 4


def test_random_bytes_fill_all_that_was_asked_for(ww: Ww, c_cell: BuildFunction) -> None:
    with remote(ww, c_cell("remote")) as cell:
        at = cell.scratch + 0x9000
        assert cell.raw("random_get", at, 0x20000) == OK
        data = cell.peek(at, 0x20000)
        # Each stretch of 256 bytes is different: no part was left as it was.
        assert len({data[i : i + 256] for i in range(0, len(data), 256)}) == 512
        assert cell.raw("random_get", at, 0) == OK


def test_yielding_succeeds(ww: Ww, process: Path) -> None:
    assert ww.run("run", process, "yield").stdout == b"yield 0\n"


# --- terminals and devices ----------------------------------------------------------------------


def test_a_terminal_is_not_called_one(ww: Ww, c_cell: BuildFunction) -> None:
    master, slave = pty.openpty()
    try:
        out, into = os.pipe()
        try:
            process = ww.popen(
                *("run", "--fd", "out=4,target=20", "--fd", "tty=5,target=21"),
                c_cell("remote"),
                *("-", "20"),
                *[f"call fd_fdstat_get {n} 65536" for n in (0, 1, 2, 21)],
                "call fd_tell 0 65536",
                stdin=slave,
                stdout=slave,
                stderr=slave,
                fds={4: into, 5: slave},
            )
            os.close(into)
            with open(out, "rb", closefd=False) as answers:
                said = answers.read().split()
            assert process.wait(60) == 0
            assert said == [b"fd_fdstat_get", b"0"] * 4 + [b"fd_tell", b"70"]
        finally:
            os.close(out)
        process = ww.popen(
            "run",
            c_cell("libc"),
            *("isatty 0", "isatty 1", "isatty 2", "write 1 shown"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        assert process.wait(60) == 0
        shown = os.read(master, 4096).decode().split()
        notty = str(int(Errno.NOTTY))
        assert shown == ["isatty", notty, "0"] * 3 + ["shownwrite", "0", "5"]
    finally:
        os.close(master)
        os.close(slave)


def test_nothing_else_is_a_terminal_either(ww: Ww, c_cell: BuildFunction) -> None:
    done = ww.run(
        "run",
        "--no-stdio",
        "--fd",
        "o=1,target=1",
        "--fd",
        "f=3",
        c_cell("libc"),
        "isatty 0",
        "isatty 1",
        "isatty 10",
        "isatty 50",
        fds={3: ww.file("f")},
    )
    assert [line.split()[0::2] for line in done.stdout.decode().splitlines()] == [
        ["isatty", "0"]
    ] * 4
    assert done.stdout.decode().splitlines()[3] == f"isatty {EBADF} 0"


def test_dev_null_is_a_character_device_without_an_end(ww: Ww, c_cell: BuildFunction) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        with remote(ww, c_cell("remote"), "--fd", "null=3", fds={3: null}) as cell:
            errno, stat = cell.fdstat(10)
            assert errno == OK
            assert stat is not None
            assert (stat.filetype, stat.flags, stat.inheriting) == (FT_CHARACTER, 0, 0)
            assert stat.rights & (R | W) == R | W
            assert stat.rights & (Right.FD_ALLOCATE | Right.FD_FILESTAT_SET_SIZE) == 0
            assert cell.read(10, 100) == (OK, b"")
            assert cell.write(10, b"gone") == (OK, 4)
            found = cell.filestat(10)[1]
            assert found is not None
            assert (found.filetype, found.size) == (FT_CHARACTER, 0)
    finally:
        os.close(null)


def test_what_libraries_write_to_stderr_does_not_reach_a_grant_there(ww: Ww) -> None:
    # As the engine does when memory runs out while it compiles what the cell gave it.
    patch = """
import os
from sandbox.wasi.cell import CellHost
load = CellHost._load
def noisy(self, cell):
    os.write(1, b"BROKEN")
    os.write(2, b"BROKEN")
    return load(self, cell)
CellHost._load = noisy
"""
    given = ww.file("given", b"unchanged")
    command = [sys.executable, str(PROBES / "variant.py"), patch, "run"]
    flags = ["--fd", "x=3,mode=r,target=2", "--fd", "y=4,mode=r,target=1"]
    hello = EXAMPLES / "hello" / "hello.wasm"
    with given.open("r+b") as one, given.open("r+b") as other:
        ww.call([*command, *flags, hello], fds={3: one, 4: other})
    assert given.read_bytes() == b"unchanged"

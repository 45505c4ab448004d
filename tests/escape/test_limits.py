"""Every limit ends the cell that reaches it, and is told apart: exit code, error, status events."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wasmtime

from sandbox.policy import Limits
from tests.conftest import EXAMPLES, Leftovers, Ww
from tests.features import lacks
from tests.jail.footprint import FLAT, footprint
from tests.jail.inside import below, variant, when_in_jail

P1 = "wasi_snapshot_preview1"
HELLO = EXAMPLES / "hello" / "hello.wasm"
PAGE = 65536

LeftoversFixture = Callable[..., Leftovers]

# What the error says of each limit, and the flag that it names.
WORDS = {
    "wall": ("time", "--timeout"),
    "cpu": ("processor time", "--cpu-time"),
    "fuel": ("fuel", "--fuel"),
    "memory": ("memory", "--memory"),
    "host-memory": ("memory, that of its process together", "--memory"),
    "output": ("output", "--output"),
    "pids": ("processes", "--pids"),
}

IMPORTS = f"""
  (import "{P1}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "{P1}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "{P1}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "{P1}" "proc_exit" (func $exit (param i32)))"""
MEMORY = '(memory (export "memory") 2)'


def cell(ww: Ww, text: str) -> Path:
    """A program of that text."""
    return ww.file("cell.wasm", bytes(wasmtime.wat2wasm(f"(module {text})")))


def compiled(ww: Ww, text: str) -> Path:
    """One whose time is its own: none of it goes to the compiler, however slow the machine is."""
    made = cell(ww, text)
    done = ww.run("cache", "warm", made)
    assert done.returncode == 0, done.stderr
    return made


def program(body: str, memory: str = MEMORY) -> str:
    return f'{IMPORTS} {memory} (func (export "_start") {body})'


LOOP = "(loop $l (br $l))"
# A vector of 16 bytes at 16 is read from stdin, or written, forever or once.
VECTOR = "(i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 16))"
READ = f"{VECTOR} (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))"
# One subscription, at 64: a clock, the monotonic one, for an hour.
SLEEP = """
  (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 3600000000000))
  (drop (call $poll (i32.const 64) (i32.const 256) (i32.const 1) (i32.const 512)))"""


class Told(NamedTuple):
    """How a run ended, in each of the ways in which it is told."""

    done: subprocess.CompletedProcess[bytes]
    events: list[dict[str, Any]]

    @property
    def end(self) -> dict[str, Any]:
        (event,) = (e for e in self.events if e["event"] == "exit")
        return event


def told(ww: Ww, *args: str | Path, **options: Any) -> Told:
    """`ww run` with its status events."""
    reader, writer = os.pipe()
    command = options.pop("command", ww.command)
    fds = {**options.pop("fds", {}), 9: writer}
    try:
        done = ww.call([*command, "run", "--status-fd", "9", *args], fds=fds, **options)
    finally:
        os.close(writer)
        with open(reader, "rb") as file:
            events = [json.loads(line) for line in file]
    return Told(done, events)


def assert_limit(run: Told, name: str, when: str = "") -> None:
    """It was that limit, and all three say so."""
    what, flag = WORDS[name]
    line = run.done.stderr.decode()
    assert run.done.returncode == 66, line
    assert line.endswith(f": the cell hit its limit of {what}{when} (set with {flag})\n")
    assert line.startswith("ww: error: ")
    assert line.count("\n") == 1
    assert (run.end["code"], run.end["reason"], run.end["limit"]) == (66, "limit", name)


@contextmanager
def silent_pipe() -> Iterator[int]:
    """The reading end of a pipe into which nobody writes."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


# --- time -----------------------------------------------------------------------------------------


def test_a_loop_ends_at_the_time_limit(ww_account: Ww, leftovers: LeftoversFixture) -> None:
    wasm = compiled(ww_account, program(LOOP))
    with leftovers(ww_account):
        run = told(ww_account, "--timeout", "0.5", wasm)
    assert_limit(run, "wall")


def test_a_blocked_read_ends_at_the_time_limit(ww_account: Ww) -> None:
    with silent_pipe() as reader:
        run = told(
            ww_account, "--timeout", "0.5", compiled(ww_account, program(READ)), stdin=reader
        )
    assert_limit(run, "wall")


def test_a_sleep_ends_at_the_time_limit(ww_account: Ww) -> None:
    assert_limit(told(ww_account, "--timeout", "0.5", compiled(ww_account, program(SLEEP))), "wall")


def test_a_start_section_ends_at_the_time_limit(ww_account: Ww) -> None:
    text = f'{MEMORY} (func $s {LOOP}) (start $s) (func (export "_start"))'
    assert_limit(told(ww_account, "--timeout", "0.5", compiled(ww_account, text)), "wall")


def test_a_stopped_cell_ends_at_the_time_limit(ww_account: Ww, leftovers: LeftoversFixture) -> None:
    wasm = compiled(ww_account, program(LOOP))
    with (
        leftovers(ww_account),
        ww_account.popen("run", "--timeout", "5", wasm, stdout=subprocess.DEVNULL) as process,
    ):
        _, pid = below(process.pid)
        when_in_jail(pid)
        os.kill(pid, signal.SIGSTOP)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 66
    assert b"limit of time" in err


def test_the_time_of_a_cell_that_waits_is_no_processor_time(ww_account: Ww) -> None:
    # The other way round, both limits are told apart: this one sleeps beyond its processor time.
    flags = ("--timeout", "1.5", "--cpu-time", "1")
    assert_limit(told(ww_account, *flags, compiled(ww_account, program(SLEEP))), "wall")


def test_a_loop_ends_at_the_limit_of_processor_time(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    wasm = cell(ww_account, program(LOOP))
    with leftovers(ww_account):
        assert_limit(told(ww_account, "--cpu-time", "1", wasm), "cpu")


def test_calls_of_the_host_without_end_end_at_the_limit_of_processor_time(ww_account: Ww) -> None:
    body = (
        "(loop $l (drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8)))"
        " (br $l))"
    )
    assert_limit(told(ww_account, "--cpu-time", "1", cell(ww_account, program(body))), "cpu")


# --- fuel -----------------------------------------------------------------------------------------


def test_a_loop_ends_when_its_fuel_is_used_up(ww_account: Ww) -> None:
    wasm = cell(ww_account, program(LOOP))
    for fuel in ("1", "1000000"):
        assert_limit(told(ww_account, "--fuel", fuel, wasm), "fuel")


def test_a_start_section_ends_when_its_fuel_is_used_up(ww_account: Ww) -> None:
    text = f'{MEMORY} (func $s {LOOP}) (start $s) (func (export "_start"))'
    assert_limit(told(ww_account, "--fuel", "1000000", cell(ww_account, text)), "fuel")


def test_with_enough_fuel_a_cell_does_what_it_does_without(ww_account: Ww) -> None:
    plain = ww_account.run("run", HELLO)
    fuelled = ww_account.run("run", "--fuel", "100000000", HELLO)
    assert (plain.returncode, fuelled.returncode) == (0, 0)
    assert plain.stdout == fuelled.stdout != b""
    assert_limit(told(ww_account, "--fuel", "100", HELLO), "fuel")


# --- memory ---------------------------------------------------------------------------------------

GROW = "(loop $l (drop (memory.grow (i32.const {pages}))) (br $l))"


@pytest.mark.parametrize("pages", [1, 100, 30000])
def test_growth_without_end_ends_at_the_memory_limit(ww_account: Ww, pages: int) -> None:
    wasm = cell(ww_account, program(GROW.format(pages=pages)))
    assert_limit(told(ww_account, "--memory", "64M", wasm), "memory")


def test_growth_that_is_used_ends_at_the_memory_limit(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    body = """
      (local $at i32)
      (loop $l
        (local.set $at (i32.shl (memory.grow (i32.const 16)) (i32.const 16)))
        (memory.fill (local.get $at) (i32.const 1) (i32.const 1048576))
        (br $l))"""
    wasm = cell(ww_account, program(body))
    with leftovers(ww_account):
        assert_limit(told(ww_account, "--memory", "128M", wasm), "memory")


@pytest.mark.parametrize("pages", [17, 32768, 65536])
def test_a_memory_that_begins_beyond_the_limit_ends_the_cell(ww_account: Ww, pages: int) -> None:
    wasm = cell(ww_account, program("unreachable", f'(memory (export "memory") {pages})'))
    assert_limit(told(ww_account, "--memory", "1M", wasm), "memory")


def test_exactly_the_limit_may_be_had_and_used_at_once_or_step_by_step(ww_account: Ww) -> None:
    fill = (
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 67108864)) (call $exit (i32.const 4))"
    )
    at_once = program(fill, '(memory (export "memory") 1024)')
    step_by_step = program(
        f"(loop $l (br_if $l (i32.lt_u (memory.grow (i32.const 1)) (i32.const 1023)))) {fill}",
        '(memory (export "memory") 1)',
    )
    for text in (at_once, step_by_step):
        run = told(ww_account, "--memory", "64M", cell(ww_account, text))
        assert (run.done.returncode, run.done.stderr) == (4, b"")
    one_more = program(fill, '(memory (export "memory") 1025)')
    assert_limit(told(ww_account, "--memory", "64M", cell(ww_account, one_more)), "memory")


def test_a_growth_that_the_cell_itself_forbids_is_no_limit_of_ours(ww_account: Ww) -> None:
    body = "(call $exit (i32.eq (memory.grow (i32.const 9999)) (i32.const -1)))"
    text = program(body, '(memory (export "memory") 1 16)')
    assert told(ww_account, "--memory", "1M", cell(ww_account, text)).done.returncode == 1


def test_all_memories_together_are_counted(ww_account: Ww) -> None:
    many = "(memory 10)" * 99
    fits = program("(call $exit (i32.const 3))", f'(memory (export "memory") 10) {many}')
    done = told(ww_account, "--memory", str(1000 * PAGE), cell(ww_account, fits)).done
    assert (done.returncode, done.stderr) == (3, b"")
    for limit in (1000 * PAGE - 1, 500 * PAGE, 10 * PAGE):
        assert_limit(told(ww_account, "--memory", str(limit), cell(ww_account, fits)), "memory")
    grows = program("(loop $l (drop (memory.grow 7 (i32.const 1))) (br $l))", f"{MEMORY} {many}")
    assert_limit(told(ww_account, "--memory", "100M", cell(ww_account, grows)), "memory")


def test_exceptions_that_are_held_count_as_memory_and_those_that_are_not_do_not(
    ww_account: Ww,
) -> None:
    throw = "(try_table (catch_all_ref $h) (throw $e (i64.const 1) (i64.const 2))) unreachable"
    loop = f"""(local $i i32)
      (loop $l
        {{}}(block $h (result exnref) {throw}){{}}
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 1000000))))"""
    more = f"{MEMORY} (table $t 1000000 exnref) (tag $e (param i64 i64))"
    dropped = cell(ww_account, program(loop.format("", " drop"), more))
    assert told(ww_account, "--memory", "8M", dropped).done.returncode == 0
    held = cell(ww_account, program(loop.format("(table.set $t (local.get $i) ", ")"), more))
    assert_limit(told(ww_account, "--memory", "8M", held), "memory")


def test_a_memory_limit_of_a_page_runs_what_needs_no_more(ww_account: Ww) -> None:
    text = program("(call $exit (i32.const 6))", '(memory (export "memory") 1)')
    done = told(ww_account, "--memory", "64K", cell(ww_account, text)).done
    assert (done.returncode, done.stderr) == (6, b"")
    assert_limit(told(ww_account, "--memory", "65535", cell(ww_account, text)), "memory")


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_grows_to_its_limit_and_no_further(ww_account: Ww) -> None:
    body = """
      (loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1)) (i32.const -1))))
      (call $exit (i32.eq (table.size $t) (i32.const 1000)))"""
    wasm = cell(
        ww_account, f'{IMPORTS} {MEMORY} (table $t 0 funcref) (func (export "_start") {body})'
    )
    done = told(ww_account, "--table-elements", "1000", wasm).done
    assert (done.returncode, done.stderr) == (1, b"")
    done = told(ww_account, "--table-elements", "1001", wasm).done
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("most", [0, 1, 45])
def test_the_hosts_own_table_is_not_the_cells(ww_account: Ww, most: int) -> None:
    body = "(call $exit (i32.const 7))"
    wasm = cell(ww_account, f'{IMPORTS} {MEMORY} (func (export "_start") {body})')
    assert told(ww_account, "--table-elements", str(most), wasm).done.returncode == 7
    larger = cell(
        ww_account, f'{IMPORTS} {MEMORY} (table 46 funcref) (func (export "_start") {body})'
    )
    assert told(ww_account, "--table-elements", str(most), larger).done.returncode == 126


def test_a_table_that_begins_beyond_the_limit_is_refused(ww_account: Ww) -> None:
    wasm = cell(ww_account, f'(table 1001 funcref) {MEMORY} (func (export "_start"))')
    assert told(ww_account, "--table-elements", "1001", wasm).done.returncode == 0
    run = told(ww_account, "--table-elements", "1000", wasm)
    assert run.done.returncode == 126
    assert b"1001 elements" in run.done.stderr
    assert run.end["reason"] == "rejected"


def test_tables_that_take_all_of_the_hosts_memory_end_at_its_limit(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    # Each within the limit of elements, and 8 GB together.
    wasm = cell(ww_account, f'{"(table 10000000 funcref)" * 100} {MEMORY} (func (export "_start"))')
    with leftovers(ww_account):
        assert_limit(told(ww_account, wasm), "host-memory")


def test_tables_that_grow_without_end_end_the_growth_or_the_cell(ww_account: Ww) -> None:
    tables = "".join(f"(table $t{n} 0 funcref)" for n in range(100))
    body = "".join(
        f"(loop $l{n} (br_if $l{n}"
        f" (i32.ne (table.grow $t{n} (ref.null func) (i32.const 1000000)) (i32.const -1))))"
        for n in range(100)
    )
    wasm = cell(ww_account, f'{IMPORTS} {MEMORY} {tables} (func (export "_start") {body})')
    run = told(ww_account, "--memory", "64M", wasm)
    assert run.done.returncode in (0, 66), run.done.stderr


# --- the memory of the host -----------------------------------------------------------------------

# A cell that has broken out of the engine, and of the limit of its own address space too.
GREEDY = """
import resource
from sandbox.outcome import Outcome
from sandbox.wasi.cell import CellHost

setrlimit = resource.setrlimit

def most(kind, value):
    if kind != resource.RLIMIT_DATA:
        setrlimit(kind, value)

def run(self, inside):
    inside.seal()
    held = [bytes(b"x" * (1 << 24)) for _ in range(64)]
    return Outcome("exit", len(held))

{patch}
CellHost.run = run
"""


def test_memory_that_is_taken_past_the_engine_ends_at_the_limit_of_the_control_group(
    ww: Ww, leftovers: LeftoversFixture
) -> None:
    if told(ww, "--require", "cgroup", HELLO).done.returncode == 67:
        lacks("cgroup", "this machine gives no control group: RLIMIT_DATA is what holds here")
    command = variant(GREEDY.format(patch="resource.setrlimit = most"))
    with leftovers(ww):
        run = told(ww, "--memory", "64M", HELLO, command=command)
    assert_limit(run, "host-memory")


def test_memory_that_is_taken_past_the_engine_ends_at_the_processs_own_limit(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    command = variant(GREEDY.format(patch=""))
    with leftovers(ww_account):
        run = told(ww_account, "--memory", "64M", HELLO, command=command)
    assert run.done.returncode in (1, 66), run.done.stderr
    assert run.end.get("limit") == "host-memory" or "MemoryError" in run.end["what"]


# --- output ---------------------------------------------------------------------------------------

# Writes 64 KiB at a time to each of some numbers in turn, 10 GiB in all, and exits with 9.
FLOOD_ROUNDS = 10 * (1 << 30) // PAGE


def flood(*numbers: int, rounds: int = FLOOD_ROUNDS) -> str:
    writes = "".join(
        f"(drop (call $write (i32.const {n}) (i32.const 0) (i32.const 1) (i32.const 8)))"
        for n in numbers
    )
    return program(
        f"""(local $i i32)
        (i32.store (i32.const 0) (i32.const {PAGE})) (i32.store (i32.const 4) (i32.const {PAGE}))
        (loop $l {writes}
          (local.set $i (i32.add (local.get $i) (i32.const {len(numbers)})))
          (br_if $l (i32.lt_u (local.get $i) (i32.const {rounds}))))
        (call $exit (i32.const 9))"""
    )


def drain(source: int) -> int:
    """Read to the end, and count."""
    count = 0
    while data := os.read(source, 1 << 20):
        count += len(data)
    return count


def test_ten_gigabytes_of_output_end_at_the_default_and_neither_ww_nor_its_spawner_grows(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    wasm = cell(ww_account, flood(1))
    with leftovers(ww_account), ww_account.popen("run", wasm) as process:
        assert process.stdout is not None
        with footprint(process.pid) as seen:
            count = drain(process.stdout.fileno())
        _, err = process.communicate(timeout=60)
    assert process.returncode == 66
    assert b"limit of output" in err
    assert count == Limits().output == 1 << 30
    growth = seen.growth()
    assert set(growth) == {"ww", "spawner"}
    assert max(growth.values()) < FLAT, growth


@pytest.mark.parametrize("limit", [0, 1, PAGE + 1, 10_000_000])
def test_exactly_as_many_bytes_arrive_as_may_be_written(ww_account: Ww, limit: int) -> None:
    run = told(ww_account, "--output", str(limit), cell(ww_account, flood(1)))
    assert_limit(run, "output")
    assert len(run.done.stdout) == limit


def test_output_to_a_file_ends_at_the_limit_whatever_it_held_before(ww_account: Ww) -> None:
    path = ww_account.file("out", b"before")
    wasm = cell(ww_account, flood(10))
    with open(path, "ab", buffering=0) as file:
        run = told(ww_account, "--output", "100000", "--fd", "f=3", wasm, fds={3: file})
    assert_limit(run, "output")
    assert path.stat().st_size == 6 + 100_000


def test_output_over_two_descriptors_is_counted_together(ww_account: Ww) -> None:
    path = ww_account.file("out")
    wasm = cell(ww_account, flood(1, 2, 10))
    with open(path, "wb", buffering=0) as file:
        run = told(ww_account, "--output", "1000000", "--fd", "f=3", wasm, fds={3: file})
    assert run.done.returncode == 66
    assert run.end["limit"] == "output"
    line = run.done.stderr.index(b"ww: error: ")
    assert len(run.done.stdout) + line + path.stat().st_size == 1_000_000


def test_output_to_a_socket_is_counted(ww_account: Ww) -> None:
    ours, theirs = socket.socketpair()
    wasm = cell(ww_account, flood(10))
    with (
        ours,
        theirs,
        ww_account.popen(
            "run", "--output", "1000000", "--fd", "s=3", wasm, fds={3: theirs}
        ) as process,
    ):
        theirs.close()
        count = drain(ours.fileno())
        _, err = process.communicate(timeout=60)
    assert (process.returncode, count) == (66, 1_000_000)
    assert b"limit of output" in err


def test_output_to_where_it_cannot_go_is_not_counted(ww_account: Ww) -> None:
    # A full device takes nothing, so the cell may go on as long as it likes.
    with open("/dev/full", "wb", buffering=0) as full:
        wasm = cell(ww_account, flood(10, rounds=100))
        run = told(ww_account, "--output", "1000000", "--fd", "f=3", wasm, fds={3: full})
    assert run.done.returncode == 9


def test_exactly_the_limit_may_be_written(ww_account: Ww) -> None:
    run = told(ww_account, "--output", str(4 * PAGE), cell(ww_account, flood(1, rounds=4)))
    assert (run.done.returncode, len(run.done.stdout)) == (9, 4 * PAGE)
    assert run.end["reason"] == "exit"


# --- descriptors ----------------------------------------------------------------------------------


def open_until_refused(ww: Ww, folder: Path) -> Path:
    """A cell that opens a file until it is refused, closes one, and opens it again.

    Its exit code says what the refusal was, or 200 if closing did not help; what it writes is one
    byte for each that was open.
    """
    body = """
      (local $errno i32)
      (loop $l
        (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 1)
          (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 48)))
        (if (i32.eqz (local.get $errno))
          (then
            (i32.store (i32.const 52) (i32.load (i32.const 48)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br $l))))
      (if (call $close (i32.load (i32.const 52))) (then (call $exit (i32.const 201))))
      (if (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 1) (i32.const 0)
          (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 48))
        (then (call $exit (i32.const 200))))
      (call $exit (local.get $errno))"""
    (folder / "f").write_bytes(b"")
    (folder / "f").chmod(0o644)
    text = f"""
      (import "{P1}" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (import "{P1}" "fd_close" (func $close (param i32) (result i32)))
      {IMPORTS} {MEMORY} (data (i32.const 0) "\\20\\00\\00\\00\\01\\00\\00\\00")
      (data (i32.const 32) "f") (func (export "_start") {body})"""
    return cell(ww, text)


@pytest.fixture
def folder(ww_account: Ww) -> Path:
    ww_account.root.chmod(0o755)
    ww_account.tmp.chmod(0o755)
    made = ww_account.tmp / "folder"
    made.mkdir(mode=0o755)
    return made


EMFILE = 33


@pytest.mark.parametrize("limit", [1, None, 2000])
def test_a_cell_opens_as_many_as_it_may_and_goes_on(
    ww_account: Ww, folder: Path, limit: int | None
) -> None:
    wasm = open_until_refused(ww_account, folder)
    flags = () if limit is None else ("--nofile", str(limit))
    done = told(ww_account, *flags, "--dir", f"{folder}:/d", wasm).done
    assert (done.returncode, done.stderr) == (EMFILE, b"")
    assert len(done.stdout) == (limit or Limits().nofile)


def test_where_the_callers_own_limit_is_lower_that_one_counts(ww_account: Ww, folder: Path) -> None:
    wasm = open_until_refused(ww_account, folder)
    done = ww_account.shell(f"ulimit -n 60; ww run --nofile 2000 --dir {folder}:/d {wasm}")
    assert (done.returncode, done.stderr) == (EMFILE, b"")
    assert 20 < len(done.stdout) < 60


def test_closing_what_was_granted_makes_no_room_for_more(ww_account: Ww, folder: Path) -> None:
    wasm = open_until_refused(ww_account, folder)
    done = told(ww_account, "--nofile", "0", "--dir", f"{folder}:/d", wasm).done
    assert (done.returncode, done.stdout) == (200, b"")  # it closed its stdin, in vain


# --- the writable /tmp ----------------------------------------------------------------------------

ENOSPC = 51


def fill(*, files: bool) -> str:
    """A cell that writes one file, or makes empty ones, until it is refused, as its exit code.

    What it writes to stdout is a byte for each 4 KiB, or for each file.
    """
    if files:
        act = """
          (i32.store (i32.const 32) (i32.add (i32.load (i32.const 32)) (i32.const 1)))
          (i32.store8 (i32.const 64)
            (i32.add (i32.const 65) (i32.and (i32.load (i32.const 32)) (i32.const 15))))
          (i32.store8 (i32.const 65) (i32.add (i32.const 65)
            (i32.and (i32.shr_u (i32.load (i32.const 32)) (i32.const 4)) (i32.const 15))))
          (i32.store8 (i32.const 66) (i32.add (i32.const 65)
            (i32.and (i32.shr_u (i32.load (i32.const 32)) (i32.const 8)) (i32.const 15))))
          (i32.store8 (i32.const 67) (i32.add (i32.const 65)
            (i32.and (i32.shr_u (i32.load (i32.const 32)) (i32.const 12)) (i32.const 15))))
          (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4)
            (i32.const 5) (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 48)))
          (if (i32.eqz (local.get $errno))
            (then (drop (call $close (i32.load (i32.const 48))))))"""
        before = ""
    else:
        before = """
          (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1)
            (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 48)))"""
        act = """
          (local.set $errno
            (call $write (i32.load (i32.const 48)) (i32.const 16) (i32.const 1) (i32.const 8)))"""
    return f"""
      (import "{P1}" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      (import "{P1}" "fd_close" (func $close (param i32) (result i32)))
      {IMPORTS} {MEMORY} (data (i32.const 0) "\\20\\00\\00\\00\\01\\00\\00\\00")
      (data (i32.const 16) "\\00\\10\\00\\00\\00\\10\\00\\00") (data (i32.const 64) "file")
      (func (export "_start") (local $errno i32) {before}
        (loop $l {act}
          (if (i32.eqz (local.get $errno))
            (then
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
              (br $l))))
        (call $exit (local.get $errno)))"""


def test_the_writable_tmp_holds_its_size_and_no_more(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    wasm = cell(ww_account, fill(files=False))
    for size, blocks in (("1M", 256), ("4096", 1), ("1000000", 244)):
        with leftovers(ww_account):
            run = told(ww_account, "--scratch", size, wasm)
        assert (run.done.returncode, run.done.stderr) == (ENOSPC, b"")
        assert len(run.done.stdout) <= blocks + 1
        assert len(run.done.stdout) >= blocks - 1


def test_the_writable_tmp_takes_only_so_many_files(ww_account: Ww) -> None:
    run = told(ww_account, "--scratch", "1M", cell(ww_account, fill(files=True)))
    assert (run.done.returncode, run.done.stderr) == (ENOSPC, b"")
    # One for each page of it, about.
    assert 100 < len(run.done.stdout) <= 1024


def test_what_is_written_to_the_writable_tmp_counts_as_output(ww_account: Ww) -> None:
    flags = ("--scratch", "10M", "--output", "100000")
    assert_limit(told(ww_account, *flags, cell(ww_account, fill(files=False))), "output")


def test_without_it_there_is_nowhere_to_write(ww_account: Ww) -> None:
    run = told(ww_account, cell(ww_account, fill(files=True)))
    assert (run.done.returncode, run.done.stdout) == (8, b"")  # EBADF: there is no directory


# --- processes ------------------------------------------------------------------------------------

# A cell that has broken out of the engine and of its system call filter: it forks, tells how often
# it could, and waits to be killed or ends.
FORKING = """
import os
from sandbox import seccomp
from sandbox.wasi.cell import CellHost

install = seccomp.install

def run(self, inside):
    inside.seal()
    made = 0
    try:
        while made < 100:
            if os.fork() == 0:
                while True:
                    os.read(0, 1)
            made += 1
    except OSError:
        pass
    os.write(1, b"x" * made)
    os._exit(3)

seccomp.install = {install}
CellHost.run = run
"""
NO_FILTER = "lambda program: None"


def test_a_fork_bomb_has_as_many_processes_as_it_may_and_nothing_is_left(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    counted = told(ww_account, "--require", "cgroup", HELLO).done.returncode == 0
    command = variant(FORKING.format(install=NO_FILTER))
    with leftovers(ww_account), silent_pipe() as reader:
        run = told(ww_account, "--pids", "8", HELLO, command=command, stdin=reader)
    if counted:
        # Where the event is polled for, it does not live to tell how often it could.
        assert len(run.done.stdout) in (0, 7)
        assert_limit(run, "pids")
    else:
        # Itself, and as many more: RLIMIT_NPROC counts those of its user namespace, and lets one
        # more be than a control group would. It is no event, so nothing tells of it.
        assert len(run.done.stdout) == 8
        assert run.done.returncode == 1


def test_a_cell_cannot_fork_at_all_under_its_filter(ww_account: Ww) -> None:
    with silent_pipe() as reader:
        run = told(
            ww_account,
            HELLO,
            command=variant(FORKING.format(install="install")),
            stdin=reader,
        )
    assert run.done.returncode == 67
    assert run.end["reason"] == "isolation"
    assert run.done.stdout == b""


# --- defaults, none, and what is required ---------------------------------------------------------


def test_every_limit_is_finite_if_nothing_else_is_said() -> None:
    assert [name for name, value in Limits()._asdict().items() if value is None] == ["fuel"]
    assert Limits() == Limits(
        wall=3600,
        cpu=3600,
        fuel=None,
        memory=1 << 30,
        table_elements=10_000_000,
        output=1 << 30,
        pids=16,
        nofile=256,
        scratch=0,
    )


def test_the_default_limit_of_memory_holds(ww_account: Ww) -> None:
    for pages, code in ((16384, 0), (16385, 66), (65536, 66)):
        text = f'(memory (export "memory") {pages}) (func (export "_start"))'
        assert told(ww_account, cell(ww_account, text)).done.returncode == code, pages


def test_no_limit_is_none(ww_account: Ww) -> None:
    none = [
        f
        for name in ("timeout", "cpu-time", "fuel", "memory", "output")
        for f in (f"--{name}", "none")
    ]
    # All that 32 bits can name, and used at its very end.
    body = "(i32.store8 (i32.const -1) (i32.const 1)) (call $exit (i32.const 9))"
    text = program(body, '(memory (export "memory") 65536)')
    assert told(ww_account, *none, cell(ww_account, text)).done.returncode == 9
    # A second more than a gigabyte of output.
    with ww_account.popen("run", *none, cell(ww_account, flood(1, rounds=16385))) as process:
        assert process.stdout is not None
        count = drain(process.stdout.fileno())
        process.communicate(timeout=60)
    assert (process.returncode, count) == (9, 16385 * PAGE)


def test_a_required_control_group_that_there_is_not_is_67(ww_account: Ww) -> None:
    features = json.loads(ww_account.run("doctor", "--json").stdout)
    states = {f["feature"]: f["status"] for f in features}
    given = all(states[name] == "ok" for name in ("cgroup memory", "cgroup pids"))
    run = told(ww_account, "--require", "cgroup", HELLO)
    if given:
        assert (run.done.returncode, run.end["reason"]) == (0, "exit")
    else:
        assert run.done.returncode == 67
        assert run.done.stdout == b""
        assert run.done.stderr.startswith(b"ww: error: jail: cgroup: ")
        assert (run.end["reason"], run.end["step"]) == ("jail", "cgroup")


def test_a_required_landlock_is_there_or_67(ww_account: Ww) -> None:
    run = told(ww_account, "--require", "landlock", HELLO)
    assert run.done.returncode == 0
    missing = "from sandbox import landlock; landlock.abi = lambda: 0"
    run = told(ww_account, "--require", "landlock", HELLO, command=variant(missing))
    assert run.done.returncode == 67
    assert (run.end["reason"], run.end["step"]) == ("jail", "landlock")
    assert told(ww_account, HELLO, command=variant(missing)).done.returncode == 0


def test_a_cell_that_ends_with_66_by_itself_is_told_from_a_limit(ww_account: Ww) -> None:
    run = told(ww_account, cell(ww_account, program("(call $exit (i32.const 66))")))
    assert (run.done.returncode, run.done.stderr) == (66, b"")
    assert (run.end["reason"], "limit" in run.end) == ("exit", False)

"""--invoke: one function of a module in place of its start."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from tests.conftest import CELL_FLAGS, EXAMPLES, PROBES, Ww, compile_c

HELLO = EXAMPLES / "hello" / "hello.wasm"


@pytest.fixture(scope="session")
def reactor() -> Path:
    source = PROBES / "cells" / "reactor.c"
    return compile_c(source, (*CELL_FLAGS, "-mexec-model=reactor"), ".wasm")


@pytest.mark.parametrize(
    ("call", "printed"),
    [
        ("add 2 -3", b"-1\n"),
        ("add 0x7fffffff 1", b"-2147483648\n"),
        ("add 4294967295 0", b"-1\n"),
        ("add -0x80000000 0", b"-2147483648\n"),
        ("wide 18446744073709551615", b"-1\n"),
        ("wide -9223372036854775808", b"-9223372036854775808\n"),
        ("half 5", b"2.5\n"),
        ("half -inf", b"-inf\n"),
        ("tenth 1e3", b"100.0\n"),
        ("nothing", b""),
        ("_initialize", b""),
    ],
)
def test_a_function_is_called_with_numbers_and_its_result_is_printed(
    ww: Ww, reactor: Path, call: str, printed: bytes
) -> None:
    name, *arguments = call.split()
    done = ww.run("run", "--invoke", name, reactor, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, b"")


def test_it_is_initialised_once_before(ww: Ww, reactor: Path) -> None:
    assert ww.run("run", "--invoke", "ready", reactor).stdout == b"42\n"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("missing", b"it exports no function 'missing'"),
        ("memory", b"it exports no function 'memory'"),
        ("add 1", b"its 'add' takes 2 arguments (i32, i32), not 1"),
        ("add 1 2 3", b"not 3"),
        ("add 1 x", b"argument 2 of 'add' is no i32: 'x'"),
        ("add 4294967296 1", b"argument 1 of 'add' is no i32"),
        ("add -2147483649 1", b"argument 1 of 'add' is no i32"),
        ("add 1.5 1", b"argument 1 of 'add' is no i32"),
        ("add 1_0 1", b"argument 1 of 'add' is no i32"),
        ("half x", b"argument 1 of 'half' is no f32"),
    ],
)
def test_what_cannot_be_called_is_rejected(ww: Ww, reactor: Path, call: str, reason: bytes) -> None:
    name, *arguments = call.split()
    done = ww.run("run", "--invoke", name, reactor, *arguments)
    assert done.returncode == 126
    assert reason in done.stderr
    assert done.stdout == b""


def test_it_uses_what_was_granted(ww_account: Ww, reactor: Path) -> None:
    granted = ww_account.file("granted", b"text")
    cell = ww_account.file("reactor.wasm", reactor)
    done = ww_account.run(
        *("run", "--fd", "a=3,mode=r,target=20", "--invoke", "forward", cell, "20"),
        fds={3: granted},
    )
    assert done.stdout == b"text4\n", done.stderr
    refused = ww_account.run("run", "--invoke", "forward", cell, "20", fds={3: granted})
    assert refused.stdout == b"-1\n"


def test_its_trap_is_134_and_its_output_is_limited(ww: Ww, reactor: Path) -> None:
    assert ww.run("run", "--invoke", "trap", reactor).returncode == 134
    done = ww.run("run", "--output", "2", "--invoke", "wide", reactor, "12345")
    assert (done.returncode, done.stdout) == (66, b"12")


def test_results_go_to_the_granted_output_and_nowhere_else(ww: Ww, reactor: Path) -> None:
    target = ww.file("out")
    with open(target, "wb") as out:
        done = ww.run(
            *("run", "--no-stdio", "--fd", "o=5,mode=w,target=1", "--invoke", "ready", reactor),
            fds={5: out},
        )
    assert (done.stdout, target.read_bytes()) == (b"", b"42\n")
    assert ww.run("run", "--no-stdio", "--invoke", "ready", reactor).stdout == b""


def test_results_that_cannot_be_written_are_a_failure_of_the_cell_and_none_of_ww(
    ww: Ww, reactor: Path
) -> None:
    read_only = ww.file("granted", b"text")
    to_nothing = ("--fd", "o=3,target=1", "--invoke", "ready", reactor)
    for given in (read_only, Path("/usr")):
        done = ww.run("run", *to_nothing, fds={3: given})
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    # Nobody reads them where there are none.
    assert ww.run("run", *to_nothing[:2], "--invoke", "nothing", reactor, fds={3: read_only})


def test_results_go_where_the_cell_has_its_output_at_its_end(ww: Ww) -> None:
    target = ww.file("out")
    text = """(module
      (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "move") (result i32) (call $renumber (i32.const 10) (i32.const 1)))
      (func (export "shut") (result i32) (call $close (i32.const 1))))"""
    cell = ww.file("cell.wasm", bytes(wasmtime.wat2wasm(text)))
    with open(target, "wb") as out:
        done = ww.run("run", "--fd", "o=5,mode=w", "--invoke", "move", cell, fds={5: out})
    assert (done.returncode, done.stdout, target.read_bytes()) == (0, b"", b"0\n"), done.stderr
    done = ww.run("run", "--invoke", "shut", cell)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_a_module_without_a_start_says_how_to_call_it(ww: Ww, reactor: Path) -> None:
    done = ww.run("run", reactor)
    assert done.returncode == 126
    assert b"--invoke NAME" in done.stderr


def test_a_command_can_be_called_by_the_name_of_its_start(ww: Ww) -> None:
    assert ww.run("run", "--invoke", "_start", HELLO).stdout == ww.run("run", HELLO).stdout


def test_what_a_cell_imports_and_nobody_offers_traps_only_when_that_is_allowed(ww: Ww) -> None:
    import wasmtime

    text = """(module (import "host" "call" (func $call)) (memory (export "memory") 1)
      (func (export "_start")) (func (export "use") call $call))"""
    cell = ww.file("cell.wasm", bytes(wasmtime.wat2wasm(text)))
    refused = ww.run("run", cell)
    assert refused.returncode == 126
    assert b"host::call" in refused.stderr
    assert ww.run("run", "--unknown-imports-trap", cell).returncode == 0
    used = ww.run("run", "--unknown-imports-trap", "--invoke", "use", cell)
    assert used.returncode == 134


NUMBERS = """(module
  (func (export "i") (param i32) (result i32) local.get 0)
  (func (export "f") (param f64) (result f64) local.get 0)
  (func (export "all") (result i32 i64 f32 f64)
    i32.const -1 i64.const 2 f32.const 3 f64.const 4.5)
  (func (export "vector") (param v128)) (func (export "reference") (param externref))
  (func (export "gives") (result v128) v128.const i32x4 0 0 0 0))"""


@pytest.fixture
def numbers(ww: Ww) -> Path:
    import wasmtime

    return ww.file("numbers.wasm", bytes(wasmtime.wat2wasm(NUMBERS)))


@pytest.mark.parametrize(
    ("name", "text", "printed"),
    [
        *(("i", text, b"16\n") for text in ("+16", "0X10", "0" * 90 + "16")),
        *(("f", text, b"0.5\n") for text in (".5", "+5E-1", "0x1p-1")),
        *(("f", text, b"-inf\n") for text in ("-infinity", "-1e999", "-0x1p9999")),
        ("f", "nan", b"nan\n"),
    ],
)
def test_numbers_are_written_as_in_c(
    ww: Ww, numbers: Path, name: str, text: str, printed: bytes
) -> None:
    done = ww.run("run", "--invoke", name, numbers, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, b"")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("i", text) for text in ("", "0x", "\u0661", "1" * 5000)),
        *(("f", text) for text in ("", "1_0", ".", "0xp1")),
    ],
)
def test_what_is_no_number_is_rejected(ww: Ww, numbers: Path, name: str, text: str) -> None:
    done = ww.run("run", "--invoke", name, numbers, text)
    assert done.returncode == 126, done.stderr
    assert f"argument 1 of '{name}' is no ".encode() in done.stderr


def test_each_result_has_a_line(ww: Ww, numbers: Path) -> None:
    assert ww.run("run", "--invoke", "all", numbers).stdout == b"-1\n2\n3.0\n4.5\n"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("vector 1", b"argument 1 of 'vector' is not a number"),
        ("reference 1", b"argument 1 of 'reference' is not a number"),
        ("gives", b"'gives' returns what is not a number"),
    ],
)
def test_what_has_no_written_form_is_rejected(
    ww: Ww, numbers: Path, call: str, reason: bytes
) -> None:
    name, *arguments = call.split()
    done = ww.run("run", "--invoke", name, numbers, *arguments)
    assert done.returncode == 126, done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("initialise", "code"),
    [("", 0), ("unreachable", 134), ("(loop (br 0))", 66)],
)
def test_what_happens_in_its_initialisation_counts(ww: Ww, initialise: str, code: int) -> None:
    import wasmtime

    text = f'(module (func (export "_initialize") {initialise}) (func (export "f")))'
    cell = ww.file("cell.wasm", bytes(wasmtime.wat2wasm(text)))
    assert ww.run("run", "--fuel", "1000", "--invoke", "f", cell).returncode == code


def test_an_initialisation_that_takes_parameters_is_none(ww: Ww) -> None:
    import wasmtime

    text = '(module (func (export "_initialize") (param i32)) (func (export "f")))'
    done = ww.run("run", "--invoke", "f", ww.file("c.wasm", bytes(wasmtime.wat2wasm(text))))
    assert done.returncode == 126, done.stderr
    assert b"its '_initialize' takes parameters" in done.stderr

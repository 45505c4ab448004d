"""--invoke: one function of a module in place of its start."""

from __future__ import annotations

from pathlib import Path

import pytest

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

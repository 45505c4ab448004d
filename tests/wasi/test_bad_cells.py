"""What is not a cell is refused with 126 and one clear line, before anything of it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import wasmtime

from tests.conftest import Ww
from tests.wasi.remote_cell import in_parallel

P1 = "wasi_snapshot_preview1"
FD_WRITE = f'(import "{P1}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
EXIT = f'(import "{P1}" "proc_exit" (func $exit (param i32)))'
START = '(func (export "_start"))'
MEMORY = '(memory (export "memory") 1)'
# Says "ran" as loudly as a cell can: nothing of a refused cell may do that.
SHOUT = """
  (data (i32.const 0) "\\08\\00\\00\\00\\03\\00\\00\\00ran")
  (func $shout (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


NOT_VALID = "not a valid WebAssembly module"
GOOD = wat(f'{FD_WRITE} {MEMORY} {SHOUT} (export "_start" (func $shout))')


Run = Callable[[bytes], CompletedProcess[bytes]]


@pytest.fixture
def run(ww: Ww) -> Run:
    def run_it(wasm: bytes) -> CompletedProcess[bytes]:
        folder = Path(tempfile.mkdtemp(dir=ww.tmp))
        (folder / "bad.wasm").write_bytes(wasm)
        return ww.run("run", "./bad.wasm", cwd=folder)

    return run_it


def refusal(done: CompletedProcess[bytes]) -> str:
    """The one line of an error that nothing followed."""
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (126, b""), text
    (line,) = text.splitlines()
    assert line.startswith("ww: error: ./bad.wasm: "), line
    return line


def refusals(run: Run, wasm: Iterable[bytes]) -> list[str]:
    return [refusal(done) for done in in_parallel(run, wasm)]


def test_the_good_one_that_the_bad_ones_are_made_of_runs(run: Run) -> None:
    done = run(GOOD)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ran", b"")


NO_MODULES = {
    "empty": b"",
    "magic only": b"\0asm",
    "another version": b"\0asm\2\0\0\0",
    "script": b"#!/bin/sh\necho ran\n",
    "elf": b"\x7fELF\2\1\1" + bytes(100),
    "wat": b"(module " + START.encode() + b")",
    "component wat": b'(component (core module (func (export "_start"))))',
    "byte order mark before": b"\xef\xbb\xbf" + GOOD,
}


def test_what_is_no_binary_module_is_refused(run: Run) -> None:
    for name, line in zip(NO_MODULES, refusals(run, [*NO_MODULES.values()]), strict=True):
        assert "not a WebAssembly module" in line, (name, line)


def test_a_cut_module_is_refused(run: Run) -> None:
    cut = [GOOD[:size] for size in (9, len(GOOD) // 2, len(GOOD) - 1)]
    assert all(NOT_VALID in line for line in refusals(run, cut))


def test_a_header_alone_is_a_module_but_no_program(run: Run) -> None:
    assert "_start" in refusal(run(GOOD[:8]))


def test_garbage_after_the_end_is_refused(run: Run) -> None:
    assert NOT_VALID in refusal(run(GOOD + b"\xff\xff\xff"))


def test_a_module_without_a_start_function_is_refused_and_told_so(run: Run) -> None:
    bodies = [
        MEMORY,
        f'{MEMORY} (func (export "_initialize"))',
        f'{MEMORY} (global (export "_start") i32 (i32.const 1))',
        f'{MEMORY} (func (export "start")) (func (export "_Start"))',
    ]
    for body, line in zip(bodies, refusals(run, map(wat, bodies)), strict=True):
        assert "'_start'" in line, (body, line)


def test_a_start_function_with_parameters_or_results_is_refused(run: Run) -> None:
    signatures = ["(param i32)", "(result i32) (i32.const 0)"]
    cells = [wat(f'{MEMORY} (func (export "_start") {text})') for text in signatures]
    for signature, line in zip(signatures, refusals(run, cells), strict=True):
        assert "'_start'" in line, (signature, line)


def importing(text: str) -> bytes:
    """A module that only lacks the import."""
    return wat(f"{text} {'' if '(memory' in text else MEMORY} {START}")


def test_an_import_that_is_not_offered_is_refused_and_named(run: Run) -> None:
    imports = {
        '(import "env" "foo" (func))': ("env", "foo"),
        f'(import "{P1}" "fd_teleport" (func))': (P1, "fd_teleport"),
        '(import "wasi_unstable" "fd_write" (func))': ("wasi_unstable", "fd_write"),
        f'(import "{P1}" "memory" (memory 1))': (P1, "memory"),
        '(import "env" "memory" (memory 1))': ("env", "memory"),
        '(import "env" "table" (table 1 funcref))': ("env", "table"),
        '(import "wasi" "thread-spawn" (func (param i32) (result i32)))': ("wasi", "thread-spawn"),
    }
    for words, line in zip(imports.values(), refusals(run, map(importing, imports)), strict=True):
        assert all(word in line for word in words), line


def test_the_hosts_own_modules_are_not_offered(run: Run) -> None:
    imports = {
        '(import "host" "fd_write" (func (param i32 i32 i32 i32) (result i32)))': "host",
        '(import "host" "proc_exit" (func (param i32)))': "host",
        '(import "shim" "table" (table 0 funcref))': "shim",
        '(import "cell" "memory" (memory 1))': "cell",
        '(import "switch" "map" (memory 1))': "switch",
    }
    for word, line in zip(imports.values(), refusals(run, map(importing, imports)), strict=True):
        assert word in line


def test_the_table_through_which_the_calls_go_is_not_offered(run: Run) -> None:
    line = refusal(run(importing(f'(import "{P1}" "table" (table 0 funcref))')))
    assert "table" in line


def test_an_import_of_another_signature_is_refused_and_named(run: Run) -> None:
    signatures = [
        "",
        "(param i32 i32 i32 i32)",
        "(param i64 i32 i32 i32) (result i32)",
    ]
    cells = [importing(f'(import "{P1}" "fd_write" (func {text}))') for text in signatures]
    for signature, line in zip(signatures, refusals(run, cells), strict=True):
        assert "fd_write" in line, (signature, line)


def test_a_function_imported_as_something_else_is_refused_and_named(run: Run) -> None:
    line = refusal(run(wat(f'(import "{P1}" "fd_write" (global i32)) {MEMORY} {START}')))
    assert "fd_write" in line


def test_a_module_that_calls_nobody_needs_no_memory(run: Run) -> None:
    done = run(wat(START))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_module_that_imports_wasi_needs_a_memory_of_that_name(run: Run) -> None:
    bodies = [
        f"{FD_WRITE} (memory 1) {START}",
        f'{FD_WRITE} (memory (export "mem") 1) {START}',
        f'{FD_WRITE} (memory 1) (func (export "memory")) {START}',
    ]
    for body, line in zip(bodies, refusals(run, map(wat, bodies)), strict=True):
        assert "'memory'" in line, (body, line)


def test_a_start_section_that_calls_wasi_is_refused_with_the_reason(run: Run) -> None:
    line = refusal(run(wat(f"{FD_WRITE} {MEMORY} {SHOUT} (start $shout) {START}")))
    assert "start section" in line


def test_a_start_section_that_exits_is_refused_with_the_reason(run: Run) -> None:
    body = f"{EXIT} {MEMORY} (func $quit (call $exit (i32.const 0))) (start $quit) {START}"
    assert "start section" in refusal(run(wat(body)))


def test_a_start_section_that_traps_is_told_from_a_trap_of_the_program(run: Run) -> None:
    assert "start section" in refusal(
        run(wat(f"{MEMORY} (func $trap unreachable) (start $trap) {START}"))
    )


def test_a_start_section_of_its_own_business_runs_first(run: Run) -> None:
    body = f"""
      {EXIT} {MEMORY} (global $code (mut i32) (i32.const 1))
      (func $prepare (global.set $code (i32.const 42))) (start $prepare)
      (func (export "_start") (call $exit (global.get $code)))"""
    done = run(wat(body))
    assert (done.returncode, done.stderr) == (42, b"")


def test_segments_that_lead_out_are_refused(run: Run) -> None:
    segments = [
        '(data (i32.const 65536) "x")',
        '(data (i32.const -1) "x")',
        "(table 1 funcref) (elem (i32.const 1) func $f) (func $f)",
    ]
    refusals(run, [wat(f"{MEMORY} {segment} {START}") for segment in segments])


# --- what the engine could do and is not allowed to -----------------------------------------------

# Encoded by hand where the assembler has the feature switched off as well.
HEADER = b"\0asm\1\0\0\0"
START_SECTIONS = b"\x01\x04\x01\x60\0\0" + b"\x03\x02\x01\0"
EXPORT_AND_CODE = b"\x07\x0a\x01\x06_start\0\0" + b"\x0a\x04\x01\x02\0\x0b"


def with_memory(limits: bytes) -> bytes:
    memory = b"\x01" + limits
    section = b"\x05" + bytes([len(memory)]) + memory
    return HEADER + START_SECTIONS + section + EXPORT_AND_CODE


def test_the_module_made_by_hand_runs_with_an_ordinary_memory(run: Run) -> None:
    assert run(with_memory(b"\x00\x01")).returncode == 0


def test_kinds_of_memory_that_are_switched_off_are_refused(run: Run) -> None:
    kinds = {
        "memory64": b"\x04\x01",
        "memory64 with a maximum": b"\x05\x01\x02",
        "threads": b"\x03\x01\x02",
        "custom page sizes": b"\x08\x01\x00",
    }
    cells = [with_memory(limits) for limits in kinds.values()]
    for kind, line in zip(kinds, refusals(run, cells), strict=True):
        assert NOT_VALID in line, (kind, line)


def test_instructions_that_are_switched_off_are_refused(run: Run) -> None:
    texts = [
        "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
        "(type (struct (field i32)))",
        "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1)"
        " (local.get 2) (local.get 3)))",
        "(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))",
    ]
    cells = [wat(f"{text} {START}") for text in texts]
    for text, line in zip(texts, refusals(run, cells), strict=True):
        assert NOT_VALID in line, (text, line)


def test_a_component_that_is_no_command_is_told_what_it_lacks(run: Run) -> None:
    component = wasmtime.wat2wasm('(component (core module (func (export "_start"))))')
    assert "wasi:cli/run" in refusal(run(bytes(component)))
    assert "wasi:cli/run" in refusal(run(b"\0asm\x0d\0\1\0"))


def test_an_artifact_of_the_engine_is_refused(run: Run) -> None:
    """It is machine code: whoever can make one would need no cell."""
    artifact = wasmtime.Module(wasmtime.Engine(), GOOD).serialize()
    assert "not a WebAssembly module" in refusal(run(bytes(artifact)))


def test_a_function_too_large_or_too_deep_is_no_crash(run: Run) -> None:
    deep = "(block " * 3000 + ")" * 3000
    done = run(wat(f'{MEMORY} (func (export "_start") {deep})'))
    assert done.returncode in (0, 126)
    many = "".join(f"(local i64) (local f{32 + 32 * (i % 2)})" for i in range(30000))
    line = refusal(run(wat(f'{MEMORY} (func (export "_start") {many})')))
    assert "local" in line


def test_a_name_that_would_write_on_the_terminal_is_shown_harmless(run: Run) -> None:
    line = refusal(run(wat(f'(import "\\1b[31mred\\n" "x\\07" (func)) {MEMORY} {START}')))
    assert "\x1b" not in line
    assert "\x07" not in line


def test_a_module_with_two_memories_uses_the_one_by_its_name(run: Run) -> None:
    shout = SHOUT.replace("(data", "(data (memory $m)")
    body = f'{FD_WRITE} (memory $other 1) (memory $m (export "memory") 1) {shout}'
    done = run(wat(f'{body} (export "_start" (func $shout))'))
    assert (done.returncode, done.stdout) == (0, b"ran")


def test_a_start_function_that_is_an_import_is_judged_by_its_signature(run: Run) -> None:
    body = f'(import "{P1}" "sched_yield" (func $yield (result i32))) {MEMORY}'
    line = refusal(run(wat(f'{body} (export "_start" (func $yield))')))
    assert "'_start'" in line


def test_a_name_that_looks_like_the_engines_own_word_is_not_believed(run: Run) -> None:
    name = "x\\0aout of memory (failed to allocate 5 bytes)\\0ay"
    assert run(wat(f'(import "a" "{name}" (func)) {MEMORY} {START}')).returncode == 126


def every_file(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_refused_cell_leaves_no_file_behind(ww: Ww) -> None:
    ww.file("bad.wasm", b"no", 0o755)
    before = every_file(ww.tmp)
    assert ww.run("run", "./bad.wasm").returncode == 126
    assert every_file(ww.tmp) == before

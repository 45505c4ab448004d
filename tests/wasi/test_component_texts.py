"""Components that no compiler makes: odd commands and hostile ones, and what is refused them.

They are written as text, so each has nothing but what its test is about.
"""

from __future__ import annotations

import os
import subprocess

import pytest
import wasmtime

from tests.conftest import Leftovers, Ww

FAMILIES = {"IPv4": 0, "IPv6": 1}
ACCESS_DENIED = 1  # the second of wasi:sockets/network's error-code

# A function that takes nothing and returns a plain result, as wasi:cli/run has it.
PLAIN = "(result (result))"
SUCCEED = '(func (export "run") (result i32) i32.const 0)'


def command(
    core: str = SUCCEED,
    *,
    imports: str = "",
    given: str = "",
    kind: str = PLAIN,
    lift: str = "",
    version: str = "0.2.0",
) -> str:
    """A command: a core module with a function "run", what it imports, and what its own gets."""
    return f"""(component {imports}
      (core module $code {core})
      (core instance $code (instantiate $code {given}))
      (func $run {kind} (canon lift (core func $code "run") {lift}))
      (instance $cli (export "run" (func $run)))
      (export "wasi:cli/run@{version}" (instance $cli)))"""


def run(
    ww: Ww, text: str, *flags: str, stdin: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    cell = ww.file("component.wasm", bytes(wasmtime.wat2wasm(text)), 0o644)
    return ww.run("run", *flags, cell, stdin=b"" if stdin is None else stdin)


# --- what is a command ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.2.0", "0.2.1", "0.2.9"])
@pytest.mark.parametrize("result", [0, 1])
def test_a_command_of_any_release_of_preview_2_runs(ww: Ww, version: str, result: int) -> None:
    core = f'(func (export "run") (result i32) i32.const {result})'
    done = run(ww, command(core, version=version))
    assert (done.returncode, done.stderr) == (result, b"")


@pytest.mark.parametrize(
    ("kind", "core"),
    [
        ("", '(func (export "run"))'),
        ("(result u32)", SUCCEED),
        ("(result (result u32))", SUCCEED),
        (f'(param "x" u32) {PLAIN}', '(func (export "run") (param i32) (result i32) i32.const 0)'),
    ],
)
def test_a_run_of_another_type_is_rejected(ww: Ww, kind: str, core: str) -> None:
    lift = '(memory (core memory $code "memory"))'
    done = run(ww, command(f'(memory (export "memory") 1) {core}', kind=kind, lift=lift))
    assert done.returncode == 126, done.stderr
    assert b"its 'run' takes parameters, or does not return a plain result" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        command(version="0.3.0"),
        '(component (instance $none) (export "wasi:cli/run@0.2.0" (instance $none)))',
        f"""(component (core module $code {SUCCEED}) (core instance $code (instantiate $code))
          (func $run {PLAIN} (canon lift (core func $code "run")))
          (export "run" (func $run)))""",
    ],
)
def test_what_exports_no_run_of_this_interface_is_no_command(ww: Ww, text: str) -> None:
    done = run(ww, text)
    assert done.returncode == 126, done.stderr
    assert b"it exports no interface 'wasi:cli/run'" in done.stderr


# --- how it ends ----------------------------------------------------------------------------------

EXIT = (
    '(import "wasi:cli/exit@0.2.0" (instance $x (export "exit" (func (param "status" (result))))))'
)


@pytest.mark.parametrize("start", ["", "(start $end)"])
@pytest.mark.parametrize("status", [0, 1])
def test_it_can_end_itself_also_while_it_is_instantiated(ww: Ww, status: int, start: str) -> None:
    core = f"""(import "x" "exit" (func $exit (param i32)))
      (func $end (call $exit (i32.const {status}))) {start}
      (func (export "run") (result i32) (call $end) unreachable)"""
    done = run(
        ww,
        command(
            core,
            imports=f'{EXIT} (core func $exit (canon lower (func $x "exit")))',
            given='(with "x" (instance (export "exit" (func $exit))))',
        ),
    )
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.mark.parametrize(
    "core",
    [
        '(func (export "run") (result i32) unreachable)',
        '(func $deep (call $deep)) (func (export "run") (result i32) (call $deep) i32.const 0)',
        '(func (export "run") (result i32) i32.const 9)',
        # What the engine would say, had it no memory left; here it is a name that a trap's report
        # holds.
        r"""(func $"x\0aout of memory (failed to allocate 5 bytes)\0a" unreachable)
          (func (export "run") (result i32) (call 0) i32.const 0)""",
    ],
)
def test_a_trap_is_a_trap_whatever_its_report_holds(ww: Ww, core: str) -> None:
    done = run(ww, command(core))
    assert done.returncode == 134, done.stderr
    assert b"the cell trapped: " in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"), [("--timeout", "1"), ("--cpu-time", "1"), ("--fuel", "10000")]
)
def test_a_limit_holds_while_it_is_instantiated(ww: Ww, flag: str, value: str) -> None:
    done = run(ww, command(f"(func $s (loop (br 0))) (start $s) {SUCCEED}"), flag, value)
    assert done.returncode == 66, done.stderr
    assert f"set with {flag}".encode() in done.stderr


# --- what the host does for it --------------------------------------------------------------------

POLL = """
(import "wasi:io/poll@0.2.0" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
  (alias outer 1 $pollable (type $outer)) (export "pollable" (type $own (eq $outer)))
  (export "subscribe-duration" (func (param "when" u64) (result (own $own))))))
(core func $subscribe (canon lower (func $clock "subscribe-duration")))
(core func $block (canon lower (func $poll "[method]pollable.block")))
"""
POLL_GIVEN = """(with "c" (instance
  (export "subscribe" (func $subscribe)) (export "block" (func $block))))"""
POLL_USED = """(import "c" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "c" "block" (func $block (param i32)))"""


def test_it_waits_with_threads_that_pids_counts(ww: Ww) -> None:
    core = f"""{POLL_USED} (func (export "run") (result i32)
      (call $block (call $subscribe (i64.const 20000000))) i32.const 0)"""
    text = command(core, imports=POLL, given=POLL_GIVEN)
    assert run(ww, text).returncode == 0
    done = run(ww, text, "--pids", "1")
    assert done.returncode == 66, done.stderr
    assert b"set with --pids" in done.stderr


def test_it_cannot_take_the_hosts_memory_by_asking_for_ever_more(
    ww_account: Ww, leftovers: type[Leftovers]
) -> None:
    core = f"""{POLL_USED} (func (export "run") (result i32)
      (loop $more (drop (call $subscribe (i64.const 1000000000))) (br $more)) unreachable)"""
    run(ww_account, command())  # makes the store's directories
    with leftovers(ww_account):
        done = run(ww_account, command(core, imports=POLL, given=POLL_GIVEN), "--memory", "64M")
    assert done.returncode in (66, 134), done.stderr
    assert b"the cell " in done.stderr


def test_a_small_text_that_doubles_its_memories_hits_the_limit_of_memory(ww: Ww) -> None:
    inner = """(component $c0 (core module $one (memory 1)) (core instance (instantiate $one)))"""
    for depth in range(1, 22):
        twice = f"(instance (instantiate $c{depth - 1}))" * 2
        inner = f"(component $c{depth} {inner} {twice})"
    done = run(ww, command(imports=f"{inner} (instance (instantiate $c21))"))
    assert done.returncode == 66, done.stderr
    assert b"set with --memory" in done.stderr


def test_a_list_that_it_asks_for_is_bounded(ww: Ww) -> None:
    imports = """(import "wasi:random/random@0.2.0" (instance $random
        (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
      (core module $memory (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024))
      (core instance $memory (instantiate $memory))
      (core func $get (canon lower (func $random "get-random-bytes")
        (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))"""
    given = '(with "r" (instance (export "get" (func $get))))'
    for size, code in ((100, 0), (1 << 50, 134)):
        core = f"""(import "r" "get" (func $get (param i64 i32))) (func (export "run") (result i32)
          (call $get (i64.const {size}) (i32.const 0)) i32.const 0)"""
        assert run(ww, command(core, imports=imports, given=given)).returncode == code


ERRORS = " ".join(
    f'"{name}"'
    for name in (
        *("unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory"),
        *("timeout", "concurrency-conflict", "not-in-progress", "would-block", "invalid-state"),
        *("new-socket-limit", "address-not-bindable", "address-in-use", "remote-unreachable"),
        *("connection-refused", "connection-reset", "connection-aborted", "datagram-too-large"),
        *("name-unresolvable", "temporary-resolver-failure", "permanent-resolver-failure"),
    )
)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("flags", [(), ("--net", "loopback")], ids=["none", "loopback"])
def test_it_cannot_make_a_socket_and_lives_on(
    ww: Ww, kind: str, family: int, flags: tuple[str, ...]
) -> None:
    imports = f"""
      (import "wasi:sockets/network@0.2.0" (instance $network
        (type $error (enum {ERRORS})) (export "error-code" (type (eq $error)))
        (type $family (enum "ipv4" "ipv6")) (export "ip-address-family" (type (eq $family)))))
      (alias export $network "error-code" (type $error))
      (alias export $network "ip-address-family" (type $family))
      (import "wasi:sockets/{kind}@0.2.0" (instance $kind
        (export "{kind}-socket" (type (sub resource)))))
      (alias export $kind "{kind}-socket" (type $socket))
      (import "wasi:sockets/{kind}-create-socket@0.2.0" (instance $make
        (alias outer 1 $error (type $e)) (export "error-code" (type $error (eq $e)))
        (alias outer 1 $family (type $f)) (export "ip-address-family" (type $family (eq $f)))
        (alias outer 1 $socket (type $s)) (export "{kind}-socket" (type $socket (eq $s)))
        (export "create-{kind}-socket" (func (param "address-family" $family)
          (result (result (own $socket) (error $error)))))))
      (core module $memory (memory (export "memory") 1))
      (core instance $memory (instantiate $memory))
      (core func $create (canon lower (func $make "create-{kind}-socket")
        (memory (core memory $memory "memory"))))"""
    given = """(with "m" (instance $memory))
      (with "s" (instance (export "create" (func $create))))"""
    # It succeeds if that fails, and for this reason.
    core = f"""(import "m" "memory" (memory 1)) (import "s" "create" (func $create (param i32 i32)))
      (func (export "run") (result i32) (call $create (i32.const {family}) (i32.const 16))
        (i32.eqz (i32.and (i32.eq (i32.load8_u (i32.const 16)) (i32.const 1))
          (i32.eq (i32.load8_u (i32.const 20)) (i32.const {ACCESS_DENIED})))))"""
    done = run(ww, command(core, imports=imports, given=given), *flags)
    assert (done.returncode, done.stderr) == (0, b"")


# --- what it cannot be granted --------------------------------------------------------------------


def test_a_standard_input_that_does_not_wait_is_refused(ww: Ww) -> None:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb"):
        os.set_blocking(read, False)
        done = run(ww, command(), stdin=read)
        assert done.returncode == 65
        assert b"its standard input is in non-blocking mode" in done.stderr
        os.set_blocking(read, True)
        assert run(ww, command(), stdin=read).returncode == 0


def test_a_file_without_a_name_is_refused(ww: Ww) -> None:
    deleted = ww.file("deleted")
    with open(deleted, "rb") as file:
        deleted.unlink()
        cell = ww.file("component.wasm", bytes(wasmtime.wat2wasm(command())))
        done = ww.run("run", "--fd", "a=3,mode=r", cell, fds={3: file})
    assert done.returncode == 65
    assert b"this one was deleted or never had any" in done.stderr

"""The job of docs/ci.md is run as it stands there, and its table of exit codes is tried."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from wasmtime import wat2wasm

from sandbox.outcome import Kind
from tests.ci.document import CI, Block, blocks, rows, section
from tests.cli.test_doctor import refusing
from tests.conftest import EXAMPLES, BuildFunction, Leftovers, Ww

LeftoversFixture = Callable[..., Leftovers]

HELLO = EXAMPLES / "hello" / "hello.wasm"
JOB = section("A job")


def shown(start: str) -> Block:
    (block,) = (b for b in blocks(JOB) if b.text.startswith(start))
    return block


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# The job


@pytest.fixture
def job(ww_account: Ww, foreign_cell: BuildFunction) -> Ww:
    """A checkout, with the script of the document, and the cell that it names."""
    ww_account.file("job.sh", shown("#!/bin/bash\n# job.sh").text.encode(), mode=0o755)
    ww_account.file("quickjs.wasm", foreign_cell("quickjs"))
    for name in ("src", "out"):
        (ww_account.tmp / name).mkdir()
    (ww_account.tmp / "src" / "good.txt").write_text("short\n")
    # The cell of root is nobody.
    ww_account.tmp.chmod(0o755)
    ww_account.root.chmod(0o755)
    (ww_account.tmp / "out").chmod(0o777)
    if not ww_account.account.is_own:
        shutil.chown(ww_account.tmp / "src", ww_account.account.uid)
        shutil.chown(ww_account.tmp / "out", ww_account.account.uid)
    return ww_account


# Ends with the code that ww has for a jail that is refused.
EXITING = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const 67))))
"""


def run_job(job: Ww, host: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    # As a service manager starts it, by execve(2): a shell would take a script without its first
    # line too.
    start = "import os; os.umask(0o022); os.execve('./job.sh', ['./job.sh'], os.environ)"
    return job.call([*host, sys.executable, "-c", start])


def test_the_job_passes_where_nothing_is_found(job: Ww) -> None:
    done = run_job(job)
    assert (done.returncode, done.stdout) == (0, b"the linter ended with 0\n"), done.stderr
    assert (job.tmp / "out" / "long.json").read_text() == "[]\n"


def test_the_job_fails_with_what_the_cell_says_and_its_events_are_those_shown(job: Ww) -> None:
    (job.tmp / "src" / "long.txt").write_text(f"{'x' * 101}\n")
    done = run_job(job)
    assert (done.returncode, done.stdout) == (1, b"the linter ended with 1\n"), done.stderr
    assert json.loads((job.tmp / "out" / "long.json").read_text()) == ["long.txt"]
    told = [json.loads(line) for line in shown('{"event"').text.splitlines()]
    found = events(job.tmp / "status.jsonl")
    for line in (*told, *found):
        # The shell's own numbers.
        line.pop("pid", None)
        line.pop("source", None)
    assert found[-1]["usage"].keys() == told[-1]["usage"].keys()
    assert found[-1].pop("usage")["cpu"] > 0 < told[-1].pop("usage")["cpu"]
    assert found == told


def test_the_job_tells_the_linters_fault_from_the_runners(job: Ww) -> None:
    (job.tmp / "quickjs.wasm").write_bytes(b"no program")
    done = run_job(job)
    assert (done.returncode, done.stdout) == (1, b"the linter is at fault: rejected\n")
    (job.tmp / "quickjs.wasm").unlink()
    done = run_job(job)
    assert (done.returncode, done.stdout) == (2, b"nothing was linted: error\n")


def test_no_cell_makes_the_code_that_is_worth_another_runner(job: Ww) -> None:
    job.file("quickjs.wasm", bytes(wat2wasm(EXITING)))
    done = run_job(job)
    assert (done.returncode, done.stdout) == (1, b"the linter ended with 67\n")
    done = run_job(job, refusing([["clone3", errno.ENOSYS]]))
    assert (done.returncode, done.stdout) == (67, b"nothing was linted: this runner refuses\n")


def test_a_job_that_is_ended_ends_its_cell_and_has_its_last_event(
    job: Ww, leftovers: LeftoversFixture
) -> None:
    # In the linter's place, a cell that never ends; and only the script is signalled.
    job.file("quickjs.wasm", LOOP)
    status = job.tmp / "status.jsonl"
    (job.tmp / "ci").mkdir()
    for name in ("status.jsonl", "ci/lint.js"):
        job.file(name, b"", mode=0o666)
    if not job.account.is_own:
        shutil.chown(job.tmp / "ci", job.account.uid)
    with leftovers(job), job.start(["bash", "./job.sh"]) as process:
        while '"start"' not in status.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        deadline = time.monotonic() + 60
        while '"exit"' not in status.read_text():
            assert time.monotonic() < deadline, "the cell goes on"
            time.sleep(0.05)
    assert (events(status)[-1]["reason"], events(status)[-1]["code"]) == ("signal", 143)


# Makes the link `leak` in its first directory, to what lies above that.
LINKING = wat2wasm("""
(module
  (import "wasi_snapshot_preview1" "path_symlink"
    (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "../.git/config") (data (i32.const 32) "leak")
  (func (export "_start")
    (if (call $symlink (i32.const 0) (i32.const 14) (i32.const 3) (i32.const 32) (i32.const 4))
      (then unreachable))))
""")


def test_links_that_a_cell_leaves_are_taken_away_by_the_line_of_the_document(ww: Ww) -> None:
    (ww.tmp / ".git").mkdir()
    (ww.tmp / ".git" / "config").write_text("token")
    (ww.tmp / "out").mkdir()
    (ww.tmp / "out").chmod(0o777)
    (ww.tmp / "out" / "kept").write_text("kept")
    done = ww.run("run", "--dir", "./out:/out:rw", ww.file("linking.wasm", bytes(LINKING)))
    assert done.returncode == 0, done.stderr
    assert (ww.tmp / "out" / "leak").read_text() == "token"
    (line,) = set(re.findall(r"find out .*-delete", CI))
    assert ww.shell(line).returncode == 0
    assert os.listdir(ww.tmp / "out") == ["kept"]


# Exit codes

TABLE = {
    (code, reason): meaning
    for codes, reasons, meaning in rows(section("Exit codes"), 3)
    for code in codes.split(", ")
    for reason in re.findall(r"`(\w+)`", reasons)
}

TRAP = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start") unreachable))'))
LOOP = bytes(
    wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))')
)


def ended(ww: Ww, *args: str | Path, host: Sequence[str] = ()) -> tuple[str, str]:
    """The exit code of a run, and the reason that its last event gives."""
    with (ww.root / "events").open("wb") as file:
        command = [*host, *ww.command, "run", "--status-fd", "9", *args]
        done = ww.call(command, fds={9: file})
    last = events(ww.root / "events")[-1]
    assert last["code"] == done.returncode
    return str(done.returncode), last["reason"]


def test_every_reason_is_in_the_table() -> None:
    # `stale` is never told: the spawner mends it.
    assert {reason for _, reason in TABLE} == {*get_args(Kind), "error"} - {"stale"}


def test_the_codes_of_the_table_are_those_of_runs(ww: Ww) -> None:
    trap = ww.file("trap.wasm", TRAP)
    found = {
        ended(ww, trap),
        ended(ww, ww.file("none.wasm", b"no program")),
        ended(ww, "--fuel", "10", HELLO),
        ended(ww, HELLO, host=refusing([["sethostname", errno.EPERM]])),
        ended(ww, "--fd", "1x=3", trap),
        ended(ww, "--fd", "x=77", trap),
        ended(ww, "./there-is-none.wasm"),
        ended(ww, "/"),
        ended(ww, "--max-size", "10", HELLO),
    }
    # Of the others: the cell's own code, a signal's, and what no cell does that is well.
    rest = {("0..255", "exit"), ("128+n", "signal"), ("67", "isolation")}
    rest |= {("1", "error"), ("1", "fault")}
    assert found | rest == set(TABLE)
    assert ended(ww, HELLO) == ("0", "exit")


def test_a_job_that_is_cancelled_has_its_last_event(ww: Ww) -> None:
    loop = ww.file("loop.wasm", LOOP)
    with (ww.root / "events").open("wb") as file:
        process = ww.start([*ww.command, "run", "--status-fd", "9", loop], fds={9: file})
    with process:
        while b'"start"' not in (ww.root / "events").read_bytes():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    last = events(ww.root / "events")[-1]
    assert (last["event"], last["reason"], last["code"]) == ("exit", "signal", 143)

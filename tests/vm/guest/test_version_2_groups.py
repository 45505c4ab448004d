"""Control groups where there is version 2 only, and a part of it is delegated to the tests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from tests.conftest import OWN_ACCOUNT, Leftovers, Ww

MOUNT = Path("/sys/fs/cgroup")
LEADER = "ww-leader"
MEBIBYTE = 1 << 20
PATIENCE = 300
"""Seconds for an answer, in a machine that is emulated on a busy one; only a hang reaches them."""

# Writes what it reads.
COPY = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 4096))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.eqz (i32.load (i32.const 8))) (then return))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br $more))))
"""


def own_group() -> Path:
    """The group that this process is in."""
    (line,) = Path("/proc/self/cgroup").read_text().splitlines()
    return MOUNT / line.removeprefix("0::/")


def base() -> Path:
    """The group that was delegated: a ww that runs now may have moved the tests below it."""
    own = own_group()
    return own.parent if own.name == LEADER else own


@contextmanager
def running(ww: Ww, cell: Path, *flags: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A cell that waits for its input, and its group."""
    before = {entry.name for entry in base().iterdir()}
    command: tuple[str | Path, ...] = ("run", "--require", "cgroup", *flags, cell)
    with ww.popen(*command, stdin=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x\n")
            process.stdin.flush()
            assert process.stdout.read(2) == b"x\n", process.communicate()
            new = [
                entry
                for entry in base().glob("ww-*")
                if entry.name not in {*before, LEADER} and _descends(entry, process.pid)
            ]
            assert len(new) == 1, new
            yield new[0], process
        finally:
            process.kill()


def _descends(group: Path, ancestor: int) -> bool:
    """Whether what is in a group was started by a process: others test at the same time."""
    for pid in map(int, (group / "cgroup.procs").read_text().split()):
        while pid > 1:
            if pid == ancestor:
                return True
            try:
                text = Path(f"/proc/{pid}/stat").read_text()
            except FileNotFoundError:
                break
            pid = int(text.rpartition(")")[2].split()[1])
    return False


@pytest.fixture
def copy(ww: Ww) -> Path:
    return ww.file("copy.wasm", bytes(wasmtime.wat2wasm(COPY)))


def features(ww: Ww) -> dict[str, dict[str, Any]]:
    return {
        row["feature"]: row
        for row in json.loads(ww.run("doctor", "--json", timeout=PATIENCE).stdout)
    }


def test_this_machine_has_version_2_only() -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kinds = [line.split(" - ")[1].split()[0] for line in lines]
    assert kinds.count("cgroup2") == 1
    assert "cgroup" not in kinds
    assert {"memory", "pids"} <= set((base() / "cgroup.controllers").read_text().split())


@pytest.mark.parametrize("name", ["cgroup memory", "cgroup pids", "landlock", "cell"])
def test_ww_doctor_finds_what_the_machine_has(ww: Ww, name: str) -> None:
    row = features(ww)[name]
    assert row["status"] == "ok"
    if name.startswith("cgroup"):
        assert f"{name.split()[1]}: version 2, in {MOUNT}/" in row["detail"]


def test_a_cell_is_limited_by_a_group_of_its_own(ww: Ww, copy: Path) -> None:
    with running(ww, copy, "--memory", "64M", "--pids", "5") as (group, _):
        assert len((group / "cgroup.procs").read_text().split()) >= 1
        assert (group / "pids.max").read_text() == "5\n"
        assert (group / "memory.swap.max").read_text() == "0\n"
        assert (group / "memory.oom.group").read_text() == "1\n"
        # The cell's, and what is there for the host.
        limit = int((group / "memory.max").read_text())
        assert 64 * MEBIBYTE < limit < 1024 * MEBIBYTE
        assert 0 < int((group / "memory.current").read_text()) < limit


def test_nobody_else_may_look_into_a_cells_group(ww: Ww, copy: Path) -> None:
    with running(ww, copy) as (group, _):
        found = group.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o700)


def test_the_group_goes_with_the_cell(ww: Ww, copy: Path, leftovers: type[Leftovers]) -> None:
    with leftovers(ww), running(ww, copy) as (group, process):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        assert not group.exists()


def test_the_group_goes_when_ww_is_killed(ww: Ww, copy: Path, leftovers: type[Leftovers]) -> None:
    with leftovers(ww):
        with running(ww, copy) as (group, process):
            process.kill()
            process.wait(PATIENCE)
        # What nobody removed, the next one does.
        assert ww.run("run", copy, timeout=PATIENCE).returncode == 0
        assert not group.exists()


def test_what_the_kernel_kills_for_want_of_memory_is_named(ww: Ww, copy: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as events, os.fdopen(writer, "wb") as status:
        with ww.popen(
            *("run", "--require", "cgroup", "--status-fd", "3", copy),
            stdin=subprocess.PIPE,
            fds={3: status},
        ) as process:
            status.close()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x\n")
            process.stdin.flush()
            assert process.stdout.read(2) == b"x\n"
            (group,) = (g for g in base().glob("ww-[0-9]*") if _descends(g, process.pid))
            # Less than it has: the next page that it touches is one too many.
            (group / "memory.max").write_text("0")
            _, errors = process.communicate(b"y" * 65536, timeout=PATIENCE)
        (end,) = (e for e in map(json.loads, events) if e["event"] == "exit")
    assert (process.returncode, end["reason"], end["limit"]) == (66, "limit", "host-memory")
    assert errors.count(b"\n") == 1


def test_cells_of_two_runs_do_not_share_a_group(ww: Ww, copy: Path) -> None:
    with running(ww, copy) as (one, _), running(ww, copy) as (other, _):
        assert one != other
        assert not set((one / "cgroup.procs").read_text().split()) & set(
            (other / "cgroup.procs").read_text().split()
        )


def test_a_server_keeps_the_room_that_another_ww_made(ww: Ww, copy: Path) -> None:
    path = str(ww.tmp / "socket")

    def served() -> bool:
        """Whether the server ran a cell, in a control group."""
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as events, os.fdopen(writer, "wb") as status:
            done = ww.run(
                *("run", "--require", "cgroup", "--status-fd", "3", str(copy)),
                fds={3: status},
                env={"WW_SOCKET": path},
                timeout=PATIENCE,
            )
            status.close()
            assert done.returncode == 0, done.stderr
            return any(json.loads(line)["event"] == "server" for line in events)

    with ExitStack() as stack:
        with running(ww, copy) as (_, process):
            # It comes to the leader that the other has made.
            server = stack.enter_context(ww.popen("serve", "--socket", path, "--jails", "0"))
            stack.callback(server.terminate)
            while not served():
                assert server.poll() is None
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        # The other has left, and a cell can still be given a group.
        assert served()


@pytest.mark.skipif(OWN_ACCOUNT.uid == 0, reason="of the manager of an ordinary user")
@pytest.mark.parametrize("kind", ["--scope", "--pipe"])
def test_the_command_that_ww_doctor_tells_to_use_works(ww: Ww, copy: Path, kind: str) -> None:
    bus = {key: os.environ[key] for key in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")}
    settings = [f"--setenv={key}={value}" for key, value in ww.environment().items()]
    wait = [] if kind == "--scope" else ["--wait", *settings]
    done = ww.call(
        [
            *("systemd-run", "--quiet", "--user", kind, *wait, "-p", "Delegate=yes"),
            *ww.command,
            *("run", "--require", "cgroup", str(copy)),
        ],
        env=bus,
        stdin=b"x\n",
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x\n", b"")


@pytest.mark.skipif(OWN_ACCOUNT.uid == 0, reason="of the manager of an ordinary user")
def test_a_group_that_is_not_delegated_is_left_alone(ww: Ww, copy: Path) -> None:
    bus = {key: os.environ[key] for key in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")}
    script = f'cat & {" ".join(ww.command)} run --require cgroup {copy}; echo "status=$?"; kill %1'
    done = ww.call(
        ["systemd-run", "--quiet", "--user", "--scope", "bash", "-c", script], env=bus, stdin=b""
    )
    assert b"status=67" in done.stdout
    assert done.stderr.startswith(b"ww: error: jail: cgroup: ")

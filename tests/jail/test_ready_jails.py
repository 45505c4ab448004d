"""Jails that were made in advance: the same, sooner, and nothing of one cell in the next."""

import hashlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import wasmtime

from sandbox import Grant, Limits, Outcome, Plan, Spawner, SpawnerError, cgroups, client
from sandbox.limits import HOST_MEMORY
from tests.conftest import EXAMPLES, BuildFunction
from tests.features import lacks
from tests.jail.inside import JAIL, name_of, zygote_of
from tests.probes.variant import BEGIN

HELLO = EXAMPLES / "hello" / "hello.wasm"
PATIENCE = 60
NOBODY = 65534
JAILS = 3
LIMITS = Limits()


@contextmanager
def spawner(cache: Path, patch: str = "", jails: int = JAILS) -> Iterator[Spawner]:
    """A spawner that keeps jails ready, and runs `patch` before it begins."""
    boot = client._BOOT
    assert BEGIN in boot
    client._BOOT = boot.replace(BEGIN, f"{patch}\n{BEGIN}")
    try:
        started = Spawner.start(str(cache), jails=jails)
    finally:
        client._BOOT = boot
    try:
        yield started
    finally:
        started.close()


def plan_for(code: bytes, *args: str, limits: Limits = LIMITS, link: bool = False) -> Plan:
    uid = os.geteuid() or NOBODY
    grants = [Grant(number, None, "w" if number else "r", "file") for number in range(3)]
    if link:
        grants.append(Grant(9, "linked", "r", "file", pathlink=True))
    return Plan(
        grants=tuple(grants),
        argv=("cell", *args),
        env=(),
        uid=uid,
        gid=uid if os.geteuid() == 0 else os.getegid(),
        digest=hashlib.sha256(code).hexdigest(),
        limits=limits,
    )


def run(started: Spawner, plan: Plan, code: bytes) -> tuple[Outcome, bytes]:
    """How a cell ends that is run there, and what it writes to 1."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    cell, output = os.memfd_create("code"), os.memfd_create("output")
    try:
        os.write(cell, code)
        os.lseek(cell, 0, os.SEEK_SET)
        sources = [output if grant.target == 1 else null for grant in plan.grants]
        outcome = started.run(plan, cell, sources)
        return outcome, os.pread(output, 1 << 20, 0)
    finally:
        for fd in (null, cell, output):
            os.close(fd)


def children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def waiting(started: Spawner) -> list[int]:
    """The processes of the jails that wait."""
    return [pid for pid in children(started.pid) if name_of(pid) == JAIL]


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(started: Spawner, jails: int = JAILS) -> list[int]:
    until(lambda: len(waiting(started)) == jails)
    found = waiting(started)
    time.sleep(0.3)  # until they sleep; nothing depends on it but what a test meets
    return found


def test_a_cell_takes_a_jail_that_waited_and_another_takes_its_place(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path) as started:
        outcome, _ = run(started, plan_for(code), code)  # compiled
        before = fill(started)
        outcome, said = run(started, plan_for(code), code)
        assert (outcome.kind, outcome.code) == ("exit", 0)
        assert said.startswith(b"Hello from a cell.\n")
        until(lambda: len(waiting(started)) == JAILS)
        after = waiting(started)
    assert len(set(before) & set(after)) == JAILS - 1


@pytest.mark.parametrize("link", [False, True])
def test_it_holds_what_the_plan_says_and_nothing_else(
    tmp_path: Path, native_probe: BuildFunction, link: bool
) -> None:
    import json

    from tests.probes.variant import BARE, NATIVE

    code = native_probe("probe").read_bytes()
    patch = NATIVE + BARE
    found = []
    for jails in (0, JAILS):
        with spawner(tmp_path / str(jails), patch, jails) as started:
            if jails:
                fill(started)
            outcome, said = run(started, plan_for(code, "report", link=link), code)
            assert outcome.kind in ("exit", "fault"), outcome
            placed, _, rest = said.partition(b"\n")
            found.append([json.loads(placed), json.loads(rest)])
    fresh, ready = found
    assert len(fresh) == len(ready) == 2
    for one, other in zip(fresh, ready, strict=True):
        differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        # Each has namespaces and a keyring of its own; ww's own descriptors are at other numbers.
        own = {"namespaces", "session_keyring", "own", "flags", "fds", "rlimits"}
        assert differing <= own | {"boottime", "monotonic"}, differing
        limits = zip(one.get("rlimits", {}).items(), other.get("rlimits", {}).items(), strict=True)
        assert {a[0] for a, b in limits if a != b} <= {"NOFILE", "DATA"}
        for table in {"flags", "fds"} & one.keys():
            assert len(one[table]) == len(other[table])


SECRET = "the-first-cells-own-words"


def test_nothing_of_one_cell_is_in_the_jail_of_the_next(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path) as started:
        for _ in range(3 * JAILS):
            assert run(started, plan_for(code, SECRET), code)[0].kind == "exit"
        for pid in (*fill(started), zygote_of(started.pid)):
            assert SECRET.encode() not in memory(pid)
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            kinds = {name.split(":")[0] for name in held}
            assert kinds <= {"/dev/null", "socket", "mnt", "/proc", "/", f"/proc/{pid}/fd"} | {
                name for name in kinds if name.endswith("/fd")
            }
        assert SECRET.encode() in memory(started.pid)  # it would be found


def memory(pid: int) -> bytes:
    """All that a process can write of its memory, but for what it only reserves."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in maps:
            addresses, rights, *_ = line.split()
            start, end = (int(number, 16) for number in addresses.split("-"))
            if rights.startswith("rw") and end - start < 1 << 28:
                with suppress(OSError):
                    file.seek(start)
                    found += file.read(end - start)
    return found


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory=64 << 20, pids=3),
        Limits(memory=4 << 30, pids=200),
        Limits(memory=None, scratch=1 << 20),
        Limits(wall=None, cpu=None, output=None, fuel=None),
    ],
)
def test_limits_that_are_known_late_hold_all_the_same(tmp_path: Path, limits: Limits) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path) as started:
        run(started, plan_for(code), code)
        fill(started)
        outcome, said = run(started, plan_for(code, limits=limits), code)
    assert (outcome.kind, said[:5]) == ("exit", b"Hello")


@pytest.mark.parametrize("number", [0, -1, (1 << 32) - 1, 1 << 32, 1 << 33, 1 << 64])
def test_no_cell_runs_as_an_id_that_the_kernel_takes_for_roots(tmp_path: Path, number: int) -> None:
    # Of a number the kernel takes the lower 32 bits.
    code = HELLO.read_bytes()
    with spawner(tmp_path, jails=0) as started:
        plans = [plan_for(code)._replace(uid=number), plan_for(code)._replace(gid=number)]
        # An ordinary user's group may be that one.
        for plan in plans[:1] if number == 0 and os.geteuid() else plans:
            outcome, said = run(started, plan, code)
            assert (outcome.kind, outcome.step, said) == ("jail", "id maps", b"")


def test_a_stopped_jail_does_not_suspend_the_time_limit(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path, jails=1) as started:
        run(started, plan_for(code), code)
        (jail,) = fill(started, 1)
        os.kill(jail, signal.SIGSTOP)
        # More than its connection holds.
        plan = plan_for(code, *["x" * (1 << 16)] * 32, limits=LIMITS._replace(wall=1.0))
        outcome, _ = run(started, plan, code)
    assert (outcome.kind, outcome.limit) == ("limit", "wall")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_zygote_that_does_not_answer_keeps_nobody_waiting_for_ever(
    tmp_path: Path, number: int
) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path, jails=0) as started:
        run(started, plan_for(code), code)
        os.kill(zygote_of(started.pid), number)
        begun = time.monotonic()
    # It was stopped in the middle of nothing, and the spawner ends by itself or is killed.
    assert time.monotonic() - begun < PATIENCE
    assert not os.path.exists(f"/proc/{started.pid}/exe")


# As if a clone came to be, and the zygote to its end before it could tell.
DYING = """
import os, signal
from sandbox import zygote
clone = zygote.syscalls.fork_into
def dying(*args, **options):
    pid, pidfd = clone(*args, **options)
    if pid:
        os.kill(os.getpid(), signal.SIGKILL)
    return pid, pidfd
zygote.syscalls.fork_into = dying
"""


def test_a_zygote_that_dies_over_a_clone_ends_the_spawner_and_the_clone(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path, DYING, jails=0) as started:
        with pytest.raises(SpawnerError):
            run(started, plan_for(code), code)
        until(lambda: not os.path.exists(f"/proc/{started.pid}/exe"))


# Reads from its standard input, and ends.
READING = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 4) (i32.const 16))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32)))))"""


def group_limits(pid: int) -> tuple[int, int]:
    """The limits of memory and of processes of the control groups that a process is in."""
    files = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name, (one, two) in files.items():
            if name in controllers.split(","):
                found[name] = Path(f"/sys/fs/cgroup/{name}{path}/{one}")
            elif not controllers and Path(f"/sys/fs/cgroup{path}/{two}").exists():
                found.setdefault(name, Path(f"/sys/fs/cgroup{path}/{two}"))
    return int(found["memory"].read_text()), int(found["pids"].read_text())


@pytest.mark.parametrize("memory", [64 << 20, 3 << 30], ids=["less", "more"])
def test_the_control_group_of_a_jail_made_in_advance_gets_the_plans_limits(
    tmp_path: Path, memory: int
) -> None:
    if not cgroups.available():
        lacks("cgroup", f"no control group can be made: {cgroups.reason()}")
    code = bytes(wasmtime.wat2wasm(READING))
    plan = plan_for(code, limits=LIMITS._replace(memory=memory, pids=5))
    null, cell = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), os.memfd_create("code")
    os.write(cell, code)
    os.lseek(cell, 0, os.SEEK_SET)
    seen = []
    with spawner(tmp_path) as started:
        started.compile(plan, cell)
        before = fill(started)
        reader, writer = os.pipe()

        def look() -> None:
            (pid,) = (pid for pid in before if name_of(pid) == "cell")
            seen.append(group_limits(pid))
            os.close(writer)

        outcome = started.run(plan, cell, [reader, null, null], look)
    for fd in (null, cell, reader):
        os.close(fd)
    assert outcome.kind == "exit"
    assert seen == [(memory + HOST_MEMORY, 5)]


REFUSED = """
from sandbox.wasi.cell import CellHost
def refuse(self, null):
    raise OSError(12, "Cannot allocate memory")
CellHost.rehearse = refuse
"""


def test_where_none_can_be_made_in_advance_a_cell_gets_its_own(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path, REFUSED) as started:
        outcome, said = run(started, plan_for(code), code)
        assert (outcome.kind, said[:5]) == ("exit", b"Hello")
        until(lambda: waiting(started) == [])


def test_one_that_died_while_it_waited_is_passed_over(tmp_path: Path) -> None:
    code = HELLO.read_bytes()
    with spawner(tmp_path) as started:
        run(started, plan_for(code), code)
        for pid in fill(started)[:-1]:
            os.kill(pid, signal.SIGKILL)
            dead = os.pidfd_open(pid)
            assert select.select([dead], [], [], PATIENCE)[0]
            os.close(dead)
        outcome, said = run(started, plan_for(code), code)
        assert (outcome.kind, said[:5]) == ("exit", b"Hello")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_the_spawner(tmp_path: Path, number: int) -> None:
    with spawner(tmp_path) as started:
        pids: Sequence[int] = [*fill(started), zygote_of(started.pid)]
        os.kill(started.pid, number)
        # Who adopts them may not have waited for them yet: then they have a name and no program.
        until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids))

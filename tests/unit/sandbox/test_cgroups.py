"""Control groups of cells: what they limit, and that none is left.

The groups are real, of whichever version this machine lets us make. What version 2 files hold is
tested with plain directories as well, because few machines have both versions.
"""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import prctl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import cgroups, delegation, hierarchies, namespaces, syscalls
from sandbox.cgroups import Cgroup, Place
from sandbox.hierarchies import Group
from tests.conftest import REPO, Account
from tests.features import lacks

MEMORY = 64 << 20
PIDS = 8


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Where groups can be made; nothing of ours is there before and after the tests."""
    if not cgroups.available():
        lacks("cgroup", f"no control group can be made: {cgroups.reason()}")
    found = cgroups._own_room().place
    assert found is not None
    yield found
    assert ours(found) == []
    # As if this process had ended.
    delegation._follower = 0
    cgroups.sweep()
    cgroups._room = None


@pytest.fixture
def cgroup(place: Place) -> Iterator[Cgroup]:
    """A group with limits, which is gone afterwards."""
    made = Cgroup.create(MEMORY, PIDS)
    assert made is not None
    assert len(ours(place)) == len({place.memory, place.pids})
    try:
        yield made
    finally:
        assert made.remove()
        assert ours(place) == []


def ours(place: Place, *spawners: int) -> list[str]:
    """The names of the groups of some spawners, or of this process; others may be at work here."""
    found = []
    for group in {place.memory, place.pids}:
        for name in os.listdir(group.fd):
            match = cgroups._NAME.fullmatch(name)
            if match and int(match[2]) in (spawners or (os.getpid(),)):
                found.append(name)
    return found


def in_child(cgroup: Cgroup, body: Callable[[], object]) -> tuple[int, int]:
    """Run a function in a child that is in a group; return its pid and a descriptor of it."""
    pid, pidfd = syscalls.fork_into(0, cgroup.clone_into)
    if pid == 0:
        try:
            prctl.set_pdeathsig(signal.SIGKILL)
            cgroups.join(cgroup.joins)
            body()
        finally:
            os._exit(0)
    return pid, pidfd


def end(pid: int, pidfd: int) -> int:
    """Wait for a child; return how it ended."""
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)


def use_memory(size: int) -> None:
    data = bytearray(size)
    for at in range(0, size, 4096):
        data[at] = 1


def fork_bomb() -> None:
    while True:
        with suppress(OSError):
            os.fork()


def members(place: Place) -> set[str]:
    """The processes in our groups."""
    found: set[str] = set()
    for group in {place.memory, place.pids}:
        for name in ours(place):
            with suppress(FileNotFoundError):
                found.update(Path(f"{group.path}/{name}/cgroup.procs").read_text().split())
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- one group -----------------------------------------------------------------------------------


def test_a_child_joins_before_it_does_anything(cgroup: Cgroup, place: Place) -> None:
    read, write = os.pipe()

    def body() -> None:
        os.write(write, b"x")
        signal.pause()

    child = in_child(cgroup, body)
    os.read(read, 1)
    try:
        assert members(place) == {str(child[0])}
    finally:
        os.kill(child[0], signal.SIGKILL)
        end(*child)
        os.close(read)
        os.close(write)


def test_a_child_in_new_namespaces_joins(cgroup: Cgroup, place: Place) -> None:
    read, write = os.pipe()
    pid, pidfd = syscalls.fork_into(namespaces.flags(), cgroup.clone_into)
    if pid == 0:
        try:
            cgroups.join(cgroup.joins)
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert os.read(read, 1) == b"x"
        assert members(place) == {str(pid)}
    finally:
        os.kill(pid, signal.SIGKILL)
        end(pid, pidfd)
        os.close(read)


def test_a_process_is_added(cgroup: Cgroup, place: Place) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        cgroup.add(process.pid)
        assert members(place) == {str(process.pid)}
        process.kill()


def test_nobody_is_added_that_does_not_exist(cgroup: Cgroup) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(ProcessLookupError):
            cgroup.add(process.pid)


def test_a_cell_within_its_limits_is_not_told_of(cgroup: Cgroup) -> None:
    assert end(*in_child(cgroup, lambda: use_memory(MEMORY // 4))) == 0
    assert not cgroup.oom_killed()
    assert not cgroup.pids_exceeded()
    peak = cgroup.peak_memory()
    assert peak is None or MEMORY // 4 <= peak <= MEMORY


def test_who_takes_too_much_memory_is_killed_and_told_of(cgroup: Cgroup) -> None:
    assert end(*in_child(cgroup, lambda: use_memory(2 * MEMORY))) == -signal.SIGKILL
    assert cgroup.oom_killed()
    assert not cgroup.pids_exceeded()


def test_files_in_memory_count(cgroup: Cgroup) -> None:
    def body() -> None:
        fd = os.memfd_create("test")
        for _ in range(2 * MEMORY >> 20):
            os.write(fd, bytes(1 << 20))

    assert end(*in_child(cgroup, body)) == -signal.SIGKILL
    assert cgroup.oom_killed()


def test_a_fork_bomb_is_stopped_and_told_of(cgroup: Cgroup, place: Place) -> None:
    child = in_child(cgroup, fork_bomb)
    wait_for(cgroup.pids_exceeded)
    assert 0 < len(members(place)) <= PIDS
    assert not cgroup.oom_killed()
    # What it left is in the group still; removal ends it.
    os.kill(child[0], signal.SIGKILL)
    end(*child)


def test_a_fork_bomb_is_removed_while_it_goes_on(cgroup: Cgroup, place: Place) -> None:
    child = in_child(cgroup, fork_bomb)
    wait_for(cgroup.pids_exceeded)
    assert cgroup.remove()
    assert ours(place) == []
    assert end(*child) == -signal.SIGKILL


def test_the_limit_of_processes_can_be_polled_for_in_version_2(
    cgroup: Cgroup, place: Place
) -> None:
    events = cgroup.pids_events
    if place.version == 1:
        assert events is None
        return
    assert events is not None
    poller = select.poll()
    poller.register(events, select.POLLPRI)
    assert poller.poll(0) == []
    child = in_child(cgroup, fork_bomb)
    assert poller.poll(10_000)
    assert cgroup.pids_exceeded()
    os.kill(child[0], signal.SIGKILL)
    end(*child)


def test_a_stopped_process_is_removed(cgroup: Cgroup, place: Place) -> None:
    child = in_child(cgroup, signal.pause)
    wait_for(lambda: members(place))
    os.kill(child[0], signal.SIGSTOP)
    assert cgroup.remove()
    assert end(*child) == -signal.SIGKILL


@pytest.mark.parametrize(("memory", "pids"), [(None, None), (MEMORY, None), (None, PIDS)])
def test_what_is_not_limited_is_not_told_of(
    place: Place, memory: int | None, pids: int | None
) -> None:
    made = Cgroup.create(memory, pids)
    assert made is not None
    assert end(*in_child(made, lambda: None)) == 0
    assert not made.oom_killed()
    assert not made.pids_exceeded()
    assert made.remove()
    assert ours(place) == []


def test_groups_take_no_descriptors_with_them(place: Place) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        made = Cgroup.create(MEMORY, PIDS)
        assert made is not None
        assert made.remove()
    cgroups.sweep()
    assert os.listdir("/proc/self/fd") == before


def test_a_limit_that_the_kernel_refuses_leaves_nothing(place: Place) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"memory\.(max|limit_in_bytes)"):
        Cgroup.create(-5, PIDS)
    assert ours(place) == []
    assert os.listdir("/proc/self/fd") == before


def test_removal_gives_up_on_what_cannot_be_removed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_PATIENCE", 0.1)
    made = Cgroup.create(MEMORY, PIDS)
    assert made is not None
    (name,) = set(ours(place))
    inside = [f"{g.path}/{name}/inside" for g in {place.memory, place.pids}]
    for path in inside:
        os.mkdir(path)
    began = time.monotonic()
    assert not made.remove()
    assert time.monotonic() - began < 30
    for path in inside:
        os.rmdir(path)
        os.rmdir(os.path.dirname(path))
    assert ours(place) == []


# --- what dead spawners left ---------------------------------------------------------------------


def make_named(place: Place, name: str) -> Iterator[Path]:
    for group in {place.memory, place.pids}:
        path = Path(group.path, name)
        path.mkdir()
        yield path


def name_of(pid: int, *, later: int = 0, space: int | None = None) -> str:
    """The name of a group that a process could have made."""
    began = cgroups._stat(str(pid)).began + later
    return f"ww-{space or cgroups._pid_namespace()}-{pid}-{began}-1"


def test_what_a_dead_spawner_left_is_swept(place: Place) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        name = name_of(process.pid)
        left = list(make_named(place, name))
        cgroups.sweep()
        assert all(path.is_dir() for path in left)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # Nobody waited for it yet, so its number is still taken.
        cgroups.sweep()
    assert not any(path.exists() for path in left)


def test_a_spawner_whose_number_was_taken_by_another_is_dead(place: Place) -> None:
    left = list(make_named(place, name_of(os.getpid(), later=-7)))
    cgroups.sweep()
    assert not any(path.exists() for path in left)


def test_what_a_dead_spawner_s_cell_still_does_is_ended(place: Place) -> None:
    with subprocess.Popen(["sleep", "100"]) as cell:
        left = list(make_named(place, name_of(os.getpid(), later=-7)))
        for path in left:
            (path / "cgroup.procs").write_text(str(cell.pid))
        cgroups.sweep()
        assert not any(path.exists() for path in left)
        assert cell.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "name",
    [
        "ww-1-1-1",
        "ww-1-2-3-4-5",
        "ww-1-2-3-x",
        "ww--1-2-3-4",
        "xww-1-2-3-4",
        "ww-1-2-3-4x",
        "ww-test-1",
    ],
)
def test_other_names_are_not_ours_to_remove(place: Place, name: str) -> None:
    left = list(make_named(place, name))
    try:
        cgroups.sweep()
        assert all(path.is_dir() for path in left)
    finally:
        for path in left:
            path.rmdir()


def test_another_pid_namespace_s_are_not_ours_to_judge(place: Place) -> None:
    name = name_of(os.getpid(), later=-7, space=1)
    left = list(make_named(place, name))
    try:
        cgroups.sweep()
        assert all(path.is_dir() for path in left)
    finally:
        for path in left:
            path.rmdir()


def test_a_process_that_is_not_ours_to_signal_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert cgroups._lives(1, 0)


# A spawner as far as its groups are concerned: makes one after the other, each with a process.
SPAWNER = """
import os, signal, sys
import prctl
from sandbox import cgroups, syscalls
prctl.set_pdeathsig(signal.SIGKILL)
rounds = int(sys.argv[1])
print("ready", cgroups.available(), flush=True)
for _ in range(rounds):
    made = cgroups.Cgroup.create(64 << 20, 8)
    read, write = os.pipe()
    pid, pidfd = syscalls.fork_into(0, made.clone_into)
    if pid == 0:
        cgroups.join(made.joins)
        os.write(write, b"x")
        signal.pause()
    if os.read(read, 1) != b"x":
        raise SystemExit("the cell did not start")
    for fd in (read, write, pidfd):
        os.close(fd)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not made.remove():
        raise SystemExit("the group stayed")
"""


def start_spawner(rounds: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", SPAWNER, str(rounds)],
        stdout=subprocess.PIPE,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )


def test_spawners_do_not_touch_each_other_s(place: Place) -> None:
    spawners = [start_spawner(150) for _ in range(2)]
    try:
        while any(process.poll() is None for process in spawners):
            cgroups.sweep()
        assert [process.returncode for process in spawners] == [0, 0]
    finally:
        for process in spawners:
            process.kill()
            process.communicate()
    assert ours(place, *(process.pid for process in spawners)) == []


def test_nothing_is_left_of_a_spawner_that_is_killed_at_any_moment(place: Place) -> None:
    seen = False
    for _ in range(15):
        with start_spawner(10**6) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"ready")
            time.sleep(random.uniform(0, 0.02))
            process.kill()
        seen = seen or bool(ours(place, process.pid))
        cgroups.sweep()
        assert ours(place, process.pid) == []
    assert seen


# --- where there is none -------------------------------------------------------------------------

NONE = """
from sandbox import cgroups
assert cgroups.Cgroup.create(64 << 20, 8) is None, "there is one"
assert cgroups.available() == ()
cgroups.sweep()
print(cgroups.reason())
"""


def test_without_a_group_of_its_own_an_account_gets_none(ordinary_account: Account) -> None:
    with ordinary_account.popen(
        [sys.executable, "-c", NONE],
        env={"PYTHONPATH": str(REPO)},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        out, err = process.communicate()
    if b"there is one" in err:
        pytest.skip("this account has a control group that it may divide")
    assert process.returncode == 0, err
    # The last is a group inside of one that root keeps to itself, as a leader is.
    words = (b"not writable", b"no controller", b"delegated", b"Permission denied")
    assert any(word in out for word in words), out


def test_a_group_of_version_2_that_cannot_be_opened_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shut = hierarchies.Standing(None, {}, "/sys/fs/cgroup/a: Permission denied")
    monkeypatch.setattr(hierarchies, "stand", lambda names: shut)
    monkeypatch.setattr(cgroups, "_room", None)
    assert Cgroup.create(MEMORY, PIDS) is None
    assert cgroups.reason() == "version 2: /sys/fs/cgroup/a: Permission denied"


def test_where_proc_says_nothing_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text("")
    (tmp_path / "mountinfo").write_text("")
    stand = hierarchies.stand
    monkeypatch.setattr(hierarchies, "stand", lambda names: stand(names, str(tmp_path)))
    monkeypatch.setattr(cgroups, "_room", None)
    assert Cgroup.create(MEMORY, PIDS) is None
    assert cgroups.reason() == "version 1: not mounted for memory, pids"
    (tmp_path / "cgroup").unlink()
    monkeypatch.setattr(cgroups, "_room", None)
    assert Cgroup.create(MEMORY, PIDS) is None
    assert "No such file" in cgroups.reason()


# --- version 2 by plain directories --------------------------------------------------------------

V2_FILES = (
    "cgroup.procs",
    "memory.events",
    "memory.max",
    "memory.oom.group",
    "memory.peak",
    "memory.swap.max",
    "pids.events",
    "pids.max",
)


class FakeV2:
    """Directories that have the files which the kernel would put there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lacks: set[str] = set()
        self._folder = folder
        group = Group(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), str(folder))
        self.place = Place(2, group, group)
        mkdir, rmdir = os.mkdir, os.rmdir

        def make(name: str, mode: int, *, dir_fd: int) -> None:
            mkdir(name, mode, dir_fd=dir_fd)
            for file in set(V2_FILES) - self.lacks:
                (folder / name / file).touch()

        monkeypatch.setattr(os, "mkdir", make)

        def remove(name: str, *, dir_fd: int) -> None:
            for file in (folder / name).iterdir():
                file.unlink()
            rmdir(name, dir_fd=dir_fd)

        monkeypatch.setattr(os, "rmdir", remove)

    def create(self, memory: int | None, pids: int | None) -> Cgroup:
        made = Cgroup.create(memory, pids, self.place)
        assert made is not None
        return made

    def file(self, name: str) -> Path:
        (folder,) = self._folder.iterdir()
        return folder / name


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeV2]:
    fake = FakeV2(tmp_path, monkeypatch)
    yield fake
    os.close(fake.place.memory.fd)


def test_v2_limits_are_written(v2: FakeV2) -> None:
    made = v2.create(MEMORY, PIDS)
    written = {name: v2.file(name).read_text() for name in V2_FILES}
    assert {name: text for name, text in written.items() if text} == {
        "memory.max": str(MEMORY),
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "pids.max": str(PIDS),
    }
    assert made.clone_into is not None
    assert made.remove()


def test_v2_no_limit_is_not_written(v2: FakeV2) -> None:
    made = v2.create(None, None)
    assert not any(v2.file(name).read_text() for name in V2_FILES)
    assert made.pids_events is None
    assert made.remove()


def test_v2_a_kernel_that_does_not_count_swap_will_do(v2: FakeV2) -> None:
    v2.lacks.add("memory.swap.max")
    assert v2.create(MEMORY, PIDS).remove()


def test_v2_events_are_read(v2: FakeV2) -> None:
    made = v2.create(MEMORY, PIDS)
    assert (made.oom_killed(), made.pids_exceeded()) == (False, False)
    v2.file("memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\n")
    v2.file("pids.events").write_text("max 0\n")
    assert (made.oom_killed(), made.pids_exceeded()) == (False, False)
    v2.file("memory.events").write_text("oom 3\noom_kill 1\noom_group_kill 1\n")
    v2.file("pids.events").write_text("max 2\n")
    assert (made.oom_killed(), made.pids_exceeded()) == (True, True)
    assert made.peak_memory() is None
    v2.file("memory.peak").write_text("4096\n")
    assert made.peak_memory() == 4096
    assert made.remove()


@given(st.binary() | st.lists(st.binary()).map(b" ".join))
def test_a_count_is_read_where_there_is_one(text: bytes) -> None:
    with suppress(ValueError):
        assert cgroups._count(text, "max") >= 0 or b"-" in text

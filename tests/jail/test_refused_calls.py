"""A kernel that refuses a call of the set-up: the cell does not run, and the step is named.

The call is refused to the whole of ww by a filter that it inherits; see tests/probes/refuse.py.
Left out are the calls without which ww itself does not get that far: setsid(2) and prlimit(2) are
those of its start as well, socketpair(2) and memfd_create(2) of the runner.
"""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CAN_BE_ROOT, EXAMPLES, PROBES, Leftovers, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"
LeftoversFixture = Callable[..., Leftovers]
Rule = list[str | int]

# include/uapi/linux/prctl.h; a condition is met by options that have more bits, too.
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 4, 24, 28, 38
PR_CAP_AMBIENT = 47

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
    (["mkdirat", errno.ENOSPC], "root"),
    (["symlinkat", errno.ENOSPC], "root"),
    (["move_mount", errno.EPERM], "attach root"),
    (["pivot_root", errno.EINVAL], "pivot_root"),
    (["umount2", errno.EBUSY], "pivot_root"),
    (["mount_setattr", errno.EPERM], "read-only root"),
    (["mount_setattr", errno.ENOSYS], "read-only root"),
    (["sethostname", errno.EPERM], "session"),
    (["keyctl", errno.EDQUOT], "session"),
    (["prctl", errno.EINVAL, 0, PR_SET_DUMPABLE], "session"),
    (["personality", errno.EPERM], "code"),
    # No memory may be made executable, as under MemoryDenyWriteExecute= of systemd.
    (["mprotect", errno.EACCES, 2, 4], "spawner"),
    (["prctl", errno.EPERM, 0, PR_CAPBSET_DROP], "privileges"),
    (["prctl", errno.EPERM, 0, PR_SET_SECUREBITS], "privileges"),
    (["prctl", errno.EINVAL, 0, PR_SET_NO_NEW_PRIVS], "privileges"),
    (["prctl", errno.EINVAL, 0, PR_CAP_AMBIENT], "privileges"),
    (["capset", errno.EPERM], "privileges"),
    (["landlock_create_ruleset", errno.EPERM], "landlock"),
    (["landlock_add_rule", errno.ENOMEM], "landlock"),
    (["landlock_restrict_self", errno.E2BIG], "landlock"),
    (["fchdir", errno.EACCES], "attach root"),
    (["seccomp", errno.EINVAL], "seccomp"),
    (["seccomp", errno.ENOSYS], "seccomp"),
]


def refusing(ww: Ww, *rules: Rule) -> list[str]:
    return [sys.executable, str(PROBES / "refuse.py"), json.dumps(rules), *ww.command]


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
    calls = ["open_tree"] if ww_account.account.uid == 0 else ["open_tree", "openat2"]
    for call in calls:
        with leftovers(ww_account):
            command = refusing(ww_account, [call, number])
            done = ww_account.call([*command, "run", "--dir", "/", HELLO])
        assert_closed(done.returncode, done.stdout, done.stderr, "directories")


@pytest.mark.skipif(not CAN_BE_ROOT, reason="only root has groups that it must drop")
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
    here = {step for _, step in STEPS} | {"directories", "network"}
    # proc: test_failures.py covers parts of /proc. Limits and the tie are set by calls that ww
    # itself cannot do without; descriptors and id maps are no call that could be refused alone.
    elsewhere = {"proc", "limits", "lifeline", "descriptors", "id maps"}
    named = {part.split('"')[1] for part in source.split("_step(")[1:] if '"' in part.split(",")[0]}
    assert named - elsewhere <= here

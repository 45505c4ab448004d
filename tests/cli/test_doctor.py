"""`ww doctor`, and `ww run` beside it, on machines that refuse: each is made for real here."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import (
    CAN_BE_ROOT,
    EXAMPLES,
    ORDINARY_ID,
    PROBES,
    REPO,
    Leftovers,
    Ww,
    need_command,
)
from tests.features import EMULATED, needs

LeftoversFixture = Callable[..., Leftovers]
Rows = dict[str, dict[str, Any]]

HELLO = EXAMPLES / "hello" / "hello.wasm"
KEYS = ["feature", "status", "needed", "detail", "errno", "remedy"]


def rows_of(done: subprocess.CompletedProcess[bytes]) -> Rows:
    assert done.returncode in (0, 67), done.stderr.decode()
    assert done.stderr == b""
    rows = json.loads(done.stdout)
    return {row["feature"]: row for row in rows}


def doctor(ww: Ww, host: Sequence[str] = ()) -> tuple[int, Rows]:
    done = ww.call([*host, *ww.command, "doctor", "--json"])
    return done.returncode, rows_of(done)


# A machine that refuses nothing


def test_it_says_of_every_feature_that_it_is_there(ww_account: Ww) -> None:
    code, rows = doctor(ww_account)
    assert code == 0, rows
    for row in rows.values():
        assert list(row) == KEYS
        if row["needed"]:
            assert (row["status"], row["errno"], row["remedy"]) == ("ok", None, ""), row
    assert list(rows)[-1] == "cell"


def test_the_table_has_the_same_rows_and_a_verdict(ww_account: Ww) -> None:
    _, rows = doctor(ww_account)
    done = ww_account.run("doctor")
    assert (done.returncode, done.stderr) == (0, b"")
    *lines, verdict = done.stdout.decode().splitlines()
    assert [line for line in lines if not line.startswith(" ")] != []
    for feature, row in rows.items():
        assert any(line.startswith(feature) and row["status"] in line for line in lines)
    assert verdict == "A cell can run here."


def test_it_leaves_nothing_behind(ww_account: Ww, leftovers: LeftoversFixture) -> None:
    before = sorted(ww_account.root.rglob("*"))
    with leftovers(ww_account):
        assert doctor(ww_account)[0] == 0
    assert sorted(ww_account.root.rglob("*")) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_ended_at_any_time(
    ww_account: Ww, leftovers: LeftoversFixture, number: signal.Signals
) -> None:
    with leftovers(ww_account):
        for tenths in range(1, 7):
            with ww_account.popen("doctor", stdout=subprocess.DEVNULL) as process:
                try:
                    process.wait(tenths / 10)
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                # Before it has its own handlers, the signal ends it like any program.
                assert process.wait(30) in (0, 128 + number, -number)


def test_it_cleans_up_when_it_is_ended_in_the_middle(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    # With a control group in use, where there is one: its probe waits before it removes that.
    patch = """
from sandbox import cgroups, probes
import time
probes.PROBES = tuple(p for p in probes.PROBES if p.feature in ("namespaces", "cgroup pids"))
cgroups.Cgroup.join = lambda self: time.sleep(600)
"""
    command = [sys.executable, "-c", TAMPERED, *PROBES_PROCESS, patch, "60"]
    with leftovers(ww_account), ww_account.start(command, env={"PYTHONPATH": str(REPO)}) as process:
        try:
            process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)


def test_a_report_that_cannot_be_written_is_an_error(ww: Ww) -> None:
    with open("/dev/full", "wb") as full, ww.popen("doctor", stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"ww: error: stdout: ")


# Probes that go wrong

# The process of the probes, or the spawner, runs the patch before it begins, as with
# tests/probes/variant.py.
TAMPERED = """
import sys
from runner import doctor
from sandbox import client, features
module, program, patch, patience = sys.argv[1:]
module = {"features": features, "client": client}[module]
begin = f"from sandbox.{program} import main\\n"
assert begin in module._BOOT
module._BOOT = module._BOOT.replace(begin, patch + "\\n" + begin)
features._PATIENCE = doctor._PATIENCE = float(patience)
code = doctor.main(as_json=True)
sys.stdout.flush()
sys.exit(code)
"""
PROBES_PROCESS = ("features", "probes")
SPAWNER = ("client", "spawner")


def tampered(
    ww: Ww, patch: str, which: tuple[str, str] = PROBES_PROCESS, patience: float = 60
) -> tuple[int, Rows]:
    command = [sys.executable, "-c", TAMPERED, *which, patch, str(patience)]
    done = ww.call(command, env={"PYTHONPATH": str(REPO)})
    return done.returncode, rows_of(done)


# Only for a probe that hangs is there little patience: others may be slow on a machine at work.
PRIVILEGES = """
from sandbox import privileges, probes
import ctypes, os, time
privileges.drop_all = lambda: {act}
patient = probes._try

def impatient(probe, ids, **kwargs):
    hangs = probe.feature == "privileges" and {act!r}.startswith("time.sleep")
    probes._PATIENCE_MS = 500 if hangs else 60_000
    return patient(probe, ids, **kwargs)

probes._try = impatient
"""


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("time.sleep(600)", "the probe took too long"),
        ("ctypes.string_at(0)", "the process in the namespaces ended with"),
        ("os._exit(3)", "the process in the namespaces ended with 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_probe_that_hangs_or_breaks_is_a_row(
    ww_account: Ww, leftovers: LeftoversFixture, act: str, said: str
) -> None:
    with leftovers(ww_account):
        code, rows = tampered(ww_account, PRIVILEGES.format(act=act))
    assert rows["privileges"]["status"] == "failed"
    assert said in rows["privileges"]["detail"]
    # Nothing else suffers, and a cell has the last word.
    assert code == 0
    assert rows["seccomp"]["status"] == rows["cell"]["status"] == "ok"


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("import os; os._exit(3)", "it ended with 3"),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by signal 9"),
        ("import nothing_of_that_name", "it ended with 1"),
        (
            "from sandbox import probes; import os; probes._limits = None; "
            "probes._try = lambda *_: os._exit(4)",
            "it ended with 4",
        ),
    ],
)
def test_the_probes_own_process_that_breaks_is_a_row(ww: Ww, patch: str, said: str) -> None:
    code, rows = tampered(ww, patch)
    assert said in rows["probes"]["detail"]
    assert (code, rows["cell"]["status"]) == (0, "ok")


def test_probes_that_hang_altogether_are_a_row(ww: Ww, leftovers: LeftoversFixture) -> None:
    with leftovers(ww):
        # As long as the cell takes that is run after them.
        patience = 30 if EMULATED else 3
        code, rows = tampered(ww, "import time; time.sleep(600)", patience=patience)
    assert list(rows) == ["probes", "cell"]
    assert rows["probes"]["status"] == "failed"
    assert (code, rows["cell"]["status"]) == (0, "ok")


@pytest.mark.parametrize(
    ("patch", "said"),
    [("import time; time.sleep(600)", "did not end within"), ("raise SystemExit(3)", "spawner")],
)
def test_a_spawner_that_does_not_answer_is_the_verdict(
    ww: Ww, leftovers: LeftoversFixture, patch: str, said: str
) -> None:
    with leftovers(ww):
        code, rows = tampered(ww, patch, SPAWNER, patience=3)
    assert (code, rows["cell"]["status"]) == (67, "failed")
    assert said in rows["cell"]["detail"]


# Machines that refuse

CLONE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
MOUNTING = (
    *("mount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "move_mount"),
    *("open_tree", "mount_setattr", "unshare", "setns"),
)
# As tests/probes/refuse.py takes them.
Rules = Sequence[Sequence[int | str]]


def _docker() -> Rules:
    """What docker's default profile does to a process without CAP_SYS_ADMIN."""
    rules: list[Sequence[int | str]] = [("clone3", errno.ENOSYS)]
    rules += [("clone", errno.EPERM, 0, flag) for flag in CLONE_FLAGS]
    forbidden = (*MOUNTING, "keyctl", "add_key", "request_key", "bpf")
    return rules + [(name, errno.EPERM) for name in forbidden]


# argument 0 of socket(2) is AF_NETLINK: all of its bits, 16.
NO_NETLINK: Rules = [["socket", errno.EAFNOSUPPORT, 0, 16]]


def refusing(rules: Rules) -> list[str]:
    """Return the start of a command that runs under a system call filter."""
    return [sys.executable, str(PROBES / "refuse.py"), json.dumps(rules)]


# The root of a user namespace of its own prepares a place, in which an ordinary user runs ww.
INSIDE = """
exec unshare --user --map-root-user --mount --pid --fork bash -c '
    mount -t proc proc /proc
    {prepare}
    exec unshare --user --map-user=1000 --map-group=1000 "$@"
' bash "$@"
"""
# With 0 there could be no user namespace for the ordinary user: he sets it himself, and then gives
# up what allowed it.
NO_NAMESPACES = """
exec unshare --user --map-user=1000 --map-group=1000 --keep-caps bash -c '
    echo 0 >/proc/sys/user/max_{kind}_namespaces || exit 99
    exec setpriv --ambient-caps=-all --inh-caps=-all "$@"
' bash "$@"
"""


def inside(prepare: str) -> list[str]:
    return ["bash", "-c", INSIDE.format(prepare=prepare), "bash"]


def without_namespaces(kind: str) -> list[str]:
    return ["bash", "-c", NO_NAMESPACES.format(kind=kind), "bash"]


class Refusal(NamedTuple):
    """A machine on which no cell can run.

    Attributes:
        host: What makes it, before the command.
        step: The step that ``ww run`` names.
        feature: The row of ``ww doctor`` that says why.
        status: Of that row.
        errno: Likewise.
        remedy: A part of what both say.
    """

    host: list[str]
    step: str
    feature: str
    status: str
    errno: str | None
    remedy: str


REFUSALS = {
    "docker": Refusal(
        refusing(_docker()),
        *("namespaces", "namespaces", "missing", "ENOSYS"),
        "--security-opt seccomp=unconfined",
    ),
    "no clone3": Refusal(
        refusing([["clone3", errno.ENOSYS]]),
        *("namespaces", "namespaces", "missing", "ENOSYS"),
        "a system call filter",
    ),
    "no user namespaces": Refusal(
        without_namespaces("user"),
        *("namespaces", "namespaces", "refused", "ENOSPC"),
        "sysctl -w user.max_user_namespaces=",
    ),
    "no network namespaces": Refusal(
        without_namespaces("net"),
        *("namespaces", "namespaces", "refused", "ENOSPC"),
        "sysctl -w user.max_net_namespaces=",
    ),
    "no mounts": Refusal(
        refusing([["fsopen", errno.EPERM]]),
        *("root", "mounts", "refused", "EPERM"),
        "--security-opt seccomp=unconfined",
    ),
    "Linux before 5.12": Refusal(
        refusing([["mount_setattr", errno.ENOSYS]]),
        *("read-only root", "mounts", "missing", "ENOSYS"),
        "a system call filter",
    ),
    "no pivot_root": Refusal(
        refusing([["pivot_root", errno.EPERM]]),
        *("pivot_root", "mounts", "refused", "EPERM"),
        "--security-opt seccomp=unconfined",
    ),
    "no keyring": Refusal(
        refusing([["keyctl", errno.EPERM]]),
        *("session", "session", "refused", "EPERM"),
        "--security-opt seccomp=unconfined",
    ),
    "no host name": Refusal(
        refusing([["sethostname", errno.EPERM]]),
        *("session", "session", "refused", "EPERM"),
        "--security-opt seccomp=unconfined",
    ),
    "no filters": Refusal(
        refusing([["seccomp", errno.EINVAL]]),
        *("seccomp", "seccomp", "refused", "EINVAL"),
        "a system call filter",
    ),
    "no libseccomp": Refusal(
        inside(
            "for f in {/usr,}/lib/*/libseccomp.so.2 {/usr,}/lib*/libseccomp.so.2; do"
            " [ ! -e $f ] || mount --bind /dev/null $f; done"
        ),
        *("seccomp", "seccomp", "missing", None),
        "apt-get install libseccomp2",
    ),
    "little address space": Refusal(
        ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash"],
        *("limits", "limits", "refused", None),
        "ulimit -v unlimited",
    ),
}


def refused(ww: Ww, refusal: Refusal, leftovers: LeftoversFixture) -> None:
    with leftovers(ww):
        ran = ww.call([*refusal.host, *ww.command, "run", HELLO])
        code, rows = doctor(ww, refusal.host)
    line = ran.stderr.decode()
    assert (ran.returncode, ran.stdout) == (67, b""), line
    assert line.startswith(f"ww: error: jail: {refusal.step}: ")
    assert refusal.remedy in line
    assert line.count("\n") == 1
    assert code == 67
    row = rows[refusal.feature]
    assert (row["status"], row["errno"]) == (refusal.status, refusal.errno), row
    assert row["needed"]
    assert refusal.remedy in row["remedy"]
    if refusal.step != refusal.feature:
        assert row["detail"].startswith(f"{refusal.step}: ")
    cell = rows["cell"]
    assert cell["status"] == "refused"
    assert cell["detail"].startswith(f"{refusal.step}: ")
    assert f"({cell['remedy']})" in line
    # What could not be tried is not called missing.
    if refusal.feature == "namespaces":
        assert {rows[name]["status"] for name in ("id maps", "mounts", "privileges")} == {
            "untested"
        }


@pytest.mark.parametrize("host", REFUSALS)
def test_run_and_doctor_name_the_same_step_and_remedy(
    ww_account: Ww, leftovers: LeftoversFixture, host: str
) -> None:
    refused(ww_account, REFUSALS[host], leftovers)


def test_root_of_a_namespace_of_few_ids_is_told_so(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    host = ["unshare", "--map-root-user"]
    refusal = Refusal(host, "spawner", "spawner", "refused", "EPERM", "does not have the cell's id")
    refused(ww_account, refusal, leftovers)


@needs("root", CAN_BE_ROOT, "only root has capabilities to lose")
@pytest.mark.parametrize(
    ("kept", "step", "lacking"),
    [
        ("-all", "spawner", "CAP_SETGID and CAP_SETUID"),
        ("-all,+setuid", "spawner", "CAP_SETGID"),
        ("-all,+setgid", "id maps", "CAP_SETUID"),
    ],
)
def test_root_without_capabilities_over_ids_is_told_so(
    ww: Ww, leftovers: LeftoversFixture, kept: str, step: str, lacking: str
) -> None:
    host = ["setpriv", f"--bounding-set={kept}"]
    remedy = f"this root lacks {lacking}, as in a container"
    refused(ww, Refusal(host, step, step, "refused", "EPERM", remedy), leftovers)


# A folder with what the interpreter, its packages and this tree need, and not a mount itself.
CHROOT = """
set -e
for part in {parts}; do
    mkdir -p "{folder}$part"
    mount --rbind "$part" "{folder}$part"
done
for link in /bin /lib /lib64; do
    [ ! -L $link ] || cp -P $link "{folder}/"
done
exec chroot --userspec={ids} "{folder}" "$@"
"""


def chroot(ww: Ww, folder: Path, *parts: str, uid: int = 0) -> list[str]:
    tree = [str(path) for path in {REPO, Path(sys.prefix).resolve(), ww.root}]
    bare = [part for part in ("/bin", "/lib", "/lib64") if not os.path.islink(part)]
    script = CHROOT.format(
        parts=" ".join([*parts, *bare, "/usr", "/dev", "/tmp", *tree]),
        folder=folder,
        ids=f"{uid}:{uid}",
    )
    # As a root that is the host's; --mount, so that all of it ends with the command.
    return ["unshare", "--mount", "bash", "-c", script, "bash"]


@needs("root", CAN_BE_ROOT, "only root may chroot")
@pytest.mark.parametrize("uid", [0, ORDINARY_ID])
def test_a_chroot_is_told(ww: Ww, tmp_path: Path, leftovers: LeftoversFixture, uid: int) -> None:
    need_command("chroot")
    tmp_path.chmod(0o755)
    host = chroot(ww, tmp_path, "/proc", uid=uid)
    with leftovers():
        ran = ww.call([*host, *ww.command, "run", HELLO], cwd="/")
        done = ww.call([*host, *ww.command, "doctor", "--json"], cwd="/")
    line = ran.stderr.decode()
    assert ran.returncode == 67, line
    assert line.startswith("ww: error: jail: namespaces: clone3: Operation not permitted (")
    assert "ww is in a chroot" in line
    rows = rows_of(done)
    assert done.returncode == 67
    assert "ww is in a chroot" in rows["namespaces"]["remedy"]


@needs("root", CAN_BE_ROOT, "only root may chroot")
def test_a_chroot_without_proc_is_told(ww: Ww, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for command in (["doctor", "--json"], ["run", str(HELLO)]):
        done = ww.call([*chroot(ww, tmp_path), *ww.command, *command], cwd="/")
        assert (done.returncode, done.stdout) == (67, b"")
        assert done.stderr.startswith(b"ww: error: /proc/self/fd: ")
        assert done.stderr.endswith(b" (ww needs a mounted /proc)\n")


# Machines that lack what not every cell needs


class Lack(NamedTuple):
    """A machine on which a cell can run, and something is off.

    Attributes:
        host: What makes it, before the command.
        feature: The row of ``ww doctor`` that says so.
        status: Of that row.
        off: A part of what that row says is off.
        remedy: A part of its remedy.
        asks: The arguments of a ``ww run`` that cannot be without it.
        step: The step that this run names.
    """

    host: list[str]
    feature: str
    status: str
    off: str
    remedy: str
    asks: tuple[str, ...]
    step: str


LACKS = {
    "no Landlock": Lack(
        refusing([["landlock_create_ruleset", errno.ENOSYS]]),
        *("landlock", "missing", "without it, ", "seccomp=unconfined"),
        *(("--require", "landlock"), "landlock"),
    ),
    "a masked proc": Lack(
        inside("mount -t tmpfs none /proc/fs; mount --bind /proc/sys /proc/sys"),
        *("proc", "refused", "no grant can be a pathlink", "parts of /proc are covered"),
        *(("--fd", "a=3,pathlink=true"), "proc"),
    ),
    "no open_tree": Lack(
        refusing([["open_tree", errno.EPERM]]),
        *("directories", "refused", "no directory can be granted", "seccomp=unconfined"),
        *(("--dir", "/etc:/etc:ro"), "directories"),
    ),
    "no netlink": Lack(
        refusing(NO_NETLINK),
        *("network", "refused", "--net loopback", "RestrictAddressFamilies="),
        *(("--net", "loopback"), "network"),
    ),
    "no control groups": Lack(
        inside("mount -t tmpfs none /sys/fs/cgroup"),
        *("cgroup memory", "missing", "without it, memory is limited", "mount -t cgroup2"),
        *(("--require", "cgroup"), "cgroup"),
    ),
}


@pytest.mark.parametrize("host", LACKS)
def test_a_cell_runs_and_doctor_says_what_is_off(
    ww_account: Ww, leftovers: LeftoversFixture, host: str
) -> None:
    lack = LACKS[host]
    with leftovers(ww_account):
        plain = ww_account.call([*lack.host, *ww_account.command, "run", HELLO])
        code, rows = doctor(ww_account, lack.host)
        asking = ww_account.call(
            [*lack.host, *ww_account.command, "run", *lack.asks, HELLO],
            fds={3: Path("/dev/null")},
        )
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert (code, rows["cell"]["status"]) == (0, "ok")
    row = rows[lack.feature]
    assert (row["status"], row["needed"]) == (lack.status, False), row
    assert lack.off in row["detail"]
    assert lack.remedy in row["remedy"]
    line = asking.stderr.decode()
    assert (asking.returncode, asking.stdout) == (67, b""), line
    assert line.startswith(f"ww: error: jail: {lack.step}: ")
    assert row["remedy"] in line


def test_the_table_says_that_what_is_off_is_not_needed(ww_account: Ww) -> None:
    done = ww_account.call([*LACKS["no Landlock"].host, *ww_account.command, "doctor"])
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("landlock"))
    assert "missing" in lines[at]
    assert lines[at].endswith("(not needed)")
    assert lines[at + 1].strip().startswith("mend it: ")
    assert lines[-1] == "A cell can run here."


def test_the_table_says_that_no_cell_can_run(ww_account: Ww) -> None:
    done = ww_account.call([*REFUSALS["docker"].host, *ww_account.command, "doctor"])
    assert done.returncode == 67
    assert done.stdout.decode().splitlines()[-1] == "No cell can run here."


# The probes are the jail


def test_the_steps_that_probes_name_are_the_jails() -> None:
    def named(module: str) -> set[str]:
        text = (REPO / "sandbox" / f"{module}.py").read_text()
        return set(re.findall(r'(?:_step|_refused|JailError)\(\s*"([a-z_ -]+)"', text))

    steps = set[str]().union(*map(named, ("jail", "waiting", "zygote", "lane")))
    assert named("probes") <= steps

"""docs/ci.md's table of runners: each is made here, and `ww doctor` and `ww run` say what it says.

The machines of tests/cli/test_doctor.py are those where `ww run` and `ww doctor` were compared
already; here the table's words are held against them. The others are made for this table.
"""

import errno
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from wasmtime import wat2wasm

from sandbox import landlock
from tests.ci.document import blocks, rows, section
from tests.cli.test_doctor import (
    CLONE_FLAGS,
    HELLO,
    LACKS,
    NO_NETLINK,
    REFUSALS,
    Rows,
    Rules,
    chroot,
    doctor,
    inside,
    refusing,
    rows_of,
)
from tests.conftest import CAN_BE_ROOT, REPO, Account, Leftovers, Ww, need_command
from tests.features import lacks, needs

LeftoversFixture = Callable[..., Leftovers]

S_ISUID, S_ISGID = 0o4000, 0o2000
PROT_WRITE_EXEC, PROT_EXEC = 6, 4


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        machine: Its name, without marks.
        code: The exit code of ``ww run`` for a cell that asks for nothing.
        step: The step that it names, or the empty string.
        feature: The row of ``ww doctor`` that tells why.
        status: Of that row.
        errno: Of that row, or ``None``.
        setting: A part of the remedy.
    """

    machine: str
    code: int
    step: str
    feature: str
    status: str
    errno: str | None
    setting: str


def _line(cells: list[str]) -> Line:
    machine, run, doctor_row, remedy = cells
    ran = re.fullmatch(r"(\d+)(?: `(.+)`)?", run)
    row = re.fullmatch(r"`(.+?)` (\w+)(?:, `(\w+)`)?", doctor_row)
    setting = re.fullmatch(r"`(.+)`", remedy)
    assert ran is not None, run
    assert row is not None, doctor_row
    assert setting is not None, remedy
    machine = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", machine).replace("`", "")
    return Line(machine, int(ran[1]), ran[2] or "", row[1], row[2], row[3], setting[1])


LINES = [_line(cells) for cells in rows(section("What runners permit"), 4)]
TABLE = {line.machine: line for line in LINES}

# --- how they are made ---------------------------------------------------------------------------

# What docker's default profile lets nobody do who has not CAP_SYS_ADMIN.
DOCKER_FORBIDS = (
    *("bpf", "fanotify_init", "lookup_dcookie", "perf_event_open", "quotactl", "syslog"),
    *("mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "pivot_root"),
    *("fsconfig", "fsmount", "fsopen", "fspick", "setns", "unshare", "sethostname"),
    *("setdomainname", "keyctl", "add_key", "request_key", "userfaultfd", "kcmp", "pidfd_getfd"),
    *("open_by_handle_at", "init_module", "finit_module", "delete_module", "reboot", "acct"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "settimeofday", "clock_settime"),
)
# What it leaves to root.
DOCKER_CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
# Parts of /proc are covered or read-only in containers of docker and podman.
MASKED = """
    for part in acpi fs irq bus; do
        [ ! -d /proc/$part ] || mount -t tmpfs -o ro none /proc/$part
    done
    mount --bind /proc/sys /proc/sys
"""
MOUNTING = ("mount", "umount2", "pivot_root", "move_mount", "fsmount", "mount_setattr")
# A setting that this kernel does not have, among those that it has.
SETTING = """
    copy=$(mktemp -d)
    cp -r /proc/sys/kernel/. $copy/ 2>/dev/null || :
    mount -t tmpfs none /proc/sys/kernel
    cp -r $copy/. /proc/sys/kernel/
    rm -r $copy
    echo {value} >/proc/sys/kernel/{name}
"""
DENY_PROC = [sys.executable, str(REPO / "tests" / "ci" / "deny_proc.py")]


def documented_profile() -> Rules:
    """docker's profile with what docs/doctor.md says that one of one's own must allow."""
    text = (REPO / "docs" / "doctor.md").read_text()
    part = re.search(r"A profile of your own needs to allow, over docker's: (.*?)\. ", text, re.S)
    assert part is not None
    allowed = set(re.findall(r"`(\w+)`", part[1]))
    assert {"clone3", "clone", "mount"} <= allowed
    return [(name, errno.EPERM) for name in DOCKER_FORBIDS if name not in allowed]


def docker(rules: Rules | None = None) -> list[str]:
    """A container's ordinary user."""
    return [*inside(MASKED), *(refusing(rules) if rules else [])]


def docker_root(prepare: str = "") -> list[str]:
    capabilities = ",".join(["-all", *(f"+{name}" for name in DOCKER_CAPABILITIES)])
    script = f'{MASKED}\n{prepare}\nexec setpriv --bounding-set={capabilities} "$@"'
    return ["unshare", "--mount", "bash", "-ec", script, "bash"]


def debian() -> list[str]:
    """Who has no id in a user namespace may make none in it: EPERM, as by Debian's setting."""
    with_id = inside(SETTING.format(name="unprivileged_userns_clone", value=0))
    script = with_id[2].replace("unshare --user --map-user=1000 --map-group=1000", "unshare --user")
    assert script != with_id[2]
    return ["bash", "-c", script, "bash"]


def ubuntu() -> list[str]:
    """A user namespace can be made, its ids are mapped from outside, and it may do nothing.

    The profile that AppArmor puts on who makes one, and not on its parent, forbids mounts first.
    """
    setting = SETTING.format(name="apparmor_restrict_unprivileged_userns", value=1)
    return [*inside(setting), *refusing([(name, errno.EACCES) for name in MOUNTING])]


def no_set_id_bits() -> Rules:
    """As systemd does it: openat2 hides its mode in memory, so nobody may call it."""
    bits = (S_ISUID, S_ISGID)
    modes = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "mkdirat": 2, "openat": 3, "mknodat": 2}
    rules = [(name, errno.EPERM, at, bit) for name, at in modes.items() for bit in bits]
    return [("openat2", errno.ENOSYS), *rules]


def unit_without_set_id(prepare: str = "") -> list[str]:
    """A unit with RestrictSUIDSGID=, which DynamicUser= implies."""
    return [*inside(prepare), *refusing(no_set_id_bits())]


SYSTEM_SERVICE_LACKS = (
    *("mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "move_mount"),
    *("open_tree", "mount_setattr", "unshare", "setns", "sethostname", "setdomainname"),
)


class Made(NamedTuple):
    """How a machine is made.

    Attributes:
        host: The start of a command.
        also: What else is not there, beside what its line is for.
    """

    host: Callable[[], Sequence[str]]
    also: tuple[str, ...] = ()


MADE = {
    "Ubuntu 24.04 and GitHub's ubuntu-24.04, an ordinary user": Made(ubuntu),
    "Debian, with user namespaces switched off": Made(debian),
    "docker, seccomp and AppArmor unconfined, an ordinary user": Made(docker),
    "docker, the profile of doctor.md, an ordinary user": Made(
        lambda: docker(documented_profile())
    ),
    "below bwrap --disable-userns": Made(
        lambda: ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns"]
    ),
    "another security module that forbids id maps": Made(lambda: DENY_PROC),
    "a unit with SystemCallFilter=@system-service": Made(
        lambda: refusing([(name, errno.EPERM) for name in SYSTEM_SERVICE_LACKS])
    ),
    "a unit with MemoryDenyWriteExecute=yes": Made(
        lambda: refusing(
            [
                ("mmap", errno.EPERM, 2, PROT_WRITE_EXEC),
                ("mprotect", errno.EPERM, 2, PROT_EXEC),
                ("pkey_mprotect", errno.EPERM, 2, PROT_EXEC),
            ]
        )
    ),
}
# Only root can make them.
ROOTS = {
    "docker, seccomp and AppArmor unconfined, its root": Made(docker_root),
    "a container's root without capabilities": Made(lambda: ["setpriv", "--bounding-set=-all"]),
}
CHROOT = "a chroot"
# These take AppArmor: tests/vm/guest/test_apparmor.py makes them.
IN_TEST_MACHINE = (
    "docker, seccomp unconfined, its AppArmor profile",
    "an AppArmor profile without userns,",
)
# The machines of tests/cli/test_doctor.py.
KNOWN = {
    "hardened with user.max_user_namespaces=0": REFUSALS["no user namespaces"].host,
    "docker, its default profile": REFUSALS["docker"].host,
    "podman, its default profile": LACKS["a masked proc"].host,
    "a unit with RestrictNamespaces=yes": REFUSALS["no clone3"].host,
    "a unit with ProtectHostname=yes": REFUSALS["no host name"].host,
    "a unit with RestrictAddressFamilies=AF_UNIX": refusing(NO_NETLINK),
}

# What asks for a feature without which other cells run.
ASKS = {
    "proc": ("--fd", "a=3,pathlink=true"),
    "network": ("--net", "loopback"),
}
# Nobody has to have these; the account decides, and not the machine of the line.
CGROUPS = ("cgroup memory", "cgroup pids")


def test_every_line_of_the_table_is_made_and_nothing_else() -> None:
    assert set(TABLE) == {*MADE, *KNOWN, *ROOTS, CHROOT, *IN_TEST_MACHINE}
    assert len(TABLE) == len(LINES)


# --- what is said on them ------------------------------------------------------------------------


@pytest.fixture
def ordinary(ww: Ww, ordinary_account: Account) -> Ww:
    return ww.as_user(ordinary_account)


def check_doctor(line: Line, code: int, found: Rows, also: Sequence[str] = ()) -> None:
    assert code == line.code, found
    row = found[line.feature]
    assert (row["status"], row["errno"]) == (line.status, line.errno), row
    assert line.setting in row["remedy"]
    cell = found["cell"]
    if line.code == 0:
        assert cell["status"] == "ok"
        wrong = {name for name, row in found.items() if row["status"] != "ok"}
        # Everything else is as on a machine that refuses nothing.
        assert wrong - set(CGROUPS) == {line.feature, *also}
    else:
        assert cell["status"] == "refused"
        assert cell["detail"].startswith(f"{line.step}: ")
        assert line.setting in cell["remedy"]


def check_run(line: Line, ran: subprocess.CompletedProcess[bytes], found: Rows) -> None:
    text = ran.stderr.decode()
    assert ran.returncode == line.code, text
    if line.code == 0:
        assert text == ""
    else:
        check_refusal(ran, line.step, found["cell"]["remedy"])


def check_refusal(ran: subprocess.CompletedProcess[bytes], step: str, remedy: str) -> None:
    """Nothing ran; one line names the step, and says the same as `ww doctor`."""
    text = ran.stderr.decode()
    assert (ran.returncode, ran.stdout) == (67, b""), text
    assert text.startswith(f"ww: error: jail: {step}: ")
    assert text.endswith(f" ({remedy})\n")
    assert text.count("\n") == 1


def hold(ww: Ww, machine: str, made: Made, leftovers: LeftoversFixture) -> None:
    """Hold `ww doctor` and `ww run` to a line of the table, on the machine that it is about."""
    line, host = TABLE[machine], made.host()
    with leftovers(ww):
        code, found = doctor(ww, host)
        ran = ww.call([*host, *ww.command, "run", HELLO])
        check_doctor(line, code, found, made.also)
        check_run(line, ran, found)
        if line.code == 0:
            asking = ww.call(
                [*host, *ww.command, "run", *ASKS[line.feature], HELLO],
                fds={3: Path("/dev/null")},
            )
            check_refusal(asking, line.feature, found[line.feature]["remedy"])


def need_landlock() -> None:
    """For what stands in for another security module."""
    if landlock.abi() == 0:
        lacks("landlock", "this kernel has no Landlock")


@pytest.mark.parametrize("machine", MADE)
def test_a_runner_gives_what_the_table_says(
    ordinary: Ww, leftovers: LeftoversFixture, machine: str
) -> None:
    if "bwrap" in machine:
        need_command("bwrap")
    if MADE[machine].host()[-len(DENY_PROC) :] == DENY_PROC:
        need_landlock()
    hold(ordinary, machine, MADE[machine], leftovers)


@needs("root", CAN_BE_ROOT, "only root can be the root of a container")
@pytest.mark.parametrize("machine", ROOTS)
def test_the_root_of_a_container_gets_what_the_table_says(
    ww: Ww, leftovers: LeftoversFixture, machine: str
) -> None:
    hold(ww, machine, ROOTS[machine], leftovers)


# --- directories, where mounts cannot be copied or paths not be opened as usual -------------------

# Prints the file `inside` of its first directory, which is its descriptor 3.
READER = wat2wasm("""
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "inside")
  (func $must (param $errno i32) (if (local.get $errno) (then unreachable)))
  (func (export "_start")
    ;; The right to read is 2. The descriptor is at 16, the buffer at 64, its vector at 32.
    (call $must (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
    (i32.store (i32.const 32) (i32.const 64))
    (i32.store (i32.const 36) (i32.const 64))
    (call $must (call $read (i32.load (i32.const 16)) (i32.const 32) (i32.const 1) (i32.const 40)))
    (i32.store (i32.const 36) (i32.load (i32.const 40)))
    (call $must (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40)))))
""")

# What the process that jails itself there can do, and what it cannot.
ABLE = """
import errno, os
from sandbox import mounts, syscalls
try:
    os.close(syscalls.openat2(syscalls.AT_FDCWD, "/", os.O_PATH, 0))
    told = "ok"
except OSError as error:
    told = errno.errorcode[error.errno]
print(mounts.may_clone(), told)
"""


class Granting(NamedTuple):
    """A machine on which a directory is granted in another way than on others.

    Attributes:
        ww: By whom it is run.
        host: Makes the machine; takes a script that root there runs first.
        able: What ABLE prints on it.
    """

    ww: Ww
    host: Callable[[str], list[str]]
    able: bytes


@pytest.fixture(params=["the root of a container", "a unit without set-id bits"])
def granting(request: pytest.FixtureRequest, ww: Ww) -> Granting:
    if request.param.startswith("the root"):
        if not CAN_BE_ROOT:
            lacks("root", "only root can be the root of a container")
        return Granting(ww, docker_root, b"False ok\n")
    return Granting(
        ww.as_user(request.getfixturevalue("ordinary_account")),
        unit_without_set_id,
        b"False ENOSYS\n",
    )


@pytest.fixture
def granted(account_folders: Path) -> Path:
    """A directory that everybody may read, below others; beside the highest is one for a mount."""
    base = Path(tempfile.mkdtemp(prefix="granted-", dir=account_folders))
    made = base / "top" / "parent" / "granted"
    made.mkdir(parents=True)
    (made / "inside").write_text("what is inside\n")
    (base / "kept").mkdir()
    for path in (base, *base.rglob("*")):
        path.chmod(0o755)
    return made


def test_directories_are_granted_there_too(
    granting: Granting, granted: Path, leftovers: LeftoversFixture
) -> None:
    ww, host = granting.ww, granting.host("")
    able = ww.call([*host, sys.executable, "-c", ABLE], env={"PYTHONPATH": str(REPO)})
    assert (able.stdout, able.stderr) == (granting.able, b"")
    cell = ww.file("reader.wasm", bytes(READER))
    with leftovers(ww):
        code, found = doctor(ww, host)
        by_path = ww.call([*host, *ww.command, "run", "--dir", granted, cell])
        by_number = ww.call([*host, *ww.command, "run", "--fd", "a=3", cell], fds={3: granted})
    assert (code, found["directories"]["status"]) == (0, "ok")
    for done in (by_path, by_number):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"what is inside\n", b"")


# In mounts of its own. The very same directory is at the end of the link.
LINKS = {
    "it": "mkdir {top}/parent; ln -s ../../kept/parent/granted {top}/parent/granted",
    "its parent": "ln -s ../kept/parent {top}/parent",
}


@pytest.mark.parametrize("replaced", LINKS)
def test_a_link_where_the_directory_was_is_not_followed(
    granting: Granting, granted: Path, leftovers: LeftoversFixture, replaced: str
) -> None:
    """It is opened before, and looked for after that, at the path that the kernel has for it."""
    top = granted.parent.parent
    covered = f"mount --bind {top} {top.parent}/kept; mount -t tmpfs -o mode=755 none {top}"
    host = granting.host(f"{covered}; {LINKS[replaced].format(top=top)}")
    ww = granting.ww
    cell = ww.file("reader.wasm", bytes(READER))
    reached = ww.call([*host, "cat", granted / "inside"])
    with leftovers(ww):
        done = ww.call([*host, *ww.command, "run", "--fd", "a=3", cell], fds={3: granted})
    assert (reached.stdout, reached.stderr) == (b"what is inside\n", b"")
    said = f"the directory granted as /a: cannot re-root it: it is not at {str(granted)!r} any more"
    assert done.stderr.decode() == f"ww: error: jail: directories: {said}\n"
    assert (done.returncode, done.stdout) == (67, b"")


@pytest.mark.parametrize("machine", KNOWN)
def test_the_table_says_what_was_found_on_machines_that_refuse(ww: Ww, machine: str) -> None:
    check_doctor(TABLE[machine], *doctor(ww, KNOWN[machine]))


@needs("root", CAN_BE_ROOT, "only root may chroot")
def test_the_table_says_what_was_found_in_a_chroot(ww: Ww, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = ww.call(
        [*chroot(ww, tmp_path, "/proc", uid=0), *ww.command, "doctor", "--json"], cwd="/"
    )
    check_doctor(TABLE[CHROOT], done.returncode, rows_of(done))


@pytest.mark.parametrize(
    ("title", "host"),
    [("GitHub Actions", ubuntu), ("GitLab", lambda: REFUSALS["docker"].host)],
)
def test_the_report_that_is_shown_is_a_real_one(
    ordinary: Ww, title: str, host: Callable[[], list[str]]
) -> None:
    need_landlock()
    (report,) = (b.text for b in blocks(section(title)) if "No cell can run here." in b.text)
    done = ordinary.call([*host(), *ordinary.command, "doctor"])
    real = {" ".join(line.split()) for line in done.stdout.decode().splitlines()}
    shown = [" ".join(line.split()) for line in report.splitlines()]
    assert [line for line in shown if line != "..." and line not in real] == []


def test_what_weakens_a_container_is_not_needed_by_a_weaker_jail(
    ww: Ww, leftovers: LeftoversFixture
) -> None:
    """docs/ci.md: where nobody changes the runner, `--isolation chroot` for a container's root."""
    if not CAN_BE_ROOT:
        lacks("root", "only root can use --isolation chroot")
    rules: list[Sequence[int | str]] = [("clone3", errno.ENOSYS)]
    rules += [("clone", errno.EPERM, 0, flag) for flag in CLONE_FLAGS]
    rules += [(name, errno.EPERM) for name in DOCKER_FORBIDS]
    # The filter first: what follows would need no_new_privs, which docker does not set.
    host = [*refusing(rules), "setpriv", "--bounding-set=-sys_admin"]
    with leftovers(ww):
        done = ww.call([*host, *ww.command, "run", "--isolation", "chroot", HELLO])
    assert (done.returncode, done.stderr) == (0, b"")

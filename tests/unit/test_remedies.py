"""What is said of a machine that refuses, by the evidence on it."""

import errno
import os
import subprocess
import sys

import pytest

from runner import remedies
from runner.remedies import remedy
from tests.conftest import REPO

STATUS = "/proc/self/status"
MOUNTS = "/proc/self/mountinfo"
UID_MAP = "/proc/self/uid_map"
APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
DEBIAN = "/proc/sys/kernel/unprivileged_userns_clone"
PROFILE = "/proc/self/attr/apparmor/current"
MODULES = "/sys/kernel/security/lsm"

ROOT_MOUNT = "27 1 254:0 / / rw - ext4 /dev/vda rw"
PROC_MOUNT = "22 27 0:21 / /proc rw - proc proc rw"
COVER = "40 22 0:40 / /proc/acpi ro - tmpfs tmpfs ro"


# CapEff of a root, and of one in a container of docker.
ALL_CAPABILITIES = "000001ffffffffff"
CONTAINERS_CAPABILITIES = "00000000a80425fb"


class Machine:
    """What the evidence on a machine is; by default it refuses nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = {
            STATUS: "Seccomp:\t0\n",
            MOUNTS: f"{ROOT_MOUNT}\n{PROC_MOUNT}",
            UID_MAP: "0 0 4294967295",
            "/proc/self/fd": "",
        }
        self.uid = 1000
        monkeypatch.setattr(remedies, "_read", lambda path: self.files.get(path, ""))
        monkeypatch.setattr(remedies, "_exists", lambda path: path in self.files)
        monkeypatch.setattr(os, "geteuid", lambda: self.uid)

    def be_root(self, capabilities: str = ALL_CAPABILITIES) -> None:
        self.uid = 0
        self.files[STATUS] = f"CapEff:\t{capabilities}\nSeccomp:\t0\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


NAMESPACE_STEPS = ("namespaces", "id maps")
PRIVILEGED_STEPS = ("mount propagation", "root", "pivot_root", "attach", "session", "privileges")


@pytest.mark.parametrize("step", [*NAMESPACE_STEPS, *PRIVILEGED_STEPS])
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_ubuntus_restriction_names_its_sysctl_wherever_it_strikes(
    machine: Machine, step: str, number: int
) -> None:
    machine.files[APPARMOR] = "1"
    assert "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" in remedy(step, number)


@pytest.mark.parametrize("setting", [APPARMOR, DEBIAN])
def test_a_setting_for_ordinary_users_is_not_blamed_for_roots_failure(
    machine: Machine, setting: str
) -> None:
    machine.be_root()
    machine.files[setting] = "1" if setting == APPARMOR else "0"
    assert "sysctl" not in remedy("namespaces", errno.EPERM)


@pytest.mark.parametrize("setting", [APPARMOR, DEBIAN])
def test_a_containers_root_is_held_by_the_settings_for_ordinary_users(
    machine: Machine, setting: str
) -> None:
    machine.files[setting] = "1" if setting == APPARMOR else "0"
    machine.be_root(CONTAINERS_CAPABILITIES)
    assert "sysctl -w kernel." in remedy("namespaces", errno.EPERM)
    # With all capabilities over a few ids, it is the root of a namespace.
    machine.be_root()
    machine.files[UID_MAP] = "0 1000 1"
    assert "sysctl -w kernel." in remedy("namespaces", errno.EPERM)


def test_debians_sysctl_is_named(machine: Machine) -> None:
    machine.files[DEBIAN] = "0"
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in remedy("namespaces", errno.EPERM)


@pytest.mark.parametrize("kind", ["user", "net", "time"])
def test_a_count_of_zero_is_named(machine: Machine, kind: str) -> None:
    machine.files[f"/proc/sys/user/max_{kind}_namespaces"] = "0"
    assert f"sysctl -w user.max_{kind}_namespaces=" in remedy("namespaces", errno.ENOSPC)


def test_no_space_without_a_zero_is_for_the_nesting_or_the_number(machine: Machine) -> None:
    machine.files["/proc/sys/user/max_user_namespaces"] = "15000"
    assert "too many namespaces" in remedy("namespaces", errno.ENOSPC)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("step", ["namespaces", "root", "session", "directories"])
def test_a_filter_is_blamed_where_there_is_one(machine: Machine, step: str, number: int) -> None:
    machine.files[STATUS] = "NoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n"
    assert "--security-opt seccomp=unconfined" in remedy(step, number)


@pytest.mark.parametrize(
    ("step", "since"), [("namespaces", "5.3"), ("read-only root", "5.12"), ("landlock", "5.13")]
)
def test_a_call_that_is_missing_without_a_filter_is_the_kernels_age(
    machine: Machine, step: str, since: str
) -> None:
    assert f"Linux {since} or newer" in remedy(step, errno.ENOSYS)


def test_a_chroot_is_recognised_by_its_root_that_is_no_mount(machine: Machine) -> None:
    machine.files[MOUNTS] = PROC_MOUNT
    assert "ww is in a chroot" in remedy("namespaces", errno.EPERM)


def test_a_chroot_that_does_not_show_is_only_supposed(machine: Machine) -> None:
    assert "if this is one" in remedy("namespaces", errno.EPERM)


def test_an_apparmor_profile_is_named(machine: Machine) -> None:
    machine.files[PROFILE] = "docker-default (enforce)"
    hint = remedy("mount propagation", errno.EACCES)
    assert "'docker-default'" in hint
    assert "apparmor=unconfined" in hint


@pytest.mark.parametrize("step", ["code", "spawner", "descriptors"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_an_apparmor_profile_may_forbid_any_step(machine: Machine, step: str, number: int) -> None:
    assert remedy(step, number) == ""
    machine.files[PROFILE] = "tool (enforce)"
    assert "'tool'" in remedy(step, number)
    assert remedy(step, errno.EMFILE) == ""


@pytest.mark.parametrize("label", ["unconfined", "flatpak (unconfined)", "tool (complain)", ""])
def test_a_profile_that_confines_nothing_is_not_blamed(machine: Machine, label: str) -> None:
    machine.files[PROFILE] = label
    assert remedy("mount propagation", errno.EACCES) == ""


def test_another_security_modules_label_is_not_taken_for_a_profile(machine: Machine) -> None:
    machine.files["/proc/self/attr/current"] = "unconfined_u:unconfined_r:unconfined_t:s0\0"
    assert remedy("mount propagation", errno.EACCES) == ""


def test_a_covered_proc_is_recognised(machine: Machine) -> None:
    assert "covered" not in remedy("proc", errno.EPERM)
    machine.files[MOUNTS] += f"\n{COVER}"
    assert "unmask=ALL" in remedy("proc", errno.EPERM)
    # A container has a filter beside it, which is not the cause.
    machine.files[STATUS] = "Seccomp:\t2\n"
    assert "unmask=ALL" in remedy("proc", errno.EPERM)


def test_no_proc_at_all_is_recognised(machine: Machine) -> None:
    del machine.files["/proc/self/fd"]
    assert "mount -t proc proc /proc" in remedy("spawner", errno.ENOENT)


def test_root_of_few_ids_is_told_so(machine: Machine) -> None:
    machine.uid = 0
    machine.files[UID_MAP] = "0 1000 1"
    for step in ("spawner", "id maps"):
        assert "does not have the cell's id" in remedy(step, errno.EPERM)


def test_root_without_capabilities_over_ids_is_told_which(machine: Machine) -> None:
    machine.be_root(f"{0b1000000:016x}")
    for step in ("spawner", "id maps"):
        assert "this root lacks CAP_SETUID, as" in remedy(step, errno.EPERM)
    machine.be_root(f"{0:016x}")
    assert "this root lacks CAP_SETGID and CAP_SETUID, as" in remedy("spawner", errno.EPERM)
    machine.uid = 1000
    assert "lacks" not in remedy("spawner", errno.EPERM)
    machine.be_root()
    assert "lacks" not in remedy("spawner", errno.EPERM)


def test_a_security_module_is_blamed_for_what_the_kernel_never_says(machine: Machine) -> None:
    assert remedy("id maps", errno.EACCES) == "a security module forbids it: unknown"
    machine.files[MODULES] = "capability,selinux"
    assert remedy("id maps", errno.EACCES) == "a security module forbids it: capability,selinux"


@pytest.mark.parametrize(
    ("step", "setting"),
    [
        ("namespaces", "RestrictNamespaces="),
        ("session", "ProtectHostname="),
        ("root", "SystemCallFilter="),
    ],
)
def test_the_setting_of_a_unit_is_that_of_the_step(
    machine: Machine, step: str, setting: str
) -> None:
    machine.files[STATUS] = "Seccomp:\t2\n"
    assert f"a systemd unit: {setting}" in remedy(step, errno.ENOSYS)


def test_memory_that_may_not_be_executable_is_found_out_by_trying(machine: Machine) -> None:
    assert remedy("spawner", 0) == ""
    # PR_SET_MDWE, since Linux 6.3; it cannot be undone, so in a process of its own.
    script = (
        "import ctypes, sys\n"
        "from runner.remedies import remedy\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit('no PR_SET_MDWE')\n"
        "print(remedy('spawner', 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False
    )
    if "no PR_SET_MDWE" in done.stderr:
        pytest.skip("this kernel is older than PR_SET_MDWE")
    assert "MemoryDenyWriteExecute=no" in done.stdout, done.stderr


def test_landlock_that_is_switched_off_is_told_from_one_that_is_too_new(machine: Machine) -> None:
    assert "Linux 5.13" in remedy("landlock", 0)
    machine.files[MODULES] = "capability,yama,apparmor"
    assert "lsm=landlock,capability,yama,apparmor" in remedy("landlock", 0)
    assert "lsm=landlock," in remedy("landlock", errno.EOPNOTSUPP)
    machine.files[STATUS] = "Seccomp:\t2\n"
    assert "seccomp=unconfined" in remedy("landlock", 0)


def test_seccomp_wants_its_library_the_kernels_support_and_no_filter_against_it(
    machine: Machine,
) -> None:
    assert "libseccomp2" in remedy("seccomp", 0)
    assert "CONFIG_SECCOMP_FILTER" in remedy("seccomp", errno.EINVAL)
    machine.files[STATUS] = "Seccomp:\t2\n"
    assert "seccomp=unconfined" in remedy("seccomp", errno.EPERM)


@pytest.mark.parametrize("step", ["cgroup", "cgroup memory", "cgroup pids"])
def test_systemd_is_asked_to_delegate_a_control_group(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(remedies, "_is_empty", lambda path: False)
    assert "delegated" in remedy(step, 0)
    machine.files["/run/systemd/system"] = ""
    assert "systemd-run --user --scope -p Delegate=yes ww run" in remedy(step, 0)
    machine.uid = 0
    assert "systemd-run --scope -p Delegate=yes ww run" in remedy(step, 0)
    monkeypatch.setattr(remedies, "_is_empty", lambda path: True)
    assert "mount -t cgroup2" in remedy(step, 0)


def test_the_other_steps_have_theirs(machine: Machine) -> None:
    assert "ulimit -v unlimited" in remedy("limits", 0)
    assert "--uid" in remedy("directories", errno.EACCES)
    assert "kernel.keys.maxkeys" in remedy("session", errno.EDQUOT)
    assert "pyroute2" in remedy("network", 0)
    assert "RestrictAddressFamilies" in remedy("network", errno.EAFNOSUPPORT)


@pytest.mark.parametrize("step", ["descriptors", "lifeline", "no such step"])
def test_nothing_is_said_where_nothing_is_known(machine: Machine, step: str) -> None:
    assert remedy(step, errno.EPERM) == ""


def test_every_hint_is_one_printable_line(machine: Machine) -> None:
    machine.files |= {STATUS: "Seccomp:\t2\n", MOUNTS: COVER, MODULES: "a,b", DEBIAN: "0"}
    steps = [*NAMESPACE_STEPS, *PRIVILEGED_STEPS, "proc", "landlock", "seccomp", "cgroup"]
    for step in steps:
        for number in (0, *errno.errorcode):
            assert remedy(step, number).isprintable(), (step, number)

"""AppArmor itself in the way of a jail: what is refused is told, and by which profile.

The profiles are loaded for a test, and are upon the ww that it runs and upon nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ci.document import blocks
from tests.ci.test_runners import SETTING, TABLE, check_doctor, check_run
from tests.cli.test_doctor import HELLO, doctor, rows_of
from tests.conftest import CAN_BE_ROOT, REPO, Account, Leftovers, Ww
from tests.features import needs
from tests.vm.guest.units import LOCK

LeftoversFixture = Callable[..., Leftovers]

FEATURES = Path("/sys/kernel/security/apparmor/features")
# What it decides about, of namespaces; there is no such file where that is nothing.
MASK = FEATURES / "namespaces" / "mask"
IS_ON = CAN_BE_ROOT and FEATURES.exists()
DECIDES = MASK.read_text().split() if IS_ON and MASK.exists() else []

pytestmark = [
    needs("root", CAN_BE_ROOT, "only root may load profiles"),
    needs("apparmor", IS_ON, "AppArmor is off"),
]
needs_userns = needs(
    "apparmor-userns", "userns_create" in DECIDES, "user namespaces are beyond this AppArmor"
)

# The rules of docker's profile that matter here, in words of AppArmor's own.
DOCKERS = """
abi <abi/3.0>,
profile probe-docker flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal,
  ptrace,
  unix,
  deny mount,
}
"""
NO_USERNS = """
abi <abi/4.0>,
profile probe-no-userns flags=(attach_disconnected) { allow all, deny userns, }
"""
NO_CAPABILITIES = """
abi <abi/3.0>,
profile probe-no-capabilities flags=(attach_disconnected) {
  network, file, mount, umount, pivot_root, signal, ptrace, unix,
}
"""
# Ubuntu's own, which Debian has as well, without the setting of the kernel that puts it upon who
# makes a user namespace. It only complains there.
UBUNTUS = Path("/etc/apparmor.d/unprivileged_userns")

# ww, whose children change to a profile at the moment at which Ubuntu's kernel would do it.
CHANGING = """
import sys
import runner.__main__
from sandbox import client, features

PATCH = '''
from sandbox import syscalls
fork_into = syscalls.fork_into

def restricted(flags, *args, **options):
    pid, pidfd = fork_into(flags, *args, **options)
    if pid == 0 and flags & syscalls.CLONE_NEWUSER:
        with open("/proc/thread-self/attr/apparmor/current", "w") as file:
            file.write("changeprofile unprivileged_userns")
    return pid, pidfd

syscalls.fork_into = restricted
'''
for module, program in ((client, "spawner"), (features, "probes")):
    begin = f"from sandbox.{program} import main\\n"
    assert begin in module._BOOT
    module._BOOT = module._BOOT.replace(begin, PATCH + begin)
runner.__main__.main()
"""


@contextlib.contextmanager
def loaded(profile: str) -> Iterator[None]:
    """A profile that the kernel has for as long as the block lasts; one test at a time."""

    def parser(action: str) -> None:
        subprocess.run(
            ["apparmor_parser", action, "--skip-cache", "--quiet"],
            input=profile.encode(),
            check=True,
            timeout=60,
        )

    # Nor a test of units, which make what would be taken for something left behind.
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        parser("--replace")
        try:
            yield
        finally:
            parser("--remove")


def under(profile: str) -> list[str]:
    """Return the start of a command that a profile confines."""
    match = re.search(r"^profile (\S+)", profile, re.MULTILINE)
    assert match is not None
    return ["aa-exec", "-p", match[1], "--"]


def documented(name: str) -> str:
    """A profile that docs/doctor.md shows."""
    found = [
        block.text
        for block in blocks((REPO / "docs" / "doctor.md").read_text())
        if block.language == "apparmor" and f"profile {name} " in block.text
    ]
    assert len(found) == 1
    return found[0]


@pytest.fixture(params=["root", "an ordinary user"])
def either(request: pytest.FixtureRequest, ww: Ww, ordinary_account: Account) -> Ww:
    return ww if request.param == "root" else ww.as_user(ordinary_account)


@pytest.mark.parametrize(
    ("machine", "profile"),
    [
        ("docker, seccomp unconfined, its AppArmor profile", DOCKERS),
        pytest.param("an AppArmor profile without userns,", NO_USERNS, marks=needs_userns),
    ],
)
def test_a_profile_that_forbids_a_jail_is_named_as_the_table_says(
    either: Ww, leftovers: LeftoversFixture, machine: str, profile: str
) -> None:
    host = under(profile)
    with loaded(profile), leftovers(either):
        code, found = doctor(either, host)
        ran = either.call([*host, *either.command, "run", HELLO])
    check_doctor(TABLE[machine], code, found)
    check_run(TABLE[machine], ran, found)
    assert f"'{host[2]}'" in ran.stderr.decode()


def test_root_whose_profile_takes_its_capabilities_is_refused_and_told_so(
    ww: Ww, leftovers: LeftoversFixture
) -> None:
    host = under(NO_CAPABILITIES)
    with loaded(NO_CAPABILITIES), leftovers(ww):
        ran = ww.call([*host, *ww.command, "run", HELLO])
    line = ran.stderr.decode()
    assert (ran.returncode, ran.stdout, line.count("\n")) == (67, b"", 1)
    assert line.startswith("ww: error: jail: spawner: setgroups: Operation not permitted (")
    assert "the AppArmor profile 'probe-no-capabilities' may forbid it" in line


@needs_userns
def test_ubuntus_profile_for_who_makes_a_user_namespace_refuses_what_the_table_says(
    ww: Ww, ordinary_account: Account, leftovers: LeftoversFixture
) -> None:
    line = TABLE["Ubuntu 24.04 and GitHub's ubuntu-24.04, an ordinary user"]
    profile = UBUNTUS.read_text().replace(" flags=(complain)", "")
    assert "profile unprivileged_userns {" in profile
    ordinary = ww.as_user(ordinary_account)
    setting = SETTING.format(name="apparmor_restrict_unprivileged_userns", value=1)
    ids = f"--reuid={ordinary_account.uid} --regid={ordinary_account.gid} --clear-groups"
    script = f'{setting}\nexec setpriv {ids} "$@"'
    host = ["unshare", "--mount", "bash", "-ec", script, "bash"]
    environment = ordinary.environment({"PYTHONPATH": str(REPO)})
    told = []
    with loaded(profile), leftovers(ordinary):
        for arguments in (["doctor", "--json"], ["run", str(HELLO)]):
            command = [*host, sys.executable, "-c", CHANGING, *arguments]
            told.append(ww.call(command, env=environment, cwd=ordinary.tmp))
    found = rows_of(told[0])
    check_doctor(line, told[0].returncode, found)
    check_run(line, told[1], found)


@needs_userns
def test_the_documented_profile_lifts_a_restriction_for_the_interpreter(
    either: Ww, leftovers: LeftoversFixture, tmp_path: Path
) -> None:
    text = documented("ww-interpreter")
    interpreter = Path(sys.executable).resolve()
    profile = re.sub(r"/usr/bin/python3\S*", str(interpreter), text)
    assert str(interpreter) in profile
    label = "import sys; sys.stdout.write(open('/proc/self/attr/apparmor/current').read())"
    with loaded(profile), leftovers(either):
        confined = either.call([sys.executable, "-c", label])
        code, _ = doctor(either)
        ran = either.run("run", HELLO)
    assert confined.stdout == b"ww-interpreter (unconfined)\n"
    assert (code, ran.returncode, ran.stderr) == (0, 0, b"")


# What a cell is asked for beside: directories, a name below /proc/self/fd, a network of its own.
ALL = ("--fd", "a=3,pathlink=true", "--dir", "/usr/share", "--net", "loopback", HELLO)


@needs_userns
def test_under_the_documented_rules_everything_works(
    either: Ww, leftovers: LeftoversFixture
) -> None:
    profile = documented("ww-job")
    host = under(profile)
    with loaded(profile), leftovers(either):
        code, _ = doctor(either, host)
        ran = either.call([*host, *either.command, "run", *ALL], fds={3: Path("/etc/os-release")})
    assert (code, ran.returncode, ran.stderr) == (0, 0, b"")


RULES = (
    *("userns", "capability", "mount", "umount", "pivot_root", "file", "unix", "signal"),
    *("network netlink", "flags=(attach_disconnected)"),
)


@needs_userns
def test_the_documented_rules_are_these() -> None:
    text = documented("ww-job")
    body = re.sub(r"#.*", "", text[text.index("{") + 1 : text.index("}")])
    found = [rule.strip() for rule in body.split(",") if rule.strip()]
    assert found == [rule for rule in RULES if "flags" not in rule]
    assert text.count("flags=(attach_disconnected)") == 1


@needs_userns
@pytest.mark.parametrize("rule", RULES)
def test_without_one_of_the_documented_rules_nothing_runs(
    ww: Ww, ordinary_account: Account, leftovers: LeftoversFixture, rule: str
) -> None:
    ordinary = ww.as_user(ordinary_account)
    text = documented("ww-job")
    profile = text.replace(rule, "", 1) if "flags" in rule else text.replace(f"  {rule},", "", 1)
    assert profile != text
    host = under(profile)
    with loaded(profile), leftovers(ordinary):
        ran = ordinary.call(
            [*host, *ordinary.command, "run", *ALL], fds={3: Path("/etc/os-release")}
        )
    assert ran.returncode != 0, "it is not needed"
    assert ran.stdout == b""

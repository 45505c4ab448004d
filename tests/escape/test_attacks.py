"""What a native program in the cell's place tries, and must fail at.

The system call filter is not part of this: what is tried here fails without it.
"""

import errno
import os
import socket
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.jail.inside import attempt

# Attacks of which every call must fail, and those whose other calls do no harm.
HOPELESS = (
    "write-root",
    "mount",
    "setuid",
    "mknod",
    "sethostname",
)


@pytest.fixture
def probe(native_probe: BuildFunction) -> Path:
    return native_probe("probe")


@pytest.mark.parametrize("attack", HOPELESS)
def test_the_jail_refuses(ww_account: Ww, probe: Path, attack: str) -> None:
    results = attempt(ww_account, probe, attack)
    assert {what: r for what, r in results.items() if r[0] >= 0} == {}


def test_no_path_leads_to_the_host(ww_account: Ww, probe: Path) -> None:
    results = attempt(ww_account, probe, "read-host")
    # What lies above the root is the root, which is empty: another test holds that.
    found = {what for what, r in results.items() if r[0] >= 0}
    assert found <= {"stat ..", "open ..", "stat ../..", "open ../.."}


def test_no_capability_can_be_had_back(ww_account: Ww, probe: Path) -> None:
    results = attempt(ww_account, probe, "capabilities")
    for what in ("capset all", "raise ambient", "clear securebits", "set KEEPCAPS"):
        assert results[what] == (-1, errno.EPERM), what
    assert results["clear no_new_privs"][0] == -1


def test_no_other_process_can_be_seen_or_joined(ww_account: Ww, probe: Path) -> None:
    results = attempt(ww_account, probe, "setns")
    assert results["pidfd_open 2"] == (-1, errno.ESRCH)
    assert results["open /proc/1/ns/mnt"] == (-1, errno.ENOENT)


def test_no_file_can_be_opened_by_handle(ww_account: Ww, probe: Path) -> None:
    given = ww_account.file("given")
    results = attempt(ww_account, probe, "open-by-handle", flags=["--fd", "a=3"], fds={3: given})
    opened = {what: r for what, r in results.items() if what.startswith("open_by_handle_at")}
    assert opened
    assert all(r[0] == -1 for r in opened.values())


def test_no_descriptor_leads_to_a_directory(ww_account: Ww, probe: Path) -> None:
    given = ww_account.file("given")
    results = attempt(ww_account, probe, "openat", flags=["--fd", "a=3,target=7"], fds={3: given})
    assert any("openat 7 " in what for what in results)
    assert all(r[0] == -1 for r in results.values())


def test_no_limit_can_be_raised(ww_account: Ww, probe: Path) -> None:
    results = attempt(ww_account, probe, "rlimits")
    raised = {what: r for what, r in results.items() if what.startswith("raise")}
    assert len(raised) >= 4
    assert all(r == (-1, errno.EPERM) for r in raised.values())


def test_a_server_on_the_hosts_loopback_cannot_be_reached(ww_account: Ww, probe: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        results = attempt(ww_account, probe, "connect", str(server.getsockname()[1]))
    connects = {what: r for what, r in results.items() if what.startswith("connect")}
    assert connects
    assert all(r[0] == -1 for r in connects.values())


def test_an_abstract_socket_of_the_host_cannot_be_reached(ww_account: Ww, probe: Path) -> None:
    name = f"ww-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        results = attempt(ww_account, probe, "connect-abstract", name)
    assert results["connect abstract socket"] == (-1, errno.ECONNREFUSED)


def test_the_example_attack_cell_breaks_nothing(ww_account: Ww) -> None:
    # The same attacks from inside WebAssembly, with grants of each mode to start from.
    given = ww_account.file("given", b"unchanged")
    done = ww_account.shell(
        "ww run --fd input=3,mode=r,pathlink=true --fd output=4,mode=w,target=20 "
        f"{Path(__file__).parents[2]}/examples/escape/escape.wasm 3<>given 4>out 5</etc/passwd"
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert b"BROKEN" not in done.stdout
    assert b"held" in done.stdout
    assert given.read_bytes() == b"unchanged"

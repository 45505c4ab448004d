"""The weaker isolation: for root, by name, where a machine refuses namespaces."""

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from tests.conftest import CAN_BE_ROOT, EXAMPLES, PROBES, REPO, BuildFunction, Leftovers, Ww
from tests.features import needs
from tests.jail.inside import report, variant

HELLO = EXAMPLES / "hello" / "hello.wasm"
WEAKER = ("--isolation", "chroot")
# What docker's default profile does to ww, as far as it concerns namespaces and mounts.
CONTAINER = [["clone3", errno.ENOSYS], ["unshare", errno.EPERM], ["mount", errno.EPERM]]
CONTAINER += [["fsopen", errno.EPERM], ["pivot_root", errno.EPERM], ["keyctl", errno.EPERM]]

as_root = needs("root", CAN_BE_ROOT, "only root can change its root directory")


def in_container(ww: Ww, *args: str | Path) -> tuple[int, str, str]:
    refusing = [sys.executable, str(PROBES / "refuse.py"), json.dumps(CONTAINER)]
    done = ww.call([*refusing, *ww.command, *args])
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@as_root
def test_where_no_namespace_may_be_made_a_cell_runs_only_if_the_weaker_mode_is_named(
    ww: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    with leftovers(ww):
        code, out, err = in_container(ww, "run", HELLO)
        assert (code, out) == (67, "")
        assert err.startswith("ww: error: jail: namespaces: clone3: ")
        code, out, err = in_container(ww, "run", *WEAKER, HELLO)
        assert (code, err) == (0, "")
        assert out.startswith("Hello from a cell.")


@as_root
def test_its_process_has_no_file_no_privilege_and_no_id_of_root(
    ww: Ww, native_probe: BuildFunction
) -> None:
    found = report(ww, native_probe("probe"), *WEAKER)
    assert found["uids"] == found["gids"] == [65534] * 3
    assert found["groups"] == []
    for name in ("effective", "permitted", "inheritable", "bounding", "ambient"):
        assert int(found[f"cap_{name}"], 16) == 0
    assert found["no_new_privs"] == 1
    assert sorted(found["fds"]) == ["0", "1", "2"]
    assert not found["root"]  # nothing can be listed there
    assert not found["controlling_terminal"]


@as_root
@pytest.mark.parametrize("attack", ["read-host", "write-root", "mknod", "setuid"])
def test_its_process_reaches_no_file_of_the_host(
    ww: Ww, native_probe: BuildFunction, attack: str
) -> None:
    command: list[str | Path] = [
        *variant("native"),
        "run",
        *WEAKER,
        native_probe("probe"),
        "try",
        attack,
    ]
    lines = [json.loads(line) for line in ww.call(command).stdout.splitlines()]
    assert lines
    # What lies above the root is the root itself, which is empty.
    allowed = {"stat ..", "open ..", "stat ../..", "open ../..", "stat /", "open /"}
    assert {line["what"] for line in lines if line["ret"] >= 0} <= allowed


@as_root
@pytest.mark.parametrize("attack", ["chroot", "unshare", "ptrace", "sockets", "fork", "exec"])
def test_its_system_call_filter_is_that_of_every_cell(
    ww: Ww, native_probe: BuildFunction, attack: str
) -> None:
    command: list[str | Path] = [
        *variant("filtered"),
        "run",
        *WEAKER,
        native_probe("probe"),
        "try",
        attack,
    ]
    done = ww.call(command)
    assert done.returncode == 67, done.stdout
    assert b"broke its isolation" in done.stderr


@as_root
@pytest.mark.parametrize(
    "flags", [("--dir", "/"), ("--scratch", "1M"), ("--net", "loopback")], ids=lambda f: f[0]
)
def test_what_takes_a_namespace_is_refused_in_it(ww: Ww, flags: tuple[str, str]) -> None:
    done = ww.run("run", *WEAKER, *flags, HELLO)
    assert (done.returncode, done.stdout) == (67, b"")
    assert done.stderr.startswith(b"ww: error: jail: root: ")


@as_root
@pytest.mark.parametrize(("function", "step"), [("leave_files", "root"), ("change_ids", "ids")])
def test_a_step_of_it_that_fails_is_named_and_nothing_runs(
    ww: Ww, leftovers: Callable[..., Leftovers], function: str, step: str
) -> None:
    patch = f"""
from sandbox import chroot
def fail(*args):
    raise OSError(1, "Operation not permitted", "injected call")
chroot.{function} = fail
"""
    with leftovers(ww):
        done = ww.call([*variant(patch), "run", *WEAKER, HELLO])
    assert (done.returncode, done.stdout) == (67, b"")
    assert done.stderr.startswith(f"ww: error: jail: {step}: injected call: ".encode())


@as_root
def test_nothing_is_left_of_one_that_is_killed_while_it_changes_its_root(
    leftovers: Callable[..., Leftovers],
) -> None:
    script = """
import os, signal
from sandbox import chroot
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
os.open = os.waitid = die
chroot.leave_files()
"""
    with leftovers():
        done = subprocess.run([sys.executable, "-c", script], cwd=REPO, check=False)
    assert done.returncode == -signal.SIGKILL


@as_root
def test_a_root_that_could_not_end_the_cell_is_refused_before_there_is_one(
    ww: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    without = ["setpriv", "--bounding-set", "-kill", *ww.command, "run"]
    text = '(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))'
    loop = ww.file("loop.wasm", bytes(wasmtime.wat2wasm(text)))
    with leftovers(ww):
        done = ww.call([*without, *WEAKER, HELLO])
        assert (done.returncode, done.stdout) == (67, b"")
        assert b"jail: root: without CAP_KILL nobody could end the cell" in done.stderr
        # In a namespace of its own, a cell is its maker's to end.
        assert ww.call([*without, "--timeout", "1", loop]).returncode == 66


def test_an_ordinary_user_cannot_use_it(ww_account: Ww) -> None:
    if ww_account.account.uid == 0:
        assert ww_account.run("run", *WEAKER, HELLO).returncode == 0
        return
    done = ww_account.run("run", *WEAKER, HELLO)
    assert (done.returncode, done.stdout) == (67, b"")
    assert b"only root can use --isolation chroot" in done.stderr


@as_root
def test_explain_says_that_it_is_weaker(ww: Ww) -> None:
    done = ww.run("run", "--explain", "--json", *WEAKER, HELLO)
    jail = json.loads(done.stdout)["jail"]
    assert jail["isolation"] == "chroot"
    assert jail["namespaces"] == "none: those of the host"

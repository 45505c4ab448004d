"""The weaker isolation, `--isolation chroot`: no namespaces, but all the other layers.

What it shares with the host by design, its network and its process numbers, only the system call
filter and Landlock keep from the cell.
"""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import landlock
from tests.conftest import CAN_BE_ROOT, BuildFunction, Ww
from tests.features import needs
from tests.jail.inside import LAST, call, perform

pytestmark = needs("root", CAN_BE_ROOT, "only root can use it")

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
CHROOT = ("--isolation", "chroot")


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


@pytest.fixture
def outside(ww: Ww) -> Iterator[int]:
    """A process of the very id that the cell's has."""
    with ww.start(["setpriv", "--reuid", "65534", "--clear-groups", "sleep", "60"]) as process:
        try:
            yield process.pid
            assert process.poll() is None
        finally:
            process.kill()


def test_in_a_chroot_no_path_leads_out(ww: Ww, program: Path) -> None:
    paths = ("/etc/passwd", "../etc/passwd", "../" * 20 + "etc/passwd", "/proc", "/dev", "/sys")
    calls = [call("openat", CWD, path, os.O_PATH) for path in paths]
    tried = perform(ww, "native", program, *calls, flags=CHROOT)
    assert tried.refusals() == [errno.ENOENT] * len(paths)


def test_in_a_chroot_there_is_no_second_one(ww: Ww, program: Path) -> None:
    # A way out: another root further down, and a working directory that stays above it.
    tried = perform(
        ww,
        "native",
        program,
        call("chroot", "/"),
        call("chroot", "."),
        call("mount", "none", "/", "tmpfs", 0, None),
        call("mkdirat", CWD, "new", 0o700),
        call("unshare", 0x00020000),
        flags=CHROOT,
    )
    refused = tried.refusals()
    assert [refused[i] for i in (0, 1, 2, 4)] == [errno.EPERM] * 4
    assert refused[3] in (errno.EACCES, errno.ENOENT, errno.EROFS)


def test_in_a_chroot_the_callers_other_descriptors_are_gone(ww: Ww, program: Path) -> None:
    given = {3: Path("/dev/null"), 4: Path("/"), 500: Path("/etc")}
    flags = [*CHROOT, "--fd", "a=3"]
    tried = perform(ww, "native", program, call("count-descriptors"), flags=flags, fds=given)
    assert tried.all() == [(4, 0)]


@needs("landlock", landlock.abi() >= 6, "this kernel's Landlock knows nothing of signals")
def test_in_a_chroot_no_other_process_can_be_signalled_or_traced(
    ww: Ww, program: Path, outside: int
) -> None:
    # A stranger that the kernel would take for one of its own, but for Landlock.
    tried = perform(
        ww,
        "native",
        program,
        call("kill", outside, 0),
        call("kill", outside, 9),
        call("ptrace", 0x4206, outside, 0, 0),
        call("other-memory", outside, 0),
        flags=CHROOT,
    )
    assert tried.refusals() == [errno.EPERM] * 4


@needs("landlock", landlock.abi() >= 6, "this kernel's Landlock knows nothing of sockets")
def test_in_a_chroot_no_server_of_the_host_can_be_reached(ww: Ww, program: Path) -> None:
    name = f"\0ww-test-{os.getpid()}-chroot"
    address = b"\1\0" + name.encode()
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as inet:
        local.bind(name)
        local.listen()
        port = inet.getsockname()[1]
        internet = b"\2\0" + port.to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + bytes(8)
        tried = perform(
            ww,
            "native",
            program,
            call("socket", 1, 1, 0),
            call("connect", LAST, address, len(address)),
            call("socket", 2, 1, 0),
            call("connect", LAST, internet, 16),
            flags=CHROOT,
        )
    results = tried.all()
    assert results[1::2] == [(-1, errno.EPERM), (-1, errno.EACCES)]


@pytest.mark.parametrize(
    "attack",
    [
        call("socket", 2, 2, 0),
        call("clone", 17, 0, 0, 0, 0),
        call("chroot", "/"),
        call("pidfd_open", 1, 0),
        call("keyctl", 0, -3, 0),
    ],
)
def test_in_a_chroot_the_filter_is_the_same(ww: Ww, program: Path, attack: str) -> None:
    assert perform(ww, "filtered", program, attack, flags=CHROOT).is_killed_at(attack)

"""A component's process, taken over: its filter lets threads be made, and what else does it give?

A native program has the cell's place, under the filter of a component that runs.
"""

import errno
import mmap
import os
import signal
import struct
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.jail.inside import AT, SAVED, call, perform
from tests.probes.variant import FILTERED, NATIVE

# Both filters of a component, in place of those of a core module.
LAYER = (
    (NATIVE + FILTERED)
    .replace(
        'install(seccomp.build(profiles("cell", plan)[1]))',
        'install(seccomp.build("run-component"))',
    )
    .replace(
        "def confine",
        "from sandbox import jail, lane\n"
        "from sandbox import order as orders\n"
        'profiles = ("load-component", "run-component")\n'
        "order = orders.order\n"
        "lane.order = lambda *a, **b: order(*a, **b)._replace(profiles=profiles)\n"
        "jail.profiles = lambda *a: profiles\n\n"
        "def confine",
    )
)
assert LAYER.count('"run-component"') == 2

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
PAGE = mmap.PAGESIZE
# include/uapi/linux/sched.h: what pthread_create(3) asks for, and some of what it is made of.
THREAD = 0x3D0F00
CLONE_VM, CLONE_THREAD, CLONE_FILES = 0x100, 0x10000, 0x400
NEW = {"mount": 0x00020000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


ATTACKS = (
    call("io_uring_setup", 1, bytes(120)),
    call("bpf", 5, bytes(128), 128),
    call("ptrace", 16, 1, 0, 0),
    call("unshare", NEW["user"]),
    call("setns", 0, 0),
    call("mount", "none", "/", "tmpfs", 0, None),
    call("execve", "/x", None, None),
    call("pidfd_open", 1, 0),
    call("other-memory", 1, 0),
    call("setuid", 0),
    call("personality", 0x0400000),
    call("socketpair", 1, 1, 0, AT),
    call("connect", 0, bytes(16), 16),
    call("bind", 0, bytes(16), 16),
    call("ioctl", 0, 0x5412, "x"),  # TIOCSTI
    call("seccomp", 1, 0, b"\0" * 16),
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_only_an_attack_does_ends_a_component_too(ww: Ww, program: Path, attack: str) -> None:
    assert perform(ww, LAYER, program, attack).is_killed_at(attack)


def test_it_can_make_threads_only(ww_account: Ww, program: Path) -> None:
    processes = [
        *(signal.SIGCHLD, 0, CLONE_VM | signal.SIGCHLD, 0x4000 | CLONE_VM | signal.SIGCHLD),
        *(THREAD ^ CLONE_THREAD, THREAD ^ CLONE_FILES, THREAD | 0x80000000, 1 << 32 | THREAD),
        *(THREAD | kind for kind in NEW.values()),
        *(kind | signal.SIGCHLD for kind in NEW.values()),
    ]
    calls = [call("clone", flags, 0, 0, 0, 0) for flags in processes]
    tried = perform(ww_account, LAYER, program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)


def test_calls_whose_arguments_no_filter_sees_do_not_exist(ww_account: Ww, program: Path) -> None:
    thread = struct.pack("11Q", THREAD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    process = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    how = struct.pack("3Q", os.O_RDWR, 0, 0)
    calls = [
        *(call("clone3", args, len(args)) for args in (thread, process)),
        *(call("openat2", CWD, name, how, len(how)) for name in ("/", "/fd", "/proc/self/mem")),
    ]
    tried = perform(ww_account, LAYER, program, *calls)
    assert tried.refusals() == [errno.ENOSYS] * len(calls)


def test_it_makes_no_socket_and_sees_no_file_of_the_host(ww_account: Ww, program: Path) -> None:
    sockets = [call("socket", family, kind, 0) for family in (1, 2, 10, 16) for kind in (1, 2, 3)]
    paths = ("/etc/passwd", "../" * 20 + "etc/passwd", "/proc/self/mem", "/dev/null", "/sys")
    reads = [call("openat", CWD, path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    tried = perform(ww_account, LAYER, program, *sockets, *reads)
    assert tried.refusals() == [errno.EPERM] * len(sockets) + [errno.ENOENT] * len(reads)


def test_its_root_cannot_be_changed(ww_account: Ww, program: Path) -> None:
    nofollow = os.O_NOFOLLOW
    calls = [
        call("openat", CWD, "/new", nofollow | os.O_CREAT | os.O_WRONLY, 0o600),
        call("mkdirat", CWD, "/new", 0o700),
        call("symlinkat", "/", CWD, "/new"),
        call("openat", CWD, "/new", os.O_CREAT | os.O_WRONLY, 0o600),
        call("openat", CWD, "/", os.O_TMPFILE | os.O_RDWR, 0o600),
        call("openat", CWD, "/", os.O_PATH),
    ]
    refused = perform(ww_account, LAYER, program, *calls).refusals()
    assert set(refused[:3]) <= {errno.EROFS, errno.EACCES}
    assert refused[3:] == [errno.EPERM] * 3


def test_nothing_of_the_process_itself_can_be_changed(ww_account: Ww, program: Path) -> None:
    calls = [
        *(call("prctl", what, 1, 0, 0, 0) for what in (1, 4, 8, 22, 24, 28, 35, 36, 38, 47, 59)),
        call("sched_setaffinity", 0, 8, b"\1" + bytes(7)),
        call("memfd_create", "x", 0),
        call("tgkill", 2, 2, 9),
        call("kill", -1, 9),
        call("mmap", 0, PAGE, READ | EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
        call("mmap", 0, PAGE, READ, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0),
    ]
    tried = perform(ww_account, LAYER, program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)
    mapped = perform(
        ww_account,
        LAYER,
        program,
        call("mmap", 0, PAGE, READ | WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
        call("save"),
        call("mprotect", SAVED, PAGE, READ | EXEC),
    )
    assert mapped.all()[2] == (-1, errno.EPERM)


def test_a_granted_directory_stays_what_it_was_granted_as(ww_account: Ww, program: Path) -> None:
    folder = ww_account.tmp / "granted"
    folder.mkdir()
    (folder / "file").write_bytes(b"text")
    (folder / "out").symlink_to("/etc/passwd")
    folder.chmod(0o777)
    (folder / "file").chmod(0o666)
    if not ww_account.account.is_own:
        os.chown(folder, ww_account.account.uid, ww_account.account.gid)
    nofollow = os.O_NOFOLLOW
    tried = perform(
        ww_account,
        LAYER,
        program,
        call("openat", 9, "out", os.O_RDONLY),
        call("openat", 9, "../../etc/passwd", os.O_RDONLY),
        call("openat", 9, "file", nofollow | os.O_RDWR),
        call("openat", 9, "file", os.O_RDWR),
        call("unlinkat", 9, "file", 0),
        call("mkdirat", 9, "new", 0o700),
        call("openat", 9, "file", os.O_RDONLY),
        flags=["--dir", f"{folder}:/d", "--fd-map", "dir1=9"],
    )
    results = tried.all()
    assert results[-1][0] >= 0
    codes = [error for ret, error in results[:-1] if ret == -1]
    assert len(codes) == len(results) - 1
    assert codes[:2] == [errno.ENOENT] * 2
    assert codes[3] == errno.EPERM
    assert {codes[2], *codes[4:]} <= {errno.EROFS, errno.EACCES}

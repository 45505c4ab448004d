"""Other processes, identities and privileges, and what proc tells, tried by a native program."""

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Ww
from tests.jail.inside import (
    AT,
    LAST,
    MOUNTS_ONLY,
    call,
    needs_landlock,
    perform,
    variant,
)

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
# include/uapi/linux/prctl.h
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_SET_SECUREBITS = 4, 8, 23, 28
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 38, 47, 2
# include/uapi/linux/ptrace.h
PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE = 0, 16, 0x4206


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


@contextmanager
def victim(ww: Ww) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same account, outside; it must live on."""
    with ww.start(["sleep", "60"]) as process:
        try:
            yield process
            assert process.poll() is None
        finally:
            process.kill()


# --- signals, memory, descriptors of others -------------------------------------------------------


def test_a_process_outside_cannot_be_signalled(ww_account: Ww, program: Path) -> None:
    with victim(ww_account) as other:
        targets = (other.pid, -other.pid, os.getpid(), os.getppid(), -os.getpgrp(), -1)
        calls = [call("signals", target) for target in targets]
        tried = perform(ww_account, "native", program, *calls)
        assert tried.refusals() == [errno.ESRCH] * len(targets)


def test_signals_to_the_cells_own_group_reach_nobody_else(ww_account: Ww, program: Path) -> None:
    # Among them SIGKILL and SIGSTOP; it is the first of its namespace, and they leave it alone.
    tried = perform(ww_account, "native", program, call("signals", 0), call("getpid"))
    assert tried.all() == [(65, 0), (1, 0)]


def test_a_process_outside_cannot_be_opened_traced_or_read(ww_account: Ww, program: Path) -> None:
    with victim(ww_account) as other:
        tried = perform(
            ww_account,
            "native",
            program,
            call("pidfd_open", other.pid, 0),
            call("ptrace", PTRACE_SEIZE, other.pid, 0, 0),
            call("ptrace", PTRACE_ATTACH, other.pid, 0, 0),
            call("other-memory", other.pid, 0),
            call("other-memory", other.pid, 1),
            call("kcmp", 1, other.pid, 0, 0, 0),
            call("tgkill", other.pid, other.pid, 9),
            # The kernel refuses a made-up sender before it looks for the process; not this one.
            call("rt_sigqueueinfo", other.pid, 9, struct.pack("iii", 9, 0, -1) + bytes(116)),
            call("setpriority", 0, other.pid, 10),
            call("prlimit64", other.pid, resource.RLIMIT_CPU, bytes(16), None),
        )
    outcome = tried.refusals()
    assert outcome[5] in (errno.ESRCH, errno.ENOSYS)
    assert outcome[:5] + outcome[6:] == [errno.ESRCH] * 9


# What becomes ww is itself the peer of the socket that it grants.
WITH_ITSELF_AS_PEER = """
import os, socket, sys
granted, kept = socket.socketpair()
os.dup2(granted.fileno(), 63)
os.dup2(kept.fileno(), 64)
os.execv(sys.argv[1], sys.argv[1:])
"""
SO_PEERCRED, SO_PEERSEC, SO_PEERGROUPS, SO_PEERPIDFD = 17, 31, 59, 77
# include/uapi/linux/pidfd.h: PIDFD_GET_CGROUP_NAMESPACE and the nine that follow
NAMESPACES_OF_A_PIDFD = range(0xFF01, 0xFF0B)
NEW = {"mount": 0x00020000, "user": 0x10000000, "net": 0x40000000}


def test_the_peer_of_a_granted_socket_cannot_be_got_hold_of(ww_account: Ww, program: Path) -> None:
    # The kernel gives a descriptor of a process outside, which no number in the cell names. It is
    # ww's own; were it any good, the last line of this could not be read.
    pidfd = 3  # the lowest that is free
    tried = perform(
        ww_account,
        "native",
        program,
        call("getsockopt", 9, socket.SOL_SOCKET, SO_PEERPIDFD, AT, b"\4\0\0\0"),
        call("fcntl", pidfd, 1),
        *[call("pidfd_send_signal", pidfd, number, None, 0) for number in (0, 9, 19)],
        call("pidfd_getfd", pidfd, 0, 0),
        *[call("setns", pidfd, kind) for kind in NEW.values()],
        *[call("ioctl", pidfd, ask, 0) for ask in NAMESPACES_OF_A_PIDFD],
        before=[sys.executable, "-c", WITH_ITSELF_AS_PEER],
        flags=["--fd", "s=63,target=9"],
    )
    results = tried.all()
    if results[0] == (-1, errno.ENOPROTOOPT):
        pytest.skip("this kernel gives no descriptor of a peer")
    assert results[:2] == [(0, 0), (1, 0)]
    assert results[2:5] == [(-1, errno.EINVAL)] * 3
    assert results[5:9] == [(-1, errno.EPERM)] * 4
    assert {ret for ret, _ in results[9:]} == {-1}
    assert {error for _, error in results[9:]} <= {errno.EACCES, errno.ENOTTY}


def test_under_the_filter_a_granted_socket_tells_nothing_of_its_peer(
    ww_account: Ww, program: Path
) -> None:
    options = (SO_PEERCRED, SO_PEERSEC, SO_PEERGROUPS, SO_PEERPIDFD, 1 << 32 | SO_PEERPIDFD)
    size = b"\x40\0\0\0"
    calls = [call("getsockopt", 9, socket.SOL_SOCKET, o, AT, size) for o in options]
    known = call("getsockopt", 9, socket.SOL_SOCKET, socket.SO_TYPE, AT, size)
    tried = perform(
        ww_account,
        "filtered",
        program,
        *calls,
        call("fcntl", 3, 1),
        known,
        before=[sys.executable, "-c", WITH_ITSELF_AS_PEER],
        flags=["--fd", "s=63,target=9"],
    )
    *refused, missing, told = tried.all()
    assert refused == [(-1, errno.EPERM)] * len(options)
    assert missing == (-1, errno.EBADF)
    assert told == (0, 0)


OTHERS = (
    call("ptrace", PTRACE_TRACEME, 0, 0, 0),
    call("ptrace", PTRACE_SEIZE, 1, 0, 0),
    call("other-memory", 1, 0),
    call("other-memory", 1, 1),
    call("kcmp", 1, 1, 0, 0, 0),
    call("pidfd_open", 1, 0),
    call("pidfd_getfd", 0, 0, 0),
    call("pidfd_send_signal", 0, 0, None, 0),
    call("rt_sigqueueinfo", 1, 0, bytes(128)),
    call("clone", signal.SIGCHLD, 0, 0, 0, 0),
    call("clone3", struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0), 88),
    call("clone", 0x50F00, 0, 0, 0, 0),  # as pthread_create(3) does
    call("execve", "/proc/self/exe", None, None),
)


@pytest.mark.parametrize("attack", OTHERS)
def test_a_cell_that_reaches_for_other_processes_is_ended(
    ww_account: Ww, program: Path, attack: str
) -> None:
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_a_signal_to_any_number_but_its_own_is_refused(ww_account: Ww, program: Path) -> None:
    targets = (-1, 0, 2, os.getpid(), 1 << 32 | 2)
    calls = [call("kill", target, 0) for target in (*targets, 1)]
    calls += [call("tgkill", target, target, 0) for target in targets]
    tried = perform(ww_account, "filtered", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)


# --- identities and privileges --------------------------------------------------------------------


def test_no_capability_can_be_had_back_one_by_one(ww_account: Ww, program: Path) -> None:
    # Every bit of the sets: also those that no header has a name for yet.
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    calls = []
    for number in range(64):
        half = [1 << number % 32 if number // 32 == n else 0 for n in (0, 1)]
        data = struct.pack("6I", half[0], half[0], half[0], half[1], half[1], half[1])
        calls.append(call("capset", header, data))
        calls.append(call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))
        calls.append(call("prctl", PR_CAPBSET_READ, number))
    calls += [call("capget", header, AT), call("peek", 0), call("peek", 8), call("peek", 16)]
    results = perform(ww_account, "native", program, *calls).all()
    for number in range(64):
        capset, ambient, bounding = results[3 * number : 3 * number + 3]
        if number <= last:
            assert (capset, ambient) == ((-1, errno.EPERM), (-1, errno.EPERM)), number
            assert bounding == (0, 0), number
        else:
            # The kernel takes no notice of the first: what counts is what it says afterwards.
            assert ambient == bounding == (-1, errno.EINVAL), number
    assert results[-4:] == [(0, 0)] * 4


# Another program would lose what was left. This is what the cell's host has itself.
CAPABILITIES = """
import prctl
from sandbox import lifeline, syscalls

tie = lifeline.tie

def after_tying(line):
    tie(line)
    print(any(syscalls.capability_sets()), prctl.get_no_new_privs(), flush=True)

lifeline.tie = after_tying
"""


def test_the_process_that_becomes_a_cell_has_no_capability_itself(ww_account: Ww) -> None:
    hello = EXAMPLES / "hello" / "hello.wasm"
    assert ww_account.run("run", hello).returncode == 0  # compiled, where nothing is printed
    done = ww_account.call([*variant(CAPABILITIES), "run", hello])
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == b"False 1"


def test_no_lock_on_privileges_can_be_undone(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        *[call("prctl", PR_SET_SECUREBITS, bits) for bits in (0, 1, 0x10, 0xEF, 0xFF)],
        call("prctl", PR_SET_KEEPCAPS, 1),
        call("prctl", PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0),
        call("setgroups", 0, None),
        call("setgroups", 1, b"\0\0\0\0"),
        call("setuid", 0),
        call("setgid", 0),
        call("setresuid", 0, 0, 0),
    )
    refused = tried.refusals()
    assert refused[:6] == [errno.EPERM] * 6
    assert refused[6] == errno.EINVAL
    assert refused[7:9] == [errno.EPERM] * 2
    # There is no other id in the namespace.
    assert refused[9:] == [errno.EINVAL] * 3


@pytest.mark.parametrize(
    "attack",
    [
        call("setuid", 65534),
        call("setgid", 65534),
        call("setresuid", -1, -1, -1),
        call("setgroups", 0, None),
        call("setfsuid", 0),
        call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24)),
    ],
)
def test_a_cell_that_changes_its_identity_is_ended(
    ww_account: Ww, program: Path, attack: str
) -> None:
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_no_priority_can_be_raised(ww_account: Ww, program: Path) -> None:
    fifo = struct.pack("IIQiIQQQ", 48, 1, 0, 0, 1, 0, 0, 0)
    calls = [
        call("setpriority", 0, 0, -1),
        call("sched_setscheduler", 0, 1, b"\1\0\0\0"),
        call("sched_setscheduler", 0, 2, b"\1\0\0\0"),
        call("sched_setattr", 0, fifo, 0),
        call("ioprio_set", 1, 0, 1 << 13),
    ]
    refused = perform(ww_account, "native", program, *calls).refusals()
    assert refused == [errno.EACCES, *[errno.EPERM] * 4]
    tried = perform(ww_account, "filtered", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)


def test_priorities_of_all_of_ones_own_id_reach_no_process_outside(
    ww_account: Ww, program: Path
) -> None:
    # The cell has an ordinary user's id on the host, as the victim has; root's cell has nobody's.
    user, group = 2, 1  # PRIO_USER, PRIO_PGRP
    libc = ctypes.CDLL(None)
    ioprio_get = {"x86_64": 252, "aarch64": 31}[platform.machine()]
    with victim(ww_account) as other:

        def now() -> tuple[int, int, set[int], int]:
            stat = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
            policy = int(stat[38])  # the 41st of all; proc_pid_stat(5)
            nice = os.getpriority(os.PRIO_PROCESS, other.pid)
            ionice = libc.syscall(ioprio_get, 1, other.pid)
            return nice, ionice, os.sched_getaffinity(other.pid), policy

        before = now()
        tried = perform(
            ww_account,
            "native",
            program,
            call("setpriority", user, 0, 19),
            call("setpriority", user, 65534, 19),
            call("setpriority", group, 0, 19),
            call("ioprio_set", 3, 65534, 3 << 13),  # IOPRIO_WHO_USER, the idle class
            call("sched_setaffinity", other.pid, 8, b"\1" + bytes(7)),
            call("sched_setscheduler", other.pid, 5, bytes(4)),  # SCHED_IDLE
            call("setpriority", 0, other.pid, 19),
            call("ioprio_set", 1, other.pid, 3 << 13),
        )
        assert now() == before
    results = tried.all()
    assert results[:4] == [(0, 0)] * 4
    assert results[4:] == [(-1, errno.ESRCH)] * 4


LIMITS = ("CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC")


def test_no_limit_can_be_raised_or_set_anew(ww_account: Ww, program: Path) -> None:
    numbers = [getattr(resource, f"RLIMIT_{name}") for name in (*LIMITS, "RTPRIO")]
    calls = [call("raise-limit", number) for number in numbers]
    tried = perform(ww_account, "native", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)
    new = [call("prlimit64", 0, number, bytes(16), None) for number in numbers]
    tried = perform(ww_account, "filtered", program, *new)
    assert tried.refusals() == [errno.EPERM] * len(new)


# --- proc, sys, devices ---------------------------------------------------------------------------


def proc(ww: Ww, layer: str, program: Path, *calls: str) -> list[tuple[int, int]]:
    """Make calls in a cell that has a proc, because it has a pathlink."""
    flags = ["--fd", "a=3,pathlink=true,target=9"]
    return perform(ww, layer, program, *calls, flags=flags, fds={3: Path("/dev/null")}).all()


def test_proc_shows_no_process_but_the_cells(ww_account: Ww, program: Path) -> None:
    with victim(ww_account) as other:
        numbers = (2, 3, other.pid, os.getpid(), os.getppid())
        paths = [f"/proc/{n}{rest}" for n in numbers for rest in ("", "/environ", "/root", "/mem")]
        calls = [call("openat", CWD, path, os.O_PATH) for path in paths]
        results = proc(ww_account, "native", program, *calls)
    assert results == [(-1, errno.ENOENT)] * len(paths)


def test_proc_shows_nothing_of_the_machine(ww_account: Ww, program: Path) -> None:
    names = (
        *("sys", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sysrq-trigger", "kcore"),
        *("kmsg", "kallsyms", "keys", "mem", "acpi", "scsi", "bus", "irq", "fs", "driver"),
        *("cpuinfo", "meminfo", "modules", "timer_list", "interrupts", "version", "cmdline"),
    )
    calls = [call("openat", CWD, f"/proc/{name}", os.O_PATH) for name in names]
    results = proc(ww_account, "native", program, *calls)
    assert results == [(-1, errno.ENOENT)] * len(names)


OWN_FILES = (
    *("mem", "uid_map", "gid_map", "setgroups", "projid_map", "oom_score_adj", "coredump_filter"),
    *("comm", "clear_refs", "timerslack_ns", "sched", "attr/exec", "attr/current", "loginuid"),
)


def test_nothing_of_proc_can_be_written(ww_account: Ww, program: Path) -> None:
    calls = [
        call("openat", CWD, f"/proc/self/{name}", how)
        for name in OWN_FILES
        for how in (os.O_WRONLY, os.O_RDWR)
    ]
    calls += [call("openat", CWD, "/proc/thread-self/mem", os.O_RDWR)]
    results = proc(ww_account, "native", program, *calls)
    errors = dict(zip(calls, results, strict=True))
    absent = {errno.ENOENT}  # what a kernel was built without
    assert {ret for ret, _ in results} == {-1}
    assert {error for _, error in results} <= {errno.EROFS, errno.EACCES, *absent}
    for name in ("mem", "uid_map", "setgroups", "oom_score_adj"):
        assert errors[call("openat", CWD, f"/proc/self/{name}", os.O_WRONLY)][1] not in absent


def test_without_landlock_the_mount_alone_keeps_proc_as_it_is(
    ww_account: Ww, program: Path
) -> None:
    paths = [f"/proc/{who}/{name}" for who in ("self", "1", "thread-self") for name in OWN_FILES]
    calls = [call("openat", CWD, path, os.O_WRONLY) for path in paths]
    results = proc(ww_account, MOUNTS_ONLY, program, *calls)
    # What a kernel was built without is not there, and what is a thread's is not the process's.
    assert set(results) <= {(-1, errno.EROFS), (-1, errno.ENOENT)}
    assert results.count((-1, errno.EROFS)) >= 24


@needs_landlock("of its own process in proc, a cell can read nothing")
def test_nothing_of_proc_can_be_read(ww_account: Ww, program: Path) -> None:
    # Landlock: neither the process's memory, nor where it comes from, nor the mounts of the jail.
    names = ("mem", "maps", "environ", "cmdline", "mountinfo", "status", "stat", "auxv", "cgroup")
    paths = [f"/proc/{who}/{name}" for who in ("self", "1", "thread-self") for name in names]
    paths += ["/proc", "/proc/self", "/proc/self/fd", "/proc/self/ns", "/proc/self/task", "/"]
    calls = [call("openat", CWD, path, os.O_RDONLY) for path in paths]
    results = proc(ww_account, "native", program, *calls)
    assert results == [(-1, errno.EACCES)] * len(paths)


def test_a_magic_link_of_proc_does_not_lead_out(ww_account: Ww, program: Path) -> None:
    links = ("self/root", "self/cwd", "1/root", "thread-self/root", "self/task/1/root")
    calls = [call("openat", CWD, f"/proc/{link}/../../etc/passwd", os.O_PATH) for link in links]
    calls += [call("openat", CWD, f"/proc/{link}/etc", os.O_PATH) for link in links]
    results = proc(ww_account, "native", program, *calls)
    assert results == [(-1, errno.ENOENT)] * len(calls)


def test_a_namespaces_link_cannot_be_joined(ww_account: Ww, program: Path) -> None:
    # Landlock has no word on these, which lie in a file system of the kernel's own. They are those
    # of the cell, and to join even them takes a privilege.
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
    calls = [
        one
        for kind in kinds
        for one in (call("openat", CWD, f"/proc/self/ns/{kind}", os.O_RDONLY), call("setns", LAST))
    ]
    results = proc(ww_account, "native", program, *calls)
    assert min(ret for ret, _ in results[::2]) >= 0
    *others, user = results[1::2]
    assert others == [(-1, errno.EPERM)] * len(others)
    assert user == (-1, errno.EINVAL)  # one cannot join the user namespace that one is in


def test_no_device_can_be_made_or_found(ww_account: Ww, program: Path) -> None:
    kinds = ((0o020666, 0x103), (0o020666, 0x101), (0o060666, 0x800), (0o010666, 0), (0o140666, 0))
    makes = [call("mknodat", CWD, "/node", mode, number) for mode, number in kinds]
    names = ("null", "mem", "kmsg", "tty", "ptmx", "pts", "fuse", "kvm", "shm", "net/tun")
    opens = [call("openat", CWD, f"/dev/{name}", os.O_PATH) for name in names]
    refused = perform(ww_account, "native", program, *makes, *opens).refusals()
    assert set(refused[:5]) <= {errno.EROFS, errno.EPERM, errno.EACCES}
    assert refused[5:] == [errno.ENOENT] * len(names)
    for attack in makes[:1]:
        assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_there_is_no_sys_and_no_control_group_to_write(ww_account: Ww, program: Path) -> None:
    paths = ("/sys", "/sys/kernel", "/sys/fs/cgroup", "/sys/fs/cgroup/cgroup.procs", "/run", "/etc")
    calls = [call("openat", CWD, path, os.O_PATH) for path in paths]
    assert proc(ww_account, "native", program, *calls) == [(-1, errno.ENOENT)] * len(paths)

"""The system call filters: what each lets through, what it refuses, and what it kills for.

Two ways, because each has a gap: an interpreter here runs the compiled programs over many arguments
and for both machines, and forked children meet the kernel with the filters installed.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn, get_args

import prctl
import pytest

from sandbox import JailError, seccomp, syscalls
from sandbox.seccomp import Call, Profile
from tests.conftest import CAN_BE_ROOT, ORDINARY_ID, REPO
from tests.features import needs

PROFILES: tuple[Profile, ...] = get_args(Profile)
MACHINES = ("x86_64", "aarch64")
MACHINE = platform.machine()

# Return values of a filter; include/uapi/linux/seccomp.h.
ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
ENOSYS = 0x00050000 | errno.ENOSYS
# include/uapi/linux/audit.h
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
X32 = 0x40000000
ALL_ONES = (1 << 64) - 1
# More than there are, and than there will be soon.
MOST_NUMBERS = 600

Arguments = Sequence[int]

library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
libc = ctypes.CDLL(None, use_errno=True)


def number_of(name: str, machine: str = MACHINE) -> int | None:
    """A call's number; `None` if the machine has no such call, or libseccomp does not know it."""
    token = ARCHITECTURES[machine]
    found: int = library.seccomp_syscall_resolve_name_arch(token, name.encode())
    return found if found >= 0 else None


# --- the programs, interpreted -------------------------------------------------------------------


class Verdict(NamedTuple):
    action: int
    steps: int


def interpret(program: bytes, machine: str, number: int, arguments: Arguments) -> Verdict:
    """Run a program as the kernel would, over struct seccomp_data; bpf(4) names the opcodes."""
    signed = struct.unpack("<i", struct.pack("<I", number))[0]
    data = struct.pack("<iIQ6Q", signed, ARCHITECTURES[machine], 0, *arguments)
    at = accumulator = steps = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        steps += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= k
            case 0x05:  # BPF_JMP | BPF_JA
                at += k
            case 0x15:  # BPF_JEQ
                at += if_true if accumulator == k else if_false
            case 0x25:  # BPF_JGT
                at += if_true if accumulator > k else if_false
            case 0x35:  # BPF_JGE
                at += if_true if accumulator >= k else if_false
            case 0x06:  # BPF_RET | BPF_K
                return Verdict(k, steps)
            case _:
                raise AssertionError(f"opcode {code:#x}")


def by_tables(profile: Profile, machine: str, name: str | None, arguments: Arguments) -> int:
    """What the tables say of a call."""

    def is_in(calls: tuple[Call, ...]) -> bool:
        return any(
            call.name == name and all(arguments[c[0]] & c.mask == c.value for c in call.checks)
            for call in calls
        )

    if is_in(seccomp.fatal(profile)):
        return KILL
    if is_in(seccomp.missing(profile)):
        return ENOSYS
    return ALLOW if is_in(seccomp.allowed(profile, machine)) else EPERM


def interesting(calls: Sequence[Call], chance: random.Random) -> Iterator[list[int]]:
    """Arguments: any; those that pass a check, with rubbish where it does not look; one bit off."""
    yield [0] * 6
    yield [ALL_ONES] * 6
    for _ in range(3):
        yield [chance.getrandbits(64) for _ in range(6)]
    for call in calls:
        for _ in range(12):
            arguments = [chance.choice((0, 1, chance.getrandbits(64))) for _ in range(6)]
            for check in call.checks:
                rubbish = chance.choice((0, chance.getrandbits(64))) & ~check.mask & ALL_ONES
                arguments[check.argument] = check.value | rubbish
            yield list(arguments)
            for check in call.checks:
                arguments[check.argument] ^= 1 << chance.randrange(64)
                yield list(arguments)


def cases(machine: str) -> Iterator[tuple[int, str | None, list[int]]]:
    """Number, name if a table has it, and arguments, for every number that there can be."""
    calls = {
        call
        for p in PROFILES
        for call in (*seccomp.allowed(p, machine), *seccomp.fatal(p), *seccomp.missing(p))
    }
    by_number: dict[int, list[Call]] = {}
    for call in sorted(calls):
        number = number_of(call.name, machine)
        if number is not None:
            by_number.setdefault(number, []).append(call)
    chance = random.Random(1)
    for number in range(MOST_NUMBERS):
        known = by_number.get(number, [])
        for arguments in interesting(known, chance):
            yield number, known[0].name if known else None, arguments


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_program_says_what_the_tables_say(profile: Profile, machine: str) -> None:
    program = seccomp.assemble(profile, machine)
    newer = set(range(440, MOST_NUMBERS))  # of these a library may know the names or not
    for number, name, arguments in cases(machine):
        found = interpret(program, machine, number, arguments).action
        if name is None and number in newer:
            assert found in (EPERM, KILL)
            continue
        assert found == by_tables(profile, machine, name, arguments), (number, name, arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_look_up_is_short(profile: Profile, machine: str) -> None:
    program = seccomp.assemble(profile, machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 512
    steps = [interpret(program, machine, n, a).steps for n, _, a in cases(machine)]
    assert max(steps) < 40


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("before", "profile"),
    [("load", p) for p in ("compile", "run", "run-reading")]
    + [("load-directories", "run-directories"), ("load-component", "run-component")],
)
def test_a_second_filter_never_allows_what_the_first_refuses(
    before: Profile, profile: Profile, machine: str
) -> None:
    first, second = seccomp.assemble(before, machine), seccomp.assemble(profile, machine)
    for number, name, arguments in cases(machine):
        if interpret(second, machine, number, arguments).action == ALLOW:
            found = interpret(first, machine, number, arguments).action
            assert found == ALLOW, (number, name, arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_other_architectures_and_x32_are_killed(profile: Profile, machine: str) -> None:
    program = seccomp.assemble(profile, machine)
    for other in ARCHITECTURES.keys() - {machine}:
        for number in (0, 1, 20, 39, 59, 93, 231):
            assert interpret(program, other, number, [0] * 6).action == KILL
    if machine == "x86_64":
        for number in (*range(MOST_NUMBERS), 0x3FFFFFFF):
            assert interpret(program, machine, X32 | number, [0] * 6).action == KILL
            assert interpret(program, machine, 0x80000000 | number, [0] * 6).action == KILL


def test_the_programs_are_the_same_on_every_build() -> None:
    script = (
        "import sys; from sandbox import seccomp\n"
        "for profile in sys.argv[1:]: sys.stdout.write(seccomp.build(profile).hex() + '\\n')"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, *PROFILES],
            cwd=REPO,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().split() == [seccomp.build(p).hex().encode() for p in PROFILES]


# What the tables must say, said again by hand. Arguments that are not given are 0.

O_NOFOLLOW = {"x86_64": 0o400000, "aarch64": 0o100000}
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
OWN_MEMORY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
HIGH = 0xDEADBEEF << 32
POINTER = 0x7F0000001000

LOADING: tuple[Profile, ...] = ("load", "load-directories")
READING: tuple[Profile, ...] = (*LOADING, "run-reading", "run-directories")
WRITING: tuple[Profile, ...] = ("load-directories", "run-directories")
RUNNING: tuple[Profile, ...] = ("run", "run-reading", "run-directories")
CORE: tuple[Profile, ...] = (*LOADING, "compile", *RUNNING)
EXPECTED: tuple[tuple[str, Arguments, tuple[Profile, ...], int], ...] = (
    # Memory is never made executable once code runs that may be hostile.
    ("mprotect", (0, 4096, READ | WRITE), CORE, ALLOW),
    ("mprotect", (0, 4096, READ | EXEC), RUNNING, EPERM),
    ("mprotect", (0, 4096, EXEC), CORE, EPERM),
    ("mprotect", (0, 4096, HIGH | READ), RUNNING, EPERM),
    ("mprotect", (0, 4096, READ | EXEC), ("load", "compile"), ALLOW),
    ("mprotect", (0, 4096, READ | WRITE | EXEC), CORE, EPERM),
    ("mprotect", (0, 4096, 0x01000000 | READ), CORE, EPERM),  # PROT_GROWSDOWN
    ("mmap", (0, 4096, READ | WRITE, OWN_MEMORY), CORE, ALLOW),
    ("mmap", (0, 4096, READ | EXEC, OWN_MEMORY), CORE, EPERM),
    ("mmap", (0, 4096, READ, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS), CORE, EPERM),
    ("mmap", (0, 4096, READ, mmap.MAP_PRIVATE, 3), (*RUNNING, "compile"), EPERM),
    ("mmap", (0, 4096, READ | EXEC, mmap.MAP_PRIVATE, 3), CORE, EPERM),
    ("mmap", (0, 4096, READ | WRITE, mmap.MAP_PRIVATE, 3), ("load",), ALLOW),
    ("mmap", (0, 4096, READ, mmap.MAP_SHARED, 3), CORE, EPERM),
    ("mremap", (0, 4096, 8192, 1), RUNNING, EPERM),
    ("mremap", (0, 4096, 8192, 3, POINTER), CORE, EPERM),  # MREMAP_FIXED
    ("madvise", (0, 4096, 4), CORE, ALLOW),
    ("madvise", (0, 4096, 12), CORE, EPERM),  # MADV_MERGEABLE
    ("memfd_create", (), CORE, EPERM),
    # Opening.
    ("open", (POINTER,), CORE, EPERM),
    ("openat2", (3, POINTER), CORE, EPERM),
    ("openat", (3, POINTER), ("run", "compile"), EPERM),
    ("openat", (3, POINTER, os.O_CLOEXEC), ("run-directories",), EPERM),
    ("openat", (3, POINTER, os.O_CLOEXEC), ("load",), ALLOW),
    ("openat", (3, POINTER, os.O_WRONLY), CORE, EPERM),
    ("openat", (3, POINTER, os.O_RDONLY | os.O_TRUNC), CORE, EPERM),
    ("openat", (3, POINTER, os.O_RDONLY | os.O_CREAT), CORE, EPERM),
    # One's own signals, limits and descriptors only.
    ("tgkill", (1, 1, signal.SIGABRT), CORE, ALLOW),
    ("tgkill", (HIGH | 1, 1, signal.SIGABRT), CORE, ALLOW),
    ("tgkill", (2, 2, signal.SIGABRT), CORE, EPERM),
    ("tkill", (2, signal.SIGABRT), CORE, EPERM),
    ("kill", (ALL_ONES, signal.SIGKILL), CORE, EPERM),
    ("kill", (1, signal.SIGKILL), CORE, EPERM),
    ("prlimit64", (0, resource.RLIMIT_NOFILE, 0, POINTER), CORE, ALLOW),
    ("prlimit64", (0, resource.RLIMIT_NOFILE, POINTER), CORE, EPERM),
    ("prlimit64", (0, resource.RLIMIT_NOFILE, 1 << 32), CORE, EPERM),
    ("prlimit64", (2, resource.RLIMIT_NOFILE), CORE, EPERM),
    *(
        ("fcntl", (3, command), CORE, EPERM)
        for command in (
            *(fcntl.F_SETOWN, fcntl.F_SETSIG, 15, fcntl.F_NOTIFY, fcntl.F_SETLEASE),
            *(fcntl.F_SETLK, fcntl.F_OFD_SETLK, fcntl.F_ADD_SEALS, fcntl.F_SETPIPE_SZ),
        )
    ),
    ("fcntl", (3, fcntl.F_SETFL, os.O_APPEND), CORE, ALLOW),
    ("fcntl", (3, fcntl.F_SETFL, os.O_ASYNC | os.O_APPEND), CORE, EPERM),
    ("pwritev2", (3, POINTER, 1, 0, 0, 0), CORE, ALLOW),
    ("pwritev2", (3, POINTER, 1, 0, 0, 0x20), CORE, EPERM),  # RWF_NOAPPEND
    ("futex", (POINTER, 0), CORE, ALLOW),
    ("futex", (POINTER, 9 | 128 | 256), CORE, ALLOW),
    ("futex", (POINTER, 6 | 128), CORE, EPERM),  # FUTEX_LOCK_PI
    ("futex", (POINTER, 12), CORE, EPERM),  # FUTEX_CMP_REQUEUE_PI
    # Devices.
    ("ioctl", (3, termios.FIONREAD), (*RUNNING, "load"), ALLOW),
    ("ioctl", (3, termios.TCGETS), CORE, EPERM),
    ("ioctl", (3, termios.FIOASYNC), CORE, EPERM),
    ("ioctl", (3, 0x8933), CORE, EPERM),  # SIOCGIFINDEX
    *(
        ("ioctl", (3, high | request), CORE, KILL)
        for request in (0x5412, 0x541C, 0x541D, 0x5423)
        for high in (0, 1 << 32, HIGH, 0xFFFFFFFF << 32)
    ),
    # Sockets that are there.
    ("sendto", (3, POINTER, 1), (*RUNNING, "load"), ALLOW),
    ("sendto", (3, POINTER, 1, 0, POINTER, 16), CORE, EPERM),
    ("sendto", (3, POINTER, 1, 0, 1 << 32, 16), CORE, EPERM),
    ("sendmsg", (3, POINTER), (*RUNNING, "load", "compile"), EPERM),
    *(
        (call, arguments, CORE, EPERM)
        for call, arguments in (
            ("sendto", (3, POINTER, 1, socket.MSG_OOB)),
            ("sendmsg", (3, POINTER, socket.MSG_OOB)),
            ("recvfrom", (3, POINTER, 1, socket.MSG_OOB)),
            ("recvmsg", (3, POINTER, HIGH | socket.MSG_OOB)),
            ("recvmsg", (3, POINTER, socket.MSG_ERRQUEUE)),
        )
    ),
    ("getsockopt", (3, socket.SOL_SOCKET, socket.SO_TYPE), (*RUNNING, "load"), ALLOW),
    ("getsockopt", (3, socket.IPPROTO_IP, 64), CORE, EPERM),
    ("getsockopt", (3, socket.SOL_SOCKET, 77), CORE, EPERM),  # SO_PEERPIDFD
    ("setsockopt", (3, socket.SOL_SOCKET), CORE, EPERM),
    # Files that are there.
    ("utimensat", (3, 0, POINTER), (*RUNNING, "load"), ALLOW),
    ("utimensat", (3, POINTER, POINTER), CORE, EPERM),
    ("fallocate", (3, 0, 0, 4096), (*RUNNING, "load"), ALLOW),
    ("fallocate", (3, 3, 0, 4096), CORE, EPERM),  # FALLOC_FL_PUNCH_HOLE
    ("newfstatat", (3, POINTER, POINTER, 0x1000), CORE, ALLOW),
    ("newfstatat", (3, POINTER, POINTER, 0), CORE, EPERM),
    *(
        (name, (), CORE, EPERM)
        for name in (
            *("fchmod", "fchmodat", "fchown", "fchownat", "fsetxattr", "setxattr", "fremovexattr"),
            *("chmod", "chown", "truncate", "faccessat", "statfs", "fstatfs", "sync", "syncfs"),
            *("copy_file_range", "sendfile", "splice", "tee", "flock", "inotify_init1"),
            *("epoll_create1", "eventfd2", "timerfd_create", "signalfd4", "pipe2", "dup", "fchdir"),
            *("prctl", "arch_prctl", "getcwd", "sysinfo", "uname", "wait4", "waitid", "setsid"),
            *("mlock", "mlockall", "mincore", "shmget", "semget", "msgget", "mq_open", "getdents"),
            *("setpriority", "sched_setaffinity", "sched_setscheduler", "ioprio_set", "setitimer"),
            *("landlock_restrict_self", "memfd_secret", "rseq", "get_robust_list", "sendmmsg"),
            *("umask", "sync_file_range"),
        )
    ),
    # Names below a directory, for the cells that have one.
    *(
        (name, (), profiles, action)
        for name in ("mkdirat", "unlinkat", "renameat", "symlinkat")
        for profiles, action in ((WRITING, ALLOW), (("load", "run", "run-reading"), EPERM))
    ),
    *(
        (name, (), profiles, action)
        for name in ("readlinkat", "getdents64")
        for profiles, action in ((READING, ALLOW), (("run", "compile"), EPERM))
    ),
    ("linkat", (3, POINTER, 4, POINTER, 0), ("load", "run", "run-reading"), EPERM),
    ("renameat2", (3, POINTER, 4, POINTER, 0), ("load", "run", "run-reading"), EPERM),
    ("linkat", (3, POINTER, 4, POINTER, 0), ("run-directories",), ALLOW),
    ("linkat", (3, POINTER, 4, POINTER, 0x400), CORE, EPERM),  # AT_SYMLINK_FOLLOW
    ("linkat", (3, POINTER, 4, POINTER, 0x1000), CORE, EPERM),  # AT_EMPTY_PATH
    ("renameat2", (3, POINTER, 4, POINTER, 1), ("run-directories",), ALLOW),
    ("renameat2", (3, POINTER, 4, POINTER, 2), CORE, EPERM),  # RENAME_EXCHANGE
    ("renameat2", (3, POINTER, 4, POINTER, 4), CORE, EPERM),  # RENAME_WHITEOUT
    ("newfstatat", (3, POINTER, POINTER, 0x100), ("run-directories",), ALLOW),
    ("utimensat", (3, POINTER, POINTER, 0x100), ("run-directories",), ALLOW),
    # Filters.
    ("seccomp", (1, 1, POINTER), ("load",), ALLOW),
    ("seccomp", (1, 1 << 3, POINTER), ("load",), EPERM),  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    ("seccomp", (1, 1, POINTER), ("compile", *RUNNING), KILL),
    ("statx", (3, POINTER), ("load",), ALLOW),
    ("statx", (3, POINTER), ("compile", *RUNNING), EPERM),
    ("membarrier", (1 << 5,), ("load", "compile"), ALLOW),
    ("membarrier", (1 << 5,), RUNNING, EPERM),
    ("chdir", (POINTER,), ("compile", *RUNNING), EPERM),
)

# What ends the process; every number is tried in the kernel too.
KILLED = (
    *("execve", "execveat", "fork", "vfork", "clone", "clone3"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "rt_sigqueueinfo", "move_pages"),
    *("mount", "umount2", "pivot_root", "chroot", "swapon", "swapoff", "quotactl"),
    *("open_tree", "move_mount", "mount_setattr", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("setns", "unshare", "name_to_handle_at", "open_by_handle_at", "mknod", "mknodat"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark", "vmsplice"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit"),
    *("add_key", "request_key", "keyctl"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"),
    *("syslog", "acct", "iopl", "ioperm", "modify_ldt", "vhangup", "settimeofday"),
    *("clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname"),
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"),
    *("setgroups", "capset", "setrlimit"),
    *("personality", "pkey_mprotect", "remap_file_pages"),
    *("socket", "socketpair", "connect", "bind", "listen"),
)

# Where components differ: their host, the engine's own, makes threads. All else that holds for
# every profile of core modules holds for theirs too.
COMPONENT: tuple[Profile, ...] = ("load-component", "run-component")
THREAD = 0x3D0F00
DIFFERENT = {
    *("clone", "clone3", "openat2", "socket", "prctl", "rseq", "getcwd"),
    *("epoll_create1", "eventfd2"),
}
OF_COMPONENTS: tuple[tuple[str, Arguments, tuple[Profile, ...], int], ...] = (
    # A thread, made with exactly these flags, and nothing else that the call can make.
    ("clone", (THREAD, POINTER), COMPONENT, ALLOW),
    ("clone", (signal.SIGCHLD,), COMPONENT, EPERM),
    ("clone", (0,), COMPONENT, EPERM),
    *(("clone", (THREAD ^ 1 << bit, POINTER), COMPONENT, EPERM) for bit in range(64)),
    ("clone3", (POINTER, 88), COMPONENT, ENOSYS),
    ("openat2", (3, POINTER, POINTER, 24), COMPONENT, ENOSYS),
    ("socket", (2, 1), COMPONENT, EPERM),
    ("prctl", (15, POINTER), COMPONENT, ALLOW),  # PR_SET_NAME
    *(("prctl", (what, 0), COMPONENT, EPERM) for what in (1, 4, 8, 22, 24, 28, 36, 38, 47)),
    *((name, (), COMPONENT, ALLOW) for name in ("epoll_create1", "eventfd2", "rseq", "getcwd")),
    # A plain read is opened; nothing else, unless its name is no link.
    ("openat", (3, POINTER, os.O_CLOEXEC), COMPONENT, ALLOW),
    ("openat", (3, POINTER, os.O_RDWR), COMPONENT, EPERM),
    ("openat", (3, POINTER, os.O_RDONLY | os.O_CREAT), COMPONENT, EPERM),
    ("openat", (3, POINTER, os.O_PATH | os.O_CLOEXEC), COMPONENT, EPERM),
    ("openat", (3, POINTER, os.O_TMPFILE | os.O_RDWR), COMPONENT, EPERM),
    ("pwritev2", (3, POINTER, 1, 0, 0, 0x10), COMPONENT, ALLOW),  # RWF_APPEND
    ("statx", (3, POINTER, 0x1000), COMPONENT, ALLOW),
    ("statx", (3, POINTER, 0x100), COMPONENT, ALLOW),
    ("statx", (3, POINTER), ("run-component",), EPERM),
    ("mprotect", (0, 4096, READ | EXEC), ("run-component",), EPERM),
    ("mmap", (0, 4096, READ, mmap.MAP_PRIVATE, 3), ("run-component",), EPERM),
    ("seccomp", (1, 1, POINTER), ("run-component",), KILL),
)


def same_for_all(name: str, profiles: Sequence[Profile]) -> bool:
    return profiles == CORE and name not in DIFFERENT


@pytest.mark.parametrize("machine", MACHINES)
def test_each_profile_allows_what_it_must_and_refuses_what_it_must(machine: str) -> None:
    programs = {profile: seccomp.assemble(profile, machine) for profile in PROFILES}
    nofollow = O_NOFOLLOW[machine]
    with_machine: tuple[tuple[str, Arguments, tuple[Profile, ...], int], ...] = (
        ("openat", (3, POINTER, nofollow | os.O_DIRECTORY | os.O_NONBLOCK), READING, ALLOW),
        *(
            ("openat", (3, POINTER, nofollow | flag, 0o600), ("load", "run-reading"), EPERM)
            for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC)
        ),
        ("openat", (3, POINTER, HIGH | nofollow | os.O_WRONLY), ("run-directories",), ALLOW),
        ("openat", (3, POINTER, nofollow | os.O_CREAT, 0o777), ("run-directories",), ALLOW),
        *(
            ("openat", (3, POINTER, nofollow | os.O_CREAT, mode), CORE, EPERM)
            for mode in (0o4755, 0o2755, 0o1777)
        ),
        ("openat", (3, POINTER, nofollow), ("run", "compile"), EPERM),
        ("openat", (3, POINTER, nofollow ^ 0o500000), ("run-directories",), EPERM),
    )
    for name, given, profiles, expected in (*EXPECTED, *with_machine, *OF_COMPONENTS):
        number = number_of(name, machine)
        if number is None:
            continue
        arguments = [*given, *[0] * (6 - len(given))]
        for profile in (*profiles, *(COMPONENT if same_for_all(name, profiles) else ())):
            found = interpret(programs[profile], machine, number, arguments).action
            assert found == expected, (profile, name, [hex(a) for a in arguments])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_only_an_attack_calls_is_killed_whatever_its_arguments(
    profile: Profile, machine: str
) -> None:
    program = seccomp.assemble(profile, machine)
    numbers = {name: number_of(name, machine) for name in KILLED}
    for name, number in numbers.items():
        if number is not None:
            if profile in COMPONENT and name in DIFFERENT:
                continue
            for arguments in ([0] * 6, [ALL_ONES] * 6, [POINTER] * 6):
                assert interpret(program, machine, number, arguments).action == KILL, name


# --- in the kernel -------------------------------------------------------------------------------

_DONE = 0
_RAISED = 70


def in_jail(profiles: Sequence[Profile], act: Callable[[], Any]) -> tuple[int, str]:
    """Run a function in a child under some filters.

    Returns:
        How the child ended (0, or less than 0 for a signal), and what the function raised.
    """
    programs = [seccomp.build(profile) for profile in profiles]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_jailed(programs, act, write)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with open(read, "rb") as file:
        said = file.read().decode()
    return os.waitstatus_to_exitcode(status), said


def _be_jailed(programs: Sequence[bytes], act: Callable[[], Any], report: int) -> NoReturn:
    try:
        prctl.set_dumpable(0)  # a kill by a filter would leave a core file
        if CAN_BE_ROOT:
            os.setresuid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
        prctl.set_no_new_privs(1)
        for program in programs:
            seccomp.install(program)
        act()
    except BaseException as error:
        os.write(report, repr(error).encode())
        os._exit(_RAISED)
    os._exit(_DONE)


def raw(number: int, *arguments: int) -> int:
    """A system call; raises OSError."""
    values = [ctypes.c_ulong(a) for a in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *values)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def own_number(name: str) -> int:
    number = number_of(name)
    if number is None:
        pytest.skip(f"{MACHINE} has no {name}")
    return number


def refused(act: Callable[[], Any]) -> Callable[[], None]:
    """Turn a function into one that raises unless the call is refused with EPERM."""

    def check() -> None:
        try:
            result = act()
        except OSError as error:
            if error.errno == errno.EPERM:
                return
            raise
        raise AssertionError(f"allowed: {result!r}")

    return check


class Things:
    """What a cell's process has open, made before the filters."""

    def __init__(self, folder: str) -> None:
        self.folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_RDWR | os.O_CREAT
        self.file = os.open("file", flags, 0o666, dir_fd=self.folder)
        os.write(self.file, b"0123456789")
        os.lseek(self.file, 0, os.SEEK_SET)
        os.symlink("file", "link", dir_fd=self.folder)
        if CAN_BE_ROOT:
            os.fchown(self.file, ORDINARY_ID, ORDINARY_ID)
            os.fchown(self.folder, ORDINARY_ID, ORDINARY_ID)
        self.pipe = os.pipe()
        self.null = os.open("/dev/null", os.O_RDWR)
        self.pair = socket.socketpair()
        self.pair[1].send(b"sent before")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(self.listener.getsockname())
        self.buffer = bytearray(4)

    def close(self) -> None:
        for fd in (self.folder, self.file, *self.pipe, self.null):
            os.close(fd)
        for one in (*self.pair, self.listener, self.client):
            one.close()

    # Everything that the host does for a cell, as it does it.

    def read_and_write(self) -> None:
        os.readv(self.file, [self.buffer])
        os.writev(self.file, [b"a", b"b"])
        os.preadv(self.file, [self.buffer], 1)
        os.pwritev(self.file, [b"c"], 0)
        os.read(self.file, 1)
        os.write(self.file, b"d")
        os.pread(self.file, 1, 0)
        os.pwrite(self.file, b"e", 0)
        os.lseek(self.file, 0, os.SEEK_CUR)

    def change(self) -> None:
        os.fstat(self.file)
        os.ftruncate(self.file, 5)
        os.posix_fallocate(self.file, 0, 10)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_WILLNEED)
        os.fsync(self.file)
        os.fdatasync(self.file)
        os.utime(self.file)
        os.utime(self.file, ns=(1, 2))

    def flags(self) -> None:
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL)
        fcntl.fcntl(self.file, fcntl.F_SETFL, flags | os.O_APPEND | os.O_NONBLOCK)
        copy = fcntl.fcntl(self.file, fcntl.F_DUPFD_CLOEXEC, 0)
        os.get_inheritable(copy)
        os.set_inheritable(copy, True)
        os.set_inheritable(copy, False)
        os.dup2(self.null, copy, inheritable=False)
        os.close(copy)
        os.close(os.dup(self.file))

    def sockets(self) -> None:
        again = socket.socket(fileno=os.dup(self.pair[0].fileno()))
        again.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        again.recvmsg_into([self.buffer], 0, socket.MSG_PEEK)
        again.recvmsg_into([self.buffer], 0, socket.MSG_WAITALL)
        again.recv(1)
        with pytest.raises(PermissionError):
            again.sendmsg([b"a", b"b"])
        again.send(b"c")
        again.setblocking(False)
        again.shutdown(socket.SHUT_RDWR)
        again.close()
        connection, _ = self.listener.accept()
        connection.close()

    def wait(self) -> None:
        poller = select.poll()
        poller.register(self.pipe[0], select.POLLIN)
        poller.poll(1)
        os.write(self.pipe[1], b"x")
        fcntl.ioctl(self.pipe[0], termios.FIONREAD, bytes(4))
        time.sleep(0.001)
        for clock in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_PROCESS_CPUTIME_ID):
            time.clock_gettime(clock)
            time.clock_getres(clock)

    def go_on(self) -> None:
        os.urandom(16)
        os.getpid()
        os.getppid()
        os.sched_yield()
        resource.getrlimit(resource.RLIMIT_NOFILE)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

    def use_memory(self) -> None:
        blocks = [bytearray(n) for n in (100, 5_000, 300_000, 50_000_000) for _ in range(3)]
        for block in blocks:
            block.extend(bytes(len(block)))
        blocks.clear()
        base = syscalls.reserve(1 << 32)
        syscalls.make_accessible(base, 1 << 16)
        ctypes.memset(base, 1, 1 << 16)

    def names(self) -> None:
        at = self.folder
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        os.mkdir("sub", 0o777, dir_fd=at)
        sub = os.open("sub", os.O_PATH | os.O_DIRECTORY | flags, dir_fd=at)
        made = os.open("new", os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666, dir_fd=sub)
        os.close(made)
        os.stat("new", dir_fd=sub, follow_symlinks=False)
        os.utime("new", dir_fd=sub, follow_symlinks=False)
        os.utime("new", ns=(1, 2), dir_fd=sub, follow_symlinks=False)
        os.link("new", "hard", src_dir_fd=sub, dst_dir_fd=at, follow_symlinks=False)
        os.rename("new", "moved", src_dir_fd=sub, dst_dir_fd=at)
        os.symlink("moved", "soft", dir_fd=at)
        os.readlink("soft", dir_fd=at)
        os.unlink("hard", dir_fd=at)
        os.rmdir("sub", dir_fd=at)
        os.listdir(at)
        with os.scandir(at) as entries:
            list(entries)
        os.lseek(at, 0, os.SEEK_SET)
        syscalls.getdents64(at, 4096)
        os.fsync(at)


@pytest.fixture
def things(tmp_path: Any) -> Iterator[Things]:
    made = Things(str(tmp_path))
    yield made
    made.close()


SERVICES = ("read_and_write", "change", "flags", "sockets", "wait", "go_on", "use_memory")


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("profile", RUNNING)
def test_a_running_cell_is_served(profile: Profile, service: str, things: Things) -> None:
    load: Profile = "load-directories" if profile == "run-directories" else "load"
    assert in_jail([load, profile], getattr(things, service)) == (0, "")


def test_names_in_a_directory_are_served(things: Things) -> None:
    assert in_jail(["load-directories", "run-directories"], things.names) == (0, "")
    for profile in ("run", "run-reading"):
        assert in_jail(["load", profile], things.names)[0] == _RAISED


@pytest.mark.parametrize("service", ["read_and_write", "go_on", "use_memory"])
def test_a_compilation_has_files_and_memory(service: str, things: Things) -> None:
    assert in_jail(["load", "compile"], getattr(things, service)) == (0, "")


@pytest.mark.parametrize("name", KILLED)
def test_the_kernel_kills_for_an_attack(name: str) -> None:
    number = own_number(name)
    # With these a call that came through would do no harm.
    ended, said = in_jail(["load", "run"], lambda: raw(number, *[ALL_ONES] * 6))
    assert (ended, said) == (-signal.SIGSYS, "")


def test_the_first_filter_kills_by_itself() -> None:
    for name in ("execve", "clone3", "socket", "personality"):
        number = own_number(name)
        ended, _ = in_jail(["load"], partial(raw, number, *[ALL_ONES] * 6))
        assert ended == -signal.SIGSYS


@pytest.mark.parametrize("request_code", [0x5412, 0x541C])
@pytest.mark.parametrize("high", [0, 1 << 32, HIGH])
def test_nothing_is_typed_on_a_terminal(request_code: int, high: int, things: Things) -> None:
    number = own_number("ioctl")
    ended, _ = in_jail(["load", "run"], lambda: raw(number, things.null, high | request_code, 0))
    assert ended == -signal.SIGSYS


@needs("x86-64", MACHINE == "x86_64", "x32 is a part of x86-64")
@pytest.mark.parametrize("profile", PROFILES)
def test_x32_is_killed(profile: Profile) -> None:
    for number in (39, 0, 520, 512):  # getpid, read; execve and rt_sigaction of x32
        ended, _ = in_jail([profile], partial(raw, X32 | number))
        assert ended == -signal.SIGSYS


@needs("x86-64", MACHINE == "x86_64", "int 0x80 is an instruction of x86")
@pytest.mark.parametrize("profile", PROFILES)
def test_the_32_bit_entry_is_killed(profile: Profile) -> None:
    # mov eax, 20 (getpid of i386); int 0x80; ret
    code = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE, READ | WRITE | EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    enter = ctypes.CFUNCTYPE(ctypes.c_int)(address)
    if in_jail([], enter)[0] != _DONE:
        pytest.skip("this kernel has no 32-bit entry")
    assert in_jail([profile], enter)[0] == -signal.SIGSYS


def test_nothing_becomes_executable_once_code_runs() -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    number = own_number("mprotect")

    def make_executable() -> None:
        raw(number, address, mmap.PAGESIZE, READ | EXEC)

    assert in_jail(["load"], make_executable) == (0, "")
    assert in_jail(["load", "compile"], make_executable) == (0, "")
    for profile in RUNNING:
        assert in_jail(["load", profile], refused(make_executable)) == (0, "")
        ended, said = in_jail(
            ["load", profile], refused(lambda: mmap.mmap(-1, 4096, prot=READ | EXEC))
        )
        assert (ended, said) == (0, "")


def test_an_executable_mapping_reaches_no_further_into_its_file(tmp_path: Any) -> None:
    (tmp_path / "code").write_bytes(bytes(2 * mmap.PAGESIZE))
    with open(tmp_path / "code", "rb") as file:
        code = mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, READ | WRITE | EXEC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    number = own_number("mremap")

    def extend() -> None:
        raw(number, address, mmap.PAGESIZE, 2 * mmap.PAGESIZE, 1)

    assert in_jail([], extend) == (0, "")
    assert in_jail(["load", "run"], refused(extend)) == (0, "")


def test_limits_are_read_and_never_set() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def set_limit() -> None:
        libc.setrlimit.argtypes = (ctypes.c_int, ctypes.c_char_p)
        if libc.setrlimit(resource.RLIMIT_NOFILE, struct.pack("QQ", soft, hard)):
            raise OSError(ctypes.get_errno(), "setrlimit")

    assert in_jail([], set_limit) == (0, "")
    assert in_jail(["load", "run"], refused(set_limit)) == (0, "")


def test_no_file_is_opened_once_code_runs(things: Things) -> None:
    def act() -> None:
        for path in ("/dev/null", "/", "file"):
            refused(partial(os.open, path, os.O_RDONLY, dir_fd=things.folder))()
        refused(lambda: os.open("file", os.O_NOFOLLOW, dir_fd=things.folder))()

    assert in_jail(["load", "run"], act) == (0, "")


def test_a_link_is_never_followed(things: Things) -> None:
    def act() -> None:
        at = things.folder
        os.close(os.open("file", os.O_RDWR | os.O_NOFOLLOW, dir_fd=at))
        refused(lambda: os.open("link", os.O_RDONLY, dir_fd=at))()
        refused(lambda: os.open(f"/proc/self/fd/{things.file}", os.O_RDWR))()
        refused(lambda: os.stat("link", dir_fd=at))()
        refused(lambda: os.link(f"/proc/self/fd/{things.file}", "new", dst_dir_fd=at))()

    assert in_jail(["load-directories", "run-directories"], act) == (0, "")


def test_a_file_gets_no_foreign_identity(things: Things) -> None:
    def act() -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        refused(lambda: os.open("set-id", flags, 0o4755, dir_fd=things.folder))()
        refused(lambda: os.fchmod(things.file, 0o4755))()
        refused(lambda: os.fchown(things.file, -1, -1))()
        refused(lambda: os.setxattr(things.file, "user.x", b""))()

    assert in_jail(["load-directories", "run-directories"], act) == (0, "")


def test_nobody_is_signalled() -> None:
    def act() -> None:
        for pid in (os.getppid(), os.getpid(), 0, -1):
            refused(partial(os.kill, pid, 0))()

    assert in_jail(["load", "run"], act) == (0, "")


def test_a_message_goes_where_the_socket_leads(things: Things) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        address = things.listener.getsockname()

        def act() -> None:
            refused(lambda: unconnected.sendto(b"x", address))()
            refused(lambda: things.pair[0].send(b"x", socket.MSG_OOB))()
            refused(lambda: things.pair[0].recv(1, socket.MSG_OOB))()
            refused(lambda: things.pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1))()

        assert in_jail(["load", "run"], act) == (0, "")


def test_the_second_filter_is_the_last() -> None:
    program = seccomp.build("run")
    assert in_jail(["load", "run", "run"], lambda: None)[0] == -signal.SIGSYS
    # By way of prctl(2), too: 22 is PR_SET_SECCOMP.
    ended, said = in_jail(
        ["load", "run"], refused(lambda: raw(own_number("prctl"), 22, 2, id(program)))
    )
    assert (ended, said) == (0, "")


def test_a_filter_is_for_all_threads(things: Things) -> None:
    number = own_number("socket")

    def act() -> None:
        def late() -> None:
            os.read(things.pipe[0], 1)
            raw(number, socket.AF_UNIX, socket.SOCK_STREAM, 0)

        thread = threading.Thread(target=late)
        thread.start()
        seccomp.install(seccomp.build("load"))
        os.write(things.pipe[1], b"x")
        thread.join()

    seccomp.build("load")
    assert in_jail([], act)[0] == -signal.SIGSYS


def test_a_filter_needs_no_new_privs_and_a_valid_program() -> None:
    def without() -> None:
        if prctl.get_no_new_privs():
            raise PermissionError(errno.EACCES, "inherited, so there is nothing to see")
        seccomp.install(seccomp.build("run"))

    seccomp.build("run")
    pid = os.fork()
    if pid == 0:
        if CAN_BE_ROOT:
            os.setresuid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
        try:
            without()
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EACCES

    ended, said = in_jail([], lambda: seccomp.install(bytes(8)))
    assert ended == _RAISED
    assert said == repr(OSError(errno.EINVAL, os.strerror(errno.EINVAL), "seccomp"))


# --- where libseccomp is not as it should be -----------------------------------------------------


@pytest.fixture
def no_library() -> Iterator[None]:
    """Forget the library that was loaded, before and after."""
    seccomp._library.cache_clear()
    yield
    seccomp._library.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(JailError, match=r"libseccomp\.so\.2: cannot open") as caught:
        seccomp.assemble("run", MACHINE)
    assert caught.value.step == "seccomp"


@pytest.mark.usefixtures("no_library")
def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_version", lambda library: (2, 3))
    with pytest.raises(JailError, match=r"libseccomp 2\.3 is too old"):
        seccomp.assemble("run", MACHINE)


@pytest.mark.usefixtures("no_library")
def test_a_library_without_the_binary_tree_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    new = seccomp.assemble("run", MACHINE)
    monkeypatch.setattr(seccomp, "_version", lambda library: (2, 4))
    old = seccomp.assemble("run", MACHINE)
    assert old != new
    for number, _, arguments in cases(MACHINE):
        expected = interpret(new, MACHINE, number, arguments).action
        assert interpret(old, MACHINE, number, arguments).action == expected


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(JailError, match="riscv64"):
        seccomp.assemble("run", "riscv64")


def test_a_call_that_the_library_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "allowed", lambda profile, machine: (Call("no_such_call"),))
    with pytest.raises(JailError, match="no_such_call"):
        seccomp.assemble("run", MACHINE)


def test_the_documents_count_the_calls_right() -> None:
    text = (REPO / "docs/security.md").read_text()
    counted = {
        profile: len({call.name for call in seccomp.allowed(profile, "x86_64")})
        for profile in PROFILES
    }
    assert (
        f"There are {counted['run']} of them ({counted['run-reading']} with a directory for"
        f" reading, {counted['run-directories']} with a writable one,"
        f" {counted['run-component']} for a component)" in text
    )
    assert f"That is {counted['run-component']}\ncalls." in text

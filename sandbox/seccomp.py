"""Steps 12 and 14: which system calls remain, as filters that libseccomp compiles; seccomp(2).

A profile is a list of calls that are allowed, some of them only with certain arguments. What is
not allowed and what only an attack does ends the process; everything else fails with EPERM, so
that a library that merely tries something goes on without it.

A cell's process gets two filters, and the kernel takes the stricter word of all that are
installed: ``load`` while its code is loaded, and, before that code runs, one of the others, each
of which allows nothing that ``load`` does not. A component is served by the engine's own WASI,
which uses threads: it has a pair of its own.

What a filter cannot see is memory behind a pointer: the names of files, which are Landlock's
business, and the descriptors (SCM_RIGHTS) that recvmsg(2) receives. sendmsg(2) is left out for that
reason.

This module holds the only declarations of libseccomp's functions; constants are named as in its
seccomp.h and in the kernel's headers.
"""

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

from sandbox import syscalls
from sandbox.errors import JailError

Profile = Literal[
    "load",
    "load-directories",
    "load-component",
    "compile",
    "run",
    "run-reading",
    "run-directories",
    "run-component",
]

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


class Check(NamedTuple):
    """A condition on an argument: what is left of it under a mask has a value.

    Attributes:
        argument: Which of the six, from 0.
        mask: The bits that count.
        value: What they must be.
    """

    argument: int
    mask: int
    value: int


class Call(NamedTuple):
    """A system call whose arguments meet all of some conditions.

    Attributes:
        name: As libseccomp knows it, which is as the kernel's tables do.
        checks: The conditions; none for any arguments.
    """

    name: str
    checks: tuple[Check, ...] = ()


def _is(argument: int, value: int, ignoring: int = 0) -> Check:
    """Compare an argument that the kernel takes as an int: it does not look at the upper half."""
    return Check(argument, _U32 & ~ignoring, value)


def _is_long(argument: int, value: int, ignoring: int = 0) -> Check:
    """Compare an argument of 64 bits: an unsigned long, or a pointer."""
    return Check(argument, _U64 & ~ignoring, value)


def _any(*names: str) -> tuple[Call, ...]:
    return tuple(Call(name) for name in names)


def _each(name: str, argument: int, values: Iterable[int], ignoring: int = 0) -> tuple[Call, ...]:
    """Name a call with any of some values of one argument, an int."""
    return tuple(Call(name, (_is(argument, value, ignoring),)) for value in values)


# include/uapi/asm-generic/mman-common.h and mman.h; PROT_BTI is in arm64's asm/mman.h.
_PROT_READ, _PROT_WRITE, _PROT_EXEC, _PROT_BTI = 1, 2, 4, 0x10
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x02, 0x10, 0x20
_MAP_NORESERVE, _MAP_STACK, _MAP_FIXED_NOREPLACE = 0x4000, 0x20000, 0x100000
_MAP_PLACING = _MAP_FIXED | _MAP_NORESERVE | _MAP_STACK | _MAP_FIXED_NOREPLACE
_MREMAP_MAYMOVE = 1
_MADV_NORMAL, _MADV_WILLNEED, _MADV_DONTNEED, _MADV_FREE = 0, 3, 4, 8
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
# include/uapi/asm-generic/fcntl.h and linux/fcntl.h
_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 1, 2, 3, 4, 1030
_F_GET_SEALS = 1034
_O_ASYNC, _O_CLOEXEC = 0o20000, 0o2000000
_AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_EMPTY_PATH = 0x100, 0x800, 0x1000
_S_ISUID_S_ISGID_S_ISVTX = 0o7000
# include/uapi/linux/fs.h
_RENAME_NOREPLACE = 1
# include/uapi/asm-generic/ioctls.h
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
_FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
# include/uapi/linux/futex.h
_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_REQUEUE, _FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET = 0, 1, 3, 9, 10
_FUTEX_PRIVATE_FLAG_AND_CLOCK_REALTIME = 128 | 256
# include/uapi/linux/membarrier.h
_MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE = 1 << 5
_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE = 1 << 6
# include/linux/socket.h and include/uapi/asm-generic/socket.h
_MSG_PEEK, _MSG_TRUNC, _MSG_DONTWAIT, _MSG_WAITALL = 0x2, 0x20, 0x40, 0x100
_MSG_NOSIGNAL, _MSG_CMSG_CLOEXEC = 0x4000, 0x40000000
_MSG_RECEIVING = _MSG_PEEK | _MSG_TRUNC | _MSG_DONTWAIT | _MSG_WAITALL | _MSG_CMSG_CLOEXEC
_MSG_SENDING = _MSG_DONTWAIT | _MSG_NOSIGNAL
_SOL_SOCKET = 1
_SO_TYPE, _SO_ACCEPTCONN, _SO_PROTOCOL = 3, 30, 38


class _Machine(NamedTuple):
    """What differs between the machines that ww knows.

    Attributes:
        token: AUDIT_ARCH_* of include/uapi/linux/audit.h.
        nofollow: O_NOFOLLOW.
        largefile: O_LARGEFILE, which musl sets though it means nothing here.
    """

    token: int
    nofollow: int
    largefile: int


# arch/arm64/include/uapi/asm/fcntl.h, and include/uapi/asm-generic/fcntl.h for the other.
_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0o400000, 0o100000),
    "aarch64": _Machine(0xC00000B7, 0o100000, 0o400000),
}
# What the newer architectures never had; C libraries use the next one there.
_ONLY_X86 = frozenset({"poll", "time", "epoll_wait"})

# --- what is allowed ----------------------------------------------------------------------------

# To go on, to wait, to know the time, and to end. Signals go to oneself only, which is how abort(3)
# ends: a process in its jail is the first of its pid namespace. The futex operations are those of
# locks and conditions; the ones with priority inheritance have a long history of bugs. Reading
# limits is what getrlimit(3) does.
_GO_ON = (
    *_any("exit", "exit_group", "restart_syscall", "sched_yield"),
    *_any("rt_sigreturn", "rt_sigprocmask", "rt_sigaction", "sigaltstack"),
    *_any("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    *_any("getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getrandom"),
    Call("tgkill", (_is(0, 1),)),
    Call("tkill", (_is(0, 1),)),
    Call("prlimit64", (_is(0, 0), _is_long(2, 0))),
    *_each(
        "futex",
        1,
        (_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_REQUEUE, _FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET),
        ignoring=_FUTEX_PRIVATE_FLAG_AND_CLOCK_REALTIME,
    ),
)

# Memory of one's own: private, of no file, and never executable. mremap(2) is not among it: the
# mapping of a cell's compiled form could be made to reach further into the file, where the cell's
# own data is, and would be executable there. Without it realloc(3) copies.
_MEMORY = (
    *_any("brk", "munmap"),
    Call(
        "mmap",
        (
            _is_long(2, 0, ignoring=_PROT_READ | _PROT_WRITE),
            _is_long(3, _MAP_PRIVATE | _MAP_ANONYMOUS, ignoring=_MAP_PLACING),
        ),
    ),
    Call("mprotect", (_is_long(2, 0, ignoring=_PROT_READ | _PROT_WRITE),)),
    *_each(
        "madvise",
        2,
        (
            *(_MADV_NORMAL, _MADV_WILLNEED, _MADV_DONTNEED, _MADV_FREE),
            *(_MADV_HUGEPAGE, _MADV_NOHUGEPAGE),
        ),
    ),
)

# Descriptors that are open already. Flags of preadv2(2) and pwritev2(2) could write past O_APPEND;
# O_ASYNC, the commands for owners, leases, seals and locks reach beyond the process or outlive it.
_DESCRIPTORS = (
    *_any("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev"),
    Call("preadv2", (_is(5, 0),)),
    Call("pwritev2", (_is(5, 0),)),
    *_any("lseek", "close", "dup3", "fstat", "ftruncate"),
    # fstat(3) of glibc 2.33 to 2.38
    Call("newfstatat", (_is(3, _AT_EMPTY_PATH),)),
    *_each("fcntl", 1, (_F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC, _F_GET_SEALS)),
    Call("fcntl", (_is(1, _F_SETFL), Check(2, _O_ASYNC, 0))),
)

# What WASI offers for files and devices beyond that. utimensat(2) without a name is futimens(3);
# fallocate(2) without flags only reserves. The four requests of ioctl(2) never reach a driver, but
# for FIONREAD.
_FILES = (
    *_any("fsync", "fdatasync", "fadvise64", "poll", "ppoll"),
    Call("fallocate", (_is(1, 0),)),
    Call("utimensat", (_is_long(1, 0),)),
    *_each("ioctl", 1, (_FIONREAD, _FIONBIO, _FIOCLEX, _FIONCLEX)),
)

# Sockets that are open already, as Python's socket module handles them. sendto(2) without an
# address is send(3); sendmsg(2) could pass descriptors to whoever is at the other end. The flags
# leave out what is rare and has had holes: MSG_OOB, MSG_ERRQUEUE, MSG_ZEROCOPY, MSG_FASTOPEN. The
# options are what it takes to tell what a socket is; SO_PEERPIDFD would give a descriptor of the
# process at the other end, which is outside.
_SOCKETS = (
    *_any("accept4", "shutdown", "getsockname"),
    *(
        Call("getsockopt", (_is(1, _SOL_SOCKET), _is(2, option)))
        for option in (_SO_TYPE, _SO_ACCEPTCONN, _SO_PROTOCOL)
    ),
    Call("recvfrom", (_is(3, 0, ignoring=_MSG_RECEIVING),)),
    Call("recvmsg", (_is(2, 0, ignoring=_MSG_RECEIVING),)),
    Call("sendto", (_is(3, 0, ignoring=_MSG_SENDING), _is_long(4, 0))),
)


def _reading(machine: _Machine) -> tuple[Call, ...]:
    """Return what a directory takes that is granted for reading, in the *at forms.

    No call follows a link at the end of a name, so none follows a magic one of proc: descriptors
    are not opened anew with another mode. Nothing is opened for writing: of a FIFO, a read-only
    mount would not keep a process from that.
    """
    changing = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
    return (
        *_any("readlinkat", "getdents64"),
        Call("openat", (Check(2, machine.nofollow | changing, machine.nofollow),)),
        Call("newfstatat", (_is(3, _AT_SYMLINK_NOFOLLOW, ignoring=_AT_NO_AUTOMOUNT),)),
    )


def _directories(machine: _Machine) -> tuple[Call, ...]:
    """Return what a directory takes in which the cell may write, likewise.

    Nothing gets the bits that lend an identity.
    """
    nofollow = Check(2, machine.nofollow, machine.nofollow)
    return (
        *_reading(machine),
        *_any("mkdirat", "unlinkat", "renameat", "symlinkat"),
        Call("openat", (nofollow, Check(3, _S_ISUID_S_ISGID_S_ISVTX, 0))),
        Call("renameat2", (_is(4, 0, ignoring=_RENAME_NOREPLACE),)),
        Call("linkat", (_is(4, 0),)),
        Call("utimensat", (_is(3, _AT_SYMLINK_NOFOLLOW),)),
    )


# Compiling, and making what was compiled executable, which is never writable at once. On aarch64 it
# is marked for branch protection, and other threads' pipelines are flushed.
_COMPILING = (
    Call("mremap", (_is_long(3, 0, ignoring=_MREMAP_MAYMOVE),)),
    Call("mprotect", (_is_long(2, _PROT_READ | _PROT_EXEC, ignoring=_PROT_BTI),)),
    *_each(
        "membarrier",
        0,
        (
            _MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
            _MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
        ),
    ),
)


def _loading(machine: _Machine) -> tuple[Call, ...]:
    """Return what it takes to map an artifact, look at the descriptors, and install a filter."""
    harmless = _O_CLOEXEC | machine.nofollow | machine.largefile
    return (
        *_any("statx", "chdir"),
        Call("openat", (_is(2, os.O_RDONLY, ignoring=harmless),)),
        Call(
            "mmap",
            (
                _is_long(2, 0, ignoring=_PROT_READ | _PROT_WRITE),
                _is_long(3, _MAP_PRIVATE, ignoring=_MAP_ANONYMOUS | _MAP_PLACING),
            ),
        ),
        Call(
            "seccomp",
            (
                _is(0, syscalls.SECCOMP_SET_MODE_FILTER),
                _is(1, syscalls.SECCOMP_FILTER_FLAG_TSYNC),
            ),
        ),
    )


# What the engine's own WASI takes, which serves components: threads that wait for each other and
# for timers. libc makes threads with these flags of include/uapi/linux/sched.h, and no processes.
_THREAD = 0x3D0F00  # VM FS FILES SIGHAND THREAD SYSVSEM SETTLS PARENT_SETTID CHILD_CLEARTID
_PR_SET_NAME = 15
_RWF_APPEND = 0x10  # include/uapi/linux/fs.h
_THREADS = (
    Call("clone", (_is_long(0, _THREAD),)),
    *_any("set_robust_list", "rseq", "sched_getaffinity", "getcwd"),
    *_any("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2"),
    Call("prctl", (_is(0, _PR_SET_NAME),)),
)
# It asks for these first, and does without: their arguments lie in memory.
_MISSING = _any("clone3", "openat2")


def _component(machine: _Machine) -> tuple[Call, ...]:
    """Return what the engine's own WASI takes beside what this host does."""
    # Its kind of statx(2) names what it asks for; of a directory it never follows a link.
    return (
        *_THREADS,
        *_directories(machine),
        Call("statx", (_is(2, _AT_EMPTY_PATH, ignoring=_AT_SYMLINK_NOFOLLOW),)),
        Call("statx", (_is(2, _AT_SYMLINK_NOFOLLOW),)),
        # Appending, without which a file that was opened for it could not be written.
        Call("pwritev2", (_is(5, 0, ignoring=_RWF_APPEND),)),
        # A directory is opened anew to be listed, by its name ".". A component's root has no proc,
        # so no link leads to what has no name there, and a read is all that is asked for.
        Call(
            "openat",
            (_is(2, os.O_RDONLY, ignoring=os.O_DIRECTORY | _O_CLOEXEC | machine.largefile),),
        ),
    )


def allowed(profile: Profile, machine: str) -> tuple[Call, ...]:
    """Return the calls that a profile allows on a machine."""
    own = _MACHINES[machine]
    compiling = (*_GO_ON, *_MEMORY, *_DESCRIPTORS, *_COMPILING)
    running = (*_GO_ON, *_MEMORY, *_DESCRIPTORS, *_FILES, *_SOCKETS)
    profiles: Mapping[Profile, tuple[Call, ...]] = {
        "load": (*running, *_reading(own), *_COMPILING, *_loading(own)),
        "load-directories": (*running, *_directories(own), *_COMPILING, *_loading(own)),
        "load-component": (
            *(*running, *_component(own), *_COMPILING, *_loading(own)),
            Call("openat", (_is(2, os.O_PATH | os.O_DIRECTORY | _O_CLOEXEC),)),
        ),
        "run-component": (*running, *_component(own)),
        "compile": compiling,
        "run": running,
        "run-reading": (*running, *_reading(own)),
        "run-directories": (*running, *_directories(own)),
    }
    return tuple(dict.fromkeys(profiles[profile]))


_FIRST = ("load", "load-directories", "load-component")
_OF_COMPONENTS = ("load-component", "run-component")

# --- what only an attack does -------------------------------------------------------------------

# Other programs, and other processes or threads.
_PROGRAMS = _any("execve", "execveat", "fork", "vfork", "clone", "clone3", "uselib")

# Other processes' memory, descriptors, and signals that carry a made-up sender.
_OTHERS = _any(
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal"),
    *("rt_sigqueueinfo", "rt_tgsigqueueinfo", "migrate_pages", "move_pages"),
)

# Another root, other mounts, other namespaces, files found by a handle instead of a name.
_VIEWS = _any(
    *("mount", "umount2", "pivot_root", "chroot", "swapon", "swapoff", "quotactl", "quotactl_fd"),
    *("open_tree", "open_tree_attr", "move_mount", "mount_setattr", "statmount", "listmount"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "setns", "unshare", "listns"),
    *("name_to_handle_at", "open_by_handle_at", "mknod", "mknodat"),
)

# The parts of the kernel with programs or queues of their own, where its holes are found.
_MACHINERY = _any(
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark", "lookup_dcookie"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("io_setup", "io_submit", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents"),
    *("add_key", "request_key", "keyctl", "vmsplice"),
)

# The machine: its kernel, its clock, its names, its ports.
_HOST = _any(
    *("init_module", "finit_module", "delete_module", "create_module", "query_module"),
    *("get_kernel_syms", "kexec_load", "kexec_file_load", "reboot", "syslog", "acct", "_sysctl"),
    *("nfsservctl", "iopl", "ioperm", "modify_ldt", "vhangup", "vserver"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime"),
    *("sethostname", "setdomainname"),
)

# Another identity, or more room than was given.
_IDENTITY = _any(
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"),
    *("setgroups", "capset", "setrlimit"),
)

# Executable memory by a way round mprotect(2).
_CODE = _any("personality", "pkey_mprotect", "remap_file_pages", "map_shadow_stack")

# New connections: whatever the cell is to talk to was granted.
_CONNECTIONS = _any("socket", "socketpair", "connect", "bind", "listen")

# Typing on the caller's terminal, pasting into a virtual one, and taking the console's output or
# loading a line discipline.
_TERMINALS = _each("ioctl", 1, (_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD))

_ATTACKS = (
    *(*_PROGRAMS, *_OTHERS, *_VIEWS, *_MACHINERY, *_HOST),
    *(*_IDENTITY, *_CODE, *_CONNECTIONS, *_TERMINALS),
)

# What a libseccomp may be too old to know by name; these numbers are the same on every machine
# (scripts/syscall.tbl).
_NEW_NUMBERS = {
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "process_mrelease": 448,
    "map_shadow_stack": 453,
    "statmount": 457,
    "listmount": 458,
    "open_tree_attr": 467,
    "listns": 470,
}


def fatal(profile: Profile) -> tuple[Call, ...]:
    """Return the calls that end a process under a profile."""
    attacks = _ATTACKS
    if profile in _OF_COMPONENTS:
        # Threads are made with a call that can make more, and whether it may is in its flags; and a
        # component may ask for a socket as for anything else, and is refused.
        attacks = tuple(c for c in attacks if c.name not in ("clone", "clone3", "socket"))
    # Where no filter is still to come, whoever installs one wants to catch the calls of another.
    return attacks if profile in _FIRST else (*attacks, Call("seccomp"))


def missing(profile: Profile) -> tuple[Call, ...]:
    """Return the calls that do not exist under a profile: ENOSYS, and their callers use others."""
    return _MISSING if profile in _OF_COMPONENTS else ()


# --- libseccomp ---------------------------------------------------------------------------------

_SCMP_ACT_KILL_PROCESS = 0x80000000
_SCMP_ACT_ERRNO = 0x00050000
_SCMP_ACT_ALLOW = 0x7FFF0000
_SCMP_CMP_MASKED_EQ = 7
_SCMP_FLTATR_ACT_BADARCH = 2
_SCMP_FLTATR_CTL_OPTIMIZE = 8
_BINARY_TREE = 2
_NR_SCMP_ERROR = -1  # no such name; what a machine lacks has a number below
# SCMP_ACT_KILL_PROCESS came with the first, the binary tree with the second.
_OLDEST = (2, 4)
_WITH_BINARY_TREE = (2, 5)


class _ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp; for SCMP_CMP_MASKED_EQ the data are mask and value."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Version(ctypes.Structure):
    """struct scmp_version."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


@cache
def _library() -> ctypes.CDLL:
    """Return libseccomp, with the functions that are used declared.

    Raises:
        JailError: If it is missing or too old.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_version.restype = ctypes.POINTER(_Version)
    except (OSError, AttributeError) as error:
        raise JailError("seccomp", f"libseccomp 2.4 or newer: {error}") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_native.restype = ctypes.c_uint32
    for name, arguments in (
        ("seccomp_arch_add", (ctypes.c_uint32,)),
        ("seccomp_arch_remove", (ctypes.c_uint32,)),
        ("seccomp_attr_set", (ctypes.c_int, ctypes.c_uint32)),
        (
            "seccomp_rule_add_exact_array",
            (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_ArgCmp)),
        ),
        ("seccomp_export_bpf", (ctypes.c_int,)),
    ):
        getattr(library, name).argtypes = (ctypes.c_void_p, *arguments)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    version = _version(library)
    if version < _OLDEST:
        raise JailError(
            "seccomp", f"libseccomp {version[0]}.{version[1]} is too old: 2.4 is needed"
        )
    return library


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    version: _Version = library.seccomp_version().contents
    return version.major, version.minor


class _Filter:
    """A filter of libseccomp while it is put together."""

    def __init__(self, machine: str) -> None:
        """Begin a filter that refuses everything with EPERM and kills other architectures.

        Raises:
            JailError: If libseccomp refuses.
        """
        self._library = _library()
        self._token = _MACHINES[machine].token
        native = self._library.seccomp_arch_native()
        self._is_foreign = native != self._token
        self._context = self._library.seccomp_init(_SCMP_ACT_ERRNO | errno.EPERM)
        if not self._context:
            raise JailError("seccomp", "seccomp_init failed")
        if self._is_foreign:
            self._do("arch_add", self._token)
            self._do("arch_remove", native)
        # x32 is an architecture of its own to libseccomp.
        self._do("attr_set", _SCMP_FLTATR_ACT_BADARCH, _SCMP_ACT_KILL_PROCESS)
        if _version(self._library) >= _WITH_BINARY_TREE:
            self._do("attr_set", _SCMP_FLTATR_CTL_OPTIMIZE, _BINARY_TREE)

    def _do(self, call: str, *args: object, about: str = "") -> None:
        result = getattr(self._library, f"seccomp_{call}")(self._context, *args)
        if result < 0:
            what = f"seccomp_{call} {about}".rstrip()
            raise JailError("seccomp", f"{what}: {os.strerror(-result)}", -result)

    def release(self) -> None:
        """Give back what libseccomp allocated."""
        self._library.seccomp_release(self._context)

    def add(self, action: int, call: Call, number: int) -> None:
        """Add a rule."""
        comparisons = [
            _ArgCmp(c.argument, _SCMP_CMP_MASKED_EQ, c.mask, c.value) for c in call.checks
        ]
        checks = (_ArgCmp * len(comparisons))(*comparisons)
        self._do("rule_add_exact_array", action, number, len(call.checks), checks, about=call.name)

    def number(self, name: str) -> int | None:
        """Return the number by which libseccomp knows a call, if the machine has it."""
        library, encoded = self._library, name.encode()
        found: int = library.seccomp_syscall_resolve_name_arch(self._token, encoded)
        if self._is_foreign:
            # Rules are given in this machine's numbers, and translated.
            return library.seccomp_syscall_resolve_name(encoded) if found >= 0 else None
        if found == _NR_SCMP_ERROR:
            return _NEW_NUMBERS.get(name)
        return found if found >= 0 else None

    def export(self) -> bytes:
        """Return the compiled program."""
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            self._do("export_bpf", fd)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)


@cache
def build(profile: Profile) -> bytes:
    """Compile a profile for this machine; once, because it takes a millisecond.

    Returns:
        The program, an array of struct sock_filter.

    Raises:
        JailError: If this machine has no tables here, or libseccomp is missing, too old, or
            refuses.
    """
    return assemble(profile, os.uname().machine)


def assemble(profile: Profile, machine: str) -> bytes:
    """Compile a profile for any machine; see :func:`build`.

    Raises:
        JailError: As :func:`build`.
    """
    if machine not in _MACHINES:
        raise JailError("seccomp", f"no system call filter is known for {machine}")
    made = _Filter(machine)
    try:
        for call in allowed(profile, machine):
            number = made.number(call.name)
            if number is not None:
                made.add(_SCMP_ACT_ALLOW, call, number)
            elif machine == "x86_64" or call.name not in _ONLY_X86:
                raise JailError("seccomp", f"libseccomp does not know {call.name}")
        for call in fatal(profile):
            number = made.number(call.name)
            if number is not None:
                made.add(_SCMP_ACT_KILL_PROCESS, call, number)
        for call in missing(profile):
            number = made.number(call.name)
            if number is not None:
                made.add(_SCMP_ACT_ERRNO | errno.ENOSYS, call, number)
        return made.export()
    finally:
        made.release()


def install(program: bytes) -> None:
    """Put a filter on every thread of this process, for good; no_new_privs must be set.

    Args:
        program: From :func:`build`.

    Raises:
        OSError: As seccomp(2) says; ENOSYS or EINVAL in a kernel without filters.
    """
    syscalls.install_seccomp_filter(program)

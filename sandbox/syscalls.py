"""System calls that Python's standard library does not offer, and nothing else.

Every wrapper raises :class:`OSError` with the name of the call (and the path, where there is
one) as its ``filename``, so that an error says by itself what failed. Names of constants are
those of the kernel's headers. This is the only module that declares C functions of libc.
"""

import ctypes
import errno
import os
import struct

# include/uapi/linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# include/uapi/linux/mount.h
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

# include/uapi/linux/fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# include/uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04

# include/uapi/linux/landlock.h
LANDLOCK_CREATE_RULESET_VERSION = 0x1
LANDLOCK_RULE_PATH_BENEATH = 1

# include/uapi/linux/prctl.h
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# include/uapi/linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1

# include/uapi/linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1

# include/uapi/linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
CAP_KILL = 5
CAP_SYS_ADMIN = 21

# Since 5.1 every architecture uses the same numbers for new calls; the two older ones differ
# (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_OLD_NUMBERS = {
    "x86_64": {
        "clone": 56,
        "pivot_root": 155,
        "keyctl": 250,
        "capget": 125,
        "capset": 126,
        "seccomp": 317,
        "getdents64": 217,
    },
    "aarch64": {
        "clone": 220,
        "pivot_root": 41,
        "keyctl": 219,
        "capget": 90,
        "capset": 91,
        "seccomp": 277,
        "getdents64": 61,
    },
}
_NUMBERS = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "openat2": 437,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    **_OLD_NUMBERS.get(os.uname().machine, {}),
}

_libc = ctypes.CDLL(None, use_errno=True)
# The same library with the interpreter's lock held during the call: a process that returns
# twice must find the lock as it left it.
_libc_locked = ctypes.PyDLL(None, use_errno=True)


def _check(result: int, call: str, path: str | None = None) -> int:
    """Turn a result of -1 into an OSError that names the call and the path.

    Raises:
        OSError: With errno as libc left it, and ``filename`` set to the call (and path).
    """
    if result < 0:
        number = ctypes.get_errno()
        where = call if path is None else f"{call} {path}"
        raise OSError(number, os.strerror(number), where)
    return result


def _number(call: str) -> int:
    """Return the number of a system call on this machine.

    Raises:
        OSError: ENOSYS, on an architecture that ww does not know.
    """
    try:
        return _NUMBERS[call]
    except KeyError:
        where = f"{call} on {os.uname().machine}"
        raise OSError(38, "Function not implemented", where) from None


def _syscall(call: str, *args: int | bytes | None, path: str | None = None) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return _check(_libc.syscall(ctypes.c_long(_number(call)), *values), call, path)


class _CloneArgs(ctypes.Structure):
    """struct clone_args of include/uapi/linux/sched.h, its second version (5.7)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack"),
            *("stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


def fork_into(
    namespaces: int, cgroup: int | None = None, *, sibling: bool = False
) -> tuple[int, int]:
    """Fork, with the child in new namespaces from its first instruction; see clone3(2).

    Only a process with a single thread may do this (CLONE_NEWUSER is EINVAL otherwise, and
    a lock that another thread holds would never be released in the child). Python's own
    fork hooks run around the call, as in :func:`os.fork`.

    Args:
        namespaces: CLONE_NEW* flags.
        cgroup: A descriptor of the version 2 control group that the child is in from then on too;
            ``None`` for the caller's.
        sibling: Whether the child is one of the caller's parent, and the caller's sibling.

    Returns:
        In the caller, the child's pid and a pidfd for it (close-on-exec); in the child,
        ``(0, -1)``.

    Raises:
        OSError: As clone3(2) says; ENOSYS below Linux 5.3 and under container profiles
            that hide the call.
    """
    flags = namespaces | (CLONE_PARENT if sibling else 0)
    if not namespaces and cgroup is None:
        # Where clone3 is hidden from us, this is not.
        pid = _clone(flags)
        return pid, os.pidfd_open(pid) if pid else -1
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(
        flags=flags | CLONE_PIDFD | (0 if cgroup is None else CLONE_INTO_CGROUP),
        cgroup=cgroup or 0,
        pidfd=ctypes.addressof(pidfd),
        # SIGCHLD is what wait(2) expects; a sibling has the signal that the caller has.
        exit_signal=0 if sibling else 17,
    )
    number = ctypes.c_long(_number("clone3"))
    pid = _forked(number, ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    return pid, pidfd.value if pid else -1


def _clone(flags: int) -> int:
    """Fork with the call that clone3 replaces; clone(2)."""
    # SIGCHLD is what wait(2) expects, in the lowest byte; a sibling's is ignored. No stack, no
    # thread area: the rest is 0 on every machine.
    flags_and_signal = ctypes.c_long(flags | 17)
    zero = ctypes.c_long(0)
    return _forked(ctypes.c_long(_number("clone")), flags_and_signal, zero, zero, zero, zero)


def _forked(*call: object) -> int:
    """Make a system call that returns twice, with Python's own fork hooks around it.

    Raises:
        OSError: As it says.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc_locked.syscall(*call)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    ctypes.set_errno(error)
    return _check(pid, "clone3")


def make_mounts_private() -> None:
    """Stop mount events from travelling in or out of this mount namespace; mount(2).

    Raises:
        OSError: As mount(2) says.
    """
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check(_libc.mount(b"none", b"/", None, flags, None), "mount", "/ (private)")


def fsopen(filesystem: str) -> int:
    """Open a context for a new file system; fsopen(2).

    Returns:
        A descriptor of the context, close-on-exec.

    Raises:
        OSError: As fsopen(2) says.
    """
    return _syscall("fsopen", filesystem.encode(), FSOPEN_CLOEXEC, path=filesystem)


def fsconfig(context: int, key: str, value: str) -> None:
    """Set one mount option of a file system that is being made; fsconfig(2).

    Raises:
        OSError: EINVAL for an option that this kernel does not know.
    """
    _syscall("fsconfig", context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0, path=key)


def fsconfig_create(context: int) -> None:
    """Make the file system that a context describes; fsconfig(2), FSCONFIG_CMD_CREATE.

    Raises:
        OSError: As fsconfig(2) says.
    """
    _syscall("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0, path="create")


def fsmount(context: int, attributes: int) -> int:
    """Turn a made file system into a detached mount; fsmount(2).

    Returns:
        A descriptor of the mount's root, close-on-exec.

    Raises:
        OSError: EPERM for proc in a user namespace whose own /proc is covered in places.
    """
    return _syscall("fsmount", context, FSMOUNT_CLOEXEC, attributes)


def move_mount(mount: int, directory: int, path: str) -> None:
    """Attach a detached mount at a path below a directory; move_mount(2).

    Raises:
        OSError: As move_mount(2) says.
    """
    _syscall("move_mount", mount, b"", directory, path.encode(), MOVE_MOUNT_F_EMPTY_PATH, path=path)


def open_tree_clone(directory: int) -> int:
    """Copy the mount that a directory lies in, from there down, with all below; open_tree(2).

    Returns:
        A descriptor of the copy's root, close-on-exec; the copy is attached nowhere, and is gone
        when it is closed before it was moved to a place.

    Raises:
        OSError: EINVAL for a directory that is not in this mount namespace; EPERM without
            CAP_SYS_ADMIN in the namespace's owner.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    return _syscall("open_tree", directory, b"", flags)


def mount_setattr(mount: int, add: int, *, propagation: int = 0, recursive: bool = False) -> None:
    """Add attributes to the mount whose root a descriptor names; mount_setattr(2).

    Args:
        mount: A descriptor of the mount's root.
        add: MOUNT_ATTR_* that are set; none is ever cleared.
        propagation: MS_PRIVATE, or 0 to leave it as it is.
        recursive: The same for every mount below, or for none at all if one of them fails.

    Raises:
        OSError: As mount_setattr(2) says.
    """
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = struct.pack("QQQQ", add, 0, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _syscall("mount_setattr", mount, b"", flags, attributes, len(attributes))


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open a path with restrictions on how it is walked; openat2(2).

    Returns:
        A descriptor; close-on-exec if the flags say so.

    Raises:
        OSError: ELOOP for a link where RESOLVE_NO_SYMLINKS forbids it; as open(2) otherwise.
    """
    # struct open_how: flags, mode, resolve
    how = struct.pack("QQQ", flags, 0, resolve)
    return _syscall("openat2", directory, os.fsencode(path), how, len(how), path=repr(path))


def pivot_root_here() -> None:
    """Make the current directory, a mount's root, the root; the old one lies beneath it.

    The form ``pivot_root(".", ".")`` of pivot_root(2) needs no directory for the old root.

    Raises:
        OSError: As pivot_root(2) says.
    """
    _syscall("pivot_root", b".", b".")


def detach_here() -> None:
    """Detach the mount that lies on the current directory; umount2(2) with MNT_DETACH.

    Raises:
        OSError: As umount2(2) says.
    """
    _check(_libc.umount2(b".", MNT_DETACH), "umount2", "the old root")


def landlock_version() -> int:
    """Return the version of Landlock's interface in this kernel; landlock_create_ruleset(2).

    Raises:
        OSError: ENOSYS in a kernel without Landlock; EOPNOTSUPP where it is not switched on.
    """
    return _syscall("landlock_create_ruleset", None, 0, LANDLOCK_CREATE_RULESET_VERSION)


def landlock_create_ruleset(filesystem: int, network: int, scopes: int) -> int:
    """Make a set of rules that denies all of what it handles; landlock_create_ruleset(2).

    Args:
        filesystem: LANDLOCK_ACCESS_FS_* that are denied where no rule allows them.
        network: LANDLOCK_ACCESS_NET_*, likewise; 0 where the kernel has none.
        scopes: LANDLOCK_SCOPE_* that are closed; 0 where the kernel has none.

    Returns:
        A descriptor of the set, close-on-exec.

    Raises:
        OSError: EINVAL for a right that this kernel does not know.
    """
    # struct landlock_ruleset_attr; a kernel that does not know the last members wants them 0.
    attributes = struct.pack("QQQ", filesystem, network, scopes)
    return _syscall("landlock_create_ruleset", attributes, len(attributes), 0)


def landlock_allow_beneath(rules: int, path: int, access: int) -> None:
    """Allow rights to a file, or to a directory and all below; landlock_add_rule(2).

    Args:
        rules: A descriptor of the set.
        path: A descriptor of the file or directory.
        access: LANDLOCK_ACCESS_FS_*.

    Raises:
        OSError: EBADFD for what is in no file hierarchy (pipe, socket, memfd); EINVAL for a right
            that a file cannot have, or that the set does not handle.
    """
    # struct landlock_path_beneath_attr is packed.
    rule = struct.pack("=Qi", access, path)
    _syscall("landlock_add_rule", rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0)


def landlock_restrict_self(rules: int, flags: int) -> None:
    """Put the calling thread under a set of rules, for good; landlock_restrict_self(2).

    Raises:
        OSError: EPERM without no_new_privs; E2BIG under 16 sets already; EINVAL for a flag that
            this kernel does not know.
    """
    _syscall("landlock_restrict_self", rules, flags)


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace; sethostname(2).

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN in the namespace's owner.
    """
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), "sethostname")


def join_new_session_keyring() -> None:
    """Leave the caller's session keyring for an empty, unnamed one; keyctl(2).

    Raises:
        OSError: EDQUOT when the user's key quota is used up; ENOSYS in a kernel without keys.
    """
    _syscall("keyctl", KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)


def drop_bounding_capability(number: int) -> None:
    """Drop a capability from the bounding set by its number; PR_CAPBSET_DROP of prctl(2).

    Raises:
        OSError: EINVAL for a number that the kernel does not have.
    """
    _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "prctl", f"CAPBSET_DROP {number}")


def has_bounding_capability(number: int) -> bool:
    """Tell whether a capability is in the bounding set; PR_CAPBSET_READ of prctl(2).

    Raises:
        OSError: EINVAL for a number that the kernel does not have.
    """
    result = _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)
    return bool(_check(result, "prctl", f"CAPBSET_READ {number}"))


def set_securebits(bits: int) -> None:
    """Set the securebits; PR_SET_SECUREBITS of prctl(2).

    Raises:
        OSError: EPERM without CAP_SETPCAP, or for a bit that is locked.
    """
    _check(_libc.prctl(PR_SET_SECUREBITS, bits, 0, 0, 0), "prctl", "SET_SECUREBITS")


def clear_ambient_capabilities() -> None:
    """Empty the ambient set; PR_CAP_AMBIENT_CLEAR_ALL of prctl(2).

    Raises:
        OSError: As prctl(2) says.
    """
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl", "CAP_AMBIENT")


def clear_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets, whatever numbers they hold; capset(2).

    Raises:
        OSError: As capset(2) says.
    """
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _syscall("capset", header, bytes(24))


def capability_sets() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets as bit masks; capget(2).

    Raises:
        OSError: As capget(2) says.
    """
    header = ctypes.create_string_buffer(struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    _check(_libc.syscall(ctypes.c_long(_number("capget")), header, data), "capget")
    e0, p0, i0, e1, p1, i1 = struct.unpack("6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def cpu_clock(pid: int) -> int:
    """Return the clock of a process's own time, for time.clock_gettime; clock_getcpuclockid(3).

    Raises:
        OSError: ESRCH if there is no such process.
    """
    clock = ctypes.c_int()
    number = _libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
    if number:
        raise OSError(number, os.strerror(number), "clock_getcpuclockid")
    return clock.value


# include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
PROT_EXEC = 0x4
MAP_PRIVATE = 0x02
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000

_libc.mmap.restype = ctypes.c_void_p
_MAP_FAILED = ctypes.c_void_p(-1).value


def reserve(size: int) -> int:
    """Reserve addresses that cannot be accessed yet; mmap(2).

    Args:
        size: Bytes.

    Returns:
        The first address.

    Raises:
        OSError: ENOMEM.
    """
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    length, offset = ctypes.c_size_t(size), ctypes.c_long(0)
    address: int = _libc.mmap(None, length, PROT_NONE, flags, -1, offset)
    if address == _MAP_FAILED:
        _check(-1, "mmap")
    return address


def release(address: int, size: int) -> None:
    """Give up addresses from :func:`reserve`; munmap(2).

    Raises:
        OSError: EINVAL for what are none.
    """
    _check(_libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)), "munmap")


def make_accessible(address: int, size: int) -> None:
    """Let reserved addresses be read and written; mprotect(2).

    Raises:
        OSError: ENOMEM where RLIMIT_DATA forbids it.
    """
    start, length = ctypes.c_void_p(address), ctypes.c_size_t(size)
    _check(_libc.mprotect(start, length, PROT_READ | PROT_WRITE), "mprotect")


class _SockFprog(ctypes.Structure):
    """struct sock_fprog of include/uapi/linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_seccomp_filter(program: bytes) -> None:
    """Put a filter on all threads of this process; SECCOMP_SET_MODE_FILTER of seccomp(2).

    Args:
        program: An array of struct sock_filter.

    Raises:
        OSError: EINVAL for a program that is not valid; EACCES without no_new_privs; ESRCH where
            another thread has filters of its own.
    """
    size = 8  # of struct sock_filter
    header = _SockFprog(len(program) // size, program)
    number = ctypes.c_long(_number("seccomp"))
    flags = ctypes.c_ulong(SECCOMP_FILTER_FLAG_TSYNC)
    mode = ctypes.c_ulong(SECCOMP_SET_MODE_FILTER)
    result = _libc.syscall(number, mode, flags, ctypes.byref(header))
    if result > 0:  # the id of the thread that could not be taken along
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), "seccomp")
    _check(result, "seccomp")


def getdents64(directory: int, size: int) -> bytes:
    """Read names of a directory from its position on; getdents64(2).

    Returns:
        An array of struct linux_dirent64, of ``size`` bytes at most; empty at the end.

    Raises:
        OSError: ENOTDIR for what is no directory; EINVAL if ``size`` is too small for one entry.
    """
    buffer = ctypes.create_string_buffer(size)
    used = _syscall("getdents64", directory, ctypes.addressof(buffer), size)
    return buffer.raw[:used]


# include/uapi/linux/personality.h
READ_IMPLIES_EXEC = 0x0400000
_PER_QUERY = 0xFFFFFFFF
_PER_LINUX = 0


def make_executable(address: int, size: int) -> None:
    """Let memory be read and executed, and not written; mprotect(2).

    Raises:
        OSError: As mprotect(2) says.
    """
    start, length = ctypes.c_void_p(address), ctypes.c_size_t(size)
    _check(_libc.mprotect(start, length, PROT_READ | PROT_EXEC), "mprotect")


def personality() -> int:
    """Return this process's execution domain, a mask of bits; personality(2).

    Raises:
        OSError: As personality(2) says.
    """
    try:
        return _check(_libc.personality(ctypes.c_ulong(_PER_QUERY)), "personality")
    except PermissionError:
        # LockPersonality= of systemd forbids to ask, and allows to set what it is locked to; that
        # returns what was set before.
        return _check(_libc.personality(ctypes.c_ulong(_PER_LINUX)), "personality")

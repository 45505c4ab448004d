"""System calls that Python's standard library does not offer, and nothing else.

Every wrapper raises :class:`OSError` with the name of the call (and the path, where there is
one) as its ``filename``, so that an error says by itself what failed. Names of constants are
those of the kernel's headers. This is the only module that declares C functions of libc.
"""

import ctypes
import os
import struct

# include/uapi/linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# include/uapi/linux/mount.h
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
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

# include/uapi/linux/prctl.h
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# include/uapi/linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1

# include/uapi/linux/capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# Since 5.1 every architecture uses the same numbers for new calls; the two older ones differ
# (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_OLD_NUMBERS = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "capget": 125, "capset": 126},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "capget": 90, "capset": 91},
}
_NUMBERS = {
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "mount_setattr": 442,
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


def fork_into(namespaces: int) -> tuple[int, int]:
    """Fork, with the child in new namespaces from its first instruction; see clone3(2).

    Only a process with a single thread may do this (CLONE_NEWUSER is EINVAL otherwise, and
    a lock that another thread holds would never be released in the child). Python's own
    fork hooks run around the call, as in :func:`os.fork`.

    Args:
        namespaces: CLONE_NEW* flags.

    Returns:
        In the parent, the child's pid and a pidfd for it (close-on-exec); in the child,
        ``(0, -1)``.

    Raises:
        OSError: As clone3(2) says; ENOSYS below Linux 5.3 and under container profiles
            that hide the call.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(
        flags=namespaces | CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=17,  # SIGCHLD: what wait(2) expects
    )
    number = ctypes.c_long(_number("clone3"))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc_locked.syscall(number, ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    ctypes.set_errno(error)
    return _check(pid, "clone3"), pidfd.value


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


def mount_setattr(mount: int, add: int) -> None:
    """Add attributes to the mount whose root a descriptor names; mount_setattr(2).

    Raises:
        OSError: As mount_setattr(2) says.
    """
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = struct.pack("QQQQ", add, 0, 0, 0)
    _syscall("mount_setattr", mount, b"", AT_EMPTY_PATH, attributes, len(attributes))


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

"""Other namespaces, mounts and roots, tried by a native program in the cell's place.

Each is tried twice: without a system call filter, where the kernel must refuse it for want of
privilege, and under the very filter of a running cell, which must end the process at that call.
"""

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.features import lacks
from tests.jail.inside import AT, LAST, SAVED, call, needs_landlock, perform

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h

# include/uapi/linux/mount.h
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_SHARED = 1, 32, 4096, 8192, 16384, 1 << 20
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 1

# include/uapi/linux/sched.h
KINDS = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
    "user and mount": 0x10020000,
}
SIGCHLD = 17


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


# struct mount_attr: attr_set, attr_clr, propagation, userns_fd
_CLEAR_READ_ONLY = struct.pack("QQQQ", 0, MOUNT_ATTR_RDONLY, 0, 0)

OLD_MOUNTS = {
    "a tmpfs": call("mount", "none", "/", "tmpfs", 0, None),
    "a proc": call("mount", "none", "/proc", "proc", 0, None),
    "a bind": call("mount", "/", "/proc", None, MS_BIND | MS_REC, None),
    "a remount": call("mount", None, "/", None, MS_REMOUNT | MS_BIND, None),
    "a remount of proc": call("mount", None, "/proc", None, MS_REMOUNT | MS_BIND, None),
    "a move": call("mount", "/proc", "/", None, MS_MOVE, None),
    "propagation": call("mount", None, "/", None, MS_SHARED | MS_REC, None),
    "umount": call("umount2", "/proc", MNT_DETACH),
    "umount of the root": call("umount2", "/", MNT_DETACH),
}
NEW_MOUNTS = {
    "open_tree": call("open_tree", CWD, "/", OPEN_TREE_CLONE),
    "fsopen": call("fsopen", "tmpfs", 0),
    "fspick": call("fspick", CWD, "/", 0),
    "move_mount": call("move_mount", CWD, "/proc", CWD, "/", 0),
    "mount_setattr": call("mount_setattr", CWD, "/", AT_RECURSIVE, _CLEAR_READ_ONLY, 32),
    "fsmount": call("fsmount", 1, 0, 0),
}
OPEN_TREE_ATTR = call(467, CWD, "/", OPEN_TREE_CLONE, _CLEAR_READ_ONLY, 32)  # since Linux 6.15
# A pathlink makes it have a proc.
WITH_PROC = ("--fd", "a=3,pathlink=true")


@pytest.mark.parametrize("kind", KINDS)
def test_no_namespace_can_be_left_for_a_new_one(ww_account: Ww, program: Path, kind: str) -> None:
    # Even where the kernel allows it: a new user namespace comes with all capabilities in it.
    unshare = call("unshare", KINDS[kind])
    assert perform(ww_account, "filtered", program, unshare).is_killed_at(unshare)


@pytest.mark.parametrize("kind", KINDS)
def test_no_process_can_be_made_in_a_new_namespace(
    ww_account: Ww, program: Path, kind: str
) -> None:
    clone = call("clone", KINDS[kind] | SIGCHLD, 0, 0, 0, 0)
    assert perform(ww_account, "filtered", program, clone).is_killed_at(clone)


def test_a_new_namespace_cannot_be_had_through_clone3(ww_account: Ww, program: Path) -> None:
    args = struct.pack("11Q", KINDS["user"], 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, 0)
    clone = call("clone3", args, len(args))
    assert perform(ww_account, "filtered", program, clone).is_killed_at(clone)


def test_without_privilege_no_namespace_but_a_users_can_be_made(
    ww_account: Ww, program: Path
) -> None:
    others = [flag for kind, flag in KINDS.items() if not kind.startswith("user")]
    tried = perform(ww_account, "native", program, *(call("unshare", flag) for flag in others))
    assert tried.refusals() == [errno.EPERM] * len(others)


@needs_landlock("in a user namespace of one's own no file system is attached or used")
def test_a_namespace_of_users_lets_no_mount_be_attached_or_used(
    ww_account: Ww, program: Path
) -> None:
    # Without the filter it may be had, and a file system can be made in it. But the mounts that are
    # there are locked, and the Landlock domain goes along: nothing is attached, moved or opened.
    tried = perform(
        ww_account,
        "native",
        program,
        call("unshare", KINDS["user and mount"]),
        *OLD_MOUNTS.values(),
        call("fsopen", "tmpfs", 0),
        call("save"),
        call("fsconfig", LAST, FSCONFIG_CMD_CREATE, None, None, 0),
        call("fsmount", SAVED, 0, 0),
        call("save"),
        call("move_mount", SAVED, "", CWD, "/", MOVE_MOUNT_F_EMPTY_PATH),
        call("openat", SAVED, "file", os.O_CREAT | os.O_RDWR, 0o600),
        call("openat", SAVED, ".", os.O_RDONLY),
        call("mkdirat", SAVED, "folder", 0o700),
        flags=WITH_PROC,
        fds={3: Path("/dev/null")},
    )
    results = tried.all()
    if results[0] != (0, 0):
        lacks("userns", "this machine gives its users no namespaces, and this one none either")
    old = results[1 : 1 + len(OLD_MOUNTS)]
    assert {ret for ret, _ in old} == {-1}
    assert {error for _, error in old} <= {errno.EPERM, errno.EINVAL}
    # Otherwise there is nothing to attach, and what follows says nothing.
    assert min(ret for ret, _ in results[1 + len(OLD_MOUNTS) : -4]) >= 0
    assert results[-4:] == [(-1, errno.EPERM), *[(-1, errno.EACCES)] * 3]


@pytest.mark.parametrize("names", [OLD_MOUNTS, NEW_MOUNTS], ids=["old", "new"])
def test_a_cell_cannot_mount_or_unmount(
    ww_account: Ww, program: Path, names: dict[str, str]
) -> None:
    calls = names.values()
    granted = {3: Path("/dev/null")}
    tried = perform(ww_account, "native", program, *calls, flags=WITH_PROC, fds=granted)
    assert set(tried.refusals()) == {errno.EPERM}


@pytest.mark.parametrize("name", [*OLD_MOUNTS, *NEW_MOUNTS, "open_tree_attr"])
def test_a_cell_that_calls_mount_is_ended(ww_account: Ww, program: Path, name: str) -> None:
    mount = {**OLD_MOUNTS, **NEW_MOUNTS, "open_tree_attr": OPEN_TREE_ATTR}[name]
    assert perform(ww_account, "filtered", program, mount).is_killed_at(mount)


def test_a_cell_cannot_change_its_root(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account, "native", program, call("chroot", "/"), call("pivot_root", "/", "/")
    )
    assert tried.refusals() == [errno.EPERM] * 2


@pytest.mark.parametrize(
    "attack", [call("chroot", "/"), call("pivot_root", "/", "/"), call("setns", 1, 0)]
)
def test_a_cell_that_changes_its_root_or_namespace_is_ended(
    ww_account: Ww, program: Path, attack: str
) -> None:
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_a_second_chroot_does_not_lead_out_of_a_granted_directory(
    ww_account: Ww, program: Path
) -> None:
    # The classic way out of chroot(2): a root below, a descriptor of a directory above it, and
    # "..". In a user namespace of its own chroot(2) may succeed; the root of the mount namespace
    # is where ".." ends all the same, and that holds nothing.
    folder = ww_account.tmp / "d"
    (folder / "inner").mkdir(parents=True)
    (ww_account.tmp / "secret").write_bytes(b"secret")
    os.chmod(ww_account.root, 0o755)
    os.chmod(ww_account.tmp, 0o755)
    tried = perform(
        ww_account,
        "native",
        program,
        call("unshare", KINDS["user"]),
        call("fchdir", 3),
        call("chroot", "inner"),
        *[call("chdir", "..")] * 8,
        call("openat", CWD, "secret", os.O_PATH),
        call("openat", CWD, "etc", os.O_PATH),
        call("openat", CWD, "../secret", os.O_PATH),
        flags=["--fd", "d=3,mode=r,target=3"],
        fds={3: folder},
    )
    results = tried.all()
    assert results[1] == (0, 0)
    assert results[2] in ((0, 0), (-1, errno.EPERM))
    assert results[3] == (0, 0)
    assert results[-3:] == [(-1, errno.ENOENT)] * 3


def test_the_mount_of_the_root_stays_read_only(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        call("mkdirat", CWD, "/new", 0o700),
        call("mknodat", CWD, "/new", 0o100600, 0),
        call("symlinkat", "/", CWD, "/new"),
        call("fchmodat", CWD, "/", 0o777),
        call("unlinkat", CWD, "/a", 0),
    )
    assert set(tried.refusals()) <= {errno.EROFS, errno.EACCES}


# include/uapi/linux/nsfs.h
NS_GET_USERNS, NS_GET_PARENT = 0xB701, 0xB702
NS_MNT_GET_NEXT, NS_MNT_GET_PREV = 0x8010B70B, 0x8010B70C
NS_FROM_THE_HOSTS_NUMBER = (0x8004B706, 0x8004B708)  # NS_GET_PID_FROM_PIDNS, NS_GET_TGID_...


def test_a_namespaces_descriptor_does_not_lead_to_the_hosts(ww_account: Ww, program: Path) -> None:
    # It owns its others, and that may be asked; what is above it is outside.
    def opened(kind: str) -> str:
        return call("openat", CWD, f"/proc/self/ns/{kind}", os.O_RDONLY)

    numbers = [os.getpid(), os.getppid()]
    tried = perform(
        ww_account,
        "native",
        program,
        *(opened("user"), call("ioctl", LAST, NS_GET_PARENT), call("ioctl", LAST, NS_GET_USERNS)),
        *(opened("pid"), call("ioctl", LAST, NS_GET_PARENT)),
        *(opened("net"), call("ioctl", LAST, NS_GET_USERNS), call("ioctl", LAST, NS_GET_PARENT)),
        *(opened("mnt"), call("ioctl", LAST, NS_MNT_GET_NEXT, bytes(16))),
        call("ioctl", LAST, NS_MNT_GET_PREV, bytes(16)),
        *(opened("pid"), call("save")),
        *(
            call("ioctl", SAVED, ask, number)
            for ask in NS_FROM_THE_HOSTS_NUMBER
            for number in numbers
        ),
        flags=WITH_PROC,
        fds={3: Path("/dev/null")},
    )
    results = tried.all()
    assert min(results[i][0] for i in (0, 3, 5, 6, 8, 11)) >= 0
    assert [results[i] for i in (1, 2, 4, 7)] == [(-1, errno.EPERM)] * 4
    # Older kernels do not know these.
    for one in results[9:11]:
        assert one in ((-1, errno.EPERM), (-1, errno.ENOTTY)), one
    for one in results[13:]:
        assert one in ((-1, errno.ESRCH), (-1, errno.ENOTTY)), one


# include/uapi/linux/fcntl.h, since Linux 6.18: roots of file systems that are mounted nowhere
FD_PIDFS_ROOT, FD_NSFS_ROOT = -10002, -10003


def _handle(fd: int) -> bytes | None:
    """A descriptor's struct file_handle, as the kernel makes it, if it does."""
    number = {"x86_64": 303, "aarch64": 264}[platform.machine()]
    room, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(number, fd, b"", room, ctypes.byref(mount), 0x1000)
    return None if failed else room.raw[: 8 + struct.unpack_from("I", room.raw)[0]]


def _opens(root: int, handle: bytes) -> bool:
    number = {"x86_64": 304, "aarch64": 265}[platform.machine()]
    fd = ctypes.CDLL(None).syscall(number, root, handle, os.O_RDONLY)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


@pytest.mark.parametrize("before", [(), (call("unshare", KINDS["user"]),)], ids=["", "userns"])
def test_no_namespace_or_process_of_the_host_can_be_opened_by_its_handle(
    ww_account: Ww, program: Path, before: tuple[str, ...]
) -> None:
    # These take no capability, no descriptor and no path. A guess is enough: the first namespaces
    # of a machine have fixed numbers.
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    found: list[tuple[int, bytes | None]] = []
    for kind in kinds:
        with open(f"/proc/self/ns/{kind}", "rb") as file:
            found.append((FD_NSFS_ROOT, _handle(file.fileno())))
    pidfd = os.pidfd_open(os.getpid())
    found.append((FD_PIDFS_ROOT, _handle(pidfd)))
    handles = [(root, handle) for root, handle in found if handle is not None]
    usable = [(root, handle) for root, handle in handles if _opens(root, handle)]
    os.close(pidfd)
    if not usable:
        pytest.skip("this kernel opens none of these by a handle")
    calls = [call("open_by_handle_at", root, handle, os.O_RDONLY) for root, handle in usable]
    results = perform(ww_account, "native", program, *before, *calls).all()[len(before) :]
    assert results == [(-1, errno.ESTALE)] * len(usable)


def test_no_list_of_mounts_or_namespaces_can_be_had(ww_account: Ww, program: Path) -> None:
    statmount, listmount = call(457, AT, AT, 512, 0), call(458, AT, AT, 512, 0)
    for attack in (statmount, listmount, call(470, AT, AT, 512, 0)):
        assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)

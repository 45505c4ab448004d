"""Step 4 and 5: a root directory of the cell's own, and no way back to the host's.

No path of the host is created, written or followed. The new file systems are made detached
(fsopen(2), fsmount(2)), everything in them is made through their descriptors, and the finished
root is attached on top of the old one in the cell's own mount namespace only.
"""

import os
from collections.abc import Iterable

from sandbox import syscalls

_HARDENED = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
# Links and directories only: each costs one inode and no block.
_ROOT_BYTES = "64k"
_ROOT_SPARE_INODES = 16


def _make(filesystem: str, options: Iterable[tuple[str, str]], attributes: int) -> int:
    context = syscalls.fsopen(filesystem)
    try:
        for key, value in options:
            syscalls.fsconfig(context, key, value)
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def make_private() -> None:
    """Stop mounts from travelling between this mount namespace and the host's.

    Raises:
        OSError: As mount(2) says.
    """
    syscalls.make_mounts_private()


def make_root(pathlinks: dict[str, int]) -> int:
    """Make the cell's root: a small tmpfs that holds the pathlinks, not attached anywhere yet.

    Args:
        pathlinks: Names in the root directory, each with the descriptor's number in the cell.

    Returns:
        A descriptor of the root, close-on-exec.

    Raises:
        OSError: As fsopen(2), fsmount(2) and symlink(2) say; EEXIST for a name that is there.
    """
    inodes = str(_ROOT_SPARE_INODES + len(pathlinks))
    options = (("size", _ROOT_BYTES), ("nr_inodes", inodes), ("mode", "0555"))
    root = _make("tmpfs", options, _HARDENED)
    if pathlinks:
        os.mkdir("proc", 0o555, dir_fd=root)
    for name, target in pathlinks.items():
        os.symlink(f"/proc/self/fd/{target}", name, dir_fd=root)
    return root


def make_proc() -> int:
    """Make a proc for the cell's pid namespace that shows the cell's own process only; proc(5).

    Made before the old root is gone: a user namespace may mount proc only where it already
    sees one that nothing covers.

    Returns:
        A descriptor of its root, close-on-exec.

    Raises:
        OSError: EPERM where the caller's own /proc is masked, as in many containers.
    """
    options = (("hidepid", "invisible"), ("subset", "pid"))
    return _make("proc", options, _HARDENED | syscalls.MOUNT_ATTR_RDONLY)


def attach(root: int, proc: int | None) -> None:
    """Attach the new root over the old one, and proc (if any) inside it; close both descriptors.

    The current directory is the new root afterwards.

    Raises:
        OSError: As move_mount(2) says.
    """
    syscalls.move_mount(root, syscalls.AT_FDCWD, "/")
    os.fchdir(root)
    if proc is not None:
        syscalls.move_mount(proc, root, "proc")
        os.close(proc)
    os.close(root)


def leave_old_root() -> None:
    """Make the current directory the root and detach the old root with all below it.

    Raises:
        OSError: As pivot_root(2) says.
    """
    syscalls.pivot_root_here()
    syscalls.detach_here()
    os.chdir("/")


def seal_root() -> None:
    """Make the root read-only, for good: the cell holds no capability to change it back.

    Raises:
        OSError: As mount_setattr(2) says.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(root, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(root)

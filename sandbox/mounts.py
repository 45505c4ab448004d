"""Step 4 and 5: a root directory of the cell's own, and no way back to the host's.

No path of the host is created, written or followed. The new file systems are made detached
(fsopen(2), fsmount(2)), everything in them is made through their descriptors, and the finished
root is attached on top of the old one in the cell's own mount namespace only.

A directory's descriptor is a way out of every root (``..``), so none that was granted reaches the
cell. It gets one of a copy of the mount (open_tree(2)) that begins at that directory, above which
lies nothing but the cell's own root. The copy, and those of all mounts below, carry the flags that
the originals have and those of the jail, which the kernel enforces for every process alike:
nothing is executed, set-user-id or a device, and of a directory granted for reading nothing is
changed. What a read-only mount does not hold are its pipes and sockets, which are no part of the
file system: Landlock and the system call filter hold them.
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from sandbox import syscalls
from sandbox.errors import JailError

_HARDENED = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
# Links and directories only: each costs one inode and no block. There can be one for each number
# that a descriptor of a cell can have, and it is read-only before the cell begins.
_ROOT_BYTES = "64k"
_ROOT_INODES = str(2 * 65536)

# Where the granted directories are attached in the root. No pathlink has a name like these, with
# a dot in front, and no descriptor is needed to make them.
_TREES = ".dirs"
_PROC = "proc"
_SCRATCH = "tmp"
# Where a component finds granted files, each under the name of its grant.
_FILES = "fd"
# An inode for each page, and so for each file that is not empty; empty ones and directories cost
# the kernel's memory as well, about 1 KiB each.
_SCRATCH_PAGE = 4096
_FEWEST_INODES = 64
_MOST_INODES = 1 << 16


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


def may_clone() -> bool:
    """Tell whether this process may copy mounts of the mount namespace that it is in.

    Root may, unless it is a container's that has lost CAP_SYS_ADMIN.

    Raises:
        OSError: As capget(2) says.
    """
    return bool(syscalls.capability_sets()[0] >> syscalls.CAP_SYS_ADMIN & 1)


def clone_tree(fd: int, *, read_only: bool) -> int:
    """Re-root a granted directory or file: copy its mounts from there down, and take rights away.

    It is for who :func:`may_clone`, in the mount namespace that the directory was opened in. The
    process of a cell that root runs has no id but an unprivileged one of the host's (65534, unless
    it was told another), so it can do with the files in there what their owners let that id do.

    Args:
        fd: A descriptor of it.
        read_only: If it is granted for reading only.

    Returns:
        A descriptor of the copy, attached nowhere, close-on-exec.

    Raises:
        JailError: ENOENT for one that was deleted, or never had a name.
        OSError: ENOTDIR for what is neither; EINVAL for one in another mount namespace.
    """
    _check_alive(os.fstat(fd))
    tree = syscalls.open_tree_clone(fd)
    attributes = _HARDENED | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
    try:
        # Private, or a mount that the host makes below the directory later would appear in the
        # copy too, with the flags that the host gave it.
        syscalls.mount_setattr(tree, attributes, propagation=syscalls.MS_PRIVATE, recursive=True)
    except OSError:
        os.close(tree)
        raise
    return tree


def reopen_tree(fd: int, *, read_only: bool) -> int:
    """Re-root a directory or file that was opened in the mount namespace this one is a copy of.

    It is for an ordinary user, who may copy mounts only in a mount namespace of his own, and for a
    root that is no more than that. So it is
    looked for at the path that the kernel knows for the descriptor, and what is found there must be
    the same.

    Args:
        fd: A descriptor of it.
        read_only: If it is granted for reading only.

    Returns:
        A descriptor of the copy, attached nowhere, close-on-exec.

    Raises:
        JailError: ENOENT or ESTALE if it was deleted, moved or covered since.
        OSError: ENAMETOOLONG for a path longer than the kernel tells or takes; as open(2) and
            open_tree(2) say otherwise.
    """
    granted = os.fstat(fd)
    _check_alive(granted)
    path = os.readlink(f"/proc/self/fd/{fd}")
    flags = os.O_PATH | os.O_CLOEXEC
    if stat.S_ISDIR(granted.st_mode):
        flags |= os.O_DIRECTORY
    try:
        directory = _open_without_links(path, flags)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise _not_there(f"it is not at {path!r} any more", errno.ESTALE) from error
    try:
        found = os.fstat(directory)
        if (found.st_dev, found.st_ino) != (granted.st_dev, granted.st_ino):
            raise _not_there(f"something else is at {path!r}", errno.ESTALE)
        if os.fstatvfs(fd).f_flag & ~os.fstatvfs(directory).f_flag & os.ST_RDONLY:
            raise _not_there(f"it was read-only, and is not at {path!r}", errno.ESTALE)
        return clone_tree(directory, read_only=read_only)
    finally:
        os.close(directory)


def _open_without_links(path: str, flags: int) -> int:
    """Open a path as the kernel tells it, in which there are no links: one there now is new.

    Args:
        path: An absolute one.
        flags: As of openat2(2).

    Raises:
        OSError: ELOOP or ENOTDIR for a link; as open(2) otherwise.
    """
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        return syscalls.openat2(syscalls.AT_FDCWD, path, flags, resolve)
    except OSError as error:
        # Filters of services and containers hide the call, because they cannot look into it.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    *parents, last = path.split("/")[1:]
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in parents:
            step = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, step, dir_fd=here)
            os.close(here)
            here = below
        # With O_PATH a link would be opened itself (open(2)); what it is, is seen by who asked.
        return os.open(last or ".", flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _check_alive(status: os.stat_result) -> None:
    """Refuse what is neither directory nor file, or was one until it was deleted.

    Raises:
        JailError: ENOENT if it was deleted.
        OSError: ENOTDIR for anything else.
    """
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "open_tree")
    if status.st_nlink == 0:
        raise _not_there("it was deleted", errno.ENOENT)


def _not_there(what: str, number: int) -> JailError:
    return JailError("directories", f"cannot re-root it: {what}", number)


def make_root() -> int:
    """Make the cell's root: an empty tmpfs that is not attached anywhere yet.

    Returns:
        A descriptor of the root, close-on-exec.

    Raises:
        OSError: As fsopen(2) and fsmount(2) say.
    """
    options = (("size", _ROOT_BYTES), ("nr_inodes", _ROOT_INODES), ("mode", "0555"))
    return _make("tmpfs", options, _HARDENED)


def furnish(
    pathlinks: dict[str, int],
    directories: Sequence[int],
    files: Sequence[str],
    *,
    proc: bool,
    scratch: bool,
) -> None:
    """Make the pathlinks, and a place for everything that is to be attached in the new root.

    The current directory is the new root, in which there is nothing yet.

    Args:
        pathlinks: Names in the root directory, each with the descriptor's number in the cell.
        directories: The numbers in the cell of the granted directories.
        files: The names of the files that a component finds.
        proc: Whether there is to be a proc.
        scratch: Whether there is to be a writable /tmp.

    Raises:
        OSError: As mkdir(2) and symlink(2) say; EEXIST for a name that is there.
    """
    root = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if proc:
            os.mkdir(_PROC, 0o555, dir_fd=root)
        if directories:
            os.mkdir(_TREES, 0o555, dir_fd=root)
        for target in directories:
            os.mkdir(f"{_TREES}/{target}", 0o555, dir_fd=root)
        if files:
            os.mkdir(_FILES, 0o555, dir_fd=root)
        for name in files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(f"{_FILES}/{name}", flags, 0o444, dir_fd=root))
        if scratch:
            os.mkdir(_SCRATCH, 0o555, dir_fd=root)
        for name, target in pathlinks.items():
            os.symlink(f"/proc/self/fd/{target}", name, dir_fd=root)
    finally:
        os.close(root)


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


def _make_scratch(size: int) -> int:
    """Make a tmpfs that nobody but the cell may write; tmpfs(5).

    Returns:
        A descriptor of its root, close-on-exec.

    Raises:
        OSError: EINVAL for a size that the kernel cannot count; as fsopen(2) says otherwise.
    """
    inodes = min(max(_FEWEST_INODES, size // _SCRATCH_PAGE), _MOST_INODES)
    options = (("size", str(size)), ("nr_inodes", str(inodes)), ("mode", "0700"))
    scratch = _make("tmpfs", options, _HARDENED)
    # The kernel takes a number of any length and drops what is above 64 bits (memparse() of
    # lib/cmdline.c); what is left may be 0, which is no bound at all, and reads as 0 here.
    made = os.fstatvfs(scratch)
    if not 0 < made.f_blocks <= -(-size // made.f_frsize) or not 0 < made.f_files <= inodes:
        os.close(scratch)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), f"tmpfs of {size} bytes")
    return scratch


def tree_path(target: int) -> str:
    """Return where in the root a granted directory is attached, by its number in the cell."""
    return f"{_TREES}/{target}"


def file_path(name: str) -> str:
    """Return where in the root a granted file is attached, by its name."""
    return f"{_FILES}/{name}"


def attach_root(root: int) -> None:
    """Attach the new root over the old one, and close its descriptor.

    The current directory is the new root afterwards.

    Args:
        root: From :func:`make_root`.

    Raises:
        OSError: As move_mount(2) says.
    """
    syscalls.move_mount(root, syscalls.AT_FDCWD, "/")
    os.fchdir(root)
    os.close(root)


def attach(proc: int | None, trees: Mapping[str, int], scratch: int) -> None:
    """Attach what belongs in the new root, where :func:`furnish` made a place, and close it.

    The current directory is the new root.

    Args:
        proc: A descriptor of proc, from :func:`make_proc`.
        trees: Those of granted directories and files, from :func:`clone_tree` or
            :func:`reopen_tree`, by :func:`tree_path` or :func:`file_path`.
        scratch: Bytes of the writable /tmp; 0 for none.

    Raises:
        OSError: As move_mount(2) says.
    """
    if proc is not None:
        syscalls.move_mount(proc, syscalls.AT_FDCWD, _PROC)
        os.close(proc)
    for path, tree in trees.items():
        syscalls.move_mount(tree, syscalls.AT_FDCWD, path)
        os.close(tree)
    if scratch:
        temporary = _make_scratch(scratch)
        syscalls.move_mount(temporary, syscalls.AT_FDCWD, _SCRATCH)
        os.close(temporary)


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

    What is attached in it keeps its own flags.

    Raises:
        OSError: As mount_setattr(2) says.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(root, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(root)


def open_directories(shown: Mapping[int, str], scratch: int) -> tuple[dict[int, int], int | None]:
    """Open what is attached in the new root, once there is no other.

    Args:
        shown: The numbers in the cell of the granted directories, each with what to call it.
        scratch: Bytes of the writable /tmp; 0 for none.

    Returns:
        Descriptors by those numbers, and one of /tmp or ``None``; all of them close-on-exec, and
        at numbers that mean nothing.

    Raises:
        OSError: EACCES for a directory that the cell's user on the host may not read.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = {}
    for target, name in shown.items():
        try:
            opened[target] = os.open(f"/{tree_path(target)}", flags)
        except OSError as error:
            # The path is the jail's, and says nothing to the reader of the message.
            raise OSError(error.errno, error.strerror, name) from error
    return opened, os.open(f"/{_SCRATCH}", flags) if scratch else None


def open_files(modes: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Open the granted files and their directory, once there is no other root.

    Args:
        modes: The files' names, each with its mode.

    Returns:
        Descriptors by the files' names, and one of the directory; all of them close-on-exec, and at
        numbers that mean nothing.

    Raises:
        OSError: EACCES for a file that the cell's user on the host may not open as granted: by a
            path, the kernel asks for its permissions again.
    """
    opened = {}
    for name, mode in modes.items():
        flags = (os.O_RDWR if "w" in mode else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            opened[name] = os.open(f"/{file_path(name)}", flags)
        except OSError as error:
            where = f"the file granted as {name}, which a component opens by a path"
            raise OSError(error.errno, error.strerror, where) from error
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return opened, os.open(f"/{_FILES}", flags)

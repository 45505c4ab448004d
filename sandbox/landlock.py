"""Step 11: no right to any file but those of the grants, held by the kernel; landlock(7).

Userspace-api/landlock of the kernel's documentation says what each right means, and that it is
asked for when a file is opened, by whatever path: a descriptor that was granted for reading
cannot be opened again for writing through /proc/self/fd, nor truncated by its path.

What Landlock cannot hold, and others have to:

- What a descriptor may do that is open already was settled when it was opened. write(2) and
  ftruncate(2) on a descriptor that was opened for both and granted for reading are for the host
  of the cell's calls to refuse.
- Pipes, sockets and memfds lie in no file hierarchy. The kernel takes no rule for them and lets
  /proc/self/fd open them again with any mode: the system call filter must allow no such open.
- stat(2), chmod(2), chown(2), utimensat(2), setxattr(2), flock(2), chdir(2) and connect(2) to a
  path are no rights of Landlock's. Mounts and the system call filter have to do.
- Rules belong to the file, not to the descriptor: of two grants of one file, each gets what both
  have. A file below a granted directory has the directory's rights besides.
"""

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from sandbox import syscalls
from sandbox.grants import Mode

# include/uapi/linux/landlock.h, LANDLOCK_ACCESS_FS_*
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_CHAR = 1 << 6
_MAKE_DIR = 1 << 7
_MAKE_REG = 1 << 8
_MAKE_SOCK = 1 << 9
_MAKE_FIFO = 1 << 10
_MAKE_BLOCK = 1 << 11
_MAKE_SYM = 1 << 12
_REFER = 1 << 13
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
# LANDLOCK_ACCESS_NET_*
_BIND_TCP = 1 << 0
_CONNECT_TCP = 1 << 1
# LANDLOCK_SCOPE_*
_ABSTRACT_UNIX_SOCKET = 1 << 0
_SIGNAL = 1 << 1
# LANDLOCK_RESTRICT_SELF_*
_LOG_SUBDOMAINS_OFF = 1 << 2


class _Handled(NamedTuple):
    """What a set of rules can deny, and how it is put in force."""

    filesystem: int = 0
    network: int = 0
    scopes: int = 0
    flags: int = 0


# What each version of the interface added. Version 1 already denies what REFER of version 2
# allows, links and renames between directories. The last keeps what code that took over the
# process does in sets of its own out of the audit log; what it tries against this one stays there.
_ADDED = {
    1: _Handled(
        _EXECUTE | _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE
        | _MAKE_CHAR | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _MAKE_SYM
    ),
    2: _Handled(_REFER),
    3: _Handled(_TRUNCATE),
    4: _Handled(network=_BIND_TCP | _CONNECT_TCP),
    5: _Handled(_IOCTL_DEV),
    6: _Handled(scopes=_ABSTRACT_UNIX_SOCKET | _SIGNAL),
    7: _Handled(flags=_LOG_SUBDOMAINS_OFF),
}  # fmt: skip

_WRITE = _WRITE_FILE | _TRUNCATE
# No grant brings a right to execute, to make what is not a file, directory or link, or to
# control a device.
_CHANGE = (
    _WRITE | _MAKE_REG | _MAKE_DIR | _MAKE_SYM | _REMOVE_FILE | _REMOVE_DIR | _REFER
)  # fmt: skip
_OF_FILE: dict[Mode, int] = {"r": _READ_FILE, "w": _WRITE, "rw": _READ_FILE | _WRITE}
_OF_DIRECTORY: dict[Mode, int] = {
    "r": _READ_FILE | _READ_DIR,
    "w": _CHANGE,
    "rw": _READ_FILE | _READ_DIR | _CHANGE,
}


def abi() -> int:
    """Return the version of Landlock that this kernel has; 0 where it has none, or not on.

    Raises:
        OSError: If something else than the kernel's want of it stands in the way.
    """
    try:
        return syscalls.landlock_version()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def _handled(version: int) -> _Handled:
    """Return all that a version of the interface can deny, as far as this module knows it."""
    handled = _Handled()
    for since, added in _ADDED.items():
        if since <= version:
            handled = _Handled(*(one | more for one, more in zip(handled, added, strict=True)))
    return handled


def restrict(
    readable: Sequence[int],
    files: Sequence[tuple[int, Mode]],
    directories: Sequence[tuple[int, Mode]],
) -> None:
    """Give up every right to files but these, TCP, and whatever is outside this cell.

    It is for the calling thread, which must be the only one, and for good. Where the kernel has
    no Landlock it does nothing; :func:`abi` tells beforehand.

    Args:
        readable: Descriptors of files that stay readable.
        files: Descriptors of granted files, each with its mode. What is in no file hierarchy is
            passed over, because there the kernel holds nothing.
        directories: Descriptors of granted directories, each with its mode.

    Raises:
        OSError: EPERM without no_new_privs; as the calls of landlock(7) say otherwise.
    """
    version = abi()
    if version == 0:
        return
    handled = _handled(version)
    rules = syscalls.landlock_create_ruleset(handled.filesystem, handled.network, handled.scopes)
    try:
        for fd in readable:
            _allow_file(rules, fd, _READ_FILE)
        for fd, mode in files:
            _allow_file(rules, fd, _OF_FILE[mode] & handled.filesystem)
        for fd, mode in directories:
            syscalls.landlock_allow_beneath(rules, fd, _OF_DIRECTORY[mode] & handled.filesystem)
        syscalls.landlock_restrict_self(rules, handled.flags)
    finally:
        os.close(rules)


def _allow_file(rules: int, fd: int, access: int) -> None:
    try:
        syscalls.landlock_allow_beneath(rules, fd, access)
    except OSError as error:
        # EBADFD is the kernel's word that it is in no file hierarchy (get_path_from_fd of
        # security/landlock/syscalls.c); a number that is not open is EBADF.
        if error.errno != errno.EBADFD:
            raise

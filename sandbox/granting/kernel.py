"""What the kernel says about an open descriptor: what it is, and what may be done with it."""

from __future__ import annotations

import fcntl
import os
import stat

from sandbox.errors import JailError
from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandbox.grants import FdType, Mode

# open(2): the two lowest bits are one number, not flags. Its fourth value, 3, is Linux's "check
# for both, allow neither", which leaves ioctl(2) only.
_ACCESS_MODES: Final[dict[int, Mode]] = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
_PIPE_ENDS: Final[dict[Mode, str]] = {"r": "read end", "w": "write end", "rw": "both ends"}
_ANONYMOUS: Final = "anon_inode:"  # proc_pid_fd(5)
_MEMFD: Final = "/memfd:"  # memfd_create(2)
_NAMESPACE: Final = "/proc/self/ns/mnt"  # namespaces(7); every kernel has mount namespaces

_NO_ACCESS: Final = "it is open for neither reading nor writing"
_NO_DATA: Final = "it is no file, stream or socket"


class Descriptor(Record):
    """An open descriptor, as the kernel knows it.

    Attributes:
        what: What it is, in words: ``pipe (read end)``, ``listening tcp socket``.
        mode: What its access mode allows; None if neither reading nor writing. A directory is
            open for reading only, always: here, what its mount allows.
        types: The types it may be granted as, the inferred one first; empty if none.
        refusal: Why it can never be granted; empty if it can.
        directory: Whether it is a directory.
    """

    what: str
    mode: Mode | None
    types: tuple[FdType, ...]
    refusal: str = ""
    directory: bool = False

    @property
    def with_article(self) -> str:
        """What it is, for the middle of a sentence: ``a pipe (read end)``."""
        # No name of a kind starts with a u that is spoken as in `umbrella`.
        return f"an {self.what}" if self.what[:1] in "aeio" else f"a {self.what}"


def describe(fd: int) -> Descriptor:
    """Ask the kernel about a descriptor, without reading from it or changing it.

    Whatever is not known to be a file, a stream or a socket is refused.

    Raises:
        OSError: With EBADF if it is not open; as fstat(2) and statvfs(3) say, if its file system
            does not answer.
        JailError: If /proc does not answer.
    """
    status = os.fstat(fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH:
        return Descriptor("path opened with O_PATH", None, (), _NO_ACCESS)
    mode = _ACCESS_MODES.get(flags & os.O_ACCMODE)
    descriptor = _describe_kind(fd, status, mode)
    if mode is None and not descriptor.refusal:
        return descriptor._replace(types=(), refusal=_NO_ACCESS)
    return descriptor


def _describe_kind(fd: int, status: os.stat_result, mode: Mode | None) -> Descriptor:
    """Tell by the file's type, inode(7)."""
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFSOCK:
            from sandbox.granting.sockets import describe_socket

            what, types = describe_socket(fd)
            return Descriptor(what, mode, types)
        case stat.S_IFIFO:
            what = f"pipe ({_PIPE_ENDS[mode]})" if mode else "pipe"
            return Descriptor(what, mode, ("stream",))
        case stat.S_IFCHR:
            what = "terminal" if os.isatty(fd) else "character device"
            return Descriptor(what, mode, ("stream",))
        case stat.S_IFBLK:
            return Descriptor("block device", mode, ("file",))
        case stat.S_IFREG:
            return _describe_regular(fd, status, mode)
        case stat.S_IFDIR:
            return Descriptor("directory", mode and _mount_mode(fd), ("file",), directory=True)
        case _:
            # epoll, pidfd, eventfd, io_uring, bpf and their like: no file type at all.
            return Descriptor(_anonymous_name(_link(fd)), mode, (), _NO_DATA)


def _describe_regular(fd: int, status: os.stat_result, mode: Mode | None) -> Descriptor:
    """Tell files from the kernel objects that fstat calls regular files too.

    A namespace is such an object, and setns(2) on it leads out of the jail. Its link reads
    ``net:[4026531833]``, but a path once it is bind-mounted (as ``ip netns`` does), so it is
    told by its file system, of which the kernel has one instance (fs/nsfs.c). Any other link
    that is no path belongs to an object this code does not know.
    """
    if status.st_dev == _namespace_device():
        return Descriptor("namespace", mode, (), "setns() on it leads out of the jail")
    link = _link(fd)
    if not link.startswith("/"):
        return Descriptor(_anonymous_name(link), mode, (), _NO_DATA)
    is_memfd = link.startswith(_MEMFD) and status.st_nlink == 0
    return Descriptor("memfd" if is_memfd else "regular file", mode, ("file",))


def _mount_mode(fd: int) -> Mode:
    """Return what may be done below a directory, as far as its mount and file system go."""
    return "r" if os.fstatvfs(fd).f_flag & os.ST_RDONLY else "rw"


def _link(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        raise _no_proc(f"/proc/self/fd/{fd}", error) from None


def _anonymous_name(link: str) -> str:
    """``anon_inode:[eventpoll]`` to ``eventpoll descriptor``."""
    return f"{link.removeprefix(_ANONYMOUS).strip('[]')} descriptor"


def _namespace_device() -> int:
    try:
        return os.stat(_NAMESPACE).st_dev
    except OSError as error:
        raise _no_proc(_NAMESPACE, error) from None


def _no_proc(path: str, error: OSError) -> JailError:
    what = f"{path}: the kernel does not say what a descriptor is: {error.strerror}"
    return JailError("proc", what, error.errno or 0)

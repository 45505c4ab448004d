"""Directories as the cell sees them: what all have in common, and the jail's root.

The root holds the pathlinks, and nothing else. A plain engine refuses absolute and magic links, so
this host resolves the names itself: opening one yields the grant, with the grant's rights. It is a
preopened directory named ``/``, so that the absolute paths of any libc for WASI lead here. Real
directories are in :mod:`sandbox.wasi.tree`.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sandbox.wasi import abi
from sandbox.wasi.files import File, Filestat, WasiError

LOOKING = (
    abi.PATH_OPEN | abi.FD_READDIR | abi.PATH_READLINK | abi.PATH_FILESTAT_GET | abi.FD_FILESTAT_GET
)
"""The rights on a directory in which nothing can be changed."""

_OFLAGS = abi.O_CREAT | abi.O_DIRECTORY | abi.O_EXCL | abi.O_TRUNC
_FDFLAGS = abi.APPEND | abi.DSYNC | abi.NONBLOCK | abi.RSYNC | abi.SYNC


class Entry(NamedTuple):
    """One name of a listing.

    Attributes:
        cookie: Where the listing goes on after it.
        inode: Its inode, or 0.
        filetype: Its type.
        name: The name.
    """

    cookie: int
    inode: int
    filetype: int
    name: bytes


class BaseDirectory(ABC):
    """What the calls of the interface need of a directory.

    What changes a directory is refused here, for those that nobody can change.

    Attributes:
        guest: The path by which the cell's C library finds it, if it is preopened.
        rights: What may be done with it.
        rights_inheriting: What a name opened from here can have at most: a C library asks for a
            subset of it.
    """

    filetype = abi.DIRECTORY
    guest: bytes | None
    rights: int
    rights_inheriting: int

    def need(self, right: int) -> None:
        """Refuse a call unless all of ``right`` is held.

        Raises:
            WasiError: ENOTCAPABLE.
        """
        if right & ~self.rights:
            raise WasiError(abi.ENOTCAPABLE)

    def narrow(self, rights: int, inheriting: int) -> None:
        """Give up all rights but ``rights``, and let names opened from here have no others.

        Raises:
            WasiError: ENOTCAPABLE if that would add one.
        """
        if rights & ~self.rights or inheriting & ~self.rights_inheriting:
            raise WasiError(abi.ENOTCAPABLE)
        self.rights = rights
        self.rights_inheriting = inheriting

    def flags(self) -> int:
        """Return no fdflags: a directory has none."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Give it up."""

    @abstractmethod
    def stat(self) -> Filestat:
        """Return its state."""

    @abstractmethod
    def entries(self, cookie: int, size: int) -> Iterator[Entry]:
        """List names in a stable order, ``.`` and ``..`` first.

        Args:
            cookie: Where to begin: 0, or what came with an entry.
            size: About how many bytes of names and their data will be taken.
        """

    @abstractmethod
    def open(
        self, path: bytes, oflags: int, rights: int, inheriting: int, fdflags: int, *, follow: bool
    ) -> "File | BaseDirectory":
        """Open what a path leads to.

        Args:
            path: Relative to here.
            oflags: Creation flags.
            rights: What the cell asks for.
            inheriting: What it asks for of what will be opened from there.
            fdflags: Flags of the open file.
            follow: Whether to follow a symbolic link at the path's end.
        """

    @abstractmethod
    def stat_path(self, path: bytes, *, follow: bool) -> Filestat:
        """Return the state of what a path leads to."""

    @abstractmethod
    def read_link(self, path: bytes) -> bytes:
        """Return what a symbolic link holds."""

    def sync(self) -> None:
        """Write out the names.

        Raises:
            WasiError: ENOTCAPABLE where there is nothing to write to.
        """
        raise WasiError(abi.ENOTCAPABLE)

    def datasync(self) -> None:
        """Likewise."""
        self.sync()

    def set_times(self, accessed: int, modified: int, which: int) -> None:
        """Set its own times."""
        raise _refuse_change()

    def set_path_times(
        self, path: bytes, accessed: int, modified: int, which: int, *, follow: bool
    ) -> None:
        """Set the times of what a path leads to."""
        raise _refuse_change()

    def create_directory(self, path: bytes) -> None:
        """Make a directory."""
        raise _refuse_change()

    def remove_directory(self, path: bytes) -> None:
        """Take away an empty directory."""
        raise _refuse_change()

    def unlink_file(self, path: bytes) -> None:
        """Take away a name of anything else."""
        raise _refuse_change()

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link."""
        raise _refuse_change()

    def link(self, path: bytes, other: "BaseDirectory", new: bytes, *, follow: bool) -> None:
        """Give a file one more name, in the same or in another directory."""
        raise self._refuse_between(other)

    def rename(self, path: bytes, other: "BaseDirectory", new: bytes) -> None:
        """Move a name, in the same or to another directory."""
        raise self._refuse_between(other)

    def _refuse_between(self, other: "BaseDirectory") -> Exception:
        """Return the error of a call on two directories: EXDEV if they are not of one kind."""
        if type(self) is type(other):
            return _refuse_change()
        return OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def check_open_flags(oflags: int, fdflags: int) -> None:
    """Refuse flags of path_open that there are not.

    Raises:
        OSError: EINVAL.
    """
    if oflags & ~_OFLAGS or fdflags & ~_FDFLAGS:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class RootDirectory(BaseDirectory):
    """A read-only directory whose entries are grants."""

    guest = b"/"
    rights = LOOKING
    rights_inheriting = rights | (
        abi.FD_READ
        | abi.FD_WRITE
        | abi.FD_SEEK
        | abi.FD_TELL
        | abi.FD_SYNC
        | abi.FD_DATASYNC
        | abi.FD_ADVISE
        | abi.FD_ALLOCATE
        | abi.FD_FDSTAT_SET_FLAGS
        | abi.FD_FILESTAT_SET_SIZE
        | abi.FD_FILESTAT_SET_TIMES
        | abi.POLL_FD_READWRITE
        | abi.SOCK_SHUTDOWN
        | abi.SOCK_ACCEPT
    )

    def __init__(self, links: Mapping[bytes, tuple[int, File]]) -> None:
        """Make the directory.

        Args:
            links: For each name the target that the link names and the grant it leads to.
        """
        self._links = dict(links)

    def stat(self) -> Filestat:
        """Return a directory without device, inode or times."""
        self.need(abi.FD_FILESTAT_GET)
        return _made_up(abi.DIRECTORY)

    def close(self) -> None:
        """Do nothing: no descriptor is behind it."""

    def _find(self, path: bytes) -> bytes | None:
        """Return the pathlink that a path names, or ``None`` for the directory itself.

        A link whose grant the cell has closed leads nowhere, like one in /proc.

        Raises:
            OSError: ENOENT for what is not there, ENOTDIR for a path below a grant.
            WasiError: ENOTCAPABLE for a path that would leave the directory, by ``..`` or by
                being absolute, even though there is nothing to find: as engines do it. An
                absolute path of a pathlink is accepted, because that is its name.
        """
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise WasiError(abi.ENOTCAPABLE)
        if parts and parts[0] in self._links and self._links[parts[0]][1].is_open:
            if len(parts) > 1 or path.endswith(b"/"):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return parts[0]
        if path.startswith(b"/"):
            raise WasiError(abi.ENOTCAPABLE)
        if parts or not path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return None

    def open(
        self, path: bytes, oflags: int, rights: int, inheriting: int, fdflags: int, *, follow: bool
    ) -> "File | RootDirectory":
        """Open a name: the grant's own open file under a new number, with no right it lacks.

        Args:
            path: Relative to the root.
            oflags: Creation flags. What exists may be opened with O_CREAT.
            rights: What the cell asks for; reading and writing are refused if the grant lacks
                them, anything else is left out.
            inheriting: What it asks for of what will be opened from a root that is opened here.
            fdflags: Flags to add to the open file.
            follow: Of no meaning: a pathlink is always followed.

        Raises:
            OSError: ENOENT, ENOTDIR, EISDIR, EEXIST, EINVAL for flags that there are not, or
                EACCES as open(2) for a mode that the grant does not allow.
            WasiError: ENOTCAPABLE for a path that leads out, and for what the cell gave up.
        """
        check_open_flags(oflags, fdflags)
        self.need(abi.PATH_OPEN)
        name = self._find(path)
        if oflags & abi.O_EXCL and oflags & abi.O_CREAT:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if name is None:
            if oflags & abi.O_TRUNC or rights & abi.FD_WRITE:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            root = RootDirectory(self._links)
            root.narrow(self.rights & rights, self.rights_inheriting & inheriting)
            return root
        grant = self._links[name][1]
        if oflags & abi.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        needed = rights & (abi.FD_READ | abi.FD_WRITE)
        if grant.rights & abi.SOCK_ACCEPT:
            needed = 0  # a listening socket is neither read nor written, but can be opened
        # Of a pipe or a device there is nothing to cut off, and O_TRUNC means nothing (open(2)).
        truncates = oflags & abi.O_TRUNC and grant.filetype == abi.REGULAR_FILE
        if truncates:
            needed |= abi.FD_FILESTAT_SET_SIZE
        if needed & ~grant.rights:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if needed & ~self.rights_inheriting:
            raise WasiError(abi.ENOTCAPABLE)
        opened = grant.reopen()
        try:
            if truncates:
                opened.set_size(0)
            if fdflags & ~opened.flags():
                opened.set_flags(opened.flags() | fdflags)
            opened.narrow(opened.rights & rights & self.rights_inheriting)
        except BaseException:
            opened.close()
            raise
        return opened

    def stat_path(self, path: bytes, *, follow: bool) -> Filestat:
        """Return the state of a grant by its name, or of the link itself.

        Raises:
            OSError: ENOENT, ENOTDIR.
        """
        self.need(abi.PATH_FILESTAT_GET)
        name = self._find(path)
        if name is None:
            return _made_up(abi.DIRECTORY)
        if follow:
            return self._links[name][1].stat()
        return _made_up(abi.SYMBOLIC_LINK, size=len(self._target(name)))

    def read_link(self, path: bytes) -> bytes:
        """Return what a pathlink points to.

        Raises:
            OSError: ENOENT, ENOTDIR; EINVAL for the directory itself, as readlink(2).
        """
        self.need(abi.PATH_READLINK)
        name = self._find(path)
        if name is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._target(name)

    def _target(self, name: bytes) -> bytes:
        return b"/proc/self/fd/%d" % self._links[name][0]

    def entries(self, cookie: int, size: int) -> Iterator[Entry]:
        """List the names; see :class:`BaseDirectory`. A cookie is a position."""
        self.need(abi.FD_READDIR)
        names = [b".", b"..", *sorted(self._links)]
        for position in range(cookie, len(names)):
            filetype = abi.DIRECTORY if position < 2 else abi.SYMBOLIC_LINK
            yield Entry(position + 1, 0, filetype, names[position])


def _made_up(filetype: int, size: int = 0) -> Filestat:
    return Filestat(
        device=0,
        inode=0,
        filetype=filetype,
        links=1,
        size=size,
        accessed=0,
        modified=0,
        changed=0,
    )


def _refuse_change() -> WasiError:
    """Return the error of every call that would change the directory: EROFS."""
    return WasiError(abi.ERRNO[errno.EROFS])

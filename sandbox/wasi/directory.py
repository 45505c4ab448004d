"""The jail's root directory, as the cell sees it: the pathlinks, and nothing else.

A plain engine refuses absolute and magic links, so this host resolves the names itself: opening
one yields the grant, with the grant's rights. The directory is a preopened one named ``/``, so
that the absolute paths of any libc for WASI lead here.
"""

import errno
import os
from collections.abc import Mapping

from sandbox.wasi import abi
from sandbox.wasi.files import File, Filestat, WasiError

NAME = b"/"
# C libraries enumerate preopened directories from here until EBADF.
FIRST_PREOPEN = 3

_OFLAGS = abi.O_CREAT | abi.O_DIRECTORY | abi.O_EXCL | abi.O_TRUNC
_FDFLAGS = abi.APPEND | abi.DSYNC | abi.NONBLOCK | abi.RSYNC | abi.SYNC


class RootDirectory:
    """A read-only directory whose entries are grants."""

    filetype = abi.DIRECTORY
    rights = (
        abi.PATH_OPEN
        | abi.FD_READDIR
        | abi.PATH_READLINK
        | abi.PATH_FILESTAT_GET
        | abi.FD_FILESTAT_GET
    )
    # What a name opened from here can have at most: a C library asks for a subset of it.
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

    def flags(self) -> int:
        """Return no fdflags: a directory has none."""
        return 0

    def stat(self) -> Filestat:
        """Return a directory without device, inode or times."""
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

    def open(self, path: bytes, oflags: int, rights: int, fdflags: int) -> "File | RootDirectory":
        """Open a name: the grant's own open file under a new number, with no right it lacks.

        Args:
            path: Relative to the root.
            oflags: Creation flags. What exists may be opened with O_CREAT.
            rights: What the cell asks for; reading and writing are refused if the grant lacks
                them, anything else is left out.
            fdflags: Flags to add to the open file.

        Raises:
            OSError: ENOENT, ENOTDIR, EISDIR, EEXIST, EINVAL for flags that there are not, or
                EACCES as open(2) for a mode that the grant does not allow.
            WasiError: ENOTCAPABLE for a path that leads out.
        """
        if oflags & ~_OFLAGS or fdflags & ~_FDFLAGS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        name = self._find(path)
        if oflags & abi.O_EXCL and oflags & abi.O_CREAT:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if name is None:
            if oflags & abi.O_TRUNC or rights & abi.FD_WRITE:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            return RootDirectory(self._links)
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
        opened = grant.reopen()
        try:
            if truncates:
                opened.set_size(0)
            if fdflags & ~opened.flags():
                opened.set_flags(opened.flags() | fdflags)
            opened.narrow(opened.rights & (rights | ~self.rights_inheriting))
        except BaseException:
            opened.close()
            raise
        return opened

    def stat_path(self, path: bytes, *, follow: bool) -> Filestat:
        """Return the state of a grant by its name, or of the link itself.

        Raises:
            OSError: ENOENT, ENOTDIR.
        """
        name = self._find(path)
        if name is None:
            return self.stat()
        if follow:
            return self._links[name][1].stat()
        return _made_up(abi.SYMBOLIC_LINK, size=len(self.read_link(path)))

    def read_link(self, path: bytes) -> bytes:
        """Return what a pathlink points to.

        Raises:
            OSError: ENOENT, ENOTDIR; EINVAL for the directory itself, as readlink(2).
        """
        name = self._find(path)
        if name is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return b"/proc/self/fd/%d" % self._links[name][0]

    def entries(self) -> list[tuple[bytes, int]]:
        """Return names and types in a stable order, ``.`` and ``..`` first."""
        own = [(b".", abi.DIRECTORY), (b"..", abi.DIRECTORY)]
        return own + [(name, abi.SYMBOLIC_LINK) for name in sorted(self._links)]


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


def refuse_change() -> WasiError:
    """Return the error of every call that would change the directory: EROFS."""
    return WasiError(abi.ERRNO[errno.EROFS])

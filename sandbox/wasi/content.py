"""The directory whose content the runner serves: found, verified and read outside the jail.

Its connection is a descriptor that no number of the cell leads to. What is behind an address never
changes, so a directory that is open is an address, and a file that is open is its bytes.
"""

import array
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator

from sandbox.content import (
    LONGEST_NAME,
    MAX_ANSWER,
    SEALS,
    Answer,
    Found,
    Kind,
    Request,
    names,
)
from sandbox.wasi import abi
from sandbox.wasi.directory import LOOKING, BaseDirectory, Entry, check_open_flags
from sandbox.wasi.files import File, Filestat

_FILETYPES: dict[Kind | None, int] = {
    None: abi.UNKNOWN,
    "file": abi.REGULAR_FILE,
    "directory": abi.DIRECTORY,
    "link": abi.SYMBOLIC_LINK,
}
# Room for one descriptor more than there may be, so that it can be seen.
_RIGHTS_SPACE = socket.CMSG_SPACE(2 * array.array("i").itemsize)
# Cookies 0 and 1 are before `.` and `..`; the others are positions in the listing, from here on.
_FIRST_POSITION = 2
_LAST_POSITION = (1 << 63) - 1 - LONGEST_NAME
_MOST_NAMES = 32768


class Source:
    """The cell's end of the connection."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self._socket = socket.socket(fileno=fd)

    def find(self, base: str, path: bytes, *, follow: bool) -> Found:
        """Return what a path leads to; see :class:`sandbox.content.Request`.

        Raises:
            OSError: As the runner says; EIO if it has ended the connection.
        """
        found, fds = self._ask(Request("find" if follow else "find-link", base, path.decode()))
        if fds:
            raise self._broken(fds)
        return found

    def read(self, address: str) -> int:
        """Return a descriptor of the bytes that are behind an address.

        Raises:
            OSError: As the runner says; EIO if it has ended the connection.
        """
        found, fds = self._ask(Request("read", address))
        if len(fds) != 1 or not _is_sealed(fds[0], found.size):
            raise self._broken(fds)
        return fds[0]

    def _ask(self, request: Request) -> tuple[Found, list[int]]:
        try:
            self._socket.send(request.encode(), socket.MSG_NOSIGNAL)
            data, ancillary, flags, _ = self._socket.recvmsg(
                MAX_ANSWER, _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            raise self._broken([]) from None
        fds = array.array("i")
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(value)
        if flags & socket.MSG_CTRUNC and not fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            answer = Answer.decode(data)
        except ValueError:
            raise self._broken(list(fds)) from None
        if answer.errno and not fds:
            raise OSError(answer.errno, os.strerror(answer.errno))
        if answer.found is None or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise self._broken(list(fds))
        return answer.found, list(fds)

    def _broken(self, fds: list[int]) -> OSError:
        """Return the error after which nothing more is asked: what came would not be trusted."""
        for fd in fds:
            os.close(fd)
        self._socket.close()
        return OSError(errno.EIO, os.strerror(errno.EIO))


def _is_sealed(fd: int, size: int) -> bool:
    """Tell whether a descriptor is of so many bytes that nobody can change."""
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode) or state.st_size != size:
        return False
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


class ServedFile(File):
    """A file of the content: its bytes, in memory that nobody can change."""

    def __init__(self, fd: int, found: Found) -> None:
        """Take over a descriptor of the bytes of what was found."""
        super().__init__(fd, "r")
        self._found = found

    def stat(self) -> Filestat:
        """Return its size and inode, and no times."""
        self.need(abi.FD_FILESTAT_GET)
        return _state(self._found)


class ServedDirectory(BaseDirectory):
    """A directory of the content, or the one above all content, whose names nobody can list."""

    rights = LOOKING
    # Writing is asked for in any case, and refused when something is opened: a C library that found
    # it missing here would open without it and say nothing.
    rights_inheriting = rights | (
        abi.FD_READ
        | abi.FD_WRITE
        | abi.FD_SEEK
        | abi.FD_TELL
        | abi.FD_SYNC
        | abi.FD_DATASYNC
        | abi.FD_ADVISE
        | abi.FD_FDSTAT_SET_FLAGS
        | abi.POLL_FD_READWRITE
    )

    def __init__(
        self, source: Source, found: Found | None = None, guest: bytes | None = None
    ) -> None:
        """Make the directory.

        Args:
            source: Where to ask.
            found: What it is; ``None`` for the one above all content.
            guest: The path by which the cell's C library finds it, if it is preopened.
        """
        self.guest = guest
        self._source = source
        self._found = found
        self._listing = -1

    @property
    def _base(self) -> str:
        return "" if self._found is None else self._found.address

    def close(self) -> None:
        """Give up the list of names, if it was asked for."""
        if self._listing >= 0:
            os.close(self._listing)
            self._listing = -1

    def stat(self) -> Filestat:
        """Return its inode, and no times."""
        self.need(abi.FD_FILESTAT_GET)
        return _state(self._found)

    def _find(self, path: bytes, *, follow: bool) -> Found | None:
        """Return what a path leads to; ``None`` for the directory above all content.

        Raises:
            OSError: ENOENT, ENOTDIR, ELOOP; EPERM for a path that leads out; EIO for content that
                is damaged.
        """
        if path.startswith(b"/"):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if not path:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if all(part in (b"", b".") for part in path.split(b"/")):
            return self._found
        return self._source.find(self._base, path, follow=follow)

    def open(
        self, path: bytes, oflags: int, rights: int, inheriting: int, fdflags: int, *, follow: bool
    ) -> "ServedFile | ServedDirectory":
        """Open a file or a directory for reading.

        Args:
            path: Relative to here.
            oflags: Creation flags. What exists may be opened with O_CREAT.
            rights: What the cell asks for; writing is refused, anything else is left out.
            inheriting: What it asks for of what will be opened from there.
            fdflags: Flags of the open file, which mean nothing where nobody writes.
            follow: Whether to follow a symbolic link at the path's end.

        Raises:
            OSError: As open(2): EINVAL, ENOENT, ENOTDIR, EISDIR, EEXIST, ELOOP, EPERM; EROFS for
                what would write; EFBIG for a file that is too large, ENOMEM or ENFILE for one more
                than may be open at once; EIO for damaged content.
            WasiError: ENOTCAPABLE for what the cell gave up.
        """
        check_open_flags(oflags, fdflags)
        creates, truncates = oflags & abi.O_CREAT, oflags & abi.O_TRUNC
        exclusive = creates and oflags & abi.O_EXCL
        if creates and oflags & abi.O_DIRECTORY:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.need(abi.PATH_OPEN)
        writes = truncates or rights & abi.FD_WRITE
        try:
            found = self._find(path, follow=follow and not exclusive)
        except FileNotFoundError:
            if creates:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from None
            raise
        if exclusive:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if found is None or found.kind == "directory":
            if creates or writes:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            directory = ServedDirectory(self._source, found)
            directory.narrow(
                directory.rights & rights & self.rights_inheriting,
                directory.rights_inheriting & inheriting & self.rights_inheriting,
            )
            return directory
        if oflags & abi.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.kind == "link":
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if writes:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        file = ServedFile(self._source.read(found.address), found)
        file.narrow(file.rights & rights & self.rights_inheriting)
        return file

    def stat_path(self, path: bytes, *, follow: bool) -> Filestat:
        """Return the state of what a path leads to."""
        self.need(abi.PATH_FILESTAT_GET)
        return _state(self._find(path, follow=follow))

    def read_link(self, path: bytes) -> bytes:
        """Return what a symbolic link holds.

        Raises:
            OSError: EINVAL for what is no link.
        """
        self.need(abi.PATH_READLINK)
        found = self._find(path, follow=False)
        if found is None or found.kind != "link":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = self._source.read(found.address)
        try:
            return os.pread(fd, found.size, 0)
        finally:
            os.close(fd)

    def entries(self, cookie: int, size: int) -> Iterator[Entry]:
        """List names; see :class:`BaseDirectory`. A cookie is a position in the whole list.

        Raises:
            OSError: EPERM for the directory above all content: nobody knows all there is.
        """
        self.need(abi.FD_READDIR)
        if self._found is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        for position, dots in enumerate((b".", b"..")):
            if cookie <= position:
                yield Entry(position + 1, self._found.inode, abi.DIRECTORY, dots)
        if self._listing < 0:
            self._listing = self._source.read(self._found.address)
        begin = max(cookie, _FIRST_POSITION) - _FIRST_POSITION
        room = LONGEST_NAME + min(size, _MOST_NAMES)
        while begin < _LAST_POSITION and (part := os.pread(self._listing, room, begin)):
            end = 0
            for name, end in names(part):
                behind = begin + end + _FIRST_POSITION
                yield Entry(behind, name.inode, _FILETYPES[name.kind], name.name)
            if not end:
                return  # the cell made the cookie up
            begin += end


def _state(found: Found | None) -> Filestat:
    kind: Kind = "directory" if found is None else found.kind
    return Filestat(
        device=0,
        inode=0 if found is None else found.inode,
        filetype=_FILETYPES[kind],
        links=1,
        size=0 if found is None else found.size,
        accessed=0,
        modified=0,
        changed=0,
    )

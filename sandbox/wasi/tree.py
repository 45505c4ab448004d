"""Real directories that were granted, and all that the cell does below them.

A path is walked here, one component at a time, and never by the kernel: each open(2) names a single
component of a directory that is held open, and follows no symbolic link. Links are read and
resolved by hand, so that neither they, nor ``..``, nor the magic ones of proc lead out, whatever
others do to the names in the meantime. The way back up goes over the directories that led down, not
over what the kernel says of ``..``: a directory may have been moved since.
"""

import errno
import fcntl
import os
import stat
import struct
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from sandbox import syscalls
from sandbox.grants import Mode
from sandbox.wasi import abi
from sandbox.wasi.directory import BaseDirectory, Entry, check_open_flags
from sandbox.wasi.files import (
    CHANGEABLE_FLAGS,
    File,
    Filestat,
    WasiError,
    check_times,
    filetype_of,
    new_times,
)
from sandbox.wasi.meter import Meter

# Symbolic links on the way of one path (path_resolution(7)).
_MOST_LINKS = 40
# Directories on the way of one path that are held open at once.
_MOST_HELD = 16

_READING = abi.FD_READDIR | abi.PATH_READLINK
_WRITING = (
    abi.PATH_CREATE_DIRECTORY
    | abi.PATH_CREATE_FILE
    | abi.PATH_LINK_SOURCE
    | abi.PATH_LINK_TARGET
    | abi.PATH_RENAME_SOURCE
    | abi.PATH_RENAME_TARGET
    | abi.PATH_FILESTAT_SET_SIZE
    | abi.PATH_FILESTAT_SET_TIMES
    | abi.PATH_SYMLINK
    | abi.PATH_REMOVE_DIRECTORY
    | abi.PATH_UNLINK_FILE
    | abi.FD_FILESTAT_SET_TIMES
)
_ALL_MODES = (
    abi.PATH_OPEN | abi.PATH_FILESTAT_GET | abi.FD_FILESTAT_GET | abi.FD_SYNC | abi.FD_DATASYNC
)
_FILE = (
    abi.FD_SEEK
    | abi.FD_TELL
    | abi.FD_SYNC
    | abi.FD_DATASYNC
    | abi.FD_ADVISE
    | abi.FD_FDSTAT_SET_FLAGS
    | abi.FD_FILESTAT_GET
    | abi.POLL_FD_READWRITE
)
_FILE_WRITING = abi.FD_ALLOCATE | abi.FD_FILESTAT_SET_SIZE | abi.FD_FILESTAT_SET_TIMES
_ACCESS = abi.FD_READ | abi.FD_WRITE

_ACCESS_MODES = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
# fdflags that can only be given when a file is opened (fcntl(2)).
_SYNC_FLAGS = ((abi.DSYNC, os.O_DSYNC), (abi.RSYNC, os.O_RSYNC), (abi.SYNC, os.O_SYNC))
_BELOW = os.O_NOFOLLOW | os.O_CLOEXEC

# struct linux_dirent64 of getdents64(2): inode, offset of the next, length of the whole, type, then
# the name and a NUL; its types are those of st_mode, shifted (DTTOIF of dirent.h).
_DIRENT = struct.Struct("=QqHB")
_DT_UNKNOWN = 0
_DT_SHIFT = 12
# Bytes for one call: room for the longest name at least.
_LEAST_NAMES, _MOST_NAMES = 512, 32768
# Cookies 0 and 1 are before `.` and `..`; the others are the kernel's offsets, from here on.
_FIRST_OFFSET = 2
_LAST_OFFSET = (1 << 63) - 1
_U64 = (1 << 64) - 1


class Directory(BaseDirectory):
    """A directory of this machine."""

    def __init__(
        self, fd: int, mode: Mode, guest: bytes | None = None, meter: Meter | None = None
    ) -> None:
        """Take over a descriptor.

        Args:
            fd: A descriptor of a directory, open for reading; closed by :meth:`close`.
            mode: What may be done with all that is in it.
            guest: The path by which the cell's C library finds it, if it is preopened.
            meter: Counts what is written to files below.
        """
        self.fd = fd
        self.mode: Mode = mode
        self.guest = guest
        self.meter = Meter(None) if meter is None else meter
        self._allowed = _ALL_MODES | _by_mode(mode, _READING, _WRITING)
        self._allowed_access = _by_mode(mode, abi.FD_READ, abi.FD_WRITE)
        self.rights = self._allowed
        # Reading and writing are asked for in any case, and refused when something is opened: a C
        # library that found them missing here would open without them and say nothing.
        self.rights_inheriting = self._allowed | _ACCESS | _FILE | _by_mode(mode, 0, _FILE_WRITING)

    def need(self, right: int) -> None:
        """Refuse a call unless all of ``right`` is held.

        Raises:
            OSError: EPERM for what the mode does not allow, as engines say of a directory that
                is read-only.
            WasiError: ENOTCAPABLE for what the cell gave up.
        """
        if right & ~self._allowed:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        super().need(right)

    def close(self) -> None:
        """Give up the descriptor; close(2)."""
        os.close(self.fd)

    def stat(self) -> Filestat:
        """Return what fstat(2) says."""
        self.need(abi.FD_FILESTAT_GET)
        return Filestat.of(os.fstat(self.fd))

    def set_times(self, accessed: int, modified: int, which: int) -> None:
        """Set its own times; futimens(3).

        Raises:
            OSError: EINVAL for flags that contradict each other, or that there are not.
        """
        check_times(which)
        self.need(abi.FD_FILESTAT_SET_TIMES)
        self._set_times(_Place(_Way(self.fd)), accessed, modified, which)

    def sync(self) -> None:
        """Write out the names and metadata; fsync(2)."""
        self.need(abi.FD_SYNC)
        os.fsync(self.fd)

    def datasync(self) -> None:
        """Write out the names; fdatasync(2)."""
        self.need(abi.FD_DATASYNC)
        os.fdatasync(self.fd)

    def entries(self, cookie: int, size: int) -> Iterator[Entry]:
        """List names; see :class:`BaseDirectory`.

        A cookie is the kernel's own position behind an entry, so nothing is kept between two calls,
        and a listing goes on rightly where names come and go. What is above is not the cell's
        business: ``..`` has the inode of the directory itself.
        """
        self.need(abi.FD_READDIR)
        own = os.fstat(self.fd).st_ino
        for position, name in enumerate((b".", b"..")):
            if cookie <= position:
                yield Entry(position + 1, own, abi.DIRECTORY, name)
        offset = max(cookie, _FIRST_OFFSET) - _FIRST_OFFSET
        if offset > _LAST_OFFSET:
            return
        try:
            os.lseek(self.fd, offset, os.SEEK_SET)
        except OSError:
            return  # the cell made it up
        while names := syscalls.getdents64(self.fd, min(max(size, _LEAST_NAMES), _MOST_NAMES)):
            at = 0
            while at < len(names):
                inode, following, length, kind = _DIRENT.unpack_from(names, at)
                name = names[at + _DIRENT.size : at + length].partition(b"\0")[0]
                at += length
                if name not in (b".", b".."):
                    filetype = self._filetype(kind, name)
                    yield Entry((following + _FIRST_OFFSET) & _U64, inode, filetype, name)

    def _filetype(self, kind: int, name: bytes) -> int:
        """Return the type of an entry, also where the file system does not list it."""
        if kind != _DT_UNKNOWN:
            return filetype_of(kind << _DT_SHIFT)
        try:
            return filetype_of(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except OSError:
            return abi.UNKNOWN  # gone since

    def open(
        self, path: bytes, oflags: int, rights: int, inheriting: int, fdflags: int, *, follow: bool
    ) -> "File | Directory":
        """Open a regular file or a directory, or make a file.

        Never waits: whatever is neither is refused, and not touched.

        Args:
            path: Relative to here.
            oflags: Creation flags.
            rights: What the cell asks for; reading and writing are refused if the mode lacks them,
                anything else is left out.
            inheriting: What it asks for of what will be opened from there.
            fdflags: Flags of the open file.
            follow: Whether to follow a symbolic link at the path's end.

        Raises:
            OSError: As open(2): EINVAL, EPERM, EEXIST, ENOENT, ENOTDIR, EISDIR, ELOOP; EACCES for
                a FIFO, a socket or a device.
            WasiError: ENOTCAPABLE for what the cell gave up.
        """
        check_open_flags(oflags, fdflags)
        creates, truncates = oflags & abi.O_CREAT, oflags & abi.O_TRUNC
        exclusive = creates and oflags & abi.O_EXCL
        if creates and oflags & abi.O_DIRECTORY:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.need(
            abi.PATH_OPEN
            | (abi.PATH_CREATE_FILE if creates else 0)
            | (abi.PATH_FILESTAT_SET_SIZE if truncates else 0)
        )
        access = rights & _ACCESS
        if access & ~self._allowed_access:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if access & ~self.rights_inheriting:
            raise WasiError(abi.ENOTCAPABLE)
        with _walk(self.fd, path, follow=follow and not exclusive) as place:
            state = place.state()
            if creates and place.must_be_directory and place.name is not None:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if state is not None and exclusive:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if creates and place.name is None:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if state is None:
                if not creates:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            elif stat.S_ISLNK(state.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            elif stat.S_ISDIR(state.st_mode):
                if creates or truncates or access & abi.FD_WRITE:
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                return self._open_directory(place, rights, inheriting)
            elif place.must_be_directory or oflags & abi.O_DIRECTORY:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            elif not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return self._open_file(place, oflags, rights, fdflags)

    def _open_directory(self, place: "_Place", rights: int, inheriting: int) -> "Directory":
        fd = os.open(place.component, os.O_RDONLY | os.O_DIRECTORY | _BELOW, dir_fd=place.directory)
        opened = Directory(fd, self.mode, meter=self.meter)
        opened.narrow(
            opened.rights & rights & self.rights_inheriting,
            opened.rights_inheriting & inheriting & self.rights_inheriting,
        )
        return opened

    def _open_file(self, place: "_Place", oflags: int, rights: int, fdflags: int) -> File:
        reads = rights & abi.FD_READ
        writes = rights & abi.FD_WRITE or oflags & abi.O_TRUNC
        mode: Mode = ("rw" if reads else "w") if writes else "r"
        flags = _ACCESS_MODES[mode]
        for wasi, bits in ((abi.O_CREAT, os.O_CREAT), (abi.O_EXCL, os.O_EXCL)):
            flags |= bits if oflags & wasi else 0
        flags |= os.O_TRUNC if oflags & abi.O_TRUNC else 0
        flags |= sum(bits for wasi, bits in _SYNC_FLAGS if fdflags & wasi)
        # Another may have put something in its place that one would wait for.
        flags |= os.O_NONBLOCK | os.O_NOCTTY | _BELOW
        fd = os.open(place.component, flags, 0o666, dir_fd=place.directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            opened = File(fd, mode, self.meter)
            # That takes the file's owner, and not that it is open for writing (futimens(3)).
            opened.rights |= self._allowed & abi.FD_FILESTAT_SET_TIMES
            opened.narrow(opened.rights & rights & self.rights_inheriting)
            # After the file was made: one that is opened for appending is not append-only.
            actual = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK
            actual |= sum(bits for wasi, bits in CHANGEABLE_FLAGS if fdflags & wasi)
            fcntl.fcntl(fd, fcntl.F_SETFL, actual)
        except BaseException:
            os.close(fd)
            raise
        return opened

    def stat_path(self, path: bytes, *, follow: bool) -> Filestat:
        """Return the state of what a path leads to.

        Raises:
            OSError: As lstat(2).
        """
        self.need(abi.PATH_FILESTAT_GET)
        with _walk(self.fd, path, follow=follow) as place:
            return Filestat.of(place.existing())

    def set_path_times(
        self, path: bytes, accessed: int, modified: int, which: int, *, follow: bool
    ) -> None:
        """Set the times of what a path leads to; utimensat(2).

        Raises:
            OSError: EINVAL for flags that contradict each other, or that there are not.
        """
        check_times(which)
        self.need(abi.PATH_FILESTAT_SET_TIMES)
        with _walk(self.fd, path, follow=follow) as place:
            self._set_times(place, accessed, modified, which)

    def _set_times(self, place: "_Place", accessed: int, modified: int, which: int) -> None:
        state = place.existing()
        if not which:
            return  # to set neither is nothing, and allowed to all (utimensat(2))
        times = None
        if which != abi.ATIM_NOW | abi.MTIM_NOW:
            times = new_times(state, accessed, modified, which)
        # Without times it is allowed to whoever may write, and not to the owner only.
        if times is None:
            os.utime(place.component, dir_fd=place.directory, follow_symlinks=False)
        else:
            os.utime(place.component, ns=times, dir_fd=place.directory, follow_symlinks=False)

    def read_link(self, path: bytes) -> bytes:
        """Return what a symbolic link holds; readlink(2).

        Raises:
            OSError: EINVAL for what is no link; EPERM for an absolute one, which names something
                outside.
        """
        self.need(abi.PATH_READLINK)
        with _walk(self.fd, path, follow=False) as place:
            if place.name is None or place.must_be_directory:
                place.existing()
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            target = os.readlink(place.name, dir_fd=place.directory)
        _refuse_absolute(target)
        return target

    def create_directory(self, path: bytes) -> None:
        """Make a directory; mkdir(2)."""
        self.need(abi.PATH_CREATE_DIRECTORY)
        with _walk(self.fd, path, follow=None) as place:
            if place.name is None:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.mkdir(place.name, 0o777, dir_fd=place.directory)

    def remove_directory(self, path: bytes) -> None:
        """Take away an empty directory; rmdir(2)."""
        self.need(abi.PATH_REMOVE_DIRECTORY)
        with _walk(self.fd, path, follow=None) as place:
            if place.name is None:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            os.rmdir(place.name, dir_fd=place.directory)

    def unlink_file(self, path: bytes) -> None:
        """Take away a name of anything but a directory; unlink(2)."""
        self.need(abi.PATH_UNLINK_FILE)
        with _walk(self.fd, path, follow=None) as place:
            if place.name is None:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if place.must_be_directory:
                place.existing()
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            os.unlink(place.name, dir_fd=place.directory)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link, whose target counts as written; symlink(2).

        Raises:
            OSError: EPERM for an absolute target, which could only name something outside.
        """
        self.need(abi.PATH_SYMLINK)
        _refuse_absolute(target)
        with _walk(self.fd, path, follow=None) as place:
            name = place.new_name()
            self.meter.need(len(target))
            os.symlink(target, name, dir_fd=place.directory)
        self.meter.charge(len(target))

    def link(self, path: bytes, other: BaseDirectory, new: bytes, *, follow: bool) -> None:
        """Give a file one more name; link(2).

        Raises:
            OSError: EXDEV where the other is not a real directory.
        """
        if not isinstance(other, Directory):
            raise self._refuse_between(other)
        self.need(abi.PATH_LINK_SOURCE)
        other.need(abi.PATH_LINK_TARGET)
        with (
            _walk(self.fd, path, follow=follow) as source,
            _walk(other.fd, new, follow=None) as target,
        ):
            if source.name is None or source.must_be_directory:
                source.existing()
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            os.link(
                source.name,
                target.new_name(),
                src_dir_fd=source.directory,
                dst_dir_fd=target.directory,
                follow_symlinks=False,
            )

    def rename(self, path: bytes, other: BaseDirectory, new: bytes) -> None:
        """Move a name, over another if there is one; rename(2).

        Raises:
            OSError: EXDEV where the other is not a real directory.
        """
        if not isinstance(other, Directory):
            raise self._refuse_between(other)
        self.need(abi.PATH_RENAME_SOURCE)
        other.need(abi.PATH_RENAME_TARGET)
        with (
            _walk(self.fd, path, follow=None) as source,
            _walk(other.fd, new, follow=None) as target,
        ):
            if source.name is None or target.name is None:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            if target.must_be_directory:
                source.must_be_directory = True
            if source.must_be_directory:
                source.existing()
            os.rename(
                source.name,
                target.name,
                src_dir_fd=source.directory,
                dst_dir_fd=target.directory,
            )


def _by_mode(mode: Mode, reading: int, writing: int) -> int:
    return (reading if "r" in mode else 0) | (writing if "w" in mode else 0)


def _refuse_absolute(target: bytes) -> None:
    """Refuse a link's target that begins at the root, which is nobody's here.

    Raises:
        OSError: EPERM.
    """
    if target.startswith(b"/"):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class _Way:
    """The directories from a granted one down to where a path has led so far.

    The last of them are open. Those above are opened anew, by their names, in the rare case that a
    path goes down far and up again; so that no path takes more than a few descriptors.
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._names: list[bytes] = []
        self._held: deque[int] = deque()

    @property
    def here(self) -> int:
        """A descriptor of the last one."""
        return self._held[-1] if self._held else self._base

    def down(self, name: bytes) -> None:
        """Go into a directory.

        Raises:
            OSError: ENOTDIR for anything else, a symbolic link too.
        """
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | _BELOW, dir_fd=self.here)
        self._held.append(fd)
        self._names.append(name)
        if len(self._held) > _MOST_HELD:
            os.close(self._held.popleft())

    def up(self) -> None:
        """Go back.

        Raises:
            OSError: EPERM from the granted directory, as engines say of a path that leads out.
        """
        if not self._names:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._names.pop()
        os.close(self._held.pop())
        if self._names and not self._held:
            names, self._names = self._names, []
            for name in names:
                self.down(name)

    def close(self) -> None:
        """Close what is held."""
        while self._held:
            os.close(self._held.pop())


class _Place:
    """Where a path leads: a name in a directory that is held open, or that directory itself.

    Attributes:
        name: One component, and neither ``.`` nor ``..``; ``None`` for the directory itself.
        must_be_directory: The path ends with a slash.
    """

    def __init__(
        self, way: _Way, name: bytes | None = None, *, must_be_directory: bool = False
    ) -> None:
        self._way = way
        self.name = name
        self.must_be_directory = must_be_directory

    def __enter__(self) -> "_Place":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._way.close()

    @property
    def directory(self) -> int:
        """A descriptor of the directory."""
        return self._way.here

    @property
    def component(self) -> bytes:
        """The name, in the form that also stands for the directory itself."""
        return b"." if self.name is None else self.name

    def state(self) -> os.stat_result | None:
        """Return what lstat(2) says; ``None`` where nothing is.

        Raises:
            OSError: As lstat(2), but for ENOENT.
        """
        try:
            return os.stat(self.component, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def existing(self) -> os.stat_result:
        """Return what lstat(2) says of something that must be there.

        Raises:
            OSError: ENOENT; ENOTDIR if it must be a directory and is not.
        """
        state = self.state()
        if state is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.must_be_directory and not stat.S_ISDIR(state.st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return state

    def new_name(self) -> bytes:
        """Return the name for something new that is no directory.

        Raises:
            OSError: EEXIST if it is the directory itself; ENOENT, as link(2) and symlink(2), if it
                has a slash behind it and is not there; EEXIST if it is.
        """
        if self.name is None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if self.must_be_directory:
            number = errno.ENOENT if self.state() is None else errno.EEXIST
            raise OSError(number, os.strerror(number))
        return self.name


def _walk(base: int, path: bytes, *, follow: bool | None) -> _Place:
    """Walk a path, and return where it leads.

    Args:
        base: The directory where it begins, and that it may not leave.
        path: The path.
        follow: Whether to follow a symbolic link at the end. If not, it is followed all the same
            where a slash comes behind it; if ``None``, not even then.

    Raises:
        OSError: ENOENT, ENOTDIR, EACCES, ENAMETOOLONG as open(2); ELOOP; EPERM for a path that
            leads out.
    """
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    links = 0
    rest: list[bytes] = []
    way = _Way(base)

    def expand(text: bytes) -> bool:
        """Go on with a path, and return whether it ends with a slash."""
        _refuse_absolute(text)
        rest.extend(part for part in reversed(text.split(b"/")) if part)
        return text.endswith(b"/")

    try:
        must_be_directory = expand(path)
        name: bytes | None = None
        while rest:
            name = rest.pop()
            if name == b".":
                name = None
                continue
            if name == b"..":
                way.up()
                name = None
                continue
            if rest:
                try:
                    way.down(name)
                except NotADirectoryError:
                    target = _link_target(way.here, name)
                    if target is None:
                        raise
                else:
                    name = None
                    continue
            elif follow or (must_be_directory and follow is not None):
                target = _link_target(way.here, name)
            else:
                break
            if target is None:
                break
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            at_end = not rest
            must_be_directory |= expand(target) and at_end
            name = None
    except BaseException:
        way.close()
        raise
    return _Place(way, name, must_be_directory=must_be_directory)


def _link_target(directory: int, name: bytes) -> bytes | None:
    """Return what a symbolic link holds; ``None`` for anything else, or if nothing is there."""
    try:
        return os.readlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise

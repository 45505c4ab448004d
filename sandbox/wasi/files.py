"""What the cell's descriptors stand for: files, pipes, devices and sockets of this process.

Each object holds a descriptor and the rights that follow from its mode and kind. A right that is
missing is refused here, before the kernel is asked.
"""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Sequence
from typing import NamedTuple

from sandbox.grants import Mode
from sandbox.wasi import abi
from sandbox.wasi.meter import Meter

Buffers = Sequence[memoryview]
_NOTHING = (memoryview(b""),)


class WasiError(Exception):
    """A call refused by the host itself.

    Attributes:
        errno: The number that the cell gets, of WASI and not of this machine.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Filestat(NamedTuple):
    """What the cell is told of a file; the fields of WASI's filestat, times in nanoseconds."""

    device: int
    inode: int
    filetype: int
    links: int
    size: int
    accessed: int
    modified: int
    changed: int

    @classmethod
    def of(cls, state: os.stat_result, filetype: int | None = None) -> "Filestat":
        """Return what stat(2) said, in the interface's form.

        Args:
            state: What it said.
            filetype: The type, if more is known of it than what it said.
        """
        return cls(
            device=state.st_dev,
            inode=state.st_ino,
            filetype=filetype_of(state.st_mode) if filetype is None else filetype,
            links=state.st_nlink,
            size=state.st_size,
            accessed=state.st_atime_ns,
            modified=state.st_mtime_ns,
            changed=state.st_ctime_ns,
        )


_LARGEST = (1 << 63) - 1  # off_t
_CLOSED = -1  # no descriptor: the kernel says EBADF to it

_ALL_MODES = abi.FD_FILESTAT_GET | abi.POLL_FD_READWRITE | abi.FD_FDSTAT_SET_FLAGS
_READING = abi.FD_READ
_WRITING = abi.FD_WRITE
_SEEKABLE = abi.FD_SEEK | abi.FD_TELL | abi.FD_ADVISE | abi.FD_SYNC | abi.FD_DATASYNC
_SEEKABLE_WRITING = abi.FD_ALLOCATE | abi.FD_FILESTAT_SET_SIZE | abi.FD_FILESTAT_SET_TIMES

_FILETYPES = {
    stat.S_IFREG: abi.REGULAR_FILE,
    stat.S_IFDIR: abi.DIRECTORY,
    stat.S_IFLNK: abi.SYMBOLIC_LINK,
    stat.S_IFCHR: abi.CHARACTER_DEVICE,
    stat.S_IFBLK: abi.BLOCK_DEVICE,
}
# posix_fadvise(2) by the numbers of WASI's advice.
_ADVICE = (
    os.POSIX_FADV_NORMAL,
    os.POSIX_FADV_SEQUENTIAL,
    os.POSIX_FADV_RANDOM,
    os.POSIX_FADV_WILLNEED,
    os.POSIX_FADV_DONTNEED,
    os.POSIX_FADV_NOREUSE,
)
# fdflags that fcntl(2) can change, by their names there. Linux ignores changes of the SYNC ones.
CHANGEABLE_FLAGS = ((abi.APPEND, os.O_APPEND), (abi.NONBLOCK, os.O_NONBLOCK))
_FLAGS = (*CHANGEABLE_FLAGS, (abi.DSYNC, os.O_DSYNC), (abi.SYNC, os.O_SYNC))


class File:
    """A regular file, a block device, a pipe or a character device."""

    rights_inheriting = 0

    def __init__(self, fd: int, mode: Mode, meter: Meter | None = None) -> None:
        """Take over a descriptor.

        Args:
            fd: An open descriptor of this process; closed by :meth:`close`.
            mode: What may be done with it; not checked against the kernel here.
            meter: Counts what is written to it, and to all that it leads to.
        """
        self.fd = fd
        self.mode: Mode = mode
        self.meter = Meter(None) if meter is None else meter
        self.filetype = filetype_of(os.fstat(fd).st_mode)
        self.rights = _ALL_MODES
        if "r" in mode:
            self.rights |= _READING
        if "w" in mode:
            self.rights |= _WRITING
        if self.filetype in (abi.REGULAR_FILE, abi.BLOCK_DEVICE):
            self.rights |= _SEEKABLE
            if "w" in mode:
                self.rights |= _SEEKABLE_WRITING
        elif self.filetype == abi.CHARACTER_DEVICE:
            # With these two, wasi-libc's isatty(3) says no: a terminal's size and modes are out
            # of the cell's reach, so it must not be told that it has one, unless somebody asks
            # for that.
            self.rights |= abi.FD_SEEK | abi.FD_TELL
        # A pipe, a socket or a terminal has no position that could be moved or told.
        self._has_position = self.filetype != abi.UNKNOWN
        # Whoever granted a log opened for appending granted neither its overwriting nor cutting,
        # nor a size that is not that of what was written.
        self._append_only = bool(self.flags() & abi.APPEND)
        if self._append_only:
            self.rights &= ~(abi.FD_FILESTAT_SET_SIZE | abi.FD_ALLOCATE)

    def be_terminal(self) -> None:
        """Let the cell know a character device as the terminal that it is: isatty(3) says yes."""
        if self.filetype == abi.CHARACTER_DEVICE:
            self.rights &= ~(abi.FD_SEEK | abi.FD_TELL)
            self._has_position = False

    def need(self, right: int) -> None:
        """Refuse a call unless all of ``right`` is held.

        Raises:
            WasiError: EBADF for reading or writing, as read(2) and write(2) say of a descriptor
                that is not open for it; ENOTCAPABLE otherwise.
        """
        missing = right & ~self.rights
        if missing:
            access = missing & (abi.FD_READ | abi.FD_WRITE)
            raise WasiError(abi.EBADF if access else abi.ENOTCAPABLE)

    def need_seekable(self, right: int) -> None:
        """Refuse a call on a position unless there is one and ``right`` is held.

        Raises:
            OSError: ESPIPE on a pipe, a socket or a terminal, as lseek(2).
            WasiError: As :meth:`need`.
        """
        if not self._has_position:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        self.need(right)

    def narrow(self, rights: int, inheriting: int = 0) -> None:
        """Give up all rights but ``rights``; nothing is opened from a file, so none inherits.

        Raises:
            WasiError: ENOTCAPABLE if that would add one.
        """
        if rights & ~self.rights or inheriting:
            raise WasiError(abi.ENOTCAPABLE)
        self.rights = rights

    # Most calls of most cells are these two, so they do not call `need` where it would agree.

    def read(self, buffers: Buffers) -> int:
        """Read at the position; readv(2)."""
        if not self.rights & abi.FD_READ:
            self.need(abi.FD_READ)
        return os.readv(self.fd, buffers)

    def write(self, buffers: Buffers) -> int:
        """Write at the position; writev(2)."""
        if not self.rights & abi.FD_WRITE:
            self.need(abi.FD_WRITE)
        meter = self.meter
        allowed = meter.cut(buffers)
        # write(2) of the one buffer is what writev(2) would do, and takes less to call from here.
        size = os.write(self.fd, allowed[0]) if len(allowed) == 1 else os.writev(self.fd, allowed)
        meter.charge(size)
        return size

    def pread(self, buffers: Buffers, offset: int) -> int:
        """Read at an offset; preadv(2)."""
        self._need_offset(offset)
        self.need(abi.FD_READ)
        return os.preadv(self.fd, buffers, offset)

    def pwrite(self, buffers: Buffers, offset: int) -> int:
        """Write at an offset; pwritev(2)."""
        self._need_offset(offset)
        self.need(abi.FD_WRITE)
        size = os.pwritev(self.fd, self.meter.cut(buffers), offset)
        self.meter.charge(size)
        return size

    def _need_offset(self, offset: int) -> None:
        """Refuse what is no offset, given as a signed number.

        Raises:
            OSError: EINVAL beyond 2**63-1, as pread(2). It must not reach the kernel: to
                preadv2(2), which Python uses, -1 is the current position.
        """
        self.need_seekable(abi.FD_SEEK)
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def seek(self, offset: int, whence: int) -> int:
        """Move the position, or only tell it; lseek(2)."""
        # The right to seek implies the one to tell (the witx says so).
        telling = offset == 0 and whence == os.SEEK_CUR and not self.rights & abi.FD_SEEK
        self.need_seekable(abi.FD_TELL if telling else abi.FD_SEEK)
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.lseek(self.fd, offset, whence)

    def stat(self) -> Filestat:
        """Return what fstat(2) says."""
        self.need(abi.FD_FILESTAT_GET)
        return Filestat.of(os.fstat(self.fd), self.filetype)

    def set_size(self, size: int) -> None:
        """Cut or extend, which counts as written; ftruncate(2)."""
        self.need(abi.FD_FILESTAT_SET_SIZE)
        grown = max(0, size - os.fstat(self.fd).st_size)
        self.meter.need(grown)
        os.ftruncate(self.fd, size)
        self.meter.charge(grown)

    def set_times(self, accessed: int, modified: int, which: int) -> None:
        """Set the times; futimens(3).

        Args:
            accessed: Nanoseconds since 1970.
            modified: Likewise.
            which: fstflags: which of them to set, or to set to now.

        Raises:
            OSError: EINVAL for flags that contradict each other, or that there are not.
        """
        self.need(abi.FD_FILESTAT_SET_TIMES)
        check_times(which)
        if which == abi.ATIM_NOW | abi.MTIM_NOW:
            os.utime(self.fd)  # allowed to whoever may write, and not to the owner only
        elif which:  # to set neither is nothing, and allowed to all (utimensat(2))
            os.utime(self.fd, ns=new_times(os.fstat(self.fd), accessed, modified, which))

    def allocate(self, offset: int, size: int) -> None:
        """Reserve space, which counts as written; posix_fallocate(3).

        Raises:
            OSError: EFBIG beyond the last byte that any file can have: that is an error of the
                call, and no matter of how much may be written.
        """
        self.need(abi.FD_ALLOCATE)
        if offset + size > _LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        state = os.fstat(self.fd)
        # What lies in holes is new too. Where they are, only moving the position would tell, so all
        # that there are count as if they were here. st_blocks counts 512 bytes (stat(2)).
        end = offset + size
        within = max(0, min(end, state.st_size) - offset)
        holes = max(0, state.st_size - state.st_blocks * 512)
        grown = max(0, end - max(offset, state.st_size)) + min(within, holes)
        self.meter.need(grown)
        os.posix_fallocate(self.fd, offset, size)
        self.meter.charge(grown)

    def advise(self, offset: int, size: int, advice: int) -> None:
        """Announce a pattern of access; posix_fadvise(2)."""
        self.need_seekable(abi.FD_ADVISE)
        if advice >= len(_ADVICE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.posix_fadvise(self.fd, offset, size, _ADVICE[advice])

    def sync(self) -> None:
        """Write out data and metadata; fsync(2)."""
        self.need(abi.FD_SYNC)
        os.fsync(self.fd)

    def datasync(self) -> None:
        """Write out data; fdatasync(2)."""
        self.need(abi.FD_DATASYNC)
        os.fdatasync(self.fd)

    def flags(self) -> int:
        """Return the fdflags; F_GETFL of fcntl(2)."""
        actual = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        return sum(wasi for wasi, bits in _FLAGS if actual & bits == bits)

    def set_flags(self, flags: int) -> None:
        """Change the fdflags; F_SETFL of fcntl(2).

        They belong to the open file, so whoever shares it sees the change too.

        Raises:
            WasiError: ENOTCAPABLE if that would let an append-only grant overwrite.
            OSError: EINVAL for flags that Linux cannot change.
        """
        self.need(abi.FD_FDSTAT_SET_FLAGS)
        if (flags ^ self.flags()) & abi.APPEND:
            self.need(abi.FD_WRITE)  # it decides where others' writes go, too
            if self._append_only:
                raise WasiError(abi.ENOTCAPABLE)
        actual = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        if (flags ^ self.flags()) & ~(abi.APPEND | abi.NONBLOCK):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        for wasi, bits in CHANGEABLE_FLAGS:
            actual = actual | bits if flags & wasi else actual & ~bits
        fcntl.fcntl(self.fd, fcntl.F_SETFL, actual)

    def reopen(self) -> "File":
        """Return the same open file under a new descriptor: what a pathlink yields.

        Raises:
            OSError: EMFILE; dup(2).
        """
        fd = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 0)
        copy = type(self)(fd, self.mode, self.meter)
        copy.rights = self.rights
        copy._append_only = self._append_only
        copy._has_position = self._has_position
        return copy

    def close(self) -> None:
        """Give up the descriptor; close(2).

        Its number is forgotten at once: the kernel gives it to the next file, and a pathlink may
        still lead here.
        """
        fd, self.fd = self.fd, _CLOSED
        os.close(fd)

    @property
    def is_open(self) -> bool:
        """Tell whether it was not closed."""
        return self.fd != _CLOSED


class Socket(File):
    """A socket of any kind: stream, datagram, sequenced packets, listening."""

    def __init__(self, fd: int, mode: Mode, meter: Meter | None = None) -> None:
        """Take over a descriptor; see :class:`File`."""
        super().__init__(fd, mode, meter)
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError:
            # Python begins with getsockname(2), which AF_XDP, AF_ALG and a few others do not have.
            # The family is for addresses alone, and nothing here is about them.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_RAW, 0, fd)
        kind = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        stream = kind == socket.SOCK_STREAM
        self.filetype = abi.SOCKET_STREAM if stream else abi.SOCKET_DGRAM
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.rights &= ~(abi.FD_READ | abi.FD_WRITE)
            # To accept is to receive; whoever may only send gets nothing from the queue.
            self.rights |= abi.SOCK_ACCEPT if "r" in mode else 0
        else:
            self.rights |= abi.SOCK_SHUTDOWN

    def receive(self, buffers: Buffers, flags: int) -> tuple[int, int]:
        """Receive; recvmsg(2).

        Returns:
            The number of bytes, and roflags.
        """
        self.need(abi.FD_READ)
        if flags & ~(abi.RECV_PEEK | abi.RECV_WAITALL):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        how = (socket.MSG_PEEK if flags & abi.RECV_PEEK else 0) | (
            socket.MSG_WAITALL if flags & abi.RECV_WAITALL else 0
        )
        # No room for ancillary data: descriptors that a peer sends along are never received.
        size, _, told, _ = self._socket.recvmsg_into(buffers, 0, how)
        return size, abi.RECV_DATA_TRUNCATED if told & socket.MSG_TRUNC else 0

    def send(self, buffers: Buffers) -> int:
        """Send; send(2) without flags, which is write(2).

        Several buffers are one message, as with sendmsg(2): that one could pass descriptors on,
        and so is forbidden to the process. writev(2) does the same, but for the empty message.
        """
        return self.write(buffers if any(buffers) else _NOTHING)

    def shutdown(self, how: int) -> None:
        """Close one direction or both; shutdown(2).

        Raises:
            WasiError: ENOTCAPABLE for a direction that the mode does not hold.
        """
        self.need(abi.SOCK_SHUTDOWN)
        directions = {
            abi.SHUT_RD: (socket.SHUT_RD, "r"),
            abi.SHUT_WR: (socket.SHUT_WR, "w"),
            abi.SHUT_RD | abi.SHUT_WR: (socket.SHUT_RDWR, "rw"),
        }
        if how not in directions:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        direction, modes = directions[how]
        if any(mode not in self.mode for mode in modes):
            raise WasiError(abi.ENOTCAPABLE)
        self._socket.shutdown(direction)

    def accept(self, flags: int) -> "Socket":
        """Take a connection, with this socket's own mode; accept4(2)."""
        self.need(abi.SOCK_ACCEPT)
        if flags & ~abi.NONBLOCK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        connection, _ = self._socket.accept()
        accepted = Socket(connection.detach(), self.mode, self.meter)
        if flags & abi.NONBLOCK:
            accepted.set_flags(abi.NONBLOCK)
        return accepted

    def close(self) -> None:
        """Give up the descriptor; close(2)."""
        self.fd = _CLOSED
        self._socket.close()


def filetype_of(mode: int) -> int:
    """Return WASI's type for st_mode; it has none for a FIFO, and needs more for a socket."""
    return _FILETYPES.get(stat.S_IFMT(mode), abi.UNKNOWN)


def check_times(which: int) -> None:
    """Refuse fstflags that contradict each other, or that there are not.

    Raises:
        OSError: EINVAL.
    """
    both = abi.ATIM | abi.ATIM_NOW, abi.MTIM | abi.MTIM_NOW
    if any(which & pair == pair for pair in both) or which & ~(both[0] | both[1]):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def new_times(state: os.stat_result, accessed: int, modified: int, which: int) -> tuple[int, int]:
    """Return the times that a file gets, in nanoseconds since 1970.

    Args:
        state: The times that it has.
        accessed: The time of the last access to set, if that is asked for.
        modified: Likewise.
        which: fstflags: which of them to set, or to set to now.
    """
    now = time.time_ns()
    atime = now if which & abi.ATIM_NOW else accessed if which & abi.ATIM else state.st_atime_ns
    mtime = now if which & abi.MTIM_NOW else modified if which & abi.MTIM else state.st_mtime_ns
    return atime, mtime


def open_grant(fd: int, mode: Mode, meter: Meter | None = None) -> File:
    """Return what a granted descriptor stands for.

    Raises:
        OSError: If it is not open.
    """
    is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    return Socket(fd, mode, meter) if is_socket else File(fd, mode, meter)

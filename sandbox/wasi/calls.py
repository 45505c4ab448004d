"""The preview 1 functions that this host serves: arguments out of the cell's memory, results in.

Each method is one function of the interface and gets its parameters as numbers, but for the
descriptor, which the switch has turned into a slot of this host. What a call does to a descriptor
is the business of :mod:`sandbox.wasi.files` and :mod:`sandbox.wasi.directory`.
"""

import errno
import os
from collections.abc import Callable

from sandbox.wasi import abi, poll
from sandbox.wasi.directory import BaseDirectory
from sandbox.wasi.files import File, Filestat, Socket, WasiError
from sandbox.wasi.memory import GuestMemory

_U64 = (1 << 64) - 1
_PATH_MAX = 4096  # limits.h


class CellExit(Exception):
    """The cell called proc_exit.

    Attributes:
        code: The exit code as the cell gave it, 0 to 2**32-1.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Calls:
    """The host's half of one cell: its slots, and a method for each function.

    Attributes:
        most_open: How many descriptors the cell may have open beside those that were added for
            it; ``None`` for no limit.
    """

    def __init__(self) -> None:
        self.most_open: int | None = None
        self._slots: list[File | BaseDirectory | None] = []
        self._opened: set[int] = set()  # slots of what the cell opened itself
        self._memory: GuestMemory
        self._slot_of: Callable[[int], int | None]

    def bind(self, memory: GuestMemory, slot_of: Callable[[int], int | None]) -> None:
        """Connect to a cell.

        Args:
            memory: The cell's memory.
            slot_of: Returns the slot of one of the cell's numbers, or ``None`` if it is closed.
        """
        self._memory = memory
        self._slot_of = slot_of

    def add(self, item: File | BaseDirectory) -> int:
        """Put a descriptor into a free slot and return the slot."""
        for slot, other in enumerate(self._slots):
            if other is None:
                self._slots[slot] = item
                return slot
        self._slots.append(item)
        return len(self._slots) - 1

    def forget(self) -> None:
        """Close all that was added."""
        for item in self._slots:
            if item is not None:
                item.close()
        self._slots.clear()
        self._opened.clear()

    def _add_opened(self, item: File | BaseDirectory) -> int:
        slot = self.add(item)
        self._opened.add(slot)
        return slot

    def _need_room(self) -> None:
        """Refuse to open one more descriptor than the cell may have.

        Raises:
            OSError: EMFILE.
        """
        if self.most_open is not None and len(self._opened) >= self.most_open:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _any(self, slot: int) -> File | BaseDirectory:
        item = self._slots[slot]
        if item is None:
            raise WasiError(abi.EBADF)
        return item

    def _file(self, slot: int) -> File:
        """Return the file of a slot, for calls that a directory does not take.

        Raises:
            OSError: EISDIR.
        """
        item = self._slots[slot]
        if isinstance(item, File):
            return item
        self._any(slot)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _socket(self, slot: int) -> Socket:
        item = self._any(slot)
        if not isinstance(item, Socket):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return item

    def _directory(self, slot: int) -> BaseDirectory:
        item = self._any(slot)
        if not isinstance(item, BaseDirectory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return item

    def _path(self, address: int, size: int) -> bytes:
        """Return a path, which is text in the interface.

        Raises:
            OSError: EFAULT; ENAMETOOLONG; EILSEQ if it is not UTF-8; EINVAL with a NUL in it.
        """
        view = self._memory.view(address, size)
        if size >= _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        path = bytes(view)
        try:
            path.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
        if b"\0" in path:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return path

    # Reading and writing

    def fd_read(self, slot: int, vectors: int, count: int, result: int) -> None:
        memory = self._memory
        memory.put_u32(result, self._file(slot).read(memory.vectors(vectors, count)))

    def fd_write(self, slot: int, vectors: int, count: int, result: int) -> None:
        memory = self._memory
        memory.put_u32(result, self._file(slot).write(memory.vectors(vectors, count)))

    def fd_pread(self, slot: int, vectors: int, count: int, offset: int, result: int) -> None:
        memory = self._memory
        memory.put_u32(result, self._file(slot).pread(memory.vectors(vectors, count), offset))

    def fd_pwrite(self, slot: int, vectors: int, count: int, offset: int, result: int) -> None:
        memory = self._memory
        memory.put_u32(result, self._file(slot).pwrite(memory.vectors(vectors, count), offset))

    def fd_seek(self, slot: int, offset: int, whence: int, result: int) -> None:
        self._memory.put_u64(result, self._file(slot).seek(offset, whence))

    def fd_tell(self, slot: int, result: int) -> None:
        self._memory.put_u64(result, self._file(slot).seek(0, os.SEEK_CUR))

    # State

    def fd_close(self, slot: int) -> None:
        item = self._any(slot)
        self._slots[slot] = None
        self._opened.discard(slot)
        item.close()

    def fd_fdstat_get(self, slot: int, result: int) -> None:
        item = self._any(slot)
        self._memory.view(result, abi.FDSTAT.size)[:] = abi.FDSTAT.pack(
            item.filetype, item.flags(), item.rights, item.rights_inheriting
        )

    def fd_fdstat_set_flags(self, slot: int, flags: int) -> None:
        self._file(slot).set_flags(flags)

    def fd_fdstat_set_rights(self, slot: int, base: int, inheriting: int) -> None:
        self._any(slot).narrow(base & _U64, inheriting & _U64)

    def fd_filestat_get(self, slot: int, result: int) -> None:
        self._put_filestat(result, self._any(slot).stat())

    def _put_filestat(self, result: int, state: Filestat) -> None:
        # Times before 1970 wrap round: the interface has no sign for them.
        *front, accessed, modified, changed = state
        self._memory.view(result, abi.FILESTAT.size)[:] = abi.FILESTAT.pack(
            *front, accessed & _U64, modified & _U64, changed & _U64
        )

    def fd_filestat_set_size(self, slot: int, size: int) -> None:
        self._file(slot).set_size(size)

    def fd_filestat_set_times(self, slot: int, accessed: int, modified: int, which: int) -> None:
        self._any(slot).set_times(accessed & _U64, modified & _U64, which)

    def fd_allocate(self, slot: int, offset: int, size: int) -> None:
        self._file(slot).allocate(offset, size)

    def fd_advise(self, slot: int, offset: int, size: int, advice: int) -> None:
        self._file(slot).advise(offset, size, advice)

    def fd_sync(self, slot: int) -> None:
        self._any(slot).sync()

    def fd_datasync(self, slot: int) -> None:
        self._any(slot).datasync()

    # Sockets

    def sock_accept(self, slot: int, flags: int, result: int) -> None:
        target = self._socket(slot)
        self._memory.view(result, 4)  # a bad pointer must not cost a connection
        self._need_room()
        self._memory.put_u32(result, self._add_opened(target.accept(flags)))

    def sock_recv(
        self, slot: int, vectors: int, count: int, flags: int, result: int, told: int
    ) -> None:
        target = self._socket(slot)
        buffers = self._memory.vectors(vectors, count)
        size, roflags = target.receive(buffers, flags)
        self._memory.put_u32(result, size)
        self._memory.put_u16(told, roflags)

    def sock_send(self, slot: int, vectors: int, count: int, flags: int, result: int) -> None:
        target = self._socket(slot)
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._memory.put_u32(result, target.send(self._memory.vectors(vectors, count)))

    def sock_shutdown(self, slot: int, how: int) -> None:
        self._socket(slot).shutdown(how)

    # Directories

    def fd_prestat_get(self, slot: int, result: int) -> None:
        name = self._preopened(slot)
        self._memory.view(result, abi.PRESTAT.size)[:] = abi.PRESTAT.pack(0, len(name))

    def fd_prestat_dir_name(self, slot: int, address: int, size: int) -> None:
        name = self._preopened(slot)
        if size < len(name):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._memory.view(address, len(name))[:] = name

    def _preopened(self, slot: int) -> bytes:
        """Return the path of a preopened directory; refuse others so that enumerations end.

        Raises:
            WasiError: EBADF.
        """
        item = self._any(slot)
        if not isinstance(item, BaseDirectory) or item.guest is None:
            raise WasiError(abi.EBADF)
        return item.guest

    def fd_readdir(self, slot: int, buffer: int, size: int, cookie: int, result: int) -> None:
        room = self._memory.view(buffer, size)
        used = 0
        for entry in self._directory(slot).entries(cookie & _U64, size):
            head = abi.DIRENT.pack(entry.cookie, entry.inode, len(entry.name), entry.filetype)
            # A cut entry is how the interface says that more are to come.
            part = (head + entry.name)[: size - used]
            room[used : used + len(part)] = part
            used += len(part)
            if used == size:
                break
        self._memory.put_u32(result, used)

    def path_open(
        self,
        slot: int,
        lookup: int,
        path: int,
        size: int,
        oflags: int,
        rights: int,
        inheriting: int,
        fdflags: int,
        result: int,
    ) -> None:
        directory = self._directory(slot)
        name = self._path(path, size)
        self._memory.view(result, 4)
        self._need_room()
        opened = directory.open(
            name, oflags, rights & _U64, inheriting & _U64, fdflags, follow=_follows(lookup)
        )
        self._memory.put_u32(result, self._add_opened(opened))

    def path_filestat_get(self, slot: int, lookup: int, path: int, size: int, result: int) -> None:
        directory = self._directory(slot)
        state = directory.stat_path(self._path(path, size), follow=_follows(lookup))
        self._put_filestat(result, state)

    def path_readlink(
        self, slot: int, path: int, size: int, buffer: int, room: int, result: int
    ) -> None:
        target = self._directory(slot).read_link(self._path(path, size))[:room]
        self._memory.view(buffer, len(target))[:] = target
        self._memory.put_u32(result, len(target))

    def path_create_directory(self, slot: int, path: int, size: int) -> None:
        self._directory(slot).create_directory(self._path(path, size))

    def path_filestat_set_times(
        self,
        slot: int,
        lookup: int,
        path: int,
        size: int,
        accessed: int,
        modified: int,
        which: int,
    ) -> None:
        self._directory(slot).set_path_times(
            self._path(path, size),
            accessed & _U64,
            modified & _U64,
            which,
            follow=_follows(lookup),
        )

    def path_remove_directory(self, slot: int, path: int, size: int) -> None:
        self._directory(slot).remove_directory(self._path(path, size))

    def path_unlink_file(self, slot: int, path: int, size: int) -> None:
        self._directory(slot).unlink_file(self._path(path, size))

    def path_link(
        self, old: int, lookup: int, path: int, size: int, new: int, name: int, length: int
    ) -> None:
        source, target = self._directory(old), self._directory(new)
        source.link(
            self._path(path, size), target, self._path(name, length), follow=_follows(lookup)
        )

    def path_rename(self, old: int, path: int, size: int, new: int, name: int, length: int) -> None:
        source, target = self._directory(old), self._directory(new)
        source.rename(self._path(path, size), target, self._path(name, length))

    def path_symlink(self, path: int, size: int, directory: int, name: int, length: int) -> None:
        target = self._directory(directory)
        target.symlink(self._path(path, size), self._path(name, length))

    # The rest

    # The switch puts the time of the cell's monotonic clock before the parameters.

    def poll_oneoff(
        self, now: int, subscriptions: int, events: int, count: int, result: int
    ) -> None:
        due = poll.wait(self._memory, self.served, now, subscriptions, events, count)
        self._memory.put_u32(result, due)

    def served(self, number: int) -> File | BaseDirectory | None:
        """Return what one of the cell's descriptors stands for, or ``None``."""
        slot = self._slot_of(number)
        return None if slot is None else self._slots[slot]

    def proc_exit(self, code: int) -> None:
        raise CellExit(code)

    def function(self, name: str) -> Callable[..., None]:
        """Return the method that serves a function of the interface."""
        method: Callable[..., None] = getattr(self, name)
        return method


def _follows(lookup: int) -> bool:
    """Return whether lookupflags say to follow a symbolic link at the end of a path.

    Raises:
        OSError: EINVAL for flags that there are not.
    """
    if lookup & ~abi.SYMLINK_FOLLOW:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return bool(lookup)

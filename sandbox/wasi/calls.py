"""The preview 1 functions that this host serves: arguments out of the cell's memory, results in.

Each method is one function of the interface and gets its parameters as numbers, but for the
descriptor, which the switch has turned into a slot of this host. What a call does to a descriptor
is the business of :mod:`sandbox.wasi.files`.
"""

import errno
import os
from collections.abc import Callable

from sandbox.wasi import abi, poll
from sandbox.wasi.directory import NAME, RootDirectory, refuse_change
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
    """The host's half of one cell: its slots, and a method for each function."""

    def __init__(self) -> None:
        self._slots: list[File | RootDirectory | None] = []
        self._memory: GuestMemory
        self._entry: Callable[[int], int]

    def bind(self, memory: GuestMemory, entry: Callable[[int], int]) -> None:
        """Connect to a cell.

        Args:
            memory: The cell's memory.
            entry: Returns the switch's entry of one of the cell's numbers, for poll_oneoff.
        """
        self._memory = memory
        self._entry = entry

    def add(self, item: File | RootDirectory) -> int:
        """Put a descriptor into a free slot and return the slot."""
        for slot, other in enumerate(self._slots):
            if other is None:
                self._slots[slot] = item
                return slot
        self._slots.append(item)
        return len(self._slots) - 1

    def _any(self, slot: int) -> File | RootDirectory:
        item = self._slots[slot]
        if item is None:
            raise WasiError(abi.EBADF)
        return item

    def _file(self, slot: int) -> File:
        """Return the file of a slot, for calls that a directory does not take.

        Raises:
            OSError: EISDIR.
        """
        item = self._any(slot)
        if not isinstance(item, File):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return item

    def _socket(self, slot: int) -> Socket:
        item = self._any(slot)
        if not isinstance(item, Socket):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return item

    def _root(self, slot: int) -> RootDirectory:
        item = self._any(slot)
        if not isinstance(item, RootDirectory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return item

    def _path(self, address: int, size: int) -> bytes:
        view = self._memory.view(address, size)
        if size > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return bytes(view)

    # Reading and writing

    def fd_read(self, slot: int, vectors: int, count: int, result: int) -> None:
        buffers = self._memory.vectors(vectors, count)
        self._memory.put_u32(result, self._file(slot).read(buffers))

    def fd_write(self, slot: int, vectors: int, count: int, result: int) -> None:
        buffers = self._memory.vectors(vectors, count)
        self._memory.put_u32(result, self._file(slot).write(buffers))

    def fd_pread(self, slot: int, vectors: int, count: int, offset: int, result: int) -> None:
        buffers = self._memory.vectors(vectors, count)
        self._memory.put_u32(result, self._file(slot).pread(buffers, offset))

    def fd_pwrite(self, slot: int, vectors: int, count: int, offset: int, result: int) -> None:
        buffers = self._memory.vectors(vectors, count)
        self._memory.put_u32(result, self._file(slot).pwrite(buffers, offset))

    def fd_seek(self, slot: int, offset: int, whence: int, result: int) -> None:
        self._memory.put_u64(result, self._file(slot).seek(offset, whence))

    def fd_tell(self, slot: int, result: int) -> None:
        self._memory.put_u64(result, self._file(slot).seek(0, os.SEEK_CUR))

    # State

    def fd_close(self, slot: int) -> None:
        item = self._any(slot)
        self._slots[slot] = None
        item.close()

    def fd_fdstat_get(self, slot: int, result: int) -> None:
        item = self._any(slot)
        self._memory.view(result, abi.FDSTAT.size)[:] = abi.FDSTAT.pack(
            item.filetype, item.flags(), item.rights, item.rights_inheriting
        )

    def fd_fdstat_set_flags(self, slot: int, flags: int) -> None:
        self._file(slot).set_flags(flags)

    def fd_fdstat_set_rights(self, slot: int, base: int, inheriting: int) -> None:
        item = self._any(slot)
        if isinstance(item, RootDirectory):
            raise WasiError(abi.ENOTCAPABLE)
        if inheriting & _U64:
            raise WasiError(abi.ENOTCAPABLE)
        item.narrow(base & _U64)

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
        self._file(slot).set_times(accessed & _U64, modified & _U64, which)

    def fd_allocate(self, slot: int, offset: int, size: int) -> None:
        self._file(slot).allocate(offset, size)

    def fd_advise(self, slot: int, offset: int, size: int, advice: int) -> None:
        self._file(slot).advise(offset, size, advice)

    def fd_sync(self, slot: int) -> None:
        self._file(slot).sync()

    def fd_datasync(self, slot: int) -> None:
        self._file(slot).datasync()

    # Sockets

    def sock_accept(self, slot: int, flags: int, result: int) -> None:
        self._memory.view(result, 4)  # a bad pointer must not cost a connection
        self._memory.put_u32(result, self.add(self._socket(slot).accept(flags)))

    def sock_recv(
        self, slot: int, vectors: int, count: int, flags: int, result: int, told: int
    ) -> None:
        target = self._socket(slot)
        buffers = self._memory.vectors(vectors, count)
        size, roflags = target.receive(buffers, flags)
        self._memory.put_u32(result, size)
        self._memory.view(told, 2)[:] = roflags.to_bytes(2, "little")

    def sock_send(self, slot: int, vectors: int, count: int, flags: int, result: int) -> None:
        target = self._socket(slot)
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._memory.put_u32(result, target.send(self._memory.vectors(vectors, count)))

    def sock_shutdown(self, slot: int, how: int) -> None:
        self._socket(slot).shutdown(how)

    # The root directory

    def fd_prestat_get(self, slot: int, result: int) -> None:
        self._preopened(slot)
        self._memory.view(result, abi.PRESTAT.size)[:] = abi.PRESTAT.pack(0, len(NAME))

    def fd_prestat_dir_name(self, slot: int, address: int, size: int) -> None:
        self._preopened(slot)
        if size < len(NAME):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._memory.view(address, len(NAME))[:] = NAME

    def _preopened(self, slot: int) -> None:
        """Refuse what is not a preopened directory, in the way that ends their enumeration.

        Raises:
            WasiError: EBADF.
        """
        if not isinstance(self._any(slot), RootDirectory):
            raise WasiError(abi.EBADF)

    def fd_readdir(self, slot: int, buffer: int, size: int, cookie: int, result: int) -> None:
        room = self._memory.view(buffer, size)
        used = 0
        entries = self._root(slot).entries()
        for position in range(cookie & _U64, len(entries)):
            name, filetype = entries[position]
            entry = abi.DIRENT.pack(position + 1, 0, len(name), filetype) + name
            # A cut entry is how the interface says that more are to come.
            part = entry[: size - used]
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
        name = self._path(path, size)
        self._memory.view(result, 4)
        opened = self._root(slot).open(name, oflags, rights & _U64, fdflags)
        self._memory.put_u32(result, self.add(opened))

    def path_filestat_get(self, slot: int, lookup: int, path: int, size: int, result: int) -> None:
        follow = bool(lookup & abi.SYMLINK_FOLLOW)
        state = self._root(slot).stat_path(self._path(path, size), follow=follow)
        self._put_filestat(result, state)

    def path_readlink(
        self, slot: int, path: int, size: int, buffer: int, room: int, result: int
    ) -> None:
        target = self._root(slot).read_link(self._path(path, size))[:room]
        self._memory.view(buffer, len(target))[:] = target
        self._memory.put_u32(result, len(target))

    def path_create_directory(self, slot: int, path: int, size: int) -> None:
        self._root(slot)
        raise refuse_change()

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
        self._root(slot)
        raise refuse_change()

    def path_remove_directory(self, slot: int, path: int, size: int) -> None:
        self._root(slot)
        raise refuse_change()

    def path_unlink_file(self, slot: int, path: int, size: int) -> None:
        self._root(slot)
        raise refuse_change()

    # These three get entries of the map in place of slots.

    def path_link(
        self, old: int, lookup: int, path: int, size: int, new: int, name: int, length: int
    ) -> None:
        self._refuse_between(old, new)

    def path_rename(self, old: int, path: int, size: int, new: int, name: int, length: int) -> None:
        self._refuse_between(old, new)

    def path_symlink(self, path: int, size: int, directory: int, name: int, length: int) -> None:
        self._refuse_between(directory)

    def _refuse_between(self, *entries: int) -> None:
        for entry in entries:
            number = entry - (1 << 32) if entry >> 31 else entry
            if number < 0:
                self._root(-1 - number)
        raise refuse_change()

    # The rest

    # The switch puts the time of the cell's monotonic clock before the parameters.

    def poll_oneoff(
        self, now: int, subscriptions: int, events: int, count: int, result: int
    ) -> None:
        due = poll.wait(self._memory, self._look_up, now, subscriptions, events, count)
        self._memory.put_u32(result, due)

    def _look_up(self, number: int) -> File | RootDirectory | None:
        """Return what one of the cell's descriptors stands for, or ``None``."""
        entry = self._entry(number)
        return self._slots[-1 - entry] if entry < 0 else None

    def proc_exit(self, code: int) -> None:
        raise CellExit(code)

    def function(self, name: str) -> Callable[..., None]:
        """Return the method that serves a function of the interface."""
        method: Callable[..., None] = getattr(self, name)
        return method

"""The cell's memory, as the host reads and writes it: in place and within bounds."""

import ctypes
import errno
import os
import struct

import wasmtime
from wasmtime import _ffi

from sandbox.wasi import abi

_WHOLE = ctypes.c_char * (1 << 32)
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
# struct iovec and struct ciovec: address and size
_VECTOR = struct.Struct("<II")


class GuestMemory:
    """A view of a cell's linear memory that grows with it.

    The engine is set never to move a memory, and reserves addresses for as much as 32 bits can
    name. So there is one view of all of that, and what decides is the size, which is asked for
    again when an access lies beyond what it was: memory never shrinks.
    """

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        self._store = store
        self._memory = memory
        address = _ffi.wasmtime_memory_data(store._context(), ctypes.byref(memory._memory))
        base = ctypes.cast(address, ctypes.c_void_p).value or 0
        self._view = memoryview(_WHOLE.from_address(base)).cast("B")
        self._size = 0
        self._refresh()

    def _refresh(self) -> None:
        context = self._store._context()
        memory = ctypes.byref(self._memory._memory)
        self._size = _ffi.wasmtime_memory_data_size(context, memory)

    def _reach(self, end: int) -> None:
        """Learn how large the memory is now, because an access ends beyond what it was.

        Raises:
            OSError: EFAULT if it ends outside.
        """
        self._refresh()
        if end > self._size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    # The comparison is repeated in all that follows: a call would be half of their price.

    def view(self, address: int, size: int) -> memoryview:
        """Return a writable view of ``size`` bytes at ``address``.

        Raises:
            OSError: EFAULT if any of it lies outside.
        """
        end = address + size
        if end > self._size:
            self._reach(end)
        return self._view[address:end]

    def vectors(self, address: int, count: int) -> list[memoryview]:
        """Return the buffers of an array of iovec or ciovec.

        Raises:
            OSError: EFAULT if any of it lies outside; EINVAL beyond IOV_MAX, as readv(2).
        """
        if count == 1:  # by far the most common
            if address + 8 > self._size:
                self._reach(address + 8)
            base, size = _VECTOR.unpack_from(self._view, address)
            end = base + size
            if end > self._size:
                self._reach(end)
            return [self._view[base:end]]
        if count > abi.IOV_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        buffers: list[memoryview] = []
        if not count:
            return buffers  # then the address does not matter, as to readv(2)
        for base, size in _VECTOR.iter_unpack(self.view(address, 8 * count)):
            end = base + size
            if end > self._size:
                self._reach(end)
            buffers.append(self._view[base:end])
        return buffers

    def put_u16(self, address: int, value: int) -> None:
        """Write a 16-bit number.

        Raises:
            OSError: EFAULT outside the memory.
        """
        if address + 2 > self._size:
            self._reach(address + 2)
        _U16.pack_into(self._view, address, value)

    def put_u32(self, address: int, value: int) -> None:
        """Write a 32-bit number.

        Raises:
            OSError: EFAULT outside the memory.
        """
        if address + 4 > self._size:
            self._reach(address + 4)
        _U32.pack_into(self._view, address, value)

    def put_u64(self, address: int, value: int) -> None:
        """Write a 64-bit number.

        Raises:
            OSError: EFAULT outside the memory.
        """
        if address + 8 > self._size:
            self._reach(address + 8)
        _U64.pack_into(self._view, address, value)

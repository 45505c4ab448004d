"""The cell's linear memories: made by this host, so that a limit ends the cell and says so.

The engine's own limiter makes ``memory.grow`` fail, which a cell need not notice: one that
allocates without end would run on. Here the first growth beyond the limit ends it. What is
made is what the engine would make: addresses for as much as it asks to reserve, of which what
is in use can be accessed.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import wasmtime
from wasmtime import _bindings, _ffi

from sandbox import syscalls

_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()


class _Memory:
    """One linear memory: where it is, how much of it is in use, and how far it can grow."""

    __slots__ = ("base", "capacity", "reserved", "size")

    def __init__(self, base: int, size: int, capacity: int, reserved: int) -> None:
        self.base = base
        self.size = size
        self.capacity = capacity
        self.reserved = reserved


class Memories:
    """Makes linear memories for one engine, and counts what they hold."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self._held = 0
        self._counting = True
        self._on_limit: Callable[[], NoReturn]
        # By the number that the engine hands back; none is 0, because 0 would be a null pointer.
        self._made: dict[int, _Memory] = {}
        # All callbacks are made here: each takes a piece of executable memory, and in a cell's
        # process there is none to be had.
        self._get_callback = _bindings.wasmtime_memory_get_callback_t(self._get)
        self._grow_callback = _bindings.wasmtime_memory_grow_callback_t(self._grow)
        creator: Any = _bindings.wasmtime_memory_creator_t()
        creator.env = None
        creator.new_memory = _bindings.wasmtime_new_memory_callback_t(self._new)
        creator.finalizer = _NO_FINALIZER
        self._creator = creator

    def install(self, config: wasmtime.Config) -> None:
        """Have an engine make its memories here; wasmtime_config_host_memory_creator_set.

        Args:
            config: The engine's settings, before the engine is made.
        """
        _ffi.wasmtime_config_host_memory_creator_set(config.ptr(), ctypes.byref(self._creator))

    def restrict(self, limit: int | None, on_limit: Callable[[], NoReturn]) -> None:
        """Set the limit for the memories that are made from now on.

        Args:
            limit: Bytes that all memories may hold together; ``None`` for no limit.
            on_limit: Called instead of a growth that would pass it; must end the process,
                because nothing that runs below the engine can be unwound.
        """
        self._limit = limit
        self._on_limit = on_limit
        self._held = 0

    def forget(self) -> None:
        """Give up all memories, which nothing uses any more."""
        for memory in self._made.values():
            syscalls.release(memory.base, memory.reserved)
        self._made.clear()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Make memories of the host's own, which are not the cell's to pay for."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def _claim(self, size: int) -> None:
        """End the cell if it would hold so many bytes more than it may."""
        if self._counting and self._limit is not None and self._held + size > self._limit:
            self._on_limit()

    def _count(self, size: int) -> None:
        """Count more bytes, which it holds now: not those that the kernel has refused it."""
        if self._counting:
            self._held += size

    def _new(
        self,
        _env: Any,  # noqa: ANN401
        _type: Any,  # noqa: ANN401
        minimum: int,
        _maximum: int,
        reserved: int,
        guard: int,
        result: Any,  # noqa: ANN401
    ) -> int:
        """Make one memory; wasmtime_new_memory_callback_t of wasmtime/config.h."""
        try:
            self._claim(minimum)
            capacity = max(minimum, reserved)
            base = syscalls.reserve(capacity + guard)
            syscalls.make_accessible(base, minimum)
        except Exception as error:
            return _error(error)
        self._count(minimum)
        number = len(self._made) + 1
        self._made[number] = _Memory(base, minimum, capacity, capacity + guard)
        made = result[0]
        made.env = number
        made.get_memory = self._get_callback
        made.grow_memory = self._grow_callback
        made.finalizer = _NO_FINALIZER  # the addresses go with the process
        return 0

    def _get(self, number: int, size: Any, capacity: Any) -> int:  # noqa: ANN401
        """Tell where a memory is and how large; wasmtime_memory_get_callback_t."""
        memory = self._made[number]
        size[0], capacity[0] = memory.size, memory.capacity
        return memory.base

    def _grow(self, number: int, wanted: int) -> int:
        """Make a memory larger; wasmtime_memory_grow_callback_t.

        A size that is already covered by a limit of this process (RLIMIT_DATA) is refused by the
        kernel, and then ``memory.grow`` fails in the cell.
        """
        memory = self._made[number]
        try:
            if wanted > memory.capacity:
                raise MemoryError("no addresses are left")
            self._claim(wanted - memory.size)
            syscalls.make_accessible(memory.base + memory.size, wanted - memory.size)
        except Exception as error:
            return _error(error)
        self._count(wanted - memory.size)
        memory.size = wanted
        return 0


def _error(error: Exception) -> int:
    """Return the address of a new error of the engine, which its receiver owns."""
    made = _ffi.wasmtime_error_new(ctypes.create_string_buffer(str(error).encode()))
    return ctypes.cast(made, ctypes.c_void_p).value or 0

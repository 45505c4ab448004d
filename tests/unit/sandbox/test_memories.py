"""The host's linear memories: as the engine's own, but counted, and ended at their limit."""

import ctypes
import os
import resource
from collections.abc import Iterator
from typing import NoReturn

import pytest
import wasmtime

from sandbox import limits, syscalls
from sandbox.descriptors import open_listing
from sandbox.wasi import engine
from sandbox.wasi.memories import Memories
from tests.unit.sandbox.cloned import forked

PAGE = 65536


class Limit(Exception):
    """The limit was met; the host itself would not return."""


class Made:
    """An engine with such memories."""

    def __init__(self) -> None:
        self.memories = Memories()
        self.engine = engine.make(self.memories, fuel=False)
        self.store = wasmtime.Store(self.engine)
        self.met = 0

    def restrict(self, limit: int | None) -> None:
        def on_limit() -> NoReturn:
            self.met += 1
            raise Limit

        self.memories.restrict(limit, on_limit)

    def instance(self, text: str) -> wasmtime.Instance:
        module = wasmtime.Module(self.engine, f"(module {text})")
        return wasmtime.Instance(self.store, module, [])

    def call(self, instance: wasmtime.Instance, name: str, *args: int) -> int:
        function = instance.exports(self.store)[name]
        assert isinstance(function, wasmtime.Func)
        result: int = function(self.store, *args)
        return result


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    made.restrict(None)
    yield made
    made.store.close()


GROWING = """
  (memory $m (export "memory") {least} {most})
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "size") (result i32) (memory.size))
  (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store") (param i32) (result i32)
    (i32.store8 (local.get 0) (i32.const 7)) (i32.load8_u (local.get 0)))"""


def growing(least: int, most: int | str = "") -> str:
    return GROWING.format(least=least, most=most)


def test_a_memory_is_empty_grows_and_keeps_what_it_holds(made: Made) -> None:
    cell = made.instance(growing(1))
    assert made.call(cell, "load", PAGE - 1) == 0
    assert made.call(cell, "store", PAGE - 1) == 7
    with pytest.raises(wasmtime.Trap):
        made.call(cell, "load", PAGE)
    assert made.call(cell, "grow", 3) == 1
    assert made.call(cell, "size") == 4
    assert made.call(cell, "load", PAGE - 1) == 7
    assert made.call(cell, "load", PAGE) == 0
    assert made.call(cell, "store", 4 * PAGE - 1) == 7
    with pytest.raises(wasmtime.Trap):
        made.call(cell, "store", 4 * PAGE)
    with pytest.raises(wasmtime.Trap):
        made.call(cell, "store", -1)
    assert made.call(cell, "grow", 0) == 4


def test_a_memory_never_moves(made: Made) -> None:
    cell = made.instance(growing(1))
    memory = cell.exports(made.store)["memory"]
    assert isinstance(memory, wasmtime.Memory)

    def address() -> int:
        found = ctypes.cast(memory.data_ptr(made.store), ctypes.c_void_p).value
        assert found
        return found

    before = address()
    for _ in range(10):
        made.call(cell, "grow", 1000)
        assert address() == before


def test_all_that_32_bits_can_name_can_be_had_and_no_more(made: Made) -> None:
    cell = made.instance(growing(1))
    assert made.call(cell, "grow", 65535) == 1
    assert made.call(cell, "store", -1) == 7
    assert made.call(cell, "grow", 1) == -1
    assert made.call(cell, "size") & 0xFFFFFFFF == 65536


def test_a_module_may_forbid_itself_to_grow(made: Made) -> None:
    made.restrict(100 * PAGE)
    cell = made.instance(growing(1, 5))
    assert made.call(cell, "grow", 4) == 1
    assert made.call(cell, "grow", 1) == -1
    assert made.call(cell, "grow", 50) == -1
    assert made.met == 0


def test_exactly_the_limit_may_be_had(made: Made) -> None:
    made.restrict(10 * PAGE)
    cell = made.instance(growing(4))
    assert made.call(cell, "grow", 6) == 4
    assert made.met == 0
    assert made.call(cell, "grow", 1) == -1
    assert made.met == 1
    # What was refused is not counted, and what is there stays.
    assert made.call(cell, "size") == 10
    assert made.call(cell, "store", 10 * PAGE - 1) == 7
    assert made.call(cell, "grow", 0) == 10


def test_a_memory_that_begins_beyond_the_limit_is_not_made(made: Made) -> None:
    made.restrict(10 * PAGE)
    made.instance(growing(10))
    made.restrict(10 * PAGE)
    with pytest.raises(wasmtime.WasmtimeError):
        made.instance(growing(11))
    assert made.met == 1


def test_all_memories_of_all_instances_are_counted_together(made: Made) -> None:
    made.restrict(10 * PAGE)
    one = made.instance(growing(3))
    other = made.instance(f"{growing(3)} (memory 2)")
    assert made.call(one, "grow", 2) == 3
    assert made.met == 0
    for cell in (one, other):
        assert made.call(cell, "grow", 1) == -1
    with pytest.raises(wasmtime.WasmtimeError):
        made.instance("(memory 1)")
    assert made.met == 3
    made.instance("(memory 0)")
    assert made.met == 3


def test_the_hosts_own_memories_are_not_counted(made: Made) -> None:
    made.restrict(10 * PAGE)
    with made.memories.uncounted():
        made.instance("(memory 5)")
    made.instance(growing(10))
    assert made.met == 0
    with pytest.raises(RuntimeError), made.memories.uncounted():
        raise RuntimeError
    with pytest.raises(wasmtime.WasmtimeError):
        made.instance("(memory 1)")


def test_a_new_limit_begins_from_nothing(made: Made) -> None:
    made.restrict(PAGE)
    made.instance("(memory 1)")
    made.restrict(PAGE)
    made.instance("(memory 1)")
    made.restrict(None)
    made.instance("(memory 60000)")
    assert made.met == 0


def test_a_hundred_memories_are_told_apart_and_take_no_executable_memory(made: Made) -> None:
    def executable() -> int:
        with open("/proc/self/maps") as file:
            return sum(1 for line in file if "x" in line.split()[1])

    module = wasmtime.Module(
        made.engine,
        "(module"
        + "".join(f"(memory $m{n} 1)" for n in range(100))
        + "".join(
            f'(func (export "f{n}") (param i32) (result i32)'
            f" (drop (memory.grow $m{n} (local.get 0)))"
            f" (i32.store8 $m{n} (i32.const 0) (i32.add (local.get 0) (i32.const {n})))"
            f" (i32.add (memory.size $m{n}) (i32.load8_u $m{(n + 1) % 100} (i32.const 0))))"
            for n in range(100)
        )
        + ")",
    )
    before = executable()
    cell = wasmtime.Instance(made.store, module, [])
    for number in range(99, -1, -1):
        # Its own size, and what the next one holds.
        expected = 1 + 1 + (number + 2 if number < 99 else 0)
        assert made.call(cell, f"f{number}", 1) == expected & 0xFFFFFFFF
    assert executable() <= before  # what other tests made may go meanwhile


def test_a_growth_that_the_kernel_refuses_fails_in_the_cell(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = made.instance(growing(1))

    def refuse(address: int, size: int) -> None:
        raise OSError(12, os.strerror(12), "mprotect")

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "make_accessible", refuse)
        assert made.call(cell, "grow", 1) == -1
        with pytest.raises(wasmtime.WasmtimeError, match="Cannot allocate memory"):
            made.instance("(memory 1)")
    assert made.call(cell, "size") == 1
    assert made.call(cell, "grow", 1) == 1


def test_addresses_that_the_kernel_has_not_fail_the_instance(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int) -> int:
        raise OSError(12, os.strerror(12), "mmap")

    monkeypatch.setattr(syscalls, "reserve", refuse)
    with pytest.raises(wasmtime.WasmtimeError, match="Cannot allocate memory"):
        made.instance("(memory 1)")


def test_what_is_reserved_takes_no_memory_and_cannot_be_touched() -> None:
    def body() -> object:
        here = limits.ceilings([], 0, open_listing()).data
        resource.setrlimit(resource.RLIMIT_DATA, (here + (1 << 30), here + (1 << 30)))
        base = syscalls.reserve(1 << 40)
        syscalls.make_accessible(base, PAGE)
        ctypes.memset(base, 1, PAGE)
        try:
            syscalls.make_accessible(base, 2 << 30)
        except OSError as error:
            return error.errno
        return None

    assert forked(body) == 12  # ENOMEM

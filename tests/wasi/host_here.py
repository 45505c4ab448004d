"""The host's modules linked with a cell in this process: no jail, so its inside can be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import wasmtime

from sandbox.wasi import abi, engine, switch
from sandbox.wasi.bridge import HostFunctions
from sandbox.wasi.calls import Calls, CellExit
from sandbox.wasi.cell import NumberMap
from sandbox.wasi.directory import BaseDirectory
from sandbox.wasi.files import File
from sandbox.wasi.memories import Memories
from sandbox.wasi.memory import GuestMemory


def _no_limit() -> NoReturn:
    raise AssertionError("there is no limit of memory here")


class Host:
    """An engine as cells have it, and the host's own two modules, compiled once."""

    def __init__(self) -> None:
        self._memories = Memories()
        self._memories.restrict(None, _no_limit)
        self.engine = engine.make(self._memories, fuel=False)
        self.shim = wasmtime.Module(self.engine, switch.shim())
        self.switch = wasmtime.Module(self.engine, switch.switch())


class LinkedCell:
    """A cell, and how often each function of the host in Python was called."""

    def __init__(
        self,
        host: Host,
        module: wasmtime.Module,
        granted: Mapping[int, File | BaseDirectory],
        argv: Sequence[str] = (),
    ) -> None:
        self.entered: Counter[str] = Counter()
        self.calls = Calls()
        self._functions = HostFunctions()
        self.store = wasmtime.Store(host.engine)
        config = wasmtime.WasiConfig()
        config.argv = list(argv)
        self.store.set_wasi(config)
        linker = wasmtime.Linker(host.engine)
        linker.define_wasi()
        for name, kinds in switch.host_functions().items():
            self._functions.define(linker, name, kinds, self._counted(name))
        limits = wasmtime.Limits(switch.TABLE_SIZE, switch.TABLE_SIZE)
        kind = wasmtime.TableType(wasmtime.ValType.funcref(), limits)
        table = wasmtime.Table(self.store, kind, None)
        offered = wasmtime.Linker(host.engine)
        shim = wasmtime.Instance(self.store, host.shim, [table])
        offered.define_instance(self.store, abi.MODULE, shim)
        self.cell = offered.instantiate(self.store, module)
        memory = self.cell.exports(self.store)["memory"]
        assert isinstance(memory, wasmtime.Memory)
        linker.define(self.store, "host", "table", table)
        linker.define(self.store, "cell", "memory", memory)
        instance = linker.instantiate(self.store, host.switch)
        numbers = instance.exports(self.store)["map"]
        assert isinstance(numbers, wasmtime.Memory)
        slots = NumberMap(self.store, numbers)
        self.calls.bind(GuestMemory(self.store, memory), slots.__getitem__)
        for number, served in granted.items():
            slots[number] = self.calls.add(served)

    def _counted(self, name: str) -> Callable[..., None]:
        function = self.calls.function(name)

        def call(*numbers: int) -> None:
            self.entered[name] += 1
            function(*numbers)

        return call

    def call(self, name: str, *numbers: int) -> int:
        """Call what the cell exports, and return its result."""
        function = self.cell.exports(self.store)[name]
        assert isinstance(function, wasmtime.Func)
        result: int = function(self.store, *numbers)
        return result

    def close(self) -> None:
        """Close all that it had been granted, or has opened, and has not closed itself."""
        self.store.close()
        for item in self.calls._slots:
            if item is not None:
                item.close()

    def run(self) -> int:
        """Run the cell as a command, and return its exit code."""
        try:
            self.call("_start")
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            if isinstance(self._functions.failure, CellExit):
                return self._functions.failure.code
            if self._functions.failure is not None:
                raise self._functions.failure from None
            raise
        return 0

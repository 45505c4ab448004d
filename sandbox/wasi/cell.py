"""Running one cell: load, link, start, and tell how it ended."""

import ctypes
import fcntl
import os

import wasmtime
from wasmtime import _ffi

from sandbox.grants import Grant
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from sandbox.wasi import abi, artifacts, engine, switch
from sandbox.wasi.bridge import HostFunctions
from sandbox.wasi.calls import Calls, CellExit
from sandbox.wasi.directory import FIRST_PREOPEN, RootDirectory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.memory import GuestMemory

# Magic number and version, binary format of the WebAssembly specification, section 5.5.16; a
# component has another version and a layer (component-model/design/mvp/Binary.md).
_CORE_MODULE = b"\0asm\x01\0\0\0"
_COMPONENT = b"\0asm\x0d\0\x01\0"

_LAST_STANDARD = 2


class Rejected(Exception):
    """The cell is not a program that can run here."""


class CellHost:
    """Everything of a cell that can be made before it is known: made in the spawner, once.

    What is made after a fork costs several times more, because every page is copied on first
    use; so the engine, the host's modules and the linker are ready before.
    """

    def __init__(self, cache: str | None) -> None:
        """Make the parts that all cells share.

        Args:
            cache: Directory for compiled forms of the host's own modules, or ``None``.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses any of it.
        """
        self._engine = engine.make()
        fingerprint = engine.fingerprint()
        self._shim = artifacts.load(self._engine, fingerprint, "shim", switch.shim(), cache)
        self._switch = artifacts.load(self._engine, fingerprint, "switch", switch.switch(), cache)
        self._grants: list[tuple[Grant, File]] = []
        self._calls = Calls()
        self._functions = HostFunctions()
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        for name, kinds in switch.host_functions().items():
            self._functions.define(self._linker, name, kinds, self._calls.function(name))

    def run(self, plan: Plan, cell: int, null: int) -> Outcome:
        """Run a cell in this process, which is jailed, holds its descriptors, and ends after it.

        Args:
            plan: The cell's plan; its descriptors are open at their targets.
            cell: A descriptor of the cell's bytes; closed once they are read.
            null: A descriptor of /dev/null; closed.
        """
        self._grants = _open_grants(plan, null)
        try:
            module = self._load(cell)
            store = wasmtime.Store(self._engine)
            store.set_wasi(_wasi_config(plan))
            start = self._link(store, module)
        except Rejected as error:
            return Outcome("rejected", what=str(error))
        try:
            start(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            failure = self._functions.failure
            if isinstance(failure, CellExit):
                # As wait(2) would report it of a process.
                return Outcome("exit", failure.code & 0xFF)
            if failure is not None:
                return Outcome("fault", what=f"{type(failure).__name__}: {failure}")
            return Outcome("trap", what=str(error))
        return Outcome("exit", 0)

    def _load(self, cell: int) -> wasmtime.Module:
        """Compile the cell.

        Raises:
            Rejected: If it is not a valid core module.
        """
        with open(cell, "rb", buffering=0) as file:
            wasm = file.readall()
        if wasm.startswith(_COMPONENT):
            raise Rejected("it is a WebAssembly component, and only core modules run here")
        if not wasm.startswith(_CORE_MODULE):
            raise Rejected("it is not a WebAssembly module")
        try:
            return wasmtime.Module(self._engine, wasm)
        except wasmtime.WasmtimeError as error:
            raise Rejected(
                f"it is not a valid WebAssembly module: {_first_cause(error)}"
            ) from error

    def _link(self, store: wasmtime.Store, module: wasmtime.Module) -> wasmtime.Func:
        """Instantiate shim, cell and switch, and connect them.

        Returns:
            The cell's start function.

        Raises:
            Rejected: If the cell imports what is not offered or lacks what a program has.
        """
        limits = wasmtime.Limits(switch.TABLE_SIZE, switch.TABLE_SIZE)
        kind = wasmtime.TableType(wasmtime.ValType.funcref(), limits)
        table = wasmtime.Table(store, kind, None)
        # A linker of its own: a cell may import whatever is defined in it.
        offered = wasmtime.Linker(self._engine)
        shim = wasmtime.Instance(store, self._shim, [table])
        offered.define_instance(store, abi.MODULE, shim)
        try:
            cell = offered.instantiate(store, module)
        except wasmtime.Trap as error:
            raise Rejected(
                "its start section trapped; a start section cannot use WASI, because the cell's "
                f"memory is not known before it ends: {_first_cause(error)}"
            ) from error
        except wasmtime.WasmtimeError as error:
            raise Rejected(_first_cause(error)) from error
        exports = cell.exports(store)
        memory = exports.get("memory")
        if isinstance(memory, wasmtime.Memory):
            self._connect(store, table, memory)
        elif module.imports:
            raise Rejected("it imports WASI but exports no memory named 'memory'")
        start = exports.get("_start")
        if not isinstance(start, wasmtime.Func):
            raise Rejected("it exports no function '_start': it is not a WASI command")
        signature = start.type(store)
        if signature.params or signature.results:
            raise Rejected("its '_start' takes parameters or returns results")
        return start

    def _connect(
        self,
        store: wasmtime.Store,
        table: wasmtime.Table,
        memory: wasmtime.Memory,
    ) -> None:
        """Instantiate the switch, which fills the shim's table, and open the grants in its map."""
        self._linker.define(store, "host", "table", table)
        self._linker.define(store, "cell", "memory", memory)
        instance = self._linker.instantiate(store, self._switch)
        map_memory = instance.exports(store)["map"]
        if not isinstance(map_memory, wasmtime.Memory):
            raise TypeError("the switch exports no map")
        numbers = NumberMap(store, map_memory)
        self._calls.bind(GuestMemory(store, memory), numbers.__getitem__)
        links: dict[bytes, tuple[int, File]] = {}
        for grant, file in self._grants:
            numbers[grant.target] = -1 - self._calls.add(file)
            if grant.pathlink and grant.name is not None:
                links[grant.name.encode()] = (grant.target, file)
        if links:
            numbers[FIRST_PREOPEN] = -1 - self._calls.add(RootDirectory(links))


def _open_grants(plan: Plan, null: int) -> list[tuple[Grant, File]]:
    """Return the grants as the host serves them, and leave /dev/null at 0, 1 and 2.

    Whatever a library writes unasked (the engine when memory runs out, say) goes to 2, and must
    not go to what the cell was granted there. The cell's own numbers are the switch's business.
    """
    grants = []
    for grant in plan.grants:
        fd = grant.target
        if fd <= _LAST_STANDARD:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
        grants.append((grant, open_grant(fd, grant.mode)))
    for number in range(_LAST_STANDARD + 1):
        os.dup2(null, number, inheritable=False)
    os.close(null)
    return grants


class NumberMap:
    """The switch's map of the cell's descriptor numbers, in its memory, which never moves."""

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        address = _ffi.wasmtime_memory_data(store._context(), ctypes.byref(memory._memory))
        base = ctypes.cast(address, ctypes.c_void_p).value or 0
        self._entries = (ctypes.c_int32 * switch.MAP_ENTRIES).from_address(base)

    def __getitem__(self, number: int) -> int:
        """Return the entry of a number, 0 if it is not open or there is no such number."""
        return self._entries[number] if 0 <= number < switch.MAP_ENTRIES else 0

    def __setitem__(self, number: int, entry: int) -> None:
        self._entries[number] = entry


def _wasi_config(plan: Plan) -> wasmtime.WasiConfig:
    """Return what wasmtime's own WASI serves: arguments and environment.

    Its stdio is closed off: descriptors 0 to 2 of the cell are never routed to it.
    """
    config = wasmtime.WasiConfig()
    config.argv = list(plan.argv)
    config.env = list(plan.env)
    return config


def _first_cause(error: Exception) -> str:
    """Return an error of the engine on one line, without the position of its own code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line)

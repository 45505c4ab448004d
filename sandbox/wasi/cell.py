"""Running one cell: load, link, start, and tell how it ended."""

import ctypes
import fcntl
import os
import re
import zlib

import wasmtime
from wasmtime import _ffi
from wasmtime._exportable import AsExtern
from wasmtime._extern import wrap_extern

from sandbox import compiling
from sandbox.grants import Grant
from sandbox.inside import Inside, Own
from sandbox.outcome import Outcome, limit
from sandbox.plan import Plan
from sandbox.wasi import abi, engine, switch
from sandbox.wasi.artifacts import Cache
from sandbox.wasi.bridge import HostFunctions
from sandbox.wasi.calls import Calls, CellExit
from sandbox.wasi.directory import BaseDirectory, RootDirectory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.memories import Memories
from sandbox.wasi.memory import GuestMemory
from sandbox.wasi.meter import Meter, OutputLimit
from sandbox.wasi.tree import Directory

# Magic number and version, binary format of the WebAssembly specification, section 5.5.16; a
# component has another version and a layer (component-model/design/mvp/Binary.md).
_CORE_MODULE = b"\0asm\x01\0\0\0"
_COMPONENT = b"\0asm\x0d\0\x01\0"

# A line of an engine's error when the host's memory did not suffice.
_NO_MEMORY = re.compile(r"(\d+: )?out of memory \(failed to allocate \d+ bytes\)")

_LAST_STANDARD = 2
# Where a C library finds the writable directory.
_SCRATCH = b"/tmp"


class Rejected(Exception):
    """The cell is not a program that can run here."""


class CellHost:
    """Loads, compiles and runs cells, with everything made before that can be.

    What is made after a clone costs several times more, because every page is copied on first
    use; so the engine, the host's modules and the linker are ready before.
    """

    def __init__(self, cache: str | None) -> None:
        """Make the parts that all cells share.

        Args:
            cache: Directory for compiled forms, or ``None``.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses any of it.
        """
        self._cache = Cache(cache)
        self._workshops = {False: Workshop(self._cache, fuel=False)}

    def _workshop(self, plan: Plan) -> "Workshop":
        """Return the parts for a plan; those that count fuel are made when first asked for."""
        fuel = plan.limits.fuel is not None
        if fuel not in self._workshops:
            self._workshops[fuel] = Workshop(self._cache, fuel=fuel)
        return self._workshops[fuel]

    def find(self, plan: Plan, code: int) -> int | None:
        """Return a descriptor of a cell's compiled form, if the cache has it whole.

        Args:
            plan: The cell's plan.
            code: The cell's bytes; they are known by the plan's digest.
        """
        return self._cache.find(self._workshop(plan).name(plan.digest))

    def keep(self, plan: Plan, artifact: int) -> None:
        """Put a compiled form into the cache."""
        self._cache.keep(self._workshop(plan).name(plan.digest), artifact)

    def compile(self, inside: Inside) -> Outcome:
        """Compile a cell in this process, whose jail holds its bytes and room for the result."""
        try:
            with open(inside.own.code, "rb", buffering=0, closefd=False) as file:
                wasm = file.readall()
            inside.seal()
            compiled = self._workshop(inside.plan).compile(wasm)
            with open(compiling.ARTIFACT, "wb") as file:
                file.write(compiled)
        except Rejected as error:
            return Outcome("rejected", what=str(error))
        except MemoryError:
            return limit("memory")
        return Outcome("exit", 0)

    def run(self, inside: Inside) -> Outcome:
        """Run a cell in this process, which is jailed, holds its descriptors, and ends after it."""
        return self._workshop(inside.plan).run(inside)


class Workshop:
    """An engine, and what cells need of it: the host's own modules, and a linker."""

    def __init__(self, cache: Cache, *, fuel: bool) -> None:
        """Make all of it.

        Args:
            cache: Where compiled modules are found and kept.
            fuel: Whether cells count what they do.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses any of it.
        """
        self._memories = Memories()
        self._engine = engine.make(self._memories, fuel=fuel)
        self._fingerprint = engine.fingerprint(fuel=fuel)
        self._shim = self._own_module(cache, "shim", switch.shim())
        self._switch = self._own_module(cache, "switch", switch.switch())
        self._served: dict[int, File | BaseDirectory] = {}
        self._calls = Calls()
        self._functions = HostFunctions()
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        for name, kinds in switch.host_functions().items():
            self._functions.define(self._linker, name, kinds, self._calls.function(name))

    def name(self, digest: str) -> str:
        """Return the name in the cache of what was compiled from something with a digest."""
        # A checksum is enough for the rest: the engine checks by itself what it loads.
        return f"{digest}-{zlib.crc32(self._fingerprint.encode()):08x}.cwasm"

    def _own_module(self, cache: Cache, name: str, text: str) -> wasmtime.Module:
        """Return a module of the host, compiled before or now."""
        name = self.name(f"{name}-{zlib.crc32(text.encode()):08x}")
        found = cache.find(name)
        if found is not None:
            try:
                return wasmtime.Module.deserialize_file(self._engine, f"/proc/self/fd/{found}")
            except wasmtime.WasmtimeError:
                pass  # of another engine after all
            finally:
                os.close(found)
        module = wasmtime.Module(self._engine, text)
        memory = compiling.new_memory("artifact")
        with open(memory, "wb", buffering=0) as file:
            file.write(module.serialize())
            cache.keep(name, memory)
        return module

    def compile(self, wasm: bytes) -> bytes:
        """Return a cell's compiled form.

        Raises:
            Rejected: If it is not a valid core module.
            MemoryError: If it takes too much memory.
        """
        if wasm.startswith(_COMPONENT):
            raise Rejected("it is a WebAssembly component, and only core modules run here")
        if not wasm.startswith(_CORE_MODULE):
            raise Rejected("it is not a WebAssembly module")
        try:
            return bytes(wasmtime.Module(self._engine, wasm).serialize())
        except wasmtime.WasmtimeError as error:
            if _lacks_memory(error):
                raise MemoryError from error
            raise Rejected(
                f"it is not a valid WebAssembly module: {_first_cause(error)}"
            ) from error

    def run(self, inside: Inside) -> Outcome:
        """Run a cell; see :meth:`CellHost.run`."""
        plan, own = inside.plan, inside.own
        try:
            # The working directory is the list of this process's descriptors.
            module = wasmtime.Module.deserialize_file(self._engine, str(own.code))
        except wasmtime.WasmtimeError as error:
            return Outcome("stale", what=_first_cause(error))
        inside.seal()
        self._served = _serve(plan, own)
        bounds = plan.limits
        store = wasmtime.Store(self._engine)
        store.set_limits(table_elements=bounds.table_elements)
        if bounds.fuel is not None:
            store.set_fuel(bounds.fuel)
        store.set_wasi(_wasi_config(plan))
        self._memories.restrict(bounds.memory, lambda: inside.report(limit("memory")))
        try:
            start = self._link(store, module, plan)
            start(store)
        except Rejected as error:
            return Outcome("rejected", what=str(error))
        except MemoryError:
            return limit("host-memory")
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            return self._ended(error)
        return Outcome("exit", 0)

    def _ended(self, error: wasmtime.Trap | wasmtime.WasmtimeError) -> Outcome:
        """Return how a cell ended that did not return."""
        failure = self._functions.failure
        if isinstance(failure, CellExit):
            # As wait(2) would report it of a process.
            return Outcome("exit", failure.code & 0xFF)
        if isinstance(failure, OutputLimit):
            return limit("output")
        if isinstance(failure, MemoryError) or _lacks_memory(error):
            return limit("host-memory")
        if failure is not None:
            return Outcome("fault", what=f"{type(failure).__name__}: {failure}")
        if isinstance(error, wasmtime.Trap) and error.trap_code is wasmtime.TrapCode.OUT_OF_FUEL:
            return limit("fuel")
        return Outcome("trap", what=str(error))

    def _link(self, store: wasmtime.Store, module: wasmtime.Module, plan: Plan) -> wasmtime.Func:
        """Instantiate shim, cell and switch, and connect them.

        Returns:
            The cell's start function.

        Raises:
            Rejected: If the cell imports what is not offered or lacks what a program has.
            wasmtime.Trap: If its start section uses up its fuel.
            wasmtime.WasmtimeError: If there is no memory for it.
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
            if error.trap_code is wasmtime.TrapCode.OUT_OF_FUEL:
                raise
            raise Rejected(
                "its start section trapped; a start section cannot use WASI, because the cell's "
                f"memory is not known before it ends: {_first_cause(error)}"
            ) from error
        except wasmtime.WasmtimeError as error:
            if _lacks_memory(error):
                raise
            raise Rejected(_first_cause(error)) from error
        memory = _exported(store, cell, "memory")
        if isinstance(memory, wasmtime.Memory):
            self._connect(store, table, memory, plan)
        elif module.imports:
            raise Rejected("it imports WASI but exports no memory named 'memory'")
        start = _exported(store, cell, "_start")
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
        plan: Plan,
    ) -> None:
        """Instantiate the switch, which fills the shim's table, and open the grants in its map."""
        self._linker.define(store, "host", "table", table)
        self._linker.define(store, "cell", "memory", memory)
        with self._memories.uncounted():
            instance = self._linker.instantiate(store, self._switch)
        map_memory = instance.exports(store)["map"]
        if not isinstance(map_memory, wasmtime.Memory):
            raise TypeError("the switch exports no map")
        numbers = NumberMap(store, map_memory)
        self._calls.bind(GuestMemory(store, memory), numbers.__getitem__)
        self._calls.most_open = plan.limits.nofile
        for number, served in self._served.items():
            numbers[number] = -1 - self._calls.add(served)


def _serve(plan: Plan, own: Own) -> dict[int, File | BaseDirectory]:
    """Return what the host serves, by the cell's numbers.

    A directory has two of them: its own, and the one at which a C library finds it.
    """
    meter = Meter(plan.limits.output)
    served: dict[int, File | BaseDirectory] = {}
    links: dict[bytes, tuple[int, File]] = {}
    for grant, fd in _settled(plan, own.null):
        if grant.guest is not None:
            served[grant.target] = Directory(fd, grant.mode, grant.guest.encode(), meter)
            if grant.preopen != grant.target:
                copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
                served[grant.preopen] = Directory(copy, grant.mode, grant.guest.encode(), meter)
            continue
        file = served[grant.target] = open_grant(fd, grant.mode, meter)
        if grant.target in plan.terminals:
            file.be_terminal()
        if grant.pathlink and grant.name is not None:
            links[grant.name.encode()] = (grant.target, file)
    if own.scratch >= 0:
        served[plan.scratch_preopen] = Directory(own.scratch, "rw", _SCRATCH, meter)
    if own.content >= 0:
        from sandbox.wasi.content import ServedDirectory, Source

        guest = plan.content.encode()
        served[plan.content_preopen] = ServedDirectory(Source(own.content), guest=guest)
    if links:
        served[plan.root_preopen] = RootDirectory(links)
    return served


def _settled(plan: Plan, null: int) -> list[tuple[Grant, int]]:
    """Return where the grants are from now on, and leave /dev/null at 0, 1 and 2.

    Whatever a library writes unasked (the engine when memory runs out, say) goes to 2, and must
    not go to what the cell was granted there. The cell's own numbers are the switch's business.
    """
    grants = []
    for grant in plan.grants:
        fd = grant.target
        if fd <= _LAST_STANDARD:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD + 1)
        grants.append((grant, fd))
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


def _exported(store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> AsExtern | None:
    """Return what an instance exports by a name, if anything.

    It is asked for by its name: the time that the engine takes to list exports grows with the
    square of their number, which is the cell's to choose.
    """
    item = _ffi.wasmtime_extern_t()
    encoded = name.encode()
    found = _ffi.wasmtime_instance_export_get(
        store._context(),
        ctypes.byref(instance._instance),
        ctypes.create_string_buffer(encoded),
        len(encoded),
        ctypes.byref(item),
    )
    return wrap_extern(item) if found else None


def _lacks_memory(error: Exception) -> bool:
    """Tell whether the engine failed for want of the host's memory.

    Not by a trap's report: its lines hold names that the cell chose.
    """
    return isinstance(error, wasmtime.WasmtimeError) and any(
        _NO_MEMORY.fullmatch(line.strip()) for line in str(error).splitlines()
    )


def _first_cause(error: Exception) -> str:
    """Return an error of the engine on one line, without the position of its own code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line)

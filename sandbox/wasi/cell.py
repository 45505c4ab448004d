"""Running one cell: load, link, start, and tell how it ended."""

import ctypes
import fcntl
import os
import zlib
from functools import cache
from typing import NoReturn

import wasmtime
from wasmtime import _ffi

from sandbox import compiling
from sandbox.digest import sha256
from sandbox.grants import LAST_STANDARD, Grant
from sandbox.inside import Inside, Own
from sandbox.outcome import Outcome, limit
from sandbox.plan import COMPONENT_MAGIC, Plan
from sandbox.wasi import abi, engine, invoke, switch
from sandbox.wasi.artifacts import Cache
from sandbox.wasi.bridge import HostFunctions
from sandbox.wasi.calls import Calls, CellExit
from sandbox.wasi.directory import BaseDirectory, RootDirectory
from sandbox.wasi.failures import Rejected, Stale, first_cause, lacks_memory
from sandbox.wasi.files import File, WasiError, open_grant
from sandbox.wasi.memories import Memories
from sandbox.wasi.memory import GuestMemory
from sandbox.wasi.meter import Meter, OutputLimit
from sandbox.wasi.stdio import settled
from sandbox.wasi.tree import Directory

# Magic number and version: binary format of the WebAssembly specification, section 5.5.16.
_CORE_MODULE = b"\0asm\x01\0\0\0"
_STDOUT = 1
# A cell as all are, in little: it writes nothing, and ends.
_REHEARSAL = f"""
(module
  (import "{abi.MODULE}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "{abi.MODULE}" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $exit (i32.const 0))))
"""
# Where a C library finds the writable directory.
_SCRATCH = b"/tmp"


class CellHost:
    """Loads, compiles and runs cells, with everything made before that can be.

    What is made after a clone costs several times more, because every page is copied on first
    use; so the engine, the host's modules and the linker are ready before.
    """

    def __init__(self, cache: str | None, cache_size: int | None = None) -> None:
        """Make the parts that all cells share.

        Args:
            cache: Directory for compiled forms, or ``None``.
            cache_size: Bytes that those of cells may have together; ``None`` for no bound.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses any of it.
        """
        self._cache = Cache(cache, cache_size)
        self._workshops = {False: Workshop(self._cache, fuel=False)}

    def prepare(self, *, fuel: bool, ahead: bool) -> None:
        """Make the parts for cells that count fuel, or for the others, unless they are there.

        Args:
            fuel: Which.
            ahead: Whether there are to be rehearsals with them.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses any of it.
        """
        if fuel not in self._workshops:
            self._workshops[fuel] = Workshop(self._cache, fuel=fuel)
        if ahead:
            self._workshops[fuel].prepare_rehearsal(self._cache)

    def _workshop(self, plan: Plan) -> "Workshop":
        """Return the parts for a plan, which :meth:`prepare` has made."""
        return self._workshops[plan.limits.fuel is not None]

    def find(self, plan: Plan, code: int) -> int | None:
        """Return a descriptor of a cell's compiled form, if the cache has it whole.

        Args:
            plan: The cell's plan.
            code: The cell's bytes; they are known by the plan's digest.
        """
        return self._cache.find(_name(plan))

    def keep(self, plan: Plan, artifact: int) -> str:
        """Put a compiled form into the cache, or return why it is not kept."""
        return self._cache.keep(_name(plan), artifact)

    def compile(self, inside: Inside) -> Outcome:
        """Compile a cell in this process, whose jail holds its bytes and room for the result."""
        try:
            with open(inside.own.code, "rb", buffering=0, closefd=False) as file:
                wasm = file.readall()
            inside.seal()
            # Whoever asks names the digest, under which all who ask for that cell get the result.
            if sha256(wasm) != inside.plan.digest:
                return Outcome("fault", what="the cell's bytes are not those of its digest")
            compiled = self._workshop(inside.plan).compile(wasm, inside.plan)
            with open(compiling.ARTIFACT, "wb") as file:
                file.write(compiled)
        except Rejected as error:
            return Outcome("rejected", what=str(error))
        except MemoryError:
            return limit("memory")
        return Outcome("exit", 0)

    def rehearse(self, null: int) -> None:
        """Do once what is done with every cell, in a process that waits for one.

        After a clone, a page is copied when it is first written to, which takes longer than what is
        done there. Where there is time before a cell comes, it need not be the cell's.

        Args:
            null: A descriptor of /dev/null, which is left open.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses anything.
        """
        self._workshops[False].rehearse(null)

    def run(self, inside: Inside) -> Outcome:
        """Run a cell in this process, which is jailed, holds its descriptors, and ends after it."""
        return self._workshop(inside.plan).run(inside)


def _no_limit() -> NoReturn:
    raise MemoryError("the rehearsal needs more memory than a cell has")


def _name(plan: Plan) -> str:
    """Return the name in the cache of a cell's compiled form."""
    return _artifact(plan.digest, fuel=plan.limits.fuel is not None)


def _artifact(digest: str, *, fuel: bool) -> str:
    """Return the name in the cache of what was compiled from something with a digest."""
    return f"{digest}-{_fingerprint(fuel=fuel):08x}.cwasm"


@cache
def _fingerprint(*, fuel: bool) -> int:
    # A checksum is enough: the engine checks by itself what it loads.
    return zlib.crc32(engine.fingerprint(fuel=fuel).encode())


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
        self._fuel = fuel
        self._shim = self._own_module(cache, "shim", switch.shim())
        self._switch = self._own_module(cache, "switch", switch.switch())
        self._rehearsal = b""
        self._served: dict[int, File | BaseDirectory] = {}
        self._calls = Calls()
        self._connected = False  # a cell that has no memory cannot call
        self._functions = HostFunctions()
        self._linker = wasmtime.Linker(self._engine)
        self._linker.allow_shadowing = True  # what is a cell's own, is defined for each anew
        self._linker.define_wasi()
        for name, kinds in switch.host_functions().items():
            self._functions.define(self._linker, name, kinds, self._calls.function(name))

    def _own_module(self, cache: Cache, name: str, text: str) -> wasmtime.Module:
        """Return a module of the host, compiled before or now."""
        name = _artifact(f"{name}-{zlib.crc32(text.encode()):08x}", fuel=self._fuel)
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

    def compile(self, wasm: bytes, plan: Plan) -> bytes:
        """Return a cell's compiled form.

        Raises:
            Rejected: If it is not a valid core module or component, as the plan has it.
            MemoryError: If it takes too much memory.
        """
        if not wasm.startswith(COMPONENT_MAGIC if plan.component else _CORE_MODULE):
            raise Rejected("it is not a WebAssembly module")
        try:
            if plan.component:
                from sandbox.wasi import component

                return component.compile_bytes(self._engine, wasm)
            return bytes(wasmtime.Module(self._engine, wasm).serialize())
        except wasmtime.WasmtimeError as error:
            if lacks_memory(error):
                raise MemoryError from error
            raise Rejected(f"it is not a valid WebAssembly module: {first_cause(error)}") from error

    def run(self, inside: Inside) -> Outcome:
        """Run a cell; see :meth:`CellHost.run`."""
        bounds = inside.plan.limits
        store = wasmtime.Store(self._engine)
        if bounds.fuel is not None:
            store.set_fuel(bounds.fuel)
        self._memories.restrict(bounds.memory, lambda: inside.report(limit("memory")))
        try:
            if inside.plan.component:
                from sandbox.wasi import component

                store.set_limits(table_elements=bounds.table_elements)
                return component.run(self._engine, store, inside)
            return self._run_module(store, inside)
        except Stale as error:
            return Outcome("stale", what=str(error))
        except Rejected as error:
            return Outcome("rejected", what=str(error))
        except MemoryError:
            return limit("host-memory")
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            return self._ended(error)

    def _run_module(self, store: wasmtime.Store, inside: Inside) -> Outcome:
        """Load, link and run a core module.

        Raises:
            Stale: If its compiled form cannot be loaded.
            Rejected: If it is no program that can run here.
            wasmtime.Trap: If it did not return.
            wasmtime.WasmtimeError: Likewise, or there is no memory for it.
        """
        plan, own = inside.plan, inside.own
        try:
            # The working directory is the list of this process's descriptors.
            module = wasmtime.Module.deserialize_file(self._engine, str(own.code))
        except wasmtime.WasmtimeError as error:
            raise Stale(first_cause(error)) from error
        inside.seal()
        self._served = _serve(plan, own)
        store.set_wasi(_wasi_config(plan))
        cell = self._link(store, module, plan)
        if plan.invoke:
            results = invoke.call(store, cell, plan)
            try:
                invoke.show(results, self._stdout())
            except OutputLimit:
                return limit("output")
            except (OSError, WasiError):
                return Outcome("exit", 1)  # as of a program that could not write
        else:
            _start(store, cell)(store)
        return Outcome("exit", 0)

    def _stdout(self) -> File | BaseDirectory | None:
        """Return what the cell has as its standard output by now."""
        return self._calls.served(_STDOUT) if self._connected else self._served.get(_STDOUT)

    def prepare_rehearsal(self, cache: Cache) -> None:
        """Make what :meth:`rehearse` takes, unless it is there.

        Raises:
            wasmtime.WasmtimeError: If the engine refuses it.
        """
        if not self._rehearsal:
            module = self._own_module(cache, "rehearsal", _REHEARSAL)
            self._rehearsal = bytes(module.serialize())

    def rehearse(self, null: int) -> None:
        """Run a cell of the host's own; see :meth:`CellHost.rehearse`."""
        grants = tuple(Grant(number, None, "rw", "file") for number in range(LAST_STANDARD + 1))
        plan = Plan.decode(Plan(grants, ("cell",), (("WW_FDS", ""),), 1, 1, "0" * 64).encode())
        self._memories.restrict(plan.limits.memory, _no_limit)
        store = wasmtime.Store(self._engine)
        module = wasmtime.Module.deserialize(self._engine, self._rehearsal)
        self._served = _serve(plan, Own(line=-1, code=-1, null=os.dup(null), listing=-1))
        store.set_wasi(_wasi_config(plan))
        try:
            _start(store, self._link(store, module, plan))(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            Outcome.decode(self._ended(error).encode())
        store.close()
        self._functions.failure = None
        self._served = {}
        self._calls.forget()
        self._memories.forget()

    def _ended(self, error: wasmtime.Trap | wasmtime.WasmtimeError) -> Outcome:
        """Return how a cell ended that did not return."""
        failure = self._functions.failure
        if isinstance(failure, CellExit):
            # As wait(2) would report it of a process.
            return Outcome("exit", failure.code & 0xFF)
        if isinstance(failure, OutputLimit):
            return limit("output")
        if isinstance(failure, MemoryError) or lacks_memory(error):
            return limit("host-memory")
        if failure is not None:
            return Outcome("fault", what=f"{type(failure).__name__}: {failure}")
        if isinstance(error, wasmtime.Trap) and error.trap_code is wasmtime.TrapCode.OUT_OF_FUEL:
            return limit("fuel")
        return Outcome("trap", what=str(error))

    def _link(
        self, store: wasmtime.Store, module: wasmtime.Module, plan: Plan
    ) -> wasmtime.Instance:
        """Instantiate shim, cell and switch, and connect them; return the cell.

        Raises:
            Rejected: If the cell imports what is not offered.
            wasmtime.Trap: If its start section uses up its fuel.
            wasmtime.WasmtimeError: If there is no memory for it.
        """
        limits = wasmtime.Limits(switch.TABLE_SIZE, switch.TABLE_SIZE)
        kind = wasmtime.TableType(wasmtime.ValType.funcref(), limits)
        table = wasmtime.Table(store, kind, None)
        # From here on: that one is the host's.
        store.set_limits(table_elements=plan.limits.table_elements)
        # A linker of its own: a cell may import whatever is defined in it.
        offered = wasmtime.Linker(self._engine)
        shim = wasmtime.Instance(store, self._shim, [table])
        offered.define_instance(store, abi.MODULE, shim)
        try:
            if plan.trap_unknown:
                offered.define_unknown_imports_as_traps(module)
            cell = offered.instantiate(store, module)
        except wasmtime.Trap as error:
            if error.trap_code is wasmtime.TrapCode.OUT_OF_FUEL:
                raise
            raise Rejected(
                "its start section trapped; a start section cannot use WASI, because the cell's "
                f"memory is not known before it ends: {first_cause(error)}"
            ) from error
        except wasmtime.WasmtimeError as error:
            if lacks_memory(error):
                raise
            cause = first_cause(error)
            if cause.startswith("unknown import"):
                cause += "; --unknown-imports-trap lets it run until it calls that"
            raise Rejected(cause) from error
        memory = invoke.exported(store, cell, "memory")
        self._connected = isinstance(memory, wasmtime.Memory)
        if isinstance(memory, wasmtime.Memory):
            self._connect(store, table, memory, plan)
        elif module.imports:
            raise Rejected("it imports WASI but exports no memory named 'memory'")
        return cell

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
            numbers[number] = self._calls.add(served)


def _start(store: wasmtime.Store, cell: wasmtime.Instance) -> wasmtime.Func:
    """Return a command's start function.

    Raises:
        Rejected: If it has none.
    """
    start = invoke.exported(store, cell, "_start")
    if not isinstance(start, wasmtime.Func):
        raise Rejected(
            "it exports no function '_start', so it is no WASI command; --invoke NAME calls "
            "another function"
        )
    signature = start.type(store)
    if signature.params or signature.results:
        raise Rejected("its '_start' takes parameters or returns results")
    return start


def _serve(plan: Plan, own: Own) -> dict[int, File | BaseDirectory]:
    """Return what the host serves, by the cell's numbers.

    A directory has two of them: its own, and the one at which a C library finds it.
    """
    meter = Meter(plan.limits.output)
    served: dict[int, File | BaseDirectory] = {}
    links: dict[bytes, tuple[int, File]] = {}
    for grant, fd in settled(plan, own.null):
        if grant.guest is not None:
            served[grant.target] = Directory(fd, grant.mode, grant.guest.encode(), meter)
            if grant.preopen != grant.target:
                copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LAST_STANDARD + 1)
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


class NumberMap:
    """The switch's map of the cell's descriptor numbers, in its memory, which never moves."""

    def __init__(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        address = _ffi.wasmtime_memory_data(store._context(), ctypes.byref(memory._memory))
        base = ctypes.cast(address, ctypes.c_void_p).value or 0
        self._entries = (ctypes.c_int32 * switch.MAP_ENTRIES).from_address(base)

    def __getitem__(self, number: int) -> int | None:
        """Return the slot of a number, ``None`` if it is not open or there is no such number."""
        entry = self._entries[number] if 0 <= number < switch.MAP_ENTRIES else 0
        return entry - 1 if entry else None

    def __setitem__(self, number: int, slot: int) -> None:
        self._entries[number] = slot + 1


def _wasi_config(plan: Plan) -> wasmtime.WasiConfig:
    """Return what wasmtime's own WASI serves: arguments and environment.

    Its stdio is closed off: descriptors 0 to 2 of the cell are never routed to it.
    """
    config = wasmtime.WasiConfig()
    config.argv = list(plan.argv)
    config.env = list(plan.env)
    return config

"""Components, the programs of WASI preview 2: the engine's own WASI serves them.

They know no numbers of descriptors, so what was granted reaches them in other ways: 0, 1 and 2 as
standard input, output and error; directories at their paths; and files as ``/fd/NAME``, each a
mount of its own, which the kernel keeps read-only if the grant is. Nothing else can be granted to
one, and there is no network: no address may be used, and the system call filter lets no socket be
made.
"""

import errno
import os
import select
from collections.abc import Callable
from typing import Final

import wasmtime
from wasmtime import component

from sandbox import descriptors
from sandbox.inside import Inside
from sandbox.outcome import Outcome, limit
from sandbox.wasi.failures import Rejected, Stale, first_cause, lacks_memory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.meter import Meter, OutputLimit
from sandbox.wasi.stdio import settled

# The interface of a command; later versions of 0.2 are found by it too.
_RUN: Final = "wasi:cli/run@0.2.0"
_FILES: Final = "/fd"
# In the cell.
_SCRATCH: Final = "/tmp"  # noqa: S108
_STDIN, _STDOUT, _STDERR = 0, 1, 2
# What the engine's WASI reads to learn how many threads to make; one is enough for one that waits.
_THREADS: Final = {"TOKIO_WORKER_THREADS": "1"}


def compile_bytes(engine: wasmtime.Engine, wasm: bytes) -> bytes:
    """Return a component's compiled form.

    Raises:
        wasmtime.WasmtimeError: If it is not valid, or takes too much memory.
    """
    return bytes(component.Component(engine, wasm).serialize())


def run(engine: wasmtime.Engine, store: wasmtime.Store, inside: Inside) -> Outcome:
    """Load and run a component.

    Raises:
        Stale: If its compiled form cannot be loaded.
        Rejected: If it is no command, or imports what is not offered.
        MemoryError: If there is no memory for it.
    """
    os.environ.update(_THREADS)
    try:
        # The working directory is the list of this process's descriptors.
        loaded = component.Component.deserialize_file(engine, str(inside.own.code))
    except wasmtime.WasmtimeError as error:
        raise Stale(first_cause(error)) from error
    before = descriptors.open_numbers(inside.own.listing)
    config = _directories(inside)
    inside.seal(descriptors.open_numbers(inside.own.listing) - before)
    _standard(config, inside)
    store.set_wasi(config)
    try:
        return _run(engine, store, loaded, trap_unknown=inside.plan.trap_unknown)
    except wasmtime.ExitTrap as end:
        return Outcome("exit", end.code & 0xFF)
    except (wasmtime.WasmtimeError, Rejected) as error:
        # The engine tells no codes of a component's traps.
        if inside.plan.limits.fuel is not None and not store.get_fuel():
            return limit("fuel")
        if isinstance(error, Rejected):
            raise
        if _lacks_memory(error):
            raise MemoryError from error
        return Outcome("trap", what=str(error))


def _run(
    engine: wasmtime.Engine,
    store: wasmtime.Store,
    loaded: component.Component,
    *,
    trap_unknown: bool,
) -> Outcome:
    """Link and run a component; see :func:`run`.

    Raises:
        Rejected: As :func:`run`.
        wasmtime.ExitTrap: If it ended itself.
        wasmtime.WasmtimeError: If it did not return, or there is no memory for it.
    """
    linker = component.Linker(engine)
    linker.add_wasip2()
    try:
        if trap_unknown:
            linker.define_unknown_imports_as_traps(loaded)
        instance = linker.instantiate(store, loaded)
    except wasmtime.ExitTrap:
        raise
    except wasmtime.WasmtimeError as error:
        if _lacks_memory(error):
            raise
        raise Rejected(first_cause(error)) from error
    interface = instance.get_export_index(store, _RUN)
    start = interface and instance.get_export_index(store, "run", interface)
    function = start and instance.get_func(store, start)
    if not function:
        raise Rejected("it exports no interface 'wasi:cli/run': it is not a command")
    kind = function.type(store)
    result_type = kind.result
    plain = isinstance(result_type, component.ResultType) and not (
        result_type.ok or result_type.err
    )
    if kind.params or not plain:
        raise Rejected("its 'run' takes parameters, or does not return a plain result")
    return Outcome("exit", _code(function(store)))


def _lacks_memory(error: wasmtime.WasmtimeError) -> bool:
    """Tell whether the engine failed for want of the host's memory.

    The kernel may have said so to :mod:`sandbox.wasi.memories` too, where there are too many
    memories, of which a component can have any number. As in :func:`lacks_memory`, the cause counts
    alone, which comes last.
    """
    cause = str(error).rstrip().rpartition("\n")[2]
    return lacks_memory(error) or f"[Errno {errno.ENOMEM}]" in cause


def _code(result: object) -> int:
    """Return the exit code for what a command returned: 1 for an error, which has no more to it."""
    return 1 if getattr(result, "tag", None) == "err" else 0


def _directories(inside: Inside) -> wasmtime.WasiConfig:
    """Open what was granted by a path, while the list of descriptors is the working directory."""
    plan, own = inside.plan, inside.own
    config = wasmtime.WasiConfig()
    config.argv = list(plan.argv)
    config.env = list(plan.env)
    for grant in plan.directories:
        config.preopen_dir(str(grant.target), grant.guest or "", "w" in grant.mode)
    if own.files >= 0:
        writable = any("w" in grant.mode for grant in plan.files)
        config.preopen_dir(str(own.files), _FILES, writable)
    if own.scratch >= 0:
        config.preopen_dir(str(own.scratch), _SCRATCH, True)
    return config


def _standard(config: wasmtime.WasiConfig, inside: Inside) -> None:
    """Connect standard input, output and error with the grants 0, 1 and 2, by their modes."""
    meter = Meter(inside.plan.limits.output)
    for grant, fd in settled(inside.plan, inside.own.null):
        if grant.target == _STDIN and "r" in grant.mode:
            os.dup2(fd, _STDIN, inheritable=False)
            config.inherit_stdin()
        elif grant.target == _STDOUT and "w" in grant.mode:
            config.stdout_custom = _writer(open_grant(fd, grant.mode, meter), inside)
        elif grant.target == _STDERR and "w" in grant.mode:
            config.stderr_custom = _writer(open_grant(fd, grant.mode, meter), inside)


def _writer(file: File, inside: Inside) -> Callable[[bytes], int]:
    """Return what writes all it is given, or returns a negative error number."""

    def write(data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[file.write([rest]) :]
                except BlockingIOError:
                    ready = select.poll()
                    ready.register(file.fd, select.POLLOUT)
                    ready.poll()
        except OutputLimit:
            inside.report(limit("output"))
        except OSError as error:
            return -(error.errno or errno.EIO)
        return len(data)

    return write

"""The engine's settings: every feature, and the bounds that code is compiled for.

What is on is what compilers for WASI emit today; what is off widens the engine's attack surface
for nothing. The settings are part of each artifact's compatibility, so they are constants.
"""

import os
from typing import Any

import wasmtime
from wasmtime import _ffi

from sandbox.wasi.memories import Memories

_FEATURES: dict[str, Any] = {
    # On: clang, rustc and zig use these by default, Lua and CPython need exceptions, and the
    # switch has two memories.
    "wasm_simd": True,
    "wasm_bulk_memory": True,
    "wasm_reference_types": True,
    "wasm_multi_value": True,
    "wasm_tail_call": True,
    "wasm_exceptions": True,
    "wasm_multi_memory": True,
    # clang has it at -mrelaxed-simd.
    "wasm_relaxed_simd": True,
    # Off until a cell needs them.
    "wasm_memory64": False,
    "wasm_threads": False,
    "wasm_gc": False,
    "wasm_function_references": False,
    "wasm_wide_arithmetic": False,
    "wasm_custom_page_sizes": False,
    "wasm_stack_switching": False,
    # A compile in threads would leave them behind in the cell's process.
    "parallel_compilation": False,
    # Mapping a cell's initial memory from a memory file would keep that open beside the grants.
    "memory_init_cow": False,
    # The host keeps the address of the cell's memory between calls.
    "memory_may_move": False,
    # Bounds: bytes of WebAssembly's own stack, of the addresses of each memory, and of those behind
    # it that trap. With less, code would have to check each access.
    "max_wasm_stack": 512 << 10,
    "memory_reservation": 4 << 30,
    "memory_guard_size": 32 << 20,
}


# Bytes of /proc/cpuinfo that hold the first processor; the file has them all.
_CPUINFO = 8192


def make(memories: Memories, *, fuel: bool) -> wasmtime.Engine:
    """Return an engine with these settings; it is compiled for this machine's CPU.

    Args:
        memories: Makes the linear memories.
        fuel: Whether code counts what it does; it is slower for that.
    """
    config = wasmtime.Config()
    for name, value in _FEATURES.items():
        setattr(config, name, value)
    config.consume_fuel = fuel
    memories.install(config)
    return wasmtime.Engine(config)


def fingerprint(*, fuel: bool) -> str:
    """Return a text that differs between engines that cannot share artifacts.

    It holds the settings, the release (by its library's size and time: asking for a version costs
    more than all the rest) and the CPU's features. The engine writes the same into each artifact
    and refuses what does not fit.
    """
    library = os.stat(_ffi.filename)
    with open("/proc/cpuinfo", "rb") as file:
        processor = file.read(_CPUINFO)
    features = [line for line in processor.splitlines() if line.startswith((b"flags", b"Features"))]
    return repr((_FEATURES, fuel, library.st_size, library.st_mtime_ns, features[:1]))

"""The engine's settings: every feature and bound in one place.

What is on is what compilers for WASI emit today; what is off widens the engine's attack surface
for nothing. The settings are part of each artifact's compatibility, so they are constants.
"""

from typing import Any

import wasmtime

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
    # Off until a cell needs them.
    "wasm_memory64": False,
    "wasm_threads": False,
    "wasm_gc": False,
    "wasm_wide_arithmetic": False,
    "wasm_custom_page_sizes": False,
    "wasm_stack_switching": False,
    # A compile in threads would leave them behind in the cell's process.
    "parallel_compilation": False,
    # Mapping a cell's initial memory from a memory file would keep that open beside the grants.
    "memory_init_cow": False,
    # The host keeps the address of the cell's memory between calls.
    "memory_may_move": False,
}


def make() -> wasmtime.Engine:
    """Return an engine with these settings; it is compiled for this machine's CPU."""
    config = wasmtime.Config()
    for name, value in _FEATURES.items():
        setattr(config, name, value)
    return wasmtime.Engine(config)


def fingerprint() -> str:
    """Return a text that differs between engines of other settings.

    What else decides whether an artifact fits, the release and the CPU, the engine writes into
    it and checks by itself.
    """
    return str(_FEATURES)

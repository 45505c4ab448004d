"""Calling one function of a cell in place of its start: a reactor's, or any module's.

A reactor is a module without ``_start``; if it exports ``_initialize``, that is called once, before
anything else (legacy/application-abi.md of the WASI repository). Arguments are read by the types
that the function has, and its results are written as lines, as the engine's own command line does.
"""

import ctypes
import errno
import math
import os
import re
from typing import Any

import wasmtime
from wasmtime import _ffi
from wasmtime._exportable import AsExtern
from wasmtime._extern import wrap_extern

from sandbox.plan import Plan
from sandbox.wasi.directory import BaseDirectory
from sandbox.wasi.failures import Rejected
from sandbox.wasi.files import File

_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_FLOAT = re.compile(
    r"[-+]?(0x([0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(p[-+]?[0-9]+)?"
    r"|([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|inf|infinity|nan)",
    re.IGNORECASE,
)
# More than any number of 64 bits has; Python would not read any number of digits.
_MOST_DIGITS = 100
_BITS = {"i32": 32, "i64": 64}
_FLOATS = ("f32", "f64")
_OTHER = "not a number"


def exported(store: wasmtime.Store, instance: wasmtime.Instance, name: str) -> AsExtern | None:
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


def call(store: wasmtime.Store, cell: wasmtime.Instance, plan: Plan) -> list[int | float]:
    """Call the function that a plan names, with the cell's arguments.

    Returns:
        Its results.

    Raises:
        Rejected: If there is no such function, or it does not take these arguments.
        wasmtime.Trap: If it, or the initialisation, did not return.
        wasmtime.WasmtimeError: Likewise.
    """
    name, texts = plan.invoke, plan.argv[1:]
    function = exported(store, cell, name)
    if not isinstance(function, wasmtime.Func):
        raise Rejected(f"it exports no function '{name}'")
    kinds = [_name(kind) for kind in function.type(store).params]
    if not kinds:
        texts = ()  # then they are for WASI only, as a program's are
    if len(kinds) != len(texts):
        takes = f"({', '.join(kinds)})"
        raise Rejected(f"its '{name}' takes {len(kinds)} arguments {takes}, not {len(texts)}")
    arguments = [
        _argument(f"argument {number} of '{name}'", kind, text)
        for number, (kind, text) in enumerate(zip(kinds, texts, strict=True), 1)
    ]
    if _OTHER in [_name(kind) for kind in function.type(store).results]:
        raise Rejected(f"its '{name}' returns what is not a number, and cannot be shown")
    initialise = exported(store, cell, "_initialize")
    if isinstance(initialise, wasmtime.Func) and name != "_initialize":
        signature = initialise.type(store)
        if signature.params or signature.results:
            raise Rejected("its '_initialize' takes parameters or returns results")
        initialise(store)
    result: Any = function(store, *arguments)
    if result is None:
        return []
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _name(kind: wasmtime.ValType) -> str:
    """Return what a type of number is called; another is not told apart.

    Types are compared, because the engine aborts when it is asked what the newer ones are.
    """
    for name in (*_BITS, *_FLOATS):
        number: wasmtime.ValType = getattr(wasmtime.ValType, name)()
        if _ffi.wasmtime_wasm_valtype_equal(kind.ptr(), number.ptr()):
            return name
    return _OTHER


def _argument(where: str, kind: str, text: str) -> int | float:
    """Read one argument, with or without a sign, decimal or hexadecimal, as C writes numbers.

    Raises:
        Rejected: If it is none of its type.
    """
    if kind in _BITS and len(text) <= _MOST_DIGITS and _INTEGER.fullmatch(text):
        value, bits = int(text, 16 if "x" in text.lower() else 10), _BITS[kind]
        if -(1 << bits - 1) <= value < 1 << bits:
            return value - (1 << bits) if value >> bits - 1 > 0 else value
    elif kind in _FLOATS and _FLOAT.fullmatch(text):
        return _float(text)
    elif kind == _OTHER:
        raise Rejected(f"{where} is not a number, and cannot be written")
    raise Rejected(f"{where} is no {kind}: '{text}'")


def _float(text: str) -> float:
    """Return the number that a text is; infinity for one that is too large, as strtod(3) does."""
    if "x" not in text.lower():
        return float(text)
    try:
        return float.fromhex(text)
    except OverflowError:
        return -math.inf if text.startswith("-") else math.inf


def show(results: list[int | float], stdout: File | BaseDirectory | None) -> None:
    """Write results to the cell's standard output, a line for each.

    Raises:
        OSError: As write(2) says; EBADF if it is no file.
        OutputLimit: If that is more than the cell may write.
        WasiError: If it is not for writing, or the cell has given that right up.
    """
    data = memoryview("".join(f"{result}\n" for result in results).encode())
    while data:
        if not isinstance(stdout, File):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        data = data[stdout.write([data]) :]

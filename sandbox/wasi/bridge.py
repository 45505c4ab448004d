"""Host functions in the engine's raw form: one transition from C to Python for a call.

wasmtime-py's own ``define_func`` converts every value to an object and back, at four to twenty
times the price. The raw form of the C API hands over the address of the arguments, 16 bytes
each, where the result goes too (``wasmtime_func_unchecked_callback_t`` in wasmtime/func.h).
"""

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import _ffi

from sandbox.wasi import abi
from sandbox.wasi.calls import CellExit
from sandbox.wasi.files import WasiError

# sizeof(wasmtime_val_raw_t): it has room for a v128.
_VALUE_SIZE = 16
# The callback's C type with plain addresses: ctypes passes those as numbers, which is faster
# than wrapping each in a pointer object.
_RawCallback = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)
_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
_PARAMETERS = {"i": "I12x", "I": "q8x"}


class HostFunctions:
    """Python functions defined in a linker, and what must outlive it.

    Attributes:
        failure: The exception that ended the cell from inside a host function, if one did:
            :class:`CellExit`, or a fault of the host.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._kept: list[Any] = []

    def define(
        self, linker: wasmtime.Linker, name: str, kinds: str, function: Callable[..., None]
    ) -> None:
        """Define one function of the module ``host``.

        Args:
            linker: Where to define it.
            name: The function's name.
            kinds: Its parameters, ``i`` for i32 (passed unsigned) and ``I`` for i64 (signed).
                Its result is an errno, but for proc_exit, which has none.
            function: Called with the parameters. Returning means success; :class:`OSError` and
                :class:`WasiError` become an errno; anything else ends the cell.

        Raises:
            wasmtime.WasmtimeError: If the linker refuses it.
        """
        callback = _RawCallback(self._callback(kinds, function))
        result = [] if name == "proc_exit" else [wasmtime.ValType.i32()]
        types = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}
        signature = wasmtime.FuncType([types[kind]() for kind in kinds], result)
        self._kept.append(callback)
        error = _ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(),
            ctypes.create_string_buffer(b"host"),
            len(b"host"),
            ctypes.create_string_buffer(name.encode()),
            len(name),
            signature.ptr(),
            ctypes.cast(callback, _ffi.wasmtime_func_unchecked_callback_t),
            None,
            _NO_FINALIZER,
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)

    def _callback(
        self, kinds: str, function: Callable[..., None]
    ) -> Callable[[int | None, int, int, int], int]:
        arguments = struct.Struct("<" + "".join(_PARAMETERS[kind] for kind in kinds))
        unpack = arguments.unpack_from
        at = (ctypes.c_char * (_VALUE_SIZE * len(kinds))).from_address
        store = struct.Struct("<I").pack_into
        numbers = abi.ERRNO

        def callback(_env: int | None, _caller: int, address: int, _count: int) -> int:
            values = at(address)
            try:
                function(*unpack(values))
            except OSError as error:
                store(values, 0, numbers.get(error.errno or 0, abi.EIO))
            except WasiError as error:
                store(values, 0, error.errno)
            except BaseException as error:
                # An exception cannot cross C; ctypes would print it and go on. A trap can.
                self.failure = error
                return _new_trap("the cell exited" if isinstance(error, CellExit) else repr(error))
            else:
                store(values, 0, 0)
            return 0

        return callback


def _new_trap(message: str) -> int:
    """Return the address of a new trap, which its receiver owns."""
    data = message.encode(errors="replace")
    trap = _ffi.wasmtime_trap_new(ctypes.create_string_buffer(data), len(data))
    return ctypes.cast(trap, ctypes.c_void_p).value or 0

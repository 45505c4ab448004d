"""Compiled forms of the host's own modules, kept between runs.

Compiling the shim and the switch takes tens of milliseconds, loading them less than one. An
artifact is machine code and is trusted like ww itself, so the cache is used only where nobody
but the caller (and root) can write: anything else is compiled anew. Losing the cache costs
nothing but that time, so what goes wrong with it is no error.
"""

import os
import stat
import struct
import zlib

import wasmtime

# The size is there to notice a cut file, the checksum a damaged one; against forgery only the
# file's owner and mode count.
_HEADER = struct.Struct("<II")


def load(
    engine: wasmtime.Engine, fingerprint: str, name: str, text: str, cache: str | None
) -> wasmtime.Module:
    """Return a module of the host, from the cache if it is there.

    Args:
        engine: The engine it is for.
        fingerprint: Differs between engines that cannot share artifacts.
        name: The module's name.
        text: Its source in the text format.
        cache: The cache's directory, which need not exist; ``None`` for no cache.

    Raises:
        wasmtime.WasmtimeError: If the module does not compile.
    """
    if cache is None:
        return wasmtime.Module(engine, text)
    key = zlib.crc32(f"{fingerprint}\0{text}".encode())
    path = os.path.join(cache, f"{name}-{key:08x}.cwasm")
    module = _read(engine, cache, path)
    if module is None:
        module = wasmtime.Module(engine, text)
        _write(cache, path, bytes(module.serialize()))
    return module


def _private(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(engine: wasmtime.Engine, cache: str, path: str) -> wasmtime.Module | None:
    try:
        if not _private(os.stat(cache)):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not _private(os.fstat(fd)):
            return None
        header, data = file.read(_HEADER.size), file.read()
    if len(header) < _HEADER.size or _HEADER.unpack(header) != (len(data), zlib.crc32(data)):
        return None
    try:
        return wasmtime.Module.deserialize(engine, data)
    except wasmtime.WasmtimeError:
        return None  # of another wasmtime or for another CPU


def _write(cache: str, path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
        if not _private(os.stat(cache)):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(_HEADER.pack(len(data), zlib.crc32(data)) + data)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            return

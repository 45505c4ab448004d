"""The cells that are run: built from C, made here, or of another project."""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from scripts.benchmarks.contest import Missing

_SOURCES = Path(__file__).resolve().parent / "cells"
_FLAGS = ("-target", "wasm32-wasi", "-std=gnu17", "-O2", "-s", "-Wall", "-Wextra", "-Werror")
_PAGE = 1 << 16  # bytes, of WebAssembly


class Cells:
    """Where the cells are."""

    def __init__(self, repo: Path, work: Path) -> None:
        """Look for cells in a tree, and build others.

        Args:
            repo: The tree.
            work: A folder for those that are made anew each time.
        """
        self._build = Path(os.environ.get("WW_TEST_BUILD", repo / "build"))
        self._packages = Path(os.environ.get("WW_TEST_PACKAGES", repo / "build/test-packages"))
        self._work = work
        self.hello = repo / "examples/hello/hello.wasm"

    def built(self, name: str) -> Path:
        """Return a cell from its source in ``cells/``, built now or before.

        Raises:
            Missing: If there is no compiler, or it fails.
        """
        source = _SOURCES / f"{name}.c"
        try:
            key = hashlib.sha256(f"{version('ziglang')} {_FLAGS}".encode())
        except ModuleNotFoundError:
            raise Missing("ziglang is not installed") from None
        for part in (source, *sorted(_SOURCES.glob("*.h"))):
            key.update(part.read_bytes())
        folder = self._build / "bench" / "cells"
        product = folder / f"{name}-{key.hexdigest()[:16]}.wasm"
        if not product.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(source, product, self._build / "zig")
        return product

    def python(self) -> Path:
        """Return CPython built for WASI.

        Raises:
            Missing: If it is not there.
        """
        path = self._packages / "bin" / "python.wasm"
        if not path.is_file():
            raise Missing(f"{path} is missing (scripts/test unpacks tests/packages.txt)")
        return path

    def large(self, mib: int) -> Path:
        """Return a cell that says hello, and has so many MiB of data in its memory."""
        path = self._work / f"large-{mib}.wasm"
        if not path.exists():
            path.write_bytes(_large(mib << 20))
        return path


def _compile(source: Path, product: Path, cache: Path) -> None:
    """Build a C file with Zig's compiler.

    Raises:
        Missing: If that fails.
    """
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "local"),
    }
    # Made beside its place and renamed into it: several may build the same one at once.
    with tempfile.TemporaryDirectory(dir=product.parent) as scratch:
        made = Path(scratch) / product.name
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *_FLAGS, "-o", str(made), source.name],
            cwd=source.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Missing(f"could not build {source}: {done.stderr.strip()}")
        made.chmod(0o644)
        made.rename(product)


def _number(value: int) -> bytes:
    """Return a number as the format has it: LEB128, unsigned."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _signed(value: int) -> bytes:
    """Return a number that is not negative as the format has signed ones."""
    digits = _number(value)
    return digits if digits[-1] < 0x40 else digits[:-1] + bytes((digits[-1] | 0x80, 0))


def _section(number: int, content: bytes) -> bytes:
    return bytes((number,)) + _number(len(content)) + content


def _text(text: str) -> bytes:
    return _number(len(text)) + text.encode()


def _large(size: int) -> bytes:
    """Return a module that writes the end of its data, "hello" and a line break, to stdout.

    Its data has so many bytes, which nothing can compress.
    """
    line = b"hello\n"
    data = random.Random(size).randbytes(size - len(line)) + line  # noqa: S311
    begin = 32  # what is below holds the vector of the call
    i32 = 0x7F
    types = (
        _number(2)
        + bytes((0x60, 4, i32, i32, i32, i32, 1, i32))  # fd_write
        + bytes((0x60, 0, 0))  # _start
    )
    imports = (
        _number(1) + _text("wasi_snapshot_preview1") + _text("fd_write") + b"\x00" + _number(0)
    )
    pages = (begin + size) // _PAGE + 1
    exports = _number(2) + _text("memory") + b"\x02\x00" + _text("_start") + b"\x00\x01"
    const, store, call, drop, end = b"\x41", b"\x36\x02\x00", b"\x10\x00", b"\x1a", b"\x0b"
    body = (
        _number(0)
        + const + _signed(0) + const + _signed(begin + size - len(line)) + store
        + const + _signed(4) + const + _signed(len(line)) + store
        + const + _signed(1) + const + _signed(0) + const + _signed(1) + const + _signed(8)
        + call + drop + end
    )  # fmt: skip
    segment = _number(1) + b"\x00" + const + _signed(begin) + end + _number(size) + data
    return b"".join(
        (
            b"\0asm\x01\0\0\0",
            _section(1, types),
            _section(2, imports),
            _section(3, _number(1) + _number(1)),
            _section(5, _number(1) + b"\x00" + _number(pages)),
            _section(7, exports),
            _section(10, _number(1) + _number(len(body)) + body),
            _section(11, segment),
        )
    )

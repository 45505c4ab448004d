"""Modules that cost a compiler far more than they cost their maker, byte by byte.

Binary format of the WebAssembly core specification, section 5. An assembler would take longer than
the compiler.
"""

from __future__ import annotations

from collections.abc import Callable

HEADER = b"\0asm\1\0\0\0"
NOTHING = b"\x60\0\0"  # the type of a function that takes and returns nothing
END = b"\x0b"


def leb(number: int) -> bytes:
    out = b""
    while True:
        low, number = number & 0x7F, number >> 7
        out += bytes([low | (0x80 if number else 0)])
        if not number:
            return out


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + leb(len(body)) + body


def repeated(count: int, item: bytes) -> bytes:
    """A vector of the same."""
    return leb(count) + item * count


def module(
    *bodies: bytes,
    types: bytes = b"\1" + NOTHING,
    tables: bytes = b"",
    globals_: bytes = b"",
    elements: bytes = b"",
    data: bytes = b"",
    exports: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A program of these functions, the first of which it begins with, and a page of memory."""
    bodies = bodies or (b"\0" + END,)
    count = leb(len(bodies))
    exports = exports or b"\2\6_start\0\0\6memory\2\0"
    return b"".join(
        (
            HEADER,
            section(1, types),
            section(3, count + b"\0" * len(bodies)),
            section(4, tables) if tables else b"",
            section(5, b"\1\0\1"),
            section(6, globals_) if globals_ else b"",
            section(7, exports),
            section(9, elements) if elements else b"",
            section(10, count + b"".join(leb(len(body)) + body for body in bodies)),
            section(11, data) if data else b"",
            after,
        )
    )


def _code(text: bytes, locals_: int = 0) -> bytes:
    declared = b"\1" + leb(locals_) + b"\x7f" if locals_ else b"\0"
    return declared + text + END


def _nested(opening: bytes, depth: int) -> bytes:
    return module(_code(opening * depth + END * depth))


def _branches() -> bytes:
    # (if (local 0) (local 0 += 1)), one after the other
    step = b"\x20\0\x04\x40\x20\0\x41\1\x6a\x21\0\x0b"
    return module(_code(step * 300_000, 1))


def _merges() -> bytes:
    """Loops in loops that each change a variable, which all the others have to look at."""
    count = 2000
    body = b"\x03\x40" * count
    for index in range(count):
        body += b"\x20" + leb(index) + b"\x41\1\x6a\x21" + leb((index * 31 + 1) % count)
    return module(_code(body + b"\x20\0\x0d\0\x0b" * count, count))


def _chain() -> bytes:
    return module(_code(b"\x20\0\x41\1\x6a\x21\0" * 300_000, 1))


def _table_of_branches(count: int) -> bytes:
    return module(_code(b"\x02\x40\x41\1\x0e" + leb(count) + b"\0" * (count + 1) + END))


def _types() -> bytes:
    """A hundred thousand types, no two of which are the same."""
    kinds = (0x7F, 0x7E, 0x7D, 0x7C)
    made = b"".join(
        b"\x60\x0a" + bytes(kinds[number >> 2 * place & 3] for place in range(10)) + b"\0"
        for number in range(100_000)
    )
    return module(types=leb(100_001) + NOTHING + made)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a function of a million instructions": _chain,
    "a function of a million calls": lambda: module(_code(b"\x10\0" * 1_000_000)),
    "300,000 blocks": lambda: module(_code(b"\x02\x40\x41\1\x0d\0\x0b" * 300_000)),
    "300,000 branches": _branches,
    "blocks a million deep": lambda: _nested(b"\x02\x40", 1_000_000),
    "branches 300,000 deep": lambda: _nested(b"\x41\1\x04\x40", 300_000),
    "loops 100,000 deep": lambda: _nested(b"\x03\x40", 100_000),
    "loops that depend on each other": _merges,
    "100,000 functions": lambda: module(*(_code(b"") for _ in range(100_000))),
    "a million functions": lambda: module(*(_code(b"") for _ in range(1_000_000))),
    "50,000 variables": lambda: module(_code(b"\x20\0\x21\1" * 100_000, 50_000)),
    "a table of 100,000 branches": lambda: _table_of_branches(100_000),
    "a table of a million branches": lambda: _table_of_branches(1_000_000),
    "100,000 different types": _types,
    "a million types": lambda: module(types=repeated(1_000_000, NOTHING)),
    "100,000 pieces of data": lambda: module(data=repeated(100_000, b"\0\x41\0\x0b\1x")),
    "100 MB of data": lambda: module(data=b"\1\1" + leb(100 << 20) + bytes(100 << 20)),
    "a table with nine million entries": lambda: module(
        tables=b"\1\x70\0" + leb(9_000_000),
        elements=b"\1\0\x41\0\x0b" + repeated(9_000_000, b"\0"),
    ),
    "a hundred tables": lambda: module(tables=repeated(100, b"\x70\0" + leb(10_000_000))),
    "900,000 variables of the module": lambda: module(
        globals_=repeated(900_000, b"\x7f\0\x41\0\x0b")
    ),
    "a million sections of nothing": lambda: module(after=section(0, b"\1a") * 1_000_000),
    "a name of 100 MB": lambda: module(
        after=section(0, b"\4name\0" + leb((100 << 20) + 4) + leb(100 << 20) + bytes(100 << 20))
    ),
}

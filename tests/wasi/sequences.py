"""Calls to draw at random, as commands for the remote cell, and what was answered to them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    EV_READ,
    EV_WRITE,
    MONOTONIC,
    REALTIME,
    Clock,
    R,
    Ready,
    Right,
    W,
)

# Places in the cell's scratch.
VECTORS, RESULT, TEXT, OTHER_TEXT, BUFFER = 0x0000, 0x8000, 0x8200, 0x9200, 0xA000
IOV_MAX = 1024


class At(int):
    """An address: so many bytes behind the start of the scratch."""

    def __repr__(self) -> str:
        return f"At({int(self)})"


class Beyond(int):
    """An address: so many bytes before the end of the memory, or behind it."""

    def __repr__(self) -> str:
        return f"Beyond({int(self)})"


Number = int  # or one of the two above
# The errno, or that the cell has died of it, and more if all is well.
Outcome = tuple[object, ...]


class Step(NamedTuple):
    """One call.

    `pokes` are made before it, `peeks` after it; `layout` is that of the result. `see` makes of
    the result what two hosts must agree on.
    """

    name: str
    parameters: tuple[Number, ...]
    vectors: tuple[tuple[Number, int], ...] = ()
    pokes: tuple[tuple[int, bytes], ...] = ()
    layout: str = ""
    peek: int = 0
    see: Callable[[tuple[int, ...]], object] = tuple

    def __repr__(self) -> str:
        return f"{self.name}{self.parameters} {list(self.vectors[:8])}"

    def commands(self, scratch: int, end: int) -> list[str]:
        """What the remote cell is told: pokes, the call, peeks."""

        def real(number: Number) -> int:
            if isinstance(number, At):
                return scratch + number
            return end - number if isinstance(number, Beyond) else number

        table = b"".join(struct.pack("<II", real(a) & 0xFFFFFFFF, s) for a, s in self.vectors)
        pokes = [*self.pokes, *([(VECTORS, table)] if table else [])]
        size = struct.calcsize(self.layout) if self.layout else 0
        return [
            *(f"poke {scratch + at} {data.hex()}" for at, data in pokes if data),
            f"call {self.name} {' '.join(str(real(number)) for number in self.parameters)}",
            *([f"peek {scratch + RESULT} {size}"] if size else []),
            *([f"peek {scratch + BUFFER} {self.peek}"] if self.peek else []),
        ]

    def outcome(self, lines: list[str]) -> Outcome:
        """What was answered: the errno, and what else it is about if that is 0."""
        lines = [line for line in lines if line != "poke"]
        if not lines or lines[-1].startswith("died "):
            return ("died",)
        errno = int(lines[0].split()[1])
        if errno:
            return (errno,)
        data = [bytes.fromhex(line.removeprefix("peek ")) for line in lines[1:]]
        seen: list[object] = [0]
        if self.layout:
            seen.append(self.see(struct.unpack(self.layout, data.pop(0))))
        if self.peek:
            seen.append(data.pop(0))
        return tuple(seen)


# --- numbers that matter --------------------------------------------------------------------------

OFFSETS = st.one_of(
    st.integers(0, 80),
    st.sampled_from([1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1]),
    st.sampled_from([1 << 63, (1 << 63) + 1, (1 << 64) - 1]),
)
SIGNED = st.one_of(
    st.integers(-80, 80),
    # Not so far that some file system has no such position.
    st.sampled_from([1 << 31, 1 << 40, -(1 << 31), -(1 << 62), -(1 << 63)]),
)
SIZES = st.one_of(st.integers(0, 90), st.sampled_from([1 << 63, (1 << 64) - 1]))
TIMES = st.sampled_from([0, 1, 999_999_999, 10**18 + 7, (1 << 63) - 1])
# One buffer with something in it, among empty ones; and now and then several, or an empty list.
ONE_SIZE = st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 3)).map(
    lambda parts: [0] * parts[0] + [parts[1]] + [0] * parts[2]
)
MANY_SIZES = st.lists(st.integers(0, 12), max_size=5)
COUNTS = st.sampled_from([IOV_MAX - 1, IOV_MAX, IOV_MAX + 1])


Laid = tuple[tuple[Number, int], ...]


def crowd(count: int) -> Laid:
    """Very many buffers, of which only the first has any room."""
    return ((At(BUFFER), 2), *[(At(BUFFER), 0)] * (count - 1))


@st.composite
def vectors(draw: st.DrawFn) -> Laid:
    """Buffers: one behind the other, overlapping, very many, or leading out of the memory."""
    shape = draw(st.sampled_from(["one", "one", "one", "one", "many", "over", "crowd", "out"]))
    if shape == "crowd":
        return crowd(draw(COUNTS))
    if shape == "out":
        size = draw(st.integers(0, 9))
        back = draw(st.sampled_from([0, 1, 4, 8, size, -1]))
        return ((Beyond(back), size),)
    if shape == "over":
        sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))
        return tuple((At(BUFFER + draw(st.integers(0, 6))), size) for size in sizes)
    at = BUFFER
    laid = []
    for size in draw(ONE_SIZE if shape == "one" else MANY_SIZES):
        laid.append((At(at), size))
        at += size
    return tuple(laid)


# Where the vectors and results may be: mostly where they should.
TABLES = st.sampled_from([At(VECTORS)] * 12 + [Beyond(0), Beyond(4), Beyond(-100)])
RESULTS = st.sampled_from([At(RESULT)] * 12 + [Beyond(0), Beyond(1), Beyond(-1000)])
LETTERS = bytes(range(65, 91)) * 3
ROOM = 64


@st.composite
def reading(
    draw: st.DrawFn, name: str, fd: st.SearchStrategy[int], *more: st.SearchStrategy[int]
) -> Step:
    laid = draw(vectors())
    parameters = (draw(fd), draw(TABLES), len(laid), *map(draw, more), draw(RESULTS))
    return read_step(name, parameters, laid)


def read_step(name: str, parameters: tuple[Number, ...], laid: Laid) -> Step:
    return Step(name, parameters, laid, ((BUFFER, bytes(ROOM)),), layout="<I", peek=ROOM)


@st.composite
def writing(
    draw: st.DrawFn, name: str, fd: st.SearchStrategy[int], *more: st.SearchStrategy[int]
) -> Step:
    laid = draw(vectors())
    parameters = (draw(fd), draw(TABLES), len(laid), *map(draw, more), draw(RESULTS))
    return write_step(name, parameters, laid, draw(st.integers(0, 26)))


def write_step(name: str, parameters: tuple[Number, ...], laid: Laid, first: int = 0) -> Step:
    data = LETTERS[first : first + ROOM // 2]
    return Step(name, parameters, laid, ((BUFFER, data),), layout="<I")


@st.composite
def plain(
    draw: st.DrawFn,
    name: str,
    *parameters: st.SearchStrategy[Any],
    layout: str = "",
    see: Callable[[tuple[int, ...]], object] = tuple,
) -> Step:
    """A call with these parameters, and the address of a result if it has one."""
    results = (RESULTS,) if layout else ()
    return Step(name, tuple(map(draw, (*parameters, *results))), layout=layout, see=see)


def filestat(values: tuple[int, ...]) -> object:
    """Type, links, size, and the time of modification if a call has set it."""
    _, _, filetype, links, size, _, modified, _ = values
    return filetype, links, size, modified if modified in (0, 1, 999_999_999) else None


FILESTAT = "<QQB7xQQQQQ"


@st.composite
def polling(draw: st.DrawFn, fds: st.SearchStrategy[int]) -> Step:
    """Descriptors and clocks, of which at least one is due at once."""
    wanted: list[Clock | Ready] = []
    for userdata in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from([EV_READ, EV_WRITE]))
        wanted.append(Ready(userdata, kind, draw(fds)))
    for userdata in range(10, 10 + draw(st.integers(1, 2))):
        clock = draw(st.sampled_from([REALTIME, MONOTONIC]))
        far = userdata > 10 and draw(st.booleans())
        absolute = draw(st.booleans())
        wanted.append(Clock(userdata, (1 << 62) if far else 0, clock, absolute))
    return poll_step(*draw(st.permutations(wanted)))


def poll_step(*wanted: Clock | Ready) -> Step:
    raw = b"".join(item.pack() for item in wanted)
    room = 32 * len(wanted)
    return Step(
        "poll_oneoff",
        (At(TEXT), At(BUFFER), len(wanted), At(RESULT)),
        pokes=((TEXT, raw), (BUFFER, bytes(room))),
        layout="<I",
        peek=room,
    )


@st.composite
def opening(draw: st.DrawFn, folder: int) -> Step:
    name = draw(st.sampled_from([b"f", b"g", b"new", b"nothing/f", b"f/x", b"f/", b".", b""]))
    rights = draw(st.sampled_from([R, W, R | W, ALL_RIGHTS, R | Right.FD_SEEK]))
    oflags = draw(st.sampled_from([0, 0, 0, 1, 2, 5, 8, 9, 13]))
    fdflags = draw(st.sampled_from([0, 0, 0, 1, 4, 5]))
    return open_step(folder, name, int(rights), oflags, fdflags)


def open_step(folder: int, name: bytes, rights: int, oflags: int = 0, fdflags: int = 0) -> Step:
    parameters = (folder, 1, At(TEXT), len(name), oflags, rights, 0, fdflags, At(RESULT))
    return Step("path_open", parameters, pokes=((TEXT, name),), layout="<I")


@st.composite
def named(draw: st.DrawFn, call: str, folder: int) -> Step:
    """A call with one or two names in a directory."""
    one = draw(st.sampled_from([b"f", b"g", b"new", b"d", b"l", b"nothing/f", b"f/x", b""]))
    two = draw(st.sampled_from([b"new", b"d", b"l", b"f", b"d/f", b"nothing/f"]))
    pokes: tuple[tuple[int, bytes], ...] = ((TEXT, one), (OTHER_TEXT, two))
    first, second = (At(TEXT), len(one)), (At(OTHER_TEXT), len(two))
    if call == "path_link":
        return Step(call, (folder, 0, *first, folder, *second), pokes=pokes)
    if call == "path_rename":
        return Step(call, (folder, *first, folder, *second), pokes=pokes)
    if call == "path_symlink":
        return Step(call, (*first, folder, *second), pokes=pokes)
    if call == "path_filestat_get":
        lookup = draw(st.integers(0, 1))
        numbers = (folder, lookup, *first, At(RESULT))
        return Step(call, numbers, pokes=pokes, layout=FILESTAT, see=filestat)
    if call == "path_filestat_set_times":
        flags = draw(st.integers(0, 15))
        return Step(call, (folder, 1, *first, 1, 1, flags), pokes=pokes)
    if call == "path_readlink":
        room = draw(st.integers(0, 9))
        pokes = (*pokes, (BUFFER, bytes(16)))
        into = (folder, *first, At(BUFFER), room, At(RESULT))
        return Step(call, into, pokes=pokes, layout="<I", peek=16)
    return Step(call, (folder, *first), pokes=pokes)


NAMED = (
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
)


def steps(fds: Sequence[int], folder: int | None) -> st.SearchStrategy[list[Step]]:
    """Sequences of calls on some numbers, and on names in a directory if there is one."""
    fd = st.sampled_from(fds)
    # Flags that there are not end the cell in the engine.
    flags = st.sampled_from([0, 0, 1, 4, 5, 2, 8, 16])
    none = (st.just(At(VECTORS)), st.just(0))
    choices = [
        reading("fd_read", fd),
        reading("fd_read", fd),
        reading("fd_pread", fd, OFFSETS),
        writing("fd_write", fd),
        writing("fd_write", fd),
        writing("fd_pwrite", fd, OFFSETS),
        plain("fd_seek", fd, SIGNED, st.integers(0, 2), layout="<Q"),
        plain("fd_tell", fd, layout="<Q"),
        plain("fd_advise", fd, OFFSETS, SIZES, st.integers(0, 5)),
        plain("fd_allocate", fd, OFFSETS, SIZES),
        plain("fd_datasync", fd),
        plain("fd_sync", fd),
        # Rights are compared by a test of its own: the engine has none to speak of.
        plain("fd_fdstat_get", fd, layout="<BxH4xQQ", see=lambda values: values[:2]),
        plain("fd_fdstat_set_flags", fd, flags),
        plain("fd_fdstat_set_rights", fd, st.just(ALL_RIGHTS), st.just(ALL_RIGHTS)),
        plain("fd_filestat_get", fd, layout=FILESTAT, see=filestat),
        plain("fd_filestat_set_size", fd, SIZES),
        plain("fd_filestat_set_times", fd, TIMES, TIMES, st.integers(0, 15)),
        plain("fd_prestat_get", fd, layout="<II"),
        plain("fd_prestat_dir_name", fd, st.just(At(BUFFER)), st.integers(0, 3)),
        plain("fd_readdir", fd, st.just(At(BUFFER)), st.just(64), st.just(0), layout="<I"),
        plain("fd_close", fd),
        plain("fd_renumber", fd, fd),
        plain("sock_accept", fd, st.just(0), layout="<I"),
        plain("sock_recv", fd, *none, st.integers(0, 3), st.just(At(RESULT)), layout="<I"),
        plain("sock_send", fd, *none, st.integers(0, 1), layout="<I"),
        plain("sock_shutdown", fd, st.integers(0, 3)),
        polling(fd),
    ]
    if folder is not None:
        choices += [opening(folder), opening(folder)]
        choices += [named(call, folder) for call in NAMED]
    return st.lists(st.one_of(choices), min_size=1, max_size=8)

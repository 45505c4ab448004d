"""Numbers that are handed out, given up and moved in any order: as in POSIX, and never mixed up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import wasmtime
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.wasi.directory import BaseDirectory, RootDirectory
from sandbox.wasi.files import File, open_grant
from sandbox.wasi.tree import Directory
from tests.wasi.host_here import Host
from tests.wasi.remote_cell import EBADF, ENOTCAPABLE, ENOTDIR, ENOTSOCK, OK, Right
from tests.wasi.test_transitions import AT, NAME, every_function, linked

# The last number that there can be: see sandbox.wasi.switch.
LAST = 65535
# Numbers that calls are tried on, of which 2, 4, 5, 9 and the last are granted.
NUMBERS = st.sampled_from([*range(12), LAST, LAST + 1, 0xFFFFFFFF])
MADE = {"path_open": "File", "sock_accept": "Socket"}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("path_open"), NUMBERS),
        st.tuples(st.just("path_open"), st.sampled_from([4, 5])),
        st.tuples(st.just("sock_accept"), st.sampled_from([9, 9, 9, 2, 4, 7])),
        st.tuples(st.just("fd_close"), NUMBERS),
        st.tuples(st.just("fd_renumber"), NUMBERS, NUMBERS),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


@pytest.fixture(scope="module")
def module(host: Host) -> wasmtime.Module:
    return wasmtime.Module(host.engine, every_function())


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(b"")  # Linux chooses a name of no path: unix(7)
        made.listen()
        made.setblocking(False)
        yield made


class Open(NamedTuple):
    """What a number leads to: of what kind, and which one as the kernel knows it."""

    kind: str
    identity: str


def look_at(item: File | BaseDirectory) -> Open:
    if isinstance(item, RootDirectory):
        return Open("root", "")
    assert isinstance(item, File | Directory)
    state = os.fstat(item.fd)
    kind = "listening" if item.rights & Right.SOCK_ACCEPT else type(item).__name__
    return Open(kind, f"{state.st_dev} {state.st_ino}")


def expected(call: str, number: int, model: dict[int, Open]) -> int:
    """The errno of a call that makes a number."""
    kind = model[number].kind if number in model else None
    if kind is None:
        return EBADF
    if call == "path_open":
        return OK if kind in ("Directory", "root") else ENOTDIR
    return {"listening": OK, "Socket": ENOTCAPABLE}.get(kind, ENOTSOCK)


def drain(listener: socket.socket) -> None:
    """Take the connections that nobody took."""
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.close()


def test_numbers_are_the_lowest_free_ones_and_lead_where_they_did(
    host: Host, module: wasmtime.Module, listener: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"in the directory")
    (tmp_path / "granted").write_bytes(b"granted")
    # The pathlink's own grant has no number, so that the cell cannot close it.
    link = open_grant(os.open(tmp_path / "granted", os.O_RDONLY | os.O_CLOEXEC), "r")

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    @example([("fd_renumber", 65535, 2), ("path_open", 4), ("fd_renumber", 0, 65535)])
    @example([("fd_close", 2), ("path_open", 5), ("fd_renumber", 5, 4), ("path_open", 4)])
    @example([("fd_renumber", 9, 9), ("sock_accept", 9), ("fd_renumber", 0, 9), ("sock_accept", 9)])
    def same(steps: list[tuple[str, int] | tuple[str, int, int]]) -> None:
        with ExitStack() as stack:
            stack.callback(drain, listener)
            for _ in range(sum(step[0] == "sock_accept" for step in steps)):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(listener.getsockname())
            granted: dict[int, File | BaseDirectory] = {
                2: open_grant(os.open(tmp_path / "granted", os.O_RDWR | os.O_CLOEXEC), "rw"),
                4: Directory(os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC), "rw", b"/d"),
                5: RootDirectory({b"f": (2, link)}),
                9: open_grant(os.dup(listener.fileno()), "rw"),
                LAST: open_grant(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), "rw"),
            }
            cell = stack.enter_context(linked(host, module, granted))
            model = {number: look_at(item) for number, item in granted.items()}
            for name, first, *rest in steps:
                if name == "fd_close":
                    assert cell.call(name, first) == (OK if first in model else EBADF)
                    model.pop(first, None)
                elif name == "fd_renumber":
                    (new,) = rest
                    good = first in model and new in model
                    assert cell.call(name, first, new) == (OK if good else EBADF)
                    if good:
                        model[new] = model.pop(first)
                else:
                    more = (0, AT) if name == "sock_accept" else (0, NAME, 1, 0, 2, 0, 0, AT)
                    errno = cell.call(name, first, *more)
                    assert errno == expected(name, first, model)
                    if errno == OK:
                        number = cell.call("peek", AT)
                        assert number == next(n for n in range(LAST + 1) if n not in model)
                        item = cell.calls.served(number)
                        assert item is not None
                        model[number] = look_at(item)
                        assert model[number].kind == MADE[name]
                # Every other number leads where it did, and no more are open.
                for number in (*range(40), LAST):
                    item = cell.calls.served(number)
                    assert (None if item is None else look_at(item)) == model.get(number)
                    assert (cell.call("fd_tell", number, AT) == EBADF) == (number not in model)

    try:
        same()
    finally:
        link.close()

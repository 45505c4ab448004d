"""A sandbox for the tests of the library, and a cell that does what its arguments say."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Cell, CellExecutor, Sandbox
from tests.conftest import CELL_FLAGS, compile_c

CELLS = Path(__file__).resolve().parent / "cells"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, so that each cell is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tool_path() -> Path:
    """tests/library/cells/tool.c, built."""
    return compile_c(CELLS / "tool.c", CELL_FLAGS, ".wasm")


@pytest.fixture(scope="session")
def tool(tool_path: Path) -> Iterator[Cell]:
    """The same, prepared."""
    with Cell.load(tool_path, "tool") as cell:
        yield cell


@pytest.fixture(scope="session")
def sandbox(cache: Path) -> Iterator[Sandbox]:
    """A sandbox that nobody breaks. It keeps no jails: they would come and go in between."""
    with Sandbox(cache=cache, jails=0) as made:
        yield made


@pytest.fixture
def executor(cache: Path) -> Iterator[CellExecutor]:
    """An executor of one's own, with two workers."""
    made = CellExecutor(2, cache=cache)
    yield made
    made.shutdown(kill=True)


class Pipe:
    """A pipe whose writing end is given to a cell alone: its end tells that the cell is gone."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def wait_for_word(self) -> None:
        """Wait until the cell runs and has said so (``tell=...``)."""
        assert os.read(self.reader, 4) == b"told"

    def has_ended(self) -> bool:
        """Whether no process has the writing end any more."""
        return self.ends(0)

    def ends(self, patience: float = 10) -> bool:
        """Wait until no process has the writing end any more; whether that comes."""
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        return poll.poll(patience * 1000) == [(self.reader, select.POLLHUP)]

    def holders(self) -> set[int]:
        """The cells that have it, as far as this account may know."""
        name = os.readlink(f"/proc/self/fd/{self.reader}")
        found = set()
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                # The spawner may not have closed its own yet.
                is_cell = Path(f"/proc/{entry}/comm").read_text() == "cell\n"
                fds = os.listdir(f"/proc/{entry}/fd") if is_cell else ()
                links = {os.readlink(f"/proc/{entry}/fd/{fd}") for fd in fds}
            except OSError:
                continue
            if name in links:
                found.add(int(entry))
        return found

    def close(self) -> None:
        """Close the reading end; the other one was given away."""
        os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """One :class:`Pipe`."""
    made = Pipe()
    yield made
    made.close()

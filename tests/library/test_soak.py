"""Thousands of cells from one spawner: it must be afterwards as it was before.

WW_TEST_SOAK=1 scripts/test tests/library/test_soak.py runs ten times as many.
"""

import os
import resource
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from sandbox import Cell, CellExecutor, CellFuture
from tests.conftest import EXAMPLES

COUNT = 10_000 if os.environ.get("WW_TEST_SOAK") else 1_000
# Enough for every pool, cache and arena to be as large as it gets.
WARM_UP = 200
WAITING = 32
_MOST_GROWTH = 4 << 20  # bytes; a leak of half a KiB for each of 10,000 cells is more

_CGROUPS = Path("/sys/fs/cgroup")


class State(NamedTuple):
    """What a process holds, with all that it has started."""

    processes: int
    threads: int
    descriptors: int
    cgroups: int
    memory: int


def _children(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(child) for child in file.read().split()]
    return found


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _is_jail(pid: int) -> bool:
    """Whether it is a process that waits for a cell, or is one: the first of its pid namespace."""
    with open(f"/proc/{pid}/status") as file:
        return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in file)


def _cgroups(pid: int) -> int:
    """The control groups that a spawner has made: its number is in their names."""
    return sum(f"-{pid}-" in f"{name}-" for _, folders, _ in os.walk(_CGROUPS) for name in folders)


def state(spawner: int) -> State:
    """Count what a spawner holds. What only waits for a cell has a memory of its own."""
    family = [spawner]
    for pid in family:
        family += _children(pid)
    lasting = [pid for pid in family if not _is_jail(pid)]
    return State(
        processes=len(family),
        threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in lasting),
        descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in lasting),
        cgroups=_cgroups(spawner),
        memory=sum(_memory(pid) for pid in lasting),
    )


def settled(spawner: int) -> State:
    """The state when nothing changes any more: jails for cells to come are made in advance."""
    before = state(spawner)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = state(spawner)
        if now[:4] == before[:4]:
            return now
        before = now
    return before


def run(executor: CellExecutor, cell: Cell, count: int) -> None:
    """Run so many, with a few that wait at any time."""
    waiting: deque[CellFuture] = deque()
    for number in range(count):
        waiting.append(executor.submit(cell, [str(number)]))
        if len(waiting) >= WAITING:
            waiting.popleft().result().check()
    for future in waiting:
        future.result().check()


def test_thousands_of_cells_leave_a_spawner_as_it_was(cache: Path) -> None:
    others = set(_children(os.getpid()))
    with (
        Cell.load(EXAMPLES / "hello" / "hello.wasm") as cell,
        CellExecutor(2, cache=cache) as executor,
    ):
        run(executor, cell, WARM_UP)
        (spawner,) = set(_children(os.getpid())) - others
        before, own = settled(spawner), set(os.listdir("/proc/self/fd"))
        own_memory = _memory(os.getpid())
        begun = time.monotonic()
        run(executor, cell, COUNT)
        seconds = time.monotonic() - begun
        after, own_after = settled(spawner), set(os.listdir("/proc/self/fd"))
        own_growth = _memory(os.getpid()) - own_memory
    print(
        f"{COUNT} cells in {seconds:.1f} s; before: {before}; after: {after}; "
        f"own growth: {own_growth}",
        file=sys.stderr,
    )
    assert after[:4] == before[:4]
    assert after.memory - before.memory < _MOST_GROWTH
    assert own_growth < _MOST_GROWTH
    assert own_after == own

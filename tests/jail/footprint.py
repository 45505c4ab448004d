"""How much memory ww and its spawner take while a cell runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.jail.inside import below

MIB = 1 << 20
# More than the noise of an interpreter, and far less than what a cell moves, takes or compiles.
FLAT = 16 * MIB
_PAUSE = 0.02


def resident(pid: int) -> int:
    """The bytes of a process that are in memory; VmRSS of proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Footprint:
    """What was seen: for ww and for its spawner, from when the cell's process was there."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {"ww": [], "spawner": []}

    def growth(self) -> dict[str, int]:
        """How much each had more than at first."""
        return {name: max(sizes) - sizes[0] for name, sizes in self.seen.items() if sizes}

    def take(self, ww: int, spawner: int) -> None:
        for name, pid in (("ww", ww), ("spawner", spawner)):
            if size := resident(pid):  # an ended one has none
                self.seen[name].append(size)


@contextmanager
def footprint(ww_pid: int) -> Iterator[Footprint]:
    """Look at a running ww and its spawner again and again, as long as they and the block last."""
    seen = Footprint()
    over = threading.Event()

    def look() -> None:
        spawner = 0
        while not over.wait(_PAUSE):
            with suppress(AssertionError, OSError):
                if not spawner:
                    spawner, _ = below(ww_pid, timeout=_PAUSE)
                seen.take(ww_pid, spawner)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()

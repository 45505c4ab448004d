"""What every row is made from."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from scripts.benchmarks.cells import Cells
from scripts.benchmarks.contest import Measure, Missing, Row
from scripts.benchmarks.ours import Ours
from scripts.benchmarks.peers import Peers

Mode = Literal["short", "usual", "full"]

T = TypeVar("T")


class Setting(NamedTuple):
    """Where and how rows are measured.

    Attributes:
        mode: How much work there is, and how often it is done.
        ours: Our side.
        peers: The other side.
        cells: What both run.
        work: A folder on disk.
        memory: A folder in memory, if there is one.
    """

    mode: Mode
    ours: Ours
    peers: Peers
    cells: Cells
    work: Path
    memory: Path

    def choose(self, short: T, usual: T, full: T) -> T:
        """Return what goes with the mode."""
        return {"short": short, "usual": usual, "full": full}[self.mode]


Make = Callable[[Setting], AbstractContextManager[Row]]
"""Makes a row ready, and clears up after it."""


def contestant(make: Callable[[], Measure]) -> Measure | Missing:
    """Return what a function makes, or why it cannot."""
    try:
        return make()
    except Missing as reason:
        return reason

"""The row of verifying content."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runner.cells import open_cell
from scripts.benchmarks.contest import Comparison, Row, Target
from scripts.benchmarks.setting import Setting

_OURS = "blockstore to sealed memory"
_BYTES = "hashlib, bytes in memory"
_FILE = "hashlib, from the file"


@contextmanager
def verify(setting: Setting) -> Iterator[Row]:
    """Verify and assemble a large cell from the blockstore."""
    mib = setting.choose(4, 100, 100)
    data = os.urandom(mib << 20)
    path = setting.work / "content"
    path.write_bytes(data)
    address = setting.ours.export(path)
    expected = hashlib.sha256(data).digest()

    def ours() -> None:
        cell = open_cell(address, setting.ours.environment)
        try:
            if os.fstat(cell).st_size != len(data):
                raise RuntimeError("the cell has another size")
        finally:
            os.close(cell)

    def in_memory() -> None:
        if hashlib.sha256(data).digest() != expected:
            raise RuntimeError("the hash is another one")

    def from_file() -> None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != expected:
                raise RuntimeError("the hash is another one")

    def timed(work: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun

        return measure

    yield Row(
        "verify",
        f"a cell of {mib} MiB, verified and put together from its blocks",
        "s",
        {_OURS: timed(ours), _BYTES: timed(in_memory), _FILE: timed(from_file)},
        [Comparison(_OURS, _BYTES, Target(1.5)), Comparison(_OURS, _FILE)],
        setting.choose(1, 9, 25),
    )
    path.unlink()

"""What runs the cells of one worker, by itself: no scheduler, no Dask worker, only its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runner.cluster.job import ClusterError, ClusterResult, Job
from runner.cluster.worker import Cells
from sandbox import grant
from tests.cluster.machines import Shelf

THREADS = 4
RUNS = 40


@pytest.fixture
def cells(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cells]:
    """As a worker with four threads has it."""
    for name in ("WW_FETCH_TIMEOUT", "WW_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WW_HOME", str(tmp_path))
    monkeypatch.setenv("WW_IPFS", "off")
    monkeypatch.setenv("WW_GATEWAYS", shelf.url)
    worker = cast(
        "Any", SimpleNamespace(address="tcp://here", state=SimpleNamespace(nthreads=THREADS))
    )
    made = Cells()
    made.setup(worker)
    yield made
    made.teardown(worker)
    for thread in threading.enumerate():
        if thread.name == "ww-shutdown":
            thread.join()


@pytest.mark.parametrize("move", [False, True], ids=["shared", "moved"])
def test_runs_at_the_same_time_get_each_its_own_files(
    cells: Cells, shelf: Shelf, move: bool
) -> None:
    def run(number: int) -> object:
        # Of different lengths, so that no file can pass for another.
        text = b"%d " % number * (1 + number * 500)
        offers = (grant("input", text), grant("output", b"", mode="w", move=move))
        answer = cells.run(f"job-{number}", Job(shelf.cat, (), offers, {}))
        if isinstance(answer.said, ClusterResult):
            return answer.said.files == {"output": text}
        return answer.said

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(run, range(RUNS))) == [True] * RUNS


def test_a_file_that_is_moved_is_closed_once_and_read_before(cells: Cells, shelf: Shelf) -> None:
    # Both have descriptors of their own on the worker, whatever the submitter has said of its own.
    offers = (
        grant("book", b"ab", mode="rw", move=True),
        grant("other", b"other", mode="rw", move=True),
    )
    said = cells.run("job", Job(shelf.busy, ("edit",), offers, {})).said
    assert isinstance(said, ClusterResult)
    assert said.files == {"book": b"aba", "other": b"other"}


@pytest.mark.parametrize(
    "options", [{"limits": 5}, {"colour": "red"}, {"env": {"a": 1}}], ids=["type", "name", "item"]
)
def test_a_job_that_this_release_would_not_send_is_refused_by_a_clear_error(
    cells: Cells, shelf: Shelf, options: dict[str, object]
) -> None:
    answer = cells.run("job", Job(shelf.hello, (), (), cast("Any", options)))
    assert isinstance(answer.said, ClusterError)
    assert str(answer.said).startswith(f"{shelf.hello}: the worker cannot make a run of this job: ")
    assert "have the same release of wetware on all machines" in str(answer.said)
    # The next one is none the worse for it.
    after = cells.run("job", Job(shelf.hello, (), (), {})).said
    assert isinstance(after, ClusterResult)
    assert after.ok

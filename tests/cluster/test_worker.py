"""What runs the cells of one worker, by itself: no scheduler, no Dask worker, only its threads."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Reschedule

from runner.cluster import worker as worker_module
from runner.cluster.job import ClusterError, ClusterResult, Job
from runner.cluster.worker import Cells
from sandbox import CellExecutor, CellFuture, Limits, Result, grant
from tests.cluster.machines import PATIENCE, Shelf

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
    join_shutdowns()


def join_shutdowns() -> None:
    """Wait until the sandboxes have ended that were told to."""
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


# --- what travels back ---------------------------------------------------------------------------

OUTPUT = 1000
BOOKS = tuple(grant(name, b"", mode="w") for name in ("a", "b", "c"))
BOTH_STREAMS = ("1", "2")
ALL_FILES = ("WW_FD_A", "WW_FD_B", "WW_FD_C")


def written_far(cells: Cells, shelf: Shelf, job: Job, place: int, *where: str) -> object:
    """Run a cell that writes one byte at a place in each of some, and return what is said."""
    options = job.options | {"limits": Limits(output=OUTPUT)}
    args = ("far", str(place), *where)
    return cells.run("job", job._replace(address=shelf.busy, args=args, options=options)).said


@pytest.mark.parametrize(
    "where", [BOTH_STREAMS, ALL_FILES, BOTH_STREAMS + ALL_FILES], ids=["streams", "files", "all"]
)
def test_holes_do_not_make_more_of_a_result_than_the_cell_may_write_in_all(
    cells: Cells, shelf: Shelf, where: tuple[str, ...]
) -> None:
    job = Job("", (), BOOKS, {})
    said = written_far(cells, shelf, job, OUTPUT - 1, *where)
    assert isinstance(said, ClusterError)
    total = OUTPUT * len(where)
    what = f"its outputs {total} bytes long together, and {OUTPUT} may travel back"
    assert str(said).startswith(f"{shelf.busy}: the cell has made {what}")
    # So far may each go that all keep the bound.
    said = written_far(cells, shelf, job, OUTPUT // len(where) - 1, *where)
    assert isinstance(said, ClusterResult)
    texts = (said.stdout, said.stderr, *said.files.values())
    assert sum(map(len, texts)) == OUTPUT // len(where) * len(where)


def test_what_was_in_the_writable_files_comes_back_beside_what_the_cell_may_write(
    cells: Cells, shelf: Shelf
) -> None:
    brought = b"y" * 300
    offers = (
        grant("a", brought, mode="rw"),
        grant("b", brought, mode="w"),
        # It does not come back, so it makes no room.
        grant("c", b"z" * 5000),
    )
    job = Job("", (), offers, {})
    said = written_far(cells, shelf, job, 799, "WW_FD_A", "WW_FD_B")
    assert isinstance(said, ClusterResult)
    longer = brought + bytes(OUTPUT // 2 - 1) + b"x"
    assert said.files == {"a": longer, "b": longer}
    said = written_far(cells, shelf, job, 800, "WW_FD_A", "WW_FD_B")
    assert isinstance(said, ClusterError)
    assert "made its outputs 1602 bytes long together, and 1600 may travel back" in str(said)


def test_an_answer_that_refuses_keeps_nothing_of_what_the_cell_has_written(
    cells: Cells, shelf: Shelf
) -> None:
    said = written_far(cells, shelf, Job("", (), (), {}), OUTPUT - 1, *BOTH_STREAMS)
    assert isinstance(said, ClusterError)
    frames = [frame for frame, _ in traceback.walk_tb(said.__traceback__)]
    assert len(frames) > 1
    assert not [
        name
        for frame in frames
        for name, value in frame.f_locals.items()
        if isinstance(value, (Result, bytes))
    ]


# --- cancelling: by the event loop, which must not wait ------------------------------------------


def is_done_meanwhile(what: Callable[[], object]) -> bool:
    """Whether another thread can do something while this one does something else."""
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def test_a_job_that_is_cancelled_while_its_cell_is_submitted_waits_for_nothing_and_is_killed(
    cells: Cells, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.check()
    submit = CellExecutor.submit
    done: list[bool] = []
    futures: list[CellFuture] = []

    def slow(*args: Any, **options: Any) -> CellFuture:
        done.append(is_done_meanwhile(lambda: cells.transition("job", "executing", "released")))
        futures.append(submit(*args, **options))
        return futures[-1]

    monkeypatch.setattr(CellExecutor, "submit", slow)
    with pytest.raises(Reschedule):
        cells.run("job", Job(shelf.busy, ("spin",), (), {}))
    assert done == [True]
    assert futures[0].done()


def test_a_worker_that_has_closed_when_a_cell_is_submitted_answers_nothing(
    cells: Cells, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.check()
    submit = CellExecutor.submit
    done: list[bool] = []

    def slow(*args: Any, **options: Any) -> CellFuture:
        done.append(is_done_meanwhile(lambda: cells.teardown(cast("Any", None))))
        join_shutdowns()
        return submit(*args, **options)

    monkeypatch.setattr(CellExecutor, "submit", slow)
    with pytest.raises(Reschedule):
        cells.run("job", Job(shelf.hello, (), (), {}))
    assert done == [True]


def test_a_worker_that_closes_while_its_sandbox_starts_waits_for_nothing_and_leaves_none(
    cells: Cells, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []
    made: list[CellExecutor] = []

    def slow(*args: Any, **options: Any) -> CellExecutor:
        done.append(is_done_meanwhile(lambda: cells.teardown(cast("Any", None))))
        made.append(CellExecutor(*args, **options))
        return made[-1]

    monkeypatch.setattr(worker_module, "CellExecutor", slow)
    with pytest.raises(Reschedule):
        cells.run("job", Job(shelf.hello, (), (), {}))
    assert done == [True]
    with pytest.raises(RuntimeError, match="shutdown"):
        made[0].submit(b"")

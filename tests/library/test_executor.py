"""`CellExecutor`: an executor as any other, whose work can be killed."""

import errno
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from sandbox import (
    Cell,
    CellExecutor,
    CellFuture,
    CellKilled,
    CellRejected,
    Connection,
    GrantError,
    Limits,
    Result,
    Sandbox,
    SpawnerError,
    grant,
    wire,
)
from sandbox.library import pool
from tests.conftest import CAN_BE_ROOT, Leftovers, Ww
from tests.library.conftest import Pipe

_IF_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Busy:
    """Cells that run until they are killed, as many as there are workers."""

    def __init__(self, executor: CellExecutor, tool: Cell, count: int = 2) -> None:
        self.pipes = [Pipe() for _ in range(count)]
        self.futures: list[CellFuture] = [
            executor.submit(tool, ["tell=OUT", "spin"], [grant("OUT", pipe.writer, move=True)])
            for pipe in self.pipes
        ]
        for pipe in self.pipes:
            pipe.wait_for_word()

    def end(self) -> bool:
        """Wait until their processes are gone; whether that comes."""
        return all(pipe.ends() for pipe in self.pipes)

    def run_on(self) -> bool:
        """Whether none has ended."""
        return not any(pipe.has_ended() for pipe in self.pipes)


@pytest.fixture
def busy(executor: CellExecutor, tool: Cell) -> Iterator[Busy]:
    """Both workers of the executor have something to do."""
    made = Busy(executor, tool)
    yield made
    for pipe in made.pipes:
        pipe.close()


def test_what_is_submitted_comes_to_its_result(executor: CellExecutor, tool: Cell) -> None:
    futures: dict[Future[Result], int] = {
        executor.submit(tool, [f"say={n}", f"exit={n}"]): n for n in range(20)
    }
    for future in as_completed(futures):
        number = futures[future]
        result = future.result()
        assert (result.stdout, result.exit_code) == (str(number).encode(), number)
        assert future.exception() is None


def test_map_keeps_the_order(executor: CellExecutor, tool: Cell) -> None:
    texts = [f"text {n}".encode() for n in range(7)]
    results = executor.map(tool, ([*["copy=0"], f"exit={n}"] for n in range(9)), stdins=texts)
    assert [(r.stdout, r.exit_code) for r in results] == list(zip(texts, range(7), strict=True))
    offers = [[grant("a", text)] for text in texts[:2]]
    found = executor.map(tool, [["copy=a", "env"]] * 2, offers, env={"X": "y"})
    assert [r.stdout.startswith(b"text ") and b"X=y" in r.stdout for r in found] == [True, True]
    assert list(executor.map(tool, [])) == []
    with pytest.raises(TypeError, match="one of each for each run"):
        executor.map(tool)


def test_map_gives_up_after_its_time(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    results = executor.map(tool, [["say=x"], ["say=y"]], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    assert all(future.running() for future in busy.futures)


class Noting(CellExecutor):
    """An executor that knows what was submitted."""

    def submit(self, *args: Any, **options: Any) -> CellFuture:  # type: ignore[override]
        future = super().submit(*args, **options)
        vars(self).setdefault("submitted", []).append(future)
        return future


def test_map_cancels_all_that_it_does_not_wait_for(cache: Path, tool: Cell) -> None:
    executor = Noting(1, cache=cache)
    made = Busy(executor, tool, 1)
    try:
        submitted = vars(executor)["submitted"]
        results = executor.map(tool, [["say=x"], ["say=y"], ["say=z"]], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        assert [future.cancelled() for future in submitted] == [False, True, True, True]
        # One of the inputs cannot be.
        with pytest.raises(ValueError, match="NUL"):
            executor.map(tool, [["say=x"], ["say=y"], ["\0"]])
        assert [future.cancelled() for future in submitted[4:]] == [True, True]
        assert made.run_on()
    finally:
        executor.shutdown(kill=True)
        made.pipes[0].close()


def test_what_goes_wrong_is_the_futures_exception(
    executor: CellExecutor, tool: Cell, tmp_path: Path
) -> None:
    rejected = executor.submit(b"no program").exception()
    assert isinstance(rejected, CellRejected)
    copy = pickle.loads(pickle.dumps(rejected))
    assert (copy.cell, copy.what) == (rejected.cell, rejected.what)
    assert isinstance(executor.submit(tmp_path / "nowhere").exception(), FileNotFoundError)
    refused = executor.submit(tool, grants=[grant("a", b"", mode="w")]).exception()
    assert isinstance(refused, GrantError)
    result = executor.submit(tool, ["trap"]).result()
    assert result.outcome.kind == "trap"
    assert pickle.loads(pickle.dumps(result)) == result


def test_what_cannot_be_whatever_the_kernel_says_is_refused_at_once_and_nothing_is_given_away(
    executor: CellExecutor, tool: Cell
) -> None:
    reader, writer = os.pipe()
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(GrantError, match="target"):
            executor.submit(
                tool, grants=[grant("a", writer, move=True, target=20), grant("b", b"", target=20)]
            )
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(reader)
        os.close(writer)


def test_a_limit_of_time_is_a_result(executor: CellExecutor, tool: Cell) -> None:
    result = executor.submit(tool, ["spin"], limits=Limits(wall=0.2)).result()
    assert result.outcome.limit == "wall"


def test_so_many_run_at_a_time_and_no_more(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    third = executor.submit(tool)
    assert not third.running()
    assert busy.futures[0].kill()
    assert third.result().ok
    assert not busy.futures[1].done()


# --- cancel and kill ---


def test_cancel_is_for_what_waits(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    waiting = executor.submit(tool)
    assert not busy.futures[0].cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    with pytest.raises(CancelledError):
        waiting.result()
    assert busy.run_on()


def test_kill_ends_the_process(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    holders = [pipe.holders() for pipe in busy.pipes]
    if CAN_BE_ROOT:
        assert all(len(found) == 1 for found in holders)
    assert busy.futures[0].kill()
    assert busy.pipes[0].has_ended()
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in holders[0])
    error = busy.futures[0].exception()
    assert isinstance(error, CellKilled)
    assert type(pickle.loads(pickle.dumps(error))) is CellKilled
    assert not busy.futures[0].cancelled()
    assert not busy.pipes[1].has_ended()
    assert executor.submit(tool, ["say=next"]).result().stdout == b"next"


def test_kill_cancels_what_waits_and_leaves_what_is_over(
    executor: CellExecutor, tool: Cell, busy: Busy
) -> None:
    waiting = executor.submit(tool)
    assert waiting.kill()
    assert waiting.cancelled()
    assert busy.futures[0].kill()
    over = executor.submit(tool, ["say=x"])
    assert over.result().ok
    assert not over.kill()
    assert over.result().stdout == b"x"


def test_whoever_kills_a_cell_waits_until_it_is_gone(
    executor: CellExecutor, tool: Cell, busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one for whom somebody else does the killing."""
    came: list[str] = []
    original = pool.Generation.settle

    def settle_late(self: pool.Generation) -> None:
        time.sleep(0.3)
        came.append("gone")
        original(self)

    def kill() -> None:
        assert busy.futures[0].kill()
        came.append("told")

    monkeypatch.setattr(pool.Generation, "settle", settle_late)
    killers = [threading.Thread(target=kill) for _ in range(3)]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    assert came == ["gone", "told", "told", "told"]


def test_a_handler_of_a_signal_can_kill_what_its_thread_runs(
    cache: Path, tool: Cell, pipe: Pipe
) -> None:
    main = threading.get_ident()
    killed: list[bool] = []

    def interrupt() -> None:
        pipe.wait_for_word()
        signal.pthread_kill(main, signal.SIGUSR1)

    with Sandbox(cache=cache, jails=0) as sandbox:
        offers = [grant("OUT", pipe.writer, move=True)]
        run = sandbox.prepare(tool, ["tell=OUT", "spin"], offers)
        before = signal.signal(signal.SIGUSR1, lambda *_: killed.append(run.kill()))
        helper = threading.Thread(target=interrupt)
        try:
            helper.start()
            with pytest.raises(CellKilled):
                run.execute()
        finally:
            helper.join()
            signal.signal(signal.SIGUSR1, before)
        assert killed == [True]
        assert pipe.ends()


def test_a_killed_cell_writes_no_more_and_its_output_is_lost(
    executor: CellExecutor, tool: Cell, tmp_path: Path, busy: Busy
) -> None:
    assert busy.futures[0].kill()
    with pytest.raises(CellKilled, match="tool"):
        busy.futures[0].result()


def test_a_kill_at_any_moment_says_what_came_of_it(executor: CellExecutor, tool: Cell) -> None:
    """Its answer and the future agree, whatever the cell was doing, and nothing is left of it."""
    executor.submit(tool).result()
    opened = len(os.listdir("/proc/self/fd"))
    for moment in range(40):
        with open("/dev/null", "rb") as file:
            future = executor.submit(tool, ["say=x"], [grant("a", file)])
        # From not at all to about as long as the cell takes.
        wait([future], timeout=moment / 400)
        killed = future.kill()
        try:
            assert future.result(timeout=60).stdout == b"x"
            assert not killed
        except (CellKilled, CancelledError):
            assert killed
    assert executor.submit(tool, ["say=on"]).result().stdout == b"on"
    # Both workers may have a connection now, or have lost theirs.
    assert abs(len(os.listdir("/proc/self/fd")) - opened) <= 2


def test_cancelled_futures_hold_no_descriptors(
    executor: CellExecutor, tool: Cell, busy: Busy
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with open("/dev/null", "rb") as file:
        waiting = [executor.submit(tool, grants=[grant("a", file)]) for _ in range(5)]
        assert len(os.listdir("/proc/self/fd")) == len(before) + 6
        assert all(future.cancel() for future in waiting)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_cell_that_cannot_be_named_costs_nobody_a_descriptor(executor: CellExecutor) -> None:
    reader, writer = os.pipe()
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(ValueError, match="surrogates"):
            executor.submit("\ud800", grants=[grant("o", writer, move=True)])
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("source", [None, 1.5, True, ["cell"], {}], ids=str)
def test_what_is_no_cell_is_refused_at_once(executor: CellExecutor, source: Any) -> None:
    with pytest.raises(TypeError, match="is no cell"):
        executor.submit(source)


def test_a_cell_that_is_closed_while_it_waits_does_not_run(
    executor: CellExecutor, tool_path: Path, busy: Busy
) -> None:
    cell = Cell.load(tool_path)
    waiting = executor.submit(cell)
    cell.close()
    assert busy.futures[0].kill()
    assert isinstance(waiting.exception(), ValueError)
    assert "is closed" in str(waiting.exception())


def test_a_cells_descriptor_is_held_at_once_and_read_when_it_runs(
    executor: CellExecutor, tool_path: Path, busy: Busy
) -> None:
    fd = os.open(tool_path, os.O_RDONLY)
    waiting = executor.submit(fd, ["say=x"])
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, fd)
    refused = executor.submit(fd)  # looked at by a worker's thread, and not by this one
    os.close(fd)
    os.close(nothing)
    assert busy.futures[0].kill()
    assert waiting.result().stdout == b"x"
    assert isinstance(refused.exception(), CellRejected)


# --- shutdown ---


@pytest.mark.parametrize("begun", [True, False], ids=["running", "queued"])
def test_what_submit_raises_for_does_not_run(
    executor: CellExecutor, tool: Cell, pipe: Pipe, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """As where no thread can be started: the queue has the cell by then."""
    busy = None if begun else Busy(executor, tool)
    original = executor._threads.submit

    def submit_and_fail(work: Callable[..., None], future: CellFuture) -> None:
        original(work, future)
        if begun:
            pipe.wait_for_word()
        raise RuntimeError("can't start new thread")

    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(executor._threads, "submit", submit_and_fail)
        with pytest.raises(RuntimeError, match="start new thread"):
            executor.submit(tool, ["tell=O", "spin"], [grant("O", pipe.writer, move=True)])
    if busy is not None:
        assert set(os.listdir("/proc/self/fd")) < before
        assert all(future.kill() for future in busy.futures)
        for each in busy.pipes:
            each.close()
    assert executor.submit(tool, ["say=on"]).result().stdout == b"on"
    assert pipe.has_ended()
    assert os.read(pipe.reader, 4) == b""
    assert not executor._futures


def test_a_handler_of_a_signal_can_kill_one_while_its_thread_submits_another(
    executor: CellExecutor, tool: Cell, busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = executor.submit(tool)
    killed: list[bool] = []

    def handle(number: int, _frame: object) -> None:
        if number == signal.SIGALRM:
            pytest.fail("it waits for itself")
        killed.append(waiting.kill())

    numbers = (signal.SIGUSR1, signal.SIGALRM)
    before = {number: signal.signal(number, handle) for number in numbers}
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(executor, "_check_open", lambda: signal.raise_signal(signal.SIGUSR1))
            later = executor.submit(tool)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert killed == [True, True]
    assert waiting.cancelled()
    assert later.cancel()


def test_shutdown_waits_for_all(executor: CellExecutor, tool: Cell) -> None:
    futures = [executor.submit(tool, ["say=x"]) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() and future.result().ok for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(tool)


def test_shutdown_without_waiting_lets_all_end(cache: Path, tool: Cell) -> None:
    executor = CellExecutor(1, cache=cache)
    futures = [executor.submit(tool, ["say=x"]) for _ in range(3)]
    executor.shutdown(wait=False)
    assert [future.result().stdout for future in futures] == [b"x"] * 3


def test_shutdown_can_cancel_what_waits(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    waiting = [executor.submit(tool) for _ in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert not any(future.done() for future in busy.futures)


def test_shutdown_can_kill_what_runs(executor: CellExecutor, tool: Cell, busy: Busy) -> None:
    waiting = [executor.submit(tool) for _ in range(3)]
    executor.shutdown(kill=True)
    assert busy.end()
    assert all(future.cancelled() for future in waiting)
    assert [type(future.exception()) for future in busy.futures] == [CellKilled] * 2


def test_all_are_asked_to_end_before_one_is_waited_for(
    executor: CellExecutor, tool: Cell, busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[str] = []
    hang_up, close = Connection.hang_up, Connection.close

    def hanging_up(self: Connection) -> None:
        came.append("asked")
        hang_up(self)

    def closing(self: Connection) -> None:
        # Of the threads that ran them, too; they come here when they hear of the end.
        if threading.current_thread() is threading.main_thread():
            came.append("waited for")
        close(self)

    monkeypatch.setattr(Connection, "hang_up", hanging_up)
    monkeypatch.setattr(Connection, "close", closing)
    executor.shutdown(kill=True)
    assert came[:2] == ["asked", "asked"]
    assert "asked" not in came[2:]
    assert busy.end()


def test_an_executor_leaves_nothing(
    ww: Ww, tool: Cell, cache: Path, leftovers: type[Leftovers]
) -> None:
    opened = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with leftovers(ww):
        with CellExecutor(2, cache=cache) as executor:
            for future in [executor.submit(tool) for _ in range(4)]:
                assert future.result().ok
            made = Busy(executor, tool)
            executor.shutdown(kill=True)
        for pipe in made.pipes:
            pipe.close()
    assert set(os.listdir("/proc/self/fd")) == opened
    assert threading.active_count() == threads


# --- the end of the spawner ---


def _spawners() -> set[int]:
    """The children of this process that live: each sandbox has one."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = {int(pid) for pid in file.read().split()}
    # What a dead spawner leaves may have become this process's (`leftovers` sees to that).
    return {pid for pid in children if os.waitid(os.P_PID, pid, _IF_ENDED) is None}


def test_the_end_of_the_spawner_ends_every_future_and_later_ones_have_another(
    cache: Path, tool: Cell, tmp_path: Path
) -> None:
    before = _spawners()
    with CellExecutor(2, cache=cache) as executor:
        (spawner,) = _spawners() - before
        busy = Busy(executor, tool)
        # Each that runs leaves a mark, so that running twice shows.
        marks = tmp_path / "marks"
        with open(marks, "ab") as file:
            waiting = [
                executor.submit(tool, ["tell=MARK"], [grant("MARK", file)]) for _ in range(40)
            ]
        os.kill(spawner, signal.SIGKILL)
        assert not wait([*busy.futures, *waiting], timeout=60).not_done
        for future in [*busy.futures, *waiting]:
            assert isinstance(future.exception(), SpawnerError)
        assert pickle.loads(pickle.dumps(waiting[0].exception())).args
        assert marks.read_bytes() == b""
        assert busy.end()

        assert executor.submit(tool, ["say=again"]).result().stdout == b"again"
        assert len(_spawners() - before) == 1
        assert not os.path.exists(f"/proc/{spawner}")
        for pipe in busy.pipes:
            pipe.close()


def test_a_spawner_that_dies_under_load_runs_nothing_twice(
    cache: Path, tool: Cell, tmp_path: Path
) -> None:
    before = _spawners()
    marks = tmp_path / "marks"
    with CellExecutor(2, cache=cache) as executor, open(marks, "ab") as file:
        (spawner,) = _spawners() - before
        futures = [executor.submit(tool, ["tell=M"], [grant("M", file)]) for _ in range(60)]
        wait(futures[:10])
        os.kill(spawner, signal.SIGKILL)
        assert not wait(futures, timeout=60).not_done
        errors = [future.exception() for future in futures]
        assert all(error is None or isinstance(error, SpawnerError) for error in errors)
        done = errors.count(None)
        assert done >= 10
        # Two may have run so far that they wrote, and been ended before that was known.
        assert done <= marks.stat().st_size // 4 <= done + 2
        assert executor.submit(tool).result().ok


def _failing_once(monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]) -> None:
    """Have the next message that comes to this process be lost."""
    original = wire.receive
    left = [fail]

    def receive(channel: Any) -> tuple[bytes, list[int]] | None:
        if left:
            left.pop()()
            return None
        return original(channel)

    monkeypatch.setattr(wire, "receive", receive)


def _no_number() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(
    ("fail", "kind"),
    [(_no_number, OSError), (lambda: None, SpawnerError)],
    ids=["descriptors", "connection"],
)
def test_what_fails_for_one_cell_is_not_the_end_of_the_spawner(
    cache: Path,
    tool: Cell,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[], None],
    kind: type[Exception],
) -> None:
    monkeypatch.setattr(pool, "_PATIENCE", 0.1)
    before = _spawners()
    with CellExecutor(1, cache=cache) as executor:
        spawners = _spawners() - before
        assert executor.submit(tool).result().ok
        with monkeypatch.context() as patch:
            _failing_once(patch, fail)
            first = executor.submit(tool, ["say=lost"])
            waiting = [executor.submit(tool, [f"exit={n}"]) for n in range(5)]
            assert isinstance(first.exception(), kind)
            assert [future.result().exit_code for future in waiting] == list(range(5))
        assert executor.submit(tool).result().ok
        assert _spawners() - before == spawners


def test_a_spawner_that_was_stopped_keeps_nobody(cache: Path, tool: Cell, pipe: Pipe) -> None:
    before = _spawners()
    executor = CellExecutor(1, cache=cache)
    (spawner,) = _spawners() - before
    future = executor.submit(tool, ["tell=O", "spin"], [grant("O", pipe.writer, move=True)])
    pipe.wait_for_word()
    os.kill(spawner, signal.SIGSTOP)
    assert future.kill()
    assert isinstance(future.exception(timeout=60), CellKilled)
    executor.shutdown()
    assert pipe.ends()
    assert not os.path.exists(f"/proc/{spawner}")


def test_an_executor_whose_spawner_died_unnoticed_goes_on(cache: Path, tool: Cell) -> None:
    before = _spawners()
    with CellExecutor(1, cache=cache) as executor:
        assert executor.submit(tool).result().ok
        (spawner,) = _spawners() - before
        os.kill(spawner, signal.SIGKILL)
        os.waitid(os.P_PID, spawner, os.WEXITED | os.WNOWAIT)
        assert executor.submit(tool).result().ok

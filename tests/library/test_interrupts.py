"""What a handler of a signal may do, and raise, at any moment of a run."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import pytest

from sandbox import (
    Cell,
    CellKilled,
    Connection,
    Outcome,
    Plan,
    Sandbox,
    Spawner,
    SpawnerError,
    grant,
    sharing,
    wire,
)
from sandbox.library.pool import Pool, Run

_EMPTY = b"\0asm\x01\0\0\0"


class Interrupted(BaseException):
    """What a handler raises."""


class Quick:
    """A connection on which each cell ends at once."""

    def __init__(self) -> None:
        self.closed = False

    def run(self, _plan: object, _cell: int, _fds: object, started: Callable[[], None]) -> Outcome:
        started()
        return Outcome("exit")

    def is_open(self) -> bool:
        return not self.closed

    def hang_up(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Source:
    """A spawner of such connections."""

    def connect(self) -> Connection:
        return cast(Connection, Quick())


def _quick() -> Sandbox:
    return Sandbox(spawner=cast(Spawner, Source()))


@pytest.fixture
def cell() -> Iterator[Cell]:
    with Cell.load(_EMPTY) as made:
        yield made


class _InterruptAt:
    """Raises :class:`Interrupted` where Python runs handlers of signals: after the nth call."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.came = False

    def __call__(self, frame: FrameType, event: str, _what: object) -> None:
        if event in ("c_return", "call") and not _is_finalizing(frame):
            self._left -= 1
            if self._left == 0:
                self.came = True
                raise Interrupted


def _is_finalizing(frame: FrameType | None) -> bool:
    """Whether it is of a ``__del__``, of which nobody hears what a handler raises there."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _is_interrupted(number: int, work: Callable[[], object]) -> bool:
    """Do some work, and tell whether it was interrupted after so many calls."""
    interrupt = _InterruptAt(number)
    sys.setprofile(interrupt)
    try:
        work()
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
    return interrupt.came


def _opened() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_exception_at_any_moment_of_a_run_leaves_nothing(cell: Cell, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with _quick() as sandbox, open(reader), open(writer, "w"):
        generation = sandbox._pool._generation

        def work() -> object:
            offers = [
                grant("a", b"text"),
                grant("b", reader),
                grant("c", "/dev/null"),
                grant("d", tmp_path / "made", mode="w"),
            ]
            return sandbox.run(cell, ["x"], offers, stdin=b"in")

        sandbox.run(cell)
        before = _opened()
        number = 1
        while _is_interrupted(number, work):
            assert not generation.taken, number
            assert not generation.asking, number
            assert not sandbox._runs, number
            assert not sharing._running, number
            assert _opened() == before, number
            number += 1
        assert number > 500
        assert sandbox.run(cell).ok


class _Spawner:
    """The other end of a connection: it starts each cell, and tells that it has ended."""

    def __init__(self, process: int) -> None:
        ours, self._channel = socket.socketpair()
        self.connection = Connection(ours)
        self._process = process
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._channel:
            try:
                message = wire.receive(self._channel)
                if message is not None:
                    wire.close_all(message[1])
                    wire.send(self._channel, wire.STARTED, [self._process])
                    wire.send(self._channel, Outcome("exit").encode())
            except (OSError, EOFError):
                return  # whoever was interrupted has gone

    def end(self) -> None:
        self.connection.close()
        self._thread.join()


def _order_is_interrupted(number: int, process: int, cell: Cell) -> bool:
    plan = Plan((), (), (), 1, 1, "ab" * 32)
    spawner = _Spawner(process)
    try:
        return _is_interrupted(number, lambda: spawner.connection.run(plan, cell.fileno(), []))
    finally:
        spawner.end()


# Nobody hears of one in a generator that nobody wants any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_moment_of_an_order_leaves_no_descriptor(cell: Cell) -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        process = os.pidfd_open(child.pid)
        try:
            before = _opened()
            number = 1
            while _order_is_interrupted(number, process, cell):
                assert _opened() == before, number
                number += 1
            assert _opened() == before
            assert number > 50
        finally:
            os.close(process)


# --- what a handler may call ---


@contextmanager
def _handling(handler: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have something called in a handler of a signal, once, and return what raises that.

    Whoever would wait for ever then is interrupted.
    """
    left = [handler]

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            pytest.fail("it waits for itself")
        if left:
            left.pop()()

    def interrupt() -> None:
        if left:
            signal.raise_signal(signal.SIGUSR1)

    before = {n: signal.signal(n, handle) for n in (signal.SIGUSR1, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        yield interrupt
        assert not left, "the handler was not called"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def test_a_handler_kills_runs_while_its_thread_kills_one(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _quick() as sandbox:
        run, other = sandbox.prepare(cell), sandbox.prepare(cell)
        killed: list[bool] = []

        def kill_in_the_cell(*_: object) -> Outcome:
            run.kill()
            return Outcome("exit")

        with _handling(lambda: killed.extend([run.kill(), other.kill()])) as interrupt:
            monkeypatch.setattr(Quick, "run", kill_in_the_cell)
            monkeypatch.setattr(Quick, "hang_up", lambda _: interrupt())
            with pytest.raises(CellKilled):
                run.execute()
        assert killed == [True, True]
        with pytest.raises(CellKilled):
            other.execute()


def test_a_handler_closes_a_sandbox_that_begins_a_run(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _quick()

    def interrupting_hash(run: Run) -> int:
        interrupt()
        return id(run)

    with _handling(sandbox.close) as interrupt:
        monkeypatch.setattr(Run, "__hash__", interrupting_hash)
        with pytest.raises(SpawnerError, match="the cell did not run"):
            sandbox.run(cell)


def test_a_handler_closes_a_sandbox_that_ends_a_run(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = _quick()
    notify = threading.Condition.notify_all

    def notify_all(self: threading.Condition) -> None:
        interrupt()
        notify(self)

    with _handling(sandbox.close) as interrupt:
        monkeypatch.setattr(threading.Condition, "notify_all", notify_all)
        with pytest.raises(CellKilled):
            sandbox.run(cell)


def test_a_handler_closes_a_sandbox_that_starts_another_spawner() -> None:
    class Mortal(Source):
        """Which may be dead."""

        def __init__(self) -> None:
            self.alive = True

        def is_alive(self) -> bool:
            return self.alive

        def has_ended(self) -> bool:
            return not self.alive

        def close(self) -> None:
            self.alive = False

    started: list[Mortal] = []

    def start() -> Mortal:
        started.append(Mortal())
        if len(started) > 1:
            interrupt()
        return started[-1]

    def close() -> None:
        pool.close()
        pool.end()

    pool = Pool(start)
    started[0].alive = False
    with _handling(close) as interrupt, pytest.raises(SpawnerError, match="closed"):
        pool.generation()
    assert [spawner.alive for spawner in started] == [False, False]

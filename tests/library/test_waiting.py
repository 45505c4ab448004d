"""Runs that wait for a connection, at a server that takes no more of them."""

import threading
from collections.abc import Callable
from typing import cast

import pytest

from sandbox import CellKilled, Connection, SandboxError
from sandbox.library import pool
from sandbox.library.job import House, Job
from sandbox.library.pool import Busy, Generation, Run


class Line:
    """A connection to nothing."""

    def is_open(self) -> bool:
        return True

    def hang_up(self) -> None: ...

    def close(self) -> None: ...


class Work:
    """A job that takes as long as the test likes."""

    name = "work"

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def run(self, _connection: Connection, _house: House) -> str:
        self.begun.set()
        assert self.go_on.wait(30)
        return "done"

    def close(self) -> None: ...


class Server:
    """A server whose next answer is what the test says: each is asked for a connection once.

    Attributes:
        answers: What happens then, in the order of the questions; afterwards it is full.
    """

    def __init__(self, *answers: Callable[[], None]) -> None:
        self.answers = list(answers)
        self._guard = threading.Lock()

    def connect(self) -> Connection:
        with self._guard:
            answer = self.answers.pop(0) if self.answers else refuse
        answer()
        return cast(Connection, Line())

    def close(self) -> None: ...

    def is_alive(self) -> bool:
        return True

    has_ended = is_alive


def accept() -> None:
    """Let one in."""


def refuse() -> None:
    """Be full."""
    raise Busy("it is full")


class Later:
    """An answer that takes as long as the test likes."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self._answer = answer

    def __call__(self) -> None:
        self.asked.set()
        assert self.go_on.wait(30)
        self._answer()


class Worker:
    """A thread that executes a run."""

    def __init__(self, generation: Generation) -> None:
        self.work = Work()
        house = House(1, 1, "full", ())
        self.run = Run(cast(Job, self.work), generation, house)
        self.came: list[object] = []
        self._thread = threading.Thread(target=self._execute)
        self._thread.start()

    def _execute(self) -> None:
        try:
            self.came.append(self.run.execute())
        except SandboxError as error:
            self.came.append(error)

    def has_ended(self, patience: float = 30) -> bool:
        """Whether it comes to its end."""
        self._thread.join(patience)
        return not self._thread.is_alive()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tries again before something has happened."""
    monkeypatch.setattr(pool, "_NEXT_ATTEMPT", 3600.0)


def two_workers(generation: Generation, later: Later) -> tuple[Worker, Worker]:
    """One that is being answered, and one that is refused meanwhile, and waits."""
    first = Worker(generation)
    assert later.asked.wait(30)
    second = Worker(generation)
    assert not second.has_ended(0.3)
    return first, second


def test_one_who_is_refused_waits_for_one_who_is_being_let_in(patience: None) -> None:
    later = Later(accept)
    first, second = two_workers(Generation(Server(later, refuse)), later)
    later.go_on.set()
    assert first.work.begun.wait(30)
    assert not second.has_ended(0.1)
    first.work.go_on.set()
    second.work.go_on.set()
    assert first.has_ended()
    assert second.has_ended()
    assert first.came == second.came == ["done"]


def test_those_who_are_all_refused_do_not_wait_for_each_other(patience: None) -> None:
    later = Later(refuse)
    generation = Generation(Server(later))
    workers = two_workers(generation, later)
    later.go_on.set()
    for worker in workers:
        assert worker.has_ended()
        assert [str(error) for error in worker.came] == ["it is full; the cell did not run"]
    assert not generation.asking


def test_one_who_is_refused_tries_again_whatever_others_of_the_program_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "_NEXT_ATTEMPT", 0.05)
    generation = Generation(Server(accept, refuse, refuse, accept))
    first = Worker(generation)
    assert first.work.begun.wait(30)
    second = Worker(generation)
    second.work.go_on.set()
    assert second.has_ended()
    assert second.came == ["done"]
    assert not first.came
    first.work.go_on.set()
    assert first.has_ended()


def test_one_who_waits_for_one_who_is_being_let_in_can_be_killed(patience: None) -> None:
    later = Later(accept)
    first, second = two_workers(Generation(Server(later, refuse)), later)
    assert second.run.kill()
    assert second.has_ended()
    assert [type(error) for error in second.came] == [CellKilled]
    later.go_on.set()
    first.work.go_on.set()
    assert first.has_ended()
    assert not second.work.begun.is_set()

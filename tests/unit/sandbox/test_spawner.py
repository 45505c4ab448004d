"""What the spawner does when a step fails that hardly ever does."""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sandbox import Outcome, Plan, Spawner, SpawnerError, wire
from sandbox.lane import Lane
from sandbox.order import ORDINARY
from sandbox.ready import ReadyJails
from sandbox.waiting import Ids, Waiting
from sandbox.zygote import Zygote


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_request_that_finds_no_number_left_is_answered(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_channel: socket.socket) -> tuple[bytes, list[int]]:
        for request in first:
            return request
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    class Running(Lane):
        """Whose cells are let go, and then end."""

        def _serve_one(self, *_args: object, **_options: object) -> Outcome:
            self._started = True
            return Outcome("exit")

    class Idle:
        def begin(self) -> None: ...

        end = rest = begin

    served = Running(pair[0], cast(Any, None), cast(Any, None), cast(Any, Idle()))
    first = iter([(Plan((), (), (), 1, 1, "00").encode(), list[int]())])
    with monkeypatch.context() as patch:
        patch.setattr(wire, "receive", full)
        served.serve()
    outcomes = []
    while (message := wire.receive(pair[1])) is not None:
        outcomes.append(Outcome.decode(message[0]))
    ran, outcome = outcomes
    assert ran == Outcome("exit")
    # Nothing of this one has run, whatever ran before it.
    assert (outcome.kind, outcome.code, outcome.step) == ("jail", errno.EMFILE, "spawner")


def test_an_answer_that_cannot_be_received_is_not_the_next_orders(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[bool] = []

    class Watched(Zygote):
        def kill(self) -> None:
            killed.append(True)

    def no_memory(_channel: socket.socket) -> bytes:
        raise MemoryError

    monkeypatch.setattr("sandbox.zygote._receive", no_memory)
    with pytest.raises(MemoryError):
        Watched(1, pair[0]).clone(ORDINARY, pair[1].fileno(), pair[1].fileno(), None)
    assert killed == [True]


def test_a_jail_that_cannot_be_waited_for_is_given_up() -> None:
    over = threading.Event()

    class Broken:
        def get_ready(self) -> bool:
            raise MemoryError

        def give_up(self) -> None:
            over.set()

    def make(_kind: object, _ids: Ids) -> Waiting:
        return cast(Waiting, Broken())

    jails = ReadyJails(1, make)
    try:
        assert over.wait(60)
    finally:
        jails.close()


@pytest.mark.parametrize(
    ("module", "step", "number"),
    [(os, "pidfd_open", errno.EMFILE), (wire, "hand_in", errno.ETOOMANYREFS)],
    ids=["watched", "entered"],
)
def test_nothing_is_left_of_a_spawner_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, number: int
) -> None:
    spawn = os.posix_spawn
    started: list[int] = []

    def starting(*args: Any, **options: Any) -> int:
        started.append(spawn(*args, **options))
        return started[0]

    def failing(*_args: object) -> int:
        raise OSError(number, os.strerror(number))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "posix_spawn", starting)
    monkeypatch.setattr(module, step, failing)
    with pytest.raises((OSError, SpawnerError), match=os.strerror(number)):
        Spawner.start(None)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)

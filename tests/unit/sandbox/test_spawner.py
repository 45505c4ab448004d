"""What the spawner does when a step fails that hardly ever does."""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sandbox import Outcome, Spawner, wire
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
    def full(_channel: socket.socket) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    served = Lane(pair[0], cast(Any, None), cast(Any, None), cast(Any, None))
    with monkeypatch.context() as patch:
        patch.setattr(wire, "receive", full)
        served.serve()
    message = wire.receive(pair[1])
    assert message is not None
    outcome = Outcome.decode(message[0])
    assert (outcome.kind, outcome.code, outcome.step) == ("jail", errno.EMFILE, "spawner")
    assert wire.receive(pair[1]) is None


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


def test_a_spawner_that_cannot_be_watched_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []

    def full(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many open files"):
        Spawner.start(None)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)


def test_a_spawner_whose_door_is_shut_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_door: socket.socket, _connection: int) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(wire, "hand_in", refuse)
    with pytest.raises(Exception, match="Too many references"):
        Spawner.start(None)
    assert os.listdir("/proc/self/fd") == before

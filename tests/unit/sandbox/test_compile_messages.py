"""What runner and spawner tell each other of a compilation, and in which order."""

import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from sandbox import Connection, Limits, Outcome, Plan, Spawner, SpawnerError, wire
from tests.conftest import EXAMPLES

HELLO = EXAMPLES / "hello" / "hello.wasm"


def plan_for(cell: bytes) -> Plan:
    own = os.geteuid()
    return Plan(
        grants=(),
        argv=("cell",),
        env=(),
        uid=own or 65534,
        gid=(own and os.getegid()) or 65534,
        digest=hashlib.sha256(cell).hexdigest(),
    )


@pytest.fixture
def cell() -> Iterator[int]:
    with HELLO.open("rb") as file:
        yield file.fileno()


class Noted:
    """Progress of which everything is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown = threading.Event()

    def __call__(self) -> "Noted":
        self.notes.append("made")
        return self

    def show(self, elapsed: float) -> None:
        assert elapsed > 0
        self.notes.append("show")
        self.shown.set()

    def end(self) -> None:
        self.notes.append("end")


# --- the runner's side ----------------------------------------------------------------------------


@pytest.fixture
def spawner() -> Iterator[tuple[Connection, socket.socket]]:
    """The runner's side of a connection, whose other side the test plays."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    made = Connection(ours)
    with ours, theirs:
        yield made, theirs


def playing(script: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=script)
    thread.start()
    return thread


def taken(theirs: socket.socket) -> bytes:
    message = wire.receive(theirs)
    assert message is not None
    for fd in message[1]:
        os.close(fd)
    return message[0]


def test_the_runner_lets_the_cell_go_on_when_nothing_is_shown_any_more(
    spawner: tuple[Connection, socket.socket], cell: int
) -> None:
    runner, theirs = spawner
    noted = Noted()
    plan = plan_for(b"")
    before: list[str] = []

    def script() -> None:
        assert taken(theirs) == plan.encode()
        wire.send(theirs, wire.COMPILING)
        noted.shown.wait()
        wire.send(theirs, wire.COMPILED)
        assert taken(theirs) == wire.GO_ON
        before.extend(noted.notes)
        wire.send(theirs, Outcome("exit", 3).encode())

    thread = playing(script)
    assert runner.run(plan, cell, [], progress=noted) == Outcome("exit", 3)
    thread.join()
    assert before[0] == "made"
    assert before[-1] == "end"
    assert set(before[1:-1]) == {"show"}
    assert noted.notes == before


def test_the_runner_lets_the_cell_go_on_where_nothing_is_to_be_shown(
    spawner: tuple[Connection, socket.socket], cell: int
) -> None:
    runner, theirs = spawner

    def script() -> None:
        taken(theirs)
        for message in (wire.COMPILING, wire.COMPILED):
            wire.send(theirs, message)
        assert taken(theirs) == wire.GO_ON
        wire.send(theirs, Outcome("exit").encode())

    thread = playing(script)
    assert runner.run(plan_for(b""), cell, []) == Outcome("exit")
    thread.join()


@pytest.mark.parametrize("compile_only", [False, True])
def test_what_is_shown_ends_when_the_spawner_does(
    spawner: tuple[Connection, socket.socket], cell: int, compile_only: bool
) -> None:
    runner, theirs = spawner
    noted = Noted()

    def script() -> None:
        taken(theirs)
        wire.send(theirs, wire.COMPILING)
        noted.shown.wait()
        theirs.close()

    thread = playing(script)
    call = runner.compile if compile_only else partial(runner.run, sources=[])
    with pytest.raises(SpawnerError):
        call(plan_for(b""), cell, progress=noted)
    thread.join()
    assert noted.notes[-1] == "end"


def test_what_is_shown_ends_when_a_signal_asks_for_that(
    spawner: tuple[Connection, socket.socket], cell: int
) -> None:
    class Asked(BaseException):
        pass

    class Asking(Noted):
        def show(self, elapsed: float) -> None:
            raise Asked

    runner, theirs = spawner
    noted = Asking()
    wire.send(theirs, wire.COMPILING)
    with pytest.raises(Asked):
        runner.run(plan_for(b""), cell, [], progress=noted)
    assert noted.notes == ["made", "end"]


# --- the spawner's side ---------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Spawner]:
    made = Spawner.start(str(tmp_path / "cache"))
    yield made
    made.close()


def test_the_spawner_starts_no_cell_before_it_may_go_on(real: Spawner, cell: int) -> None:
    plan = plan_for(HELLO.read_bytes())
    channel = real._channel
    wire.send(channel, plan.encode(), [cell])
    assert taken(channel) == wire.COMPILING
    assert taken(channel) == wire.COMPILED
    more = select.poll()
    more.register(channel, select.POLLIN)
    assert not more.poll(300)
    wire.send(channel, wire.GO_ON)
    assert taken(channel) == wire.STARTED
    assert Outcome.decode(taken(channel)).kind == "exit"
    # It is there now.
    wire.send(channel, plan.encode(), [cell])
    assert taken(channel) == wire.STARTED
    assert Outcome.decode(taken(channel)).kind == "exit"


def test_what_is_to_be_compiled_only_is_not_run(real: Spawner, cell: int, tmp_path: Path) -> None:
    plan = plan_for(HELLO.read_bytes())
    noted = Noted()
    assert real.compile(plan, cell, noted) == (Outcome("exit"), True)
    assert {noted.notes[0], noted.notes[-1]} == {"made", "end"}
    assert len([*(tmp_path / "cache").glob(f"{plan.digest}-*")]) == 1
    again = Noted()
    assert real.compile(plan, cell, again) == (Outcome("exit"), False)
    assert again.notes == []
    # The same spawner runs it as well, and had not closed the caller's.
    assert real.run(plan, cell, [], progress=again).kind == "exit"
    assert again.notes == []


def test_what_cannot_be_kept_is_told_with_the_reason(cell: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with closing(Spawner.start(str(tmp_path))) as spawner:
        outcome, compiled = spawner.compile(plan_for(HELLO.read_bytes()), cell)
    assert (outcome.kind, outcome.code, compiled) == ("exit", 0, True)
    assert "others can write to it" in outcome.what


def test_limits_and_jail_of_a_compilation_hold_when_nothing_is_run(
    real: Spawner, cell: int
) -> None:
    plan = plan_for(HELLO.read_bytes())
    assert real.compile(plan._replace(uid=0), cell)[0].kind == "jail"
    outcome, _ = real.compile(plan._replace(limits=Limits(wall=1e-9)), cell)
    assert (outcome.kind, outcome.limit) == ("limit", "wall")
    with Path("/dev/null").open("rb") as empty:
        outcome, compiled = real.compile(plan_for(b""), empty.fileno())
    assert (outcome.kind, compiled) == ("rejected", True)


def test_open_descriptors_of_the_spawner_do_not_grow(real: Spawner, cell: int) -> None:
    plan = plan_for(HELLO.read_bytes())
    real.compile(plan, cell)
    time.sleep(0.2)  # what is left of a cell goes when its outcome was told
    before = len(os.listdir(f"/proc/{real.pid}/fd"))
    for _ in range(3):
        real.compile(plan, cell)
        os.lseek(cell, 0, os.SEEK_SET)  # the compiler reads from where it is
        outcome, compiled = real.compile(plan._replace(digest=os.urandom(32).hex()), cell)
        assert (outcome.kind, compiled) == ("fault", True)
        real.run(plan, cell, [])
    # What is left of the last cell goes when the outcome was told.
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{real.pid}/fd")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir(f"/proc/{real.pid}/fd")) == before

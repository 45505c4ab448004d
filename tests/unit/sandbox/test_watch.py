"""What ended a jailed process, told apart from all that it can say and do."""

import faulthandler
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import pytest

from sandbox import watch
from sandbox.cgroups import Cgroup
from sandbox.outcome import Outcome, limit
from sandbox.policy import Limits
from sandbox.watch import ENTERED, MOST_OUTCOME, Child

LIMITS = Limits()
FOREVER = 60.0
Body = Callable[[socket.socket], None]
IMPOSSIBLE = Outcome("fault", what="the cell's process reported what cannot be")


class FakeCgroup:
    """A control group of which only what it says matters."""

    def __init__(self, *, killed: bool = False, exceeded: bool = False, events: int | None = None):
        self.killed = killed
        self.exceeded = exceeded
        self.pids_events = events
        self.broken = False

    def oom_killed(self) -> bool:
        if self.broken:
            raise OSError("gone")
        return self.killed

    def pids_exceeded(self) -> bool:
        return self.exceeded

    def peak_memory(self) -> int | None:
        return 4096


def start(body: Body, cgroup: FakeCgroup | None = None) -> Child:
    """A process that does that and then ends with 3."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be(body, ours, theirs)
    theirs.close()
    return Child(pid, os.pidfd_open(pid), ours.detach(), cast(Cgroup | None, cgroup))


def _be(body: Body, ours: socket.socket, theirs: socket.socket) -> NoReturn:
    try:
        ours.close()
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        body(theirs)
    finally:
        os._exit(3)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def runner(connection: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The spawner's end of the connection to the runner."""
    return connection[0]


@contextmanager
def nothing_left(body: Body, cgroup: FakeCgroup | None = None) -> Iterator[Child]:
    """A process, of which nothing may be left afterwards."""
    before = len(os.listdir("/proc/self/fd"))
    child = start(body, cgroup)
    yield child
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def watched(
    runner: socket.socket,
    body: Body,
    *,
    limits: Limits = LIMITS,
    wall: float | None = FOREVER,
    cgroup: FakeCgroup | None = None,
    on_entered: Callable[[], None] = lambda: None,
) -> Outcome:
    with nothing_left(body, cgroup) as child:
        deadline = None if wall is None else time.monotonic() + wall
        outcome = watch.wait(child, runner.fileno(), limits, deadline, on_entered)
    assert (outcome.usage is None) == (outcome.kind == "jail")
    return outcome._replace(usage=None)


def saying(*messages: bytes) -> Body:
    def say(line: socket.socket) -> None:
        for message in messages:
            line.send(message)
        signal.pause()

    return say


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("exit", 0),
        Outcome("exit", 255),
        Outcome("trap", what="wasm trap: unreachable"),
        Outcome("rejected", what="not a module"),
        Outcome("fault", what="KeyError"),
        limit("fuel"),
        limit("memory"),
    ],
)
@pytest.mark.parametrize("wall", [FOREVER, None])
def test_what_a_process_says_after_it_has_entered_its_jail_is_how_it_ended(
    runner: socket.socket, outcome: Outcome, wall: float | None
) -> None:
    entered: list[int] = []
    told = watched(
        runner,
        saying(ENTERED, outcome.encode()),
        wall=wall,
        on_entered=lambda: entered.append(1),
    )
    assert told == outcome
    assert entered == [1]


@pytest.mark.parametrize(
    "outcome",
    [Outcome("jail", 1, "mount: no", "proc"), Outcome("fault", what="x"), Outcome("stale")],
)
def test_what_went_wrong_before_is_believed_before_only(
    runner: socket.socket, outcome: Outcome
) -> None:
    entered: list[int] = []
    told = watched(runner, saying(outcome.encode()), on_entered=lambda: entered.append(1))
    assert told == outcome
    assert entered == []
    if outcome.kind != "fault":
        assert watched(runner, saying(ENTERED, outcome.encode())) == IMPOSSIBLE


@pytest.mark.parametrize("kind", ["exit", "trap", "rejected", "limit"])
def test_a_cell_that_has_not_begun_cannot_have_ended(runner: socket.socket, kind: Any) -> None:
    assert watched(runner, saying(Outcome(kind).encode())) == IMPOSSIBLE


@pytest.mark.parametrize("kind", ["signal", "isolation", "jail", "stale"])
def test_what_only_the_spawner_can_know_is_not_believed(runner: socket.socket, kind: Any) -> None:
    assert watched(runner, saying(ENTERED, Outcome(kind, 9).encode())) == IMPOSSIBLE


@pytest.mark.parametrize(
    "message",
    [
        b"x",
        b"[]",
        b"null",
        b'["exit"]',
        b"[" * 60000,
        b"\xff",
        b"exit\x000\0\0?\0\0",
        b"exit\x000\0\0\0",
    ],
)
def test_what_is_no_outcome_is_a_fault(runner: socket.socket, message: bytes) -> None:
    for before in ((), (ENTERED,)):
        assert watched(runner, saying(*before, message)) == IMPOSSIBLE


def test_a_process_enters_its_jail_only_once(runner: socket.socket) -> None:
    entered: list[int] = []
    told = watched(runner, saying(ENTERED, ENTERED), on_entered=lambda: entered.append(1))
    assert (told, entered) == (IMPOSSIBLE, [1])


def test_only_the_first_outcome_counts(runner: socket.socket) -> None:
    messages = (ENTERED, Outcome("exit", 1).encode(), Outcome("exit", 2).encode())
    assert watched(runner, saying(*messages)) == Outcome("exit", 1)


def test_an_outcome_is_taken_though_its_sender_has_ended_by_then(runner: socket.socket) -> None:
    def say(line: socket.socket) -> None:
        line.send(ENTERED)
        line.send(Outcome("exit", 5).encode())
        os._exit(0)

    def slowly() -> None:
        time.sleep(0.1)

    assert watched(runner, say, on_entered=slowly) == Outcome("exit", 5)


def test_more_than_fits_is_cut(runner: socket.socket) -> None:
    message = Outcome("trap", what="x" * MOST_OUTCOME).encode()
    told = watched(runner, saying(ENTERED, message))
    assert told.kind == "trap"
    assert told == Outcome.decode(message[:MOST_OUTCOME])


# --- how it ends ----------------------------------------------------------------------------------


def test_an_end_without_a_word_is_a_fault_with_its_code(runner: socket.socket) -> None:
    told = watched(runner, lambda line: None)
    assert told == Outcome("fault", what="the cell's process ended by itself, with 3")


def test_a_closed_line_alone_is_no_end(runner: socket.socket) -> None:
    def close(line: socket.socket) -> None:
        line.close()
        time.sleep(0.2)
        os._exit(4)

    told = watched(runner, close)
    assert told == Outcome("fault", what="the cell's process ended by itself, with 4")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN]
)
def test_a_signal_that_ended_it_is_told(runner: socket.socket, number: int) -> None:
    told = watched(runner, lambda line: os.kill(os.getpid(), number))
    assert told == Outcome("signal", number)


def test_a_kill_by_the_system_call_filter_is_told_as_that(runner: socket.socket) -> None:
    told = watched(runner, lambda line: os.kill(os.getpid(), signal.SIGSYS))
    assert told.kind == "isolation"


@pytest.mark.parametrize("told", [Outcome("exit"), limit("output"), Outcome("rejected", what="x")])
def test_no_word_before_it_hides_a_kill_by_the_filter(told: Outcome) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert watch._judge(told, signal.SIGSYS, usage, LIMITS, None).kind == "isolation"
    # As it is where the spawner was faster.
    assert watch._judge(told, signal.SIGKILL, usage, LIMITS, None) == told


def _spin(line: socket.socket) -> None:
    while True:
        pass


def test_the_limit_of_processor_time_ends_it(runner: socket.socket) -> None:
    for wall in (FOREVER, None):
        assert watched(runner, _spin, limits=LIMITS._replace(cpu=1), wall=wall) == limit("cpu")


def test_time_that_it_does_not_use_does_not_count(runner: socket.socket) -> None:
    told = watched(runner, saying(ENTERED), limits=LIMITS._replace(cpu=1), wall=1.5)
    assert told == limit("wall")


def test_the_kernels_own_limit_of_processor_time_is_told_from_a_kill(
    runner: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spin(line: socket.socket) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        _spin(line)

    # As when the spawner was stopped meanwhile.
    one = LIMITS._replace(cpu=1)
    with monkeypatch.context() as patch:
        patch.setattr("sandbox.watch.time.clock_gettime", lambda clock: 0.0)
        assert watched(runner, spin, limits=one) == limit("cpu")
    for limits in (one, LIMITS._replace(cpu=None)):
        told = watched(runner, lambda line: os.kill(os.getpid(), signal.SIGKILL), limits=limits)
        assert told == Outcome("signal", signal.SIGKILL)


# --- time, and who waits --------------------------------------------------------------------------


def _stop(line: socket.socket) -> None:
    line.send(ENTERED)
    os.kill(os.getpid(), signal.SIGSTOP)


def _ignore_all(line: socket.socket) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    line.send(ENTERED)
    while True:
        signal.pause()


@pytest.mark.parametrize("body", [saying(), saying(ENTERED), _stop, _ignore_all])
def test_the_deadline_ends_it_whatever_it_does(runner: socket.socket, body: Body) -> None:
    assert watched(runner, body, wall=0.2) == limit("wall")


def test_a_deadline_that_is_over_ends_it_at_once(runner: socket.socket) -> None:
    assert watched(runner, saying(ENTERED), wall=-1) == limit("wall")


def test_the_end_of_the_runner_is_the_cells(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connection
    # The test's own child holds copies of both, so closing is not enough.
    told = watched(ours, saying(ENTERED), on_entered=lambda: theirs.shutdown(socket.SHUT_RDWR))
    assert told == Outcome("signal", signal.SIGKILL)


def test_whoever_cannot_be_told_that_it_began_ends_it(runner: socket.socket) -> None:
    def fail() -> None:
        raise BrokenPipeError

    cgroup = FakeCgroup()
    with nothing_left(saying(ENTERED), cgroup) as child, pytest.raises(BrokenPipeError):
        watch.wait(child, runner.fileno(), LIMITS, None, fail)


# --- control groups -------------------------------------------------------------------------------


def _die(line: socket.socket) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_want_of_memory_is_told_from_a_kill(runner: socket.socket) -> None:
    assert watched(runner, _die, cgroup=FakeCgroup(killed=True)) == limit("host-memory")
    assert watched(runner, _die, cgroup=FakeCgroup()) == Outcome("signal", signal.SIGKILL)


def test_too_many_processes_are_told_when_it_ends(runner: socket.socket) -> None:
    assert watched(runner, lambda line: None, cgroup=FakeCgroup(exceeded=True)) == limit("pids")


def test_too_many_processes_end_it_where_that_can_be_waited_for(runner: socket.socket) -> None:
    # Out-of-band data makes a socket ready as the file of a control group is: POLLPRI.
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        sender.send(b"x", socket.MSG_OOB)
        poller = select.poll()
        poller.register(receiver, select.POLLPRI)
        assert poller.poll(60_000)
        cgroup = FakeCgroup(exceeded=True, events=receiver.fileno())
        assert watched(runner, saying(ENTERED), cgroup=cgroup) == limit("pids")


def test_what_a_process_said_counts_more_than_its_group(runner: socket.socket) -> None:
    cgroup = FakeCgroup(killed=True, exceeded=True)
    told = watched(runner, saying(ENTERED, Outcome("exit", 1).encode()), cgroup=cgroup)
    assert told == Outcome("exit", 1)


def test_a_group_that_cannot_be_asked_changes_nothing_of_how_a_process_ended(
    runner: socket.socket,
) -> None:
    cgroup = FakeCgroup()
    cgroup.broken = True
    assert watched(runner, _die, cgroup=cgroup).kind == "signal"
    cgroup.exceeded = True
    assert watched(runner, _die, cgroup=cgroup) == limit("pids")


def test_what_a_process_says_before_its_end_is_heard_whenever_that_is(
    runner: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """poll(2) looks at one descriptor after the other, and here much happens in between."""
    ours, theirs = socket.socketpair()

    def say_and_end(line: socket.socket) -> None:
        theirs.recv(1)
        line.send(ENTERED)
        line.send(Outcome("exit", 7).encode())

    class Slow:
        def __init__(self) -> None:
            self.sources: list[int] = []

        def register(self, source: int, _events: int) -> None:
            self.sources.append(source)

        def unregister(self, source: int) -> None:
            self.sources.remove(source)

        def poll(self, _patience: int | None) -> list[tuple[int, int]]:
            ready = []
            for source in self.sources:
                one = real()
                one.register(source, select.POLLIN)
                ready += one.poll(0)
                if source in (child.line, child.pidfd) and not told:
                    told.append(ours.send(b"x"))
                    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            return ready

    told: list[int] = []
    real = select.poll
    with ours, theirs, nothing_left(say_and_end) as child:
        monkeypatch.setattr("sandbox.watch.select.poll", Slow)
        outcome = watch.wait(child, runner.fileno(), LIMITS, None, lambda: None)
        monkeypatch.undo()
    assert (outcome.kind, outcome.code) == ("exit", 7)


def test_what_a_process_said_is_heard_even_if_it_never_read_what_it_was_sent() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(b"g")
        theirs.send(b"said")
        theirs.close()
        assert watch._read(ours.fileno()) == b"said"
        assert watch._read(ours.fileno()) == b""

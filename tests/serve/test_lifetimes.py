"""Whatever ends first, server, client or cell: the others learn of it, and nothing is left."""

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from sandbox import SpawnerError, client, connect, wire
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from tests.conftest import EXAMPLES, REPO, Leftovers, Ww
from tests.jail.inside import variant
from tests.jail.test_failures import FAULT, OS_ERROR
from tests.serve.serving import (
    ONCE,
    Notes,
    Server,
    Waiting,
    is_gone,
    serving,
    until_gone,
    waiting,
)

HELLO = EXAMPLES / "hello" / "hello.wasm"
LeftoversFixture = Callable[..., Leftovers]
CELLS = 3


def runs(ww: Ww) -> None:
    """A run goes well, and nothing is said of a server that could not be used."""
    done = ww.run("run", HELLO)
    assert (done.returncode, done.stderr) == (0, b"")


def loaded(ww: Ww, stack: ExitStack) -> list[Waiting]:
    """Cells that run at the same time."""
    return [stack.enter_context(waiting(ww, name=f"log{number}")) for number in range(CELLS)]


def assert_told(ww: Ww, server: Server, found: list[Waiting]) -> None:
    """Each of these runs failed, says why, and was not run again."""
    for run in found:
        code, err = run.ended()
        assert code == 1
        assert err.startswith("ww: error: spawner: ")
        said = f" (the server at {server.path} was stopped or has failed; nothing is run again)\n"
        assert err.endswith(said)
        assert err.count("\n") == 1
        assert run.marks() == 1
    # And the next run has a spawner of its own.
    runs(ww)


def test_cells_of_several_clients_run_at_the_same_time(ww_account: Ww) -> None:
    with serving(ww_account, "--jails", "1") as server, ExitStack() as stack:
        found = loaded(ww_account, stack)
        assert len(server.cells()) == CELLS
        runs(ww_account)
        for run in reversed(found):
            run.let_go()
            assert run.ended() == (0, "")
            assert run.marks() == 1
        assert server.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_server_that_is_asked_to_end_ends_its_cells_and_their_runs_say_so(
    ww_account: Ww, number: signal.Signals, leftovers: LeftoversFixture
) -> None:
    runs(ww_account)
    with leftovers(ww_account), ExitStack() as stack:
        with serving(ww_account, "--jails", "2") as server:
            found = loaded(ww_account, stack)
            idle = socket.socket(socket.AF_UNIX)
            stack.enter_context(idle)
            if ww_account.account.is_own:
                idle.connect(str(server.path))
            below = [*server.jails(), server.zygote()]
            assert server.end(number) == (0, "")
            assert all(map(is_gone, below))
            assert not server.path.exists()
            assert_told(ww_account, server, found)
        for run in found:
            run.log.unlink()
        (ww_account.tmp / "once.wasm").unlink()


def test_a_server_that_is_killed_takes_its_cells_along_and_the_next_one_clears_up(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    runs(ww_account)
    with leftovers(ww_account), ExitStack() as stack:
        with serving(ww_account, "--jails", "2") as server:
            found = loaded(ww_account, stack)
            below = [*server.jails(), server.zygote()]
            server.process.kill()
            server.ended()
            assert_told(ww_account, server, found)
            until_gone(*below)
        with serving(ww_account, "--jails", "0"):
            runs(ww_account)
        for run in found:
            run.log.unlink()
        (ww_account.tmp / "once.wasm").unlink()


def test_a_server_whose_zygote_dies_ends_with_1_and_says_so(
    ww: Ww, leftovers: LeftoversFixture
) -> None:
    runs(ww)
    with leftovers(ww), ExitStack() as stack:
        with serving(ww, "--jails", "1") as server:
            found = loaded(ww, stack)
            below = server.jails()
            os.kill(server.zygote(), signal.SIGKILL)
            code, err = server.ended()
            assert code == 1
            assert err.startswith("ww: error: the process that jails are cloned from has ended")
            assert err.count("\n") == 1
            assert all(map(is_gone, below))
            assert not server.path.exists()
            assert_told(ww, server, found)
        for run in found:
            run.log.unlink()
        (ww.tmp / "once.wasm").unlink()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name
)
def test_the_cell_of_a_client_that_ends_is_gone_and_the_server_serves_on(
    ww_account: Ww, number: signal.Signals
) -> None:
    with serving(ww_account, "--jails", "1") as server:
        with waiting(ww_account) as run:
            (cell,) = server.cells()
            run.process.send_signal(number)
            code, err = run.ended()
            assert err == ""
            if number == signal.SIGKILL:
                assert code == -number
                until_gone(cell)
            else:
                assert code == 128 + number
                assert is_gone(cell)
            assert run.marks() == 1
        runs(ww_account)
        assert server.end() == (0, "")


def test_a_cell_may_go_on_for_its_grace(ww: Ww) -> None:
    with serving(ww, "--jails", "0") as server, waiting(ww, "--grace", "60") as run:
        run.process.terminate()
        run.let_go()
        assert run.ended() == (128 + signal.SIGTERM, "")
        assert server.end() == (0, "")


# A ww that stops the server while it looks for the cell.
INTERRUPTED = """
import os, signal, sys, time
from runner import supervise
find = supervise.open_cell
def slowly(*args):
    server = int(os.environ["SERVER"])
    os.kill(server, signal.SIGTERM)
    while open(f"/proc/{server}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    return find(*args)
supervise.open_cell = slowly
import runner.__main__
runner.__main__.main()
"""


def test_a_server_that_ends_before_it_knows_of_the_cell_is_done_without(ww: Ww) -> None:
    with serving(ww, "--jails", "0") as server:
        done = ww.call(
            [sys.executable, "-c", INTERRUPTED, "run", HELLO],
            env={"SERVER": str(server.pid), "PYTHONPATH": str(REPO)},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"Hello")
        assert server.ended() == (0, "")


# --- jails ----------------------------------------------------------------------------------------


def test_a_cell_gets_a_jail_that_was_ready_and_another_is_made_in_its_place(
    ww_account: Ww,
) -> None:
    # What compiles a cell has a jail of another kind.
    assert ww_account.run("run", ww_account.file("once.wasm", ONCE)).returncode == 0
    notes = Notes(ww_account)
    with serving(ww_account, "--jails", "2", command=notes.command()) as server:
        before = notes.ready(2)
        with waiting(ww_account):
            (cell,) = server.cells()
            assert cell == before[0]
            assert notes.ready(2, without=[cell])[0] == before[1]
        assert server.end() == (0, "")


def test_a_jail_that_somebody_killed_while_it_waited_is_not_used(ww: Ww) -> None:
    notes = Notes(ww)
    with serving(ww, "--jails", "2", command=notes.command()) as server:
        before = notes.ready(2)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        runs(ww)
        notes.ready(2, without=before)
        assert server.end() == (0, "")


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("mounts.make_root", "root"),
        ("admission.wait", "admission"),
        ("mounts.furnish", "furnish root"),
        ("privileges.drop_all", "privileges"),
        ("seccomp.install", "seccomp"),
    ],
)
@pytest.mark.parametrize("jails", ["0", "1"])
def test_a_step_of_the_jail_that_fails_is_told_to_the_run_and_the_server_serves_on(
    ww: Ww, place: str, step: str, jails: str
) -> None:
    runs(ww)  # so that the cell is compiled
    module, _, function = place.partition(".")
    patch = FAULT.format(module=module, function=function, process="cell", error=OS_ERROR)
    with serving(ww, "--jails", jails, command=variant(patch, served=False)) as server:
        for _ in range(2):
            done = ww.run("run", HELLO)
            assert (done.returncode, done.stdout) == (67, b"")
            assert done.stderr.decode().startswith(f"ww: error: jail: {step}: ")
            assert done.stderr.count(b"\n") == 1
        assert server.end() == (0, "")


# --- what is no request ---------------------------------------------------------------------------


def message(payload: bytes, fds: int = 0) -> bytes:
    return struct.pack("=II", len(payload), fds) + payload


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        message(b"x" * 100)[:50],
        message(b"", 5),
        message(b"", 1 << 31) + b"\0" * 10,
    ],
    ids=["http", "half", "no fds", "many fds"],
)
def test_what_is_no_message_ends_its_connection_and_nothing_else(ww: Ww, request_: bytes) -> None:
    with serving(ww, "--jails", "0") as server:
        with rude(server) as client:
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
            # What it has not read makes it a reset; unix(7).
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        runs(ww)
        assert server.end() == (0, "")


@pytest.mark.parametrize(
    "payload",
    [
        b"not a plan",
        b"[]",
        b"null",
        wire.COMPILE,
        Plan(grants=(), argv=("x",), env=(), uid=65534, gid=65534, digest="0" * 64).encode(),
    ],
    ids=["words", "list", "null", "empty", "no cell"],
)
def test_a_message_that_is_no_request_fails_and_the_server_serves_on(
    ww: Ww, payload: bytes
) -> None:
    with serving(ww, "--jails", "0") as server:
        with rude(server) as client:
            for _ in range(2):
                client.sendall(message(payload))
                answer = wire.receive(client)
                assert answer is not None
                outcome = Outcome.decode(answer[0])
                assert (outcome.kind, outcome.step) == ("jail", "spawner")
        runs(ww)
        assert server.end() == (0, "")


@contextmanager
def rude(server: Server) -> Iterator[socket.socket]:
    """A connection that a server has greeted."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(server.path))
        assert wire.receive(client) == (wire.GREETING, [])
        yield client


# A machine that gives the server no thread for its first connection.
NO_THREAD = """
import threading
from sandbox.lane import Lane
start, refused = threading.Thread.start, []
def refusing(self):
    if getattr(self._target, "__func__", None) is Lane.serve and not refused:
        refused.append(self)
        raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = refusing
"""


def test_a_connection_for_which_there_is_no_thread_ends_and_no_other(ww: Ww) -> None:
    with serving(ww, "--jails", "0", command=variant(NO_THREAD, served=False)) as server:
        with rude(server) as first:
            assert first.recv(1) == b""
        runs(ww)
        assert server.end() == (0, "")


def test_a_server_that_does_not_answer_is_not_waited_for_for_long(
    ww: Ww, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GREETING_PATIENCE", 0.05)
    path = ww.root / "deaf"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(SpawnerError, match="no answer from the server: timed out"):
            connect(str(path))

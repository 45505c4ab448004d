"""What the spawner does when a step fails that hardly ever does."""

import _socket
import builtins
import errno
import os
import signal
import socket
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

from sandbox import (
    Connection,
    Outcome,
    Plan,
    Spawner,
    SpawnerError,
    client,
    connect,
    credentials,
    wire,
)
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
    first = iter([(Plan((), (), (), 1, 1, "ab" * 32).encode(), list[int]())])
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


# --- the runner's side ----------------------------------------------------------------------------

_PLAN = Plan((), (), (), 1, 1, "00")


@pytest.fixture
def cell() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


def _calls(connection: Connection, cell: int) -> tuple[Callable[[], object], ...]:
    """Whatever waits for an answer."""
    return (lambda: connection.run(_PLAN, cell, []), lambda: connection.compile(_PLAN, cell))


@pytest.mark.parametrize("what", [0, 1], ids=["run", "compile"])
@pytest.mark.parametrize("step", ["send", "receive"])
def test_what_this_process_lacks_is_an_error_of_the_system(
    pair: tuple[socket.socket, socket.socket],
    cell: int,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    what: int,
) -> None:
    def failing(*_args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    connection = Connection(pair[0])
    assert connection.is_open()
    with monkeypatch.context() as patch:
        patch.setattr(wire, step, failing)
        with pytest.raises(OSError, match="Too many open files") as caught:
            _calls(connection, cell)[what]()
    assert caught.value.errno == errno.EMFILE
    # What comes on it now may be of that cell.
    assert not connection.is_open()
    with pytest.raises(SpawnerError, match="broke before"):
        connection.run(_PLAN, cell, [])


@pytest.mark.parametrize("what", [0, 1], ids=["run", "compile"])
@pytest.mark.parametrize(
    "raised",
    [
        TimeoutError("late"),
        ValueError("late"),
        EOFError("late"),
        ConnectionResetError("late"),
        OSError(errno.EIO, "late"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_what_a_handler_of_a_signal_raises_comes_out_as_it_is(
    pair: tuple[socket.socket, socket.socket], cell: int, raised: Exception, what: int
) -> None:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise raised

    main = threading.get_ident()

    def interrupt() -> None:
        message = wire.receive(pair[1])
        assert message is not None
        wire.close_all(message[1])
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, late)
    helper = threading.Thread(target=interrupt)
    try:
        helper.start()
        with pytest.raises(type(raised)) as caught:
            _calls(Connection(pair[0]), cell)[what]()
        assert caught.value is raised
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("what", [0, 1], ids=["run", "compile"])
@pytest.mark.parametrize("said", [b"", b"\0", b"\xff" * 8, b"\1\0\0\0\0\0\0\0x"])
def test_a_connection_that_ends_or_breaks_the_form_is_the_spawners_error(
    pair: tuple[socket.socket, socket.socket], cell: int, said: bytes, what: int
) -> None:
    pair[1].sendall(said)
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(SpawnerError):
        _calls(Connection(pair[0]), cell)[what]()


@pytest.mark.parametrize("what", [0, 1], ids=["run", "compile"])
def test_a_spawner_that_is_gone_or_a_connection_that_is_closed_is_the_spawners_error(
    pair: tuple[socket.socket, socket.socket], cell: int, what: int
) -> None:
    pair[1].close()
    connection = Connection(pair[0])
    with pytest.raises(SpawnerError):
        _calls(connection, cell)[what]()
    connection.close()
    connection.close()
    with pytest.raises(SpawnerError):
        _calls(connection, cell)[what]()
    assert not connection.is_open()


def test_no_room_at_the_door_is_not_the_spawners_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_args: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    spawner = Spawner.start(None)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(wire, "hand_in", failing)
            with pytest.raises(OSError, match="Too many references"):
                spawner.connect()
        spawner.connect().close()
    finally:
        spawner.close()
    with pytest.raises(SpawnerError, match="the spawner has ended"):
        spawner.connect()


def test_closing_ends_a_spawner_whoever_has_copies_of_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a process that was forked by other means than Python's own."""
    sent: list[int] = []
    send = signal.pidfd_send_signal

    def noting(process: int, number: int) -> None:
        sent.append(number)
        send(process, number)

    spawner = Spawner.start(None)
    copies = [os.dup(channel.fileno()) for channel in (spawner._door, spawner._channel)]
    try:
        monkeypatch.setattr(client, "_PATIENCE_MS", 30_000)
        monkeypatch.setattr("sandbox.client.signal.pidfd_send_signal", noting)
        spawner.close()
        assert signal.SIGKILL not in sent
    finally:
        for copy in copies:
            os.close(copy)


# --- closing twice, and forks ---------------------------------------------------------------------


def _in_a_child(check: Callable[[], bool]) -> bool:
    """What a function returns in a process that is forked for it."""
    with warnings.catch_warnings():
        # Of threads that such a process has none of, as newer versions do; this one needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        holds = False
        try:
            holds = check()
        finally:
            os._exit(0 if holds else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _sockets() -> set[int]:
    """The descriptors of sockets that this process has."""
    numbers = (int(name) for name in os.listdir("/proc/self/fd"))
    return {n for n in numbers if _is_open(n) and stat.S_ISSOCK(os.fstat(n).st_mode)}


def _closes_nothing_twice(spawner: Spawner) -> bool:
    """Close it, give its number to somebody else, and close it again."""
    number = spawner._process
    spawner.close()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        os.dup2(null, number)
        spawner.close()
        spawner.kill()
        return _is_open(number)
    finally:
        for fd in {null, number}:
            os.close(fd)


def test_a_spawner_that_is_closed_again_closes_nothing_of_others() -> None:
    spawner = Spawner.start(None)
    assert _in_a_child(lambda: _closes_nothing_twice(spawner))
    assert _closes_nothing_twice(spawner)


def test_a_process_that_is_forked_beside_a_new_connection_has_no_copy_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _sockets()
    spawner = Spawner.start(None)
    hand_in = wire.hand_in
    came: list[bool] = []

    def fork_and_hand_in(door: socket.socket, connection: int) -> None:
        assert _sockets() > {door.fileno(), connection} | before
        came.append(_in_a_child(lambda: _sockets() <= before))
        hand_in(door, connection)

    try:
        monkeypatch.setattr(wire, "hand_in", fork_and_hand_in)
        spawner.connect().close()
        Spawner.start(None).close()
    finally:
        spawner.close()
    assert came == [True, True]


def test_a_process_that_is_forked_while_sockets_are_made_has_no_copy_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawner = Spawner.start(None)
    make = _socket.socketpair
    came: list[bool] = []

    def make_beside_a_fork(*args: int) -> tuple[_socket.socket, _socket.socket]:
        ours, theirs = make(*args)
        numbers = (ours.fileno(), theirs.fileno())
        forking.start(numbers)
        return ours, theirs

    class Forking:
        """Another thread, which forks at once."""

        def start(self, numbers: tuple[int, int]) -> None:
            self.thread = threading.Thread(
                target=lambda: came.append(_in_a_child(lambda: not any(map(_is_open, numbers))))
            )
            self.thread.start()
            self.thread.join(0.3)  # it forks now, unless it waits until they are made

    forking = Forking()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(_socket, "socketpair", make_beside_a_fork)
            connection = spawner.connect()
        forking.thread.join()
        assert came == [True]
        assert connection.is_open()
        connection.close()
    finally:
        spawner.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    """A server that lets everybody in."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()

        def greet() -> None:
            guest, _ = door.accept()
            guest.settimeout(30)
            with guest, suppress(OSError):  # who has heard enough may be gone
                wire.send(guest, wire.GREETING)
                guest.recv(1)

        thread = threading.Thread(target=greet)
        thread.start()
        yield path
        thread.join()


def test_a_process_that_is_forked_beside_a_connection_to_a_server_has_no_copy_of_it(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = client._sender
    came: list[bool] = []

    def fork_and_ask(channel: socket.socket) -> int | None:
        number = channel.fileno()
        came.append(_in_a_child(lambda: not _is_open(number)))
        return sender(channel)

    monkeypatch.setattr(client, "_sender", fork_and_ask)
    connect(listening).close()
    assert came == [True]


# --- whose server it is ---------------------------------------------------------------------------


def test_a_server_is_nobodys_where_strangers_have_ones_own_user_id(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def is_ambiguous(uid: int) -> bool:
        asked.append(uid)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(credentials, "is_ambiguous", is_ambiguous)
        with pytest.raises(SpawnerError, match="nobody can tell whose"):
            connect(listening).close()
    assert asked == [os.geteuid()]


@pytest.mark.parametrize(
    ("ids", "uid", "ambiguous"),
    [
        ("         0          0 4294967295\n", 77, False),
        ("         0       1000          1\n", 77, True),
        ("         0          0      65536\n", 77, True),
        ("         0          0 4294967294\n", 77, True),
        ("", 77, True),
        ("         0       1000          1\n", 0, False),
        ("         0       1000          1\n", 65534, False),
    ],
)
def test_strangers_have_one_user_id_in_a_namespace_that_does_not_know_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str, uid: int, ambiguous: bool
) -> None:
    files = {"/proc/sys/kernel/overflowuid": "77\n", "/proc/self/uid_map": ids}
    original = builtins.open

    def open_other(path: str, *args: Any, **options: Any) -> Any:
        other = tmp_path / path.replace("/", "-")
        other.write_text(files[path])
        return original(other, *args, **options)

    monkeypatch.setattr(credentials, "open", open_other, raising=False)
    assert credentials.is_ambiguous(uid) == ambiguous

"""The other side of a handoff, as honest or not as a test needs it, and what is left open after."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runner.grants.model import Request

# Far more than anything takes: it ends a test that would hang, and decides none.
PATIENCE = 60.0

Talk = Callable[[socket.socket], None]


def open_fds() -> set[int]:
    """What is open in this process; the number of the listing itself is as free before as after."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def new_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(PATIENCE)
    return made


def send(connection: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([payload], rights)


def forms(*names: str) -> bytes:
    return b"".join(f'(fd :name "{name}")'.encode() for name in names)


@contextlib.contextmanager
def null_fds(count: int) -> Iterator[list[int]]:
    """Open descriptors to send; closed at the end."""
    fds = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


class _Background(threading.Thread):
    """A thread whose error is the test's."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self.join(PATIENCE)
        assert not self.is_alive(), "the other side does not come to its end"
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread for as long as the block lasts, and wait for its end."""
    thread = _Background(work)
    thread.start()
    yield
    thread.finish()


@contextlib.contextmanager
def listening(path: Path, talk: Talk) -> Iterator[None]:
    """A peer that listens at `path` and talks to the first that connects; all is closed after."""

    def work() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                talk(connection)

    with new_socket() as listener:
        listener.bind(str(path))
        listener.listen()
        with beside(work):
            yield


@contextlib.contextmanager
def connecting(path: Path, talk: Talk) -> Iterator[None]:
    """A peer that connects to `path` as soon as somebody listens there."""

    def work() -> None:
        with new_socket() as connection:
            for _ in range(int(PATIENCE / 0.01)):
                try:
                    connection.connect(str(path))
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    threading.Event().wait(0.01)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                talk(connection)

    with beside(work):
        yield


def greeted(connection: socket.socket, *, limit: int = 16) -> None:
    assert connection.recv(100) == b"(ww-fdctl 1 (max %d))" % limit


def honest(*names: str, limit: int = 16) -> Talk:
    """A supervisor that hands over a /dev/null under each name."""

    def talk(connection: socket.socket) -> None:
        greeted(connection, limit=limit)
        with null_fds(len(names)) as fds:
            if names:
                send(connection, forms(*names), fds)
            send(connection, b"(end)")

    return talk


def offer(name: str, source: int, **fields: object) -> Request:
    return Request(name, source, "test")._replace(**fields)  # type: ignore[arg-type]

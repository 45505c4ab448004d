"""The spawner: the process that has a jail made for each cell and waits for its end.

It is started with an empty environment and holds nothing of its caller's. At its door come
connections: from the program that started it, or, of a server, from whoever may connect to its
socket. Each is served by a thread, and runs one cell at a time; when it ends, so does its cell.

What it does not do is cloning: that takes a process with one thread, and one that has never seen
what a cell was given; see :mod:`sandbox.zygote`.
"""

import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn, Protocol

import prctl

from sandbox import cgroups, delegation, descriptors, limits, waiting, wire
from sandbox.door import (
    Bounds,
    Door,
    Guest,
    Private,
    Public,
    SocketFile,
    notify,
    opened,
)
from sandbox.errors import JailError
from sandbox.lane import Lane, Store
from sandbox.order import Order
from sandbox.outcome import Outcome
from sandbox.policy import Limits
from sandbox.ready import ReadyJails
from sandbox.waiting import Ids, Waiting
from sandbox.wasi.cell import CellHost
from sandbox.zygote import Host, Zygote

# Seconds for all cells to end in.
_PATIENCE = 5.0


class CellStore(Host, Store, Protocol):
    """What has the compiled forms of cells, compiles them, and runs them."""


def main() -> NoReturn:
    """Be the process.

    The arguments are the cache's directory and its bound, or empty for none; how many jails are to
    be ready; and, for a server, how many connections it has at most, how many of them one client
    may have, the path of a socket to be removed in the end, or empty, and whom to tell when it is
    ready, or empty.
    """
    cache, bound, jails, connections, each, path, manager = sys.argv[1:8]
    bounds = Bounds(int(connections), int(each))
    file = SocketFile(path)
    door = opened(socket.socket(fileno=wire.SPAWNER_FD), bounds)
    try:
        become_spawner()
        if isinstance(door, Public) and os.getsid(0) != os.getpid():
            delegation.share_session()
        host = CellHost(cache or None, int(bound) if bound else None)
        spawner = Spawner.prepare(door, host, int(jails))
    except Exception as error:
        refuse(door, error)
    if path:
        _say(f"serving at {path}")
    notify(manager, "READY=1")
    failed = spawner.serve()
    notify(manager, "STOPPING=1")
    # As long as the door is open, no other server takes that path for one that nobody uses.
    file.remove()
    spawner.end()
    if failed:
        _say("error: the process that jails are cloned from has ended, and so does the server")
    os._exit(1 if failed else 0)


def _say(text: str) -> None:
    """Write a line of a server's on standard error."""
    with suppress(OSError):
        os.write(2, f"ww: {text}\n".encode(errors="backslashreplace"))


def become_spawner() -> None:
    """Give up what the caller had: descriptors, working directory, groups, a longer life.

    Raises:
        OSError: If any of it fails.
    """
    # The end of the connection is what ends it, and lets it clear up; but one that somebody has
    # stopped would not see that.
    prctl.set_pdeathsig(signal.SIGCONT)
    descriptors.close_all_but(range(wire.SPAWNER_FD + 1))
    os.chdir("/")
    # Python's own handler would wait for wasm code to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.geteuid() == 0:
        _drop_groups()
    limits.raise_descriptor_limit()


def _drop_groups() -> None:
    """Drop root's supplementary groups, which a cell may not do itself.

    Raises:
        OSError: EPERM where root is the root of a user namespace that denies it.
    """
    try:
        os.setgroups([])
    except OSError as error:
        raise OSError(error.errno, error.strerror, "setgroups") from error


def _failure(error: Exception) -> Outcome:
    """Return how every cell ends where the process could not get ready."""
    if isinstance(error, JailError):
        return Outcome("jail", error.errno, error.what, error.step)
    if isinstance(error, OSError):
        what = f"{error.filename or 'start'}: {error.strerror}"
        return Outcome("jail", error.errno or 0, what, "spawner")
    return Outcome("jail", 0, f"{type(error).__name__}: {error}", "spawner")


def refuse(door: Door, error: Exception) -> NoReturn:
    """End the process because no cell can run from here.

    The program whose own spawner this is, is told so in place of each outcome. A server says it on
    its standard error, and whoever connects to it hears nothing.

    Args:
        door: Where connections come from.
        error: What went wrong.
    """
    outcome = _failure(error)
    if isinstance(door, Private):
        while door.is_open:
            guest = door.accept([])
            if guest is not None:
                answers = threading.Thread(target=_answer_all, args=(guest, outcome), daemon=True)
                answers.start()
    else:
        _say(f"error: {outcome.step}: {outcome.what}")
    os._exit(1)


def _answer_all(guest: Guest, outcome: Outcome) -> None:
    """Answer each request on a connection with the same outcome, until it ends."""
    with suppress(OSError, EOFError, ValueError):
        while (request := wire.receive(guest.connection)) is not None:
            for fd in request[1]:
                os.close(fd)
            wire.send(guest.connection, outcome.encode())


class Spawner:
    """The state of the process: its door, its connections, and what it has made ready for cells."""

    @classmethod
    def prepare(cls, door: Door, host: CellStore, jails: int) -> "Spawner":
        """Make ready what every cell needs.

        Args:
            door: Where connections come from.
            host: What loads cells and runs them; it is used in processes that come from this one.
            jails: How many jails are kept ready.

        Raises:
            OSError: If a process cannot be made.
        """
        # It may move this process to another control group, and what is cloned later has to be
        # there too. It also removes what a dead spawner left.
        cgroups.available()
        return cls(door, host, Zygote.start(host, quiet=isinstance(door, Public)), jails)

    def __init__(self, door: Door, store: Store, zygote: Zygote, jails: int) -> None:
        """Begin to make jails; nothing is served yet.

        Args:
            door: Where connections come from.
            store: What has the compiled forms of cells.
            zygote: What jails are cloned from.
            jails: How many are kept ready.
        """
        self._door = door
        self._store = store
        self._zygote = zygote
        self._ready = ReadyJails(jails, self._make)
        self._lanes: dict[threading.Thread, Guest] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        # A program's own spawner ends with its door, and signals to it are as to any process.
        if isinstance(door, Public):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
                    signal.signal(number, self._stop)

    def _make(self, kind: Order, ids: Ids) -> Waiting:
        return waiting.make(self._zygote, kind, ids, Limits(), grouped=True)

    def serve(self) -> bool:
        """Serve each connection that comes, until there can be no more of them.

        That is when a private door is closed, or a signal asks a server to end.

        Returns:
            Whether it ends because no jail can be made any more.
        """
        # The boot switched it off, because what is made at first is never garbage.
        gc.freeze()
        gc.enable()
        zygote = os.pidfd_open(self._zygote.pid)
        events = select.poll()
        for source in (self._door.fileno(), self._wake, zygote):
            events.register(source, select.POLLIN)
        while not self._ending:
            happened = dict(events.poll())
            if zygote in happened:
                # Who asks a server to end may well ask all of its processes.
                return not self._ending
            if self._door.fileno() in happened:
                self._forget_ended()
                guest = self._door.accept(self._present())
                if guest is not None:
                    self._begin(guest)
                elif not self._door.is_open:
                    break
        return False

    def _begin(self, guest: Guest) -> None:
        lane = Lane(guest.connection, self._store, self._zygote, self._ready)
        thread = threading.Thread(target=lane.serve, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads may be made; whoever it was hears the connection end
            guest.connection.close()
        else:
            self._lanes[thread] = guest

    def _present(self) -> list[int]:
        """Return the clients of all connections that have not ended."""
        # Where a lane has closed one, its client may be here again before the thread is gone.
        return [g.client for g in self._lanes.values() if g.connection.fileno() >= 0]

    def _forget_ended(self) -> None:
        for thread in [thread for thread in self._lanes if not thread.is_alive()]:
            del self._lanes[thread]

    def _stop(self, *_: object) -> None:
        self._ending = True
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        """End all connections and their cells, and whatever else was made.

        What cannot be ended in time ends with this process, and what then is left of it is for the
        next spawner to find.
        """
        self._door.close()
        # Whoever waits for it sees that, even if somebody has stopped it.
        self._zygote.kill()
        for thread, guest in self._lanes.items():
            if thread.is_alive():
                _hang_up(guest.connection)
        self._ready.close()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._lanes:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._zygote.wait()


def _hang_up(connection: socket.socket) -> None:
    """End a connection that a thread reads from, which notices."""
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)

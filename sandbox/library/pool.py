"""Connections to a spawner, each for one cell at a time, and what happens when it ends."""

import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from sandbox.client import Connection
from sandbox.errors import CellKilled, SandboxError, SpawnerError
from sandbox.library.job import House, Job
from sandbox.library.result import Result

# Seconds in which a server takes notice that a connection of ours has ended, and between looks.
_PATIENCE = 2.0
_PAUSE = 0.02


class Busy(SpawnerError):
    """A server takes no more connections, of this program or at all; nothing was sent."""


class Root(Protocol):
    """What makes connections: a spawner of one's own, or the way to a server's."""

    def connect(self) -> Connection:
        """Make one; from any thread.

        Raises:
            SpawnerError: If there is no spawner any more.
            Busy: If it takes no more of them now.
            OSError: If this process has no descriptor or memory left for one.
        """

    def close(self) -> None:
        """End what is one's own of it."""

    def is_alive(self) -> bool:
        """Tell whether it can still make connections, as far as that can be known."""

    def has_ended(self) -> bool:
        """Tell whether it has ended, after one of its connections has."""


class Generation:
    """One spawner, from its start to its end, and its connections.

    A run belongs to the generation that it was asked of, and never goes on in another: what was
    asked of a spawner that has ended fails, and runs nowhere.
    """

    def __init__(self, root: Root) -> None:
        """Take over what makes connections."""
        self._root = root
        self._guard = threading.Lock()
        # Tells who waits for a connection that one may be had.
        self._changed = threading.Condition(self._guard)
        self._idle: list[Connection] = []
        self._taken = 0  # run something
        self._asking = 0  # are about to be made
        self._returned = 0  # so often was one given back or lost
        self._lost_at = -_PATIENCE  # of the monotonic clock: when one was closed
        self._over = False
        self._closing: int | None = None
        self._ended = threading.Event()

    @property
    def is_alive(self) -> bool:
        """Whether it can run something."""
        return not self._over and self._root.is_alive()

    def retire_if_ended(self) -> None:
        """After a connection has ended by itself, :meth:`retire` if that was the spawner's end."""
        if self._over or self._root.has_ended():
            self.retire()

    def take(self, unwanted: Callable[[], bool] = lambda: False) -> Connection | None:
        """Return a connection that runs nothing: the one that was used last, or a new one.

        Where a server takes no more of them, one that runs something is waited for.

        Args:
            unwanted: Whether nobody waits for it any more; asked after :meth:`wake`.

        Returns:
            ``None`` if nobody does.

        Raises:
            SpawnerError: If the spawner has ended, or a server takes not even one.
            OSError: As of :meth:`Root.connect`.
        """
        while True:
            with self._guard:
                if self._over:
                    raise SpawnerError(
                        "the spawner ended while the cell waited for it; the cell did not run"
                    )
                returned = self._returned
                self._asking += 1
            connection = busy = None
            try:
                connection = self._one_that_idles() or self._root.connect()
            except Busy as error:
                busy = error
            finally:
                with self._guard:
                    self._asking -= 1
                    self._taken += connection is not None
                if connection is None:
                    self._close_if_unused()
            if connection is not None:
                return connection
            if not self._wait(returned, unwanted):
                raise SpawnerError(f"{busy}; the cell did not run") from None
            if unwanted():
                return None

    def _wait(self, returned: int, unwanted: Callable[[], bool]) -> bool:
        """Wait until another attempt at a connection makes sense; false if none does.

        Args:
            returned: What was counted before the last one.
            unwanted: As of :meth:`take`.
        """
        with self._guard:
            if self._taken:
                self._changed.wait_for(
                    lambda: self._over or self._returned != returned or unwanted()
                )
                return True
            if self._returned != returned or self._over:
                return True
            if time.monotonic() < self._lost_at + _PATIENCE:
                # The server may still count what this program has closed.
                self._changed.wait(_PAUSE)
                return True
            return False

    def wake(self) -> None:
        """Have those who wait for a connection look whether they still want it."""
        with self._guard:
            self._changed.notify_all()

    def _one_that_idles(self) -> Connection | None:
        """Return the connection that was used last; a server may have ended one since."""
        while True:
            with self._guard:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_open():
                return connection
            connection.close()

    def give_back(self, connection: Connection, *, usable: bool) -> None:
        """Take a connection back, for the next.

        Args:
            connection: What :meth:`take` returned.
            usable: Whether nothing runs on it, and it works; otherwise it is closed.
        """
        with self._guard:
            kept = usable and not self._over
            if kept:
                self._idle.append(connection)
        if not kept:
            connection.close()
        self.lose(closed=not kept)

    def lose(self, *, closed: bool = True) -> None:
        """Count on a connection no more that was taken, and that somebody else closes.

        Args:
            closed: Whether it is no more, so that a server may take another.
        """
        with self._guard:
            self._taken -= 1
            self._returned += 1
            if closed:
                self._lost_at = time.monotonic()
            self._changed.notify_all()
        self._close_if_unused()

    def retire(self) -> None:
        """Begin nothing more. The spawner ends when the last of what it still runs has ended."""
        self._begin_no_more()
        self._close_if_unused()

    def end(self) -> None:
        """Begin nothing more, and end the spawner with whatever it still runs; wait for that."""
        self._begin_no_more()
        self._close()
        # A thread that was interrupted while it closed it would wait for itself.
        if self._closing != threading.get_ident():
            self._ended.wait()

    def let_go(self) -> None:
        """Close what this process has of it, which is the copy of another's."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._root.close()

    def _begin_no_more(self) -> None:
        with self._guard:
            self._over = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _close_if_unused(self) -> None:
        with self._guard:
            unused = self._over and not self._taken and not self._asking
        if unused:
            self._close()

    def _close(self) -> None:
        with self._guard:
            if self._closing is not None:
                return
            self._closing = threading.get_ident()
        try:
            self._root.close()
        finally:
            self._ended.set()


class Pool:
    """The generation that runs what is asked for now; when its spawner ends, the next one does."""

    def __init__(self, start: Callable[[], Root]) -> None:
        """Start the first.

        Args:
            start: Starts a spawner, or finds the way to one.

        Raises:
            OSError: If it cannot be started.
        """
        self._start = start
        self._guard = threading.Lock()
        self._generation = Generation(start())
        self._closed = False
        self._owner = os.getpid()

    @property
    def is_own(self) -> bool:
        """Whether it is this process's, and not that of one which this was forked from."""
        return self._owner == os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called, here or where this was forked from."""
        return self._closed

    def generation(self) -> Generation:
        """Return the one that a new run belongs to.

        Raises:
            SpawnerError: If there is none any more, and none can be started; in a process that
                was forked from the one that it is of.
        """
        if not self.is_own:
            raise SpawnerError(
                f"the sandbox is process {self._owner}'s, which this one was forked from: make one"
                " here"
            )
        with self._guard:
            if self._closed:
                raise SpawnerError("the sandbox is closed")
            if not self._generation.is_alive:
                self._generation.retire()
                try:
                    self._generation = Generation(self._start())
                except OSError as error:
                    raise SpawnerError(f"there is no spawner: {error}") from error
            return self._generation

    def close(self) -> None:
        """Begin nothing more, and end the spawner as soon as it runs nothing.

        In a process that was forked, only its own copies are closed, and the spawner goes on.
        """
        if not self.is_own:
            # Without the guard, which a thread of the other process may have held.
            if not self._closed:
                self._closed = True
                self._generation.let_go()
            return
        with self._guard:
            self._closed = True
            generation = self._generation
        generation.retire()

    def end(self) -> None:
        """After :meth:`close`, end the spawner whatever it runs, and wait until it has ended."""
        if self.is_own:
            self._generation.end()


class Run:
    """One run, which anybody who has it may kill."""

    def __init__(self, job: Job, generation: Generation, house: House, keep: object = None) -> None:
        """Take over a job, which is closed when the run is over.

        Args:
            job: What is to be run.
            generation: What runs it.
            house: What it has in common with others.
            keep: What is not to be forgotten before that.
        """
        self._keep: object = keep
        self.name = job.name
        self._job: Job | None = job
        self._generation = generation
        self._house = house
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self._killed = False
        self._over = False
        # The thread that has a cell run, as soon as there may be one; and whether that is no more.
        self._thread: int | None = None
        self._ended = threading.Event()

    def execute(self) -> Result:
        """Run it, once, and wait for its end.

        Raises:
            CellKilled: If it was killed.
            SpawnerError: If the spawner ended.
            SandboxError: As :meth:`sandbox.library.job.Job.run`.
            OSError: Likewise.
            ValueError: Likewise.
        """
        # Whoever keeps the result need not keep what was given to the cell.
        job, self._job = self._job, None
        if job is None:
            raise RuntimeError("a run is executed once")
        try:
            result = self._run(job)
        except (SandboxError, OSError, ValueError, TypeError):
            if self._settle():
                raise self._death() from None
            raise
        finally:
            self._ended.set()
            job.close()
            self._keep = None
        if self._settle():
            raise self._death()
        return result

    def _run(self, job: Job) -> Result:
        connection = self._take()
        # Whether the connection waits for the next cell: not if it broke, and not if this thread
        # was interrupted while a cell ran on it.
        usable = False
        try:
            result = job.run(connection, self._house)
            usable = True
        except SpawnerError:
            if not self._killed:
                self._generation.retire_if_ended()
            raise
        except (SandboxError, OSError, ValueError, TypeError):
            # It was before the cell, or what came of it was told, unless this process was short of
            # something in between.
            usable = connection.is_open()
            raise
        finally:
            with self._guard:
                mine, self._connection = self._connection, None
                killed = self._killed
            if mine is None:
                self._generation.lose()  # who kills the cell closes it
            else:
                self._generation.give_back(connection, usable=usable and not killed)
        return result

    def _take(self) -> Connection:
        """Return a connection, at which the cell can be killed from now on."""
        try:
            connection = self._generation.take(lambda: self._killed)
        except SpawnerError:
            # A server that has no connection left for this one goes on with the others.
            if not self._generation.is_alive:
                self._generation.retire()
            raise
        if connection is None:
            raise self._death()
        with self._guard:
            killed = self._killed
            if not killed:
                self._connection = connection
                self._thread = threading.get_ident()
        if killed:
            self._generation.give_back(connection, usable=True)
            raise self._death()
        return connection

    def _settle(self) -> bool:
        """Make it over: no kill counts that comes later.

        Returns:
            Whether one came before.
        """
        with self._guard:
            self._over = True
            return self._killed

    def _death(self) -> CellKilled:
        return CellKilled(self.name, "it was killed")

    def condemn(self) -> bool:
        """Have the cell end if it runs, and not run if it does not yet, without waiting for that.

        Returns:
            As :meth:`kill`, which is still to follow.
        """
        with self._guard:
            if self._over:
                return False
            if self._connection is not None and not self._killed:
                self._connection.hang_up()
            self._killed = True
        self._generation.wake()
        return True

    def kill(self, *, wait: bool = True) -> bool:
        """Kill the cell if it runs, and have it not run if it does not run yet.

        Args:
            wait: Return when the cell's process is gone, whoever else kills it too. Otherwise that
                is waited for only as long as a spawner may take to answer. The thread that runs
                the cell, in a handler of a signal, never waits for itself.

        Returns:
            Whether that comes in time: if so, :meth:`execute` raises :class:`CellKilled`.
        """
        if not self.condemn():
            return False
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if wait and self._thread not in (None, threading.get_ident()):
            self._ended.wait()
        return True

    def abandon(self) -> None:
        """Give up what it holds, because it will not be executed."""
        job, self._job = self._job, None
        self._keep = None
        if job is not None:
            job.close()


def has_ended(pid: int) -> bool:
    """Tell whether a child of this process has ended, and leave it to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # and somebody has waited for it


def comes_to_end(pid: int) -> bool:
    """Tell whether a child of this process has ended, or does so now.

    The kernel closes what a process had open before it tells that the process has ended.
    """
    deadline = time.monotonic() + _PATIENCE
    while not (ended := has_ended(pid)) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return ended

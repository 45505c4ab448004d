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
# Seconds until one who was refused asks a server again that others may have left.
_NEXT_ATTEMPT = 1.0


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

    Attributes:
        guard: Held while anything of it or of its runs changes, and never for long: whoever has it
            takes no other. A handler of a signal may take it again in the thread that has it, so
            what belongs together is changed without a call in between.
        asking: The runs whose connection is about to be made.
        taken: Those that have one.
        returned: So often was one given back or lost.
    """

    def __init__(self, root: Root) -> None:
        """Take over what makes connections."""
        self._root = root
        self.guard = threading.RLock()
        # Tells who waits for a connection that one may be had.
        self._changed = threading.Condition(self.guard)
        self._idle: list[Connection] = []
        self.asking: set[Run] = set()
        self.taken: set[Run] = set()
        self.returned = 0
        self._lost_at = -_PATIENCE  # of the monotonic clock: when one was closed
        self._over = False
        self._closing: int | None = None
        self._ended = _latch()

    @property
    def is_alive(self) -> bool:
        """Whether it can run something."""
        return not self._over and self._root.is_alive()

    @property
    def is_over(self) -> bool:
        """Whether it begins nothing more."""
        return self._over

    def retire_if_ended(self) -> None:
        """After a connection has ended by itself, :meth:`retire` if that was the spawner's end."""
        if self._over or self._root.has_ended():
            self.retire()

    def take(self, run: "Run") -> Connection | None:
        """Let a run have a connection that runs nothing: the one that was used last, or a new one.

        Where a server takes no more of them, one is waited for. Whatever comes of it, the run is
        to leave :attr:`asking` and :attr:`taken` again, after :meth:`take_back`.

        Returns:
            The run's connection, or ``None`` if it was killed.

        Raises:
            SpawnerError: If the spawner has ended, or a server takes not even one.
            OSError: As of :meth:`Root.connect`.
        """
        me = threading.get_ident()
        while True:
            with self.guard:
                if self._over:
                    raise SpawnerError(
                        "the spawner ended while the cell waited for it; the cell did not run"
                    )
                unwanted, returned = run.killed, self.returned
                if unwanted:
                    return None
                self.asking |= {run}
            try:
                connection = self._connect(run)
            except Busy as error:
                busy = error
            else:
                with self.guard:
                    self.taken |= {run}
                    self.asking -= {run}
                    if run.killed:
                        return None
                    run.thread = me
                    return connection
            if not self._wait(run, returned):
                raise SpawnerError(f"{busy}; the cell did not run") from None

    def _connect(self, run: "Run") -> Connection:
        """Let a run have the connection that was used last, or a new one.

        It has it at once: what a handler of a signal raises leaves none that is nobody's.
        """
        while True:
            with self.guard:
                if not self._idle:
                    break
                connection = run.connection = self._idle[-1]
                del self._idle[-1]
            if connection.is_open():  # a server may have ended it since
                return connection
            connection.close()
        connection = run.connection = self._root.connect()
        return connection

    def _wait(self, run: "Run", returned: int) -> bool:
        """Wait until another attempt at a connection makes sense; false if none does.

        Args:
            run: What asked for one in vain, and now asks no more.
            returned: What was counted before it did.
        """
        with self.guard:
            self.asking -= {run}
            # Another that asks may be let in, and will have one that can be waited for. If not, the
            # last of them gives up, and all others look again.
            if self.taken or self.asking:
                # A server may have room again whatever this program does.
                self._changed.wait_for(
                    lambda: (
                        self._over
                        or self.returned != returned
                        or run.killed
                        or not (self.taken or self.asking)
                    ),
                    _NEXT_ATTEMPT,
                )
                return True
            if self.returned != returned or self._over:
                return True
            if time.monotonic() < self._lost_at + _PATIENCE:
                # The server may still count what this program has closed.
                self._changed.wait(_PAUSE)
                return True
            return False

    def wake(self) -> None:
        """Have those who wait for a connection look whether they still want it."""
        with self.guard:
            self._changed.notify_all()

    def take_back(self, run: "Run", *, usable: bool) -> None:
        """Take back a run's connection, for the next one, if it has one.

        Args:
            run: What runs no more.
            usable: Whether nothing runs on it, and it works; otherwise it is closed.
        """
        with self.guard:
            # Without one, somebody has killed the cell, and closes it.
            connection, run.connection = run.connection, None
            if connection is not None and usable and not run.killed and not self._over:
                self._idle += [connection]
                return
            counted = run in self.taken or run in self.asking
        if connection is not None:
            connection.close()
        if counted:
            self._lost_at = time.monotonic()  # a server may take another now

    def settle(self) -> None:
        """See what follows when a run has left."""
        self.wake()
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
            with self._ended:
                pass

    def let_go(self) -> None:
        """Close what this process has of it, which is the copy of another's."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._root.close()

    def _begin_no_more(self) -> None:
        with self.guard:
            self._over = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _close_if_unused(self) -> None:
        with self.guard:
            unused = self._over and not self.taken and not self.asking
        if unused:
            self._close()

    def _close(self) -> None:
        me = threading.get_ident()
        mine = False
        try:
            with self.guard:
                if self._closing is None:
                    mine, self._closing = True, me
            if mine:
                self._root.close()
        finally:
            if mine:
                self._ended.release()


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
        # Held while a spawner is started, too, and then no other is taken: so whoever waits for it
        # in a handler of a signal, whatever the interrupted thread has, waits for the start only.
        self._guard = threading.RLock()
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
        before = self._generation
        if not before.is_alive:
            before.retire()
        late: Generation | None = None
        try:
            with self._guard:
                if not self._closed and self._generation is before and before.is_over:
                    late = self._start_next()
                    # Unless a handler of a signal was here meanwhile.
                    if not self._closed and self._generation is before:
                        self._generation, late = late, None
                if self._closed:
                    raise SpawnerError("the sandbox is closed")
                return self._generation
        finally:
            if late is not None:
                late.end()

    def _start_next(self) -> Generation:
        try:
            return Generation(self._start())
        except OSError as error:
            raise SpawnerError(f"there is no spawner: {error}") from error

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
    """One run, which anybody who has it may kill, in a handler of a signal too.

    Attributes:
        name: What the cell is called, for errors.
        connection: What it runs on, as soon as it has one; ``None`` again when somebody has killed
            it, who closes that, or when it was taken back.
        killed: Whether somebody wants it to end.
        thread: The one that has a cell run, as soon as there may be one.
    """

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
        # The same for all: one who has one and waits for another could wait for ever.
        self._guard = generation.guard
        self.connection: Connection | None = None
        self.killed = False
        self._over = False
        self.thread: int | None = None
        self._ended = _latch()  # and does so no more

    def execute(self) -> Result:
        """Run it, once, and wait for its end.

        Raises:
            CellKilled: If it was killed.
            SpawnerError: If the spawner ended.
            SandboxError: As :meth:`sandbox.library.job.Job.run`.
            OSError: Likewise.
            ValueError: Likewise.
        """
        job: Job | None = None
        try:
            # Whoever keeps the result need not keep what was given to the cell.
            with self._guard:
                job, self._job = self._job, None
            if job is None:
                raise RuntimeError("a run is executed once")
            result = self._run(job)
        except (SandboxError, OSError, ValueError, TypeError):
            if self._settle():
                raise self._death() from None
            raise
        finally:
            if job is not None:
                self._ended.release()
                job.close()
                self._keep = None
        if self._settle():
            raise self._death()
        return result

    def _run(self, job: Job) -> Result:
        generation = self._generation
        # Whether the connection waits for the next cell: not if it broke, and not if this thread
        # was interrupted while a cell ran on it.
        usable = False
        connection: Connection | None = None
        try:
            connection = generation.take(self)
            if connection is None:
                raise self._death()
            result = job.run(connection, self._house)
            usable = True
        except SpawnerError:
            # A server that has no connection left for this one goes on with the others.
            if connection is None:
                if not generation.is_alive:
                    generation.retire()
            elif not self.killed:
                generation.retire_if_ended()
            raise
        except (SandboxError, OSError, ValueError, TypeError):
            # It was before the cell, or what came of it was told, unless this process was short of
            # something in between.
            usable = connection is not None and connection.is_open()
            raise
        finally:
            try:
                generation.take_back(self, usable=usable)
            finally:
                # Not by a call, which a handler's exception may be the end of before it begins.
                with self._guard:
                    generation.asking -= {self}
                    generation.taken -= {self}
                    generation.returned += 1
                generation.settle()
        return result

    def _settle(self) -> bool:
        """Make it over: no kill counts that comes later.

        Returns:
            Whether one came before.
        """
        with self._guard:
            self._over = True
            return self.killed

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
            if self.connection is not None and not self.killed:
                self.connection.hang_up()
            self.killed = True
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
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
        if wait and self.thread not in (None, threading.get_ident()):
            with self._ended:
                pass
        return True

    def abandon(self) -> None:
        """Give up what it holds, because it will not be executed."""
        with self._guard:
            job, self._job = self._job, None
        self._keep = None
        if job is not None:
            job.close()


def _latch() -> threading.Lock:
    """Return a lock that is taken until something has come, for others to wait for that.

    An event has a lock of its own, which the thread may have that a handler of a signal interrupts.
    """
    lock = threading.Lock()
    lock.acquire()
    return lock


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

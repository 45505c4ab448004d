"""Threads that wait for sources, so that the one who asked can be interrupted.

They are daemons: a source that never answers keeps no program from ending.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from runner.content.car import read_car
from runner.content.cid import Cid
from runner.content.resolver import ContentPath
from runner.content.source import Source, Stream

_AHEAD = 4  # blocks of a stream that have come and that nobody has taken yet
_PATIENCE = 1.0  # seconds that the end of threads is waited for
_STEP = 0.1


class Done(NamedTuple):
    """A call that has ended.

    Attributes:
        key: As it was given.
        result: What it returned.
        error: What it raised, or None.
    """

    key: object
    result: Any
    error: Exception | None


class Crew:
    """Makes calls in a few threads. All methods are for one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[tuple[object, Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._open = 0

    def start(self, key: object, call: Callable[[], Any]) -> None:
        """Have a call made.

        Args:
            key: What it is known by.
            call: The call; it raises nothing but Exceptions.
        """
        self._calls.put((key, call))
        self._open += 1
        if self._open > len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, timeout: float) -> Done | None:
        """Return a call that has ended; None if none does in time.

        Args:
            timeout: Seconds.
        """
        try:
            done = self._done.get(timeout=timeout)
        except queue.Empty:
            return None
        self._open -= 1
        return done

    def close(self) -> None:
        """Make no more calls. Those under way should have been given a reason to end."""
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            key, call = job
            try:
                done = Done(key, call(), None)
            except Exception as error:  # it is raised where the result is taken
                done = Done(key, None, error)
            self._done.put(done)


class Arrived(NamedTuple):
    """A block that a stream has brought, verified."""

    cid: Cid
    block: bytes


class End(NamedTuple):
    """The end of a stream, and what has ended it before its time, if anything has."""

    error: Exception | None


class Arrivals:
    """One stream of blocks, read by a thread of its own and a little ahead.

    Attributes:
        source: Where it comes from.
    """

    def __init__(
        self, source: Source, path: ContentPath, *, everything: bool, max_size: int
    ) -> None:
        """Ask for it.

        Args:
            source: Whom to ask.
            path: What for.
            everything: Whether all that is below a directory is wanted.
            max_size: Bytes of the longest stream to read.
        """
        self.source = source
        self._path = path
        self._everything = everything
        self._max_size = max_size
        self._stream: Stream | None = None
        self._stopped = threading.Event()
        self._items: queue.Queue[Arrived | End] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> Arrived | End | None:
        """Return what has come next; None if nothing does in time.

        Args:
            timeout: Seconds.
        """
        try:
            return self._items.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Take no more of it."""
        self._stopped.set()
        if (stream := self._stream) is not None:
            stream.close()

    def join(self) -> None:
        """Wait a little for the thread, which has been given a reason to end."""
        self._thread.join(_PATIENCE)

    def _work(self) -> None:
        end = End(None)
        try:
            self._stream = self.source.car(self._path, everything=self._everything)
            if self._stream is not None:
                self._read(self._stream)
        except Exception as error:  # it belongs to whoever takes the end of the stream
            end = End(error)
        self._put(end)

    def _read(self, stream: Stream) -> None:
        try:
            car = read_car(stream, max_size=self._max_size, wanted=self._path.root)
            for cid, block in car:
                if not self._put(Arrived(cid, block)):
                    return
        finally:
            stream.close()

    def _put(self, item: Arrived | End) -> bool:
        """Hand something on; return whether anybody still wants it."""
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=_STEP)
            except queue.Full:
                continue
            return True
        return False

"""Cells as the work of a :class:`concurrent.futures.Executor`."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import repeat
from typing import Unpack

from sandbox.home import CACHE_SIZE
from sandbox.library.cell import CellSource
from sandbox.library.offer import Offer, Source
from sandbox.library.options import Options
from sandbox.library.pool import Run
from sandbox.library.result import Result
from sandbox.library.sandbox import DEFAULT_CACHE, Sandbox
from sandbox.policy import Isolation


class CellFuture(Future[Result]):
    """The result of a cell that runs, or will.

    As of every future, :meth:`cancel` keeps a cell from being started, and does nothing to one that
    runs. :meth:`kill` ends that too.

    Attributes:
        name: What the cell is called, for errors.
    """

    def __init__(self, run: Run) -> None:
        """Begin as one that waits; made by :meth:`CellExecutor.submit` only."""
        super().__init__()
        self._run = run
        self.name = run.name

    def kill(self) -> bool:
        """End the cell, wherever it is on its way.

        One that was not started is cancelled: :meth:`result` raises
        :class:`concurrent.futures.CancelledError`. The process of one that runs is killed and is
        gone when this returns, whoever else kills it too: :meth:`result` raises
        :class:`sandbox.CellKilled`.

        Returns:
            False if it was over already, and its result is there or about to be.
        """
        return self.cancel() or self._run.kill()


def _work(future: CellFuture) -> None:
    """Run a future's cell in this thread, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = future._run.execute()
    except BaseException as error:
        future.set_exception(error)
        # Its traceback holds this frame, which would hold the future that holds it.
        del future
    else:
        future.set_result(result)


class CellExecutor(Executor):
    """Runs cells, so many at a time, each in a jail of its own.

    What is submitted are cells and not functions; everything else is as of other executors. Each
    worker is a thread that has a connection to one spawner, which they share::

        with CellExecutor(max_workers=4) as executor:
            futures = [executor.submit(cell, ["x"], stdin=text) for text in texts]
            print([future.result().stdout for future in futures])

    If the spawner ends while cells wait and run, all their futures end with
    :class:`sandbox.SpawnerError`: none hangs, and none is run again, because nobody knows how far
    it came. What is submitted later is run by a new spawner.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        server: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = DEFAULT_CACHE,
        cache_size: int | None = CACHE_SIZE,
        jails: int | None = None,
        isolation: Isolation = "full",
        required: Iterable[str] = (),
        uid: int | None = None,
        gid: int | None = None,
        debug: bool = False,
    ) -> None:
        """Start the spawner.

        Args:
            max_workers: How many cells run at a time; by default as many as this process may use
                processors.
            server: As of :class:`sandbox.Sandbox`.
            cache: Likewise.
            cache_size: Likewise.
            jails: Likewise, but by default as many as there are workers.
            isolation: Likewise.
            required: Likewise.
            uid: Likewise.
            gid: Likewise.
            debug: Likewise.

        Raises:
            OSError: As of :class:`sandbox.Sandbox`.
            SpawnerError: Likewise.
            ValueError: Likewise, or if there would be no worker.
        """
        workers = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="cell")
        # A future may be killed in a handler of a signal, and tells of its end.
        self._guard = threading.RLock()
        self._futures: set[CellFuture] = set()
        self._over = False
        self._sandbox = Sandbox(
            server=server,
            cache=cache,
            cache_size=cache_size,
            jails=workers if jails is None else jails,
            isolation=isolation,
            required=required,
            uid=uid,
            gid=gid,
            debug=debug,
        )

    def submit(  # type: ignore[override]  # cells are submitted here, and no functions
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> CellFuture:
        """Have a cell run, as by :meth:`sandbox.Sandbox.run`, as soon as a worker is free.

        Descriptors are duplicated now, so the caller may close its own; a cell that is given as a
        path, and paths that are granted, are opened when the cell runs. A :class:`sandbox.Cell` is
        to stay open until its run has begun: if it was closed before, the future's exception is a
        ValueError, and nothing ran.

        Returns:
            Its future, whose result is a :class:`sandbox.Result`, and whose exceptions are those
            of :meth:`sandbox.Sandbox.run`.

        Raises:
            RuntimeError: After :meth:`shutdown`.
            SpawnerError: If there is no spawner, and none can be started.
            GrantError: If a descriptor is not open, or the grants do not keep the rules among
                themselves.
            OSError: If there is no descriptor left.
            ValueError: If an argument or an option cannot be.
            TypeError: If something is of another type than it has to be.
        """
        with self._guard:
            self._check_open()
        future = CellFuture(self._sandbox.prepare(cell, args, grants, **options))
        future.add_done_callback(self._done)
        try:
            with self._guard:
                self._check_open()
                self._futures |= {future}
                self._threads.submit(_work, future)
        except BaseException:
            # It may be in the queue all the same, or run already: a thread is started after that.
            future.kill()
            raise
        return future

    def _check_open(self) -> None:
        if self._over:
            raise RuntimeError("cannot submit a cell after shutdown")

    def map(  # type: ignore[override]  # as of submit
        self,
        cell: CellSource,
        args: Iterable[Iterable[str]] | None = None,
        grants: Iterable[Iterable[Offer]] | None = None,
        *,
        stdins: Iterable[Source] | None = None,
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Unpack[Options],
    ) -> Iterator[Result]:
        """Run one cell once for each of many inputs, and yield the results in their order.

        Args:
            cell: The cell.
            args: Lists of arguments, one list for each run.
            grants: Lists of grants, likewise.
            stdins: Standard inputs, likewise.
            timeout: Seconds from now until the last result is there.
            chunksize: Does nothing: a cell is never run together with others.
            **options: For each run; see :class:`sandbox.Options`.

        Raises:
            TypeError: If none of the three is given: nobody could tell how many runs there are.
            ValueError: As :meth:`submit`; what was submitted before is cancelled then.
            TimeoutError: By the iterator, if a result is not there in time. What was not started
                then is cancelled, and what runs goes on, as of every executor.
        """
        if args is None and grants is None and stdins is None:
            raise TypeError("map needs args, grants or stdins: one of each for each run")
        every = zip(
            repeat(()) if args is None else args,
            repeat(()) if grants is None else grants,
            repeat(options.get("stdin", b"")) if stdins is None else stdins,
            strict=False,
        )
        # From the call, and not from when the last is submitted.
        deadline = None if timeout is None else time.monotonic() + timeout
        futures: list[CellFuture] = []
        try:
            for each_args, each_grants, stdin in every:
                each: Options = {**options, "stdin": stdin}
                futures.append(self.submit(cell, each_args, each_grants, **each))
        except BaseException:
            # Nobody will ever ask for their results.
            for future in futures:
                future.cancel()
            raise
        return _results(futures, deadline)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, kill: bool = False
    ) -> None:
        """Take no more cells, and end the spawner when the last has ended.

        Args:
            wait: Return when that is done.
            cancel_futures: Cancel those that were not started.
            kill: Cancel those, and kill those that run.
        """
        with self._guard:
            self._over = True
            futures = tuple(self._futures)
        if cancel_futures or kill:
            for future in futures:
                future.cancel()
        if kill:
            # All of them first: each may take its time.
            for future in futures:
                future._run.condemn()
            for future in futures:
                future.kill()
        self._threads.shutdown(wait=wait)
        self._close_if_idle()

    def _done(self, future: Future[Result]) -> None:
        """Forget a future that is over."""
        with self._guard:
            self._futures -= {future}
        if future.cancelled() and isinstance(future, CellFuture):
            future._run.abandon()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._guard:
            idle = self._over and not self._futures
        if idle:
            self._sandbox.close()


def _results(futures: list[CellFuture], deadline: float | None) -> Iterator[Result]:
    """Return the results in their order, and hold on to none.

    Args:
        futures: All of them; whatever is left when the iterator ends is cancelled.
        deadline: Of :func:`time.monotonic`, or ``None``.
    """
    futures.reverse()

    def produce() -> Iterator[Result]:
        try:
            while futures:
                left = None if deadline is None else deadline - time.monotonic()
                yield _result_or_cancel(futures.pop(), left)
        finally:
            for future in futures:
                future.cancel()

    return produce()


def _result_or_cancel(future: CellFuture, timeout: float | None) -> Result:
    """Return a result; one that is not waited for any longer is not to be started either."""
    try:
        try:
            return future.result(timeout)
        finally:
            future.cancel()
    finally:
        # The traceback of its error holds this frame, which would hold it in turn.
        del future

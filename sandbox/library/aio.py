"""The sandbox for asyncio."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Self, Unpack

from sandbox.errors import CellKilled
from sandbox.home import CACHE_SIZE
from sandbox.library.cell import CellSource
from sandbox.library.executor import CellExecutor
from sandbox.library.offer import Offer
from sandbox.library.options import Options
from sandbox.library.result import Result
from sandbox.library.sandbox import DEFAULT_CACHE
from sandbox.policy import Isolation


class AsyncSandbox:
    """Runs cells for coroutines, so many at a time; whoever comes later waits without a thread.

    A coroutine that is cancelled, also by a timeout, has its cell killed::

        async with AsyncSandbox(max_concurrent=4) as sandbox:
            async with asyncio.timeout(1):
                result = await sandbox.run("hello.wasm", ["world"])
    """

    def __init__(
        self,
        max_concurrent: int | None = None,
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
        """Start the spawner; a loop need not run yet.

        Args:
            max_concurrent: How many cells run at a time; by default as many as this process may use
                processors.
            server: As of :class:`sandbox.Sandbox`.
            cache: Likewise.
            cache_size: Likewise.
            jails: Likewise, but by default as many as cells run at a time.
            isolation: Likewise.
            required: Likewise.
            uid: Likewise.
            gid: Likewise.
            debug: Likewise.

        Raises:
            OSError: As of :class:`sandbox.Sandbox`.
            SpawnerError: Likewise.
            ValueError: Likewise.
        """
        self._executor = CellExecutor(
            max_concurrent,
            server=server,
            cache=cache,
            cache_size=cache_size,
            jails=jails,
            isolation=isolation,
            required=required,
            uid=uid,
            gid=gid,
            debug=debug,
        )

    async def run(
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> Result:
        """Run a cell and wait for its end, as :meth:`sandbox.Sandbox.run`.

        When this raises :class:`asyncio.CancelledError`, which it does only if its task was
        cancelled, the cell does not run any more, or never did.

        Raises:
            CellKilled: Also if the sandbox was closed before the cell was started.
        """
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        future = self._executor.submit(cell, args, grants, **options)
        waiting = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            asked = task is None or task.cancelling() > cancelled_before
            if waiting.cancelled() and not asked:
                # Its task was not: a group of tasks would take that for nobody's failure.
                what = "the sandbox was closed before it started"
                raise CellKilled(future.name, what) from None
            # It is nobody's any more: the loop would tell that its exception was never asked for.
            waiting.add_done_callback(_look_at)
            if not future.done():
                await _until_done(waiting, _in_a_thread(future.kill))
            raise

    async def aclose(self) -> None:
        """Kill what still runs, and end the spawner."""
        await _in_a_thread(lambda: self._executor.shutdown(kill=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _in_a_thread(work: Callable[[], object]) -> asyncio.Future[None]:
    """Have something done that waits, and that nobody can cancel.

    The thread is its own: those of the loop's executor may all be taken, even by what waits for it.
    """
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def call() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=call, name="cell-end").start()
    return asyncio.wrap_future(done)


def _look_at(future: asyncio.Future[Result]) -> None:
    """Take note of how a future has ended."""
    if not future.cancelled():
        future.exception()


async def _until_done(*futures: asyncio.Future[Result] | asyncio.Future[None]) -> None:
    """Wait until all are done, also where the one who waits is cancelled again meanwhile."""
    left: set[asyncio.Future[Result] | asyncio.Future[None]] = set(futures)
    while left:
        try:
            _, left = await asyncio.wait(left)
        except asyncio.CancelledError:
            left = {future for future in left if not future.done()}

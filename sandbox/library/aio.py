"""The sandbox for asyncio."""

import asyncio
import os
from collections.abc import Iterable
from typing import Self, Unpack

from sandbox.errors import CellKilled
from sandbox.home import CACHE_SIZE
from sandbox.library.cell import CellSource
from sandbox.library.executor import CellExecutor
from sandbox.library.job import Options
from sandbox.library.offer import Offer
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
            if not future.done():
                # In a thread: it waits until the process is gone.
                killing = asyncio.get_running_loop().run_in_executor(None, future.kill)
                await asyncio.gather(waiting, killing, return_exceptions=True)
            raise

    async def aclose(self) -> None:
        """Kill what still runs, and end the spawner."""
        await asyncio.get_running_loop().run_in_executor(None, self._shutdown)

    def _shutdown(self) -> None:
        self._executor.shutdown(kill=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

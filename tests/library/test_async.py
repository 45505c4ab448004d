"""`AsyncSandbox`: cells for coroutines, which end with them."""

import asyncio
import gc
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import AsyncSandbox, Cell, CellKilled, CellRejected, Limits, SpawnerError, grant
from tests.library.conftest import Pipe


def run(main: Coroutine[object, object, None]) -> None:
    asyncio.run(main)


async def until_told(pipe: Pipe) -> None:
    await asyncio.get_running_loop().run_in_executor(None, pipe.wait_for_word)


def test_many_run_for_many_coroutines(cache: Path, tool: Cell) -> None:
    async def main() -> None:
        async with AsyncSandbox(2, cache=cache) as sandbox:
            cells = (sandbox.run(tool, ["copy=0"], stdin=b"%d" % n) for n in range(12))
            results = await asyncio.gather(*cells)
        assert [result.stdout for result in results] == [b"%d" % n for n in range(12)]

    run(main())


def test_what_goes_wrong_is_raised(cache: Path, tool: Cell) -> None:
    async def main() -> None:
        async with AsyncSandbox(1, cache=cache) as sandbox:
            with pytest.raises(CellRejected):
                await sandbox.run(b"no program")
            result = await sandbox.run(tool, ["spin"], limits=Limits(wall=0.2))
            assert result.outcome.limit == "wall"
        with pytest.raises((RuntimeError, SpawnerError)):
            await sandbox.run(tool)

    run(main())


def test_a_cancelled_coroutine_has_its_cell_killed(cache: Path, tool: Cell, pipe: Pipe) -> None:
    async def main() -> None:
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            task = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
            await until_told(pipe)
            holders = pipe.holders()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pipe.ends()
            assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in holders)
            assert (await sandbox.run(tool, ["say=on"])).stdout == b"on"

    run(main())


def test_however_often_it_is_cancelled_the_cell_is_gone(
    cache: Path, tool: Cell, pipe: Pipe
) -> None:
    """Also where the loop has no thread left for anything."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        go_on = threading.Event()
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            task = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
            await until_told(pipe)
            taken = loop.run_in_executor(None, go_on.wait, 60)
            try:
                while not task.done():
                    task.cancel()
                    await asyncio.sleep(0.01)
                assert task.cancelled()
                assert pipe.has_ended()
                assert not taken.done()
            finally:
                go_on.set()
            await taken

    run(main())


def test_the_loop_says_nothing_of_a_cell_whose_task_was_cancelled(
    cache: Path, tool: Cell, pipe: Pipe
) -> None:
    said: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            task = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
            await until_told(pipe)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # A future that nobody has asked tells so when it is collected.
            del task
            gc.collect()

    run(main())
    gc.collect()
    assert said == []


def test_a_timeout_kills_the_cell(cache: Path, tool: Cell, pipe: Pipe) -> None:
    async def main() -> None:
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await sandbox.run(tool, ["spin"], offers)
            assert pipe.ends()

    run(main())


def test_one_that_waits_is_cancelled_without_running(
    cache: Path, tool: Cell, tmp_path: Path, pipe: Pipe
) -> None:
    async def main() -> None:
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            first = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
            await until_told(pipe)
            mark = [grant("M", tmp_path / "mark", mode="w")]
            second = asyncio.create_task(sandbox.run(tool, ["tell=M"], mark))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        assert not (tmp_path / "mark").exists()

    run(main())


def test_leaving_the_block_kills_what_runs(cache: Path, tool: Cell, pipe: Pipe) -> None:
    async def main() -> None:
        async with AsyncSandbox(1, cache=cache) as sandbox:
            offers = [grant("OUT", pipe.writer, move=True)]
            task = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
            await until_told(pipe)
        assert pipe.ends()
        with pytest.raises(Exception, match="killed"):
            await task

    run(main())


def test_closing_is_no_cancellation_of_those_who_wait(cache: Path, tool: Cell, pipe: Pipe) -> None:
    """A group of tasks hears of it, and does not take it for the end of a task's own making."""

    async def main() -> None:
        sandbox = AsyncSandbox(1, cache=cache)
        offers = [grant("OUT", pipe.writer, move=True)]
        first = asyncio.create_task(sandbox.run(tool, ["tell=OUT", "spin"], offers))
        await until_told(pipe)

        async def wait_for_second() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(sandbox.run(tool))
                await asyncio.sleep(0)
                closing.append(asyncio.create_task(sandbox.aclose()))

        closing: list[asyncio.Task[None]] = []
        with pytest.raises(ExceptionGroup) as caught:
            await wait_for_second()
        assert [type(error) for error in caught.value.exceptions] == [CellKilled]
        with pytest.raises(CellKilled):
            await first
        await closing[0]

    run(main())

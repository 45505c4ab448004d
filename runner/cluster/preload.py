"""For ``dask worker --preload runner.cluster.preload``: a worker that runs cells from its start.

The worker does not start on a machine that does not give what a jail needs. Without this, such a
worker would take cells and refuse them, one after the other, faster than any other runs them.
"""

import asyncio
from typing import TYPE_CHECKING

from runner.cluster.worker import NAME, Cells

if TYPE_CHECKING:
    from distributed import Worker


async def dask_setup(worker: "Worker") -> None:
    """Make the sandbox, and try it; called by Dask.

    Raises:
        SystemExit: This machine does not give what a jail needs. Dask would only make a note of any
            other exception.
    """
    cells = Cells()
    await worker.plugin_add(plugin=cells, name=NAME, catch_errors=False)
    try:
        await asyncio.to_thread(cells.check)
    except Exception as error:
        await worker.plugin_remove(NAME)
        raise SystemExit(f"ww: error: this worker cannot run cells: {error}") from error

"""Workers and schedulers that are killed: every cell that was pending ends, and once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import dask
import pytest

from runner.cluster import ClusterError, ClusterExecutor, ClusterResult
from tests.cluster.machines import (
    PATIENCE,
    Machines,
    Shelf,
    address_of,
    connected,
    jobs_of,
    wait_until,
)
from tests.conftest import Leftovers


def processes_below(pid: int) -> set[int]:
    """A process and all that come from it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= processes_below(int(child))
    return found


def is_over(pid: int) -> bool:
    """Whether a process has ended, also if nobody has waited for it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def test_a_worker_that_is_killed_under_load_costs_no_result_and_leaves_nothing(
    shelf: Shelf, tmp_path: Path, leftovers: Callable[..., Leftovers]
) -> None:
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with (
        leftovers(),
        Machines(tmp_path, shelf.url, **once) as machines,
        connected(machines.address) as executor,
    ):
        client = executor.client
        machines.add("one", preload=False)
        machines.add("two", preload=False)
        client.wait_for_workers(2, timeout=PATIENCE)
        heard: Counter[int] = Counter()

        def hear(number: int) -> Callable[[Future[ClusterResult]], None]:
            return lambda future: heard.update([number])

        args = [["sleep", "200", f"{number}"] for number in range(12)]
        futures = [executor.submit(shelf.busy, each) for each in args]
        for number, future in enumerate(futures):
            future.add_done_callback(hear(number))
        wait_until(lambda: jobs_of(client, "one") >= 2, "it has work")
        machines.kill("one")
        results = [future.result(PATIENCE) for future in futures]
        assert [result.stdout for result in results] == [b"%d\n" % n for n in range(12)]
        assert address_of(client, "two") in {result.worker for result in results}
        wait_until(lambda: len(heard) == 12, "all are heard of")
        assert set(heard.values()) == {1}

        # One whose workers are lost again and again is given up.
        spinning = executor.submit(shelf.busy, ["spin"])
        wait_until(lambda: jobs_of(client, "two") == 1, "it spins")
        machines.kill("two")
        machines.add("three", preload=False)
        wait_until(lambda: jobs_of(client, "three") == 1, "it spins again")
        address = address_of(client, "three")
        machines.kill("three")
        error = spinning.exception(PATIENCE)
        assert isinstance(error, ClusterError)
        assert f"2 workers were lost with it, at last {address}" in str(error)


def test_a_worker_is_started_again_by_its_nanny_and_both_end_with_all_that_they_run(
    shelf: Shelf, tmp_path: Path, leftovers: Callable[..., Leftovers]
) -> None:
    with (
        leftovers(),
        Machines(tmp_path, shelf.url) as machines,
        connected(machines.address) as executor,
    ):
        client = executor.client
        machines.add("one", nanny=True)
        client.wait_for_workers(1, timeout=PATIENCE)
        spinning = executor.submit(shelf.busy, ["spin"])
        wait_until(lambda: jobs_of(client, "one") == 1, "it spins")
        address = address_of(client, "one")
        pid = client.run(os.getpid, workers=[address])[address]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: address_of(client, "one") not in ("", address), "it is back")
        assert executor.submit(shelf.hello).result(PATIENCE).ok
        wait_until(lambda: jobs_of(client, "one") == 1, "it spins again")
        machines.ask_to_end("one")
        spinning.cancel()


def test_no_cell_hangs_when_the_scheduler_is_lost_and_the_workers_end_with_theirs(
    shelf: Shelf, tmp_path: Path, leftovers: Callable[..., Leftovers]
) -> None:
    with (
        leftovers(),
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        Machines(tmp_path, shelf.url) as machines,
    ):
        machines.add("one", preload=False)
        executor = ClusterExecutor(machines.address)
        client = executor.client
        futures = [executor.submit(shelf.busy, ["spin"]) for _ in range(6)]
        wait_until(lambda: jobs_of(client, "one") >= 2, "they spin")
        processes = processes_below(machines.pid("one"))
        machines.kill("scheduler")
        for future in futures:
            error = future.exception(PATIENCE)
            assert isinstance(error, ClusterError)
            assert "the connection to the scheduler was lost" in str(error)
        wait_until(lambda: all(map(is_over, processes)), "the worker ends, and its cells")
        late = executor.submit(shelf.hello)
        assert isinstance(late.exception(PATIENCE), ClusterError)
        wait_until(lambda: client.status == "closed", "the client gives up")
        with pytest.raises(ClusterError):
            executor.submit(shelf.hello)
        executor.shutdown()
        with pytest.raises(ClusterError, match="it cannot be reached"):
            ClusterExecutor(machines.address)

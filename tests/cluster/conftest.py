"""The fixtures of the tests of clusters: one cluster for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runner.cluster import ClusterExecutor
from tests.cluster.machines import PATIENCE, Machines, Shelf


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    """A gateway on loopback with some cells."""
    made = Shelf()
    with made.liar:
        yield made


@pytest.fixture(scope="module")
def machines(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler and two workers: one, two."""
    with Machines(tmp_path_factory.mktemp("cluster"), shelf.url) as made:
        made.add("one")
        made.add("two")
        yield made


@pytest.fixture(scope="module")
def cluster(machines: Machines) -> Iterator[ClusterExecutor]:
    """An executor that is connected, with both workers there."""
    executor = ClusterExecutor(machines.address)
    try:
        executor.client.wait_for_workers(2, timeout=PATIENCE)
        yield executor
    finally:
        executor.shutdown(kill=True)

"""Cells on the machines of a Dask cluster, by the interface of :class:`sandbox.CellExecutor`.

A cell travels as its address, and each worker fetches and verifies it by itself. Bytes go in, and
bytes come out. It needs ``pip install 'wetware[dask]'``; see docs/cluster.md.
"""

try:
    import distributed as _distributed  # noqa: F401
except ImportError as error:
    raise ImportError(
        "runner.cluster needs dask.distributed: pip install 'wetware[dask]'", name=error.name
    ) from error

from runner.cluster.executor import ClusterExecutor, ClusterFuture
from runner.cluster.job import ClusterError, ClusterResult

__all__ = ["ClusterError", "ClusterExecutor", "ClusterFuture", "ClusterResult"]

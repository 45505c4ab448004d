"""The mechanism side: jails cells and runs them.

It reads no flags and no S-expressions, and knows nothing of IPFS.

What is named here is all that others use. The engine is loaded by the spawner's process only.

A Python program that runs cells begins with :class:`Sandbox`, :class:`AsyncSandbox` or
:class:`CellExecutor`.
"""

from __future__ import annotations

from sandbox.client import Connection, Spawner, connect, serve
from sandbox.errors import (
    CellError,
    CellKilled,
    CellRejected,
    GrantError,
    HostError,
    JailError,
    SandboxError,
    SpawnerError,
)
from sandbox.grants import FIRST_PREOPEN, LAST_STANDARD, Grant
from sandbox.outcome import Outcome, Usage
from sandbox.plan import COMPONENT_MAGIC, Plan
from sandbox.policy import FEATURES, ISOLATIONS, NETWORKS, Limits
from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox import granting
    from sandbox.credentials import is_ambiguous
    from sandbox.features import Feature, probe_features
    from sandbox.granting import GrantRequest
    from sandbox.home import CACHE_SIZE, cache_home
    from sandbox.library.aio import AsyncSandbox
    from sandbox.library.cell import Cell, CellSource
    from sandbox.library.executor import CellExecutor, CellFuture
    from sandbox.library.offer import Offer, Source, grant
    from sandbox.library.options import Options, check_options
    from sandbox.library.requests import check_offers, make_requests
    from sandbox.library.result import CellFailed, Result
    from sandbox.library.sandbox import Sandbox
    from sandbox.order import check_chroot
    from sandbox.sharing import as_before
    from sandbox.wasi.artifacts import Cache, Entry
    from sandbox.words import FdType, Isolation, LimitName, Mode, Network
else:
    # What a run does not need in this process, and the module that it is in.
    _ON_DEMAND = {
        "AsyncSandbox": "library.aio",
        "CACHE_SIZE": "home",
        "Cache": "wasi.artifacts",
        "Cell": "library.cell",
        "CellExecutor": "library.executor",
        "CellFailed": "library.result",
        "CellFuture": "library.executor",
        "CellSource": "library.cell",
        "Entry": "wasi.artifacts",
        "FdType": "words",
        "Feature": "features",
        "GrantRequest": "granting",
        "Isolation": "words",
        "LimitName": "words",
        "Mode": "words",
        "Network": "words",
        "Offer": "library.offer",
        "Options": "library.options",
        "Result": "library.result",
        "Sandbox": "library.sandbox",
        "Source": "library.offer",
        "as_before": "sharing",
        "cache_home": "home",
        "check_chroot": "order",
        "check_offers": "library.requests",
        "check_options": "library.options",
        "grant": "library.offer",
        "is_ambiguous": "credentials",
        "make_requests": "library.requests",
        "probe_features": "features",
    }

    def __getattr__(name: str) -> object:
        """Import on demand; PEP 562."""
        if name not in _ON_DEMAND:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # importlib.import_module, but for the import of importlib.
        module = __import__(f"{__name__}.{_ON_DEMAND[name]}", fromlist=(name,))
        return getattr(module, name)


__all__ = [
    "CACHE_SIZE",
    "COMPONENT_MAGIC",
    "FEATURES",
    "FIRST_PREOPEN",
    "ISOLATIONS",
    "LAST_STANDARD",
    "NETWORKS",
    "AsyncSandbox",
    "Cache",
    "Cell",
    "CellError",
    "CellExecutor",
    "CellFailed",
    "CellFuture",
    "CellKilled",
    "CellRejected",
    "CellSource",
    "Connection",
    "Entry",
    "FdType",
    "Feature",
    "Grant",
    "GrantError",
    "GrantRequest",
    "HostError",
    "Isolation",
    "JailError",
    "LimitName",
    "Limits",
    "Mode",
    "Network",
    "Offer",
    "Options",
    "Outcome",
    "Plan",
    "Record",
    "Result",
    "Sandbox",
    "SandboxError",
    "Source",
    "Spawner",
    "SpawnerError",
    "Usage",
    "as_before",
    "cache_home",
    "check_chroot",
    "check_offers",
    "check_options",
    "connect",
    "grant",
    "granting",
    "is_ambiguous",
    "make_requests",
    "probe_features",
    "serve",
]

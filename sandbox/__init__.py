"""The mechanism side: jails cells and runs them. Knows nothing of flags, IPFS or S-expressions.

What is named here is all that others use. The engine is loaded by the spawner's process only.
"""

from typing import TYPE_CHECKING

from sandbox.client import Spawner
from sandbox.errors import JailError, SandboxError, SpawnerError
from sandbox.features import Feature, probe_features
from sandbox.grants import FIRST_PREOPEN, LAST_STANDARD, FdType, Grant, Mode
from sandbox.outcome import Outcome
from sandbox.plan import COMPONENT_MAGIC, Plan
from sandbox.policy import FEATURES, Isolation, LimitName, Limits, Network

if TYPE_CHECKING:
    from sandbox.wasi.artifacts import Cache, Entry
else:

    def __getattr__(name: str) -> object:
        """Import on demand what a run does not need in this process; PEP 562."""
        if name not in ("Cache", "Entry"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sandbox.wasi import artifacts

        return getattr(artifacts, name)


__all__ = [
    "COMPONENT_MAGIC",
    "FEATURES",
    "FIRST_PREOPEN",
    "LAST_STANDARD",
    "Cache",
    "Entry",
    "FdType",
    "Feature",
    "Grant",
    "Isolation",
    "JailError",
    "LimitName",
    "Limits",
    "Mode",
    "Network",
    "Outcome",
    "Plan",
    "SandboxError",
    "Spawner",
    "SpawnerError",
    "probe_features",
]

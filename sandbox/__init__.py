"""The mechanism side: jails cells and runs them. Knows nothing of flags, IPFS or S-expressions.

What is named here is all that others use. The engine is loaded by the spawner's process only.
"""

from sandbox.client import Spawner
from sandbox.errors import JailError, SandboxError, SpawnerError
from sandbox.features import Feature, probe_features
from sandbox.grants import FIRST_PREOPEN, FdType, Grant, Mode
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from sandbox.policy import FEATURES, Isolation, LimitName, Limits, Network

__all__ = [
    "FEATURES",
    "FIRST_PREOPEN",
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

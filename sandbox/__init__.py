"""The mechanism side: jails cells and runs them. Knows nothing of flags, IPFS or S-expressions.

What is named here is all that others use. The engine is loaded by the spawner's process only.
"""

from sandbox.client import Spawner
from sandbox.errors import JailError, SandboxError, SpawnerError
from sandbox.grants import FdType, Grant, Mode
from sandbox.outcome import Outcome
from sandbox.plan import Plan

__all__ = [
    "FdType",
    "Grant",
    "JailError",
    "Mode",
    "Outcome",
    "Plan",
    "SandboxError",
    "Spawner",
    "SpawnerError",
]

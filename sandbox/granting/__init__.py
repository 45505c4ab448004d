"""Grants before they are frozen: what is asked for, held against itself and against the kernel.

Who grants says what in :class:`GrantRequest`; what comes of all of them together are the
:class:`PlannedGrant` of a plan. Nothing is opened, moved or closed here.
"""

from __future__ import annotations

from sandbox.granting.environment import KEPT_PREFIX, TABLE, fds_table, variables
from sandbox.granting.kernel import Descriptor, describe
from sandbox.granting.planned import PlannedGrant, plan_requests
from sandbox.granting.preopens import TMP, guest_path
from sandbox.granting.request import NAME_LENGTH, GrantRequest, environment_key, is_name
from sandbox.granting.rules import (
    HEADROOM,
    MAX_TARGETS,
    STDIO_NAMES,
    assign_targets,
    check_requests,
    target_limit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox.granting.component import check_component
else:

    def __getattr__(name: str) -> object:
        """Import on demand what most cells do not need, which are no components; PEP 562."""
        if name != "check_component":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sandbox.granting.component import check_component

        return check_component


__all__ = [
    "HEADROOM",
    "KEPT_PREFIX",
    "MAX_TARGETS",
    "NAME_LENGTH",
    "STDIO_NAMES",
    "TABLE",
    "TMP",
    "Descriptor",
    "GrantRequest",
    "PlannedGrant",
    "assign_targets",
    "check_component",
    "check_requests",
    "describe",
    "environment_key",
    "fds_table",
    "guest_path",
    "is_name",
    "plan_requests",
    "target_limit",
    "variables",
]

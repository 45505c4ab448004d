"""``--with-console``: what a cell is told of the terminals among 0, 1 and 2."""

import os

from runner.grants.plan import GrantPlan
from runner.inherited import STDIO

# Where the size is asked for first: what is written there is what has to fit.
_BY_SIZE = (1, 2, 0)


def terminals(plan: GrantPlan) -> dict[int, int]:
    """Return the terminals that a cell has as 0, 1 or 2, each with its source."""
    return {
        entry.grant.target: entry.source
        for entry in plan.entries
        if entry.grant.target in STDIO and entry.source is not None and os.isatty(entry.source)
    }


def size_variables(sources: dict[int, int]) -> dict[str, str]:
    """Return ``LINES`` and ``COLUMNS``, as they are now; none for a terminal without a size.

    Args:
        sources: As :func:`terminals` returns them.
    """
    for target in _BY_SIZE:
        if target in sources:
            columns, lines = os.get_terminal_size(sources[target])
            if columns and lines:
                return {"LINES": str(lines), "COLUMNS": str(columns)}
    return {}

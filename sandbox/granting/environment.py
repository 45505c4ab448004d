"""What a cell is told about its grants, in its environment."""

from __future__ import annotations

from sandbox.granting.request import environment_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from sandbox.grants import Grant

TABLE: Final = "WW_FDS"
"""The variable that lists all grants."""

KEPT_PREFIX: Final = "WW_FD_"
"""How the variables that tell the number of one grant begin."""


def fds_table(grants: Iterable[Grant]) -> str:
    """The value of ``WW_FDS``: the named grants as one S-expression, in the order given.

    Names need no quoting: see :func:`sandbox.granting.is_name`.
    """
    entries = (
        f'({grant.name} (fd {grant.target}) (mode "{grant.mode}") (type "{grant.type}"))'
        for grant in grants
        if grant.name is not None
    )
    return f"({' '.join(entries)})"


def variables(grants: Iterable[Grant]) -> dict[str, str]:
    """The variables that tell of grants: the table, and the number of each.

    Args:
        grants: In target order.
    """
    named = [grant for grant in grants if grant.name is not None]
    numbers = {KEPT_PREFIX + environment_key(grant.name or ""): grant.target for grant in named}
    return {TABLE: fds_table(named)} | {key: str(number) for key, number in numbers.items()}

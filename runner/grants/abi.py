"""What a cell is told about its grants, and what ``--fd-verbose`` tells the user."""

from __future__ import annotations

from runner.errors import EXIT_USAGE, WwError
from sandbox import granting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.grants.plan import GrantPlan


def environment(plan: GrantPlan, extra: Sequence[str] = ()) -> dict[str, str]:
    """The cell's whole environment: its grants, and nothing of the caller's but ``extra``.

    Args:
        plan: The grants.
        extra: The values of the ``--env`` flags, ``K=V``, in their order.

    Raises:
        WwError: With code 2 if an extra variable is malformed, given twice, or one of those
            that tell of grants.
    """
    variables = granting.variables(plan.grants)
    for position, text in enumerate(extra, 1):
        key, value = _variable(text, f"--env #{position}")
        if key in variables:
            raise _bad(f"--env #{position}", f"the variable '{key}' is given twice")
        variables[key] = value
    return variables


def _variable(text: str, origin: str) -> tuple[str, str]:
    """Read ``K=V``; the value may be empty and may hold further ``=``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise _bad(origin, f"'{text}' is not a variable", "write --env NAME=VALUE")
    if key == granting.TABLE or key.startswith(granting.KEPT_PREFIX):
        raise _bad(origin, f"'{key}' is kept for grants", "choose another name")
    if "\0" in text:
        raise _bad(origin, f"the variable '{key}' holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        # WASI strings are UTF-8; Python keeps other bytes of an argument as lone surrogates.
        raise _bad(origin, f"the variable '{key}' is not valid UTF-8") from None
    return key, value


def _bad(origin: str, what: str, hint: str = "") -> WwError:
    return WwError(origin, what, hint=hint, code=EXIT_USAGE)


def verbose_lines(plan: GrantPlan) -> list[str]:
    """One line for each named grant, in target order; programs may parse them."""
    return [
        f"grant fd name={grant.name} num={grant.target} type={grant.type} mode={grant.mode}"
        f" move={_boolean(grant.move)} cloexec={_boolean(grant.cloexec)}"
        for grant in plan.grants
        if grant.name is not None
    ]


def _boolean(value: bool) -> str:
    return "true" if value else "false"

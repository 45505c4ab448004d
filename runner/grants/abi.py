"""What a cell is told about its grants, and what ``--fd-verbose`` tells the user."""

from collections.abc import Sequence
from typing import Final

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import environment_key
from runner.grants.plan import GrantPlan

TABLE: Final = "WW_FDS"
PREFIX: Final = "WW_FD_"


def fds_table(plan: GrantPlan) -> str:
    """The value of ``WW_FDS``: the named grants as one S-expression, in target order.

    Names need no quoting: see ``model.is_name``.
    """
    entries = (
        f'({grant.name} (fd {grant.target}) (mode "{grant.mode}") (type "{grant.type}"))'
        for grant in plan.grants
        if grant.name is not None
    )
    return f"({' '.join(entries)})"


def environment(plan: GrantPlan, extra: Sequence[str] = ()) -> dict[str, str]:
    """The cell's whole environment: its grants, and nothing of the caller's but ``extra``.

    Args:
        plan: The grants.
        extra: The values of the ``--env`` flags, ``K=V``, in their order.

    Raises:
        WwError: With code 2 if an extra variable is malformed, given twice, or one of those
            that tell of grants.
    """
    variables = {TABLE: fds_table(plan)}
    for grant in plan.grants:
        if grant.name is not None:
            variables[PREFIX + environment_key(grant.name)] = str(grant.target)
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
    if key == TABLE or key.startswith(PREFIX):
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

"""The command line of ``ww run`` as it usually is, read without click.

click takes longer to import than everything else of a run that a server has. So what is well formed
and plain is read here, and the rest is not: then click reads all of it, and says what is wrong. A
test holds that the two agree wherever this one reads at all.
"""

from __future__ import annotations

from runner.commands.flags import AS_JSON, EXPLAIN, RUN, WITH_EXEC, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# What click asks of the environment before it reads anything: for the completion of shells.
_COMPLETION = "_WW_COMPLETE"
# Nothing is run with these.
_FOR_CLICK = (EXPLAIN, AS_JSON, WITH_EXEC)
_DIGITS = frozenset("0123456789")
_MOST_DIGITS = 10


def read(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Read what follows ``ww run``.

    Args:
        args: The flags, the cell, and the cell's arguments.
        environ: ww's own environment.

    Returns:
        The values of all flags by their fields, and ``cell`` and ``args``; or None if that is for
        click to read.
    """
    if _COMPLETION in environ or any(o.variable in environ for o in RUN if o.variable):
        return None
    values = {option.field: _unsaid(option) for option in RUN if option is not WITH_EXEC}
    options = {option.flag: option for option in RUN if option not in _FOR_CLICK}
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            cell = next(rest, None)
            break
        if not arg.startswith("-"):
            cell = arg
            break
        flag, equals, text = arg.partition("=")
        option = options.get(flag)
        if option is None:
            return None
        if option.switch or (option.bare is not None and not equals):
            if equals:
                return None
            values[option.field] = True if option.switch else option.bare
            continue
        said = _value(option, text if equals else next(rest, None))
        if said is None:
            return None
        if option.multiple:
            values[option.field] += (said,)
        else:
            values[option.field] = said
    else:
        return None
    if not cell:
        return None
    return {**values, "cell": cell, "args": tuple(rest)}


def _unsaid(option: Option) -> Any:  # noqa: ANN401 - of the flag's kind
    """Return the value of a flag that is not given."""
    if option.multiple:
        return ()
    return False if option.switch else option.default


def _value(option: Option, text: str | None) -> Any:  # noqa: ANN401 - of the flag's kind
    """Return the value that a flag is given, or None if it is none that is taken here."""
    if text is None or (option.choices and text not in option.choices):
        return None
    if option.least is None:
        return text
    if not 1 <= len(text) <= _MOST_DIGITS or not _DIGITS.issuperset(text):
        return None
    if text[0] == "0" and text != "0":
        return None
    number = int(text)
    return number if number >= option.least and number <= (option.most or number) else None

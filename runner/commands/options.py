"""The flags of :mod:`runner.commands.flags` as click knows options, for the commands to have."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from runner.commands import flags
from runner.commands.flags import Option
from runner.commands.state import DEBUG
from runner.limits import Flag, is_number
from sandbox import Limits

_Decorator = Callable[[Callable[..., int]], Callable[..., int]]


class Number(click.IntRange):
    """A number within bounds, in plain decimal digits.

    click would call it an integer range, and take ``1_0``, ``01`` and the digits of every script.
    """

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as click has it
        """Read what is given as text; a default is a number already.

        Raises:
            click.BadParameter: It is none, or out of bounds.
        """
        if isinstance(value, str) and not is_number(value):
            self.fail(f"{value!r} is not a number in plain decimal digits.", param, ctx)
        return super().convert(value, param, ctx)


class _Switch(click.types.BoolParamType):
    """A flag without a value, or a variable that stands for it."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        """Read the variable.

        Raises:
            click.UsageError: It is neither yes nor no, with its name, and not that of the flag.
        """
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            name = param.envvar if param else ""
            raise click.UsageError(
                f"{name} is {value!r}, which is neither yes nor no (1 or 0)", ctx
            ) from None


def option(said: Option, **more: Any) -> _Decorator:  # noqa: ANN401 - whatever click takes
    """Return what gives a flag to a command.

    Args:
        said: The flag.
        more: What click is to know beside.
    """
    kind: click.ParamType[Any] | None = None
    if said.choices:
        kind = click.Choice(said.choices)
    elif said.least is not None:
        kind = Number(min=said.least, max=said.most)
    if said.switch:
        more["is_flag"] = True
        kind = _Switch()
    elif not said.multiple and said.default is not None:
        more["default"] = said.default
    return click.option(
        said.flag,
        said.field,
        help=said.help,
        metavar=said.metavar,
        type=kind,
        multiple=said.multiple,
        show_default=said.shown,
        envvar=said.variable or None,
        hidden=said.hidden,
        **more,
    )


def options(said: Sequence[Option]) -> _Decorator:
    """Return what gives flags to a command, in their order."""

    def add(command: Callable[..., int]) -> Callable[..., int]:
        for each in reversed(said):
            command = option(each)(command)
        return command

    return add


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj[DEBUG] = True


debug_option = option(flags.DEBUG, expose_value=False, is_eager=True, callback=_set_debug)
isolation_option = option(flags.ISOLATION)


def limit_options(limits: Sequence[Flag]) -> _Decorator:
    """Return what gives flags that limit a cell to a command, each with its default in the help."""

    def said(flag: Flag) -> Option:
        unlimited = "; none: no limit" if flag.optional else ""
        text = f"{flag.help} (default {flag.shown(Limits())}{unlimited})."
        return Option(flag.name, flag.field, text, flag.metavar)

    return options([said(flag) for flag in limits])


def content_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give the flags to a command that looks for content.

    It gets them together, as the keyword argument ``fetch``.
    """

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - whatever it takes
        fetch = flags.fetch_options(kwargs)
        for said in flags.CONTENT:
            del kwargs[said.field]
        return command(*args, fetch=fetch, **kwargs)

    return options(flags.CONTENT)(with_options)

"""``ww run``, for click."""

from collections.abc import Callable
from typing import Any

import click

from runner.commands import flags
from runner.commands.command import Silent
from runner.commands.flags import RUN
from runner.commands.options import debug_option, limit_options, option
from runner.commands.state import DEBUG, HEAD_START, INHERITED
from runner.launch import launch
from runner.limits import FLAGS


class _RunCommand(Silent):
    """A command with options whose value is optional.

    click gives such an option the argument that follows it, and here that is the cell.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give a bare option its value, wherever it stands before the cell."""
        bare = {said.flag: said.bare for said in RUN if said.bare is not None}
        values = {name for param in self.params for name in param.opts if not _is_switch(param)}
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "--":
            if args[at] in bare:
                args[at] = f"{args[at]}={bare[args[at]]}"
            at += 2 if args[at] in values else 1
        return super().parse_args(ctx, args)


def _is_switch(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and (param.is_flag or param.is_eager)


def _refuse_exec(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        raise click.UsageError("--with-exec is not available: a cell cannot start another yet")


def _run_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add all flags, in their order."""
    limits = {flag.name: flag for flag in FLAGS}
    for said in reversed(RUN):
        if said is flags.DEBUG:
            add = debug_option
        elif said is flags.WITH_EXEC:
            add = option(said, expose_value=False, callback=_refuse_exec)
        elif said.flag in limits:
            add = limit_options([limits[said.flag]])
        else:
            add = option(said)
        command = add(command)
    return command


@click.command(cls=_RunCommand, context_settings={"allow_interspersed_args": False})
@_run_options
@click.argument("cell")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(state: dict[str, Any], /, **values: Any) -> int:  # noqa: ANN401 - of each flag's kind
    """Run CELL in a jail, with ARGS and the descriptors that flags grant.

    CELL is /ipfs/CID[/PATH], /ipns/NAME[/PATH], a path with a slash in it, or a name on PATH.
    Of a CAR file it is the only root, ./cell.car#/PATH below that, or ./cell.car#CID[/PATH]. It
    gets ww's stdin, stdout and stderr, the grants, and nothing else: no file, no network, no
    variable of the environment. WW_FDS and WW_FD_<NAME> tell it the numbers. What it may use up
    is limited.

    \b
    Exit codes, other than the cell's own:
      1 failure   2 usage   65 grant refused   66 limit   67 jail
      126 not a cell   127 not found   134 trap   128+N signal N
    """
    if values["as_json"] and not values["explain"]:
        raise click.UsageError("--json goes with --explain")
    return launch(values, state[INHERITED], state[HEAD_START], debug=state[DEBUG])

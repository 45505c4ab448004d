"""``ww doctor``."""

import click

from runner.commands.command import Command
from runner.commands.options import debug_option


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug_option
def doctor(as_json: bool) -> int:
    """Try everything that a jail needs on this machine, and say what is missing and what mends it.

    \b
    Exit codes: 0 cells can run here, 67 they cannot
    """
    from runner.doctor import main

    return main(as_json=as_json)

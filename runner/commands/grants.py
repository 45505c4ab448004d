"""``ww grants``."""

import os

import click

from runner.commands.command import Group
from runner.commands.options import debug_option
from runner.output import print_on_stdout


@click.group(cls=Group)
def grants() -> None:
    """Work with tables of grants."""


@grants.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("--table-env", "table_env", multiple=True, metavar="NAME", help="As of ww run.")
@debug_option
@click.argument("file")
def check(as_json: bool, table_env: tuple[str, ...], file: str) -> int:
    """Check the table FILE (or -) and print the grants it makes, without running anything.

    Whether the descriptors are open, and allow what is asked, only a run can tell.
    """
    from runner.grants.collect import check_table

    print_on_stdout([check_table(file, table_env, os.environ, as_json=as_json)])
    return 0

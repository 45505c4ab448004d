"""``ww cache``."""

import os
from typing import Any

import click

from runner.cells import FetchOptions
from runner.commands.command import Group
from runner.commands.options import (
    content_options,
    debug_option,
    isolation_option,
    limit_options,
)
from runner.commands.state import DEBUG
from runner.launch import host_ids
from runner.limits import FLAGS, read_limits
from runner.output import print_on_stdout
from sandbox import Isolation

# The limits that hold for a compilation, or decide what is made, as they are without a run.
_LIMITS = {
    "wall": "End a compilation after so many seconds; with s, m or h",
    "cpu": "End it after so many seconds of processor time, rounded up to whole ones",
    "fuel": "Make forms for runs with --fuel, whatever the number; counting makes them slower",
    "memory": "Bytes of its memory; with K, M or G",
}


@click.group(cls=Group)
def cache() -> None:
    """Work with the compiled forms of cells that ww keeps.

    They are in $WW_HOME/cache, else $XDG_CACHE_HOME/ww, else ~/.cache/ww, and have at most
    $WW_CACHE_SIZE bytes together (default 2G; none: no bound): those used last are kept.
    """


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug_option
def list_(as_json: bool) -> int:
    """List the compiled forms: the SHA-256 of the cell, the size, the last use.

    The last used one is the first; the first to go is the last.
    """
    from runner.cache import listing

    print_on_stdout(listing(os.environ, as_json=as_json))
    return 0


@cache.command()
@debug_option
def clear() -> int:
    """Remove all compiled forms. Cells that run now are not disturbed."""
    from runner.cache import clear

    print_on_stdout([clear(os.environ)])
    return 0


@cache.command()
@limit_options([flag._replace(help=_LIMITS[flag.field]) for flag in FLAGS if flag.field in _LIMITS])
@isolation_option
@content_options
@debug_option
@click.argument("cells", metavar="CELL...", nargs=-1, required=True)
@click.pass_obj
def warm(
    state: dict[str, Any],
    /,
    cells: tuple[str, ...],
    isolation: Isolation,
    fetch: FetchOptions,
    **limits: str | None,
) -> int:
    """Compile each CELL, unless that was done before, and run nothing.

    CELL is what ww run takes. For each, a line says 'compiled' or 'cached'. One that fails does not
    keep the others from it; the exit code is then that of the first, as of ww run. The limits are
    for each compilation. Forms for runs with --fuel are made with --fuel, whatever the number.
    """
    from runner.cache import Warming, warm
    from runner.supervise import Ended, Signals

    try:
        with Signals():
            how = Warming(
                **host_ids(None),
                limits=read_limits(limits),
                isolation=isolation,
                fetch=fetch,
                debug=state[DEBUG],
            )
            return warm(cells, how, os.environ)
    except Ended as end:
        return 128 + end.signal

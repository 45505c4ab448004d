"""``ww serve``."""

import os
from typing import Any

import click

from runner.commands.command import Silent
from runner.commands.options import Number, debug_option
from runner.commands.state import INHERITED
from runner.errors import EXIT_USAGE, WwError

_JAILS, _CLIENTS, _PER_CLIENT = 4, 64, 16
# Each is a process, or a thread and its descriptors; more than that is a slip of the finger.
_MOST_JAILS, _MOST_CLIENTS = 1000, 10_000


@click.command(cls=Silent)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    help="Where to listen [WW_SOCKET]. Default: ww/spawner.sock in $XDG_RUNTIME_DIR, or for root in"
    " /run.",
)
@click.option(
    "--jails",
    metavar="N",
    type=Number(0, _MOST_JAILS),
    default=_JAILS,
    show_default=True,
    help="How many jails are kept ready for cells to come; each is a process.",
)
@click.option(
    "--clients",
    metavar="N",
    type=Number(1, _MOST_CLIENTS),
    default=_CLIENTS,
    show_default=True,
    help="How many connections there are at most; each runs one cell at a time.",
)
@click.option(
    "--per-client",
    metavar="N",
    type=Number(1, _MOST_CLIENTS),
    default=_PER_CLIENT,
    show_default=True,
    help="How many of them one process may have.",
)
@debug_option
@click.pass_obj
def serve(
    state: dict[str, Any], /, path: str | None, jails: int, clients: int, per_client: int
) -> int:
    """Keep a spawner for 'ww run' to find, so that cells start sooner.

    It serves the user who starts it, and nobody else. It listens at a socket of its own, or at the
    one that systemd passes. It ends at SIGTERM, SIGINT or SIGHUP, and all its cells with it.
    """
    if path == "":
        # A variable that is empty counts as unset; a flag was meant to say something.
        raise WwError("--socket", "it is empty", code=EXIT_USAGE)
    from runner.server import Bounds, become_server

    become_server(os.environ, state[INHERITED], path, Bounds(jails, clients, per_client))

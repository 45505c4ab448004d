"""``ww send-fds``."""

import os
from typing import Any

import click

from runner.commands.command import Silent
from runner.commands.flags import FD
from runner.commands.options import debug_option, option

# Here a grant is made for others, and no flag but this one makes any.
_FD = FD._replace(
    help="Send the descriptor NUM under a name. Keys, which are sent along: mode (r, w, rw), type "
    "(stream, file, socket), target (the number in the cell; from 10 up if not given), move, "
    "cloexec, pathlink (true, false). stdin, stdout and stderr need no =NUM. Repeatable."
)


@click.command("send-fds", cls=Silent, context_settings={"allow_interspersed_args": True})
@option(_FD)
@debug_option
@click.argument("path")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def send_fds(
    state: dict[str, Any], fds: tuple[str, ...], path: str, command: tuple[str, ...]
) -> int:
    """Hand descriptors to a waiting ww over the unix socket PATH[,KEY=VALUE...].

    \b
    ww send-fds ./s --fd db=3 3<>db            to a: ww run --fdctl ./s,listen=true ...
    ww send-fds ./s --fd db=3 -- CMD... 3<>db  CMD starts a: ww run --fdctl ./s ...

    Keys are listen, with which ww makes the socket and waits, and timeout, in seconds.

    With a command, ww makes the socket, starts it, sends to the first that connects, and ends
    with its exit code.
    """
    from runner.grants.handoff import send_command
    from runner.supervise import Ended, Signals

    try:
        with Signals():
            return send_command(path, fds, command, state["inherited"], os.environ)
    except Ended as end:
        return 128 + end.signal

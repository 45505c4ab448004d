"""Options that several commands have."""

import click

# Key of click's context object: whether errors show tracebacks.
DEBUG = "debug"


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj[DEBUG] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show tracebacks of errors.",
)

fd_option = click.option(
    "--fd",
    "fds",
    multiple=True,
    metavar="NAME[=NUM][,KEY=VALUE...]",
    help="Grant the descriptor NUM under a name. Keys: mode (r, w, rw), type (stream, file, "
    "socket), target (the number in the cell; from 10 up if not given), move, cloexec, pathlink "
    "(true, false). Without =NUM, the keys are for a grant of that name from another flag; stdin, "
    "stdout and stderr stand for what passes through. Repeatable.",
)

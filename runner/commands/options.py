"""Options that several commands have."""

import functools
from collections.abc import Callable
from typing import Any

import click

from runner.cells import MAX_SIZE, FetchOptions
from runner.limits import size, size_text

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

_CONTENT_OPTIONS = (
    click.option(
        "--ipfs",
        metavar="ADDR",
        help="The IPFS node to ask for content: a multiaddr, a URL, the folder of a Kubo "
        "repository, or off [WW_IPFS]. Default: the one of $IPFS_PATH or ~/.ipfs, or else "
        "/ip4/127.0.0.1/tcp/5001/http, if it is there.",
    ),
    click.option(
        "--gateway",
        "gateways",
        multiple=True,
        metavar="URL",
        help="A trustless gateway to ask after that [WW_GATEWAYS, IPFS_GATEWAY]. Repeatable.",
    ),
    click.option("--offline", is_flag=True, help="Ask nobody: what is on this disk has to do."),
    click.option(
        "--dnslink",
        is_flag=True,
        help="Believe the IPFS node what a domain in /ipns/DOMAIN stands for.",
    ),
    click.option(
        "--ipfs-insecure",
        "insecure",
        is_flag=True,
        help="Ask the IPFS node without TLS, though it is not on this machine.",
    ),
    click.option(
        "--max-size",
        default=size_text(MAX_SIZE),
        show_default=True,
        metavar="SIZE",
        help="Bytes of the largest file, or of all files together; with K, M or G.",
    ),
    click.option(
        "--progress",
        is_flag=True,
        help="Tell on stderr of what is fetched, and of what takes more than a second, also where "
        "that is no terminal.",
    ),
    click.option("--progress-json", is_flag=True, help="Tell of a fetch as JSON lines on stderr."),
)


def content_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of commands that look for content.

    The command gets them together, as the keyword argument ``fetch``.
    """

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - whatever it takes
        plain, as_json = kwargs.pop("progress"), kwargs.pop("progress_json")
        fetch = FetchOptions(
            ipfs=kwargs.pop("ipfs"),
            gateways=kwargs.pop("gateways"),
            offline=kwargs.pop("offline"),
            dnslink=kwargs.pop("dnslink"),
            insecure=kwargs.pop("insecure"),
            max_size=size(kwargs.pop("max_size"), "--max-size", least=1),
            progress="json" if as_json else "plain" if plain else "",
        )
        return command(*args, fetch=fetch, **kwargs)

    for option in reversed(_CONTENT_OPTIONS):
        option(with_options)
    return with_options

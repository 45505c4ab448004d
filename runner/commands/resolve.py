"""``ww resolve``."""

import os
from typing import TYPE_CHECKING

import click

from runner.commands.command import Command
from runner.commands.options import content_options, debug_option
from runner.output import print_on_stdout

if TYPE_CHECKING:
    from runner.cells import FetchOptions


@click.command(cls=Command)
@content_options
@debug_option
@click.argument("path")
def resolve(fetch: "FetchOptions", path: str) -> int:
    """Print the /ipfs/CID of what PATH names.

    PATH is /ipfs/CID[/PATH] or /ipns/NAME[/PATH]. The directories on the way are needed, and
    fetched if they are not in the store; the content that it leads to is not.
    """
    from runner.content.resolver import parse_path
    from runner.content.sources import find_path, open_content
    from runner.content.walk import find_cid

    with open_content(os.environ, fetch, address=path) as blocks:
        cid = find_cid(blocks, parse_path(find_path(path, blocks, fetch)))
    print_on_stdout([f"/ipfs/{cid}"])
    return 0

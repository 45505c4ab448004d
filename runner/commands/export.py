"""``ww export``."""

import os

import click

from runner.commands.options import debug_option
from runner.output import print_on_stdout


@click.command()
@click.option(
    "--cid-version",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="0 as 'ipfs add', 1 as 'ipfs add --cid-version 1'.",
)
@debug_option
@click.argument("path", type=click.Path())
def export(cid_version: int, path: str) -> int:
    """Add the file or directory PATH to the embedded blockstore and print its /ipfs/ path.

    The store is $WW_HOME, else $XDG_DATA_HOME/ww, else ~/.local/share/ww.
    """
    from runner.content.blockstore import Blockstore, store_home
    from runner.content.importer import import_path

    store = Blockstore(store_home(os.environ))
    cid = import_path(store, path, cid_version=cid_version)
    print_on_stdout([f"/ipfs/{cid}"])
    return 0

"""``ww export``."""

import os
from typing import Any

import click

from runner.commands.command import Command
from runner.commands.options import Number, debug_option
from runner.errors import EXIT_USAGE, WwError
from runner.output import print_on_stdout

# As runner.content.importer has them; that is imported when there is something to do.
_PROFILES = ("unixfs-v0-2015", "unixfs-v1-2025")


@click.command(cls=Command)
@click.option(
    "--cid-version",
    type=Number(0, 1),
    help="0 as 'ipfs add' (the default), 1 as 'ipfs add --cid-version 1'.",
)
@click.option(
    "--profile",
    type=click.Choice(_PROFILES),
    help="How content becomes blocks, as IPIP-499 names it; the first is what 'ipfs add' does.",
)
@click.option(
    "--pin/--no-pin",
    default=True,
    show_default=True,
    help="Whether ww store gc must keep it.",
)
@click.option("--hidden", is_flag=True, help="Take entries whose name begins with a dot too.")
@debug_option
@click.argument("path", type=click.Path(readable=False))
@click.pass_obj
def export(
    state: dict[str, Any],
    /,
    cid_version: int | None,
    profile: str | None,
    pin: bool,
    hidden: bool,
    path: str,
) -> int:
    """Add the file or directory PATH to the embedded blockstore and print its /ipfs/ path.

    With - for PATH, stdin is the file. The store is $WW_HOME, else $XDG_DATA_HOME/ww, else
    ~/.local/share/ww. Symbolic links are stored as links. What is exported is pinned, as by
    'ipfs add': it stays until ww store unpin and ww store gc.
    """
    from runner.content import importer, pins
    from runner.content.blockstore import Blockstore, store_home

    if profile is None:
        chosen = importer.BY_CID_VERSION[cid_version or 0]
    else:
        chosen = importer.PROFILES[profile]
        if cid_version not in (None, chosen.cid_version):
            raise WwError(
                "--cid-version",
                f"{profile} has CIDs of version {chosen.cid_version}",
                hint="give one of --cid-version and --profile",
                code=EXIT_USAGE,
            )
    name = "" if path == "-" else _name(path)
    with Blockstore(store_home(os.environ)) as store:
        if path == "-":
            if 0 in state["inherited"].nulled:
                raise WwError("stdin", "it is closed")
            cid = importer.import_stream(store, 0, "stdin", chosen)
        else:
            cid = importer.import_path(store, path, profile=chosen, hidden=hidden)
        if pin:
            pins.add(store.home, cid, name)
        print_on_stdout([f"/ipfs/{cid}"])
    return 0


def _name(path: str) -> str:
    """Return the last name of a path, also of one like ``.`` that does not say it.

    Raises:
        WwError: If it is below the working directory, and that was removed.
    """
    try:
        return os.path.basename(os.path.abspath(path))
    except OSError as error:
        hint = "the working directory is there no more"
        raise WwError(path, f"cannot read: {error.strerror}", hint=hint) from None

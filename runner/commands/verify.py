"""``ww verify``."""

import os

import click

from runner.commands.command import Command
from runner.commands.options import debug_option
from runner.errors import EXIT_USAGE, WwError
from runner.output import print_on_stdout


@click.command(cls=Command)
@debug_option
@click.argument("cid")
@click.argument("file", type=click.Path(readable=False))
def verify(cid: str, file: str) -> int:
    """Tell whether FILE, or a directory, has the address CID.

    It is cut into blocks in memory, in each way that is known to be in use, and the store is
    neither read nor written. CID may also be written /ipfs/CID.

    \b
    Exit codes: 0 it has, 1 it has not, 127 there is none,
    126 FILE, or something in it, cannot be read or can have no CID
    """
    from runner.content.cid import Cid
    from runner.content.errors import ContentError
    from runner.content.matching import find_match

    try:
        address = Cid.parse(cid.removeprefix("/ipfs/"))
    except ContentError as error:
        hint = "it is: ww verify CID FILE" if os.path.lexists(cid) else ""
        raise WwError("CID", f"'{cid[:80]}': {error}", hint=hint, code=EXIT_USAGE) from None
    print_on_stdout([f"{file}: has the CID {address}, {find_match(address, file)}"])
    return 0

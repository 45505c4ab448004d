"""``ww import``."""

import os
from typing import TYPE_CHECKING, Any

import click

from runner.commands.command import Command
from runner.commands.options import content_options, debug_option
from runner.commands.state import INHERITED
from runner.errors import EXIT_USAGE, WwError
from runner.output import STDOUT, print_on_stdout

if TYPE_CHECKING:
    from runner.cells import FetchOptions


@click.command("import", cls=Command)
@click.option(
    "-o", "--output", metavar="DEST", help="Where to bring it; the same as the second argument."
)
@click.option("-x", "--executable", is_flag=True, help="Make the file, or each file, executable.")
@click.option(
    "--symlinks",
    is_flag=True,
    help="Make symbolic links where the content has them; without this they are refused.",
)
@content_options
@debug_option
@click.argument("path")
@click.argument("destination", metavar="[DEST]", required=False, type=click.Path())
@click.pass_obj
def import_(
    state: dict[str, Any],
    /,
    output: str | None,
    executable: bool,
    symlinks: bool,
    fetch: "FetchOptions",
    path: str,
    destination: str | None,
) -> int:
    """Bring the file or directory PATH out to DEST on disk, and print where it is.

    PATH is /ipfs/CID[/PATH] or /ipns/NAME[/PATH]. Into a DEST that is a directory goes a file
    under its name, and of a directory what is in it; without DEST that is the working directory.
    Any other DEST is created, with the directories above it that are missing.

    Nothing that exists is overwritten, and what fails leaves nothing behind. Only if all went well
    but for printing where it is does the content stay, and the error says so.
    """
    from runner.content.extract import Options, extract
    from runner.content.resolver import parse_path
    from runner.content.sources import find_path, open_content
    from runner.supervise import Ended, Signals

    if output is not None and destination is not None:
        raise click.UsageError("DEST is given twice")
    where = next((place for place in (output, destination) if place is not None), ".")
    if not where:
        raise WwError("DEST", "it is empty", code=EXIT_USAGE)
    if where == "-":
        raise WwError("DEST", "- is no place on disk", hint="use ww store cat", code=EXIT_USAGE)
    try:
        with Signals(), open_content(os.environ, fetch, address=path) as blocks:
            found = parse_path(find_path(path, blocks, fetch))
            blocks.prepare(found, everything=True)
            options = Options(executable, symlinks, fetch.max_size)
            made = extract(blocks, found, where, options)
    except Ended as end:
        return 128 + end.signal
    try:
        if STDOUT in state[INHERITED].nulled:
            raise WwError("stdout", "it is closed")
        print_on_stdout([made])
    except WwError as error:
        # Whoever tries again would be told that it exists already.
        error.hint = f"nothing else has failed: the content is in {made}"
        raise
    return 0

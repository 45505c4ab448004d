"""``ww car``."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from runner.commands.command import Group
from runner.commands.options import debug_option
from runner.content.reading import stdin
from runner.content.replacing import replacing
from runner.errors import EXIT_USAGE, WwError, printable
from runner.output import STDOUT, print_on_stderr, print_on_stdout

if TYPE_CHECKING:
    from runner.content.carstore import Scope


@click.group(cls=Group)
def car() -> None:
    """Carry content as CAR files: all of its blocks in one file, to be verified by its CID."""


@car.command("import")
@click.option(
    "--max-size",
    default="4G",
    show_default=True,
    metavar="SIZE",
    help="Bytes of the largest CAR to take; with K, M or G.",
)
@click.option(
    "--pin/--no-pin",
    default=True,
    show_default=True,
    help="Whether ww store gc must keep what is below the roots.",
)
@debug_option
@click.argument("file", type=click.Path(readable=False))
@click.pass_obj
def import_(state: dict[str, Any], /, max_size: str, pin: bool, file: str) -> int:
    """Put the blocks of the CAR FILE into the store, and print the /ipfs/ path of each root.

    With - for FILE, the CAR is read from stdin. Every block is verified. The paths are printed,
    and pinned, if everything below every root is there, in the file or in the store before it.
    """
    from runner.content import pins
    from runner.content.blockstore import Blockstore, store_home
    from runner.content.carstore import import_car
    from runner.limits import size

    most = size(max_size, "--max-size", least=1)
    if file == "-" and 0 in state["inherited"].nulled:
        raise WwError("stdin", "it is closed")
    shown = "stdin" if file == "-" else file
    with Blockstore(store_home(os.environ)) as store, _reading(file) as stream:
        done = import_car(store, stream, shown, max_size=most)
        if pin:
            for root in done.roots:
                pins.add(store.home, root, "" if file == "-" else os.path.basename(file))
    if done.extras:
        what = f"{done.extras} of its {done.blocks} blocks are under none of its roots"
        print_on_stderr([printable(f"ww: warning: {shown}: {what}")])
    print_on_stdout([f"/ipfs/{root}" for root in done.roots])
    return 0


@contextlib.contextmanager
def _reading(file: str) -> Iterator[BinaryIO]:
    try:
        with stdin() if file == "-" else open(file, "rb") as stream:
            yield stream
    except OSError as error:
        shown = "stdin" if file == "-" else file
        raise WwError(shown, f"it cannot be read: {error.strerror}") from None


@car.command()
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    type=click.Path(),
    help="Where to write it, in place of stdout. A file there is replaced when the CAR is whole.",
)
@click.option(
    "--scope",
    type=click.Choice(("all", "entity")),
    default="all",
    show_default=True,
    help="All that is below PATH, or of a directory nothing that is in it.",
)
@debug_option
@click.argument("path")
def export(output: str, scope: "Scope", path: str) -> int:
    """Write what PATH names, /ipfs/CID[/PATH], as a CAR of version 1.

    Its only root is the CID of what PATH leads to. The blocks are in depth-first order, each
    once, so the same content always gives the same bytes.
    """
    from runner.content.blockstore import Blockstore, store_home
    from runner.content.car import write_car
    from runner.content.carstore import export_blocks
    from runner.content.resolver import parse_path
    from runner.content.walk import find_cid
    from runner.supervise import Ended, Signals

    parsed = parse_path(path)
    if not output:
        raise WwError("--output", "it is empty", code=EXIT_USAGE)
    if output == "-" and os.isatty(STDOUT):
        raise WwError("stdout", "a CAR is not for a terminal", hint="use -o", code=EXIT_USAGE)
    try:
        with Signals(), Blockstore(store_home(os.environ)) as store:
            cid = find_cid(store, parsed)
            with _writing(output) as out:
                write_car(out, [cid], export_blocks(store, parsed, cid, scope))
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # the reader has seen enough
    except Ended as end:
        return 128 + end.signal
    return 0


@contextlib.contextmanager
def _writing(file: str) -> Iterator[BinaryIO]:
    """Open what a CAR is written to: whole or not at all, if it is a file."""
    try:
        if file == "-":
            with open(STDOUT, "wb", closefd=False) as out:
                yield out
        elif os.path.exists(file) and not os.path.isfile(file):
            # A FIFO, say, which is not made here and cannot be replaced.
            with open(os.open(file, os.O_WRONLY | os.O_CLOEXEC), "wb") as out:
                yield out
        else:
            # Where a link leads, and not the link, is what is replaced.
            with replacing(os.path.realpath(file), 0o666) as out:
                yield out
    except BrokenPipeError:
        raise
    except OSError as error:
        shown = "stdout" if file == "-" else file
        raise WwError(shown, f"it cannot be written: {error.strerror}") from None

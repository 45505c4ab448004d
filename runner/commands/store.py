"""``ww store``."""

import os
import signal
from typing import TYPE_CHECKING

import click

from runner.commands.command import Group
from runner.commands.options import content_options, debug_option
from runner.errors import EXIT_FAILURE, EXIT_LIMIT, EXIT_NOT_FOUND, WwError, printable
from runner.output import STDOUT, print_on_stdout

if TYPE_CHECKING:
    from runner.cells import FetchOptions
    from runner.content.cid import Cid


@click.group(cls=Group)
def store() -> None:
    """Work with the embedded blockstore.

    It is $WW_HOME, else $XDG_DATA_HOME/ww, else ~/.local/share/ww.
    """


@store.command("path")
@debug_option
def path_() -> int:
    """Print where the store is, whether it exists or not."""
    print_on_stdout([_home()])
    return 0


@store.command("ls")
@click.option("--blocks", "as_blocks", is_flag=True, help="List every block, with its size.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug_option
def list_(as_blocks: bool, as_json: bool) -> int:
    """List what is pinned: the path and the name that it was exported under.

    With --blocks: a block does not say of what kind it is, so its CID is that of a raw block.
    """
    rows = _blocks() if as_blocks else _pins()
    if as_json:
        import json

        print_on_stdout([json.dumps(rows)])
    else:
        columns = ([printable(str(value)) for value in row.values() if value != ""] for row in rows)
        print_on_stdout(["\t".join(row) for row in columns])
    return 0


def _pins() -> list[dict[str, str | int]]:
    from runner.content.pins import pins

    return [{"path": f"/ipfs/{pin.cid}", "name": pin.name} for pin in pins(_home())]


def _blocks() -> list[dict[str, str | int]]:
    from runner.content.gc import blocks

    # By the last use, as they would go.
    found = ((block.cid, block.size) for block in sorted(blocks(_home())))
    return [{"cid": str(cid), "size": size} for cid, size in found if cid is not None]


@store.command()
@content_options
@debug_option
@click.argument("path")
def cat(fetch: "FetchOptions", path: str) -> int:
    """Write the file PATH to stdout, each block verified before it is written.

    What is not in the store is fetched. If a block is nowhere, what was written before it is right,
    but not the whole file; the exit code says so.
    """
    from runner.content.resolver import parse_path, resolve_file
    from runner.content.sources import find_path, open_content

    with open_content(os.environ, fetch, address=path) as blocks:
        found = find_path(path, blocks, fetch)
        blocks.prepare(parse_path(found))
        for chunk in resolve_file(blocks, found, max_size=fetch.max_size).chunks():
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[os.write(STDOUT, rest) :]
                except BrokenPipeError:
                    return 128 + signal.SIGPIPE  # the reader has seen enough
                except OSError as error:
                    raise WwError("stdout", f"it cannot be written: {error.strerror}") from None
    return 0


@store.command()
@click.option("--name", default="", help="A name for ww store ls.")
@content_options
@debug_option
@click.argument("path")
def pin(fetch: "FetchOptions", name: str, path: str) -> int:
    """Keep PATH and everything below it through every ww store gc, and print its /ipfs/CID.

    What is not in the store is fetched. --max-size is for all of its blocks together.
    """
    from runner.content import pins
    from runner.content.resolver import parse_path
    from runner.content.sources import find_path, open_content
    from runner.content.walk import below, find_cid

    total = 0

    def get(block: "Cid") -> bytes:
        nonlocal total
        data = blocks.get(block)
        total += len(data)
        if total > fetch.max_size:
            raise WwError(
                path,
                f"its blocks have more than {fetch.max_size} bytes",
                hint="allow more with --max-size",
                code=EXIT_LIMIT,
            )
        return data

    with open_content(os.environ, fetch, address=path) as blocks:
        found = parse_path(find_path(path, blocks, fetch))
        blocks.prepare(found, everything=True)
        cid = find_cid(blocks, found)
        for _ in below(get, cid, set(), leaves=True, expect=blocks.expect):
            pass
        blocks.store.sync()
        pins.add(blocks.store.home, cid, name)
    print_on_stdout([f"/ipfs/{cid}"])
    return 0


@store.command()
@debug_option
@click.argument("path")
def unpin(path: str) -> int:
    """Let ww store gc remove PATH, unless it is below something else that is pinned."""
    from runner.content import pins
    from runner.content.blockstore import Blockstore
    from runner.content.resolver import parse_path
    from runner.content.walk import find_cid

    with Blockstore(_home()) as blocks:
        cid = find_cid(blocks, parse_path(path))
    if not pins.remove(blocks.home, cid):
        raise WwError(f"/ipfs/{cid}", "is not pinned", hint="see ww store ls", code=EXIT_NOT_FOUND)
    print_on_stdout([f"/ipfs/{cid}"])
    return 0


@store.command()
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Stop as soon as all blocks together have no more bytes than this; with K, M or G.",
)
@click.option(
    "--wait",
    default="10",
    show_default=True,
    metavar="TIME",
    help="Seconds to wait for others to be done with the store.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing, and list what would be removed.")
@debug_option
def gc(max_size: str | None, wait: str, dry_run: bool) -> int:
    """Remove blocks that no pin needs, the least recently used first.

    Without --max-size that is all of them. A block's last use is known to the hour. Nothing is
    removed while a run, an export or a fetch uses the store: who that is, is told.
    """
    from runner.content.gc import collect
    from runner.limits import seconds, size
    from runner.units import size_shown

    most = 0 if max_size is None else size(max_size, "--max-size")
    done = collect(_home(), max_size=most, wait=seconds(wait, "--wait", least=0), dry_run=dry_run)
    lines = [f"{block.cid}\t{block.size}" for block in done.removed] if dry_run else []
    print_on_stdout(
        [
            *lines,
            f"blocks {'to remove' if dry_run else 'removed'}: {len(done.removed)}, "
            f"{size_shown(done.removed_size)}; left: {done.kept}, {size_shown(done.kept_size)}",
        ]
    )
    if max_size is not None and done.kept_size > most:
        raise WwError(
            "--max-size",
            f"what is pinned has {done.kept_size} bytes, more than {most}",
            hint="unpin some of it: ww store ls, ww store unpin",
            code=EXIT_FAILURE,
        )
    return 0


def _home() -> str:
    from runner.content.blockstore import store_home

    return store_home(os.environ)

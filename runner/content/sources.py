"""Whom to ask for content: what the user's flags and environment say.

In this order, each only if it is named or found:

1. the folder of a Kubo repository;
2. an IPFS node, over its RPC;
3. trustless gateways;
4. sources that other packages bring (:mod:`runner.content.source`).

Nothing here connects to anybody, and what would is not imported before a block is missing.
"""

from __future__ import annotations

import os

from runner.content.addresses import (
    DEFAULT_NODE,
    Endpoint,
    Folder,
    Malformed,
    parse_api_file,
    parse_gateway,
    parse_node,
)
from runner.content.blockstore import Blockstore, store_home
from runner.content.fetch import Fetched
from runner.errors import printable
from runner.suppress import suppress
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runner.cells import FetchOptions
    from runner.content.http import Limits
    from runner.content.shown import Shown
    from runner.content.source import Source, Watch


_NODE = "WW_IPFS"
_GATEWAYS = ("WW_GATEWAYS", "IPFS_GATEWAY")
_PATIENCE = "WW_FETCH_TIMEOUT"
_MAX_API_FILE = 4096


class Wanted(Record):
    """Whom the user wants to be asked, by flags or variables.

    Attributes:
        node: The node's address or its repository; None if there is to be none.
        named: Whether the user has named the node.
        gateways: The gateways.
    """

    node: Endpoint | Folder | None
    named: bool
    gateways: tuple[Endpoint, ...]


def open_content(
    environ: Mapping[str, str],
    options: FetchOptions,
    *,
    address: str = "",
    warn: Callable[[str], None] | None = None,
    quiet: bool = False,
) -> Fetched:
    """Return the user's store, with the user's sources behind it. Close it after use.

    Args:
        environ: ww's own environment.
        options: The user's flags.
        address: What is looked for, as the user named it, for whoever waits.
        warn: Tells the user of a source that is not asked any more; lines on stderr if not given.
        quiet: Whether not to show how far a fetch is.

    Raises:
        WwError: An address among the flags is malformed (code EXIT_USAGE), or there is no place
            for a store.
    """
    store = Blockstore(store_home(environ))
    if options.ipfs is not None or options.gateways:
        wanted(environ, options)  # what is wrong with a flag is told, whether it is used or not
    return Fetched(
        store,
        lambda watch: make_sources(environ, options, watch, warn or _warn),
        warn=warn or _warn,
        note=_note,
        make_shown=lambda: None if quiet else _shown(environ, options, address),
        max_size=options.max_size,
        no_sources="nobody else is asked, for --offline"
        if options.offline
        else "no source is known: name a node with --ipfs or a gateway with --gateway",
    )


def find_path(address: str, blocks: Fetched, options: FetchOptions) -> str:
    """Return the /ipfs/ path that an address stands for; that of /ipfs/ is its own.

    Args:
        address: ``/ipfs/CID[/PATH]`` or ``/ipns/NAME[/PATH]``.
        blocks: Whom to ask for the record of a name.
        options: The user's flags.

    Raises:
        WwError: The address is malformed, or its name cannot be resolved.
    """
    if not address.startswith("/ipns/"):
        return address
    from runner.content.ipns import resolve

    return resolve(
        address,
        blocks,
        blocks.store.home,
        dnslink=options.dnslink,
        offline=options.offline,
        tell=blocks.tell,
    )


def wanted(environ: Mapping[str, str], options: FetchOptions) -> Wanted:
    """Return whom the user wants to be asked. A variable that is empty counts as unset.

    Raises:
        WwError: An address is malformed (code EXIT_USAGE).
    """
    gateways = [parse_gateway(text, "--gateway") for text in options.gateways]
    for variable in _GATEWAYS:
        if not gateways:
            texts = environ.get(variable, "").replace(",", " ").split()
            gateways = [parse_gateway(text, variable) for text in texts]
    distinct = tuple(dict.fromkeys(gateways))
    if options.ipfs is not None:
        return Wanted(parse_node(options.ipfs, "--ipfs"), True, distinct)
    if environ.get(_NODE):
        return Wanted(parse_node(environ[_NODE], _NODE), True, distinct)
    # Without a home, what lies in the working directory is not to say who is asked.
    home = environ.get("IPFS_PATH") or os.path.join("/", environ.get("HOME", ""), ".ipfs")
    return Wanted(Folder(os.path.abspath(home)), False, distinct)


def make_sources(
    environ: Mapping[str, str],
    options: FetchOptions,
    watch: Watch,
    warn: Callable[[str], None],
) -> list[Source]:
    """Return the sources, in the order in which they are to be asked.

    Args:
        environ: ww's own environment.
        options: The user's flags.
        watch: Is told of the bytes that arrive.
        warn: Tells the user what cannot be used.

    Raises:
        WwError: An address or the time in a variable is malformed (code EXIT_USAGE).
    """
    who = wanted(environ, options)
    sources: list[Source] = []
    if isinstance(who.node, Folder) and (
        who.named or os.path.isdir(os.path.join(who.node.path, "blocks"))
    ):
        from runner.content.repository import Repository

        sources.append(Repository(who.node.path, named=who.named))
    if options.offline:
        return sources
    limits = _limits(environ)
    endpoint = who.node
    if isinstance(endpoint, Folder):
        endpoint = _running(endpoint, otherwise=None if who.named else DEFAULT_NODE, warn=warn)
    if endpoint is not None:
        from runner.content.kubo import Rpc

        named = who.named and not isinstance(who.node, Folder)
        sources.append(
            Rpc(endpoint, watch=watch, limits=limits, named=named, insecure=options.insecure)
        )
    if who.gateways:
        from runner.content.gateway import Gateway
        from runner.content.proxies import Proxies

        proxies = Proxies(environ)
        sources += [Gateway(at, watch=watch, limits=limits, proxies=proxies) for at in who.gateways]
    sources += _plugins(environ, warn)
    return sources


def _running(
    folder: Folder, *, otherwise: str | None, warn: Callable[[str], None]
) -> Endpoint | None:
    """Return where the node of a repository listens, as its file ``api`` says while it runs."""
    path = os.path.join(folder.path, "api")
    try:
        with open(path, encoding="utf-8") as file:
            return parse_api_file(file.read(_MAX_API_FILE))
    except OSError:
        pass
    except (Malformed, UnicodeDecodeError) as error:
        warn(f"{path}: not the address of a node: {error}")
    return None if otherwise is None else parse_api_file(otherwise)


def _plugins(environ: Mapping[str, str], warn: Callable[[str], None]) -> list[Source]:
    """Return the sources that other packages bring."""
    from importlib.metadata import entry_points

    from runner.content.source import ENTRY_POINTS, Source

    sources = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            source = entry.load()(environ)
        except Exception as error:  # it is anybody's code
            warn(f"source {entry.name}: {type(error).__name__}: {error}; it is not used")
            continue
        if isinstance(source, Source):
            sources.append(source)
        elif source is not None:
            warn(f"source {entry.name}: it is not a Source; it is not used")
    return sources


def _limits(environ: Mapping[str, str]) -> Limits:
    from runner.content.http import Limits
    from runner.limits import seconds

    patience = environ.get(_PATIENCE)
    return Limits(idle=seconds(patience, _PATIENCE, least=1)) if patience else Limits()


def _shown(environ: Mapping[str, str], options: FetchOptions, address: str) -> Shown | None:
    """Return what shows a fetch to the user, if anything is to."""
    from runner.output import STDERR

    if options.progress == "json":
        from runner.content.progress import Json

        return Json(address)
    # One on which a line can be replaced.
    terminal = os.isatty(STDERR) and environ.get("TERM", "dumb") != "dumb"
    if not terminal and not options.progress:
        return None
    from runner.content.progress import Text
    from runner.progress import Line

    return Text(address, Line() if terminal else None)


def _warn(text: str) -> None:
    _note(f"ww: warning: {text}")


def _note(text: str) -> None:
    from runner.output import STDERR, write_lines

    with suppress(OSError):  # nobody is there to be told
        write_lines(STDERR, [printable(text)])

"""The flags of ``ww run``, and those that other commands have too: each is said here, and once.

Two readers go by this: click (:mod:`runner.commands.options`), which knows how to help and what to
say of mistakes, and :mod:`runner.commands.plain`, which does not take 20 ms to import.
"""

from __future__ import annotations

from runner.cells import MAX_SIZE, FetchOptions
from runner.limits import FLAGS, size, size_text
from sandbox import FEATURES, ISOLATIONS, NETWORKS, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final


class Option(Record):
    """A flag of the command line.

    Attributes:
        flag: How it is written, with its dashes.
        field: The name by which the command gets its value.
        help: What it does, for people.
        metavar: What its value is, for people; of a choice, the choices.
        switch: Whether it has no value, and is either there or not.
        multiple: Whether it may be given several times; then its value is a tuple.
        default: Its value where it is not given; of a switch that is False, of one that may be
            given several times an empty tuple.
        shown: Whether the help tells the default.
        choices: All values that it may have; empty for any.
        least: The smallest number that it may be; None if it is no number.
        most: The largest, or None.
        variable: The variable of the environment that sets it; empty for none.
        bare: The value that it has if it is given without one; None if it must have one.
        hidden: Whether the help is silent about it.
    """

    flag: str
    field: str
    help: str = ""
    metavar: str | None = None
    switch: bool = False
    multiple: bool = False
    default: str | None = None
    shown: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    variable: str = ""
    bare: str | None = None
    hidden: bool = False


DEBUG: Final = Option("--debug", "debug", "Show tracebacks of errors.", switch=True)

FD: Final = Option(
    "--fd",
    "fds",
    "Grant the descriptor NUM under a name. Keys: mode (r, w, rw), type (stream, file, socket), "
    "target (the number in the cell; from 10 up if not given), move, cloexec, pathlink (true, "
    "false). Without =NUM, the keys are for a grant of that name from another flag; stdin, stdout "
    "and stderr stand for what passes through. Repeatable.",
    "NAME[=NUM][,KEY=VALUE...]",
    multiple=True,
)

ISOLATION: Final = Option(
    "--isolation",
    "isolation",
    "How the cell is kept apart. chroot is weaker, for root where no namespaces may be made.",
    default=ISOLATIONS[0],
    shown=True,
    choices=ISOLATIONS,
)

# Where content may come from.
CONTENT: Final = (
    Option(
        "--ipfs",
        "ipfs",
        "The IPFS node to ask for content: a multiaddr, a URL, the folder of a Kubo repository, or "
        "off [WW_IPFS]. Default: the one of $IPFS_PATH or ~/.ipfs, or else "
        "/ip4/127.0.0.1/tcp/5001/http, if it is there.",
        "ADDR",
    ),
    Option(
        "--gateway",
        "gateways",
        "A trustless gateway to ask after that [WW_GATEWAYS, IPFS_GATEWAY]. Repeatable.",
        "URL",
        multiple=True,
    ),
    Option("--offline", "offline", "Ask nobody: what is on this disk has to do.", switch=True),
    Option(
        "--dnslink",
        "dnslink",
        "Believe the IPFS node what a domain in /ipns/DOMAIN stands for.",
        switch=True,
    ),
    Option(
        "--ipfs-insecure",
        "insecure",
        "Ask the IPFS node without TLS, though it is not on this machine.",
        switch=True,
    ),
    Option(
        "--max-size",
        "max_size",
        "Bytes of the largest file, or of all files together; with K, M or G.",
        "SIZE",
        default=size_text(MAX_SIZE),
        shown=True,
    ),
    Option(
        "--progress",
        "progress",
        "Tell on stderr of what is fetched, and of what takes more than a second, also where that "
        "is no terminal.",
        switch=True,
    ),
    Option(
        "--progress-json",
        "progress_json",
        "Tell of a fetch as JSON lines on stderr.",
        switch=True,
    ),
)

# It is refused.
WITH_EXEC: Final = Option(
    "--with-exec", "with_exec", switch=True, variable="WW_WITH_EXEC", hidden=True
)

EXPLAIN: Final = Option(
    "--explain", "explain", "Print the whole plan and run nothing.", switch=True
)
AS_JSON: Final = Option("--json", "as_json", "With --explain: as JSON.", switch=True)

# What --use-systemd-fds grants is called by this and a number.
_SYSTEMD_PREFIX: Final = "listen"

# All of ``ww run``, in the order of the help.
RUN: Final = (
    FD,
    Option(
        "--dir",
        "dirs",
        "Grant the directory HOST, which the cell finds at the path GUEST (default: HOST), for "
        "reading, or for writing too, as dir1, dir2 and so on. Repeatable.",
        "HOST[:GUEST][:ro|rw]",
        multiple=True,
    ),
    Option(
        "--fd-map",
        "fd_maps",
        "Give a grant, from whatever flag, another number in the cell. Repeatable.",
        "NAME=TARGET",
        multiple=True,
    ),
    Option(
        "--fdctl",
        "fdctls",
        "Grant NUM as inherit_NUM; or receive descriptors over the unix socket PATH (keys: "
        "timeout, max, listen). Repeatable.",
        "inherit:NUM|PATH[,KEY=VALUE...]",
        multiple=True,
    ),
    Option(
        "--use-systemd-fds",
        "systemd",
        f"Grant what socket activation passed, as PREFIX0, PREFIX1 (default {_SYSTEMD_PREFIX}). "
        "The value, if any, is written behind a =.",
        "[=PREFIX]",
        bare=_SYSTEMD_PREFIX,
    ),
    Option(
        "--fd-from",
        "tables",
        "Read grants from a table of S-expressions. Repeatable; - is stdin.",
        "[@]FILE|-",
        multiple=True,
    ),
    Option(
        "--table-env",
        "table_env",
        "Let tables read this variable of ww's environment. Repeatable.",
        "NAME",
        multiple=True,
    ),
    Option("--fd-verbose", "fd_verbose", "Print one line for each grant on stderr.", switch=True),
    Option("--no-stdio", "no_stdio", "Give the cell /dev/null as 0, 1 and 2.", switch=True),
    Option("--env", "env", "Set a variable for the cell. Repeatable.", "K=V", multiple=True),
    Option(
        "--uid",
        "uid",
        "The user and group id on the host that the cell runs as, if ww runs as root (default "
        "65534).",
        least=1,
        most=(1 << 32) - 2,
    ),
    Option(
        "--invoke",
        "invoke",
        "Call this function of a core module in place of _start, with ARGS as numbers, after "
        "_initialize if there is one. Its results are printed on the cell's stdout.",
        "NAME",
    ),
    Option(
        "--unknown-imports-trap",
        "trap_unknown",
        "Run a cell that imports what is not offered: it traps if it calls that.",
        switch=True,
    ),
    WITH_EXEC,
    Option(
        "--with-ipfs",
        "with_ipfs",
        "Give the cell a read-only directory /ipfs of verified content. [WW_WITH_IPFS]",
        switch=True,
        variable="WW_WITH_IPFS",
    ),
    Option(
        "--with-console",
        "with_console",
        "Let the cell know that its 0, 1, 2 are terminals, and their size. [WW_WITH_CONSOLE]",
        switch=True,
        variable="WW_WITH_CONSOLE",
    ),
    Option(
        "--with-all",
        "with_all",
        "--with-ipfs and --with-console together. [WW_WITH_ALL]",
        switch=True,
        variable="WW_WITH_ALL",
    ),
    # Their help is written when it is asked for.
    *(Option(flag.name, flag.field, metavar=flag.metavar) for flag in FLAGS),
    Option(
        "--net",
        "network",
        "The cell's network: nothing, or a loopback interface of its own.",
        default=NETWORKS[0],
        shown=True,
        choices=NETWORKS,
    ),
    Option(
        "--require",
        "required",
        "Do not run the cell where the kernel does not have this. Repeatable.",
        multiple=True,
        choices=FEATURES,
    ),
    ISOLATION,
    *CONTENT,
    Option(
        "--grace",
        "grace",
        "Seconds that the cell may go on after a signal has asked ww to end.",
        "TIME",
        default="0",
        shown=True,
    ),
    Option(
        "--die-with-parent",
        "die_with_parent",
        "End the cell, as SIGTERM does, when the process that started ww ends.",
        switch=True,
    ),
    Option(
        "--no-serve",
        "no_serve",
        "Start a spawner for this run, even where 'ww serve' has one. [WW_SOCKET=off]",
        switch=True,
    ),
    EXPLAIN,
    AS_JSON,
    Option(
        "--status-fd",
        "status_fd",
        "Write what becomes of the run to this descriptor, as JSON lines.",
        "NUM",
        least=0,
    ),
    DEBUG,
)


def fetch_options(values: Mapping[str, Any]) -> FetchOptions:
    """Return what the flags of :data:`CONTENT` say together.

    Args:
        values: Of these flags, and maybe others, by their fields.

    Raises:
        WwError: With code 2 if the size is not well formed.
    """
    return FetchOptions(
        ipfs=values["ipfs"],
        gateways=values["gateways"],
        offline=values["offline"],
        dnslink=values["dnslink"],
        insecure=values["insecure"],
        max_size=size(values["max_size"], "--max-size", least=1),
        progress=("json" if values["progress_json"] else "plain" if values["progress"] else ""),
    )

"""``ww run``."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from runner.cells import FetchOptions
from runner.commands.options import DEBUG, content_options, debug_option, fd_option
from runner.errors import EXIT_USAGE, WwError, printable
from runner.limits import FLAGS, Flag, read_limits, seconds
from runner.output import STDOUT, print_on_stderr, write
from sandbox import FEATURES, Isolation, Limits, Network

if TYPE_CHECKING:
    from runner.grants.plan import GrantPlan
    from runner.supervise import Run


class _RunCommand(click.Command):
    """A command with an option whose value is optional.

    click gives such an option the argument that follows it, and here that is the cell.
    """

    _BARE = "--use-systemd-fds"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give the bare option its value, wherever it stands before the cell."""
        values = {name for param in self.params for name in param.opts if not _is_switch(param)}
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "--":
            if args[at] == self._BARE:
                args[at] = f"{self._BARE}={_SYSTEMD_PREFIX}"
            at += 2 if args[at] in values else 1
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            # click's parser does not say which command an option without its value is of.
            error.ctx = error.ctx or ctx
            raise


def _is_switch(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and (param.is_flag or param.is_eager)


# The names of systemd's descriptors where --use-systemd-fds gives none.
_SYSTEMD_PREFIX = "listen"


def limit_options(flags: Sequence[Flag]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return what adds flags that limit a cell, each with its default."""

    def add(command: Callable[..., int]) -> Callable[..., int]:
        for flag in reversed(flags):
            unlimited = "; none: no limit" if flag.optional else ""
            text = f"{flag.help} (default {flag.shown(Limits())}{unlimited})."
            option = click.option(flag.name, flag.field, metavar=flag.metavar, help=text)
            command = option(command)
        return command

    return add


isolation_option = click.option(
    "--isolation",
    type=click.Choice(get_args(Isolation)),
    default=get_args(Isolation)[0],
    show_default=True,
    help="How the cell is kept apart. chroot is weaker, for root where no namespaces may be made.",
)


def _refuse_exec(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        raise click.UsageError("--with-exec is not available: a cell cannot start another yet")


def _with_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the flags that give a cell more than descriptors, each with its variable."""
    for flag, text in (
        ("--with-all", "--with-ipfs and --with-console together."),
        ("--with-console", "Let the cell know that its 0, 1, 2 are terminals, and their size."),
        ("--with-ipfs", "Give the cell a read-only directory /ipfs of verified content."),
    ):
        variable = "WW_" + flag.removeprefix("--").replace("-", "_").upper()
        option = click.option(flag, is_flag=True, envvar=variable, help=f"{text} [{variable}]")
        command = option(command)
    return click.option(
        "--with-exec",
        is_flag=True,
        hidden=True,
        envvar="WW_WITH_EXEC",
        expose_value=False,
        callback=_refuse_exec,
    )(command)


@click.command(cls=_RunCommand, context_settings={"allow_interspersed_args": False})
@fd_option
@click.option(
    "--dir",
    "dirs",
    multiple=True,
    metavar="HOST[:GUEST][:ro|rw]",
    help="Grant the directory HOST, which the cell finds at the path GUEST (default: HOST), for "
    "reading, or for writing too, as dir1, dir2 and so on. Repeatable.",
)
@click.option(
    "--fd-map",
    "fd_maps",
    multiple=True,
    metavar="NAME=TARGET",
    help="Give a grant, from whatever flag, another number in the cell. Repeatable.",
)
@click.option(
    "--fdctl",
    "fdctls",
    multiple=True,
    metavar="inherit:NUM|PATH[,KEY=VALUE...]",
    help="Grant NUM as inherit_NUM; or receive descriptors over the unix socket PATH (keys: "
    "timeout, max, listen). Repeatable.",
)
@click.option(
    "--use-systemd-fds",
    "systemd",
    metavar="[=PREFIX]",
    help=f"Grant what socket activation passed, as PREFIX0, PREFIX1 (default {_SYSTEMD_PREFIX}).",
)
@click.option(
    "--fd-from",
    "tables",
    multiple=True,
    metavar="@FILE|-",
    help="Read grants from a table of S-expressions. Repeatable; - is stdin.",
)
@click.option(
    "--table-env",
    "table_env",
    multiple=True,
    metavar="NAME",
    help="Let tables read this variable of ww's environment. Repeatable.",
)
@click.option("--fd-verbose", is_flag=True, help="Print one line for each grant on stderr.")
@click.option("--no-stdio", is_flag=True, help="Give the cell /dev/null as 0, 1 and 2.")
@click.option(
    "--env", multiple=True, metavar="K=V", help="Set a variable for the cell. Repeatable."
)
@click.option(
    "--uid",
    type=click.IntRange(min=1, max=(1 << 32) - 2),
    help="The user and group id on the host that the cell runs as, if ww runs as root "
    "(default 65534).",
)
@click.option(
    "--invoke",
    default="",
    metavar="NAME",
    help="Call this function of a core module in place of _start, with ARGS as numbers, after "
    "_initialize if there is one. Its results are printed on the cell's stdout.",
)
@click.option(
    "--unknown-imports-trap",
    "trap_unknown",
    is_flag=True,
    help="Run a cell that imports what is not offered: it traps if it calls that.",
)
@_with_options
@limit_options(FLAGS)
@click.option(
    "--net",
    "network",
    type=click.Choice(get_args(Network)),
    default=get_args(Network)[0],
    show_default=True,
    help="The cell's network: nothing, or a loopback interface of its own.",
)
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(FEATURES),
    help="Do not run the cell where the kernel does not have this. Repeatable.",
)
@isolation_option
@content_options
@click.option(
    "--grace",
    default="0",
    show_default=True,
    metavar="TIME",
    help="Seconds that the cell may go on after a signal has asked ww to end.",
)
@click.option("--explain", is_flag=True, help="Print the whole plan and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --explain: as JSON.")
@click.option(
    "--status-fd",
    type=click.IntRange(min=0),
    metavar="NUM",
    help="Write what becomes of the run to this descriptor, as JSON lines.",
)
@debug_option
@click.argument("cell")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(
    state: dict[str, Any],
    /,
    fds: tuple[str, ...],
    dirs: tuple[str, ...],
    fd_maps: tuple[str, ...],
    fdctls: tuple[str, ...],
    systemd: str | None,
    tables: tuple[str, ...],
    table_env: tuple[str, ...],
    fd_verbose: bool,
    no_stdio: bool,
    env: tuple[str, ...],
    uid: int | None,
    invoke: str,
    trap_unknown: bool,
    with_ipfs: bool,
    with_console: bool,
    with_all: bool,
    network: Network,
    required: tuple[str, ...],
    isolation: Isolation,
    fetch: FetchOptions,
    grace: str,
    explain: bool,
    as_json: bool,
    status_fd: int | None,
    cell: str,
    args: tuple[str, ...],
    **limits: str | None,
) -> int:
    """Run CELL in a jail, with ARGS and the descriptors that flags grant.

    CELL is /ipfs/CID[/PATH], a path with a slash in it, or a name on PATH. It gets ww's
    stdin, stdout and stderr, the grants, and nothing else: no file, no network, no variable of
    the environment. WW_FDS and WW_FD_<NAME> tell it the numbers. What it may use up is limited.

    \b
    Exit codes, other than the cell's own:
      1 failure   2 usage   65 grant refused   66 limit   67 jail
      126 not a cell   127 not found   134 trap   128+N signal N
    """
    from runner import supervise
    from runner.grants.abi import environment, verbose_lines
    from runner.grants.collect import Sources, collect
    from runner.status import open_status

    if as_json and not explain:
        raise click.UsageError("--json goes with --explain")
    inherited = state["inherited"]
    status = open_status(status_fd, inherited)
    try:
        with supervise.Signals() as signals:
            bounds = read_limits(limits)
            grace_seconds = seconds(grace, "--grace", least=0)
            sources = Sources(
                *(fds, fd_maps, fdctls, systemd, tables, table_env),
                stdio=not no_stdio,
                dirs=dirs,
                scratch=bounds.scratch > 0,
                ipfs=with_ipfs or with_all,
            )
            grants = collect(sources, inherited, os.environ)
            terminals, size = _console(grants) if with_console or with_all else ((), {})
            what = supervise.Run(
                address=_text("CELL", cell),
                args=tuple(_text(f"ARGS #{i}", arg) for i, arg in enumerate(args, 1)),
                env=tuple({**size, **environment(grants, env)}.items()),
                grants=grants,
                **host_ids(uid),
                limits=bounds,
                network=network,
                required=tuple(dict.fromkeys(required)),
                isolation=isolation,
                grace=grace_seconds,
                debug=state[DEBUG],
                ipfs=sources.ipfs,
                terminals=terminals,
                fetch=fetch,
                invoke=_text("--invoke", invoke),
                trap_unknown=trap_unknown,
            )
            if explain:
                return _explain(what, as_json=as_json)
            if "-" in tables and any(entry.source == 0 for entry in grants.entries):
                _warn("--fd-from -: stdin was the table, so the cell's stdin is /dev/null")
            if fd_verbose:
                print_on_stderr(verbose_lines(grants))
            return supervise.run(what, os.environ, status, signals)
    except WwError as error:
        status.failed(error)
        raise
    except supervise.Ended as end:
        status.ended_by(end.signal)
        return 128 + end.signal


def _console(grants: "GrantPlan") -> tuple[tuple[int, ...], dict[str, str]]:
    """Return what a cell may know of its terminals: which they are, and variables of their size."""
    from runner import console

    found = console.terminals(grants)
    return tuple(found), console.size_variables(found)


def _explain(what: "Run", *, as_json: bool) -> int:
    from runner import explain

    write(STDOUT, [explain.as_json(what)] if as_json else explain.as_text(what))
    return 0


def _warn(text: str) -> None:
    print_on_stderr([f"ww: warning: {printable(text)}"])


def _text(where: str, argument: str) -> str:
    """Return an argument that can be handed to a cell: WASI has UTF-8 strings only.

    Raises:
        WwError: With code 2 for other bytes.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = printable(argument)
        raise WwError(where, f"'{shown}' is not valid UTF-8", code=EXIT_USAGE) from None
    return argument


# The kernel's overflow id: nobody's, on every Linux (/proc/sys/kernel/overflowuid).
_NOBODY = 65534


def host_ids(uid: int | None) -> dict[str, int]:
    """Return the ids on the host that a cell runs as: never root's.

    Raises:
        WwError: With code 2 if an ordinary user asks for another id than the own one.
    """
    own = os.geteuid()
    if own == 0:
        number = _NOBODY if uid is None else uid
        return {"uid": number, "gid": number}
    if uid not in (None, own):
        raise WwError(
            "--uid",
            f"{uid} is not your own id, {own}",
            hint="only root can run a cell as another user",
            code=EXIT_USAGE,
        )
    return {"uid": own, "gid": os.getegid()}

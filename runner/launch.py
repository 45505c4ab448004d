"""``ww run``, from the values of its flags to the exit code."""

from __future__ import annotations

import os

from runner import supervise
from runner.commands.flags import fetch_options
from runner.errors import EXIT_FAILURE, EXIT_GRANT, EXIT_USAGE, WwError, printable
from runner.grants.abi import environment, verbose_lines
from runner.grants.collect import Sources, collect
from runner.limits import read_limits, seconds
from runner.output import STDOUT, print_on_stderr, print_on_stdout
from runner.signals import signal
from runner.status import open_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runner.grants.plan import GrantPlan
    from runner.inherited import Inherited
    from runner.spawners import HeadStart
    from runner.status import Status

# The kernel's overflow id: nobody's, on every Linux (/proc/sys/kernel/overflowuid).
_NOBODY = 65534


def launch(
    values: Mapping[str, Any], inherited: Inherited, head_start: HeadStart, *, debug: bool
) -> int:
    """Plan a run, carry it out or explain it, and return the exit code.

    Args:
        values: Of the flags in :data:`runner.commands.flags.RUN`, by their fields, and ``cell`` and
            ``args``.
        inherited: What ww was started with.
        head_start: Where the spawner is.
        debug: Whether the spawner may write tracebacks to stderr.

    Raises:
        WwError: If no cell came to run, or it ended in another way than by itself.
    """
    fetch = fetch_options(values)
    tables, with_all = values["tables"], values["with_all"]
    status = open_status(values["status_fd"], inherited)
    try:
        with supervise.Signals() as signals:
            if values["die_with_parent"]:
                _die_with(inherited.parent)
            bounds = read_limits(values)
            grace = seconds(values["grace"], "--grace", least=0)
            sources = Sources(
                fds=values["fds"],
                maps=values["fd_maps"],
                fdctls=values["fdctls"],
                systemd=values["systemd"],
                tables=tables,
                table_env=values["table_env"],
                stdio=not values["no_stdio"],
                dirs=values["dirs"],
                scratch=bounds.scratch > 0,
                ipfs=values["with_ipfs"] or with_all,
            )
            grants = collect(sources, inherited, os.environ)
            _keep_apart(values["status_fd"], grants)
            console = values["with_console"] or with_all
            terminals, size = _console(grants) if console else ((), {})
            what = supervise.Run(
                address=_given("CELL", values["cell"]),
                args=tuple(_text(f"ARGS #{i}", arg) for i, arg in enumerate(values["args"], 1)),
                env=tuple({**size, **environment(grants, values["env"])}.items()),
                grants=grants,
                **host_ids(values["uid"]),
                limits=bounds,
                network=values["network"],
                required=tuple(dict.fromkeys(values["required"])),
                isolation=values["isolation"],
                grace=grace,
                die_with_parent=values["die_with_parent"],
                debug=debug,
                ipfs=sources.ipfs,
                terminals=terminals,
                fetch=fetch,
                invoke="" if values["invoke"] is None else _given("--invoke", values["invoke"]),
                trap_unknown=values["trap_unknown"],
                served=not values["no_serve"],
            )
            if values["explain"]:
                return _explain(what, inherited, as_json=values["as_json"])
            if "-" in tables and any(entry.source == 0 for entry in grants.entries):
                _warn("--fd-from -: stdin was the table, so the cell's stdin is /dev/null")
            if values["fd_verbose"]:
                print_on_stderr(verbose_lines(grants))
            return _run(what, status, signals, head_start)
    except supervise.Ended as end:
        status.ended_by(end.signal)
        return 128 + end.signal
    except WwError as error:
        status.failed(str(error), error.code)
        raise
    except BrokenPipeError:
        status.failed("stderr: nobody reads it", 128 + signal.SIGPIPE)
        raise
    except Exception as error:
        # As runner.program says it: a lack of the system, or a defect.
        status.failed(f"{type(error).__name__}: {error}", EXIT_FAILURE)
        raise


def _run(
    what: supervise.Run, status: Status, signals: supervise.Signals, head_start: HeadStart
) -> int:
    """Do what :func:`runner.supervise.run` does, and tell of the cell's copy if that is too large.

    It is in memory, but to the kernel it is a file like any other, and setrlimit(2) bounds it.
    """
    try:
        return supervise.run(what, os.environ, status, signals, head_start)
    except OSError as error:
        import errno

        if error.errno != errno.EFBIG:
            raise
        raise WwError(
            what.address,
            f"ww's copy of it cannot be written: {error.strerror}",
            hint="the limit on the size of files is too low: see ulimit -f",
        ) from error


def _die_with(parent: int) -> None:
    """Have the kernel ask ww to end when what started it ends; PR_SET_PDEATHSIG(2const).

    Args:
        parent: The process that started it.
    """
    import prctl

    number = signal.SIGTERM
    if signal.getsignal(number) == signal.SIG_IGN:
        number = signal.SIGKILL  # the cell ends with ww in any case
    prctl.set_pdeathsig(number)
    # It may have ended before.
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _keep_apart(status_fd: int | None, grants: GrantPlan) -> None:
    """Refuse to tell what becomes of a cell where the cell can tell it, too.

    Raises:
        WwError: With code 65 if the descriptor of --status-fd is granted.
    """
    for entry in grants.entries:
        # What passes through as the cell's 0, 1 or 2 was not granted, and may be shared.
        if entry.grant.name is not None and entry.source == status_fd is not None:
            raise WwError(
                "--status-fd",
                f"fd {status_fd} is granted to the cell, which could write events of its own",
                hint="open a file for it alone",
                code=EXIT_GRANT,
            )


def _console(grants: GrantPlan) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return what a cell may know of its terminals: which they are, and variables of their size."""
    from runner import console

    found = console.terminals(grants)
    return tuple(found), console.size_variables(found)


def _explain(what: supervise.Run, inherited: Inherited, *, as_json: bool) -> int:
    from runner import explain

    explain.check(what, os.environ)
    if STDOUT in inherited.nulled:
        raise WwError("stdout", "it is closed", hint="give it a file, or /dev/null")
    print_on_stdout([explain.as_json(what)] if as_json else explain.as_text(what))
    return 0


def _warn(text: str) -> None:
    print_on_stderr([f"ww: warning: {printable(text)}"])


def _given(where: str, text: str) -> str:
    """Return what names something to a cell or of it: an argument that is not empty.

    Raises:
        WwError: With code 2 if it is, and as :func:`_text`.
    """
    if not text:
        raise WwError(where, "it is empty", code=EXIT_USAGE)
    return _text(where, text)


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

"""One run of one cell, from the frozen plan to the exit code."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple, NoReturn

from runner.cells import open_cell
from runner.errors import (
    EXIT_CANNOT_RUN,
    EXIT_FAILURE,
    EXIT_JAIL,
    EXIT_TRAP,
    WwError,
    printable,
)
from runner.grants.plan import GrantPlan
from runner.status import Status
from sandbox import Grant, Outcome, Plan, Spawner, SpawnerError

# The signals that ask a program to end; ww ends its cell first.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Run(NamedTuple):
    """What is to be run.

    Attributes:
        address: The cell, as the user named it.
        args: Its arguments, after its name.
        env: Its whole environment.
        grants: Its descriptors, and where each comes from.
        uid: The user and group id on the host that it runs as.
        gid: The group id, likewise.
        debug: Whether the spawner may write tracebacks to stderr.
    """

    address: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    grants: GrantPlan
    uid: int
    gid: int
    debug: bool


class Ended(BaseException):
    """A signal asked ww to end.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def run(what: Run, environ: Mapping[str, str], status: Status) -> int:
    """Run a cell and return the exit code for it.

    The spawner starts first and gets ready while the cell is looked for. Whatever happens, it
    has ended, and the cell with it, when this returns or raises.

    Args:
        what: The run.
        environ: ww's own environment.
        status: Where events go.

    Raises:
        WwError: If no cell came to run, or it ended in another way than by itself.
        Ended: After the cell was killed because of a signal, inside :func:`signals_end`.
    """
    plan = Plan(
        grants=what.grants.grants,
        argv=(what.address, *what.args),
        env=what.env,
        uid=what.uid,
        gid=what.gid,
    )
    status.start(what.address)
    status.grants(what.grants)
    spawner = _start(cache_home(environ), debug=what.debug)
    try:
        cell = open_cell(what.address, environ)
        sources = [_source(e.grant, e.source) for e in what.grants.entries]
        with _flags_kept(sources):
            outcome = spawner.run(plan, cell, sources, lambda: _give_up(cell, what.grants))
    except SpawnerError as error:
        raise WwError(
            "spawner", str(error), hint="run 'ww run --debug' to see why", code=EXIT_FAILURE
        ) from error
    finally:
        spawner.close()
    try:
        code = exit_code(what.address, outcome)
    except WwError as error:
        status.ended(outcome, error.code)
        raise
    status.ended(outcome, code)
    return code


def cache_home(environ: Mapping[str, str]) -> str | None:
    """Return the directory for what ww can make anew, or ``None`` if there is no home.

    ``$WW_HOME/cache``, else ``$XDG_CACHE_HOME/ww``, else ``~/.cache/ww`` (XDG base directory
    specification: relative paths in its variables are ignored).
    """
    for variable, rest in (("WW_HOME", "cache"), ("XDG_CACHE_HOME", "ww"), ("HOME", ".cache/ww")):
        base = environ.get(variable, "")
        if os.path.isabs(base):
            return os.path.join(base, rest)
    return None


def _start(cache: str | None, *, debug: bool) -> Spawner:
    try:
        return Spawner.start(cache, debug=debug)
    except OSError as error:
        raise WwError(sys.executable, f"the spawner cannot be started: {error.strerror}") from error


def _source(grant: Grant, number: int | None) -> int:
    """Return a planned source, or /dev/null in the grant's mode where none is planned."""
    if number is not None:
        return number
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[grant.mode]
    return os.open("/dev/null", flags | os.O_CLOEXEC)


@contextmanager
def _flags_kept(sources: list[int]) -> Iterator[None]:
    """Put back the flags of open files that a cell has changed.

    They belong to the open file and not to the descriptor: a terminal that stays non-blocking
    would confuse the shell that it is shared with.
    """
    before = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in sources}
    try:
        yield
    finally:
        for fd, flags in before.items():
            # What was moved is closed, and was its receiver's to change.
            with suppress(OSError):
                if fcntl.fcntl(fd, fcntl.F_GETFL) != flags:
                    fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _give_up(cell: int, grants: GrantPlan) -> None:
    """Close ww's own copies of the cell and of what was moved.

    Standard descriptors become /dev/null: the next file ww opens must not take their place.
    """
    os.close(cell)
    for entry in grants.entries:
        source = entry.source
        if not entry.grant.move or source is None:
            continue
        if source > 2:
            os.close(source)
        else:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, source, inheritable=False)
            os.close(null)


@contextmanager
def signals_end() -> Iterator[None]:
    """Turn the first ending signal into :class:`Ended`, and ignore those that follow it.

    A signal that ww was started to ignore (nohup(1), a background job) stays ignored.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    caught = [s for s in _ENDING if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, end) for s in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(address: str, outcome: Outcome) -> int:
    """Return the exit code for a cell that ended by itself.

    Args:
        address: The cell, as the user named it.
        outcome: How it ended.

    Raises:
        WwError: For every other end, with its own code.
    """
    match outcome.kind:
        case "exit":
            return outcome.code & 0xFF
        case "trap":
            cause, backtrace = _trap(outcome.what)
            error = WwError(address, f"the cell trapped: {cause}", code=EXIT_TRAP)
            for line in backtrace:
                error.add_note(printable(line))
            raise error
        case "rejected":
            raise WwError(address, outcome.what, code=EXIT_CANNOT_RUN)
        case "signal":
            names = {s.value: s.name for s in signal.Signals}
            name = names.get(outcome.code, f"signal {outcome.code}")  # realtime ones have no name
            raise WwError(address, f"the cell was ended by {name}", code=128 + outcome.code)
        case "fault":
            raise WwError(
                address,
                f"the host failed: {outcome.what}",
                hint="this is a defect of ww, not of the cell",
                code=EXIT_FAILURE,
            )
        case "jail":
            from runner.remedies import remedy

            raise WwError(
                f"jail: {outcome.step}",
                outcome.what,
                hint=remedy(outcome.step, outcome.code),
                code=EXIT_JAIL,
            )


def _trap(report: str) -> tuple[str, list[str]]:
    """Split the engine's report of a trap into its cause and the lines of the backtrace.

    The report has a heading, a numbered line for each frame, and below ``Caused by:`` one cause,
    or several, numbered, of which the last is the root.
    """
    above, _, below = report.partition("Caused by:")
    heading, *frames = [line.rstrip() for line in above.splitlines() if line.strip()] or ["unknown"]
    causes = [line.strip() for line in below.splitlines() if line.strip()] or [heading]
    number, colon, text = causes[-1].partition(": ")
    return (text if colon and number.isdigit() else causes[-1]), frames

"""One run of one cell, from the frozen plan to the exit code."""

from __future__ import annotations

import os
import select

from runner.cells import FetchOptions, is_component, open_cell
from runner.digest import sha256_of
from runner.errors import (
    EXIT_CANNOT_RUN,
    EXIT_FAILURE,
    EXIT_JAIL,
    EXIT_LIMIT,
    EXIT_TRAP,
    WwError,
    printable,
)
from runner.grants.plan import IPFS
from runner.output import STDERR
from runner.signals import signal
from runner.spawners import cache_size as cache_size
from runner.spawners import discard, socket_path, start
from sandbox import Plan, Record, Spawner, SpawnerError, as_before
from sandbox import cache_home as cache_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any

    from runner.grants.plan import GrantPlan
    from runner.ipfs import Ipfs
    from runner.progress import Compiling
    from runner.spawners import HeadStart
    from runner.status import Status
    from sandbox import Grant, Isolation, Limits, Network, Outcome


class _Limit(Record):
    """How a limit is called in an error, and the flag that sets it."""

    what: str
    flag: str


_LIMITS = {
    "wall": _Limit("time", "--timeout"),
    "cpu": _Limit("processor time", "--cpu-time"),
    "fuel": _Limit("fuel", "--fuel"),
    "memory": _Limit("memory", "--memory"),
    "host-memory": _Limit("memory, that of its process together", "--memory"),
    "output": _Limit("output", "--output"),
    "pids": _Limit("processes", "--pids"),
}

# Characters of a warning while a cell runs: what a pipe has room for if it has any (pipe(7)).
_LONGEST_WARNING = 1000

# The signals that ask a program to end; ww ends its cell first.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Run(Record):
    """What is to be run.

    Attributes:
        address: The cell, as the user named it.
        args: Its arguments, after its name.
        env: Its whole environment.
        grants: Its descriptors, and where each comes from.
        uid: The user and group id on the host that it runs as.
        gid: The group id, likewise.
        limits: What it may use up.
        network: What its network namespace holds.
        required: The features of the jail that must not be missing.
        isolation: How the cell is kept apart.
        grace: Seconds that it may go on after ww was asked to end.
        die_with_parent: Whether ww is asked to end when the process that started it has ended.
        debug: Whether the spawner may write tracebacks to stderr.
        ipfs: Whether it has /ipfs.
        terminals: The targets of terminals that it may know to be some.
        fetch: Where content may come from, and whether to tell of what takes its time.
        invoke: The function to call in place of its start; empty for that.
        trap_unknown: Whether functions that it imports and nobody offers trap when called.
        served: Whether a server may run it.
    """

    address: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    grants: GrantPlan
    uid: int
    gid: int
    limits: Limits
    network: Network
    required: tuple[str, ...]
    isolation: Isolation
    grace: float
    debug: bool
    ipfs: bool = False
    terminals: tuple[int, ...] = ()
    fetch: FetchOptions = FetchOptions()
    invoke: str = ""
    trap_unknown: bool = False
    served: bool = True
    die_with_parent: bool = False


class Ended(BaseException):
    """A signal asked ww to end.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def run(
    what: Run,
    environ: Mapping[str, str],
    status: Status,
    signals: Signals,
    head_start: HeadStart,
) -> int:
    """Run a cell and return the exit code for it.

    The spawner gets ready while the cell is looked for. Whatever happens, it has ended, and the
    cell with it, when this returns or raises. A server goes on, but the cell has ended as well.

    Args:
        what: The run.
        environ: ww's own environment.
        status: Where events go.
        signals: What may ask ww to end meanwhile.
        head_start: Where the spawner is, if it was started before.

    Raises:
        WwError: If no cell came to run, or it ended in another way than by itself.
        Ended: After the cell was killed because of a signal.
    """
    status.start(what.address)
    status.grants(what.grants)
    spawner = head_start.take(environ, debug=what.debug, server=what.served)
    try:
        cell = open_cell(what.address, environ, what.fetch)
        plan = _plan(what, cell)
        server = None if isinstance(spawner, Spawner) else socket_path(environ)
        if server is not None and not spawner.is_open():
            # It has ended meanwhile, and knows nothing of the run.
            discard(spawner)
            spawner, server = start(environ, debug=what.debug), None
        if server is not None:
            status.server(server)
    except BaseException:
        discard(spawner)
        raise
    try:
        sources = [_source(e.grant, e.source) for e in what.grants.entries]
        with as_before(sources), signals.grace(what.grace):
            outcome = spawner.run(
                plan,
                cell,
                sources,
                lambda: _give_up(cell, what.grants),
                _content(environ, what.fetch) if what.ipfs else None,
                compiling(what.address, cell, environ, forced=what.fetch.progress == "plain"),
            )
    except SpawnerError as error:
        hint = "run 'ww run --debug' to see why"
        if server is not None:
            hint = f"the server at {server} was stopped or has failed; nothing is run again"
        raise WwError("spawner", str(error), hint=hint, code=EXIT_FAILURE) from error
    except OSError as error:
        # What this process lacks, such as descriptors: the cell has been killed.
        what_failed = f"the connection to it failed: {error.strerror or error}"
        raise WwError("spawner", what_failed, code=EXIT_FAILURE) from error
    finally:
        spawner.close()
    try:
        code = exit_code(what.address, outcome)
    except WwError as error:
        status.ended(outcome, error.code)
        raise
    status.ended(outcome, code)
    return code


def _plan(what: Run, cell: int) -> Plan:
    """Return what the spawner is told of a run.

    Raises:
        WwError: If the cell is a component, and was granted what such a cell has no use for.
    """
    component = is_component(cell)
    if component:
        from runner.component import check

        check(what.grants, ipfs=what.ipfs, invoke=what.invoke)
    return Plan(
        grants=what.grants.grants,
        argv=(what.address, *what.args),
        env=what.env,
        uid=what.uid,
        gid=what.gid,
        digest=sha256_of(cell),
        limits=what.limits,
        network=what.network,
        required=what.required,
        isolation=what.isolation,
        content=IPFS if what.ipfs else "",
        terminals=what.terminals,
        component=component,
        invoke=what.invoke,
        trap_unknown=what.trap_unknown,
    )


def _content(environ: Mapping[str, str], fetch: FetchOptions) -> Callable[[], Ipfs]:
    """Return what makes the content of /ipfs, when a cell asks for it first."""
    from contextlib import suppress

    def warn(text: str) -> None:
        line = f"ww: warning: {printable(text)[:_LONGEST_WARNING]}\n"
        stderr = select.poll()
        stderr.register(2, select.POLLOUT)
        # The cell may have filled it, and must not make ww wait.
        if stderr.poll(0):
            with suppress(OSError):
                os.write(2, line.encode(errors="backslashreplace"))

    def make() -> Ipfs:
        from runner.ipfs import Ipfs

        return Ipfs(environ, warn, fetch)

    return make


def compiling(
    address: str, cell: int, environ: Mapping[str, str], *, forced: bool
) -> Callable[[], Compiling | None]:
    """Return what makes what tells people of a compilation, if anything is to tell them.

    Args:
        address: The cell, as the user named it.
        cell: A descriptor of its bytes.
        environ: ww's own environment.
        forced: Whether to tell where stderr is no terminal, too.
    """
    bytes_of_it = os.fstat(cell).st_size

    def make() -> Compiling | None:
        # One on which a line can be replaced.
        terminal = os.isatty(STDERR) and environ.get("TERM", "dumb") != "dumb"
        if not terminal and not forced:
            return None
        from runner.progress import Compiling, Line

        return Compiling(address, bytes_of_it, Line() if terminal else None)

    return make


def _source(grant: Grant, number: int | None) -> int:
    """Return a planned source, or /dev/null in the grant's mode where none is planned."""
    if number is not None:
        return number
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[grant.mode]
    return os.open("/dev/null", flags | os.O_CLOEXEC)


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
            try:
                os.close(source)
            except OSError:
                continue  # it tells of what was written to it before; the number is free anyway
        else:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, source, inheritable=False)
            os.close(null)


class Signals:
    """What asks ww to end, while it is in its ``with`` block: :class:`Ended` is raised there.

    The signals that follow the first are ignored, until the process ends. One that ww was started
    to ignore (nohup(1), a background job) stays ignored.
    """

    def __init__(self) -> None:
        self._grace = 0.0
        self._first: int | None = None
        self._over = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        caught = [s for s in _ENDING if signal.getsignal(s) != signal.SIG_IGN]
        self._before = {s: signal.signal(s, self._end) for s in (*caught, signal.SIGALRM)}
        return self

    def __exit__(self, *_: object) -> None:
        ending, self._over = self._over, True
        if ending:
            return  # what was begun comes to its end, whatever signals follow
        # Python complains of a signal that it has taken note of and then finds no handler for.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def grace(self, seconds: float) -> _Grace:
        """Return a ``with`` block in which what runs may go on for so long after the first signal.

        A second signal ends it at once. However it ends, the signal was what ended ww:
        :class:`Ended` is raised when the time is over, or the block is.

        Args:
            seconds: 0 for no grace.
        """
        return _Grace(self, seconds)

    def _end(self, number: int, _frame: FrameType | None) -> None:
        if self._over:
            return
        if self._first is None and self._grace and number != signal.SIGALRM:
            self._first = number
            signal.setitimer(signal.ITIMER_REAL, self._grace)
            return
        self._over = True
        raise Ended(self._first or number)


class _Grace:
    """The ``with`` block that :meth:`Signals.grace` returns."""

    def __init__(self, signals: Signals, seconds: float) -> None:
        self._signals = signals
        self._seconds = seconds

    def __enter__(self) -> None:
        self._signals._grace = self._seconds

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signals = self._signals
        signals._grace = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        if kind is None and signals._first is not None:
            signals._over = True
            raise Ended(signals._first)


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
                # The names in it are the cell's choice, with line breaks if it likes: what is
                # indented is no line of ww's own.
                error.add_note(f"    {printable(line.strip())}")
            raise error
        case "rejected":
            raise WwError(address, outcome.what, code=EXIT_CANNOT_RUN)
        case "limit":
            limit = _LIMITS[outcome.limit]
            when = f" {outcome.what}" if outcome.what else ""
            raise WwError(
                address,
                f"the cell hit its limit of {limit.what}{when}",
                hint=f"set with {limit.flag}",
                code=EXIT_LIMIT,
            )
        case "isolation":
            raise WwError(
                address,
                f"the cell broke its isolation and was killed: {outcome.what}",
                hint="WebAssembly cannot do that: take it for an attack on the engine",
                code=EXIT_JAIL,
            )
        case "signal":
            from signal import Signals as Names

            names = {s.value: s.name for s in Names}
            name = names.get(outcome.code, f"signal {outcome.code}")  # realtime ones have no name
            raise WwError(address, f"the cell was ended by {name}", code=128 + outcome.code)
        case "fault" | "stale":
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

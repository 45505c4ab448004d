"""One run of one cell, from the frozen plan to the exit code."""

import fcntl
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.cells import FetchOptions, is_component, open_cell
from runner.errors import (
    EXIT_CANNOT_RUN,
    EXIT_FAILURE,
    EXIT_JAIL,
    EXIT_LIMIT,
    EXIT_TRAP,
    WwError,
    printable,
)
from runner.grants.plan import GrantPlan
from runner.grants.preopens import IPFS
from runner.limits import size, size_text
from runner.output import STDERR
from runner.status import Status
from sandbox import Grant, Isolation, Limits, Network, Outcome, Plan, Spawner, SpawnerError

if TYPE_CHECKING:
    from runner.ipfs import Ipfs
    from runner.progress import Compiling


class _Limit(NamedTuple):
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

# Room for the forms of some of the largest interpreters, and of hundreds of ordinary cells.
_CACHE_SIZE = "WW_CACHE_SIZE"
_DEFAULT_CACHE_SIZE = 2 << 30

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
        limits: What it may use up.
        network: What its network namespace holds.
        required: The features of the jail that must not be missing.
        isolation: How the cell is kept apart.
        grace: Seconds that it may go on after ww was asked to end.
        debug: Whether the spawner may write tracebacks to stderr.
        ipfs: Whether it has /ipfs.
        terminals: The targets of terminals that it may know to be some.
        fetch: Where content may come from, and whether to tell of what takes its time.
        invoke: The function to call in place of its start; empty for that.
        trap_unknown: Whether functions that it imports and nobody offers trap when called.
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


class Ended(BaseException):
    """A signal asked ww to end.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def run(what: Run, environ: Mapping[str, str], status: Status, signals: "Signals") -> int:
    """Run a cell and return the exit code for it.

    The spawner starts first and gets ready while the cell is looked for. Whatever happens, it
    has ended, and the cell with it, when this returns or raises.

    Args:
        what: The run.
        environ: ww's own environment.
        status: Where events go.
        signals: What may ask ww to end meanwhile.

    Raises:
        WwError: If no cell came to run, or it ended in another way than by itself.
        Ended: After the cell was killed because of a signal.
    """
    status.start(what.address)
    status.grants(what.grants)
    spawner = start_spawner(environ, debug=what.debug)
    try:
        cell = open_cell(what.address, environ, what.fetch)
        component = is_component(cell)
        if component:
            from runner.component import check

            check(what.grants, ipfs=what.ipfs, invoke=what.invoke)
        plan = Plan(
            grants=what.grants.grants,
            argv=(what.address, *what.args),
            env=what.env,
            uid=what.uid,
            gid=what.gid,
            digest=cell_digest(cell),
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
        sources = [_source(e.grant, e.source) for e in what.grants.entries]
        with _as_before(sources), signals.grace(what.grace):
            outcome = spawner.run(
                plan,
                cell,
                sources,
                lambda: _give_up(cell, what.grants),
                _content(environ, what.fetch) if what.ipfs else None,
                compiling(what.address, cell, environ, forced=what.fetch.progress == "plain"),
            )
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


def cell_digest(cell: int) -> str:
    """Return the SHA-256 of a cell's bytes, by which its compiled form is known."""
    import hashlib

    with open(cell, "rb", buffering=0, closefd=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.lseek(cell, 0, os.SEEK_SET)
    return digest


def _content(environ: Mapping[str, str], fetch: FetchOptions) -> Callable[[], "Ipfs"]:
    """Return what makes the content of /ipfs, when a cell asks for it first."""

    def warn(text: str) -> None:
        line = f"ww: warning: {printable(text)[:_LONGEST_WARNING]}\n"
        stderr = select.poll()
        stderr.register(2, select.POLLOUT)
        # The cell may have filled it, and must not make ww wait.
        if stderr.poll(0):
            with suppress(OSError):
                os.write(2, line.encode(errors="backslashreplace"))

    def make() -> "Ipfs":
        from runner.ipfs import Ipfs

        return Ipfs(environ, warn, fetch)

    return make


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


def cache_size(environ: Mapping[str, str]) -> int | None:
    """Return how many bytes the compiled forms of cells may have together, ``$WW_CACHE_SIZE``.

    Returns:
        ``None`` for no bound.

    Raises:
        WwError: With code 2 if that is not well formed.
    """
    text = environ.get(_CACHE_SIZE) or size_text(_DEFAULT_CACHE_SIZE)
    return None if text == "none" else size(text, _CACHE_SIZE)


def compiling(
    address: str, cell: int, environ: Mapping[str, str], *, forced: bool
) -> "Callable[[], Compiling | None]":
    """Return what makes what tells people of a compilation, if anything is to tell them.

    Args:
        address: The cell, as the user named it.
        cell: A descriptor of its bytes.
        environ: ww's own environment.
        forced: Whether to tell where stderr is no terminal, too.
    """
    bytes_of_it = os.fstat(cell).st_size

    def make() -> "Compiling | None":
        # One on which a line can be replaced.
        terminal = os.isatty(STDERR) and environ.get("TERM", "dumb") != "dumb"
        if not terminal and not forced:
            return None
        from runner.progress import Compiling, Line

        return Compiling(address, bytes_of_it, Line() if terminal else None)

    return make


def start_spawner(environ: Mapping[str, str], *, debug: bool) -> Spawner:
    """Start a spawner that uses the cache.

    Raises:
        WwError: If it cannot be started; with code 2 if a variable is not well formed.
    """
    cache, most = cache_home(environ), cache_size(environ)
    try:
        return Spawner.start(cache, cache_size=most, debug=debug)
    except OSError as error:
        raise WwError(sys.executable, f"the spawner cannot be started: {error.strerror}") from error


def _source(grant: Grant, number: int | None) -> int:
    """Return a planned source, or /dev/null in the grant's mode where none is planned."""
    if number is not None:
        return number
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[grant.mode]
    return os.open("/dev/null", flags | os.O_CLOEXEC)


@contextmanager
def _as_before(sources: list[int]) -> Iterator[None]:
    """Put back what a cell has changed of open files and terminals that it shares with others.

    Flags belong to the open file and not to the descriptor: a terminal that stays non-blocking
    would confuse the shell. A terminal's settings are out of a cell's reach, unless it has broken
    out of the engine and the system call filter.
    """
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in sources}
    terminals = {fd: _terminal(fd) for fd in sources if os.isatty(fd)}
    try:
        yield
    finally:
        # What was moved is closed, and was its receiver's to change.
        for fd, before in flags.items():
            with suppress(OSError):
                if fcntl.fcntl(fd, fcntl.F_GETFL) != before:
                    fcntl.fcntl(fd, fcntl.F_SETFL, before)
        for fd, settings in terminals.items():
            _restore(fd, settings)


def _terminal(fd: int) -> list[Any]:
    """Return a terminal's settings; tcgetattr(3)."""
    import termios

    return termios.tcgetattr(fd)


def _restore(fd: int, settings: list[Any]) -> None:
    """Put a terminal's settings back if they have changed; tcsetattr(3)."""
    import termios

    with suppress(termios.error):
        if termios.tcgetattr(fd) != settings:
            # A job in the background may not do it, and would be stopped (tcsetattr(3)).
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            termios.tcsetattr(fd, termios.TCSANOW, settings)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


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


class Signals:
    """What asks ww to end, while it is in its ``with`` block: :class:`Ended` is raised there.

    The signals that follow the first are ignored. One that ww was started to ignore (nohup(1), a
    background job) stays ignored.
    """

    def __init__(self) -> None:
        self._grace = 0.0
        self._first: int | None = None
        self._over = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        caught = [s for s in _ENDING if signal.getsignal(s) is not signal.SIG_IGN]
        self._before = {s: signal.signal(s, self._end) for s in (*caught, signal.SIGALRM)}
        return self

    def __exit__(self, *_: object) -> None:
        ending, self._over = self._over, True
        # Python complains of a signal that it has taken note of and then finds no handler for.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        for number, handler in self._before.items():
            # Its own for SIGINT writes a traceback, and what ends has no use for one.
            default = ending and handler is signal.default_int_handler
            signal.signal(number, signal.SIG_DFL if default else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    @contextmanager
    def grace(self, seconds: float) -> Iterator[None]:
        """Let what runs in this block go on for so long after the first signal.

        A second signal ends it at once. However it ends, the signal was what ended ww.

        Args:
            seconds: 0 for no grace.

        Raises:
            Ended: When the time is over, or the block is.
        """
        self._grace = seconds
        try:
            yield
        finally:
            self._grace = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._first is not None:
            self._over = True
            raise Ended(self._first)

    def _end(self, number: int, _frame: FrameType | None) -> None:
        if self._over:
            return
        if self._first is None and self._grace and number != signal.SIGALRM:
            self._first = number
            signal.setitimer(signal.ITIMER_REAL, self._grace)
            return
        self._over = True
        raise Ended(self._first or number)


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
            names = {s.value: s.name for s in signal.Signals}
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

"""One run of one cell: what it is given, and what it wrote."""

import errno
import fcntl
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple, Unpack

from sandbox import granting, wire
from sandbox.client import Connection
from sandbox.errors import GrantError
from sandbox.granting import GrantRequest, PlannedGrant
from sandbox.grants import LAST_STANDARD, Grant, Mode
from sandbox.library.cell import Cell, CellSource, check_kind, check_program
from sandbox.library.offer import MAX_FD, HasFileno, Offer, Source
from sandbox.library.opening import Opened, keep
from sandbox.library.options import DEFAULTS, Options, check_options
from sandbox.library.requests import check_offers, make_requests, origin
from sandbox.library.result import Result, conclude
from sandbox.plan import Plan
from sandbox.policy import Isolation
from sandbox.sharing import as_before

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
# Below it are the numbers of a program's own standard streams, which may be closed.
_LOWEST: Final = LAST_STANDARD + 1

# What the standard input goes by beside the grants, of which one may have the same name.
_STANDARD_INPUT: Final = Offer("stdin", b"")


class House(NamedTuple):
    """What is the same for all runs of a sandbox.

    Attributes:
        uid: The user id on the host that cells run as; never 0.
        gid: Their group id.
        isolation: How they are kept apart.
        required: The features of the jail that must not be missing.
    """

    uid: int
    gid: int
    isolation: Isolation
    required: tuple[str, ...]


class Job:
    """What somebody wants to be run once: it holds its own descriptors until it is closed.

    A descriptor that was offered, or is of the cell, is duplicated at once, so what happens to the
    caller's number until the cell runs does not matter. A path is opened when the cell runs.

    Attributes:
        name: What the cell is called, for errors.
    """

    def __init__(
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> None:
        """Take in all of it; see :class:`Options`.

        Raises:
            GrantError: If a descriptor that is offered is not open, or the grants do not keep the
                rules among themselves.
            OSError: If there is no descriptor left; if the cell is one that is not open.
            ValueError: If an argument or an option cannot be; if the cell is a path that cannot be
                one.
            TypeError: If something is of another type than it has to be; so if the arguments are
                one text, or the grants one offer.
        """
        check_kind(cell)
        self._args = check_options(args, options)
        self._options: Options = {**DEFAULTS, **options}
        self._env = dict(self._options["env"] or {})
        self._offers = [_Given(offer, offer.source, "") for offer in check_offers(grants)]
        self._stdin = _Given(_STANDARD_INPUT, self._options["stdin"], "")
        self._requests: list[GrantRequest] = []
        # All copies; and then of what was given away, and of the rest.
        self._held: list[int] = []
        self._moved: list[int] = []
        self._cell: CellSource = cell
        # Nothing is held yet that an error would have to give up.
        self.name = _name(cell)
        if self._options["limits"].output is None and not {_STDOUT, _STDERR} <= {
            given.offer.target for given in self._offers
        }:
            raise ValueError(
                "limits.output is None, and what the cell writes is kept in memory: set it, or"
                " grant descriptors with target 1 and 2"
            )
        try:
            self._hold()
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        """Get copies of all open descriptors, and then close those that were given away."""
        if isinstance(self._cell, int):
            # Its bytes are read when it runs: that takes time, and this may be an event loop's.
            if not 0 <= self._cell <= MAX_FD:
                raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {self._cell}")
            self._cell = self._kept_copy(self._cell)
        copies: dict[int, int] = {}
        moved: dict[int, Source] = {}
        numbers: list[int | None] = []
        for given in (self._stdin, *self._offers):
            number = _number(given.source, given.offer)
            numbers.append(number)
            if number is not None and number not in copies:
                copies[number] = self._duplicate(number, given.offer)
            if number is not None and given.offer.move:
                moved[number] = given.source
        every = (self._stdin, *self._offers)
        self._requests = make_requests(
            [given.offer for given in self._offers], numbers[1:], granting.target_limit()
        )
        held = [
            given if number is None else _held(given, number, copies[number])
            for given, number in zip(every, numbers, strict=True)
        ]
        self._stdin, *self._offers = held
        given_away = [copies[number] for number in moved]
        kept = [fd for fd in self._held if fd not in given_away]
        self._held, self._moved = kept, given_away
        for number, source in moved.items():
            if isinstance(source, int) or not hasattr(source, "close"):
                os.close(number)
            else:
                source.close()

    def _duplicate(self, number: int, offer: Offer) -> int:
        if not 0 <= number <= MAX_FD:
            raise GrantError(_origin(offer), f"fd {number} is not open")
        try:
            return self._kept_copy(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise GrantError(_origin(offer), f"fd {number} is not open") from None

    def _kept_copy(self, number: int) -> int:
        """Return another descriptor of what is open, which is closed with this."""
        return keep(self._held, fcntl.fcntl, number, fcntl.F_DUPFD_CLOEXEC, _LOWEST)

    def close(self) -> None:
        """Close what it holds."""
        wire.close_all(self._held)
        wire.close_all(self._moved)

    def __del__(self) -> None:
        # A handler of a signal may have kept everybody from it. It may not have come to be.
        if hasattr(self, "_moved"):
            self.close()

    def _started(self) -> None:
        """Close what was given away: that nobody else has it any more tells when the cell ends."""
        wire.close_all(self._moved)

    def run(self, connection: Connection, house: House) -> Result:
        """Run the cell and wait for its end.

        Raises:
            GrantError: If what is granted cannot be.
            CellRejected: If the cell is no program that can run here.
            JailError: If its jail cannot be set up.
            HostError: If the host fails.
            SpawnerError: If the connection breaks.
            OSError: If a path cannot be opened, or there is no descriptor or memory left.
            ValueError: If the cell is closed; if it is a component, and the job asks for what is
                not for one.
        """
        opened = Opened()
        cell = self._cell
        try:
            if not isinstance(cell, Cell):
                cell = Cell.load(cell)
            if cell.component and self._options["invoke"]:
                raise ValueError("invoke is for core modules only, and the cell is a component")
            code = cell.open_by(partial(opened.own, os.open))
            entries = self._entries(opened)
            outputs = {number: _output(opened, number, entries) for number in (_STDOUT, _STDERR)}
            entries.sort(key=lambda entry: entry.grant.target)
            if cell.component:
                granting.check_component(entries)
            plan = Plan(
                grants=tuple(entry.grant for entry in entries),
                argv=(cell.name, *self._args),
                env=self._environment(entries),
                uid=house.uid,
                gid=house.gid,
                digest=cell.digest,
                limits=self._options["limits"],
                network=self._options["network"],
                required=house.required,
                isolation=house.isolation,
                component=cell.component,
                invoke=self._options["invoke"],
                trap_unknown=self._options["unknown_imports_trap"],
            )
            check_program(code, cell.name)
            opened.settle()  # nothing is refused from here on, but by the engine
            sources = [-1 if entry.source is None else entry.source for entry in entries]
            # What was moved is closed meanwhile, and its number may be another thread's then.
            with as_before(self._held):
                outcome = connection.run(plan, code, sources, self._started)
            most = self._options["limits"].output
            stdout, stderr = (_contents(outputs[number], most) for number in (_STDOUT, _STDERR))
            return conclude(cell.name, outcome, stdout, stderr)
        finally:
            opened.close()
            if isinstance(cell, Cell) and cell is not self._cell:
                cell.close()

    def _entries(self, opened: Opened) -> list[PlannedGrant]:
        """Return what is granted, and the standard input; opened, and held against the kernel."""
        requests = [
            request._replace(
                source=_opened(opened, given, request.mode or "r"), called=_called(given)
            )
            for request, given in zip(self._requests, self._offers, strict=True)
        ]
        entries = granting.plan_requests(
            requests, opened.inspect, scratch=bool(self._options["limits"].scratch)
        )
        taken = next((e.grant.name for e in entries if e.grant.target == _STDIN), None)
        if taken is None:
            entries.append(_standard_input(opened, self._stdin))
        elif self._stdin.source != b"":
            raise GrantError(
                "stdin",
                f"the grant '{taken}' has target 0 already",
                hint="leave one of them out",
                usage=True,
            )
        return entries

    def _environment(self, entries: Sequence[PlannedGrant]) -> tuple[tuple[str, str], ...]:
        variables = granting.variables(entry.grant for entry in entries)
        return tuple((variables | self._env).items())


def _name(cell: CellSource) -> str:
    """Return what to call a cell.

    Raises:
        ValueError: If it is a path that cannot be one.
    """
    if isinstance(cell, Cell):
        return cell.name
    if isinstance(cell, (str, os.PathLike)):
        # Its bytes may be no text; see Cell.load.
        return os.fsencode(cell).decode(errors="backslashreplace")
    return "cell"


def _origin(offer: Offer) -> str:
    return "stdin" if offer is _STANDARD_INPUT else origin(offer)


class _Given(NamedTuple):
    """An offer, and what is to be granted for it.

    Attributes:
        offer: The offer.
        source: Its source, or a copy of its descriptor.
        called: What its source is called in errors.
    """

    offer: Offer
    source: Source
    called: str


def _held(given: _Given, number: int, copy: int) -> _Given:
    """Return it with the copy of its descriptor."""
    return given._replace(source=copy, called=f"fd {number}")


def _number(source: Source, offer: Offer) -> int | None:
    """Return the descriptor that a source is, unless it is yet to be opened.

    Raises:
        GrantError: If it has one no more.
        TypeError: If it is no source at all.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        return source
    if isinstance(source, (bytes, str, os.PathLike)):
        return None
    if not isinstance(source, HasFileno):
        raise TypeError(
            f"{_origin(offer)}: {source!r} is neither bytes nor a path, and has no descriptor"
        )
    try:
        number = source.fileno()
    except (OSError, ValueError) as error:  # it is closed, or only looks like a file
        raise GrantError(_origin(offer), f"{source!r} has no descriptor: {error}") from None
    if not isinstance(number, int):
        raise TypeError(f"{_origin(offer)}: fileno() of {source!r} is no number: {number!r}")
    if number < 0:
        raise GrantError(_origin(offer), f"{source!r} is closed")
    return number


def _standard_input(opened: Opened, given: _Given) -> PlannedGrant:
    """Plan the standard input, which has no name and is not listed for the cell.

    Raises:
        GrantError: If it cannot be read from what it is to be.
        OSError: If what it names cannot be opened.
    """
    if given.source == b"":
        grant = Grant(target=_STDIN, name=None, mode="r", type="stream")
        return PlannedGrant(grant, opened.null(), "stdin", "r", "/dev/null")
    source = _opened(opened, given, "r")
    found = granting.describe(source)
    if found.mode is None or found.refusal or found.directory or "r" not in found.mode:
        raise GrantError(
            "stdin",
            f"{_called(given)}, a {found.what}, cannot be read",
            hint="give bytes, or what is open for reading",
        )
    grant = Grant(target=_STDIN, name=None, mode="r", type=found.types[0])
    return PlannedGrant(grant, source, "stdin", found.mode, found.what)


def _opened(opened: Opened, given: _Given, mode: Mode) -> int:
    """Return the descriptor for a source, opened now if need be."""
    source = given.source
    if isinstance(source, int):
        return source
    if isinstance(source, bytes):
        return opened.content(source, given.offer.name)
    if isinstance(source, (str, os.PathLike)):
        return opened.path(os.fsdecode(source), mode, _origin(given.offer))
    raise TypeError(f"{source!r} was not duplicated")


def _called(given: _Given) -> str:
    """Return what to call a source, in errors."""
    if isinstance(given.source, bytes):
        return "what is given"
    if isinstance(given.source, (str, os.PathLike)):
        return f"'{os.fsdecode(given.source)}'"
    return given.called


def _output(opened: Opened, number: int, entries: list[PlannedGrant]) -> int | None:
    """Plan where standard output or error goes: a memory file, unless something is granted there.

    Returns:
        A descriptor of that.
    """
    if any(entry.grant.target == number for entry in entries):
        return None
    name = granting.STDIO_NAMES[number]
    memory = opened.own(os.memfd_create, name, os.MFD_CLOEXEC)
    grant = Grant(target=number, name=None, mode="w", type="file")
    entries.append(PlannedGrant(grant, memory, name, "rw", "memfd"))
    return memory


def _contents(memory: int | None, most: int | None) -> bytes:
    """Read what a cell wrote, and no more than it may write, whatever the file's size is."""
    if memory is None:
        return b""
    size = os.fstat(memory).st_size
    if most is not None:
        size = min(size, most)
    if not size:
        return b""
    # Read into the bytes that are returned: a copy would take as much again.
    with open(memory, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(size)

"""One run of one cell: what it is given, and what it wrote."""

import errno
import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple, TypedDict

from sandbox import granting, wire
from sandbox.client import Connection
from sandbox.errors import GrantError
from sandbox.granting import GrantRequest, PlannedGrant
from sandbox.grants import LAST_STANDARD, Grant, Mode
from sandbox.library.cell import Cell, CellSource, check_kind, check_program
from sandbox.library.offer import MAX_FD, HasFileno, Offer, Source
from sandbox.library.opening import Opened
from sandbox.library.result import Result, conclude
from sandbox.plan import Plan
from sandbox.policy import NETWORKS, Isolation, Limits, Network
from sandbox.sharing import as_before

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
# Below it are the numbers of a program's own standard streams, which may be closed.
_LOWEST: Final = LAST_STANDARD + 1

# Bytes of all arguments and variables. A plan is a message of at most 64 MiB, where one byte may
# take six.
_MOST_TEXT: Final = 8 << 20
_SHOWN: Final = 70  # characters of a text that cannot be, in an error
# As of the flags of ``ww run``: poll(2) counts milliseconds in an int; what is added up of sizes
# fits into a long.
_MOST_SECONDS: Final = 2_000_000
_MOST_COUNT: Final = 1 << 50
_MAY_BE_NONE: Final = frozenset({"wall", "cpu", "fuel", "memory", "output"})
_MODES: Final = (None, "r", "w", "rw")
# What the standard input goes by beside the grants, of which one may have the same name.
_STANDARD_INPUT: Final = Offer("stdin", b"")


class Options(TypedDict, total=False):
    """What can be said of a run, beside the cell, its arguments and its grants.

    Attributes:
        stdin: What the cell can read from its standard input: bytes, a path, or an open
            descriptor, which is shared; nothing by default.
        env: Variables for it, beside those that tell of its grants. Nothing of this process's own
            environment reaches it.
        limits: What it may use up. ``output`` also bounds the memory that its standard output and
            error take in this process, so it has to be a number unless both are granted.
        network: What its network namespace holds: a ``lo`` that is down, or one that is up.
        invoke: The function of a core module to call in place of ``_start``; empty for that.
        unknown_imports_trap: Whether functions that it imports and nobody offers trap when they
            are called; otherwise such a cell is rejected.
    """

    stdin: Source
    env: Mapping[str, str] | None
    limits: Limits
    network: Network
    invoke: str
    unknown_imports_trap: bool


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

    A descriptor that was offered is duplicated at once, so what happens to the caller's number
    until the cell runs does not matter. A path is opened when the cell runs.

    Attributes:
        name: What the cell is called, for errors.
    """

    def __init__(
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        *,
        stdin: Source = b"",
        env: Mapping[str, str] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - it cannot be changed
        network: Network = "none",
        invoke: str = "",
        unknown_imports_trap: bool = False,
    ) -> None:
        """Take in all of it; see :class:`Options`.

        Raises:
            GrantError: If a descriptor that is offered is not open.
            OSError: If there is no descriptor left; if the cell is one that cannot be read.
            CellRejected: If the cell is an open descriptor, and of no cell.
            ValueError: If an argument, a variable or a limit cannot be; if the cell is a path that
                cannot be one.
            TypeError: If something is of another kind than it says; so if the arguments are one
                text, or the grants one offer.
        """
        check_kind(cell)
        if isinstance(args, str):
            raise TypeError("args are many texts, and this is one: write [text]")
        if isinstance(grants, Offer):
            raise TypeError("grants are many offers, and this is one: write [offer]")
        self._args = tuple(args)
        self._offers = [_Given(offer, _source(offer), "") for offer in grants]
        self._stdin = _Given(_STANDARD_INPUT, stdin, "")
        self._env = dict(env or {})
        self._limits = limits
        self._network = network
        self._invoke = invoke
        self._trap_unknown = unknown_imports_trap
        self._held: list[int] = []
        self._moved: list[int] = []
        self._own_cell: Cell | None = None
        self._cell: CellSource = cell
        # Nothing is held yet that an error would have to give up.
        self.name = _name(cell)
        _check_texts(self._args, self._env, invoke)
        _check_limits(limits)
        if network not in NETWORKS:
            raise ValueError(f"network is {network!r}, and not one of {', '.join(NETWORKS)}")
        if limits.output is None and not {_STDOUT, _STDERR} <= {
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
            self._cell = self._own_cell = Cell.load(self._cell)
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
        held = [
            given if number is None else _held(given, number, copies[number])
            for given, number in zip(every, numbers, strict=True)
        ]
        self._stdin, *self._offers = held
        self._moved = [copies[number] for number in moved]
        for number, source in moved.items():
            if isinstance(source, int) or not hasattr(source, "close"):
                os.close(number)
            else:
                source.close()

    def _duplicate(self, number: int, offer: Offer) -> int:
        if not 0 <= number <= MAX_FD:
            raise GrantError(_origin(offer), f"fd {number} is not open")
        try:
            copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise GrantError(_origin(offer), f"fd {number} is not open") from None
        self._held.append(copy)
        return copy

    def close(self) -> None:
        """Close what it holds."""
        wire.close_all(self._held)
        self._moved = []
        if self._own_cell is not None:
            self._own_cell.close()

    def _started(self) -> None:
        """Close what was given away: that nobody else has it any more tells when the cell ends."""
        for fd in self._moved:
            self._held.remove(fd)
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
        with ExitStack() as stack:
            cell = self._cell
            if not isinstance(cell, Cell):
                cell = stack.enter_context(Cell.load(cell))
            if cell.component and self._invoke:
                raise ValueError("invoke is for core modules only, and the cell is a component")
            opened = Opened(stack)
            code = opened.own(cell.open())
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
                limits=self._limits,
                network=self._network,
                required=house.required,
                isolation=house.isolation,
                component=cell.component,
                invoke=self._invoke,
                trap_unknown=self._trap_unknown,
            )
            check_program(code, cell.name)
            opened.settle()  # nothing is refused from here on, but by the engine
            sources = [-1 if entry.source is None else entry.source for entry in entries]
            # What was moved is closed meanwhile, and its number may be another thread's then.
            with as_before([fd for fd in self._held if fd not in self._moved]):
                outcome = connection.run(plan, code, sources, self._started)
            most = self._limits.output
            stdout, stderr = (_contents(outputs[number], most) for number in (_STDOUT, _STDERR))
            return conclude(cell.name, outcome, stdout, stderr)

    def _entries(self, opened: Opened) -> list[PlannedGrant]:
        """Return what is granted, and the standard input; opened, and held against the kernel."""
        asked = [_request(given, -1 - at) for at, given in enumerate(self._offers)]
        # What they contradict among themselves shows before anything is opened.
        granting.check_requests(asked, granting.target_limit())
        requests = [
            request._replace(source=_opened(opened, given, request.mode or "r"))
            for request, given in zip(asked, self._offers, strict=True)
        ]
        entries = granting.plan_requests(
            requests, opened.inspect, scratch=bool(self._limits.scratch)
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


def _check_texts(args: Sequence[str], env: Mapping[str, str], invoke: str) -> None:
    """Hold that a cell can be given these texts.

    Raises:
        ValueError: If not.
        TypeError: If one is no text.
    """
    total = 0
    for text in (*args, *env, *env.values(), invoke):
        if not isinstance(text, str):
            raise TypeError(f"arguments and variables are texts, and this is none: {text!r}")
        if "\0" in text:
            raise ValueError(f"a NUL character cannot reach a cell: {text[:_SHOWN]!r}")
        total += len(text.encode())  # UnicodeEncodeError, a ValueError: WASI strings are UTF-8
    if total > _MOST_TEXT:
        raise ValueError(
            f"arguments and variables are {total} bytes together, more than {_MOST_TEXT}: give"
            " them as the standard input or as a grant"
        )
    for key in env:
        if not key or "=" in key:
            raise ValueError(f"{key!r} is no name of a variable")
        if key == granting.TABLE or key.startswith(granting.KEPT_PREFIX):
            raise ValueError(f"the variable {key} is kept for grants")


def _check_limits(limits: Limits) -> None:
    """Hold that limits are numbers that the kernel and the engine can count to.

    Raises:
        ValueError: If not.
        TypeError: If they are no limits at all.
    """
    if not isinstance(limits, Limits):
        raise TypeError(f"limits are made by Limits(...), and not {limits!r}")
    for name, value in limits._asdict().items():
        if value is None:
            legal = name in _MAY_BE_NONE
        elif name == "wall":
            legal = isinstance(value, (int, float)) and 0 <= value <= _MOST_SECONDS
        else:
            most = _MOST_SECONDS if name == "cpu" else _MOST_COUNT
            legal = isinstance(value, int) and 0 <= value <= most
        if not legal or isinstance(value, bool):
            raise ValueError(f"limits.{name} cannot be {value!r}")


def _origin(offer: Offer) -> str:
    return "stdin" if offer is _STANDARD_INPUT else f"grant {offer.name!r}"


def _source(offer: Offer) -> Source:
    """Return what is offered.

    Raises:
        TypeError: If it is no offer.
    """
    if not isinstance(offer, Offer):
        raise TypeError(f"grants are made by grant(...), and this is none: {offer!r}")
    return offer.source


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


def _request(given: _Given, source: int) -> GrantRequest:
    """Return an offer as a request, of which nothing is opened yet.

    Args:
        given: The offer.
        source: What stands for its descriptor if it has none yet; no other has the same.

    Raises:
        GrantError: If its path in the cell cannot be, or something of it is of another kind than
            it has to be.
    """
    offer, guest = given.offer, given.offer.guest
    _check_kinds(offer)
    if offer.mode not in _MODES:
        raise GrantError(_origin(offer), f"mode={offer.mode} is none of r, w and rw", usage=True)
    if guest is not None:
        try:
            guest = granting.guest_path(guest)
        except ValueError as error:
            raise GrantError(
                _origin(offer), f"'{guest}' cannot be a path in the cell: {error}", usage=True
            ) from None
    return GrantRequest(
        name=offer.name,
        source=given.source if isinstance(given.source, int) else source,
        origin=_origin(offer),
        mode=offer.mode,
        type=offer.type,
        target=offer.target,
        move=offer.move,
        cloexec=offer.cloexec,
        pathlink=offer.pathlink,
        guest=guest,
        called=_called(given),
    )


def _check_kinds(offer: Offer) -> None:
    """Hold that the parts of an offer are texts, numbers and truth values, as they should be.

    Raises:
        GrantError: Of usage, if one is not.
    """
    target = offer.target
    for part, value, legal in (
        ("name", offer.name, isinstance(offer.name, str)),
        ("guest", offer.guest, isinstance(offer.guest, str | None)),
        ("type", offer.type, isinstance(offer.type, str | None)),
        ("target", target, isinstance(target, int | None) and not isinstance(target, bool)),
        ("move", offer.move, isinstance(offer.move, bool)),
        ("cloexec", offer.cloexec, isinstance(offer.cloexec, bool)),
        ("pathlink", offer.pathlink, isinstance(offer.pathlink, bool)),
    ):
        if not legal:
            raise GrantError(_origin(offer), f"{part} cannot be {value!r}", usage=True)


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
    memory = opened.own(os.memfd_create(name, os.MFD_CLOEXEC))
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

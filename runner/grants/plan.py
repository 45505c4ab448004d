"""The plan: every descriptor a cell gets, checked against the kernel and frozen.

Nothing is opened, moved or closed here. A plan that exists is right in whole: no name, key,
number or path is used twice, every source was inherited and is what its grant says, and 0, 1 and 2
are among the targets.
"""

from __future__ import annotations

import errno

from runner.errors import EXIT_GRANT, EXIT_JAIL, EXIT_USAGE, WwError
from runner.grants.model import Request
from runner.inherited import STDIO
from sandbox import Grant, GrantError, JailError, Record, granting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final, TypeAlias

    from runner.inherited import Inherited
    from sandbox import FdType, Mode

Descriptor: TypeAlias = granting.Descriptor
PlannedGrant: TypeAlias = granting.PlannedGrant

IPFS: Final = "/ipfs"
"""Where the cell finds content by its address."""

_NULL_MODES: Final[tuple[Mode, Mode, Mode]] = ("r", "w", "w")


class GrantPlan(Record):
    """Every descriptor of a cell, and with that, all of its authority.

    Attributes:
        entries: In target order, without a gap at 0, 1, 2. Those whose grant has no name are
            stdio that passes through, or /dev/null.
    """

    entries: tuple[PlannedGrant, ...]

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What the jail is told, in target order."""
        return tuple(entry.grant for entry in self.entries)


def check_requests(requests: Sequence[Request], limit: int, *, stdio: bool) -> None:
    """Hold that no two requests contradict each other, and none contradicts itself.

    Args:
        requests: In order of declaration.
        limit: The lowest number that is no target.
        stdio: Whether 0, 1 and 2 pass through where no request has them as its target.

    Raises:
        WwError: With code 2, naming the later request and where the earlier one came from.
    """
    with Refusals():
        granting.check_requests(requests, limit)
    if stdio:
        _check_passing_through(requests)


def _check_passing_through(requests: Sequence[Request]) -> None:
    """Hold that nothing that is moved also passes through."""
    targets = {request.target for request in requests}
    for request in requests:
        source = request.source
        if request.move and source in STDIO and source not in targets:
            raise WwError(
                request.origin,
                f"fd {source} is moved, but it also passes through as the cell's"
                f" {granting.STDIO_NAMES[source]}",
                hint=f"drop move=true, add target={source}, or use --no-stdio",
                code=EXIT_USAGE,
            )


def build_plan(
    requests: Iterable[Request],
    inherited: Inherited,
    *,
    stdio: bool = True,
    scratch: bool = False,
    ipfs: bool = False,
) -> GrantPlan:
    """Check all requests, alone and against each other, and fix every number.

    0, 1 and 2 that nobody has asked for pass through, or are /dev/null.

    Args:
        requests: In order of declaration, from every source of requests.
        inherited: What ww was started with.
        stdio: Whether 0, 1 and 2 pass through where no request has them as its target.
        scratch: Whether the cell has a writable /tmp, which takes a number and a path too.
        ipfs: Whether it has /ipfs, likewise.

    Raises:
        WwError: With code 2 if the requests contradict each other or themselves; with code 65
            if the kernel contradicts them, or there are more than there are numbers; with code 67
            if the kernel does not say what a descriptor is, or there is no room for what ww opens
            itself.
    """
    _check_room(granting.HEADROOM + scratch + ipfs)
    asked = tuple(requests)
    if stdio:
        _check_passing_through(asked)

    def inspect(request: Request) -> Descriptor:
        return _inspect(request.origin, request.source, inherited)

    with Refusals():
        entries = granting.plan_requests(
            asked, inspect, scratch=scratch, content=IPFS if ipfs else ""
        )
        taken = {entry.grant.target for entry in entries}
        for number in sorted(set(STDIO) - taken):
            entries.append(_pass_through(number, inherited) if stdio else _null(number))
    return GrantPlan(tuple(sorted(entries, key=lambda entry: entry.grant.target)))


def _check_room(own: int) -> None:
    """Hold that there is room for what ww opens itself, whatever is granted beside it.

    Raises:
        WwError: With code 67 if there is not.
    """
    limit = granting.target_limit()
    if own > limit:
        raise WwError(
            "ulimit -n",
            f"it is too low: ww needs {own} descriptors itself, and may have {limit} open",
            hint="raise the hard limit on open files",
            code=EXIT_JAIL,
        )


class Refusals:
    """A ``with`` block that tells ww's user of what the sandbox refuses."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, GrantError):
            code = EXIT_USAGE if error.usage else EXIT_GRANT
            raise WwError(error.where, error.what, hint=error.hint, code=code) from None
        if isinstance(error, JailError):
            raise WwError(
                error.step, error.what, hint="ww needs a mounted /proc", code=EXIT_JAIL
            ) from None


def _inspect(origin: str, source: int, inherited: Inherited, *, nulled: bool = False) -> Descriptor:
    """Hold that a source was inherited, and ask the kernel about it.

    Args:
        origin: Who wants it.
        source: The descriptor.
        inherited: What ww was started with.
        nulled: Whether the /dev/null in place of a closed 0, 1 or 2 will do.
    """
    if source in inherited.close_on_exec:
        raise WwError(
            origin,
            f"fd {source} was not inherited (close-on-exec)",
            hint="only what is open and not close-on-exec when ww starts can be granted",
            code=EXIT_GRANT,
        )
    try:
        if source in inherited.sources or (nulled and source in inherited.nulled):
            return granting.describe(source)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    raise WwError(
        origin,
        f"fd {source} is not open",
        hint=f"open it for ww, in a shell with {source}<FILE or {source}>FILE",
        code=EXIT_GRANT,
    )


def _pass_through(number: int, inherited: Inherited) -> PlannedGrant:
    """Plan one of 0, 1, 2 as it is; a closed one is /dev/null since the start of the program."""
    name = granting.STDIO_NAMES[number]
    found = _inspect(name, number, inherited, nulled=True)
    refusal = "it must be granted by name" if found.directory else found.refusal
    if found.mode is None or refusal:
        raise WwError(
            name,
            f"fd {number} is {found.with_article} and cannot pass through: {refusal}",
            hint=f"redirect it, grant something else with target={number}, or use --no-stdio",
            code=EXIT_GRANT,
        )
    kind = found.types[0]
    grant = Grant(target=number, name=None, mode=_usual(number, found.mode, kind), type=kind)
    return PlannedGrant(grant, number, name, found.mode, found.what)


def _usual(number: int, actual: Mode, kind: FdType) -> Mode:
    """Return what passing through means for one of 0, 1, 2: input is read, output is written.

    A terminal is open for both at all three, and who redirects stdin does not expect that what
    is typed can be read from stderr. A socket is what an inetd passes, for both.
    """
    usual = _NULL_MODES[number]
    return usual if kind != "socket" and usual in actual else actual


def _null(number: int) -> PlannedGrant:
    """Plan /dev/null, a character device and so a stream, as one of 0, 1, 2."""
    grant = Grant(target=number, name=None, mode=_NULL_MODES[number], type="stream")
    return PlannedGrant(grant, None, "--no-stdio", grant.mode, "/dev/null")

"""The plan: every descriptor a cell gets, checked against the kernel and frozen.

Nothing is opened, moved or closed here. A plan that exists is right in whole: no name, key,
number or path is used twice, every source was inherited and is what its grant says, and 0, 1 and 2
are among the targets.
"""

import errno
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.kernel import Descriptor, describe
from runner.grants.model import Request
from runner.grants.preopens import plan_preopens
from runner.grants.rules import STDIO_NAMES, assign_targets, check_requests, target_limit
from runner.inherited import STDIO, Inherited
from sandbox import FdType, Grant, Mode

_NULL_MODES: Final[tuple[Mode, Mode, Mode]] = ("r", "w", "w")


class PlannedGrant(NamedTuple):
    """A grant, and the descriptor of this process that fills it.

    Attributes:
        grant: What the jail is told.
        source: The descriptor; None for /dev/null, which whoever carries the plan out opens
            with the grant's mode. Only stdio under ``--no-stdio`` is like that.
        origin: Where it was asked for, or the name of what passes through.
        actual: The mode that the descriptor is open for; of a directory, the one its mount allows.
        what: What it is, in words.
    """

    grant: Grant
    source: int | None
    origin: str
    actual: Mode
    what: str

    @property
    def is_directory(self) -> bool:
        """Whether the cell finds it at a path too."""
        return self.grant.guest is not None

    def facts(self) -> dict[str, Any]:
        """The grant as a program is told of it: what only directories have, for them only."""
        facts = self.grant._asdict()
        if not self.is_directory:
            del facts["guest"], facts["preopen"]
        return facts


class GrantPlan(NamedTuple):
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


def build_plan(
    requests: Iterable[Request],
    inherited: Inherited,
    *,
    stdio: bool = True,
    scratch: bool = False,
    ipfs: bool = False,
) -> GrantPlan:
    """Check all requests, alone and against each other, and fix every number.

    Explicit targets are taken first, then each request without one gets the lowest free number
    from 10 up, in the order of the requests. 0, 1 and 2 that nobody has asked for pass through,
    or are /dev/null.

    Args:
        requests: In order of declaration, from every source of requests.
        inherited: What ww was started with.
        stdio: Whether 0, 1 and 2 pass through where no request has them as its target.
        scratch: Whether the cell has a writable /tmp, which takes a number and a path too.
        ipfs: Whether it has /ipfs, likewise.

    Raises:
        WwError: With code 2 if the requests contradict each other or themselves; with code 65
            if the kernel contradicts them, or there are more than there are numbers.
    """
    asked = tuple(requests)
    limit = target_limit()
    check_requests(asked, limit, stdio=stdio)

    known: dict[int, Descriptor] = {}
    for request in asked:
        if request.source not in known:
            known[request.source] = _inspect(request.origin, request.source, inherited)
    asked = tuple(_with_path(request, known[request.source]) for request in asked)
    preopens = plan_preopens(asked, scratch=scratch, ipfs=ipfs)
    numbers = {preopen.name: preopen.number for preopen in preopens}
    targets = assign_targets(asked, limit, [preopen.number for preopen in preopens])
    entries = [
        _grant(request, target, numbers.get(request.name, 0), known[request.source])
        for request, target in zip(asked, targets, strict=True)
    ]
    for number in sorted(set(STDIO).difference(targets)):
        entries.append(_pass_through(number, inherited) if stdio else _null(number))
    return GrantPlan(tuple(sorted(entries, key=lambda entry: entry.grant.target)))


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
            return describe(source)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    raise WwError(
        origin,
        f"fd {source} is not open",
        hint=f"open it for ww, in a shell with {source}<FILE or {source}>FILE",
        code=EXIT_GRANT,
    )


def _with_path(request: Request, source: Descriptor) -> Request:
    """Give a directory its path in the cell, and hold that nothing else has one."""
    own = f"/{request.name}"
    if not source.directory:
        if request.guest is not None:
            raise WwError(
                request.origin,
                f"fd {request.source} is {_a(source.what)} and no directory",
                code=EXIT_GRANT,
            )
        return request
    guest = own if request.guest is None else request.guest
    if request.pathlink and guest != own:
        raise WwError(
            request.origin,
            f"the directory '{request.name}' cannot be at '{own}': the cell finds it at '{guest}'",
            hint="drop pathlink=true",
            code=EXIT_USAGE,
        )
    # It is at its path without a link.
    return request._replace(guest=guest, pathlink=False)


def _grant(request: Request, target: int, preopen: int, source: Descriptor) -> PlannedGrant:
    """Hold that mode and type are the source's, or less."""
    if source.mode is None or source.refusal:
        raise WwError(
            request.origin,
            f"fd {request.source} is {_a(source.what)} and cannot be granted: {source.refusal}",
            hint="grant a file, a directory, a stream or a socket in its place",
            code=EXIT_GRANT,
        )
    grant = Grant(
        target=target,
        name=request.name,
        mode=_mode(request, source.mode, source),
        type=_type(request, source),
        move=request.move,
        cloexec=request.cloexec,
        pathlink=request.pathlink,
        guest=request.guest,
        preopen=preopen,
    )
    return PlannedGrant(grant, request.source, request.origin, source.mode, source.what)


def _mode(request: Request, actual: Mode, source: Descriptor) -> Mode:
    if source.directory:
        return _directory_mode(request, actual)
    asked = request.mode or actual
    if not set(asked) <= set(actual):
        raise WwError(
            request.origin,
            f"mode={asked} is asked, but fd {request.source}, {_a(source.what)}, is open with"
            f" mode={actual}",
            hint=f"ask for mode={actual}, or open it otherwise",
            code=EXIT_GRANT,
        )
    return asked


def _directory_mode(request: Request, actual: Mode) -> Mode:
    """Return the mode of a directory: whoever opens one has it for reading, so more is asked for.

    Write access alone is refused, because nothing can be written in a directory whose names
    cannot be looked up.
    """
    asked = request.mode or "r"
    if asked == "w":
        what, hint = "is a directory, and nobody can write without finding names", "ask for mode=rw"
    elif not set(asked) <= set(actual):
        what, hint = "is a directory on a read-only mount", f"ask for mode={actual}"
    else:
        return asked
    raise WwError(
        request.origin,
        f"mode={asked} is asked, but fd {request.source} {what}",
        hint=hint,
        code=EXIT_GRANT,
    )


def _type(request: Request, source: Descriptor) -> FdType:
    asked = request.type or source.types[0]
    if asked not in source.types:
        possible = " or ".join(f"type={name}" for name in source.types)
        raise WwError(
            request.origin,
            f"type={asked} is asked, but fd {request.source} is {_a(source.what)}",
            hint=f"ask for {possible}, or leave the type out",
            code=EXIT_GRANT,
        )
    return asked


def _pass_through(number: int, inherited: Inherited) -> PlannedGrant:
    """Plan one of 0, 1, 2 as it is; a closed one is /dev/null since the start of the program."""
    name = STDIO_NAMES[number]
    found = _inspect(name, number, inherited, nulled=True)
    refusal = "it must be granted by name" if found.directory else found.refusal
    if found.mode is None or refusal:
        raise WwError(
            name,
            f"fd {number} is {_a(found.what)} and cannot pass through: {refusal}",
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


def _a(what: str) -> str:
    """Put the article; no name of a kind starts with a u that is spoken as in ``umbrella``."""
    return f"an {what}" if what[:1] in "aeio" else f"a {what}"

"""Requests held against what the kernel says of their sources, with every number fixed."""

from __future__ import annotations

import errno

from sandbox.errors import GrantError
from sandbox.granting.kernel import describe
from sandbox.granting.preopens import plan_preopens
from sandbox.granting.rules import assign_targets, check_requests, target_limit
from sandbox.grants import Grant
from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sandbox.granting.kernel import Descriptor
    from sandbox.granting.request import GrantRequest
    from sandbox.grants import FdType, Mode


class PlannedGrant(Record):
    """A grant, and the descriptor of this process that fills it.

    Attributes:
        grant: What the jail is told.
        source: The descriptor; None for /dev/null, which whoever carries the plan out opens
            with the grant's mode.
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


def look(request: GrantRequest) -> Descriptor:
    """Ask the kernel about the source of a request.

    Raises:
        GrantError: If it is not open.
        OSError: As :func:`sandbox.granting.describe`.
    """
    try:
        return describe(request.source)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    raise GrantError(request.origin, f"{request.given} is not open")


def plan_requests(
    requests: Sequence[GrantRequest],
    inspect: Callable[[GrantRequest], Descriptor] = look,
    *,
    scratch: bool = False,
    content: str = "",
) -> list[PlannedGrant]:
    """Check all requests, alone and against each other, and fix every number.

    Explicit targets are taken first, then each request without one gets the lowest free number
    from 10 up, in the order of the requests.

    Args:
        requests: In order of declaration.
        inspect: What the kernel says of the source of one of them; called once for each source.
        scratch: Whether the cell has a writable /tmp, which takes a number and a path too.
        content: The path at which it has content that is served, likewise; empty for none.

    Returns:
        One for each request, in their order.

    Raises:
        GrantError: If the requests contradict each other or themselves, if the kernel contradicts
            them, or if there are more than there are numbers.
        JailError: If the kernel does not say what a descriptor is.
    """
    limit = target_limit()
    check_requests(requests, limit)
    known: dict[int, Descriptor] = {}
    for request in requests:
        if request.source not in known:
            known[request.source] = inspect(request)
    asked = [_with_path(request, known[request.source]) for request in requests]
    preopens = plan_preopens(asked, scratch=scratch, content=content)
    numbers = {preopen.name: preopen.number for preopen in preopens}
    targets = assign_targets(asked, limit, [preopen.number for preopen in preopens])
    return [
        _planned(request, target, numbers.get(request.name, 0), known[request.source])
        for request, target in zip(asked, targets, strict=True)
    ]


def _with_path(request: GrantRequest, source: Descriptor) -> GrantRequest:
    """Give a directory its path in the cell, and hold that nothing else has one."""
    own = f"/{request.name}"
    if not source.directory:
        if request.guest is not None:
            raise GrantError(
                request.origin,
                f"{request.given} is {source.with_article} and no directory",
            )
        return request
    guest = own if request.guest is None else request.guest
    if request.pathlink and guest != own:
        raise GrantError(
            request.origin,
            f"the directory '{request.name}' cannot be at '{own}': the cell finds it at '{guest}'",
            hint="drop pathlink=true",
            usage=True,
        )
    # It is at its path without a link.
    return request._replace(guest=guest, pathlink=False)


def _planned(request: GrantRequest, target: int, preopen: int, source: Descriptor) -> PlannedGrant:
    """Hold that mode and type are the source's, or less."""
    if source.mode is None or source.refusal:
        raise GrantError(
            request.origin,
            f"{request.given} is {source.with_article} and cannot be granted: {source.refusal}",
            hint="grant a file, a directory, a stream or a socket in its place",
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


def _mode(request: GrantRequest, actual: Mode, source: Descriptor) -> Mode:
    if source.directory:
        return _directory_mode(request, actual)
    asked = request.mode or actual
    if not set(asked) <= set(actual):
        raise GrantError(
            request.origin,
            f"mode={asked} is asked, but {request.given}, {source.with_article}, is open with"
            f" mode={actual}",
            hint=f"ask for mode={actual}, or open it otherwise",
        )
    return asked


def _directory_mode(request: GrantRequest, actual: Mode) -> Mode:
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
    raise GrantError(
        request.origin,
        f"mode={asked} is asked, but {request.given} {what}",
        hint=hint,
    )


def _type(request: GrantRequest, source: Descriptor) -> FdType:
    asked = request.type or source.types[0]
    if asked not in source.types:
        possible = " or ".join(f"type={name}" for name in source.types)
        raise GrantError(
            request.origin,
            f"type={asked} is asked, but {request.given} is {source.with_article}",
            hint=f"ask for {possible}, or leave the type out",
        )
    return asked

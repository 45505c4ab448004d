"""The rules that requests keep among themselves, before the kernel is asked about any source."""

from __future__ import annotations

import resource

from sandbox.errors import GrantError
from sandbox.granting.request import NAME_LENGTH, environment_key, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Final

    from sandbox.granting.request import GrantRequest

FIRST_AUTOMATIC_TARGET: Final = 10
MAX_TARGETS: Final = 65535  # bounds the tables that both sides index by target

# Names the jail's root may hold for itself, so that no pathlink can have them.
_ROOT_NAMES: Final = {"proc": "it would hide the /proc that pathlinks lead through"}

# Descriptors beside the grants that the process which becomes the cell has for a moment: 0 to 2,
# the line to the spawner and its connection, the cell, what it needs to set up the table.
HEADROOM: Final = 40

STDIO_NAMES: Final = ("stdin", "stdout", "stderr")


def target_limit() -> int:
    """The lowest number that is no target: the hard RLIMIT_NOFILE of getrlimit(2), or 65535."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_TARGETS if hard == resource.RLIM_INFINITY else min(hard, MAX_TARGETS)


def check_requests(requests: Sequence[GrantRequest], limit: int) -> None:
    """Hold that no two requests contradict each other, and none contradicts itself.

    Args:
        requests: In order of declaration.
        limit: The lowest number that is no target.

    Raises:
        GrantError: Of usage, naming the later request and where the earlier one came from.
    """
    _check_names(requests)
    _check_explicit_targets(requests, limit)
    _check_pathlinks(requests)
    _check_moves(requests)


def _check_names(requests: Sequence[GrantRequest]) -> None:
    """Hold that names are legal and tell grants apart, in ``WW_FDS`` and in ``WW_FD_<KEY>``."""
    by_key: dict[str, GrantRequest] = {}
    for request in requests:
        if not is_name(request.name):
            raise GrantError(
                request.origin,
                f"'{request.name}' is not a legal name",
                hint=f"at most {NAME_LENGTH} ASCII letters, digits, '_', '-', first a letter",
                usage=True,
            )
        key = environment_key(request.name)
        first = by_key.get(key)
        if first is None:
            by_key[key] = request
            continue
        if first.name == request.name:
            what = f"the name '{request.name}' is already given by {first.origin}"
        else:
            what = f"'{request.name}', and '{first.name}' of {first.origin}, are both WW_FD_{key}"
        raise GrantError(request.origin, what, hint="rename one of them", usage=True)


def _check_explicit_targets(requests: Sequence[GrantRequest], limit: int) -> None:
    """Hold that asked targets exist and are asked for once."""
    by_target: dict[int, GrantRequest] = {}
    for request in requests:
        if request.target is None:
            continue
        if not 0 <= request.target < limit:
            raise GrantError(
                request.origin,
                f"target {request.target} is out of range",
                hint=f"targets here are 0 to {limit - 1}",
                usage=True,
            )
        first = by_target.get(request.target)
        if first is not None:
            raise GrantError(
                request.origin,
                f"target {request.target} is already taken by '{first.name}' of {first.origin}",
                hint="give one of them another target, or none",
                usage=True,
            )
        by_target[request.target] = request


def _check_pathlinks(requests: Sequence[GrantRequest]) -> None:
    """Hold that a link can be made in the jail's root."""
    for request in requests:
        if request.pathlink and request.name in _ROOT_NAMES:
            raise GrantError(
                request.origin,
                f"a pathlink cannot be named '{request.name}': {_ROOT_NAMES[request.name]}",
                hint="rename the grant",
                usage=True,
            )


def _check_moves(requests: Sequence[GrantRequest]) -> None:
    """Hold that a moved source has no second use."""
    by_source: dict[int, list[GrantRequest]] = {}
    for request in requests:
        by_source.setdefault(request.source, []).append(request)
    for users in by_source.values():
        if len(users) > 1 and any(user.move for user in users):
            raise GrantError(
                users[1].origin,
                f"{users[1].given} is also granted by {users[0].origin}, and one of them moves it",
                hint="a moved descriptor can be granted once; drop move=true, or one of them",
                usage=True,
            )


def assign_targets(
    requests: Sequence[GrantRequest], limit: int, preopened: Collection[int] = ()
) -> list[int]:
    """Give each request its number; explicit ones keep theirs, whatever the order.

    Args:
        requests: In order of declaration.
        limit: The lowest number that is no target.
        preopened: The numbers at which the cell finds directories; none is given to a grant.

    Raises:
        GrantError: If the numbers run out, or there are more grants than can be held.
    """
    # A directory is open twice for a moment: as it was granted, and as the cell's own mount.
    own = HEADROOM + len(preopened)
    if len(requests) + own > limit:
        raise GrantError(
            requests[-1].origin if requests else "grants",
            f"{len(requests)} grants are too many: ww may have {limit} descriptors open, and needs"
            f" {own} itself",
            hint="grant fewer, or raise the hard limit on open files (ulimit -Hn)",
        )
    taken = {*preopened, *(request.target for request in requests)}
    following = FIRST_AUTOMATIC_TARGET
    targets = []
    for request in requests:
        if request.target is not None:
            targets.append(request.target)
            continue
        while following in taken:
            following += 1
        if following >= limit:
            raise GrantError(
                request.origin,
                f"no number is left for '{request.name}': {len(requests)} grants, and targets"
                f" here end at {limit - 1}",
                hint="grant fewer, or raise the hard limit on open files",
            )
        targets.append(following)
        following += 1
    return targets

"""The rules that requests keep among themselves, before the kernel is asked about any source."""

import resource
from collections.abc import Collection, Sequence
from typing import Final

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.model import NAME_LENGTH, Request, environment_key, is_name
from runner.inherited import STDIO

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


def check_requests(requests: Sequence[Request], limit: int, *, stdio: bool) -> None:
    """Hold that no two requests contradict each other, and none contradicts itself.

    Args:
        requests: In order of declaration.
        limit: The lowest number that is no target.
        stdio: Whether 0, 1 and 2 pass through where no request has them as its target.

    Raises:
        WwError: With code 2, naming the later request and where the earlier one came from.
    """
    _check_names(requests)
    _check_explicit_targets(requests, limit)
    _check_pathlinks(requests)
    _check_moves(requests, stdio=stdio)


def _check_names(requests: Sequence[Request]) -> None:
    """Hold that names are legal and tell grants apart, in ``WW_FDS`` and in ``WW_FD_<KEY>``."""
    by_key: dict[str, Request] = {}
    for request in requests:
        if not is_name(request.name):
            raise WwError(
                request.origin,
                f"'{request.name}' is not a legal name",
                hint=f"at most {NAME_LENGTH} ASCII letters, digits, '_', '-', first a letter",
                code=EXIT_USAGE,
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
        raise WwError(request.origin, what, hint="rename one of them", code=EXIT_USAGE)


def _check_explicit_targets(requests: Sequence[Request], limit: int) -> None:
    """Hold that asked targets exist and are asked for once."""
    by_target: dict[int, Request] = {}
    for request in requests:
        if request.target is None:
            continue
        if not 0 <= request.target < limit:
            raise WwError(
                request.origin,
                f"target {request.target} is out of range",
                hint=f"targets here are 0 to {limit - 1}",
                code=EXIT_USAGE,
            )
        first = by_target.get(request.target)
        if first is not None:
            raise WwError(
                request.origin,
                f"target {request.target} is already taken by '{first.name}' of {first.origin}",
                hint="give one of them another target, or none",
                code=EXIT_USAGE,
            )
        by_target[request.target] = request


def _check_pathlinks(requests: Sequence[Request]) -> None:
    """Hold that a link can be made in the jail's root."""
    for request in requests:
        if request.pathlink and request.name in _ROOT_NAMES:
            raise WwError(
                request.origin,
                f"a pathlink cannot be named '{request.name}': {_ROOT_NAMES[request.name]}",
                hint="rename the grant",
                code=EXIT_USAGE,
            )


def _check_moves(requests: Sequence[Request], *, stdio: bool) -> None:
    """Hold that a moved source has no second use, pass-through included."""
    by_source: dict[int, list[Request]] = {}
    for request in requests:
        by_source.setdefault(request.source, []).append(request)
    for source, users in by_source.items():
        if not any(user.move for user in users):
            continue
        if len(users) > 1:
            raise WwError(
                users[1].origin,
                f"fd {source} is also granted by {users[0].origin}, and one of them moves it",
                hint="a moved descriptor can be granted once; drop move=true, or one of them",
                code=EXIT_USAGE,
            )
        if stdio and source in STDIO and all(other.target != source for other in requests):
            raise WwError(
                users[0].origin,
                f"fd {source} is moved, but it also passes through as the cell's"
                f" {STDIO_NAMES[source]}",
                hint=f"drop move=true, add target={source}, or use --no-stdio",
                code=EXIT_USAGE,
            )


def assign_targets(
    requests: Sequence[Request], limit: int, preopened: Collection[int] = ()
) -> list[int]:
    """Give each request its number; explicit ones keep theirs, whatever the order.

    Args:
        requests: In order of declaration.
        limit: The lowest number that is no target.
        preopened: The numbers at which the cell finds directories; none is given to a grant.

    Raises:
        WwError: With code 65 if the numbers run out, or there are more grants than ww can hold.
    """
    # A directory is open twice for a moment: as it was granted, and as the cell's own mount.
    own = HEADROOM + len(preopened)
    if len(requests) + own > limit:
        raise WwError(
            requests[-1].origin,
            f"{len(requests)} grants are too many: ww may have {limit} descriptors open, and needs"
            f" {own} itself",
            hint="grant fewer, or raise the hard limit on open files (ulimit -Hn)",
            code=EXIT_GRANT,
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
            raise WwError(
                request.origin,
                f"no number is left for '{request.name}': {len(requests)} grants, and targets"
                f" here end at {limit - 1}",
                hint="grant fewer, or raise the hard limit on open files",
                code=EXIT_GRANT,
            )
        targets.append(following)
        following += 1
    return targets

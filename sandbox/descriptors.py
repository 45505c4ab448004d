"""Step 7: the cell's descriptor table, exactly as planned."""

import os
import resource
from collections.abc import Iterator, Sequence, Set

from sandbox.errors import JailError

# How far above the highest target ww's own descriptors may go: a table of file descriptors
# takes memory up to its highest number.
_PARKING_ROOM = 4096
# Above any descriptor: the kernel's own bound is fs.nr_open, 2**30 at most.
_MOST = (1 << 31) - 1


def open_listing() -> int:
    """Open the list of this process's descriptors; proc(5).

    Returns:
        A descriptor of /proc/self/fd, for use when no path leads there any more.

    Raises:
        OSError: ENOENT where proc is not mounted.
    """
    return os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def park(own: Sequence[int], targets: Set[int], listing: int) -> list[int]:
    """Move ww's own descriptors to numbers that no grant has, where they stay.

    Args:
        own: What ww needs while the cell is set up and runs; the old numbers are closed.
        targets: The numbers of all grants.
        listing: From :func:`open_listing`; may be one of ``own``.

    Returns:
        The new numbers, in order; close-on-exec.

    Raises:
        OSError: As dup3(2) says.
        JailError: If there is no room.
    """
    numbers = _parking(targets, _open_numbers(listing))
    parked = [os.dup2(fd, next(numbers), inheritable=False) for fd in own]
    for fd in own:
        os.close(fd)
    return parked


def place(grants: Sequence[tuple[int, int, bool]], own: Sequence[int], listing: int) -> None:
    """Put the granted descriptors at their targets, and close all others but ww's own.

    Every source is parked before any target is written, so swaps and cycles come out right.

    Args:
        grants: For each grant its present number, its target and whether it is close-on-exec.
        own: The numbers that :func:`park` returned for what the cell's process keeps.
        listing: From :func:`open_listing`, parked; closed at the end.

    Raises:
        OSError: EMFILE if there is no room.
        JailError: If the table is not what was planned.
    """
    targets = {target for _, target, _ in grants}
    numbers = _parking(targets, _open_numbers(listing))
    parked = [os.dup2(source, next(numbers), inheritable=False) for source, _, _ in grants]
    _close_all_but([listing, *own, *parked])
    for number, (_, target, cloexec) in zip(parked, grants, strict=True):
        os.dup2(number, target, inheritable=not cloexec)
    expected = {listing, *own, *targets}
    _close_all_but(expected)
    _verify(expected, listing)
    os.close(listing)


def close_above(number: int) -> None:
    """Close every descriptor above a number; close_range(2)."""
    os.closerange(number + 1, _MOST)


def _open_numbers(listing: int) -> set[int]:
    # os.listdir works on a copy of the descriptor, which is in the list and closed afterwards.
    return {number for number in map(int, os.listdir(listing)) if _is_open(number)}


def _is_open(number: int) -> bool:
    try:
        os.get_inheritable(number)
    except OSError:
        return False
    return True


def _parking(targets: Set[int], taken: Set[int]) -> Iterator[int]:
    """Yield free numbers for ww's own descriptors: above the highest target, then below it.

    Above keeps clear of every target; below is needed when a target is the last number there is.

    Raises:
        JailError: When there is none left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    top = max(targets, default=-1)
    for candidates in (range(top + 1, min(limit, top + _PARKING_ROOM)), range(top, -1, -1)):
        for number in candidates:
            if number not in targets and number not in taken:
                yield number
    raise JailError("descriptors", "no room for ww's own descriptors beside the grants")


def _close_all_but(numbers: Sequence[int] | Set[int]) -> None:
    """Close every descriptor but those given; close_range(2)."""
    start = 0
    for number in sorted(numbers):
        # An empty range must not be asked for: os.closerange(0, 0) closes everything.
        if number > start:
            os.closerange(start, number)
        start = number + 1
    os.closerange(start, _MOST)


def _verify(expected: Set[int], listing: int) -> None:
    """Compare the table with the plan: closing ignores errors, so only a look is proof.

    Raises:
        JailError: If a descriptor is open that should not be, or the other way round.
    """
    found = _open_numbers(listing)
    if found != expected:
        extra, missing = sorted(found - expected), sorted(expected - found)
        raise JailError("descriptors", f"open but not planned: {extra}; missing: {missing}")

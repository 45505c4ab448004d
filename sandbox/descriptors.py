"""Step 7: the cell's descriptor table, exactly as planned."""

import os
import resource
import struct
from collections.abc import Container, Iterator, Sequence, Set

from sandbox import syscalls
from sandbox.errors import JailError

# How far above the highest target ww's own descriptors may go: a table of file descriptors
# takes memory up to its highest number.
_PARKING_ROOM = 4096
# struct linux_dirent64 of getdents64(2): inode, offset of the next, length of the whole, type; then
# the name, which ends with a zero.
_ENTRY = struct.Struct("=QqHB")
_SOME_ENTRIES = 4096


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
    numbers = _parking(targets, open_numbers(listing))
    parked = [os.dup2(fd, next(numbers), inheritable=False) for fd in own]
    for fd in own:
        os.close(fd)
    return parked


def place(grants: Sequence[tuple[int, int, bool]], own: Sequence[int], listing: int) -> None:
    """Put the granted descriptors at their targets, and close all others but ww's own.

    It takes one number more than there are, however the sources and targets are entangled.

    Args:
        grants: For each grant its present number, its target and whether it is close-on-exec.
            No two have the same number or the same target.
        own: The numbers of what the cell's process keeps beside them, the list among it.
        listing: From :func:`open_listing`, parked.

    Raises:
        OSError: EMFILE if there is no room.
        JailError: If the table is not what was planned.
    """
    targets = {target for _, target, _ in grants}
    _close_all_but({*own, *(source for source, _, _ in grants)}, listing)
    spare = next(_parking(targets, open_numbers(listing)))
    waiting = {source: target for source, target, _ in grants if source != target}
    while waiting:
        # Whatever has a target that no other occupies can go there; where nothing has, what is
        # left are cycles, and moving one of it out of the way opens that one.
        free = [source for source, target in waiting.items() if target not in waiting]
        for source in free:
            _move(source, waiting.pop(source))
        if waiting and not free:
            source, target = waiting.popitem()
            _move(source, spare)
            waiting[spare] = target
    for _, target, cloexec in grants:
        os.set_inheritable(target, not cloexec)
    _verify({*own, *targets}, listing)


def keep_only(numbers: Set[int], listing: int) -> None:
    """Close every descriptor but those given.

    Args:
        numbers: Every number that may stay open, and has to be.
        listing: From :func:`open_listing`.

    Raises:
        OSError: As close(2) says.
        JailError: If the table is not what was planned.
    """
    _close_all_but(numbers, listing)
    _verify(numbers, listing)


def _move(source: int, target: int) -> None:
    os.dup2(source, target, inheritable=False)
    os.close(source)


def close_all_but(numbers: Container[int]) -> None:
    """Close every descriptor but those given.

    Raises:
        OSError: ENOENT where proc is not mounted.
    """
    _close_all_but(numbers, open_listing())


def open_numbers(listing: int) -> set[int]:
    """Return the numbers of all descriptors of this process.

    Args:
        listing: From :func:`open_listing`.

    Raises:
        OSError: As getdents64(2) says.
    """
    # Not os.listdir: it works on a copy of the descriptor, which would be in the list.
    os.lseek(listing, 0, os.SEEK_SET)
    numbers = set()
    while entries := syscalls.getdents64(listing, _SOME_ENTRIES):
        at = 0
        while at < len(entries):
            _, _, size, _ = _ENTRY.unpack_from(entries, at)
            name = entries[at + _ENTRY.size : entries.index(0, at + _ENTRY.size)]
            if not name.startswith(b"."):
                numbers.add(int(name))
            at += size
    return numbers


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


def _close_all_but(numbers: Container[int], listing: int) -> None:
    """Close every descriptor but those given.

    It goes by the list and not by close_range(2): where that call is missing or forbidden, its
    replacement is a loop over two thousand million numbers.
    """
    for number in open_numbers(listing):
        if number not in numbers:
            os.close(number)


def _verify(expected: Set[int], listing: int) -> None:
    """Compare the table with the plan: closing ignores errors, so only a look is proof.

    Raises:
        JailError: If a descriptor is open that should not be, or the other way round.
    """
    found = open_numbers(listing)
    if found != expected:
        extra, missing = sorted(found - expected), sorted(expected - found)
        raise JailError("descriptors", f"open but not planned: {extra}; missing: {missing}")

"""Step 9: resource limits of the cell's process; setrlimit(2)."""

import os
import resource
from collections.abc import Iterable
from typing import NamedTuple

from sandbox.errors import JailError
from sandbox.policy import Limits

# The engine reserves 4 GiB of addresses and as much of guard pages for each of two memories.
_ADDRESS_SPACE = 16 << 30
# What Linux gives a process that nobody has limited (include/uapi/linux/resource.h).
_STACK = 8 << 20
# What the host itself may allocate beside the cell's memory: Python, the engine's own tables.
HOST_MEMORY = 256 << 20
# Descriptors that the host needs for a moment, for itself: two walks along a path (_MOST_HELD of
# sandbox.wasi.tree) are the most.
_HOST_DESCRIPTORS = 40


class Ceilings(NamedTuple):
    """What the limits of a process are counted from; taken just before it becomes a cell's.

    Attributes:
        data: Bytes of writable private memory that it has already; RLIMIT_DATA counts them.
        files: The size of the largest file that the cell may write, in bytes; ``None`` if that is
            not known.
        descriptors: The highest number of its descriptors.
    """

    data: int
    files: int | None
    descriptors: int


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one, so that any legal target fits.

    Raises:
        OSError: As setrlimit(2) says.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ceilings(writable: Iterable[int] | None, descriptors: int, listing: int) -> Ceilings:
    """Measure what this process has already.

    Args:
        writable: Descriptors that the cell may write; ``None`` if it may write others as well.
        descriptors: The highest number among all that it has.
        listing: A descriptor of this process's /proc/self/fd; no path leads there any more.

    Raises:
        OSError: As open(2) says.
    """
    statm = os.open("../statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=listing)
    try:
        # The sixth number is data and stack, in pages; proc_pid_statm(5).
        data = int(os.read(statm, 256).split()[5]) * resource.getpagesize()
    finally:
        os.close(statm)
    files = None
    if writable is not None:
        files = max((os.fstat(fd).st_size for fd in writable), default=0)
    return Ceilings(data, files, descriptors)


def apply(limits: Limits, above: Ceilings) -> None:
    """Set every limit of the process, soft and hard alike: none can be raised again.

    Args:
        limits: What the cell may use up.
        above: What the process has already.

    Raises:
        JailError: If the caller's RLIMIT_AS or RLIMIT_STACK leaves the engine no room.
        OSError: As setrlimit(2) says.
        ValueError: Likewise.
    """
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < _ADDRESS_SPACE:
        raise JailError(
            "limits", f"the address space is limited to {space} bytes (ulimit -v), too few"
        )
    _raise_stack()
    for limit in (
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_RTPRIO,
        resource.RLIMIT_NICE,
    ):
        resource.setrlimit(limit, (0, 0))
    # One more than the control group allows, where there is one: what that refuses is told as a
    # limit, and what this refuses is not.
    _lower(resource.RLIMIT_NPROC, limits.pids + 1)
    _lower(resource.RLIMIT_NOFILE, above.descriptors + 1 + limits.nofile + _HOST_DESCRIPTORS)
    if limits.cpu is not None:
        # For when the spawner is stopped, which ends the cell at the limit itself. Not the same:
        # what the kernel compares with it here are ticks, and a process that is often interrupted
        # may be charged many that it did not use (kernel/sched/cputime.c).
        # Hard and soft the same: the signal of the soft one, SIGXCPU, does not reach the first
        # process of a pid namespace, and SIGKILL does (kernel/time/posix-cpu-timers.c).
        _lower(resource.RLIMIT_CPU, 2 * limits.cpu)
    if limits.output is not None and above.files is not None:
        _lower(resource.RLIMIT_FSIZE, above.files + limits.output)
    if limits.memory is not None:
        _lower(resource.RLIMIT_DATA, above.data + limits.memory + HOST_MEMORY)


def _raise_stack() -> None:
    """Let the stack grow as far as the engine believes that it can.

    It ends a cell's recursion with a trap at 512 KiB of WebAssembly. Where the kernel's limit is
    below that, and what the host has in front of it, a signal would come instead.

    Raises:
        JailError: If the hard limit is too small.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft >= _STACK:
        return
    if hard != resource.RLIM_INFINITY and hard < _STACK:
        raise JailError("limits", f"the stack is limited to {hard} bytes (ulimit -s), too few")
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))


def _lower(limit: int, value: int) -> None:
    """Set a limit, or leave it where the caller's own is lower already."""
    hard = resource.getrlimit(limit)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(limit, (value, value))

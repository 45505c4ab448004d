"""Step 9: resource limits of the cell's process; setrlimit(2)."""

import resource

from sandbox.errors import JailError

# The engine reserves 4 GiB of addresses and as much of guard pages for each of two memories.
_ADDRESS_SPACE = 16 << 30


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one, so that any legal target fits.

    Raises:
        OSError: As setrlimit(2) says.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def apply() -> None:
    """Forbid locked memory, message queues and real-time priority to the cell.

    Raises:
        JailError: If the caller's RLIMIT_AS leaves the engine no room.
        OSError: As setrlimit(2) says.
        ValueError: Never for these values: each lowers a limit.
    """
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < _ADDRESS_SPACE:
        raise JailError(
            "limits", f"the address space is limited to {space} bytes (ulimit -v), too few"
        )
    for limit in (
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_RTPRIO,
        resource.RLIMIT_NICE,
    ):
        resource.setrlimit(limit, (0, 0))

"""Step 9: resource limits of the cell's process; setrlimit(2)."""

import resource


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
        OSError: As setrlimit(2) says.
        ValueError: Never for these values: each lowers a limit.
    """
    for limit in (
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_RTPRIO,
        resource.RLIMIT_NICE,
    ):
        resource.setrlimit(limit, (0, 0))

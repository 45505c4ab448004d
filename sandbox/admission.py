"""How a cell's plan and its descriptors come into a jail that was made before them.

A jail is cloned from a process that has never seen a plan, so nothing of one cell can be found in
another's memory. What it is to run comes through a connection that serves once.
"""

import os
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from sandbox import watch, wire
from sandbox.plan import Plan

_CLONED = b"cloned "
# Seconds that a jail may take to read a plan that is larger than the connection holds: one that was
# not ready reads it after most of its set-up, on a machine that may be busy.
_PATIENCE = 30.0
_LEAST = 0.001


class Admission(NamedTuple):
    """What a jail is to hold.

    Attributes:
        plan: What is promised.
        code: What is loaded: the cell's compiled form, or its bytes where it is compiled.
        sources: The granted descriptors, in the order of the plan's grants.
        content: The connection for the content that the runner serves, if there is one.
        cloned: Whether the sources of directories, and of a component's files, are mounts of
            their own already, made by a spawner that is privileged outside.
    """

    plan: Plan
    code: int
    sources: Sequence[int]
    content: int | None
    cloned: bool


def admit(channel: socket.socket, what: Admission, deadline: float | None) -> None:
    """Send a jail what it is to hold; copies of the descriptors go there.

    Args:
        channel: Our end of its connection, which is closed.
        what: The numbers are this process's.
        deadline: When to give up at the latest, on the monotonic clock.

    Raises:
        OSError: EPIPE if the jail is gone; ETOOMANYREFS if too many descriptors are on their way.
        TimeoutError: If it does not take what does not fit into the connection.
    """
    with channel:
        left = _PATIENCE if deadline is None else deadline - time.monotonic()
        channel.settimeout(max(_LEAST, min(_PATIENCE, left)))
        fds = [what.code, *what.sources, *([] if what.content is None else [what.content])]
        wire.send(channel, (_CLONED if what.cloned else b"") + what.plan.encode(), fds)


def wait(line: int, channel: int) -> Admission:
    """Wait in a jail for what it is to hold; end the process if the spawner is gone.

    Args:
        line: The socket to the spawner.
        channel: The jail's end of the connection, which is closed.

    Raises:
        OSError: As recvmsg(2) says.
        EOFError: If it is not sent whole.
    """
    os.write(line, watch.READY)
    with socket.socket(fileno=channel) as connection:
        message = wire.receive(connection)
    if message is None:
        os._exit(1)
    payload, (code, *sources) = message
    plan = Plan.decode(payload.removeprefix(_CLONED))
    content = sources.pop() if plan.content else None
    return Admission(plan, code, sources, content, payload.startswith(_CLONED))

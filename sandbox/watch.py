"""Waiting for a jailed process, and telling what ended it."""

import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Container
from contextlib import suppress
from typing import NamedTuple

from sandbox import syscalls
from sandbox.cgroups import Cgroup
from sandbox.errors import JailError
from sandbox.outcome import Outcome, Usage, limit
from sandbox.policy import Limits

# One message from the process; a longer report of a trap is cut there.
MOST_OUTCOME = 64 << 10
# The unit of ru_maxrss; getrusage(2).
_KIB = 1024

# The process says this when its jail is complete, before the first of the cell's code runs.
ENTERED = b"entered"
# And this when it waits for its plan.
READY = b"ready"
# What it may say before that, and what after, when it may be somebody else's.
_BEFORE = ("jail", "stale", "fault")
_AFTER = ("exit", "trap", "rejected", "limit", "fault")


class Child(NamedTuple):
    """A jailed process, as the spawner knows it.

    Attributes:
        pid: Its number here.
        pidfd: A descriptor of it.
        line: Our end of the socket to it.
        cgroup: Its control group, where the machine gives one.
    """

    pid: int
    pidfd: int
    line: int
    cgroup: Cgroup | None

    def kill(self) -> tuple[int, resource.struct_rusage]:
        """Kill it if it still lives, and wait for it. Its control group, if any, is still there.

        Returns:
            Its wait status and what it used; wait4(2).
        """
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        finally:
            os.close(self.pidfd)
            os.close(self.line)
        return status, usage


def first_word(child: Child, patience: float) -> bytes:
    """Wait for the first message of a jailed process.

    Args:
        child: The process.
        patience: Seconds.

    Returns:
        The message; empty if the process ended without one, or does not say any.
    """
    poller = select.poll()
    for source in _sources(child):
        poller.register(source, select.POLLIN)
    ready = dict(poller.poll(int(patience * 1000)))
    return _read(child.line) if child.line in ready else b""


def _sources(child: Child) -> tuple[int, int]:
    """Return what to wait for of a jailed process, in the order in which to look at them.

    poll(2) looks at one after the other. What a process says comes before its end, so whoever finds
    the end first finds what was said, too; the other way round it could be missed.
    """
    return child.pidfd, child.line


def last_word(child: Child) -> JailError | None:
    """End a jailed process that has not entered its jail, and return how it failed, if it did."""
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    poller.poll()
    os.set_blocking(child.line, False)
    with suppress(BlockingIOError):
        while data := _read(child.line):
            outcome = _told(data, _BEFORE)
            if outcome.kind != "stale":
                return JailError(outcome.step or "jail", outcome.what, outcome.code)
    return None


def wait(
    child: Child,
    runner: int,
    limits: Limits,
    deadline: float | None,
    on_entered: Callable[[], None],
) -> Outcome:
    """Wait until a jailed process has told how it ended, has ended without, or has to end.

    It has ended when this returns or raises, and nothing is left of it but its control group.

    Args:
        child: The process.
        runner: The connection to the runner; its end is the cell's.
        limits: What the cell may use up.
        deadline: When it has to end, on the monotonic clock.
        on_entered: Called when it is in its jail.
    """
    told: Outcome | None = None
    began = time.monotonic()
    try:
        told = _listen(child, runner, limits.cpu, deadline, on_entered)
    finally:
        status, used = child.kill()
    ended = _judge(told, status, used, limits, child.cgroup)
    if ended.kind == "jail":
        return ended
    memory = None if child.cgroup is None else child.cgroup.peak_memory()
    usage = Usage(
        wall=time.monotonic() - began,
        cpu=used.ru_utime + used.ru_stime,
        memory=used.ru_maxrss * _KIB if memory is None else memory,
    )
    return ended._replace(usage=usage)


def _listen(
    child: Child,
    runner: int,
    most_cpu: int | None,
    deadline: float | None,
    on_entered: Callable[[], None],
) -> Outcome | None:
    """Return what the process said, or what the spawner decides; ``None`` if neither."""
    clock = syscalls.cpu_clock(child.pid)
    poller = select.poll()
    for source in (runner, *_sources(child)):
        poller.register(source, select.POLLIN)
    crowd = None if child.cgroup is None else child.cgroup.pids_events
    if crowd is not None:
        poller.register(crowd, select.POLLPRI)
    entered = False
    while True:
        left = math.inf if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return limit("wall")
        if most_cpu is not None:
            # A process has one thread, and uses no more of it than passes.
            left_cpu = most_cpu - time.clock_gettime(clock)
            if left_cpu <= 0:
                return limit("cpu")
            left = min(left, left_cpu)
        # Rounded up: otherwise the last millisecond would be spent spinning.
        ready = dict(poller.poll(None if left == math.inf else int(left * 1000) + 1))
        if child.line in ready:
            data = _read(child.line)
            if not data:
                poller.unregister(child.line)  # it will say no more; its end is what counts
            elif data == ENTERED and not entered:
                entered = True
                on_entered()
            elif data == READY and not entered:
                pass  # its plan is on the way
            else:
                return _told(data, _AFTER if entered else _BEFORE)
        elif runner in ready or child.pidfd in ready:
            return None
        elif crowd in ready and child.cgroup is not None and child.cgroup.pids_exceeded():
            return limit("pids")


def _read(line: int) -> bytes:
    """Return the next message of the process; empty when there is no more.

    If it ended without reading what it was sent, that is told first (ECONNRESET, unix(7)), and what
    it said before is still there.

    Raises:
        OSError: As read(2) says.
    """
    try:
        return os.read(line, MOST_OUTCOME)
    except ConnectionResetError:
        return os.read(line, MOST_OUTCOME)


def _told(data: bytes, kinds: Container[str]) -> Outcome:
    """Return what a cell's process said, if that is an outcome it can have come to."""
    try:
        outcome = Outcome.decode(data)
    except ValueError:
        outcome = None
    if outcome is None or outcome.kind not in kinds or _contradicts_itself(outcome):
        return Outcome("fault", what="the cell's process reported what cannot be")
    return outcome


def _contradicts_itself(outcome: Outcome) -> bool:
    """Tell whether an outcome names a limit or a step that its kind has not, or lacks its own."""
    return (
        bool(outcome.limit) != (outcome.kind == "limit")
        or bool(outcome.step) != (outcome.kind == "jail")
        or outcome.usage is not None  # what it used is not its to tell
    )


def _judge(
    told: Outcome | None,
    status: int,
    usage: resource.struct_rusage,
    limits: Limits,
    cgroup: Cgroup | None,
) -> Outcome:
    """Return how a process ended: what was told, or what its end and its use of things say."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
        # Whatever it said before that, and whatever else it has used up.
        return Outcome("isolation", what="it made a system call that no cell has a reason to make")
    if told is not None:
        return told
    if cgroup is not None:
        # A kernel that does not tell (of want of descriptors, say) does not undo what has run.
        with suppress(OSError):
            if cgroup.oom_killed():
                return limit("host-memory")
        with suppress(OSError):
            if cgroup.pids_exceeded():
                return limit("pids")
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        return Outcome("fault", what=f"the cell's process ended by itself, with {code}")
    number = os.WTERMSIG(status)
    used = usage.ru_utime + usage.ru_stime
    if number == signal.SIGKILL and limits.cpu is not None and used >= limits.cpu:
        return limit("cpu")
    return Outcome("signal", number)

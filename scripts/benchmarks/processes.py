"""Starting programs for a measurement, by the cheapest way there is, and hearing what they say."""

import os
import re
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

# Nothing that is measured takes so long; a program that hangs must not hang the rest.
PATIENCE = 600.0

_CHUNK = 1 << 20
_REPORT = re.compile(rb"(\d+) (\d+)\n")
_MOST_SAID = 2000


class Ran(NamedTuple):
    """What came of a program.

    Attributes:
        seconds: From before its start until it had ended and all of its output was read.
        first: From before its start until the first byte of its output, or its end.
        output: All of its stdout, if that was read.
        errors: All of its stderr.
    """

    seconds: float
    first: float
    output: bytes
    errors: bytes


def start(
    command: Sequence[str],
    fds: Mapping[int, int],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a program, with posix_spawn(3), and return its process number.

    Args:
        command: Its absolute path and its arguments.
        fds: The descriptors that it has, by their numbers in it, and no others.
        environment: All of its environment.

    Raises:
        OSError: If it cannot be started.
    """
    # Through numbers that nobody asked for: a move must not overwrite another's source.
    lowest = max([*fds, *fds.values()]) + 1
    actions: list[tuple[int, ...]] = []
    for at, source in enumerate(fds.values()):
        actions.append((os.POSIX_SPAWN_DUP2, source, lowest + at))
    for at, target in enumerate(fds):
        actions.append((os.POSIX_SPAWN_DUP2, lowest + at, target))
    for at in range(len(fds)):
        actions.append((os.POSIX_SPAWN_CLOSE, lowest + at))
    return os.posix_spawn(command[0], list(command), environment or {}, file_actions=actions)


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    fds: Mapping[int, int] | None = None,
    hear: bool = True,
) -> Ran:
    """Run a program to its end, and read what it writes.

    Its stderr is a file in memory, which is read after its end and costs next to nothing.

    Args:
        command: Its absolute path and its arguments.
        environment: All of its environment.
        fds: Descriptors for it. Where they have none for stdin and stdout, these are /dev/null.
        hear: Whether to read its stdout, through a pipe.

    Raises:
        OSError: If it cannot be started.
        RuntimeError: If it ends in another way than with exit code 0, or not in time.
    """
    with ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        errors = stack.enter_context(open(os.memfd_create("stderr", os.MFD_CLOEXEC), "r+b", 0))
        given = {0: null, 1: null, 2: errors.fileno(), **(fds or {})}
        output = bytearray()
        first = 0.0
        begun = time.perf_counter()
        if hear:
            reader, given[1] = os.pipe()
            stack.callback(os.close, reader)
            try:
                pid = start(command, given, environment)
            finally:
                os.close(given[1])
            first = _read_all(command, pid, reader, output, begun)
        else:
            pid = start(command, given, environment)
        status = os.waitpid(pid, 0)[1]
        seconds = time.perf_counter() - begun
        errors.seek(0)
        said = errors.readall()
    if status:
        raise RuntimeError(failure(command, status, said))
    return Ran(seconds, first or seconds, bytes(output), said)


def _read_all(
    command: Sequence[str], pid: int, pipe: int, output: bytearray, begun: float
) -> float:
    """Read a pipe until it ends; return when the first byte was there, 0 for never.

    Raises:
        RuntimeError: If the program is not done in time; then it is killed.
    """
    first = 0.0
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        if not poll.poll(PATIENCE * 1000):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise RuntimeError(f"{command[0]} was not done after {PATIENCE:g} s")
        data = os.read(pipe, _CHUNK)
        if not data:
            return first
        first = first or time.perf_counter() - begun
        output += data


def failure(command: Sequence[str], status: int, said: bytes) -> str:
    """Return what is to be said of a program that failed."""
    code = os.waitstatus_to_exitcode(status)
    how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    text = said[:_MOST_SAID].decode(errors="replace").strip()
    return f"{os.path.basename(command[0])} {how}" + (f": {text}" if text else "")


def reported(errors: bytes) -> tuple[int, float]:
    """Return what a measuring cell says on its stderr: how much it did, in how many seconds.

    Raises:
        RuntimeError: If it does not say it.
    """
    found = _REPORT.search(errors)
    if found is None:
        raise RuntimeError(f"the cell did not report: {errors[:_MOST_SAID]!r}")
    return int(found[1]), int(found[2]) / 1e9

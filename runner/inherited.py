"""Which descriptors ww was started with: read once, before ww opens any of its own.

Only these can be granted, so nothing that ww opens later can reach a cell by its number. The
module imports next to nothing, because every import opens files.
"""

import fcntl
import os
import sys

from runner.errors import EXIT_JAIL, WwError

STDIO = (0, 1, 2)


class Inherited:
    """The descriptors of this process at its start.

    A plain class, not a NamedTuple: importing ``typing`` would come before the capture.

    Attributes:
        sources: The descriptors that may be granted.
        close_on_exec: Those that were open with FD_CLOEXEC. exec(2) closes such descriptors,
            so this process has opened them itself.
        nulled: Those of 0, 1, 2 that were closed, and are /dev/null now. No source: the caller
            has not opened them.
        parent: The process that started this one.
    """

    __slots__ = ("close_on_exec", "nulled", "parent", "sources")

    def __init__(
        self,
        sources: frozenset[int],
        close_on_exec: frozenset[int] = frozenset(),
        nulled: frozenset[int] = frozenset(),
        parent: int = 0,
    ) -> None:
        self.sources = sources
        self.close_on_exec = close_on_exec
        self.nulled = nulled
        self.parent = parent

    def with_received(self, fds: frozenset[int]) -> "Inherited":
        """Return the same with more sources: what a peer has handed over since."""
        return Inherited(self.sources | fds, self.close_on_exec - fds, self.nulled, self.parent)


def capture() -> Inherited:
    """Take the inherited descriptors, and keep all of them from every program started later.

    Must be the first call of the program. It opens /dev/null as each of 0, 1, 2 that is closed,
    lowest first, so that no file opened later becomes somebody's standard output. Then it sets
    FD_CLOEXEC on everything that is open, 0, 1 and 2 included: ww starts its children with file
    actions that name what they get.

    Raises:
        WwError: With code 67 if /dev/null or /proc/self/fd cannot be opened.
    """
    parent = os.getppid()
    nulled = frozenset(number for number in STDIO if _open_null(number))
    sources = set()
    close_on_exec = set()
    for number in _open_descriptors():
        try:
            flags = fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            continue  # the descriptor that listed the directory; it is closed by now
        if number in nulled:
            pass
        elif flags & fcntl.FD_CLOEXEC and not _was_stdio(number):
            close_on_exec.add(number)
        else:
            sources.add(number)
        fcntl.fcntl(number, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    return Inherited(frozenset(sources), frozenset(close_on_exec), nulled, parent)


def _open_null(number: int) -> bool:
    """Open /dev/null as one of 0, 1, 2 if that is closed; tell whether it was."""
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        pass
    else:
        return False
    try:
        # open(2) returns the lowest free number, and all below this one are open.
        os.open("/dev/null", os.O_RDONLY if number == 0 else os.O_WRONLY)
    except OSError as error:
        raise WwError(
            f"fd {number}",
            f"it is closed, and /dev/null cannot be opened in its place: {error.strerror}",
            hint="start ww with 0, 1 and 2 open",
            code=EXIT_JAIL,
        ) from None
    return True


def _open_descriptors() -> list[int]:
    """List what is open, as proc_pid_fd(5) shows it; unordered."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError as error:
        raise WwError(
            "/proc/self/fd",
            f"the inherited descriptors cannot be listed: {error.strerror}",
            hint="ww needs a mounted /proc",
            code=EXIT_JAIL,
        ) from None


def _was_stdio(number: int) -> bool:
    """Whether this is a standard descriptor that was open when the interpreter started.

    Python leaves ``sys.__stdin__`` and its like at None for a descriptor that was closed. If
    such a number is open now, a start-up hook has opened a file there.
    """
    if number not in STDIO:
        return False
    return (sys.__stdin__, sys.__stdout__, sys.__stderr__)[number] is not None

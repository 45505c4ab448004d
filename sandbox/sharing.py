"""What a cell shares with whoever granted it: open files and terminals, put back as they were."""

from __future__ import annotations

import _thread
import _weakref
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    # Its device and number. One may be open many times, and each open file has flags of its own.
    _File: TypeAlias = tuple[int, int]

# Those whose cells run now, in any thread, and what is held while one comes or goes.
_running: set[_weakref.ReferenceType[as_before]] = set()
_guard = _thread.RLock()

# As :mod:`signal` has it, which is not worth its import; the same on every architecture that runs
# cells.
_SIGIO = 29


class as_before:  # noqa: N801 - a ``with`` block like those of contextlib
    """Put back what a cell has changed of open files and terminals that it shares with others.

    Flags belong to the open file and not to the descriptor: a terminal that stays non-blocking
    would confuse the shell. A terminal's settings are out of a cell's reach, unless it has broken
    out of the engine and the system call filter.

    Several cells of this process may share a file at a time. Then the first notes how it was, and
    the last puts it back: those in between found what another cell had made of it.
    """

    def __init__(self, sources: Iterable[int]) -> None:
        """Note how they are.

        Args:
            sources: Descriptors of them.
        """
        with _guard:
            others = _others(self)
            # Of each: which file it is, and its flags.
            self._noted = {fd: _note(fd, others) for fd in sources}
            # By whatever exception it is forgotten before the block, it takes no part.
            _running.add(_weakref.ref(self, _running.discard))
        self._terminals = {fd: _settings(fd) for fd in self._noted if os.isatty(fd)}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with _guard:
            _running.discard(_weakref.ref(self))
            others = _others(self)
            # What was moved is closed, and was its receiver's to change.
            for fd, (file, before) in self._noted.items():
                try:
                    changed = fcntl.fcntl(fd, fcntl.F_GETFL) != before
                    if changed and _first_noted(fd, file, others) is None:
                        fcntl.fcntl(fd, fcntl.F_SETFL, before)
                except OSError:
                    continue
        for fd, settings in self._terminals.items():
            _restore(fd, settings)

    def _find(self, fd: int, file: _File) -> int | None:
        """Return the flags that were noted of a descriptor's open file; ``None`` without any."""
        for mine, (known, before) in self._noted.items():
            if known == file and _is_one(fd, mine):
                return before
        return None


def _forget_all() -> None:
    """Forget, in a process that was forked, what runs in the other."""
    _running.clear()
    _guard.release()


os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_all
)


def _others(one: as_before) -> list[as_before]:
    found = [reference() for reference in tuple(_running)]
    return [each for each in found if each is not None and each is not one]


def _first_noted(fd: int, file: _File, others: list[as_before]) -> int | None:
    """Return the flags that an open file had before it was any other's; ``None`` if it is none's.

    Args:
        fd: A descriptor of it.
        file: Which file it is.
        others: Whose it may be.
    """
    found = (other._find(fd, file) for other in others)
    return next((flags for flags in found if flags is not None), None)


def _note(fd: int, others: list[as_before]) -> tuple[_File, int]:
    """Return which file a descriptor is of, and the flags that it had before any cell had it."""
    status = os.fstat(fd)
    file = status.st_dev, status.st_ino
    flags = _first_noted(fd, file, others)
    return file, fcntl.fcntl(fd, fcntl.F_GETFL) if flags is None else flags


def _is_one(fd: int, other: int) -> bool:
    """Tell whether two descriptors of a file are of one open file, whose flags are both's.

    That is what kcmp(2) tells, where it is allowed. Here it is seen: the signal that tells of input
    is the open file's too (fcntl(2)). Between no number and SIGIO, which is the same signal, there
    is a difference only for who wants to know more of it; and hardly anybody wants it at all.
    """
    if fd == other:
        return True
    try:
        before = fcntl.fcntl(fd, fcntl.F_GETSIG)
        if fcntl.fcntl(other, fcntl.F_GETSIG) != before:
            return False
        fcntl.fcntl(fd, fcntl.F_SETSIG, 0 if before else _SIGIO)
        try:
            return fcntl.fcntl(other, fcntl.F_GETSIG) != before
        finally:
            fcntl.fcntl(fd, fcntl.F_SETSIG, before)
    except OSError:
        return False  # one was closed; or it is a mere path, which has no flags to be changed


def _settings(terminal: int) -> list[Any]:
    """Return a terminal's settings; tcgetattr(3)."""
    import termios

    return termios.tcgetattr(terminal)


def _restore(terminal: int, settings: list[Any]) -> None:
    """Put a terminal's settings back if they have changed; tcsetattr(3)."""
    import signal
    import termios

    try:
        if termios.tcgetattr(terminal) != settings:
            # A job in the background may not do it, and would be stopped (tcsetattr(3)).
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            termios.tcsetattr(terminal, termios.TCSANOW, settings)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    except termios.error:
        return

"""What a cell shares with whoever granted it: open files and terminals, put back as they were."""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class as_before:  # noqa: N801 - a ``with`` block like those of contextlib
    """Put back what a cell has changed of open files and terminals that it shares with others.

    Flags belong to the open file and not to the descriptor: a terminal that stays non-blocking
    would confuse the shell. A terminal's settings are out of a cell's reach, unless it has broken
    out of the engine and the system call filter.
    """

    def __init__(self, sources: Iterable[int]) -> None:
        """Note how they are.

        Args:
            sources: Descriptors of them.
        """
        self._flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in sources}
        self._terminals = {fd: _settings(fd) for fd in self._flags if os.isatty(fd)}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        # What was moved is closed, and was its receiver's to change.
        for fd, before in self._flags.items():
            try:
                if fcntl.fcntl(fd, fcntl.F_GETFL) != before:
                    fcntl.fcntl(fd, fcntl.F_SETFL, before)
            except OSError:
                continue
        for fd, settings in self._terminals.items():
            _restore(fd, settings)


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

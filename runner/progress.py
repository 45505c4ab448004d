"""What is shown on stderr while a user waits, and taken away again before anybody else writes.

On a terminal that is one line, written again and again in its place and erased at its end. Anywhere
else, and only if that was asked for, it is plain lines.
"""

import os
import select
from contextlib import suppress

from runner.errors import printable
from runner.output import STDERR
from runner.units import size_shown

# Seconds before anything is shown, and between two plain lines.
FIRST = 1.0
BETWEEN = 5.0

# Characters of a line: what a pipe has room for if it has any (pipe(7)).
_LONGEST = 1000

# To the first column; do not go on to another line where this one is full, as a long name would;
# what is there. Then erase the rest of the line, and be as before. ECMA-48 (CR, EL); DECAWM of
# ctlseqs.
_REPLACE = "\r\x1b[?7l{}\x1b[K\x1b[?7h"
_ERASE = "\r\x1b[K"


class Line:
    """A line on a terminal, shown and replaced as long as that is not in anybody's way."""

    def __init__(self, fd: int = STDERR) -> None:
        self._fd = fd
        self._shown = ""

    def replace(self, text: str) -> None:
        """Show a text; nothing happens where the terminal would not take it now."""
        if text != self._shown and _is_in_foreground(self._fd) and _takes(self._fd):
            self._shown = text
            _write(self._fd, _REPLACE.format(printable(text)[:_LONGEST]))

    def erase(self) -> None:
        """Take away what is shown, if anything is."""
        if self._shown and _is_in_foreground(self._fd):
            _write(self._fd, _ERASE)
        self._shown = ""


class Compiling:
    """Shows that a cell is being compiled."""

    def __init__(self, address: str, size: int, line: Line | None) -> None:
        """Show nothing yet.

        Args:
            address: The cell, as the user named it.
            size: How many bytes it has.
            line: Where to show it; ``None`` for plain lines.
        """
        self._address = address
        self._size = size
        self._line = line
        self._next = FIRST

    def show(self, elapsed: float) -> None:
        """Show it, if it has taken long enough."""
        if elapsed < self._next:
            return
        text = f"ww: compiling {size_shown(self._size)}, {int(elapsed)} s: {self._address}"
        if self._line is not None:
            self._line.replace(text)
            return
        # Counted from the first, however late it is asked for.
        self._next = FIRST + BETWEEN * ((elapsed - FIRST) // BETWEEN + 1)
        if _takes(STDERR):
            _write(STDERR, f"{printable(text)[:_LONGEST]}\n")

    def end(self) -> None:
        """Take away what was shown on the terminal."""
        if self._line is not None:
            self._line.erase()


def _is_in_foreground(fd: int) -> bool:
    """Tell whether a terminal is this process's to write to.

    A job in the background could be stopped for that (``stty tostop``, termios(3)).
    """
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not the terminal that controls this process: nobody is stopped


def _takes(fd: int) -> bool:
    """Tell whether a write would not wait: a terminal may be held (Ctrl-S), a pipe full."""
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    return bool(ready.poll(0))


def _write(fd: int, text: str) -> None:
    """Write, or do not: nobody's program fails for that."""
    data = text.encode(errors="backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]

"""What is shown on stderr of a fetch: a line with a bar on a terminal, plain lines, or JSON.

A terminal shows nothing of what takes no time. The other two, which are only there if somebody has
asked for them, say at the end what has been fetched.
"""

import json
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from runner.errors import printable
from runner.output import STDERR
from runner.progress import BETWEEN, FIRST, Line
from runner.units import size_shown

_OFTEN = 0.1  # seconds between two versions of a line
_PERIOD = 5.0  # seconds of which a rate is the mean
_BAR = 20


class _Counts:
    """What has come, and when."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.begin = time.monotonic()
        self.received = 0
        self.bytes = 0
        self.blocks = 0
        self.at = 0
        self.size: int | None = None
        self.source = ""
        self.sources: dict[str, None] = {}
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque([(self.begin, 0)])

    def arrived(self, count: int) -> None:
        """Count bytes that a source has sent; called from any thread."""
        with self._lock:
            self.received += count

    def asked(self, source: str) -> None:
        """Take note of whom is waited for."""
        self.source = source

    def verified(self, count: int, source: str) -> None:
        """Count a block of a source."""
        self.source = source
        self.sources[source] = None
        self.bytes += count
        self.blocks += 1

    def passed(self, count: int) -> None:
        """Count the bytes of a block that is handed on, from wherever it came."""
        self.at += count

    def of(self, size: int) -> None:
        """Take note of how many bytes there will be."""
        self.size = size

    def seconds(self) -> float:
        """Return how long it has taken."""
        return time.monotonic() - self.begin

    def rate(self) -> float:
        """Return the bytes that have come a second, of late."""
        now = time.monotonic()
        self._marks.append((now, self.received))
        while len(self._marks) > 2 and now - self._marks[0][0] > _PERIOD:
            self._marks.popleft()
        since, before = self._marks[0]
        return (self.received - before) / max(now - since, 0.001)


class Text(_Counts):
    """Shows it to people: on a terminal, or as plain lines."""

    def __init__(self, address: str, line: Line | None) -> None:
        """Show nothing yet.

        Args:
            address: What is fetched, as the user named it.
            line: Where to show it; None for plain lines.
        """
        super().__init__(address)
        self._line = line
        self._next = self.begin + FIRST

    def show(self) -> None:
        """Show how far it is, if it has taken long enough."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._line is not None:
            self._next = now + _OFTEN
            self._line.replace(self._text())
        else:
            self._next = now + BETWEEN
            _say(self._text())

    def clear(self) -> None:
        """Take away what is shown on the terminal."""
        if self._line is not None:
            self._line.erase()

    def end(self) -> None:
        """Take away what is shown on the terminal; with plain lines, say what came."""
        self.clear()
        if self._line is None and self.blocks:
            _say(
                f"ww: fetched {size_shown(self.bytes)} in {self.seconds():.1f} s, "
                f"from {', '.join(self.sources)}: {self.address}"
            )

    def _text(self) -> str:
        if not self.received and not self.bytes:
            what = f"waiting, {int(self.seconds())} s"
        else:
            what = f"{size_shown(self.bytes)}"
            if self.size:
                part = min(self.at / self.size, 1.0)
                bar = "#" * int(part * _BAR)
                what = f"[{bar:-<{_BAR}}] {part:.0%} of {size_shown(self.size)}"
            what += f", {size_shown(int(self.rate()))}/s"
        whom = f", {self.source}" if self.source else ""
        return f"ww: fetching {what}{whom}: {self.address}"


class Json(_Counts):
    """Shows it to programs: JSON lines, the last of which says that it is done."""

    def __init__(self, address: str) -> None:
        """Show nothing yet.

        Args:
            address: What is fetched, as the user named it.
        """
        super().__init__(address)
        self._next = self.begin + FIRST

    def show(self) -> None:
        """Tell how far it is, if it has taken long enough."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + FIRST
            self._tell("running")

    def clear(self) -> None:
        """Do nothing: lines stay."""

    def end(self) -> None:
        """Tell what came, if anything did."""
        if self.blocks:
            self._tell("done")

    def _tell(self, state: str) -> None:
        told: dict[str, Any] = {
            "event": "fetch",
            "state": state,
            "address": self.address,
            "source": self.source,
            "sources": list(self.sources),
            "blocks": self.blocks,
            "bytes": self.bytes,
            "received": self.received,
            "size": self.size,
            "seconds": round(self.seconds(), 3),
            "rate": int(self.rate()),
        }
        _say(json.dumps(told))


def _say(text: str) -> None:
    """Write a line, unless that would have to wait: a pipe may be full."""
    ready = select.poll()
    ready.register(STDERR, select.POLLOUT)
    if not ready.poll(0):
        return
    data = f"{printable(text)}\n".encode(errors="backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(STDERR, data) :]

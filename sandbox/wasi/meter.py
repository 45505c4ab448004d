"""How much the cell has written, in all, to whatever it was granted."""

import math
from collections.abc import Sequence


class OutputLimit(Exception):
    """The cell would write more than it may: not an errno for it, but its end."""


class Meter:
    """The bytes that one cell may still write; shared by everything it can write to."""

    __slots__ = ("_left",)

    def __init__(self, limit: int | None) -> None:
        """Begin at a limit.

        Args:
            limit: Bytes; ``None`` for no limit.
        """
        # It is never used up; so there is no second case on the way of every write.
        self._left = math.inf if limit is None else limit

    def cut(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Return what of the buffers may be written, so that the limit is reached exactly.

        Raises:
            OutputLimit: If that is nothing, and they are not empty.
        """
        left = self._left
        # One buffer is by far the most common.
        size = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if size <= left:
            return buffers
        if not left:
            raise OutputLimit
        allowed = []
        rest = int(left)
        for buffer in buffers:
            allowed.append(buffer[:rest])
            rest -= len(allowed[-1])
        return allowed

    def need(self, size: int) -> None:
        """Refuse what cannot be cut, such as the growth of a file, before it happens.

        Raises:
            OutputLimit: If ``size`` bytes are more than are left.
        """
        if size > self._left:
            raise OutputLimit

    def charge(self, size: int) -> None:
        """Count bytes that were written.

        Raises:
            OutputLimit: If they were more than allowed.
        """
        self._left -= size
        if self._left < 0:
            raise OutputLimit

"""What ww reads from its own stdin."""

import io
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = 0


def read_into(fd: int, buffer: "WriteableBuffer") -> int:
    """Read as readv(2) does, and wait where the descriptor would not.

    Whoever shares the description of a pipe may have set O_NONBLOCK on it, as Node.js does.

    Args:
        fd: What to read.
        buffer: Where the bytes go.

    Returns:
        How many there are; 0 at the end.

    Raises:
        OSError: As readv(2) says.
    """
    while True:
        try:
            return os.readv(fd, [buffer])
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLIN)
            ready.poll()


class _Waiting(io.RawIOBase):
    """Stdin, whose reads wait."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        return read_into(STDIN, buffer)


@contextmanager
def stdin() -> Iterator[BinaryIO]:
    """Give stdin as a file of bytes, buffered. It stays open."""
    with io.BufferedReader(_Waiting()) as stream:
        yield stream

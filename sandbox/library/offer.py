"""What a program offers a cell: a file, a descriptor or bytes, by a name."""

import os
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from sandbox.grants import FdType, Mode

MAX_FD: Final = (1 << 31) - 1
"""The largest number that a descriptor can have: it is an int."""


@runtime_checkable
class HasFileno(Protocol):
    """An open file, socket or the like."""

    def fileno(self) -> int:
        """Return its descriptor."""


Source: TypeAlias = bytes | str | os.PathLike[str] | int | HasFileno
"""What can be granted: bytes, which the cell can read; a path, which is opened for the run; or an
open descriptor, or what has one."""


class Offer(NamedTuple):
    """One grant, as a program asks for it; :func:`grant` makes it and says what its parts are.

    It can be pickled if its source can: bytes and paths, that is.
    """

    name: str
    source: Source
    mode: Mode | None = None
    type: FdType | None = None
    target: int | None = None
    move: bool = False
    cloexec: bool = True
    pathlink: bool = False
    guest: str | None = None


def grant(
    name: str,
    source: Source,
    *,
    mode: Mode | None = None,
    type: FdType | None = None,  # noqa: A002 - the word for it, everywhere here
    target: int | None = None,
    move: bool = False,
    cloexec: bool = True,
    pathlink: bool = False,
    guest: str | None = None,
) -> Offer:
    """Offer a cell one descriptor. It is checked when the cell is to run.

    Args:
        name: By which the cell finds it: ``WW_FD_<NAME>`` is its number.
        source: Bytes, which the cell can read and nobody can change; the path of a file or
            directory; an open descriptor, or an object with a ``fileno()``. A path is opened when
            the cell starts: with mode ``w`` or ``rw`` a file is made if there is none, and with
            ``w`` it is emptied, as by :func:`open`, but not where a grant is refused or the cell is
            no program at all; one that the engine rejects later finds its files made. A FIFO is
            refused by its path, because opening one may never end: open it, and grant that. What is
            open already is shared with the cell, its position too.
        mode: What the cell may do: ``r``, ``w`` or ``rw``. By default what the descriptor is open
            for; for a path, a directory and bytes ``r``.
        type: ``stream``, ``file`` or ``socket``, by default what the kernel says.
        target: Its number in the cell; by default the lowest free one from 10 up.
        move: The caller's descriptor is closed, so that the cell's copy is the only one.
        cloexec: It carries FD_CLOEXEC in the cell's process.
        pathlink: The cell can open it as ``/NAME``.
        guest: Of a directory, the path at which the cell finds it; by default ``/NAME``.
    """
    return Offer(name, source, mode, type, target, move, cloexec, pathlink, guest)

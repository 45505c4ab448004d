"""What the code in a jail is given to work with."""

from collections.abc import Callable, Collection
from typing import NamedTuple, NoReturn, Protocol

from sandbox.outcome import Outcome
from sandbox.plan import Plan


class Seal(Protocol):
    """See :meth:`sandbox.jail.Jail.seal`."""

    def __call__(self, also: Collection[int] = ()) -> None:
        """Take away what loading the code needed, but for ``also``."""


class Own(NamedTuple):
    """ww's own descriptors in the cell's process, at numbers that no grant has.

    Attributes:
        line: The socket to the spawner: one byte comes in, the outcome goes out.
        code: What is loaded: the cell's compiled form, or its bytes where it is compiled.
        null: /dev/null, for the numbers at which libraries write messages unasked.
        listing: The list of this process's descriptors, which is the working directory while the
            code is loaded; closed by :meth:`sandbox.jail.Jail.seal`.
        scratch: The writable /tmp, or -1 where there is none.
        content: The connection to the runner for the content that it serves, or -1.
        files: The directory in which a component finds granted files, or -1.
    """

    line: int
    code: int
    null: int
    listing: int
    scratch: int = -1
    content: int = -1
    files: int = -1


class Inside(NamedTuple):
    """A jail, as the code that loads and runs a cell sees it.

    Attributes:
        plan: What was promised.
        own: ww's own descriptors.
        seal: Takes away what loading the code needed, but for some descriptors; see
            :meth:`sandbox.jail.Jail.seal`.
        report: Tells how it ended, from wherever that is, and ends the process.
    """

    plan: Plan
    own: Own
    seal: Seal
    report: Callable[[Outcome], NoReturn]

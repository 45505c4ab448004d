"""How a cell ended, told apart by cause."""

import json
from typing import Any, Literal, NamedTuple, get_args

from sandbox.policy import LimitName

Kind = Literal["exit", "trap", "signal", "rejected", "limit", "isolation", "jail", "fault", "stale"]

_KINDS = get_args(Kind)
_LIMITS = ("", *get_args(LimitName))
# Exit codes, signals and error numbers alike are below it: MAX_ERRNO of include/linux/err.h.
_MOST_CODE = 4095


class Outcome(NamedTuple):
    """How one cell ended.

    Attributes:
        kind: ``exit``: the cell ended by itself. ``trap``: it did what WebAssembly forbids.
            ``signal``: its process was ended by a signal. ``rejected``: it is not a program
            that can run here. ``limit``: it used up what it was allowed. ``isolation``: it called
            what no cell has a reason to call, and the kernel ended it. ``jail``: no cell ran,
            because a step of the set-up failed. ``fault``: the host failed at something the cell
            may ask of it. ``stale``: its compiled form is of no use any more, so no cell ran;
            the spawner compiles it again, and nobody else sees this.
        code: The exit code (``exit``), the signal's number (``signal``) or the error number
            of the step that failed (``jail``, 0 where a check found a difference); else 0.
        what: The trap's message with its backtrace, the reason of a rejection, or what failed.
        step: The name of the set-up step that failed (``jail``), else empty.
        limit: Which of :class:`sandbox.policy.Limits` it was (``limit``), else empty.
    """

    kind: Kind
    code: int = 0
    what: str = ""
    step: str = ""
    limit: str = ""

    def encode(self) -> bytes:
        """Return the outcome as bytes for :meth:`decode`."""
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Outcome":
        """Read what :meth:`encode` wrote, from a process that may be the cell's captive.

        Raises:
            ValueError: If the bytes are not an outcome.
        """
        try:
            fields: Any = json.loads(data)
        except RecursionError as error:
            raise ValueError("not an outcome") from error
        match fields:
            case [str() as kind, int() as code, str() as what, str() as step, str() as limit]:
                if kind in _KINDS and limit in _LIMITS and 0 <= code <= _MOST_CODE:
                    return cls(kind, code, what, step, limit)  # type: ignore[arg-type]
        raise ValueError("not an outcome")


def limit(name: LimitName, what: str = "") -> Outcome:
    """Return the outcome of a cell that one of its limits ended."""
    return Outcome("limit", what=what, limit=name)

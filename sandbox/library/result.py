"""How a cell ended, with all that it wrote."""

import signal
from typing import NamedTuple, Self

from sandbox.errors import CellRejected, HostError, JailError, SandboxError
from sandbox.outcome import Outcome, Usage

_MOST_SHOWN = 200  # characters of what a cell wrote, in an error


class Result(NamedTuple):
    """The end of a cell that ran. It can be pickled.

    Attributes:
        outcome: What ended it. Its kind is ``exit``, ``trap``, ``limit``, ``signal`` or
            ``isolation``: everything else is an error, because no cell ran to its end.
        stdout: What it wrote to its standard output, unless something was granted there.
        stderr: Likewise, to its standard error.
    """

    outcome: Outcome
    stdout: bytes
    stderr: bytes

    @property
    def exit_code(self) -> int | None:
        """The exit code, 0 to 255; ``None`` if the cell did not end by itself."""
        return self.outcome.code & 0xFF if self.outcome.kind == "exit" else None

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.exit_code == 0

    @property
    def usage(self) -> Usage | None:
        """What it used: seconds that passed, seconds of processor time, bytes of memory."""
        return self.outcome.usage

    def check(self) -> Self:
        """Return this result if it is :attr:`ok`.

        Raises:
            CellFailed: Otherwise.
        """
        if not self.ok:
            raise CellFailed(self)
        return self

    def describe(self) -> str:
        """Say in a few words what ended it: ``exit code 3``, ``limit wall``, ``trap: ...``."""
        outcome = self.outcome
        match outcome.kind:
            case "exit":
                return f"exit code {self.exit_code}"
            case "limit":
                return f"limit {outcome.limit}"
            case "signal":
                names = {number.value: number.name for number in signal.Signals}
                return f"signal {names.get(outcome.code, outcome.code)}"
            case kind:
                lines = [line.strip() for line in outcome.what.splitlines() if line.strip()]
                return f"{kind}: {lines[-1].removeprefix('wasm trap: ')}" if lines else kind


class CellFailed(SandboxError):
    """A cell did not end with exit code 0; raised by :meth:`Result.check` only.

    Attributes:
        result: How it ended.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        """What ended it, and the end of what it wrote to its standard error."""
        said = self.result.stderr[-_MOST_SHOWN:].decode(errors="replace").strip()
        text = self.result.describe() + (f": {said}" if said else "")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def conclude(cell: str, outcome: Outcome, stdout: bytes, stderr: bytes) -> Result:
    """Return the result of a cell that ran.

    Args:
        cell: Its name, for errors.
        outcome: What the spawner tells.
        stdout: What it wrote.
        stderr: Likewise.

    Raises:
        CellRejected: If it is no program that can run here.
        JailError: If a step of the jail's set-up failed, so that no cell ran.
        HostError: If the host failed.
    """
    match outcome.kind:
        case "rejected":
            raise CellRejected(cell, outcome.what)
        case "jail":
            raise JailError(outcome.step, outcome.what, outcome.code)
        case "fault" | "stale":
            raise HostError(cell, outcome.what)
    return Result(outcome, stdout, stderr)

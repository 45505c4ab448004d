"""What the engine says when it does not load or run a program."""

import re

import wasmtime

# A line of an engine's error when the host's memory did not suffice.
_NO_MEMORY = re.compile(r"(\d+: )?out of memory \(failed to allocate \d+ bytes\)")


class Rejected(Exception):
    """The cell is not a program that can run here."""


class Stale(Exception):
    """The compiled form of the cell is of no use any more."""


def lacks_memory(error: Exception) -> bool:
    """Tell whether the engine failed for want of the host's memory.

    Only the last line, the cause, is the engine's own word: those above hold names that the cell
    chose, with line breaks if it likes.
    """
    cause = str(error).rstrip().rpartition("\n")[2].strip()
    return isinstance(error, wasmtime.WasmtimeError) and bool(_NO_MEMORY.fullmatch(cause))


def first_cause(error: Exception) -> str:
    """Return an error of the engine on one line, without the position of its own code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line)

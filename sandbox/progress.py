"""What shows people that a cell is being compiled, as a type."""

from typing import Protocol


class Progress(Protocol):
    """What shows people that a cell is being compiled."""

    def show(self, elapsed: float) -> None:
        """Show it now, so many seconds after it has begun; called several times a second."""

    def end(self) -> None:
        """Take away what was shown, because what follows may be written at the same place."""

"""What tells the user of a fetch, as a type: nothing of this is needed to fetch anything."""

from typing import Protocol


class Shown(Protocol):
    """What tells the user of a fetch."""

    def arrived(self, count: int) -> None:
        """Count bytes that a source has sent; called from any thread."""

    def asked(self, source: str) -> None:
        """Take note of whom is waited for."""

    def verified(self, count: int, source: str) -> None:
        """Count the bytes of a block of a source."""

    def passed(self, count: int) -> None:
        """Count the bytes of a block that is handed on, from wherever it came."""

    def of(self, size: int) -> None:
        """Take note of how many bytes will be handed on."""

    def show(self) -> None:
        """Show how far it is; called again and again while something is waited for."""

    def clear(self) -> None:
        """Take away what is shown, because something else is to be written."""

    def end(self) -> None:
        """Take away what is shown, and say what was fetched."""

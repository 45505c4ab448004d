"""What :func:`contextlib.suppress` does, for what a run takes: that module takes two milliseconds.

Not more than that: whoever needs another part of it, imports it.
"""

from __future__ import annotations


class suppress:  # noqa: N801 - as the original is called
    """A ``with`` block that ends at an exception of some kinds, and nobody hears of it."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        """Say which.

        Args:
            kinds: The exceptions, with all that are derived from them.
        """
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kinds)

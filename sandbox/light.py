"""Parts of the standard library without what they take to import.

:mod:`signal` and :mod:`socket` make enumerations of the numbers of :mod:`_signal` and
:mod:`_socket`, which takes three milliseconds, and nothing that uses this looks at them. The
functions are the same; a socket has no more than its methods in C, so no ``with``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
else:
    try:
        import _signal as signal
        import _socket as socket
    except ImportError:
        import signal
        import socket


class suppress:  # noqa: N801 - as in contextlib, which takes two milliseconds
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


__all__ = ["signal", "socket", "suppress"]

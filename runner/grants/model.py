"""What a grant is before it is checked: requests, and the rules of their words."""

from __future__ import annotations

from sandbox import GrantRequest as Request
from sandbox import granting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandbox import FdType, Mode

__all__ = [
    "MODES",
    "NAME_HINT",
    "NUMBER_LENGTH",
    "TYPES",
    "Request",
    "environment_key",
    "is_name",
    "number",
    "shown",
]

is_name = granting.is_name
environment_key = granting.environment_key

MODES: Final[dict[str, Mode]] = {"r": "r", "w": "w", "rw": "rw"}
TYPES: Final[dict[str, FdType]] = {"stream": "stream", "file": "file", "socket": "socket"}
NAME_HINT: Final = (
    "a name is an ASCII letter, then letters, digits, '_' and '-', at most"
    f" {granting.NAME_LENGTH} in all"
)
NUMBER_LENGTH: Final = 7

_SHOWN_LENGTH = 70  # more of a hostile value than a name can have tells nobody anything
_DIGITS = frozenset("0123456789")


def number(text: str) -> int | None:
    """Read a descriptor number: ``0|[1-9][0-9]{0,6}``, ASCII digits only.

    ``int`` alone would take ``1_0``, ``+1``, surrounding blanks and the digits of every script.

    Returns:
        The number, or None if the text is not one.
    """
    if not 1 <= len(text) <= NUMBER_LENGTH or not all(digit in _DIGITS for digit in text):
        return None
    if text[0] == "0" and text != "0":
        return None
    return int(text)


def shown(text: str) -> str:
    """Return a piece of the user's text for an error, cut where it stops being useful."""
    return f"'{text}'" if len(text) <= _SHOWN_LENGTH else f"'{text[:_SHOWN_LENGTH]}...'"

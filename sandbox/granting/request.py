"""What a grant is before it is checked, and the rules of its name."""

from __future__ import annotations

from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandbox.grants import FdType, Mode


NAME_LENGTH: Final = 63
"""Characters of the longest name."""

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_NAME_CHARACTERS = _LETTERS | frozenset("0123456789_-")


class GrantRequest(Record):
    """One grant as somebody asked for it.

    Attributes:
        name: The name it is granted by, see :func:`is_name`.
        source: The descriptor's number in this process.
        origin: Where it was asked for, for errors.
        mode: The asked mode; None for what the descriptor has.
        type: The asked type; None for what the kernel says.
        target: The asked number in the cell; None for the next free one.
        move: This process's copy is closed as soon as the cell holds one.
        cloexec: The descriptor carries FD_CLOEXEC in the cell's process.
        pathlink: The jail's root holds a symbolic link of this name to it.
        guest: Of a directory, the path at which the cell finds it; None for ``/`` and its name.
        called: What to call the source, for errors; empty for ``fd`` and its number.
    """

    name: str
    source: int
    origin: str
    mode: Mode | None = None
    type: FdType | None = None
    target: int | None = None
    move: bool = False
    cloexec: bool = True
    pathlink: bool = False
    guest: str | None = None
    called: str = ""

    @property
    def given(self) -> str:
        """What the source is called."""
        return self.called or f"fd {self.source}"


def is_name(text: str) -> bool:
    """Whether a text is a legal name: ``[A-Za-z][A-Za-z0-9_-]{0,62}``, ASCII only.

    Nothing in a name needs quoting in an S-expression, a path or an environment variable, so
    text made from names cannot be anything else than what was meant.
    """
    return (
        1 <= len(text) <= NAME_LENGTH
        and text[0] in _LETTERS
        and all(character in _NAME_CHARACTERS for character in text)
    )


def environment_key(name: str) -> str:
    """The part of ``WW_FD_<KEY>`` that stands for a name: ``my-db`` gives ``MY_DB``."""
    return name.upper().replace("-", "_")

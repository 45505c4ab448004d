"""What a grant is before it is checked: requests, and the rules of their words."""

from typing import Final, NamedTuple

from sandbox import FdType, Mode

MODES: Final[dict[str, Mode]] = {"r": "r", "w": "w", "rw": "rw"}
TYPES: Final[dict[str, FdType]] = {"stream": "stream", "file": "file", "socket": "socket"}
NAME_LENGTH: Final = 63
NAME_HINT: Final = (
    f"a name is an ASCII letter, then letters, digits, '_' and '-', at most {NAME_LENGTH} in all"
)
NUMBER_LENGTH: Final = 7

_SHOWN_LENGTH = 70  # more of a hostile value than a name can have tells nobody anything
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = frozenset("0123456789")
_NAME_CHARACTERS = _LETTERS | _DIGITS | {"_", "-"}


class Request(NamedTuple):
    """One grant as somebody asked for it, in a flag or elsewhere.

    Attributes:
        name: The name it is granted by, see ``is_name``.
        source: The descriptor's number in the process that ran ``ww``.
        origin: Where it was asked for (``--fd #2``), for errors.
        mode: The asked mode; None for what the descriptor has.
        type: The asked type; None for what the kernel says.
        target: The asked number in the cell; None for the next free one.
        move: ww closes its own copy as soon as the cell holds one.
        cloexec: The descriptor carries FD_CLOEXEC in the cell's process.
        pathlink: The jail's root holds a symbolic link of this name to it.
        guest: Of a directory, the path at which the cell finds it; None for ``/`` and its name.
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


def environment_key(name: str) -> str:
    """The part of ``WW_FD_<KEY>`` that stands for a name: ``my-db`` gives ``MY_DB``."""
    return name.upper().replace("-", "_")


def shown(text: str) -> str:
    """Return a piece of the user's text for an error, cut where it stops being useful."""
    return f"'{text}'" if len(text) <= _SHOWN_LENGTH else f"'{text[:_SHOWN_LENGTH]}...'"

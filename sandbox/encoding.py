"""JSON of plain values, without what :mod:`json` takes to import.

That module needs ``re`` and ``enum``, four milliseconds with them, for reading most of all. Whoever
writes one message and ends soon has no use for it.
"""

from __future__ import annotations

try:
    # What json.dumps writes strings with.
    from _json import encode_basestring_ascii as _string
except ImportError:
    from json.encoder import py_encode_basestring_ascii as _string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Value = str | int | float | bool | None | Sequence["Value"]


def encode(value: Value) -> bytes:
    """Return a value as :func:`json.dumps` writes it.

    Args:
        value: A text, a finite number, a truth value, None, or a list or tuple of such.

    Raises:
        TypeError: If it is anything else.
    """
    return _text(value).encode("ascii")


def _text(value: Value) -> str:
    if isinstance(value, str):
        return str(_string(value))
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    # What is derived from them may be written otherwise, as an enumeration is.
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    raise TypeError(f"{type(value).__name__} is not a plain value")

"""The syntax of flag values: ``HEAD,key=value,...``, with the column of an error."""

from __future__ import annotations

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import number, shown
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from typing import Final, NoReturn, TypeVar

    _T = TypeVar("_T")

BOOLEANS: Final = {"true": True, "false": False}
_NUMBER_HINT: Final = "0 to 9999999 in plain decimal digits: no sign, no leading zero, no '_'"


class Part(Record):
    """A piece of a flag's value, and the 1-based column where it starts."""

    text: str
    column: int


def split(value: str) -> Iterator[Part]:
    """Cut at the commas; no value of any key can hold one."""
    column = 1
    for text in value.split(","):
        yield Part(text, column)
        column += len(text) + 1


def read_options(
    parts: Iterable[Part], keys: Collection[str], origin: str
) -> Iterator[tuple[str, Part]]:
    """Read ``key=value`` pieces: each key known, and given once.

    Raises:
        WwError: With code 2, naming the column of the offending item.
    """
    columns: dict[str, int] = {}
    for part in parts:
        key, equals, text = part.text.partition("=")
        if not part.text:
            fail(origin, part.column, "an option is missing", "remove the comma before it")
        if key not in keys:
            what = f"unknown key {shown(key)}" if key else "the key is missing"
            fail(origin, part.column, what, f"the keys are {', '.join(keys)}")
        if not equals:
            fail(origin, part.column, f"the key {key!r} has no value", f"write {key}=VALUE")
        if key in columns:
            first = f"it is first given at column {columns[key]}"
            fail(origin, part.column, f"the key {key!r} is given twice", first)
        columns[key] = part.column
        yield key, Part(text, part.column + len(key) + 1)


def read_choice(choices: Mapping[str, _T], key: str, text: Part, origin: str) -> _T:
    """Read one of a few words.

    Raises:
        WwError: With code 2 for another.
    """
    if text.text not in choices:
        given = f"{key}={shown(text.text)} is not known" if text.text else f"{key} is empty"
        fail(origin, text.column, given, f"{key} is one of {', '.join(choices)}")
    return choices[text.text]


def read_number(text: Part, origin: str) -> int:
    """Read a descriptor number where it must stand.

    Raises:
        WwError: With code 2 for anything else.
    """
    value = number(text.text)
    if value is None:
        what = (
            f"{shown(text.text)} is not a descriptor number"
            if text.text
            else "the number is missing"
        )
        fail(origin, text.column, what, _NUMBER_HINT)
    return value


def fail(origin: str, column: int, what: str, hint: str) -> NoReturn:
    """Refuse a flag's value.

    Raises:
        WwError: With code 2, always.
    """
    raise WwError(origin, f"column {column}: {what}", hint=hint, code=EXIT_USAGE)

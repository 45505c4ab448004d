"""The flags ``--fd`` and ``--fd-map``, with the column of an error."""

from __future__ import annotations

from runner.grants.model import MODES, NAME_HINT, TYPES, Request, is_name, shown
from runner.grants.options import (
    BOOLEANS,
    Part,
    fail,
    read_choice,
    read_number,
    read_options,
    split,
)
from sandbox import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

KEYS: Final = ("mode", "type", "target", "move", "cloexec", "pathlink")

# The names that need no number: they stand for a descriptor and for the same target.
STANDARD_NAMES: Final = {"stdin": 0, "stdout": 1, "stderr": 2}


class Decoration(Record):
    """A ``--fd NAME,key=value...`` without a number: options for what another source brings.

    Attributes:
        name: The grant's name, or an alias of it.
        origin: The flag and its position, for errors.
        options: What to change, by the fields of a request.
    """

    name: str
    origin: str
    options: dict[str, Any]


class FdMap(Record):
    """A ``--fd-map NAME=TARGET``.

    Attributes:
        name: The grant's name, or an alias of it.
        origin: The flag and its position, for errors.
        target: The number in the cell, in place of any other.
    """

    name: str
    origin: str
    target: int


def parse_fds(values: Iterable[str]) -> tuple[list[Request], list[Decoration]]:
    """Read the values of all ``--fd`` flags.

    Returns:
        Those that bring a descriptor and those that do not, each in their order.

    Raises:
        WwError: With code 2 for the first value that is not well formed. Whether names and
            numbers fit together is the plan's to say.
    """
    requests: list[Request] = []
    decorations: list[Decoration] = []
    for position, value in enumerate(values, 1):
        read = parse_fd(value, f"--fd #{position}")
        if isinstance(read, Request):
            requests.append(read)
        else:
            decorations.append(read)
    return requests, decorations


def parse_fd(value: str, origin: str) -> Request | Decoration:
    """Read the value of one ``--fd`` flag.

    A bare ``stdin``, ``stdout`` or ``stderr`` stands for source 0, 1 or 2 with the same number
    as its target unless ``target`` says otherwise. With a number these are names like any other.

    Args:
        value: ``NAME[=NUM][,key=value...]``.
        origin: The flag and its position, as errors name it.

    Raises:
        WwError: With code 2, naming the column of the offending item.
    """
    head, *parts = split(value)
    name, equals, digits = head.text.partition("=")
    if not name:
        fail(origin, head.column, "the name is missing", "write --fd NAME=NUM")
    _check_name(name, head, origin)
    source = read_number(Part(digits, head.column + len(name) + 1), origin) if equals else None
    options: dict[str, Any] = {
        key: read_value(key, text, origin) for key, text in read_options(parts, KEYS, origin)
    }
    if source is not None:
        return Request(name, source, origin, **options)
    if name in STANDARD_NAMES:
        number = STANDARD_NAMES[name]
        return Request(name, number, origin, **{"target": number, **options})
    return Decoration(name, origin, options)


def parse_maps(values: Iterable[str]) -> list[FdMap]:
    """Read the values of all ``--fd-map`` flags, in their order.

    Raises:
        WwError: With code 2 for the first value that is not well formed.
    """
    return [_parse_map(value, f"--fd-map #{position}") for position, value in enumerate(values, 1)]


def _parse_map(value: str, origin: str) -> FdMap:
    name, equals, digits = value.partition("=")
    if not name or not equals:
        fail(origin, 1, f"{shown(value)} is not a mapping", "write --fd-map NAME=TARGET")
    _check_name(name, Part(value, 1), origin)
    return FdMap(name, origin, read_number(Part(digits, len(name) + 2), origin))


def _check_name(name: str, head: Part, origin: str) -> None:
    if not is_name(name):
        fail(origin, head.column, f"{shown(name)} is not a legal name", NAME_HINT)


def read_value(key: str, text: Part, origin: str) -> Any:  # noqa: ANN401 - a field of a request
    """Read what one key of a grant is set to.

    Args:
        key: One of :data:`KEYS`.
        text: The value.
        origin: The flag and its position.

    Raises:
        WwError: With code 2 for a value that the key cannot have.
    """
    match key:
        case "mode":
            return read_choice(MODES, key, text, origin)
        case "type":
            return read_choice(TYPES, key, text, origin)
        case "target":
            return read_number(text, origin)
        case _:
            return read_choice(BOOLEANS, key, text, origin)

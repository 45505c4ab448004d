"""The ``--fd`` flag: ``NAME[=NUM][,key=value...]`` to a request, with the column of an error."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, NoReturn, TypeVar

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import MODES, NAME_LENGTH, TYPES, Request, is_name, number

KEYS: Final = ("mode", "type", "target", "move", "cloexec", "pathlink")

# The names that need no number: they stand for a descriptor and for the same target.
STANDARD_NAMES: Final = {"stdin": 0, "stdout": 1, "stderr": 2}

_BOOLEANS: Final = {"true": True, "false": False}
_NAME_HINT: Final = (
    f"a name is an ASCII letter, then letters, digits, '_' and '-', at most {NAME_LENGTH} in all"
)
_NUMBER_HINT: Final = "0 to 9999999 in plain decimal digits: no sign, no leading zero, no '_'"
_QUOTE_LENGTH: Final = 70  # more of a hostile value than a name can have tells nobody anything

_T = TypeVar("_T")


class _Part(NamedTuple):
    """A piece of the flag's value, and the 1-based column where it starts."""

    text: str
    column: int


def parse_fds(values: Iterable[str]) -> list[Request]:
    """Read the values of all ``--fd`` flags, in their order on the command line.

    Raises:
        WwError: With code 2 for the first value that is not well formed. Whether names and
            numbers fit together is the plan's to say.
    """
    return [parse_fd(value, f"--fd #{position}") for position, value in enumerate(values, 1)]


def parse_fd(value: str, origin: str) -> Request:
    """Read the value of one ``--fd`` flag.

    A bare ``stdin``, ``stdout`` or ``stderr`` stands for source 0, 1 or 2 with the same number
    as its target unless ``target`` says otherwise. With a number these are names like any other.

    Args:
        value: ``NAME[=NUM][,key=value...]``.
        origin: The flag and its position, as errors name it.

    Raises:
        WwError: With code 2, naming the column of the offending item.
    """
    head, *options = _split(value)
    request = _head(head, origin)
    columns: dict[str, int] = {}
    for option in options:
        key, text = _option(option, origin)
        if key in columns:
            _fail(
                origin,
                option.column,
                f"the key {key!r} is given twice",
                f"it is first given at column {columns[key]}",
            )
        columns[key] = option.column
        request = _apply(request, key, text)
    return request


def _split(value: str) -> Iterator[_Part]:
    """Cut at the commas; no value of any key can hold one."""
    column = 1
    for text in value.split(","):
        yield _Part(text, column)
        column += len(text) + 1


def _head(head: _Part, origin: str) -> Request:
    """Read ``NAME`` or ``NAME=NUM``."""
    name, equals, digits = head.text.partition("=")
    if not name:
        _fail(origin, head.column, "the name is missing", "write --fd NAME=NUM")
    if not is_name(name):
        _fail(origin, head.column, f"{_quote(name)} is not a legal name", _NAME_HINT)
    if equals:
        return Request(name, _number(_Part(digits, head.column + len(name) + 1), origin), origin)
    if name not in STANDARD_NAMES:
        _fail(
            origin,
            head.column,
            f"nothing brings a descriptor named {_quote(name)}",
            f"write --fd {name}=NUM; only stdin, stdout and stderr stand for themselves",
        )
    standard = STANDARD_NAMES[name]
    return Request(name, standard, origin, target=standard)


def _option(option: _Part, origin: str) -> tuple[str, _Part]:
    """Cut ``key=value`` and check the key."""
    key, equals, text = option.text.partition("=")
    if not option.text:
        _fail(origin, option.column, "an option is missing", "remove the comma before it")
    if key not in KEYS:
        what = f"unknown key {_quote(key)}" if key else "the key is missing"
        _fail(origin, option.column, what, f"the keys are {', '.join(KEYS)}")
    if not equals:
        _fail(origin, option.column, f"the key {key!r} has no value", f"write {key}=VALUE")
    return key, _Part(text, option.column + len(key) + 1)


def _apply(request: Request, key: str, text: _Part) -> Request:
    """Set what one key says."""
    origin = request.origin
    match key:
        case "mode":
            return request._replace(mode=_choice(MODES, key, text, origin))
        case "type":
            return request._replace(type=_choice(TYPES, key, text, origin))
        case "target":
            return request._replace(target=_number(text, origin))
        case "move":
            return request._replace(move=_choice(_BOOLEANS, key, text, origin))
        case "cloexec":
            return request._replace(cloexec=_choice(_BOOLEANS, key, text, origin))
        case _:
            return request._replace(pathlink=_choice(_BOOLEANS, key, text, origin))


def _choice(choices: Mapping[str, _T], key: str, text: _Part, origin: str) -> _T:
    """Read one of a few words."""
    if text.text not in choices:
        given = f"{key}={_quote(text.text)} is not known" if text.text else f"{key} is empty"
        _fail(origin, text.column, given, f"{key} is one of {', '.join(choices)}")
    return choices[text.text]


def _number(text: _Part, origin: str) -> int:
    """Read a descriptor number where it must stand."""
    value = number(text.text)
    if value is None:
        what = (
            f"{_quote(text.text)} is not a descriptor number"
            if text.text
            else "the number is missing"
        )
        _fail(origin, text.column, what, _NUMBER_HINT)
    return value


def _quote(text: str) -> str:
    """A piece of the user's text for an error, cut where it stops being useful."""
    return f"'{text}'" if len(text) <= _QUOTE_LENGTH else f"'{text[:_QUOTE_LENGTH]}...'"


def _fail(origin: str, column: int, what: str, hint: str) -> NoReturn:
    raise WwError(origin, f"column {column}: {what}", hint=hint, code=EXIT_USAGE)

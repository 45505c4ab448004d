"""From the bytes of a table to its data, each with its line and column.

``sexpdata`` reads more than a table may hold: ``1_0``, the digits of every script, ``inf``,
brackets and quotes; it checks its input with ``assert``, calls itself for each parenthesis, and
keeps no positions. So a scan comes first. It bounds what the parser will see, refuses every token
that the two could understand differently, and remembers where each one is. The parse then brings
the structure and the values, whose types are compared with what the scan saw.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import shown

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 32
# 256 grants with each of their keys written as a list are 8,960. It bounds the time of the parse,
# which takes far longer for each token than for each character.
MAX_TOKENS: Final = 10_000
MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1

_BOM: Final = b"\xef\xbb\xbf"

# Control characters, and those that make a text look other than it is: line ends that only some
# programs know, and the overrides of writing direction. Not even a comment needs them.
_FORBIDDEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
# The alternatives begin differently, and no repetition holds another: time is linear.
_TOKEN: Final = re.compile(
    r'[()]|"(?:[^"\\]|\\["\\nt])*(?P<end>"?)|[^ \t()";]+|(?P<skipped>[ \t]+|;.*)'
)
_SYMBOL_CHARACTERS: Final = "A-Za-z0-9!*/<=>?_+-"
_FOREIGN: Final = re.compile(f"[^:.{_SYMBOL_CHARACTERS}]")
_SYMBOL: Final = re.compile(f":?(?![0-9]|[+-][0-9])[{_SYMBOL_CHARACTERS}]+")
_NUMERIC: Final = re.compile(r"[+-]?[.]?[0-9]")
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]*")
_INTEGER_LENGTH: Final = 20  # of the longest one of 64 bits, with its sign
_BOOLEANS: Final = frozenset({"true", "false"})
# What float() takes for a number, and so sexpdata for an atom that is none.
_FLOAT_WORDS: Final = frozenset(
    sign + word for sign in ("", "+", "-") for word in ("inf", "infinity", "nan")
)

_NUMBER_HINT: Final = "numbers are plain decimal digits: no leading zero, no '_', '+', '.' or 'e'"
_FOREIGN_HINTS: Final = {
    "'": "nothing is quoted here: write (list 1 2 3)",
    "[": "the only brackets are ( and )",
    "]": "the only brackets are ( and )",
    "#": "booleans are true and false; a comment begins with ';'",
    "\\": "backslashes stand in strings only",
}


class Place(NamedTuple):
    """Where something is: a file, a line and a column, both from 1, the column in characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        """``caps.sexp:3:7``."""
        return f"{self.file}:{self.line}:{self.column}"

    def error(self, what: str, hint: str = "") -> WwError:
        """The error, with code 2, that something is wrong here."""
        return WwError(str(self), what, hint=hint, code=EXIT_USAGE)


class Symbol(NamedTuple):
    """A word that is not in quotes: a name, an operator, or a keyword such as ``:mode``."""

    text: str


class Node(NamedTuple):
    """One datum and where it begins.

    Attributes:
        value: What it is; a tuple is a list in parentheses.
        place: Where it begins.
        head: The symbol that a list begins with; None if it begins otherwise, or is no list.
    """

    value: "bool | int | str | Symbol | tuple[Node, ...]"
    place: Place
    head: str | None = None

    @property
    def items(self) -> "tuple[Node, ...]":
        """What a list holds; nothing if this is not a list."""
        return self.value if type(self.value) is tuple else ()

    @property
    def symbol(self) -> str | None:
        """The text of a symbol; None if this is not a symbol."""
        return self.value.text if type(self.value) is Symbol else None

    def error(self, what: str, hint: str = "") -> WwError:
        """The error, with code 2, that something is wrong here."""
        return self.place.error(what, hint)


class _Token(NamedTuple):
    """What the scan saw: the type that the parse must give, and where. None closes a list."""

    kind: type | None
    place: Place


def read(data: bytes, where: str) -> tuple[Node, ...]:
    """Read all data of a file or a message.

    Args:
        data: UTF-8, with or without a byte order mark, with lines ending in LF or CRLF.
        where: The name of the file, as errors show it.

    Raises:
        WwError: With code 2 and the place: for more than ``MAX_BYTES``, ``MAX_DEPTH`` or
            ``MAX_TOKENS``, for other encodings and control characters, for unbalanced
            parentheses and strings that do not end, and for tokens that are nothing here.
    """
    if len(data) > MAX_BYTES:
        raise Place(where, 1, 1).error(
            f"{len(data)} bytes are more than a table may have", f"at most {MAX_BYTES}"
        )
    text = _decode(data.removeprefix(_BOM), where)
    tokens = _balanced(_tokens(text, where))
    # Imported here, because a run without a table has no use for it.
    import sexpdata

    parsed = sexpdata.parse(text, nil=None, true="true", false="false")
    return _nodes(parsed, iter(tokens), {sexpdata.Symbol: Symbol})


def integer(text: str) -> int | None:
    """Read an integer of at most 64 bits in plain decimal digits, with ``-`` if it is negative.

    Returns:
        The integer, or None if the text is not one.
    """
    if len(text) > _INTEGER_LENGTH or not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if MIN_INTEGER <= value <= MAX_INTEGER else None


def _decode(data: bytes, where: str) -> str:
    """Decode UTF-8 with LF for CRLF, and hold that every character may be in a table."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise _place(before, where).error(
            f"the byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n")
    found = _FORBIDDEN.search(text)
    if found:
        raise _place(text[: found.start()], where).error(
            f"the character U+{ord(found[0]):04X} is not allowed, not even in a comment",
            "lines end with LF or CRLF" if found[0] == "\r" else "remove it",
        )
    return text


def _place(before: str, where: str) -> Place:
    """Where a text continues."""
    return Place(where, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _tokens(text: str, where: str) -> Iterator[_Token]:
    """Cut into tokens; none goes over the end of a line."""
    for number, line in enumerate(text.split("\n"), 1):
        for found in _TOKEN.finditer(line):
            if found["skipped"] is not None:
                continue
            place = Place(where, number, found.start() + 1)
            if found["end"] == "":
                raise _bad_string(line[found.end() :], found.end() + 1, place)
            yield _Token(_kind(found[0], place), place)


def _kind(token: str, place: Place) -> type | None:
    """Which type a token has."""
    match token[0]:
        case "(":
            return tuple
        case ")":
            return None
        case '"':
            return str
    foreign = _FOREIGN.search(token)
    if foreign:
        raise place._replace(column=place.column + foreign.start()).error(
            f"the character {shown(foreign[0])} has no meaning here",
            _FOREIGN_HINTS.get(foreign[0], "text of that kind goes into double quotes"),
        )
    if token in _BOOLEANS:
        return bool
    if integer(token) is not None:
        return int
    if _INTEGER.fullmatch(token):
        raise place.error(
            f"the number {shown(token)} is too large",
            f"numbers are {MIN_INTEGER} to {MAX_INTEGER}",
        )
    if _NUMERIC.match(token) or token.lower() in _FLOAT_WORDS:
        raise place.error(f"{shown(token)} is not a number", _NUMBER_HINT)
    if not _SYMBOL.fullmatch(token):
        raise place.error(f"{shown(token)} is neither a name nor a keyword")
    return Symbol


def _bad_string(rest: str, column: int, place: Place) -> WwError:
    """The error about a string that begins at a place and makes no sense from a column on."""
    if len(rest) > 1:
        return place._replace(column=column).error(
            f"the escape '{rest[:2]}' is not known",
            r"in a string, \" is a quote, \\ a backslash, \n the end of a line, \t a tab",
        )
    return place.error("the string does not end", "it must end on the line where it begins")


def _balanced(tokens: Iterable[_Token]) -> list[_Token]:
    """Hold that every list ends, that none is too deep, and that there are not too many tokens."""
    found: list[_Token] = []
    opened: list[Place] = []
    for token in tokens:
        if len(found) == MAX_TOKENS:
            raise token.place.error(f"a table has at most {MAX_TOKENS} words and parentheses")
        found.append(token)
        if token.kind is tuple:
            if len(opened) == MAX_DEPTH:
                raise token.place.error(f"parentheses are at most {MAX_DEPTH} deep")
            opened.append(token.place)
        elif token.kind is None:
            if not opened:
                raise token.place.error("this ')' closes nothing", "remove it, or add a '('")
            opened.pop()
    if opened:
        raise opened[-1].error("this '(' is never closed", "add a ')'")
    return found


def _nodes(
    parsed: list[Any], tokens: Iterator[_Token], symbols: dict[type, type]
) -> tuple[Node, ...]:
    """Join what was parsed with where it is.

    Args:
        parsed: Data as sexpdata gives them.
        tokens: What the scan saw, from the first of the data on.
        symbols: The type of this module for the parser's type of symbols.

    Raises:
        WwError: If the parser gives another type than the scan saw: without this, a release
            that reads more than this one would widen what a table can say.
    """
    nodes = []
    for item in parsed:
        token = next(tokens)
        kind = type(item)
        if kind is list and token.kind is tuple:
            items = _nodes(item, tokens, symbols)
            nodes.append(Node(items, token.place, items[0].symbol if items else None))
            next(tokens)  # its closing parenthesis
        elif kind in symbols and token.kind is Symbol:
            nodes.append(Node(Symbol(str(item)), token.place))
        elif kind is token.kind:
            nodes.append(Node(item, token.place))
        else:
            raise token.place.error(f"this was read as {kind.__name__}")
    return tuple(nodes)

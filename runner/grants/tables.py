"""Tables: ``(fd :name "db" :fd 3 ...)`` and what leads to it, to requests and validators.

``reader`` says what a datum is and where, ``language`` what an expression means; here is what a
grant may say.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn, TypeVar

from runner.errors import EXIT_GRANT, WwError
from runner.grants.language import Predicate, Program, Value, describe, holds, run_table
from runner.grants.model import (
    MODES,
    NAME_HINT,
    NUMBER_LENGTH,
    TYPES,
    Request,
    is_name,
    shown,
)
from runner.grants.reader import Node, Symbol, read
from sandbox import FdType, Mode

MAX_GRANTS: Final = 256
KEYS: Final = ("name", "fd", "mode", "type", "target", "move", "cloexec", "pathlink")

_FORM: Final = "fd"
_SOURCE: Final = "fd"
_MAX_NUMBER: Final = 10**NUMBER_LENGTH - 1

_T = TypeVar("_T")


class Offer(NamedTuple):
    """One grant of a table that comes with its descriptors: a request without a source.

    Attributes:
        name: The name it is granted by.
        origin: Where the form is, for errors.
        mode: The asked mode; None for what the descriptor has.
        type: The asked type; None for what the kernel says.
        target: The asked number in the cell; None for the next free one.
        move: See ``Request``.
        cloexec: See ``Request``.
        pathlink: See ``Request``.
    """

    name: str
    origin: str
    mode: Mode | None = None
    type: FdType | None = None
    target: int | None = None
    move: bool = False
    cloexec: bool = True
    pathlink: bool = False

    def request(self, source: int) -> Request:
        """The request for the descriptor that came with this form."""
        return Request(source=source, **self._asdict())


class Facts(NamedTuple):
    """What a validator may ask of one grant: what it is, not what was asked for.

    Attributes:
        name: The name of the grant.
        fd: The source: the number in the process that ran ``ww``.
        mode: The mode that the cell gets.
        type: The type that the cell gets.
        target: The number in the cell.
    """

    name: str
    fd: int
    mode: str
    type: str
    target: int


class Validator:
    """A condition of a table on every grant of the run, from wherever the grant comes.

    Attributes:
        origin: Where it was registered, for errors.
    """

    def __init__(self, predicate: Predicate, program: Program) -> None:
        self.origin = str(predicate.place)
        self._predicate = predicate
        self._program = program

    def check(self, facts: Facts, origin: str) -> None:
        """Hold that a grant may be. Every call has the budget of one evaluation.

        Args:
            facts: The grant.
            origin: Where the grant was asked for.

        Raises:
            WwError: With code 65 if the condition is false; with code 2 if it comes to no
                answer.
        """
        if not holds(self._predicate, self._program, facts._asdict()):
            raise WwError(
                origin,
                f"'{facts.name}' is refused by the validation at {self.origin}",
                hint=f"it is fd={facts.fd} mode={facts.mode} type={facts.type}"
                f" target={facts.target}",
                code=EXIT_GRANT,
            )


class Table(NamedTuple):
    """What a table says.

    Attributes:
        requests: Its grants, in order.
        validators: Its conditions on every grant of the run, in order.
    """

    requests: list[Request]
    validators: list[Validator]


def read_table(data: bytes, where: str, variables: Mapping[str, str] | None = None) -> Table:
    """Read a table of grants, and compute what it computes.

    Args:
        data: The bytes of the file.
        where: The name of the file, as errors and origins show it.
        variables: What ``(env ...)`` may see: the variables that are allowed and set.

    Raises:
        WwError: With code 2 and ``where:line:column`` for whatever is wrong with it. Whether
            names and numbers fit together is the plan's to say.
    """
    requests: list[Request] = []

    def grant(form: Node, value_of: Callable[[Node], Value]) -> None:
        _count(form, len(requests))
        given = _Given(form, value_of)
        requests.append(given.offer().request(given.source()))

    program = Program(dict(variables or {}))
    run_table(_forms(read(data, where)), program, grant)
    return Table(requests, [Validator(predicate, program) for predicate in program.predicates])


def read_offer(data: bytes, where: str) -> list[Offer]:
    """Read a table whose descriptors come beside it: the k-th form belongs to the k-th of them.

    It holds ``(fd ...)`` forms without the key ``fd``, and computes nothing: it comes from
    another process, which needs no language to say what it sends.

    Args:
        data: The bytes of the message.
        where: The name of the peer, as errors and origins show it.

    Raises:
        WwError: With code 2 and ``where:line:column`` for whatever is wrong with it.
    """
    offers: list[Offer] = []
    for form in _forms(read(data, where)):
        _count(form, len(offers))
        if form.head != _FORM:
            raise form.error("this is not a form", "an offer holds (fd ...) forms and nothing else")
        given = _Given(form, _literal)
        given.refuse_source()
        offers.append(given.offer())
    return offers


def print_table(requests: Iterable[Request]) -> str:
    """Write requests as a table that reads back to them, but for their origins.

    Keys stand in the order of ``KEYS``, and only where they say something. Names are written as
    they are: a legal one needs no escapes.
    """
    forms = [f"  {print_form(request)}\n" for request in requests]
    return "".join(["(\n", *forms, ")\n"]) if forms else "()\n"


def print_form(request: Request, *, source: bool = True) -> str:
    """Write one request as a form.

    The name needs no quoting: see ``model.is_name``.

    Args:
        request: The grant.
        source: Whether to write ``:fd``; an offer has none.
    """
    words = [f'(fd :name "{request.name}"']
    if source:
        words.append(f":fd {request.source}")
    if request.mode is not None:
        words.append(f':mode "{request.mode}"')
    if request.type is not None:
        words.append(f':type "{request.type}"')
    if request.target is not None:
        words.append(f":target {request.target}")
    if request.move:
        words.append(":move true")
    if not request.cloexec:
        words.append(":cloexec false")
    if request.pathlink:
        words.append(":pathlink true")
    return " ".join(words) + ")"


def _forms(nodes: Sequence[Node]) -> Sequence[Node]:
    """The forms of ``( form* )`` or ``form*``.

    A form begins with a word. So a list that begins with a list, or is empty, is a whole table.
    """
    if not nodes or type(nodes[0].value) is not tuple:
        return nodes
    first = nodes[0].items
    if first and type(first[0].value) is not tuple:
        return nodes
    if len(nodes) > 1:
        raise nodes[1].error(
            f"text after the table that begins at {nodes[0].place}",
            "put all forms into one pair of parentheses, or none",
        )
    return first


def _count(form: Node, before: int) -> None:
    """Hold that another grant may follow."""
    if before == MAX_GRANTS:
        raise form.error(f"a table has at most {MAX_GRANTS} grants")


def _literal(node: Node) -> Value:
    """The value of what computes nothing."""
    datum = node.value
    if isinstance(datum, Symbol):
        raise node.error(f"{shown(datum.text)} is not a value", "text goes into double quotes")
    if isinstance(datum, tuple):
        raise node.error("an offer computes nothing", "write the value itself")
    return datum


def _keyword(node: Node) -> str | None:
    """The key that a keyword such as ``:mode`` names; None if this is not one."""
    return node.symbol[1:] if node.symbol is not None and node.symbol.startswith(":") else None


class _Given:
    """The keys of one ``(fd ...)`` form and their values, each checked when it is asked for."""

    def __init__(self, form: Node, value_of: Callable[[Node], Value]) -> None:
        self._form = form
        self._keys: dict[str, Node] = {}
        self._nodes: dict[str, Node] = {}
        self._values: dict[str, Value] = {}
        items = iter(form.items[1:])
        for item in items:
            key = _keyword(item)
            if key is not None:
                value = next(items, None)
                if value is None or _keyword(value) is not None:
                    raise item.error(f"the key {shown(key)} has no value", f"write :{key} VALUE")
                self._take(key, item, value)
            else:
                self._take_list(item)
        for key, node in self._nodes.items():
            self._values[key] = value_of(node)

    def _take_list(self, item: Node) -> None:
        """Take ``(key value)``."""
        key = item.head
        if key is None or key.startswith(":"):
            raise item.error("a key is expected here", "write :KEY VALUE or (KEY VALUE)")
        if key in KEYS and len(item.items) != 2:
            raise item.error(
                f"the key {shown(key)} has {len(item.items) - 1} values", f"write ({key} VALUE)"
            )
        self._take(key, item.items[0], item.items[-1])

    def _take(self, key: str, node: Node, value: Node) -> None:
        """Take a key and the expression of its value."""
        if key not in KEYS:
            raise node.error(f"unknown key {shown(key)}", f"the keys are {', '.join(KEYS)}")
        if key in self._keys:
            raise node.error(
                f"the key {shown(key)} is given twice",
                f"it is first given at {self._keys[key].place}",
            )
        self._keys[key] = node
        self._nodes[key] = value

    def offer(self) -> Offer:
        """Everything but the source."""
        return Offer(
            name=self._name(),
            origin=str(self._form.place),
            mode=self._choice("mode", MODES),
            type=self._choice("type", TYPES),
            target=self._number("target"),
            move=self._boolean("move", default=False),
            cloexec=self._boolean("cloexec", default=True),
            pathlink=self._boolean("pathlink", default=False),
        )

    def source(self) -> int:
        """The source."""
        number = self._number(_SOURCE)
        if number is None:
            raise self._form.error("the grant has no fd", "add :fd NUM")
        return number

    def refuse_source(self) -> None:
        """Hold that there is no source."""
        if _SOURCE in self._keys:
            raise self._keys[_SOURCE].error(
                "an offer has no key 'fd'", "the k-th form belongs to the k-th descriptor sent"
            )

    def _name(self) -> str:
        if "name" not in self._values:
            raise self._form.error("the grant has no name", 'add :name "NAME"')
        name = self._values["name"]
        if not isinstance(name, str):
            self._wrong("name", "the name is a string")
        if not is_name(name):
            raise self._nodes["name"].error(f"{shown(name)} is not a legal name", NAME_HINT)
        return name

    def _choice(self, key: str, choices: Mapping[str, _T]) -> _T | None:
        """One of a few words, if it is given."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or value not in choices:
            words = ", ".join(f'"{word}"' for word in choices)
            self._wrong(key, f"{key} is one of {words}")
        return choices[value]

    def _number(self, key: str) -> int | None:
        """The number of a descriptor, if it is given."""
        value = self._values.get(key)
        if value is None:
            return None
        # A boolean is an integer in Python, and descriptor 1 is not what `true` means.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
            self._wrong(key, f"{key} is a number from 0 to {_MAX_NUMBER}")
        return value

    def _boolean(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, f"{key} is true or false")
        return value

    def _wrong(self, key: str, hint: str) -> NoReturn:
        """Refuse the value of a key."""
        raise self._nodes[key].error(f"{key} cannot be {describe(self._values[key])}", hint)

"""The language of computed tables: pure, and bounded in time, memory and depth.

A *form* makes grants, an *expression* makes a value; ``if``, ``cond``, ``let``, ``for`` and calls
are either, by where they stand. Values are integers of 64 bits, strings, booleans and lists.
There is no input or output, no assignment, and nothing to loop with but ``for`` over a list and
functions that call themselves; each evaluation has a budget that ends these too.

The meaning follows Scheme where it has one: lexical scope, only ``false`` is false, ``let`` binds
in parallel, and a call in tail position needs no depth. Types are never converted silently.

No step may take time that grows with the table and is not paid for: whatever goes over a list or
a string spends steps or cells for its length, and what a short-circuit skips is not even copied.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import ge, gt, le, lt
from typing import Final, NamedTuple, TypeAlias

from runner.grants.model import shown
from runner.grants.reader import (
    MAX_INTEGER,
    MIN_INTEGER,
    Node,
    Place,
    Symbol,
    integer,
)

MAX_STEPS: Final = 100_000
# Of all conditions of a table on all grants together: there may be many of both.
MAX_CONDITION_STEPS: Final = 10 * MAX_STEPS
MAX_CELLS: Final = 10_000
# Each level is at most four frames of the interpreter, which allows 1000 and has its own callers.
MAX_DEPTH: Final = 128
CELL_CHARACTERS: Final = 16  # a string takes one cell, and one more for each of these

# What a predicate may ask of a grant. They are bound by name, so that two predicates which list
# them differently cannot mean different things.
PREDICATE_NAMES: Final = ("name", "fd", "mode", "type", "target")

Value: TypeAlias = "bool | int | str | tuple[Value, ...]"

_GRANT: Final = "fd"
_ELSE: Final = "else"
# The one name of the reference system under which a definition is a predicate.
_REFERENCE_PREDICATE: Final = "validate-fd-access"


class Function(NamedTuple):
    """What ``defn`` makes. It is not a value: it can be called and nothing else."""

    parameters: tuple[str, ...]
    body: tuple[Node, ...]


class Scope(NamedTuple):
    """Names in reach, and the scope around them."""

    names: Mapping[str, "Value | Function"]
    outer: "Scope | None"


class Predicate(NamedTuple):
    """What ``validate`` makes: a condition on every grant of the run.

    Attributes:
        parameters: Some of ``PREDICATE_NAMES``.
        condition: The expression, true for a grant that may be.
        place: Where it was registered.
    """

    parameters: tuple[str, ...]
    condition: Node
    place: Place


class _Tail(NamedTuple):
    """What is left to evaluate once a choice has been made or a name bound."""

    body: Sequence[Node]
    scope: Scope


class Program:
    """A table's definitions: what is known once its forms have been evaluated.

    Attributes:
        variables: The environment that the table may see.
        predicates: What ``validate`` has registered, in order.
        condition_steps: How many steps are left for these.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.predicates: list[Predicate] = []
        self.condition_steps = MAX_CONDITION_STEPS
        self._names: dict[str, Value | Function] = {}
        self._places: dict[str, Place] = {}
        self.scope = Scope(self._names, None)

    def define(self, name: Node, value: "Value | Function") -> None:
        """Give a name its only meaning at the top of the table.

        Raises:
            WwError: With code 2 if the name has one, or cannot have one.
        """
        text = _binding(name)
        if text in self._names:
            raise name.error(
                f"{shown(text)} is already defined at {self._places[text]}", "rename one of them"
            )
        self._names[text] = value
        self._places[text] = name.place


# Takes a ``(fd ...)`` form and what gives the values of the expressions in it.
GrantMaker: TypeAlias = Callable[[Node, Callable[[Node], Value]], None]


def run_table(forms: Sequence[Node], program: Program, grant: GrantMaker) -> None:
    """Evaluate a table, within one budget.

    Args:
        forms: The table.
        program: Takes the definitions and predicates.
        grant: Called for each grant, in order.

    Raises:
        WwError: With code 2 and the place, if a form has no meaning or a limit is exceeded.
    """
    evaluation = _FormEvaluation(program, grant)
    for form in forms:
        if form.head in _DEFINITIONS:
            evaluation.spend(form)
            _DEFINITIONS[form.head](evaluation, form)
        else:
            evaluation.run((form,), program.scope)


def holds(predicate: Predicate, program: Program, facts: Mapping[str, Value]) -> bool:
    """Whether a predicate allows a grant, within a budget of its own and one of its table.

    Args:
        predicate: The predicate.
        program: The table that it comes from.
        facts: A value for each of ``PREDICATE_NAMES``.

    Raises:
        WwError: With code 2 and the place, if the condition has no meaning for this grant, does
            not come out as true or false, or exceeds a limit.
    """
    names = {name: facts[name] for name in predicate.parameters}
    evaluation = _Evaluation(program)
    result = evaluation.value(predicate.condition, Scope(names, program.scope))
    program.condition_steps -= evaluation.spent
    if program.condition_steps < 0:
        raise predicate.condition.error(
            f"the validations of the table take more than {MAX_CONDITION_STEPS} steps together",
            "write fewer, or simpler ones",
        )
    if type(result) is not bool:
        raise predicate.condition.error(
            f"the condition gives {describe(result)} for a grant", "it must give true or false"
        )
    return result


def describe(value: Value) -> str:
    """A value as errors show it, with its type."""
    match value:
        case bool():
            return f"the boolean {_text(value)}"
        case int():
            return f"the number {value}"
        case str():
            return f"the string {shown(value)}"
        case _:
            return f"a list of {len(value)}"


class _Evaluation:
    """One evaluation and what is left of its budget.

    It calls itself only for what is not in tail position, and counts how often, so that Python's
    own limit is never met.

    Attributes:
        program: The definitions in reach.
        depth: How many evaluations wait for another one.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._steps = MAX_STEPS
        self._cells = MAX_CELLS
        self.depth = 0

    @property
    def spent(self) -> int:
        """How many steps were taken."""
        return MAX_STEPS - self._steps

    def spend(self, node: Node, steps: int = 1) -> None:
        """Take steps off the budget."""
        self._steps -= steps
        if self._steps < 0:
            raise node.error(
                f"the table takes more than {MAX_STEPS} steps",
                "does a function call itself without end?",
            )

    def allocate(self, node: Node, cells: int) -> None:
        """Take cells off the budget, before what needs them is made."""
        self._cells -= cells
        if self._cells < 0:
            raise node.error(
                f"the table makes more than {MAX_CELLS} cells of data",
                f"a cell is an element of a list, or {CELL_CHARACTERS} characters of a string",
            )

    def value(self, node: Node, scope: Scope) -> Value:
        """Evaluate an expression."""
        self.enter(node)
        while True:
            self.spend(node)
            datum = node.value
            if isinstance(datum, Symbol):
                result = self._named(node, datum.text, scope)
                break
            if not isinstance(datum, tuple):
                result = datum
                break
            tail = self.tail(node, scope)
            if tail is None:
                result = self._apply(node, scope)
                break
            if len(tail.body) != 1:
                raise node.error(_no_value(node, tail.body))
            node, scope = tail.body[0], tail.scope
        self.depth -= 1
        return result

    def enter(self, node: Node) -> None:
        """Go one level deeper; who enters takes it off ``depth`` again."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise node.error(
                f"the evaluation is more than {MAX_DEPTH} deep",
                "calls that are the last thing a function does need no depth",
            )

    def _named(self, node: Node, name: str, scope: Scope) -> Value:
        """The value of a name."""
        found = _lookup(node, name, scope)
        if isinstance(found, Function):
            raise node.error(f"{shown(name)} is a function", "functions can only be called")
        return found

    def tail(self, node: Node, scope: Scope) -> _Tail | None:
        """Evaluate a choice, a binding or a call up to its body; None for everything else."""
        head = node.head
        if head in _BRANCHES:
            return _BRANCHES[head](self, node, scope)
        if head is None or head in RESERVED:
            return None
        return _call(self, node, head, scope)

    def _apply(self, node: Node, scope: Scope) -> Value:
        """The value of an operation."""
        head = node.head
        if head in _LAZY:
            return _LAZY[head](self, node, scope)
        if head not in _OPERATIONS:
            raise node.error(_no_expression(node))
        operation, least, most = _OPERATIONS[head]
        _arity(node, least, most)
        values = []
        for argument in node.items[1:]:
            values.append(self.value(argument, scope))
        return operation(self, node, values)


class _FormEvaluation(_Evaluation):
    """An evaluation of a whole table, where forms may make grants."""

    def __init__(self, program: Program, grant: GrantMaker) -> None:
        super().__init__(program)
        self._grant = grant

    def run(self, forms: Sequence[Node], scope: Scope) -> None:
        """Evaluate forms in order, one at least, for their grants."""
        self.enter(forms[0])
        while forms:
            for form in forms[:-1]:
                self.run((form,), scope)
            forms, scope = self._form(forms[-1], scope)
        self.depth -= 1

    def _form(self, form: Node, scope: Scope) -> _Tail:
        """Evaluate one form up to what is in its tail position."""
        self.spend(form)
        head = form.head
        if head == _GRANT:
            self._grant(form, lambda node: self.value(node, scope))
            return _Tail((), scope)
        if head == "for":
            for inner in _iterations(self, form, scope):
                self.run(form.items[2:], inner)
            return _Tail((), scope)
        tail = self.tail(form, scope)
        if tail is None:
            raise form.error(_no_form(form), "a form is (fd ...), or one that leads to it")
        return tail


# --- errors about what stands in the wrong place -------------------------------------------------


def _no_form(form: Node) -> str:
    """Why something is no form."""
    head = form.head
    if head in _DEFINITIONS:
        return f"({head} ...) stands at the top of a table only"
    if head in _LAZY or head in _OPERATIONS:
        return f"({head} ...) gives a value, and no grant"
    return "this is not a form"


def _no_expression(node: Node) -> str:
    """Why something is no expression."""
    head = node.head
    if head in _DEFINITIONS:
        return f"({head} ...) stands at the top of a table only"
    if head == _GRANT:
        return "(fd ...) is a grant and not a value"
    if not node.items:
        return "() is not an expression"
    return "a list must begin with the name of a function or operation"


def _no_value(node: Node, body: Sequence[Node]) -> str:
    """Why a body gives no value."""
    if body:
        return f"({node.head} ...) has {len(body)} values here, where one is needed"
    return f"({node.head} ...) comes to an end without a value"


# --- the parts of forms --------------------------------------------------------------------------


def _arity(node: Node, least: int, most: int | None) -> None:
    """Hold how many arguments there are; None for no limit."""
    count = len(node.items) - 1
    if count >= least and (most is None or count <= most):
        return
    if least == most:
        wanted = f"exactly {least}"
    elif most is None:
        wanted = f"at least {least}"
    else:
        wanted = f"{least} to {most}"
    raise node.error(f"({node.head} ...) has {count} arguments", f"it takes {wanted}")


def _binding(node: Node) -> str:
    """A name that may be given a meaning."""
    name = node.symbol
    if name is None or name.startswith(":"):
        raise node.error("a name is expected here")
    if name in RESERVED:
        raise node.error(f"{shown(name)} belongs to the language", "choose another name")
    return name


def _bindings(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Names that are given a meaning together."""
    names: dict[str, None] = {}
    for node in nodes:
        name = _binding(node)
        if name in names:
            raise node.error(f"{shown(name)} stands here twice", "rename one of them")
        names[name] = None
    return tuple(names)


def _list(node: Node, what: str) -> tuple[Node, ...]:
    """A list that is part of the syntax."""
    if type(node.value) is not tuple:
        raise node.error(f"{what} is expected here")
    return node.value


def _lookup(node: Node, name: str, scope: Scope) -> "Value | Function":
    """What the name that stands at a node stands for."""
    around: Scope | None = scope
    while around is not None:
        if name in around.names:
            return around.names[name]
        around = around.outer
    if name.startswith(":"):
        raise node.error(
            f"the keyword {shown(name)} stands where a value is expected",
            "keywords name the keys of (fd ...), each with one value",
        )
    if name in RESERVED:
        raise node.error(f"{shown(name)} belongs to the language and has no value")
    raise node.error(f"{shown(name)} is not defined", "text goes into double quotes")


# --- definitions, at the top of a table ----------------------------------------------------------


def _def(evaluation: _Evaluation, node: Node) -> None:
    """``(def name expr)``, or the reference system's ``(def validate-fd-access (...) expr)``."""
    items = node.items
    if len(items) > 1 and items[1].symbol == _REFERENCE_PREDICATE:
        _arity(node, 3, 3)
        _predicate(evaluation, node, items[2], items[3])
        return
    _arity(node, 2, 2)
    evaluation.program.define(items[1], evaluation.value(items[2], evaluation.program.scope))


def _defn(evaluation: _Evaluation, node: Node) -> None:
    """``(defn f (args) body...)``."""
    _arity(node, 3, None)
    _, name, parameters, *body = node.items
    names = _bindings(_list(parameters, "a list of parameters"))
    evaluation.program.define(name, Function(names, tuple(body)))


def _validate(evaluation: _Evaluation, node: Node) -> None:
    """``(validate (name fd mode type target) expr)``."""
    _arity(node, 2, 2)
    _predicate(evaluation, node, node.items[1], node.items[2])


def _predicate(evaluation: _Evaluation, node: Node, parameters: Node, condition: Node) -> None:
    """Register a predicate."""
    names: list[str] = []
    for parameter in _list(parameters, "a list of parameters"):
        name = parameter.symbol or ""
        if name not in PREDICATE_NAMES:
            raise parameter.error(
                "this is not what a validation is given",
                f"it is given, by name, {', '.join(PREDICATE_NAMES)}",
            )
        if name in names:
            raise parameter.error(f"{shown(name)} stands here twice", "remove one of them")
        names.append(name)
    evaluation.program.predicates.append(Predicate(tuple(names), condition, node.place))


# --- choices, bindings and calls: what has a tail ------------------------------------------------


def _if(evaluation: _Evaluation, node: Node, scope: Scope) -> _Tail:
    """``(if c a b)``; without ``b``, a form that makes nothing."""
    _arity(node, 2, 3)
    _, condition, *branches = node.items
    if evaluation.value(condition, scope) is not False:
        return _Tail(branches[:1], scope)
    return _Tail(branches[1:], scope)


def _cond(evaluation: _Evaluation, node: Node, scope: Scope) -> _Tail:
    """``(cond (c e)... (else e))``; without a clause that holds, a form that makes nothing."""
    for clause in islice(node.items, 1, None):
        if len(_list(clause, "a clause (condition expression)")) < 2:
            raise clause.error("a clause has a condition and what follows from it")
        condition = clause.items[0]
        if condition.symbol == _ELSE:
            if clause is not node.items[-1]:
                raise clause.error("(else ...) is the last clause", "nothing after it can hold")
            return _Tail(clause.items[1:], scope)
        if evaluation.value(condition, scope) is not False:
            return _Tail(clause.items[1:], scope)
    return _Tail((), scope)


def _let(evaluation: _Evaluation, node: Node, scope: Scope) -> _Tail:
    """``(let ((n e)...) body...)``; no ``e`` sees any ``n``."""
    _arity(node, 2, None)
    _, bindings, *body = node.items
    pairs = _list(bindings, "a list of (name expression)")
    for pair in pairs:
        if len(_list(pair, "(name expression)")) != 2:
            raise pair.error("(name expression) is expected here")
    names = _bindings([pair.items[0] for pair in pairs])
    inner: dict[str, Value | Function] = {}
    for name, pair in zip(names, pairs, strict=True):
        inner[name] = evaluation.value(pair.items[1], scope)
    return _Tail(body, Scope(inner, scope))


def _call(evaluation: _Evaluation, node: Node, name: str, scope: Scope) -> _Tail:
    """``(f argument...)``."""
    head, *arguments = node.items
    function = _lookup(head, name, scope)
    if not isinstance(function, Function):
        raise head.error(f"{shown(name)} is not a function: it is {describe(function)}")
    _arity(node, len(function.parameters), len(function.parameters))
    inner: dict[str, Value | Function] = {}
    for parameter, argument in zip(function.parameters, arguments, strict=True):
        inner[parameter] = evaluation.value(argument, scope)
    return _Tail(function.body, Scope(inner, evaluation.program.scope))


# --- operations that do not evaluate all they are given ------------------------------------------


def _iterations(evaluation: _Evaluation, node: Node, scope: Scope) -> Iterator[Scope]:
    """The scopes of ``(for (i list) body...)``, one for each element."""
    _arity(node, 2, None)
    header = _list(node.items[1], "(name list)")
    if len(header) != 2:
        raise node.items[1].error("(name list) is expected here")
    name = _binding(header[0])
    values = evaluation.value(header[1], scope)
    if not isinstance(values, tuple):
        raise header[1].error(f"this is {describe(values)}", "for goes over a list")
    for value in values:
        yield Scope({name: value}, scope)


def _for(evaluation: _Evaluation, node: Node, scope: Scope) -> Value:
    """``(for (i list) expr)`` as an expression: the list of what comes out."""
    _arity(node, 2, 2)
    values = []
    for inner in _iterations(evaluation, node, scope):
        evaluation.allocate(node, 1)
        values.append(evaluation.value(node.items[2], inner))
    return tuple(values)


def _and(evaluation: _Evaluation, node: Node, scope: Scope) -> Value:
    """``(and e...)``: the first that is false, else the last; true if there is none."""
    value: Value = True
    for argument in islice(node.items, 1, None):
        value = evaluation.value(argument, scope)
        if value is False:
            break
    return value


def _or(evaluation: _Evaluation, node: Node, scope: Scope) -> Value:
    """``(or e...)``: the first that is not false, else false."""
    for argument in islice(node.items, 1, None):
        value = evaluation.value(argument, scope)
        if value is not False:
            return value
    return False


def _env(evaluation: _Evaluation, node: Node, scope: Scope) -> Value:
    """``(env "NAME" default)``; the default is evaluated only where it is needed."""
    _arity(node, 1, 2)
    _, name, *default = node.items
    key = evaluation.value(name, scope)
    if not isinstance(key, str):
        raise name.error(f"this is {describe(key)}", "the name of a variable is a string")
    found = evaluation.program.variables.get(key)
    if found is not None:
        evaluation.allocate(node, _string_cells(len(found)))
        return found
    if not default:
        raise node.error(
            f"the variable {shown(key)} is not set, or the table may not see it",
            "add a default, or set the variable and allow it with --table-env",
        )
    return evaluation.value(default[0], scope)


# --- operations ----------------------------------------------------------------------------------


def _integers(node: Node, values: Sequence[Value]) -> list[int]:
    """Hold that all arguments are integers; a boolean is none."""
    numbers = []
    for argument, value in zip(node.items[1:], values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise argument.error(f"this is {describe(value)}", f"({node.head} ...) takes numbers")
        numbers.append(value)
    return numbers


def _bounded(node: Node, number: int) -> int:
    """Hold that a result has at most 64 bits."""
    if not MIN_INTEGER <= number <= MAX_INTEGER:
        raise node.error("the result is too large", f"numbers are {MIN_INTEGER} to {MAX_INTEGER}")
    return number


def _add(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    return _bounded(node, sum(_integers(node, values)))


def _subtract(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    first, *others = _integers(node, values)
    return _bounded(node, first - sum(others) if others else -first)


def _multiply(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    product = 1
    for number in _integers(node, values):
        product = _bounded(node, product * number)
    return product


def _division(node: Node, values: Sequence[Value]) -> tuple[int, int]:
    """The two sides of a division."""
    dividend, divisor = _integers(node, values)
    if divisor == 0:
        raise node.items[2].error("this divides by zero")
    return dividend, divisor


def _divide(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    dividend, divisor = _division(node, values)
    if dividend % divisor:
        raise node.error(
            f"{dividend} is not a multiple of {divisor}, and there are no fractions",
            "write (quotient a b)",
        )
    return _bounded(node, dividend // divisor)


def _quotient(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    dividend, divisor = _division(node, values)
    quotient = abs(dividend) // abs(divisor)  # towards zero, as in Scheme
    return _bounded(node, quotient if (dividend < 0) == (divisor < 0) else -quotient)


def _remainder(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    dividend, divisor = _division(node, values)
    remainder = abs(dividend) % abs(divisor)  # with the sign of the dividend, as in Scheme
    return -remainder if dividend < 0 else remainder


def _modulo(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    dividend, divisor = _division(node, values)
    return dividend % divisor  # with the sign of the divisor, in Scheme as in Python


def _same(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> bool:
    """Whether all arguments are equal; what has not one type cannot be compared."""
    kind = type(values[0])
    for argument, value in zip(node.items[1:], values, strict=True):
        if isinstance(value, tuple):
            raise argument.error("lists cannot be compared")
        if type(value) is not kind:
            raise argument.error(
                f"this is {describe(value)}, and the first argument {describe(values[0])}",
                "what has different types cannot be compared",
            )
        if isinstance(value, str):
            evaluation.spend(node, _string_cells(len(value)))
    return all(value == values[0] for value in values)


def _equal(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    return _same(evaluation, node, values)


def _unequal(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    return not _same(evaluation, node, values)


def _ordered(compare: Callable[[int, int], bool]) -> "_Operation":
    """An operation that holds if it does between all neighbours, as in Scheme."""

    def operation(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
        numbers = _integers(node, values)
        return all(map(compare, numbers, numbers[1:]))

    return operation


def _not(_evaluation: _Evaluation, _node: Node, values: Sequence[Value]) -> Value:
    return values[0] is False


def _range(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    """From the first argument up to, and without, the second."""
    first, end = _integers(node, values)
    evaluation.allocate(node, max(0, end - first))
    return tuple(range(first, end))


def _make_list(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    evaluation.allocate(node, len(values))
    return tuple(values)


def _string_cells(length: int) -> int:
    """How many cells a string takes."""
    return 1 + length // CELL_CHARACTERS


def _join(evaluation: _Evaluation, node: Node, texts: Sequence[str]) -> str:
    """Join texts, on the budget."""
    evaluation.allocate(node, _string_cells(sum(map(len, texts))))
    return "".join(texts)


def _text(value: bool | int | str) -> str:
    """A value as text, as it would be written in a table but for the quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _str(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    texts = []
    for argument, value in zip(node.items[1:], values, strict=True):
        if isinstance(value, tuple):
            raise argument.error(f"this is {describe(value)}", "a list has no text")
        texts.append(_text(value))
    return _join(evaluation, node, texts)


def _concat(evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    """One list of all elements of lists, or one string of strings."""
    texts = [value for value in values if isinstance(value, str)]
    if texts and len(texts) == len(values):
        return _join(evaluation, node, texts)
    lists: list[tuple[Value, ...]] = []
    for argument, value in zip(node.items[1:], values, strict=True):
        if not isinstance(value, tuple):
            raise argument.error(
                f"this is {describe(value)}", "concat takes lists only, or strings only"
            )
        lists.append(value)
    evaluation.allocate(node, sum(map(len, lists)))
    return tuple(element for elements in lists for element in elements)


def _int(_evaluation: _Evaluation, node: Node, values: Sequence[Value]) -> Value:
    """The number that a string from the environment is."""
    value = values[0]
    number = integer(value) if isinstance(value, str) else None
    if number is None:
        raise node.items[1].error(
            f"this is {describe(value)}", "int takes a string of plain decimal digits"
        )
    return number


_Operation: TypeAlias = Callable[[_Evaluation, Node, Sequence[Value]], Value]

_DEFINITIONS: Final[Mapping[str | None, Callable[[_Evaluation, Node], None]]] = {
    "def": _def,
    "defn": _defn,
    "validate": _validate,
}
_BRANCHES: Final[Mapping[str | None, Callable[[_Evaluation, Node, Scope], _Tail]]] = {
    "if": _if,
    "cond": _cond,
    "let": _let,
}
_LAZY: Final[Mapping[str | None, Callable[[_Evaluation, Node, Scope], Value]]] = {
    "for": _for,
    "and": _and,
    "or": _or,
    "env": _env,
}
# Each with the least and the largest number of its arguments; None for no limit.
_OPERATIONS: Final[Mapping[str | None, tuple[_Operation, int, int | None]]] = {
    "+": (_add, 0, None),
    "-": (_subtract, 1, None),
    "*": (_multiply, 0, None),
    "/": (_divide, 2, 2),
    "quotient": (_quotient, 2, 2),
    "remainder": (_remainder, 2, 2),
    "modulo": (_modulo, 2, 2),
    "=": (_equal, 2, None),
    "!=": (_unequal, 2, 2),
    "<": (_ordered(lt), 2, None),
    "<=": (_ordered(le), 2, None),
    ">": (_ordered(gt), 2, None),
    ">=": (_ordered(ge), 2, None),
    "not": (_not, 1, 1),
    "range": (_range, 2, 2),
    "list": (_make_list, 0, None),
    "concat": (_concat, 0, None),
    "str": (_str, 0, None),
    "int": (_int, 1, 1),
}
# No name may be given one of these meanings anew: a table says what it seems to say.
RESERVED: Final = frozenset(
    {_GRANT, _ELSE, _REFERENCE_PREDICATE, *_DEFINITIONS, *_BRANCHES, *_LAZY, *_OPERATIONS}
)

"""Tuples with named fields, without what :class:`typing.NamedTuple` takes to import.

``ww run`` is over in a few milliseconds, and :mod:`typing` alone takes three of them, with ``re``,
``functools`` and ``collections`` below it. What a class says is the same::

    class Point(Record):
        x: int
        y: int = 0

A type checker sees :class:`typing.NamedTuple` itself, so its rules hold: no class is a base of
another. At run time a record has the same methods and is equal to a tuple of the same values;
making one takes a microsecond more.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    # What collections.namedtuple makes its attributes of, where there is such a thing.
    _field: Callable[[int, str], object]
else:
    try:
        from _collections import _tuplegetter as _field
    except ImportError:
        from operator import itemgetter

        def _field(number: int, doc: str) -> object:
            return property(itemgetter(number), doc=doc)


class _Fields(type):
    """Makes a class of the fields that it declares."""

    _fields: tuple[str, ...]
    _field_defaults: dict[str, Any]
    __match_args__: tuple[str, ...]

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /) -> _Fields:
        made = super().__new__(cls, name, bases, {"__slots__": (), **namespace})
        if bases == (tuple,):
            return made
        fields = tuple(made.__annotations__)
        defaults = {field: namespace[field] for field in fields if field in namespace}
        if tuple(defaults) != fields[len(fields) - len(defaults) :]:
            raise TypeError(f"{name}: a field without a default follows one with a default")
        made._fields = fields
        made.__match_args__ = fields  # type: ignore[misc]
        made._field_defaults = defaults
        for number, field in enumerate(fields):
            setattr(made, field, _field(number, f"Alias for field number {number}"))
        return made


class _Record(tuple, metaclass=_Fields):  # type: ignore[type-arg]
    """A tuple whose items have names."""

    def __new__(cls, *values: Any, **named: Any) -> _Record:  # noqa: ANN401 - as declared
        """Make one of its fields by position, by name, and by default."""
        if named or len(values) != len(cls._fields):
            return tuple.__new__(cls, _complete(cls, values, named))
        return tuple.__new__(cls, values)

    def __repr__(self) -> str:
        """Write it as it could be made."""
        fields = (f"{field}={value!r}" for field, value in self._asdict().items())
        return f"{type(self).__name__}({', '.join(fields)})"

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Travel between processes, and be copied."""
        return tuple(self)

    def _asdict(self) -> dict[str, Any]:
        """Return its fields by name."""
        return dict(zip(type(self)._fields, self, strict=True))

    def _replace(self, /, **named: Any) -> _Record:  # noqa: ANN401 - as declared
        """Return one that differs in some fields."""
        return type(self)(**{**self._asdict(), **named})

    @classmethod
    def _make(cls, values: Iterable[Any]) -> _Record:
        """Make one of all its fields in their order."""
        made = tuple(values)
        if len(made) != len(cls._fields):
            raise TypeError(f"{cls.__name__}: {len(made)} values for {len(cls._fields)} fields")
        return cls(*made)


def _complete(cls: _Fields, values: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Return the values of all fields, in their order.

    Raises:
        TypeError: If one is missing, given twice or unknown.
    """
    fields = cls._fields
    made = dict(zip(fields, values))  # noqa: B905 - the lengths are compared below
    if len(values) > len(fields):
        raise TypeError(f"{cls.__name__}: {len(values)} values for {len(fields)} fields")
    for field in named:
        if field in made or field not in fields:
            what = "given twice" if field in made else "unknown"
            raise TypeError(f"{cls.__name__}: the field {field!r} is {what}")
    made.update(named)
    try:
        return [made[f] if f in made else cls._field_defaults[f] for f in fields]
    except KeyError as error:
        raise TypeError(f"{cls.__name__}: the field {error} is missing") from None


if TYPE_CHECKING:
    from typing import NamedTuple as Record
else:
    Record = _Record
    Record.__name__ = Record.__qualname__ = "Record"

__all__ = ["Record"]

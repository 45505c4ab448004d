"""Records are what named tuples are."""

import copy
import pickle
from typing import Any, NamedTuple

import pytest

from sandbox.records import Record


class Named(NamedTuple):
    """What is meant."""

    first: int
    second: str = "two"
    third: tuple[int, ...] = ()

    @property
    def double(self) -> int:
        """Something of its own."""
        return 2 * self.first


class Recorded(Record):
    """What is meant."""

    first: int
    second: str = "two"
    third: tuple[int, ...] = ()

    @property
    def double(self) -> int:
        """Something of its own."""
        return 2 * self.first


BOTH = pytest.mark.parametrize("kind", [Named, Recorded])


@BOTH
def test_it_is_made_of_its_fields(kind: Any) -> None:
    assert kind(1) == (1, "two", ())
    assert kind(1, "x") == (1, "x", ())
    assert kind(1, third=(3,)) == (1, "two", (3,))
    assert kind(third=(3,), first=1, second="x") == (1, "x", (3,))
    assert kind._make([1, "x", (3,)]) == (1, "x", (3,))


@BOTH
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((1, "x", (), 4), {}),
        ((1,), {"first": 1}),
        ((1,), {"fourth": 1}),
        ((), {"second": "x"}),
        ((1, "x", ()), {"third": ()}),
    ],
    ids=repr,
)
def test_it_is_made_of_nothing_else(
    kind: Any, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)


@BOTH
def test_it_is_a_tuple_with_names(kind: Any) -> None:
    made = kind(5, "x", (1, 2))
    assert (made.first, made.second, made.third, made.double) == (5, "x", (1, 2), 10)
    assert hash(made) == hash((5, "x", (1, 2)))
    assert repr(made) == f"{kind.__name__}(first=5, second='x', third=(1, 2))"
    assert made._asdict() == {"first": 5, "second": "x", "third": (1, 2)}
    assert kind._fields == ("first", "second", "third")
    assert kind._field_defaults == {"second": "two", "third": ()}
    assert kind.__doc__ == "What is meant."
    assert kind.__match_args__ == kind._fields
    assert isinstance(made, tuple)


@BOTH
def test_one_that_differs_is_made_of_it(kind: Any) -> None:
    made = kind(5)
    assert made._replace(second="x") == (5, "x", ())
    assert type(made._replace(second="x")) is kind
    assert made == (5, "two", ())
    with pytest.raises((TypeError, ValueError)):
        made._replace(fourth=1)
    with pytest.raises((TypeError, ValueError)):
        kind._make([1, 2])


@BOTH
def test_it_cannot_be_changed(kind: Any) -> None:
    made = kind(5)
    for name in ("first", "double", "fourth"):
        with pytest.raises(AttributeError):
            setattr(made, name, 1)
    assert made == (5, "two", ())


@BOTH
def test_it_travels(kind: Any) -> None:
    made = kind(5, "x")
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert other == made
        assert type(other) is kind


def test_a_field_that_has_to_be_given_comes_before_those_that_do_not() -> None:
    for base in (NamedTuple, Record):
        with pytest.raises(TypeError):
            exec("class Wrong(base):\n a: int = 1\n b: int", {"base": base})

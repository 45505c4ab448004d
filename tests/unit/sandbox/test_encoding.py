"""What is written without `json` is what `json` writes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.encoding import encode

# With lone surrogates, as Python has bytes of arguments that are no UTF-8.
TEXTS = st.text(st.characters(), max_size=20)
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    )
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
)


@given(PLAIN)
def test_it_is_what_json_writes(value: Any) -> None:
    assert encode(value) == json.dumps(value).encode()


@pytest.mark.parametrize("value", [{}, b"bytes", {1}, [object()]], ids=lambda v: type(v).__name__)
def test_nothing_else_is_written(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)

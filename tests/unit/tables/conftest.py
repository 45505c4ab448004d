"""What the tests of tables share: tables as text, with a mark where an error must point."""

from collections.abc import Callable, Mapping

import pytest

from runner.errors import EXIT_USAGE, WwError
from runner.grants.tables import Table, read_table

MARK = "§"

Read = Callable[[bytes, str], object]
Refused = Callable[..., WwError]


def refused_by(read: Read, text: str, what: str) -> WwError:
    """Hold that a table is refused at the mark, and say what about."""
    before, mark, after = text.partition(MARK)
    assert mark, "the table has no mark"
    line = before.count("\n") + 1
    column = len(before) - before.rfind("\n")
    with pytest.raises(WwError) as caught:
        read((before + after).encode(), "caps.sexp")
    error = caught.value
    assert what in error.what, str(error)
    assert error.where == f"caps.sexp:{line}:{column}", str(error)
    assert error.code == EXIT_USAGE
    assert "\n" not in str(error)
    return error


@pytest.fixture
def refused() -> Refused:
    """Hold that ``read_table`` refuses a marked table."""

    def check(text: str, what: str, variables: Mapping[str, str] | None = None) -> WwError:
        def read(data: bytes, where: str) -> Table:
            return read_table(data, where, variables)

        return refused_by(read, text, what)

    return check

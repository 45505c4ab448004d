"""What a cell is told, to the character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.abi import environment, verbose_lines
from runner.grants.plan import GrantPlan, PlannedGrant
from sandbox import Grant
from sandbox.granting import fds_table

STDIO = [Grant(n, None, mode, "stream") for n, mode in enumerate(("r", "w", "w"))]  # type: ignore[arg-type]


def plan(*grants: Grant) -> GrantPlan:
    return GrantPlan(
        tuple(PlannedGrant(grant, 7, "o", grant.mode, "file") for grant in [*STDIO, *grants])
    )


NOTHING = plan()
DB_AND_CACHE = plan(
    Grant(10, "db", "rw", "stream"), Grant(11, "my-cache", "rw", "file", move=True, cloexec=False)
)


def refused(*extra: str) -> WwError:
    with pytest.raises(WwError) as caught:
        environment(NOTHING, extra)
    assert caught.value.code == EXIT_USAGE
    return caught.value


def test_the_table_is_exactly_of_the_documented_form() -> None:
    two = plan(Grant(10, "db", "rw", "stream"), Grant(11, "cache", "rw", "file"))
    assert fds_table(two.grants) == (
        '((db (fd 10) (mode "rw") (type "stream")) (cache (fd 11) (mode "rw") (type "file")))'
    )


def test_stdio_that_passes_through_is_not_in_the_table() -> None:
    assert fds_table(NOTHING.grants) == "()"


def test_a_granted_standard_descriptor_is_in_the_table() -> None:
    granted = GrantPlan((PlannedGrant(Grant(0, "stdin", "r", "stream"), 0, "o", "r", "pipe"),))
    assert fds_table(granted.grants) == '((stdin (fd 0) (mode "r") (type "stream")))'
    assert environment(granted)["WW_FD_STDIN"] == "0"


def test_the_environment_holds_the_grants_and_nothing_of_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert environment(NOTHING) == {"WW_FDS": "()"}
    assert environment(DB_AND_CACHE) == {
        "WW_FDS": fds_table(DB_AND_CACHE.grants),
        "WW_FD_DB": "10",
        "WW_FD_MY_CACHE": "11",
    }


def test_extra_variables_are_added_as_they_are() -> None:
    added = environment(NOTHING, ["A=b=c", "EMPTY=", "ww_fds=x", "WW_FDSX=y", "É=é"])
    assert added == {
        "WW_FDS": "()",
        "A": "b=c",
        "EMPTY": "",
        "ww_fds": "x",
        "WW_FDSX": "y",
        "É": "é",
    }


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is not a variable"),
        ("A", "is not a variable"),
        ("=b", "is not a variable"),
        ("WW_FDS=()", "kept for grants"),
        ("WW_FDS=", "kept for grants"),
        ("WW_FD_DB=3", "kept for grants"),
        ("WW_FD_=3", "kept for grants"),
        ("A\0=b", "NUL"),
        ("A=b\0c", "NUL"),
        ("A=\udcff", "UTF-8"),
        ("B=again", "given twice"),
    ],
)
def test_a_bad_extra_variable_is_refused_by_its_position(text: str, word: str) -> None:
    error = refused("B=c", text)
    assert error.where == "--env #2"
    assert word in error.what
    assert str(error).isprintable()


def test_a_verbose_line_is_exactly_of_the_documented_form() -> None:
    documented = plan(Grant(10, "db", "rw", "file"))
    assert verbose_lines(documented) == [
        "grant fd name=db num=10 type=file mode=rw move=false cloexec=true"
    ]


def test_verbose_lines_are_for_named_grants_in_target_order() -> None:
    assert verbose_lines(NOTHING) == []
    assert verbose_lines(DB_AND_CACHE) == [
        "grant fd name=db num=10 type=stream mode=rw move=false cloexec=true",
        "grant fd name=my-cache num=11 type=file mode=rw move=true cloexec=false",
    ]


@given(st.lists(st.text()))
def test_no_extra_variable_changes_what_is_said_of_grants(extra: list[str]) -> None:
    try:
        variables = environment(DB_AND_CACHE, extra)
    except WwError:
        return
    assert environment(DB_AND_CACHE).items() <= variables.items()

"""The flags that limit a cell: what they take, and what they say about it."""

import math
import typing
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.limits import (
    FLAGS,
    MAX_COUNT,
    MAX_SECONDS,
    MAX_SIZE,
    count,
    read_limits,
    seconds,
    seconds_text,
    size,
    size_text,
    whole_seconds,
)
from sandbox import Limits
from tests.conftest import REPO

BY_NAME = {flag.name: flag for flag in FLAGS}
# Whatever int() or float() take and people do not write.
ODD = ["", " ", "-1", "+1", "1_0", "1e3", "inf", "nan", "0x10", "٣", "1 ", " 1", "1\n", "1,5", "01"]


def refusal(field: str, text: str) -> WwError:
    with pytest.raises(WwError) as caught:
        read_limits({field: text})
    assert caught.value.code == EXIT_USAGE
    assert caught.value.hint
    return caught.value


def test_every_limit_has_a_flag_and_may_be_absent_where_its_type_says_so() -> None:
    types = typing.get_type_hints(Limits)
    assert {flag.field for flag in FLAGS} == set(types)
    for flag in FLAGS:
        assert flag.optional == (type(None) in typing.get_args(types[flag.field])), flag.name


def test_without_flags_the_limits_are_the_defaults() -> None:
    assert read_limits({}) == read_limits(dict.fromkeys(Limits._fields)) == Limits()


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_shown_of_a_default_reads_back(name: str) -> None:
    flag = BY_NAME[name]
    assert read_limits({flag.field: flag.shown(Limits())}) == Limits()


@pytest.mark.parametrize("name", BY_NAME)
def test_the_readme_has_each_limit_with_its_default(name: str) -> None:
    flag = BY_NAME[name]
    row = f"| `{name} {flag.metavar}` | `{flag.shown(Limits())}` | "
    assert row in (REPO / "README.md").read_text()


@pytest.mark.parametrize("name", BY_NAME)
def test_no_limit_is_said_where_it_can_be(name: str) -> None:
    flag = BY_NAME[name]
    if flag.optional:
        assert getattr(read_limits({flag.field: "none"}), flag.field) is None
        assert flag.shown(read_limits({flag.field: "none"})) == "none"
    else:
        assert refusal(flag.field, "none").where == name


@pytest.mark.parametrize("text", [*ODD, "none ", "None", "5x", "9" * 20, "9" * 5000, "\0"])
@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_no_limit_is_refused_with_the_flag_on_one_short_line(name: str, text: str) -> None:
    found = refusal(BY_NAME[name].field, text)
    assert found.where == name
    assert len(str(found)) < 300
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        ("0.5", 0.5),
        ("0.001", 0.001),
        ("90s", 90.0),
        ("15m", 900.0),
        ("1.5h", 5400.0),
        ("2000000", 2e6),
        ("555h", 1_998_000.0),
    ],
)
def test_a_time_is_in_seconds_minutes_or_hours(text: str, value: float) -> None:
    assert seconds(text, "--timeout") == value
    assert read_limits({"wall": text}).wall == value


@pytest.mark.parametrize(
    "text", ["0", "0.0", "0s", "0.0001", "1.", ".5", "1.2.3", "2000000.001", "556h", "1d", "1S"]
)
def test_a_time_that_cannot_be_is_refused(text: str) -> None:
    assert refusal("wall", text).where == "--timeout"


def test_no_grace_is_a_time() -> None:
    assert seconds("0", "--grace", least=0) == 0.0


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("0.1", 1), ("1.001", 2), ("2m", 120)])
def test_processor_time_is_rounded_up_to_whole_seconds(text: str, value: int) -> None:
    found = read_limits({"cpu": text}).cpu
    assert found == value
    assert isinstance(found, int)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("1KiB", 1024),
        ("3M", 3 << 20),
        ("3MiB", 3 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("1048576G", 1 << 50),
    ],
)
def test_a_size_is_in_bytes_or_powers_of_1024(text: str, value: int) -> None:
    assert size(text, "--output") == value
    assert read_limits({"scratch": text}).scratch == value


@pytest.mark.parametrize("text", ["1.5G", "1k", "1KB", "1T", "K", "1 K", "1048577G", "1iB"])
def test_a_size_that_cannot_be_is_refused(text: str) -> None:
    assert refusal("output", text).where == "--output"


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("fuel", 1, MAX_COUNT),
        ("memory", 1, MAX_SIZE),
        ("table_elements", 0, (1 << 32) - 1),
        ("output", 0, MAX_SIZE),
        ("pids", 1, 1 << 22),
        ("nofile", 0, 1 << 16),
        ("scratch", 0, MAX_SIZE),
    ],
)
def test_a_number_has_bounds(field: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(read_limits({field: str(value)}), field) == value
    refusal(field, str(most + 1))
    if least:
        refusal(field, str(least - 1))


@given(st.integers(0, MAX_SIZE))
def test_a_size_reads_back(value: int) -> None:
    assert size(size_text(value), "f") == value


@given(st.integers(1, MAX_SECONDS * 1000))
def test_a_time_reads_back(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert math.isclose(seconds(seconds_text(value), "f"), value, rel_tol=1e-12)
    assert whole_seconds(seconds_text(value), "f") == math.ceil(value)


def value_or_error(read: Callable[[str, str], float], text: str) -> float | WwError:
    try:
        return read(text, "--flag")
    except WwError as error:
        return error


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{0,25}(\.[0-9]{0,5})?[a-zA-Z]{0,3}")))
def test_any_text_is_a_limit_within_its_bounds_or_an_error_that_names_the_flag(text: str) -> None:
    for read, least, most in (
        (seconds, 0.001, MAX_SECONDS),
        (whole_seconds, 1, MAX_SECONDS),
        (size, 0, MAX_SIZE),
        (lambda text, flag: count(text, flag, 1, 10), 1, 10),
    ):
        found = value_or_error(read, text)
        if isinstance(found, WwError):
            assert (found.where, found.code) == ("--flag", EXIT_USAGE)
        else:
            assert least <= found <= most
            assert text.isascii()
            assert not set(text) & set("+-_ \n")

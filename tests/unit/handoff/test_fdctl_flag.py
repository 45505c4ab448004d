"""One ``--fdctl`` value: what is accepted, and where an error points."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.handoff import Channel, parse_destination, parse_fdctl
from runner.grants.model import Request, is_name

ORIGIN = "--fdctl #2"


def refused(value: str) -> WwError:
    with pytest.raises(WwError) as caught:
        parse_fdctl(value, ORIGIN)
    assert caught.value.code == EXIT_USAGE
    assert caught.value.where == ORIGIN
    return caught.value


def column(error: WwError) -> int:
    return int(error.what.split(":")[0].removeprefix("column "))


def test_an_inherited_number_gets_a_name_from_it_and_the_defaults_of_a_grant() -> None:
    assert parse_fdctl("inherit:5", ORIGIN) == Request("inherit_5", 5, ORIGIN)
    assert parse_fdctl("inherit:0", ORIGIN) == Request("inherit_0", 0, ORIGIN)


def test_every_key_of_a_grant_and_the_name_can_be_set() -> None:
    value = "inherit:5,pathlink=true,cloexec=false,name=db,move=true,target=0,type=file,mode=rw"
    assert parse_fdctl(value, ORIGIN) == Request(
        "db", 5, ORIGIN, "rw", "file", 0, move=True, cloexec=False, pathlink=True
    )


def test_a_path_gets_the_documented_defaults() -> None:
    channel = parse_fdctl("/run/db.sock", ORIGIN)
    assert channel == Channel("/run/db.sock", ORIGIN, timeout=5.0, limit=16, listen=False)


def test_every_key_of_a_path_can_be_set() -> None:
    channel = parse_fdctl("./inherit:x,listen=true,max=256,timeout=0.25", ORIGIN)
    assert channel == Channel("./inherit:x", ORIGIN, 0.25, 256, listen=True)
    assert parse_fdctl("x,timeout=86400,max=1,listen=false", ORIGIN) == Channel(
        "x", ORIGIN, 86400.0, 1, listen=False
    )


@pytest.mark.parametrize(
    ("value", "at", "what"),
    [
        ("", 1, "the path is missing"),
        (",max=3", 1, "the path is missing"),
        ("dir/", 1, "cannot be a socket"),
        ("a\0b", 1, "cannot be a socket"),
        ("x,", 3, "an option is missing"),
        ("x,,max=3", 3, "an option is missing"),
        ("x,max", 3, "has no value"),
        ("x,=3", 3, "the key is missing"),
        ("x,mode=r", 3, "unknown key 'mode'"),
        ("x,name=a", 3, "unknown key 'name'"),
        ("x,max=3,max=3", 9, "given twice"),
        ("x,max=", 7, "the count is missing"),
        ("x,max=0", 7, "'0' is not a count"),
        ("x,max=257", 7, "'257' is not a count"),
        ("x,max=1_0", 7, "'1_0' is not a count"),
        ("x,max=-1", 7, "'-1' is not a count"),
        ("x,timeout=", 11, "the time is missing"),
        ("x,listen=yes", 10, "listen='yes' is not known"),
        ("x,listen=", 10, "listen is empty"),
        ("inherit:", 9, "the number is missing"),
        ("inherit:x", 9, "'x' is not a descriptor number"),
        ("inherit:٣", 9, "not a descriptor number"),
        ("inherit:03", 9, "not a descriptor number"),
        ("inherit:5,max=3", 11, "unknown key 'max'"),
        ("inherit:5,name=", 16, "'' is not a legal name"),
        ("inherit:5,name=a b", 16, "'a b' is not a legal name"),
        ("inherit:5,name=" + "a" * 64, 16, "is not a legal name"),
        ("inherit:5,name=a,name=b", 18, "given twice"),
        ("inherit:5,mode=x", 16, "mode='x' is not known"),
        ("inherit:5,target=1e3", 18, "not a descriptor number"),
    ],
)
def test_an_error_names_the_column_of_what_is_wrong(value: str, at: int, what: str) -> None:
    error = refused(value)
    assert column(error) == at
    assert what in error.what


@pytest.mark.parametrize(
    "time", ["0", "0.0", "-1", "+1", "1e3", "inf", "nan", "1_0", "٣", "1.", ".5", "1.2345", "86401"]
)
def test_a_time_is_plain_decimal_seconds(time: str) -> None:
    error = refused(f"x,timeout={time}")
    assert column(error) == 11
    assert "is not a time" in error.what


def test_the_argument_of_send_fds_has_no_max_and_a_default_for_listen() -> None:
    assert parse_destination("x", "PATH", listen=True).listen is True
    assert parse_destination("x,listen=false", "PATH", listen=True).listen is False
    assert parse_destination("x,timeout=7", "PATH", listen=False) == Channel("x", "PATH", 7.0)
    with pytest.raises(WwError, match="unknown key 'max'"):
        parse_destination("x,max=3", "PATH", listen=False)


WORDS = st.sampled_from(
    [
        *("inherit:", "5", "0", "/run/x", ",", "=", "name", "db", "mode", "r", "timeout", "max"),
        *("listen", "true", "false", "1.5", "-1", "٣", "\0", "\udcff", "target", "."),
    ]
)


def read_or_refused(value: str) -> Request | Channel | WwError:
    try:
        return parse_fdctl(value, ORIGIN)
    except WwError as error:
        return error


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)))
@example("inherit:5,name=db")
@example("x,timeout=1.5,max=3,listen=true")
def test_any_text_is_read_or_refused_with_a_column_and_nothing_else(value: str) -> None:
    read = read_or_refused(value)
    if isinstance(read, WwError):
        assert read.code == EXIT_USAGE
        assert 1 <= column(read) <= len(value) + 1
        assert str(read).isprintable()
    elif isinstance(read, Channel):
        assert read.path
        assert 0 < read.timeout <= 86400
        assert 1 <= read.limit <= 256
    else:
        assert is_name(read.name)
        assert 0 <= read.source <= 9999999


@given(
    st.from_regex(r"[^,\0]{1,80}", fullmatch=True).filter(
        lambda path: not path.endswith("/") and not path.startswith("inherit:")
    ),
    st.integers(1, 86_400_000),
    st.integers(1, 256),
    st.booleans(),
)
def test_a_well_formed_path_is_read_back_as_it_was_written(
    path: str, milliseconds: int, limit: int, listen: bool
) -> None:
    seconds = f"{milliseconds // 1000}.{milliseconds % 1000:03}"
    value = f"{path},max={limit},listen={str(listen).lower()},timeout={seconds}"
    assert parse_fdctl(value, "o") == Channel(path, "o", float(seconds), limit, listen)

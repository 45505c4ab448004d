"""One ``--fd`` value: what is accepted, and where an error points."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.flags import KEYS, Decoration, parse_fd, parse_fds
from runner.grants.model import Request, environment_key, is_name, number


def request(value: str) -> Request:
    read = parse_fd(value, "o")
    assert isinstance(read, Request)
    return read


def refused(value: str) -> WwError:
    with pytest.raises(WwError) as caught:
        parse_fd(value, "--fd #2")
    assert caught.value.code == EXIT_USAGE
    assert caught.value.where == "--fd #2"
    return caught.value


def test_a_name_and_a_number_are_a_request_with_the_documented_defaults() -> None:
    assert parse_fd("db=3", "--fd #1") == Request(
        name="db",
        source=3,
        origin="--fd #1",
        mode=None,
        type=None,
        target=None,
        move=False,
        cloexec=True,
        pathlink=False,
    )


def test_every_key_sets_its_own_field() -> None:
    value = "db=3,pathlink=true,cloexec=false,move=true,target=0,type=socket,mode=rw"
    assert parse_fd(value, "o") == Request("db", 3, "o", "rw", "socket", 0, True, False, True)


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_every_mode_is_known(mode: str) -> None:
    assert request(f"db=3,mode={mode}").mode == mode


@pytest.mark.parametrize("kind", ["stream", "file", "socket"])
def test_every_type_is_known(kind: str) -> None:
    assert request(f"db=3,type={kind}").type == kind


@pytest.mark.parametrize(("name", "fd"), [("stdin", 0), ("stdout", 1), ("stderr", 2)])
def test_a_bare_standard_name_is_its_own_source_and_target(name: str, fd: int) -> None:
    assert parse_fd(name, "o") == Request(name, fd, "o", target=fd)


def test_a_bare_standard_name_takes_options() -> None:
    assert parse_fd("stdin,mode=r,target=10", "o") == Request("stdin", 0, "o", "r", target=10)


def test_a_standard_name_with_a_number_is_a_name_like_any_other() -> None:
    assert parse_fd("stdin=5", "o") == Request("stdin", 5, "o")


def test_flags_are_numbered_from_one_in_their_order() -> None:
    assert [(r.name, r.origin) for r in parse_fds(["b=4", "a=3"])[0]] == [
        ("b", "--fd #1"),
        ("a", "--fd #2"),
    ]


@pytest.mark.parametrize(
    ("value", "column", "word"),
    [
        ("", 1, "name is missing"),
        ("=3", 1, "name is missing"),
        (",mode=r", 1, "name is missing"),
        ("db=", 4, "number is missing"),
        ("db=,mode=r", 4, "number is missing"),
        ("db=x", 4, "'x' is not a descriptor number"),
        ("db=3=4", 4, "'3=4' is not a descriptor number"),
        ("db=3,", 6, "an option is missing"),
        ("db=3,,mode=r", 6, "an option is missing"),
        ("db=3,mode=r,", 13, "an option is missing"),
        ("stdin,", 7, "an option is missing"),
        ("db=3,mode", 6, "the key 'mode' has no value"),
        ("db=3,mode=", 11, "mode is empty"),
        ("db=3,target=", 13, "number is missing"),
        ("db=3,=r", 6, "the key is missing"),
        ("db=3,=", 6, "the key is missing"),
        ("db=3,mode=r,mode=w", 13, "'mode' is given twice"),
        ("db=3,mode=r,mode=r", 13, "'mode' is given twice"),
        ("db=3,colour=red", 6, "unknown key 'colour'"),
        ("db=3,Mode=r", 6, "unknown key 'Mode'"),
        ("db=3, mode=r", 6, "unknown key ' mode'"),
        ("db=3,colour", 6, "unknown key 'colour'"),
        ("db=3,fd=4", 6, "unknown key 'fd'"),
        ("db=3,mode=wr", 11, "mode='wr' is not known"),
        ("db=3,mode=R", 11, "mode='R'"),
        ("db=3,mode= r", 11, "mode=' r'"),
        ("db=3,type=pipe", 11, "type='pipe'"),
        ("db=3,move=yes", 11, "move='yes'"),
        ("db=3,move=True", 11, "move='True'"),
        ("db=3,cloexec=1", 14, "cloexec='1'"),
        ("db=3,pathlink=false,target=-1", 28, "'-1' is not a descriptor number"),
    ],
)
def test_an_error_names_the_column_of_the_offending_item(
    value: str, column: int, word: str
) -> None:
    error = refused(value)
    assert error.what.startswith(f"column {column}: ")
    assert word in error.what
    assert error.hint


NOT_NUMBERS = [
    "-1",
    "+1",
    "1e3",
    "٣",
    "1_0",
    "01",
    "00",
    "0x3",
    " 3",
    "3 ",
    "3.0",
    "999999999",
    "²",
]


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_no_plain_decimal_number_is_neither_a_target_nor_a_source(text: str) -> None:
    assert "column 13:" in refused(f"db=3,target={text}").what
    assert "column 4:" in refused(f"db={text}").what


def test_numbers_have_one_to_seven_digits() -> None:
    assert number("0") == 0
    assert number("9999999") == 9999999
    assert number("10000000") is None
    assert number("") is None


@pytest.mark.parametrize(
    "name", ['a"b', "a b", "é", "a" * 64, "", "1a", "-a", "_a", "a.b", "a/b", "a\n", "a)", "\uff41"]
)
def test_an_illegal_name_is_refused_at_its_column(name: str) -> None:
    assert not is_name(name)
    assert refused(f"{name}=3").what.startswith("column 1: ")


@pytest.mark.parametrize("name", ["a", "Z", "a" * 63, "my-db", "my_db2", "stdin"])
def test_a_legal_name_is_accepted(name: str) -> None:
    assert is_name(name)
    assert parse_fd(f"{name}=3", "o").name == name


def test_an_error_shows_hostile_text_on_one_line_and_not_whole() -> None:
    error = refused("\x1b[2J\n" + "x" * 100_000 + "=3")
    assert str(error).isprintable()
    assert len(str(error)) < 400


def test_an_error_can_show_an_argument_that_is_not_utf8() -> None:
    assert "\\udcff" in str(refused("a\udcff=3"))


def test_an_environment_key_is_upper_case_with_underscores() -> None:
    assert environment_key("my-db_2") == "MY_DB_2"


WORDS = st.sampled_from(
    ["db", "stdin", "=", ",", *KEYS, "r", "w", "rw", "3", "0", "-1", "٣", "true", "false", "file"]
)


def read_or_refused(value: str) -> Request | Decoration | WwError:
    try:
        return parse_fd(value, "--fd #1")
    except WwError as error:
        return error


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)))
@example("db=3,mode=r")
def test_any_text_is_a_legal_request_or_a_usage_error_and_nothing_else(value: str) -> None:
    read = read_or_refused(value)
    if isinstance(read, WwError):
        assert read.code == EXIT_USAGE
        assert 1 <= int(read.what.split(":")[0].removeprefix("column ")) <= len(value) + 1
        assert str(read).isprintable()
    else:
        assert is_name(read.name)
        if isinstance(read, Request):
            assert 0 <= read.source <= 9999999
            assert read.target is None or 0 <= read.target <= 9999999


@given(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True),
    st.integers(0, 9999999),
    st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["r", "w", "rw"]),
            "type": st.sampled_from(["stream", "file", "socket"]),
            "target": st.integers(0, 9999999),
            "move": st.booleans(),
            "cloexec": st.booleans(),
            "pathlink": st.booleans(),
        },
    ).flatmap(lambda options: st.permutations(list(options.items()))),
)
def test_a_well_formed_value_is_read_back_as_it_was_written(
    name: str, source: int, options: list[tuple[str, object]]
) -> None:
    value = f"{name}={source}" + "".join(f",{k}={str(v).lower()}" for k, v in options)
    read = request(value)
    assert (read.name, read.source) == (name, source)
    for key, expected in options:
        assert getattr(read, key) == expected

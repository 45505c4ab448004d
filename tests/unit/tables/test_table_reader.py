"""Bytes to data: what is refused before anything has a meaning, and where the error points."""

import re
import subprocess
import sys

import pytest
import sexpdata
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import shown
from runner.grants.reader import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_TOKENS,
    MIN_INTEGER,
    Node,
    Symbol,
    integer,
    read,
)
from tests.conftest import REPO
from tests.unit.tables.conftest import refused_by


def plain(nodes: tuple[Node, ...]) -> list[object]:
    """Data without places: a list for a list, ``Symbol`` for a symbol."""
    return [plain(node.items) if type(node.value) is tuple else node.value for node in nodes]


def refusal(data: bytes) -> WwError:
    with pytest.raises(WwError) as caught:
        read(data, "t")
    assert caught.value.code == EXIT_USAGE
    assert re.fullmatch(r"t:[0-9]+:[0-9]+", caught.value.where)
    return caught.value


def test_every_kind_of_datum_is_read() -> None:
    data = b'(a :b "c" -4 0 true false () (d)) e ; and a comment ( " \n5'
    assert plain(read(data, "t")) == [
        [Symbol("a"), Symbol(":b"), "c", -4, 0, True, False, [], [Symbol("d")]],
        Symbol("e"),
        5,
    ]


def test_booleans_are_not_integers_and_words_of_other_lisps_are_names() -> None:
    values = [node.value for node in read(b"true 1 t nil", "t")]
    assert [type(value) for value in values] == [bool, int, Symbol, Symbol]


def test_each_datum_knows_its_line_and_column() -> None:
    first, second = read('(a\n  (b "é" c))\n; x\n\td'.encode(), "dir/t.sexp")
    inner = first.items[1]
    assert str(first.place) == "dir/t.sexp:1:1"
    assert [str(node.place) for node in inner.items] == [
        "dir/t.sexp:2:4",
        "dir/t.sexp:2:6",
        "dir/t.sexp:2:10",
    ]
    assert str(second.place) == "dir/t.sexp:4:2"
    assert (first.head, inner.head, second.head) == ("a", "b", None)


@pytest.mark.parametrize("data", [b"", b"\n", b" ; nothing", b"\xef\xbb\xbf", b"\r\n;\r\n"])
def test_no_data_is_no_data(data: bytes) -> None:
    assert read(data, "t") == ()


def test_a_byte_order_mark_and_crlf_change_nothing_not_even_places() -> None:
    text = b'(a "b" ; c\n (d))\n'
    assert read(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"), "t") == read(text, "t")


def test_strings_hold_any_text_and_four_escapes() -> None:
    (node,) = read(r'"a \"quoted\" \\ \n \t é ( ; # '.encode() + b"'\"", "t")
    assert node.value == 'a "quoted" \\ \n \t é ( ; # \''


def test_tokens_need_no_blanks_around_strings_and_parentheses() -> None:
    assert plain(read(b'a"b"(c)"d""e";f', "t")) == [
        Symbol("a"),
        "b",
        [Symbol("c")],
        "d",
        "e",
    ]


@pytest.mark.parametrize("word", ["+", "-", "->x", "a-b", "x1", "<=", "!=", "e5", "infinite", "_"])
def test_words_that_look_odd_and_are_names(word: str) -> None:
    assert plain(read(word.encode(), "t")) == [Symbol(word)]


@pytest.mark.parametrize("number", [0, 7, -7, MIN_INTEGER, MAX_INTEGER])
def test_integers_have_64_bits(number: int) -> None:
    assert plain(read(str(number).encode(), "t")) == [number]
    assert integer(str(number)) == number


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # Numbers: what Python's int and float take is not what a table may say.
        ("(a §1_0)", "'1_0' is not a number"),
        ("(a §1e3)", "'1e3' is not a number"),
        ("(a §1.5)", "'1.5' is not a number"),
        ("(a §.5)", "'.5' is not a number"),
        ("(a §+5)", "'+5' is not a number"),
        ("(a §007)", "'007' is not a number"),
        ("(a §-0)", "'-0' is not a number"),
        ("(a §0x10)", "'0x10' is not a number"),
        ("(a §3a)", "'3a' is not a number"),
        ("(a §-3a)", "'-3a' is not a number"),
        ("(a §inf)", "'inf' is not a number"),
        ("(a §-Infinity)", "'-Infinity' is not a number"),
        ("(a §NaN)", "'NaN' is not a number"),
        ("(a §9223372036854775808)", "is too large"),
        ("(a §-9223372036854775809)", "is too large"),
        ("(a §" + "9" * 5000 + ")", "is too large"),
        # Characters.
        ("(a §٣)", "the character '٣'"),
        ("(a 1§٣)", "the character '٣'"),
        ("(a §é)", "the character 'é'"),
        ("(a §'b)", "the character '''"),
        ("(a b§'c)", "the character '''"),
        ("(a §[b])", "the character '['"),
        ("(a §#t)", "the character '#'"),
        ("(a §`b)", "the character '`'"),
        ("(a b§\\ c)", "the character '\\'"),
        ("(a b§,c)", "the character ','"),
        ("(a §{b})", "the character '{'"),
        ("(a §\u00a0b)", "the character '\u00a0'"),
        ("(a §\0)", "U+0000"),
        ('(a "§\0")', "U+0000"),
        ("a ; §\x1b[2J", "U+001B"),
        ("a §\x0c b", "U+000C"),
        ("; fine §\u202e(", "U+202E"),
        ("; fine §\u2028(fd)", "U+2028"),
        ("; fine §\x85(fd)", "U+0085"),
        ("; old line ends§\r(fd)", "U+000D"),
        # Words.
        ("§:", "neither a name nor a keyword"),
        ("§a:b", "neither a name nor a keyword"),
        ("§::a", "neither a name nor a keyword"),
        ("§...", "neither a name nor a keyword"),
        ("(a §. b)", "neither a name nor a keyword"),
        # Strings.
        ('(a §"b)\n(c)', "the string does not end"),
        ('(a\n §"b\n")', "the string does not end"),
        ('§"a\\"', "the string does not end"),
        ('§"a\\', "the string does not end"),
        ('"a §\\x41"', "the escape '\\x'"),
        ('"a\\\\§\\qb', "the escape '\\q'"),
        # Parentheses.
        ("(a)§)", "closes nothing"),
        ("\n §)", "closes nothing"),
        ("(a (b)\n §(c", "never closed"),
        ("§(a (b)\n (c) ; )\n", "never closed"),
        ("(" * MAX_DEPTH + "§(", f"at most {MAX_DEPTH} deep"),
        ("a " * MAX_TOKENS + "§a", f"at most {MAX_TOKENS} words"),
        ("()" * (MAX_TOKENS // 2) + "§()", f"at most {MAX_TOKENS} words"),
    ],
)
def test_what_is_refused_and_where(text: str, what: str) -> None:
    refused_by(read, text, what)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"\xff", "t:1:1"),
        (b"(a\n \xc3(", "t:2:2"),
        ("é".encode() + b"\xed\xa0\x80", "t:1:2"),  # a surrogate
        ("()".encode("utf-16"), "t:1:1"),
        (b"(a \xc0\xaf)", "t:1:4"),  # an overlong form
    ],
)
def test_what_is_not_utf8_is_refused_where_it_begins(data: bytes, where: str) -> None:
    error = refusal(data)
    assert "is not UTF-8" in error.what
    assert error.where == where


def test_everything_up_to_the_limits_is_read() -> None:
    assert len(read(b" " * (MAX_BYTES - 1) + b"a", "t")) == 1
    assert len(read(b"(" * MAX_DEPTH + b")" * MAX_DEPTH, "t")) == 1
    assert len(read(b"a " * MAX_TOKENS, "t")) == MAX_TOKENS
    assert "more than a table may have" in refusal(b" " * (MAX_BYTES + 1)).what


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 1_000_000,
        b"(" * MAX_BYTES,
        b"()" * (MAX_BYTES // 2),
        b"a " * (MAX_BYTES // 2),
        b'"' * (MAX_BYTES - 1),
        b'"' + b"\\\\" * (MAX_BYTES // 2 - 1),
        b"9" * MAX_BYTES,
        b"-" * (MAX_BYTES - 1) + b".",
        b"; \n" * (MAX_BYTES // 3) + b")",
    ],
    ids=lambda data: repr(data[:4]),
)
def test_hostile_sizes_are_refused_before_they_are_parsed(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sexpdata, "parse", lambda *_, **__: pytest.fail("it is parsed"))
    refusal(data)


def test_a_parser_that_reads_more_than_the_scan_saw_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sexpdata, "parse", lambda *_arguments, **_options: [[1.0]])
    assert "was read as float" in refusal(b"(a)").what


def test_the_parser_is_imported_when_a_table_is_read_and_not_before() -> None:
    code = """
import sys
from runner.grants.tables import read_table
before = "sexpdata" in sys.modules
read_table(b"()", "t")
sys.exit(before or "sexpdata" not in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


def test_long_text_is_cut_in_errors() -> None:
    assert shown("a" * 70) == f"'{'a' * 70}'"
    assert shown("a" * 71) == f"'{'a' * 70}...'"


_DATA = st.recursive(
    st.one_of(
        st.integers(MIN_INTEGER, MAX_INTEGER),
        st.booleans(),
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))),
        st.from_regex(r"[a-z!*/<=>?_][a-z0-9!*/<=>?_+-]{0,9}", fullmatch=True).map(Symbol),
    ).filter(lambda value: value not in [Symbol(word) for word in ("true", "false", "inf", "nan")]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=30,
)


def _written(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Symbol():
            return value.text
        case str():
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{quoted}"'
        case list():
            return f"({' '.join(map(_written, value))})"
        case _:
            return str(value)


@settings(deadline=None)
@given(st.lists(_DATA, max_size=4))
def test_data_that_are_written_are_read_again(data: list[object]) -> None:
    text = "\n".join(map(_written, data))
    if "infinity" not in text:
        assert plain(read(text.encode(), "t")) == data

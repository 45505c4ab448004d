"""Tables of grants: the forms, their keys, offers, and the canonical text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.language import RESERVED
from runner.grants.model import MODES, TYPES, Request
from runner.grants.plan import check_requests
from runner.grants.tables import KEYS, MAX_GRANTS, Offer, print_table, read_offer, read_table
from tests.conftest import REPO
from tests.unit.tables.conftest import Refused, refused_by


def requests(text: str) -> list[Request]:
    return read_table(text.encode(), "caps.sexp").requests


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        '(fd :name "db" :fd 3 :mode "rw" :type "socket" :target 10)',
        '(fd (name "db") (fd 3) (mode "rw") (type "socket") (target 10))',
        '(fd :name "db" (fd 3) :mode "rw" (type "socket") :target 10)',
        '(fd (target 10) (fd 3) :type "socket" :mode "rw" :name "db")',
        '(fd ; the database\n:name\n"db"(fd 3):mode"rw"(type"socket"):target 10)',
    ],
)
@pytest.mark.parametrize("table", ["{}", "({})", " ( {} ; end\n)\n"])
def test_the_ways_to_write_a_grant_are_one(form: str, table: str) -> None:
    (request,) = requests(table.format(form))
    assert request == Request("db", 3, request.origin, "rw", "socket", 10)


def test_the_defaults_are_those_of_the_flag() -> None:
    assert requests('(fd :name "db" :fd 3)') == [
        Request(
            name="db",
            source=3,
            origin="caps.sexp:1:1",
            mode=None,
            type=None,
            target=None,
            move=False,
            cloexec=True,
            pathlink=False,
        )
    ]


def test_every_key_sets_its_own_field() -> None:
    text = '(fd :pathlink true :cloexec false :move true :target 0 :type "file" :mode "w"'
    assert requests(text + ' :fd 0 :name "a")') == [
        Request("a", 0, "caps.sexp:1:1", "w", "file", 0, True, False, True)
    ]


@pytest.mark.parametrize("key", ["move", "cloexec", "pathlink"])
@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_true_and_false(key: str, value: bool) -> None:
    (request,) = requests(f'(fd :name "a" :fd 3 :{key} {"true" if value else "false"})')
    assert getattr(request, key) is value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", TYPES)
def test_every_mode_and_type_is_known(mode: str, kind: str) -> None:
    (request,) = requests(f'(fd :name "a" :fd 3 :mode "{mode}" (type "{kind}"))')
    assert (request.mode, request.type) == (mode, kind)


def test_origins_are_where_the_forms_are() -> None:
    text = '(\n  (fd :name "a" :fd 3)\n\n  (fd :name "b"\n      :fd 4))'
    assert [r.origin for r in requests(text)] == ["caps.sexp:2:3", "caps.sexp:4:3"]


@pytest.mark.parametrize("text", ["", "()", "; nothing\n", "\ufeff(\r\n)\r\n"])
def test_a_table_may_be_empty(text: str) -> None:
    assert requests(text) == []


def test_a_table_may_come_from_windows() -> None:
    text = '(\n  (fd :name "a" :fd 3) ; one\n  (fd :name "b" :fd 4)\n)\n'
    data = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    assert read_table(data, "caps.sexp").requests == requests(text)


def test_numbers_and_names_reach_as_far_as_those_of_the_flag() -> None:
    name = "a" * 63
    text = f'(fd :name "{name}" :fd 0 :target 9999999)'
    assert requests(text) == [Request(name, 0, "caps.sexp:1:1", target=9_999_999)]


def test_there_are_at_most_256_grants(refused: Refused) -> None:
    forms = "".join(f'(fd :name "a{i}" :fd 3)\n' for i in range(MAX_GRANTS))
    assert len(requests(forms)) == MAX_GRANTS
    refused(forms + '§(fd :name "more" :fd 3)', "at most 256 grants")
    refused(
        '(for (i (range 0 257))\n §(fd :name (str "a" i) :fd 3))',
        "at most 256 grants",
    )


def test_the_largest_table_of_lists_is_within_the_limits() -> None:
    pairs = '(mode "rw")(type "file")(target 9)(move false)(cloexec true)(pathlink false)'
    forms = "".join(f'(fd(name "a{i}")(fd 3){pairs})' for i in range(MAX_GRANTS))
    assert len(requests(f"({forms})")) == MAX_GRANTS


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # Keys.
        ('(fd :name "a" :fd 3 §:colour 5)', "unknown key 'colour'"),
        ('(fd :name "a" :fd 3 (§colour 5))', "unknown key 'colour'"),
        ('(fd :name "a" :fd 3 (§colour))', "unknown key 'colour'"),
        ('(fd :name "a" :fd 3 §:Mode "r")', "unknown key 'Mode'"),
        ('(fd :name "a" :fd 3\n    §:name "b")', "the key 'name' is given twice"),
        ('(fd :name "a" :fd 3 (§fd 3))', "the key 'fd' is given twice"),
        ('(fd (move true) (fd 3) §:move false (name "a"))', "the key 'move' is given twice"),
        ('(fd :name "a" §:fd)', "the key 'fd' has no value"),
        ("(fd §:name :fd 3)", "the key 'name' has no value"),
        ('(fd :name "a" §(fd))', "the key 'fd' has 0 values"),
        ('(fd :name "a" §(fd 3 4))', "the key 'fd' has 2 values"),
        ('(fd §"a" 3)', "a key is expected here"),
        ("(fd §name 3)", "a key is expected here"),
        ('(fd :name "a" :fd 3 §true)', "a key is expected here"),
        ('(fd :name "a" :fd 3 §())', "a key is expected here"),
        ('(fd :name "a" §(:fd 3))', "a key is expected here"),
        ('(fd :name "a" §((fd) 3))', "a key is expected here"),
        ("(\n §(fd :fd 3))", "the grant has no name"),
        ('(\n §(fd :name "a"))', "the grant has no fd"),
        ("§(fd)", "the grant has no name"),
        # Values.
        ("(fd :name §3 :fd 4)", "name cannot be the number 3"),
        ("(fd (name §true) :fd 4)", "name cannot be the boolean true"),
        ('(fd :name §"a b" :fd 4)', "'a b' is not a legal name"),
        ('(fd :name §"a\\"b" :fd 4)', "is not a legal name"),
        ('(fd :name §"é" :fd 4)', "is not a legal name"),
        ('(fd :name §"" :fd 4)', "is not a legal name"),
        (f'(fd :name §"{"a" * 64}" :fd 4)', "is not a legal name"),
        ('(fd :name "a" :fd §"3")', "fd cannot be the string '3'"),
        ('(fd :name "a" :fd §true)', "fd cannot be the boolean true"),
        ('(fd :name "a" :fd §-1)', "fd cannot be the number -1"),
        ('(fd :name "a" :fd §10000000)', "fd cannot be the number 10000000"),
        ('(fd :name "a" :fd §1_0)', "'1_0' is not a number"),
        ('(fd :name "a" :fd §٣)', "the character"),
        ('(fd :name "a" :fd 3 :target §-1)', "target cannot be the number -1"),
        ('(fd :name "a" :fd 3 :target §999999999)', "target cannot be the number 999999999"),
        ('(fd :name "a" :fd 3 :target §false)', "target cannot be the boolean false"),
        ('(fd :name "a" :fd 3 :target §1e3)', "'1e3' is not a number"),
        ('(fd :name "a" :fd 3 :mode §"rwx")', "mode cannot be the string 'rwx'"),
        ('(fd :name "a" :fd 3 :mode §r)', "'r' is not defined"),
        ('(fd :name "a" :fd 3 :mode §4)', "mode cannot be the number 4"),
        ('(fd :name "a" :fd 3 :type §"directory")', "type cannot be the string 'directory'"),
        ('(fd :name "a" :fd 3 :move §"true")', "move cannot be the string 'true'"),
        ('(fd :name "a" :fd 3 :cloexec §0)', "cloexec cannot be the number 0"),
        ('(fd :name "a" :fd 3 :pathlink §(list))', "pathlink cannot be a list of 0"),
        ('(fd :name "a" :fd §(list 3))', "fd cannot be a list of 1"),
        # What is not a form.
        ("§5", "this is not a form"),
        ('§"a"', "this is not a form"),
        ("§fd", "this is not a form"),
        ('(fd :name "a" :fd 3) §()', "this is not a form"),
        ("(§())", "this is not a form"),
        ('(fd :name "a" :fd 3) §(("x"))', "this is not a form"),
        ('((fd :name "a" :fd 3) §x)', "this is not a form"),
        ('§("fd" :name "a" :fd 3)', "this is not a form"),
        ('(§grant :name "a" :fd 3)', "'grant' is not defined"),
        ('(§:name "a" :fd 3)', "the keyword ':name' stands where a value is expected"),
        # Text after the table.
        ('((fd :name "a" :fd 3)) §(fd :name "b" :fd 4)', "text after the table"),
        ('((fd :name "a" :fd 3))\n§x', "text after the table"),
        ("() §()", "text after the table"),
        ('((fd :name "a" :fd 3))§)', "closes nothing"),
        ('(\n §(fd :name "a" :fd 3', "never closed"),
    ],
)
def test_what_is_refused_and_where(refused: Refused, text: str, what: str) -> None:
    refused(text, what)


def test_a_key_that_is_given_twice_says_where_it_was_first(refused: Refused) -> None:
    error = refused('(fd :name "a"\n :fd 3 §:name "b")', "twice")
    assert "caps.sexp:1:5" in error.hint


@pytest.mark.parametrize(
    ("flag", "table", "what"),
    [
        (Request("db", 3, "--fd #1"), '(fd :name "db" :fd 4)', "the name 'db' is already given"),
        (Request("my-db", 3, "--fd #1"), '(fd :name "my_db" :fd 4)', "are both WW_FD_MY_DB"),
        (
            Request("a", 3, "--fd #1", target=10),
            '(fd :name "b" :fd 4 :target 10)',
            "target 10 is already taken",
        ),
    ],
)
def test_a_table_that_contradicts_a_flag_is_refused_with_both_origins(
    flag: Request, table: str, what: str
) -> None:
    with pytest.raises(WwError) as caught:
        check_requests([flag, *requests(f"\n {table}")], 1024, stdio=True)
    assert caught.value.code == EXIT_USAGE
    assert caught.value.where == "caps.sexp:2:2"
    assert what in caught.value.what
    assert "--fd #1" in caught.value.what


# --- the reference system's own examples ---------------------------------------------------------

STDIN_EXAMPLE = """
(
  (fd :name "stdin"  :fd 0 :mode "r" :target 0)
  (fd :name "stdout" :fd 1 :mode "w" :target 1)
  (fd :name "logs"   :fd 5 :mode "w" :type "file" :target 9)
)
"""
BULK_EXAMPLE = """
(
  (fd (name "stdin")  (fd 0) (mode "r") (target 0))
  (fd (name "stdout") (fd 1) (mode "w") (target 1))
  (fd (name "stderr") (fd 2) (mode "w") (target 2))
  (fd (name "db")     (fd 3) (mode "rw") (type "socket") (target 10))
  (fd (name "cache")  (fd 4) (mode "rw") (type "file") (target 11))
)
"""


def test_the_example_for_stdin() -> None:
    assert requests(STDIN_EXAMPLE) == [
        Request("stdin", 0, "caps.sexp:3:3", "r", target=0),
        Request("stdout", 1, "caps.sexp:4:3", "w", target=1),
        Request("logs", 5, "caps.sexp:5:3", "w", "file", 9),
    ]


def test_the_example_for_bulk_configuration() -> None:
    assert requests(BULK_EXAMPLE) == [
        Request("stdin", 0, "caps.sexp:3:3", "r", target=0),
        Request("stdout", 1, "caps.sexp:4:3", "w", target=1),
        Request("stderr", 2, "caps.sexp:5:3", "w", target=2),
        Request("db", 3, "caps.sexp:6:3", "rw", "socket", 10),
        Request("cache", 4, "caps.sexp:7:3", "rw", "file", 11),
    ]


def test_the_examples_of_the_manual() -> None:
    manual = (REPO / "docs" / "tables.md").read_text()
    examples = re.findall(r"^```lisp\n(.*?)^```$", manual, re.DOTALL | re.MULTILINE)
    tables = [read_table(text.encode(), "caps.sexp") for text in examples]
    names = [[request.name for request in table.requests] for table in tables]
    assert ["stdin", "stdout", "logs"] in names
    assert ["db1", "db2", "db3"] in names
    assert ["shard-0", "shard-1", "shard-2", "shard-3"] in names
    assert ["db-in", "db-out", "cache-in", "cache-out"] in names
    assert [len(table.validators) for table in tables if table.validators] == [2, 1]
    assert {key for key in KEYS if f"| `{key}` |" in manual} == set(KEYS)
    words = RESERVED - {"else", "validate-fd-access"}
    assert {word for word in words if f"`({word} " in manual} == words


# --- offers --------------------------------------------------------------------------------------


def test_an_offer_has_every_key_but_the_source() -> None:
    text = (
        '(fd :name "a" (mode "r") :type "file" :target 5 :move true :cloexec false :pathlink true)'
        '\n(fd (name "b"))'
    )
    first, second = read_offer(text.encode(), "peer")
    assert first == Offer("a", "peer:1:1", "r", "file", 5, True, False, True)
    assert second == Offer("b", "peer:2:1")
    assert first.request(8) == Request("a", 8, "peer:1:1", "r", "file", 5, True, False, True)
    assert second.request(9) == Request("b", 9, "peer:2:1")


def test_an_offer_may_be_one_list_and_may_be_empty() -> None:
    assert [offer.name for offer in read_offer(b'((fd :name "a") (fd :name "b"))', "p")] == [
        "a",
        "b",
    ]
    assert read_offer(b"()", "p") == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('(fd :name "a" §:fd 3)', "an offer has no key 'fd'"),
        ('(fd :name "a" (§fd 3))', "an offer has no key 'fd'"),
        ('§(fd :mode "r")', "the grant has no name"),
        ('(fd :name §(str "a"))', "an offer computes nothing"),
        ("(fd :name §a)", "'a' is not a value"),
        ('(fd :name "a" :target §"5")', "target cannot be the string '5'"),
        ("§(def x 1)", "this is not a form"),
        ("§(validate (fd) true)", "this is not a form"),
        ('§(if true (fd :name "a"))', "this is not a form"),
        ("§(end)", "this is not a form"),
        ("§(5)", "this is not a form"),
        ('((fd :name "a")) §(end)', "text after the table"),
        ('(fd :name "a")\n§)', "closes nothing"),
        ('(fd :name "a")' * MAX_GRANTS + '§(fd :name "a")', "at most 256 grants"),
    ],
)
def test_offers_that_are_refused(text: str, what: str) -> None:
    refused_by(read_offer, text, what)


# --- the canonical text --------------------------------------------------------------------------


def test_the_canonical_text() -> None:
    assert print_table([]) == "()\n"
    assert (
        print_table(
            [
                Request("db", 3, "--fd #1"),
                Request("c-1", 0, "x", "rw", "stream", 0, True, False, True),
            ]
        )
        == '(\n  (fd :name "db" :fd 3)\n  (fd :name "c-1" :fd 0 :mode "rw" :type "stream" :target 0'
        " :move true :cloexec false :pathlink true)\n)\n"
    )


NUMBERS = st.integers(0, 9_999_999)
REQUESTS = st.builds(
    Request,
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True),
    source=NUMBERS,
    origin=st.just(""),
    mode=st.none() | st.sampled_from(list(MODES.values())),
    type=st.none() | st.sampled_from(list(TYPES.values())),
    target=st.none() | NUMBERS,
    move=st.booleans(),
    cloexec=st.booleans(),
    pathlink=st.booleans(),
    guest=st.none(),  # no key of a table
)


def without_origins(found: list[Request]) -> list[Request]:
    return [request._replace(origin="") for request in found]


@settings(deadline=None)
@given(st.lists(REQUESTS, max_size=20))
def test_what_is_printed_reads_back(table: list[Request]) -> None:
    text = print_table(table)
    assert without_origins(requests(text)) == table
    assert print_table(requests(text)) == text


@settings(deadline=None)
@given(st.data(), st.lists(REQUESTS, max_size=5))
def test_every_way_to_write_a_table_reads_the_same(
    data: st.DataObject, table: list[Request]
) -> None:
    blank = st.sampled_from([" ", "\n", "\r\n", "\t ", ' ; a ( comment "\n', "\n;;\n\n"])

    def written(request: Request) -> str:
        fields = {"fd" if k == "source" else k: v for k, v in request._asdict().items()}
        words = []
        for key in data.draw(st.permutations(KEYS)):
            value = fields[key]
            if value is None:
                continue
            word = f'"{value}"' if isinstance(value, str) else str(value).lower()
            between = data.draw(blank)
            words.append(
                f"({key}{between}{word})" if data.draw(st.booleans()) else f":{key}{between}{word}"
            )
        return "(fd" + "".join(data.draw(blank) + word for word in words) + ")"

    text = "".join(written(request) + data.draw(blank) for request in table)
    if data.draw(st.booleans()):
        text = f"({text})"
    assert without_origins(requests(text)) == table

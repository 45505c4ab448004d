"""Nothing that a table says takes long, grows large, or ends otherwise than ww's errors do."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import EXIT_USAGE, WwError
from runner.grants.tables import read_offer, read_table
from tests.conftest import REPO

STEPS = "more than 100000 steps"
CELLS = "more than 10000 cells"
DEPTH = "more than 128 deep"


def chain(first: str, step: str, times: int) -> str:
    """Definitions s0, s1, ..., each made of the one before, which ``{0}`` stands for."""
    return f"(def s0 {first})\n" + "\n".join(
        f"(def s{i + 1} {step.format(f's{i}')})" for i in range(times)
    )


def nested(opening: str, inside: str, times: int) -> str:
    return opening * times + inside + ")" * times


FOREVER = "(defn f (n) {}) (def x (f 1))"
FORMS_FOREVER = "(defn f (n) {}) (f 1)"

EXPLOSIONS: Mapping[str, tuple[str, str]] = {
    # Without end.
    "a loop": (FOREVER.format("(f (+ n 0))"), STEPS),
    "a loop of forms": (FORMS_FOREVER.format("(f n)"), STEPS),
    "a loop in a choice": (FOREVER.format("(if (= n 1) (cond (false 1) (else (f n))) 2)"), STEPS),
    "a loop in a binding": (FOREVER.format("(let ((n n)) (let ((m n)) (f m)))"), STEPS),
    "two functions": ("(defn a (n) (b n)) (defn b (n) (a n)) (def x (a 1))", STEPS),
    "three functions of forms": (
        "(defn a () (if true (b))) (defn b () (let () (c))) (defn c () (a)) (a)",
        STEPS,
    ),
    # Deep.
    "a recursion": (FOREVER.format("(+ 1 (f n))"), DEPTH),
    "a recursion twice": (FOREVER.format("(+ (f n) (f n))"), DEPTH),
    "a recursion in a condition": (FOREVER.format("(if (f n) 1 2)"), DEPTH),
    "a recursion in a clause": (FOREVER.format("(cond ((f n) 1) (else 2))"), DEPTH),
    "a recursion in a binding": (FOREVER.format("(let ((a (let ((b (f n))) b))) a)"), DEPTH),
    "a recursion in an argument": (FOREVER.format("(f (f n))"), DEPTH),
    "a recursion in a list": (FOREVER.format("(for (i (for (j (f n)) j)) i)"), DEPTH),
    "a recursion in an element": (
        FOREVER.format("(for (i (list n)) (for (j (list i)) (f j)))"),
        DEPTH,
    ),
    "a recursion in and": (FOREVER.format("(and (or (f n)) 1)"), DEPTH),
    "a recursion in a default": (FOREVER.format('(env "A" (f n))'), DEPTH),
    "a recursion of forms": (FORMS_FOREVER.format("(f n) (f n)"), DEPTH),
    "a recursion of forms in a list": (FORMS_FOREVER.format("(for (i (range 0 9)) (f i))"), DEPTH),
    "a recursion in a grant": (
        "(defn g (n) (str (g n))) " + FORMS_FOREVER.format("(fd :name (g n) :fd 3)"),
        DEPTH,
    ),
    # Exponential.
    "fibonacci": (
        "(defn f (n) (if (< n 2) n (+ (f (- n 1)) (f (- n 2))))) (def x (f 60))",
        STEPS,
    ),
    "functions of functions": (
        "(defn f0 () 1)\n"
        + "\n".join(f"(defn f{i + 1} () (+ (f{i}) (f{i})))" for i in range(60))
        + "(def x (f60))",
        STEPS,
    ),
    "doubled strings": (chain('"aaaaaaaaaaaaaaaa"', "(str {0} {0})", 60), CELLS),
    "doubled strings by concat": (chain('"aaaaaaaaaaaaaaaa"', "(concat {0} {0})", 60), CELLS),
    "doubled lists": (chain("(list 1)", "(concat {0} {0})", 60), CELLS),
    "doubled in nested lets": (
        '(let ((a "aaaaaaaa")) ' + nested("(let ((a (str a a))) ", "(fd :name a :fd 3)", 28) + ")",
        CELLS,
    ),
    "nested loops": (
        "(def r (range 0 9)) " + nested("(for (i r) ", "(if false (fd))", 15),
        STEPS,
    ),
    "nested lists of loops": (
        f"(def r (range 0 9)) (def x {nested('(for (i r) ', 'i', 14)})",
        CELLS,
    ),
    # Large at once.
    "a range": ("(def x (range 0 9223372036854775807))", CELLS),
    "a range from below": ("(def x (range -9223372036854775808 9223372036854775807))", CELLS),
    "ranges of ranges": (
        "(for (i (range 0 5000)) (for (j (range 0 5000)) (if false (fd))))",
        CELLS,
    ),
    "lists without an end": (FOREVER.format("(for (i (list (range 0 n))) (f (* 2 n)))"), CELLS),
    "a growing argument": ("(defn f (l) (f (concat l (list 1 2 3)))) (def x (f (list)))", CELLS),
    "a growing string": ('(defn f (s) (f (str s "abc"))) (def x (f ""))', CELLS),
    "a variable": (FOREVER.format('(if (env "LARGE") (f n) 1)'), CELLS),
    # Cheap steps over what is large.
    "long strings compared": (
        f'(def s "{"a" * 30000}") (def t "{"a" * 30000}") '
        + FOREVER.format("(if (= s t s t s t) (f n) 1)"),
        STEPS,
    ),
    "a long or": (FOREVER.format(f"(if (or true {'n ' * 9000}) (f n) 1)"), STEPS),
    "a long and": (FOREVER.format(f"(if (and false {'n ' * 9000}) 1 (f n))"), STEPS),
    "a long clause": (FOREVER.format(f"(cond ((= 1 2) {'n ' * 9000}) (else (f n)))"), STEPS),
    "many clauses": (FOREVER.format(f"(cond (true (f n)) {'(1 1)' * 2000})"), STEPS),
    "many bindings": (
        FOREVER.format(f"(let ({''.join(f'(a{i} 1)' for i in range(2000))}) (f n))"),
        STEPS,
    ),
    "many parameters": (
        f"(defn f ({' '.join(f'a{i}' for i in range(3000))}) (f {'1 ' * 3000}))"
        f" (def x (f {'1 ' * 3000}))",
        STEPS,
    ),
    "names far away": (
        "(def z 1) " + FOREVER.format(nested("(let ((a 1)) ", f"(if (= {'z ' * 99}) (f n) 1)", 26)),
        STEPS,
    ),
}

RUN = """
import sys, time
from runner.errors import WwError
from runner.grants.tables import read_table
from tests.unit.tables.test_table_limits import EXPLOSIONS

def deep(levels, call):
    return call() if levels == 0 else deep(levels - 1, call)

def run(text):
    try:
        read_table(text.encode(), "t", {"LARGE": "x" * 100_000})
    except WwError as error:
        return f"{error.code} {error}"
    return "accepted"

run("()")
for name, (text, what) in EXPLOSIONS.items():
    start = time.process_time()
    # A caller of its own depth must not make the difference. What explodes takes hours, on any
    # machine.
    result = deep(300, lambda: run(text))
    taken = time.process_time() - start
    if not result.startswith("2 t:") or what not in result or taken > 60:
        print(f"{name}: {taken:.2f} s: {result[:300]}")
        sys.exit(1)
print(len(EXPLOSIONS))
"""


@pytest.mark.parametrize("option", ["-B", "-O"])
def test_explosions_stop_within_the_bounds(option: str) -> None:
    done = subprocess.run(
        [sys.executable, option, "-c", RUN],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{len(EXPLOSIONS)}\n"), done.stdout + done.stderr


def test_what_is_large_and_within_the_bounds_is_computed() -> None:
    text = """
(defn loop (n) (if (= n 0) true (loop (- n 1))))
(def a (loop 9000))
(def b (range 0 9000))
(for (i (range 0 250)) (fd :name (str "listener-" i) :fd 3))
"""
    assert len(read_table(text.encode(), "t").requests) == 250


def test_lists_in_lists_as_deep_as_the_table_is_long_can_be_thrown_away() -> None:
    text = chain("(list)", "(list {0})", 1200)
    assert read_table(text.encode(), "t").requests == []


# The errors of syntax again, in a process where `assert` does nothing.
OPTIMIZED = """
import sys
from runner.errors import WwError
from runner.grants.tables import read_offer, read_table
if __debug__:
    sys.exit("-O is not in effect")
wrong = [
    b"(", b")", b"a)", b"(fd", b"()()", b"'", b"(a '", b'"', b'"\\\\', b"1_0", b"(fd :fd inf)",
    b"[", b"(]", b"\\xff", b"\\0", b"(fd)", b'(fd :name "a" :fd true)', b"(def x (/ 1 0))",
    b'(fd :name "a" :fd 3) (fd :name "b" :fd 3 :fd 3)', "(fd :fd ٣)".encode(),
]
for data in wrong:
    for read in (read_table, read_offer):
        try:
            read(data, "t")
        except WwError as error:
            if error.code == 2 and error.where.startswith("t:"):
                continue
        sys.exit(repr(data))
"""


def test_errors_do_not_depend_on_assert() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", OPTIMIZED],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- whatever is in a file -----------------------------------------------------------------------

SEEDS = [
    '((fd :name "db" :fd 3 :mode "rw" :type "socket" :target 10) (fd (name "b") (fd 4)))',
    '(def n 3) (for (i (range 0 n)) (fd :name (str "l" i) :fd (+ 3 i) :move (= i 0)))',
    '(defn f (a b) (if (< a b) (let ((x a)) (fd :name (str "x" x) :fd x) (f (+ a 1) b)))) (f 0 5)',
    '(validate (name fd mode) (cond ((= mode "r") (>= fd 3)) (else (not (= name "x")))))',
    '(def s (str "a" (env "A" "b"))) (def l (concat (list s 1 true) (range 0 3)))',
    '; text\n(def q (quotient 7 (- 3 1)))\n(if (and (= q 3) (or false true)) (fd :name "é" :fd 0))',
]
FRAGMENTS = [
    *("(", ")", "((", "))", '"', "\\", ";", "\n", "\r", "'", "#", ":", "-", "1_0", "9" * 30, "٣"),
    *("inf", "true", "else", "fd", "def ", "defn ", "for ", "let ", "(f ", " x", ":name", ":fd "),
    *("(list)", "(range 0 99999)", "(f 1 2)", "(", "\0", "\ufeff", "é", "\u202e", "(/ 1 0)"),
]


def outcome(read: Callable[[bytes, str], object], data: bytes) -> WwError | None:
    """How a read ends; nothing else than an error of ww may come out."""
    try:
        read(data, "t")
    except WwError as error:
        return error
    return None


def finishes(data: bytes) -> None:
    """Hold that reading ends soon, and well or in an error that says where."""
    for read in (read_table, read_offer):
        start = time.process_time()
        error = outcome(read, data)
        assert time.process_time() - start < 60
        if error is not None:
            assert error.code == EXIT_USAGE
            assert re.fullmatch(r"t:[0-9]+:[0-9]+", error.where)
            assert str(error).isprintable()


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    finishes(data)


@settings(deadline=None)
@given(st.text(st.sampled_from("()\"\\; \n:-+=<'abfd0123456789é"), max_size=200))
def test_random_text_of_what_tables_are_made_of(text: str) -> None:
    finishes(text.encode())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.sampled_from(["", *FRAGMENTS]))),
)
def test_mutated_tables(text: str, changes: list[tuple[int, int, str]]) -> None:
    for position, length, put in changes:
        at = position % (len(text) + 1)
        text = text[:at] + put + text[at + length :]
    finishes(text.encode())


WORDS = st.sampled_from(
    [
        *("def", "defn", "let", "if", "cond", "else", "for", "range", "str", "concat", "list"),
        *("env", "and", "or", "not", "int", "+", "-", "*", "/", "quotient", "modulo", "remainder"),
        *("=", "!=", "<", "<=", ">", ">=", "fd", "validate", "f", "g", "x", "y", ":name", ":fd"),
        *("0", "1", "7", "-3", "true", "false", '"a"', '"r"', "()", "(x y)", "((x 1))"),
        *("(def x 1)", "(x 2)", "(i (range 0 9))"),
    ]
)
FORMS = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=5).map(lambda items: f"({' '.join(items)})")
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FORMS, max_size=8))
def test_tables_that_are_well_formed_and_make_no_sense(forms: list[str]) -> None:
    prelude = "(def y 5) (defn f (x) (g x)) (defn g (x) (if (> x 9) x (+ 1 (f (+ x 1)))))"
    finishes(f"{prelude} {' '.join(forms)}".encode())

"""What computed tables mean: values, scope, choices, definitions, and the errors about them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.model import Request
from runner.grants.reader import MAX_INTEGER, MIN_INTEGER
from runner.grants.tables import Facts, Validator, read_table
from tests.unit.tables.conftest import Refused

VARIABLES = {"TEXT": "some text", "NUMBER": "7", "EMPTY": ""}


def requests(text: str) -> list[Request]:
    return read_table(text.encode(), "caps.sexp", VARIABLES).requests


def names(text: str) -> list[str]:
    return [request.name for request in requests(text)]


def verdict(expression: str, prelude: str = "") -> bool:
    """Whether an expression is true, by what it decides."""
    table = f'{prelude} (if {expression} (fd :name "yes" :fd 3) (fd :name "no" :fd 3))'
    return names(table) == ["yes"]


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(+)", 0),
        ("(+ 1)", 1),
        ("(+ 1 2 3)", 6),
        ("(*)", 1),
        ("(* 2 3 4)", 24),
        ("(- 5)", -5),
        ("(- 10 3 2)", 5),
        ("(/ 12 4)", 3),
        ("(/ -12 4)", -3),
        ("(quotient 7 2)", 3),
        ("(quotient -7 2)", -3),
        ("(quotient 7 -2)", -3),
        ("(quotient -7 -2)", 3),
        ("(remainder -7 2)", -1),
        ("(remainder 7 -2)", 1),
        ("(modulo -7 2)", 1),
        ("(modulo 7 -2)", -1),
        ('(int "42")', 42),
        ('(int "-42")', -42),
        ('(int (env "NUMBER"))', 7),
        ("(if true 1 2)", 1),
        ("(if false 1 2)", 2),
        ("(cond (false 1) (true 2) (else 3))", 2),
        ("(cond (false 1) (else 3))", 3),
        ("(let ((a 1) (b 2)) (+ a b))", 3),
        ("(let () 4)", 4),
        ("(or false 5)", 5),
        ("(and 5 6)", 6),
    ],
)
def test_numbers(expression: str, value: int) -> None:
    assert verdict(f"(= {value} {expression})")


@settings(deadline=None)
@given(st.integers(MIN_INTEGER, MAX_INTEGER), st.integers(MIN_INTEGER, MAX_INTEGER))
def test_division_keeps_its_promise(a: int, b: int) -> None:
    if b == 0 or (a, b) == (MIN_INTEGER, -1):
        return
    # All of Scheme's definition: a = b*q + r, |r| < |b|, and whose sign the remainder has.
    assert verdict(
        f"""(let ((q (quotient {a} {b})) (r (remainder {a} {b})) (m (modulo {a} {b})))
              (and (= {a} (+ (* {b} q) r))
                   (or (= r 0) (= (< r 0) (< {a} 0)))
                   (or (= m 0) (= (< m 0) (< {b} 0)))
                   (or (= r m) (= m (+ r {b})))))"""
    )


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(= 1 1)", True),
        ("(= 1 2)", False),
        ("(= 1 1 1)", True),
        ("(= 1 1 2)", False),
        ('(= "a" "a")', True),
        ('(= "a" "b")', False),
        ("(= true true)", True),
        ("(= true false)", False),
        ("(!= 1 2)", True),
        ('(!= "a" "a")', False),
        ("(< 1 2 3)", True),
        ("(< 1 3 2)", False),
        ("(<= 1 1 2)", True),
        ("(> 3 2 1)", True),
        ("(>= 3 3 4)", False),
        ("(not false)", True),
        ("(not true)", False),
        # As in Scheme, only false is false.
        ("0", True),
        ('""', True),
        ("(list)", True),
        ("(not 0)", False),
        ("(and)", True),
        ("(or)", False),
        ("(and 1 2)", True),
        ("(and 1 false 2)", False),
        ("(or false false)", False),
        # What decides ends it: the rest has no meaning, and is not asked for one.
        ("(or 1 undefined)", True),
        ("(and false undefined)", False),
        ("(if true true undefined)", True),
        ("(cond (true true) (undefined 1))", True),
        ('(= "" (env "EMPTY"))', True),
        ('(= "" (env "EMPTY" undefined))', True),
        ('(env "UNSET" false)', False),
    ],
)
def test_conditions(expression: str, value: bool) -> None:
    assert verdict(expression) is value


@pytest.mark.parametrize(
    ("expression", "texts"),
    [
        ('(list "a" "b")', ["a", "b"]),
        ("(list)", []),
        ("(concat)", []),
        ('(concat (list "a") (list) (list "b" "c"))', ["a", "b", "c"]),
        ('(list (concat "a" "b" "c"))', ["abc"]),
        ('(for (i (range 2 5)) (str "n" i))', ["n2", "n3", "n4"]),
        ('(for (i (range 5 5)) (str "n" i))', []),
        ('(for (i (range 5 2)) (str "n" i))', []),
        ('(for (i (for (j (range 0 3)) (* j j))) (str "n" i))', ["n0", "n1", "n4"]),
        ('(list (str "a" 1 true false "-" (- -2)))', ["a1truefalse-2"]),
        ('(list (str (str) "x"))', ["x"]),
        ('(if true (list "a") (list "b"))', ["a"]),
    ],
)
def test_lists_and_strings(expression: str, texts: list[str]) -> None:
    assert names(f"(for (n {expression}) (fd :name n :fd 3))") == texts


def test_every_value_of_a_key_may_be_computed() -> None:
    text = """
(def base 3)
(fd :name (str "a" "b") (fd (+ base 1)) :mode (if (< base 4) "r" "w") (type (concat "fi" "le"))
    :target (* base 4) :move (= base 3) :cloexec (not true) :pathlink (and true true))
"""
    assert requests(text) == [Request("ab", 4, "caps.sexp:3:1", "r", "file", 12, True, False, True)]


# --- forms ---------------------------------------------------------------------------------------


def test_forms_make_grants_in_the_order_in_which_they_stand() -> None:
    text = """
(
  (def hosts (list "db" "cache"))
  (defn pair (name at)
    (fd :name (str name "-in") :fd at)
    (fd :name (str name "-out") :fd (+ at 1)))
  (fd :name "first" :fd 3)
  (for (i (range 0 2))
    (for (host hosts)
      (pair (str host i) (+ 4 (* 2 i)))))
  (let ((a "x") (b "y"))
    (fd :name a :fd 3)
    (if (= a b) (fd :name "never" :fd 3))
    (cond ((= a "x") (fd :name "c1" :fd 3) (fd :name "c2" :fd 3))
          (else (fd :name "never" :fd 3)))
    (cond (false (fd :name "never" :fd 3)))
    (fd :name b :fd 3)))
"""
    assert names(text) == [
        "first",
        *("db0-in", "db0-out", "cache0-in", "cache0-out"),
        *("db1-in", "db1-out", "cache1-in", "cache1-out"),
        *("x", "c1", "c2", "y"),
    ]


def test_the_origin_of_a_computed_grant_is_its_form() -> None:
    text = '(defn one (i)\n  (fd :name (str "a" i) :fd i))\n(for (i (range 3 5)) (one i))'
    assert [r.origin for r in requests(text)] == ["caps.sexp:2:3", "caps.sexp:2:3"]


def test_a_function_that_calls_itself_last_may_do_so_as_often_as_it_likes() -> None:
    sums = "(defn sum (n acc) (if (= n 0) acc (sum (- n 1) (+ acc n))))"
    assert verdict("(= 12502500 (sum 5000 0))", sums)
    loop = """
(defn listeners (i)
  (if (< i 250)
    (let ((n (+ i 1)))
      (fd :name (str "l" i) :fd 3)
      (cond ((= i -1) (fd :name "never" :fd 3))
            (else (listeners n))))))
(listeners 0)"""
    assert len(requests(loop)) == 250


def test_functions_that_do_not_call_themselves_last_may_go_100_deep() -> None:
    sums = "(defn sum (n) (if (= n 0) 0 (+ n (sum (- n 1)))))"
    assert verdict("(= 5050 (sum 100))", sums)


def test_functions_see_what_is_defined_when_they_are_called() -> None:
    text = """
(defn even (n) (if (= n 0) true (odd (- n 1))))
(defn odd (n) (if (= n 0) false (even (- n 1))))
"""
    assert verdict("(even 100)", text)
    assert not verdict("(even 101)", text)


# --- scope ---------------------------------------------------------------------------------------


def test_scope_is_lexical() -> None:
    text = """
(def x 1)
(defn f () x)
(def through (let ((x 2)) (f)))
"""
    assert verdict("(= 1 through)", text)
    assert verdict("(= 2 (let ((x 2)) x))", text)
    assert verdict("(= 2 (let ((x 2)) (let ((x 3) (y x)) y)))", text)
    assert verdict("(= 11 (+ x (let ((x 10)) x)))", text)


def test_parameters_and_elements_hide_what_is_outside() -> None:
    text = '(def i "outer") (defn f (i) (fd :name i :fd 3)) (f "inner")'
    text += ' (for (i (list "element")) (fd :name i :fd 3)) (fd :name i :fd 3)'
    assert names(text) == ["inner", "element", "outer"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # Names.
        ("(def x §y)", "'y' is not defined"),
        ("(fd :name (§f) :fd 3)", "'f' is not defined"),
        ("(def x (§f 1)) (defn f (a) a)", "'f' is not defined"),
        ("(let ((a 1) (b §a)) b)", "'a' is not defined"),
        ("(for (i (range 0 1)) (if false 1))\n(def x §i)", "'i' is not defined"),
        ("(defn f () §z) (def y (let ((z 1)) (f)))", "'z' is not defined"),
        ("(def x 1)\n(def §x 2)", "'x' is already defined at caps.sexp:1:6"),
        ("(def x 1)\n(defn §x () 2)", "'x' is already defined"),
        ("(defn x () 1) (def §x 2)", "'x' is already defined"),
        ("(def §if 1)", "'if' belongs to the language"),
        ("(def §fd 1)", "'fd' belongs to the language"),
        ("(def §else 1)", "'else' belongs to the language"),
        ("(defn §list () 1)", "'list' belongs to the language"),
        ("(defn §validate-fd-access () 1)", "belongs to the language"),
        ("(let ((§str 1)) 1)", "'str' belongs to the language"),
        ("(defn f (a §fd) 1)", "'fd' belongs to the language"),
        ("(for (§range (list)) 1)", "'range' belongs to the language"),
        ("(def §:x 1)", "a name is expected here"),
        ("(def §true 1)", "a name is expected here"),
        ("(def §3 1)", "a name is expected here"),
        ("(let ((a 1) (§a 2)) a)", "'a' stands here twice"),
        ("(defn f (a b §a) 1)", "'a' stands here twice"),
        ("(def x §:y)", "the keyword ':y' stands where a value is expected"),
        ("(def x §else)", "'else' belongs to the language"),
        ("(def x §+)", "'+' belongs to the language"),
        ("(defn f () 1) (def x §f)", "'f' is a function"),
        ("(def x 1) (def y (§x))", "'x' is not a function: it is the number 1"),
        ("(defn f () 1) (let ((f 2)) (§f))", "'f' is not a function: it is the number 2"),
        # Shapes.
        ("§(def x)", "(def ...) has 1 arguments"),
        ("§(def x 1 2)", "(def ...) has 3 arguments"),
        ("§(def)", "(def ...) has 0 arguments"),
        ("§(defn f ())", "(defn ...) has 2 arguments"),
        ("(defn f §x 1)", "a list of parameters is expected here"),
        ("(defn f (§1) 1)", "a name is expected here"),
        ("(defn f (a) 1) §(f)", "(f ...) has 0 arguments"),
        ("(defn f (a) 1) §(f 1 2)", "(f ...) has 2 arguments"),
        ("§(if true)", "(if ...) has 1 arguments"),
        ("§(if true 1 2 3)", "(if ...) has 4 arguments"),
        ("(def x §(if false 1))", "(if ...) comes to an end without a value"),
        ("(cond §true)", "a clause (condition expression) is expected here"),
        ("(cond §(true))", "a clause has a condition and what follows"),
        ("(cond §())", "a clause has a condition and what follows"),
        ("(cond §(else 1) (true 2))", "(else ...) is the last clause"),
        ("(def x §(cond (false 1)))", "(cond ...) comes to an end without a value"),
        ("(def x §(cond))", "(cond ...) comes to an end without a value"),
        ("(def x §(cond (true 1 2)))", "(cond ...) has 2 values here"),
        ("(def x §(let () 1 2))", "(let ...) has 2 values here"),
        ("(defn f () 1 2) (def x §(f))", "(f ...) has 2 values here"),
        ("§(let ())", "(let ...) has 1 arguments"),
        ("(let §x 1)", "a list of (name expression) is expected here"),
        ("(let (§x) 1)", "(name expression) is expected here"),
        ("(let (§(x)) 1)", "(name expression) is expected here"),
        ("(let (§(x 1 2)) 1)", "(name expression) is expected here"),
        ("(let ((§5 1)) 1)", "a name is expected here"),
        ("§(for (i (list)))", "(for ...) has 1 arguments"),
        ("(for §i 1)", "(name list) is expected here"),
        ("(for §(i) 1)", "(name list) is expected here"),
        ("(for §(i (list) 2) 1)", "(name list) is expected here"),
        ("(for (i §5) 1)", "this is the number 5"),
        ('(for (i §"abc") 1)', "this is the string 'abc'"),
        ("(def x §(for (i (list)) 1 2))", "(for ...) has 3 arguments"),
        ("(def x §())", "() is not an expression"),
        ("(def x §(1 2))", "a list must begin with the name"),
        ("(def x §((f) 2))", "a list must begin with the name"),
        ("(def x §(else 2))", "a list must begin with the name"),
        ('(def x §(fd :name "a" :fd 3))', "(fd ...) is a grant and not a value"),
        ("(let () §(def x 1))", "(def ...) stands at the top of a table only"),
        ("(if true §(defn f () 1))", "(defn ...) stands at the top of a table only"),
        ("(for (i (list 1)) §(validate (fd) true))", "(validate ...) stands at the top"),
        ("(def x §(def y 1))", "(def ...) stands at the top of a table only"),
        ("§(+ 1 2)", "(+ ...) gives a value, and no grant"),
        ('§(env "TEXT")', "(env ...) gives a value, and no grant"),
        ("(if true §1)", "this is not a form"),
        ("(let ((x 1)) §x)", "this is not a form"),
        ("(defn f (x) §(* x x)) (f 2)", "(* ...) gives a value, and no grant"),
        ("§(else 1)", "this is not a form"),
        # Types.
        ("(def x (+ 1 §true))", "this is the boolean true"),
        ('(def x (+ §"1" 1))', "this is the string '1'"),
        ("(def x (- §(list 1 2)))", "this is a list of 2"),
        ("(def x (< 1 §false))", "this is the boolean false"),
        ('(def x (< §"a" "b"))', "this is the string 'a'"),
        ('(def x (= 1 §"1"))', "this is the string '1', and the first argument the number 1"),
        ("(def x (= 1 §true))", "this is the boolean true"),
        ("(def x (!= 0 §false))", "this is the boolean false"),
        ("(def x (= §(list) (list)))", "lists cannot be compared"),
        ("(def x (str 1 §(list)))", "this is a list of 0"),
        ('(def x (concat §"a" (list)))', "this is the string 'a'"),
        ('(def x (concat (list) §"a"))', "this is the string 'a'"),
        ("(def x (concat §1))", "this is the number 1"),
        ('(def x (range 0 §"3"))', "this is the string '3'"),
        ("(def x (int §1))", "this is the number 1"),
        ('(def x (int §"1_0"))', "this is the string '1_0'"),
        ('(def x (int §" 1"))', "this is the string ' 1'"),
        ('(def x (int §"٣"))', "this is the string '٣'"),
        ('(def x (int §""))', "this is the string ''"),
        ('(def x (int §"9223372036854775808"))', "this is the string"),
        ("(def x (env §5))", "this is the number 5"),
        # Arguments.
        ("(def x §(-))", "(- ...) has 0 arguments"),
        ("(def x §(= 1))", "(= ...) has 1 arguments"),
        ("(def x §(!= 1 2 3))", "(!= ...) has 3 arguments"),
        ("(def x §(not))", "(not ...) has 0 arguments"),
        ("(def x §(range 1))", "(range ...) has 1 arguments"),
        ("(def x §(range 1 2 3))", "(range ...) has 3 arguments"),
        ("(def x §(/ 1))", "(/ ...) has 1 arguments"),
        ("(def x §(env))", "(env ...) has 0 arguments"),
        ('(def x §(env "A" 1 2))', "(env ...) has 3 arguments"),
        # Arithmetic.
        ("(def x §(+ 9223372036854775807 1))", "the result is too large"),
        ("(def x §(- -9223372036854775808 1))", "the result is too large"),
        ("(def x §(- -9223372036854775808))", "the result is too large"),
        ("(def x §(* 4294967296 4294967296))", "the result is too large"),
        ("(def x §(/ -9223372036854775808 -1))", "the result is too large"),
        ("(def x §(quotient -9223372036854775808 -1))", "the result is too large"),
        ("(def x §(/ 7 2))", "7 is not a multiple of 2"),
        ("(def x (/ 7 §0))", "this divides by zero"),
        ("(def x (quotient 7 §0))", "this divides by zero"),
        ("(def x (remainder 7 §(- 1 1)))", "this divides by zero"),
        ("(def x (modulo 7 §0))", "this divides by zero"),
    ],
)
def test_what_is_refused_and_where(refused: Refused, text: str, what: str) -> None:
    refused(text, what)


# --- the environment -----------------------------------------------------------------------------


def test_variables_are_strings() -> None:
    assert verdict('(= "some text" (env "TEXT"))')
    assert verdict('(= "7" (env "NUMBER" 8))')
    assert verdict('(= 8 (env "UNSET" (+ 4 4)))')
    assert verdict('(= "some text" (env (str "TE" "XT")))')


def test_the_environment_of_the_process_is_not_seen(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXT", "of the process")
    refused('(def x §(env "TEXT"))', "the variable 'TEXT' is not set, or the table may not see it")
    refused('(def x §(env "TEXT"))', "not set", {"OTHER": "1"})
    assert verdict('(= "some text" (env "TEXT"))')


def test_a_table_keeps_the_variables_that_it_was_read_with() -> None:
    variables = {"A": "before"}
    text = b'(validate () (= (env "A") "before"))'
    (validator,) = read_table(text, "t", variables).validators
    variables["A"] = "after"
    validator.check(FACTS, "--fd #1")


# --- validators ----------------------------------------------------------------------------------

FACTS = Facts(name="db", fd=3, mode="rw", type="socket", target=10)

REFERENCE = """
(
  (def validate-fd-access (name fd mode type)
    (cond
      ((= mode "rw") (and (>= fd 3) (or (= type "file") (= type "socket"))))
      ((= mode "r") (>= fd 0))
      ((= mode "w") (>= fd 1))
      (true false)))

  (fd :name "db" :fd 3 :mode "rw" :type "socket" :target 10)
  (fd :name "logs" :fd 4 :mode "w" :type "file" :target 11)
)
"""


def validators(text: str) -> list[Validator]:
    return read_table(text.encode(), "caps.sexp", VARIABLES).validators


def allows(text: str, facts: Facts = FACTS) -> bool:
    (validator,) = validators(text)
    try:
        validator.check(facts, "--fd #1")
    except WwError as error:
        if error.code != EXIT_GRANT:
            raise
        return False
    return True


def test_the_validation_of_the_reference_system() -> None:
    assert len(requests(REFERENCE)) == 2
    (validator,) = validators(REFERENCE)
    assert validator.origin == "caps.sexp:3:3"
    assert allows(REFERENCE)
    assert allows(REFERENCE, FACTS._replace(type="file", target=0))
    assert not allows(REFERENCE, FACTS._replace(fd=2))
    assert not allows(REFERENCE, FACTS._replace(type="stream"))
    assert allows(REFERENCE, FACTS._replace(mode="r", fd=0, type="stream"))
    assert not allows(REFERENCE, FACTS._replace(mode="w", fd=0))


@pytest.mark.parametrize(
    ("parameters", "condition", "verdict"),
    [
        ("(name fd mode type target)", '(= name "db")', True),
        ("(name fd mode type target)", "(= fd 3)", True),
        ("(name fd mode type target)", '(= mode "r")', False),
        ("(name fd mode type target)", '(= type "socket")', True),
        ("(name fd mode type target)", "(= target 11)", False),
        ("(target fd)", "(and (= fd 3) (= target 10))", True),  # by name, not by position
        ("()", "true", True),
        ("()", "false", False),
        ("(fd)", "(<= 3 fd (+ limit 0))", True),
        ("(fd)", "(small fd)", True),
        ("(name)", '(= (str name "!") "db!")', True),
        ("(fd)", "(let ((x fd)) (= x 4))", False),
    ],
)
def test_a_validation_decides_by_what_a_grant_is(
    parameters: str, condition: str, verdict: bool
) -> None:
    text = f"(validate {parameters} {condition}) (def limit 5) (defn small (n) (< n limit))"
    assert allows(text) is verdict


def test_a_refusal_says_what_is_refused_and_by_what() -> None:
    (validator,) = validators("\n(validate (fd) (> fd 3))")
    with pytest.raises(WwError) as caught:
        validator.check(FACTS, "--fd #2")
    assert caught.value.code == EXIT_GRANT
    assert str(caught.value) == (
        "--fd #2: 'db' is refused by the validation at caps.sexp:2:1"
        " (it is fd=3 mode=rw type=socket target=10)"
    )


def test_validations_are_in_order_and_independent() -> None:
    table = read_table(b"(validate (fd) true)\n(validate (fd) false)", "t")
    assert [validator.origin for validator in table.validators] == ["t:1:1", "t:2:1"]
    assert table.requests == []


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("(validate (fd) fd)", "1:16", "the condition gives the number 3 for a grant"),
        ("(validate (fd) (list))", "1:16", "the condition gives a list of 0 for a grant"),
        ('(validate (mode) (cond ((= mode "r") true)))', "1:18", "without a value"),
        ("(validate (fd) (= name 3))", "1:19", "'name' is not defined"),
        ('(validate (fd) (= fd "3"))', "1:22", "this is the string '3'"),
        ("(validate () (fd))", "1:14", "(fd ...) is a grant and not a value"),
        ("(validate () (f)) (defn f () (f))", "1:30", "more than 100000 steps"),
        ("(validate () (f)) (defn f () (+ (f)))", "1:33", "more than 128 deep"),
        ("(validate () (= 1 (range 0 9999999)))", "1:19", "more than 10000 cells"),
    ],
)
def test_a_validation_without_an_answer_is_an_error(text: str, where: str, what: str) -> None:
    (validator,) = validators(text)
    for _ in range(2):
        with pytest.raises(WwError) as caught:
            validator.check(FACTS, "--fd #1")
        assert caught.value.code == EXIT_USAGE
        assert caught.value.where == f"caps.sexp:{where}"
        assert what in caught.value.what


def test_every_check_has_a_budget_of_its_own() -> None:
    loop = "(defn f (n) (if (= n 0) true (f (- n 1))))"
    (validator,) = validators(f"{loop} (validate () (f 9000))")
    for _ in range(5):
        validator.check(FACTS, "--fd #1")


def test_all_checks_of_a_table_have_one_budget_together() -> None:
    # Of many validations and many grants, each within its own, nobody would see the end.
    found = validators("(defn f (n) (if (= n 0) true (f (- n 1))))" + "(validate () (f 9000))" * 9)

    def check_all() -> None:
        for _ in range(9):
            for validator in found:
                validator.check(FACTS, "--fd #1")

    with pytest.raises(WwError, match="more than 1000000 steps together") as caught:
        check_all()
    assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(validate (§x) true)", "this is not what a validation is given"),
        ("(validate (fd §move) true)", "this is not what a validation is given"),
        ("(validate (§3) true)", "this is not what a validation is given"),
        ("(validate (fd mode §fd) true)", "'fd' stands here twice"),
        ("(validate §fd true)", "a list of parameters is expected here"),
        ("§(validate (fd))", "(validate ...) has 1 arguments"),
        ("§(validate (fd) true false)", "(validate ...) has 3 arguments"),
        ("(def validate-fd-access (§n fd) true)", "this is not what a validation is given"),
        ("§(def validate-fd-access true)", "(def ...) has 2 arguments"),
        ("§(def validate-fd-access (fd) true true)", "(def ...) has 4 arguments"),
        ("§(def other (fd) true)", "(def ...) has 3 arguments"),
        ("(def x §validate-fd-access)", "belongs to the language"),
    ],
)
def test_validations_that_are_refused(refused: Refused, text: str, what: str) -> None:
    refused(text, what)

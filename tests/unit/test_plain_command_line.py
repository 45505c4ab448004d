"""`ww run` reads its command line in two ways, and they never differ."""

import os
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.commands import plain
from runner.commands.flags import AS_JSON, EXPLAIN, RUN, WITH_EXEC, Option
from runner.commands.run import run
from runner.commands.state import DEBUG

VARIABLES = tuple(option.variable for option in RUN if option.variable)
FOR_CLICK = (EXPLAIN, AS_JSON, WITH_EXEC)
PLAIN = tuple(option for option in RUN if option not in FOR_CLICK)


def as_click_reads(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    state: dict[str, Any] = {DEBUG: False}
    with patch.dict(os.environ, environ, clear=True):
        context = run.make_context("run", list(args), obj=state)
    return {**context.params, "debug": state[DEBUG]}


# Numbers as only some read them, words that other options know, and whatever else.
VALUES = st.one_of(
    st.sampled_from(
        [
            *("0", "1", "7", "007", "65534", "4294967294", "4294967295", "99999999999", "-1", "+1"),
            *(" 5", "1_0", "٣", "", "-", "--", "@x", "none", "loopback", "full", "chroot", "Full"),
            *("landlock", "cgroup", "listen", "x.wasm", "./x", "/ipfs/x", "K=V", "db=3,mode=r"),
        ]
    ),
    st.text(max_size=4),
)
FLAGS = st.sampled_from([option.flag for option in RUN] + ["--help", "-h", "--versio", "-x", "--"])
WORDS = st.one_of(
    FLAGS,
    VALUES,
    st.builds("{}={}".format, FLAGS, VALUES),
    st.builds(lambda flag: flag[:-1], FLAGS),
)
# What a user types: each flag with the value it takes.
TYPED = st.sampled_from(PLAIN).flatmap(
    lambda option: (
        st.just([option.flag])
        if option.switch
        else st.sampled_from([[option.flag, "{}"], [option.flag + "={}"]]).flatmap(
            lambda form: (st.sampled_from(option.choices) if option.choices else VALUES).map(
                lambda value: [word.replace("{}", value) for word in form]
            )
        )
    )
)
LINES = st.one_of(
    st.lists(WORDS, max_size=8),
    st.builds(
        lambda flags, rest: [*(word for flag in flags for word in flag), *rest],
        st.lists(TYPED, max_size=6),
        st.lists(WORDS, max_size=4),
    ),
)


@settings(max_examples=500, deadline=None)
@given(
    LINES,
    st.dictionaries(
        st.sampled_from([*VARIABLES, "_WW_COMPLETE", "HOME"]), st.sampled_from(["", "0", "1", "x"])
    ),
)
def test_what_is_read_without_click_is_what_click_would_read(
    args: list[str], environ: dict[str, str]
) -> None:
    values = plain.read(args, environ)
    if values is not None:
        assert "_WW_COMPLETE" not in environ
        assert values == as_click_reads(args, environ)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x"], {"cell": "x", "args": ()}),
        (["x", "--fd", "-h", "--", "y"], {"cell": "x", "args": ("--fd", "-h", "--", "y")}),
        (["--", "-x", "y"], {"cell": "-x", "args": ("y",)}),
        (["--fd", "a=3", "--fd=b=4", "x"], {"fds": ("a=3", "b=4")}),
        (["--use-systemd-fds", "x"], {"systemd": "listen", "cell": "x"}),
        (["--use-systemd-fds=web", "x"], {"systemd": "web", "cell": "x"}),
        (["--fd-from", "-", "x"], {"tables": ("-",)}),
        (["--uid", "7", "--uid", "8", "x"], {"uid": 8}),
        (["--net", "loopback", "--require", "cgroup", "x"], {"required": ("cgroup",)}),
        (["--debug", "--no-stdio", "x"], {"debug": True, "no_stdio": True}),
        (["--env", "--fd", "x"], {"env": ("--fd",), "fds": (), "cell": "x"}),
        (["x"], {"invoke": None}),
        (["--invoke", "", "x"], {"invoke": ""}),
        (["--invoke=", "x"], {"invoke": ""}),
    ],
    ids=" ".join,
)
def test_what_is_usual_takes_no_click(args: list[str], said: dict[str, Any]) -> None:
    values = plain.read(args, {"HOME": "/"})
    assert values is not None
    assert {name: values[name] for name in said} == said
    assert values == as_click_reads(args, {})


@pytest.mark.parametrize("option", PLAIN, ids=lambda option: option.flag)
def test_every_flag_that_runs_a_cell_takes_no_click(option: Option) -> None:
    value = option.choices[0] if option.choices else "5"
    forms = [[option.flag], [f"{option.flag}={value}"]]
    if option.switch:
        del forms[1]
    elif option.bare is None:
        forms[0].append(value)
    for form in forms:
        values = plain.read([*form, "x"], {})
        assert values is not None, form
        assert values["cell"] == "x"
        assert values == as_click_reads([*form, "x"], {})


@pytest.mark.parametrize(
    "args",
    [
        *([], ["--help"], ["-h", "x"], ["--explain", "x"], ["--explain", "--json", "x"]),
        *(["--json", "x"], ["--with-exec", "x"], ["--nonsense", "x"], ["--fd"], ["--"], ["-"]),
        *(["--debug=yes", "x"], ["--net", "all", "x"], ["--uid", "0", "x"], ["--uid", "ten", "x"]),
        *(["--status-fd", "٣", "x"], ["--status-fd", "03", "x"], ["--uid", "1_000", "x"]),
        *(["--deb", "x"], ["--fd-verbose"], [""], ["--", ""]),
    ],
    ids=" ".join,
)
def test_what_needs_to_be_said_something_of_is_for_click(args: list[str]) -> None:
    assert plain.read(args, {}) is None


@pytest.mark.parametrize("name", [*VARIABLES, "_WW_COMPLETE"])
def test_variables_that_mean_something_are_for_click(name: str) -> None:
    assert plain.read(["x"], {}) is not None
    assert plain.read(["x"], {name: "1"}) is None


def test_fields_are_told_apart() -> None:
    fields = [option.field for option in RUN]
    assert len({*fields, "cell", "args"}) == len(fields) + 2

"""Grants from several sources: decorations, mappings, aliases, and one plan of them all."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import WwError
from runner.grants.collect import Sources, collect
from runner.grants.flags import Decoration, parse_fds, parse_maps
from runner.grants.merge import merge
from runner.grants.model import Request
from runner.inherited import Inherited


def request(name: str, source: int = 7, **options: object) -> Request:
    return Request(name, source, f"origin of {name}", **options)  # type: ignore[arg-type]


def test_a_bare_name_decorates_what_another_source_brings() -> None:
    _, decorations = parse_fds(["db,mode=r,target=12,pathlink=true"])
    assert merge([request("a"), request("db", mode="rw")], decorations) == [
        request("a"),
        request("db", mode="r", target=12, pathlink=True),
    ]


def test_a_mapping_overrides_a_target_from_anywhere() -> None:
    _, decorations = parse_fds(["db,target=12"])
    merged = merge([request("db", target=4)], decorations, parse_maps(["db=20"]))
    assert merged == [request("db", target=20)]


def test_an_alias_stands_for_its_grant_but_does_not_rename_it() -> None:
    _, decorations = parse_fds(["web,mode=r"])
    merged = merge(
        [request("listen0")], decorations, parse_maps(["listen0=20"]), {"web": "listen0"}
    )
    assert merged == [request("listen0", mode="r", target=20)]


@pytest.mark.parametrize(
    ("flags", "maps", "words"),
    [
        (["x,mode=r"], [], "nothing brings a descriptor named 'x'"),
        ([], ["x=3"], "nothing brings a descriptor named 'x'"),
        (["db,mode=r", "db,mode=rw"], [], "mode of 'db' is already given by --fd #1"),
        ([], ["db=1", "db=2"], "--fd-map of 'db' is already given by --fd-map #1"),
        ([], ["web=1", "db=2"], "--fd-map of 'db' is already given by --fd-map #1"),
    ],
)
def test_a_flag_about_nothing_or_about_the_same_twice_is_refused(
    flags: list[str], maps: list[str], words: str
) -> None:
    _, decorations = parse_fds(flags)
    with pytest.raises(WwError) as caught:
        merge([request("db")], decorations, parse_maps(maps), {"web": "db"})
    assert caught.value.code == 2
    assert words in str(caught.value)


def test_an_alias_that_is_also_a_name_is_refused() -> None:
    with pytest.raises(WwError, match="also an alias"):
        merge([request("web"), request("listen0")], aliases={"web": "listen0"})


@pytest.mark.parametrize(
    ("value", "column"),
    [("", 1), ("db", 1), ("=3", 1), ("db=", 4), ("db=x", 4), ("d b=3", 1), ("db=1_0", 4)],
)
def test_a_malformed_mapping_names_the_column(value: str, column: int) -> None:
    with pytest.raises(WwError) as caught:
        parse_maps([value])
    assert caught.value.code == 2
    assert f"column {column}:" in str(caught.value)


@given(st.permutations(["a=3", "b=4,target=10", "c=5"]), st.permutations(["a=11", "c=20"]))
def test_decorations_and_mappings_do_not_depend_on_their_order(
    flags: list[str], maps: list[str]
) -> None:
    requests, _ = parse_fds(flags)
    merged = {r.name: r.target for r in merge(requests, (), parse_maps(maps))}
    assert merged == {"a": 11, "b": 10, "c": 20}


def test_decorating_changes_nothing_but_what_it_says() -> None:
    before = request("db", mode="rw", type="file", target=3, move=True)
    after = merge([before], [Decoration("db", "o", {"cloexec": False})])
    assert after == [before._replace(cloexec=False)]


def test_a_program_can_build_a_plan_from_flags_and_a_table(tmp_path: Path) -> None:
    table = tmp_path / "caps.sexp"
    file = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    try:
        table.write_text(f'(fd :name "log" :fd {file} :mode "w")')
        plan = collect(
            Sources(
                fds=(f"data={file},mode=r", "log,target=30"),
                maps=("data=31",),
                tables=(f"@{table}",),
                stdio=False,
            ),
            Inherited(frozenset({0, 1, 2, file})),
            {},
        )
    finally:
        os.close(file)
    named = {g.name: (g.target, g.mode) for g in plan.grants if g.name}
    assert named == {"log": (30, "w"), "data": (31, "r")}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('(validate (mode) (= mode "r")) (fd :name "a" :fd {fd} :mode "r")', None),
        ('(validate (mode) (= mode "r")) (fd :name "a" :fd {fd} :mode "w")', 65),
        ('(validate (name) (= name "flag"))', None),
        ('(validate (name) (= name "other"))', 65),
    ],
)
def test_a_validation_holds_for_grants_of_every_flag(
    tmp_path: Path, text: str, code: int | None
) -> None:
    table = tmp_path / "caps.sexp"
    file = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    try:
        table.write_text(text.format(fd=file))
        sources = Sources(fds=(f"flag={file},mode=r",), tables=(str(table),), stdio=False)
        inherited = Inherited(frozenset({0, 1, 2, file}))
        if code is None:
            collect(sources, inherited, {})
        else:
            with pytest.raises(WwError) as caught:
                collect(sources, inherited, {})
            assert caught.value.code == code
            assert str(table) in str(caught.value)
    finally:
        os.close(file)

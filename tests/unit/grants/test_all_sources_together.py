"""Flags, tables, directories and systemd's variables, drawn together: the plan keeps its rules."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants import systemd
from runner.grants.collect import Sources, collect
from runner.grants.plan import GrantPlan
from runner.inherited import Inherited

# The descriptors of this test stand where pytest has none, and systemd's begin with them.
FIRST: Final = 500
GOOD: Final = 8
OWN, LATER, CLOSED, PATH, EPOLL = range(FIRST + 20, FIRST + 25)
BAD: Final = (OWN, LATER, CLOSED, PATH, EPOLL)
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class World(NamedTuple):
    """What ww was started with, and files for tables."""

    inherited: Inherited
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("together")
    (folder / "file").touch()
    with contextlib.ExitStack() as stack:
        pipe = os.pipe()
        one, _other = map(stack.enter_context, socket.socketpair())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        made = [
            os.open(folder / "file", os.O_RDONLY),
            *pipe,
            os.open(folder / "file", os.O_RDWR),
            os.dup(one.fileno()),
            os.open(folder, os.O_RDONLY),
            os.open(folder / "file", os.O_WRONLY),
            os.dup(listener.fileno()),
        ]
        assert len(made) == GOOD
        for number, fd in enumerate(made, FIRST):
            os.dup2(fd, number)
            os.close(fd)
            stack.callback(os.close, number)
        for number, fd in (
            (OWN, FIRST),
            (LATER, FIRST),
            (PATH, os.open(folder, os.O_PATH)),
            (EPOLL, stack.enter_context(select.epoll()).fileno()),
        ):
            os.dup2(fd, number)
            stack.callback(os.close, number)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(systemd, "FIRST", FIRST)
        good = range(FIRST, FIRST + GOOD)
        inherited = Inherited(frozenset({0, 1, 2, *good, PATH, EPOLL}), frozenset({OWN}))
        yield World(inherited, folder)


# What users write: (name, source, options), by any way to write it.

Options = dict[str, str]
NAMES = st.sampled_from(
    [*(f"n{index}" for index in range(12)), "N1", "my-db", "my_db", "stdin", "listen0", "dir1"]
)
SOURCES = st.one_of(
    st.sampled_from(range(FIRST, FIRST + GOOD)),
    st.sampled_from(range(FIRST, FIRST + GOOD)),
    st.sampled_from([0, 1, 2, *BAD]),
)
TARGETS = st.one_of(
    st.integers(0, 30),
    st.sampled_from(range(FIRST, FIRST + GOOD)),
    st.sampled_from([65534, 65535, 9999999]),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["r", "w", "rw"]),
        "type": st.sampled_from(["stream", "file", "socket"]),
        "target": TARGETS.map(str),
        "move": st.sampled_from(["true", "false"]),
        "cloexec": st.sampled_from(["true", "false"]),
        "pathlink": st.sampled_from(["true", "false"]),
    },
)
# Most have few options, so that many plans come out.
FEW: st.SearchStrategy[Options] = st.one_of(st.just({}), st.just({}), OPTIONS)
# An alias that systemd may bring, and a grant may have as its name.
BOTH: Final = "both"
GRANTS = st.lists(st.tuples(NAMES | st.just(BOTH), SOURCES, FEW), max_size=3)


def flag(name: str, source: int | None, options: Options) -> str:
    head = name if source is None else f"{name}={source}"
    return ",".join([head, *(f"{key}={value}" for key, value in options.items())])


def inherit(name: str, source: int, options: Options) -> str:
    return flag(f"inherit:{source},name={name}", None, options)


def form(name: str, source: int, options: Options) -> str:
    quoted = {
        key: f'"{value}"' if key in ("mode", "type") else value for key, value in options.items()
    }
    rest = " ".join(f":{key} {value}" for key, value in quoted.items())
    return f'(fd :name "{name}" :fd {source} {rest})'


LISTEN = st.fixed_dictionaries(
    {
        "LISTEN_PID": st.sampled_from([None, "1", "x", *[str(os.getpid())] * 9]),
        "LISTEN_FDS": st.one_of(
            st.integers(1, GOOD).map(str),
            st.integers(1, GOOD).map(str),
            st.sampled_from([None, "0", "-1", "1000000000", str(GOOD + 1), "1_0"]),
        ),
        "LISTEN_FDNAMES": st.one_of(
            st.none(),
            st.none(),
            st.lists(
                st.sampled_from(["web", "admin", "unknown", "a.b", BOTH, "é"]), max_size=GOOD
            ).map(":".join),
        ),
    }
)
WILD = st.fixed_dictionaries(
    {
        "fds": GRANTS,
        "decorations": st.lists(st.tuples(NAMES | st.just("web"), OPTIONS), max_size=1),
        "maps": st.lists(st.tuples(NAMES | st.just("listen1"), TARGETS), max_size=1),
        "fdctls": GRANTS,
        "tables": st.lists(GRANTS, max_size=2),
        "listen": st.one_of(st.none(), LISTEN),
        "dirs": st.lists(st.sampled_from(["/:/x", "/proc:/y:rw", ".:/n1"]), max_size=1),
        "stdio": st.booleans(),
        "scratch": st.booleans(),
    }
)


@st.composite
def tidy(draw: st.DrawFn) -> dict[str, Any]:
    """What goes together more often than not: most of what is drawn above does not."""
    count = draw(st.integers(0, GOOD))
    listen: dict[str, str | None] | None = None
    if count:
        words = [f"web{index}" for index in range(count)]
        names = draw(st.none() | st.just(":".join(words)))
        listen = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
    modest = OPTIONS.map(
        lambda o: {k: v for k, v in o.items() if k in ("cloexec", "pathlink") or v == "r"}
    )
    targets = iter(draw(st.permutations([*range(8, 30), *range(FIRST, FIRST + GOOD)])))
    ways: list[list[tuple[str, int, Options]]] = [[], [], [], []]
    for index in range(draw(st.integers(0, 6))):
        options = dict(draw(modest))
        if draw(st.booleans()):
            options["target"] = str(next(targets))
        source = draw(st.sampled_from(range(FIRST, FIRST + GOOD)))
        draw(st.sampled_from(ways)).append((f"n{index}", source, options))
    fds, fdctls, *tables = ways
    elsewhere = [each[0] for way in (fdctls, *tables) for each in way]
    elsewhere += [f"listen{index}" for index in range(count)]
    several = st.lists(st.sampled_from(elsewhere), unique=True, max_size=3)
    none: st.SearchStrategy[list[str]] = st.just([])
    return {
        "fds": fds,
        "decorations": [(name, draw(modest)) for name in draw(several if elsewhere else none)],
        "maps": [(name, next(targets)) for name in draw(several if elsewhere else none)],
        "fdctls": fdctls,
        "tables": tables,
        "listen": listen,
        "dirs": draw(st.sampled_from([[], ["/:/x"], ["/proc:/y:rw", ".:/z"]])),
        "stdio": draw(st.booleans()),
        "scratch": draw(st.booleans()),
    }


def write_tables(world: World, tables: list[list[tuple[str, int, Options]]]) -> tuple[str, ...]:
    paths = [world.folder / f"table{index}" for index in range(len(tables))]
    for path, grants in zip(paths, tables, strict=True):
        path.write_text("\n".join(form(*each) for each in grants))
    return tuple(f"@{path}" for path in paths)


def planned_or_refused(
    sources: Sources, world: World, environ: dict[str, str]
) -> GrantPlan | WwError:
    try:
        return collect(sources, world.inherited, environ)
    except WwError as error:
        return error


@given(st.one_of(tidy(), WILD))
def test_whatever_is_asked_together_is_refused_in_one_line_or_planned_by_the_rules(
    world: World, drawn: dict[str, Any]
) -> None:
    listen: dict[str, str | None] | None = drawn["listen"]
    environ = {"HOME": "/"} | {k: v for k, v in (listen or {}).items() if v is not None}
    # A bare `stdin` is a grant of its own and no decoration.
    decorations = [each for each in drawn["decorations"] if each[0] != "stdin"]
    sources = Sources(
        fds=(
            *(flag(*each) for each in drawn["fds"]),
            *(flag(name, None, options) for name, options in decorations),
        ),
        maps=tuple(f"{name}={target}" for name, target in drawn["maps"]),
        fdctls=tuple(inherit(*each) for each in drawn["fdctls"]),
        systemd=None if listen is None else "listen",
        tables=write_tables(world, drawn["tables"]),
        stdio=drawn["stdio"],
        dirs=tuple(drawn["dirs"]),
        scratch=drawn["scratch"],
    )
    before = os.listdir("/proc/self/fd")
    plan = planned_or_refused(sources, world, environ)
    assert environ == {"HOME": "/"}
    if isinstance(plan, WwError):
        assert plan.code in (EXIT_USAGE, EXIT_GRANT)
        assert "\n" not in str(plan)
        assert os.listdir("/proc/self/fd") == before
        return
    hosts = {e.source: e for e in plan.entries if e.origin.startswith("--dir")}
    for source in hosts:
        assert source not in world.inherited.sources
        assert source is not None
        os.close(source)
    assert os.listdir("/proc/self/fd") == before

    for entry in plan.entries:
        if entry.grant.name is None:
            assert entry.source == (entry.grant.target if drawn["stdio"] else None)
        else:
            assert entry.source in world.inherited.sources or entry.source in hosts
            assert entry.source not in BAD
        assert set(entry.grant.mode) <= set(entry.actual)
    targets = [grant.target for grant in plan.grants]
    assert targets == sorted(set(targets))
    assert targets[:3] == [0, 1, 2]
    directories = sorted(grant.preopen for grant in plan.grants if grant.guest is not None)
    links = any(grant.pathlink for grant in plan.grants)
    taken = range(3, 3 + len(directories) + drawn["scratch"] + links)
    assert directories == list(range(3, 3 + len(directories)))
    assert all(g.target not in taken or g.target == g.preopen for g in plan.grants)

    asked = {
        name: (source, options)
        for grants in (drawn["fds"], drawn["fdctls"], *drawn["tables"])
        for name, source, options in grants
    }
    named = {e.grant.name: e for e in plan.entries if e.grant.name is not None}
    count = int((listen or {}).get("LISTEN_FDS") or 0)
    systems = {f"listen{index}": FIRST + index for index in range(count)}
    assert set(named) == {*asked, *systems, *(f"dir{i + 1}" for i in range(len(hosts)))}
    later = dict(decorations)
    maps = dict(drawn["maps"])
    for name, entry in named.items():
        source, options = asked.get(name, (systems.get(name), {}))
        assert entry.source == source or entry.source in hosts
        said = options | later.get(name, {})
        if name in maps:
            said["target"] = str(maps[name])
        for key in ("mode", "type", "target"):
            got = str(getattr(entry.grant, key))
            assert said.get(key, got) == got


@given(st.data())
def test_swaps_and_cycles_come_out_right_whoever_asks_for_them(
    world: World, data: st.DataObject
) -> None:
    sources = list(range(FIRST, FIRST + GOOD))
    ring: dict[int, int] = dict(zip(sources, data.draw(st.permutations(sources)), strict=True))
    passed = data.draw(st.integers(0, GOOD))
    fds, maps, fdctls, tables = [], [], [], []
    for index, (source, target) in enumerate(ring.items()):
        activated = index < passed
        name = f"listen{index}" if activated else f"n{index}"
        how = data.draw(st.sampled_from(["map", "decoration"] + ["itself"] * (not activated)))
        own = {"target": str(target)} if how == "itself" else {}
        if how == "map":
            maps.append(f"{name}={target}")
        elif how == "decoration":
            fds.append(f"{name},target={target}")
        if activated:
            continue
        match data.draw(st.sampled_from(["flag", "fdctl", "table"])):
            # A flag cannot decorate what a flag brings: that is one name twice.
            case "flag" if how != "decoration":
                fds.append(flag(name, source, own))
            case "fdctl":
                fdctls.append(inherit(name, source, own))
            case _:
                tables.append([(name, source, own)])
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(passed)} if passed else {}
    plan = collect(
        Sources(
            fds=tuple(data.draw(st.permutations(fds))),
            maps=tuple(data.draw(st.permutations(maps))),
            fdctls=tuple(fdctls),
            systemd="listen" if passed else None,
            tables=write_tables(world, tables),
            stdio=False,
        ),
        world.inherited,
        environ,
    )
    assert {e.source: e.grant.target for e in plan.entries if e.grant.name is not None} == ring

"""The plan: what requests may not do to each other and to the kernel's facts."""

import contextlib
import os
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_JAIL, EXIT_USAGE, WwError
from runner.grants.flags import parse_fds
from runner.grants.merge import merge
from runner.grants.model import Request
from runner.grants.plan import GrantPlan, build_plan
from runner.inherited import Inherited
from sandbox import FdType, Grant, Mode
from sandbox.granting import kernel, rules


class Fds(NamedTuple):
    """Real descriptors, and what ww would have inherited."""

    file_r: int
    file_w: int
    file_rw: int
    pipe_r: int
    pipe_w: int
    connected: int
    datagram: int
    directory: int
    other_directory: int
    path: int
    path_of_directory: int
    epoll: int
    closed: int
    own: int
    inherited: Inherited

    def plan(self, *flags: str, stdio: bool = False, scratch: bool = False) -> GrantPlan:
        """Plans flags in which a field's name in braces stands for its number."""
        numbers = self._asdict()
        return build_plan(
            merge(*parse_fds([flag.format_map(numbers) for flag in flags])),
            self.inherited,
            stdio=stdio,
            scratch=scratch,
        )

    def error(self, *flags: str, code: int, stdio: bool = False, scratch: bool = False) -> WwError:
        with pytest.raises(WwError) as caught:
            self.plan(*flags, stdio=stdio, scratch=scratch)
        assert caught.value.code == code, caught.value
        return caught.value


@pytest.fixture(scope="module")
def fds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fds]:
    path = tmp_path_factory.mktemp("grants") / "file"
    path.touch()
    with contextlib.ExitStack() as stack:

        def opened(number: int) -> int:
            stack.callback(os.close, number)
            return number

        pipe_r, pipe_w = map(opened, os.pipe())
        one, other = socket.socketpair()
        stack.enter_context(other)
        sources = {
            "file_r": opened(os.open(path, os.O_RDONLY)),
            "file_w": opened(os.open(path, os.O_WRONLY)),
            "file_rw": opened(os.open(path, os.O_RDWR)),
            "pipe_r": pipe_r,
            "pipe_w": pipe_w,
            "connected": stack.enter_context(one).fileno(),
            "datagram": stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)).fileno(),
            "directory": opened(os.open(path.parent, os.O_RDONLY)),
            "other_directory": opened(os.open("/proc", os.O_RDONLY)),
            "path": opened(os.open(path, os.O_PATH)),
            "path_of_directory": opened(os.open(path.parent, os.O_PATH)),
            "epoll": stack.enter_context(select.epoll()).fileno(),
        }
        own = opened(os.open(path, os.O_RDWR))
        inherited = Inherited(frozenset({0, 1, 2, *sources.values()}), frozenset({own}))
        yield Fds(**sources, closed=own + 1000, own=own, inherited=inherited)


def targets(plan: GrantPlan) -> dict[str | None, int]:
    return {grant.name: grant.target for grant in plan.grants if grant.name is not None}


def sources(plan: GrantPlan) -> dict[int, int | None]:
    return {entry.grant.target: entry.source for entry in plan.entries}


# Names


def test_the_same_name_twice_is_refused_and_both_origins_are_cited(fds: Fds) -> None:
    error = fds.error("db={pipe_r}", "x={pipe_w}", "db={file_r}", code=EXIT_USAGE)
    assert error.where == "--fd #3"
    assert "'db'" in error.what
    assert "--fd #1" in error.what


def test_two_names_with_one_environment_key_are_refused_and_both_are_named(fds: Fds) -> None:
    error = fds.error("my-db={pipe_r}", "my_db={pipe_w}", code=EXIT_USAGE)
    assert error.where == "--fd #2"
    for word in ("'my-db'", "'my_db'", "--fd #1", "WW_FD_MY_DB"):
        assert word in error.what


def test_names_that_differ_in_case_have_one_environment_key(fds: Fds) -> None:
    assert "WW_FD_DB" in fds.error("db={pipe_r}", "DB={pipe_w}", code=EXIT_USAGE).what


def test_one_request_given_twice_is_a_name_given_twice(fds: Fds) -> None:
    request = Request("db", fds.pipe_r, "table")
    with pytest.raises(WwError) as caught:
        build_plan([request, request], fds.inherited, stdio=False)
    assert caught.value.code == EXIT_USAGE


def test_an_illegal_name_is_refused_whoever_made_the_request(fds: Fds) -> None:
    with pytest.raises(WwError) as caught:
        build_plan([Request('a"b', fds.pipe_r, "table:1:2")], fds.inherited, stdio=False)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "table:1:2")


# Numbers


def test_two_grants_with_one_target_are_refused_and_both_are_named(fds: Fds) -> None:
    error = fds.error("a={pipe_r},target=10", "b={pipe_w},target=10", code=EXIT_USAGE)
    assert error.where == "--fd #2"
    assert "'a' of --fd #1" in error.what
    assert "target 10" in error.what


def test_two_grants_with_target_zero_are_refused(fds: Fds) -> None:
    fds.error("a={pipe_r},target=0", "stdin", code=EXIT_USAGE)


@pytest.mark.parametrize("order", [1, -1])
def test_an_explicit_target_is_taken_before_an_automatic_one_whatever_the_order(
    fds: Fds, order: int
) -> None:
    plan = fds.plan(*["a={pipe_r}", "b={pipe_w},target=10"][::order])
    assert targets(plan) == {"a": 11, "b": 10}


def test_automatic_targets_are_the_lowest_free_from_ten_in_declaration_order(fds: Fds) -> None:
    plan = fds.plan(
        "e={pipe_r}", "d={pipe_r},target=11", "c={pipe_r}", "b={pipe_r},target=5", "a={pipe_r}"
    )
    assert targets(plan) == {"e": 10, "d": 11, "c": 12, "b": 5, "a": 13}


def test_swapped_numbers_are_planned_as_asked(fds: Fds) -> None:
    plan = fds.plan("a={pipe_r},target={pipe_w}", "b={pipe_w},target={pipe_r}")
    by_target = sources(plan)
    assert by_target[fds.pipe_w] == fds.pipe_r
    assert by_target[fds.pipe_r] == fds.pipe_w


def test_a_cycle_of_three_is_planned_as_asked(fds: Fds) -> None:
    ring = [fds.pipe_r, fds.pipe_w, fds.file_r]
    following = [*ring[1:], ring[0]]
    flags = [f"n{s}={s},target={t}" for s, t in zip(ring, following, strict=True)]
    planned = sources(fds.plan(*flags))
    assert [planned[t] for t in following] == ring


def test_target_zero_is_really_zero(fds: Fds) -> None:
    plan = fds.plan("in={pipe_r},target=0")
    assert plan.entries[0][:2] == (Grant(0, "in", "r", "stream"), fds.pipe_r)
    assert [grant.target for grant in plan.grants] == [0, 1, 2]


def test_the_last_number_is_a_target_and_the_next_is_not(
    fds: Fds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 256))
    assert targets(fds.plan("a={pipe_r},target=255")) == {"a": 255}
    error = fds.error("a={pipe_r},target=256", code=EXIT_USAGE)
    assert "0 to 255" in error.hint


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 1 << 20])
def test_no_target_is_above_65534_however_high_the_limit(
    fds: Fds, monkeypatch: pytest.MonkeyPatch, hard: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    assert targets(fds.plan("a={pipe_r},target=65534")) == {"a": 65534}
    fds.error("a={pipe_r},target=65535", code=EXIT_USAGE)


def test_a_negative_target_is_refused_whoever_made_the_request(fds: Fds) -> None:
    with pytest.raises(WwError) as caught:
        build_plan([Request("a", fds.pipe_r, "t", target=-1)], fds.inherited, stdio=False)
    assert caught.value.code == EXIT_USAGE


def test_more_grants_than_numbers_are_refused(fds: Fds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 256))
    flags = [f"n{i}={fds.pipe_r}" for i in range(300)]
    error = fds.error(*flags, code=EXIT_GRANT)
    assert "300 grants" in error.what
    assert "256 descriptors" in error.what
    assert len(fds.plan(*flags[:216]).entries) == 219
    directories = [f"n{i}={fds.directory}" for i in range(109)]
    assert len(fds.plan(*directories[:108]).entries) == 111
    assert "needs 149 itself" in fds.error(*directories, code=EXIT_GRANT).what


# Sources


@pytest.mark.parametrize("flags", [(), ("a={file_r}",)])
def test_where_ww_itself_has_no_room_it_is_not_the_grants_that_are_too_many(
    fds: Fds, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    for own, scratch in ((rules.HEADROOM, False), (rules.HEADROOM + 1, True)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=own - 1: (most, most))
        error = fds.error(*flags, code=EXIT_JAIL, scratch=scratch)
        assert error.where == "ulimit -n"
        assert f"ww needs {own} descriptors itself, and may have {own - 1} open" in error.what
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=own: (most, most))
        assert fds.plan(scratch=scratch).entries


def test_one_source_may_have_several_names(fds: Fds) -> None:
    plan = fds.plan("a={file_rw},mode=r", "b={file_rw}")
    assert [(g.name, g.mode) for g in plan.grants if g.name] == [("a", "r"), ("b", "rw")]


@pytest.mark.parametrize("order", [1, -1])
def test_a_source_that_is_moved_is_used_once(fds: Fds, order: int) -> None:
    error = fds.error(*["a={pipe_r},move=true", "b={pipe_r}"][::order], code=EXIT_USAGE)
    assert error.where == "--fd #2"
    assert "--fd #1" in error.what


def test_a_source_moved_twice_is_refused(fds: Fds) -> None:
    fds.error("a={pipe_r},move=true", "b={pipe_r},move=true", code=EXIT_USAGE)


def test_a_moved_source_is_planned_to_move(fds: Fds) -> None:
    assert fds.plan("a={pipe_r},move=true").grants[-1].move


def test_a_closed_source_is_refused(fds: Fds) -> None:
    error = fds.error("a={closed}", code=EXIT_GRANT)
    assert error.what == f"fd {fds.closed} is not open"
    assert error.where == "--fd #1"


def test_a_source_that_ww_opened_is_refused_with_the_reason(fds: Fds) -> None:
    error = fds.error("a={own}", code=EXIT_GRANT)
    assert error.what == f"fd {fds.own} was not inherited (close-on-exec)"


def test_an_open_descriptor_that_was_not_there_at_the_start_is_refused(fds: Fds) -> None:
    later = os.dup(fds.pipe_r)
    try:
        fds.error(f"a={later}", code=EXIT_GRANT)
    finally:
        os.close(later)


def test_a_source_closed_since_the_start_is_refused(fds: Fds) -> None:
    gone = Inherited(frozenset({fds.closed}))
    with pytest.raises(WwError) as caught:
        build_plan([Request("a", fds.closed, "o")], gone, stdio=False)
    assert caught.value.code == EXIT_GRANT


@pytest.mark.parametrize(("options", "cloexec"), [("", True), (",cloexec=false", False)])
def test_a_grant_is_close_on_exec_unless_it_is_asked_otherwise(
    fds: Fds, options: str, cloexec: bool
) -> None:
    assert fds.plan("a={pipe_r}" + options).grants[-1].cloexec is cloexec


# Modes


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("a={file_r}", "r"),
        ("a={file_w}", "w"),
        ("a={file_rw}", "rw"),
        ("a={file_rw},mode=r", "r"),
        ("a={file_rw},mode=w", "w"),
        ("a={pipe_r}", "r"),
        ("a={pipe_w}", "w"),
        ("a={connected}", "rw"),
        ("a={connected},mode=r", "r"),
    ],
)
def test_the_mode_is_what_the_descriptor_has_or_less(fds: Fds, flag: str, mode: str) -> None:
    assert fds.plan(flag).grants[-1].mode == mode


@pytest.mark.parametrize(
    ("flag", "asked", "actual"),
    [
        ("a={file_r},mode=w", "w", "r"),
        ("a={file_r},mode=rw", "rw", "r"),
        ("a={file_w},mode=r", "r", "w"),
        ("a={pipe_r},mode=rw", "rw", "r"),
        ("a={pipe_w},mode=r", "r", "w"),
    ],
)
def test_a_mode_the_descriptor_does_not_have_is_refused_and_both_are_said(
    fds: Fds, flag: str, asked: str, actual: str
) -> None:
    error = fds.error(flag, code=EXIT_GRANT)
    assert f"mode={asked} is asked" in error.what
    assert error.what.endswith(f"is open with mode={actual}")


@pytest.mark.parametrize("options", ["", ",mode=r", ",mode=rw,type=file"])
@pytest.mark.parametrize("kind", ["path", "path_of_directory", "epoll"])
def test_what_can_never_be_granted_is_refused_whatever_is_asked(
    fds: Fds, kind: str, options: str
) -> None:
    error = fds.error("a={" + kind + "}" + options, code=EXIT_GRANT)
    assert "cannot be granted" in error.what
    assert error.hint


@pytest.mark.parametrize(
    ("options", "mode"), [("", "r"), (",mode=r", "r"), (",mode=rw", "rw"), (",type=file", "r")]
)
def test_a_directory_is_read_unless_more_is_asked(fds: Fds, options: str, mode: str) -> None:
    entry = fds.plan("a={directory}" + options).entries[-1]
    assert (entry.grant.mode, entry.grant.type, entry.actual) == (mode, "file", "rw")


def test_a_directory_cannot_be_written_only(fds: Fds) -> None:
    error = fds.error("a={directory},mode=w", code=EXIT_GRANT)
    assert error.what.startswith("mode=w is asked, but")
    assert error.hint == "ask for mode=rw"


def test_a_directory_on_a_read_only_mount_cannot_be_written(
    fds: Fds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_mount_mode", lambda _: "r")
    assert fds.plan("a={directory}").entries[-1].actual == "r"
    error = fds.error("a={directory},mode=rw", code=EXIT_GRANT)
    assert "read-only mount" in error.what


@pytest.mark.parametrize("kind", ["stream", "socket"])
def test_a_directory_is_neither_stream_nor_socket(fds: Fds, kind: str) -> None:
    error = fds.error("a={directory},type=" + kind, code=EXIT_GRANT)
    assert error.what.endswith("is a directory")


# Types


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("a={file_r}", "file"),
        ("a={file_r},type=file", "file"),
        ("a={pipe_r}", "stream"),
        ("a={pipe_r},type=stream", "stream"),
        ("a={connected}", "socket"),
        ("a={connected},type=socket", "socket"),
        ("a={connected},type=stream", "stream"),
        ("a={datagram}", "socket"),
    ],
)
def test_the_type_is_inferred_or_confirmed(fds: Fds, flag: str, kind: str) -> None:
    assert fds.plan(flag).grants[-1].type == kind


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("a={pipe_r},type=socket", "a pipe (read end)"),
        ("a={pipe_w},type=file", "a pipe (write end)"),
        ("a={file_r},type=stream", "a regular file"),
        ("a={file_r},type=socket", "a regular file"),
        ("a={connected},type=file", "a unix stream socket"),
        ("a={datagram},type=stream", "a udp socket"),
    ],
)
def test_a_type_the_descriptor_is_not_is_refused_and_said_what_it_is(
    fds: Fds, flag: str, what: str
) -> None:
    error = fds.error(flag, code=EXIT_GRANT)
    assert f"type={flag.rpartition('=')[2]} is asked" in error.what
    assert error.what.endswith(f"is {what}")


# Pathlinks


def test_a_pathlink_needs_number_three_for_the_root_directory(fds: Fds) -> None:
    flags = ["db={pipe_r},pathlink=true", "x={pipe_w},target=3"]
    error = fds.error(*flags, code=EXIT_USAGE)
    assert error.where == "--fd #2"
    assert "the pathlink 'db' of --fd #1" in error.what
    fds.error("db={pipe_r},pathlink=true,target=3", code=EXIT_USAGE)
    assert targets(fds.plan("x={pipe_w},target=3")) == {"x": 3}


# Directories


def preopens(plan: GrantPlan) -> dict[str | None, tuple[str | None, int]]:
    return {g.name: (g.guest, g.preopen) for g in plan.grants if g.name is not None}


def test_directories_have_numbers_from_three_in_declaration_order_beside_their_targets(
    fds: Fds,
) -> None:
    plan = fds.plan("b={directory},target=20", "x={pipe_r}", "a={other_directory}")
    assert targets(plan) == {"b": 20, "x": 10, "a": 11}
    assert preopens(plan) == {"b": ("/b", 3), "x": (None, 0), "a": ("/a", 4)}


def test_one_directory_may_be_granted_for_reading_and_for_writing(fds: Fds) -> None:
    plan = fds.plan("a={directory}", "b={directory},mode=rw")
    assert preopens(plan) == {"a": ("/a", 3), "b": ("/b", 4)}
    assert [grant.mode for grant in plan.grants if grant.name] == ["r", "rw"]


@pytest.mark.parametrize("target", [3, 4])
def test_a_number_of_a_directory_is_no_target_of_another_grant(fds: Fds, target: int) -> None:
    flags = ["a={directory}", "b={directory}"]
    error = fds.error(*flags, f"x={{pipe_r}},target={target}", code=EXIT_USAGE)
    assert error.where == "--fd #3"
    assert f"the directory '{'ab'[target - 3]}' of --fd #{target - 2}" in error.what
    assert targets(fds.plan(*flags, "x={pipe_r},target=5"))["x"] == 5


def test_a_directory_may_have_its_own_number_as_its_target_and_no_other_directorys(
    fds: Fds,
) -> None:
    plan = fds.plan("a={directory},target=3", "b={directory},target=4")
    assert [g[0] for g in plan.grants if g.name] == [3, 4]
    fds.error("a={directory},target=4", "b={directory}", code=EXIT_USAGE)
    fds.error("a={directory}", "b={directory},target=3", code=EXIT_USAGE)
    assert targets(fds.plan("a={directory},target=4")) == {"a": 4}


def test_the_writable_tmp_and_the_root_come_after_the_directories(fds: Fds) -> None:
    flags = ["a={directory}", "db={pipe_r},pathlink=true"]
    for target, words in ((4, "scratch space"), (5, "the pathlink 'db' of --fd #2")):
        error = fds.error(*flags, f"x={{pipe_r}},target={target}", scratch=True, code=EXIT_USAGE)
        assert words in error.what
    assert targets(fds.plan(*flags, "x={pipe_r},target=6", scratch=True))["x"] == 6
    assert targets(fds.plan("x={pipe_r},target=4", scratch=True)) == {"x": 4}


def test_no_automatic_target_is_the_number_of_a_directory(fds: Fds) -> None:
    flags = [f"d{index}={{directory}}" for index in range(9)]
    plan = fds.plan(*flags, "x={pipe_r},pathlink=true", "y={pipe_r}", scratch=True)
    # 3 to 11 are directories, 12 is /tmp, 13 the root.
    assert list(targets(plan).values()) == list(range(14, 25))


def test_a_directory_is_at_its_name_with_and_without_a_pathlink(fds: Fds) -> None:
    assert fds.plan("a={directory},pathlink=true") == fds.plan("a={directory}")
    # No link, so no root directory to find it in.
    assert targets(fds.plan("a={directory},pathlink=true", "x={pipe_r},target=4"))["x"] == 4


def test_a_directory_at_another_path_has_no_pathlink(fds: Fds) -> None:
    request = Request("dir1", fds.directory, "--dir #1", pathlink=True, guest="/data")
    with pytest.raises(WwError) as caught:
        build_plan([request], fds.inherited, stdio=False)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "--dir #1")


def at(fds: Fds, *guests: str | None, scratch: bool = False, link: str = "") -> GrantPlan:
    requests = [
        Request(f"n{index}", fds.directory, f"o{index}", guest=guest)
        for index, guest in enumerate(guests)
    ]
    if link:
        requests.append(Request(link, fds.pipe_r, "link", pathlink=True))
    return build_plan(requests, fds.inherited, stdio=False, scratch=scratch)


@pytest.mark.parametrize(
    "guests", [("/a", "/a"), ("a", "/a"), ("/", "."), (None, "/n0"), ("/a/b", "a/b")]
)
def test_two_directories_at_one_path_are_refused_and_both_are_named(
    fds: Fds, guests: tuple[str | None, ...]
) -> None:
    with pytest.raises(WwError) as caught:
        at(fds, *guests)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "o1")
    assert "'n1' cannot be at" in caught.value.what
    assert "'n0' of o0" in caught.value.what


def test_one_directory_may_be_below_another(fds: Fds) -> None:
    assert [g.guest for g in at(fds, "/", "/a", "/a/b").grants if g.name] == ["/", "/a", "/a/b"]


@pytest.mark.parametrize("guest", ["/tmp", "tmp"])
def test_a_directory_cannot_be_where_the_writable_tmp_is(fds: Fds, guest: str) -> None:
    with pytest.raises(WwError) as caught:
        at(fds, guest, scratch=True)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "o0")
    assert at(fds, guest).grants[-1].guest == guest


@pytest.mark.parametrize("guest", ["/", "."])
def test_a_directory_cannot_be_the_root_beside_a_pathlink(fds: Fds, guest: str) -> None:
    with pytest.raises(WwError) as caught:
        at(fds, guest, link="db")
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "o0")
    assert "the pathlink 'db' of link" in caught.value.what


def test_a_pathlink_cannot_be_where_a_directory_is(fds: Fds) -> None:
    with pytest.raises(WwError) as caught:
        at(fds, "/db", link="db")
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "link")
    with pytest.raises(WwError) as caught:
        at(fds, link="tmp", scratch=True)
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "link")
    assert at(fds, "/db/sub", link="db").grants[-1].pathlink
    assert at(fds, link="tmp").grants[-1].pathlink


def test_what_is_no_directory_has_no_path_in_the_cell(fds: Fds) -> None:
    with pytest.raises(WwError) as caught:
        build_plan([Request("a", fds.pipe_r, "o", guest="/a")], fds.inherited, stdio=False)
    assert caught.value.code == EXIT_GRANT


def test_a_pathlink_cannot_hide_proc(fds: Fds) -> None:
    assert "/proc" in fds.error("proc={pipe_r},pathlink=true", code=EXIT_USAGE).what
    plan = fds.plan("proc={pipe_r}", "db={pipe_r},pathlink=true")
    assert targets(plan) == {"proc": 10, "db": 11}


def test_a_pathlink_is_possible_for_every_type(fds: Fds) -> None:
    plan = fds.plan("s={connected},pathlink=true", "f={file_r},pathlink=true", "x={pipe_r}")
    assert [(g.name, g.pathlink) for g in plan.grants if g.name] == [
        ("s", True),
        ("f", True),
        ("x", False),
    ]


# Standard descriptors


def test_granting_nothing_passes_stdio_through_and_nothing_else(fds: Fds) -> None:
    plan = fds.plan(stdio=True)
    assert sources(plan) == {0: 0, 1: 1, 2: 2}
    assert {grant.name for grant in plan.grants} == {None}


def test_without_stdio_the_three_are_dev_null(fds: Fds) -> None:
    assert tuple(entry[:2] for entry in fds.plan(stdio=False).entries) == (
        (Grant(0, None, "r", "stream"), None),
        (Grant(1, None, "w", "stream"), None),
        (Grant(2, None, "w", "stream"), None),
    )


@pytest.mark.parametrize("stdio", [True, False])
def test_a_grant_replaces_the_standard_descriptor_with_its_target(fds: Fds, stdio: bool) -> None:
    plan = fds.plan("log={file_w},target=2", stdio=stdio)
    other = (0, 1) if stdio else (None, None)
    assert sources(plan) == {0: other[0], 1: other[1], 2: fds.file_w}


def test_a_bare_name_grants_its_descriptor_where_stdio_does_not_pass(fds: Fds) -> None:
    plan = fds.plan("stdout", stdio=False)
    assert sources(plan) == {0: None, 1: 1, 2: None}
    assert plan.grants[1].name == "stdout"


def test_a_standard_descriptor_granted_elsewhere_passes_through_as_well(fds: Fds) -> None:
    assert sources(fds.plan("copy=1", stdio=True)) == {0: 0, 1: 1, 2: 2, 10: 1}


def test_a_moved_standard_descriptor_cannot_also_pass_through(fds: Fds) -> None:
    error = fds.error("in=0,move=true", code=EXIT_USAGE, stdio=True)
    assert error.where == "--fd #1"
    assert "passes through as the cell's stdin" in error.what
    assert "--no-stdio" in error.hint
    assert sources(fds.plan("in=0,move=true", stdio=False))[10] == 0
    assert sources(fds.plan("in=0,move=true,target=0", stdio=True))[0] == 0
    replaced = fds.plan("in=0,move=true", "z={pipe_r},target=0", stdio=True)
    assert sources(replaced) == {0: fds.pipe_r, 1: 1, 2: 2, 10: 0}


def test_a_closed_standard_descriptor_passes_through_as_null_but_is_no_source(fds: Fds) -> None:
    inherited = Inherited(frozenset({1, 2}), nulled=frozenset({0}))
    assert build_plan([], inherited).entries[0].source == 0
    with pytest.raises(WwError) as caught:
        build_plan(merge(*parse_fds(["stdin"])), inherited)
    assert caught.value.code == EXIT_GRANT


def test_a_standard_descriptor_that_was_not_inherited_does_not_pass_through(fds: Fds) -> None:
    with pytest.raises(WwError) as caught:
        build_plan([], Inherited(frozenset({1, 2}), close_on_exec=frozenset({0})))
    assert (caught.value.code, caught.value.where) == (EXIT_GRANT, "stdin")


# The plan as a whole


def test_requests_are_judged_before_any_source_is_asked_about(fds: Fds) -> None:
    fds.error("a={closed},target=10", "b={closed},target=10", code=EXIT_USAGE)


def test_a_plan_cannot_be_changed(fds: Fds) -> None:
    plan = fds.plan("a={pipe_r}")
    with pytest.raises(AttributeError):
        plan.entries = ()  # type: ignore[misc]
    assert isinstance(hash(plan), int)


LEGAL = ["file_r", "file_w", "file_rw", "pipe_r", "pipe_w", "connected", "datagram", "directory"]
ILLEGAL = ["path", "path_of_directory", "epoll", "closed", "own"]


def requests_for(
    fields: list[str], targets: st.SearchStrategy[int | None]
) -> st.SearchStrategy[list[tuple[str, Mode | None, FdType | None, int | None, bool, bool]]]:
    return st.lists(
        st.tuples(
            st.sampled_from(fields),
            st.sampled_from([None, None, None, "r", "w", "rw"]),
            st.sampled_from([None, None, None, "stream", "file", "socket"]),
            targets,
            st.sampled_from([False, False, False, True]),
            st.sampled_from([False, False, False, True]),
        ),
        max_size=8,
    )


REQUESTS = st.one_of(
    requests_for([*LEGAL, "other_directory"], st.one_of(st.none(), st.integers(0, 1000))),
    requests_for([*LEGAL, *ILLEGAL], st.one_of(st.none(), st.integers(-2, 1 << 20))),
)


def planned_or_refused(
    requests: list[Request], inherited: Inherited, stdio: bool, scratch: bool
) -> GrantPlan | WwError:
    try:
        return build_plan(requests, inherited, stdio=stdio, scratch=scratch)
    except WwError as error:
        return error


@given(REQUESTS, st.booleans(), st.booleans())
def test_no_plan_repeats_a_target_or_grants_what_was_not_inherited_or_more_than_it_is(
    fds: Fds,
    drawn: list[tuple[str, Mode | None, FdType | None, int | None, bool, bool]],
    stdio: bool,
    scratch: bool,
) -> None:
    requests = [
        Request(f"n{i}", getattr(fds, field), f"o{i}", mode, kind, target, move, True, link)
        for i, (field, mode, kind, target, move, link) in enumerate(drawn)
    ]
    plan = planned_or_refused(requests, fds.inherited, stdio, scratch)
    if isinstance(plan, WwError):
        assert plan.code in (EXIT_USAGE, EXIT_GRANT)
        return
    numbers = [grant.target for grant in plan.grants]
    assert numbers == sorted(set(numbers))
    assert numbers[:3] == [0, 1, 2]
    by_name = {entry.grant.name: entry for entry in plan.entries}
    for request in requests:
        grant, source, *_ = by_name[request.name]
        assert source == request.source
        assert source in fds.inherited.sources
        assert source not in (fds.path, fds.path_of_directory, fds.epoll)
        assert request.target in (None, grant.target)
        assert request.mode in (None, grant.mode)
        assert request.type in (None, grant.type)
    found = [by_name[request.name].grant for request in requests]
    directories = [grant for grant in found if grant.guest is not None]
    assert [grant.preopen for grant in directories] == list(range(3, 3 + len(directories)))
    links = any(grant.pathlink for grant in found)
    taken = range(3, 3 + len(directories) + scratch + links)
    for grant in found:
        assert grant.target not in taken or grant.target == grant.preopen
        assert (grant.guest is None) == (grant.preopen == 0)
        assert grant.guest is None or not grant.pathlink
    moved = [entry.source for entry in plan.entries if entry.grant.move]
    every = [entry.source for entry in plan.entries]
    assert all(every.count(source) == 1 for source in moved)


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=20).filter(
        lambda asked: len(explicit := [t for t in asked if t is not None]) == len(set(explicit))
    )
)
def test_automatic_targets_fill_the_gaps_in_order(asked: list[int | None]) -> None:
    requests = [Request(f"n{i}", 0, "o", target=target) for i, target in enumerate(asked)]
    given_targets = rules.assign_targets(requests, 1024)
    automatic = [got for got, want in zip(given_targets, asked, strict=True) if want is None]
    free = [number for number in range(10, 100) if number not in asked]
    assert automatic == free[: len(automatic)]
    assert all(want in (None, got) for got, want in zip(given_targets, asked, strict=True))


def test_a_file_that_is_granted_is_not_touched(fds: Fds, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("text")
    with path.open("r+") as stream:
        fd = stream.fileno()
        build_plan([Request("a", fd, "o", pathlink=True)], Inherited(frozenset({0, 1, 2, fd})))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    assert path.read_text() == "text"

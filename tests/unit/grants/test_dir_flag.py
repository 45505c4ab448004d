"""The flag ``--dir``: its syntax, what it opens, and what becomes of it in the plan."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.collect import Sources, collect
from runner.grants.directories import open_directories, parse_directories
from runner.grants.plan import GrantPlan
from runner.inherited import Inherited

INHERITED = Inherited(frozenset({0, 1, 2}))


def error(*values: str, code: int = EXIT_USAGE) -> WwError:
    with pytest.raises(WwError) as caught:
        open_directories(parse_directories(values))
    assert caught.value.code == code, caught.value
    return caught.value


# Syntax


@pytest.mark.parametrize(
    ("value", "host", "guest", "mode"),
    [
        ("/data", "/data", "/data", "r"),
        ("data", "data", "data", "r"),
        (".", ".", ".", "r"),
        ("/", "/", "/", "r"),
        ("/data/", "/data/", "/data", "r"),
        ("//data/./x//", "//data/./x//", "/data/x", "r"),
        ("./", "./", ".", "r"),
        ("/data:ro", "/data", "/data", "r"),
        ("/data:rw", "/data", "/data", "rw"),
        ("..:/up", "..", "/up", "r"),
        ("/a:/b/", "/a", "/b", "r"),
        ("/a:/b:rw", "/a", "/b", "rw"),
        ("/a:ro:rw", "/a", "ro", "rw"),
        ("ro", "ro", "ro", "r"),
        ("rw:ro", "rw", "rw", "r"),
        ("/a:é b", "/a", "é b", "r"),
        ("/a,b=c", "/a,b=c", "/a,b=c", "r"),
        ("/a..b", "/a..b", "/a..b", "r"),
    ],
)
def test_a_value_is_a_directory_a_path_in_the_cell_and_a_mode(
    value: str, host: str, guest: str, mode: str
) -> None:
    (found,) = parse_directories([value])
    assert found == (host, guest, mode, "dir1", "--dir #1")


def test_the_name_is_the_position() -> None:
    found = parse_directories(["/a", "/b", "/a"])
    assert [each.name for each in found] == ["dir1", "dir2", "dir3"]


@pytest.mark.parametrize(
    ("value", "column", "words"),
    [
        ("", 1, "the directory is missing"),
        (":", 1, "the directory is missing"),
        (":/b", 1, "the directory is missing"),
        (":ro", 1, "the directory is missing"),
        ("/a:", 4, "the path in the cell is missing"),
        ("/a::ro", 4, "the path in the cell is missing"),
        ("/a:/b:", 7, "'' is neither ro nor rw"),
        ("/a:/b:/c", 7, "'/c' is neither ro nor rw"),
        ("/a:/b:RW", 7, "'RW' is neither ro nor rw"),
        ("/a:/b:c:ro", 7, "'c' is neither ro nor rw"),
        ("..", 1, "leads out"),
        ("../x:rw", 1, "leads out"),
        ("/a:/b/../c", 4, "leads out"),
        ("/a:/b\0c", 4, "NUL"),
        ("/a\0", 1, "cannot be a directory"),
        ("/a\udcff", 1, "not valid UTF-8"),
        ("/a:\udcff", 4, "not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_column(value: str, column: int, words: str) -> None:
    found = error("/", value)
    assert found.where == "--dir #2"
    assert found.what.startswith(f"column {column}: ")
    assert words in found.what
    assert found.hint


def test_a_path_with_a_colon_has_another_way() -> None:
    assert "--fd NAME=3 3<HOST" in error("/a:b:c").hint


@given(st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=20))
def test_a_path_in_the_cell_is_in_its_shortest_form_or_refused(path: str) -> None:
    if not path or ".." in path.split("/") or "\0" in path:
        error(f"/:{path}:ro")
        return
    (found,) = parse_directories([f"/:{path}:ro"])
    guest = found.guest
    assert guest
    assert guest in (".", "/") or not {"", ".", ".."} & set(guest.removeprefix("/").split("/"))
    assert guest == os.path.normpath(path).replace("//", "/")
    (again,) = parse_directories([f"/:{guest}:ro"])
    assert again.guest == guest


# Opening


def test_a_directory_is_opened_for_reading_and_close_on_exec(tmp_path: Path) -> None:
    (request,) = open_directories(parse_directories([f"{tmp_path}:/x:rw"]))
    try:
        assert os.path.samestat(os.fstat(request.source), tmp_path.stat())
        assert not os.get_inheritable(request.source)
    finally:
        os.close(request.source)
    assert (request.name, request.origin, request.mode) == ("dir1", "--dir #1", "rw")
    assert (request.guest, request.target) == ("/x", None)


def test_a_symbolic_link_is_followed_because_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (request,) = open_directories(parse_directories([f"{tmp_path}/link:/x"]))
    assert os.path.samestat(os.fstat(request.source), tmp_path.stat())
    os.close(request.source)


def test_a_name_of_any_bytes_can_be_opened(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    (request,) = open_directories(parse_directories([f"{tmp_path}/\udcff:/x"]))
    os.close(request.source)


def test_what_is_not_there_or_no_directory_is_refused_and_nothing_stays_open(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for name, words in (
        ("missing", "No such file or directory"),
        ("file", "Not a directory"),
        ("fifo", "Not a directory"),
    ):
        found = error(f"{tmp_path}", f"{tmp_path}/{name}", code=EXIT_GRANT)
        assert found.where == "--dir #2"
        assert found.what.endswith(words)
        assert found.hint
    assert os.listdir("/proc/self/fd") == before


# In the plan


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield tmp_path, fd
    os.close(fd)


def close_opened(plan: GrantPlan) -> None:
    for entry in plan.entries:
        if entry.origin.startswith("--dir") and entry.source is not None:
            os.close(entry.source)


def test_directories_come_after_the_other_flags_grants_and_before_the_rest(
    directory: tuple[Path, int],
) -> None:
    path, fd = directory
    table = path / "t"
    table.write_text(f'(fd :name "table" :fd {fd})')
    sources = Sources(
        fds=(f"flag={fd}", "dir2,target=20,mode=rw"),
        dirs=(f"{path}:/one", f"{path}:/two"),
        maps=("dir1=30",),
        fdctls=(f"inherit:{fd},name=ctl",),
        tables=(f"@{table}",),
        stdio=False,
    )
    plan = collect(sources, Inherited(frozenset({0, 1, 2, fd})), {})
    close_opened(plan)
    found = {g.name: (g.target, g.preopen, g.guest, g.mode) for g in plan.grants if g.name}
    assert found == {
        "flag": (10, 3, "/flag", "r"),
        "dir1": (30, 4, "/one", "r"),
        "dir2": (20, 5, "/two", "rw"),
        "ctl": (11, 6, "/ctl", "r"),
        "table": (12, 7, "/table", "r"),
    }


def test_nobody_else_can_name_what_ww_opens(tmp_path: Path) -> None:
    probe = os.open(tmp_path, os.O_RDONLY)
    os.close(probe)
    before = os.listdir("/proc/self/fd")
    # Even if a descriptor with this number was there at the start.
    for inherited in (INHERITED, Inherited(frozenset({0, 1, 2, probe}))):
        with pytest.raises(WwError) as caught:
            collect(Sources(fds=(f"a={probe}",), dirs=(str(tmp_path),)), inherited, {})
        assert caught.value.code == EXIT_GRANT
        assert caught.value.what == f"fd {probe} is not open"
    assert os.listdir("/proc/self/fd") == before


def test_an_error_elsewhere_closes_what_was_opened(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for sources in (
        Sources(tables=("@/missing",), dirs=(str(tmp_path),)),
        Sources(fds=("dir1,target=3", "x=1,target=3"), dirs=(str(tmp_path),)),
        Sources(fds=("dir1=1",), dirs=(str(tmp_path),)),
        Sources(dirs=(f"{tmp_path}:/tmp",), scratch=True),
    ):
        with pytest.raises(WwError) as caught:
            collect(sources, INHERITED, {})
        assert caught.value.code == EXIT_USAGE
    assert os.listdir("/proc/self/fd") == before


def test_one_directory_twice_is_fine_at_two_paths_and_not_at_one(tmp_path: Path) -> None:
    plan = collect(Sources(dirs=(f"{tmp_path}:/a", f"{tmp_path}:/b:rw")), INHERITED, {})
    close_opened(plan)
    assert [(g.guest, g.mode) for g in plan.grants if g.name] == [("/a", "r"), ("/b", "rw")]
    with pytest.raises(WwError) as caught:
        collect(Sources(dirs=(str(tmp_path), f"{tmp_path}:rw")), INHERITED, {})
    assert (caught.value.code, caught.value.where) == (EXIT_USAGE, "--dir #2")

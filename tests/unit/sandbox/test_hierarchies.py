"""Finding this process's control groups by what the kernel says of them."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox import hierarchies
from sandbox.hierarchies import Mount

ProcFactory = Callable[..., str]

NAMES = st.text(st.characters(exclude_characters="\n\0/", exclude_categories=["Cs"]), min_size=1)
PATHS = st.lists(NAMES, max_size=3).map(lambda parts: "/" + "/".join(parts))


def escape(path: str) -> str:
    """As the kernel writes a path in mountinfo."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)


def mount_line(point: str, kind: str, options: str, *, root: str = "/", device: int = 0) -> str:
    number = f"{os.major(device)}:{os.minor(device)}"
    return f"40 31 {number} {escape(root)} {escape(point)} rw shared:9 - {kind} none {options}\n"


@pytest.fixture
def proc(tmp_path: Path) -> ProcFactory:
    """A directory with the two files, which tells of mounts that are directories of the test."""

    def make(memberships: str, *mounts: tuple[str, str, str], root: str = "/") -> str:
        device = tmp_path.stat().st_dev
        lines = [
            mount_line(str(tmp_path / point), kind, options, root=root, device=device)
            for point, kind, options in mounts
        ]
        (tmp_path / "cgroup").write_text(memberships)
        (tmp_path / "mountinfo").write_text("".join(lines))
        return str(tmp_path)

    return make


@given(st.text() | st.lists(st.text()).map(":".join))
def test_any_text_is_read_as_memberships(text: str) -> None:
    for path in hierarchies.read_memberships(text).values():
        assert path.startswith("/")


@given(st.text() | st.lists(st.text(st.sampled_from("0123456789: -/\\cgroup2\n"))).map("".join))
@example("1 2 99999999999999999999:1 / /x rw - cgroup2 none rw")
@example("1 2 \u00b2:1 / /x rw - cgroup2 none rw")
@example("1 2 0:1 / /x rw - cgroup2 none")
@example("1 2 0:1 / /x rw - cgroup2")
@example("1 2 0:1 /")
@example(" - cgroup cgroup cgroup")
def test_any_text_is_read_as_mounts(text: str) -> None:
    for mount in hierarchies.read_mounts(text):
        assert mount.kind in ("cgroup", "cgroup2")


@given(PATHS, PATHS)
def test_a_line_is_read_as_the_kernel_writes_it(root: str, point: str) -> None:
    line = mount_line(point, "cgroup", "rw,memory", root=root, device=os.makedev(3, 4))
    expected = Mount(os.makedev(3, 4), root, point, "cgroup", frozenset({"rw", "memory"}))
    assert hierarchies.read_mounts(line) == [expected]


@given(PATHS)
def test_a_path_may_hold_colons(path: str) -> None:
    text = f"4:cpu,cpuacct:/a\n3:memory:{path}\n1:name=systemd:/b\n0::{path}\n"
    found = hierarchies.read_memberships(text)
    expected = {"cpu": "/a", "cpuacct": "/a", "memory": path, "name=systemd": "/b", "": path}
    assert found == expected


def test_escapes_are_undone() -> None:
    line = r"1 2 0:1 / /a\040b\011c\134040d rw - cgroup2 none rw"
    assert hierarchies.read_mounts(line)[0].point == "/a b\tc\\040d"


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/", "/", "/mnt"),
        ("/a/b", "/", "/mnt/a/b"),
        ("/a/b", "/a", "/mnt/b"),  # a container without a cgroup namespace
        ("/a", "/a", "/mnt"),
        ("/ab", "/a", None),
        ("/", "/a", None),
        ("/../a", "/", None),  # outside of our cgroup namespace
        ("/", "/..", None),
        ("/a..b", "/", "/mnt/a..b"),
    ],
)
def test_a_group_is_located_through_a_mount(path: str, root: str, expected: str | None) -> None:
    mount = Mount(0, root, "/mnt", "cgroup2", frozenset())
    assert hierarchies.locate(path, mount) == expected


def test_a_group_at_the_root_of_a_mount_that_is_the_root() -> None:
    assert hierarchies.locate("/", Mount(0, "/", "/", "cgroup2", frozenset())) == "/"


def test_both_versions_are_found(proc: ProcFactory, tmp_path: Path) -> None:
    for folder in ("unified/u", "memory/m", "both/b"):
        (tmp_path / folder).mkdir(parents=True)
    where = proc(
        "5:memory:/m\n4:cpu,pids:/b\n0::/u\n",
        ("unified", "cgroup2", "rw,nsdelegate"),
        ("memory", "cgroup", "rw,memory"),
        ("both", "cgroup", "rw,cpu,pids"),
    )
    found = hierarchies.stand(("memory", "pids"), where)
    assert found.unified is not None
    assert found.unified.path == str(tmp_path / "unified/u")
    paths = {name: group.path for name, group in found.legacy.items()}
    assert paths == {"memory": str(tmp_path / "memory/m"), "pids": str(tmp_path / "both/b")}
    found.close()


def test_controllers_that_share_a_hierarchy_share_a_group(
    proc: ProcFactory, tmp_path: Path
) -> None:
    (tmp_path / "both").mkdir()
    where = proc("4:memory,pids:/\n", ("both", "cgroup", "rw,memory,pids"))
    before = len(os.listdir("/proc/self/fd"))
    found = hierarchies.stand(("memory", "pids"), where)
    assert found.legacy["memory"] == found.legacy["pids"]
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_covered_by_another_file_system_is_passed_over(
    proc: ProcFactory, tmp_path: Path
) -> None:
    (tmp_path / "unified").mkdir()
    where = proc("0::/\n", ("unified", "cgroup2", "rw"))
    info = tmp_path / "mountinfo"
    device = tmp_path.stat().st_dev
    mine = f"{os.major(device)}:{os.minor(device)}"
    info.write_text(info.read_text().replace(mine, "250:99"))
    assert hierarchies.stand((), where).unified is None


def test_a_group_that_was_removed_is_not_found(proc: ProcFactory, tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    where = proc("0::/gone (deleted)\n", ("unified", "cgroup2", "rw"))
    gone = f"{tmp_path}/unified/gone (deleted): No such file or directory"
    assert hierarchies.stand((), where) == (None, {}, gone)


def test_where_nothing_is_mounted_nothing_is_shut(proc: ProcFactory) -> None:
    assert hierarchies.stand(("memory",), proc("0::/\n4:memory:/\n")) == (None, {}, "")


def test_a_name_that_is_not_utf_8_is_found(proc: ProcFactory, tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    name = os.fsdecode(b"caf\xe9")
    with suppress(OSError):
        (tmp_path / "unified" / name).mkdir()
        where = proc("", ("unified", "cgroup2", "rw"))
        (tmp_path / "cgroup").write_bytes(b"0::/caf\xe9\n")
        found = hierarchies.stand((), where)
        assert found.unified is not None
        found.close()


def test_the_kernel_s_own_files_are_read() -> None:
    hierarchies.stand(("memory", "pids")).close()

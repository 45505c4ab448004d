"""Grants as a Python program makes them: what reaches the cell, what is refused, what is kept."""

import fcntl
import io
import os
import pickle
import socket
from pathlib import Path

import pytest

from sandbox import Cell, CellExecutor, CellRejected, GrantError, Limits, Offer, Sandbox, grant
from sandbox.words import Mode
from tests.library.conftest import Pipe


def test_a_cell_is_told_of_its_grants_as_by_the_program(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    left, right = socket.socketpair()
    with left, right, open(tmp_path / "file", "r+b") as file:
        offers = [
            grant("my-db", file, target=20),
            grant("read", file, mode="r"),
            grant("talk", left),
            grant("flow", right, type="stream", target=4),
        ]
        result = sandbox.run(tool, ["env"], offers).check()
    assert result.stdout.decode().splitlines() == [
        'WW_FDS=((flow (fd 4) (mode "rw") (type "stream"))'
        ' (read (fd 10) (mode "r") (type "file"))'
        ' (talk (fd 11) (mode "rw") (type "socket"))'
        ' (my-db (fd 20) (mode "rw") (type "file")))',
        "WW_FD_FLOW=4",
        "WW_FD_READ=10",
        "WW_FD_TALK=11",
        "WW_FD_MY_DB=20",
    ]


def test_bytes_are_read_at_the_number_and_cannot_be_written(sandbox: Sandbox, tool: Cell) -> None:
    given = os.urandom(100_000)
    result = sandbox.run(tool, ["copy=12"], [grant("a", given, target=12)])
    assert result.check().stdout == given
    refused = sandbox.run(tool, ["tell=a"], [grant("a", given)])
    assert refused.exit_code == 98
    assert sandbox.run(tool, ["copy=a"], [grant("a", b"")]).check().stdout == b""


@pytest.mark.parametrize("mode", [None, "r"])
def test_a_path_is_opened_for_reading(
    sandbox: Sandbox, tool: Cell, tmp_path: Path, mode: str | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    offer = Offer("a", path, mode)  # type: ignore[arg-type]
    assert sandbox.run(tool, ["copy=a"], [offer]).check().stdout == b"content"
    assert sandbox.run(tool, ["tell=a"], [offer]).exit_code == 98
    assert path.read_bytes() == b"content"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sandbox.run(tool, ["copy=a"], [offer])


def test_a_path_for_writing_is_made_and_emptied_as_by_open(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    path = tmp_path / "new"
    for _ in range(2):
        sandbox.run(tool, ["tell=a"], [grant("a", str(path), mode="w")]).check()
        assert path.read_bytes() == b"told"
    path.write_bytes(b"0123456789")
    sandbox.run(tool, ["tell=a"], [grant("a", path, mode="rw")]).check()
    assert path.read_bytes() == b"told456789"
    refused = sandbox.run(tool, ["copy=a"], [grant("a", path, mode="w")])
    assert refused.exit_code == 98


def test_a_grant_at_a_standard_number_replaces_it(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    offers = [
        grant("in", b"text", target=0),
        grant("out", out, mode="w", target=1),
        grant("log", tmp_path / "log", mode="w", target=2),
    ]
    result = sandbox.run(tool, ["copy=0", "complain=c"], offers, limits=Limits(output=None))
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"", b"")
    assert out.read_bytes() == b"text"
    assert (tmp_path / "log").read_bytes() == b"c"
    with pytest.raises(GrantError, match="target 0 already") as caught:
        sandbox.run(tool, grants=offers, stdin=b"more")
    assert caught.value.usage


def test_a_directory_is_found_at_its_path(
    sandbox: Sandbox, tool: Cell, tool_path: Path, tmp_path: Path
) -> None:
    folder = tool_path.parent  # that others can read
    offers = [grant("one", folder), grant("two", folder, guest="//data/./sub/")]
    result = sandbox.run(tool, ["list=/one", "say=--\n", "list=/data/sub"], offers).check()
    one, two = result.stdout.decode().split("--\n")
    assert sorted(one.splitlines()) == sorted(os.listdir(folder))
    assert one == two
    refused = sandbox.run(tool, ["make=/one/new"], offers)
    assert refused.exit_code == 98
    assert not (folder / "new").exists()
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        # By its descriptor: the cell need not be able to walk there.
        sandbox.run(tool, ["make=/d/new"], [grant("d", fd, mode="rw")]).check()
    finally:
        os.close(fd)
    assert (tmp_path / "new").exists()


def test_scratch_is_a_writable_directory(sandbox: Sandbox, tool: Cell) -> None:
    args = ["make=/tmp/new", "list=/tmp"]
    assert sandbox.run(tool, args, limits=Limits(scratch=1 << 20)).stdout == b"new\n"
    assert sandbox.run(tool, args).exit_code == 98


def test_a_pathlink_opens_the_grant(sandbox: Sandbox, tool: Cell) -> None:
    offer = grant("data", b"text", pathlink=True)
    assert sandbox.run(tool, ["open=/data"], [offer]).check().stdout == b"text"


@pytest.mark.parametrize(
    ("offers", "words", "usage"),
    [
        ([grant("a b", b"")], "not a legal name", True),
        ([grant("a", b""), grant("a", b"")], "already given", True),
        ([grant("a-b", b""), grant("a_b", b"")], "WW_FD_A_B", True),
        ([grant("a", b"", target=9), grant("b", b"", target=9)], "already taken", True),
        ([grant("a", b"", target=-1)], "out of range", True),
        ([grant("a", b"", target=1 << 20)], "out of range", True),
        ([grant("a", "/", guest="../a")], "'..' leads out of it", True),
        ([grant("a", "/", guest="/x"), grant("b", "/", guest="x")], "cannot be at", True),
        ([grant("a", 987_654)], "fd 987654 is not open", False),
        ([grant("a", -1)], "grant 'a': fd -1 is not open", False),
        ([grant("a", 1 << 40)], f"grant 'a': fd {1 << 40} is not open", False),
        ([grant("a", b"", target=12.0)], "grant 'a': target cannot be 12.0", True),  # type: ignore[arg-type]
        ([grant("a", "/", guest=b"/x")], "grant 'a': guest cannot be", True),  # type: ignore[arg-type]
        ([grant(5, b"")], "name cannot be 5", True),  # type: ignore[arg-type]
        ([grant("a", b"", mode="w")], "mode=w is asked", False),
        ([grant("a", b"", mode="rw")], "mode=rw is asked", False),
        ([grant("a", b"", mode="wr")], "none of r, w and rw", True),  # type: ignore[arg-type]
        ([grant("a", b"", type="socket")], "type=socket is asked", False),
        ([grant("a", "/", mode="w")], "without finding names", False),
        ([grant("a", "/dev/null", guest="/x")], "no directory", False),
    ],
    ids=lambda value: None if isinstance(value, str | bool) else f"{len(value)}",
)
def test_what_cannot_be_granted_is_refused_before_anything_runs(
    sandbox: Sandbox, tool: Cell, offers: list[Offer], words: str, usage: bool
) -> None:
    with pytest.raises(GrantError) as caught:
        sandbox.run(tool, grants=offers)
    assert words in str(caught.value)
    assert caught.value.usage is usage
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.where, copy.what, copy.hint, copy.usage) == (
        caught.value.where,
        caught.value.what,
        caught.value.hint,
        caught.value.usage,
    )


def test_a_kind_that_leads_out_of_a_jail_is_refused(sandbox: Sandbox, tool: Cell) -> None:
    with open("/proc/self/ns/net", "rb", buffering=0) as namespace:
        with pytest.raises(GrantError, match="leads out of the jail"):
            sandbox.run(tool, grants=[grant("a", namespace)])
        with pytest.raises(GrantError, match=f"fd {namespace.fileno()}"):
            sandbox.run(tool, stdin=namespace, grants=[grant("a", namespace)])
    with pytest.raises(GrantError, match="stdin"):
        sandbox.run(tool, stdin="/")


def test_what_is_closed_is_refused_by_its_name(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    left, right = socket.socketpair()
    left.close()
    right.close()
    file = open(tmp_path / "file", "wb")  # noqa: SIM115 - it is to be closed
    file.close()
    for closed in (left, file, io.BytesIO()):
        with pytest.raises(GrantError, match="grant 'gone'"):
            sandbox.run(tool, grants=[grant("gone", closed)])
        with pytest.raises(GrantError, match="stdin"):
            sandbox.run(tool, stdin=closed)
    with pytest.raises(GrantError, match="stdin: fd -1 is not open"):
        sandbox.run(tool, stdin=-1)


def test_one_offer_is_not_many(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(TypeError, match=r"write \[offer\]"):
        sandbox.run(tool, grants=grant("a", b""))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a grant has to be of type Offer, and not str"):
        sandbox.run(tool, grants=["a"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "wrong",
    [
        [grant("b", b"", mode="w")],
        [grant("a", b"")],
        [grant("b c", b"")],
        [grant("b", 10, target=11), grant("c", b"", target=11)],
        [grant("b", "fifo")],
        [grant("b", "/dev/null", guest="/x")],
    ],
    ids=["mode", "name-twice", "name", "target", "fifo", "guest"],
)
def test_a_refusal_makes_and_empties_nothing(
    sandbox: Sandbox,
    tool: Cell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[Offer],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("full").write_bytes(b"kept")
    offers = [grant("a", "full", mode="w"), grant("new", "new", mode="rw")]
    fd = os.open("/dev/null", os.O_RDONLY)
    given = [o._replace(source=fd) if isinstance(o.source, int) else o for o in wrong]
    try:
        with pytest.raises(GrantError):
            sandbox.run(tool, grants=[*offers, *given])
    finally:
        os.close(fd)
    assert Path("full").read_bytes() == b"kept"
    assert not Path("new").exists()
    sandbox.run(tool, ["tell=new"], offers).check()
    assert Path("full").read_bytes() == b""
    assert Path("new").read_bytes() == b"told"


@pytest.mark.parametrize("code", [b"", b"\0asm", b"no program", b"\0asm\x02\0\0\0"])
def test_what_is_no_program_makes_and_empties_nothing(
    sandbox: Sandbox, tmp_path: Path, code: bytes
) -> None:
    (tmp_path / "full").write_bytes(b"kept")
    offers = [
        grant("a", tmp_path / "full", mode="w"),
        grant("new", tmp_path / "new", mode="rw"),
    ]
    with pytest.raises(CellRejected) as caught:
        sandbox.run(code, grants=offers)
    assert str(caught.value) == "cell: it is not a WebAssembly module"
    assert (tmp_path / "full").read_bytes() == b"kept"
    assert not (tmp_path / "new").exists()
    # What only the engine can tell comes later.
    with pytest.raises(CellRejected):
        sandbox.run(b"\0asm\x01\0\0\0no program", grants=offers)
    assert (tmp_path / "new").exists()


def test_a_component_that_is_refused_makes_and_empties_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "full").write_bytes(b"kept")
    offers = [
        grant("a", tmp_path / "full", mode="w", target=1),
        grant("new", tmp_path / "new", mode="rw"),
        grant("b", b""),
    ]
    with pytest.raises(GrantError, match="component"):
        sandbox.run(b"\0asm\x0d\0\x01\0", grants=offers)
    assert (tmp_path / "full").read_bytes() == b"kept"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_a_fifo_is_refused_by_its_path_and_granted_when_it_is_open(
    sandbox: Sandbox, tool: Cell, tmp_path: Path, mode: Mode
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(GrantError, match=r"is a FIFO.*open it"):
        sandbox.run(tool, grants=[grant("a", path, mode=mode)])
    with pytest.raises(GrantError, match=r"stdin: .*is a FIFO"):
        sandbox.run(tool, stdin=path)
    with open(os.open(path, os.O_RDWR), "r+b", buffering=0) as fifo:
        assert sandbox.run(tool, ["tell=a"], [grant("a", fifo)]).ok
        assert fifo.read(4) == b"told"


def test_a_path_is_opened_so_that_the_cell_waits(
    sandbox: Sandbox, tool: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only open(2) is not to wait."""
    from sandbox.library import opening

    found: list[bool] = []
    original = opening.Opened.settle

    def settle(self: opening.Opened) -> None:
        original(self)
        found.extend(map(os.get_blocking, self._fds))

    monkeypatch.setattr(opening.Opened, "settle", settle)
    sandbox.run(tool, grants=[grant("a", "/dev/null"), grant("b", "/dev/zero", mode="rw")]).check()
    assert len(found) >= 4
    assert all(found)


def test_what_has_no_descriptor_is_a_mistake(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(TypeError, match="neither bytes nor a path"):
        sandbox.run(tool, grants=[grant("a", 1.5)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="True is neither"):
        sandbox.run(tool, grants=[grant("a", True)])


def test_a_component_is_granted_nothing_that_would_not_reach_it(sandbox: Sandbox) -> None:
    with pytest.raises(GrantError, match="component"):
        sandbox.run(b"\0asm\x0d\0\x01\0", grants=[grant("a", b"", pathlink=True)])


# --- whose descriptor it is ---


def test_what_is_granted_stays_the_callers_own(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        sandbox.run(tool, ["tell=a"], [grant("a", file), grant("b", file)]).check()
        assert file.tell() == 4
        file.write(b"more")
    assert (tmp_path / "file").read_bytes() == b"toldmore"
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_is_moved_is_the_cells_alone(sandbox: Sandbox, tool: Cell, pipe: Pipe) -> None:
    sandbox.run(tool, ["tell=a"], [grant("a", pipe.writer, move=True)]).check()
    pipe.wait_for_word()
    assert pipe.ends()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.writer)


def test_a_file_that_is_moved_is_closed(sandbox: Sandbox, tool: Cell, tmp_path: Path) -> None:
    file = open(tmp_path / "file", "wb", buffering=0)  # noqa: SIM115 - it is given away
    sandbox.run(tool, ["tell=a"], [grant("a", file, move=True)]).check()
    assert file.closed
    assert (tmp_path / "file").read_bytes() == b"told"


def test_nothing_is_moved_when_a_grant_is_refused(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    with open(tmp_path / "file", "wb") as file:
        offers = [grant("a", file, move=True), grant("b", 987_654)]
        with pytest.raises(GrantError):
            sandbox.run(tool, grants=offers)
        assert not file.closed


def test_flags_that_a_cell_changed_are_put_back(sandbox: Sandbox, tool: Cell) -> None:
    reader, writer = os.pipe()
    try:
        before = fcntl.fcntl(writer, fcntl.F_GETFL)
        sandbox.run(tool, ["hasten=a"], [grant("a", writer)]).check()
        assert fcntl.fcntl(writer, fcntl.F_GETFL) == before
    finally:
        os.close(reader)
        os.close(writer)


def test_a_number_that_is_used_anew_before_the_cell_runs_does_not_matter(
    executor: CellExecutor, tool: Cell, tmp_path: Path
) -> None:
    """What is granted is what was open when it was submitted, and not what has its number later."""
    blocks = [Pipe(), Pipe()]
    release = [os.pipe(), os.pipe()]
    running = [
        executor.submit(
            tool,
            ["tell=OUT", "wait=IN"],
            [grant("OUT", block.writer, move=True), grant("IN", ends[0], move=True)],
        )
        for block, ends in zip(blocks, release, strict=True)
    ]
    for block in blocks:
        block.wait_for_word()
    (tmp_path / "meant").write_bytes(b"meant")
    (tmp_path / "secret").write_bytes(b"secret")
    fd = os.open(tmp_path / "meant", os.O_RDONLY)
    waiting = executor.submit(tool, ["copy=a"], [grant("a", fd)])
    os.close(fd)
    reused = os.open(tmp_path / "secret", os.O_RDONLY)
    assert reused == fd
    for _, end in release:
        os.write(end, b"x")
        os.close(end)
    assert waiting.result().check().stdout == b"meant"
    assert all(future.result().ok for future in running)
    os.close(reused)
    for block in blocks:
        block.close()

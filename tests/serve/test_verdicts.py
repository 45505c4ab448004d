"""A run through a server ends as one with a spawner of its own does, and does the same."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import (
    CAN_BE_ROOT,
    EXAMPLES,
    ORDINARY_ACCOUNT,
    OWN_ACCOUNT,
    Account,
    BuildFunction,
    Ww,
)
from tests.serve.serving import Server, serving, wat
from tests.wasi.test_components import component

# The fixture of another module, which pytest finds here.
__all__ = ["component"]

HELLO = EXAMPLES / "hello" / "hello.wasm"
# What only the event of a server tells.
SERVER = "server"
ACCOUNTS = [OWN_ACCOUNT, ORDINARY_ACCOUNT] if CAN_BE_ROOT else [OWN_ACCOUNT]


class House(NamedTuple):
    """A ww with a server, and what both serve."""

    ww: Ww
    server: Server


@pytest.fixture(scope="module", params=ACCOUNTS, ids=lambda account: account.name)
def house(request: pytest.FixtureRequest, account_folders: Path) -> Iterator[House]:
    account: Account = request.param
    if not account.is_own:
        request.getfixturevalue("ordinary_account")
    ww = Ww(account, account_folders / f"verdicts-{account.name}-{os.getpid()}")
    ww.prepare()
    with serving(ww, "--jails", "2") as server:
        yield House(ww, server)


class Verdict(NamedTuple):
    """All that can be seen of a run."""

    code: int
    out: bytes
    err: bytes
    events: list[dict[str, object]]
    files: dict[str, bytes]


def verdict(
    house: House, words: list[str | Path], stdin: bytes, granted: bytes, *, served: bool
) -> Verdict:
    """Run it in a working directory of its own, with a file at 3 and a pipe for events at 9."""
    ww = house.ww
    place = ww.tmp / ("served" if served else "own")
    given = ww.root / "given"
    given.write_bytes(granted)
    place.mkdir()
    for path in (place, given):
        os.chown(path, ww.account.uid, ww.account.gid)
    place.chmod(0o777)
    given.chmod(0o666)
    end, told = os.pipe()
    with open(end, "rb") as events, open(told, "wb") as writer, open(given, "r+b") as file:
        done = ww.run(
            *("run", "--status-fd", "9", *([] if served else ["--no-serve"]), *words),
            stdin=stdin,
            fds={3: file, 9: writer},
            cwd=place,
        )
        writer.close()
        lines = [json.loads(line) for line in events]
    for line in lines:
        line.pop("usage", None)  # which is never the same
    files = {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}
    files["given"] = given.read_bytes()
    for path in sorted(place.iterdir()):
        assert stat.S_ISREG(path.lstat().st_mode)
        path.unlink()
    place.rmdir()
    for event in lines:
        event.pop("pid", None)
        if "guest" in event:
            del event["source"]  # a descriptor that ww opened itself: any number
    return Verdict(done.returncode, done.stdout, done.stderr, lines, files)


def both(
    house: House, words: list[str | Path], stdin: bytes = b"", granted: bytes = b""
) -> Verdict:
    """Run it in both ways, compare them, and return what became of it."""
    own = verdict(house, words, stdin, granted, served=False)
    served = verdict(house, words, stdin, granted, served=True)
    told = [event for event in served.events if event["event"] == SERVER]
    rest = [event for event in served.events if event["event"] != SERVER]
    assert served._replace(events=rest) == own
    # Of what nobody was asked to run, no server is told.
    ran = bool(rest) and rest[-1]["reason"] != "error"
    assert told == ([{"event": SERVER, "socket": str(house.server.path)}] if ran else [])
    return own


LOOP = "(loop $l (br $l))"
# What is run, in a directory of its own; the exit code; and the reason that the last event gives.
CASES: dict[str, tuple[list[str], int, str]] = {
    "exit": (["process", "exit", "7"], 7, "exit"),
    "arguments": (["--env", "K=v", "process", "arguments", "a b", "--no-serve"], 0, "exit"),
    "environment": (["--env", "K=v", "--fd", "f=3", "process", "environment"], 0, "exit"),
    "trap": (["process", "unreachable"], 134, "trap"),
    "no start": (["--invoke", "none", "loop"], 126, "rejected"),
    "invoke": (["--invoke", "_start", "process"], 0, "exit"),
    "no cell": (["/etc/passwd"], 126, "rejected"),
    "not there": (["./nothing.wasm"], 127, "error"),
    "usage": (["--net", "all", "loop"], 2, ""),
    "no grant": (["--fd", "f=99", "loop"], 65, "error"),
    "refused mode": (["--fd", "f=0,mode=w", "loop"], 65, "error"),
    "wall": (["--timeout", "0.2", "loop"], 66, "limit"),
    "fuel": (["--fuel", "1000", "loop"], 66, "limit"),
    "memory": (["--memory", "1M", "process", "grow"], 66, "limit"),
    "output": (["--output", "10", "process"], 66, "limit"),
    "read and write": (["--fd", "f=3", "libc", "read 10 5", "write 10 new"], 0, "exit"),
    "pathlink": (["--fd", "f=3,pathlink=true", "libc", "fread /fd/f"], 0, "exit"),
    "directory": (
        ["--dir", ".:/d:rw", "libc", "fputs /d/new w text", "fread /d/new", "opendir /d"],
        0,
        "exit",
    ),
    "read-only directory": (["--dir", ".:/d", "libc", "fputs /d/new w text"], 0, "exit"),
    "scratch": (["--scratch", "64K", "libc", "fputs /tmp/a w text", "opendir /tmp"], 0, "exit"),
    "full scratch": (["--scratch", "64K", "libc", "mkdir /tmp/a", "mkdir /b"], 0, "exit"),
    "loopback": (["--net", "loopback", "process"], 0, "exit"),
    "chroot": (["--isolation", "chroot", "--scratch", "1M", "process"], 67, "jail"),
    "no stdio": (["--no-stdio", "process"], 0, "exit"),
    "moved": (["--fd", "f=3,move=true", "libc", "read 10 3"], 0, "exit"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_the_same_way(house: House, c_cell: BuildFunction, name: str) -> None:
    words, code, reason = CASES[name]
    cells = {"process": c_cell("process"), "libc": c_cell("libc")}
    cells["loop"] = house.ww.file("loop.wasm", wat(LOOP))
    # The cell is the first word that is one's name.
    at = next((i for i, word in enumerate(words) if word in cells), None)
    command: list[str | Path] = [*words]
    if at is not None:
        command[at] = cells[words[at]]
    found = both(house, command, granted=b"given text")
    assert found.code == code, found
    assert [event.get("reason") for event in found.events][-1:] == ([reason] if reason else [])


def test_standard_streams_are_the_callers(house: House) -> None:
    found = both(house, [EXAMPLES / "cat-fds" / "cat-fds.wasm"], stdin=b"text")
    assert found.code == 2
    assert b"WW_FD_INPUT is not set" in found.err
    cell = house.ww.file("cat.wasm", EXAMPLES / "cat-fds" / "cat-fds.wasm")
    flags = ("--fd", "input=0", "--fd", "output=1")
    found = both(house, [*flags, cell], stdin=b"text" * 1000)
    assert (found.code, found.out) == (0, b"text" * 1000)


def test_a_component_runs_alike(house: House, component: Path) -> None:
    cell = house.ww.file("component.wasm", component)
    acts = ("say:text", "env:K", "copy", "complain", "create:/d/new", "read:/d/new", "list:/d")
    found = both(house, ["--env", "K=v", "--dir", ".:/d:rw", cell, *acts], stdin=b"from stdin")
    assert found.code == 0
    assert b"from stdin" in found.out
    assert found.files["new"] == b"written"
    assert both(house, [cell, "trap"]).code == 134


def test_content_is_served_by_the_caller(house: House, c_cell: BuildFunction) -> None:
    text = house.ww.file("content.txt", b"0123456789")
    root = house.ww.export(text)
    found = both(house, ["--with-ipfs", c_cell("content"), root])
    assert found.out.decode() == f"{root}: 10 bytes, 0123456789\n"
    os.unlink(text)


def test_a_cell_is_found_by_its_address_alike(house: House) -> None:
    address = house.ww.export(HELLO)
    found = both(house, [address])
    assert found.code == 0
    assert b"Hello" in found.out


def test_processor_time_is_limited_as_without_a_server(house: House) -> None:
    loop = house.ww.file("loop.wasm", wat(LOOP))
    done = house.ww.run("run", "--cpu-time", "1", loop)
    assert done.returncode == 66
    assert b"limit of processor time" in done.stderr


def test_what_has_to_be_compiled_is_told_of_and_kept_by_the_server(house: House) -> None:
    # No one has compiled this: its digest is its own.
    text = f"(i32.store (i32.const 0) (i32.const {os.getpid()})) (nop (; {house.ww.root} ;))"
    cell = house.ww.file("new.wasm", wat(text))
    before = set(os.listdir(house.ww.home / "cache"))
    assert house.ww.run("run", cell).returncode == 0
    made = set(os.listdir(house.ww.home / "cache")) - before
    assert len(made) == 1
    assert house.ww.run("run", "--no-serve", cell).returncode == 0
    assert set(os.listdir(house.ww.home / "cache")) - before == made


def test_a_bad_variable_is_told_whether_there_is_a_server_or_not(house: House) -> None:
    for flags in ((), ("--no-serve",)):
        done = house.ww.run("run", *flags, HELLO, env={"WW_CACHE_SIZE": "much"})
        assert done.returncode == 2
        assert done.stderr.startswith(b"ww: error: WW_CACHE_SIZE: 'much' is no size")

"""A spawner is started before the command line is read, and ends if nothing comes of it."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner import spawners
from runner.commands.flags import DEBUG, EXPLAIN
from runner.commands.run import run
from runner.errors import WwError
from runner.spawners import HeadStart
from sandbox import Spawner
from tests.conftest import EXAMPLES, Leftovers, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"
# A server that happens to run here is not part of it.
ALONE = {"WW_SOCKET": "off"}


class Fake:
    """Stands for a spawner, by the order in which they were started."""

    def __init__(self, number: int) -> None:
        self.number = number


def number(spawner: Any) -> int:
    assert isinstance(spawner, Fake)
    return spawner.number


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each was started that was: for debugging or not. None really is."""
    found: list[bool] = []

    def start(_environ: Mapping[str, str], *, debug: bool) -> Any:
        found.append(debug)
        return Fake(len(found))

    monkeypatch.setattr(spawners, "start", start)
    monkeypatch.setattr(spawners, "discard", lambda spawner: found.remove(False))
    return found


@pytest.mark.parametrize("args", [["x"], ["--fd", "a=3", "x", "y"], ["--nonsense"]], ids=" ".join)
def test_it_starts_whatever_is_to_be_run(args: list[str], started: list[bool]) -> None:
    head_start = HeadStart()
    head_start.begin(args, ALONE)
    assert started == [False]
    assert number(head_start.take(ALONE, debug=False)) == 1
    head_start.give_up()
    assert started == [False]
    # One run has one. Whoever wants another gets another.
    assert number(head_start.take(ALONE, debug=False)) == 2


@pytest.mark.parametrize(
    "args",
    [[], ["--help"], ["x", "-h"], ["--explain", "x"], ["--debug", "x"], ["x", "--debug"]],
    ids=" ".join,
)
def test_it_waits_where_it_may_not_be_wanted_or_not_like_this(
    args: list[str], started: list[bool]
) -> None:
    head_start = HeadStart()
    head_start.begin(args, ALONE)
    assert started == []
    assert number(head_start.take(ALONE, debug=True)) == 1
    assert started == [True]


def test_the_flags_that_it_knows_are_those_that_there_are() -> None:
    assert {DEBUG.flag, EXPLAIN.flag} < spawners.NOT_USUAL
    help_option = run.get_help_option(run.make_context("run", ["x"], obj={}))
    assert help_option is not None
    assert set(help_option.opts) <= spawners.NOT_USUAL


def test_one_that_nobody_takes_ends(started: list[bool]) -> None:
    head_start = HeadStart()
    head_start.begin(["x"], ALONE)
    head_start.give_up()
    assert started == []
    head_start.give_up()
    assert started == []


def test_what_is_wrong_is_told_when_it_is_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    head_start = HeadStart()
    head_start.begin(["x"], {**ALONE, "WW_CACHE_SIZE": "much"})
    with pytest.raises(WwError, match="WW_CACHE_SIZE: 'much' is no size"):
        head_start.take({**ALONE, "WW_CACHE_SIZE": "much"}, debug=False)
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    head_start.begin(["x"], ALONE)
    with pytest.raises(WwError, match="/nonexistent/python: the spawner cannot be started"):
        head_start.take(ALONE, debug=False)


@pytest.fixture
def spawner(tmp_path: Path) -> Spawner:
    return spawners.start({"WW_HOME": str(tmp_path)}, debug=False)


@pytest.mark.parametrize("state", ["that gets ready", "that is stopped", "that has ended"])
def test_nothing_is_left_of_one_that_is_discarded(spawner: Spawner, state: str) -> None:
    if state == "that is stopped":
        os.kill(spawner.pid, signal.SIGSTOP)
    elif state == "that has ended":
        os.kill(spawner.pid, signal.SIGKILL)
        os.waitid(os.P_PID, spawner.pid, os.WEXITED | os.WNOWAIT)
    spawners.discard(spawner)
    with pytest.raises(ChildProcessError):
        os.waitpid(spawner.pid, 0)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--nonsense", HELLO], 2, b"ww: error: ww run: No such option '--nonsense'"),
        (["--fd", "a=b", HELLO], 2, b"ww: error: --fd #1: column 3: 'b' is not"),
        (["--fd", "a=99", HELLO], 65, b"ww: error: --fd #1: fd 99 is not open"),
        (["./nothing.wasm"], 127, b"ww: error: ./nothing.wasm: there is no such file"),
        ([], 2, b"ww: error: ww run: Missing argument 'CELL'"),
    ],
    ids=["flag", "value", "grant", "cell", "none"],
)
def test_nothing_is_said_or_left_of_it_where_nothing_is_run(
    ww: Ww, args: list[str], code: int, said: bytes, leftovers: Callable[..., Leftovers]
) -> None:
    with leftovers(ww):
        done = ww.run("run", *args)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == 1

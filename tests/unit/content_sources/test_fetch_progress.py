"""What is shown of a fetch, and when."""

import json
from types import SimpleNamespace

import pytest

from runner.content import progress
from runner.content.progress import Json, Text
from runner.progress import BETWEEN, FIRST, Line

MIB = 1 << 20


class Clock:
    """The time, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


class Noting(Line):
    """A line of which everything is noted."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.texts: list[str] = []

    def replace(self, text: str) -> None:
        self.texts.append(text)

    def erase(self) -> None:
        self.texts.append("")


def test_nothing_is_shown_of_what_takes_no_time(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    line = Noting()
    all_ways = (Text("/ipfs/x", line), Json("/ipfs/x"), Text("/ipfs/x", None))
    clock.now += FIRST * 0.99
    for shown in all_ways:
        shown.show()
        shown.end()
    assert line.texts == [""]
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_the_rate_and_the_source(clock: Clock) -> None:
    line = Noting()
    shown = Text("/ipfs/x", line)
    shown.asked("gateway https://gate.example")
    clock.now += FIRST
    shown.show()
    assert line.texts == ["ww: fetching waiting, 1 s, gateway https://gate.example: /ipfs/x"]
    for _ in range(2):
        shown.arrived(MIB)
        shown.verified(MIB, "gateway https://other.example")
    clock.now += 1
    shown.show()
    shown.of(8 * MIB)
    shown.passed(2 * MIB)
    clock.now += 2
    shown.show()
    shown.show()  # not more often than anybody can read
    assert line.texts[1:] == [
        "ww: fetching 2.0 MiB, 1.0 MiB/s, gateway https://other.example: /ipfs/x",
        "ww: fetching [#####---------------] 25% of 8.0 MiB, 512.0 KiB/s, "
        "gateway https://other.example: /ipfs/x",
    ]
    shown.clear()
    assert line.texts[-1] == ""


def test_a_bar_is_never_longer_than_it_is(clock: Clock) -> None:
    line = Noting()
    shown = Text("/ipfs/x", line)
    shown.of(10)
    shown.arrived(10)
    shown.passed(1000)
    clock.now += FIRST
    shown.show()
    assert "[####################] 100% of 10 B" in line.texts[0]


def test_plain_lines_come_now_and_then_and_at_the_end(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = Text("/ipfs/x", None)
    shown.arrived(3 * MIB)
    shown.verified(MIB, "one")
    shown.verified(MIB, "two")
    shown.verified(MIB, "one")
    for _ in range(30):
        clock.now += BETWEEN / 10
        shown.show()
    shown.clear()
    shown.end()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("ww: fetching 3.0 MiB, ")
    assert lines[-1] == "ww: fetched 3.0 MiB in 15.0 s, from one, two: /ipfs/x"


def test_programs_get_json(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    shown = Json("/ipfs/\x1b[2J")
    shown.arrived(3000)
    shown.verified(1000, "one")
    shown.of(5000)
    clock.now += FIRST
    shown.show()
    shown.show()
    shown.verified(1000, "two")
    shown.clear()
    shown.end()
    running, done = map(json.loads, capfd.readouterr().err.splitlines())
    assert running == {
        "event": "fetch",
        "state": "running",
        "address": "/ipfs/\x1b[2J",
        "source": "one",
        "sources": ["one"],
        "blocks": 1,
        "bytes": 1000,
        "received": 3000,
        "size": 5000,
        "seconds": 1.0,
        "rate": 3000,
    }
    assert (done["state"], done["blocks"], done["bytes"]) == ("done", 2, 2000)
    assert done["sources"] == ["one", "two"]


def test_what_others_have_named_does_not_steer_the_terminal(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = Text("/ipfs/\x1b[2J\n", None)
    shown.verified(1, "x\x1b[0m")
    shown.end()
    assert capfd.readouterr().err == "ww: fetched 1 B in 0.0 s, from x\\x1b[0m: /ipfs/\\x1b[2J\\n\n"

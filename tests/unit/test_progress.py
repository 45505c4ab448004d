"""What is shown while a cell is compiled: when, how, and that it is gone afterwards."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest

from runner import progress, supervise
from runner.progress import Compiling, Line
from runner.units import size_shown
from tests.conftest import REPO


class Shown(Line):
    """A line of which everything is noted."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.texts: list[str] = []

    def replace(self, text: str) -> None:
        self.texts.append(text)

    def erase(self) -> None:
        self.texts.append("")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """What a person reads, and where ww writes. It is nobody's controlling terminal."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    yield master, slave
    os.close(master)
    os.close(slave)


# Seconds within which everything comes that will.
PATIENCE = 30


def read(reader: int) -> bytes:
    """What can be read at once; of a terminal that may be a part of what was written."""
    try:
        return os.read(reader, 4096)
    except BlockingIOError:
        return b""


def read_up_to(reader: int, end: bytes) -> bytes:
    """All that comes until it ends with something; if it never does, all that comes at all.

    What is written to a terminal is handed on by the kernel in its own time, and in pieces.
    """
    said = b""
    ready = select.poll()
    ready.register(reader, select.POLLIN)
    while not said.endswith(end) and ready.poll(PATIENCE * 1000):
        said += os.read(reader, 4096)
    return said


# What is after the text of a line: the rest is erased, and lines may be gone beyond again.
END_OF_LINE = b"\x1b[K\x1b[?7h"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (27_262_976, "26.0 MiB"),
        (1000 * 1024 - 1, "1.0 MiB"),
        (999 * 1024, "999.0 KiB"),
        (2 << 30, "2.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_a_size_is_shown_in_a_few_characters(size: int, text: str) -> None:
    assert size_shown(size) == text


def test_nothing_is_shown_before_a_second_has_passed() -> None:
    line = Shown()
    shown = Compiling("./cell.wasm", 26 << 20, line)
    for elapsed in (0.0, 0.2, 0.999):
        shown.show(elapsed)
    assert line.texts == []
    for elapsed in (1.0, 1.999, 2.0, 61.5):
        shown.show(elapsed)
    shown.end()
    assert line.texts == [
        "ww: compiling 26.0 MiB, 1 s: ./cell.wasm",
        "ww: compiling 26.0 MiB, 1 s: ./cell.wasm",
        "ww: compiling 26.0 MiB, 2 s: ./cell.wasm",
        "ww: compiling 26.0 MiB, 61 s: ./cell.wasm",
        "",
    ]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A pipe that is taken for stderr: the end to read, and the other."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    monkeypatch.setattr(progress, "STDERR", theirs)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def stderr(pipe: tuple[int, int]) -> int:
    return pipe[0]


def test_plain_lines_come_after_a_second_and_then_every_five(stderr: int) -> None:
    shown = Compiling("./cell.wasm", 1 << 20, None)
    ticks = [number * 0.2 for number in range(100)]  # until 19.8 s
    for elapsed in ticks:
        shown.show(elapsed)
    shown.end()
    assert read(stderr).decode().splitlines() == [
        f"ww: compiling 1.0 MiB, {seconds} s: ./cell.wasm" for seconds in (1, 6, 11, 16)
    ]


def test_plain_lines_that_were_asked_for_late_are_not_made_up_for(stderr: int) -> None:
    shown = Compiling("./cell.wasm", 1 << 20, None)
    for elapsed in (13.0, 13.2, 15.9, 16.1):
        shown.show(elapsed)
    assert read(stderr).decode().count("\n") == 2


def test_plain_lines_do_not_wait_for_a_reader(pipe: tuple[int, int]) -> None:
    stderr, writer = pipe
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    Compiling("./cell.wasm", 1 << 20, None).show(2.0)  # would not return
    # Where there is room for a page, there is for every line: pipe(7).
    os.read(stderr, 4096)
    Compiling("./" + 4000 * "ö", 1 << 20, None).show(2.0)
    os.read(stderr, 60 << 10)
    assert read(stderr).decode().startswith("ww: compiling 1.0 MiB, 2 s: ./ööö")


def test_no_name_steers_the_terminal_or_makes_a_line(
    stderr: int, terminal: tuple[int, int]
) -> None:
    name = "./\x1b[2J\nww: error: forged\r"
    Compiling(name, 1, None).show(1.0)
    assert read(stderr).count(b"\n") == 1
    Compiling(name, 1, Line(terminal[1])).show(1.0)
    said = read_up_to(terminal[0], END_OF_LINE)
    assert b"\x1b[2J" not in said
    assert b"\n" not in said
    assert said.count(b"\r") == 1


def test_a_line_on_a_terminal_is_replaced_in_its_place_and_erased(
    terminal: tuple[int, int],
) -> None:
    master, slave = terminal
    line = Line(slave)
    line.erase()  # nothing to erase
    for text in ("one", "one", "two"):
        line.replace(text)
    # The end of the line is not gone beyond while it is written, and may be afterwards.
    assert read_up_to(master, b"two" + END_OF_LINE) == b"".join(
        b"\r\x1b[?7l" + text + END_OF_LINE for text in (b"one", b"two")
    )
    line.erase()
    line.erase()
    line.replace("two")
    assert read_up_to(master, END_OF_LINE) == b"\r\x1b[K\r\x1b[?7ltwo" + END_OF_LINE


def test_a_terminal_that_is_held_is_not_waited_for(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    line = Line(slave)
    termios.tcflow(slave, termios.TCOOFF)  # as Ctrl-S does
    try:
        line.replace("text")
        line.erase()
    finally:
        termios.tcflow(slave, termios.TCOON)
    os.write(slave, b"end")
    assert read_up_to(master, b"end") == b"end"


def test_a_terminal_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    line = Line(slave)
    line.replace("text")
    os.close(master)
    line.replace("more")
    line.erase()
    Compiling("./cell.wasm", 1, line).show(1.0)
    monkeypatch.setattr(progress, "STDERR", slave)
    Compiling("./cell.wasm", 1, None).show(1.0)
    os.close(slave)


@pytest.mark.parametrize(
    ("terminal_there", "term", "forced", "shown"),
    [
        (True, "xterm", False, "a line"),
        (True, "xterm", True, "a line"),
        (True, "dumb", False, "nothing"),
        (True, None, False, "nothing"),
        (True, "dumb", True, "plain lines"),
        (False, "xterm", False, "nothing"),
        (False, "xterm", True, "plain lines"),
    ],
)
def test_where_it_is_shown(
    terminal_there: bool,
    term: str | None,
    forced: bool,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2 and terminal_there)
    environ = {} if term is None else {"TERM": term}
    with open(__file__, "rb") as file:
        made = supervise.compiling("./cell.wasm", file.fileno(), environ, forced=forced)()
    if made is None:
        assert shown == "nothing"
    else:
        assert made._size == os.path.getsize(__file__)
        assert shown == ("plain lines" if made._line is None else "a line")


# As a job in the background of a terminal that stops such jobs when they write.
BACKGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, settings)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    from runner.progress import Line
    line = Line(0)
    line.replace("in the background")
    line._shown = "when it was in the foreground"
    line.erase()
    os._exit(0)
_, status = os.waitpid(pid, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(pid, 9)
    sys.exit("it was stopped")
from runner.progress import Line
Line(0).replace("in the foreground")
"""


def test_a_job_in_the_background_shows_nothing_and_is_not_stopped(
    terminal: tuple[int, int],
) -> None:
    master, slave = terminal
    done = subprocess.run(
        [sys.executable, "-c", BACKGROUND],
        stdin=slave,
        capture_output=True,
        start_new_session=True,
        cwd=REPO,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    said = read_up_to(master, END_OF_LINE)
    assert b"in the foreground" in said
    assert b"background" not in said


def test_flags_of_the_terminal_stay_as_they_are(terminal: tuple[int, int]) -> None:
    before = fcntl.fcntl(terminal[1], fcntl.F_GETFL)
    line = Line(terminal[1])
    line.replace("text")
    line.erase()
    assert fcntl.fcntl(terminal[1], fcntl.F_GETFL) == before

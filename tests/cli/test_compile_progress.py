"""What `ww` tells of a compilation, and that no byte of it is where the cell writes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from runner.units import size_shown
from tests.conftest import EXAMPLES, Account, Leftovers, Ww
from tests.jail.inside import variant

HELLO = EXAMPLES / "hello" / "hello.wasm"
TERM = {"TERM": "xterm"}
SIZE = size_shown(HELLO.stat().st_size)
ERASE = b"\r\x1b[K"
PATIENCE = 30

# A spawner that has compiled, and does not say so before the test lets it.
WAITING = """
import os, time
from sandbox.lane import Lane
from sandbox.outcome import Outcome

compile_cell = Lane._compile

def waiting(self, *args):
    made = compile_cell(self, *args)
    while not os.path.exists({gate!r}):
        time.sleep(0.01)
    return {then}

Lane._compile = waiting
"""


# One that compiles for ever.
ENDLESS = """
import time
from sandbox.wasi.cell import CellHost

def compile(self, inside):
    inside.seal()
    while True:
        time.sleep(1)

CellHost.compile = compile
"""


class Slow:
    """A ww that compiles until it is let go."""

    def __init__(self, ww: Ww, patch: str = WAITING, then: str = "made") -> None:
        self._ww = ww
        self._gate = ww.root / "gate"
        self._command = variant(patch.format(gate=str(self._gate), then=then))

    @contextmanager
    def start(self, *args: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        with self._ww.start([*self._command, *args], **options) as process:
            try:
                yield process
            finally:
                process.kill()  # if the test has failed; otherwise it has ended

    def let_go(self) -> None:
        self._gate.touch()


class Terminal:
    """What a person sees; it belongs to the account, and is nobody's controlling terminal."""

    def __init__(self, account: Account) -> None:
        self._ours, self.theirs = pty.openpty()
        os.fchown(self.theirs, account.uid, -1)
        self.seen = b""

    def fileno(self) -> int:
        return self.theirs

    def until(self, text: bytes) -> None:
        ready = select.poll()
        ready.register(self._ours, select.POLLIN)
        while text not in self.seen:
            assert ready.poll(PATIENCE * 1000), self.seen
            self.seen += os.read(self._ours, 4096)

    def rest(self) -> bytes:
        """All of it, after whoever wrote has ended."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1
        with suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(self._ours, 4096):
                self.seen += data
        return self.seen

    def close(self) -> None:
        self.rest()
        os.close(self._ours)


@pytest.fixture
def terminal(ordinary_account: Account) -> Iterator[Terminal]:
    made = Terminal(ordinary_account)  # root may use it as well
    yield made
    made.close()


def plain(ww: Ww, cell: Path = HELLO) -> bytes:
    """What the cell writes, as a terminal shows it."""
    done = ww.run("run", cell)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.replace(b"\n", b"\r\n")


def test_on_a_terminal_a_line_tells_of_it_and_is_gone_before_the_cell_writes(
    ww_account: Ww, terminal: Terminal
) -> None:
    slow = Slow(ww_account)
    with slow.start(
        "run", HELLO, stdin=terminal, stdout=terminal, stderr=terminal, env=TERM
    ) as process:
        terminal.until(f"ww: compiling {SIZE}, 1 s: {HELLO}".encode())
        terminal.until(b", 2 s: ")
        slow.let_go()
        assert process.wait(PATIENCE) == 0
    shown, erased, written = terminal.rest().rpartition(ERASE)
    assert erased
    assert shown.startswith(b"\r\x1b[?7lww: compiling ")
    assert b"\n" not in shown
    # And it is compiled by now.
    assert written == plain(ww_account)
    assert plain(ww_account) not in shown


def test_a_cell_that_is_cached_is_not_told_of(ww: Ww, terminal: Terminal) -> None:
    expected = plain(ww)
    slow = Slow(ww)  # nothing opens its gate
    for flags in ((), ("--progress",)):
        with slow.start(
            "run", *flags, HELLO, stdout=terminal, stderr=terminal, env=TERM
        ) as process:
            assert process.wait(PATIENCE) == 0
    assert terminal.rest() == expected * 2


def test_what_is_compiled_at_once_is_not_told_of(ww: Ww, terminal: Terminal) -> None:
    slow = Slow(ww)
    slow.let_go()
    with slow.start(
        "run", "--progress", HELLO, stdout=terminal, stderr=subprocess.PIPE, env=TERM
    ) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert err.count(b"compiling") <= 1  # on a machine that takes more than a second for it
    assert terminal.rest() == plain(ww)


def test_elsewhere_nothing_is_told_unless_that_is_asked_for(ww: Ww) -> None:
    slow = Slow(ww)
    with slow.start("run", HELLO, env=TERM) as process:
        time.sleep(1.5)  # longer than it takes to be told on a terminal
        slow.let_go()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")
    assert out.replace(b"\n", b"\r\n") == plain(ww)


def test_plain_lines_that_are_asked_for_come_before_all_that_the_cell_writes(
    ww: Ww,
) -> None:
    slow = Slow(ww)
    # Both in one pipe, as in a log.
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as log, open(theirs, "wb") as end:
        with slow.start("run", "--progress", HELLO, stdout=end, stderr=end) as process:
            end.close()
            seen = b""
            while not seen.endswith(b"\n"):
                seen += log.read(4096) or b""
            assert seen == f"ww: compiling {SIZE}, 1 s: {HELLO}\n".encode()
            slow.let_go()
            assert process.wait(PATIENCE) == 0
        rest = b"".join(iter(lambda: log.read(4096) or b"", b""))
    lines = rest.splitlines(keepends=True)
    while lines[0].startswith(b"ww: compiling "):  # there may be one more in the meantime
        del lines[0]
    assert b"".join(lines).replace(b"\n", b"\r\n") == plain(ww)


def test_a_compilation_that_fails_takes_the_line_away_before_the_error(
    ww: Ww, terminal: Terminal
) -> None:
    slow = Slow(ww, then='Outcome("rejected", what="for a reason")')
    with slow.start("run", HELLO, stdout=terminal, stderr=terminal, env=TERM) as process:
        terminal.until(b"compiling")
        slow.let_go()
        assert process.wait(PATIENCE) == 126
    assert terminal.rest().endswith(ERASE + f"ww: error: {HELLO}: for a reason\r\n".encode())


def test_a_signal_during_it_takes_the_line_away(
    ww: Ww, terminal: Terminal, leftovers: Callable[..., Leftovers]
) -> None:
    slow = Slow(ww, ENDLESS)
    with (
        leftovers(ww),
        slow.start("run", HELLO, stdout=terminal, stderr=terminal, env=TERM) as process,
    ):
        terminal.until(b"compiling")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert terminal.rest().endswith(ERASE)


def test_a_ww_that_is_killed_during_it_takes_the_spawner_with_it(
    ww: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    # The spawner is about to say that it has compiled, and there is nobody to go on for.
    slow = Slow(ww)
    with leftovers(ww), slow.start("run", "--progress", HELLO) as process:
        assert process.stderr is not None
        assert b"compiling" in process.stderr.readline()
        process.kill()
        process.wait(PATIENCE)
        slow.let_go()


def test_warming_tells_of_it_too(ww_account: Ww) -> None:
    slow = Slow(ww_account)
    with slow.start("cache", "warm", "--progress", HELLO) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"ww: compiling {SIZE}, 1 s: {HELLO}\n".encode()
        slow.let_go()
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"compiled {HELLO}\n".encode())

"""`--with-console`: whether a cell knows a terminal when it has one, and its size."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"


@pytest.fixture
def cell(c_cell: BuildFunction) -> Path:
    return c_cell("content")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal's two ends, of 30 lines and 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def said(
    ww: Ww, cell: Path, terminal: tuple[int, int], *flags: str, env: dict[str, str] | None = None
) -> str:
    """What a cell with a terminal as 0, 1 and 2 says of it."""
    ours, theirs = terminal
    os.chown(theirs, ww.account.uid, -1)
    with ww.popen(
        "run", *flags, cell, "tty", stdin=theirs, stdout=theirs, stderr=theirs, env=env
    ) as process:
        assert process.wait(60) == 0, os.read(ours, 4096)
    return os.read(ours, 4096).decode().strip()


def test_a_terminal_is_one_only_where_that_was_asked_for(
    ww_account: Ww, cell: Path, terminal: tuple[int, int]
) -> None:
    assert said(ww_account, cell, terminal) == "0 0 0 - -"
    assert said(ww_account, cell, terminal, "--with-console") == "1 1 1 30 100"
    assert said(ww_account, cell, terminal, "--with-all") == "1 1 1 30 100"
    assert said(ww_account, cell, terminal, "--with-ipfs") == "0 0 0 - -"


@pytest.mark.parametrize("name", ["WW_WITH_CONSOLE", "WW_WITH_ALL"])
def test_a_variable_asks_for_it_too(
    ww: Ww, cell: Path, terminal: tuple[int, int], name: str
) -> None:
    assert said(ww, cell, terminal, env={name: "yes"}) == "1 1 1 30 100"
    assert said(ww, cell, terminal, env={name: "false"}) == "0 0 0 - -"


def test_the_users_own_variables_win(ww: Ww, cell: Path, terminal: tuple[int, int]) -> None:
    flags = ("--with-console", "--env", "COLUMNS=7")
    assert said(ww, cell, terminal, *flags) == "1 1 1 30 7"


def test_a_terminal_without_a_size_has_none(ww: Ww, cell: Path, terminal: tuple[int, int]) -> None:
    fcntl.ioctl(terminal[1], termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    assert said(ww, cell, terminal, "--with-console") == "1 1 1 - -"


def test_what_is_no_terminal_stays_none(ww: Ww, cell: Path, terminal: tuple[int, int]) -> None:
    done = ww.run("run", "--with-console", cell, "tty")
    assert (done.returncode, done.stdout) == (0, b"0 0 0 - -\n")
    # /dev/null is a character device too.
    theirs = terminal[1]
    with ww.popen(
        *("run", "--with-console", cell, "tty"), stdin=theirs, stderr=subprocess.DEVNULL
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert out == b"1 0 0 30 100\n"
    null = ww.shell(f"ww run --with-console --no-stdio --fd out=3,target=1 {cell} tty 3>out")
    assert null.returncode == 0
    assert (ww.tmp / "out").read_bytes() == b"0 0 0 - -\n"


def test_a_terminal_granted_at_another_number_is_not_meant(
    ww: Ww, cell: Path, terminal: tuple[int, int]
) -> None:
    done = ww.run("run", "--with-console", "--fd", "t=5", cell, "tty", fds={5: terminal[1]})
    assert done.stdout == b"0 0 0 - -\n"
    moved = ww.run(
        *("run", "--with-console", "--fd", "t=5,target=0", cell, "tty"), fds={5: terminal[1]}
    )
    assert moved.stdout == b"1 0 0 30 100\n"


def test_explain_says_which(ww: Ww, terminal: tuple[int, int]) -> None:
    with ww.popen("run", "--with-console", "--explain", HELLO, stdin=terminal[1]) as process:
        out, _ = process.communicate(timeout=60)
    assert b"with: console: it is told that these are terminals, and their size: 0\n" in out
    assert b"env: LINES=30\nenv: COLUMNS=100\n" in out

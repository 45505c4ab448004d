"""A terminal that was granted, used against whoever sits in front of it.

It is ww's controlling terminal, and the cell's stdin. What the cell pushes into its input would be
read by the shell after ww has ended.
"""

import errno
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.jail.inside import AT, Tried, call, perform

# include/uapi/asm-generic/ioctls.h
TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
TIOCSCTTY, TIOCSPGRP, TIOCSWINSZ, TIOCNOTTY = 0x540E, 0x5410, 0x5414, 0x5422
TCSETS, TCSETSF, TCSBRK, TCXONC, TIOCEXCL = 0x5402, 0x5404, 0x5409, 0x540A, 0x540C
TIOCGPTPEER, TIOCVHANGUP, KDSKBSENT = 0x5441, 0x5437, 0x4B49
TIOCSIG, TIOCSPTLCK, TIOCPKT, TIOCSLCKTRMIOS = 0x40045436, 0x40045431, 0x5420, 0x5457
HIGH_BITS = (1 << 32, 1 << 63, 0xFFFFFFFF << 32)

# What becomes ww makes the terminal its controlling one, in the session that the tests start.
TAKE_TERMINAL = (
    *(sys.executable, "-c"),
    f"import fcntl, os, sys; fcntl.ioctl(0, {TIOCSCTTY}, 0); os.execv(sys.argv[1], sys.argv[1:])",
)


class Terminal:
    """A terminal, raw, and what its user would see."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self._before = termios.tcgetattr(self.slave), self.size()

    def size(self) -> bytes:
        return fcntl.ioctl(self.slave, termios.TIOCGWINSZ, bytes(8))

    def is_untouched(self) -> bool:
        """Nothing was typed, nothing shown, and its settings are what they were."""
        waiting = struct.unpack("i", fcntl.ioctl(self.slave, termios.FIONREAD, bytes(4)))[0]
        shown = select.select([self.master], [], [], 0)[0]
        now = termios.tcgetattr(self.slave), self.size()
        return waiting == 0 and shown == [] and now == self._before

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


@pytest.fixture
def terminal(ww_account: Ww) -> Iterator[Terminal]:
    made = Terminal()
    os.fchown(made.slave, ww_account.account.uid, -1)
    yield made
    made.close()


def at(terminal: Terminal, ww: Ww, layer: str, program: Path, *calls: str) -> Tried:
    return perform(ww, layer, program, *calls, stdin=terminal.slave, before=TAKE_TERMINAL)


INJECTIONS = {"TIOCSTI": TIOCSTI, "TIOCLINUX": TIOCLINUX, "TIOCCONS": TIOCCONS}
NOT_HERE = {errno.EPERM, errno.EIO, errno.ENOTTY, errno.EINVAL}


def test_a_terminals_input_cannot_be_injected_without_a_filter(
    ww_account: Ww, program: Path, terminal: Terminal
) -> None:
    calls = [call("ioctl", 0, request, b"x\0") for request in INJECTIONS.values()]
    tried = at(terminal, ww_account, "native", program, *calls)
    assert set(tried.refusals()) <= NOT_HERE
    assert tried.refusals()[0] in (errno.EPERM, errno.EIO)
    assert terminal.is_untouched()


@pytest.mark.parametrize("name", [*INJECTIONS, "TIOCSETD"])
@pytest.mark.parametrize("high", [0, *HIGH_BITS], ids=["plain", "bit 32", "bit 63", "all"])
def test_a_cell_that_types_on_its_terminal_is_ended(
    ww_account: Ww, program: Path, terminal: Terminal, name: str, high: int
) -> None:
    # The kernel looks at the low 32 bits of the request; so must the filter.
    request = {**INJECTIONS, "TIOCSETD": TIOCSETD}[name]
    attack = call("ioctl", 0, request | high, b"x\0\0\0")
    assert at(terminal, ww_account, "filtered", program, attack).is_killed_at(attack)
    assert terminal.is_untouched()


def test_a_terminals_settings_cannot_be_changed_under_the_filter(
    ww_account: Ww, program: Path, terminal: Terminal
) -> None:
    requests = (
        *(TCSETS, TCSETSF, TCSBRK, TCXONC, TIOCEXCL, TIOCSCTTY, TIOCSPGRP, TIOCSWINSZ, TIOCNOTTY),
        *(TIOCGPTPEER, TIOCVHANGUP, KDSKBSENT, TIOCSIG, TIOCSPTLCK, TIOCPKT, TIOCSLCKTRMIOS),
    )
    calls = [call("ioctl", fd, request, AT) for request in requests for fd in (0, 1)]
    calls += [call("ioctl", 0, TCSETS | high, AT) for high in HIGH_BITS]
    tried = at(terminal, ww_account, "filtered", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)
    assert terminal.is_untouched()


def test_a_terminal_cannot_be_taken_for_the_cells_own(
    ww_account: Ww, program: Path, terminal: Terminal
) -> None:
    tried = at(
        terminal,
        ww_account,
        "native",
        program,
        call("ioctl", 0, TIOCSCTTY, 0),
        call("ioctl", 0, TIOCSCTTY, 1),
        call("ioctl", 0, TIOCNOTTY, 0),
        call("ioctl", 0, TIOCSPGRP, b"\1\0\0\0"),
        call("ioctl", 0, TIOCVHANGUP, 0),
        call("openat", -100, "/dev/tty", os.O_RDWR),
    )
    refused = tried.refusals()
    assert refused[:2] == [errno.EPERM] * 2
    assert refused[2:4] == [errno.ENOTTY] * 2
    assert refused[4:] == [errno.EPERM, errno.ENOENT]
    assert terminal.is_untouched()


def test_a_terminal_can_still_be_read(ww_account: Ww, program: Path, terminal: Terminal) -> None:
    # So that what is refused above is not refused because the terminal did not arrive.
    os.write(terminal.master, b"typed---")
    tried = at(
        terminal,
        ww_account,
        "filtered",
        program,
        call("read", 0, AT, 8),
        call("peek", 0),
    )
    assert tried.all() == [(8, 0), (int.from_bytes(b"typed---", "little"), 0)]

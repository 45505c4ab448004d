"""Running a native program in the cell's place; see tests/probes/variant.py."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox import landlock
from tests import conftest
from tests.conftest import PROBES, FdSource, Ww, json_lines
from tests.features import needs
from tests.probes.variant import BARE, NATIVE

VARIANT = PROBES / "variant.py"
# Without Landlock either, which lets nobody see what there is to be seen.
MOUNTS_ONLY = (
    f"from sandbox import landlock\nlandlock.restrict = lambda *args: None\n{NATIVE}{BARE}"
)


# Before version 3 Landlock has no right to truncate: there only the filter of system calls, which a
# native probe is run without, keeps a file as it is.
HOLDS_TRUNCATION = landlock.abi() >= 3


def needs_landlock(guarantee: str, abi: int = 1) -> pytest.MarkDecorator:
    """Skip a test where the kernel's Landlock is too old, and say what does not hold there."""
    reason = f"off without Landlock {abi}, but for what the filter and the host hold: {guarantee}"
    return needs("landlock", landlock.abi() >= abi, reason)


def variant(patch: str, *, served: bool | None = None) -> list[str]:
    """Return the start of a command line: ww with a tampered spawner, or with such a server."""
    if served is None:
        served = conftest.SERVED
    return [sys.executable, str(VARIANT), *(["--server"] if served else []), patch]


def report(
    ww: Ww,
    probe: Path,
    *flags: str,
    fds: Mapping[int, FdSource] | None = None,
    layer: str = "native",
) -> dict[str, Any]:
    """Return what the probe reports of the jail; under "placed" the table before it began."""
    done = ww.call([*variant(layer), "run", *flags, probe, "report"], fds=fds)
    first, _, rest = done.stdout.partition(b"\n")
    assert rest, done.stderr.decode()
    return {**json.loads(rest), "placed": json.loads(first)}


def attempt(
    ww: Ww,
    probe: Path,
    attack: str,
    *args: str,
    flags: Sequence[str] = (),
    fds: Mapping[int, FdSource] | None = None,
) -> dict[str, tuple[int, int]]:
    """Return for each call of an attack its result and errno."""
    done = ww.call([*variant("native"), "run", *flags, probe, "try", attack, *args], fds=fds)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr.decode()
    return {line["what"]: (line["ret"], line["errno"]) for line in lines}


def _parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


def _children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and _parent(int(name)) == pid:
                found.append(int(name))
        except OSError:
            continue
    return found


def name_of(pid: int) -> str:
    """The name of a process, or nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


# The process that jails are cloned from, a child of the spawner as they are.
ZYGOTE = "zygote"
# One that has not come so far as to be a cell's: it waits for its plan, or is being set up.
JAIL = "jail"


def zygote_of(spawner: int) -> int:
    """The process that a spawner's jails are cloned from."""
    # It is the first child. A clone has its name until it gives itself another.
    found = [pid for pid in _children(spawner) if name_of(pid) == ZYGOTE]
    return min(found, key=_began)


def _began(pid: int) -> int:
    """When a process began, in ticks; of one that is gone already, never."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1 << 63
    return int(text[text.rindex(")") + 2 :].split()[19])


def below(ww_pid: int, timeout: float = 30) -> tuple[int, int]:
    """Wait until a ww runs its cell; return the pids of its spawner and of the cell's process.

    A process that has its name is past most of its set-up; before, it has that of the one that it
    was cloned from. The one that compiles has another, and a native program in the cell's place is
    called by its file.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for spawner in _children(ww_pid):
            for cell in _children(spawner):
                if name_of(cell) not in ("", "compiler", ZYGOTE, JAIL, name_of(spawner)):
                    return spawner, cell
        time.sleep(0.01)
    raise AssertionError("no cell came to run")


@contextmanager
def running(
    ww: Ww, command: Sequence[str | Path], **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run a ww whose cell does not end by itself: its process, its spawner's pid, the cell's."""
    with ww.start(command, **options) as process:
        try:
            yield process, *below(process.pid)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def when_in_jail(cell: int, timeout: float = 30) -> None:
    """Wait until the last step of the jail is done: no_new_privs is set, and the native probe runs.

    The status file of the process is readable whatever became of its ids.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if "NoNewPrivs:\t1" in Path(f"/proc/{cell}/status").read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the cell's process did not get through its jail")


# --- one call after the other ---------------------------------------------------------------------


def call(name: str | int, *args: int | str | bytes | None) -> str:
    """Return a call as tests/probes/native/attacks.c reads it.

    Args:
        name: Of a system call, or its number, or of one of that program's own.
        args: A number; a text, to which a pointer is passed; bytes, likewise, which the call may
            change; None for a null pointer. `AT`, `LAST` and `SAVED` are its words.
    """
    parts = [str(name)]
    for arg in args:
        if arg is None:
            parts.append("0")
        elif isinstance(arg, bytes):
            parts.append(f"#{arg.hex()}")
        elif isinstance(arg, Word) or not isinstance(arg, str):
            parts.append(str(arg))
        else:
            parts.append(f"'{arg}")
    return "|".join(parts)


class Word(str):
    """A word of that program's own."""


AT = Word("@")
"""A pointer to room for an answer."""
LAST = Word("last")
"""What the last call returned that did not fail."""
SAVED = Word("saved")
"""What it had returned when the call `save` was made."""


class Tried(NamedTuple):
    """What became of a program that made one call after the other.

    Attributes:
        results: Of each call that came back, its result and errno.
        fatal: The call that did not come back.
        code: ww's exit code.
        err: What ww, or the program, said.
    """

    results: list[tuple[int, int]]
    fatal: str | None
    code: int
    err: str

    def all(self) -> list[tuple[int, int]]:
        """Return the result and errno of each call, all of which must have come back."""
        # The program ends without a word to the spawner, which takes it for a broken host.
        assert (self.code, self.fatal) == (1, None), self
        assert "ended by itself, with 0 " in self.err, self
        return self.results

    def refusals(self) -> list[int]:
        """Return the errno of each call, all of which must have failed."""
        assert self.all(), self
        assert all(ret == -1 for ret, _ in self.results), self
        return [error for _, error in self.results]

    def is_killed_at(self, wanted: str) -> bool:
        """Tell whether the system call filter ended it, and for that call."""
        isolation = self.code == 67 and "broke its isolation" in self.err
        return isolation and self.fatal == wanted


def perform(
    ww: Ww,
    layer: str,
    program: Path,
    *calls: str,
    flags: Sequence[str | Path] = (),
    before: Sequence[str | Path] = (),
    stdin: bytes | FdSource = b"",
    fds: Mapping[int, FdSource] | None = None,
) -> Tried:
    """Make calls from the cell's place.

    Args:
        ww: Who runs it.
        layer: Of tests/probes/variant.py: `native` or `filtered`.
        program: Built from attacks.c.
        calls: From :func:`call`.
        flags: For `ww run`.
        before: What runs ww, if not the test itself.
        stdin: As of `ww.call`.
        fds: Likewise.
    """
    command = [*before, *variant(layer), "run", *flags, program, *calls]
    done = ww.call(command, stdin=stdin, fds=fds)
    results, fatal = [], None
    for line in json_lines(done.stdout):
        if "begin" in line:
            fatal = str(line["begin"])
        else:
            assert line["what"] == fatal, done
            results.append((int(str(line["ret"])), int(str(line["errno"]))))
            fatal = None
    tried = Tried(results, fatal, done.returncode, done.stderr.decode())
    assert len(results) + (fatal is not None) >= 1, tried
    if fatal is None and tried.code == 1:
        assert len(results) == len(calls), tried
    return tried

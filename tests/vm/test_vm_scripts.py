"""The scripts of the test machine, as far as no machine is needed for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPO

SCRIPTS = REPO / "scripts" / "vm"
COMMANDS = ["run", "build", "box", "guest/provision"]
SOURCED = ["common.sh"]
IN_THE_MACHINE = ["guest/job", "guest/tests"]


def call(*command: str | Path, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", [*COMMANDS, *SOURCED, *IN_THE_MACHINE])
def test_is_valid_bash(name: str) -> None:
    done = call("bash", "-n", SCRIPTS / name)
    assert done.returncode == 0, done.stderr


def test_the_first_program_of_the_machine_is_a_valid_script_of_a_plain_shell() -> None:
    # There is no bash where it runs.
    text = (SCRIPTS / "guest" / "init").read_text()
    assert text.startswith("#!/bin/busybox sh\n")
    done = call("dash", "-n", SCRIPTS / "guest" / "init")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [*COMMANDS, *IN_THE_MACHINE, "guest/init"])
def test_can_be_started(name: str) -> None:
    assert os.access(SCRIPTS / name, os.X_OK)


@pytest.mark.parametrize("name", COMMANDS)
def test_stops_at_the_first_error(name: str) -> None:
    text = (SCRIPTS / name).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_its_first_comment(name: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(SCRIPTS / name)
    done = call(link, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    comment = (SCRIPTS / name).read_text().splitlines()[1].removeprefix("# ")
    assert done.stdout.splitlines()[0] == comment
    assert "#" not in done.stdout
    assert "pipefail" not in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        *((name, ["--frobnicate"], "--frobnicate") for name in COMMANDS),
        *((name, ["--release", "sarge"], "sarge") for name in ("run", "build", "box")),
        *((name, ["--release"], "--release") for name in ("run", "build", "box")),
        ("run", ["--timeout", "soon"], "soon"),
        ("run", ["--timeout", "0"], "0"),
        ("run", ["--command"], "--command"),
        ("run", ["--command", "true", "--", "tests"], "--command"),
        ("run", ["tests/jail"], "tests/jail"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_it_does_not_know_is_refused_before_anything_is_made(
    name: str, words: list[str], named: str
) -> None:
    before = sorted(os.listdir(REPO / "build"))
    done = call(SCRIPTS / name, *words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{Path(name).name}: error: ")
    assert named in line
    assert sorted(os.listdir(REPO / "build")) == before


def test_an_accelerator_that_there_is_not_is_refused() -> None:
    done = call(SCRIPTS / "run", "--no-build", WW_VM_ACCEL="steam")
    assert done.returncode == 1
    assert "steam" in done.stderr


def test_the_tests_that_are_chosen_for_the_machine_exist() -> None:
    text = (SCRIPTS / "run").read_text()
    found = re.search(r"^chosen=\((.*?)\)$", text, re.MULTILINE)
    assert found is not None
    chosen = found[1].split()
    assert len(chosen) > 3
    assert [name for name in chosen if not (REPO / name).exists()] == []


def test_what_only_the_machine_can_test_is_not_collected_elsewhere() -> None:
    if os.environ.get("WW_VM"):
        pytest.skip("this is the machine")
    done = call(
        *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "tests/vm/guest"),
    )
    assert done.returncode == 5, done.stdout  # no tests


def test_a_machine_that_is_not_built_is_said_to_be_missing(tmp_path: Path) -> None:
    # A tree of its own, in which nothing was built.
    for name in ("scripts/setup-common.sh", "scripts/vm/common.sh", "scripts/vm/run"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPO / name).read_bytes())
        copy.chmod(0o755)
    done = call(tmp_path / "scripts/vm/run", "--no-build")
    assert done.returncode == 1
    assert "scripts/vm/build --release bookworm" in done.stderr
    assert not (tmp_path / "build").exists()


@pytest.fixture
def with_machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call scripts/vm/run of a tree with a machine that is a shell script."""
    tree, programs = tmp_path / "tree", tmp_path / "programs"
    for name in ("scripts/setup-common.sh", "scripts/vm/common.sh", "scripts/vm/run"):
        copy = tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPO / name).read_bytes())
        copy.chmod(0o755)
    for name in ("runner", "sandbox", "tests", "build/test-cells", "build/vm/bookworm"):
        (tree / name).mkdir(parents=True)
    for name in ("root.img", "parts.img", "vmlinuz", "initrd"):
        (tree / "build/vm/bookworm" / name).touch()
    loader = "build/vm/bookworm/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    _program(tree / loader, "exit 0")
    _program(programs / "dpkg-query", "echo installed")

    def call_with(machine: str, *words: str) -> subprocess.CompletedProcess[str]:
        _program(programs / "qemu-system-x86_64", machine)
        path = f"{programs}:{os.environ['PATH']}"
        done = call(tree / "scripts/vm/run", "--no-build", *words, PATH=path, WW_VM_ACCEL="tcg")
        # Nothing of the run is left but its results.
        assert sorted(os.listdir(tree / "build/vm")) == ["bookworm", "results"]
        return done

    return call_with


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


# What a machine leaves on the disk for its results.
LEAVES = r"""
results=$(printf '%s\n' "$@" | sed -n 's/^file=\(.*results.img\),.*/\1/p')
cd "$(mktemp -d)" && echo {status} >status && echo '{{}}' >doctor.json && tar -cf "$results" .
"""


@pytest.mark.parametrize("status", [0, 1, 5])
def test_the_exit_status_is_that_of_what_ran_in_the_machine(
    with_machine: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, status: int
) -> None:
    done = with_machine(LEAVES.format(status=status), "--root", "--command", "true")
    assert done.returncode == status, done.stderr
    results = tmp_path / "tree/build/vm/results/bookworm-root"
    assert (results / "doctor.json").read_text() == "{}\n"


def test_a_machine_whose_time_is_up_is_ended_and_is_124(
    with_machine: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = with_machine("exec sleep 600", "--timeout", "1")
    assert done.returncode == 124
    assert "not done after 1 seconds" in done.stderr


def test_a_machine_that_ends_without_a_result_is_125(
    with_machine: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = with_machine("exit 0")
    assert done.returncode == 125
    assert "the machine ended without a result" in done.stderr

"""The scripts of the test machine, as far as no machine is needed for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
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
        ("run", ["--command", ""], "--command"),
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
    # 1 would be what failed tests end with.
    assert done.returncode == (125 if name == "run" else 1)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{Path(name).name}: error: ")
    assert named in line
    assert sorted(os.listdir(REPO / "build")) == before


def test_an_accelerator_that_there_is_not_is_refused() -> None:
    done = call(SCRIPTS / "run", "--no-build", WW_VM_ACCEL="steam")
    assert done.returncode == 125
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
    assert done.returncode == 125
    assert "scripts/vm/build --release bookworm" in done.stderr
    assert not (tmp_path / "build").exists()


class Machine:
    """scripts/vm/run of a tree of its own, with a machine that is a shell script."""

    def __init__(self, folder: Path) -> None:
        self.tree, self._programs = folder / "tree", folder / "programs"
        for name in ("scripts/setup-common.sh", "scripts/vm/common.sh", "scripts/vm/run"):
            copy = self.tree / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((REPO / name).read_bytes())
            copy.chmod(0o755)
        for name in ("runner", "sandbox", "tests", "build/test-cells", "build/vm/bookworm"):
            (self.tree / name).mkdir(parents=True)
        for name in ("root.img", "parts.img", "vmlinuz", "initrd"):
            (self.tree / "build/vm/bookworm" / name).touch()
        loader = "build/vm/bookworm/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        program(self.tree / loader, "exit 0")
        program(self._programs / "dpkg-query", "echo installed")

    def start(self, machine: str, *words: str) -> subprocess.Popen[str]:
        program(self._programs / "qemu-system-x86_64", machine)
        path = f"{self._programs}:{os.environ['PATH']}"
        return subprocess.Popen(
            [str(self.tree / "scripts/vm/run"), *words],
            env={**os.environ, "PATH": path, "WW_VM_ACCEL": "tcg"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, machine: str, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(machine, "--no-build", *words)
        out, err = process.communicate(timeout=60)
        self.check_leftovers()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def check_leftovers(self) -> None:
        """Nothing of the run is left but its results."""
        assert sorted(os.listdir(self.tree / "build/vm")) == ["bookworm", "results"]
        assert [name for name in os.listdir(self.tree / "build/vm/results") if "work" in name] == []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


# What a machine leaves on the disk for its results.
LEAVES = r"""
results=$(printf '%s\n' "$@" | sed -n 's/^file=\(.*results.img\),.*/\1/p')
cd "$(mktemp -d)" && echo {status} >status && echo '{{}}' >doctor.json && tar -cf "$results" .
"""


@pytest.mark.parametrize("status", [0, 1, 5])
def test_the_exit_status_is_that_of_what_ran_in_the_machine(machine: Machine, status: int) -> None:
    done = machine.run(LEAVES.format(status=status), "--root", "--command", "true")
    assert done.returncode == status, done.stderr
    results = machine.tree / "build/vm/results/bookworm-root"
    assert (results / "doctor.json").read_text() == "{}\n"


def test_a_machine_whose_time_is_up_is_ended_and_is_124(machine: Machine) -> None:
    done = machine.run("exec sleep 600", "--timeout", "1")
    assert done.returncode == 124
    assert "not done after 1 seconds" in done.stderr


@pytest.mark.parametrize("end", ["exit 0", "kill -KILL $$"])
def test_a_machine_that_ends_without_a_result_is_125(machine: Machine, end: str) -> None:
    done = machine.run(end)
    assert done.returncode == 125
    assert "the machine ended without a result" in done.stderr


def test_the_status_is_there_where_the_results_do_not_fit(machine: Machine) -> None:
    # As guest/job writes them, on a disk that ends before they do.
    job = (SCRIPTS / "guest" / "job").read_text()
    order = re.search(r"^ *tar -cf .*? -C \"\$out\" (.*)$", job, re.MULTILINE)
    assert order is not None
    leaves = LEAVES.format(status=5).replace('tar -cf "$results" .', "true")
    done = machine.run(
        f'{leaves}\nhead -c 3M /dev/urandom >core\ntar -cf - {order[1]} | head -c 1M >"$results"',
        "--command",
        "true",
    )
    assert done.returncode == 5, done.stderr
    assert "the results are more than 1024 MiB: what fitted is in " in done.stderr


# Tells its process id, and never ends.
HANGS = 'echo $$ >"{file}"\nexec sleep 600'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_the_machine_ends_with_the_script_whatever_ends_that(
    machine: Machine, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "pid"
    with machine.start(HANGS.format(file=file), "--no-build", "--root") as process:
        wait_for(lambda: file.exists() and file.read_text() != "")
        process.send_signal(number)
        process.wait(60)
        wait_for(lambda: not is_there(int(file.read_text())))
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        machine.check_leftovers()
    # What one that was killed has left is no hindrance, and goes.
    assert machine.run(LEAVES.format(status=0), "--root").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_being_made_ends_with_the_script(
    machine: Machine, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "pid"
    slow = tmp_path / "slow"
    program(slow, HANGS.format(file=file))
    program(
        machine.tree / "scripts/vm/build",
        f"repo={machine.tree}\n. $repo/scripts/setup-common.sh\n. $repo/scripts/vm/common.sh\n"
        f"handle_signals\ninterruptible exec_as_root {slow}",
    )
    with machine.start("exit 0") as process:
        wait_for(lambda: file.exists() and file.read_text() != "")
        process.send_signal(number)
        process.wait(60)
        wait_for(lambda: not is_there(int(file.read_text())))


def test_two_runs_do_not_share_their_results(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with machine.start(HANGS.format(file=file), "--no-build", "--root") as process:
        wait_for(lambda: file.exists() and file.read_text() != "")
        other = machine.start("exit 0", "--no-build", "--root")
        _, err = other.communicate(timeout=60)
        assert other.returncode == 125
        assert "the machine is running as root already" in err
        process.terminate()


def test_a_machine_that_cannot_be_made_is_125(machine: Machine) -> None:
    program(machine.tree / "scripts/vm/build", "exit 1")
    process = machine.start("exit 0")
    process.communicate(timeout=60)
    assert process.returncode == 125


MAKING = """
set -euo pipefail
repo={repo}
. "$repo/scripts/setup-common.sh"
. "$repo/scripts/vm/common.sh"
make_it() {{ echo making; rm -f part; echo half >part
{then}
}}
make_part "$PWD/part" {key} make_it
"""


def test_a_part_that_was_not_made_to_its_end_is_made_again(tmp_path: Path) -> None:
    def make(key: str, then: str = "") -> tuple[int, str]:
        script = MAKING.format(repo=REPO, key=key, then=then)
        done = call("bash", "-c", script, cwd=tmp_path)
        return done.returncode, done.stdout

    assert make("one") == (0, "making\n")
    assert make("one") == (0, "")
    assert make("two", "false") == (1, "making\n")
    # It is what the first key was for no more.
    assert make("one") == (0, "making\n")
    (tmp_path / "part").unlink()
    assert make("one") == (0, "making\n")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)

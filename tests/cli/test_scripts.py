"""The scripts, the example cells and the Vagrantfile: that each is what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import BUILD, EXAMPLES, REPO, need_command

SCRIPTS = [
    ".ci/run",
    "scripts/bench",
    "scripts/build-cells",
    "scripts/install",
    "scripts/setup-common.sh",
    "scripts/test",
]
COMMANDS = [name for name in SCRIPTS if not name.endswith(".sh")]


def call(*command: str | Path, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_is_valid_bash(name: str) -> None:
    done = call("bash", "-n", REPO / name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_stops_at_the_first_error(name: str) -> None:
    path = REPO / name
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", ["scripts/build-cells", "scripts/install", "scripts/test"])
def test_help_is_its_first_comment(name: str, tmp_path: Path) -> None:
    # From another directory and through a link: neither may change which tree is meant.
    link = tmp_path / "link"
    link.symlink_to(REPO / name)
    done = call(link, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    comment = (REPO / name).read_text().splitlines()[1].removeprefix("# ")
    assert done.stdout.splitlines()[0] == comment
    assert "#" not in done.stdout
    assert "pipefail" not in done.stdout


@pytest.mark.parametrize("name", ["scripts/build-cells", "scripts/install"])
def test_refuses_what_it_does_not_know(name: str) -> None:
    done = call(REPO / name, "--frobnicate")
    assert done.returncode == 1
    assert "--frobnicate" in done.stderr


def test_the_build_server_runs_what_a_developer_runs() -> None:
    lines = (REPO / ".ci/run").read_text().splitlines()
    # It says what its machine must have, and nothing else.
    setting = ("#", "set ", "export WW_REQUIRE=")
    commands = [line for line in lines if line and not line.startswith(setting)]
    assert len(commands) == 1
    assert commands[0].startswith("exec ")
    assert commands[0].endswith('/../scripts/test"')


def test_example_cells_are_what_their_sources_build() -> None:
    done = call(REPO / "scripts/build-cells", "--check", WW_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(list(EXAMPLES.glob("*/*.c")))


def test_build_cells_notices_a_difference(tmp_path: Path) -> None:
    # A tree of its own, and the compiler's cache of this one.
    (tmp_path / "scripts").mkdir()
    for name in ("build-cells", "setup-common.sh"):
        (tmp_path / "scripts" / name).write_bytes((REPO / "scripts" / name).read_bytes())
    (tmp_path / "scripts/build-cells").chmod(0o755)
    example = tmp_path / "examples/hello"
    example.mkdir(parents=True)
    (example / "hello.c").write_bytes((EXAMPLES / "hello/hello.c").read_bytes())
    built = (EXAMPLES / "hello/hello.wasm").read_bytes()
    (example / "hello.wasm").write_bytes(built + b"\0")
    (tmp_path / "build").mkdir()
    (BUILD / "zig").mkdir(parents=True, exist_ok=True)
    (tmp_path / "build/zig").symlink_to(BUILD / "zig")

    done = call(tmp_path / "scripts/build-cells", "--check", WW_PYTHON=sys.executable)
    assert done.returncode == 1, done.stderr
    assert "examples/hello/hello.wasm is not what its source builds" in done.stderr
    assert (example / "hello.wasm").read_bytes() == built + b"\0"

    done = call(tmp_path / "scripts/build-cells", WW_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert (example / "hello.wasm").read_bytes() == built
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["zig"]


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in EXAMPLES.glob("*/*.c")}))
def test_example_is_complete(folder: str) -> None:
    example = EXAMPLES / folder
    assert (example / "README.md").read_text().startswith(f"# {folder}\n")
    assert (example / f"{folder}.c").is_file()
    cell = (example / f"{folder}.wasm").read_bytes()
    assert cell.startswith(b"\0asm\x01\0\0\0")
    # Small enough to check in, and with no path of the machine that built it.
    assert len(cell) < 100_000
    assert str(REPO).encode() not in cell
    assert b"/home/" not in cell


def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    done = call(
        need_command("vagrant"),
        "validate",
        "--ignore-provider",
        VAGRANT_HOME=str(tmp_path),
        VAGRANT_CHECKPOINT_DISABLE="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
    for machine in ("debian", "ubuntu"):
        assert f"==> {machine}: " in done.stdout


def test_vagrantfile_starts_scripts_that_are_there() -> None:
    text = (REPO / "Vagrantfile").read_text()
    named = re.findall(r"(?:/vagrant|/srv/ww)/(scripts/[\w/]+)", text)
    assert {"scripts/test", "scripts/vm/guest/provision"} <= set(named)
    assert [name for name in named if not os.access(REPO / name, os.X_OK)] == []
    # Made inside the machine, for its own Python; the tree of the host must not bring its own.
    for excluded in (".git/", ".venv/", "build/"):
        assert f'"{excluded}"' in text


def test_a_fresh_machine_finds_the_scripts_from_the_login_directory(tmp_path: Path) -> None:
    # As in a machine: the tree is elsewhere, and what would install ww is not.
    tree, home = tmp_path / "vagrant", tmp_path / "home"
    home.mkdir()
    guest = tree / "scripts/vm/guest"
    guest.mkdir(parents=True)
    (guest / "provision").write_bytes((REPO / "scripts/vm/guest/provision").read_bytes())
    (guest / "provision").chmod(0o755)
    for name, status in (("install", 0), ("test", 3)):
        script = tree / "scripts" / name
        script.write_text(f"#!/bin/sh\necho {name}\nexit {status}\n")
        script.chmod(0o755)
    for _ in range(2):
        done = call(guest / "provision", cwd=home, HOME=str(home))
        assert (done.returncode, done.stdout) == (0, "install\n"), done.stderr
        # vagrant ssh -c ./scripts/test
        done = call("bash", "-c", "./scripts/test", cwd=home, HOME=str(home))
        assert (done.returncode, done.stdout) == (3, "test\n")
    (tree / "scripts/install").write_text("#!/bin/sh\nexit 67\n")
    if not Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").exists():
        # Only where that restriction is in force is it no failure.
        assert call(guest / "provision", cwd=home, HOME=str(home)).returncode == 67


def test_the_tree_has_its_parts() -> None:
    parts = [
        *(
            ".ci/run",
            ".gitignore",
            "CHANGELOG.md",
            "LICENSE",
            "README.md",
            "Vagrantfile",
            "pyproject.toml",
        ),
        *("docs", "examples", "runner", "sandbox", "scripts", "tests"),
    ]
    assert [name for name in parts if not (REPO / name).exists()] == []


def test_the_compiler_of_the_cells_is_pinned() -> None:
    # Another version of it may give other bytes, and so another address.
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pins = [item for item in project["optional-dependencies"]["dev"] if item.startswith("ziglang")]
    assert len(pins) == 1
    assert "==" in pins[0]


def test_test_packages_are_pinned() -> None:
    lines = (REPO / "tests/packages.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert packages
    assert all(line.count("==") == 1 for line in packages)

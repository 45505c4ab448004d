"""What a run of stored content loads: start-up is a feature, and modules are counted, not timed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    output = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(output.split())


def test_reading_loads_no_code_for_importing_and_no_costly_module() -> None:
    loaded = modules_after("import runner.content.resolver")
    unwanted = {
        "runner.content.importer",
        "runner.content.hamt",
        "runner.content.murmur3",
        "dataclasses",
        "http.client",
        "inspect",
        "logging",
        "pathlib",
        "random",
        "shutil",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
        "urllib",
    }
    already_there = modules_after("import sandbox")
    assert not loaded & unwanted - already_there


def test_the_package_needs_little_of_ww_and_of_nobody_else() -> None:
    loaded = modules_after(
        "import runner.content.importer, runner.content.resolver, runner.content.hamt"
    )
    foreign = {
        name
        for name in loaded - modules_after("pass")
        if name.split(".")[0] not in sys.stdlib_module_names
        and not name.startswith(("runner.content", "sandbox"))
    }
    assert foreign == {"runner", "runner.digest", "runner.errors"}

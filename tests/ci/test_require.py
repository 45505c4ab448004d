"""WW_REQUIRE: what a test lacks lets it be skipped, or fail, by the name of the feature."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.features import FEATURES, OF_TEST_MACHINE, lacks, needs, of_program

# As tests/conftest.py has them.
CONFTEST = """
from tests.features import pytest_configure, pytest_report_header, pytest_runtest_setup
"""
TESTS = """
import os
import pytest
from tests.features import lacks, needs


@needs("root", False, "it is marked")
def test_marked(broken):
    raise AssertionError("never run")


@needs("root", True, "it is marked")
@needs("npm", True, "and for this")
def test_that_lacks_nothing():
    pass


def test_that_finds_out():
    lacks("npm", "it found out")


class TestAll:
    pytestmark = needs("cgroup", False, "all of the class")

    def test_of_a_class(self):
        raise AssertionError("never run")


@pytest.fixture
def broken():
    raise AssertionError("made for a test that cannot run")


@pytest.fixture
def lacking():
    lacks("vagrant", "a fixture found out")


def test_of_a_fixture(lacking):
    raise AssertionError("never run")
"""
LACKING = {"marked": "root", "finds_out": "npm", "class": "cgroup", "fixture": "vagrant"}


def suite(folder: Path, required: str | None, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if name != "WW_REQUIRE"}
    # The build server's own word does not decide.
    environment |= {"CI": "true", "PYTHONPATH": str(REPO)}
    if required is not None:
        environment["WW_REQUIRE"] = required
    # No other options than these: those of the tree come from its pyproject.toml.
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--strict-markers"]
    return subprocess.run(
        [*command, f"--rootdir={folder}", *more, folder],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts of pytest's last line."""
    last = done.stdout.splitlines()[-1]
    return {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)", last)}


def failed(done: subprocess.CompletedProcess[str]) -> set[str]:
    found = re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE)
    return {part for part in LACKING for name in found if name.endswith(part)}


@pytest.mark.parametrize("required", [None, "", " , ", "userns"])
def test_what_is_not_required_is_skipped_with_its_name(
    tmp_path: Path, required: str | None
) -> None:
    done = suite(tmp_path, required)
    assert done.returncode == 0, done.stdout
    assert outcomes(done) == {"passed": 1, "skipped": 4}
    for text in ("root: it is marked", "npm: it found out", "cgroup: all of the class"):
        assert text in done.stdout


@pytest.mark.parametrize(
    "required", [("root",), ("npm",), ("cgroup", "vagrant"), tuple(LACKING.values())]
)
def test_what_is_required_fails_and_says_why(tmp_path: Path, required: Sequence[str]) -> None:
    done = suite(tmp_path, ", ".join(required))
    assert done.returncode == 1, done.stdout
    assert failed(done) == {part for part, name in LACKING.items() if name in required}
    assert outcomes(done).get("skipped", 0) == 4 - len(required)
    for name in required:
        assert f"WW_REQUIRE names {name} ({FEATURES[name]}), but: " in done.stdout
    assert f"WW_REQUIRE: {','.join(sorted(required))}\n" in done.stdout
    assert "never run" not in re.sub(r"^.*raise .*$", "", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unknown_name_is_an_error_before_any_test(tmp_path: Path, workers: str) -> None:
    done = suite(tmp_path, "root,landlok", "-n", workers)
    assert done.returncode == 4, done.stdout
    assert "WW_REQUIRE: no such feature: landlok (there are root, " in done.stderr
    assert "passed" not in done.stdout
    assert "skipped" not in done.stdout


def test_a_test_cannot_need_what_has_no_name() -> None:
    with pytest.raises(KeyError):
        needs("landlok", True, "")
    with pytest.raises(KeyError):
        lacks("landlok", "")
    with pytest.raises(KeyError):
        of_program("a program of no feature")


def test_programs_belong_to_a_feature() -> None:
    assert of_program("systemd-analyze") == "systemd"
    assert of_program("vagrant") == "vagrant"


def test_the_build_server_and_the_test_machine_require_all_names_between_them() -> None:
    found = re.search(r"WW_REQUIRE=\$\{WW_REQUIRE-([^}]*)\}", (REPO / ".ci/run").read_text())
    assert found is not None
    of_server = set(found[1].split(","))
    text = (REPO / "scripts" / "vm" / "guest" / "tests").read_text()
    of_machine = {
        name
        for names in re.findall(r"\bWW_REQUIRE\+?=([\w,-]+)", text)
        for name in names.strip(",").split(",")
    }
    assert of_server | of_machine == set(FEATURES)
    assert of_machine - of_server == OF_TEST_MACHINE


def test_what_no_test_here_needs_cannot_be_required(tmp_path: Path) -> None:
    done = suite(tmp_path, "root,apparmor")
    assert done.returncode == 4, done.stdout
    assert "WW_REQUIRE: apparmor: only the tests of scripts/vm/run need it" in done.stderr


def test_the_document_lists_them_all() -> None:
    text = (REPO / "docs" / "ci.md").read_text()
    table = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*) \|$", text, re.MULTILINE))
    assert {name: table.get(name) for name in FEATURES} == FEATURES


def test_no_test_has_another_way_to_pass_over_what_a_server_was_set_up_for() -> None:
    """A mark of pytest's own for root, Landlock or a program would not heed WW_REQUIRE.

    A test for who is not root lacks nothing under root: it is another's.
    """
    other = re.compile(
        r"mark\.skipif\([^)]*(?:not CAN_BE_ROOT|geteuid|landlock|which)|environ.*[\"']CI[\"']"
        r"|pytest\.skip\([^)]*(?:only root|namespace|Landlock|control group c|installed)"
    )
    found = [
        f"{path.relative_to(REPO)}: {match[0]}"
        for path in sorted((REPO / "tests").rglob("*.py"))
        if path != Path(__file__)
        for match in other.finditer(path.read_text())
    ]
    assert found == []

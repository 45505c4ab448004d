"""action.yml: each of its scripts is run as GitHub's runner does it, and no input is a command."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from tests.ci.document import CI, blocks, rows, section
from tests.ci.github import ACTION, Runner, last_event, load
from tests.ci.test_runners import SETTING
from tests.cli.test_doctor import refusing
from tests.conftest import CAN_BE_ROOT, EXAMPLES, REPO, Leftovers
from tests.features import FEATURES, needs

LeftoversFixture = Callable[..., Leftovers]

HELLO = str(EXAMPLES / "hello" / "hello.wasm")
CAT = str(EXAMPLES / "cat-fds" / "cat-fds.wasm")
ESCAPE = str(EXAMPLES / "escape" / "escape.wasm")
LOOP = wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))')

LIFT = "Lift AppArmor's restriction of user namespaces"
INSTALL, DOCTOR, RUN = "Install ww", "Can cells run here?", "Run the cell"
ALL = [INSTALL, DOCTOR, RUN]

# The step is the real one, and the test machine's packages come from elsewhere.
needs_install = needs(
    "install", not (REPO / ".venv").is_symlink(), "this tree was not set up by scripts/install"
)

action = load(ACTION.read_text())
steps = {step["name"]: step for step in action["runs"]["steps"]}


@pytest.fixture
def runner(account_folders: Path, tmp_path: Path) -> Runner:
    tmp_path.chmod(0o755)
    return Runner(tmp_path)


# What it is


def checked(schema: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Hold a file against a schema that comes with check-jsonschema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_follows_githubs_schema_and_another_would_not(tmp_path: Path) -> None:
    done = checked("vendor.github-actions", ACTION)
    assert done.returncode == 0, done.stdout
    other = tmp_path / "action.yml"
    other.write_text(ACTION.read_text().replace("shell: bash", "shel: bash", 1))
    assert checked("vendor.github-actions", other).returncode == 1


@pytest.mark.parametrize(
    ("title", "schema"),
    [("GitHub Actions", "vendor.github-workflows"), ("GitLab", "vendor.gitlab-ci")],
)
def test_what_the_document_shows_follows_the_schemas(
    tmp_path: Path, title: str, schema: str
) -> None:
    shown = next(b.text for b in blocks(section(title)) if b.language == "yaml")
    file = tmp_path / "shown.yml"
    file.write_text(shown)
    done = checked(schema, file)
    assert done.returncode == 0, done.stdout


def test_what_the_document_shows_gives_inputs_that_there_are() -> None:
    shown = next(b.text for b in blocks(section("GitHub Actions")) if b.language == "yaml")
    used = [s for s in load(shown)["jobs"]["lint"]["steps"] if "/ww@" in s.get("uses", "")]
    (step,) = used
    assert set(step["with"]) <= set(action["inputs"])
    outputs = re.findall(r"steps\.lint\.outputs\.([\w-]+)", shown)
    assert outputs
    assert set(outputs) <= set(action["outputs"])


def test_the_document_has_every_input_and_output() -> None:
    text = section("GitHub Actions")
    named = {name for cells in rows(text, 2) for name in re.findall(r"`([\w-]+)`", cells[0])}
    assert named == set(action["inputs"])
    outputs = re.search(r"The outputs are (.*?)\. ", text)
    assert outputs is not None
    assert set(re.findall(r"`([\w-]+)`", outputs[1])) == set(action["outputs"])


def test_no_script_holds_an_expression_and_every_input_is_used() -> None:
    for step in steps.values():
        assert "${{" not in step["run"], step["name"]
        for variable in step.get("env", {}):
            assert f"${variable}" in step["run"] or f"${{{variable}" in step["run"]
    text = ACTION.read_text()
    for name in action["inputs"]:
        assert f"inputs.{name}" in text.split("\nruns:\n", 1)[1], name


@pytest.mark.parametrize("name", steps)
def test_its_scripts_are_valid(name: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=steps[name]["run"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# What it does


@needs_install
def test_it_installs_asks_and_runs_and_tells(runner: Runner) -> None:
    result = runner.run(cell=HELLO, args="one\ntwo words\n\n", flags="--timeout\n60\n--memory=64M")
    assert (result.code, result.ran) == (0, ALL), result.log
    assert "A cell can run here.\n" in result.log
    assert "Hello from a cell. one two words\n" in result.log
    # Beside ww's own program there are a python and a pip, which later steps must not get.
    (path,) = result.path
    assert os.listdir(path) == ["ww"]
    assert os.path.realpath(f"{path}/ww") == str(REPO / ".venv" / "bin" / "ww")
    events = Path(result.outputs.pop("status-file"))
    assert result.outputs == {"exit-code": "0", "reason": "exit"}
    assert events.parent == runner.temporary
    last = json.loads(last_event(events))
    assert last.pop("usage")["cpu"] > 0
    assert last == {"event": "exit", "code": 0, "reason": "exit"}


@needs_install
def test_a_machine_that_refuses_is_told_and_no_cell_is_run(tmp_path: Path) -> None:
    runner = Runner(tmp_path, refusing([["clone3", errno.ENOSYS]]))
    result = runner.run(cell=HELLO)
    assert (result.code, result.ran) == (67, [INSTALL, DOCTOR]), result.log
    assert "::error title=ww::no cell can run on this machine" in result.log
    assert "No cell can run here." in result.log
    assert result.outputs == {"exit-code": "67", "reason": "", "status-file": ""}
    # Who asked not to fail learns it from the output.
    result = runner.run(cell=HELLO, fail="false", only=[DOCTOR, RUN])
    assert (result.code, result.ran, result.outputs["exit-code"]) == (0, [DOCTOR], "67")


@needs_install
@needs("root", CAN_BE_ROOT, "that jail is for root")
@pytest.mark.parametrize("flags", ["--isolation=chroot", "--memory=64M\n--isolation\nchroot"])
def test_the_jail_for_where_no_namespaces_are_is_tried_there(tmp_path: Path, flags: str) -> None:
    tmp_path.chmod(0o755)
    runner = Runner(tmp_path, refusing([["clone3", errno.ENOSYS]]))
    result = runner.run(cell=HELLO, flags=flags, only=[DOCTOR, RUN])
    assert (result.code, result.ran) == (0, [DOCTOR, RUN]), result.log
    assert "No cell can run here.\n" in result.log
    assert "Hello from a cell." in result.log


@needs_install
def test_another_version_than_the_one_asked_for_is_an_error(runner: Runner) -> None:
    result = runner.run(cell=HELLO, version="9.9.9; $(id)", only=[INSTALL])
    assert result.code == 1
    assert result.log.count("::error title=ww::this is not version ") == 1
    assert "uid=" not in result.log


@pytest.mark.parametrize(
    ("inputs", "code", "reason"),
    [
        ({"cell": HELLO, "flags": "--fuel=10"}, 66, "limit"),
        ({"cell": HELLO, "flags": "--fd\nx=77"}, 65, "error"),
        ({"cell": HELLO, "flags": "--no-such-flag"}, 2, ""),
        ({"cell": "./there-is-none.wasm"}, 127, "error"),
        ({"cell": "--explain"}, 127, "error"),
        ({"cell": HELLO, "open": "3</no/such/file"}, 65, ""),
        ({"cell": HELLO, "open": "three<in"}, 2, ""),
    ],
    ids=["limit", "grant", "flag", "none", "cell-like-a-flag", "no-file", "open"],
)
def test_a_failure_is_the_steps_and_its_outputs_are_there(
    runner: Runner, inputs: dict[str, str], code: int, reason: str
) -> None:
    result = runner.run(only=[RUN], **inputs)
    assert (result.code, result.outputs["exit-code"]) == (code, str(code)), result.log
    assert result.outputs["reason"] == reason
    assert Path(result.outputs["status-file"]).is_file()
    kept = runner.run(only=[RUN], fail="false", **inputs)
    assert (kept.code, kept.outputs["exit-code"]) == (0, str(code))


def test_a_file_of_events_that_cannot_be_made_is_the_steps_failure_and_no_cell_runs(
    runner: Runner,
) -> None:
    (runner.workspace / "folder").mkdir()
    for path in ("none/events", "folder"):
        result = runner.run(only=[RUN], cell=HELLO, status_file=path)
        assert (result.code, result.outputs["exit-code"]) == (65, "65"), result.log
        assert "Hello" not in result.log
        kept = runner.run(only=[RUN], cell=HELLO, status_file=path, fail="false")
        assert (kept.code, kept.outputs["exit-code"]) == (0, "65")
    result = runner.run(only=[RUN], cell=HELLO, status_file="-s")
    assert (result.code, result.outputs["reason"]) == (0, "exit")


def test_the_reason_is_never_that_of_an_earlier_run(runner: Runner) -> None:
    assert runner.run(only=[RUN], cell=HELLO, status_file="e").outputs["reason"] == "exit"
    result = runner.run(only=[RUN], cell=HELLO, status_file="e", open="3</no/such/file")
    assert (result.code, result.outputs["reason"]) == (65, "")


def test_a_step_that_is_cancelled_ends_its_cell_and_has_its_events(
    runner: Runner, leftovers: LeftoversFixture
) -> None:
    """The runner signals the step's shell, and nothing below it: ProcessInvoker.cs of its code."""
    loop = runner.workspace / "loop.wasm"
    loop.write_bytes(LOOP)
    with leftovers():
        for number in (signal.SIGTERM, signal.SIGKILL):
            events = runner.workspace / f"events-{number}"
            with runner.begun(RUN, cell="./loop.wasm", status_file=events.name) as step:
                while not (events.exists() and '"start"' in events.read_text()):
                    assert step.process.poll() is None
                    time.sleep(0.05)
                # It ignores this one, for the command that it waits for.
                step.process.send_signal(signal.SIGINT)
                time.sleep(0.2)
                assert step.process.poll() is None
                step.process.send_signal(number)
                step.process.wait(60)
                deadline = time.monotonic() + 60
                while '"exit"' not in events.read_text():
                    assert time.monotonic() < deadline, "the cell goes on"
                    time.sleep(0.05)
            assert step.output() == {"status-file": str(events)}
            last = json.loads(last_event(events))
            assert (last["code"], last["reason"]) == (143, "signal")


def test_files_are_opened_by_number_and_granted_by_name(runner: Runner) -> None:
    folder = runner.workspace / "a folder"
    folder.mkdir()
    (folder / "in $x.txt").write_text("content\n")
    result = runner.run(
        only=[RUN],
        cell=CAT,
        working_directory="a folder",
        status_file="events.jsonl",
        open="3<in $x.txt\n4>out's.txt\n2>>log",
        flags="--fd\ninput=3,mode=r\n--fd=output=4,mode=w",
    )
    assert result.code == 0, result.log
    assert (folder / "out's.txt").read_text() == "content\n"
    assert (folder / "log").read_text() == "input=10 output=11\n"
    assert result.outputs["status-file"] == str(folder / "events.jsonl")
    events = (folder / "events.jsonl").read_text().splitlines()
    names = [json.loads(line).get("name") for line in events]
    assert names == [None, "input", "output", None]


def test_a_cell_gets_no_variable_and_no_descriptor_of_the_job(runner: Runner) -> None:
    result = runner.run(only=[RUN], cell=ESCAPE)
    assert result.code == 0, result.log
    assert "secret of the job" not in result.log
    assert "held: the environment holds nothing but WW_FDS and WW_FD_*\n" in result.log
    assert re.search(r"^escape: \d+ held, 0 broken$", result.log, re.MULTILINE)


def test_the_runner_obeys_no_command_of_what_a_cell_writes(runner: Runner) -> None:
    """See "Stopping and starting workflow commands" of GitHub's documentation."""
    result = runner.run(only=[RUN], cell=HELLO, args="\n::error::from the cell")
    found = re.search(r"^::stop-commands::(\S+)\n(.*?)\n::(\S+)::\n", result.log, re.M | re.S)
    assert found is not None, result.log
    word, written, end = found.groups()
    assert word == end
    assert "::error::from the cell" in written
    # What a cell says on stderr comes by the same pipe; of two, the runner keeps no order.
    (runner.workspace / "in.txt").touch()
    said = runner.run(
        only=[RUN],
        cell=CAT,
        open="3<in.txt\n4>out.txt",
        flags="--fd\ninput=3,mode=r\n--fd=output=4,mode=w",
    )
    found = re.search(r"^::stop-commands::\S+\n(.*?)\n::\S+::\n", said.log, re.M | re.S)
    assert found is not None, said.log
    assert "input=10 output=11" in found[1]
    assert (result.errors, said.errors) == ("", "")
    again = re.search(r"::stop-commands::(\S+)", runner.run(only=[RUN], cell=HELLO).log)
    assert again is not None
    assert again[1] != word


ATTACKS = [
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "'; touch pwned; '",
    "x; touch pwned",
    "${IFS}&& touch pwned",
    "a[$(touch pwned)]",
    "3<$(touch pwned)",
    "3</dev/null; touch pwned",
    "3<>/dev/null$(touch pwned)",
    '3</dev/null"; touch pwned; "',
    "-n",
    "--",
]


@pytest.mark.parametrize(
    "name", [name for name in action["inputs"] if name not in ("lift-apparmor", "version")]
)
def test_no_input_is_a_command_of_the_shell(runner: Runner, name: str) -> None:
    # Each takes a run of its own where it is the whole value, or where the first ends the run.
    attacks = [ATTACKS[0], *ATTACKS[2:4], *ATTACKS[-2:]]
    if name in ("args", "flags"):
        attacks = ["\n".join(ATTACKS)]
    elif name == "open":
        attacks = ATTACKS
    for attack in attacks:
        inputs = {"cell": HELLO, name.replace("-", "_"): attack}
        if name == "working-directory":
            (runner.workspace / attack).mkdir(parents=True, exist_ok=True)
        result = runner.run(only=[RUN], **inputs)
        assert not list(runner.workspace.rglob("pwned")), (attack, result.log)
        if name == "args":
            assert f"Hello from a cell. {' '.join(ATTACKS)}\n" in result.log


def test_no_input_makes_an_output_of_its_own(runner: Runner) -> None:
    """A line of the file of outputs is an output; the runner gives no other protection."""
    forged = "x\nexit-code=0"
    for name in ("cell", "args", "flags", "open", "status_file"):
        result = runner.run(only=[RUN], **{"cell": HELLO, "flags": "--fuel=10", name: forged})
        assert result.code != 0
        assert result.outputs["exit-code"] in ("", str(result.code))


# Ubuntu's restriction


@pytest.fixture
def ubuntu(tmp_path: Path) -> Callable[[int], Runner]:
    """A machine with Ubuntu's setting at a value, and a `sudo` that says what it is called for."""

    def make(value: int) -> Runner:
        setting = SETTING.format(name="apparmor_restrict_unprivileged_userns", value=value)
        after = 'echo "now $(cat /proc/sys/kernel/apparmor_restrict_unprivileged_userns)"'
        script = f'{setting}\n"$@" || exit\n{after}'
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        runner = Runner(tmp_path, [*unshare, "bash", "-c", script, "bash"])
        runner.program("sudo", 'echo "sudo $*"\nexec "$@"')
        # As that of procps does it.
        place = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
        runner.program("sysctl", f'[ "$1" = -w ] && echo "${{2#*=}}" >{place}')
        return runner

    return make


def test_the_restriction_is_lifted_where_it_is_asked_for_and_it_says_so(
    ubuntu: Callable[[int], Runner],
) -> None:
    result = ubuntu(1).run(cell=HELLO, lift_apparmor="true", only=[LIFT])
    assert (result.code, result.ran) == (0, [LIFT]), result.log
    assert "::notice title=ww::lift-apparmor: " in result.log
    assert "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n" in result.log
    assert result.log.endswith("now 0\n")


def test_nothing_is_done_where_there_is_no_restriction(ubuntu: Callable[[int], Runner]) -> None:
    result = ubuntu(0).run(cell=HELLO, lift_apparmor="true", only=[LIFT])
    assert (result.code, result.ran) == (0, [LIFT]), result.log
    assert "there is nothing to lift" in result.log
    assert "sudo" not in result.log


@pytest.mark.parametrize("value", ["false", "", "True; sudo id", "yes"])
def test_the_restriction_stays_where_it_is_not_asked_to_be_lifted(
    ubuntu: Callable[[int], Runner], value: str
) -> None:
    assert ubuntu(1).run(cell=HELLO, lift_apparmor=value, only=[LIFT]).ran == []


def test_the_packages_that_an_image_must_have_are_those_that_the_installation_wants() -> None:
    shown = re.search(r"`(python3 python3-venv .*?)`", CI)
    script = (REPO / "scripts" / "setup-common.sh").read_text()
    wanted = re.search(r"^    apt_install (python3 .*?[^\\])$", script, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert wanted is not None
    assert shown[1].split() == wanted[1].replace("\\\n", " ").split()


def test_the_document_names_no_feature_that_there_is_not() -> None:
    for names in re.findall(r"WW_REQUIRE=([a-z0-9,-]+)", CI):
        assert set(filter(None, names.strip(",").split(","))) <= set(FEATURES)

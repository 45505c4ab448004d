"""What GitHub's runner does with a composite action, as far as action.yml asks for it.

Each step's script is run by bash as the runner does it (``shell: bash``), with the variables and
files that it gives; expressions are put in where the runner does so, which is never in a script.
"""

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import REPO

ACTION = REPO / "action.yml"

# "Workflow syntax", jobs.<job_id>.steps[*].shell: `bash`.
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")

_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")


def load(text: str) -> Any:
    """What a text in YAML holds."""
    return YAML(typ="safe", pure=True).load(text)


@dataclass
class Result:
    """What became of a run of the action.

    Attributes:
        code: The exit code of the step that failed, or 0.
        log: Everything that was written to stdout, by any step.
        errors: What was written to stderr. The runner shows both, in an order of its own.
        ran: The steps that were run, by their names.
        outputs: The outputs of the action.
        path: What later steps find on their PATH.
    """

    code: int = 0
    log: str = ""
    errors: str = ""
    ran: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)


class Runner:
    """A machine with a workspace, that runs the action."""

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        """Make the workspace.

        Args:
            folder: An empty one.
            prefix: The start of a command that makes the machine another one.
        """
        self.workspace = folder / "workspace"
        self.temporary = folder / "temp"
        self.home = folder / "home"
        self.programs = folder / "bin"
        for made in (self.workspace, self.temporary, self.home, self.programs):
            made.mkdir()
        self._prefix = list(prefix)
        self._number = 0

    def program(self, name: str, script: str) -> None:
        """Put a program of this machine on the PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *, only: Sequence[str] = (), **inputs: str) -> Result:
        """Run the action, as `uses:` with these inputs (``_`` for ``-``).

        Args:
            only: The names of the steps to run, instead of all.
            inputs: What stands below `with:`.
        """
        action = load(ACTION.read_text())
        context = _context(action, inputs)
        result = Result()
        for step in action["runs"]["steps"]:
            if only and step["name"] not in only:
                continue
            # A condition without a function such as always() holds while nothing has failed.
            if result.code or not _holds(step.get("if", "true"), context):
                continue
            result.ran.append(step["name"])
            self._step(step, context, result)
        for name, about in action["outputs"].items():
            result.outputs[name] = _filled(about["value"], context)
        return result

    @contextlib.contextmanager
    def begun(self, name: str, **inputs: str) -> Iterator["Begun"]:
        """Start one step and do not wait for it: the block is to end it."""
        action = load(ACTION.read_text())
        (step,) = (step for step in action["runs"]["steps"] if step["name"] == name)
        script, folder, environment = self._prepared(step, _context(action, inputs))
        with subprocess.Popen(
            [*self._prefix, *SHELL, script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield Begun(process, Path(environment["GITHUB_OUTPUT"]))
            finally:
                process.kill()

    def _step(self, step: Mapping[str, Any], context: dict[str, str], result: Result) -> None:
        script, folder, environment = self._prepared(step, context)
        done = subprocess.run(
            [*self._prefix, *SHELL, script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            check=False,
        )
        result.log += done.stdout.decode(errors="replace")
        result.errors += done.stderr.decode(errors="replace")
        result.code = done.returncode
        result.path += Path(environment["GITHUB_PATH"]).read_text().split()
        for name, value in _outputs(Path(environment["GITHUB_OUTPUT"])).items():
            context[f"steps.{step['id']}.outputs.{name}"] = value

    def _prepared(
        self, step: Mapping[str, Any], context: dict[str, str]
    ) -> tuple[Path, Path, dict[str, str]]:
        """Return the script of a step, where it runs, and its environment."""
        assert step["shell"] == "bash"
        self._number += 1
        stem = self.temporary / f"{self._number}"
        script, output, path = (stem.with_suffix(s) for s in (".sh", ".output", ".path"))
        script.write_text(_filled(step["run"], context))
        output.touch()
        path.touch()
        environment = {
            "PATH": f"{self.programs}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(REPO),
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_PATH": str(path),
            "RUNNER_TEMP": str(self.temporary),
            # What a job has, and a cell must not get.
            "SECRET_TOKEN": "a secret of the job",
            **{name: _filled(value, context) for name, value in step.get("env", {}).items()},
        }
        return (
            script,
            self.workspace / _filled(step.get("working-directory", "."), context),
            environment,
        )


@dataclass
class Begun:
    """A step that goes on.

    Attributes:
        process: Its shell.
        file: Its outputs.
    """

    process: subprocess.Popen[bytes]
    file: Path

    def output(self) -> dict[str, str]:
        """What it has told until now."""
        return _outputs(self.file)


def _context(action: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, str]:
    """What the expressions of a step refer to, before the first has run."""
    given = {name.replace("_", "-"): value for name, value in inputs.items()}
    unknown = given.keys() - action["inputs"].keys()
    assert not unknown, unknown
    return {
        f"inputs.{name}": given.get(name, about.get("default", ""))
        for name, about in action["inputs"].items()
    }


def _outputs(file: Path) -> dict[str, str]:
    found = {}
    for line in file.read_text().splitlines():
        name, equals, value = line.partition("=")
        assert equals, f"no output: {line}"
        found[name] = value
    return found


def _filled(text: str, context: Mapping[str, str]) -> str:
    return _EXPRESSION.sub(lambda match: _value(match[1], context), str(text))


def _holds(condition: str, context: Mapping[str, str]) -> bool:
    if "==" not in condition:
        return _value(condition, context) not in ("", "false")
    left, right = (_value(side, context) for side in condition.split("=="))
    return left == right


def _value(expression: str, context: Mapping[str, str]) -> str:
    """Of names, strings and `||`, which is all that action.yml uses."""
    for term in expression.split("||"):
        value = _term(term.strip(), context)
        if value:
            return value
    return ""


def _term(term: str, context: Mapping[str, str]) -> str:
    if term in ("true", "false"):
        return term
    if term.startswith("'"):
        (text,) = shlex.split(term)
        return text
    # An input that there is not would be an empty text on GitHub, and is an error of the action.
    assert term in context or term.startswith("steps."), term
    return context.get(term, "")


def last_event(file: str | os.PathLike[str]) -> str:
    """The last line of the events of a run."""
    return Path(file).read_text().splitlines()[-1]

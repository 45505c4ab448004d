"""From a process's own descriptor table to a plan, in processes that start with a known one."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.features import lacks

ROOT = Path(__file__).parents[3]

# argv: the file for the result, a statement to run before the capture, one for after it, flags.
PROGRAM = """
import os, sys
report, before, after, *flags = sys.argv[1:]
exec(before)
from runner.errors import WwError
from runner.inherited import capture
try:
    modules = set(sys.modules)
    inherited = capture()
    captured_with = sorted(set(sys.modules) - modules)
    exec(after)
    import fcntl, json
    from runner.grants.flags import parse_fds
    from runner.grants.merge import merge
    from runner.grants.plan import build_plan
    stdio = "--no-stdio" not in flags
    plan = build_plan(
        merge(*parse_fds([f for f in flags if f != "--no-stdio"])), inherited, stdio=stdio
    )
    result = {
        "sources": sorted(inherited.sources),
        "close_on_exec": sorted(inherited.close_on_exec),
        "nulled": sorted(inherited.nulled),
        "not_cloexec": [
            n for n in inherited.sources | inherited.nulled
            if not fcntl.fcntl(n, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        ],
        "links": {n: os.readlink(f"/proc/self/fd/{n}") for n in inherited.nulled},
        "entries": [[*entry.grant, entry.source] for entry in plan.entries],
        "captured_with": captured_with,
    }
except WwError as error:
    import json
    result = {"error": str(error), "code": error.code}
with open(report, "w") as stream:
    json.dump(result, stream)
"""


class Runner:
    """Runs the program above with redirections in shell syntax."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def __call__(
        self,
        *flags: str,
        shell: str = "",
        before: str = "",
        after: str = "",
        pass_fds: tuple[int, ...] = (),
        options: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> Any:
        program = [sys.executable, *options, "-c", PROGRAM, str(self.report), before, after, *flags]
        done = subprocess.run(
            [*prefix, "sh", "-c", f'exec "$@" {shell}', "sh", *program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=pass_fds,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(self.report.read_text())


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "report")


def test_what_was_open_at_the_start_is_a_source_and_nothing_else(run: Runner) -> None:
    result = run(shell="5</dev/null 8>/dev/null")
    assert result["sources"] == [0, 1, 2, 5, 8]
    assert result["close_on_exec"] == []
    assert result["nulled"] == []


def test_every_source_is_close_on_exec_afterwards(run: Runner) -> None:
    assert run(shell="5</dev/null")["not_cloexec"] == []


def test_a_program_started_later_has_none_of_the_sources(run: Runner) -> None:
    # execve keeps what is not close-on-exec: ask a program what it was left with.
    after = (
        "import subprocess;"
        "out = subprocess.run(['ls', '/proc/self/fd'], close_fds=False, stdin=-3, stdout=-1);"
        "flags = ['left'] if '5' in out.stdout.decode().split() else []"
    )
    assert "error" not in run(shell="5</dev/null", after=after)


def test_the_capture_imports_nothing(run: Runner) -> None:
    assert run()["captured_with"] == []
    code = "import os, sys; before = set(sys.modules); import runner.inherited;"
    code += "print(*set(sys.modules) - before)"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    imported = {"runner", "runner.errors", "runner.inherited", "fcntl"}
    assert set(done.stdout.split()) <= imported


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_a_closed_standard_descriptor_is_dev_null_and_no_source(
    run: Runner, closed: tuple[int, ...]
) -> None:
    result = run(shell=" ".join(f"{fd}>&-" for fd in closed))
    assert result["nulled"] == list(closed)
    assert result["sources"] == [fd for fd in (0, 1, 2) if fd not in closed]
    assert set(result["links"].values()) == {"/dev/null"}
    assert result["not_cloexec"] == []
    entries = [(entry[0], entry[-1]) for entry in result["entries"]]
    assert entries == [(0, 0), (1, 1), (2, 2)]
    assert [result["entries"][fd][2] for fd in closed] == [("r", "w", "w")[fd] for fd in closed]


def test_a_closed_standard_descriptor_cannot_be_granted(run: Runner) -> None:
    result = run("stdin", shell="0<&-")
    assert result["code"] == 65
    assert "--fd #1: fd 0 is not open" in result["error"]


def test_a_file_opened_by_ww_in_the_place_of_closed_stdin_does_not_pass_through(
    run: Runner,
) -> None:
    result = run(shell="0<&-", before="keep = os.open('/etc/passwd', os.O_RDONLY)")
    assert result["code"] == 65
    assert "stdin: fd 0 was not inherited (close-on-exec)" in result["error"]


def test_a_standard_descriptor_that_was_there_at_the_start_is_a_source_in_any_case(
    run: Runner,
) -> None:
    result = run(before="os.set_inheritable(0, False)")
    assert result["sources"] == [0, 1, 2]


def test_a_descriptor_that_ww_opened_before_the_capture_cannot_be_granted(run: Runner) -> None:
    before = "os.dup2(os.open('/etc/passwd', os.O_RDONLY), 9, inheritable=False)"
    result = run("a=9", before=before)
    assert result["code"] == 65
    assert "fd 9 was not inherited (close-on-exec)" in result["error"]


def test_a_descriptor_that_ww_opened_after_the_capture_cannot_be_granted(run: Runner) -> None:
    result = run("a=9", after="os.dup2(os.open('/etc/passwd', os.O_RDONLY), 9)")
    assert result["code"] == 65
    assert "fd 9 is not open" in result["error"]


def test_a_closed_source_cannot_be_granted(run: Runner) -> None:
    result = run("a=3", shell="3<&-")
    assert result["code"] == 65
    assert "--fd #1: fd 3 is not open (" in result["error"]


def test_swapped_descriptors_are_planned_as_asked(run: Runner) -> None:
    result = run("a=3,target=4", "b=4,target=3", shell="3</dev/null 4>/dev/null")
    assert [(e[0], e[1], e[2], e[-1]) for e in result["entries"][3:]] == [
        (3, "b", "w", 4),
        (4, "a", "r", 3),
    ]


def test_without_stdio_the_standard_descriptors_are_not_asked_about(run: Runner) -> None:
    result = run("--no-stdio", shell="0<&-", before="keep = os.open('/', os.O_RDONLY)")
    assert [entry[-1] for entry in result["entries"]] == [None, None, None]


def test_stdio_passes_through_for_reading_and_writing_as_it_is_open(run: Runner) -> None:
    result = run(shell="0<>/dev/null 1>/dev/null 2<>/dev/null")
    assert [entry[2] for entry in result["entries"]] == ["r", "w", "w"]
    other = run(shell="0>/dev/null 1</dev/null 2<>/dev/null")
    assert [entry[2] for entry in other["entries"]] == ["w", "r", "w"]
    widened = run("stderr,mode=rw", shell="0</dev/null 1>/dev/null 2<>/dev/null")
    assert widened["entries"][2][2] == "rw"
    assert [entry[1] for entry in result["entries"]] == [None, None, None]


def test_a_socket_as_stdio_passes_through(run: Runner) -> None:
    one, other = socket.socketpair()
    with one, other:
        result = run(before=f"os.dup2({one.fileno()}, 0)", pass_fds=(one.fileno(),))
    assert result["entries"][0][1:4] == [None, "rw", "socket"]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("os.eventfd(0)", "an eventfd descriptor"),
        ("os.open('/', os.O_RDONLY)", "a directory"),
        ("os.open('/', os.O_PATH)", "a path opened with O_PATH"),
        ("os.open('/proc/self/ns/net', os.O_RDONLY)", "a namespace"),
    ],
)
def test_what_can_never_be_granted_does_not_pass_through_either(
    run: Runner, make: str, what: str
) -> None:
    # Python itself refuses to start with a directory as stdin: replace it before the capture.
    result = run(before=f"os.dup2({make}, 0)")
    assert result["code"] == 65
    assert result["error"].startswith(f"stdin: fd 0 is {what} and cannot pass through: ")
    assert "redirect it" in result["error"]
    assert "--no-stdio" in result["error"]
    assert "error" not in run("--no-stdio", before=f"os.dup2({make}, 0)")
    assert "error" not in run("z=5,target=0", shell="5</dev/null", before=f"os.dup2({make}, 0)")


def test_too_many_grants_for_the_hard_limit_are_refused(run: Runner) -> None:
    limit = f"import resource; resource.setrlimit({resource.RLIMIT_NOFILE}, (256, 256))"
    flags = [f"n{i}=5" for i in range(300)]
    result = run(*flags, shell="5</dev/null", before=limit)
    assert result["code"] == 65
    assert "300 grants" in result["error"]
    assert len(run(*flags[:216], shell="5</dev/null", before=limit)["entries"]) == 219
    assert run("a=5,target=256", shell="5</dev/null", before=limit)["code"] == 2
    assert run("a=5,target=255", shell="5</dev/null", before=limit)["entries"][-1][0] == 255


ERRORS = [
    (("a=3,target=10", "b=3,target=10"), 2),
    (("a=3", "a=3"), 2),
    (("a=3,move=true", "b=3"), 2),
    (("a=3,target=999999999",), 2),
    (("a=3,target=9999999",), 2),
    (("a=3,pathlink=true,target=3",), 2),
    (("=3",), 2),
    (("a=3,mode=w",), 65),
    (("a=3,type=socket",), 65),
    (("a=7",), 65),
    (("in=0,move=true",), 2),
]


@pytest.mark.parametrize(("flags", "code"), ERRORS)
def test_python_without_assertions_gives_the_same_errors(
    run: Runner, flags: tuple[str, ...], code: int
) -> None:
    plain = run(*flags, shell="3</dev/null")
    assert plain["code"] == code
    assert run(*flags, shell="3</dev/null", options=("-O",)) == plain


def test_without_proc_nothing_is_guessed(run: Runner) -> None:
    unshare = ["unshare", "--mount"] + (["--map-root-user"] if os.geteuid() else [])
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        lacks("userns", "no mount namespace can be made here")
    script = 'mount -t tmpfs none /proc && exec "$@"'
    result = run(prefix=(*unshare, "sh", "-c", script, "sh"))
    assert result["code"] == 67
    assert result["error"].startswith("/proc/self/fd: ")
    assert "mounted /proc" in result["error"]

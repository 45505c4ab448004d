"""What `ww send-fds` does, in a process of its own that starts with known descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.unit.handoff.peers import PATIENCE

# As runner.__main__ does it. argv: the destination, the number of --fd values, these, CMD.
SENDER = """
from runner.inherited import capture
inherited = capture()
import os, sys
from runner.errors import WwError
from runner.grants.handoff import send_command
destination, count, *rest = sys.argv[1:]
fds, command = rest[:int(count)], rest[int(count):]
try:
    code = send_command(destination, fds, command, inherited, os.environ)
except WwError as error:
    os.write(2, f"ww: error: {error}\\n".encode())
    code = error.code
os._exit(code)
"""

# A ww in short. argv: the value of --fdctl, the exit code.
RECEIVER = """
import os, sys
print("inherited", *sorted(os.listdir("/proc/self/fd"), key=int)[:-1], flush=True)
from runner.grants.handoff import parse_fdctl, receive
for request in receive(parse_fdctl(sys.argv[1], "--fdctl #1")).requests:
    print(request.name, request.mode, os.read(request.source, 100).decode(), flush=True)
sys.exit(int(sys.argv[2]))
"""


def receiver(value: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", RECEIVER, value, str(code)]


def start(
    folder: Path, destination: str, fds: Sequence[str], command: Sequence[str], shell: str = ""
) -> subprocess.Popen[str]:
    """Start it with redirections in shell syntax, in a private folder."""
    program = [sys.executable, "-c", SENDER, destination, str(len(fds)), *fds, *command]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


def run(
    folder: Path, destination: str, fds: Sequence[str], command: Sequence[str], shell: str = ""
) -> tuple[int, str, str]:
    with start(folder, destination, fds, command, shell) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "private"
    made.mkdir(mode=0o700)
    (made / "secret").write_text("content")
    return made


def test_a_command_gets_the_descriptors_through_the_socket_and_by_no_other_way(
    folder: Path,
) -> None:
    code, out, err = run(
        folder, "x", ["db=7,mode=r"], receiver("x,timeout=60"), "7<secret 8</dev/null"
    )
    assert (code, out, err) == (0, "inherited 0 1 2\ndb r content\n", "")
    assert [path.name for path in folder.iterdir()] == ["secret"]


def test_the_exit_code_is_the_commands(folder: Path) -> None:
    assert run(folder, "x", [], receiver("x,timeout=60", 7))[0] == 7
    assert run(folder, "x", [], ["sh", "-c", "kill -9 $$"])[0] == 128 + signal.SIGKILL


def test_a_command_that_ends_without_connecting_ends_the_wait(folder: Path) -> None:
    code, _, err = run(folder, "x", [], ["true"])
    assert code == 65
    assert err == "ww: error: PATH: x: 'true' ended and nobody took the descriptors\n"
    # What made it fail it has said itself.
    assert run(folder, "x", [], ["sh", "-c", "exit 3"]) == (3, "", "")
    assert not (folder / "x").exists()


def test_a_failed_handoff_is_reported_even_if_the_command_is_content(folder: Path) -> None:
    script = "import socket\ns = socket.socket(1, 5); s.connect('x'); s.send(b'hello'); s.recv(9)"
    code, _, err = run(folder, "x", [], [sys.executable, "-c", script])
    assert code == 65
    assert "the other side says 'hello'" in err


def test_a_failed_handoff_is_reported_with_the_commands_code(folder: Path) -> None:
    # The receiver admits one only, and ends with an error of its own.
    code, _, err = run(folder, "x", ["a=7", "b=7"], receiver("x,timeout=60,max=1"), "7<secret")
    assert code == 1
    assert "2 descriptors are offered, and the other side takes 1" in err


@pytest.mark.parametrize(
    ("command", "code"), [(["/nonexistent/program"], 127), (["./secret"], 126)]
)
def test_a_command_that_cannot_be_run_is_an_error_as_in_a_shell(
    folder: Path, command: list[str], code: int
) -> None:
    (folder / "secret").chmod(0o600)
    assert run(folder, "x", [], command)[0] == code
    assert not (folder / "x").exists()


def test_afterwards_it_holds_no_copy_so_that_a_pipe_ends_with_its_users(folder: Path) -> None:
    # The reader of the pipe is in CMD too: it sees the end while the sender still waits for CMD.
    script = (
        "import os, sys; from runner.grants.handoff import Channel, receive\n"
        "r, w = (q.source for q in receive(Channel('x', 'o', 60)).requests)\n"
        "os.write(w, b'all'); os.close(w)\n"
        "sys.stdout.write(os.read(r, 9).decode() + repr(os.read(r, 9)))"
    )
    one, other = os.pipe()
    with subprocess.Popen(
        [
            *(sys.executable, "-c", SENDER, "x", "2", f"r={one}", f"w={other}"),
            *(sys.executable, "-c", script),
        ],
        pass_fds=[one, other],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(one)
        os.close(other)
        assert process.communicate(timeout=PATIENCE)[0] == "allb''"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_to_the_command(folder: Path, number: int) -> None:
    script = "trap 'exit 9' TERM HUP; echo ready; while :; do sleep 0.01; done"
    with start(folder, "x", [], ["sh", "-c", script]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 9
    assert not (folder / "x").exists()


def test_an_interrupt_is_left_to_the_command(folder: Path) -> None:
    script = "echo ready; until [ -e go ]; do sleep 0.01; done; exit 9"
    with start(folder, "x", [], ["sh", "-c", script]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGQUIT)
        (folder / "go").touch()
        assert process.wait(PATIENCE) == 9


# Those below the two that the C library keeps for itself, which posix_spawn(3) ignores in a child.
ORDINARY_SIGNALS = (1 << 31) - 1


def signals(status: str) -> list[int]:
    return [int(line.split()[1], 16) & ORDINARY_SIGNALS for line in status.splitlines()]


def test_the_command_has_the_signals_that_a_shell_would_give_it(folder: Path) -> None:
    command = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
    direct = subprocess.run(command, capture_output=True, text=True, check=True)
    code, out, _ = run(folder, "x", [], ["sh", "-c", '"$@"; exit 5', "sh", *command])
    assert code == 5
    assert signals(out) == signals(direct.stdout)


def test_without_a_command_it_waits_for_a_ww_that_listens(folder: Path) -> None:
    with start(folder, "x,timeout=60", ["db=7"], [], "7<secret") as sender:
        time.sleep(0.05)  # likely, and not needed: the sender comes first
        done = subprocess.run(
            receiver("x,listen=true,timeout=60"),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
        )
        assert sender.wait(PATIENCE) == 0
    assert done.stdout.splitlines()[-1] == "db None content"


def test_without_a_command_it_can_listen_too(folder: Path) -> None:
    with start(folder, "x,timeout=60,listen=true", ["stdin"], [], "<secret") as sender:
        while not (folder / "x").exists():
            assert sender.poll() is None
            time.sleep(0.01)
        for _ in range(1000):
            done = subprocess.run(
                receiver("x,timeout=60"),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(REPO)},
                capture_output=True,
                text=True,
            )
            if "Connection refused" not in done.stderr:  # between its bind and its listen
                break
        assert sender.wait(PATIENCE) == 0
    assert done.stdout.splitlines()[-1] == "stdin None content"


@pytest.mark.parametrize(
    ("destination", "fds", "command", "code", "what"),
    [
        ("", [], [], 2, "the path is missing"),
        ("x,max=3", [], [], 2, "unknown key 'max'"),
        ("x,listen=false", [], ["true"], 2, "listen=false cannot be"),
        ("x", [], [""], 2, "ww: error: COMMAND: it is empty\n"),
        ("no/such/x", [], ["true"], 65, "its directory; make that first"),
        ("x", ["=3"], [], 2, "--fd #1: column 1"),
        ("x", ["a=7", "a=7"], [], 2, "already given"),
        ("x", ["a=9"], [], 65, "fd 9 is not open"),
        ("x", ["a=7,mode=w"], ["true"], 65, "mode=w is asked"),
        ("x", ["a=8,mode=w"], [], 65, "directory"),
    ],
)
def test_what_cannot_be_granted_is_refused_before_anything_happens(
    folder: Path, destination: str, fds: list[str], command: list[str], code: int, what: str
) -> None:
    got, _, err = run(folder, destination, fds, command, "7<secret 8<.")
    assert got == code
    assert what in err
    assert not (folder / "x").exists()

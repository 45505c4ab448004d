"""Signals to ww, and the terminal that it was started on."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, BuildFunction, Leftovers, Ww
from tests.jail.inside import ZYGOTE, call, name_of, perform, variant

LeftoversFixture = Callable[..., Leftovers]
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
PATIENCE = 30

# struct termios of include/uapi/asm-generic/termbits.h: four words of flags, the last c_lflag whose
# lowest byte has ECHO and ICANON; a byte for the line discipline; 19 characters.
KERNEL_TERMIOS = 4 * 4 + 1 + 19
LOCAL_FLAGS = 3 * 4 + (0 if sys.byteorder == "little" else 3)

# A cell that is done when its input ends, and says so; and one that never is.
READING = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "begun\\n") (data (i32.const 80) "done\\n")
  (func $say (param i32 i32)
    (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (call $say (i32.const 64) (i32.const 6))
    (loop
      (i32.store (i32.const 0) (i32.const 128)) (i32.store (i32.const 4) (i32.const 16))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if 0 (i32.load (i32.const 8))))
    (call $say (i32.const 80) (i32.const 5))))
"""

# A cell that has broken out of the engine and the system call filter, and changes its terminal.
MEDDLING = """
import os, termios, time
from sandbox import seccomp
from sandbox.outcome import Outcome
from sandbox.wasi.cell import CellHost

seccomp.install = lambda program: None

def run(self, inside):
    inside.seal()
    settings = termios.tcgetattr(0)
    settings[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSANOW, settings)
    os.write(1, b"begun\\n")
    {then}

CellHost.run = run
"""
SLOW_COMPILER = """
import time
from sandbox.wasi.cell import CellHost

def compile(self, inside):
    inside.seal()
    while True:
        time.sleep(1)

CellHost.compile = compile
"""

# Makes the terminal at 0 that of its session, and then becomes, or starts, the program.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "foreground":
    os.execvp(sys.argv[2], sys.argv[2:])
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setpgroup=0)
_, status = os.waitpid(pid, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(pid, 9)
    sys.exit(200)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.fixture
def reading(ww_account: Ww) -> Path:
    import wasmtime

    return ww_account.file("reading.wasm", bytes(wasmtime.wat2wasm(READING)))


@pytest.fixture
def terminal(ww_account: Ww) -> Iterator[tuple[int, int]]:
    """A pseudoterminal of the account's: what a person types at, and what ww gets."""
    master, slave = pty.openpty()
    os.fchown(slave, ww_account.account.uid, -1)
    yield master, slave
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


def begun(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"


@contextlib.contextmanager
def running(ww: Ww, *args: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with ww.start([*args], **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", ENDING)
def test_with_grace_a_cell_may_end_by_itself_and_ww_still_ends_by_the_signal(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture, number: signal.Signals
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", "--grace", "1h", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        process.send_signal(number)
        out, err = process.communicate(b"more", PATIENCE)
    assert (process.returncode, out, err) == (128 + number, b"done\n", b"")


def test_when_the_grace_is_over_the_cell_is_killed(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", "--grace", "0.3", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.communicate()[0] == b""


def test_a_second_signal_ends_the_grace(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", "--grace", "1h", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGINT  # what asked first


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_ww_was_started_to_ignore_stays_ignored(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture, number: signal.Signals
) -> None:
    other = signal.SIGTERM if number is not signal.SIGTERM else signal.SIGINT
    ignoring = ["bash", "-c", f'trap "" {number.name[3:]}; exec "$@"', "bash"]
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ignoring, *ww_account.command, "run", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        process.send_signal(number)
        process.send_signal(other)
        assert process.wait(PATIENCE) == 128 + other


def test_many_signals_at_once_end_it_like_one(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        while process.poll() is None:
            for number in ENDING:
                process.send_signal(number)
        _, err = process.communicate()
    # One that comes when all is done may end ww itself, which is the same to a shell.
    assert process.returncode in {sign for n in ENDING for sign in (128 + n, -n)}
    assert err == b""


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_compilation_too(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture, number: signal.Signals
) -> None:
    command: list[str | Path] = [*variant(SLOW_COMPILER), "run", reading]
    with leftovers(ww_account), running(ww_account, *command) as process:
        wait_for(lambda: "compiler" in names_below(process.pid))
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number


def test_a_second_signal_ends_the_grace_of_a_compilation(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    command: list[str | Path] = [*variant(SLOW_COMPILER), "run", "--grace", "1h", reading]
    with leftovers(ww_account), running(ww_account, *command) as process:
        wait_for(lambda: "compiler" in names_below(process.pid))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        # Of two that wait, the one with the lower number comes first.
        assert process.wait(PATIENCE) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_a_compiler_that_somebody_has_stopped_ends_at_the_time_limit(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    command: list[str | Path] = [*variant(SLOW_COMPILER), "run", "--timeout", "2", reading]
    with leftovers(ww_account), running(ww_account, *command) as process:
        wait_for(lambda: "compiler" in names_below(process.pid))
        _, compiler = chain_below(process.pid)
        os.kill(compiler, signal.SIGSTOP)
        assert process.wait(PATIENCE) == 66


def test_the_cell_of_a_stopped_ww_ends_at_the_time_limit(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", "--timeout", "1", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        spawner, _ = chain_below(process.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: cells_of(spawner) == [])
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE) == 66


@pytest.mark.parametrize("stopped", ["cell", "spawner"])
def test_what_somebody_has_stopped_ends_with_ww_all_the_same(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture, stopped: str
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        spawner, cell = chain_below(process.pid)
        os.kill(cell if stopped == "cell" else spawner, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


# Starts ww, which may outlive it, and says which process that is.
PARENT = """
import os, signal, sys, time
if sys.argv[1] == "ignoring":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
if sys.argv[1] == "ignoring":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.write(2, b"%d\\n" % pid)
time.sleep(600)
"""


@contextlib.contextmanager
def parent_of(
    ww: Ww, *command: str | Path, how: str = "usual"
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """What starts ww, and ww, of which one or both are to end in the block."""
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    with running(ww, sys.executable, "-c", PARENT, how, *command, **options) as process:
        begun(process)
        assert process.stderr is not None
        pid = int(process.stderr.readline())
        try:
            yield process, pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not is_there(pid))


def is_there(pid: int) -> bool:
    # A zombie of a container whose first process reaps nobody is not.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ww_that_dies_with_its_parent_ends_the_cell_and_tells_it(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture, number: signal.Signals
) -> None:
    status = ww_account.file("status", b"", mode=0o666)
    flags = ("--die-with-parent", "--status-fd", "9")
    shell = ("bash", "-c", 'exec "$@" 9>status', "bash")
    command: list[str | Path] = [*shell, *ww_account.command, "run", *flags, reading]
    with leftovers(ww_account), parent_of(ww_account, *command) as (parent, pid):
        parent.send_signal(number)
        wait_for(lambda: not is_there(pid))
    last = json.loads(status.read_text().splitlines()[-1])
    assert (last["code"], last["signal"]) == (128 + signal.SIGTERM, signal.SIGTERM)


def test_ww_that_ignores_what_asks_it_to_end_dies_with_its_parent_all_the_same(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    command: list[str | Path] = [*ww_account.command, "run", "--die-with-parent", reading]
    with leftovers(ww_account), parent_of(ww_account, *command, how="ignoring") as (parent, pid):
        parent.kill()
        wait_for(lambda: not is_there(pid))


def test_otherwise_ww_goes_on_without_its_parent(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    command: list[str | Path] = [*ww_account.command, "run", reading]
    with leftovers(ww_account), parent_of(ww_account, *command) as (parent, pid):
        parent.kill()
        time.sleep(0.3)
        assert is_there(pid)


def test_a_parent_that_ended_before_the_kernel_was_asked_has_ended() -> None:
    script = (
        "import os\n"
        "from runner.launch import _die_with\n"
        "from runner.supervise import Ended, Signals\n"
        "try:\n"
        "    with Signals():\n"
        "        _die_with(os.getppid())\n"
        "        print('both are there', flush=True)\n"
        "        _die_with(os.getpid())\n"
        "except Ended as end:\n"
        "    print('ended by', end.signal)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("both are there\nended by 15\n", "")


def test_a_stopped_spawner_ends_when_ww_is_killed(
    ww_account: Ww, reading: Path, leftovers: LeftoversFixture
) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    command: list[str | Path] = [*ww_account.command, "run", reading]
    with leftovers(ww_account), running(ww_account, *command, **options) as process:
        begun(process)
        spawner, _ = chain_below(process.pid)
        os.kill(spawner, signal.SIGSTOP)
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("end", ["by itself", "by its limit", "by a signal"])
def test_a_terminal_is_as_before_whatever_a_cell_did_and_however_it_ended(
    ww_account: Ww, reading: Path, terminal: tuple[int, int], end: str
) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    then = 'return Outcome("exit", 5)' if end == "by itself" else "time.sleep(600)"
    limit = ["--timeout", "1"] if end == "by its limit" else []
    command: list[str | Path] = [*variant(MEDDLING.format(then=then)), "run", *limit, reading]
    with running(ww_account, *command, stdin=slave) as process:
        begun(process)
        if end == "by a signal":
            assert termios.tcgetattr(slave) != before
            process.send_signal(signal.SIGTERM)
        code = {"by itself": 5, "by its limit": 66, "by a signal": 128 + signal.SIGTERM}[end]
        assert process.wait(PATIENCE) == code
    assert termios.tcgetattr(slave) == before


def test_a_terminal_is_as_before_a_native_program_that_has_set_it(
    ww_account: Ww, native_probe: BuildFunction, terminal: tuple[int, int]
) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    kernels = bytearray(fcntl.ioctl(slave, termios.TCGETS, bytes(KERNEL_TERMIOS)))
    kernels[LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON) & 0xFF
    attack = call("ioctl", 0, termios.TCSETS, bytes(kernels))
    tried = perform(ww_account, "native", native_probe("attacks"), attack, stdin=slave)
    assert tried.all() == [(0, 0)]
    assert termios.tcgetattr(slave) == before


def test_in_the_background_of_a_terminal_ww_is_not_stopped_by_putting_it_in_order(
    ww_account: Ww, reading: Path, terminal: tuple[int, int]
) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    meddling = variant(MEDDLING.format(then='return Outcome("exit", 5)'))
    wrapped: list[str | Path] = [
        sys.executable,
        "-c",
        ON_TERMINAL,
        "background",
        *meddling,
        "run",
        reading,
    ]
    with running(ww_account, *wrapped, stdin=slave) as process:
        assert process.wait(PATIENCE) == 5
        assert termios.tcgetattr(slave) == before


@pytest.mark.parametrize(("typed", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_an_interrupt_that_is_typed_ends_the_cell_through_ww_alone(
    ww_account: Ww,
    reading: Path,
    terminal: tuple[int, int],
    leftovers: LeftoversFixture,
    typed: bytes,
    number: signal.Signals,
) -> None:
    master, slave = terminal
    foreground = [sys.executable, "-c", ON_TERMINAL, "foreground"]
    command: list[str | Path] = [*foreground, *ww_account.command, "run", reading]
    with leftovers(ww_account), running(ww_account, *command, stdin=slave) as process:
        begun(process)
        spawner, cell = chain_below(process.pid)
        # A terminal's signals are for the processes of its session.
        assert len({session(process.pid), session(spawner), session(cell)}) == 3
        os.write(master, typed)
        assert process.wait(PATIENCE) == 128 + number


def test_a_terminal_that_goes_away_ends_the_cell_of_its_ww(
    ww_account: Ww, reading: Path, terminal: tuple[int, int], leftovers: LeftoversFixture
) -> None:
    master, slave = terminal
    foreground = [sys.executable, "-c", ON_TERMINAL, "foreground"]
    # What the cell sees first is the end of its input, and it may end by itself in time.
    command: list[str | Path] = [*foreground, *variant(MEDDLING.format(then="time.sleep(600)"))]
    with (
        leftovers(ww_account),
        running(ww_account, *command, "run", reading, stdin=slave) as process,
    ):
        begun(process)
        os.close(master)
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cells_of(spawner: int) -> list[int]:
    """Its jailed processes: beside them it has the one that they are cloned from."""
    return [pid for pid in children(spawner) if name_of(pid) != ZYGOTE]


def names_below(pid: int) -> set[str]:
    try:
        return {name_of(cell) for spawner in children(pid) for cell in cells_of(spawner)}
    except OSError:
        return set()


def chain_below(pid: int) -> tuple[int, int]:
    """The spawner and the process of a cell that has begun."""
    (spawner,) = children(pid)
    (cell,) = cells_of(spawner)
    return spawner, cell


def session(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[3])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def test_an_interrupted_command_says_nothing(ww: Ww) -> None:
    reading, writing = os.pipe()
    process = ww.start([*ww.command, "export", "-"], stdin=reading)
    os.close(reading)
    # It has begun to read when the pipe is empty again.
    os.write(writing, b"x")
    wait_for(lambda: fcntl.ioctl(writing, termios.FIONREAD, b"\0" * 4) == b"\0" * 4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writing)
    assert (process.returncode, out, err) == (130, b"", b"")


SIGNALLED_AGAIN = """
import os, signal, time
from runner.supervise import Ended, Signals
try:
    with Signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except Ended as end:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(os.getpid(), number)
    print("ended by", end.signal)
"""


def test_what_the_first_signal_has_begun_comes_to_its_end_whatever_follows() -> None:
    # Until then, the end is told on --status-fd and the spawner is waited for.
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_AGAIN], cwd=REPO, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended by 15\n", "")

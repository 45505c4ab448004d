"""`Sandbox.run`: what a cell is given, what comes back, and what is an error."""

import contextlib
import enum
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from wasmtime import wat2wasm

from sandbox import (
    Cell,
    CellFailed,
    CellKilled,
    CellRejected,
    CellSource,
    JailError,
    Limits,
    Result,
    Sandbox,
    SandboxError,
    Spawner,
    SpawnerError,
    grant,
)
from sandbox.encoding import encode
from sandbox.library.job import Job
from tests.conftest import CAN_BE_ROOT, REPO, Leftovers, Ww
from tests.features import needs
from tests.library.conftest import Pipe


def test_what_a_cell_writes_comes_back_with_its_exit_code(sandbox: Sandbox, tool: Cell) -> None:
    result = sandbox.run(tool, ["say=out", "complain=err", "exit=3"])
    assert (result.stdout, result.stderr, result.exit_code) == (b"out", b"err", 3)
    assert not result.ok
    assert result.outcome.kind == "exit"


def test_a_cell_without_anything_to_do_ends_well(sandbox: Sandbox, tool: Cell) -> None:
    result = sandbox.run(tool)
    assert result.check() is result
    assert (result.stdout, result.stderr) == (b"", b"")


@pytest.mark.parametrize("form", ["cell", "bytes", "path", "text", "descriptor"])
def test_every_form_of_a_cell_runs(
    sandbox: Sandbox, tool: Cell, tool_path: Path, form: str
) -> None:
    with open(tool_path, "rb") as file:
        file.seek(7)  # all of it is read, whatever its position
        forms: dict[str, CellSource] = {
            "cell": tool,
            "bytes": tool_path.read_bytes(),
            "path": tool_path,
            "text": str(tool_path),
            "descriptor": file.fileno(),
        }
        result = sandbox.run(forms[form], ["name"])
        assert file.tell() == 7
    name = {"cell": "tool", "path": str(tool_path), "text": str(tool_path)}.get(form, "cell")
    assert result.stdout.decode() == f"{name}\n"


def test_a_cell_that_is_not_there_is_an_error_of_the_system(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundError):
        sandbox.run("/nowhere/cell.wasm")


def test_what_is_no_file_is_no_cell(sandbox: Sandbox, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CellRejected, match="not a regular file"):
        sandbox.run(tmp_path / "fifo")


def test_a_closed_cell_is_an_error(sandbox: Sandbox, tool_path: Path) -> None:
    cell = Cell.load(tool_path)
    cell.close()
    cell.close()
    with pytest.raises(ValueError, match="closed"):
        sandbox.run(cell)


def test_a_cell_is_its_bytes_and_their_digest(tool: Cell, tool_path: Path) -> None:
    code = tool_path.read_bytes()
    assert tool.read() == code
    assert tool.size == len(code)
    assert not tool.component
    with pytest.raises(PermissionError), open(f"/proc/self/fd/{tool.fileno()}", "r+b") as file:
        file.write(b"x")
    with Cell.load(tool) as shared, pickle.loads(pickle.dumps(tool)) as copied:
        assert shared.digest == copied.digest == tool.digest
        assert os.path.sameopenfile(shared.fileno(), tool.fileno())
        assert not os.path.sameopenfile(copied.fileno(), tool.fileno())
        assert copied.name == shared.name == "tool"


def test_a_cell_that_is_closed_while_it_is_opened_is_never_another_file(
    tool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell.load(tool_path)
    number = cell.fileno()
    others: list[int] = []
    original = os.open
    begun = threading.Event()

    def close_and_open_another() -> None:
        begun.set()
        cell.close()
        others.append(original("/dev/null", os.O_RDONLY))

    closing = threading.Thread(target=close_and_open_another)

    def open_late(path: str, flags: int) -> int:
        closing.start()
        assert begun.wait(30)
        closing.join(0.3)
        return original(path, flags)

    monkeypatch.setattr("sandbox.library.cell.os.open", open_late)
    opened = cell.open()
    monkeypatch.undo()
    closing.join()
    try:
        assert others == [number]  # as it would have been before, too
        assert os.fstat(opened).st_size == tool_path.stat().st_size
        with pytest.raises(ValueError, match="closed"):
            cell.open()
    finally:
        for fd in (opened, *others):
            os.close(fd)


def test_without_a_cache_a_cell_runs_again_and_again(tool: Cell) -> None:
    with Sandbox(cache=None, jails=0) as sandbox:
        assert [sandbox.run(tool, ["say=x"]).stdout for _ in range(2)] == [b"x", b"x"]


# --- standard streams ---


def test_standard_input_is_empty_by_default(sandbox: Sandbox, tool: Cell) -> None:
    assert sandbox.run(tool, ["copy=0"]).stdout == b""


@pytest.mark.parametrize("size", [0, 1, 65536, 300_000])
def test_standard_input_are_the_bytes_given(sandbox: Sandbox, tool: Cell, size: int) -> None:
    given = os.urandom(size)
    assert sandbox.run(tool, ["copy=0"], stdin=given).stdout == given


def test_standard_input_can_be_a_path_a_descriptor_and_a_file(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"from a file")
    assert sandbox.run(tool, ["copy=0"], stdin=path).stdout == b"from a file"
    with open(path, "rb", buffering=0) as file:
        file.seek(5)
        assert sandbox.run(tool, ["copy=0"], stdin=file).stdout == b"a file"
        assert file.tell() == 11  # the position is shared
        file.seek(0)
        assert sandbox.run(tool, ["copy=0"], stdin=file.fileno()).stdout == b"from a file"


def test_what_a_cell_writes_is_bounded_by_its_limit(sandbox: Sandbox, tool: Cell) -> None:
    limits = Limits(output=100_000)
    result = sandbox.run(tool, ["fill=1000000"], limits=limits)
    assert result.outcome.limit == "output"
    assert result.stdout == b"x" * 100_000
    assert sandbox.run(tool, ["fill=100000"], limits=limits).ok


def test_a_hole_in_what_a_cell_writes_is_no_way_past_its_limit(
    sandbox: Sandbox, tool: Cell
) -> None:
    result = sandbox.run(tool, ["far=1000000000000"], limits=Limits(output=1000))
    assert not result.ok
    assert len(result.stdout) <= 1000


def test_what_a_cell_wrote_is_in_memory_once(sandbox: Sandbox, tool: Cell) -> None:
    size = 100_000_000
    tracemalloc.start()
    try:
        # The file is a hole up to its last byte, and takes none.
        result = sandbox.run(tool, [f"far={size - 1}"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(result.check().stdout) == size
    assert result.stdout.endswith(b"\0x")
    assert type(result.stdout) is bytes
    assert most < size * 1.1


def test_no_limit_of_output_is_refused_where_it_would_be_kept(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(ValueError, match="output is None"):
        sandbox.run(tool, limits=Limits(output=None))


@pytest.mark.parametrize(
    "limits",
    [
        {"wall": -1},
        {"wall": float("nan")},
        {"wall": float("inf")},
        {"cpu": 0.5},
        {"memory": "1G"},
        {"memory": -1},
        {"output": 1 << 60},
        {"pids": None},
        {"scratch": True},
    ],
    ids=lambda limits: next(f"{name}-{value}" for name, value in limits.items()),
)
def test_a_limit_that_cannot_be_is_refused(
    sandbox: Sandbox, tool: Cell, limits: dict[str, Any]
) -> None:
    (name,) = limits
    with pytest.raises(ValueError, match=f"limits.{name} cannot be"):
        sandbox.run(tool, limits=Limits(**limits))


# --- other ends ---


def test_a_trap_is_a_result(sandbox: Sandbox, tool: Cell) -> None:
    result = sandbox.run(tool, ["say=before", "trap"])
    assert result.outcome.kind == "trap"
    assert result.exit_code is None
    assert result.stdout == b"before"
    assert "unreachable" in result.describe()


def test_limits_are_results(sandbox: Sandbox, tool: Cell) -> None:
    late = sandbox.run(tool, ["say=x", "spin"], limits=Limits(wall=0.3))
    assert (late.outcome.kind, late.outcome.limit, late.stdout) == ("limit", "wall", b"x")
    assert late.describe() == "limit wall"
    large = sandbox.run(tool, ["hog"], limits=Limits(memory=8 << 20))
    assert large.outcome.limit == "memory"
    long = sandbox.run(tool, ["spin"], limits=Limits(fuel=1_000_000))
    assert long.outcome.limit == "fuel"


def test_check_raises_what_the_cell_said(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(CellFailed, match=r"^exit code 3: no\\x1b\[1mway$") as caught:
        sandbox.run(tool, ["complain=no\x1b[1mway", "exit=3"]).check()
    assert caught.value.result.exit_code == 3


def test_what_is_no_program_is_rejected(sandbox: Sandbox) -> None:
    with pytest.raises(CellRejected) as caught:
        sandbox.run(b"no program")
    assert str(caught.value) == "cell: it is not a WebAssembly module"


def test_an_import_that_nobody_offers_is_a_rejection_unless_it_may_trap(sandbox: Sandbox) -> None:
    code = wat2wasm(
        '(module (import "elsewhere" "call" (func)) (memory (export "memory") 1)'
        ' (func (export "_start")) (func (export "use") (call 0)))'
    )
    with pytest.raises(CellRejected, match="elsewhere"):
        sandbox.run(bytes(code))
    assert sandbox.run(bytes(code), unknown_imports_trap=True).ok
    used = sandbox.run(bytes(code), unknown_imports_trap=True, invoke="use")
    assert used.outcome.kind == "trap"


def test_a_function_of_a_reactor_is_called_by_name(sandbox: Sandbox) -> None:
    code = wat2wasm(
        '(module (memory (export "memory") 1) (func (export "add") (param i32 i32) (result i32)'
        " (i32.add (local.get 0) (local.get 1))))"
    )
    assert sandbox.run(bytes(code), ["2", "-5"], invoke="add").stdout == b"-3\n"
    with pytest.raises(CellRejected):
        sandbox.run(bytes(code), invoke="subtract")


def test_a_jail_that_cannot_be_as_required_is_an_error(tool: Cell, cache: Path) -> None:
    with (
        Sandbox(cache=cache, jails=0, isolation="chroot") as sandbox,
        pytest.raises(JailError) as caught,
    ):
        # That takes a namespace, which this isolation has not; and it takes root.
        sandbox.run(tool, limits=Limits(scratch=1 << 20))
    assert caught.value.step == "root"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.step, copy.what, copy.errno, str(copy)) == (
        caught.value.step,
        caught.value.what,
        caught.value.errno,
        str(caught.value),
    )


def test_cells_never_run_as_root() -> None:
    with pytest.raises(ValueError, match="root"):
        Sandbox(uid=0)


@pytest.mark.parametrize(
    "ids",
    [{"uid": 1 << 32}, {"gid": 1 << 33}, {"uid": (1 << 32) - 1}, {"uid": -1}, {"gid": 1 << 32}],
    ids=lambda ids: next(f"{name}-{value}" for name, value in ids.items()),
)
def test_an_id_that_the_kernel_would_cut_is_refused(ids: dict[str, int]) -> None:
    """What is left of it in 32 bits may be root's."""
    with pytest.raises(ValueError, match="cannot be"):
        Sandbox(**ids)  # type: ignore[arg-type]


@needs("root", CAN_BE_ROOT, "an ordinary user's group may be the one with id 0")
def test_cells_never_have_the_group_of_root() -> None:
    with pytest.raises(ValueError, match="root"):
        Sandbox(gid=0)


def test_an_id_that_is_no_number_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="uid is 'nobody'"):
        Sandbox(uid="nobody")  # type: ignore[arg-type]


def test_a_component_is_given_no_function_to_invoke(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="component"):
        sandbox.run(b"\0asm\x0d\0\x01\0", invoke="run")


# --- arguments and environment ---


@pytest.mark.parametrize("args", [["a\0b"], ["\ud800"]], ids=["nul", "surrogate"])
def test_an_argument_that_cannot_reach_a_cell_is_refused(
    sandbox: Sandbox, tool: Cell, args: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        sandbox.run(tool, args)


def test_arguments_and_variables_have_a_bound(sandbox: Sandbox, tool: Cell) -> None:
    large = "x" * (4 << 20)
    with pytest.raises(ValueError, match="standard input"):
        sandbox.run(tool, [large, "x"], env={"X": large})
    assert sandbox.run(tool).ok


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=["nul", "surrogate"])
def test_a_name_that_cannot_reach_a_cell_is_refused(tool: Cell, name: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        Cell.load(tool, name)


def test_a_path_that_is_no_text_is_a_name_all_the_same(
    sandbox: Sandbox, tool: Cell, tmp_path: Path
) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff")
    with open(path, "wb") as file:
        file.write(tool.read())
    name = sandbox.run(os.fsdecode(path), ["name"]).check().stdout
    assert name == os.fsencode(tmp_path) + b"/\\xff\n"


@pytest.mark.parametrize(
    "words", [{"isolation": "none"}, {"required": ["apparmor"]}], ids=["isolation", "required"]
)
def test_a_word_that_is_none_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is none of"):
        Sandbox(**words)


def test_a_network_that_is_none_is_refused(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(ValueError, match="none, loopback"):
        sandbox.run(tool, network="host")  # type: ignore[arg-type]
    assert sandbox.run(tool, network="loopback").ok


def test_one_text_for_all_arguments_is_a_mistake(sandbox: Sandbox, tool: Cell) -> None:
    with pytest.raises(TypeError, match="write"):
        sandbox.run(tool, "name")


def test_the_environment_is_what_was_given(
    sandbox: Sandbox, tool: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    result = sandbox.run(tool, ["env"], env={"LANG": "C", "EMPTY": ""})
    assert result.stdout.decode().splitlines() == ["WW_FDS=()", "LANG=C", "EMPTY="]


@pytest.mark.parametrize("key", ["WW_FDS", "WW_FD_X", "A=B", "", "A\0"])
def test_a_variable_that_cannot_be_is_refused(sandbox: Sandbox, tool: Cell, key: str) -> None:
    with pytest.raises(ValueError, match=r"kept for grants|no name of a variable|NUL"):
        sandbox.run(tool, env={key: "x"})


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([1], {}),
        ([b"a"], {}),
        ([], {"env": {"A": 1}}),
        ([], {"env": {1: "a"}}),
        ([], {"invoke": None}),
        ([], {"limits": None}),
        ([], {"limits": {"wall": 1}}),
        ([], {"stdin": None}),
    ],
    ids=["number", "bytes", "value", "key", "invoke", "limits", "limits-dict", "stdin"],
)
def test_what_is_of_another_kind_is_a_mistake(
    sandbox: Sandbox, tool: Cell, args: list[Any], options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=r"to be of type|neither bytes nor a path"):
        sandbox.run(tool, args, **options)


@pytest.mark.parametrize("number", [-1, 1 << 40], ids=["negative", "huge"])
def test_a_cell_that_is_no_open_descriptor_is_an_error_of_the_system(
    sandbox: Sandbox, number: int
) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sandbox.run(number)


def test_numbers_are_what_they_are_worth(sandbox: Sandbox, tool: Cell) -> None:
    class Bound(enum.IntEnum):
        PIDS = 16

    class Seconds(float):
        def __repr__(self) -> str:
            return "some time"

    limits = Limits(wall=Seconds(60.0), pids=Bound.PIDS)
    assert sandbox.run(tool, ["say=x"], limits=limits).stdout == b"x"
    values = (Bound.PIDS, Seconds(1.5), True, 3)
    assert encode(values) == b"[16, 1.5, true, 3]"


# --- usage ---


def test_what_a_cell_used_is_told(sandbox: Sandbox, tool: Cell) -> None:
    small = sandbox.run(tool).usage
    large = sandbox.run(tool, ["spin"], limits=Limits(fuel=200_000_000, memory=64 << 20)).usage
    assert small is not None
    assert large is not None
    assert small.wall > 0
    assert small.memory > 0
    assert large.cpu > small.cpu
    hog = sandbox.run(tool, ["hog"], limits=Limits(memory=64 << 20)).usage
    assert hog is not None
    assert hog.memory > small.memory + (8 << 20)


# --- the sandbox itself ---


def test_threads_share_a_sandbox(sandbox: Sandbox, tool: Cell) -> None:
    """Two cells run at a time: each waits for what the other says."""
    (a_reader, a_writer), (b_reader, b_writer) = os.pipe(), os.pipe()
    results = []

    def run(mine: int, theirs: int) -> None:
        offers = [grant("MINE", mine, move=True), grant("THEIRS", theirs, move=True)]
        limits = Limits(wall=30)
        results.append(sandbox.run(tool, ["tell=MINE", "wait=THEIRS"], offers, limits=limits))

    threads = [
        threading.Thread(target=run, args=(a_writer, b_reader)),
        threading.Thread(target=run, args=(b_writer, a_reader)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.describe() for result in results] == ["exit code 0"] * 2


def test_an_interrupt_kills_the_cell_and_the_sandbox_goes_on(
    cache: Path, tool: Cell, pipe: Pipe
) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.get_ident()

    def interrupt_it() -> None:
        pipe.wait_for_word()
        signal.pthread_kill(main, signal.SIGUSR1)

    helper = threading.Thread(target=interrupt_it)
    try:
        with Sandbox(cache=cache, jails=0) as sandbox:
            helper.start()
            with pytest.raises(Interrupted):
                sandbox.run(tool, ["tell=OUT", "spin"], [grant("OUT", pipe.writer, move=True)])
            assert pipe.ends()
            assert sandbox.run(tool, ["say=on"]).stdout == b"on"
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, before)


def test_closing_a_sandbox_kills_what_runs(cache: Path, tool: Cell, pipe: Pipe) -> None:
    sandbox = Sandbox(cache=cache, jails=0)
    errors: list[SandboxError] = []

    def run() -> None:
        try:
            sandbox.run(tool, ["tell=OUT", "spin"], [grant("OUT", pipe.writer, move=True)])
        except SandboxError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pipe.wait_for_word()
    sandbox.close()
    thread.join()
    assert [type(error) for error in errors] == [CellKilled]
    assert pipe.ends()
    with pytest.raises(SpawnerError, match="closed"):
        sandbox.run(tool)
    sandbox.close()


def test_closing_waits_for_the_spawner_whoever_runs_something(
    cache: Path, tool: Cell, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the thread that runs a cell takes its time."""
    sandbox = Sandbox(cache=cache, jails=0)
    (spawner,) = _children()[-1:]
    closed = threading.Event()
    errors: list[BaseException] = []
    original = Job.run

    def run_slowly(*args: Any) -> Result:
        try:
            return original(*args)
        finally:
            assert closed.wait(60)

    def run() -> None:
        try:
            sandbox.run(tool, ["tell=OUT", "spin"], [grant("OUT", pipe.writer, move=True)])
        except BaseException as error:
            errors.append(error)

    monkeypatch.setattr(Job, "run", run_slowly)
    thread = threading.Thread(target=run)
    thread.start()
    pipe.wait_for_word()
    sandbox.close()
    assert not os.path.exists(f"/proc/{spawner}")
    assert thread.is_alive()
    closed.set()
    thread.join()
    assert [type(error) for error in errors] == [CellKilled]


def _children() -> list[int]:
    """The children of this thread, in the order of their start."""
    own = f"/proc/self/task/{threading.get_native_id()}/children"
    return [int(pid) for pid in Path(own).read_text().split()]


def test_a_sandbox_that_is_forgotten_is_closed_with_a_warning(cache: Path, tool: Cell) -> None:
    gc.collect()  # of what was before
    opened = set(os.listdir("/proc/self/fd"))
    sandbox = Sandbox(cache=cache, jails=0)
    (spawner,) = _children()[-1:]
    assert sandbox.run(tool).ok
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del sandbox
        gc.collect()
    assert ["not closed" in str(w.message) for w in said if w.category is ResourceWarning] == [True]
    assert not os.path.exists(f"/proc/{spawner}")
    assert set(os.listdir("/proc/self/fd")) == opened
    sandbox = Sandbox(cache=cache, jails=0)
    sandbox.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del sandbox
        gc.collect()


def test_a_forked_child_leaves_its_parents_cells_alone(
    ww: Ww, tool_path: Path, cache: Path, leftovers: type[Leftovers]
) -> None:
    program = """
import os, sys
from sandbox import Sandbox, Spawner, SpawnerError
path, cache = sys.argv[1:]
spawner = Spawner.start(cache)
with Sandbox(cache=cache) as sandbox, Sandbox(spawner=spawner) as borrowed:
    connection = spawner.connect()
    assert sandbox.run(path).ok and borrowed.run(path).ok
    child = os.fork()
    if not child:
        for run in (lambda: sandbox.run(path), lambda: borrowed.run(path), spawner.connect):
            try:
                run()
            except SpawnerError as error:
                assert "forked from" in str(error), error
            else:
                raise AssertionError("it ran")
        with sandbox, borrowed:
            pass
        connection.close()
        spawner.close()
        with Sandbox(cache=cache) as own:
            assert own.run(path).ok
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    # The same spawners, on the same connections.
    assert sandbox.run(path).ok and borrowed.run(path).ok
    connection.close()
spawner.close()
print("done")
"""
    with leftovers(ww):
        command = [sys.executable, "-c", program, str(tool_path), str(cache)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_a_forked_child_does_not_keep_its_parents_spawner_alive(
    ww: Ww, tool_path: Path, cache: Path, pipe: Pipe, leftovers: type[Leftovers]
) -> None:
    program = """
import os, sys, threading
from sandbox import Sandbox, Spawner, grant
path, cache, fd = sys.argv[1], sys.argv[2], int(sys.argv[3])
pipe = os.stat(fd).st_ino
def has_it():
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.stat(int(number)).st_ino == pipe:
                return True
        except OSError:  # it was closed meanwhile
            continue
    return False
spawner = Spawner.start(cache, jails=0)
sandbox = Sandbox(spawner=spawner)
sandbox.run(path).check()
run = sandbox.prepare(path, ["tell=O", "spin"], [grant("O", fd, move=True)])
threading.Thread(target=run.execute, daemon=True).start()
os.read(0, 1)
while has_it():
    pass
child = os.fork()
if not child:
    os.read(0, 1)  # as long as the test likes
    os._exit(0)
print(spawner.pid, flush=True)
os.waitpid(child, 0)
"""
    with leftovers(ww):
        command = [sys.executable, "-c", program, str(tool_path), str(cache), str(pipe.writer)]
        running = subprocess.Popen(
            command,
            cwd=REPO,
            pass_fds=(pipe.writer,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        os.close(pipe.writer)
        with running:
            assert running.stdin is not None
            assert running.stdout is not None
            pipe.wait_for_word()
            running.stdin.write(b"x")
            running.stdin.flush()
            spawner = os.pidfd_open(int(running.stdout.readline()))
            try:
                running.kill()
                running.wait()
                ended = select.poll()
                ended.register(spawner, select.POLLIN)
                assert ended.poll(30_000)
                assert pipe.ends()
            finally:
                os.close(spawner)


_UNREADY = {
    "broken": "raise SystemExit(1)",
    "refusing": (
        "import sys; sys.path[:] = sys.argv[8:]; del sys.argv[8:]\n"
        "import os\n"
        "def denied(groups): raise PermissionError(1, 'Operation not permitted')\n"
        "os.setgroups = denied; os.geteuid = lambda: 0\n"
        "from sandbox.spawner import main; main()\n"
    ),
}


@pytest.mark.parametrize(
    ("boot", "kind"),
    [("broken", SpawnerError), ("refusing", JailError)],
    ids=["broken", "refusing"],
)
def test_a_spawner_that_cannot_get_ready_keeps_nobody_waiting(
    cache: Path, tool: Cell, monkeypatch: pytest.MonkeyPatch, boot: str, kind: type[SandboxError]
) -> None:
    monkeypatch.setattr("sandbox.client._BOOT", _UNREADY[boot])
    with Sandbox(cache=cache, jails=1) as sandbox:
        for _ in range(3):
            with pytest.raises(kind) as caught:
                sandbox.run(tool)
            assert boot == "broken" or "setgroups: Operation not permitted" in str(caught.value)


def test_a_cache_is_found_once(tool: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cache is empty"):
        Sandbox(cache="")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    with Sandbox(cache="cache", jails=0) as sandbox:
        monkeypatch.chdir(tmp_path / "two")
        os.kill(_children()[-1], signal.SIGKILL)
        with contextlib.suppress(SpawnerError):
            sandbox.run(tool)
        assert sandbox.run(tool).ok
    assert os.listdir(tmp_path / "one") == ["cache"]
    assert os.listdir(tmp_path / "two") == []


def test_a_spawner_that_was_killed_is_followed_by_another(cache: Path, tool: Cell) -> None:
    spawner = Spawner.start(str(cache))
    try:
        with Sandbox(spawner=spawner) as borrowed, Sandbox(cache=cache, jails=0) as own:
            assert borrowed.run(tool).ok
            assert own.run(tool).ok
            os.kill(spawner.pid, signal.SIGKILL)
            for _ in range(2):
                # Nobody starts another in the place of one that is the caller's.
                with pytest.raises(SpawnerError):
                    borrowed.run(tool)
            assert own.run(tool).ok
        assert os.path.exists(f"/proc/{spawner.pid}")  # it is still the caller's to close
    finally:
        spawner.close()


def test_the_end_of_the_program_is_the_cells_too(
    ww: Ww, tool_path: Path, cache: Path, pipe: Pipe, leftovers: type[Leftovers]
) -> None:
    program = (
        "import sys; from sandbox import Sandbox, grant; path, cache, fd = sys.argv[1:];"
        "Sandbox(cache=cache).run(path, ['tell=O', 'spin'], [grant('O', int(fd), move=True)])"
    )
    with leftovers(ww):
        command = [sys.executable, "-c", program, str(tool_path), str(cache), str(pipe.writer)]
        running = subprocess.Popen(command, cwd=REPO, pass_fds=(pipe.writer,))
        os.close(pipe.writer)
        pipe.wait_for_word()
        running.kill()
        running.wait()
        assert pipe.ends()


def test_nothing_is_left(ww: Ww, tool_path: Path, leftovers: type[Leftovers]) -> None:
    opened = set(os.listdir("/proc/self/fd"))
    with leftovers(ww), Sandbox(cache=ww.home / "cache") as sandbox:
        for _ in range(3):
            offers = [grant("a", b"text"), grant("b", tool_path.parent, guest="/b")]
            assert sandbox.run(tool_path, ["copy=a"], offers, stdin=b"x").ok
            with pytest.raises(CellRejected):
                sandbox.run(b"no program", grants=offers)
    assert set(os.listdir("/proc/self/fd")) == opened

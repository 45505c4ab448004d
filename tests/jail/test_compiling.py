"""The compile jail and the cache: what hostile bytes cost, what a compiler gone over can do, and
what is believed of what lies on the disk.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wasmtime

from tests.conftest import CAN_BE_ROOT, EXAMPLES, ORDINARY_ID, Account, BuildFunction, Leftovers, Ww
from tests.features import EMULATED, lacks, needs
from tests.jail.bombs import BOMBS
from tests.jail.footprint import FLAT, MIB, footprint
from tests.jail.inside import variant

HELLO = EXAMPLES / "hello" / "hello.wasm"
CAT_FDS = EXAMPLES / "cat-fds" / "cat-fds.wasm"

LeftoversFixture = Callable[..., Leftovers]

# A spawner that says on stderr when it compiles a cell.
TELLING = """
import os
from sandbox.lane import Lane

compile_cell = Lane._compile

def telling(self, *args):
    os.write(2, b"[compiles]")
    return compile_cell(self, *args)

Lane._compile = telling
"""


class Ran(NamedTuple):
    """How a run ended, and how often a cell was compiled for it."""

    code: int
    out: bytes
    err: bytes
    compiled: int


def run(ww: Ww, *args: str | Path, patch: str = "", **options: Any) -> Ran:
    done = ww.call([*variant(f"{TELLING}\n{patch}"), "run", "--debug", *args], **options)
    err = done.stderr.replace(b"[compiles]", b"")
    # The last line is what one sees without --debug.
    return Ran(done.returncode, done.stdout, err, done.stderr.count(b"[compiles]"))


def error(ran: Ran) -> str:
    (line,) = (text for text in ran.err.decode().splitlines() if text.startswith("ww: error: "))
    return line


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


# --- bombs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bombs(account_folders: Path) -> Path:
    """All of them as files, which are larger than what is worth keeping."""
    folder = account_folders / "bombs"
    folder.mkdir()
    for number, make in enumerate(BOMBS.values()):
        path = folder / f"{number}.wasm"
        path.write_bytes(make())
        path.chmod(0o644)
    folder.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", BOMBS)
def test_a_compile_bomb_ends_in_bounded_time_and_memory_and_its_parents_stay_small(
    ww: Ww, bombs: Path, leftovers: LeftoversFixture, name: str
) -> None:
    path = bombs / f"{[*BOMBS].index(name)}.wasm"
    bound = 96 * MIB
    flags = ("--timeout", "5", "--cpu-time", "5", "--memory", str(bound))
    with (
        leftovers(ww),
        ww.popen("run", *flags, path, stdout=subprocess.DEVNULL) as process,
        footprint(process.pid) as seen,
    ):
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode in (0, 66, 126), err
    assert process.returncode == 0 or err.startswith(f"ww: error: {path}: ")
    assert err.count("\n") <= 1
    # The cell's own bytes are in ww's memory, and may be once more in a socket's.
    assert all(growth < FLAT for growth in seen.growth().values()), seen.growth()


def test_no_process_of_a_compilation_has_more_memory_than_it_was_allowed(
    ww: Ww, bombs: Path
) -> None:
    """What wait4(2) says of ww is the most of any process that it waited for, and so on down.

    A small program starts it: what counts at first is the memory of whoever did, and a test run is
    large.
    """
    program = (
        "import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\n"
        "_, status, usage = os.wait4(pid, 0); print(status >> 8, usage.ru_maxrss)"
    )
    path = bombs / f"{[*BOMBS].index('blocks a million deep')}.wasm"
    peaks = []
    for megabytes in (32, 256):
        command = [*ww.command, "run", "--memory", f"{megabytes}M", str(path)]
        code, most = ww.call([sys.executable, "-c", program, *command]).stdout.split()
        assert code == b"66"
        peaks.append(int(most) * 1024)
    # What the host may use beside it is 256 MiB, and what is there before is 100 to 200.
    assert peaks[0] < (32 + 256 + 250) * MIB
    assert peaks[1] < (256 + 256 + 250) * MIB


def test_want_of_memory_while_compiling_is_the_memory_limit(
    ww_account: Ww, bombs: Path, leftovers: LeftoversFixture
) -> None:
    for name in ("blocks a million deep", "a million functions", "100 MB of data"):
        path = bombs / f"{[*BOMBS].index(name)}.wasm"
        with leftovers(ww_account):
            done = ww_account.run("run", "--memory", "1M", path)
        assert done.returncode == 66, name
        assert done.stderr.decode() == (
            f"ww: error: {path}: the cell hit its limit of memory while it was compiled"
            " (set with --memory)\n"
        )


# --- what holds a compiler that is its input's captive --------------------------------------------

# In the compiler's place: what becomes of each attempt, told as the reason of a rejection.
CAPTIVE = """
import ctypes, fcntl, json, mmap, os, resource, signal, socket, stat
from sandbox import compiling
from sandbox.outcome import Outcome, limit
from sandbox.wasi.cell import CellHost

def kind(fd):
    mode = os.fstat(fd).st_mode
    return "socket" if stat.S_ISSOCK(mode) else "device" if stat.S_ISCHR(mode) else "memory"

def attempt(act):
    try:
        return repr(act())
    except OSError as error:
        return error.errno
    except ValueError:
        return 1  # how Python tells EPERM of setrlimit(2)

def numbers():
    found = {}
    for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            continue
        found[fd] = [kind(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]
    return found

def compile_(self, inside):
    plan, own = inside.plan, inside.own
    inside.seal()
    told = {}
    BODY
    return Outcome("rejected", what=json.dumps(told))

CellHost.compile = compile_
"""


def captive(body: str) -> str:
    return CAPTIVE.replace("BODY", body.strip("\n").replace("\n", "\n    "))


def what_it_told(ran: Ran) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(error(ran).partition(".wasm: ")[2])
    return told


def test_a_compiler_holds_the_artifact_its_messages_the_line_and_dev_null(ww_account: Ww) -> None:
    body = 'told = {"numbers": numbers(), "own": [own.line, own.null], "grants": len(plan.grants)}'
    given = ww_account.file("given", b"the caller's")
    ran = run(ww_account, "--fd", "a=3", HELLO, patch=captive(body), fds={3: given})
    assert ran.code == 126
    told = what_it_told(ran)
    line, null = told["own"]
    assert told["numbers"] == {
        "1": ["memory", os.O_RDWR],
        "2": ["memory", os.O_RDWR],
        str(line): ["socket", os.O_RDWR],
        str(null): ["device", os.O_RDWR],
    }
    assert told["grants"] == 2


def test_a_compiler_has_neither_the_cells_arguments_nor_its_environment(ww_account: Ww) -> None:
    body = 'told = {"argv": plan.argv[1:], "env": plan.env, "environ": dict(os.environ)}'
    ran = run(ww_account, "--env", "KEY=secret", HELLO, "secret", patch=captive(body))
    told = what_it_told(ran)
    # One variable is the interpreter's own (PEP 538).
    told["environ"].pop("LC_CTYPE", None)
    assert told == {"argv": [], "env": [], "environ": {}}


# What fails with an errno, and is of no use to anybody.
REFUSED = {
    "open a file": 'os.open("/etc/passwd", os.O_RDONLY)',
    "open the root": 'os.open("/", os.O_RDONLY)',
    "make a file": 'os.open("/new", os.O_RDWR | os.O_CREAT)',
    "list a directory": 'os.listdir("/")',
    "look at a file": 'os.stat("/etc/passwd")',
    "make a directory": 'os.mkdir("/new")',
    "make a link": 'os.symlink("a", "/b")',
    "change the mode of the artifact": "os.fchmod(1, 0o777)",
    "seal the artifact": "fcntl.fcntl(1, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)",
    "map the artifact": "mmap.mmap(1, 4096, mmap.MAP_SHARED)",
    "get executable memory that can be written": "mmap.mmap(-1, 4096, prot=7)",
    "make memory without a name": 'os.memfd_create("more")',
    "make a pipe": "os.pipe()",
    "send a signal to all": "os.kill(-1, 9)",
    "send a signal to another": "os.kill(2, 9)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
    # The limit is above the larger of the two files: the messages, which have their page already.
    "write beyond the artifact's most": "os.pwrite(1, b'x', (1 << 30) + 4096)",
    "grow the artifact beyond its most": "os.ftruncate(1, (1 << 30) + 4097)",
    "write beyond the messages' most": "os.pwrite(2, b'x', 4096)",
    "grow the messages beyond their most": "os.ftruncate(2, 4097)",
    "send a descriptor": "socket.send_fds(socket.socket(fileno=os.dup(own.line)), [b'x'], [1])",
}
# What ends the process.
FATAL = {
    "make a socket": "socket.socket()",
    "make a pair of sockets": "socket.socketpair()",
    "run a program": 'os.execve("/bin/sh", ["sh"], {})',
    "fork": "os.fork()",
    "change its id": "os.setuid(0)",
    "change its root": 'os.chroot("/")',
    "mount": 'ctypes.CDLL(None).mount(b"none", b"/", b"tmpfs", 0, None)',
    "trace": "ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "go into other namespaces": "ctypes.CDLL(None).unshare(0x10000000)",
    "load a program into the kernel": "ctypes.CDLL(None).syscall(321, 0, 0, 0)",
}


def test_a_compiler_gets_nothing_by_asking_for_it(ww_account: Ww) -> None:
    attempts = "".join(
        f"told[{name!r}] = attempt(lambda: {act})\n" for name, act in REFUSED.items()
    )
    ran = run(ww_account, HELLO, patch=captive(f"os.ftruncate(1, 4096)\n{attempts}"))
    told = what_it_told(ran)
    assert set(told) == set(REFUSED)
    assert {name: result for name, result in told.items() if not isinstance(result, int)} == {}


@pytest.mark.parametrize("name", FATAL)
def test_a_compiler_that_does_what_only_an_attack_does_is_killed(
    ww_account: Ww, leftovers: LeftoversFixture, name: str
) -> None:
    if name == "load a program into the kernel" and os.uname().machine != "x86_64":
        lacks("x86-64", "the number of bpf(2) is that of x86-64")
    with leftovers(ww_account):
        ran = run(ww_account, HELLO, patch=captive(f"told['got'] = attempt(lambda: {FATAL[name]})"))
    assert ran.code == 126
    assert "the compiler gave up on it" in error(ran)
    assert ran.out == b""
    # And nothing of it was kept.
    assert not [*(ww_account.home / "cache").glob(f"{digest(HELLO)}*")]


CRASHES = {"an abort": "os.abort()", "a bad address": "ctypes.string_at(0)"}


@pytest.mark.parametrize("name", CRASHES)
def test_a_compiler_that_crashes_has_given_up(
    ww_account: Ww, leftovers: LeftoversFixture, name: str
) -> None:
    body = f'os.write(2, b"\\n\\x1b[31mthe last words\\nww: error: forged\\n")\n{CRASHES[name]}'
    with leftovers(ww_account):
        ran = run(ww_account, HELLO, patch=captive(body))
    assert ran.code == 126
    line = error(ran)
    assert line.startswith(f"ww: error: {HELLO}: the compiler gave up on it: ")
    assert "the last words" in line
    assert b"\x1b" not in ran.err


@pytest.mark.parametrize(
    ("flags", "body", "limit"),
    [
        (("--timeout", "1"), "while True: pass", "time"),
        (("--timeout", "1"), "os.read(own.line, 1)", "time"),
        (("--cpu-time", "1"), "while True: pass", "processor time"),
        ((), "os.write(2, b'memory allocation of 1 bytes failed\\n'); os.abort()", "memory"),
        ((), "os.write(2, b'panicked at x:\\nout of memory\\nnote: '); os.abort()", "memory"),
    ],
    ids=["a loop", "a wait", "a loop's processor time", "Rust's", "an arena's"],
)
def test_a_limit_that_a_compiler_reaches_is_told_as_the_cells(
    ww_account: Ww, flags: tuple[str, ...], body: str, limit: str, leftovers: LeftoversFixture
) -> None:
    with leftovers(ww_account):
        ran = run(ww_account, *flags, HELLO, patch=captive(body))
    assert ran.code == 66
    assert f"the cell hit its limit of {limit} while it was compiled (" in error(ran)


def test_a_compiler_without_memory_for_python_is_the_memory_limit_too(ww_account: Ww) -> None:
    patch = """
from sandbox.wasi.cell import Workshop

def compile_(self, wasm, *rest):
    return bytes(1 << 30)

Workshop.compile = compile_
"""
    ran = run(ww_account, "--memory", "1M", HELLO, patch=patch)
    assert ran.code == 66
    assert "limit of memory while it was compiled" in error(ran)


LIES = {
    "the cell has ended": 'return Outcome("exit", 7)',
    "the cell has trapped": 'return Outcome("trap", what="forged")',
    "what it made is stale": 'return Outcome("stale")',
}


@pytest.mark.parametrize("lie", LIES)
def test_a_compiler_cannot_claim_that_the_cell_has_run(ww_account: Ww, lie: str) -> None:
    ran = run(ww_account, HELLO, patch=captive(LIES[lie]))
    assert (ran.code, ran.out) == (1, b"")
    assert "reported what cannot be" in error(ran)


NO_ARTIFACTS = {
    "nothing": b"",
    "something else": b"\x7fELF" + bytes(5000),
    "half of one": None,
}


@pytest.mark.parametrize("kind", NO_ARTIFACTS)
def test_what_a_compiler_leaves_that_is_no_artifact_is_not_run(ww_account: Ww, kind: str) -> None:
    content = NO_ARTIFACTS[kind]
    if content is None:
        config = wasmtime.Config()
        content = bytes(wasmtime.Module(wasmtime.Engine(config), wat("")).serialize())[:1000]
    body = f'os.write(1, {content!r})\nreturn Outcome("exit", 0)'
    ran = run(ww_account, HELLO, patch=captive(body))
    assert (ran.code, ran.out) == (1, b"")
    assert "the host failed" in error(ran)
    # An honest one is made the next time, in the place of that.
    honest = run(ww_account, HELLO)
    assert (honest.code, honest.compiled) == (0, 1)
    assert honest.out
    assert run(ww_account, HELLO).compiled == 0


def test_an_artifact_cannot_be_changed_after_its_compiler_has_ended(ww: Ww) -> None:
    patch = """
import fcntl, os
from sandbox.wasi.cell import CellHost

keep = CellHost.keep

def kept(self, plan, artifact):
    seals = fcntl.fcntl(artifact, fcntl.F_GET_SEALS)
    os.write(2, b"[seals %d]" % seals)
    keep(self, plan, artifact)

CellHost.keep = kept
"""
    ran = run(ww, HELLO, patch=patch)
    assert ran.code == 0
    assert b"[seals 15]" in ran.err  # all of F_SEAL_SEAL, SHRINK, GROW and WRITE


# --- what is believed -----------------------------------------------------------------------------

_TRAILER = struct.Struct("<QI4s")


def whole(artifact: bytes) -> bytes:
    """A file of the cache: the artifact, its size, its checksum, the mark."""
    return artifact + _TRAILER.pack(len(artifact), zlib.crc32(artifact), b"ww1\n")


def digest(cell: Path) -> str:
    import hashlib

    return hashlib.sha256(cell.read_bytes()).hexdigest()


def cached(ww: Ww, cell: Path) -> Path:
    (path,) = (ww.home / "cache").glob(f"{digest(cell)}-*.cwasm")
    return path


def test_a_cell_is_compiled_once(ww_account: Ww, leftovers: LeftoversFixture) -> None:
    first = run(ww_account, HELLO)
    assert (first.code, first.compiled) == (0, 1)
    artifact = cached(ww_account, HELLO)
    state = artifact.stat()
    assert (state.st_uid, stat.S_IMODE(state.st_mode)) == (ww_account.account.uid, 0o444)
    assert stat.S_IMODE((ww_account.home / "cache").stat().st_mode) == 0o700
    with leftovers(ww_account):
        second = run(ww_account, HELLO)
    assert (second.code, second.out, second.compiled) == (0, first.out, 0)
    # By whatever name it is called: its bytes decide.
    copy = ww_account.file("copy.wasm", HELLO)
    assert run(ww_account, copy).compiled == 0
    other = ww_account.file("other.wasm", HELLO.read_bytes() + b"\0\2\1a")
    assert run(ww_account, other).compiled == 1


def test_cells_with_and_without_fuel_are_compiled_apart(ww_account: Ww) -> None:
    for fuel in ((), ("--fuel", "1000000000")):
        assert run(ww_account, *fuel, HELLO).compiled == 1
        assert run(ww_account, *fuel, HELLO).compiled == 0
    assert len([*(ww_account.home / "cache").glob(f"{digest(HELLO)}-*.cwasm")]) == 2


def of_another_engine() -> bytes:
    config = wasmtime.Config()
    config.consume_fuel = True
    return bytes(wasmtime.Module(wasmtime.Engine(config), HELLO.read_bytes()).serialize())


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        # Paths of sockets are short: bind(2).
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            server.bind("s")
            os.rename("s", path.name)
        finally:
            os.chdir(before)


def _become_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real").name)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    _write(path, bytes(data))


def _cut(path: Path, size: int) -> None:
    _write(path, path.read_bytes()[:size])


def _give_away(path: Path) -> None:
    os.chown(path, ORDINARY_ID - 1, -1)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: _write(path, b""),
    "shorter than its end": lambda path: _cut(path, 15),
    "cut": lambda path: _cut(path, path.stat().st_size // 2),
    "cut by a byte": lambda path: _cut(path, path.stat().st_size - 1),
    "longer": lambda path: _write(path, path.read_bytes() + b"x"),
    "its own end twice": lambda path: _write(path, path.read_bytes() + path.read_bytes()[-16:]),
    "a bit in its first byte": lambda path: _flip(path, 0),
    "a bit in its middle": lambda path: _flip(path, path.stat().st_size // 2),
    "a bit of its size": lambda path: _flip(path, -16),
    "a bit of its checksum": lambda path: _flip(path, -8),
    "a bit of its mark": lambda path: _flip(path, -1),
    "nothing, with a right end": lambda path: _write(path, whole(b"")),
    "no artifact, with a right end": lambda path: _write(path, whole(bytes(10000))),
    "another engine's": lambda path: _write(path, whole(of_another_engine())),
    "half an artifact, with a right end": lambda path: _write(
        path, whole(path.read_bytes()[: path.stat().st_size // 2])
    ),
    "the cell itself": lambda path: _write(path, whole(HELLO.read_bytes())),
    "for its group to write": lambda path: path.chmod(0o464),
    "for all to write": lambda path: path.chmod(0o446),
    "another's": _give_away,
    "a symbolic link": _become_a_link,
    "a FIFO": _become_a_fifo,
    "a socket": _become_a_socket,
    "a directory": _become_a_directory,
}


def assert_mended(ww: Ww, damage: str) -> None:
    plain = run(ww, HELLO)
    DAMAGES[damage](cached(ww, HELLO))
    again = run(ww, HELLO)
    assert (again.code, again.out, again.err) == (0, plain.out, b"")
    assert again.compiled == 1
    # And it is mended, unless it cannot be put away.
    assert run(ww, HELLO).compiled == (1 if damage == "a directory" else 0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_artifact_that_is_not_as_it_was_is_compiled_again_and_the_cell_runs(
    ww: Ww, damage: str
) -> None:
    if damage == "another's" and not CAN_BE_ROOT:
        lacks("root", "only root can give a file away")
    assert_mended(ww, damage)


@pytest.mark.parametrize("damage", ["cut", "another engine's", "for all to write", "another's"])
def test_an_ordinary_account_mends_its_artifacts_too(
    ww: Ww, ordinary_account: Account, damage: str
) -> None:
    if damage == "another's" and not CAN_BE_ROOT:
        lacks("root", "only root can give a file away")
    assert_mended(ww.as_user(ordinary_account), damage)


def test_a_damaged_module_of_the_hosts_own_is_made_again(ww: Ww) -> None:
    plain = run(ww, HELLO)
    for name in ("shim", "switch"):
        (path,) = (ww.home / "cache").glob(f"{name}-*.cwasm")
        before = path.read_bytes()
        for damage in ("cut", "no artifact, with a right end", "another engine's", "a FIFO"):
            DAMAGES[damage](path)
            again = run(ww, HELLO)
            assert (again.code, again.out, again.compiled) == (0, plain.out, 0), damage
            assert path.read_bytes() == before


def test_another_versions_artifact_is_neither_used_nor_touched(ww_account: Ww) -> None:
    patch = """
from sandbox.wasi import engine
fingerprint = engine.fingerprint
engine.fingerprint = lambda *, fuel: fingerprint(fuel=fuel) + "another"
"""
    assert run(ww_account, HELLO).compiled == 1
    before = cached(ww_account, HELLO)
    content = before.read_bytes()
    other = run(ww_account, HELLO, patch=patch)
    assert (other.code, other.compiled) == (0, 1)
    assert before.read_bytes() == content
    assert run(ww_account, HELLO, patch=patch).compiled == 0
    assert run(ww_account, HELLO).compiled == 0


def test_the_name_of_an_artifact_says_all_that_it_depends_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sandbox.wasi import engine

    plain = engine.fingerprint(fuel=False)
    assert engine.fingerprint(fuel=False) == plain
    seen = {plain, engine.fingerprint(fuel=True)}
    with monkeypatch.context() as patch:
        patch.setitem(engine._FEATURES, "wasm_memory64", True)
        seen.add(engine.fingerprint(fuel=False))
    with monkeypatch.context() as patch:
        patch.setattr("sandbox.wasi.engine._ffi.filename", sys.executable)  # another library
        seen.add(engine.fingerprint(fuel=False))
    assert len(seen) == 4
    assert "flags" in plain or "Features" in plain  # those of the processor


def test_a_poisoned_artifact_is_its_own_cells_only(ww_account: Ww) -> None:
    """A compiler that is its input's captive can make anything of that input, and of no other."""
    evil = wat(
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
        '(memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 66)))'
    )
    assert run(ww_account, CAT_FDS).compiled == 1
    before = cached(ww_account, CAT_FDS).read_bytes()
    patch = f"""
from sandbox.wasi.cell import Workshop
compile_ = Workshop.compile
Workshop.compile = lambda self, wasm, *rest: compile_(self, {evil!r}, *rest)
"""
    assert run(ww_account, HELLO, patch=patch).code == 66
    assert cached(ww_account, CAT_FDS).read_bytes() == before
    # Its digest's, for as long as it is kept.
    assert run(ww_account, HELLO).code == 66
    assert run(ww_account, CAT_FDS).code == 2  # its own, without grants
    cached(ww_account, HELLO).unlink()
    assert run(ww_account, HELLO).code == 0


def test_an_artifact_that_is_given_as_a_cell_is_never_loaded(ww_account: Ww) -> None:
    patch = """
import os, wasmtime
load = wasmtime.Module.deserialize_file.__func__

def told(cls, engine, path):
    os.write(2, b"[loads %s]" % path.encode())
    return load(cls, engine, path)

wasmtime.Module.deserialize_file = classmethod(told)
"""
    assert run(ww_account, HELLO).code == 0
    kept = cached(ww_account, HELLO)
    for content in (kept.read_bytes(), kept.read_bytes()[: -_TRAILER.size], of_another_engine()):
        path = ww_account.file("artifact.wasm", content)
        before = sorted(os.listdir(ww_account.home / "cache"))
        ran = run(ww_account, path, patch=patch)
        assert (ran.code, ran.out, ran.compiled) == (126, b"", 1)
        assert "it is not a WebAssembly module" in error(ran)
        # The host's own two, and nothing of the cell's.
        assert len(re.findall(rb"\[loads [^\]]*\]", ran.err)) == 2
        assert sorted(os.listdir(ww_account.home / "cache")) == before


# --- the cache's directory ------------------------------------------------------------------------


def assert_runs_without_cache(ww: Ww, **options: Any) -> None:
    for _ in range(2):
        ran = run(ww, HELLO, **options)
        assert (ran.code, ran.compiled, ran.err) == (0, 1, b"")
        assert ran.out


def test_a_home_that_cannot_be_made_is_no_error(ww_account: Ww) -> None:
    assert_runs_without_cache(ww_account, env={"WW_HOME": "/proc/nowhere"})
    assert_runs_without_cache(ww_account, env={"WW_HOME": "/dev/null"})
    assert_runs_without_cache(ww_account, env={"WW_HOME": "", "HOME": "", "XDG_CACHE_HOME": ""})


def test_a_directory_that_is_missing_is_made_for_its_owner_only(ww_account: Ww) -> None:
    home = ww_account.root / "home" / "deep" / "er"
    assert run(ww_account, HELLO, env={"WW_HOME": str(home)}).code == 0
    assert stat.S_IMODE((home / "cache").stat().st_mode) == 0o700
    assert run(ww_account, HELLO, env={"WW_HOME": str(home)}).compiled == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_directory_that_others_can_write_is_not_used(ww_account: Ww, mode: int) -> None:
    assert run(ww_account, HELLO).compiled == 1
    cache = ww_account.home / "cache"
    before = sorted(os.listdir(cache))
    cache.chmod(mode)
    assert_runs_without_cache(ww_account)
    assert sorted(os.listdir(cache)) == before
    cache.chmod(0o700)
    assert run(ww_account, HELLO).compiled == 0


def test_a_directory_of_another_account_is_not_used(ww: Ww) -> None:
    if not CAN_BE_ROOT:
        lacks("root", "only root can give a directory away")
    assert run(ww, HELLO).compiled == 1
    cache = ww.home / "cache"
    os.chown(cache, ORDINARY_ID, ORDINARY_ID)
    before = sorted(os.listdir(cache))
    assert_runs_without_cache(ww)
    assert sorted(os.listdir(cache)) == before


def test_a_directory_that_cannot_be_written_is_used_for_what_is_in_it(
    ww: Ww, ordinary_account: Account
) -> None:
    user = ww.as_user(ordinary_account)  # root can write every directory
    assert run(user, HELLO).compiled == 1
    (user.home / "cache").chmod(0o500)
    assert run(user, HELLO).compiled == 0
    for _ in range(2):
        assert run(user, CAT_FDS)[::3] == (2, 1)  # its own code, without grants
    (user.home / "cache").chmod(0o700)


def in_mounts(ww: Ww, script: str) -> subprocess.CompletedProcess[bytes]:
    """A script in mounts of its own, as root."""
    if not CAN_BE_ROOT:
        lacks("root", "only root can mount")
    command = shlex.join([*variant(TELLING), "run", "--debug", str(HELLO)])
    return ww.call(
        ["unshare", "--mount", "bash", "-ec", script.replace("WW", command)],
        env={"CACHE": str(ww.home / "cache")},
    )


def test_a_full_disk_is_no_error(ww: Ww) -> None:
    (ww.home / "cache").mkdir(mode=0o700)
    for size in ("8k", "64k"):
        script = f"""
          mount -t tmpfs -o size={size},mode=0700 none "$CACHE"
          cat /dev/zero >"$CACHE/full" 2>/dev/null || true
          WW; WW; ls "$CACHE" """
        done = in_mounts(ww, script)
        assert (done.returncode, done.stderr) == (0, b"[compiles][compiles]")
        assert done.stdout.splitlines()[-1] == b"full"  # and no half of anything
        # Just too little room.
        script = f"""
          mount -t tmpfs -o size={size},mode=0700 none "$CACHE"
          WW; WW"""
        done = in_mounts(ww, script)
        assert done.returncode == 0


def test_a_file_system_from_which_nothing_can_be_run_will_do(ww: Ww) -> None:
    (ww.home / "cache").mkdir(mode=0o700)
    script = 'mount -t tmpfs -o noexec,mode=0700 none "$CACHE"; WW; WW; ls "$CACHE"'
    done = in_mounts(ww, script)
    assert (done.returncode, done.stderr) == (0, b"[compiles]")
    assert done.stdout.count(b".cwasm") == 3


def test_a_file_system_without_room_for_another_name_will_do(ww: Ww) -> None:
    (ww.home / "cache").mkdir(mode=0o700)
    script = 'mount -t tmpfs -o nr_inodes=1,mode=0700 none "$CACHE"; WW; WW; ls -A "$CACHE"'
    done = in_mounts(ww, script)
    assert (done.returncode, done.stderr) == (0, b"[compiles][compiles]")


def test_many_that_begin_at_once_leave_whole_artifacts_and_nothing_else(ww_account: Ww) -> None:
    started = [ww_account.popen("run", HELLO, stdout=subprocess.DEVNULL) for _ in range(6)]
    for process in started:
        with process:
            assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    assert len(os.listdir(ww_account.home / "cache")) == 3
    assert run(ww_account, HELLO).compiled == 0


def test_a_ww_that_is_killed_while_it_stores_leaves_nothing(
    ww_account: Ww, leftovers: LeftoversFixture
) -> None:
    patch = """
import os, signal
from sandbox.wasi import artifacts

copy = artifacts._copy

def killed(source, target):
    copy(source, target)
    os.kill(os.getpid(), signal.SIGKILL)

artifacts._copy = killed
"""
    with leftovers(ww_account):
        ran = run(ww_account, HELLO, patch=patch)
    assert ran.code == 1
    with suppress(FileNotFoundError):
        assert os.listdir(ww_account.home / "cache") == []


# --- programs that nobody here wrote --------------------------------------------------------------

REAL = {
    "quickjs": ("-e", "console.log(6 * 7)"),
    "python": ("-c", "print(6 * 7)"),
    "resvg": ("--help",),
}


# Of 26 MB; emulated, that takes longer than a test waits for anything.
LARGE = needs("processor", not EMULATED, "CPython takes minutes to compile")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LARGE if name == "python" else ()) for name in REAL]
)
def test_real_cells_are_compiled_under_the_default_limits_and_only_once(
    ww: Ww, foreign_cell: BuildFunction, name: str
) -> None:
    cell = foreign_cell(name)
    first = run(ww, cell, *REAL[name], timeout=300)  # emulated, resvg takes a minute
    assert first.compiled == 1
    assert b"limit" not in first.err
    second = run(ww, cell, *REAL[name])
    assert second.compiled == 0
    assert (first.code, first.out) == (second.code, second.out)
    if name in ("quickjs", "python"):
        assert (first.code, first.out) == (0, b"42\n"), first.err


def test_an_account_without_control_groups_compiles_them_as_well(
    ordinary_account: Account, ww: Ww, foreign_cell: BuildFunction
) -> None:
    other = ww.as_user(ordinary_account)
    path = other.file("quickjs.wasm", foreign_cell("quickjs"))
    for compiled in (1, 0):
        ran = run(other, path, *REAL["quickjs"])
        assert (ran.code, ran.out, ran.compiled) == (0, b"42\n", compiled)

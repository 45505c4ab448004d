"""The row of memory: what one more idle cell costs."""

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

from sandbox import Spawner, SpawnerError
from scripts.benchmarks import processes
from scripts.benchmarks.contest import Comparison, Measure, Missing, Row, Target
from scripts.benchmarks.ours import Cell
from scripts.benchmarks.peers import Command
from scripts.benchmarks.setting import Setting, contestant
from scripts.benchmarks.startup import LIBRARY, PEER

_READY = b"ready\n"
_PSS = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)


@contextmanager
def idle(setting: Setting) -> Iterator[Row]:
    """Keep cells that wait, and ask the kernel what each further one takes."""
    more = setting.choose(1, 4, 8)
    code = setting.cells.built("idle")

    def peer() -> Measure:
        command = setting.peers.jailed("bwrap", code)
        return lambda: _of_peer(command, more)

    with closing(setting.ours.open(str(code))) as cell:
        yield Row(
            "memory",
            "one more cell that waits: proportional set size of all that it takes",
            "B",
            {LIBRARY: lambda: _of_library(setting, cell, more), PEER: contestant(peer)},
            [Comparison(LIBRARY, PEER, Target(0.5))],
            setting.choose(1, 3, 5),
        )


def _of_library(setting: Setting, cell: Cell, more: int) -> float:
    with ExitStack() as stack:
        spawner = stack.enter_context(setting.ours.spawner())
        stack.enter_context(_waiting(spawner, cell))
        before = proportional_set_size([spawner.pid])
        for _ in range(more):
            stack.enter_context(_waiting(spawner, cell))
        return (proportional_set_size([spawner.pid]) - before) / more


@contextmanager
def _waiting(spawner: Spawner, cell: Cell) -> Iterator[None]:
    """Keep a cell that waits."""
    with ExitStack() as stack:
        connection = stack.enter_context(closing(spawner.connect()))
        (stdin, hold), (heard, stdout) = os.pipe(), os.pipe()
        stack.callback(os.close, heard)

        def run() -> None:
            try:
                with suppress(SpawnerError):  # then the cell does not get ready, which is told
                    cell.run(connection, fds={0: stdin, 1: stdout})
            finally:
                os.close(stdin)
                os.close(stdout)

        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, hold)  # ends the cell
        _await_ready(heard)
        yield


def _of_peer(command: Command, more: int) -> float:
    with ExitStack() as stack:
        waiting = [stack.enter_context(_started(command()))]
        before = proportional_set_size(waiting)
        waiting += [stack.enter_context(_started(command())) for _ in range(more)]
        return (proportional_set_size(waiting) - before) / more


@contextmanager
def _started(command: Sequence[str]) -> Iterator[int]:
    (stdin, hold), (heard, stdout) = os.pipe(), os.pipe()
    try:
        pid = processes.start(command, {0: stdin, 1: stdout, 2: 2})
    finally:
        os.close(stdin)
        os.close(stdout)
    try:
        _await_ready(heard)
        yield pid
    finally:
        os.close(hold)
        os.close(heard)
        os.waitpid(pid, 0)


def _await_ready(pipe: int) -> None:
    """Wait until a cell says that it is there.

    Raises:
        RuntimeError: If it ends before that.
    """
    said = b""
    while len(said) < len(_READY):
        data = os.read(pipe, len(_READY))
        if not data:
            raise RuntimeError("the cell did not get ready")
        said += data


def proportional_set_size(roots: Iterable[int]) -> int:
    """Return the bytes of processes and all that is below them, as proc_pid_smaps_rollup(5) says.

    Raises:
        Missing: If the kernel does not tell.
    """
    total = 0
    for pid in _below(set(roots)):
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                found = _PSS.search(file.read())
        except PermissionError:
            raise Missing("only root may see the memory of a jailed process") from None
        if found is None:
            raise Missing("the kernel does not tell the proportional set size")
        total += int(found[1]) << 10
    return total


def _below(roots: set[int]) -> set[int]:
    """Return processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The name is in brackets, and may hold brackets and spaces itself.
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, ())
    return found

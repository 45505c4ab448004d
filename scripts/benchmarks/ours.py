"""Our side of a measurement: the program as its user starts it, and the library."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from runner.cells import open_cell
from sandbox import Connection, Grant, Limits, Outcome, Plan, Spawner, SpawnerError
from scripts.benchmarks import processes

# As ww itself does it: nobody, where root runs it.
_NOBODY = 65534


class Ours:
    """ww, with a store and a cache of its own."""

    def __init__(self, home: Path) -> None:
        """Use a folder as ``$WW_HOME``; it need not exist."""
        self.home = home
        self.cache = home / "cache"
        script = Path(sys.executable).parent / "ww"
        self._program = [str(script)] if script.exists() else [sys.executable, "-m", "runner"]
        self.environment: Mapping[str, str] = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "WW_HOME": str(home),
            "LANG": "C.UTF-8",
            "WW_IPFS": "off",  # what this machine's Kubo does is no part of it
            "WW_SOCKET": "off",  # nor what a server of the caller's would
        }

    def command(self, *args: str) -> list[str]:
        """Return how to start ww."""
        return [*self._program, *args]

    def export(self, path: Path, *flags: str) -> str:
        """Put a file into the store and return its address.

        Raises:
            RuntimeError: If that fails.
        """
        done = processes.run(self.command("export", *flags, str(path)), self.environment)
        return done.output.decode().strip()

    def run(
        self,
        address: str,
        *args: str,
        flags: Sequence[str] = (),
        fds: Mapping[int, int] | None = None,
        hear: bool = True,
    ) -> processes.Ran:
        """Run a cell with ``ww run``.

        Raises:
            RuntimeError: If it does not end well.
        """
        command = self.command("run", *flags, address, *args)
        return processes.run(command, self.environment, fds=fds, hear=hear)

    def open(self, address: str) -> "Cell":
        """Return a cell for the library."""
        return Cell(open_cell(address, self.environment), address)

    @contextmanager
    def spawner(self, *, jails: int = 0) -> Iterator[Spawner]:
        """Keep a spawner, as a program does that runs many cells.

        Args:
            jails: How many jails it keeps ready.
        """
        with closing(Spawner.start(str(self.cache), jails=jails)) as spawner:
            yield spawner

    @contextmanager
    def server(self) -> Iterator["Ours"]:
        """Keep a server, and yield ww as it is with that."""
        path = str(self.home / "spawner.sock")
        command = self.command("serve", "--socket", path)
        heard, said = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        try:
            pid = processes.start(command, {0: null, 1: null, 2: said}, self.environment)
        finally:
            os.close(said)
            os.close(null)
        try:
            # It says where it serves when it begins to listen.
            if not os.read(heard, 1 << 12):
                raise RuntimeError("the server did not start")
            served = Ours(self.home)
            served.environment = {**self.environment, "WW_SOCKET": path}
            yield served
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            os.close(heard)


class Cell:
    """A cell that a program runs again and again: its bytes are verified and at hand."""

    def __init__(self, code: int, name: str) -> None:
        """Take over a sealed descriptor of its bytes."""
        self._code = code
        self._name = name
        with open(code, "rb", buffering=0, closefd=False) as file:
            self._digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)

    def close(self) -> None:
        """Give up its bytes."""
        os.close(self._code)

    def run(
        self,
        spawner: Connection,
        *,
        fds: Mapping[int, int],
        args: Sequence[str] = (),
        on_start: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Run it.

        Args:
            spawner: What makes its process.
            fds: What is granted, by the numbers in the cell: for reading 0, for writing all else.
            args: Its arguments.
            on_start: Called when the cell has its descriptors.

        Raises:
            SpawnerError: If the spawner ends first.
        """
        uid, gid = os.geteuid(), os.getegid()
        plan = Plan(
            grants=tuple(
                Grant(target, f"fd{target}" if target > 2 else None, "w" if target else "r", "file")
                for target in sorted(fds)
            ),
            argv=(self._name, *args),
            env=(),
            uid=uid or _NOBODY,
            gid=gid if uid else _NOBODY,
            digest=self._digest,
            limits=Limits(wall=processes.PATIENCE),
        )
        return spawner.run(plan, self._code, [fds[target] for target in sorted(fds)], on_start)

    def once(self, spawner: Connection, expected: bytes, *, more: int = 0) -> float:
        """Run it, read all that it writes, and return the seconds that this took.

        Args:
            spawner: What makes its process.
            expected: What it must have written, among the rest.
            more: How many descriptors of /dev/null to grant beside stdin, stdout and stderr.

        Raises:
            RuntimeError: If it did not end well, or wrote something else.
        """
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            begun = time.perf_counter()
            reader, writer = os.pipe()
            fds = {0: null, 1: writer, 2: null} | {10 + at: null for at in range(more)}
            try:
                outcome = self.run(spawner, fds=fds)
            except SpawnerError as error:
                raise RuntimeError(str(error)) from error
            finally:
                os.close(writer)
            with open(reader, "rb", buffering=0) as output:
                said = output.readall()
            seconds = time.perf_counter() - begun
        finally:
            os.close(null)
        if (outcome.kind, outcome.code) != ("exit", 0) or expected not in said:
            raise RuntimeError(f"the cell ended otherwise: {outcome}, {said[:200]!r}")
        return seconds

"""The library with a `ww serve` that runs already."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import (
    Cell,
    CellExecutor,
    CellKilled,
    Connection,
    Sandbox,
    Spawner,
    SpawnerError,
    connect,
    grant,
)
from tests.conftest import Ww
from tests.library.conftest import Pipe


class Server:
    """A `ww serve`, at a socket in the test's own folder."""

    def __init__(self, ww: Ww) -> None:
        self._ww = ww
        self.path = ww.tmp / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        """Start it, and wait until it can be reached."""
        command = [*self._ww.command, "serve", "--socket", str(self.path), "--jails", "1", *flags]
        self._process = self._ww.start(command)
        deadline = time.monotonic() + 30
        while True:
            try:
                connect(str(self.path)).close()
            except OSError:
                assert self._process.poll() is None, self._process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.communicate()
            self._process = None


@pytest.fixture
def server(ww: Ww) -> Iterator[Server]:
    """A server that runs."""
    made = Server(ww)
    made.start()
    yield made
    made.end()


def test_cells_run_on_a_server_and_no_process_is_started(server: Server, tool: Cell) -> None:
    def children() -> str:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    before = children()
    with Sandbox(server=server.path) as sandbox:
        for _ in range(3):
            assert sandbox.run(tool, ["copy=a"], [grant("a", b"text")]).stdout == b"text"
        assert children() == before
    with CellExecutor(3, server=str(server.path)) as executor:
        results = [executor.submit(tool, [f"exit={n}"]) for n in range(6)]
        assert [future.result().exit_code for future in results] == list(range(6))
        assert children() == before
    with Sandbox(server=server.path) as sandbox:
        assert sandbox.run(tool).ok  # that the others were closed does not matter to it


def test_a_cell_on_a_server_can_be_killed(server: Server, tool: Cell, pipe: Pipe) -> None:
    with CellExecutor(1, server=server.path) as executor:
        offers = [grant("OUT", pipe.writer, move=True)]
        future = executor.submit(tool, ["tell=OUT", "spin"], offers)
        pipe.wait_for_word()
        assert future.kill()
        assert pipe.ends()
        assert executor.submit(tool, ["say=on"]).result().stdout == b"on"


def test_a_server_that_comes_again_is_used_again(server: Server, tool: Cell, pipe: Pipe) -> None:
    with CellExecutor(1, server=server.path) as executor:
        offers = [grant("OUT", pipe.writer, move=True)]
        future = executor.submit(tool, ["tell=OUT", "spin"], offers)
        waiting = executor.submit(tool)
        pipe.wait_for_word()
        server.end(signal.SIGKILL)
        assert isinstance(future.exception(), SpawnerError)
        assert isinstance(waiting.exception(), SpawnerError)
        assert pipe.ends()
        server.start()
        assert executor.submit(tool).result().ok
        server.end()
        server.start()
        assert executor.submit(tool).result().ok


def test_more_workers_than_a_server_takes_wait_for_each_other(
    ww: Ww, tool: Cell, pipe: Pipe
) -> None:
    server = Server(ww)
    server.start("--per-client", "1")
    try:
        with CellExecutor(3, server=server.path) as executor:
            offers = [grant("OUT", pipe.writer, move=True)]
            first = executor.submit(tool, ["tell=OUT", "spin"], offers)
            pipe.wait_for_word()
            waiting = [executor.submit(tool, [f"exit={n}"]) for n in range(5)]
            # Both others have a worker by now, or will; one that is killed waits for nobody.
            killed = executor.submit(tool, ["exit=9"])
            assert killed.kill()
            assert not first.done()
            assert first.kill()
            assert [future.result(timeout=60).exit_code for future in waiting] == list(range(5))
    finally:
        server.end()


def test_one_that_waits_for_a_connection_can_be_killed(ww: Ww, tool: Cell, pipe: Pipe) -> None:
    server = Server(ww)
    server.start("--per-client", "1")
    try:
        with CellExecutor(2, server=server.path) as executor:
            offers = [grant("OUT", pipe.writer, move=True)]
            first = executor.submit(tool, ["tell=OUT", "spin"], offers)
            pipe.wait_for_word()
            second = executor.submit(tool)
            while not second.running():
                time.sleep(0.01)
            assert second.kill()
            assert isinstance(second.exception(timeout=60), CellKilled)
            assert not first.done()
            first.kill()
    finally:
        server.end()


def test_a_server_that_is_full_of_others_refuses_and_nothing_ran(ww: Ww, tool: Cell) -> None:
    server = Server(ww)
    server.start("--per-client", "1")
    try:
        sandbox = Sandbox(server=server.path)
        with sandbox:
            other = _connected(server)
            with pytest.raises(SpawnerError, match=r"busy: .*; the cell did not run"):
                sandbox.run(tool)
            other.close()
    finally:
        server.end()


def _connected(server: Server) -> Connection:
    """Connect, as soon as the server has noticed that a connection before has ended."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return connect(str(server.path))
        except SpawnerError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_where_no_server_is_its_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/socket"):
        Sandbox(server="/nowhere/socket")
    long = f"/{'x' * 200}"  # more than fits into sun_path of unix(7)
    with pytest.raises(OSError, match=f"{long}: .*too long"):
        Sandbox(server=long)


def test_where_no_server_is_nothing_begins(ww: Ww) -> None:
    for path in ("/nowhere/socket", ww.tmp):
        with pytest.raises(OSError, match=r"No such file|refused"):
            Sandbox(server=path)
    spawner = Spawner.start(None)
    try:
        with pytest.raises(ValueError, match="both given"):
            Sandbox(server="/nowhere/socket", spawner=spawner)
    finally:
        spawner.close()

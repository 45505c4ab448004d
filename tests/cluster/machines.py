"""A Dask cluster on loopback, as processes that the tests start and end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from distributed import Client

from runner.cluster import ClusterExecutor
from runner.content.cid import Cid
from runner.content.importer import KUBO_CIDV1, UNIXFS_V0_2015
from tests.conftest import CELL_FLAGS, EXAMPLES, REPO, compile_c
from tests.content.liar import CAR_TYPE, RAW_TYPE, Content, Liar, Request, Wire

PATIENCE = 60
"""Seconds for anything of a cluster; only one that hangs reaches them."""


def wait_until(true: object, what: str) -> None:
    """Ask again and again whether something has come true."""
    assert callable(true)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"{what}: not after {PATIENCE} s"
        time.sleep(0.02)


# --- where the cells are -------------------------------------------------------------------------


class Shelf:
    """A gateway with a few cells. One of them it sends damaged, and at one it hangs.

    Attributes:
        hello: The address of a cell.
        cat: Another.
        busy: One whose first argument says what to do; see cells/busy.c.
        text: What is no cell.
        fresh: The cell of ``hello``, for one test only.
        damaged: One whose blocks it has wrong.
        stuck: One for which it never gets to the end of an answer.
        missing: One that it does not have.
    """

    def __init__(self) -> None:
        busy = compile_c(Path(__file__).parent / "cells" / "busy.c", CELL_FLAGS, ".wasm")
        hello, cat = (EXAMPLES / name / f"{name}.wasm" for name in ("hello", "cat-fds"))
        self._good = [Content(path) for path in (hello, cat, busy, EXAMPLES / "hello" / "hello.c")]
        self.hello, self.cat, self.busy, self.text = (content.address for content in self._good)
        # The same bytes have other addresses by other profiles.
        self._good.append(Content(hello, UNIXFS_V0_2015))
        self.fresh = self._good[-1].address
        self._damaged, self._stuck = Content(hello, KUBO_CIDV1), Content(busy, KUBO_CIDV1)
        self.damaged, self.stuck = self._damaged.address, self._stuck.address
        self.missing = Content(EXAMPLES / "escape" / "escape.wasm").address
        self._guard = threading.Lock()
        self._hanging = 0
        self.liar = Liar(self._good[0], self._serve)

    @property
    def url(self) -> str:
        return self.liar.url

    @property
    def hanging(self) -> int:
        """How many connections wait for an answer that never ends."""
        with self._guard:
            return self._hanging

    def asked(self, address: str) -> int:
        """How often the root of a cell was asked for."""
        return sum(request.path == address for request in self.liar.requests)

    def _serve(self, liar: Liar, request: Request, wire: Wire) -> None:
        cid: Cid = request.cid
        if cid == self._stuck.root:
            wire.head(200, f"Content-Type: {CAR_TYPE if request.format == 'car' else RAW_TYPE}")
            with self._guard:
                self._hanging += 1
            try:
                return wire.hang()
            finally:
                with self._guard:
                    self._hanging -= 1
        if cid in self._damaged.blocks and request.format == "raw":
            block = self._damaged.blocks[cid]
            return wire.answer(block[:-1] + bytes([block[-1] ^ 1]), RAW_TYPE)
        for content in self._good:
            if request.format == "car" and cid == content.root:
                return wire.answer(content.car(), CAR_TYPE)
            if request.format == "raw" and cid in content.blocks:
                return wire.answer(content.blocks[cid], RAW_TYPE)
        return wire.answer(b"not found", "text/plain", status=404)


# --- the cluster ---------------------------------------------------------------------------------


class Machines:
    """A scheduler and the workers that a test adds. Use it in a ``with`` block.

    Attributes:
        address: The scheduler's.
    """

    def __init__(self, folder: Path, gateway: str, **settings: str) -> None:
        self._folder = folder
        self._gateway = gateway
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._settings = settings
        self._file = folder / "scheduler.json"
        options = ("--port", "0", "--scheduler-file", str(self._file))
        self._start("scheduler", "scheduler", *options)
        try:
            wait_until(self._is_announced, "a scheduler")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _is_announced(self) -> bool:
        assert self._processes["scheduler"].poll() is None, self.log("scheduler")
        with contextlib.suppress(OSError, ValueError):
            self.address = str(json.loads(self._file.read_text())["address"])
            return True
        return False

    def add(
        self,
        name: str,
        *options: str,
        preload: bool = True,
        nanny: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a worker with two threads.

        Args:
            name: What it is called.
            *options: More of its command line.
            preload: Whether it has its sandbox from the start.
            nanny: Whether a process beside it starts it again.
            environment: More variables for it.
        """
        arguments = [
            *("--scheduler-file", str(self._file), "--name", name, "--nthreads", "2"),
            *("--local-directory", str(self._folder / name)),
            "--nanny" if nanny else "--no-nanny",
            *(("--preload", "runner.cluster.preload") if preload else ()),
            *options,
        ]
        self._start(name, "worker", *arguments, environment=environment)

    def _start(
        self, name: str, role: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        home = self._folder / name
        home.mkdir()
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPO),
            "HOME": str(home),
            "TMPDIR": str(home),
            "WW_HOME": str(home / "store"),
            "WW_IPFS": "off",
            "WW_GATEWAYS": self._gateway,
            "DASK_CONFIG": str(home),
            **self._settings,
            **(environment or {}),
        }
        command = [sys.executable, "-m", "distributed.cli.dask_" + role]
        command += ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        with (home / "log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*command, *options],
                cwd=home,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text(errors="replace")

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def store(self, name: str) -> Path:
        return self._folder / name / "store"

    def kill(self, name: str) -> None:
        """SIGKILL: no time for a last word."""
        self._processes[name].kill()
        self._processes.pop(name).wait()

    def wait(self, name: str) -> int:
        """Wait for one that ends by itself, and return its exit code."""
        return self._processes.pop(name).wait(PATIENCE)

    def ask_to_end(self, name: str) -> None:
        """SIGTERM, as systemd does it, and wait."""
        self._processes[name].terminate()
        self.wait(name)

    def close(self) -> None:
        # The scheduler last: a worker that is asked to end by both at once may wait for itself.
        scheduler = self._processes.pop("scheduler", None)
        _end(list(self._processes.values()))
        _end([] if scheduler is None else [scheduler])


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def connected(address: str) -> Iterator[ClusterExecutor]:
    """An executor. Its cells are killed at the end, so that no test that failed waits for them."""
    executor = ClusterExecutor(address)
    try:
        yield executor
    finally:
        executor.shutdown(kill=True)


def address_of(client: Client, name: str) -> str:
    """The address of a worker, or nothing as long as the scheduler does not know it."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next((str(at) for at, worker in workers.items() if worker["name"] == name), "")


def jobs_of(client: Client, name: str) -> int:
    """How many jobs a worker has, as the scheduler sees it."""
    return len(client.processing().get(address_of(client, name), ()))

"""Rows of starting: from a program that keeps a spawner, and from the command line."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial

from sandbox import Cell, Sandbox
from scripts.benchmarks import processes
from scripts.benchmarks.contest import Comparison, Measure, Missing, Row, Target
from scripts.benchmarks.peers import JAILS, Command
from scripts.benchmarks.setting import Setting, contestant

GREETING = b"Hello from a cell."
LIBRARY = "library, spawner kept"
_SANDBOX = "Sandbox.run"
PEER = "bwrap + wasmtime"
_SMALL = "bwrap + wasmtime-min"
_RUN = "ww run"
_JAILS = 4
# Seconds after which a jail that was taken has another in its place.
_REFILL = 0.05


def timed(command: Command, expected: bytes) -> Measure:
    """Return what runs a command that must write something, and takes the time of it."""

    def measure() -> float:
        ran = processes.run(command())
        if expected not in ran.output:
            raise RuntimeError(f"it wrote {ran.output[:200]!r}")
        return ran.seconds

    return measure


def warm(setting: Setting) -> AbstractContextManager[Row]:
    """Run one cell after the other from a program."""
    return _warm(setting, "warm", "a hello cell, start to end, from a program", 0, Target(0.5))


def warm_ready(setting: Setting) -> AbstractContextManager[Row]:
    """The same with jails that were made in advance."""
    what = "a hello cell, start to end, from a program, in a jail made in advance"
    return _warm(setting, "warm-ready", what, _JAILS, Target(0.25))


@contextmanager
def _warm(setting: Setting, name: str, what: str, jails: int, target: Target) -> Iterator[Row]:
    hello, peers = setting.cells.hello, setting.peers
    with (
        closing(setting.ours.open(str(hello))) as cell,
        setting.ours.spawner(jails=jails) as spawner,
        Sandbox(cache=setting.ours.cache, jails=jails) as sandbox,
        Cell.load(hello) as loaded,
    ):

        def library() -> float:
            seconds = cell.once(spawner, GREETING)
            if jails:
                time.sleep(_REFILL)  # or the peer's turn would pay for the next jail
            return seconds

        def run() -> float:
            begun = time.perf_counter()
            result = sandbox.run(loaded)
            seconds = time.perf_counter() - begun
            if not result.ok or GREETING not in result.stdout:
                raise RuntimeError(f"the cell ended otherwise: {result}")
            if jails:
                time.sleep(_REFILL)
            return seconds

        yield Row(
            name,
            what,
            "s",
            {
                _SANDBOX: run,
                LIBRARY: library,
                PEER: contestant(lambda: timed(peers.jailed("bwrap", hello), GREETING)),
                _SMALL: contestant(
                    lambda: timed(peers.jailed("bwrap", hello, small=True), GREETING)
                ),
            },
            [
                Comparison(_SANDBOX, PEER, target),
                Comparison(LIBRARY, PEER, target),
                Comparison(LIBRARY, _SMALL),
            ],
            setting.choose(1, 60, 300),
        )


@contextmanager
def throughput(setting: Setting) -> Iterator[Row]:
    """Run many cells from a program, two at a time."""
    count = setting.choose(4, 200, 200)
    hello, peers = setting.cells.hello, setting.peers
    with (
        closing(setting.ours.open(str(hello))) as cell,
        setting.ours.spawner() as spawner,
        closing(spawner.connect()) as other,
    ):

        def library() -> float:
            work = [partial(cell.once, spawner, GREETING) for spawner in (spawner, other)]
            return count / side_by_side(work, count // 2)

        def peer() -> Measure:
            once = timed(peers.jailed("bwrap", hello), GREETING)
            return lambda: count / side_by_side([once, once], count // 2)

        yield Row(
            "throughput",
            f"{count} hello cells, two at a time, from a program",
            "1/s",
            {LIBRARY: library, PEER: contestant(peer)},
            [Comparison(LIBRARY, PEER, Target(1.7, 2.5, least=True))],
            setting.choose(1, 5, 15),
        )


def side_by_side(work: Sequence[Callable[[], float]], times: int) -> float:
    """Do each work so many times, all in threads of their own; return the seconds of the whole.

    Raises:
        RuntimeError: If one of them fails.
    """
    errors: list[Exception] = []
    gate = threading.Barrier(len(work) + 1)

    def repeat(once: Callable[[], float]) -> None:
        gate.wait()
        try:
            for _ in range(times):
                once()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(once,)) for once in work]
    for thread in threads:
        thread.start()
    gate.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if errors:
        raise RuntimeError(str(errors[0])) from errors[0]
    return seconds


@contextmanager
def run(setting: Setting) -> Iterator[Row]:
    """Start ww anew for a cell whose compiled form is cached."""
    hello = setting.cells.hello
    address = setting.ours.export(hello)

    def ours() -> float:
        ran = setting.ours.run(address)
        if GREETING not in ran.output:
            raise RuntimeError(f"it wrote {ran.output[:200]!r}")
        return ran.seconds

    contestants: dict[str, Measure | Missing] = {_RUN: ours}
    for jail in JAILS:
        contestants[f"{jail} + wasmtime"] = contestant(
            lambda jail=jail: timed(setting.peers.jailed(jail, hello), GREETING)  # type: ignore[misc]
        )
    yield Row(
        "run",
        "a hello cell by its address, cached, from the command line",
        "s",
        contestants,
        [
            Comparison(_RUN, "runc + wasmtime", Target(1.5, 1.0)),
            *(Comparison(_RUN, f"{jail} + wasmtime") for jail in JAILS if jail != "runc"),
        ],
        setting.choose(1, 20, 60),
    )


@contextmanager
def run_served(setting: Setting) -> Iterator[Row]:
    """Start ww anew while a server runs."""
    hello = setting.cells.hello
    address = setting.ours.export(hello)
    with setting.ours.server() as served:

        def ours() -> float:
            ran = served.run(address)
            if GREETING not in ran.output:
                raise RuntimeError(f"it wrote {ran.output[:200]!r}")
            return ran.seconds

        yield Row(
            "run-served",
            "a hello cell by its address, from the command line, with ww serve running",
            "s",
            {
                _RUN: ours,
                PEER: contestant(lambda: timed(setting.peers.jailed("bwrap", hello), GREETING)),
            },
            [Comparison(_RUN, PEER, Target(1.6, 1.0))],
            setting.choose(1, 40, 200),
        )


@contextmanager
def first_byte(setting: Setting) -> Iterator[Row]:
    """Wait for the first byte of a large cell whose compiled form is cached."""
    text, args = b"here", ("-c", 'print("here", flush=True)')

    def first(ran: processes.Ran) -> float:
        if text not in ran.output:
            raise RuntimeError(f"it wrote {ran.output[:200]!r}")
        return ran.first

    def ours() -> Measure:
        address = setting.ours.export(setting.cells.python())
        return lambda: first(setting.ours.run(address, *args))

    def peer() -> Measure:
        command = setting.peers.jailed("bwrap", setting.cells.python(), *args)
        return lambda: first(processes.run(command()))

    yield Row(
        "first-byte",
        "CPython (26 MB), cached: until its first byte of output",
        "s",
        {_RUN: contestant(ours), PEER: contestant(peer)},
        [Comparison(_RUN, PEER, Target(1.2))],
        setting.choose(1, 15, 40),
    )

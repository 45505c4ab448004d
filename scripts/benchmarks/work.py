"""Rows of what a running cell does: data through its descriptors, single calls, computing.

The cells measure themselves, between their first and last call, so that starting is no part of it.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.benchmarks import processes
from scripts.benchmarks.contest import Comparison, Measure, Row, Target
from scripts.benchmarks.processes import Ran, reported
from scripts.benchmarks.setting import Make, Setting, contestant

_GRANTED = "ww run, granted"
_STDIO = "wasmtime, stdio"
_PREOPENED = "wasmtime, preopened"

# What an ordinary user may ask for: /proc/sys/fs/pipe-max-size. Both sides get the same.
_PIPE_SIZE = 1 << 20
_MIB = 1 << 20
_NO_LIMIT = ("--output", "none")


def copy(kind: str, size: int) -> Make:
    """Return the row of a cell that copies one descriptor to another.

    Args:
        kind: ``pipe`` or ``file``: what both are.
        size: Bytes of each call.
    """

    @contextmanager
    def make(setting: Setting) -> Iterator[Row]:
        mib = setting.choose(4, 256, 1024)
        amount = mib * _MIB
        with ExitStack() as stack:
            if kind == "pipe":
                contestants = _through_pipes(setting, size, amount)
                peer = _STDIO
            else:
                contestants = _between_files(setting, size, amount, stack)
                peer = _PREOPENED
            yield Row(
                f"copy-{kind}-{size >> 10}k",
                f"a cell copies {mib} MiB from {kind} to {kind}, {size >> 10} KiB a call",
                "s",
                {name: contestant(how) for name, how in contestants.items()},
                [Comparison(_GRANTED, peer, Target(1.0 if size >= 1 << 16 else 2.0))],
                setting.choose(1, 7, 11),
            )

    return make


def _copied(ran: Ran, amount: int) -> float:
    """Return the seconds that a cell says it took to copy all.

    Raises:
        RuntimeError: If it was not all.
    """
    total, seconds = reported(ran.errors)
    if total != amount:
        raise RuntimeError(f"the cell copied {total} bytes of {amount}")
    return seconds


def _granted(setting: Setting, size: int) -> Callable[[int, int], Ran]:
    """Return what runs the copying cell with two descriptors granted."""
    cell = setting.cells.built("copy")
    flags = ("--fd", "in=3,mode=r,target=10", "--fd", "out=4,mode=w,target=11", *_NO_LIMIT)
    return lambda source, sink: setting.ours.run(
        str(cell), "10", "11", str(size), flags=flags, fds={3: source, 4: sink}, hear=False
    )


def _through_pipes(setting: Setting, size: int, amount: int) -> dict[str, Callable[[], Measure]]:
    def ours() -> Measure:
        run = _granted(setting, size)
        return lambda: _piped(run, amount)

    def peer() -> Measure:
        command = setting.peers.plain(setting.cells.built("copy"), "0", "1", str(size))
        return lambda: _piped(
            lambda source, sink: processes.run(command(), fds={0: source, 1: sink}, hear=False),
            amount,
        )

    return {_GRANTED: ours, _STDIO: peer}


def _piped(run: Callable[[int, int], Ran], amount: int) -> float:
    """Fill one pipe, empty another, and return how long the cell between them took.

    Raises:
        RuntimeError: If not all of it came through.
    """
    drained: list[int] = []
    with ExitStack() as stack:
        (source, tap), (drain, sink) = os.pipe(), os.pipe()
        stack.callback(os.close, drain)
        for end in (tap, sink):
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        threads = [
            threading.Thread(target=_fill, args=(tap, amount)),
            threading.Thread(target=_drain, args=(drain, drained)),
        ]
        for thread in threads:
            thread.start()
        try:
            ran = run(source, sink)
        finally:
            os.close(source)
            os.close(sink)
            for thread in threads:
                thread.join()
    if drained != [amount]:
        raise RuntimeError(f"{drained} bytes of {amount} came out")
    return _copied(ran, amount)


def _fill(pipe: int, amount: int) -> None:
    data = memoryview(bytes(_PIPE_SIZE))
    try:
        while amount:
            amount -= os.write(pipe, data[: min(amount, len(data))])
    except BrokenPipeError:
        pass  # whoever reads has failed, and says why
    finally:
        os.close(pipe)


def _drain(pipe: int, drained: list[int]) -> None:
    # Moved, not copied: this side must cost as little as it can.
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    total = 0
    while count := os.splice(pipe, null, _PIPE_SIZE):
        total += count
    os.close(null)
    drained.append(total)


def _between_files(
    setting: Setting, size: int, amount: int, stack: ExitStack
) -> dict[str, Callable[[], Measure]]:
    folder = setting.memory / f"copy-{size}"
    folder.mkdir()
    source, sink = folder / "in", folder / "out"
    with source.open("wb") as file:
        for _ in range(amount // _MIB):
            file.write(os.urandom(_MIB))
    for path in (source, sink):
        stack.callback(path.unlink, missing_ok=True)

    def ours() -> Measure:
        run = _granted(setting, size)

        def measure() -> float:
            sink.write_bytes(b"")
            with source.open("rb") as reader, sink.open("r+b") as writer:
                ran = run(reader.fileno(), writer.fileno())
            return _checked(_copied(ran, amount), sink, amount)

        return measure

    def peer() -> Measure:
        cell = setting.cells.built("copy")
        command = setting.peers.plain(cell, "/d/in", "/d/out", str(size), folder=folder)

        def measure() -> float:
            sink.write_bytes(b"")
            ran = processes.run(command(), hear=False)
            return _checked(_copied(ran, amount), sink, amount)

        return measure

    return {_GRANTED: ours, _PREOPENED: peer}


def _checked(seconds: float, path: Path, amount: int) -> float:
    if path.stat().st_size != amount:
        raise RuntimeError(f"the copy has {path.stat().st_size} bytes of {amount}")
    return seconds


@contextmanager
def call(setting: Setting) -> Iterator[Row]:
    """Take the time of a call that does nothing."""
    count = setting.choose(1000, 200_000, 1_000_000)
    folder = setting.memory / "call"
    folder.mkdir()
    path = folder / "out"
    path.write_bytes(b"")
    cell = setting.cells.built("call")
    null = "ww run, /dev/null as stdout", "wasmtime, /dev/null as stdout"

    def each(ran: Ran) -> float:
        done, seconds = reported(ran.errors)
        return seconds / done

    def ours() -> float:
        with path.open("r+b") as file:
            flags = ("--fd", "out=3,mode=w,target=11")
            fds = {3: file.fileno()}
            ran = setting.ours.run(str(cell), "11", str(count), flags=flags, fds=fds, hear=False)
        return each(ran)

    def ours_null() -> float:
        return each(setting.ours.run(str(cell), "1", str(count), hear=False))

    def peer() -> Measure:
        command = setting.peers.plain(cell, "/d/out", str(count), folder=folder)
        return lambda: each(processes.run(command(), hear=False))

    def peer_null() -> Measure:
        command = setting.peers.plain(cell, "1", str(count))
        return lambda: each(processes.run(command(), hear=False))

    yield Row(
        "call",
        "one fd_write of no bytes",
        "s",
        {
            _GRANTED: ours,
            _PREOPENED: contestant(peer),
            null[0]: ours_null,
            null[1]: contestant(peer_null),
        },
        [Comparison(_GRANTED, _PREOPENED), Comparison(*null)],
        setting.choose(1, 7, 15),
    )


def compute(*, whole: bool) -> Make:
    """Return the row of a cell that only computes.

    Args:
        whole: Take the time of the whole command, and not that within the cell.
    """

    @contextmanager
    def make(setting: Setting) -> Iterator[Row]:
        mib = setting.choose(1, 256, 256)
        cell = setting.cells.built("sha256")

        def seconds(ran: Ran) -> float:
            done, within = reported(ran.errors)
            if done != mib:
                raise RuntimeError(f"the cell hashed {done} MiB of {mib}")
            return ran.seconds if whole else within

        def peer() -> Measure:
            command = setting.peers.plain(cell, str(mib))
            return lambda: seconds(processes.run(command()))

        yield Row(
            "compute-run" if whole else "compute",
            f"SHA-256 of {mib} MiB in C" + (", the whole command" if whole else ", in the cell"),
            "s",
            {
                "ww run": lambda: seconds(setting.ours.run(str(cell), str(mib))),
                "wasmtime": contestant(peer),
            },
            [Comparison("ww run", "wasmtime", Target(1.02))],
            setting.choose(1, 7, 15),
        )

    return make

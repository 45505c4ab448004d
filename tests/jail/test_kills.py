"""Five hundred cells, each killed somewhere in its life, and nothing of them is left."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Leftovers, Ww
from tests.jail.inside import ZYGOTE, name_of

HELLO = EXAMPLES / "hello" / "hello.wasm"
# For each account; as an ordinary user there is one, and the other half is root's.
CELLS = 250
AT_ONCE = 3
# From before there is a spawner to well after the cell runs, or is compiled: seconds, and how many
# times as long as one takes that ends by itself, on a machine that is busy.
LATEST = 0.35
LATEST_OF_ONE = 5

FLAGS: tuple[tuple[str, ...], ...] = (
    (),
    ("--scratch", "64K"),
    ("--net", "loopback"),
    ("--fd", "a=3,pathlink=true"),
)
# Reads 16 bytes at 16 from its standard input, where nobody ever writes.
WAITING = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 16))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
VICTIMS = ("ww", "spawner", "cell", "zygote", "all")


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def victims(ww: int, victim: str) -> list[int]:
    """Who is to be killed: whoever there is by now, down to the one that is meant."""
    spawners = children(ww)
    below = [pid for spawner in spawners for pid in children(spawner)]
    zygotes = [pid for pid in below if name_of(pid) == ZYGOTE]
    cells = [pid for pid in below if pid not in zygotes]
    if victim == "all":
        return [ww, *spawners, *below]
    if victim == "zygote" and zygotes:
        return zygotes
    chain = [[ww], spawners, cells]
    return next(pids for pids in reversed(chain[: VICTIMS.index(victim) + 1]) if pids)


def end_one(
    ww: Ww, seed: int, latest: float, spin: Path, wait: Path, slow: Path, silent: int
) -> str:
    """Start one, kill, wait; return the name of the process that it hit."""
    choose = random.Random(seed)
    victim = choose.choice(VICTIMS)
    # One that runs for ever, one that waits for ever, and one that takes long to compile.
    cells: list[list[str | Path]] = [[spin], [wait], [slow, "-e", "for (;;);"]]
    cell = choose.choice(cells)
    flags = choose.choice(FLAGS)
    moment = choose.uniform(0, latest)
    hit = ""
    with ww.start(
        [*ww.command, "run", *flags, *cell],
        stdin=silent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        fds={3: Path("/dev/null")},
    ) as process:
        time.sleep(moment)
        for pid in victims(process.pid, victim):
            hit = name_of(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            # The kill came before ww had anybody to kill; it is the next one's turn.
            process.send_signal(signal.SIGKILL)
        assert process.wait(60) != 0, f"seed {seed}"
    return hit


def test_whatever_is_killed_and_whenever_nothing_is_left(
    ww_account: Ww,
    foreign_cell: BuildFunction,
    leftovers: Callable[..., Leftovers],
    tmp_path: Path,
) -> None:
    import wasmtime

    endless = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
    spin = ww_account.file("spin.wasm", bytes(wasmtime.wat2wasm(endless)))
    wait = ww_account.file("wait.wasm", bytes(wasmtime.wat2wasm(WAITING)))
    slow = ww_account.file("slow.wasm", foreign_cell("quickjs"))
    first = random.randrange(1 << 32)
    cache = ww_account.home / "cache"
    assert ww_account.run("run", HELLO).returncode == 0  # the cache is there, and holds what it may
    begun = time.monotonic()
    assert ww_account.run("run", HELLO).returncode == 0
    latest = max(LATEST, LATEST_OF_ONE * (time.monotonic() - begun))
    silent, held = os.pipe()

    def end(seed: int) -> str:
        return end_one(ww_account, seed, latest, spin, wait, slow, silent)

    with leftovers(ww_account):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            hit = list(pool.map(end, range(first, first + CELLS)))
        # What was left by both that could clear up is for the next one to find.
        assert ww_account.run("run", HELLO).returncode == 0
    for fd in (silent, held):
        os.close(fd)
    assert {"cell", "compiler"} < set(hit), f"first seed {first}: {set(hit)}"
    assert {path.suffix for path in cache.iterdir()} == {".cwasm"}


@pytest.mark.parametrize("victim", ["spawner", "cell", "zygote", "all"])
def test_a_running_cell_that_is_killed_leaves_nothing(
    ww_account: Ww, leftovers: Callable[..., Leftovers], victim: str
) -> None:
    import wasmtime

    endless = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
    spin = ww_account.file("spin.wasm", bytes(wasmtime.wat2wasm(endless)))
    with leftovers(ww_account):
        with ww_account.start([*ww_account.command, "run", spin]) as process:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if "cell" in map(name_of, victims(process.pid, "all")):
                    break
                time.sleep(0.01)
            for pid in victims(process.pid, victim):
                # Of all, who was killed first may have taken the next along.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=30)
        assert process.returncode != 0
        assert ww_account.run("run", HELLO).returncode == 0

"""Nothing of a cell outlives it, however it ends."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Leftovers, Ww
from tests.jail.inside import running, variant, when_in_jail

LeftoversFixture = Callable[..., Leftovers]


@pytest.fixture
def probe(native_probe: BuildFunction) -> Path:
    return native_probe("probe")


@pytest.fixture(scope="session")
def spin(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import wasmtime

    return bytes(
        wasmtime.wat2wasm(
            '(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))'
        )
    )


Spinning = Callable[[], AbstractContextManager[tuple[subprocess.Popen[bytes], int, int]]]


@pytest.fixture
def spinning(ww_account: Ww, spin: bytes, leftovers: LeftoversFixture) -> Spinning:
    """A ww whose cell is in its jail and never returns; nothing may be left of it afterwards."""

    @contextmanager
    def start() -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
        cell = ww_account.file("spin.wasm", spin)
        with (
            leftovers(ww_account),
            running(ww_account, [*ww_account.command, "run", str(cell)]) as (ww, spawner, pid),
        ):
            when_in_jail(pid)
            yield ww, spawner, pid

    return start


def test_nothing_is_left_after_a_normal_end(
    ww_account: Ww, probe: Path, leftovers: LeftoversFixture
) -> None:
    with leftovers(ww_account):
        ww_account.call([*variant("native"), "run", probe, "exit", "0"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_ww_ends_the_cell_and_is_the_exit_code(
    spinning: Spinning, number: signal.Signals
) -> None:
    with spinning() as (ww, _, _):
        ww.send_signal(number)
        assert ww.wait(30) == 128 + number


def test_a_terminals_interrupt_reaches_ww_alone_and_ends_all(spinning: Spinning) -> None:
    with spinning() as (ww, _, _):
        # As a terminal does: to the whole foreground process group.
        os.killpg(ww.pid, signal.SIGINT)
        assert ww.wait(30) == 128 + signal.SIGINT


def test_an_ignored_signal_stays_ignored(ww_account: Ww, spin: bytes) -> None:
    cell = ww_account.file("spin.wasm", spin)
    command = [
        "bash",
        "-c",
        'trap "" HUP; exec "$@"',
        "bash",
        *ww_account.command,
        "run",
        str(cell),
    ]
    with running(ww_account, command) as (ww, _, pid):
        when_in_jail(pid)
        ww.send_signal(signal.SIGHUP)
        ww.send_signal(signal.SIGTERM)
        assert ww.wait(30) == 128 + signal.SIGTERM


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_cell_dies_with_a_killed_ww(spinning: Spinning) -> None:
    with spinning() as (ww, _, _):
        _end(ww.pid)
        ww.wait(30)


def test_the_cell_dies_with_a_killed_spawner_and_ww_says_so(spinning: Spinning) -> None:
    with spinning() as (ww, spawner, _):
        _end(spawner)
        _, err = ww.communicate(timeout=30)
        assert ww.returncode == 1
        assert err.startswith(b"ww: error: spawner: ")
        assert err.count(b"\n") == 1


def test_a_killed_cell_is_reported_as_its_signal(spinning: Spinning) -> None:
    with spinning() as (ww, _, cell):
        _end(cell)
        _, err = ww.communicate(timeout=30)
        assert ww.returncode == 128 + signal.SIGKILL
        assert err.endswith(b": the cell was ended by SIGKILL\n")


def test_a_stopped_spawner_does_not_keep_ww_from_ending(spinning: Spinning) -> None:
    with spinning() as (ww, spawner, _):
        os.kill(spawner, signal.SIGSTOP)
        ww.send_signal(signal.SIGTERM)
        assert ww.wait(30) == 128 + signal.SIGTERM


def test_a_cell_that_ends_takes_what_it_forked_along(
    ww_account: Ww, probe: Path, leftovers: LeftoversFixture
) -> None:
    with leftovers(ww_account):
        done = ww_account.call([*variant("native"), "run", "--pids", "40", probe, "forks", "20"])
    assert b'"fork after 20"' in done.stdout

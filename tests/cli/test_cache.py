"""`ww cache`: what is in it, clearing it, and filling it beforehand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from tests.cli.test_signals import READING
from tests.conftest import CAN_BE_ROOT, EXAMPLES, Account, Leftovers, Ww
from tests.features import needs
from tests.jail.inside import variant

HELLO = EXAMPLES / "hello" / "hello.wasm"
CAT_FDS = EXAMPLES / "cat-fds" / "cat-fds.wasm"

# A spawner that compiles nothing: what runs with it, was there.
NO_COMPILER = """
from sandbox.outcome import Outcome
from sandbox.wasi.cell import CellHost

CellHost.compile = lambda self, inside: Outcome("rejected", what="compiled after all")
"""
ENDLESS = """
import os, time
from sandbox.wasi.cell import CellHost

def compile(self, inside):
    inside.seal()
    os.write(2, b"begun")
    while True:
        time.sleep(1)

CellHost.compile = compile
"""


def digest(cell: Path) -> str:
    return hashlib.sha256(cell.read_bytes()).hexdigest()


def listed(ww: Ww, **options: Any) -> dict[str, Any]:
    done = ww.run("cache", "ls", "--json", **options)
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def digests(ww: Ww) -> list[str]:
    return [entry["digest"] for entry in listed(ww)["entries"]]


def said(done: subprocess.CompletedProcess[bytes]) -> tuple[int, str, str]:
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# --- ls and clear ---------------------------------------------------------------------------------


def test_a_cache_that_was_never_used_is_empty(ww_account: Ww) -> None:
    assert said(ww_account.run("cache", "ls")) == (0, "total 0 B of 2.0 GiB\n", "")
    assert listed(ww_account) == {
        "directory": str(ww_account.home / "cache"),
        "bound": 2 << 30,
        "total": 0,
        "entries": [],
    }
    assert said(ww_account.run("cache", "clear")) == (0, "removed 0, 0 B\n", "")
    assert not (ww_account.home / "cache").exists()


def test_what_was_run_is_listed_the_last_used_first(ww_account: Ww) -> None:
    for cell in (CAT_FDS, HELLO):
        ww_account.run("run", cell)
    folder = ww_account.home / "cache"
    (old,) = folder.glob(f"{digest(HELLO)}-*")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    told = listed(ww_account)
    assert [entry["digest"] for entry in told["entries"]] == [digest(CAT_FDS), digest(HELLO)]
    assert told["entries"][1] == {
        "digest": digest(HELLO),
        "size": old.stat().st_size,
        "last_used": "2001-09-09T01:46:40Z",
        "file": old.name,
    }
    assert told["total"] == sum(entry["size"] for entry in told["entries"])
    done = ww_account.run("cache", "ls", env={"WW_CACHE_SIZE": "none", "TZ": "UTC"})
    first, second, last = done.stdout.decode().splitlines()
    size = r"\d+\.\d [KM]iB"
    assert re.fullmatch(rf"{digest(CAT_FDS)} +{size}  \d{{4}}-\d\d-\d\d \d\d:\d\d", first)
    assert re.fullmatch(rf"{digest(HELLO)} +{size}  2001-09-09 01:46", second)
    assert re.fullmatch(rf"total {size}, without a bound", last)
    # Running it again is a use.
    assert ww_account.run("run", HELLO).returncode == 0
    assert digests(ww_account) == [digest(HELLO), digest(CAT_FDS)]


def test_times_that_no_calendar_has_are_no_error(ww: Ww) -> None:
    ww.run("run", HELLO)
    (path,) = (ww.home / "cache").glob(f"{digest(HELLO)}-*")
    for seconds in (-(2**31), 2**33):
        os.utime(path, (seconds, seconds))
        assert ww.run("cache", "ls").returncode == 0
        assert len(listed(ww)["entries"]) == 1


def test_what_is_cleared_is_gone_and_made_again(ww_account: Ww) -> None:
    first = ww_account.run("run", HELLO)
    code, out, err = said(ww_account.run("cache", "clear"))
    assert (code, err) == (0, "")
    assert re.fullmatch(r"removed 1, \d+\.\d KiB\n", out)
    assert os.listdir(ww_account.home / "cache") == []
    again = ww_account.run("run", HELLO)
    assert said(again) == said(first)
    assert digests(ww_account) == [digest(HELLO)]


def test_clearing_does_not_disturb_a_cell_that_runs(ww_account: Ww) -> None:
    cell = ww_account.file("reading.wasm", bytes(wasmtime.wat2wasm(READING)))
    with ww_account.popen("run", cell, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert ww_account.run("cache", "clear").returncode == 0
        assert process.communicate(timeout=60) == (b"done\n", b"")
    assert process.returncode == 0
    assert digests(ww_account) == []


@pytest.mark.parametrize("command", ["ls", "clear"])
def test_a_directory_that_others_can_write_is_told_of(ww_account: Ww, command: str) -> None:
    ww_account.run("run", HELLO)
    folder = ww_account.home / "cache"
    before = sorted(os.listdir(folder))
    folder.chmod(0o777)
    assert said(ww_account.run("cache", command)) == (
        1,
        "",
        f"ww: error: {folder}: it is not used, because others can write to it or own it\n",
    )
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("command", [["ls"], ["clear"], ["warm", HELLO]])
def test_without_a_home_there_is_no_place_for_it(ww: Ww, command: list[str | Path]) -> None:
    env = {"WW_HOME": "", "HOME": "", "XDG_CACHE_HOME": ""}
    assert said(ww.run("cache", *command, env=env)) == (
        1,
        "",
        "ww: error: cache: there is no place for it (set WW_HOME or HOME)\n",
    )


def test_a_list_that_cannot_be_written_is_an_error(ww: Ww) -> None:
    done = ww.shell("ww cache ls >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ww: error: stdout: ")


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["cache", "ls"], ["cache", "warm", HELLO], ["run", HELLO]])
@pytest.mark.parametrize("text", ["3x", "-1", "1e9", "2 G", "None"])
def test_a_bound_that_is_none_is_refused(ww: Ww, command: list[str | Path], text: str) -> None:
    code, out, err = said(ww.run(*command, env={"WW_CACHE_SIZE": text}))
    assert (code, out) == (2, "")
    assert err.startswith(f"ww: error: WW_CACHE_SIZE: '{text}' is no size")


def test_a_run_keeps_the_bound(ww_account: Ww) -> None:
    assert ww_account.run("run", HELLO).returncode == 0
    (old,) = (ww_account.home / "cache").glob(f"{digest(HELLO)}-*")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    ww_account.run("run", CAT_FDS)
    size = listed(ww_account)["total"]
    (ww_account.home / "cache" / old.name).unlink()
    # One byte too few for both.
    ww_account.run("run", HELLO, env={"WW_CACHE_SIZE": str(size - 1)})
    assert digests(ww_account) == [digest(HELLO)]
    # Modules of ww's own are not counted, and stay.
    assert ww_account.run("run", CAT_FDS, env={"WW_CACHE_SIZE": "1"}).returncode == 2
    assert digests(ww_account) == []
    assert len(os.listdir(ww_account.home / "cache")) == 2


def test_an_empty_bound_is_the_default(ww: Ww) -> None:
    assert listed(ww, env={"WW_CACHE_SIZE": ""})["bound"] == 2 << 30
    assert listed(ww, env={"WW_CACHE_SIZE": "64K"})["bound"] == 64 << 10
    assert listed(ww, env={"WW_CACHE_SIZE": "none"})["bound"] is None


# --- warm -----------------------------------------------------------------------------------------


def assert_is_there(ww: Ww, cell: str | Path, *flags: str) -> None:
    done = ww.call([*variant(NO_COMPILER), "run", *flags, cell])
    assert b"compiled after all" not in done.stderr
    assert done.returncode in (0, 2)


def test_what_is_warmed_is_compiled_once_and_not_run(
    ww_account: Ww, leftovers: Callable[..., Leftovers]
) -> None:
    address = ww_account.export(CAT_FDS)
    with leftovers(ww_account):
        first = ww_account.run("cache", "warm", HELLO, address, HELLO)
        again = ww_account.run("cache", "warm", HELLO, address)
    assert said(first) == (0, f"compiled {HELLO}\ncompiled {address}\ncached {HELLO}\n", "")
    assert said(again) == (0, f"cached {HELLO}\ncached {address}\n", "")
    for cell in (HELLO, CAT_FDS):
        assert_is_there(ww_account, cell)


def test_a_form_for_runs_with_fuel_is_another(ww: Ww) -> None:
    assert said(ww.run("cache", "warm", HELLO))[1] == f"compiled {HELLO}\n"
    assert said(ww.run("cache", "warm", "--fuel", "1", HELLO))[1] == f"compiled {HELLO}\n"
    assert digests(ww) == [digest(HELLO)] * 2
    assert_is_there(ww, HELLO, "--fuel", "1000000000")


def test_one_that_fails_does_not_keep_the_others_from_it(ww_account: Ww) -> None:
    text = ww_account.file("text.wasm", b"some text")
    none = ww_account.tmp / "none.wasm"
    code, out, err = said(ww_account.run("cache", "warm", HELLO, text, none, CAT_FDS))
    assert (code, out) == (126, f"compiled {HELLO}\ncompiled {CAT_FDS}\n")
    assert err.splitlines() == [
        f"ww: error: {text}: it is not a WebAssembly module",
        f"ww: error: {none}: there is no such file",
    ]
    assert sorted(digests(ww_account)) == sorted([digest(HELLO), digest(CAT_FDS)])


def test_the_help_of_the_limits_is_of_a_compilation(ww: Ww) -> None:
    words = " ".join(ww.run("cache", "warm", "--help").stdout.decode().split())
    assert "End a compilation after so many seconds; with s, m or h (default 1h; none" in words
    assert "Make forms for runs with --fuel, whatever the number" in words
    for told_of_a_run in ("End the cell", "instructions"):
        assert told_of_a_run not in words


def test_the_number_of_cells_is_not_that_of_open_descriptors(ww: Ww) -> None:
    done = ww.shell(f"ulimit -n 32; ww cache warm $(yes {HELLO} | head -100)")
    code, out, err = said(done)
    assert (code, err) == (0, "")
    assert out.count("cached") == 99


@pytest.mark.parametrize(
    ("flags", "limit"), [(("--timeout", "0.001"), "time"), (("--cpu-time", "1"), "processor time")]
)
def test_a_limit_ends_a_compilation(ww: Ww, flags: tuple[str, ...], limit: str) -> None:
    patch = ENDLESS.replace("time.sleep(1)", "pass")
    done = ww.call([*variant(patch), "cache", "warm", *flags, HELLO])
    assert said(done) == (
        66,
        "",
        f"ww: error: {HELLO}: the cell hit its limit of {limit} while it was compiled"
        f" (set with {flags[0]})\n",
    )
    assert digests(ww) == []


def test_memory_of_a_compilation_is_limited(ww: Ww) -> None:
    patch = """
from sandbox.wasi.cell import Workshop
Workshop.compile = lambda self, *args: bytes(1 << 30)
"""
    done = ww.call([*variant(patch), "cache", "warm", "--memory", "1M", HELLO])
    assert said(done)[0] == 66
    assert b"limit of memory while it was compiled" in done.stderr


def test_flags_that_are_not_well_formed_are_refused(ww: Ww) -> None:
    for flags in (("--memory", "x"), ("--timeout", "0"), ("--grants", "1"), ()):
        done = ww.run("cache", "warm", *flags, *([HELLO] if flags else []))
        assert done.returncode == 2, flags


def test_what_is_too_large_for_the_cache_is_an_error(ww_account: Ww) -> None:
    ww_account.run("cache", "warm", CAT_FDS)
    done = ww_account.run("cache", "warm", HELLO, env={"WW_CACHE_SIZE": "70K"})
    code, out, err = said(done)
    assert (code, out) == (1, "")
    assert err.startswith(f"ww: error: {HELLO}: it was compiled, but is not kept: ")
    assert err.endswith(" bytes, and all may have 71680\n")
    assert len(err.splitlines()) == 1


def test_a_cache_that_is_not_used_is_an_error(ww_account: Ww) -> None:
    (ww_account.home / "cache").mkdir()
    (ww_account.home / "cache").chmod(0o777)
    code, _, err = said(ww_account.run("cache", "warm", HELLO))
    assert code == 1
    assert "others can write to it" in err


def test_a_name_cannot_forge_a_line(ww: Ww) -> None:
    path = ww.file("a\ncached b.wasm", HELLO)
    assert said(ww.run("cache", "warm", path))[1] == f"compiled {ww.tmp}/a\\ncached b.wasm\n"


def test_a_jail_that_cannot_be_set_up_ends_it_at_once(ww: Ww) -> None:
    patch = """
from sandbox import namespaces
namespaces.flags = lambda isolation: 1 << 62
"""
    done = ww.call([*variant(patch), "cache", "warm", HELLO, CAT_FDS])
    assert done.returncode == 67
    assert len(done.stderr.splitlines()) == 1


def test_a_spawner_that_ends_is_told_of(ww: Ww) -> None:
    patch = """
import os
from sandbox.lane import Lane
Lane._compile = lambda self, *args: os._exit(3)
"""
    code, out, err = said(ww.call([*variant(patch), "cache", "warm", HELLO]))
    assert (code, out) == (1, "")
    assert err == (
        "ww: error: spawner: the spawner ended before the compilation did"
        " (run 'ww cache warm --debug' to see why)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(
    ww_account: Ww, leftovers: Callable[..., Leftovers], number: signal.Signals
) -> None:
    command: list[str | Path] = [*variant(ENDLESS), "cache", "warm", "--progress", HELLO]
    with leftovers(ww_account), ww_account.start(command) as process:
        assert process.stderr is not None
        assert b"compiling" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, b"", b"")


@needs("root", CAN_BE_ROOT, "only root can use --isolation chroot")
def test_the_weaker_jail_compiles_too(ww: Ww) -> None:
    done = ww.run("cache", "warm", "--isolation", "chroot", HELLO)
    assert said(done) == (0, f"compiled {HELLO}\n", "")
    assert_is_there(ww, HELLO)


def test_an_ordinary_user_cannot_use_the_weaker_jail(ww: Ww, ordinary_account: Account) -> None:
    user = ww.as_user(ordinary_account)
    done = user.run("cache", "warm", "--isolation", "chroot", HELLO)
    assert done.returncode == 67
    assert b"only root can use" in done.stderr


def test_many_at_once_leave_whole_forms_and_nothing_else(ww_account: Ww) -> None:
    cells = [
        ww_account.file(f"{number}.wasm", HELLO.read_bytes() + b"\0\2\1" + bytes([97 + number]))
        for number in range(4)
    ]
    started = [
        *(ww_account.popen("cache", "warm", *cells) for _ in range(3)),
        ww_account.popen("run", cells[0], stdout=subprocess.DEVNULL),
        ww_account.popen("cache", "clear"),
    ]
    for process in started:
        with process:
            assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    # Some may have been cleared; what is there is whole.
    found = set(digests(ww_account))
    assert found <= {digest(cell) for cell in cells}
    for cell in cells:
        if digest(cell) in found:
            assert_is_there(ww_account, cell)

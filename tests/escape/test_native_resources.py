"""A native program in the cell's place that uses up what it can get hold of."""

import errno
import json
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from sandbox import landlock
from tests.conftest import EXAMPLES, Account, BuildFunction, Leftovers, Ww
from tests.jail.inside import LAST, Tried, call, perform, running, variant

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
MEBIBYTE = 1 << 20
LeftoversFixture = Callable[..., Leftovers]


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


def told(
    ww: Ww, layer: str, program: Path, *calls: str, flags: tuple[str, ...]
) -> tuple[Tried, dict[str, Any]]:
    """Make calls; return also the event that says how it ended."""
    reader, writer = os.pipe()
    with ExitStack() as stack:
        events = stack.enter_context(os.fdopen(reader, "rb"))
        with os.fdopen(writer, "wb") as status:
            options = ("--status-fd", "3", *flags)
            tried = perform(ww, layer, program, *calls, flags=options, fds={3: status})
        (end,) = (e for e in map(json.loads, events) if e["event"] == "exit")
    return tried, end


def has_cgroup(ww: Ww, which: str) -> bool:
    features = json.loads(ww.run("doctor", "--json").stdout)
    return any(f["feature"] == f"cgroup {which}" and f["status"] == "ok" for f in features)


# --- processes ------------------------------------------------------------------------------------


def test_a_fork_bomb_is_bounded_and_leaves_nothing(
    ww_account: Ww, program: Path, leftovers: LeftoversFixture
) -> None:
    with leftovers(ww_account):
        tried, end = told(
            ww_account,
            "native",
            program,
            call("fork-bomb", 1000),
            call("error-was"),
            flags=("--pids", "8"),
        )
    if tried.code == 66:  # its control group tells, before it can
        assert end["limit"] == "pids"
    else:
        # RLIMIT_NPROC is one more than the control group's limit would be, which is to come first.
        (made, _), error = tried.all()
        assert made in (7, 8)
        assert error == (errno.EAGAIN, 0)


def test_a_cell_that_forks_is_ended(ww_account: Ww, program: Path) -> None:
    bomb = call("fork-bomb", 1000)
    assert perform(ww_account, "filtered", program, bomb).is_killed_at(bomb)


# --- memory ---------------------------------------------------------------------------------------

MEMORY = ("--memory", "64M")


@pytest.mark.parametrize("layer", ["native", "filtered"])
def test_memory_without_end_is_refused_or_ends_the_cell(
    ww_account: Ww, program: Path, layer: str
) -> None:
    tried, end = told(ww_account, layer, program, call("memory-hog", 4096), flags=MEMORY)
    if has_cgroup(ww_account, "memory"):
        assert tried.fatal == call("memory-hog", 4096)
        assert (tried.code, end["reason"], end["limit"]) == (66, "limit", "host-memory")
    else:
        # RLIMIT_DATA: the cell's, what is there for the host, and what the host had.
        ((had, error),) = tried.all()
        assert error == 0
        assert 64 < had < 64 + 256 + 256


def test_memory_that_is_shared_does_not_get_around_the_limit(ww_account: Ww, program: Path) -> None:
    # RLIMIT_DATA does not count it, and not all machines give a control group.
    tried = perform(
        ww_account,
        "filtered",
        program,
        call("mmap", 0, MEBIBYTE, 3, 0x21, -1, 0),
        call("memfd_create", "x", 0),
        call("shmget", 0, MEBIBYTE, 0o1600),
        call("mlock", 0, MEBIBYTE),
    )
    assert tried.refusals() == [errno.EPERM] * 4


def test_no_memory_can_be_locked(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        call("mmap", 0, MEBIBYTE, 3, 0x22, -1, 0),
        call("mlock", LAST, MEBIBYTE),
        call("mmap", 0, MEBIBYTE, 3, 0x2022, -1, 0),  # MAP_LOCKED
        call("hard-limit", resource.RLIMIT_MEMLOCK),
    )
    results = tried.all()
    assert results[1] == (-1, errno.EPERM)
    assert results[2][0] == -1
    assert results[2][1] in (errno.EPERM, errno.EAGAIN)
    assert results[3] == (0, 0)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["native", "filtered"])
def test_the_writable_tmp_takes_its_size_and_no_more(
    ww_account: Ww, program: Path, layer: str, leftovers: LeftoversFixture
) -> None:
    create = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW
    with leftovers(ww_account):
        tried = perform(
            ww_account,
            layer,
            program,
            call("openat", CWD, "/tmp/big", create, 0o600),
            call("output-hog", LAST, 64),
            call("error-was"),
            call("openat", CWD, "/tmp/more", create, 0o600),
            call("write", LAST, "x", 1),
            flags=["--scratch", "1M"],
        )
    results = tried.all()
    assert results[0][0] >= 0
    assert 0 < results[1][0] <= MEBIBYTE
    assert results[2] == (errno.ENOSPC, 0)
    assert results[3][0] >= 0
    assert results[4] == (-1, errno.ENOSPC)


def test_a_hole_does_not_make_the_writable_tmp_larger(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        call("openat", CWD, "/tmp/big", os.O_CREAT | os.O_WRONLY, 0o600),
        call("fallocate", LAST, 0, 0, 64 * MEBIBYTE),
        call("pwrite64", LAST, "x", 1, 1 << 40),
        flags=["--scratch", "1M"],
    )
    results = tried.all()
    assert results[1] == (-1, errno.ENOSPC)
    # A hole is no memory; but where --output is finite, so is the largest file.
    assert results[2] == (-1, errno.EFBIG)


@pytest.mark.parametrize("layer", ["native", "filtered"])
def test_the_writable_tmp_takes_only_so_many_files(
    ww_account: Ww, program: Path, layer: str, leftovers: LeftoversFixture
) -> None:
    with leftovers(ww_account):
        how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        hog = call("file-hog", LAST, 100_000)
        tried = perform(
            ww_account,
            layer,
            program,
            call("openat", CWD, "/tmp", how),
            hog,
            call("error-was"),
            flags=["--scratch", "1M"],
        )
    _, (files, _), error = tried.all()
    assert 0 < files <= 256  # one for each page of it, at most
    assert error == (errno.ENOSPC, 0)


def test_nothing_is_executed_or_set_apart_in_the_writable_tmp(
    ww_account: Ww, program: Path
) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        call("openat", CWD, "/tmp/program", os.O_CREAT | os.O_WRONLY, 0o700),
        call("write", LAST, "#!/proc/self/exe", 16),
        call("close", 3),
        call("execve", "/tmp/program", None, None),
        call("mknodat", CWD, "/tmp/null", 0o020666, 0x103),
        # A pipe only Landlock keeps from being made, and the filter.
        *[call("mknodat", CWD, "/tmp/fifo", 0o010666, 0)] * bool(landlock.abi()),
        call("mkdirat", CWD, "/new", 0o700),
        flags=["--scratch", "1M"],
    )
    results = tried.all()
    assert results[0][0] >= 0
    assert results[3] == (-1, errno.EACCES)
    assert {ret for ret, _ in results[4:]} == {-1}
    assert {error for _, error in results[4:]} <= {errno.EPERM, errno.EACCES, errno.EROFS}


@pytest.mark.parametrize("layer", ["native", "filtered"])
def test_a_flood_into_a_file_ends_at_the_limit(ww_account: Ww, program: Path, layer: str) -> None:
    # The kernel's limit, for a cell that has got around the count that its host keeps.
    path = ww_account.file("out", b"before")
    with path.open("ab", buffering=0) as file:
        tried = perform(
            ww_account,
            layer,
            program,
            call("output-hog", 9, 64),
            call("error-was"),
            call("fallocate", 9, 0, 0, 64 * MEBIBYTE),
            flags=["--output", "1000000", "--fd", "f=3,mode=w,target=9"],
            fds={3: file},
        )
    assert tried.all() == [(1_000_000, 0), (errno.EFBIG, 0), (-1, errno.EFBIG)]
    assert path.stat().st_size == 1_000_006


def test_a_flood_into_what_is_no_file_ends_at_the_time_limit(ww_account: Ww, program: Path) -> None:
    # No limit of the kernel's counts what goes into a pipe or a device; the clock does.
    with open("/dev/null", "wb", buffering=0) as null:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as events:
            with os.fdopen(writer, "wb") as status:
                flood = call("output-hog", 9, 1 << 40)
                tried = perform(
                    ww_account,
                    "filtered",
                    program,
                    flood,
                    flags=[
                        *("--timeout", "0.5", "--output", "1000"),
                        *("--fd", "n=3,mode=w,target=9", "--status-fd", "4"),
                    ],
                    fds={3: null, 4: status},
                )
            (end,) = (e for e in map(json.loads, events) if e["event"] == "exit")
    assert (tried.code, tried.fatal, end["limit"]) == (66, flood, "wall")


# --- core dumps -----------------------------------------------------------------------------------


def test_no_core_is_dumped(ww_account: Ww, program: Path, leftovers: LeftoversFixture) -> None:
    with leftovers(ww_account):
        tried = perform(
            ww_account,
            "native",
            program,
            call("hard-limit", resource.RLIMIT_CORE),
            call("abort-child"),
        )
    (limit, _), (status, _) = tried.all()
    # 1 and not 0, at which a program that the core is piped to would still be started.
    assert limit == 1
    assert status == 6  # and not 128 besides, which says that one was dumped


# What can change it is over then: ids and privileges, after which the filter forbids prctl(2).
HAS_NO_CORE = """
import resource
import prctl
from sandbox import lifeline

tie = lifeline.tie

def after_tying(line):
    tie(line)
    print(prctl.get_dumpable(), resource.getrlimit(resource.RLIMIT_CORE), flush=True)

lifeline.tie = after_tying
"""
HELLO = EXAMPLES / "hello" / "hello.wasm"


def test_a_cells_own_process_is_not_dumpable(ww_account: Ww) -> None:
    assert ww_account.run("run", HELLO).returncode == 0  # compiled, where nothing is printed
    done = ww_account.call([*variant(HAS_NO_CORE), "run", HELLO])
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == b"False (1, 1)"


READING = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
  (func (export "_start")
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"""


def test_a_process_of_the_same_account_cannot_look_into_a_cell(
    ww: Ww, ordinary_account: Account
) -> None:
    user = ww.as_user(ordinary_account)
    wasm = user.file("reading.wasm", bytes(wasmtime.wat2wasm(READING)))
    assert user.run("run", wasm).returncode == 0
    reader, writer = os.pipe()
    with (
        os.fdopen(reader, "rb") as stdin,
        os.fdopen(writer, "wb"),
        running(user, [*user.command, "run", wasm], stdin=stdin) as (_, _, pid),
    ):
        for name in ("mem", "maps", "environ"):
            done = user.call(["head", "-c", "1", f"/proc/{pid}/{name}"])
            assert (done.returncode, done.stdout) == (1, b""), name
            assert b"Permission denied" in done.stderr, name


def test_a_signal_that_dumps_core_is_told_and_leaves_none(
    ww_account: Ww, program: Path, leftovers: LeftoversFixture
) -> None:
    # Its own SIGABRT does not reach the first of a namespace, unless the kernel forces it on it.
    with leftovers(ww_account):
        tried = perform(
            ww_account,
            "filtered",
            program,
            call("tgkill", 1, 1, 6),
            call("poke", 8, 1),
        )
    assert tried.results == [(0, 0)]
    assert tried.fatal == call("poke", 8, 1)
    assert tried.code == 128 + 11


def test_no_message_queue_gets_around_a_limit(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "native",
        program,
        call("hard-limit", resource.RLIMIT_MSGQUEUE),
        call("mq_open", "x", 0o102, 0o600, None),
    )
    results = tried.all()
    assert results[0] == (0, 0)
    assert results[1][0] == -1
    assert results[1][1] in (errno.EMFILE, errno.ENOSYS)

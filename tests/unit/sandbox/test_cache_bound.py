"""The bound of the cache: what is removed for what, and what several processes at once leave."""

import errno
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import Cache, Entry, compiling
from sandbox.wasi import artifacts
from tests.conftest import CAN_BE_ROOT, REPO
from tests.features import lacks

TRAILER = 16
OWN = "switch-01234567-89abcdef.cwasm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def name_of(cell: str, engine: str = "89abcdef") -> str:
    return f"{hashlib.sha256(cell.encode()).hexdigest()}-{engine}.cwasm"


def keep(cache: Cache, name: str, size: int) -> str:
    """Keep a form whose file has so many bytes."""
    memory = compiling.new_memory("artifact")
    with open(memory, "wb", buffering=0) as file:
        file.write(bytes(size - TRAILER))
        return cache.keep(name, memory)


def use(cache: Cache, name: str) -> bool:
    found = cache.find(name)
    if found is not None:
        os.close(found)
    return found is not None


def age(folder: Path, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / name, (then, then))


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != OWN)


# --- what goes ------------------------------------------------------------------------------------

A, B, C, D = (name_of(cell) for cell in "abcd")


def test_what_was_not_used_for_longest_makes_room(folder: Path) -> None:
    cache = Cache(str(folder), 3000)
    for hours, name in enumerate((C, B, A), 1):
        assert keep(cache, name, 1000) == ""
        age(folder, name, hours * 3600)
    assert use(cache, A)  # the oldest, and now the newest
    assert keep(cache, D, 1000) == ""
    assert {*os.listdir(folder)} == {A, C, D}
    # One that needs the place of two.
    age(folder, D, 60 * 60 * 24)
    assert keep(cache, B, 1001) == ""
    assert {*os.listdir(folder)} == {A, B}


def test_no_more_goes_than_has_to(folder: Path) -> None:
    cache = Cache(str(folder), 3000)
    for name in (A, B, C):
        assert keep(cache, name, 1000) == ""
    assert total(folder) == 3000
    age(folder, B, 3600)
    assert keep(cache, D, TRAILER) == ""
    assert {*os.listdir(folder)} == {A, C, D}


def test_without_a_bound_nothing_goes(folder: Path) -> None:
    cache = Cache(str(folder))
    names = [name_of(str(number)) for number in range(50)]
    for name in names:
        assert keep(cache, name, 5000) == ""
    assert sorted(os.listdir(folder)) == sorted(names)


def test_what_is_larger_than_the_bound_is_not_kept_and_the_others_stay(folder: Path) -> None:
    cache = Cache(str(folder), 3000)
    for name in (A, B, C):
        assert keep(cache, name, 1000) == ""
    assert "3001" in keep(cache, D, 3001)
    assert {*os.listdir(folder)} == {A, B, C}
    assert keep(cache, D, 3000) == ""
    assert os.listdir(folder) == [D]


def test_a_bound_of_nothing_keeps_nothing(folder: Path) -> None:
    cache = Cache(str(folder), 0)
    assert keep(cache, A, TRAILER) != ""
    assert os.listdir(folder) == []


@pytest.mark.parametrize("size", [1000, 2500])
def test_a_bound_that_is_less_than_before_holds_when_the_next_is_made(
    folder: Path, size: int
) -> None:
    for hours, name in enumerate((A, B, C), 1):
        assert keep(Cache(str(folder), None), name, 1000) == ""
        age(folder, name, hours * 3600)
    less = Cache(str(folder), 2000)
    assert use(less, C)
    assert (keep(less, D, size) == "") == (size <= 2000)
    assert {*os.listdir(folder)} == ({C, D} if size == 1000 else {A, C})


def test_the_same_again_takes_its_own_place(folder: Path) -> None:
    cache = Cache(str(folder), 2000)
    for name in (A, B, A, A, B):
        assert keep(cache, name, 1000) == ""
    assert {*os.listdir(folder)} == {A, B}


def test_the_leftovers_of_another_engine_go_like_everything_else(folder: Path) -> None:
    cache = Cache(str(folder), 3000)
    old = [name_of(cell, "01234567") for cell in "ab"]
    for days, name in enumerate(old, 30):
        assert keep(cache, name, 1000) == ""
        age(folder, name, days * 86400)
    for name in (A, B, C):
        assert keep(cache, name, 1000) == ""
    assert {*os.listdir(folder)} == {A, B, C}


def test_modules_of_the_hosts_own_are_not_counted_and_stay(folder: Path) -> None:
    cache = Cache(str(folder), 2000)
    assert keep(cache, OWN, 50_000) == ""  # more than the bound, even
    age(folder, OWN, 86400 * 365)
    for name in (A, B, C, D):
        assert keep(cache, name, 1000) == ""
    assert use(cache, OWN)
    assert total(folder) == 2000
    assert OWN not in [entry.name for entry in cache.entries()]


def test_what_nobody_put_there_is_neither_counted_nor_removed(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    strangers = ("notes.txt", "cell.wasm", f"{A}.bak", f"x{A}", A.upper())
    for name in strangers:
        (folder / name).write_bytes(bytes(10_000))
        age(folder, name, 86400)
    (folder / name_of("a directory")).mkdir()
    (folder / name_of("a link")).symlink_to("notes.txt")
    os.mkfifo(folder / name_of("a FIFO"))
    before = {*os.listdir(folder)}
    cache = Cache(str(folder), 2000)
    for name in (A, B, C):
        assert keep(cache, name, 1000) == ""
    assert {*os.listdir(folder)} - before <= {A, B, C}
    assert before <= {*os.listdir(folder)}
    assert len(cache.entries()) == 2


def test_what_is_removed_can_still_be_read_by_whoever_has_it_open(folder: Path) -> None:
    cache = Cache(str(folder), 1000)
    assert keep(cache, A, 1000) == ""
    held = cache.find(A)
    assert held is not None
    assert keep(cache, B, 1000) == ""
    assert os.listdir(folder) == [B]
    # A cell's process opens it again by its descriptor.
    with open(f"/proc/self/fd/{held}", "rb") as file:
        assert len(file.read()) == 1000
    os.close(held)


def test_what_cannot_be_removed_does_not_keep_the_rest_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(str(folder), 3000)
    for hours, name in enumerate((A, B, C)):
        assert keep(cache, name, 1000) == ""
        age(folder, name, hours * 3600)
    unlink = os.unlink

    def stubborn(path: str, *, dir_fd: int) -> None:
        if path == C:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", stubborn)
    assert keep(cache, D, 1000) == ""
    assert {*os.listdir(folder)} == {A, C, D}
    # And the bound is kept, whatever it takes.
    assert "No space" in keep(cache, name_of("large"), 2001)
    assert total(folder) <= 3000


# --- when something was used ----------------------------------------------------------------------


def test_a_use_is_recorded_and_not_more_than_once_a_minute(folder: Path) -> None:
    cache = Cache(str(folder))
    assert keep(cache, A, 1000) == ""
    for seconds, recorded in ((30, False), (61, True), (86400 * 1000, True), (-3600, True)):
        age(folder, A, seconds)
        before = (folder / A).stat()
        assert use(cache, A)
        after = (folder / A).stat()
        assert (after.st_mtime_ns != before.st_mtime_ns) == recorded, seconds
        if recorded:
            assert abs(time.time() - after.st_mtime) < 60
        else:
            assert after.st_ctime_ns == before.st_ctime_ns  # nothing at all was written


def test_a_damaged_form_is_not_used(folder: Path) -> None:
    cache = Cache(str(folder))
    assert keep(cache, A, 1000) == ""
    data = bytearray((folder / A).read_bytes())
    data[7] ^= 1
    (folder / A).unlink()
    (folder / A).write_bytes(data)
    age(folder, A, 7200)
    before = (folder / A).stat().st_mtime_ns
    assert not use(cache, A)
    assert (folder / A).stat().st_mtime_ns == before


def test_a_use_that_cannot_be_recorded_is_one_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    cache = Cache(str(folder))
    assert keep(cache, A, 1000) == ""
    age(folder, A, 7200)
    monkeypatch.setattr(os, "utime", fail)
    assert use(cache, A)


# --- what is told of it ---------------------------------------------------------------------------


def test_the_entries_are_told_the_last_used_first(folder: Path) -> None:
    cache = Cache(str(folder))
    assert cache.entries() == []  # there is no such directory
    for hours, (name, size) in enumerate(((B, 1000), (C, 500), (A, 2000))):
        assert keep(cache, name, size) == ""
        os.utime(folder / name, (0, 1_000_000 - hours))
    assert keep(cache, OWN, 100) == ""
    assert cache.entries() == [
        Entry(B, B[:64], 1000, 1_000_000),
        Entry(C, C[:64], 500, 999_999),
        Entry(A, A[:64], 2000, 999_998),
    ]


def test_clearing_removes_forms_and_modules_and_nothing_else(folder: Path) -> None:
    cache = Cache(str(folder))
    assert cache.clear() == []
    assert not folder.exists()
    for name in (A, B, OWN):
        assert keep(cache, name, 1000) == ""
    (folder / "notes.txt").write_bytes(b"")
    (folder / C).mkdir()
    (folder / D).symlink_to("notes.txt")
    assert {entry.name for entry in cache.clear()} == {A, B}
    assert {*os.listdir(folder)} == {"notes.txt", C}
    assert not use(cache, A)


def test_without_a_directory_there_is_nothing_to_tell_or_clear() -> None:
    cache = Cache(None)
    assert cache.entries() == []
    assert cache.clear() == []
    assert keep(cache, A, 1000) != ""


def test_a_directory_that_others_can_write_is_not_told_of_and_not_cleared(folder: Path) -> None:
    cache = Cache(str(folder))
    assert keep(cache, A, 1000) == ""
    folder.chmod(0o770)
    for call in (cache.entries, cache.clear):
        with pytest.raises(PermissionError, match="others can write to it") as caught:
            call()
        assert caught.value.filename == str(folder)
    assert "others can write to it" in keep(cache, B, 1000)
    assert os.listdir(folder) == [A]


# --- several at once ------------------------------------------------------------------------------

# What is in a form, and how large it is, follows from its name: so anybody can tell a wrong one.
WORKER = """
import os, random, signal, sys
from sandbox import compiling
from sandbox.wasi import artifacts

directory, bound, seed, rounds = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
cache = artifacts.Cache(directory, bound)
artifacts._PATIENCE = 300

def content(cell):
    return b"%04d" % cell * (500 + cell * 100)

def name(cell):
    return f"{cell:064x}-89abcdef.cwasm"

def keep(cell):
    memory = compiling.new_memory("artifact")
    with open(memory, "wb", buffering=0) as file:
        file.write(content(cell))
        return cache.keep(name(cell), memory)

def check(cell):
    found = cache.find(name(cell))
    if found is None:
        return False
    with open(found, "rb") as file:
        assert file.read()[:-16] == content(cell), "what was found is not what was kept"
    return True

print("begun", flush=True)
sys.stdin.read()  # until all of them have begun
while rounds:
    rounds -= 1
    cell = chance.randrange(30)
    if not check(cell):
        lost = keep(cell)
        assert not lost, lost
    check(chance.randrange(30))
    if not chance.randrange(200):
        cache.clear()
"""
BOUND = 30_000  # of about 120,000 that all of them would have


def worker(folder: Path, seed: int, rounds: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(BOUND), str(seed), str(rounds)],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def let_go(workers: list[subprocess.Popen[bytes]]) -> None:
    for process in workers:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """The cache while nobody adds to it."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        os.close(directory)


def assert_in_order(folder: Path) -> None:
    with held(folder):
        names = os.listdir(folder)
        sizes = []
        for name in names:
            assert artifacts._CELL.fullmatch(name), name
            try:
                sizes.append((folder / name).stat().st_size)
            except FileNotFoundError:
                continue  # cleared, which takes no lock
        assert sum(sizes) <= BOUND


def test_many_writers_readers_and_evictors_at_once_keep_the_bound_and_whole_forms(
    folder: Path,
) -> None:
    folder.mkdir(mode=0o700)
    started = [worker(folder, seed, 150) for seed in range(6)]
    let_go(started)
    while any(process.poll() is None for process in started):
        assert_in_order(folder)
    for process in started:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert_in_order(folder)
    cache = Cache(str(folder), BOUND)
    assert all(use(cache, name) for name in os.listdir(folder))


def test_writers_that_are_killed_leave_whole_forms_no_lock_and_nothing_else(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    chance = random.Random(1)
    cache = Cache(str(folder), BOUND)
    for _ in range(6):
        started = [worker(folder, chance.randrange(1000), -1) for _ in range(3)]
        let_go(started)
        for process in started:
            time.sleep(chance.random() / 20)
            process.send_signal(signal.SIGKILL)
        for process in started:
            assert process.communicate()[1] == b""
        assert_in_order(folder)
        assert all(use(cache, name) for name in os.listdir(folder))


def test_one_that_holds_the_lock_and_does_not_go_on_is_not_waited_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(str(folder), 10_000)
    assert keep(cache, A, 1000) == ""
    monkeypatch.setattr(artifacts, "_PATIENCE", 0.05)
    with held(folder):
        assert "another process has locked it" in keep(cache, B, 1000)
        # Neither finding nor clearing takes the lock.
        assert use(cache, A)
        assert len(cache.entries()) == 1
        assert len(cache.clear()) == 1
    assert keep(cache, B, 1000) == ""
    assert os.listdir(folder) == [B]


# --- no room on the disk --------------------------------------------------------------------------


SCRIPT = """
import os, resource, sys
from sandbox import Cache, compiling

def put(folder, name, size):
    memory = compiling.new_memory("artifact")
    with open(memory, "wb", buffering=0) as file:
        file.write(bytes(size - 16))
        resource.setrlimit(resource.RLIMIT_FSIZE, LIMIT)
        before = len(os.listdir("/proc/self/fd"))
        print(Cache(folder).keep(f"{name * 64}-89abcdef.cwasm", memory) or "kept")
        assert len(os.listdir("/proc/self/fd")) == before

def seen(folder):
    print(*sorted(name[:4] for name in os.listdir(folder)))

LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
"""


def told(script: str, folder: Path, *before: str) -> list[str]:
    """What a script says in a process of its own."""
    done = subprocess.run(
        [*before, sys.executable, "-c", f"{SCRIPT}\nfolder = {str(folder)!r}\n{script}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_limit_on_the_size_of_files_leaves_nothing_and_is_no_error(folder: Path) -> None:
    script = """
put(folder, "a", 40_000)
LIMIT = (50_000, 50_000)
put(folder, "b", 60_000)
seen(folder)
"""
    kept, failed, names = told(script, folder)
    assert (kept, names) == ("kept", "aaaa")
    assert failed.endswith(os.strerror(errno.EFBIG))


def on_a_small_disk(script: str, folder: Path) -> list[str]:
    """What a script says for which the cache is a disk of 1 MiB, mounted for it alone."""
    if not CAN_BE_ROOT:
        lacks("root", "only root can mount")
    folder.mkdir(mode=0o700)
    mount = f'mount -t tmpfs -o size=1m,mode=0700 none {folder}; exec "$@"'
    return told(script, folder, "unshare", "--mount", "bash", "-ec", mount, "bash")


def test_on_a_full_disk_the_last_used_ones_make_room(folder: Path) -> None:
    script = """
for hours, name in enumerate("abc"):
    put(folder, name, 300_000)
    os.utime(f"{folder}/{name * 64}-89abcdef.cwasm", (1_000_000 - hours,) * 2)
put(folder, "d", 300_000)
seen(folder)
put(folder, "e", 500_000)
seen(folder)
put(folder, "f", 2 << 20)
seen(folder)
"""
    lines = on_a_small_disk(script, folder)
    assert lines[:7] == [*["kept"] * 4, "aaaa bbbb dddd", "kept", "dddd eeee"]
    # What has no room at all costs nobody else anything.
    assert lines[7].endswith(os.strerror(errno.ENOSPC))
    assert lines[8] == "dddd eeee"


def test_on_a_disk_that_is_full_of_something_else_nothing_is_lost_or_left(folder: Path) -> None:
    script = """
put(folder, "a", 100_000)
with open(f"{folder}/full", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
put(folder, "b", 200_000)
seen(folder)
put(folder, "c", 100_000)
seen(folder)
"""
    kept, failed, names, *then = on_a_small_disk(script, folder)
    assert (kept, names) == ("kept", "aaaa full")
    assert failed.endswith(os.strerror(errno.ENOSPC))
    assert then == ["kept", "cccc full"]  # in the place of the other

"""Descriptors that were not granted, or not for that, tried by a native program."""

import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import PROBES, BuildFunction, FdSource, Ww
from tests.jail.inside import HOLDS_TRUNCATION, LAST, call, needs_landlock, perform, variant

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
AT_EMPTY_PATH = 0x1000

# What refuses a system call to ww and all that comes of it.
WITHOUT_CLOSE_RANGE = (
    *(sys.executable, str(PROBES / "refuse.py")),
    f'[["close_range", {errno.ENOSYS}]]',
)
COUNT = call("count-descriptors")


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


def many(path: Path) -> dict[int, FdSource]:
    """What a careless caller may have open, beside its descriptor 3."""
    return dict.fromkeys((3, 4, 9, 10, 11, 63, 64, 100, 255, 256, 500, 900), path)


# --- what was not granted -------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), WITHOUT_CLOSE_RANGE], ids=["plain", "no close_range"])
@pytest.mark.parametrize("layer", ["native", "filtered"])
def test_a_callers_other_descriptors_cannot_be_used(
    ww_account: Ww, program: Path, layer: str, before: Sequence[str]
) -> None:
    given = ww_account.file("given")
    tried = perform(
        ww_account,
        layer,
        program,
        COUNT,
        flags=["--fd", "a=3,target=40"],
        fds=many(given),
        before=before,
    )
    # 0, 1, 2 and the grant.
    assert tried.all() == [(4, 0)]


@pytest.mark.parametrize("before", [(), WITHOUT_CLOSE_RANGE], ids=["plain", "no close_range"])
def test_a_descriptor_above_the_limit_of_open_files_cannot_leak(
    ww_account: Ww, program: Path, before: Sequence[str]
) -> None:
    # Its number is higher than any that the limit, which was lowered later, would let one look at.
    command = [*before, *variant("native"), "run", "--fd", "a=3", str(program), COUNT]
    done = ww_account.shell(
        "exec 3</dev/null 900</etc/passwd 901</ 902</dev/null; ulimit -n 256; exec "
        + shlex.join(command)
    )
    assert b'"ret": 4, "errno": 0' in done.stdout, done


# What becomes ww has descriptors at the highest numbers that it may: of a directory and of a file.
AT_THE_TOP = """
import os, resource, sys
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (65535, 65535))
except ValueError:
    pass  # only root may raise the hard limit
top = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, top + 1))
for number, path in ((top, "/"), (top - 1, "/etc/passwd"), (top // 2, "/")):
    os.dup2(os.open(path, os.O_RDONLY), number)
assert os.path.samestat(os.fstat(top), os.stat("/"))
os.execv(sys.argv[1], [a.replace("TOP", str(top - 2)) for a in sys.argv[1:]])
"""


@pytest.mark.parametrize("refused", [(), WITHOUT_CLOSE_RANGE], ids=["plain", "no close_range"])
def test_a_descriptor_of_the_highest_number_cannot_leak(
    ww_account: Ww, program: Path, refused: Sequence[str]
) -> None:
    # 65534 as root. The grant's number is just below, so that none may be cut off as too high.
    tried = perform(
        ww_account,
        "native",
        program,
        COUNT,
        flags=["--fd", "a=3,target=TOP"],
        fds={3: Path("/dev/null")},
        before=[*refused, sys.executable, "-c", AT_THE_TOP],
    )
    assert tried.all() == [(4, 0)]


@pytest.mark.parametrize("before", [(), WITHOUT_CLOSE_RANGE], ids=["plain", "no close_range"])
def test_a_descriptor_that_exec_would_close_cannot_be_there_before_it(
    ww_account: Ww, native_probe: BuildFunction, before: Sequence[str]
) -> None:
    # The program cannot see those that are closed when it begins. The cell's host could, so the
    # table is looked at before: the grants, and the line to the spawner, the program, /dev/null.
    given = ww_account.file("given")
    command = [*before, *variant("native"), "run", "--fd", "a=3,target=40"]
    done = ww_account.call([*command, native_probe("probe"), "report"], fds=many(given))
    table = json.loads(done.stdout.partition(b"\n")[0])
    numbers = {int(fd) for fd in table["flags"]}
    assert {0, 1, 2, 40, *table["own"]} < numbers
    assert len(numbers) == 4 + 3


def test_a_limit_of_open_files_cannot_hide_descriptors(ww_account: Ww, program: Path) -> None:
    # Lowering and raising it again within its hard value brings none to light.
    lower, raise_ = (4).to_bytes(8, "little") * 2, (64).to_bytes(8, "little") * 2
    tried = perform(
        ww_account,
        "native",
        program,
        call("prlimit64", 0, 7, lower, None),
        call("prlimit64", 0, 7, raise_, None),
        COUNT,
    )
    assert tried.all() == [(0, 0), (-1, errno.EPERM), (3, 0)]


# --- opened again ---------------------------------------------------------------------------------

CUTTING = os.O_RDONLY | os.O_TRUNC
WRITING = (os.O_WRONLY, os.O_RDWR, CUTTING, os.O_WRONLY | os.O_APPEND)


def reopen(number: int, how: int) -> str:
    return call("openat", CWD, f"/proc/self/fd/{number}", how)


@needs_landlock("what is granted to read cannot be opened again to write")
def test_a_file_granted_to_read_cannot_be_opened_again_to_write(
    ww_account: Ww, program: Path
) -> None:
    given = ww_account.file("given", b"unchanged", mode=0o666)
    ww_account.root.chmod(0o755)
    ways = [how for how in WRITING if HOLDS_TRUNCATION or how != CUTTING]
    other = [f"/proc/{who}/fd/9" for who in ("1", "thread-self", "self/task/1", "1/task/1")]
    with given.open("r+b") as file:
        tried = perform(
            ww_account,
            "native",
            program,
            reopen(9, os.O_RDONLY),
            *[reopen(9, how) for how in ways],
            *[call("openat", CWD, path, os.O_RDWR) for path in other],
            call("openat", CWD, "/a", os.O_RDWR),
            *([call("truncate", "/a", 0)] if HOLDS_TRUNCATION else []),
            call("openat", CWD, "/dev/fd/9", os.O_RDWR),
            flags=["--fd", "a=3,mode=r,target=9,pathlink=true"],
            fds={3: file},
        )
    first, *rest, no_dev = tried.all()
    assert first[0] >= 0
    assert len(rest) == len(ways) + len(other) + (2 if HOLDS_TRUNCATION else 1)
    assert set(rest) == {(-1, errno.EACCES)}
    assert no_dev == (-1, errno.ENOENT)
    assert given.read_bytes() == b"unchanged"


@needs_landlock("what is granted to write cannot be opened again to read")
def test_a_file_granted_to_write_cannot_be_opened_again_to_read(
    ww_account: Ww, program: Path
) -> None:
    given = ww_account.file("given", b"secret", mode=0o666)
    with given.open("r+b") as file:
        tried = perform(
            ww_account,
            "native",
            program,
            reopen(9, os.O_WRONLY),
            reopen(9, os.O_RDONLY),
            reopen(9, os.O_RDWR),
            flags=["--fd", "a=3,mode=w,target=9,pathlink=true"],
            fds={3: file},
        )
    first, *rest = tried.all()
    assert first[0] >= 0
    assert rest == [(-1, errno.EACCES)] * 2


@needs_landlock("what has no pathlink cannot be opened again")
def test_a_file_that_has_no_pathlink_cannot_be_opened_again(ww_account: Ww, program: Path) -> None:
    given = ww_account.file("given", b"secret", mode=0o666)
    with given.open("r+b") as file:
        tried = perform(
            ww_account,
            "native",
            program,
            *[reopen(9, how) for how in (os.O_RDONLY, *WRITING)],
            *[reopen(10, how) for how in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)],
            flags=["--fd", "a=3,target=9", "--fd", "b=4,target=10,pathlink=true"],
            fds={3: file, 4: Path("/dev/null")},
        )
    # There is a proc only because of the other one, a device, which is opened again as granted.
    results = tried.all()
    closed, device = results[:5], results[5:]
    assert closed == [(-1, errno.EACCES)] * 5
    assert device[0][0] >= 0
    assert device[1:] == [(-1, errno.EACCES)] * 2


@pytest.mark.parametrize("scratch", [(), ("--scratch", "1M")], ids=["run", "directories"])
def test_a_pipe_or_memory_cannot_be_opened_again_under_the_filter(
    ww_account: Ww, program: Path, scratch: Sequence[str]
) -> None:
    # Landlock cannot hold these: they are in no file hierarchy.
    reader, writer = os.pipe()
    memory = os.memfd_create("given")
    flags = [*scratch, "--fd", "p=3,mode=r,target=20,pathlink=true"]
    flags += ["--fd", "m=4,mode=r,target=21,pathlink=true"]
    calls = [reopen(n, how) for n in (20, 21) for how in (os.O_RDONLY, *WRITING)]
    calls += [reopen(n, how | os.O_NOFOLLOW) for n in (20, 21) for how in (os.O_RDONLY, *WRITING)]
    with os.fdopen(reader, "rb") as r, os.fdopen(writer, "wb"), os.fdopen(memory, "wb") as m:
        tried = perform(ww_account, "filtered", program, *calls, flags=flags, fds={3: r, 4: m})
        assert os.fstat(memory).st_size == 0
    refused = tried.refusals()
    assert refused[:10] == [errno.EPERM] * 10
    assert refused[10:] == [errno.ELOOP if scratch else errno.EPERM] * 10


def test_a_descriptor_cannot_be_opened_again_by_an_empty_path(
    ww_account: Ww, program: Path
) -> None:
    given = ww_account.file("given", b"unchanged", mode=0o666)
    tried = perform(
        ww_account,
        "native",
        program,
        call("openat", 9, "", os.O_RDWR),
        call("openat", 9, "", os.O_PATH),
        call("openat", 9, ".", os.O_RDWR),
        call("openat", 9, "..", os.O_RDONLY),
        flags=["--fd", "a=3,mode=r,target=9,pathlink=true"],
        fds={3: given},
    )
    assert tried.refusals() == [errno.ENOENT, errno.ENOENT, errno.ENOTDIR, errno.ENOTDIR]


# --- passed on, and changed -----------------------------------------------------------------------


def test_a_descriptor_cannot_be_passed_out_through_a_granted_socket(
    ww_account: Ww, program: Path
) -> None:
    ours, theirs = socket.socketpair()
    given = ww_account.file("given")
    with closing(ours), closing(theirs):
        tried = perform(
            ww_account,
            "filtered",
            program,
            call("send-descriptor", 9, 10),
            call("sendmmsg", 9, bytes(64), 1, 0),
            call("sendto", 9, "x", 1, 0, b"\1\0a\0", 4),
            flags=["--fd", "s=3,target=9", "--fd", "a=4,target=10"],
            fds={3: theirs, 4: given},
        )
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert tried.refusals() == [errno.EPERM] * 3


# include/uapi/asm-generic/fcntl.h and linux/fcntl.h
FCNTL = {
    "signals by F_SETFL": (fcntl.F_SETFL, 0o20000),
    "F_SETOWN": (fcntl.F_SETOWN, 1),
    "F_SETSIG": (10, 9),
    "F_SETOWN_EX": (15, 0),
    "F_SETLK": (fcntl.F_SETLK, 0),
    "F_OFD_SETLK": (37, 0),
    "F_SETLEASE": (1024, 0),
    "F_NOTIFY": (1026, 1),
    "F_SETPIPE_SZ": (1031, 1 << 20),
    "F_ADD_SEALS": (1033, 1),
    "F_SET_RW_HINT": (1036, 0),
    "F_DUPFD": (fcntl.F_DUPFD, 0),
}


def test_a_descriptors_owner_signals_and_locks_cannot_be_set(ww_account: Ww, program: Path) -> None:
    given = ww_account.file("given")
    calls = [call("fcntl", 9, command, value) for command, value in FCNTL.values()]
    calls += [call("flock", 9, fcntl.LOCK_EX), call("ioctl", 9, 0x5452, b"\1\0\0\0")]  # FIOASYNC
    # The upper half of an argument that is an int means nothing to the kernel, nor to the filter.
    calls += [call("fcntl", 9, 1 << 32 | fcntl.F_SETOWN, 1)]
    with given.open("r+b") as file:
        tried = perform(
            ww_account,
            "filtered",
            program,
            *calls,
            flags=["--fd", "a=3,mode=rw,target=9"],
            fds={3: file},
        )
    assert tried.refusals() == [errno.EPERM] * len(calls)


def test_no_process_of_the_host_can_be_made_to_get_a_descriptors_signals(
    ww_account: Ww, program: Path
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb"):
        tried = perform(
            ww_account,
            "native",
            program,
            call("fcntl", 9, fcntl.F_SETOWN, os.getpid()),
            call("fcntl", 9, fcntl.F_SETOWN, -os.getpgrp()),
            call("fcntl", 9, fcntl.F_SETOWN, os.getppid()),
            flags=["--fd", "p=3,target=9"],
            fds={3: file},
        )
    assert tried.refusals() == [errno.ESRCH] * 3


def test_a_granted_files_owner_mode_and_attributes_cannot_be_changed(
    ww_account: Ww, program: Path
) -> None:
    given = ww_account.file("given", b"unchanged")
    before = given.stat()
    with given.open("r+b") as file:
        tried = perform(
            ww_account,
            "filtered",
            program,
            call("fchmod", 9, 0o4777),
            call("fchown", 9, 65534, 65534),
            call("fchownat", 9, "", 65534, 65534, AT_EMPTY_PATH),
            call("fsetxattr", 9, "user.a", "x", 1, 0),
            call("linkat", 9, "", CWD, "/linked", AT_EMPTY_PATH),
            call("linkat", CWD, "/proc/self/fd/9", CWD, "/linked", 0x400),
            call("fallocate", 9, 3, 0, 4096),  # FALLOC_FL_PUNCH_HOLE
            call("splice", 9, 0, 1, 0, 1, 0),
            flags=["--fd", "a=3,mode=rw,target=9"],
            fds={3: file},
        )
    assert tried.refusals() == [errno.EPERM] * 8
    after = given.stat()
    assert (after.st_mode, after.st_uid, after.st_nlink) == (
        before.st_mode,
        before.st_uid,
        before.st_nlink,
    )
    assert stat.S_IMODE(after.st_mode) == 0o600
    assert given.read_bytes() == b"unchanged"


def test_a_descriptor_can_still_be_closed_and_duplicated(ww_account: Ww, program: Path) -> None:
    # The filter above is not simply one that refuses everything.
    tried = perform(
        ww_account,
        "filtered",
        program,
        call("fcntl", 9, fcntl.F_DUPFD_CLOEXEC, 9),
        call("close", LAST),
        call("fcntl", 9, fcntl.F_GETFL),
        flags=["--fd", "a=3,target=9"],
        fds={3: Path("/dev/null")},
    )
    assert [ret for ret, _ in tried.all()][:2] == [10, 0]


def test_the_probe_counts_what_it_is_given(ww_account: Ww, program: Path) -> None:
    flags = [f for n in range(3, 8) for f in ("--fd", f"g{n}={n}")]
    fds: dict[int, FdSource] = {n: Path("/dev/null") for n in range(3, 8)}
    tried = perform(ww_account, "native", program, COUNT, flags=flags, fds=fds)
    assert tried.all() == [(8, 0)]

"""Ways out of a granted directory, and past its mode, tried by a native program.

Without a system call filter: what is in the way are the mounts of the jail and Landlock.
"""

import ctypes
import errno
import os
import platform
import socket
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sandbox import landlock
from tests.conftest import CAN_BE_ROOT, BuildFunction, FdSource, Ww
from tests.features import needs
from tests.jail.inside import (
    AT,
    HOLDS_TRUNCATION,
    LAST,
    MOUNTS_ONLY,
    SAVED,
    Tried,
    call,
    needs_landlock,
    perform,
)

CWD = -100  # AT_FDCWD of include/uapi/linux/fcntl.h
AT_EMPTY_PATH = 0x1000
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
FOLDER = 3
MISSING = (-1, errno.ENOENT)


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


@pytest.fixture
def folder(ww_account: Ww) -> Iterator[Path]:
    """A directory of the account, with a secret beside it, that the cell's id could all change."""
    ww_account.root.chmod(0o755)
    ww_account.tmp.chmod(0o755)
    made = ww_account.tmp / "folder"
    (made / "inner").mkdir(parents=True)
    secret = ww_account.tmp / "secret"
    secret.write_bytes(b"secret")
    (made / "file").write_bytes(b"unchanged")
    for path in (made, made / "inner", made / "file", secret):
        path.chmod(0o777)
        if not ww_account.account.is_own:
            os.chown(path, ww_account.account.uid, ww_account.account.gid)
    yield made
    assert secret.read_bytes() == b"secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o777


GRANTS = ("r by number", "rw by number", "ro by path", "rw by path")


@pytest.fixture(params=GRANTS)
def grant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def enter(
    ww: Ww,
    program: Path,
    folder: Path,
    grant: str,
    *calls: str,
    layer: str = "native",
    proc: bool = False,
) -> Tried:
    """Make calls from a cell that has the directory as its descriptor 3, and perhaps a proc."""
    mode, _, how = grant.partition(" by ")
    flags: Sequence[str] = ("--fd", "n=9,target=9,pathlink=true") if proc else ()
    fds: dict[int, FdSource] = {9: Path("/dev/null")} if proc else {}
    if how == "number":
        flags = (*flags, "--fd", f"d={FOLDER},mode={mode},target={FOLDER}")
        return perform(ww, layer, program, *calls, flags=flags, fds={**fds, FOLDER: folder})
    flags = (*flags, "--dir", f"{folder}:/d:{mode}", "--fd", f"dir1,target={FOLDER}")
    return perform(ww, layer, program, *calls, flags=flags, fds=fds)


def test_the_directory_can_be_read_at_all(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    # Without this, everything else here would say nothing.
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        call("openat", FOLDER, "file", os.O_RDONLY),
        call("read", LAST, AT, 8),
        call("peek", 0),
    )
    assert tried.all()[-1] == (int.from_bytes(b"unchange", "little"), 0)


def test_dots_do_not_lead_out_of_a_directory(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    paths = [
        *("../secret", "../../secret", "inner/../../secret", "./.././secret", "..//secret"),
        *("../" * 12 + "etc/passwd", "../" * 12 + str(ww_account.tmp / "secret").lstrip("/")),
    ]
    calls = [call("openat", FOLDER, p, flags) for p in paths for flags in (os.O_RDONLY, os.O_PATH)]
    tried = enter(ww_account, program, folder, grant, *calls)
    assert tried.refusals() == [errno.ENOENT] * len(calls)


def test_an_absolute_path_beside_a_directory_does_not_lead_out(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    paths = [str(ww_account.tmp / "secret"), str(folder), "/etc/passwd", "/proc/1/root", "/tmp"]
    calls = [call("openat", FOLDER, path, os.O_PATH) for path in paths]
    tried = enter(ww_account, program, folder, grant, *calls)
    assert tried.refusals() == [errno.ENOENT] * len(calls)


def test_a_planted_link_does_not_lead_out_of_a_directory(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    targets = {
        "relative": "../secret",
        "absolute": str(ww_account.tmp / "secret"),
        "own": "/proc/self/root/etc/passwd",
        "first": f"/proc/1/root{ww_account.tmp}/secret",
        "cwd": "/proc/self/cwd/../secret",
        "number": f"/proc/self/fd/{FOLDER}/../secret",
        "host": f"/proc/{os.getpid()}/root/etc/passwd",
        "chained": "inner/relative",
        "inner/relative": "../../secret",
        "up": "../" * 20 + "etc/passwd",
    }
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    calls = [
        call("openat", FOLDER, name, flags)
        for name in targets
        for flags in (os.O_RDONLY, os.O_PATH, os.O_RDWR)
    ]
    # The links through proc are followed there, and lead into the jail itself.
    (folder / "followed").symlink_to(f"/proc/self/fd/{FOLDER}/file")
    calls.append(call("openat", FOLDER, "followed", os.O_RDONLY))
    *results, followed = enter(ww_account, program, folder, grant, *calls, proc=True).all()
    assert results == [MISSING] * len(results)
    assert followed[0] >= 0


def test_a_walk_of_opened_parents_ends_in_an_empty_root(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    walk = [call("openat", FOLDER, "..", os.O_PATH), *[call("openat", LAST, "..", os.O_PATH)] * 5]
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        *walk,
        call("openat", LAST, "secret", os.O_PATH),
        call("openat", LAST, "etc", os.O_PATH),
        call("openat", LAST, ".", os.O_RDONLY | os.O_DIRECTORY),
    )
    results = tried.all()
    assert all(ret >= 0 for ret, _ in results[:6])
    assert results[6:8] == [MISSING] * 2
    assert results[8] == (-1, errno.EACCES) or not landlock.abi()  # the root, which is empty


@needs_landlock("the names of the jail's own empty directories cannot be listed")
def test_no_parent_can_be_listed(ww_account: Ww, program: Path, folder: Path, grant: str) -> None:
    calls = [call("openat", FOLDER, p, os.O_RDONLY | os.O_DIRECTORY) for p in ("..", "../..", "/")]
    tried = enter(ww_account, program, folder, grant, *calls)
    assert tried.refusals() == [errno.EACCES] * 3


def test_going_into_a_directory_does_not_lead_out_of_it(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        call("fchdir", FOLDER),
        call("openat", CWD, "../secret", os.O_PATH),
        call("chdir", "inner"),
        call("openat", CWD, "../../secret", os.O_PATH),
        *[call("chdir", "..")] * 6,
        call("openat", CWD, "secret", os.O_PATH),
        call("openat", CWD, "etc/passwd", os.O_PATH),
        call("openat", CWD, "proc/self/cwd/../secret", os.O_PATH),
        call("openat", CWD, "/proc/self/cwd/secret", os.O_PATH),
        call("openat", CWD, "/proc/self/cwd/../secret", os.O_PATH),
        call("openat", CWD, "/proc/self/cwd", os.O_PATH),
        proc=True,
    )
    results = tried.all()
    assert results[1] == results[3] == MISSING
    assert [results[i] for i in (0, 2, 4, 5, 6, 7, 8, 9)] == [(0, 0)] * 8
    assert results[10:15] == [MISSING] * 5
    assert results[15][0] >= 0  # so proc was there


def handle_of(path: Path) -> bytes:
    """A file's struct file_handle, as the kernel makes it; name_to_handle_at(2)."""
    number = {"x86_64": 303, "aarch64": 264}[platform.machine()]
    room, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, CWD, bytes(path), room, ctypes.byref(mount), 0) != 0:
        pytest.skip(f"{path} is in a file system without handles")
    return room.raw[: 8 + struct.unpack_from("I", room.raw)[0]]


NEW_USER_NAMESPACE = 0x10000000


@pytest.mark.parametrize("layer", ["native", MOUNTS_ONLY], ids=["native", "without Landlock"])
@pytest.mark.parametrize("before", [(), (call("unshare", NEW_USER_NAMESPACE),)], ids=["", "userns"])
def test_no_file_inside_or_outside_a_directory_can_be_opened_by_its_handle(
    ww_account: Ww, program: Path, folder: Path, before: Sequence[str], layer: str
) -> None:
    # The true ones, which the cell may have guessed. In a user namespace of its own it has the
    # capability that it takes, but not over the mount.
    files = (folder, folder / "file", folder.parent / "secret", folder.parent, Path("/etc/passwd"))
    calls = [
        call("open_by_handle_at", FOLDER, handle_of(path), how)
        for path in files
        for how in (os.O_RDONLY, os.O_RDWR, os.O_PATH)
    ]
    tried = enter(ww_account, program, folder, "rw by number", *before, *calls, layer=layer)
    results = tried.all()[len(before) :]
    assert results == [(-1, errno.EPERM)] * len(calls)


def test_a_directory_that_the_host_moves_out_does_not_lead_to_where_it_is(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # The cell has it open; its ".." is then outside of the granted one, beside the secret.
    moved, (ready, cell_writes), (cell_reads, go) = folder.parent / "moved", os.pipe(), os.pipe()

    def move() -> None:
        os.read(ready, 1)
        (folder / "inner").rename(moved)
        os.write(go, b"x")

    host = threading.Thread(target=move)
    host.start()
    nofollow = os.O_NOFOLLOW
    try:
        tried = perform(
            ww_account,
            "native",
            program,
            call("openat", FOLDER, "inner", os.O_RDONLY),
            call("save"),
            call("write", 8, "x", 1),
            call("read", 0, AT, 1),
            call("openat", SAVED, "../secret", os.O_RDONLY | nofollow),
            call("openat", SAVED, "../secret", os.O_PATH),
            call("openat", SAVED, "..", os.O_PATH),
            call("openat", SAVED, "../../etc", os.O_PATH),
            call("renameat2", FOLDER, "file", SAVED, "../stolen", 0),
            call("fchdir", SAVED),
            call("chdir", ".."),
            call("openat", CWD, "../secret", os.O_PATH),
            flags=[
                *("--fd", f"d={FOLDER},mode=rw,target={FOLDER}"),
                *("--fd", "p=4,target=8"),
            ],
            fds={FOLDER: folder, 4: cell_writes},
            stdin=cell_reads,
        )
    finally:
        os.write(cell_writes, b"x")  # however it went, the thread ends
        host.join()
        for fd in (ready, cell_writes, cell_reads, go):
            os.close(fd)
    results = tried.all()
    assert moved.is_dir()
    assert results[2:4] == [(1, 0)] * 2
    assert results[4:9] == [MISSING] * 5
    assert results[9:] == [(0, 0), MISSING, MISSING]


def test_a_directory_moved_while_the_cell_runs_does_not_lead_out(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # The known race: a working directory below the granted one is moved out of it. The cell can
    # do that itself only between directories that it has; what is above is empty in any case.
    tried = enter(
        ww_account,
        program,
        folder,
        "rw by number",
        call("openat", FOLDER, "inner", os.O_RDONLY),
        call("save"),
        call("fchdir", SAVED),
        call("renameat2", FOLDER, "inner", FOLDER, "moved", 0),
        call("openat", CWD, "../../secret", os.O_PATH),
        call("openat", SAVED, "../../secret", os.O_PATH),
        call("renameat2", FOLDER, "moved", FOLDER, "../outside", 0),
    )
    results = tried.all()
    assert results[4:6] == [MISSING] * 2
    assert results[6][0] == -1
    assert not (ww_account.tmp / "outside").exists()


# Each of them works on a directory that is granted rw, or needs what no cell has anyway.
CHANGES = {
    "create": call("openat", FOLDER, "new", os.O_CREAT | os.O_WRONLY, 0o600),
    "a file without a name": call("openat", FOLDER, ".", os.O_TMPFILE | os.O_RDWR, 0o600),
    "open to write": call("openat", FOLDER, "file", os.O_WRONLY),
    "open for both": call("openat", FOLDER, "file", os.O_RDWR),
    "open to append": call("openat", FOLDER, "file", os.O_WRONLY | os.O_APPEND),
    "O_TRUNC": call("openat", FOLDER, "file", os.O_RDONLY | os.O_TRUNC),
    "O_TRUNC for writing": call("openat", FOLDER, "file", os.O_WRONLY | os.O_TRUNC),
    "rename": call("renameat2", FOLDER, "file", FOLDER, "renamed", 0),
    "exchange": call("renameat2", FOLDER, "file", FOLDER, "inner", 2),
    "link": call("linkat", FOLDER, "file", FOLDER, "linked", 0),
    "symlink": call("symlinkat", "file", FOLDER, "symlink"),
    "mkdir": call("mkdirat", FOLDER, "directory", 0o700),
    "fifo": call("mknodat", FOLDER, "fifo", stat.S_IFIFO | 0o600, 0),
    "socket": call("mknodat", FOLDER, "socket", stat.S_IFSOCK | 0o600, 0),
    "plain node": call("mknodat", FOLDER, "plain", stat.S_IFREG | 0o600, 0),
    "unlink": call("unlinkat", FOLDER, "file", 0),
    "rmdir": call("unlinkat", FOLDER, "inner", 0x200),
    "utimes": call("utimensat", FOLDER, "file", None, 0),
    "utimes of itself": call("utimensat", FOLDER, None, None, 0),
    "chmod": call("fchmodat", FOLDER, "file", 0o600, 0),
    "chmod of itself": call("fchmod", FOLDER, 0o700),
    "chown": call("fchownat", FOLDER, "file", 65534, 65534, 0),
    "chown of itself": call("fchown", FOLDER, 65534, 65534),
}
AFTER_FCHDIR = {
    "truncate": call("truncate", "file", 0),
    "setxattr": call("setxattr", "file", "user.a", "x", 1, 0),
    "setxattr of itself": call("fsetxattr", FOLDER, "user.a", "x", 1, 0),
}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def same(folder: Path) -> bool:
    names = sorted(os.listdir(folder))
    file = folder / "file"
    return (
        names == ["file", "inner"]
        and file.read_bytes() == b"unchanged"
        and stat.S_IMODE(file.stat().st_mode) == 0o777
        and stat.S_IMODE(folder.stat().st_mode) == 0o777
        and os.listxattr(file) == os.listxattr(folder) == []
    )


@pytest.mark.parametrize("grant", ["r by number", "ro by path"], indirect=True)
def test_nothing_changes_in_a_read_only_directory(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    calls = [*CHANGES.values(), call("fchdir", FOLDER), *AFTER_FCHDIR.values()]
    before = (folder / "file").stat(), folder.stat()
    results = enter(ww_account, program, folder, grant, *calls).all()
    names = [*CHANGES, "fchdir", *AFTER_FCHDIR]
    outcome = dict(zip(names, results, strict=True))
    assert outcome.pop("fchdir") == (0, 0)
    assert {name: r for name, r in outcome.items() if r[0] != -1 or r[1] not in REFUSED} == {}
    # Landlock knows no right for these: what holds is the mount.
    for name, (_, error) in outcome.items():
        if name.startswith(("chmod", "chown", "utimes", "setxattr")):
            assert error == errno.EROFS, name
    assert same(folder)
    assert ((folder / "file").stat().st_mtime_ns, folder.stat().st_mtime_ns) == tuple(
        s.st_mtime_ns for s in before
    )


@pytest.mark.parametrize("grant", ["r by number", "ro by path"], indirect=True)
def test_without_landlock_the_mount_alone_keeps_a_directory_as_it_is(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    (folder / "program").write_bytes(program.read_bytes())
    (folder / "program").chmod(0o4755)
    calls = [*CHANGES.values(), call("fchdir", FOLDER), *AFTER_FCHDIR.values()]
    run = call("execveat", FOLDER, "program", None, None, 0)
    results = enter(ww_account, program, folder, grant, *calls, run, layer=MOUNTS_ONLY).all()
    refused = (-1, errno.EROFS)
    assert results == [
        *[refused] * len(CHANGES),
        (0, 0),
        *[refused] * len(AFTER_FCHDIR),
        (-1, errno.EACCES),
    ]
    (folder / "program").unlink()
    assert same(folder)


# include/uapi/linux/fs.h, and two arguments for them that change nothing
FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820


@pytest.mark.parametrize("layer", ["native", "filtered"])
@pytest.mark.parametrize("grant", ["r by number"], indirect=True)
def test_what_is_open_for_reading_in_a_read_only_directory_is_no_way_to_change_it(
    ww_account: Ww, program: Path, folder: Path, grant: str, layer: str
) -> None:
    # None of these looks at how a file was opened, but for the last three.
    inode = {
        "times": call("utimensat", LAST, None, bytes(32), 0),
        "flags": call("ioctl", LAST, FS_IOC_SETFLAGS, bytes(8)),
        "project": call("ioctl", LAST, FS_IOC_FSSETXATTR, bytes(28)),
        "mode": call("fchmod", LAST, 0o600),
        "owner": call("fchown", LAST, 65534, 65534),
        "attribute": call("fsetxattr", LAST, "user.a", "x", 1, 0),
        "room": call("fallocate", LAST, 0, 0, 10),
        "size": call("ftruncate", LAST, 0),
        "content": call("pwrite64", LAST, "x", 1, 0),
    }
    before = (folder / "file").stat()
    how = os.O_RDONLY | os.O_NOFOLLOW
    opened, *results = enter(
        ww_account,
        program,
        folder,
        grant,
        call("openat", FOLDER, "file", how),
        *inode.values(),
        layer=layer,
    ).all()
    assert opened[0] >= 0
    filtered = errno.EPERM if layer == "filtered" else errno.EROFS
    assert results == [
        (-1, errno.EROFS),
        *[(-1, filtered)] * 5,
        (-1, errno.EBADF),
        (-1, errno.EINVAL),
        (-1, errno.EBADF),
    ]
    after = (folder / "file").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert same(folder)


WITH_LANDLOCK = needs_landlock("without a filter, a pipe in a read-only directory can be written")


@pytest.mark.parametrize(
    ("layer", "refusal"),
    [pytest.param("native", errno.EACCES, marks=WITH_LANDLOCK), ("filtered", errno.EPERM)],
)
@pytest.mark.parametrize("grant", ["r by number", "ro by path"], indirect=True)
def test_a_pipe_that_lies_in_a_read_only_directory_cannot_be_written(
    ww_account: Ww, program: Path, folder: Path, grant: str, layer: str, refusal: int
) -> None:
    # To a read-only mount it is no part of the file system. Somebody reads it, or nobody could.
    os.mkfifo(folder / "fifo")
    (folder / "fifo").chmod(0o666)
    with os.fdopen(os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb"):
        how = os.O_NONBLOCK | os.O_NOFOLLOW
        calls = [call("openat", FOLDER, "fifo", how | m) for m in (os.O_WRONLY, os.O_RDWR)]
        tried = enter(ww_account, program, folder, grant, *calls, layer=layer)
        assert tried.refusals() == [refusal] * 2


@pytest.mark.parametrize("layer", ["native", MOUNTS_ONLY], ids=["native", "without Landlock"])
def test_a_file_cannot_be_linked_or_moved_between_a_read_only_and_a_writable_directory(
    ww_account: Ww, program: Path, folder: Path, layer: str
) -> None:
    # A second name, in the other directory, would be one by which it could be written.
    other = ww_account.tmp / "other"
    other.mkdir()
    (other / "own").write_bytes(b"own")
    other.chmod(0o777)
    if not ww_account.account.is_own:
        for path in (other, other / "own"):
            os.chown(path, ww_account.account.uid, ww_account.account.gid)
    calls = [
        call("linkat", FOLDER, "file", 4, "new", 0),
        call("renameat2", FOLDER, "file", 4, "new", 0),
        call("renameat2", FOLDER, "file", 4, "own", 2),
        call("renameat2", 4, "own", FOLDER, "file", 0),
        call("linkat", 4, "own", FOLDER, "new", 0),
        call("openat", FOLDER, "file", os.O_RDONLY),
        call("linkat", LAST, "", 4, "new", AT_EMPTY_PATH),
        call("openat", FOLDER, "file", os.O_PATH),
        call("linkat", LAST, "", 4, "new", AT_EMPTY_PATH),
        call("linkat", CWD, "/proc/self/fd/9", 4, "new", 0x400),
        call("openat", CWD, f"/proc/self/fd/{FOLDER}/file", os.O_RDWR),
        call("openat", CWD, f"/proc/self/fd/4/../{FOLDER}/file", os.O_RDWR),
        call("openat", CWD, f"/.dirs/{FOLDER}/file", os.O_RDWR),
        call("renameat2", 4, "own", 4, "renamed", 0),
    ]
    tried = perform(
        ww_account,
        layer,
        program,
        *calls,
        flags=[
            *("--fd", f"d={FOLDER},mode=r,target={FOLDER}", "--fd", "o=4,mode=rw,target=4"),
            *("--fd", "f=9,mode=r,target=9,pathlink=true"),
        ],
        fds={FOLDER: folder, 4: other, 9: folder / "file"},
    )
    results = tried.all()
    refused = [results[i] for i in (0, 1, 2, 3, 9)]
    assert refused == [(-1, errno.EXDEV)] * len(refused)
    # Before Linux 6.10 only a privileged process may link what has no name.
    nameless = {results[i] for i in (6, 8)}
    assert nameless <= {(-1, errno.EXDEV), (-1, errno.ENOENT)}
    assert [results[i] for i in (4, 10, 11, 12)] == [(-1, errno.EROFS)] * 4
    assert results[13] == (0, 0)
    assert os.listdir(other) == ["renamed"]
    assert same(folder)


def test_a_directory_granted_twice_is_in_each_place_what_it_is_there(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # Landlock's rules belong to the directory, so there it may do both; the mounts differ.
    writes = ("create", "open to write", "O_TRUNC", "chmod", "unlink", "mkdir", "rename")
    tried = perform(
        ww_account,
        "native",
        program,
        *[CHANGES[name] for name in writes],
        call("openat", CWD, f"/.dirs/{FOLDER}/file", os.O_RDWR),
        call("openat", 4, "file", os.O_RDWR),
        flags=["--fd", f"d={FOLDER},mode=r,target={FOLDER}", "--fd", "e=4,mode=rw,target=4"],
        fds={FOLDER: folder, 4: folder},
    )
    *refused, written = tried.all()
    assert refused == [(-1, errno.EROFS)] * (len(writes) + 1)
    assert written[0] >= 0
    assert same(folder)


def test_the_same_changes_work_where_they_were_granted(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # So that the test before does not pass because nothing of it ever works.
    names = ["create", "open for both", "O_TRUNC for writing", "mkdir", "symlink", "rename"]
    calls = [CHANGES[name] for name in names]
    results = enter(ww_account, program, folder, "rw by number", *calls).all()
    assert all(ret >= 0 for ret, _ in results), results


@pytest.mark.parametrize("grant", ["r by number", "ro by path"], indirect=True)
def test_a_read_only_directory_cannot_be_remounted_or_bound_elsewhere(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    clear = (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(16)
    calls = [
        call("fchdir", FOLDER),
        call("mount", None, ".", None, MS_REMOUNT | MS_BIND, None),
        call("mount", None, f"/.dirs/{FOLDER}", None, MS_REMOUNT | MS_BIND, None),
        call("mount", ".", "inner", None, MS_BIND | MS_REC, None),
        call("mount", "none", "inner", "tmpfs", 0, None),
        call("mount_setattr", FOLDER, "", AT_EMPTY_PATH, clear, 32),
        call("open_tree", FOLDER, "", AT_EMPTY_PATH | 1),
        call("openat", FOLDER, "file", os.O_WRONLY),
    ]
    first, *rest = enter(ww_account, program, folder, grant, *calls).all()
    assert first == (0, 0)
    assert rest[:-1] == [(-1, errno.EPERM)] * (len(rest) - 1)
    assert rest[-1][1] in (errno.EROFS, errno.EACCES)
    assert same(folder)


@needs_landlock("a file that is open for both and granted to read cannot be opened again to write")
def test_a_file_of_a_read_only_directory_cannot_be_opened_again_to_write(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # The descriptor was opened for both; its grant, and the directory's, is for reading.
    own = "/proc/self/fd/9"
    cutting = [call("openat", CWD, own, os.O_TRUNC), call("truncate", own, 0)]
    with (folder / "file").open("r+b") as file:
        tried = perform(
            ww_account,
            "native",
            program,
            call("openat", CWD, own, os.O_RDONLY),
            *[call("openat", CWD, own, how) for how in (os.O_WRONLY, os.O_RDWR)],
            *(cutting if HOLDS_TRUNCATION else ()),
            flags=["--fd", "f=9,mode=r,target=9,pathlink=true", "--dir", f"{folder}:/d:ro"],
            fds={9: file},
        )
    first, *rest = tried.all()
    assert first[0] >= 0
    assert len(rest) == (4 if HOLDS_TRUNCATION else 2)
    assert set(rest) == {(-1, errno.EACCES)}
    assert same(folder)


def test_a_directory_granted_to_write_makes_no_device_socket_or_pipe(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # Devices take a privilege; the others are left to the filter where there is no Landlock.
    harmless = (stat.S_IFIFO, stat.S_IFSOCK) if landlock.abi() else ()
    kinds = (stat.S_IFCHR, stat.S_IFBLK, *harmless)
    calls = [call("mknodat", FOLDER, "node", kind | 0o666, 0x103) for kind in kinds]
    tried = enter(ww_account, program, folder, "rw by number", *calls)
    assert set(tried.refusals()) <= {errno.EPERM, errno.EACCES}
    assert not (folder / "node").exists()


@needs("root", CAN_BE_ROOT, "only root makes a device")
def test_a_device_in_a_directory_cannot_be_opened(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (folder / "null").chmod(0o666)
    ways = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
    calls = [call("openat", FOLDER, "null", how) for how in ways]
    tried = enter(ww_account, program, folder, grant, *calls)
    assert tried.refusals() == [errno.EACCES] * 3


def test_a_program_in_a_directory_cannot_be_executed(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    names = {"plain": 0o755, "setuid": 0o4755, "setboth": 0o6755}
    for name, mode in names.items():
        (folder / name).write_bytes(program.read_bytes())
        (folder / name).chmod(mode)
    calls = [call("execveat", FOLDER, name, None, None, 0) for name in names]
    by_name = [call("execve", name, None, None) for name in names]
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        *calls,
        call("fchdir", FOLDER),
        *by_name,
        call("openat", FOLDER, "plain", os.O_RDONLY),
        call("execveat", LAST, "", None, None, AT_EMPTY_PATH),
        # Its code cannot be mapped to be executed either.
        call("mmap", 0, 4096, 5, 2, LAST, 0),
    )
    results = tried.all()
    denied = (-1, errno.EACCES)
    assert results[:7] == [*[denied] * 3, (0, 0), *[denied] * 3]
    assert results[7][0] >= 0
    assert results[8:] == [denied, (-1, errno.EPERM)]


@pytest.mark.parametrize("bits", [0o4000, 0o2000])
def test_a_file_made_in_a_directory_cannot_lend_an_identity(
    ww_account: Ww, program: Path, folder: Path, bits: int
) -> None:
    create = call("openat", FOLDER, "new", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, bits | 0o755)
    chmod = call("fchmodat", FOLDER, "file", bits | 0o755, 0)
    for attack in (create, chmod):
        tried = enter(ww_account, program, folder, "rw by number", attack, layer="filtered")
        assert tried.refusals() == [errno.EPERM]
    assert same(folder)


FILTERED_OPENS = {
    "following": call("openat", FOLDER, "file", os.O_RDONLY),
    "to a path": call("openat", FOLDER, "/proc/self/fd/3", os.O_RDWR),
    "openat2": call("openat2", FOLDER, "file", bytes(24), 24),
    "a link's target": call("linkat", FOLDER, "file", FOLDER, "linked", 0x400),
    "a link of a descriptor": call("linkat", FOLDER, "", FOLDER, "linked", AT_EMPTY_PATH),
    "a whiteout": call("renameat2", FOLDER, "file", FOLDER, "other", 4),
    "an exchange": call("renameat2", FOLDER, "file", FOLDER, "inner", 2),
    "chdir": call("fchdir", FOLDER),
    "xattr": call("fsetxattr", FOLDER, "user.a", "x", 1, 0),
    "watch": call("inotify_init1", 0),
    "truncate by name": call("truncate", "file", 0),
}


def test_under_the_filter_a_directory_is_opened_only_without_following(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    calls = FILTERED_OPENS.values()
    tried = enter(ww_account, program, folder, grant, *calls, layer="filtered")
    assert tried.refusals() == [errno.EPERM] * len(calls)
    assert same(folder)


def test_under_the_filter_a_link_is_not_followed(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    (folder / "magic").symlink_to("/proc/self/fd/3")
    (folder / "out").symlink_to("../secret")
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        call("openat", FOLDER, "magic", os.O_RDONLY | os.O_NOFOLLOW),
        call("openat", FOLDER, "out", os.O_RDONLY | os.O_NOFOLLOW),
        call("openat", FOLDER, "../secret", os.O_RDONLY | os.O_NOFOLLOW),
        layer="filtered",
    )
    assert tried.refusals() == [errno.ELOOP, errno.ELOOP, errno.ENOENT]


def test_a_socket_in_a_directory_cannot_be_connected_under_the_filter(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        server.listen()
        (folder / "s").chmod(0o777)
        connect = call("connect", FOLDER, b"\1\0s\0", 4)
        tried = enter(ww_account, program, folder, grant, connect, layer="filtered")
    assert tried.is_killed_at(connect)

"""Ways out of a granted directory, and past its mode, tried by a native program.

Without a system call filter: what is in the way are the mounts of the jail and Landlock.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import BuildFunction, Ww
from tests.jail.inside import AT, LAST, SAVED, Tried, call, perform

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
    ww: Ww, program: Path, folder: Path, grant: str, *calls: str, layer: str = "native"
) -> Tried:
    """Make calls from a cell that has the directory as its descriptor 3."""
    mode, _, how = grant.partition(" by ")
    if how == "number":
        flags: Sequence[str] = ("--fd", f"d={FOLDER},mode={mode},target={FOLDER}")
        return perform(ww, layer, program, *calls, flags=flags, fds={FOLDER: folder})
    flags = ("--dir", f"{folder}:/d:{mode}", "--fd", f"dir1,target={FOLDER}")
    return perform(ww, layer, program, *calls, flags=flags)


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
    tried = enter(ww_account, program, folder, grant, *calls)
    assert tried.refusals() == [errno.ENOENT] * len(calls)


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
    assert results[6:] == [MISSING, MISSING, (-1, errno.EACCES)]


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
    )
    results = tried.all()
    assert results[1] == results[3] == MISSING
    assert [results[i] for i in (0, 2, 4, 5, 6, 7, 8, 9)] == [(0, 0)] * 8
    assert results[10:] == [MISSING] * 4


def test_no_handle_of_a_directory_opens_it_again(
    ww_account: Ww, program: Path, folder: Path, grant: str
) -> None:
    room = (128).to_bytes(4, "little") + bytes(140)
    root = b"\x08\0\0\0" + b"\1\0\0\0" + b"\2" + bytes(7)  # inode 2, guessed: an ext4's root
    tried = enter(
        ww_account,
        program,
        folder,
        grant,
        call("name_to_handle_at", FOLDER, "", room, AT, AT_EMPTY_PATH),
        call("open_by_handle_at", FOLDER, root, os.O_RDONLY),
        call("open_by_handle_at", FOLDER, room, os.O_RDONLY),
    )
    assert [r for r in tried.all() if r[0] >= 0][1:] == []
    assert tried.all()[1][1] in (errno.EPERM, errno.ESTALE)


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


def test_a_file_of_a_read_only_directory_cannot_be_opened_again_to_write(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    # The descriptor was opened for both; its grant, and the directory's, is for reading.
    own = "/proc/self/fd/9"
    with (folder / "file").open("r+b") as file:
        tried = perform(
            ww_account,
            "native",
            program,
            call("openat", CWD, own, os.O_RDONLY),
            *[call("openat", CWD, own, how) for how in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC)],
            call("truncate", own, 0),
            flags=["--fd", "f=9,mode=r,target=9,pathlink=true", "--dir", f"{folder}:/d:ro"],
            fds={9: file},
        )
    first, *rest = tried.all()
    assert first[0] >= 0
    assert rest == [(-1, errno.EACCES)] * 4
    assert same(folder)


def test_a_directory_granted_to_write_makes_no_device_socket_or_pipe(
    ww_account: Ww, program: Path, folder: Path
) -> None:
    kinds = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    calls = [call("mknodat", FOLDER, "node", kind | 0o666, 0x103) for kind in kinds]
    tried = enter(ww_account, program, folder, "rw by number", *calls)
    assert set(tried.refusals()) <= {errno.EPERM, errno.EACCES}
    assert not (folder / "node").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a device")
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

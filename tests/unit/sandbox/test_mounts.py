"""Directories that are re-rooted, and the writable /tmp: attacked from inside."""

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sandbox import mounts, syscalls
from sandbox.errors import JailError
from tests.conftest import CAN_BE_ROOT, OWN_ACCOUNT, Account
from tests.features import needs
from tests.probes.refuse import refuse
from tests.unit.sandbox.cloned import answer, become, cell_id, cloned, forked, open_answer

needs_root = needs("root", CAN_BE_ROOT, "only root can mount for the test")

TARGET = 10
HARD = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
MS_SHARED = 1 << 20
CLONE_NEWNS = syscalls.CLONE_NEWNS
RENAME_EXCHANGE = 2

libc = ctypes.CDLL(None, use_errno=True)


def by_path(trees: Mapping[int, int]) -> dict[str, int]:
    """Granted directories by the places that they are attached at."""
    return {mounts.tree_path(target): tree for target, tree in trees.items()}


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "libc")


def mount(filesystem: str, path: str, flags: int = 0) -> None:
    _call(libc.mount(b"none", path.encode(), filesystem.encode(), ctypes.c_ulong(flags), None))


def own_mounts(propagation: int = syscalls.MS_PRIVATE) -> None:
    """Give the process mounts of its own, so that the test's are gone with it."""
    _call(libc.unshare(CLONE_NEWNS))
    _call(libc.mount(b"none", b"/", None, ctypes.c_ulong(syscalls.MS_REC | propagation), None))


@pytest.fixture
def folder(account: Account, account_folders: Path) -> Path:
    """A directory that the account may read, and its cells may change."""
    made = account_folders / f"granted-{len(os.listdir(account_folders))}"
    made.mkdir(mode=0o755)
    _give(account, made)
    return made


def _give(account: Account, path: Path) -> Path:
    """Let a path belong to the user that the account's cells are on the host."""
    if CAN_BE_ROOT:
        os.chown(path, cell_id(account), cell_id(account), follow_symlinks=False)
    return path


def _fill(account: Account, folder: Path) -> None:
    """Put in a file, a directory with a file, an empty directory, and a link that leads out."""
    (folder / "file").write_bytes(b"content")
    (folder / "file").chmod(0o755)
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_bytes(b"deep")
    (folder / "empty").mkdir()
    (folder / "out").symlink_to("../" * 40 + "etc/passwd")
    for path in folder.rglob("*"):
        _give(account, path)


def _open(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def jailed(
    account: Account,
    granted: Mapping[Path, str],
    body: Callable[[dict[int, int], int | None], Any],
    *,
    scratch: int = 0,
    as_root: Callable[[], None] = lambda: None,
) -> Any:
    """Run a function in a cell's root with directories, in the order that the jail does it.

    Args:
        account: Who runs the cell.
        granted: Directories, each with its mode; the first has the target 10.
        body: Gets what `open_directories` returned.
        scratch: Bytes of /tmp.
        as_root: Done first, before the process becomes the account's.
    """
    read_only = {TARGET + i: mode == "r" for i, mode in enumerate(granted.values())}

    def spawner() -> Any:
        as_root()
        become(account)
        fds = {TARGET + i: _open(path) for i, path in enumerate(granted)}
        privileged = os.geteuid() == 0
        if privileged:
            fds = {t: mounts.clone_tree(fd, read_only=read_only[t]) for t, fd in fds.items()}

        def cell() -> Any:
            trees = fds
            if not privileged:
                trees = {t: mounts.reopen_tree(f, read_only=read_only[t]) for t, f in fds.items()}
            mounts.attach_root(mounts.make_root())
            mounts.leave_old_root()
            mounts.furnish({}, list(fds), (), proc=False, scratch=scratch > 0)
            mounts.attach(None, by_path(trees), scratch)
            mounts.seal_root()
            return body(*mounts.open_directories(dict.fromkeys(fds, ""), scratch))

        return cloned(cell)

    return forked(spawner)


def changes(fd: int) -> dict[str, str]:
    """Try everything that changes a file system, through a directory's descriptor."""

    def by_path(call: str, *args: Any) -> Callable[[], None]:
        return lambda: _call(getattr(libc, call)(fd, *args))

    tries: dict[str, Callable[[], Any]] = {
        "create": lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd)),
        "tmpfile": lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=fd)),
        "mkdir": lambda: os.mkdir("newdir", dir_fd=fd),
        "mkfifo": lambda: os.mkfifo("newfifo", dir_fd=fd),
        "symlink": lambda: os.symlink("x", "newlink", dir_fd=fd),
        "link": lambda: os.link("file", "hard", src_dir_fd=fd, dst_dir_fd=fd),
        "rename": lambda: os.rename("file", "moved", src_dir_fd=fd, dst_dir_fd=fd),
        "exchange": by_path("renameat2", b"file", fd, b"sub", RENAME_EXCHANGE),
        "unlink": lambda: os.unlink("sub/deep", dir_fd=fd),
        "rmdir": lambda: os.rmdir("empty", dir_fd=fd),
        "write": lambda: os.close(os.open("file", os.O_WRONLY, dir_fd=fd)),
        "read and write": lambda: os.close(os.open("file", os.O_RDWR, dir_fd=fd)),
        "append": lambda: os.close(os.open("file", os.O_WRONLY | os.O_APPEND, dir_fd=fd)),
        "O_TRUNC": lambda: os.close(os.open("file", os.O_RDONLY | os.O_TRUNC, dir_fd=fd)),
        "utimensat": lambda: os.utime("file", (1, 1), dir_fd=fd),
        "utimensat of itself": lambda: os.utime(fd, (1, 1)),
        "fchmodat": lambda: os.chmod("file", 0o4777, dir_fd=fd),
        "fchmod": lambda: os.fchmod(fd, 0o777),
        "fchownat": lambda: os.chown("file", -1, -1, dir_fd=fd),
        "fsetxattr": lambda: os.setxattr(fd, "user.x", b"1"),
        "in the subdirectory": lambda: os.mkdir("sub/new", dir_fd=fd),
    }

    def through_the_working_directory(call: Callable[[], Any]) -> Callable[[], Any]:
        def act() -> None:
            os.fchdir(fd)
            call()

        return act

    tries |= {
        name: through_the_working_directory(call)
        for name, call in {
            "truncate": lambda: os.truncate("file", 1),
            "setxattr": lambda: os.setxattr("file", "user.x", b"1"),
            "utime": lambda: os.utime("sub"),
        }.items()
    }
    return {name: answer(act) for name, act in tries.items()}


def _snapshot(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


# --- what may be changed -------------------------------------------------------------------------


def test_nothing_changes_a_directory_that_is_granted_for_reading(
    account: Account, folder: Path
) -> None:
    _fill(account, folder)
    before = _snapshot(folder)

    def body(fds: dict[int, int], _: int | None) -> Any:
        answers = changes(fds[TARGET])
        file = os.open("file", os.O_RDONLY, dir_fd=fds[TARGET])
        answers["ftruncate"] = answer(os.ftruncate, file, 0)
        answers["fchmod of a file"] = answer(os.fchmod, file, 0o4777)
        answers["futimens"] = answer(os.utime, file, (1, 1))
        return answers, os.read(file, 64).decode(), sorted(os.listdir(fds[TARGET]))

    answers, content, names = jailed(account, {folder: "r"}, body)
    # EINVAL is ftruncate(2)'s answer to a descriptor that was not opened for writing.
    assert answers.pop("ftruncate") == "EINVAL"
    assert answers == dict.fromkeys(answers, "EROFS")
    assert (content, names) == ("content", ["empty", "file", "out", "sub"])
    assert _snapshot(folder) == before


def test_a_directory_granted_for_writing_can_be_changed_and_the_host_sees_it(
    account: Account, folder: Path
) -> None:
    _fill(account, folder)

    def body(fds: dict[int, int], _: int | None) -> Any:
        answers = changes(fds[TARGET])
        fd = os.open("made", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o640, dir_fd=fds[TARGET])
        os.write(fd, b"by the cell")
        return answers

    answers = jailed(account, {folder: "rw"}, body)
    refused = {name for name, told in answers.items() if told != "ok"}
    # After the rename there is no such file; the attributes may be foreign to the file system.
    assert refused <= {
        *("exchange", "write", "read and write", "append", "O_TRUNC", "utimensat", "fchmodat"),
        *("fchownat", "truncate", "setxattr", "fsetxattr", "tmpfile"),
    }
    assert (folder / "made").read_bytes() == b"by the cell"
    status = (folder / "made").stat()
    assert (status.st_uid, status.st_gid) == (cell_id(account), cell_id(account))


def test_the_same_directory_granted_twice_has_each_its_mode(account: Account, folder: Path) -> None:
    _fill(account, folder)

    def body(fds: dict[int, int], _: int | None) -> Any:
        return [answer(os.mkdir, "one", dir_fd=fd) for fd in fds.values()]

    assert jailed(account, {folder: "r", folder / "sub" / "..": "rw"}, body) == ["EROFS", "ok"]


def test_nothing_is_run_set_user_id_or_a_device(account: Account, folder: Path) -> None:
    program = folder / "program"
    # To run it would be ENOEXEC if it was allowed.
    program.write_bytes(b"\1\2\3\4")
    _give(account, program).chmod(0o4755)
    if CAN_BE_ROOT:
        os.mknod(folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        (folder / "zero").chmod(0o666)

    def body(fds: dict[int, int], _: int | None) -> Any:
        fd = fds[TARGET]
        os.fchdir(fd)
        opened = os.open("program", os.O_RDONLY)
        answers = [
            answer(os.execv, "./program", ["program"]),
            answer(os.execve, opened, ["program"], {}),
            open_answer("zero", os.O_RDONLY) if os.path.lexists("zero") else "EACCES",
            open_answer("zero", os.O_WRONLY) if os.path.lexists("zero") else "EACCES",
        ]
        return answers, os.fstatvfs(fd).f_flag & HARD

    answers, flags = jailed(account, {folder: "rw"}, body)
    assert answers == ["EACCES"] * 4
    assert flags == HARD


@needs_root
def test_a_mount_that_the_host_has_read_only_stays_so(account: Account, folder: Path) -> None:
    """Attributes are added and never taken away."""

    def as_root() -> None:
        own_mounts()
        mount("tmpfs", str(folder), 0)
        _give(account, folder)
        mount("", str(folder), 0x20 | 0x1)  # MS_REMOUNT | MS_RDONLY

    def body(fds: dict[int, int], _: int | None) -> str:
        return answer(os.mkdir, "new", dir_fd=fds[TARGET])

    assert jailed(account, {folder: "rw"}, body, as_root=as_root) == "EROFS"


@needs_root
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_mounts_below_are_included_with_the_same_flags(
    account: Account, folder: Path, mode: str
) -> None:
    """For an ordinary user they are locked in his copy: the kernel lets no clone leave them out."""
    (folder / "sub").mkdir()

    def as_root() -> None:
        own_mounts()
        for path in (folder / "sub", folder / "sub" / "subsub"):
            path.mkdir(exist_ok=True)
            mount("tmpfs", str(path))
            _give(account, path)
            (path / "inner").write_bytes(b"of the mount")
            _give(account, path / "inner")

    def body(fds: dict[int, int], _: int | None) -> Any:
        told = []
        for name in ("sub", "sub/subsub"):
            below = os.open(name, os.O_RDONLY, dir_fd=fds[TARGET])
            inner = os.open("inner", os.O_RDONLY, dir_fd=below)
            told.append(
                (
                    os.read(inner, 64).decode(),
                    os.fstatvfs(below).f_flag & (HARD | os.ST_RDONLY),
                    open_answer("inner", os.O_WRONLY, dir_fd=below),
                    answer(os.unlink, "inner", dir_fd=below),
                )
            )
        return told

    told = jailed(account, {folder: mode}, body, as_root=as_root)
    result = "EROFS" if mode == "r" else "ok"
    flags = HARD | (os.ST_RDONLY if mode == "r" else 0)
    assert told == [["of the mount", flags, result, result]] * 2


@needs_root
def test_what_the_host_mounts_later_does_not_appear_below(account: Account, folder: Path) -> None:
    """Where the host's mounts are shared, as systemd makes them, a clone would be their peer."""
    asked, ask = os.pipe()
    answered, reply = os.pipe()

    def as_root() -> None:
        own_mounts()
        mount("tmpfs", str(folder))
        _call(libc.mount(b"none", bytes(folder), None, ctypes.c_ulong(MS_SHARED), None))
        (folder / "late").mkdir()
        if os.fork() == 0:
            os.read(asked, 1)
            mount("tmpfs", str(folder / "late"))
            (folder / "late" / "from-the-host").touch()
            os.write(reply, str(len(os.listdir(folder / "late"))).encode())
            os._exit(0)

    def body(fds: dict[int, int], _: int | None) -> Any:
        os.write(ask, b"!")
        made = os.read(answered, 1).decode()
        late = os.open("late", os.O_RDONLY, dir_fd=fds[TARGET])
        return made, os.listdir(late)

    try:
        assert jailed(account, {folder: "r"}, body, as_root=as_root) == ["1", []]
    finally:
        for fd in (asked, ask, answered, reply):
            os.close(fd)


# --- the way out ---------------------------------------------------------------------------------


def test_dot_dot_ends_at_the_root_of_the_jail(account: Account, folder: Path) -> None:
    _fill(account, folder)

    def body(fds: dict[int, int], _: int | None) -> Any:
        fd = fds[TARGET]
        root = os.stat("/")
        up = "/".join([".."] * 60)
        starts = [fd, os.open("sub", os.O_RDONLY, dir_fd=fd), os.open(".", os.O_PATH, dir_fd=fd)]
        reached = []
        for start in starts:
            top = os.open(up, os.O_RDONLY | os.O_DIRECTORY, dir_fd=start)
            reached.append(os.path.samestat(os.fstat(top), root))
            reached.append(sorted(os.listdir(top)) == [".dirs"])
        one_step = start = fd
        for _ in range(60):
            start = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=start)
            one_step = start
        reached.append(os.path.samestat(os.fstat(one_step), root))
        os.fchdir(fd)
        os.chdir("../../../..")
        reached.append(os.getcwd() == "/")
        outward = [
            open_answer(f"{up}/etc/passwd", os.O_RDONLY, dir_fd=fd),
            open_answer("/etc/passwd", os.O_RDONLY, dir_fd=fd),
            open_answer("out", os.O_RDONLY, dir_fd=fd),
            open_answer(f"../{'x' * 200}/../..{folder}", os.O_RDONLY, dir_fd=fd),
            open_answer(str(folder), os.O_RDONLY),
            open_answer("/proc/self/root/etc/passwd", os.O_RDONLY),
        ]
        return reached, outward

    reached, outward = jailed(account, {folder: "rw"}, body)
    assert reached == [True] * len(reached)
    assert outward == ["ENOENT"] * len(outward)


def test_a_directory_that_is_moved_out_of_the_grant_is_no_way_out(
    account: Account, folder: Path
) -> None:
    """The classical escape: hold a subdirectory while the host moves it out, then go up from it.

    Above it there is no jail's root on the way. What is above is the host's own tree, in the mount
    that was cloned; the kernel lets nobody go above a directory that is no longer below the mount's
    root, and a rename inside the cell cannot do it at all, because the cell has no place outside.
    """
    _fill(account, folder)
    granted = folder / "sub"
    (granted / "held").mkdir()
    _give(account, granted / "held")
    read, write = os.pipe()
    moved_read, moved_write = os.pipe()

    def body(fds: dict[int, int], _: int | None) -> Any:
        held = os.open("held", os.O_RDONLY, dir_fd=fds[TARGET])
        os.write(write, b"!")
        os.read(moved_read, 1)
        return [
            open_answer("..", os.O_RDONLY, dir_fd=held),
            open_answer("../file", os.O_RDONLY, dir_fd=held),
            open_answer("../" * 30 + "etc/passwd", os.O_RDONLY, dir_fd=held),
        ]

    mover = os.fork()
    if mover == 0:
        os.read(read, 1)
        os.rename(granted / "held", folder / "outside")
        os.write(moved_write, b"!")
        os._exit(0)
    try:
        assert jailed(account, {granted: "rw"}, body) == ["ENOENT"] * 3
    finally:
        os.waitpid(mover, 0)
        for fd in (read, write, moved_read, moved_write):
            os.close(fd)


def test_the_root_holds_nothing_else_and_cannot_be_changed(account: Account, folder: Path) -> None:
    def body(fds: dict[int, int], scratch: int | None) -> Any:
        assert scratch is not None
        changed = [
            answer(os.mkdir, "/new"),
            answer(os.mkdir, "/.dirs/new"),
            answer(os.mkdir, f"/.dirs/{TARGET}/new"),
            answer(os.rename, "/tmp", "/.dirs/tmp"),
            answer(os.rmdir, f"/.dirs/{TARGET + 1}"),
            answer(os.chmod, "/", 0o777),
            answer(os.chmod, "/.dirs", 0o777),
            answer(os.mkdir, "/tmp/new"),
            answer(os.mkdir, "new2", dir_fd=scratch),
        ]
        return sorted(os.listdir("/")), sorted(os.listdir("/.dirs")), changed

    (folder / "a").mkdir()
    _give(account, folder / "a")
    granted = {folder: "r", folder / "a": "rw"}
    names, targets, changed = jailed(account, granted, body, scratch=1 << 20)
    assert names == [".dirs", "tmp"]
    assert targets == [str(TARGET), str(TARGET + 1)]
    assert changed[:3] == ["EROFS"] * 3
    assert changed[3] in ("EBUSY", "EXDEV", "EROFS")
    assert changed[4] in ("EBUSY", "EROFS")
    assert changed[5:7] == ["EROFS"] * 2
    assert changed[7:] == ["ok", "ok"]


def test_the_descriptors_are_close_on_exec_and_no_other_is_left(
    account: Account, folder: Path
) -> None:
    """Counted by number, because there is no proc: the lowest free one tells."""

    def directories() -> int:
        opened = [fd for fd in range(3, 1024) if answer(os.fstat, fd) == "ok"]
        return sum(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in opened)

    def body(fds: dict[int, int], scratch: int | None) -> Any:
        mine = [*fds.values(), scratch]
        return [os.get_inheritable(fd or 0) for fd in mine], directories()

    before = directories()  # what other tests of this process hold open is inherited
    inheritable, count = jailed(account, {folder: "rw"}, body, scratch=1 << 16)
    assert inheritable == [False, False]
    # The two, and the granted descriptor itself, which the step `descriptors` closes.
    assert count == before + 3


def test_many_directories_and_pathlinks_fit_into_the_root() -> None:
    targets = range(10, 1010)

    def cell() -> Any:
        links = {f"n{target}": target for target in targets}
        trees = {}
        for target in itertools.islice(targets, 3):
            trees[target] = mounts._make_scratch(4096)
        mounts.attach_root(mounts.make_root())
        mounts.leave_old_root()
        mounts.furnish(links, targets, (), proc=False, scratch=True)
        mounts.attach(None, by_path(trees), 4096)
        mounts.seal_root()
        fds, scratch = mounts.open_directories(dict.fromkeys(targets, ""), 4096)
        return len(fds), scratch is not None, len(os.listdir("/"))

    def spawner() -> Any:
        become(OWN_ACCOUNT)
        return cloned(cell)

    # With .dirs and tmp.
    assert forked(spawner) == [1000, True, 1002]


# --- a directory that is not what it was ---------------------------------------------------------

# For the whole process, as a unit of systemd or a container is refused it.
OPENERS: dict[str, Callable[[], None]] = {
    "openat2": lambda: None,
    "step by step": lambda: refuse([["openat2", errno.ENOSYS]]),
}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Done by the process in which something is re-rooted: how it can open what it looks for."""
    return OPENERS[request.param]


def _refused(
    account: Account, folder: Path, between: Callable[[], None], opener: Callable[[], None]
) -> Any:
    """Try to re-root `folder/granted`, after something was done to it; return what was said."""

    def spawner() -> Any:
        become(account)
        opener()
        fd = os.open(folder / "granted", os.O_RDONLY | os.O_CLOEXEC)
        between()

        def reopen() -> Any:
            before = _open_count()
            try:
                tree = mounts.reopen_tree(fd, read_only=True)
            except JailError as error:
                return [error.step, errno.errorcode[error.errno], _open_count() - before]
            if stat.S_ISREG(os.fstat(tree).st_mode):
                return ["made", "a file", _open_count() - before]
            names = sorted(os.listdir(os.open(".", os.O_RDONLY, dir_fd=tree)))
            return ["made", str(names), _open_count() - before]

        return cloned(reopen)

    return forked(spawner)


def _open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def _let_the_kernel_tell(path: Path) -> None:
    """Have the path of every descriptor read as this one, as if it was moved right after that."""
    pytest.MonkeyPatch().setattr(os, "readlink", lambda *args, **kwargs: str(path))


@pytest.fixture
def granted(account: Account, folder: Path) -> Path:
    """A directory `granted` in a folder that the account can change as well."""
    if CAN_BE_ROOT:
        os.chown(folder, account.uid, account.gid)
    made = folder / "granted"
    made.mkdir()
    (made / "inside").touch()
    for path in (made, made / "inside"):
        _give(account, path)
        if CAN_BE_ROOT:
            os.chown(path, account.uid, account.gid)
    return made


def test_openat2_is_refused_where_a_test_says_so() -> None:
    """Or the tests of what is done without it would be those with it."""

    def told(act: Callable[[], None]) -> Any:
        def child() -> str:
            become(OWN_ACCOUNT)
            act()
            flags = os.O_PATH | os.O_CLOEXEC
            return answer(syscalls.openat2, syscalls.AT_FDCWD, "/", flags, 0)

        return forked(child)

    assert {name: told(act) for name, act in OPENERS.items()} == {
        "openat2": "ok",
        "step by step": "ENOSYS",
    }


def test_an_unchanged_directory_is_found_again(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    said = _refused(account, folder, lambda: None, opener)
    # The tree's own descriptor, and the one that its names were read from.
    assert said == ["made", "['inside']", 2]


REPLACEMENTS: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a directory": lambda path: path.mkdir(),
    "a file": lambda path: path.touch(),
    "a link to it": lambda path: path.symlink_to("moved"),
    "a link to the root": lambda path: path.symlink_to("/"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to the descriptor": lambda path: path.symlink_to("/proc/self/cwd"),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_directory_that_was_moved_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None], replacement: str
) -> None:
    """Where it went the kernel knows, so its own move is followed; another in its place is not.

    The kernel tells the present path of what is open. So the attacker moves it once more after
    that was read: here the reading is what is replaced.
    """

    def between() -> None:
        granted.rename(folder / "moved")
        REPLACEMENTS[replacement](granted)
        _let_the_kernel_tell(granted)

    assert _refused(account, folder, between, opener) == ["directories", "ESTALE", 0]


def test_a_directory_that_moved_with_its_descriptor_is_the_same(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    def between() -> None:
        granted.rename(folder / "moved")
        granted.mkdir()

    assert _refused(account, folder, between, opener) == ["made", "['inside']", 2]


def test_a_parent_that_became_a_link_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    """The same directory is at the end of the path, but the path is another's to change."""
    (folder / "parent").mkdir()
    inner = folder / "parent" / "granted"
    granted.rename(inner)
    (folder / "granted").symlink_to("parent/granted")
    if CAN_BE_ROOT:
        os.chown(folder / "parent", account.uid, account.gid)

    def between() -> None:
        (folder / "parent").rename(folder / "elsewhere")
        (folder / "parent").symlink_to("elsewhere")
        _let_the_kernel_tell(inner)

    assert _refused(account, folder, between, opener) == ["directories", "ESTALE", 0]


@pytest.mark.parametrize("decoy", [False, True])
def test_a_deleted_directory_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None], decoy: bool
) -> None:
    """The kernel's path for it ends in " (deleted)", which is a name like any other."""

    def between() -> None:
        (granted / "inside").unlink()
        granted.rmdir()
        if decoy:
            (folder / "granted (deleted)").mkdir()

    assert _refused(account, folder, between, opener) == ["directories", "ENOENT", 0]


@pytest.mark.parametrize("replacement", ["a directory", "a file", "a link to it"])
def test_a_file_that_was_moved_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None], replacement: str
) -> None:
    """Without O_DIRECTORY a link can be opened itself, and it is not the file."""
    (granted / "inside").rename(folder / "file")
    granted.rmdir()
    (folder / "file").rename(granted)
    assert _refused(account, folder, lambda: None, opener) == ["made", "a file", 1]

    def between() -> None:
        granted.rename(folder / "moved")
        REPLACEMENTS[replacement](granted)
        _let_the_kernel_tell(granted)

    assert _refused(account, folder, between, opener) == ["directories", "ESTALE", 0]


@needs_root
def test_a_directory_below_one_that_was_closed_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    """Its path has to be open to the cell's user; the descriptor alone is not enough."""
    below = _open(granted)
    os.chown(folder, 0, 0)
    folder.chmod(0o700)

    def spawner() -> Any:
        become(account)
        opener()
        return cloned(lambda: answer(mounts.reopen_tree, below, read_only=True))

    try:
        assert forked(spawner) == "EACCES"
    finally:
        os.close(below)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_whatever_a_filter_answers_to_openat2_the_rest_of_it_is_walked(
    account: Account, folder: Path, granted: Path, number: int
) -> None:
    def refused() -> None:
        refuse([["openat2", number]])

    assert _refused(account, folder, lambda: None, refused) == ["made", "['inside']", 2]


def test_the_root_directory_is_re_rooted(account: Account, opener: Callable[[], None]) -> None:
    """Its path is the one with no name in it."""

    def spawner() -> Any:
        become(account)
        opener()
        fd = _open("/")

        def reopen() -> Any:
            tree = mounts.reopen_tree(fd, read_only=True)
            return os.path.samestat(os.fstat(tree), os.stat("/"))

        return cloned(reopen)

    assert forked(spawner) is True


@needs_root
def test_a_directory_that_was_covered_by_a_mount_is_refused(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    """What root sees below a mount must not come to light because somebody asks by path."""
    under = _open(granted)

    def as_root() -> None:
        own_mounts()
        mount("tmpfs", str(granted))
        os.dup2(under, 200)

    def spawner() -> Any:
        as_root()
        become(account)
        opener()
        _let_the_kernel_tell(granted)
        return cloned(lambda: _jail_error(lambda: mounts.reopen_tree(200, read_only=False)))

    try:
        assert forked(spawner) == ["directories", "ESTALE"]
    finally:
        os.close(under)


def _jail_error(act: Callable[[], Any]) -> list[str]:
    with pytest.raises(JailError) as error:
        act()
    return [error.value.step, errno.errorcode[error.value.errno]]


@needs_root
def test_a_directory_that_was_read_only_is_not_found_writable(
    account: Account, folder: Path, granted: Path, opener: Callable[[], None]
) -> None:
    """A descriptor from another mount namespace, where the same directory may not be changed."""

    def spawner() -> Any:
        here = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        own_mounts()
        flags = ctypes.c_ulong(0x1000)  # MS_BIND
        _call(libc.mount(bytes(granted), bytes(granted), None, flags, None))
        _call(libc.mount(b"none", bytes(granted), None, ctypes.c_ulong(0x1000 | 0x20 | 0x1), None))
        fd = _open(granted)
        _call(libc.setns(here, CLONE_NEWNS))
        become(account)
        opener()

        def inside() -> Any:
            _let_the_kernel_tell(granted)
            return _jail_error(lambda: mounts.reopen_tree(fd, read_only=False))

        return cloned(inside)

    assert forked(spawner) == ["directories", "ESTALE"]


@pytest.mark.parametrize("make", ["device", "pipe", "socket"])
def test_what_is_neither_directory_nor_file_is_refused(make: str) -> None:
    with contextlib.ExitStack() as stack:
        if make == "device":
            fd = os.open("/dev/null", os.O_RDWR)
            stack.callback(os.close, fd)
        elif make == "pipe":
            read, fd = os.pipe()
            stack.callback(os.close, read)
            stack.callback(os.close, fd)
        else:
            fd = stack.enter_context(socket.socket()).fileno()
        for act in (mounts.clone_tree, mounts.reopen_tree):
            with pytest.raises(NotADirectoryError):
                act(fd, read_only=True)


@needs_root
def test_root_clones_a_directory_wherever_it_was_moved_to_but_not_a_deleted_one(
    folder: Path,
) -> None:
    (folder / "one" / "inside").mkdir(parents=True)

    def spawner() -> Any:
        own_mounts()
        fd = _open(folder / "one")
        (folder / "one").rename(folder / "two")
        tree = mounts.clone_tree(fd, read_only=True)
        names = os.listdir(os.open(".", os.O_RDONLY, dir_fd=tree))
        (folder / "two" / "inside").rmdir()
        (folder / "two").rmdir()
        return names, _jail_error(lambda: mounts.clone_tree(fd, read_only=True))

    assert forked(spawner) == [["inside"], ["directories", "ENOENT"]]


@needs_root
def test_root_is_refused_a_directory_of_another_mount_namespace(folder: Path) -> None:
    def spawner() -> str:
        fd = _open(folder)
        own_mounts()
        return answer(mounts.clone_tree, fd, read_only=True)

    assert forked(spawner) == "EINVAL"


NAMES = [
    "a\nb",
    "a b",
    "\\040",
    "back\\slash",
    "é\U0001f600",
    os.fsdecode(b"\xff\xfe"),
    "%s",
    "x (deleted)",
    "-rf",
    "n" * 255,
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_directory_of_any_name_is_re_rooted(account: Account, folder: Path, name: str) -> None:
    (folder / name / name).mkdir(parents=True)
    for path in (folder / name, folder / name / name):
        _give(account, path)

    def body(fds: dict[int, int], _: int | None) -> list[str]:
        return [*os.listdir(fds[TARGET]), answer(os.mkdir, "new", dir_fd=fds[TARGET])]

    assert jailed(account, {folder / name: "r"}, body) == [name, "EROFS"]


def test_a_directory_of_any_name_is_walked_to(account: Account, folder: Path) -> None:
    made = folder
    for name in NAMES:
        made = made / name
        made.mkdir()
        _give(account, made)

    def spawner() -> Any:
        become(account)
        OPENERS["step by step"]()
        fd = _open(made)

        def reopen() -> Any:
            tree = mounts.reopen_tree(fd, read_only=True)
            return os.path.samestat(os.fstat(tree), os.fstat(fd))

        return cloned(reopen)

    assert forked(spawner) is True


def test_a_directory_deeper_than_a_path_can_say(
    account: Account, folder: Path, opener: Callable[[], None]
) -> None:
    """Root clones it by its descriptor; for a user it is refused, not found somewhere else."""

    def spawner() -> Any:
        become(account)
        opener()
        os.umask(0)
        fd = _open(folder)
        for _ in range(40):
            os.mkdir("d" * 200, 0o777, dir_fd=fd)
            fd = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.mkdir("bottom", dir_fd=fd)
        if os.geteuid() == 0:
            tree = mounts.clone_tree(fd, read_only=True)
            return os.listdir(os.open(".", os.O_RDONLY, dir_fd=tree))
        return cloned(lambda: answer(mounts.reopen_tree, fd, read_only=True))

    try:
        assert forked(spawner) == (["bottom"] if account.uid == 0 else "ENAMETOOLONG")
    finally:
        # shutil.rmtree works with paths, and leaves what no path can name.
        subprocess.run(["rm", "-rf", folder / ("d" * 200)], check=True)


@needs_root
def test_a_directory_that_the_cells_user_may_not_read_is_named(account_folders: Path) -> None:
    """A cell of root has no more rights to its directories than an unprivileged user has."""
    private = account_folders / "private"
    private.mkdir(mode=0o700)

    def spawner() -> Any:
        become(OWN_ACCOUNT)
        tree = mounts.clone_tree(_open(private), read_only=True)

        def cell() -> Any:
            mounts.attach_root(mounts.make_root())
            mounts.leave_old_root()
            mounts.furnish({}, [TARGET], (), proc=False, scratch=False)
            mounts.attach(None, by_path({TARGET: tree}), 0)
            with pytest.raises(PermissionError) as error:
                mounts.open_directories({TARGET: "what it is called"}, 0)
            return error.value.filename

        return cloned(cell)

    assert forked(spawner) == "what it is called"


# --- the writable /tmp ---------------------------------------------------------------------------


def _write_all(scratch: int) -> int:
    fd = os.open("big", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=scratch)
    written = 0
    with contextlib.suppress(OSError):
        while True:
            written += os.write(fd, bytes(4096))
    os.close(fd)
    return written


@pytest.mark.parametrize("size", [1, 4096, 100_000, 1 << 20])
def test_scratch_holds_its_size_and_no_more(account: Account, size: int) -> None:
    def body(_: dict[int, int], scratch: int | None) -> int:
        assert scratch is not None
        return _write_all(scratch)

    written = jailed(account, {}, body, scratch=size)
    assert 0 < written <= -(-size // 4096) * 4096


def test_scratch_holds_a_bounded_number_of_files(account: Account) -> None:
    """A tmpfs without a bound takes as many empty files as the machine has memory for."""

    def body(_: dict[int, int], scratch: int | None) -> Any:
        count = 0
        told = ""
        for count in range(10_000):
            made = os.mkdir if count % 2 else os.mkfifo
            told = answer(made, f"n{count}", dir_fd=scratch)
            if told != "ok":
                break
        assert scratch is not None
        return count, told, os.fstatvfs(scratch).f_files

    count, told, files = jailed(account, {}, body, scratch=1 << 20)
    assert told == "ENOSPC"
    assert count < files == 256


@pytest.mark.parametrize(
    ("size", "inodes"),
    [(1, 64), (1 << 18, 64), (1 << 20, 256), (1 << 28, 1 << 16), (1 << 40, 1 << 16)],
)
def test_scratch_has_inodes_by_its_size(size: int, inodes: int) -> None:
    def body(_: dict[int, int], scratch: int | None) -> Any:
        assert scratch is not None
        told = os.fstatvfs(scratch)
        return told.f_files, told.f_blocks * told.f_frsize

    assert jailed(OWN_ACCOUNT, {}, body, scratch=size) == [inodes, -(-size // 4096) * 4096]


def test_scratch_is_the_cells_alone_and_runs_nothing(account: Account) -> None:
    def body(_: dict[int, int], scratch: int | None) -> Any:
        assert scratch is not None
        status = os.fstat(scratch)
        fd = os.open("program", os.O_CREAT | os.O_WRONLY, 0o755, dir_fd=scratch)
        os.write(fd, b"#!/bin/true\n")
        os.close(fd)
        return (
            [stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid],
            os.fstatvfs(scratch).f_flag & (HARD | os.ST_RDONLY),
            answer(os.execv, "/tmp/program", ["program"]),
            os.path.samestat(os.stat("/tmp"), status),
        )

    owned, flags, told, same = jailed(account, {}, body, scratch=1 << 16)
    assert owned == [0o700, 65534, 65534]
    assert flags == HARD
    assert told == "EACCES"
    assert same


def test_without_scratch_there_is_none(account: Account, folder: Path) -> None:
    def body(_: dict[int, int], scratch: int | None) -> Any:
        return scratch, os.listdir("/"), answer(os.mkdir, "/tmp")

    assert jailed(account, {folder: "rw"}, body) == [None, [".dirs"], "EROFS"]


@pytest.mark.parametrize("size", [1 << 64, 1 << 70, -1])
def test_a_size_that_nobody_can_count_is_refused(size: int) -> None:
    """The kernel takes it and counts what is left of it in 64 bits, and 0 is no bound."""

    def spawner() -> Any:
        become(OWN_ACCOUNT)

        def inside() -> Any:
            before = _open_count()
            return answer(mounts._make_scratch, size), _open_count() - before

        return cloned(inside)

    assert forked(spawner) == ["EINVAL", 0]

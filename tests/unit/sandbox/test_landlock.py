"""Rights to files, given up in the kernel: attacked from inside, for root and for a user."""

import errno
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import prctl
import pytest

from sandbox import landlock, mounts, syscalls
from sandbox.grants import Mode
from tests.conftest import CAN_BE_ROOT, Account
from tests.features import lacks
from tests.unit.sandbox.cloned import (
    answer,
    become,
    cell_id,
    cloned,
    forked,
    in_namespaces,
    open_answer,
)

TCGETS = 0x5401
USER = syscalls.CLONE_NEWUSER
# To run it would be ENOEXEC if it was allowed. A real program's loader could be what is refused.
NO_PROGRAM = b"\1\2\3\4"
TARGET = 10


@pytest.fixture(autouse=True)
def _landlock() -> None:
    if landlock.abi() == 0:
        lacks("landlock", "this kernel has no Landlock")


@pytest.fixture
def folder(account: Account, account_folders: Path) -> Path:
    """A directory that the account's cells may change, with a file in it that they may change."""
    made = account_folders / f"landlock-{len(os.listdir(account_folders))}"
    made.mkdir(mode=0o755)
    _file(account, made / "file")
    _give(account, made)
    return made


def _give(account: Account, path: Path) -> Path:
    if CAN_BE_ROOT:
        os.chown(path, cell_id(account), cell_id(account), follow_symlinks=False)
    return path


def _file(account: Account, path: Path, content: bytes = b"content", mode: int = 0o755) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return _give(account, path)


def _directory(account: Account, path: Path) -> Path:
    """A directory with all that a cell could want to do something to."""
    path.mkdir()
    _file(account, path / "file")
    _file(account, path / "program", NO_PROGRAM)
    for name in ("sub", "empty"):
        _give(account, _made(path / name))
    _file(account, path / "sub" / "deep")
    os.mkfifo(path / "fifo")
    (path / "fifo").chmod(0o666)
    return _give(account, path)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _restrict(
    readable: Sequence[int] = (),
    files: Sequence[tuple[int, Mode]] = (),
    directories: Sequence[tuple[int, Mode]] = (),
) -> None:
    prctl.set_no_new_privs(1)
    syscalls.clear_capabilities()
    landlock.restrict(readable, files, directories)


def _reopen(fd: int) -> dict[str, str]:
    """Try to get more out of a descriptor by way of its entry in proc."""
    path = f"/proc/self/fd/{fd}"
    return {
        "r": open_answer(path, os.O_RDONLY),
        "w": open_answer(path, os.O_WRONLY),
        "rw": open_answer(path, os.O_RDWR),
        "append": open_answer(path, os.O_WRONLY | os.O_APPEND),
        "truncate": answer(os.truncate, path, 1),
        "r, O_TRUNC": open_answer(path, os.O_RDONLY | os.O_TRUNC),
        "w, O_TRUNC": open_answer(path, os.O_WRONLY | os.O_TRUNC),
    }


_ALLOWED: dict[str, set[str]] = {
    "none": set(),
    "r": {"r"},
    "w": {"w", "append", "truncate", "w, O_TRUNC"},
    "rw": {"r", "w", "rw", "append", "truncate", "r, O_TRUNC", "w, O_TRUNC"},
}
# Before version 3 there is no right to truncate, so it cannot be given up: there only the filter of
# system calls is in the way.
_HOLDS_TRUNCATION = 3
_NOT_HELD: dict[str, set[str]] = {"none": {"truncate"}, "r": {"truncate", "r, O_TRUNC"}}


def _allowed_of(mode: str, version: int | None = None) -> set[str]:
    """What is to be allowed of a file with a mode, under a version or this kernel's."""
    held = (landlock.abi() if version is None else version) >= _HOLDS_TRUNCATION
    return _ALLOWED[mode] | (set() if held else _NOT_HELD.get(mode, set()))


def _allowed(answers: dict[str, str]) -> set[str]:
    assert set(answers.values()) <= {"ok", "EACCES"}
    return {name for name, told in answers.items() if told == "ok"}


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "r", "w", "rw"])
def test_a_descriptor_cannot_be_opened_again_with_more_than_its_mode(
    account: Account, folder: Path, mode: str
) -> None:
    def body() -> dict[str, str]:
        fd = os.open(folder / "file", os.O_RDWR)
        modes: dict[str, list[tuple[int, Mode]]] = {
            "none": [],
            "r": [(fd, "r")],
            "w": [(fd, "w")],
            "rw": [(fd, "rw")],
        }
        _restrict(files=modes[mode])
        answers = _reopen(fd)
        # Not by its name either, and not by another descriptor's.
        assert answers == _reopen(os.dup(fd))
        assert answers["r"] == open_answer(str(folder / "file"), os.O_RDONLY)
        assert answers["rw"] == open_answer(str(folder / "file"), os.O_RDWR)
        return answers

    assert _allowed(in_namespaces(account, body)) == _allowed_of(mode)


def test_what_was_opened_before_keeps_what_it_can(account: Account, folder: Path) -> None:
    """It is not Landlock that holds these: the host of the cell's calls does."""

    def body() -> Any:
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        return os.pwrite(fd, b"C", 0), answer(os.ftruncate, fd, 3)

    assert in_namespaces(account, body) == [1, "ok"]
    assert (folder / "file").read_bytes() == b"Con"


def test_a_deleted_file_keeps_its_rule(account: Account, folder: Path) -> None:
    def body() -> dict[str, str]:
        fd = os.open(folder / "file", os.O_RDWR)
        (folder / "file").unlink()
        _restrict(files=[(fd, "r")])
        return _reopen(fd)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("r")


def test_another_name_of_the_file_gives_no_more(account: Account, folder: Path) -> None:
    def body() -> Any:
        os.link(folder / "file", folder / "other")
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        other = str(folder / "other")
        return [open_answer(other, os.O_RDONLY), open_answer(other, os.O_RDWR)]

    assert in_namespaces(account, body) == ["ok", "EACCES"]


def test_what_stays_readable_is_only_readable(account: Account, folder: Path) -> None:
    def body() -> dict[str, str]:
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(readable=[fd])
        return _reopen(fd)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("r")


def test_two_grants_of_one_file_add_up(account: Account, folder: Path) -> None:
    """Rules are the file's: a cell that got both anyhow can have both through one of them."""

    def body() -> dict[str, str]:
        one, two = (os.open(folder / "file", os.O_RDWR) for _ in range(2))
        _restrict(files=[(one, "r"), (two, "w")])
        return _reopen(one)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("rw")


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_no_file_is_run_whatever_its_mode(account: Account, folder: Path, mode: Mode) -> None:
    _file(account, folder / "program", NO_PROGRAM)

    def body() -> list[str]:
        fd = os.open(folder / "program", os.O_RDONLY)
        _restrict(files=[(fd, mode)], directories=[(os.open(folder, os.O_RDONLY), mode)])
        return [
            answer(os.execv, folder / "program", ["program"]),
            answer(os.execve, fd, ["program"], {}),
            answer(os.execv, f"/proc/self/fd/{fd}", ["program"]),
            answer(os.execv, "/bin/true", ["true"]),
        ]

    assert in_namespaces(account, body) == ["EACCES"] * 4


def test_no_device_is_controlled(account: Account) -> None:
    """But the one that was open before, of which the system call filter is to take care."""
    if landlock.abi() < 5:
        lacks("landlock", "Landlock of this kernel is older than its rule for devices")

    def body() -> list[str]:
        fd = os.open("/dev/zero", os.O_RDWR)
        _restrict(files=[(fd, "rw")])
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        return [answer(fcntl.ioctl, n, TCGETS, bytes(64)) for n in (fd, again)]

    assert in_namespaces(account, body) == ["ENOTTY", "EACCES"]


def test_nothing_else_of_the_host_can_be_opened(account: Account, folder: Path) -> None:
    def body() -> list[str]:
        _restrict(files=[(os.open(folder / "file", os.O_RDONLY), "r")])
        return [
            open_answer("/", os.O_RDONLY),
            open_answer("/etc/passwd", os.O_RDONLY),
            open_answer(str(folder), os.O_RDONLY),
            open_answer(str(folder / "new"), os.O_CREAT | os.O_WRONLY),
            open_answer("/proc/self/environ", os.O_RDONLY),
            open_answer("/proc/self/mem", os.O_RDWR),
            open_answer("/dev/null", os.O_WRONLY),
            open_answer("/tmp", os.O_TMPFILE | os.O_RDWR),
            answer(os.listdir, "/proc/self/fd"),
            answer(os.mkdir, folder / "newdir"),
            answer(os.unlink, folder / "file"),
            answer(os.rename, folder / "file", folder / "moved"),
            answer(os.symlink, "x", folder / "link"),
            answer(os.link, folder / "file", folder / "hard"),
        ]

    assert in_namespaces(account, body) == ["EACCES"] * 14
    assert os.listdir(folder) == ["file"]


# --- what is no file -----------------------------------------------------------------------------

NO_FILES: dict[str, Callable[[], int]] = {
    "memfd": lambda: os.memfd_create("m"),
    "pipe, read": lambda: os.pipe()[0],
    "pipe, write": lambda: os.pipe()[1],
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "eventfd": lambda: os.eventfd(0),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "namespace": lambda: os.open("/proc/self/ns/user", os.O_RDONLY),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_in_no_file_hierarchy_is_passed_over(
    account: Account, folder: Path, kind: str
) -> None:
    """It is no error, and no hole for anything else."""

    def body() -> list[str]:
        fd = NO_FILES[kind]()
        file = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "rw"), (file, "r")])
        return [open_answer(f"/proc/self/fd/{file}", f) for f in (os.O_RDONLY, os.O_RDWR)]

    assert in_namespaces(account, body) == ["ok", "EACCES"]


@pytest.mark.parametrize("kind", ["memfd", "pipe, read"])
def test_what_landlock_cannot_hold(account: Account, kind: str) -> None:
    """Were this to fail, the kernel would do more, and the module's text would have to change."""

    def body() -> str:
        fd = NO_FILES[kind]()
        _restrict(files=[(fd, "r")])
        return open_answer(f"/proc/self/fd/{fd}", os.O_RDWR)

    assert in_namespaces(account, body) == "ok"


def test_a_named_pipe_is_held(account: Account, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "fifo").chmod(0o666)
    _give(account, folder / "fifo")

    def body() -> list[str]:
        fd = os.open(folder / "fifo", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        return [
            open_answer(f"/proc/self/fd/{fd}", f) for f in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        ]

    assert in_namespaces(account, body) == ["ok", "EACCES", "EACCES"]


@pytest.mark.parametrize("where", ["readable", "files", "directories"])
def test_a_number_that_is_not_open_is_an_error(account: Account, where: str) -> None:
    def body() -> Any:
        given: Any = {where: [1000 if where == "readable" else (1000, "r")]}
        told = answer(_restrict, **given)
        return told, open_answer("/etc/passwd", os.O_RDONLY)

    assert in_namespaces(account, body) == ["EBADF", "ok"]


@pytest.mark.parametrize("kind", ["pipe, read", "memfd"])
def test_a_directory_that_is_none_is_an_error(account: Account, kind: str) -> None:
    def body() -> str:
        return answer(_restrict, directories=[(NO_FILES[kind](), "r")])

    assert in_namespaces(account, body) == "EBADFD"


def test_rights_of_a_directory_on_a_file_are_an_error(account: Account, folder: Path) -> None:
    def body() -> str:
        return answer(_restrict, directories=[(os.open(folder / "file", os.O_RDONLY), "r")])

    assert in_namespaces(account, body) == "EINVAL"


# --- directories ---------------------------------------------------------------------------------


def _act(folder: Path, other: Path) -> dict[str, str]:
    """Try everything in a directory, and between it and another one with the same mode."""
    at = str(folder)

    def opened(name: str, flags: int) -> str:
        return open_answer(f"{at}/{name}", flags)

    return {
        "list": opened(".", os.O_RDONLY | os.O_DIRECTORY),
        "list below": opened("sub", os.O_RDONLY | os.O_DIRECTORY),
        "read": opened("file", os.O_RDONLY),
        "read below": opened("sub/deep", os.O_RDONLY),
        "write": opened("file", os.O_WRONLY),
        "read and write": opened("file", os.O_RDWR),
        "truncate": answer(os.truncate, f"{at}/file", 3),
        "write to the fifo": _write_to_fifo(f"{at}/fifo"),
        "create": opened("new", os.O_CREAT | os.O_WRONLY),
        "tmpfile": opened(".", os.O_TMPFILE | os.O_WRONLY),
        "mkdir": answer(os.mkdir, f"{at}/newdir"),
        "symlink": answer(os.symlink, "x", f"{at}/newlink"),
        "mkfifo": answer(os.mkfifo, f"{at}/newfifo"),
        "socket": answer(_bind, f"{at}/newsocket"),
        "execute": answer(os.execv, f"{at}/program", ["program"]),
        "rename": answer(os.rename, f"{at}/file", f"{at}/moved"),
        "rename to below": answer(os.rename, f"{at}/program", f"{at}/sub/moved"),
        "link to below": answer(os.link, f"{at}/sub/deep", f"{at}/hard"),
        "link to the other": answer(os.link, f"{at}/sub/deep", f"{other}/hard"),
        "rename to the other": answer(os.rename, f"{at}/sub/deep", f"{other}/moved"),
        "rmdir": answer(os.rmdir, f"{at}/empty"),
        "unlink": answer(os.unlink, f"{at}/fifo"),
        "leave": open_answer(f"{at}/../file", os.O_RDONLY),
        "leave by a name": answer(os.mkdir, f"{at}/../newdir"),
        "link out": answer(os.link, f"{at}/sub", f"{at}/../hard"),
        "rename out": answer(os.rename, f"{at}/sub", f"{at}/../moved"),
    }


def _write_to_fifo(path: str) -> str:
    """ENXIO, for want of a reader, comes after the question for the right."""
    told = open_answer(path, os.O_WRONLY)
    return "ok" if told == "ENXIO" else told


def _bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of the test may be longer than a socket's may be.
        os.chdir(os.path.dirname(path))
        listener.bind(os.path.basename(path))


READS = {"list", "list below", "read", "read below"}
WRITES = {"write", "truncate", "write to the fifo"}
CHANGES = {
    *("create", "tmpfile", "mkdir", "symlink", "rename", "rename to below", "link to below"),
    *("link to the other", "rename to the other", "rmdir", "unlink"),
}


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [("r", READS), ("w", WRITES | CHANGES), ("rw", READS | WRITES | CHANGES | {"read and write"})],
)
def test_a_directory_gives_its_mode_and_all_below(
    account: Account, folder: Path, mode: Mode, allowed: set[str]
) -> None:
    one, other = (_directory(account, folder / name) for name in ("one", "other"))

    def body() -> dict[str, str]:
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (one, other)]
        _restrict(directories=[(fd, mode) for fd in fds])
        return _act(one, other)

    answers = in_namespaces(account, body)
    if landlock.abi() < _HOLDS_TRUNCATION:
        allowed = allowed | {"truncate"}
    assert {name for name, told in answers.items() if told == "ok"} == allowed
    refused = {name: told for name, told in answers.items() if told != "ok"}
    # EXDEV is Landlock's word where a rename could be made by copying.
    assert set(refused.values()) <= {"EACCES", "EXDEV", "EPERM"}
    assert sorted(os.listdir(folder)) == ["file", "one", "other"]


def test_nothing_is_moved_to_where_more_can_be_done_with_it(account: Account, folder: Path) -> None:
    """REFER is a right to move, and never one to gain another by it."""
    one, other = (_directory(account, folder / name) for name in ("one", "other"))

    def body() -> list[str]:
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (one, other)]
        _restrict(directories=[(fds[0], "r"), (fds[1], "rw")])
        return [
            answer(os.link, one / "file", other / "hard"),
            answer(os.rename, one / "file", other / "moved"),
            answer(os.link, other / "file", one / "hard"),
            answer(os.rename, other / "file", one / "moved"),
        ]

    assert set(in_namespaces(account, body)) <= {"EACCES", "EXDEV"}
    assert not {"hard", "moved"} & {*os.listdir(one), *os.listdir(other)}


def test_a_file_below_a_granted_directory_has_its_rights_besides(
    account: Account, folder: Path
) -> None:
    def body() -> dict[str, str]:
        file = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(file, "r")], directories=[(os.open(folder, os.O_RDONLY), "rw")])
        return _reopen(file)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("rw")


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_re_rooted_directory_and_a_file_in_the_whole_jail(
    account: Account, folder: Path, mode: Mode
) -> None:
    """With the root of a cell, from which the host's mounts are gone, rules are found all the same.

    A pipe in a directory for reading is what a read-only mount does not hold.
    """
    tree = _directory(account, folder / "tree")

    def spawner() -> Any:
        become(account)
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        privileged = os.geteuid() == 0
        if privileged:
            fd = mounts.clone_tree(fd, read_only=mode == "r")

        def cell() -> Any:
            file = os.open(folder / "file", os.O_RDWR)
            here = fd if privileged else mounts.reopen_tree(fd, read_only=mode == "r")
            proc = mounts.make_proc()
            mounts.attach_root(mounts.make_root())
            mounts.leave_old_root()
            mounts.furnish({"file": file}, [TARGET], (), proc=True, scratch=True)
            mounts.attach(proc, {mounts.tree_path(TARGET): here}, 1 << 20)
            mounts.seal_root()
            fds, scratch = mounts.open_directories({TARGET: ""}, 1 << 20)
            assert scratch is not None
            _restrict([], [(file, "r")], [(fds[TARGET], mode), (scratch, "rw")])
            return {
                "file": [open_answer("/file", f) for f in (os.O_RDONLY, os.O_RDWR)],
                "fifo": [_write_to_fifo(f"/.dirs/{TARGET}/fifo")],
                "tree": [
                    open_answer("file", os.O_RDONLY, dir_fd=fds[TARGET]),
                    open_answer("new", os.O_CREAT | os.O_WRONLY, dir_fd=fds[TARGET]),
                ],
                "scratch": [
                    open_answer("new", os.O_CREAT | os.O_WRONLY, dir_fd=scratch),
                    answer(os.mkfifo, "fifo", dir_fd=scratch),
                ],
                "elsewhere": [
                    open_answer("/", os.O_RDONLY),
                    open_answer("/.dirs", os.O_RDONLY),
                    open_answer("..", os.O_RDONLY, dir_fd=scratch),
                    open_answer("/proc/self/status", os.O_RDONLY),
                ],
            }

        return cloned(cell)

    told = forked(spawner)
    writing = "ok" if mode == "rw" else "EACCES"
    assert told["file"] == ["ok", "EACCES"]
    assert told["fifo"] == [writing]
    assert told["tree"] == ["ok", "ok" if mode == "rw" else "EROFS"]
    assert told["scratch"] == ["ok", "EACCES"]
    assert told["elsewhere"] == ["EACCES"] * 4


# --- network and signals -------------------------------------------------------------------------


def test_no_tcp(account: Account) -> None:
    if landlock.abi() < 4:
        lacks("landlock", "Landlock of this kernel is older than its rules for TCP")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = server.getsockname()

        def body() -> list[str]:
            with socket.socket() as reachable:
                reachable.connect(address)
            _restrict()
            made = [socket.socket() for _ in range(3)]
            return [
                answer(made[0].connect, address),
                answer(made[1].bind, ("127.0.0.1", 0)),
                answer(socket.socket(socket.AF_INET6).bind, ("::1", 0)),
            ]

        assert in_namespaces(account, body, USER) == ["EACCES"] * 3


def test_no_abstract_socket_from_before(account: Account) -> None:
    if landlock.abi() < 6:
        lacks("landlock", "Landlock of this kernel is older than its scopes")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + os.urandom(8).hex())
        server.listen()
        address = server.getsockname()

        def body() -> list[str]:
            with socket.socket(socket.AF_UNIX) as reachable:
                reachable.connect(address)
            _restrict()
            return [answer(socket.socket(socket.AF_UNIX).connect, address)]

        assert in_namespaces(account, body, USER) == ["EPERM"]


def test_no_signal_to_a_process_of_the_same_user(account: Account) -> None:
    if landlock.abi() < 6:
        lacks("landlock", "Landlock of this kernel is older than its scopes")

    def body() -> list[str]:
        sibling = os.fork()
        if sibling == 0:
            signal.pause()
        before = answer(os.kill, sibling, 0)
        handle = os.pidfd_open(sibling)
        _restrict()
        return [
            before,
            answer(os.kill, sibling, signal.SIGKILL),
            answer(signal.pidfd_send_signal, handle, signal.SIGKILL),
            answer(os.kill, os.getpid(), 0),
        ]

    # In a pid namespace: the sibling ends with this process.
    assert in_namespaces(account, body) == ["ok", "EPERM", "EPERM", "ok"]


# --- versions ------------------------------------------------------------------------------------


def _pretend(version: int) -> None:
    pytest.MonkeyPatch().setattr(syscalls, "landlock_version", lambda: version)


@pytest.mark.parametrize("version", range(1, 8))
def test_a_version_asks_for_nothing_that_it_does_not_know(
    account: Account, folder: Path, version: int
) -> None:
    """A newer kernel takes what an older one would: what is asked of it is looked at."""
    if landlock.abi() < version:
        lacks("landlock", f"Landlock of this kernel is older than version {version}")
    _directory(account, folder / "tree")

    def body() -> Any:
        _pretend(version)
        asked: list[tuple[int, ...]] = []
        make, restrict = syscalls.landlock_create_ruleset, syscalls.landlock_restrict_self

        def record_make(*args: int) -> int:
            asked.append(args)
            return make(*args)

        def record_restrict(rules: int, flags: int) -> None:
            asked.append((flags,))
            restrict(rules, flags)

        patch = pytest.MonkeyPatch()
        patch.setattr(syscalls, "landlock_create_ruleset", record_make)
        patch.setattr(syscalls, "landlock_restrict_self", record_restrict)
        file = os.open(folder / "file", os.O_RDWR)
        tree = os.open(folder / "tree", os.O_RDONLY)
        _restrict(files=[(file, "r")], directories=[(tree, "rw")])
        return asked, _reopen(file), open_answer("/etc/passwd", os.O_RDONLY)

    (made, flags), reopened, elsewhere = in_namespaces(account, body)
    rights = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}[version]
    assert made == [(1 << rights) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0]
    assert flags == [0b100 if version >= 7 else 0]
    assert elsewhere == "EACCES"
    assert _allowed(reopened) == _allowed_of("r", version)


def test_a_newer_version_is_used_as_far_as_it_is_known(account: Account, folder: Path) -> None:
    if landlock.abi() < 7:
        lacks("landlock", "Landlock of this kernel is older than the newest version that is known")

    def body() -> dict[str, str]:
        _pretend(99)
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        return _reopen(fd)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("r")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_kernel_without_it_restricts_nothing_and_says_so(account: Account, number: int) -> None:
    def body() -> Any:
        def missing() -> int:
            raise OSError(number, os.strerror(number), "landlock_create_ruleset")

        pytest.MonkeyPatch().setattr(syscalls, "landlock_version", missing)
        _restrict(files=[(1000, "r")])
        return landlock.abi(), open_answer("/etc/passwd", os.O_RDONLY)

    assert in_namespaces(account, body) == [0, "ok"]


def test_any_other_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "landlock_create_ruleset")

    monkeypatch.setattr(syscalls, "landlock_version", forbidden)
    with pytest.raises(PermissionError):
        landlock.abi()
    with pytest.raises(PermissionError):
        landlock.restrict([], [], [])


def test_without_no_new_privs_it_fails(account: Account) -> None:
    def body() -> list[str]:
        syscalls.clear_capabilities()
        return [answer(landlock.restrict, [], [], []), open_answer("/etc/passwd", os.O_RDONLY)]

    assert in_namespaces(account, body) == ["EPERM", "ok"]


def test_it_leaves_no_descriptor(account: Account, folder: Path) -> None:
    def body() -> list[bool]:
        listing = os.open("/proc/self/fd", os.O_RDONLY)
        before = os.listdir(listing)
        answer(landlock.restrict, [1000], [], [])
        failed = os.listdir(listing)
        _restrict()
        return [failed == before, os.listdir(listing) == before]

    assert in_namespaces(account, body) == [True, True]


def test_more_restrictions_only_take_away(account: Account, folder: Path) -> None:
    def body() -> dict[str, str]:
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        _restrict(files=[(fd, "rw")])
        return _reopen(fd)

    assert _allowed(in_namespaces(account, body)) == _allowed_of("r")


def test_modes_of_a_file_that_the_kernel_keeps(account: Account, folder: Path) -> None:
    """chmod is no right of Landlock's: of a file that the cell's user owns, it goes on working."""

    def body() -> str:
        fd = os.open(folder / "file", os.O_RDWR)
        _restrict(files=[(fd, "r")])
        return answer(os.fchmod, fd, 0o600)

    assert in_namespaces(account, body) == "ok"
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600

"""Granted directories, in this process: what the walk may reach, and what it leaves open."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox import syscalls
from sandbox.grants import Mode
from sandbox.wasi import abi
from sandbox.wasi.calls import Calls
from sandbox.wasi.directory import RootDirectory
from sandbox.wasi.files import File, Socket, WasiError, open_grant
from sandbox.wasi.memory import GuestMemory
from sandbox.wasi.meter import Meter, OutputLimit
from sandbox.wasi.tree import Directory
from tests.conftest import CAN_BE_ROOT
from tests.features import needs

ALL = (1 << 30) - 1
READ, WRITE = abi.FD_READ, abi.FD_WRITE
CONTENT = b"0123456789"
RESOLVE_BENEATH = 0x08  # include/uapi/linux/openat2.h


def open_fds() -> list[int]:
    with os.scandir("/proc/self/fd") as entries:
        return sorted(int(entry.name) for entry in entries if os.path.lexists(entry.path))


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is granted; beside it lies what must never be reached."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"outside")
    folder = tmp_path / "granted"
    folder.mkdir()
    (folder / "f").write_bytes(CONTENT)
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "g").write_bytes(b"g")
    (folder / "empty").mkdir()
    for name, target in {
        "link": "f",
        "dlink": "sub",
        "dangling": "nothing",
        "absolute": "/etc/passwd",
        "out": "../outside/secret",
        "outdir": "../outside",
        "loop": "loop",
        "round": "sub/deep/../../sub/./g",
        "dslash": "sub/",
        "fslash": "f/",
        "magic": "/proc/self/root/etc/passwd",
        "sub/up": "../f",
        "sub/upup": "../../outside/secret",
    }.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo")
    return folder


Open = Callable[..., Directory]


@pytest.fixture
def grant(folder: Path) -> Iterator[Open]:
    """Makes directories that are closed in the end."""
    made: list[Directory] = []

    def make(mode: Mode = "rw", path: Path = folder, meter: Meter | None = None) -> Directory:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        made.append(Directory(fd, mode, b"/data", meter))
        return made[-1]

    yield make
    for directory in made:
        directory.close()


@pytest.fixture
def directory(grant: Open) -> Directory:
    return grant()


def opened(
    directory: Directory,
    path: bytes,
    rights: int = ALL & ~WRITE,
    *,
    oflags: int = 0,
    fdflags: int = 0,
    follow: bool = True,
) -> File | Directory:
    return directory.open(path, oflags, rights, ALL, fdflags, follow=follow)


def content(directory: Directory, path: bytes, **options: Any) -> bytes:
    file = opened(directory, path, **options)
    assert isinstance(file, File)
    buffer = bytearray(100)
    size = file.read([memoryview(buffer)])
    file.close()
    return bytes(buffer[:size])


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The errno of a call: this machine's, or less than 0 for one of WASI."""
    try:
        result = call(*args, **options)
    except OSError as error:
        return error.errno or 0
    except WasiError as error:
        return -error.errno
    if isinstance(result, File | Directory):
        result.close()
    return 0


# --- the walk -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"f", CONTENT),
        (b"./f", CONTENT),
        (b".//././f", CONTENT),
        (b"sub/../f", CONTENT),
        (b"sub/deep/../../f", CONTENT),
        (b"link", CONTENT),
        (b"dlink/g", b"g"),
        (b"dlink/../f", CONTENT),
        (b"sub/up", CONTENT),
        (b"dlink/up", CONTENT),
        (b"round", b"g"),
        (b"dslash/g", b"g"),
        (b"f/", errno.ENOTDIR),
        (b"f/.", errno.ENOTDIR),
        (b"f/..", errno.ENOTDIR),
        (b"f/g", errno.ENOTDIR),
        (b"link/", errno.ENOTDIR),
        (b"fslash", errno.ENOTDIR),
        (b"nothing", errno.ENOENT),
        (b"nothing/", errno.ENOENT),
        (b"nothing/..", errno.ENOENT),
        (b"dangling", errno.ENOENT),
        (b"", errno.ENOENT),
        (b"loop", errno.ELOOP),
        (b"loop/x", errno.ELOOP),
        (b"..", errno.EPERM),
        (b"../outside/secret", errno.EPERM),
        (b"sub/../../outside/secret", errno.EPERM),
        (b"dlink/../../outside/secret", errno.EPERM),
        (b"absolute", errno.EPERM),
        (b"magic", errno.EPERM),
        (b"out", errno.EPERM),
        (b"outdir/secret", errno.EPERM),
        (b"sub/upup", errno.EPERM),
        (b"/", errno.EPERM),
        (b"/f", errno.EPERM),
        (b"//f", errno.EPERM),
        (b"fifo", errno.EACCES),
        (b"fifo/", errno.ENOTDIR),
        (b"x" * 255, errno.ENOENT),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"sub/" + b"x" * 256 + b"/y", errno.ENAMETOOLONG),
    ],
)
def test_where_a_path_leads(directory: Directory, path: bytes, expected: bytes | int) -> None:
    if isinstance(expected, bytes):
        assert content(directory, path) == expected
        assert directory.stat_path(path, follow=True).size == len(expected)
    else:
        assert refused(opened, directory, path) == expected


def test_a_link_at_the_end_is_followed_only_if_asked(directory: Directory) -> None:
    assert refused(opened, directory, b"link", follow=False) == errno.ELOOP
    assert refused(opened, directory, b"dlink", follow=False) == errno.ELOOP
    assert refused(opened, directory, b"absolute", follow=False) == errno.ELOOP
    # A slash behind it asks for what it leads to.
    assert refused(opened, directory, b"dlink/", follow=False) == 0
    assert directory.stat_path(b"link", follow=False).filetype == abi.SYMBOLIC_LINK
    assert directory.stat_path(b"dlink/", follow=False).filetype == abi.DIRECTORY
    assert refused(directory.stat_path, b"link/", follow=False) == errno.ENOTDIR


@pytest.mark.parametrize(("count", "expected"), [(40, 0), (41, errno.ELOOP)])
def test_forty_links_are_followed_and_no_more(
    directory: Directory, folder: Path, count: int, expected: int
) -> None:
    (folder / "l0").symlink_to("f")
    for index in range(1, count):
        (folder / f"l{index}").symlink_to(f"l{index - 1}")
    assert refused(opened, directory, b"l%d" % (count - 1)) == expected
    # The same on the way: every one counts.
    assert refused(opened, directory, b"dlink/../" * (count - 1) + b"link") == expected


def test_a_path_of_many_directories_takes_few_descriptors(
    directory: Directory, folder: Path
) -> None:
    depth = 200
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    most = len(open_fds()) + 40
    soft, hard = resource_limit()
    resource_limit(most)
    try:
        assert content(directory, b"d/" * depth + b"../" * depth + b"f") == CONTENT
        assert refused(opened, directory, b"d/" * depth + b"../" * (depth + 1) + b"f") == (
            errno.EPERM
        )
        assert directory.stat_path(b"d/" * depth, follow=True).filetype == abi.DIRECTORY
        assert refused(directory.rename, b"d/" * depth + b"x", directory, b"d/" * 100 + b"y") == (
            errno.ENOENT
        )
    finally:
        resource_limit(soft)
    assert hard >= soft


def resource_limit(soft: int | None = None) -> tuple[int, int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    return before


_NAMES = st.sampled_from(
    [
        *("f", "sub", "deep", "g", "empty", "link", "dlink", "dangling", "absolute", "out", "up"),
        *("outdir", "loop", "round", "dslash", "fslash", "magic", "upup", "fifo", "new", "secret"),
        *(".", "..", "", "..", "outside", "x" * 256, "\xff"),
    ]
)
_PATHS = st.builds(
    lambda parts, start, end: os.fsencode(start + "/".join(parts) + end),
    st.lists(_NAMES, max_size=7),
    st.sampled_from(["", "", "", "/", "./"]),
    st.sampled_from(["", "", "/", "//", "/."]),
)


def kernel_says(directory: Directory, path: bytes, *, follow: bool) -> tuple[int, int]:
    """The errno and the inode, by the kernel's own walk that stays beneath a directory."""
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    while True:
        try:
            fd = syscalls.openat2(directory.fd, os.fsdecode(path), flags, RESOLVE_BENEATH)
            break
        except BlockingIOError:
            pass  # something was renamed or mounted somewhere meanwhile: openat2(2)
        except OSError as error:
            return (errno.EPERM if error.errno == errno.EXDEV else error.errno or 0), 0
    inode = os.fstat(fd).st_ino
    os.close(fd)
    return 0, inode


def host_says(directory: Directory, path: bytes, *, follow: bool) -> tuple[int, int]:
    try:
        return 0, directory.stat_path(path, follow=follow).inode
    except OSError as error:
        return error.errno or 0, 0


def test_any_path_leads_where_the_kernel_would_go(directory: Directory) -> None:
    @settings(max_examples=1500, deadline=None, database=None)
    @given(_PATHS, st.booleans())
    @example(b"dlink/../dlink/up", True)
    @example(b"sub/..//../x", False)
    def same(path: bytes, follow: bool) -> None:
        assert host_says(directory, path, follow=follow) == (
            kernel_says(directory, path, follow=follow)
        )

    same()


_OPERATIONS = st.sampled_from(
    [
        *("open", "create", "truncate", "exclusive", "open directory", "stat", "times", "readlink"),
        *("mkdir", "rmdir", "unlink", "symlink", "link", "rename"),
    ]
)


def perform(directory: Directory, what: str, path: bytes, other: bytes, *, follow: bool) -> None:
    flags = {
        "open": 0,
        "create": abi.O_CREAT,
        "truncate": abi.O_TRUNC,
        "exclusive": abi.O_CREAT | abi.O_EXCL,
        "open directory": abi.O_DIRECTORY,
    }
    match what:
        case "stat":
            directory.stat_path(path, follow=follow)
        case "times":
            directory.set_path_times(path, 1, 2, abi.ATIM | abi.MTIM, follow=follow)
        case "readlink":
            directory.read_link(path)
        case "mkdir":
            directory.create_directory(path)
        case "rmdir":
            directory.remove_directory(path)
        case "unlink":
            directory.unlink_file(path)
        case "symlink":
            directory.symlink(other, path)
        case "link":
            directory.link(path, directory, other, follow=follow)
        case "rename":
            directory.rename(path, directory, other)
        case _:
            rights = READ | (0 if what in ("open", "open directory") else WRITE)
            item = directory.open(path, flags[what], rights, ALL, 0, follow=follow)
            try:
                assert not os.get_inheritable(item.fd)
                inside = os.path.realpath(f"/proc/self/fd/{directory.fd}")
                assert f"{os.readlink(f'/proc/self/fd/{item.fd}')}/".startswith(f"{inside}/")
                if isinstance(item, File):
                    assert stat.S_ISREG(os.fstat(item.fd).st_mode)
                    assert os.get_blocking(item.fd)
            finally:
                item.close()


def test_nothing_that_is_done_reaches_out_or_leaves_anything_open(
    grant: Open, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    before = tree(outside)
    # The links of a run change the next one, so the tree is a new one each time.
    count = iter(range(1 << 30))

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        st.lists(st.tuples(_OPERATIONS, _PATHS, _PATHS, st.booleans()), max_size=12),
        st.sampled_from(["r", "w", "rw"]),
    )
    def harmless(steps: list[tuple[str, bytes, bytes, bool]], mode: Mode) -> None:
        copy = tmp_path / f"copy{next(count)}"
        copy_tree(folder, copy)
        directory = grant(mode, copy)
        fds = open_fds()
        for what, path, other, follow in steps:
            with contextlib.suppress(OSError, WasiError):
                perform(directory, what, path, other, follow=follow)
            assert open_fds() == fds
        assert mode != "r" or tree(copy).keys() == tree(folder).keys()
        assert tree(outside) == before

    harmless()


def copy_tree(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target / entry.name)
        elif entry.is_dir():
            copy_tree(Path(entry.path), target / entry.name)
        elif entry.is_file():
            (target / entry.name).write_bytes(Path(entry.path).read_bytes())
        else:
            os.mkfifo(target / entry.name)


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Type, size and time of change of all there is, by path."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = os.path.join(place, name)
            state = os.lstat(path)
            key = os.path.relpath(path, folder)
            found[key] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


# --- others change the names meanwhile ------------------------------------------------------------


def test_a_directory_swapped_for_a_link_is_never_a_way_out(
    grant: Open, tmp_path: Path, folder: Path
) -> None:
    (folder / "swap").mkdir()
    (folder / "swap" / "secret").write_bytes(b"inside")
    (folder / "swapped").symlink_to("../outside")
    end = threading.Event()

    def swap() -> None:
        while not end.is_set():
            os.rename(folder / "swap", folder / "moved")
            os.rename(folder / "swapped", folder / "swap")
            os.rename(folder / "swap", folder / "swapped")
            os.rename(folder / "moved", folder / "swap")

    directory = grant()
    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes | int] = set()
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            for path in (b"swap/secret", b"swap/./secret", b"swap/../swap/secret"):
                try:
                    seen.add(content(directory, path))
                except OSError as error:
                    seen.add(error.errno or 0)
            seen.add(refused(directory.create_directory, b"swap/new"))
            seen.add(refused(directory.unlink_file, b"swap/secret/"))
    finally:
        end.set()
        thread.join()
    assert b"inside" in seen
    assert seen - {b"inside"} <= {
        *(0, errno.ENOENT, errno.EPERM, errno.EEXIST, errno.ENOTDIR),
    }
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_the_way_up_is_the_way_down_wherever_a_directory_was_moved(
    grant: Open, tmp_path: Path, folder: Path
) -> None:
    """What the kernel calls `..` of a directory that was moved out lies outside."""
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "secret").write_bytes(b"inside")
    (tmp_path / "outside" / "c").mkdir()
    end = threading.Event()

    def move() -> None:
        while not end.is_set():
            os.rename(folder / "a" / "b", tmp_path / "outside" / "b")
            os.rename(tmp_path / "outside" / "b", folder / "a" / "b")

    directory = grant()
    thread = threading.Thread(target=move)
    thread.start()
    seen: set[bytes | int] = set()
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                seen.add(content(directory, b"a/b/../secret"))
            except OSError as error:
                seen.add(error.errno or 0)
    finally:
        end.set()
        thread.join()
    assert b"inside" in seen
    assert seen <= {b"inside", errno.ENOENT}


def test_a_fifo_put_in_the_place_of_a_file_is_not_waited_for(grant: Open, folder: Path) -> None:
    (folder / "x").write_bytes(b"x")
    os.mkfifo(folder / "y")
    end = threading.Event()

    def swap() -> None:
        while not end.is_set():
            os.rename(folder / "x", folder / "z")
            os.rename(folder / "y", folder / "x")
            os.rename(folder / "x", folder / "y")
            os.rename(folder / "z", folder / "x")

    directory = grant()
    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for rights in (READ, WRITE, READ | WRITE):
                seen.add(refused(opened, directory, b"x", rights))
    finally:
        end.set()
        thread.join()
    assert seen <= {0, errno.EACCES, errno.ENOENT, errno.ENXIO}
    assert 0 in seen


# --- what is opened -------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [0, READ, WRITE, READ | WRITE, ALL, ALL & ~WRITE])
def test_a_file_has_the_rights_that_were_asked_for_and_the_kernels_mode(
    directory: Directory, rights: int
) -> None:
    file = opened(directory, b"f", rights)
    assert isinstance(file, File)
    access = fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_ACCMODE
    asked = rights & (READ | WRITE)
    assert (
        access
        == {
            0: os.O_RDONLY,
            READ: os.O_RDONLY,
            WRITE: os.O_WRONLY,
            READ | WRITE: os.O_RDWR,
        }[asked]
    )
    assert file.rights & ~rights == 0
    assert file.rights & (READ | WRITE) == asked
    assert file.rights_inheriting == 0
    assert refused(file.read, [memoryview(bytearray(1))]) == (0 if rights & READ else -abi.EBADF)
    file.close()


def test_a_directory_below_has_no_more_rights_and_is_no_preopen(directory: Directory) -> None:
    below = opened(directory, b"sub", READ | abi.PATH_OPEN | abi.FD_READDIR)
    assert isinstance(below, Directory)
    assert below.rights == abi.PATH_OPEN | abi.FD_READDIR
    assert below.guest is None
    assert content(below, b"g", rights=READ) == b"g"
    assert refused(opened, below, b"..") == errno.EPERM
    assert refused(opened, below, b"up") == errno.EPERM
    assert refused(below.create_directory, b"new") == -abi.ENOTCAPABLE
    below.close()


def test_rights_can_only_be_given_up(directory: Directory) -> None:
    assert refused(directory.narrow, directory.rights | abi.FD_SEEK, 0) == -abi.ENOTCAPABLE
    assert refused(directory.narrow, 0, 1 << 40) == -abi.ENOTCAPABLE
    directory.narrow(abi.PATH_OPEN | abi.PATH_CREATE_FILE, READ)
    assert refused(opened, directory, b"f", READ | WRITE) == -abi.ENOTCAPABLE
    assert refused(opened, directory, b"f", READ) == 0
    assert refused(list, directory.entries(0, 100)) == -abi.ENOTCAPABLE
    assert refused(directory.stat) == -abi.ENOTCAPABLE
    assert refused(directory.stat_path, b"f", follow=True) == -abi.ENOTCAPABLE
    assert refused(directory.narrow, directory.rights | abi.FD_READDIR, 0) == -abi.ENOTCAPABLE


def test_creating_cutting_and_exclusive(directory: Directory, folder: Path) -> None:
    create, exclusive = abi.O_CREAT, abi.O_CREAT | abi.O_EXCL
    assert refused(opened, directory, b"new", READ | WRITE, oflags=exclusive) == 0
    assert stat.S_IMODE((folder / "new").stat().st_mode) & 0o111 == 0
    assert refused(opened, directory, b"new", READ, oflags=exclusive) == errno.EEXIST
    assert refused(opened, directory, b"new", READ, oflags=create) == 0
    assert refused(opened, directory, b"dangling", READ, oflags=exclusive) == errno.EEXIST
    assert refused(opened, directory, b"dangling", 0, oflags=create, follow=False) == errno.ELOOP
    assert refused(opened, directory, b"dangling", READ, oflags=create) == 0
    assert (folder / "nothing").read_bytes() == b""
    assert refused(opened, directory, b"f", READ, oflags=abi.O_TRUNC) == 0
    assert (folder / "f").read_bytes() == b""
    for path in (b"sub", b"sub/", b".", b"sub/..", b"x/", b"f/", b"fslash"):
        assert refused(opened, directory, path, READ, oflags=create) == errno.EISDIR
    for path in (b"sub", b"."):
        assert refused(opened, directory, path, READ, oflags=abi.O_TRUNC) == errno.EISDIR
        assert refused(opened, directory, path, READ | WRITE) == errno.EISDIR
    assert refused(opened, directory, b"fifo", READ, oflags=create) == errno.EACCES
    assert refused(opened, directory, b"out", READ, oflags=create) == errno.EPERM
    both = abi.O_CREAT | abi.O_DIRECTORY
    assert refused(opened, directory, b"sub", READ, oflags=both) == errno.EINVAL
    assert refused(opened, directory, b"f", READ, oflags=abi.O_DIRECTORY) == errno.ENOTDIR
    assert refused(opened, directory, b"f", READ, oflags=1 << 4) == errno.EINVAL
    assert refused(opened, directory, b"f", READ, fdflags=1 << 5) == errno.EINVAL


def test_the_flags_of_an_open_file(directory: Directory, folder: Path) -> None:
    rights = READ | WRITE | abi.FD_SEEK | abi.FD_FDSTAT_SET_FLAGS | abi.FD_FILESTAT_SET_SIZE
    for flags, told in {
        0: 0,
        abi.APPEND: abi.APPEND,
        abi.NONBLOCK: abi.NONBLOCK,
        abi.DSYNC: abi.DSYNC,
        abi.SYNC: abi.SYNC | abi.DSYNC,
        abi.RSYNC: abi.SYNC | abi.DSYNC,
    }.items():
        file = opened(directory, b"f", rights, fdflags=flags)
        assert file.flags() == told
        file.close()
    file = opened(directory, b"f", rights, fdflags=abi.APPEND)
    assert isinstance(file, File)
    file.write([memoryview(b"end")])
    assert (folder / "f").read_bytes() == CONTENT + b"end"
    # Appending is the cell's own wish here, so it can take it back, and cut the file.
    file.set_flags(0)
    file.set_size(3)
    file.pwrite([memoryview(b"X")], 0)
    assert (folder / "f").read_bytes() == b"X12"
    file.close()


@needs("root", CAN_BE_ROOT, "only root can make a device")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_devices_and_sockets_are_refused(directory: Directory, folder: Path, kind: int) -> None:
    os.mknod(folder / "special", 0o666 | kind, os.makedev(1, 3))
    for rights in (READ, WRITE, READ | WRITE, 0):
        assert refused(opened, directory, b"special", rights) == errno.EACCES
    assert refused(opened, directory, b"special", WRITE, oflags=abi.O_TRUNC) == errno.EACCES
    assert refused(directory.stat_path, b"special", follow=True) == 0


# --- modes ----------------------------------------------------------------------------------------


def test_nothing_changes_in_a_directory_to_read(grant: Open, folder: Path) -> None:
    directory = grant("r")
    before = tree(folder)
    now = abi.ATIM_NOW | abi.MTIM_NOW
    for call in (
        lambda: opened(directory, b"new", READ, oflags=abi.O_CREAT),
        lambda: opened(directory, b"f", READ, oflags=abi.O_CREAT),
        lambda: opened(directory, b"f", READ, oflags=abi.O_TRUNC),
        lambda: opened(directory, b"f", WRITE),
        lambda: opened(directory, b"f", ALL),
        lambda: opened(directory, b"sub", ALL),
        lambda: directory.create_directory(b"new"),
        lambda: directory.remove_directory(b"empty"),
        lambda: directory.unlink_file(b"f"),
        lambda: directory.symlink(b"f", b"new"),
        lambda: directory.link(b"f", directory, b"new", follow=False),
        lambda: directory.rename(b"f", directory, b"new"),
        lambda: directory.set_path_times(b"f", 0, 0, now, follow=True),
        lambda: directory.set_times(0, 0, now),
    ):
        assert refused(call) == errno.EPERM
    below = opened(directory, b"sub", ALL & ~WRITE)
    assert isinstance(below, Directory)
    assert refused(below.unlink_file, b"g") == errno.EPERM
    assert refused(opened, below, b"g", WRITE) == errno.EPERM
    below.close()
    file = opened(directory, b"f", ALL & ~WRITE)
    assert isinstance(file, File)
    assert refused(file.set_times, 0, 0, now) == -abi.ENOTCAPABLE
    assert refused(file.set_size, 0) == -abi.ENOTCAPABLE
    assert refused(file.allocate, 0, 100) == -abi.ENOTCAPABLE
    file.close()
    assert tree(folder) == before
    # Not even a link that was put there by somebody who may write.
    other = grant("rw")
    assert refused(other.rename, b"f", directory, b"new") == errno.EPERM
    assert refused(directory.rename, b"f", other, b"new") == errno.EPERM
    assert refused(other.link, b"f", directory, b"new", follow=False) == errno.EPERM
    assert refused(directory.link, b"f", other, b"new", follow=False) == errno.EPERM


def test_nothing_is_read_in_a_directory_to_write(grant: Open, folder: Path) -> None:
    directory = grant("w")
    assert refused(opened, directory, b"f", READ) == errno.EPERM
    assert refused(opened, directory, b"f", READ | WRITE) == errno.EPERM
    assert refused(list, directory.entries(0, 100)) == errno.EPERM
    assert refused(directory.read_link, b"link") == errno.EPERM
    assert refused(opened, directory, b"new", WRITE, oflags=abi.O_CREAT) == 0
    assert (folder / "new").exists()
    assert refused(directory.create_directory, b"sub/more") == 0


@pytest.mark.parametrize("mode", ["r", "w", "rw"])
def test_a_library_asks_for_writing_whatever_the_mode(grant: Open, mode: Mode) -> None:
    """A C library asks for what it finds inheriting; the refusal is an errno of its open(3)."""
    directory = grant(mode)
    assert directory.rights_inheriting & (READ | WRITE) == READ | WRITE
    assert (directory.rights & abi.PATH_CREATE_FILE != 0) == ("w" in mode)
    assert (directory.rights & abi.FD_READDIR != 0) == ("r" in mode)
    assert (directory.rights_inheriting & abi.FD_ALLOCATE != 0) == ("w" in mode)


# --- listing --------------------------------------------------------------------------------------


def listed(directory: Directory, size: int, cookie: int = 0) -> list[tuple[bytes, int, int]]:
    """All names with types and inodes, as many calls as it takes, `size` bytes each."""
    found = []
    while True:
        used = 0
        for entry in directory.entries(cookie, size):
            used += abi.DIRENT.size + len(entry.name)
            if used > size:
                break
            cookie = entry.cookie
            found.append((entry.name, entry.filetype, entry.inode))
        else:
            return found


@pytest.mark.parametrize("size", [300, 4096, 1 << 20])
def test_a_listing_in_pieces_has_every_name_once(
    directory: Directory, folder: Path, size: int
) -> None:
    for index in range(3000):
        (folder / f"name-{index}-{'x' * (index % 200)}").touch()
    found = listed(directory, size)
    assert [name for name, _, _ in found[:2]] == [b".", b".."]
    assert sorted(name for name, _, _ in found[2:]) == sorted(os.listdir(os.fsencode(folder)))
    for name, filetype, inode in found[2:]:
        state = directory.stat_path(name, follow=False)
        assert (filetype, inode) == (state.filetype, state.inode)
    own = directory.stat().inode
    assert found[:2] == [(b".", abi.DIRECTORY, own), (b"..", abi.DIRECTORY, own)]


def test_a_listing_goes_on_where_names_go_away(directory: Directory, folder: Path) -> None:
    names = {b"name%d" % index for index in range(2000)}
    for name in names:
        (folder / "sub" / os.fsdecode(name)).touch()
    below = opened(directory, b"sub")
    assert isinstance(below, Directory)
    cookie, seen = 0, set()
    while True:
        part = []
        for entry in below.entries(cookie, 1000):
            part.append(entry.name)
            cookie = entry.cookie
            if len(part) == 20:
                break
        if not part:
            break
        seen |= set(part)
        for name in part:
            if name in names:
                below.unlink_file(name)
    assert names <= seen
    assert sorted(os.listdir(folder / "sub")) == ["deep", "g", "up", "upup"]
    below.close()


@pytest.mark.parametrize("cookie", [3, 12345, 1 << 31, 1 << 62, (1 << 63) + 1, (1 << 64) - 1])
def test_a_cookie_that_was_made_up_does_no_harm(directory: Directory, cookie: int) -> None:
    names = {name for name, _, _ in listed(directory, 4096)}
    assert {entry.name for entry in directory.entries(cookie, 4096)} <= names
    assert {name for name, _, _ in listed(directory, 4096)} == names


def test_names_that_are_no_text_are_listed(directory: Directory, folder: Path) -> None:
    os.close(os.open(os.fsencode(folder) + b"/n\xff", os.O_CREAT | os.O_WRONLY))
    assert b"n\xff" in [entry.name for entry in directory.entries(0, 4096)]


# --- changes --------------------------------------------------------------------------------------


def test_the_ends_of_paths(directory: Directory, folder: Path) -> None:
    """Slashes, `.` and `..` at the end, as POSIX has them."""
    for call, expected in (
        (lambda: directory.create_directory(b"d/"), 0),
        (lambda: directory.create_directory(b"d"), errno.EEXIST),
        (lambda: directory.create_directory(b"."), errno.EEXIST),
        (lambda: directory.create_directory(b"d/.."), errno.EEXIST),
        (lambda: directory.create_directory(b"dangling/"), errno.EEXIST),
        (lambda: directory.create_directory(b""), errno.ENOENT),
        (lambda: directory.rename(b"d/", directory, b"e/"), 0),
        (lambda: directory.rename(b"f/", directory, b"e2"), errno.ENOTDIR),
        (lambda: directory.rename(b"f", directory, b"e2/"), errno.ENOTDIR),
        (lambda: directory.rename(b"dlink/", directory, b"e2"), errno.ENOTDIR),
        (lambda: directory.rename(b".", directory, b"e2"), errno.EBUSY),
        (lambda: directory.rename(b"e", directory, b"sub/.."), errno.EBUSY),
        (lambda: directory.rename(b"e", directory, b"e/x"), errno.EINVAL),
        (lambda: directory.rename(b"nothing", directory, b"x"), errno.ENOENT),
        (lambda: directory.rename(b"f", directory, b"../x"), errno.EPERM),
        (lambda: directory.remove_directory(b"e/"), 0),
        (lambda: directory.remove_directory(b"."), errno.EINVAL),
        (lambda: directory.remove_directory(b"sub/"), errno.ENOTEMPTY),
        (lambda: directory.remove_directory(b"dlink/"), errno.ENOTDIR),
        (lambda: directory.remove_directory(b"f"), errno.ENOTDIR),
        (lambda: directory.unlink_file(b"f/"), errno.ENOTDIR),
        (lambda: directory.unlink_file(b"sub"), errno.EISDIR),
        (lambda: directory.unlink_file(b"sub/"), errno.EISDIR),
        (lambda: directory.unlink_file(b"dlink/"), errno.ENOTDIR),
        (lambda: directory.unlink_file(b"."), errno.EISDIR),
        (lambda: directory.unlink_file(b"nothing/"), errno.ENOENT),
        (lambda: directory.symlink(b"f", b"s/"), errno.ENOENT),
        (lambda: directory.symlink(b"f", b"sub/"), errno.EEXIST),
        (lambda: directory.symlink(b"f", b"."), errno.EEXIST),
        (lambda: directory.symlink(b"", b"s"), errno.ENOENT),
        (lambda: directory.symlink(b"/etc/passwd", b"s"), errno.EPERM),
        (lambda: directory.link(b"f/", directory, b"l", follow=False), errno.ENOTDIR),
        (lambda: directory.link(b"f", directory, b"l/", follow=False), errno.ENOENT),
        (lambda: directory.link(b"f", directory, b"sub/", follow=False), errno.EEXIST),
        (lambda: directory.link(b"sub", directory, b"l", follow=False), errno.EPERM),
        (lambda: directory.link(b"sub/", directory, b"l", follow=False), errno.EPERM),
        (lambda: directory.link(b".", directory, b"l", follow=False), errno.EPERM),
        (lambda: directory.read_link(b"link/"), errno.ENOTDIR),
        (lambda: directory.read_link(b"dlink/"), errno.EINVAL),
        (lambda: directory.read_link(b"f"), errno.EINVAL),
        (lambda: directory.read_link(b"."), errno.EINVAL),
        (lambda: directory.read_link(b"nothing"), errno.ENOENT),
        (lambda: directory.read_link(b"absolute"), errno.EPERM),
    ):
        assert refused(call) == expected
    assert (folder / "f").read_bytes() == CONTENT


def test_links(directory: Directory, folder: Path) -> None:
    directory.link(b"f", directory, b"sub/hard", follow=False)
    assert (folder / "sub" / "hard").samefile(folder / "f")
    directory.link(b"link", directory, b"of-link", follow=False)
    assert (folder / "of-link").is_symlink()
    directory.link(b"link", directory, b"of-file", follow=True)
    assert (folder / "of-file").samefile(folder / "f")
    assert not (folder / "of-file").is_symlink()
    assert refused(directory.link, b"out", directory, b"x", follow=True) == errno.EPERM
    directory.symlink(b"../../outside/secret", b"made")
    assert directory.read_link(b"made") == b"../../outside/secret"
    assert refused(opened, directory, b"made") == errno.EPERM


def test_between_two_directories(grant: Open, folder: Path) -> None:
    first, second = grant(path=folder / "sub"), grant(path=folder / "empty")
    first.rename(b"g", second, b"moved")
    assert (folder / "empty" / "moved").read_bytes() == b"g"
    second.link(b"moved", first, b"linked", follow=False)
    assert (folder / "sub" / "linked").samefile(folder / "empty" / "moved")
    root = RootDirectory({})
    for call in (
        lambda: first.rename(b"linked", root, b"x"),
        lambda: root.rename(b"x", first, b"y"),
        lambda: first.link(b"linked", root, b"x", follow=False),
        lambda: root.link(b"x", first, b"y", follow=False),
    ):
        assert refused(call) == errno.EXDEV


def test_times(directory: Directory, folder: Path) -> None:
    def times(name: str) -> tuple[int, int]:
        state = os.lstat(folder / name)
        return state.st_atime_ns, state.st_mtime_ns

    both, later = abi.ATIM | abi.MTIM, 2_000_000_000_000_000_001
    directory.set_path_times(b"link", 5, later, both, follow=True)
    assert times("f") == (5, later)
    directory.set_path_times(b"link", 7, 8, both, follow=False)
    assert times("link")[1] == 8
    assert times("f") == (5, later)
    directory.set_path_times(b"f", 9, 9, abi.MTIM, follow=True)
    assert times("f") == (5, 9)
    started = time.time_ns() - 100_000_000
    directory.set_path_times(b"f", 9, 9, abi.ATIM_NOW | abi.MTIM_NOW, follow=True)
    assert min(times("f")) >= started
    directory.set_times(11, 12, both)
    assert times(".")[1] == 12
    below = opened(directory, b"sub", ALL & ~WRITE)
    below.set_times(13, 14, both)
    assert times("sub")[1] == 14
    below.close()
    # Whoever may write in there need not open a file for writing to set its times.
    file = opened(directory, b"f", READ | abi.FD_FILESTAT_SET_TIMES)
    file.set_times(15, 16, both)
    assert times("f") == (15, 16)
    file.close()
    for which in (abi.ATIM | abi.ATIM_NOW, abi.MTIM | abi.MTIM_NOW, 16):
        assert refused(directory.set_times, 1, 1, which) == errno.EINVAL
        assert refused(directory.set_path_times, b"f", 1, 1, which, follow=True) == errno.EINVAL
    assert refused(directory.set_path_times, b"f/", 1, 1, both, follow=True) == errno.ENOTDIR


def test_syncing(directory: Directory) -> None:
    directory.sync()
    directory.datasync()


# --- what is written in all -----------------------------------------------------------------------


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def test_the_meter_lets_exactly_the_limit_out() -> None:
    out, into = os.pipe()
    file = File(into, "w", Meter(10))
    try:
        assert file.write(views(b"1234")) == 4
        assert file.write(views(b"")) == 0
        assert file.write(views(b"56", b"78", b"9abc", b"def")) == 6
        assert os.read(out, 100) == b"123456789a"
        assert file.write(views(b"", b"")) == 0
        assert file.write([]) == 0
        for _ in range(2):
            with pytest.raises(OutputLimit):
                file.write(views(b"x"))
        os.set_blocking(out, False)
        with pytest.raises(BlockingIOError):
            os.read(out, 1)
    finally:
        os.close(out)
        file.close()


def test_without_a_limit_nothing_is_cut() -> None:
    meter = Meter(None)
    data = views(b"x" * 100)
    for _ in range(100):
        assert meter.cut(data) is data
        meter.charge(1 << 40)


def test_one_meter_for_all_that_is_opened(grant: Open, folder: Path) -> None:
    meter = Meter(100)
    directory = grant(meter=meter)
    below = opened(directory, b"sub", ALL & ~WRITE)
    assert isinstance(below, Directory)
    first = opened(below, b"new", ALL, oflags=abi.O_CREAT)
    second = opened(directory, b"f", ALL)
    assert isinstance(first, File)
    assert isinstance(second, File)
    copy = second.reopen()
    assert first.write(views(b"x" * 30)) == 30
    assert second.pwrite(views(b"x" * 5), 0) == 5  # overwritten bytes are written too
    copy.set_size(30)  # 20 more than there were
    copy.set_size(10)  # and less is none
    assert refused(copy.allocate, 0, 5) == 0
    copy.allocate(0, 30)
    directory.symlink(b"y" * 10, b"made")
    with pytest.raises(OutputLimit):
        directory.symlink(b"y" * 16, b"too-much")
    assert not (folder / "too-much").is_symlink()
    with pytest.raises(OutputLimit):
        copy.set_size(1000)
    with pytest.raises(OutputLimit):
        copy.allocate(0, 1000)
    assert (folder / "f").stat().st_size == 30
    assert copy.write(views(b"z" * 100)) == 100 - 30 - 5 - 20 - 20 - 10
    with pytest.raises(OutputLimit):
        first.write(views(b"z"))
    for item in (below, first, second, copy):
        item.close()


def test_the_meter_of_a_socket_and_of_those_it_accepts() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(b"\0ww-test-meter-%d" % os.getpid())
        listening.listen()
        client.connect(listening.getsockname())
        granted = open_grant(os.dup(listening.fileno()), "rw", Meter(5))
        assert isinstance(granted, Socket)
        accepted = granted.accept(0)
        assert accepted.send(views(b"123", b"456")) == 5
        with pytest.raises(OutputLimit):
            accepted.send(views(b"7"))
        assert client.recv(100) == b"12345"
        accepted.close()
        granted.close()


# --- the calls ------------------------------------------------------------------------------------


class Memory:
    """A cell's memory, as far as the calls need it."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 16)

    def view(self, address: int, size: int) -> memoryview:
        if address + size > len(self.data):
            raise OSError(errno.EFAULT, "")
        return memoryview(self.data)[address : address + size]

    def put_u32(self, address: int, value: int) -> None:
        self.view(address, 4)[:] = value.to_bytes(4, "little")


RESULT, TEXT, OTHER = 0, 1024, 8192


class Cell:
    """Calls as the switch makes them."""

    def __init__(self, *items: File | Directory | RootDirectory) -> None:
        self.memory = Memory()
        self.calls = Calls()
        self.calls.bind(cast(GuestMemory, self.memory), lambda number: number)
        for item in items:
            self.calls.add(item)

    def text(self, text: bytes, at: int = TEXT) -> tuple[int, int]:
        self.memory.data[at : at + len(text)] = text
        return at, len(text)

    def open(self, slot: int, path: bytes, rights: int = READ, oflags: int = 0) -> int:
        self.calls.path_open(slot, 0, *self.text(path), oflags, rights, 0, 0, RESULT)
        (opened,) = struct.unpack_from("<I", self.memory.data, RESULT)
        return int(opened)


def test_the_calls_take_directories_of_either_kind(directory: Directory, folder: Path) -> None:
    cell = Cell(directory, RootDirectory({}))
    for slot, guest in ((0, b"/data"), (1, b"/")):
        cell.calls.fd_prestat_get(slot, RESULT)
        assert struct.unpack_from("<B3xI", cell.memory.data, RESULT) == (0, len(guest))
        cell.calls.fd_prestat_dir_name(slot, OTHER, len(guest) + 1)
        assert cell.memory.data[OTHER : OTHER + len(guest)] == guest
        assert refused(cell.calls.fd_prestat_dir_name, slot, OTHER, 0) == errno.ENAMETOOLONG
    below = cell.open(0, b"sub")
    assert refused(cell.calls.fd_prestat_get, below, RESULT) == -abi.EBADF
    cell.calls.path_create_directory(0, *cell.text(b"made"))
    assert (folder / "made").is_dir()
    read_only = -abi.ERRNO[errno.EROFS]
    assert refused(cell.calls.path_create_directory, 1, *cell.text(b"made")) == read_only
    path, new = cell.text(b"made"), cell.text(b"renamed", OTHER)
    cell.calls.path_rename(0, *path, 0, *new)
    assert (folder / "renamed").is_dir()
    assert refused(cell.calls.path_rename, 0, *path, 1, *new) == errno.EXDEV
    cell.calls.path_symlink(*path, 0, *cell.text(b"symbolic", OTHER))
    assert os.readlink(folder / "symbolic") == "made"
    cell.calls.fd_close(below)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"f\0", errno.EINVAL),
        (b"f\0g", errno.EINVAL),
        (b"n\xff", errno.EILSEQ),
        (b"./" * 2047 + b"f", 0),
        (b"./" * 2047 + b".f", errno.ENAMETOOLONG),
    ],
)
def test_paths_are_text_and_not_endless(directory: Directory, path: bytes, expected: int) -> None:
    cell = Cell(directory)
    assert refused(cell.calls.path_filestat_get, 0, 1, *cell.text(path), OTHER) == expected
    assert refused(cell.calls.path_filestat_get, 0, 2, *cell.text(b"f"), OTHER) == errno.EINVAL


@pytest.mark.parametrize("size", [0, 10, 24, 25, 60, 500])
def test_a_buffer_is_filled_to_its_end(directory: Directory, size: int) -> None:
    cell = Cell(directory)
    cell.calls.fd_readdir(0, TEXT, 4096, 0, RESULT)
    (whole,) = struct.unpack_from("<I", cell.memory.data, RESULT)
    expected = bytes(cell.memory.data[TEXT : TEXT + whole])
    cell.calls.fd_readdir(0, OTHER, size, 0, RESULT)
    assert struct.unpack_from("<I", cell.memory.data, RESULT) == (min(size, whole),)
    assert cell.memory.data[OTHER : OTHER + min(size, whole)] == expected[:size]


def test_as_many_are_open_as_may_be(directory: Directory) -> None:
    cell = Cell(directory)
    cell.calls.most_open = 3
    slots = [cell.open(0, b"f"), cell.open(0, b"sub"), cell.open(0, b"f")]
    assert refused(cell.open, 0, b"f") == errno.EMFILE
    # Nothing was done before that was seen.
    assert refused(cell.open, 0, b"new", WRITE, abi.O_CREAT) == errno.EMFILE
    assert refused(directory.stat_path, b"new", follow=False) == errno.ENOENT
    cell.calls.fd_close(slots[1])
    assert cell.open(0, b"f") == slots[1]
    assert refused(cell.open, 0, b"f") == errno.EMFILE
    for slot in slots:
        cell.calls.fd_close(slot)
    cell.calls.most_open = 0
    assert refused(cell.open, 0, b"f") == errno.EMFILE


def test_what_was_granted_does_not_count(directory: Directory) -> None:
    out, into = os.pipe()
    cell = Cell(directory, File(out, "r"), File(into, "w"))
    cell.calls.most_open = 1
    cell.calls.fd_close(1)
    first = cell.open(0, b"f")
    assert first == 1
    assert refused(cell.open, 0, b"f") == errno.EMFILE
    cell.calls.fd_close(2)
    assert refused(cell.open, 0, b"f") == errno.EMFILE
    cell.calls.fd_close(first)


def test_a_connection_waits_when_no_more_may_be_open() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(b"\0ww-test-most-%d" % os.getpid())
        listening.listen()
        client.connect(listening.getsockname())
        cell = Cell(open_grant(os.dup(listening.fileno()), "rw"))
        cell.calls.most_open = 0
        assert refused(cell.calls.sock_accept, 0, 0, RESULT) == errno.EMFILE
        cell.calls.most_open = 1
        cell.calls.sock_accept(0, 0, RESULT)
        cell.calls.fd_close(1)
        cell.calls.fd_close(0)

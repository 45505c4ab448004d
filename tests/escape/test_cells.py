"""Attacks from inside WebAssembly: what a cell tries on numbers, pointers, modules and paths.

What is around the granted directories is open to everybody here, so that it is the host that holds
a cell back and not the file system's own permissions.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import wasmtime

from tests.conftest import CAN_BE_ROOT, BuildFunction, Ww
from tests.wasi.remote_cell import (
    ALL_RIGHTS,
    CREAT,
    DIRECTORY,
    EACCES,
    EBADF,
    EFAULT,
    EINVAL,
    EMFILE,
    ENOENT,
    ENOTCAPABLE,
    ENOTSOCK,
    EXCL,
    NOBODY,
    NONBLOCK,
    OK,
    TRUNC,
    Errno,
    R,
    Ready,
    Remote,
    Right,
    W,
    remote,
)

P1 = "wasi_snapshot_preview1"
EPERM, ENOTDIR, EISDIR = Errno.PERM, Errno.NOTDIR, Errno.ISDIR
# Numbers that a host could take for another: signed, cut to 16 bits, or out of a table's range.
STRANGE_NUMBERS = (
    *(0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 0x7FFFFFFF, 0x8000000A, 0xFFFF0001),
    *(65534, 65535, 65536, 65536 + 10, 1 << 20, 9, 12, 255, 256 + 10),
)


# --- what is granted ------------------------------------------------------------------------------


def own(ww: Ww, path: Path) -> Path:
    """Give something to whom the cell runs as, so that its owner is not what refuses."""
    if CAN_BE_ROOT:
        uid = ww.account.uid or NOBODY
        os.chown(path, uid, uid, follow_symlinks=False)
    return path


class Place(NamedTuple):
    """A directory to write, one to read, and one beside them that was not granted."""

    writable: Path
    readable: Path
    outside: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """The grants: the first is at 3 and 10, the second at 4 and 11."""
        return ("--dir", f"{self.writable}:/rw:rw", "--dir", f"{self.readable}:/ro")

    def surroundings(self) -> dict[str, object]:
        """All that is around the writable directory, and what must not change of it."""
        found: dict[str, object] = {}
        for folder in (self.readable, self.outside):
            for path in (folder, *sorted(folder.rglob("*"))):
                state = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
                key = f"{folder.name}/{path.relative_to(folder)}"
                found[key] = (state.st_mode, state.st_mtime_ns, state.st_nlink, content)
        found["names"] = sorted(os.listdir(self.writable.parent))
        return found


def make_place(ww: Ww) -> Place:
    ww.root.chmod(0o777)
    ww.tmp.chmod(0o777)
    place = Place(ww.tmp / "writable", ww.tmp / "readable", ww.tmp / "outside")
    for folder in place:
        folder.mkdir()
        (folder / "sub").mkdir()
        (folder / "file").write_bytes(b"content of " + folder.name.encode())
        (folder / "sub" / "deep").write_bytes(b"deep")
        for path in (folder, folder / "sub", folder / "file", folder / "sub" / "deep"):
            path.chmod(0o777 if path.is_dir() else 0o666)
            own(ww, path)
    (place.outside / "secret").write_bytes(b"the secret")
    (place.outside / "secret").chmod(0o666)
    return place


class Inside(NamedTuple):
    """A cell with directories."""

    cell: Remote
    place: Place


@contextmanager
def in_place(ww: Ww, c_cell: BuildFunction, *flags: str) -> Iterator[Inside]:
    place = make_place(ww)
    with remote(ww, c_cell("remote"), *place.flags, *flags) as cell:
        yield Inside(cell, place)


@pytest.fixture
def inside(ww_account: Ww, c_cell: BuildFunction) -> Iterator[Inside]:
    with in_place(ww_account, c_cell) as given:
        yield given


RW, RO = 3, 4  # their preopens
READ = R | Right.FD_SEEK | Right.FD_TELL
# A directory is not opened to write.
ON_DIRECTORIES = ALL_RIGHTS & ~W

# --- paths that lead out --------------------------------------------------------------------------

WAYS_OUT = [
    "..",
    "../",
    "../outside",
    "../outside/secret",
    "./../outside/secret",
    "sub/../../outside/secret",
    "sub/./.././../outside/secret",
    "sub//..//..//outside//secret",
    "../writable/file",
    "../readable/file",
    "/",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/root/etc/passwd",
    "/proc/self/fd/0",
    "/proc/1/cwd/secret",
    "/rw/file",
    "../../../../../../../../../../etc/passwd",
    "{outside}/secret",
    # Symbolic links that the caller, or whoever else writes there, has put into the directory.
    "to-outside/secret",
    "to-outside/new",
    "to-outside/",
    "to-outside/.",
    "to-outside/..",
    "to-outside-absolute/secret",
    "to-outside-absolute/",
    "to-root/etc/passwd",
    "to-proc/root/etc/passwd",
    "to-parent/outside/secret",
    "to-parent/readable/file",
    "to-itself-by-parent/file",
    "sub/to-grandparent/outside/secret",
    "to-link-to-outside/secret",
    "dots/../../outside/secret",
]


def plant(place: Place) -> None:
    """Put in the links that the paths above go through; dead ends and circles too."""
    links = {
        "to-outside": "../outside",
        "to-outside-absolute": str(place.outside),
        "to-root": "/",
        "to-proc": "/proc/self",
        "to-parent": "..",
        "to-itself-by-parent": "../writable",
        "sub/to-grandparent": "../..",
        "to-link-to-outside": "to-outside",
        "dots": "sub/..",
        "secret-relative": "../outside/secret",
        "secret-absolute": str(place.outside / "secret"),
        "secret-by-link": "to-outside/secret",
        "passwd": "/etc/passwd",
        "fd": "/proc/self/fd/0",
        "new-relative": "../outside/new",
        "new-absolute": str(place.outside / "new"),
        "circle": "circle",
    }
    for folder in (place.writable, place.readable):
        for name, target in links.items():
            (folder / name).symlink_to(target)


def every_use(cell: Remote, fd: int, path: str) -> dict[str, int]:
    """What becomes of a path in each call that takes one."""
    return {
        "open to read": cell.open(path, R, fd=fd)[0],
        "open to read, not following": cell.open(path, R, fd=fd, lookup=0)[0],
        "open with all rights": cell.open(path, ALL_RIGHTS, inheriting=ALL_RIGHTS, fd=fd)[0],
        "open as a directory": cell.open(path, 0, oflags=DIRECTORY, fd=fd)[0],
        "create": cell.open(path, R | W, oflags=CREAT, fd=fd)[0],
        "create anew": cell.open(path, R | W, oflags=CREAT | EXCL, fd=fd)[0],
        "cut": cell.open(path, W, oflags=TRUNC, fd=fd)[0],
        "stat": cell.path_filestat(path, fd=fd)[0],
        "lstat": cell.path_filestat(path, fd=fd, lookup=0)[0],
        "readlink": cell.readlink(path, fd=fd)[0],
        "mkdir": cell.path("path_create_directory", fd, path),
        "rmdir": cell.path("path_remove_directory", fd, path),
        "unlink": cell.path("path_unlink_file", fd, path),
        "symlink": cell.path("path_symlink", "file", fd, path),
        "rename away": cell.path("path_rename", fd, path, RW, "stolen"),
        "rename onto": cell.path("path_rename", RW, "file", fd, path),
        "link away": cell.path("path_link", fd, 0, path, RW, "stolen"),
        "link away, following": cell.path("path_link", fd, 1, path, RW, "stolen"),
        "link onto": cell.path("path_link", RW, 0, "file", fd, path),
        "set times": cell.path("path_filestat_set_times", fd, 1, path, 1, 1, 5),
        "set times to now": cell.path("path_filestat_set_times", fd, 0, path, 0, 0, 10),
    }


@pytest.mark.parametrize("fd", [RW, RO], ids=["rw", "ro"])
def test_no_path_leads_out_of_a_directory_in_any_call(inside: Inside, fd: int) -> None:
    cell, place = inside
    plant(place)
    before = place.surroundings()
    paths = [path.format(outside=place.outside) for path in WAYS_OUT]
    got_through = {
        (path, use): result
        for path in paths
        for use, result in every_use(cell, fd, path).items()
        if result == OK
    }
    assert got_through == {}
    assert place.surroundings() == before


@pytest.mark.parametrize("fd", [RW, RO], ids=["rw", "ro"])
def test_no_link_at_the_end_of_a_path_is_followed_out(inside: Inside, fd: int) -> None:
    cell, place = inside
    plant(place)
    before = place.surroundings()
    links = [
        *("to-outside", "to-parent", "to-root", "secret-relative", "secret-absolute"),
        *("secret-by-link", "passwd", "fd", "new-relative", "new-absolute", "circle"),
    ]
    for link in links:
        for end in ("", "/", "/.", "/.."):
            path = f"{link}{end}"
            for rights, oflags in (
                (R, 0),
                (W, 0),
                (ALL_RIGHTS, 0),
                (R, DIRECTORY),
                (R | W, CREAT),
                (W, CREAT | TRUNC),
                (R | W, CREAT | EXCL),
            ):
                assert cell.open(path, rights, oflags=oflags, fd=fd)[0] != OK, (path, oflags)
            assert cell.path_filestat(path, fd=fd)[0] != OK, path
            assert cell.path("path_filestat_set_times", fd, 1, path, 1, 1, 5) != OK, path
            assert cell.path("path_link", fd, 1, path, RW, "stolen") != OK, path
    # An absolute link names nothing that is in here, so it is not even read out.
    assert cell.readlink("secret-absolute", fd=fd)[0] == EPERM
    assert place.surroundings() == before


def test_a_link_of_the_cells_own_making_leads_nowhere_either(inside: Inside) -> None:
    cell, place = inside
    before = place.surroundings()
    for target in ("/etc/passwd", str(place.outside / "secret"), "//", "/proc/self/fd/0"):
        assert cell.path("path_symlink", target, RW, "absolute") == EPERM
    for number, target in enumerate(
        ("../outside/secret", "..", "../readable/file", "sub/../../outside/secret", "x/../..")
    ):
        name = f"mine{number}"
        assert cell.path("path_symlink", target, RW, name) == OK
        for path in (name, f"{name}/", f"{name}/secret", f"{name}/outside/secret"):
            assert cell.open(path, R)[0] != OK, path
            assert cell.open(path, W, oflags=CREAT)[0] != OK, path
            assert cell.path_filestat(path)[0] != OK, path
    assert place.surroundings() == before


def test_links_inside_a_directory_are_followed(inside: Inside) -> None:
    # What is refused above is not refused for being a link.
    cell, place = inside
    plant(place)
    for target, name in (("file", "a"), ("sub/deep", "b"), ("sub/../file", "c")):
        assert cell.path("path_symlink", target, RW, name) == OK
        assert cell.open(name, R)[0] == OK
    assert cell.open("dots/file", R, fd=RO)[0] == OK
    assert cell.open("circle", R, fd=RO)[0] == Errno.LOOP


# --- a directory to read --------------------------------------------------------------------------


def test_nothing_changes_in_a_directory_that_was_granted_to_read(inside: Inside) -> None:
    cell, place = inside
    before = place.surroundings()
    for path in ("file", "sub", "sub/deep", "new", "sub/new"):
        uses = every_use(cell, RO, path)
        reading = {
            *("open to read", "open to read, not following", "open as a directory"),
            *("stat", "lstat", "readlink"),
        }
        changed = [use for use, result in uses.items() if result == OK and use not in reading]
        assert changed == [], path
    assert place.surroundings() == before
    assert (place.writable / "file").exists()


def test_creating_and_cutting_is_refused_where_one_may_only_read(inside: Inside) -> None:
    cell, place = inside
    for oflags in (CREAT, CREAT | EXCL, TRUNC, CREAT | TRUNC):
        for rights in (R, W, R | W, 0):
            for path in ("file", "new"):
                assert cell.open(path, rights, oflags=oflags, fd=RO)[0] == EPERM
    assert (place.readable / "file").read_bytes() == b"content of readable"


def test_nothing_is_moved_or_linked_between_what_is_read_and_what_is_written(
    inside: Inside,
) -> None:
    cell, place = inside
    before = place.surroundings()
    for name in ("path_rename", "path_link"):
        more = (0,) if name == "path_link" else ()
        assert cell.path(name, RO, *more, "file", RW, "stolen") == EPERM
        assert cell.path(name, RW, *more, "file", RO, "planted") == EPERM
        assert cell.path(name, RW, *more, "file", RO, "file") == EPERM
        assert cell.path(name, RO, *more, "file", RO, "moved") == EPERM
    assert sorted(os.listdir(place.writable)) == ["file", "sub"]
    assert place.surroundings() == before


def test_what_is_opened_to_read_keeps_to_reading_whatever_is_asked_of_it(inside: Inside) -> None:
    cell, place = inside
    wanted = ALL_RIGHTS & ~W
    errno, fd = cell.open("file", wanted, inheriting=ALL_RIGHTS, fd=RO)
    assert errno == OK
    assert fd is not None
    _, state = cell.fdstat(fd)
    assert state is not None
    assert not state.rights & (
        W | Right.FD_FILESTAT_SET_SIZE | Right.FD_ALLOCATE | Right.FD_FILESTAT_SET_TIMES
    )
    assert cell.write(fd, b"x")[0] == EBADF
    assert cell.pwrite(fd, 0, b"x")[0] == EBADF
    assert cell.raw("fd_filestat_set_size", fd, 0) == ENOTCAPABLE
    assert cell.raw("fd_allocate", fd, 0, 100) == ENOTCAPABLE
    assert cell.raw("fd_filestat_set_times", fd, 1, 1, 5) == ENOTCAPABLE
    for rights in (state.rights | W, ALL_RIGHTS, 1 << 63, (1 << 64) - 1):
        assert cell.raw("fd_fdstat_set_rights", fd, rights, 0) == ENOTCAPABLE
    assert (place.readable / "file").read_bytes() == b"content of readable"


def test_a_directory_opened_below_has_no_right_more(inside: Inside) -> None:
    cell, place = inside
    assert cell.open("sub", ALL_RIGHTS, inheriting=ALL_RIGHTS, fd=RO)[0] == EPERM
    errno, sub = cell.open("sub", ON_DIRECTORIES, inheriting=ALL_RIGHTS, fd=RO)
    assert errno == OK
    assert sub is not None
    assert cell.open("deep", R, fd=sub)[0] == OK
    for path in ("..", "../file", "../../outside/secret", "deep/.."):
        assert cell.open(path, R, fd=sub)[0] != OK
    assert cell.open("deep", W, fd=sub)[0] == EPERM
    assert cell.open("new", R | W, oflags=CREAT, fd=sub)[0] == EPERM
    assert cell.path("path_unlink_file", sub, "deep") == EPERM
    # It is no preopen: a C library would take it for one of those that the caller named.
    assert cell.result("<I", "fd_prestat_get", sub)[0] == EBADF
    assert sorted(os.listdir(place.readable / "sub")) == ["deep"]


def test_the_same_directory_granted_twice_keeps_each_number_to_its_mode(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    place = make_place(ww_account)
    flags = ["--dir", f"{place.writable}:/a:rw", "--dir", f"{place.writable}:/b:ro"]
    flags += ["--dir", f"{place.writable}/sub:/c:ro"]
    with remote(ww_account, c_cell("remote"), *flags) as cell:
        assert cell.open("by-a", R | W, oflags=CREAT, fd=3)[0] == OK
        assert cell.open("by-a", R, fd=4)[0] == OK
        assert cell.open("by-a", W, fd=4)[0] == EPERM
        assert cell.path("path_unlink_file", 4, "by-a") == EPERM
        assert cell.path("path_rename", 4, "by-a", 3, "moved") == EPERM
        assert cell.path("path_link", 4, 0, "by-a", 3, "linked") == EPERM
        assert cell.open("deep", W, fd=5)[0] == EPERM
        assert cell.open("../by-a", R, fd=5)[0] == EPERM
    assert sorted(os.listdir(place.writable)) == ["by-a", "file", "sub"]


def test_a_moved_number_of_a_directory_brings_its_mode_along(inside: Inside) -> None:
    cell, place = inside
    assert cell.raw("fd_renumber", RO, RW) == OK
    assert cell.open("file", R, fd=RO)[0] == EBADF
    assert cell.open("file", R, fd=RW)[0] == OK
    assert cell.open("file", W, fd=RW)[0] == EPERM
    assert cell.path("path_unlink_file", RW, "file") == EPERM
    # The directory to write has another number, which still is that one.
    assert cell.open("file", W, fd=10)[0] == OK
    assert cell.open("file", W, fd=11)[0] == EPERM
    assert (place.readable / "file").read_bytes() == b"content of readable"


# --- odd names, odd files -------------------------------------------------------------------------


def test_names_that_are_no_names_are_refused(inside: Inside) -> None:
    cell, place = inside
    before = sorted(os.listdir(place.writable))
    cases: dict[bytes, int] = {
        b"": ENOENT,
        b"a" * 255: ENOENT,
        b"a" * 256: Errno.NAMETOOLONG,
        b"sub/" + b"a" * 256: Errno.NAMETOOLONG,
        b"./" * 2047 + b"x": ENOENT,
        b"./" * 2048: Errno.NAMETOOLONG,
        b"a" * 100_000: Errno.NAMETOOLONG,
        b"file\0": EINVAL,
        b"file\0/../../outside/secret": EINVAL,
        b"\0": EINVAL,
        b"\xff": Errno.ILSEQ,
        b"\xc0\xae\xc0\xae/outside/secret": Errno.ILSEQ,  # dots in an overlong form
        b"\xed\xa0\x80": Errno.ILSEQ,
        b"file/": ENOTDIR,
        b"file/.": ENOTDIR,
        b"file/..": ENOTDIR,
        b"file/x": ENOTDIR,
    }
    for path, expected in cases.items():
        assert cell.open(path, R)[0] == expected, path[:40]
        assert cell.path_filestat(path)[0] == expected, path[:40]
    assert cell.open(b"a" * 256, R | W, oflags=CREAT)[0] == Errno.NAMETOOLONG
    assert sorted(os.listdir(place.writable)) == before


def test_names_with_dots_and_controls_are_names_like_any_other(inside: Inside) -> None:
    cell, place = inside
    for name in ("...", "..x", "x..", " ", "\n", "\x1b[2J", "-rf", "~", "*", "\\..\\outside"):
        assert cell.open(name, R | W, oflags=CREAT | EXCL)[0] == OK, name
        assert (place.writable / name).is_file(), name


SPECIAL = {"fifo": stat.S_IFIFO, "zero": stat.S_IFCHR, "ram": stat.S_IFBLK}


def test_fifos_sockets_and_devices_in_a_directory_are_neither_opened_nor_waited_for(
    inside: Inside,
) -> None:
    cell, place = inside
    names = []
    for folder in (place.writable, place.readable):
        for name, kind in SPECIAL.items():
            if kind == stat.S_IFIFO or CAN_BE_ROOT:
                # 1:5 is /dev/zero, 1:0 /dev/ram0 (Documentation/admin-guide/devices.txt).
                os.mknod(folder / name, 0o666 | kind, os.makedev(1, 5 if name == "zero" else 0))
                (folder / name).chmod(0o666)
                names.append(name)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder}/socket")
        (folder / "to-fifo").symlink_to("fifo")
    for name in {*names, "socket", "to-fifo"}:
        for fd in (RW, RO):
            for rights in (R, *((W, R | W) if fd == RW else ())):
                for fdflags in (0, NONBLOCK):
                    errno, _ = cell.open(name, rights, fd=fd, fdflags=fdflags)
                    assert errno == EACCES, (name, fd, rights)
        assert cell.open(name, R | W, oflags=CREAT, fd=RW)[0] == EACCES
        assert cell.open(name, W, oflags=TRUNC, fd=RW)[0] == EACCES
        assert cell.path_filestat(name, fd=RO)[0] == OK


def test_a_file_that_is_unlinked_while_it_is_open_stays_what_it_was(inside: Inside) -> None:
    cell, place = inside
    errno, fd = cell.open("file", READ | W)
    assert errno == OK
    assert fd is not None
    (place.writable / "file").unlink()
    (place.writable / "file").write_bytes(b"another")
    assert cell.read(fd, 100) == (OK, b"content of writable")
    assert cell.pwrite(fd, 0, b"C") == (OK, 1)
    assert (place.writable / "file").read_bytes() == b"another"
    assert cell.raw("fd_close", fd) == OK


def test_a_directory_that_is_taken_away_while_it_is_open_leads_nowhere(inside: Inside) -> None:
    cell, place = inside
    errno, sub = cell.open("sub", ON_DIRECTORIES, inheriting=ALL_RIGHTS)
    assert errno == OK
    assert sub is not None
    # Moved to where the cell has nothing: what it holds is that directory, and no way up from it.
    (place.writable / "sub").rename(place.outside / "moved")
    assert cell.open("deep", R, fd=sub)[0] == OK
    for path in ("..", "../secret", "./../../outside/secret"):
        assert cell.open(path, R, fd=sub)[0] == EPERM
    (place.outside / "moved" / "deep").unlink()
    (place.outside / "moved").rmdir()
    assert cell.open("new", R | W, oflags=CREAT, fd=sub)[0] == ENOENT
    assert cell.path("path_create_directory", sub, "new") == ENOENT


COOKIES = (
    *(0, 1, 2, 3, 7, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1),
    *((1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1, (1 << 64) - 2, 0x123456789ABCDEF),
)


def test_a_cookie_that_was_made_up_lists_nothing_that_is_not_there(inside: Inside) -> None:
    cell, place = inside
    allowed = {b".", b"..", *map(os.fsencode, os.listdir(place.writable))}
    for cookie in COOKIES:
        for size in (0, 1, 23, 24, 25, 4096):
            errno, data = cell.readdir(RW, size, cookie)
            assert errno in (OK, EINVAL), cookie
            if data is None or size < 4096:
                continue
            at = 0
            while at + 24 <= len(data):
                length = struct.unpack_from("<I", data, at + 16)[0]
                name = data[at + 24 : at + 24 + length]
                assert any(whole.startswith(name) for whole in allowed), (cookie, name)
                at += 24 + length
    # The inode of what is above is not told.
    _, data = cell.readdir(RW, 4096, 1)
    assert data is not None
    assert data[24:26] == b".."
    assert struct.unpack_from("<Q", data, 8)[0] != place.writable.parent.stat().st_ino


def test_a_pathlink_cannot_take_the_name_of_a_directory(ww_account: Ww) -> None:
    place = make_place(ww_account)
    flags = ["--fd", "data=3,pathlink=true", "--dir", f"{place.readable}:/data"]
    given = ww_account.file("given")
    done = ww_account.run("run", *flags, "./none.wasm", fds={3: given})
    assert done.returncode == 2
    assert b"/data" in done.stderr


def test_a_pathlink_and_a_directory_beside_it_are_not_confused(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    place = make_place(ww_account)
    given = ww_account.file("given", b"content of the pathlink")
    flags = ["--dir", f"{place.readable}:/d", "--fd", "file=3,mode=r,pathlink=true"]
    with remote(ww_account, c_cell("remote"), *flags, fds={3: given}) as cell:
        # The directory is at 3, the root with the pathlink at 4.
        for fd, content in ((3, b"content of readable"), (4, b"content of the pathlink")):
            errno, opened = cell.open("file", R, fd=fd)
            assert errno == OK
            assert opened is not None
            assert cell.read(opened, 100) == (OK, content)
        assert cell.open("d", R, fd=4)[0] == ENOENT
        assert cell.open("d/file", R, fd=4)[0] == ENOENT
        # No call joins the two.
        assert cell.path("path_rename", 3, "file", 4, "file") == Errno.XDEV
        assert cell.path("path_link", 4, 0, "file", 3, "planted") == Errno.XDEV


# --- numbers --------------------------------------------------------------------------------------

# Every call on a descriptor, with good arguments otherwise; `ok` is good memory, `v` a vector.
ON_A_NUMBER = [
    "fd_advise {} 0 0 0",
    "fd_allocate {} 0 1",
    "fd_close {}",
    "fd_datasync {}",
    "fd_fdstat_get {} ok",
    "fd_fdstat_set_flags {} 0",
    "fd_fdstat_set_rights {} 0 0",
    "fd_filestat_get {} ok",
    "fd_filestat_set_size {} 0",
    "fd_filestat_set_times {} 0 0 0",
    "fd_pread {} v 1 0 ok",
    "fd_prestat_get {} ok",
    "fd_prestat_dir_name {} ok 10",
    "fd_pwrite {} v 1 0 ok",
    "fd_read {} v 1 ok",
    "fd_readdir {} ok 100 0 ok",
    "fd_renumber {} 10",
    "fd_renumber 10 {}",
    "fd_seek {} 0 0 ok",
    "fd_sync {}",
    "fd_tell {} ok",
    "fd_write {} v 1 ok",
    "path_create_directory {} name 1",
    "path_filestat_get {} 0 name 1 ok",
    "path_filestat_set_times {} 0 name 1 0 0 0",
    "path_link {} 0 name 1 3 name 1",
    "path_link 3 0 name 1 {} name 1",
    "path_open {} 0 name 1 0 2 0 0 ok",
    "path_readlink {} name 1 ok 100 ok",
    "path_remove_directory {} name 1",
    "path_rename {} name 1 3 name 1",
    "path_rename 3 name 1 {} name 1",
    "path_symlink name 1 {} name 1",
    "path_unlink_file {} name 1",
    "sock_accept {} 0 ok",
    "sock_recv {} v 1 0 ok ok",
    "sock_send {} v 1 0 ok",
    "sock_shutdown {} 1",
]


class Numbered(NamedTuple):
    """A cell that is driven over 20 and 21, with a file to read at 10 and one to write at 11.

    Both files are open for reading and writing here. A directory to write is at 3 and 12.
    """

    cell: Remote
    first: Path
    second: Path
    folder: Path


@pytest.fixture
def numbered(ww_account: Ww, c_cell: BuildFunction) -> Iterator[Numbered]:
    first, second = ww_account.file("first", b"first"), ww_account.file("second", b"second")
    place = make_place(ww_account)
    flags = ["--fd", "a=3,mode=r,target=10", "--fd", "b=4,mode=w,target=11", "--output", "none"]
    flags += ["--dir", f"{place.writable}:/d:rw"]
    with (
        open(first, "r+b", buffering=0) as one,
        open(second, "r+b", buffering=0) as other,
        remote(
            ww_account, c_cell("remote"), *flags, fds={3: one, 4: other}, control=(20, 21)
        ) as cell,
    ):
        yield Numbered(cell, first, second, place.writable)


def test_no_number_but_the_granted_ones_answers_to_any_call(numbered: Numbered) -> None:
    cell = numbered.cell
    known = {"ok": cell.scratch + 0x4000, "v": cell.scratch + 0x100, "name": cell.scratch + 0x200}
    cell.poke(known["v"], struct.pack("<II", cell.scratch + 0x5000, 16))
    cell.poke(known["name"], b"f")
    answered = {}
    for number in STRANGE_NUMBERS:
        if number == 12:
            continue  # the directory's own
        for line in ON_A_NUMBER:
            name, *words = line.format(number).split()
            errno = cell.raw(name, *(known[w] if w in known else int(w) for w in words))
            if errno != EBADF:
                answered[line.format(hex(number))] = errno
    assert answered == {}
    assert cell.read(10, 100) == (OK, b"first")


@pytest.mark.parametrize("target", [11, 1, 3], ids=["a grant", "stdout", "a directory"])
def test_a_number_moved_over_another_takes_its_own_rights_along(
    numbered: Numbered, target: int
) -> None:
    cell, first, second, _ = numbered
    assert cell.raw("fd_renumber", 10, target) == OK
    assert cell.read(10, 1)[0] == EBADF
    assert cell.write(target, b"x")[0] == EBADF
    assert cell.raw("fd_filestat_set_size", target, 0) == ENOTCAPABLE
    assert cell.pread(target, 0, 100) == (OK, b"first")
    assert cell.open("file", R, fd=target)[0] == ENOTDIR
    assert cell.result("<I", "fd_prestat_get", target)[0] == EBADF
    # And the other way: what may be written is moved to where something to read was.
    if target != 11:
        assert cell.raw("fd_renumber", 11, target) == OK
        assert cell.read(target, 1)[0] == EBADF
        assert cell.pread(target, 0, 1)[0] == EBADF
        assert cell.write(target, b"S") == (OK, 1)
        assert second.read_bytes() == b"Second"
    assert first.read_bytes() == b"first"


def test_a_number_cannot_be_moved_to_where_none_is_open(numbered: Numbered) -> None:
    cell = numbered.cell
    for target in (*STRANGE_NUMBERS, 13, 4):
        if target != 12:
            assert cell.raw("fd_renumber", 10, target) == EBADF
            assert cell.raw("fd_renumber", target, 10) == EBADF
            assert cell.raw("fd_renumber", target, target) == EBADF
    assert cell.raw("fd_renumber", 10, 10) == OK
    assert cell.read(10, 100) == (OK, b"first")


def test_a_closed_number_is_given_again_without_what_it_was(numbered: Numbered) -> None:
    cell, _, second, folder = numbered
    for number in (0, 1, 2, 11):
        assert cell.raw("fd_close", number) == OK
        assert cell.raw("fd_close", number) == EBADF
    # The lowest that is free, as POSIX has it; and what comes there is what was opened.
    taken = [cell.open("file", READ, fd=12) for _ in range(5)]
    assert taken[:3] == [(OK, 0), (OK, 1), (OK, 2)]
    for _, opened in taken:
        assert opened is not None
        assert cell.write(opened, b"x")[0] == EBADF
        assert cell.pread(opened, 0, 7) == (OK, b"content")
    assert second.read_bytes() == b"second"
    assert (folder / "file").read_bytes() == b"content of writable"


def test_closing_every_number_there_is_closes_nothing_of_the_hosts(numbered: Numbered) -> None:
    cell = numbered.cell
    numbers = [n for n in range(65536) if n not in (20, 21)]
    closed = []
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        answers = cell.ask(*(f"call fd_close {number}" for number in part))
        closed += [n for n, answer in zip(part, answers, strict=True) if answer == "fd_close 0"]
    assert closed == [0, 1, 2, 3, 10, 11, 12]
    # It goes on, and how it ends is told: that the fixture ends with.
    assert cell.raw("sched_yield") == OK


def test_a_slot_of_the_host_cannot_be_named_from_outside(numbered: Numbered) -> None:
    """Behind the numbers are slots, counted from 0, and entries that are negative for them."""
    cell = numbered.cell
    assert cell.raw("fd_close", 0) == OK
    for number in (0, *(0xFFFFFFFF - slot for slot in range(8))):
        assert cell.read(number, 1)[0] == EBADF
        assert cell.path("path_rename", number, "file", 3, "x") == EBADF
        assert cell.path("path_link", 3, 0, "file", number, "x") == EBADF
        assert cell.path("path_symlink", "file", number, "x") == EBADF
        errno, events = cell.poll(Ready(7, 1, number))
        assert (errno, [event.error for event in events or []]) == (OK, [EBADF])


def test_rights_can_be_given_up_but_not_had_back_or_made_up(numbered: Numbered) -> None:
    cell = numbered.cell
    for number in (10, 11, 3, 12):
        errno, before = cell.fdstat(number)
        assert errno == OK
        assert before is not None
        for bit in range(64):
            wider = before.rights | 1 << bit
            if wider != before.rights:
                assert (
                    cell.raw("fd_fdstat_set_rights", number, wider, before.inheriting)
                    == ENOTCAPABLE
                ), (number, bit)
            wider = before.inheriting | 1 << bit
            if wider != before.inheriting:
                assert (
                    cell.raw("fd_fdstat_set_rights", number, before.rights, wider) == ENOTCAPABLE
                ), (number, bit)
        assert cell.fdstat(number) == (OK, before)
        assert cell.raw("fd_fdstat_set_rights", number, 0, 0) == OK
        assert cell.raw("fd_fdstat_set_rights", number, before.rights, 0) == ENOTCAPABLE
    assert cell.read(10, 1)[0] == EBADF
    assert cell.write(11, b"x")[0] == EBADF
    assert cell.open("file", R)[0] == ENOTCAPABLE


def test_a_directory_without_rights_to_inherit_opens_nothing_to_read_or_write(
    inside: Inside,
) -> None:
    cell, place = inside
    _, state = cell.fdstat(RW)
    assert state is not None
    inheriting = state.inheriting & ~(R | W)
    assert cell.raw("fd_fdstat_set_rights", RW, state.rights, inheriting) == OK
    for rights in (R, W, R | W, ALL_RIGHTS):
        assert cell.open("file", rights)[0] == ENOTCAPABLE
    assert cell.open("sub", ON_DIRECTORIES, inheriting=ALL_RIGHTS)[0] == ENOTCAPABLE
    errno, sub = cell.open("sub", ON_DIRECTORIES & ~R, inheriting=ALL_RIGHTS)
    assert errno == OK
    assert sub is not None
    assert cell.open("deep", R, fd=sub)[0] == ENOTCAPABLE
    assert (place.writable / "file").read_bytes() == b"content of writable"


def test_files_and_directories_are_no_sockets(numbered: Numbered) -> None:
    cell = numbered.cell
    for number in (10, 11, 12, 3):
        assert cell.recv(number, 16)[0] == ENOTSOCK
        assert cell.send(number, b"x")[0] == ENOTSOCK
        assert cell.accept(number)[0] == ENOTSOCK
        assert cell.raw("sock_shutdown", number, 3) == ENOTSOCK
    for number in (3, 12):
        assert cell.read(number, 1)[0] == EISDIR
        assert cell.write(number, b"x")[0] == EISDIR
        assert cell.seek(number, 0)[0] == EISDIR
        assert cell.raw("fd_filestat_set_size", number, 0) == EISDIR
        assert cell.raw("fd_fdstat_set_flags", number, 1) == EISDIR


# --- pointers and counts --------------------------------------------------------------------------


def test_counts_and_lengths_beyond_all_bounds_are_an_errno(numbered: Numbered) -> None:
    cell = numbered.cell
    end = cell.memory()
    good = cell.scratch
    cell.poke(good, struct.pack("<II", cell.scratch + 0x9000, 1) * 1024)
    result = cell.scratch + 0x8000
    for count in (1025, 65536, 1 << 29, (1 << 29) + 1, 1 << 31, 0xFFFFFFFF):
        for name, number, more in (
            ("fd_read", 10, ()),
            ("fd_pread", 10, (0,)),
            ("fd_write", 11, ()),
            ("fd_pwrite", 11, (0,)),
        ):
            assert cell.raw(name, number, good, count, *more, result) in (EINVAL, EFAULT), count
    # As many as there may be, and all of memory in each: more in all than 32 bits can say.
    cell.poke(good, struct.pack("<II", 0, end) * 1024)
    assert cell.raw("fd_write", 1, good, 1024, result) == OK  # /dev/null
    (moved,) = struct.unpack("<I", cell.peek(result, 4))
    assert 0 < moved < 1 << 31
    cell.poke(good, struct.pack("<II", cell.scratch, 1 << 16) * 1024)
    assert cell.raw("fd_pread", 10, good, 1024, 0, result) == OK
    assert cell.peek(result, 4) == struct.pack("<I", len(b"first"))
    # None at all: then there is nothing to look at, wherever it is.
    for address in (good, end, 0xFFFFFFFF):
        assert cell.raw("fd_read", 10, address, 0, result) == OK
    for size in (0x80000000, 0xFFFFFFFF, end + 1):
        assert cell.raw("path_open", 3, 0, good, size, 0, 2, 0, 0, result) == EFAULT
        assert cell.raw("fd_readdir", 3, good, size, 0, result) == EFAULT
        assert cell.raw("path_readlink", 3, good, 1, good, size, result) != OK
        assert cell.raw("fd_prestat_dir_name", 3, end - 1, size) == EFAULT
    for count in (4097, 65536, 1 << 27, 0xFFFFFFFF):
        assert cell.raw("poll_oneoff", good, good, count, result) == EINVAL


# A directory's calls, with one pointer that leads out of memory; the last word is its size.
BAD_POINTERS = [
    "fd_readdir 3 bad 64 0 ok 64",
    "fd_readdir 3 ok 64 0 bad 4",
    "fd_prestat_get 3 bad 8",
    "fd_prestat_dir_name 3 bad 9 2",
    "fd_fdstat_get 3 bad 24",
    "fd_filestat_get 3 bad 64",
    "path_create_directory 3 bad 4 4",
    "path_filestat_get 3 0 bad 4 ok 4",
    "path_filestat_get 3 0 name 4 bad 64",
    "path_filestat_set_times 3 0 bad 4 0 0 5 4",
    "path_link 3 0 bad 4 3 ok 4 4",
    "path_link 3 0 name 4 3 bad 4 4",
    "path_open 3 0 bad 4 0 2 0 0 ok 4",
    "path_open 3 0 name 4 0 2 0 0 bad 4",
    "path_open 3 0 new 4 1 2 0 0 bad 4",
    "path_readlink 3 bad 4 ok 9 ok 4",
    "path_readlink 3 link 4 bad 9 ok 4",
    "path_readlink 3 link 4 ok 9 bad 4",
    "path_remove_directory 3 bad 4 4",
    "path_rename 3 bad 4 3 name 4 4",
    "path_rename 3 name 4 3 bad 4 4",
    "path_symlink bad 4 3 name 4 4",
    "path_symlink name 4 3 bad 4 4",
    "path_unlink_file 3 bad 4 4",
]


def test_a_bad_pointer_is_efault_in_every_call_on_a_directory_and_changes_nothing(
    inside: Inside,
) -> None:
    cell, place = inside
    (place.writable / "link").symlink_to("file")
    before = sorted(os.listdir(place.writable))
    end = cell.memory()
    known = {"ok": cell.scratch + 0x4000}
    for name, text in (("name", b"file"), ("new", b"new!"), ("link", b"link")):
        known[name] = cell.scratch + 0x100 * len(known)
        cell.poke(known[name], text)
    wrong = {}
    for line in BAD_POINTERS:
        function, *words, size = line.split()
        for bad in (end, end - int(size) + 1, 0xFFFFFFFF - int(size) + 1, 0xFFFFFFFF, 0x80000000):
            known["bad"] = bad
            errno = cell.raw(function, *(known[w] if w in known else int(w) for w in words))
            if errno != EFAULT:
                wrong[line, hex(bad)] = errno
    assert wrong == {}
    assert sorted(os.listdir(place.writable)) == before


def test_the_last_byte_of_memory_is_as_good_as_any(inside: Inside) -> None:
    cell, _ = inside
    end = cell.memory()
    cell.poke(end - 4, b"file")
    assert cell.raw("path_filestat_get", 3, 0, end - 4, 4, end - 64) == OK
    cell.poke(end - 4, b"file")
    assert cell.raw("path_open", 3, 0, end - 4, 4, 0, 2, 0, 0, end - 4) == OK
    # The number was written over the name that led to it.
    assert struct.unpack("<I", cell.peek(end - 4, 4))[0] < 100
    assert cell.raw("fd_prestat_dir_name", 3, end - 3, 3) == OK
    assert cell.peek(end - 3, 3) == b"/rw"
    assert cell.raw("fd_readdir", 3, end - 24, 24, 0, cell.scratch) == OK
    assert cell.raw("fd_readdir", 3, end, 0, 0, cell.scratch) == OK
    # A name of no length is none, wherever it lies.
    assert cell.raw("path_open", 3, 0, end, 0, 0, 2, 0, 0, cell.scratch) == ENOENT
    assert cell.raw("path_open", 3, 0, end + 1, 0, 0, 2, 0, 0, cell.scratch) == EFAULT


# --- modules --------------------------------------------------------------------------------------

WRITE = f'(import "{P1}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
EXIT = f'(import "{P1}" "proc_exit" (func $exit (param i32)))'
SAY = """
  (data (i32.const 0) "\\08\\00\\00\\00\\02\\00\\00\\00hi")
  (func $say (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


def test_exports_that_are_named_like_the_hosts_own_confuse_nobody(ww_account: Ww) -> None:
    own_calls = "".join(
        f'(func (export "{name}") unreachable)'
        for name in ("fd_write", "proc_exit", "host_fd_write", "lookup", "allocate", "poll_oneoff")
    )
    body = f"""
      {WRITE} {EXIT} (memory $m (export "memory") 1) (memory (export "map") 1)
      (memory (export "cell") 1) (memory 1)
      (table (export "table") 46 46 funcref) (table (export "host") 1 funcref)
      (global (export "switch") i32 (i32.const 0)) {SAY} {own_calls}
      (func (export "_start") (call $say) (call $exit (i32.const 7)))"""
    done = ww_account.run("run", ww_account.file("c.wasm", wat(body)))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hi", b"")


def test_imports_that_a_cell_exports_again_and_calls_through_its_table_are_the_same_calls(
    ww_account: Ww,
) -> None:
    body = f"""
      {WRITE} {EXIT} (memory (export "memory") 1) {SAY}
      (export "write" (func $write)) (export "again" (func $write))
      (type $four (func (param i32 i32 i32 i32) (result i32)))
      (type $one (func (param i32)))
      (table 3 funcref) (elem (i32.const 0) func $write $exit $say)
      (func (export "_start")
        (drop (call_indirect (type $four)
          (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 0)))
        (call_indirect (type $one) (i32.const 5) (i32.const {{}})))"""
    done = ww_account.run("run", ww_account.file("c.wasm", wat(body.format(1))))
    assert (done.returncode, done.stdout) == (5, b"hi")
    # Of another signature than it has, or beyond the table's end, it is a trap.
    for entry in (0, 2, 3, 45):
        done = ww_account.run("run", ww_account.file("c.wasm", wat(body.format(entry))))
        assert (done.returncode, done.stdout) == (134, b"hi")


def test_a_memory_that_cannot_grow_or_is_empty_is_efault_beyond_its_end(ww_account: Ww) -> None:
    # What fd_write says is the exit code: of a vector that leads out, and without any memory.
    one_page = f"""
      {WRITE} {EXIT} (memory (export "memory") 1 1)
      (data (i32.const 0) "\\fa\\ff\\00\\00\\64\\00\\00\\00")
      (func (export "_start")
        (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (call $exit
          (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 100))))"""
    no_page = f"""
      {WRITE} {EXIT} (memory (export "memory") 0 0)
      (func (export "_start") (call $exit
        (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0))))"""
    for body in (one_page, no_page):
        done = ww_account.run("run", ww_account.file("c.wasm", wat(body)))
        assert (done.returncode, done.stdout) == (EFAULT, b"")


def test_a_pointer_for_a_new_number_outside_an_empty_memory_traps_nothing(ww_account: Ww) -> None:
    place = make_place(ww_account)
    body = f"""
      (import "{P1}" "path_open" (func $open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
      {EXIT} (memory (export "memory") 0)
      (func (export "_start") (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const -4))))"""
    cell = ww_account.file("c.wasm", wat(body))
    assert ww_account.run("run", *place.flags, cell).returncode == EFAULT


def test_the_end_of_the_stack_is_a_trap_also_inside_a_call_of_the_host(ww_account: Ww) -> None:
    body = f"""
      {WRITE} (memory (export "memory") 1)
      (func $f (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 16)))
        (call $f))"""
    done = ww_account.run("run", ww_account.file("c.wasm", wat(body)))
    assert done.returncode == 134
    assert b"call stack exhausted" in done.stderr


def test_an_exception_that_a_cell_throws_through_a_call_of_the_host_is_its_own_trap(
    ww_account: Ww,
) -> None:
    body = '(tag $e (export "e") (param i64)) (memory (export "memory") 1)'
    thrown = wat(f'{body} (func (export "_start") (throw $e (i64.const 1)))')
    done = ww_account.run("run", ww_account.file("c.wasm", thrown))
    assert done.returncode == 134
    assert done.stderr.startswith(b"ww: error: ")


def test_a_hundred_memories_are_the_cells_own_and_only_one_is_the_calls(ww_account: Ww) -> None:
    others = "".join(f'(memory (export "m{n}") 1)' for n in range(99))
    body = f"""
      {WRITE} {others} (memory $m (export "memory") 1) {SAY.replace("(data", "(data (memory $m)")}
      (func (export "_start") (i32.store (i32.const 0) (i32.const 0xffff)) (call $say))"""
    done = ww_account.run("run", ww_account.file("c.wasm", wat(body)))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi", b"")


def test_a_hundred_thousand_exports_cost_no_time(ww_account: Ww) -> None:
    # The time to list them grows with the square of their number.
    many = "".join(f'(export "e{n}" (func $say))' for n in range(100_000))
    body = f'{WRITE} (memory (export "memory") 1) {SAY} {many} (export "_start" (func $say))'
    done = ww_account.run("run", "--cpu-time", "20", ww_account.file("c.wasm", wat(body)))
    assert (done.returncode, done.stdout) == (0, b"hi"), done.stderr


def test_a_name_in_a_backtrace_cannot_steer_the_terminal_or_forge_a_line(ww: Ww) -> None:
    name = "\\1b[2Jx\\0aww: error: forged\\0a"
    body = f'(memory (export "memory") 1) (func (@name "{name}") (export "_start") unreachable)'
    done = ww.run("run", ww.file("c.wasm", wat(body)))
    assert done.returncode == 134
    assert b"\x1b" not in done.stderr
    assert [line.startswith(b"ww: ") for line in done.stderr.splitlines()].count(True) == 1


# --- room -----------------------------------------------------------------------------------------


def test_as_many_descriptors_as_allowed_are_opened_and_one_that_is_closed_makes_room(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    with in_place(ww_account, c_cell, "--nofile", "5") as (cell, _):
        opened = [cell.open("file", R) for _ in range(6)]
        assert [errno for errno, _ in opened] == [OK] * 5 + [EMFILE]
        for _ in range(50):
            assert cell.raw("fd_close", opened[0][1] or 0) == OK
            assert cell.open("file", R) == opened[0]
            assert cell.open("sub", 0, oflags=DIRECTORY)[0] == EMFILE
        # A file that cannot be opened is not made.
        assert cell.open("new", R | W, oflags=CREAT)[0] == EMFILE
        assert cell.path_filestat("new")[0] == ENOENT
        # Nor does moving numbers about make room.
        assert cell.raw("fd_renumber", opened[1][1] or 0, opened[2][1] or 0) == OK
        assert cell.open("file", R)[0] == OK
        assert cell.open("file", R)[0] == EMFILE

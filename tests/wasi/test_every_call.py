"""Every function of preview 1 on every kind of descriptor that can be granted.

tests/probes/cells/every_call.c makes the calls, always the same ones in the same order, and prints
what each said. What each must say is in the table here, with the reason where it is an error.
"""

from __future__ import annotations

import itertools
import os
import socket
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from sandbox.wasi import abi
from tests.conftest import BuildFunction, FdSource, Ww
from tests.wasi.remote_cell import (
    APPEND,
    FT_CHARACTER,
    FT_DGRAM,
    FT_DIRECTORY,
    FT_REGULAR,
    FT_STREAM,
    FT_SYMLINK,
    FT_UNKNOWN,
    NONBLOCK,
    PATIENCE,
    Errno,
    R,
    Right,
    W,
    give_to_the_cell,
    opened,
)

CONTENT = b"0123456789abcdef"
# More messages than the cell takes.
MESSAGES = 8
NUMBER = 10

# --- kinds of descriptors ------------------------------------------------------------------------

Kinds = frozenset[str]


def kinds(*names: str) -> Kinds:
    return frozenset(names)


FILES_TO_READ = kinds("file r", "file rw", "file append")
FILES_TO_WRITE = kinds("file w", "file rw", "file append")
FILES = FILES_TO_READ | FILES_TO_WRITE
PIPES = kinds("pipe r", "pipe w")
TERMINALS = kinds("terminal", "terminal as one")
DEVICE = kinds("device")
STREAMS = kinds("unix stream", "unix stream r", "unix stream w", "tcp stream")
MESSENGERS = kinds("unix datagram", "udp", "seqpacket")
LISTENING = kinds("unix listening", "tcp listening")
CONNECTED = STREAMS | MESSENGERS
SOCKETS = CONNECTED | LISTENING
DIRECTORIES = kinds("directory r", "directory rw")
ROOT = kinds("root")
DIRECTORY_R, DIRECTORY_RW = kinds("directory r"), kinds("directory rw")
PATHS = DIRECTORIES | ROOT
ALL = FILES | PIPES | TERMINALS | DEVICE | SOCKETS | PATHS

ONLY_READ = kinds("file r", "pipe r", "unix stream r")
ONLY_WRITTEN = kinds("file w", "pipe w", "unix stream w")
BYTES = ALL - PATHS - LISTENING
READ = BYTES - ONLY_WRITTEN
WRITTEN = BYTES - ONLY_READ
NO_POSITION = PIPES | TERMINALS | SOCKETS

# --- what each call must say ----------------------------------------------------------------------


class Rule(NamedTuple):
    """What a call must say of some kinds; `why` if that is an error."""

    kinds: Kinds
    said: str
    why: str = ""


def ok(of: Kinds, result: str = "") -> Rule:
    return Rule(of, f"0 {result}" if result else "0")


def no(of: Kinds, errno: Errno, why: str) -> Rule:
    return Rule(of, str(int(errno)), why)


def is_read(of: Kinds, data: bytes) -> Rule:
    return ok(of, f"{len(data)} <{data.decode()}>")


def received(of: Kinds, data: bytes, *, cut: bool = False) -> Rule:
    return ok(of, f"{len(data)} <{data.decode()}> flags={int(cut)}")


def state(of: Kinds, filetype: int, flags: int, rights: int, inheriting: int = 0) -> Rule:
    return ok(of, f"type={filetype} flags={flags} rights={rights:x} inheriting={inheriting:x}")


_ANY = Right.FD_FDSTAT_SET_FLAGS | Right.FD_FILESTAT_GET | Right.POLL_FD_READWRITE
_FILE = _ANY | Right.FD_SEEK | Right.FD_TELL | Right.FD_ADVISE | Right.FD_SYNC | Right.FD_DATASYNC
_FILE_W = Right.FD_ALLOCATE | Right.FD_FILESTAT_SET_SIZE | Right.FD_FILESTAT_SET_TIMES
_FILE_RW = _FILE | R | W | _FILE_W
_LOOKING = (
    Right.PATH_OPEN
    | Right.FD_READDIR
    | Right.PATH_READLINK
    | Right.PATH_FILESTAT_GET
    | Right.FD_FILESTAT_GET
)
_SYNCS = Right.FD_SYNC | Right.FD_DATASYNC
_CHANGING = (
    Right.PATH_CREATE_DIRECTORY
    | Right.PATH_CREATE_FILE
    | Right.PATH_LINK_SOURCE
    | Right.PATH_LINK_TARGET
    | Right.PATH_RENAME_SOURCE
    | Right.PATH_RENAME_TARGET
    | Right.PATH_FILESTAT_SET_SIZE
    | Right.PATH_FILESTAT_SET_TIMES
    | Right.PATH_SYMLINK
    | Right.PATH_REMOVE_DIRECTORY
    | Right.PATH_UNLINK_FILE
    | Right.FD_FILESTAT_SET_TIMES
)
_SHUTDOWN = Right.SOCK_SHUTDOWN
_IN_DIRECTORY = _LOOKING | _FILE | R | W  # writing is asked for always, and refused by path_open


def states(*, nonblocking: int = 0, appending: int = 0) -> tuple[Rule, ...]:
    """What fd_fdstat_get tells, with the flags that were set since."""
    both = nonblocking | appending
    return (
        state(kinds("file r"), FT_REGULAR, nonblocking, _FILE | R),
        state(kinds("file w"), FT_REGULAR, both, _FILE | W | _FILE_W),
        state(kinds("file rw"), FT_REGULAR, both, _FILE_RW),
        # What was granted for appending can be neither overwritten nor cut.
        state(
            kinds("file append"),
            FT_REGULAR,
            both | APPEND,
            _FILE_RW & ~(Right.FD_FILESTAT_SET_SIZE | Right.FD_ALLOCATE),
        ),
        state(kinds("pipe r"), FT_UNKNOWN, nonblocking, _ANY | R),
        state(kinds("pipe w"), FT_UNKNOWN, both, _ANY | W),
        # With the rights to seek and to tell isatty(3) of wasi-libc says no.
        state(
            kinds("terminal", "device"),
            FT_CHARACTER,
            both,
            _ANY | R | W | Right.FD_SEEK | Right.FD_TELL,
        ),
        state(kinds("terminal as one"), FT_CHARACTER, both, _ANY | R | W),
        state(kinds("unix stream", "tcp stream"), FT_STREAM, both, _ANY | R | W | _SHUTDOWN),
        state(kinds("unix stream r"), FT_STREAM, nonblocking, _ANY | R | _SHUTDOWN),
        state(kinds("unix stream w"), FT_STREAM, both, _ANY | W | _SHUTDOWN),
        # WASI has two types of sockets; one that keeps the borders of messages is the other one.
        state(MESSENGERS, FT_DGRAM, both, _ANY | R | W | _SHUTDOWN),
        state(LISTENING, FT_STREAM, nonblocking, _ANY | Right.SOCK_ACCEPT),
        state(DIRECTORY_R, FT_DIRECTORY, 0, _LOOKING | _SYNCS, _IN_DIRECTORY | _SYNCS),
        state(
            DIRECTORY_RW,
            FT_DIRECTORY,
            0,
            _LOOKING | _SYNCS | _CHANGING,
            _IN_DIRECTORY | _SYNCS | _CHANGING | _FILE_W,
        ),
        state(ROOT, FT_DIRECTORY, 0, _LOOKING, _LOOKING | _FILE_RW | _SHUTDOWN | Right.SOCK_ACCEPT),
    )


def types(*, size: dict[str, int]) -> tuple[Rule, ...]:
    """What fd_filestat_get tells; sizes of regular files only."""
    return (
        *(ok(kinds(name), f"type={FT_REGULAR} size={size[name]}") for name in sorted(FILES)),
        ok(PIPES, f"type={FT_UNKNOWN}"),
        ok(TERMINALS | DEVICE, f"type={FT_CHARACTER}"),
        ok(STREAMS | LISTENING, f"type={FT_STREAM}"),
        ok(MESSENGERS, f"type={FT_DGRAM}"),
        ok(PATHS, f"type={FT_DIRECTORY}"),
    )


A_DIRECTORY = no(PATHS, Errno.ISDIR, "read(2), and for all that is about a file's bytes")
NOT_A_DIRECTORY = no(ALL - PATHS, Errno.NOTDIR, "openat(2): the number is of no directory")
NOT_A_SOCKET = no(ALL - SOCKETS, Errno.NOTSOCK, "recv(2), before any question of rights")
NO_SUCH_POSITION = no(NO_POSITION, Errno.SPIPE, "lseek(2): there is no position")
NOT_READ = (
    no(ONLY_WRITTEN, Errno.BADF, "read(2): not for reading"),
    no(LISTENING, Errno.BADF, "a listening socket has no bytes, and not the right to read"),
    A_DIRECTORY,
)
NOT_WRITTEN = (
    no(ONLY_READ, Errno.BADF, "write(2): not for writing"),
    no(LISTENING, Errno.BADF, "a listening socket has no bytes, and not the right to write"),
    A_DIRECTORY,
)
NOT_POSITIONED = (
    NO_SUCH_POSITION,
    A_DIRECTORY,
)
READ_ONLY_DIRECTORIES = (
    no(DIRECTORY_R, Errno.PERM, "granted for reading: the right is there for nobody"),
    no(ROOT, Errno.ROFS, "the root has what was granted, and nothing else"),
    NOT_A_DIRECTORY,
)
NO_SUCH_FLAG = "no such flag, or none that Linux changes: fcntl(2)"
KEPT_APPENDING = no(
    kinds("file append"), Errno.NOTCAPABLE, "an append-only grant stays one: APPEND is not among"
)
NO_SUCH_RIGHT = "the right is missing: the call means nothing for this kind or mode"
NO_TIMES = (
    no(
        ALL - FILES_TO_WRITE - PATHS,
        Errno.NOTCAPABLE,
        NO_SUCH_RIGHT,
    ),
)
TOO_MANY = "readv(2): more than IOV_MAX"
NEGATIVE = "pread(2): beyond 2**63 an offset is negative"


def refused_flags() -> tuple[Rule, ...]:
    return (
        no(ALL - PATHS - kinds("file append"), Errno.INVAL, NO_SUCH_FLAG),
        KEPT_APPENDING,
        A_DIRECTORY,
    )


def seek_to(position: int) -> tuple[Rule, ...]:
    # lseek(2) of /dev/null succeeds, and goes nowhere.
    return (ok(FILES, str(position)), ok(DEVICE, "0"), *NOT_POSITIONED)


def is_made(of: Kinds, flags: int, rights: int, filetype: int = FT_REGULAR) -> tuple[Rule, ...]:
    return (state(of, filetype, flags, rights),)


CLOSED = no(ALL, Errno.BADF, "the number is closed")
# For each call the rules, of which exactly one is for each kind; none where it is not made.
TABLE: dict[str, tuple[Rule, ...]] = {
    "fd_fdstat_get": states(),
    "fd_filestat_get": types(size=dict.fromkeys(FILES, len(CONTENT))),
    "fd_prestat_get": (
        ok(DIRECTORIES, "0 2"),
        ok(ROOT, "0 1"),
        no(ALL - PATHS, Errno.BADF, "not preopened: by this a C library finds where to stop"),
    ),
    "fd_prestat_dir_name": (
        ok(DIRECTORIES, "/g"),
        ok(ROOT, "/"),
        no(ALL - PATHS, Errno.BADF, "not preopened, as fd_prestat_get says"),
    ),
    "fd_prestat_dir_name without room": (
        no(PATHS, Errno.NAMETOOLONG, "the name does not fit"),
        no(ALL - PATHS, Errno.BADF, "not preopened, as fd_prestat_get says"),
    ),
    "fd_fdstat_set_flags NONBLOCK": (
        ok(ALL - PATHS - kinds("file append")),
        KEPT_APPENDING,
        A_DIRECTORY,
    ),
    "fd_tell": seek_to(0),
    "fd_seek SET": seek_to(2),
    "fd_seek CUR": seek_to(4),
    "fd_seek END": seek_to(16),
    "fd_seek before the start": (
        no(FILES, Errno.INVAL, "lseek(2): the position would be negative"),
        ok(DEVICE, "0"),
        *NOT_POSITIONED,
    ),
    "fd_seek from nowhere": (
        no(FILES | DEVICE, Errno.INVAL, "lseek(2): no such whence"),
        # A terminal that it does not know to be one is a device that could have a position.
        no(kinds("terminal"), Errno.INVAL, "lseek(2): no such whence"),
        no(NO_POSITION - kinds("terminal"), Errno.SPIPE, "lseek(2): there is no position"),
        A_DIRECTORY,
    ),
    "fd_seek to the start": seek_to(0),
    "fd_advise": (
        ok(FILES),
        no(kinds("terminal") | DEVICE, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        no(NO_POSITION - kinds("terminal"), Errno.SPIPE, "posix_fadvise(2): no file"),
        A_DIRECTORY,
    ),
    "fd_advise of no kind": (
        no(FILES, Errno.INVAL, "posix_fadvise(2): no such advice"),
        no(kinds("terminal") | DEVICE, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        no(NO_POSITION - kinds("terminal"), Errno.SPIPE, "posix_fadvise(2): no file"),
        A_DIRECTORY,
    ),
    "fd_read": (is_read(READ - DEVICE, b"0123"), is_read(DEVICE, b""), *NOT_READ),
    "fd_read of two": (
        is_read(READ - DEVICE - MESSENGERS, b"45678"),
        is_read(MESSENGERS, b"01234"),  # the next message; the rest of the first is lost
        is_read(DEVICE, b""),
        *NOT_READ,
    ),
    "fd_read of no vectors": (is_read(READ, b""), *NOT_READ),
    "fd_read of nothing": (is_read(READ, b""), *NOT_READ),
    "fd_read of too many": (no(ALL - PATHS, Errno.INVAL, TOO_MANY), A_DIRECTORY),
    "fd_pread": (
        is_read(FILES_TO_READ, b"1234"),
        is_read(DEVICE, b""),
        no(kinds("file w"), Errno.BADF, "pread(2): not for reading"),
        *NOT_POSITIONED,
    ),
    "fd_pread at 2**63": (
        no(FILES | DEVICE | kinds("terminal"), Errno.INVAL, NEGATIVE),
        no(NO_POSITION - kinds("terminal"), Errno.SPIPE, "pread(2): there is no position"),
        A_DIRECTORY,
    ),
    "fd_write": (ok(WRITTEN, "2"), *NOT_WRITTEN),
    "fd_write of two": (ok(WRITTEN, "3"), *NOT_WRITTEN),
    "fd_write of no vectors": (ok(WRITTEN, "0"), *NOT_WRITTEN),
    "fd_write of nothing": (ok(WRITTEN, "0"), *NOT_WRITTEN),
    "fd_write of too many": (no(ALL - PATHS, Errno.INVAL, TOO_MANY), A_DIRECTORY),
    "fd_pwrite": (
        ok(FILES_TO_WRITE | DEVICE, "2"),
        no(kinds("file r"), Errno.BADF, "pwrite(2): not for writing"),
        *NOT_POSITIONED,
    ),
    "fd_pwrite at 2**63": (
        no(FILES | DEVICE | kinds("terminal"), Errno.INVAL, NEGATIVE),
        no(NO_POSITION - kinds("terminal"), Errno.SPIPE, "pwrite(2): there is no position"),
        A_DIRECTORY,
    ),
    "fd_filestat_set_size": (
        ok(kinds("file w", "file rw")),
        no(kinds("file append"), Errno.NOTCAPABLE, "it could cut what may only be appended to"),
        no(ALL - FILES_TO_WRITE - PATHS, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        A_DIRECTORY,
    ),
    "fd_filestat_set_size to 2**63": (
        no(kinds("file w", "file rw"), Errno.INVAL, "ftruncate(2): a negative length"),
        no(kinds("file append"), Errno.NOTCAPABLE, "it could cut what may only be appended to"),
        no(ALL - FILES_TO_WRITE - PATHS, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        A_DIRECTORY,
    ),
    "fd_allocate": (
        ok(kinds("file w", "file rw")),
        no(kinds("file append"), Errno.NOTCAPABLE, "its size would not be that of what it got"),
        no(ALL - FILES_TO_WRITE - PATHS, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        A_DIRECTORY,
    ),
    "fd_allocate of nothing": (
        no(kinds("file w", "file rw"), Errno.INVAL, "posix_fallocate(3): no length"),
        no(kinds("file append"), Errno.NOTCAPABLE, "its size would not be that of what it got"),
        no(ALL - FILES_TO_WRITE - PATHS, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        A_DIRECTORY,
    ),
    "fd_allocate at 2**63": (
        no(kinds("file w", "file rw"), Errno.INVAL, "posix_fallocate(3): a negative offset"),
        no(kinds("file append"), Errno.NOTCAPABLE, "its size would not be that of what it got"),
        no(ALL - FILES_TO_WRITE - PATHS, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        A_DIRECTORY,
    ),
    "fd_filestat_get again": types(
        size={"file r": 16, "file w": 40, "file rw": 40, "file append": 23}
    ),
    **{
        f"fd_filestat_set_times{what}": (
            ok(FILES_TO_WRITE | DIRECTORY_RW),
            no(DIRECTORY_R, Errno.PERM, "granted for reading"),
            no(ROOT, Errno.ROFS, "there is nothing that could have times"),
            *NO_TIMES,
        )
        for what in ("", " to now", " of none")
    },
    **{
        f"fd_filestat_set_times {what}": (
            no(FILES_TO_WRITE | DIRECTORIES, Errno.INVAL, "flags that contradict, or are none"),
            no(ROOT, Errno.ROFS, "there is nothing that could have times"),
            *NO_TIMES,
        )
        for what in ("twice", "unknown")
    },
    **{
        name: (
            ok(FILES | DIRECTORIES),
            no(ALL - FILES - DIRECTORIES, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        )
        for name in ("fd_sync", "fd_datasync")
    },
    "fd_fdstat_set_flags APPEND": (
        ok(WRITTEN),
        no(ONLY_READ | LISTENING, Errno.BADF, "who may not write has no say in where writes go"),
        A_DIRECTORY,
    ),
    **{
        f"fd_fdstat_set_flags {flag}": refused_flags()
        for flag in ("DSYNC", "RSYNC", "SYNC", "unknown")
    },
    "fd_fdstat_get again": states(nonblocking=NONBLOCK, appending=APPEND),
    "fd_readdir": (ok(PATHS, " . .. f"), NOT_A_DIRECTORY),
    "fd_readdir into 10 bytes": (ok(PATHS, "10"), NOT_A_DIRECTORY),
    "fd_readdir beyond the end": (ok(PATHS, "0"), NOT_A_DIRECTORY),
    # 0, 1 and 2 are taken, 3 is where the directory is preopened; 4 is the lowest free one.
    "path_open": (ok(PATHS, "4"), NOT_A_DIRECTORY),
    "fd_fdstat_get after path_open": is_made(PATHS, 0, R | Right.FD_SEEK),
    "fd_close after path_open": (ok(PATHS),),
    "path_open to write": (
        ok(DIRECTORY_RW | ROOT, "4"),
        no(DIRECTORY_R, Errno.PERM, "granted for reading"),
        NOT_A_DIRECTORY,
    ),
    "fd_fdstat_get after path_open to write": is_made(DIRECTORY_RW | ROOT, APPEND, W),
    "fd_close after path_open to write": (ok(DIRECTORY_RW | ROOT),),
    "path_open of nothing": (
        no(PATHS, Errno.NOENT, "open(2): there is no such name"),
        NOT_A_DIRECTORY,
    ),
    "path_open CREAT": (
        ok(DIRECTORY_RW, "4"),
        no(DIRECTORY_R, Errno.PERM, "granted for reading"),
        no(ROOT, Errno.NOENT, "only what was granted is there"),
        NOT_A_DIRECTORY,
    ),
    "fd_fdstat_get after path_open CREAT": is_made(DIRECTORY_RW, 0, R | W | Right.FD_SEEK),
    "fd_close after path_open CREAT": (ok(DIRECTORY_RW),),
    "path_open CREAT|EXCL": (
        no(DIRECTORY_R, Errno.PERM, "granted for reading"),
        no(DIRECTORY_RW | ROOT, Errno.EXIST, "open(2): the name exists"),
        NOT_A_DIRECTORY,
    ),
    "path_open DIRECTORY": (ok(PATHS, "4"), NOT_A_DIRECTORY),
    "fd_fdstat_get after path_open DIRECTORY": is_made(PATHS, 0, Right.FD_READDIR, FT_DIRECTORY),
    "fd_close after path_open DIRECTORY": (ok(PATHS),),
    "path_open above": (
        no(DIRECTORIES, Errno.PERM, "the path leads out"),
        no(ROOT, Errno.NOTCAPABLE, "the path leads out"),
        NOT_A_DIRECTORY,
    ),
    "path_open unknown": (
        no(PATHS, Errno.INVAL, "no such flag"),
        NOT_A_DIRECTORY,
    ),
    "path_filestat_get": (
        ok(DIRECTORIES, f"type={FT_REGULAR}"),
        ok(ROOT, f"type={FT_SYMLINK}"),
        NOT_A_DIRECTORY,
    ),
    "path_filestat_get SYMLINK_FOLLOW": (
        ok(PATHS, f"type={FT_REGULAR} size=16"),
        NOT_A_DIRECTORY,
    ),
    "path_filestat_set_times": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_create_directory": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_create_directory again": (
        no(DIRECTORY_RW, Errno.EXIST, "mkdir(2): the name exists"),
        *READ_ONLY_DIRECTORIES,
    ),
    "path_symlink": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_readlink": (
        ok(DIRECTORY_RW, "f"),
        no(DIRECTORY_R | ROOT, Errno.NOENT, "it could not be made"),
        NOT_A_DIRECTORY,
    ),
    "path_readlink of f": (
        no(DIRECTORIES, Errno.INVAL, "readlink(2): no symbolic link"),
        ok(ROOT, f"/proc/self/fd/{NUMBER}"),
        NOT_A_DIRECTORY,
    ),
    "path_link": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_rename": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_rename to a closed number": (CLOSED,),
    "path_unlink_file of a directory": (
        no(DIRECTORY_RW, Errno.ISDIR, "unlink(2) of Linux"),
        *READ_ONLY_DIRECTORIES,
    ),
    "path_remove_directory of a file": (
        no(DIRECTORY_RW, Errno.NOTDIR, "rmdir(2)"),
        *READ_ONLY_DIRECTORIES,
    ),
    "path_unlink_file": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    "path_remove_directory": (ok(DIRECTORY_RW), *READ_ONLY_DIRECTORIES),
    # Of five subscriptions all but the one to a clock that is far off are due.
    "poll_oneoff": (ok(ALL, "4"),),
    "poll_oneoff: event 1": (
        *(
            ok(kinds(name), f"type=1 bytes={size} flags=0")
            for name, size in {"file r": 7, "file rw": 26, "file append": 2}.items()
        ),
        ok(READ - FILES - DEVICE - MESSENGERS, "type=1 bytes=7 flags=0"),
        ok(MESSENGERS - kinds("seqpacket"), f"type=1 bytes={len(CONTENT)} flags=0"),
        ok(kinds("seqpacket"), f"type=1 bytes={(MESSAGES - 2) * len(CONTENT)} flags=0"),
        # The kernel does not say how much: something.
        ok(DEVICE | LISTENING, "type=1 bytes=1 flags=0"),
        no(ONLY_WRITTEN, Errno.BADF, "as read(2) would say"),
        no(PATHS, Errno.BADF, "nothing of a directory is read or written"),
    ),
    "poll_oneoff: event 2": (
        ok(WRITTEN, "type=2 bytes=0 flags=0"),
        no(ONLY_READ | LISTENING, Errno.BADF, "as write(2) would say"),
        no(PATHS, Errno.BADF, "nothing of a directory is read or written"),
    ),
    "poll_oneoff: event 3": (CLOSED,),
    "poll_oneoff: event 5": (ok(ALL, "type=0 bytes=0 flags=0"),),
    "poll_oneoff of nothing": (no(ALL, Errno.INVAL, "it would wait for ever: the witx refuses"),),
    "sock_recv PEEK": (
        received(STREAMS - kinds("unix stream w"), b"9a"),
        received(MESSENGERS, b"01", cut=True),
        no(kinds("unix stream w"), Errno.BADF, "not for reading"),
        no(LISTENING, Errno.BADF, "a listening socket has not the right to read"),
        NOT_A_SOCKET,
    ),
    "sock_recv WAITALL": (
        received(STREAMS - kinds("unix stream w"), b"9ab"),
        received(MESSENGERS, b"012", cut=True),
        no(kinds("unix stream w"), Errno.BADF, "not for reading"),
        no(LISTENING, Errno.BADF, "a listening socket has not the right to read"),
        NOT_A_SOCKET,
    ),
    "sock_recv unknown": (
        no(CONNECTED - kinds("unix stream w"), Errno.INVAL, "no such flag"),
        no(kinds("unix stream w"), Errno.BADF, "not for reading"),
        no(LISTENING, Errno.BADF, "a listening socket has not the right to read"),
        NOT_A_SOCKET,
    ),
    **{
        f"sock_send{what}": (
            ok(CONNECTED - kinds("unix stream r"), str(size)),
            no(kinds("unix stream r"), Errno.BADF, "not for writing"),
            no(LISTENING, Errno.BADF, "a listening socket has not the right to write"),
            NOT_A_SOCKET,
        )
        for what, size in {"": 1, " of two": 2, " of no vectors": 0}.items()
    },
    "sock_send unknown": (no(SOCKETS, Errno.INVAL, "no flag is defined at all"), NOT_A_SOCKET),
    **{
        call: (
            ok(LISTENING, "3"),
            no(CONNECTED, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
            NOT_A_SOCKET,
        )
        for call in ("sock_accept", "sock_accept NONBLOCK")
    },
    "fd_fdstat_get after sock_accept": is_made(LISTENING, 0, _ANY | R | W | _SHUTDOWN, FT_STREAM),
    "fd_close after sock_accept": (ok(LISTENING),),
    "fd_fdstat_get after sock_accept NONBLOCK": is_made(
        LISTENING, NONBLOCK, _ANY | R | W | _SHUTDOWN, FT_STREAM
    ),
    "fd_close after sock_accept NONBLOCK": (ok(LISTENING),),
    "sock_accept unknown": (
        no(LISTENING, Errno.INVAL, "no flag of sockets"),
        no(CONNECTED, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        NOT_A_SOCKET,
    ),
    "sock_accept of nobody": (
        no(LISTENING, Errno.AGAIN, "accept(2): it is nonblocking, and nobody has called"),
        no(CONNECTED, Errno.NOTCAPABLE, NO_SUCH_RIGHT),
        NOT_A_SOCKET,
    ),
    "sock_shutdown of nothing": (
        no(CONNECTED, Errno.INVAL, "shutdown(2): no direction"),
        no(LISTENING, Errno.NOTCAPABLE, "it would end it for all who share it"),
        NOT_A_SOCKET,
    ),
    "sock_shutdown WR": (
        ok(CONNECTED - kinds("unix stream r")),
        no(kinds("unix stream r"), Errno.NOTCAPABLE, "the direction is not the cell's"),
        no(LISTENING, Errno.NOTCAPABLE, "it would end it for all who share it"),
        NOT_A_SOCKET,
    ),
    "fd_write after sock_shutdown": (
        no(CONNECTED - kinds("unix stream r"), Errno.PIPE, "send(2): shut down"),
        ok(WRITTEN - SOCKETS, "1"),
        *NOT_WRITTEN,
    ),
    "sock_shutdown RD|WR": (
        ok(CONNECTED - kinds("unix stream r", "unix stream w")),
        no(
            kinds("unix stream r", "unix stream w"),
            Errno.NOTCAPABLE,
            "one of the directions is not the cell's",
        ),
        no(LISTENING, Errno.NOTCAPABLE, "it would end it for all who share it"),
        NOT_A_SOCKET,
    ),
    "fd_fdstat_set_rights to the same": (ok(ALL),),
    "fd_fdstat_set_rights to more": (no(ALL, Errno.NOTCAPABLE, "rights only ever get fewer"),),
    "fd_fdstat_set_rights to inherit more": (
        no(ALL, Errno.NOTCAPABLE, "rights only ever get fewer"),
    ),
    "fd_fdstat_set_rights to none": (ok(ALL),),
    "fd_fdstat_set_rights back": (no(ALL, Errno.NOTCAPABLE, "what was given up is gone"),),
    "fd_fdstat_get of none": tuple(
        Rule(rule.kinds, f"{rule.said.partition(' rights=')[0]} rights=0 inheriting=0")
        for rule in states(nonblocking=NONBLOCK, appending=APPEND)
    ),
    "fd_filestat_get of none": (no(ALL, Errno.NOTCAPABLE, "the right was given up"),),
    "fd_read of none": (
        no(ALL - PATHS, Errno.BADF, "read(2): not for reading any more"),
        A_DIRECTORY,
    ),
    "fd_renumber to itself": (ok(ALL),),
    "fd_renumber to a closed number": (CLOSED,),
    "fd_renumber from a closed number": (CLOSED,),
    "fd_renumber out of range": (CLOSED,),
    "fd_renumber": (ok(ALL),),
    "fd_fdstat_get of the old number": (CLOSED,),
    "fd_close": (ok(ALL),),
    "fd_close again": (CLOSED,),
    "fd_renumber to what was closed": (CLOSED,),
}
TABLE["fd_fdstat_get of the new number"] = TABLE["fd_fdstat_get of none"]


def expected(kind: str) -> dict[str, str]:
    return {
        call: rule.said for call, rules in TABLE.items() for rule in rules if kind in rule.kinds
    }


def test_the_table_is_whole() -> None:
    """One rule for each call and kind, a reason for each error, and no function left out."""
    for call, rules in TABLE.items():
        for one, other in itertools.combinations(rules, 2):
            assert not one.kinds & other.kinds, call
        named = frozenset[str]().union(*(rule.kinds for rule in rules))
        # What a call has made is looked at where it has made something.
        maker = call.partition(" after ")[2]
        if maker in TABLE and maker != call:
            made = [rule.kinds for rule in TABLE[maker] if rule.said.startswith("0")]
            assert named == frozenset[str]().union(*made), call
        else:
            assert named == ALL, call
        assert all(rule.why for rule in rules if not rule.said.startswith("0")), call
    functions = {call.partition(" ")[0].rstrip(":") for call in (*TABLE, *ABOUT_NO_DESCRIPTOR)}
    assert functions == set(abi.FUNCTIONS) - {"proc_exit"}
    assert set(KINDS) == ALL


# --- the descriptors ------------------------------------------------------------------------------


class Granted(NamedTuple):
    """What is granted, how, and what must be seen of it outside when the cell has ended."""

    source: FdSource
    flags: tuple[str, ...]
    check: Callable[[], None]
    number: int = NUMBER


def grant(*options: str) -> tuple[str, ...]:
    return ("--fd", ",".join(("g=5", f"target={NUMBER}", *options)))


def nothing() -> None:
    """Nothing is to be seen."""


def a_file(mode: str, flags: int, expected: bytes) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        path = folder / "f"
        path.write_bytes(CONTENT)
        give_to_the_cell(ww, path)
        fd = stack.enter_context(opened(path, os.O_RDWR | flags))

        def check() -> None:
            assert path.read_bytes() == expected

        return Granted(fd, grant(f"mode={mode}"), check)

    return make


def a_pipe(end: int) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        ends = os.pipe()
        for fd in ends:
            stack.callback(os.close, fd)
        if end == 0:
            os.write(ends[1], CONTENT)

        def check() -> None:
            assert os.read(ends[0], 100) == (CONTENT[9:] if end == 0 else b"ABCDEw")

        return Granted(ends[end], grant(), check)

    return make


def a_terminal(*flags: str, number: int) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        ours, its = os.openpty()
        for fd in (ours, its):
            stack.callback(os.close, fd)
        tty.setraw(its)
        os.write(ours, CONTENT)

        def check() -> None:
            assert os.read(ours, 100) == b"ABCDEw"

        return Granted(its, flags or grant(), check, number)

    return make


def a_device(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
    fd = stack.enter_context(opened(Path("/dev/null")))
    return Granted(fd, grant(), nothing)


def a_pair(family: str, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected with each other."""
    if family == "unix":
        return socket.socketpair(type=kind)
    ours, its = socket.socket(type=kind), socket.socket(type=kind)
    if kind == socket.SOCK_DGRAM:
        for one in (ours, its):
            one.bind(("127.0.0.1", 0))
        its.connect(ours.getsockname())
        ours.connect(its.getsockname())
    else:
        its.close()
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours.connect(server.getsockname())
            its, _ = server.accept()
    return ours, its


def a_socket(
    family: str, kind: socket.SocketKind, mode: str = "rw"
) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        ours, its = (stack.enter_context(one) for one in a_pair(family, kind))
        ours.settimeout(PATIENCE)
        stream = kind == socket.SOCK_STREAM
        for _ in range((1 if stream else MESSAGES) if "r" in mode else 0):
            ours.send(CONTENT)

        def check() -> None:
            parts = [b"AB", b"CDE", b"", b"s", b"tu", b""]
            if "w" not in mode:
                ours.setblocking(False)
                with pytest.raises(BlockingIOError):
                    ours.recv(100)
            elif stream:
                sent = b"".join(parts)
                assert ours.recv(100, socket.MSG_WAITALL) == sent
            else:
                assert [ours.recv(100) for _ in parts] == parts

        return Granted(its, grant(f"mode={mode}"), check)

    return make


def a_listener(family: str) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        if family == "tcp":
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        else:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(folder / "s"))
            server.listen()
        clients = [stack.enter_context(socket.socket(server.family)) for _ in range(2)]
        for client in clients:
            client.connect(server.getsockname())
            client.settimeout(PATIENCE)

        def check() -> None:
            # Both were accepted, and closed.
            assert [client.recv(1) for client in clients] == [b"", b""]

        return Granted(server, grant(), check)

    return make


def a_directory(mode: str) -> Callable[[ExitStack, Ww, Path], Granted]:
    def make(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
        (folder / "f").write_bytes(CONTENT)
        for path in (folder, folder / "f"):
            give_to_the_cell(ww, path)
        fd = stack.enter_context(opened(folder, os.O_RDONLY))

        def check() -> None:
            names = {"f"} if mode == "r" else {"f", "new", "s"}
            assert set(os.listdir(folder)) == names
            assert (folder / "f").read_bytes() == CONTENT

        return Granted(fd, grant(f"mode={mode}"), check)

    return make


def the_root(stack: ExitStack, ww: Ww, folder: Path) -> Granted:
    path = folder / "f"
    path.write_bytes(CONTENT)
    fd = stack.enter_context(opened(path))
    flags = ("--fd", f"f=5,target={NUMBER},pathlink=true")
    return Granted(fd, flags, nothing, number=3)


KINDS: dict[str, Callable[[ExitStack, Ww, Path], Granted]] = {
    "file r": a_file("r", 0, CONTENT),
    "file w": a_file("w", 0, b"xyCDE" + CONTENT[5:] + bytes(24) + b"w"),
    "file rw": a_file("rw", 0, b"xy2345678ABCDEef" + bytes(24) + b"w"),
    # Linux appends, whatever the offset: pwrite(2), BUGS.
    "file append": a_file("rw", os.O_APPEND, CONTENT + b"ABCDExyw"),
    "pipe r": a_pipe(0),
    "pipe w": a_pipe(1),
    "terminal": a_terminal(number=NUMBER),
    "terminal as one": a_terminal("--with-console", "--fd", "g=5,target=0", number=0),
    "device": a_device,
    "unix stream": a_socket("unix", socket.SOCK_STREAM),
    "unix stream r": a_socket("unix", socket.SOCK_STREAM, "r"),
    "unix stream w": a_socket("unix", socket.SOCK_STREAM, "w"),
    "tcp stream": a_socket("tcp", socket.SOCK_STREAM),
    "unix datagram": a_socket("unix", socket.SOCK_DGRAM),
    "udp": a_socket("tcp", socket.SOCK_DGRAM),
    "seqpacket": a_socket("unix", socket.SOCK_SEQPACKET),
    "unix listening": a_listener("unix"),
    "tcp listening": a_listener("tcp"),
    "directory r": a_directory("r"),
    "directory rw": a_directory("rw"),
    "root": the_root,
}


@contextmanager
def granted(kind: str, ww: Ww, folder: Path) -> Iterator[Granted]:
    with ExitStack() as stack:
        yield KINDS[kind](stack, ww, folder)


def lines(out: bytes) -> dict[str, str]:
    said = {}
    for line in out.decode().splitlines():
        call, _, answer = line.rpartition(": ")
        assert call not in said
        said[call] = answer
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_says_what_it_must_of(
    kind: str, ww: Ww, c_cell: BuildFunction, tmp_path: Path
) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    with granted(kind, ww, folder) as given:
        cell = c_cell("every_call")
        done = ww.run("run", *given.flags, cell, str(given.number), fds={5: given.source})
        assert done.returncode == 0, done.stderr
        assert lines(done.stdout) == expected(kind)
        given.check()


# --- what is about no descriptor ------------------------------------------------------------------

ABOUT_NO_DESCRIPTOR = {
    "args_sizes_get": "0 1",
    "args_get": "0 a path",
    "environ_sizes_get": "0 1",
    "environ_get": "0 WW_FDS=()",
    **{
        f"{call} of {clock}": said
        for call in ("clock_res_get", "clock_time_get")
        # The engine has no clocks of processor time, and says EBADF of them.
        for clock, said in enumerate(("0 some", "0 some", "8", "8", "28"))
    },
    "random_get": "0 some",
    "sched_yield": "0",
    "proc_raise": "58",
}


def test_what_is_about_no_descriptor_is_the_engines_own(ww: Ww, c_cell: BuildFunction) -> None:
    done = ww.run("run", c_cell("every_call"))
    assert lines(done.stdout) == ABOUT_NO_DESCRIPTOR
    assert done.returncode == 47

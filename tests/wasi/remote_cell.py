"""Drives tests/probes/cells/remote.c: one raw WASI call of a cell after the other, from a test.

The numbers are those of the witx files of preview 1 and not the product's own, so that a wrong
number there is found.
"""

from __future__ import annotations

import enum
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from tests.conftest import OWN_ACCOUNT, FdSource, Ww

# Generous: it only bounds how long a hang lasts.
PATIENCE = 60.0

Errno = enum.IntEnum(
    "Errno",
    "SUCCESS E2BIG ACCES ADDRINUSE ADDRNOTAVAIL AFNOSUPPORT AGAIN ALREADY BADF BADMSG BUSY CANCELED"
    " CHILD CONNABORTED CONNREFUSED CONNRESET DEADLK DESTADDRREQ DOM DQUOT EXIST FAULT FBIG"
    " HOSTUNREACH IDRM ILSEQ INPROGRESS INTR INVAL IO ISCONN ISDIR LOOP MFILE MLINK MSGSIZE"
    " MULTIHOP NAMETOOLONG NETDOWN NETRESET NETUNREACH NFILE NOBUFS NODEV NOENT NOEXEC NOLCK NOLINK"
    " NOMEM NOMSG NOPROTOOPT NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTRECOVERABLE NOTSOCK NOTSUP"
    " NOTTY NXIO OVERFLOW OWNERDEAD PERM PIPE PROTO PROTONOSUPPORT PROTOTYPE RANGE ROFS SPIPE SRCH"
    " STALE TIMEDOUT TXTBSY XDEV NOTCAPABLE",
    start=0,
)
OK = 0
EACCES, EAGAIN, EBADF, EEXIST, EFAULT = 2, 6, 8, 20, 21
EINVAL, EISDIR, EMFILE, ENOENT, ENOTDIR = 28, 31, 33, 44, 54
ENOTSOCK, EPIPE, EROFS, ESPIPE, ENOTCAPABLE = 57, 64, 69, 70, 76


class Right(enum.IntFlag):
    FD_DATASYNC = 1 << 0
    FD_READ = 1 << 1
    FD_SEEK = 1 << 2
    FD_FDSTAT_SET_FLAGS = 1 << 3
    FD_SYNC = 1 << 4
    FD_TELL = 1 << 5
    FD_WRITE = 1 << 6
    FD_ADVISE = 1 << 7
    FD_ALLOCATE = 1 << 8
    PATH_CREATE_DIRECTORY = 1 << 9
    PATH_CREATE_FILE = 1 << 10
    PATH_LINK_SOURCE = 1 << 11
    PATH_LINK_TARGET = 1 << 12
    PATH_OPEN = 1 << 13
    FD_READDIR = 1 << 14
    PATH_READLINK = 1 << 15
    PATH_RENAME_SOURCE = 1 << 16
    PATH_RENAME_TARGET = 1 << 17
    PATH_FILESTAT_GET = 1 << 18
    PATH_FILESTAT_SET_SIZE = 1 << 19
    PATH_FILESTAT_SET_TIMES = 1 << 20
    FD_FILESTAT_GET = 1 << 21
    FD_FILESTAT_SET_SIZE = 1 << 22
    FD_FILESTAT_SET_TIMES = 1 << 23
    PATH_SYMLINK = 1 << 24
    PATH_REMOVE_DIRECTORY = 1 << 25
    PATH_UNLINK_FILE = 1 << 26
    POLL_FD_READWRITE = 1 << 27
    SOCK_SHUTDOWN = 1 << 28
    SOCK_ACCEPT = 1 << 29


ALL_RIGHTS = (1 << 30) - 1
R, W = Right.FD_READ, Right.FD_WRITE

FT_UNKNOWN, FT_BLOCK, FT_CHARACTER, FT_DIRECTORY = 0, 1, 2, 3
FT_REGULAR, FT_DGRAM, FT_STREAM, FT_SYMLINK = 4, 5, 6, 7

APPEND, DSYNC, NONBLOCK, RSYNC, SYNC = 1, 2, 4, 8, 16
CREAT, DIRECTORY, EXCL, TRUNC = 1, 2, 4, 8
SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
ATIM, ATIM_NOW, MTIM, MTIM_NOW = 1, 2, 4, 8
PEEK, WAITALL = 1, 2
DATA_TRUNCATED = 1
SHUT_RD, SHUT_WR = 1, 2
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU = 0, 1, 2, 3
EV_CLOCK, EV_READ, EV_WRITE = 0, 1, 2
HANGUP = 1


class Fdstat(NamedTuple):
    filetype: int
    flags: int
    rights: int
    inheriting: int


class Filestat(NamedTuple):
    dev: int
    ino: int
    filetype: int
    nlink: int
    size: int
    atim: int
    mtim: int
    ctim: int


class Event(NamedTuple):
    userdata: int
    error: int
    type: int
    nbytes: int
    flags: int


class Clock(NamedTuple):
    """A subscription to a clock."""

    userdata: int
    timeout: int
    clock: int = MONOTONIC
    absolute: bool = False

    def pack(self) -> bytes:
        return struct.pack(
            "<QB7xI4xQQH6x", self.userdata, 0, self.clock, self.timeout, 0, self.absolute
        )


class Ready(NamedTuple):
    """A subscription to a descriptor."""

    userdata: int
    type: int
    fd: int

    def pack(self) -> bytes:
        return struct.pack("<QB7xI28x", self.userdata, self.type, self.fd)


class Remote:
    """A running remote cell.

    Calls return the errno and, where there is one, the result, which is `None` on an error.
    """

    # In the cell's scratch: vectors, results, then buffers.
    _RESULTS = 0x8000
    _BUFFERS = 0x8100

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self.process = process
        self.calls = 0
        self.died = False
        self._commands = commands
        self._answers = answers
        self._pending = b""
        (reply,) = self.ask("scratch")
        self.scratch, self.scratch_size = map(int, reply.split()[1:])

    # --- the protocol ---

    def ask(self, *commands: str) -> list[str]:
        """Give commands and return an answer for each."""
        self.tell(*commands)
        return [self._answer(command) for command in commands]

    def tell(self, *commands: str) -> None:
        """Give commands, and take the answers later: `answer`."""
        data = "".join(f"{command}\n" for command in commands).encode()
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            self._died(commands[0])

    def answer(self) -> str:
        """The answer to a command that was told."""
        return self._answer("what it was told")

    def _answer(self, command: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            if not ready:
                raise AssertionError(f"no answer within {PATIENCE} s to: {command[:200]}")
            data = os.read(self._answers, 1 << 20)
            if not data:
                self._died(command)
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def _died(self, command: str) -> NoReturn:
        _, err = self.process.communicate(timeout=PATIENCE)
        self.died = True
        raise AssertionError(
            f"the cell ended with {self.process.returncode} at: {command[:200]}\n"
            f"{(err or b'').decode(errors='replace')}"
        )

    def raw(self, name: str, *numbers: int) -> Errno:
        """Any call with any numbers."""
        (reply,) = self.ask(f"call {name} {' '.join(map(str, numbers))}")
        return self._errno(name, reply)

    def _errno(self, name: str, reply: str) -> Errno:
        said, number = reply.split()
        assert said == name
        self.calls += 1
        return Errno(int(number))

    def poke(self, address: int, data: bytes) -> None:
        for start in range(0, len(data), 0x8000):
            self.ask(f"poke {address + start} {data[start : start + 0x8000].hex()}")

    def peek(self, address: int, size: int) -> bytes:
        parts = []
        for start in range(address, address + size, 0x10000):
            (reply,) = self.ask(f"peek {start} {min(0x10000, address + size - start)}")
            parts.append(bytes.fromhex(reply[len("peek ") :]))
        return b"".join(parts)

    def memory(self) -> int:
        """The size of the cell's memory in bytes."""
        return int(self.ask("memory")[0].split()[1])

    def grow(self, pages: int) -> int:
        """Let the cell grow its memory; the pages before, or -1."""
        return int(self.ask(f"grow {pages}")[0].split()[1])

    def result(self, layout: str, name: str, *numbers: int) -> tuple[Errno, tuple[int, ...] | None]:
        """A call whose last parameter is the address of a result, unpacked from there."""
        size = struct.calcsize(layout)
        at = self.scratch + self._RESULTS
        errno, peeked = self._call_and_peek(name, (*numbers, at), at, size)
        return errno, None if errno else struct.unpack(layout, peeked)

    def _call_and_peek(
        self, name: str, numbers: Sequence[int], at: int, size: int
    ) -> tuple[Errno, bytes]:
        call, peeked = self.ask(f"call {name} {' '.join(map(str, numbers))}", f"peek {at} {size}")
        return self._errno(name, call), bytes.fromhex(peeked[len("peek ") :])

    def _number(self, name: str, layout: str, *numbers: int) -> tuple[Errno, int | None]:
        errno, values = self.result(layout, name, *numbers)
        return errno, None if values is None else values[0]

    # --- vectors ---

    def put_vectors(self, sizes: Sequence[int], data: bytes = b"") -> tuple[int, int, int]:
        """Lay out buffers that hold `data`; the vectors' address and number, then the buffers'."""
        table = b""
        start = at = self.scratch + self._BUFFERS
        for size in sizes:
            table += struct.pack("<II", at, size)
            at += size
        assert len(table) <= self._RESULTS
        assert at <= self.scratch + self.scratch_size
        if table:
            self.poke(self.scratch, table)
        if data:
            self.poke(start, data)
        return self.scratch, len(sizes), start

    def _gather(
        self, name: str, fd: int, sizes: Sequence[int], *more: int
    ) -> tuple[Errno, bytes | None]:
        vectors, count, start = self.put_vectors(sizes)
        errno, size = self._number(name, "<I", fd, vectors, count, *more)
        return errno, None if size is None else self.peek(start, size)

    def _scatter(
        self, name: str, fd: int, parts: Sequence[bytes], *more: int
    ) -> tuple[Errno, int | None]:
        vectors, count, _ = self.put_vectors([len(part) for part in parts], b"".join(parts))
        return self._number(name, "<I", fd, vectors, count, *more)

    # --- the calls ---

    def read(self, fd: int, *sizes: int) -> tuple[Errno, bytes | None]:
        return self._gather("fd_read", fd, sizes)

    def pread(self, fd: int, offset: int, *sizes: int) -> tuple[Errno, bytes | None]:
        return self._gather("fd_pread", fd, sizes, offset)

    def write(self, fd: int, *parts: bytes) -> tuple[Errno, int | None]:
        return self._scatter("fd_write", fd, parts)

    def pwrite(self, fd: int, offset: int, *parts: bytes) -> tuple[Errno, int | None]:
        return self._scatter("fd_pwrite", fd, parts, offset)

    def send(self, fd: int, *parts: bytes, flags: int = 0) -> tuple[Errno, int | None]:
        return self._scatter("sock_send", fd, parts, flags)

    def recv(self, fd: int, *sizes: int, flags: int = 0) -> tuple[Errno, tuple[bytes, int] | None]:
        """The bytes, and roflags."""
        vectors, count, start = self.put_vectors(sizes)
        at = self.scratch + self._RESULTS
        errno, raw = self._call_and_peek(
            "sock_recv", (fd, vectors, count, flags, at, at + 4), at, 6
        )
        if errno:
            return errno, None
        size, roflags = struct.unpack("<IH", raw)
        return errno, (self.peek(start, size), roflags)

    def seek(self, fd: int, offset: int, whence: int = SEEK_SET) -> tuple[Errno, int | None]:
        return self._number("fd_seek", "<Q", fd, offset, whence)

    def tell_position(self, fd: int) -> tuple[Errno, int | None]:
        return self._number("fd_tell", "<Q", fd)

    def fdstat(self, fd: int) -> tuple[Errno, Fdstat | None]:
        errno, values = self.result("<BxH4xQQ", "fd_fdstat_get", fd)
        return errno, None if values is None else Fdstat(*values)

    def filestat(self, fd: int) -> tuple[Errno, Filestat | None]:
        errno, values = self.result("<QQB7xQQQQQ", "fd_filestat_get", fd)
        return errno, None if values is None else Filestat(*values)

    def accept(self, fd: int, flags: int = 0) -> tuple[Errno, int | None]:
        return self._number("sock_accept", "<I", fd, flags)

    def _put_text(self, text: str | bytes, room: int = 0) -> tuple[int, int]:
        data = text.encode() if isinstance(text, str) else text
        at = self.scratch + self._BUFFERS + room
        self.poke(at, data)
        return at, len(data)

    def open(
        self,
        path: str | bytes,
        rights: int = R,
        *,
        oflags: int = 0,
        fdflags: int = 0,
        fd: int = 3,
        lookup: int = 1,
        inheriting: int = 0,
    ) -> tuple[Errno, int | None]:
        at, size = self._put_text(path)
        return self._number(
            "path_open", "<I", fd, lookup, at, size, oflags, int(rights), inheriting, fdflags
        )

    def path_filestat(
        self, path: str | bytes, *, fd: int = 3, lookup: int = 1
    ) -> tuple[Errno, Filestat | None]:
        at, size = self._put_text(path)
        errno, values = self.result("<QQB7xQQQQQ", "path_filestat_get", fd, lookup, at, size)
        return errno, None if values is None else Filestat(*values)

    def readlink(
        self, path: str | bytes, room: int = 256, fd: int = 3
    ) -> tuple[Errno, bytes | None]:
        at, size = self._put_text(path)
        buffer = at + 4096
        errno, used = self._number("path_readlink", "<I", fd, at, size, buffer, room)
        return errno, None if used is None else self.peek(buffer, used)

    def path(self, name: str, *numbers: int | str) -> Errno:
        """A call on paths: each text among the parameters becomes its address and length."""
        flat: list[int] = []
        room = 0
        for number in numbers:
            if isinstance(number, str):
                flat += self._put_text(number, room)
                room += 4096
            else:
                flat.append(number)
        return self.raw(name, *flat)

    def readdir(self, fd: int, size: int = 4096, cookie: int = 0) -> tuple[Errno, bytes | None]:
        at = self.scratch + self._BUFFERS
        errno, used = self._number("fd_readdir", "<I", fd, at, size, cookie)
        return errno, None if used is None else self.peek(at, used)

    def poll(self, *subscriptions: Clock | Ready) -> tuple[Errno, list[Event] | None]:
        self.tell_poll(*subscriptions)
        return self.poll_answer(len(subscriptions))

    def tell_poll(self, *subscriptions: Clock | Ready) -> None:
        """Begin a poll, whose answer `poll_answer` takes."""
        at = self.scratch + self._BUFFERS
        room = at + 48 * len(subscriptions)
        self.poke(at, b"".join(item.pack() for item in subscriptions))
        result = self.scratch + self._RESULTS
        self.tell(f"call poll_oneoff {at} {room} {len(subscriptions)} {result}")

    def poll_answer(self, count: int) -> tuple[Errno, list[Event] | None]:
        errno = self._errno("poll_oneoff", self.answer())
        if errno:
            return errno, None
        (got,) = struct.unpack("<I", self.peek(self.scratch + self._RESULTS, 4))
        assert 0 < got <= count
        raw = self.peek(self.scratch + self._BUFFERS + 48 * count, 32 * got)
        return errno, [Event(*values) for values in struct.iter_unpack("<QHB5xQH6x", raw)]

    # --- the end ---

    def end(self) -> int:
        """Let it end by itself, and return the exit code of ww."""
        os.close(self._commands)
        self._commands = -1
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode

    def close(self) -> None:
        """End it, however it is."""
        if self._commands >= 0:
            os.close(self._commands)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE)


# As whom a cell runs that root starts: `ww run --help`.
NOBODY = 65534


def give_to_the_cell(ww: Ww, path: Path) -> Path:
    """Make a file the cell's own: only an owner may set a file's times, whatever is open."""
    if os.geteuid() == 0:
        os.chown(path, ww.account.uid or NOBODY, -1)
    return path


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """An open file's number."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def shared_ww(folders: Path, name: str) -> Ww:
    """A `ww` for a cell that many tests use: a run costs more than all that they do in it."""
    made = Ww(OWN_ACCOUNT, folders / f"shared-{name}")
    made.prepare()
    return made


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results for all items; as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


@contextmanager
def remote(
    ww: Ww,
    wasm: Path,
    *flags: str,
    fds: Mapping[int, FdSource] | None = None,
    control: tuple[int, int] | None = None,
    stderr: FdSource | int = subprocess.PIPE,
) -> Iterator[Remote]:
    """Run `ww run FLAGS remote.wasm`, and see that it ends well.

    `control` are the cell's numbers for commands and answers, if not 0 and 1; the caller's are 8
    and 9 then.
    """
    commands_out, commands = os.pipe()
    answers, answers_in = os.pipe()
    os.set_inheritable(commands, False)
    try:
        if control is None:
            process = ww.popen(
                "run", *flags, wasm, stdin=commands_out, stdout=answers_in, stderr=stderr, fds=fds
            )
        else:
            process = ww.popen(
                "run",
                *("--fd", f"commands=8,target={control[0]}"),
                *("--fd", f"answers=9,target={control[1]}"),
                *flags,
                wasm,
                *map(str, control),
                stderr=stderr,
                stdout=subprocess.DEVNULL,
                fds={**(fds or {}), 8: commands_out, 9: answers_in},
            )
    finally:
        os.close(commands_out)
        os.close(answers_in)
    cell = None
    try:
        cell = Remote(process, commands, answers)
        yield cell
        if cell._commands >= 0 and not cell.died:
            assert cell.end() == 0
    finally:
        if cell is not None:
            cell.close()
        else:
            os.close(commands)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
        os.close(answers)

"""The runner's half of content: answers what a cell's process asks while the cell runs.

That process may be the cell's captive, so nothing it sends is believed, and nothing it does may
cost without bound. It may ask for what is there to be asked for, and for no more at once than
:data:`MOST_BYTES`; whoever breaks the form, or does not take the answers, gets none any more.
"""

import array
import errno
import fcntl
import os
import resource
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from sandbox.content import MAX_REQUEST, MAX_SIZE, SEALS, Answer, Found, Kind, Name, Request
from sandbox.policy import Limits

MOST_BYTES: Final = 512 << 20
"""Bytes of all that a cell holds at once, and of what is kept for the next time."""

MOST_LISTING: Final = 64 << 20
"""Bytes of the longest list of names."""

# Descriptors that this process needs for itself while it looks something up.
_SPARE: Final = 64

_INT: Final = struct.Struct("i")


class Content(Protocol):
    """A tree of files that never change.

    All methods raise OSError, whose errno the cell gets.
    """

    go_on: Callable[[], None]
    """Called between two steps of any length; what it raises ends the work."""

    def find(self, base: str, path: str, *, follow: bool) -> tuple[Kind, int, int, str]:
        """Return what a path leads to; see :class:`sandbox.content.Found`."""

    def read(self, address: str) -> Iterator[bytes | memoryview]:
        """Return the bytes of a file or a symbolic link, in parts."""

    def names(self, address: str) -> Iterator[tuple[bytes, Kind | None, int]] | None:
        """Return the names in a directory; see :class:`sandbox.content.Name`.

        ``None`` for anything else.
        """


class _OutOfTime(Exception):
    """The cell has used up the processor time that this process spends on it."""


class _Interrupted(Exception):
    """Something more important waits: the cell has ended."""


class _Kept(NamedTuple):
    """A sealed memory file that was sent, and may be held by the cell's process.

    Attributes:
        fd: A descriptor of it, open for reading only.
        size: Its bytes.
    """

    fd: int
    size: int

    def is_held(self) -> bool:
        """Tell whether anybody else has it open, mapped, or on the way.

        The kernel grants a write lease only to the one who has a file open alone (fcntl(2)).
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return True  # also where there are no leases
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False


class Server:
    """The runner's end of the connection, and the bytes that were sent over it.

    Attributes:
        theirs: The other end, until :meth:`give_up_theirs`.
        is_open: Whether there may be another request.
        out_of_time: Whether all answers together have taken as long as the cell itself may.
    """

    def __init__(self, content: Callable[[], Content], limits: Limits) -> None:
        """Make a connection.

        Args:
            content: Returns what to answer with, when there is something to answer.
            limits: The cell's.

        Raises:
            OSError: As socketpair(2) says.
        """
        self.is_open = True
        self.out_of_time = False
        self._make_content = content
        self._content: Content | None = None
        self._cpu = limits.cpu
        self._used = 0.0
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - self.theirs.fileno() - _SPARE
        self._most_files = max(1, min(limits.nofile, free))

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to do."""
        return self._ours.fileno()

    def give_up_theirs(self) -> None:
        """Close the other end here, so that its end elsewhere can be seen."""
        self.theirs.close()

    def close(self) -> None:
        """End the connection, and keep nothing."""
        self._ours.close()
        self.theirs.close()
        while self._kept:
            os.close(self._kept.popitem()[1].fd)

    def serve(self, interrupted: Callable[[], bool]) -> None:
        """Answer one request.

        Args:
            interrupted: Tells whether something more important waits; then there is no answer.
        """
        begin = time.thread_time()

        def go_on() -> None:
            if interrupted():
                raise _Interrupted
            if self._cpu is not None and self._used + time.thread_time() - begin > self._cpu:
                raise _OutOfTime

        if self._content is None:
            self._content = self._make_content()
        self._content.go_on = go_on
        try:
            self.is_open = self._serve(self._content)
            go_on()
        except _Interrupted:
            pass
        except _OutOfTime:
            self.is_open, self.out_of_time = False, True
        finally:
            self._used += time.thread_time() - begin
        if not self.is_open:
            self._ours.close()  # so that nobody waits for an answer

    def _serve(self, content: Content) -> bool:
        """Answer one request, and return whether there may be another."""
        try:
            # Without room for ancillary data: descriptors that come along are closed by the kernel.
            data, _, flags, _ = self._ours.recvmsg(MAX_REQUEST, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or self._is_answer_unread():
            return False
        try:
            request = Request.decode(data)
        except ValueError:
            return False
        fds = array.array("i")
        try:
            answer, sent = self._answer(content, request)
            if sent is not None:
                fds.append(sent)
        except OSError as error:
            answer = Answer(error.errno or errno.EIO).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        try:
            self._ours.sendmsg([answer], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _is_answer_unread(self) -> bool:
        """Tell whether the last answer was not taken, as by whoever asks before that.

        The descriptors of answers on their way count against this user as a whole (unix(7)), and
        with enough of them no process of this user could send any.

        Raises:
            OSError: As ioctl(2) says.
        """
        waiting = fcntl.ioctl(self._ours, termios.TIOCOUTQ, bytes(_INT.size))  # SIOCOUTQ
        return bool(_INT.unpack(waiting)[0])

    def _answer(self, content: Content, request: Request) -> tuple[bytes, int | None]:
        """Return the answer, and the descriptor to send with it.

        Raises:
            OSError: For the cell.
        """
        if request.operation != "read":
            follow = request.operation == "find"
            found = Found(*content.find(request.base, request.path, follow=follow))
            return _encode(found), None
        kept = self._kept.pop(request.base, None)
        if kept is None:
            kept = self._make(content, request.base)
            self._bytes += kept.size
        self._kept[request.base] = kept  # the last one used
        try:
            # A position of its own for each that opens it.
            fd = os.open(f"/proc/self/fd/{kept.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(error) from None
        return _encode(Found("file", kept.size, 0, "")), fd

    def _make(self, content: Content, address: str) -> _Kept:
        """Fill a new memory file and seal it.

        Raises:
            OSError: What the content says; ENOMEM or ENFILE for more than may be held.
        """
        self._make_room(0)
        try:
            memory = os.memfd_create("content", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise _refused(error) from None
        try:
            size = 0
            for part in _parts(content, address):
                size += len(part)
                self._make_room(size)
                _write(memory, part)
                content.go_on()
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            return _Kept(os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC), size)
        finally:
            os.close(memory)

    def _make_room(self, size: int) -> None:
        """Forget what nobody holds, the longest unused first, until one more has room.

        Args:
            size: Its bytes, as far as they are known.

        Raises:
            OSError: ENOMEM if the bytes are too many, ENFILE if the files are.
        """
        lack = self._lack(size)
        for address, kept in list(self._kept.items()) if lack else ():
            if not kept.is_held():
                del self._kept[address]
                self._bytes -= kept.size
                os.close(kept.fd)
                lack = self._lack(size)
            if not lack:
                return
        if lack:
            raise OSError(lack, os.strerror(lack))

    def _lack(self, size: int) -> int:
        """Return what says that there is no room for one more file of that size, or 0."""
        if self._bytes + size > MOST_BYTES:
            return errno.ENOMEM
        return errno.ENFILE if len(self._kept) >= self._most_files else 0


def _parts(content: Content, address: str) -> Iterator[bytes | memoryview]:
    """Return the bytes of a file or a link, or the list of a directory's names, in parts."""
    names = content.names(address)
    if names is None:
        yield from content.read(address)
        return
    size, waiting = 0, bytearray()
    for name in names:
        waiting += Name(*name).encode()
        if len(waiting) >= 1 << 16:
            size += len(waiting)
            if size > MOST_LISTING:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _encode(found: Found) -> bytes:
    """Return a successful answer.

    Raises:
        OSError: EOVERFLOW for a number that has no place in it.
    """
    if max(found.size, found.inode) > MAX_SIZE:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return Answer(0, found).encode()


def _refused(error: OSError) -> OSError:
    """Return the error for the cell: its own table is not the one that is full."""
    number = errno.ENFILE if error.errno == errno.EMFILE else error.errno
    return OSError(number, error.strerror)


def _write(memory: int, part: bytes | memoryview) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(memory, rest) :]

"""Descriptors over a unix socket: ``--fdctl PATH``, and ``ww send-fds``, its other side.

Both sides of one exchange are here, so that they cannot come to differ. docs/handoff.md is the
protocol for programs that speak it themselves; unix(7) has the facts that it rests on.

``--fdctl inherit:NUM``, which needs no socket, is read here too: it is the same flag.
"""

import array
import contextlib
import errno
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Final, NamedTuple, Self

from runner.errors import EXIT_CANNOT_RUN, EXIT_GRANT, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from runner.grants.flags import KEYS, parse_fds, read_value
from runner.grants.merge import merge
from runner.grants.model import NAME_HINT, Request, is_name, number, shown
from runner.grants.options import (
    BOOLEANS,
    Part,
    fail,
    read_choice,
    read_number,
    read_options,
    split,
)
from runner.grants.plan import build_plan, check_requests
from runner.grants.reader import MAX_BYTES
from runner.grants.tables import MAX_GRANTS, Offer, print_form, read_offer
from runner.inherited import STDIO, Inherited
from sandbox import granting, is_ambiguous

VERSION: Final = 1
DEFAULT_TIMEOUT: Final = 5.0
DEFAULT_LIMIT: Final = 16
MAX_TIMEOUT: Final = 86400
MESSAGE_FDS: Final = 253  # SCM_MAX_FD of the kernel's include/net/scm.h

_INHERIT: Final = "inherit:"
_INHERIT_KEYS: Final = ("name", *KEYS)
_RECEIVE_KEYS: Final = ("timeout", "max", "listen")
_SEND_KEYS: Final = ("timeout", "listen")

_END: Final = b"(end)"
_GREETING_START: Final = f"(ww-fdctl {VERSION} (max "
_GREETING_END: Final = "))"
_GREETING_ROOM: Final = 256  # longer than any greeting of any version should be

_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_NUMBER_SIZE: Final = array.array("i").itemsize
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_RETRY_SECONDS: Final = 0.02  # nothing tells when a socket of the file system appears

# connect(2) on a unix socket whose backlog is full; it does not wait, as other families do.
_BUSY: Final = frozenset({errno.EAGAIN})
# The same, and a socket that is not there yet, or not listening yet.
_NOT_YET: Final = _BUSY | {errno.ENOENT, errno.ECONNREFUSED}

_HINTS: Final = {
    errno.ECONNREFUSED: "nobody listens there any more; start that side again",
    errno.EADDRINUSE: "it exists already; remove it if nobody uses it, or choose another path",
    errno.EPROTOTYPE: "the other side must use SOCK_SEQPACKET",
    errno.ECONNRESET: "the other side closed it before it had read everything",
    errno.EPIPE: "the other side closed it",
}
# Whose part it is to make what is missing, by whether this side listens.
_MISSING_HINTS: Final = {
    True: "this side makes the socket, and not its directory; make that first, with mode 0700",
    False: "the side with listen=true makes the socket; start it first",
}


class Channel(NamedTuple):
    """Where to meet the other side, and for how long to deal with it.

    Attributes:
        path: The socket's path in the file system.
        origin: Where it was asked for (``--fdctl #1``), for errors.
        timeout: Seconds for the whole exchange.
        limit: How many descriptors to accept; of no meaning to a sender.
        listen: Make the socket and accept one peer; otherwise connect to it.
    """

    path: str
    origin: str
    timeout: float = DEFAULT_TIMEOUT
    limit: int = DEFAULT_LIMIT
    listen: bool = False


class Received(NamedTuple):
    """What a handoff brought.

    Attributes:
        requests: In the order in which the peer sent them; their sources are ``sources``.
        sources: The received descriptors, all open and close-on-exec. They were not inherited,
            so only these requests may name them.
    """

    requests: tuple[Request, ...]
    sources: frozenset[int]


# The values of the flags


def parse_fdctl(value: str, origin: str) -> Request | Channel:
    """Read the value of one ``--fdctl`` flag.

    Args:
        value: ``inherit:NUM[,key=value...]``, where ``name`` is one of the keys, or
            ``PATH[,timeout=SECONDS][,max=COUNT][,listen=true|false]``. A path ends at the first
            comma; one that starts with ``inherit:`` is written ``./inherit:...``.
        origin: The flag and its position, as errors name it.

    Raises:
        WwError: With code 2, naming the column of the offending item.
    """
    head, *options = split(value)
    if head.text.startswith(_INHERIT):
        return _parse_inherit(head, options, origin)
    channel = Channel(_path(head, origin), origin)
    return _parse_channel(channel, options, _RECEIVE_KEYS)


def parse_destination(value: str, origin: str, *, listen: bool) -> Channel:
    """Read the argument PATH of ``ww send-fds``.

    Args:
        value: ``PATH[,timeout=SECONDS][,listen=true|false]``.
        origin: What errors call the argument.
        listen: The default for ``listen``.

    Raises:
        WwError: With code 2, naming the column of the offending item.
    """
    head, *options = split(value)
    return _parse_channel(Channel(_path(head, origin), origin, listen=listen), options, _SEND_KEYS)


def _parse_inherit(head: Part, options: Iterable[Part], origin: str) -> Request:
    digits = Part(head.text.removeprefix(_INHERIT), head.column + len(_INHERIT))
    source = read_number(digits, origin)
    request = Request(f"inherit_{source}", source, origin)
    for key, text in read_options(options, _INHERIT_KEYS, origin):
        if key != "name":
            request = request._replace(**{key: read_value(key, text, origin)})
        elif is_name(text.text):
            request = request._replace(name=text.text)
        else:
            fail(origin, text.column, f"{shown(text.text)} is not a legal name", NAME_HINT)
    return request


def _parse_channel(channel: Channel, options: Iterable[Part], keys: Collection[str]) -> Channel:
    for key, text in read_options(options, keys, channel.origin):
        match key:
            case "timeout":
                channel = channel._replace(timeout=_seconds(text, channel.origin))
            case "max":
                channel = channel._replace(limit=_limit(text, channel.origin))
            case _:
                listen = read_choice(BOOLEANS, key, text, channel.origin)
                channel = channel._replace(listen=listen)
    return channel


def _path(head: Part, origin: str) -> str:
    if not head.text:
        fail(origin, head.column, "the path is missing", "name a unix socket, as ./handoff.sock")
    if "\0" in head.text or head.text.endswith("/"):
        fail(origin, head.column, f"{shown(head.text)} cannot be a socket", "name a file")
    return head.text


def _seconds(text: Part, origin: str) -> float:
    """Read seconds as people write them; ``float`` alone would take ``1_0``, ``inf`` and ``٣``."""
    whole, dot, fraction = text.text.partition(".")
    legal = number(whole) is not None
    if dot:
        legal = legal and 1 <= len(fraction) <= 3 and fraction.isascii() and fraction.isdigit()
    if not legal or not 0 < float(text.text) <= MAX_TIMEOUT:
        what = f"{shown(text.text)} is not a time" if text.text else "the time is missing"
        hint = f"seconds above 0 and up to {MAX_TIMEOUT}, as 5 or 0.5"
        fail(origin, text.column, what, hint)
    return float(text.text)


def _limit(text: Part, origin: str) -> int:
    limit = number(text.text)
    if limit is None or not 1 <= limit <= MAX_GRANTS:
        what = f"{shown(text.text)} is not a count" if text.text else "the count is missing"
        fail(origin, text.column, what, f"1 to {MAX_GRANTS} in plain decimal digits")
    return limit


# The connection


class _Peer:
    """The other side of one exchange, all of which has one deadline.

    Every operation raises OSError as the kernel says, TimeoutError at the deadline.
    """

    def __init__(self, channel: Channel, connection: socket.socket, deadline: float) -> None:
        self.channel = channel
        self._connection = connection
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def check_user(self) -> None:
        """Hold that the other side is the same user, or root.

        SO_PEERCRED is what the kernel noted when the other side called connect(2) or listen(2):
        nobody can forge it, and who has the socket's other end by now does not matter.

        Raises:
            WwError: With code 65 for anybody else.
        """
        size = _CREDENTIALS.size
        raw = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in (os.geteuid(), 0):
            raise _refusal(
                self.channel,
                f"the other side, process {pid}, belongs to user {uid}",
                f"it must be root or the user {os.geteuid()}, as here",
            )
        _check_known(self.channel, uid)

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; SOCK_SEQPACKET sends it whole or not at all."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._bound()
        self._connection.sendmsg([payload], rights)

    def receive(self, room: int, fds: list[int]) -> tuple[bytes, int]:
        """Receive one message.

        Args:
            room: How long its payload may be.
            fds: The descriptors that come with it are added here before anything can fail, so
                that whoever made the list can close them.

        Returns:
            The payload, which is empty at the end of the connection, and recvmsg(2)'s flags.
        """
        self._bound()
        payload, control, flags, _ = self._connection.recvmsg(
            room, socket.CMSG_SPACE(MESSAGE_FDS * _NUMBER_SIZE), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                # A cut control message may end within a number.
                whole = data[: len(data) - len(data) % _NUMBER_SIZE]
                fds.extend(array.array("i", whole))
        return payload, flags

    def _bound(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def _refusal(channel: Channel, what: str, hint: str = "") -> WwError:
    return WwError(channel.origin, f"{channel.path}: {what}", hint=hint, code=EXIT_GRANT)


@contextlib.contextmanager
def _refusals(channel: Channel) -> Iterator[None]:
    """Turn what the kernel says about a channel into a WwError with code 65."""
    try:
        yield
    except TimeoutError:
        raise _refusal(
            channel,
            f"the handoff was not done within {channel.timeout:g} s",
            "see what the other side waits for, or give more with timeout=SECONDS",
        ) from None
    except OSError as error:
        if error.errno == errno.ENOENT:
            hint = _MISSING_HINTS[channel.listen]
        else:
            hint = _HINTS.get(error.errno or 0, "")
        raise _refusal(channel, error.strerror or str(error), hint) from error


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextlib.contextmanager
def _directory(path: str) -> Iterator[tuple[int, str]]:
    """Open the directory of a socket; give its descriptor, and a path through it to the socket.

    An address holds 107 bytes of path (unix(7)), and the path through the descriptor is short
    unless the last name is long. What was checked about the directory then holds for the socket.
    """
    head, name = os.path.split(path)
    directory = os.open(head or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory, f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def _connect(channel: Channel, awaited: Collection[int]) -> _Peer:
    """Connect to the side that listens.

    Args:
        channel: Where.
        awaited: The errors of connect(2) that are tried again until the deadline.
    """
    deadline = time.monotonic() + channel.timeout
    connection = _socket()
    try:
        while True:
            try:
                with _directory(channel.path) as (_, address):
                    connection.setblocking(False)
                    try:
                        connection.connect(address)
                    except ConnectionRefusedError:
                        # Of what is no socket the kernel says the same.
                        if stat.S_ISSOCK(os.stat(address).st_mode):
                            raise
                        raise _refusal(
                            channel, "it is no socket", "name the one that the other side makes"
                        ) from None
            except OSError as error:
                if error.errno not in awaited or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                peer = _Peer(channel, connection, deadline)
                peer.check_user()
                return peer
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _listener(channel: Channel) -> Iterator[socket.socket]:
    """Make the socket, and take it away again whatever happens.

    The file's mode admits its owner only. fchmod(2) before bind(2) decides it (Linux makes the
    file with the mode of the socket's inode), so that there is no moment at which others could
    connect, and the process's umask need not change.
    """
    with _directory(channel.path) as (directory, address), _socket() as listener:
        status = os.fstat(directory)
        # Whoever may write there may put another socket in this one's place. The group's bits
        # are also the mask of every entry of an access control list, acl(5).
        if status.st_mode & _OTHERS_WRITE or status.st_uid not in (os.geteuid(), 0):
            raise _refusal(
                channel,
                "others can write its directory",
                "use a directory of your own with mode 0700, as $XDG_RUNTIME_DIR",
            )
        _check_known(channel, status.st_uid)
        os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        name = os.path.basename(channel.path)
        made = True  # a signal may raise as soon as the file is there
        try:
            try:
                listener.bind(address)
            except OSError:
                made = False
                raise
            listener.listen(1)
            yield listener
        finally:
            if made:
                # Nothing that is called may come before, or a signal might raise there.
                try:  # noqa: SIM105
                    os.unlink(name, dir_fd=directory)
                except FileNotFoundError:
                    pass


def _check_known(channel: Channel, uid: int) -> None:
    """Hold that a user id is one user's.

    Raises:
        WwError: With code 65 if it stands for whoever this user namespace does not know.
    """
    if is_ambiguous(uid):
        raise _refusal(
            channel,
            f"the kernel shows strangers as user {uid} here, too",
            "run ww under an id that no stranger is shown under",
        )


def _accept(channel: Channel, listener: socket.socket) -> _Peer:
    """Wait for one peer. The time for the whole exchange starts to run here."""
    deadline = time.monotonic() + channel.timeout
    listener.settimeout(channel.timeout)
    connection, _ = listener.accept()
    peer = _Peer(channel, connection, deadline)
    try:
        peer.check_user()
    except BaseException:
        connection.close()
        raise
    return peer


def _meet(channel: Channel, awaited: Collection[int]) -> _Peer:
    """Connect, or make the socket for as long as it takes one peer to connect."""
    if not channel.listen:
        return _connect(channel, awaited)
    with _listener(channel) as listener:
        return _accept(channel, listener)


# The receiving side


def receive(channel: Channel) -> Received:
    """Receive descriptors from one peer, all or none.

    Args:
        channel: Where to meet the peer.

    Raises:
        WwError: With code 65 if there is no peer, it is somebody else's, or it does not keep to
            the protocol in time. Every descriptor that came is closed then.
    """
    received: list[int] = []
    try:
        with _refusals(channel), _meet(channel, _BUSY) as peer:
            peer.send(f"{_GREETING_START}{channel.limit}{_GREETING_END}".encode())
            requests = _take(peer, received)
    except BaseException:
        for fd in received:
            os.close(fd)
        raise
    return Received(tuple(requests), frozenset(received))


def _take(peer: _Peer, received: list[int]) -> list[Request]:
    """Receive messages until ``(end)``: the k-th form belongs to the k-th descriptor."""
    requests: list[Request] = []
    for position, (payload, fds) in enumerate(_messages(peer, received), 1):
        offers = _read(payload, f"{peer.channel.origin} (message {position})")
        if not offers or len(offers) != len(fds):
            raise _refusal(
                peer.channel,
                f"message {position} has {len(offers)} (fd ...) forms and {len(fds)} descriptors",
                "a message has at least one of each, and as many of one as of the other",
            )
        requests += (offer.request(fd) for offer, fd in zip(offers, fds, strict=True))
    return requests


def _messages(peer: _Peer, received: list[int]) -> Iterator[tuple[bytes, list[int]]]:
    """Receive each message before ``(end)``, whole and with all of its descriptors."""
    channel = peer.channel
    while True:
        before = len(received)
        payload, flags = peer.receive(MAX_BYTES, received)
        if flags & socket.MSG_CTRUNC:
            # The kernel stops at this process's limit too, and does not say which it was.
            raise _refusal(
                channel,
                "descriptors of a message were lost",
                f"send at most {MESSAGE_FDS} in a message, and keep below 'ulimit -n'",
            )
        if flags & socket.MSG_TRUNC:
            raise _refusal(channel, f"a message is longer than {MAX_BYTES} bytes")
        if not payload:
            raise _refusal(channel, "the other side left before it sent (end)")
        if len(received) > channel.limit:
            raise _refusal(
                channel,
                f"the other side sent more than {channel.limit} descriptors",
                f"max=COUNT admits up to {MAX_GRANTS}",
            )
        fds = received[before:]
        if payload != _END:
            yield payload, fds
        elif fds:
            raise _refusal(channel, "a descriptor came with (end)")
        else:
            return


def _read(payload: bytes, where: str) -> list[Offer]:
    """Read a peer's table: its errors are a refusal here, not the user's wrong usage."""
    try:
        return read_offer(payload, where)
    except WwError as error:
        raise WwError(error.where, error.what, hint=error.hint, code=EXIT_GRANT) from error


# The sending side


def send_fds(
    path: str,
    offers: Sequence[Request],
    *,
    listen: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> None:
    """Send descriptors to one ``ww run --fdctl``, and return when it has read everything.

    Whether ww accepts them it says itself, with its exit code. The descriptors stay open here.

    Args:
        path: The socket.
        offers: What to send, each with its source in this process.
        listen: Make the socket and accept one ww; otherwise connect to a ww that listens,
            and wait for it to do so.
        timeout: Seconds for all of it.

    Raises:
        WwError: With code 2 if the offers contradict each other; with code 65 if there is no
            ww, it is somebody else's, or it does not keep to the protocol in time.
    """
    send(Channel(path, "send_fds", timeout, listen=listen), offers)


def send(channel: Channel, offers: Sequence[Request]) -> None:
    """Do what :func:`send_fds` does, on a channel."""
    check_requests(offers, granting.MAX_TARGETS, stdio=False)
    with _refusals(channel), _meet(channel, _NOT_YET) as peer:
        _hand_over(peer, offers)


def _hand_over(peer: _Peer, offers: Sequence[Request]) -> None:
    limit = _greeted(peer)
    if len(offers) > limit:
        raise _refusal(
            peer.channel,
            f"{len(offers)} descriptors are offered, and the other side takes {limit}",
            f"there, --fdctl PATH,max=COUNT admits up to {MAX_GRANTS}",
        )
    # So many forms are never longer than a payload may be: each has less than 200 bytes.
    for start in range(0, len(offers), MESSAGE_FDS):
        part = offers[start : start + MESSAGE_FDS]
        text = "\n".join(print_form(offer, source=False) for offer in part)
        peer.send(text.encode(), [offer.source for offer in part])
    peer.send(_END)
    # The end of the connection, and not ECONNRESET, tells that all of it was read.
    if _receive_text(peer, 1):
        raise _refusal(peer.channel, "the other side talks after (end)")


def _greeted(peer: _Peer) -> int:
    """Wait for the other side's ``(ww-fdctl 1 (max COUNT))``, and return COUNT."""
    payload = _receive_text(peer, _GREETING_ROOM)
    if not payload:
        raise _refusal(peer.channel, "the other side left before it asked for anything")
    text = payload.decode("ascii", "replace")
    limit = number(text.removeprefix(_GREETING_START).removesuffix(_GREETING_END))
    if text != f"{_GREETING_START}{limit}{_GREETING_END}" or limit is None:
        raise _refusal(
            peer.channel,
            f"the other side says {shown(text)}, not {_GREETING_START}COUNT{_GREETING_END}",
            "it must be ww run --fdctl",
        )
    return limit


def _receive_text(peer: _Peer, room: int) -> bytes:
    """Receive a message of the receiving side, which has no descriptors to send."""
    fds: list[int] = []
    try:
        return peer.receive(room, fds)[0]
    finally:
        for fd in fds:
            os.close(fd)


# The command ``ww send-fds``


def send_command(
    destination: str,
    fds: Sequence[str],
    command: Sequence[str],
    inherited: Inherited,
    environ: Mapping[str, str],
) -> int:
    """Do what ``ww send-fds PATH [--fd ...]... [-- CMD...]`` does.

    Without CMD, connect to the ``ww run --fdctl PATH,listen=true`` that waits there or is about
    to, and send.

    With CMD, make the socket, start CMD (a ``ww run --fdctl PATH``, or something that starts
    one), send to the first that connects, and wait for CMD's end. CMD inherits 0, 1 and 2 only:
    the rest it gets through the socket. Once that is over, this process holds none of its
    descriptors but 0, 1 and 2, so that a pipe ends when its users are done with it.

    Signals are shared with CMD as system(3) does it: SIGINT and SIGQUIT, which a terminal sends
    to both, are left to CMD. SIGTERM and SIGHUP are passed on.

    Args:
        destination: See :func:`parse_destination`; with CMD, ``listen`` is always true.
        fds: The values of the ``--fd`` flags, as of ``ww run``.
        command: CMD and its arguments; empty if there is none.
        inherited: What ww was started with.
        environ: The environment for CMD.

    Returns:
        0, or with CMD its exit code; 128+n if signal n ended it.

    Raises:
        WwError: With code 2 for wrong usage; with code 65 for a descriptor that cannot be
            granted, or if the handoff fails. With code 126 or 127 if CMD cannot be run. If CMD
            came to run and failed as well, the error of the handoff carries CMD's exit code.
    """
    channel = parse_destination(destination, "PATH", listen=bool(command))
    if command and not command[0]:
        raise WwError("COMMAND", "it is empty", code=EXIT_USAGE)
    requests, decorations = parse_fds(fds)
    offers = merge(requests, decorations)
    # ww would find all of this out over there; here, the error can name the right flag.
    build_plan(offers, inherited, stdio=False)
    if not command:
        send(channel, offers)
        return 0
    if not channel.listen:
        raise WwError(
            channel.origin,
            "listen=false cannot be: a command is given, which connects to the socket",
            hint="drop it, or the command",
            code=EXIT_USAGE,
        )
    with _refusals(channel), _listener(channel) as listener:
        child = _Child(command, environ)
        peer: _Peer | None = None
        failure: WwError | None = None
        came = False
        try:
            came = child.outlasts(listener)
            if came:
                with _refusals(channel):
                    peer = _accept(channel, listener)
        except WwError as error:
            failure = error
    # Nobody else is to meet the socket from here on.
    if peer is not None:
        try:
            with _refusals(channel), peer:
                _hand_over(peer, offers)
        except WwError as error:
            failure = error
    for fd in inherited.sources.difference(STDIO):
        os.close(fd)
    code = child.wait()
    if failure is not None:
        raise WwError(failure.where, failure.what, hint=failure.hint, code=code or EXIT_GRANT)
    if not came and code == 0:
        raise _refusal(channel, f"'{command[0]}' ended and nobody took the descriptors")
    return code


class _Child:
    """The program that ``ww send-fds`` runs."""

    # A terminal sends these to its whole foreground group.
    _LEFT_TO_CHILD: Final = (signal.SIGINT, signal.SIGQUIT)
    _PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)
    # Python ignores these from its start; a program expects the default.
    _RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        # Held back until they can be dealt with, so that none ends this process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._LEFT_TO_CHILD, *self._PASSED_ON})
        try:
            # A caller that ignored it would leave no exit code to wait for, wait(2).
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._pid = os.posix_spawnp(
                command[0],
                list(command),
                dict(environ),
                # Duplicating a descriptor onto itself clears its FD_CLOEXEC (posix_spawn(3)).
                file_actions=[(os.POSIX_SPAWN_DUP2, number, number) for number in STDIO],
                setsigmask=before,
                setsigdef=self._RESET,
            )
            self._handle = os.pidfd_open(self._pid)
            for number in self._LEFT_TO_CHILD:
                signal.signal(number, signal.SIG_IGN)
            for number in self._PASSED_ON:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._pass_on)
        except OSError as error:
            found = not isinstance(error, FileNotFoundError)
            raise WwError(
                command[0],
                f"it cannot be run: {error.strerror}",
                code=EXIT_CANNOT_RUN if found else EXIT_NOT_FOUND,
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def outlasts(self, listener: socket.socket) -> bool:
        """Wait until somebody connects, or the program ends; tell whether somebody connected.

        No deadline: only the program knows how long it takes to get there.
        """
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._handle, select.POLLIN)
        return listener.fileno() in dict(poll.poll())

    def wait(self) -> int:
        """Wait for the end; return the exit code, as a shell has it."""
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

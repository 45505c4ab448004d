"""The runner's side of the spawner: start it, hand it a plan, learn how the cell ended."""

from __future__ import annotations

import _thread
import _weakref
import os
import select
import sys
import time

from sandbox import wire
from sandbox.errors import SpawnerError
from sandbox.light import signal, socket, suppress
from sandbox.outcome import Outcome, limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from sandbox.plan import Plan
    from sandbox.progress import Progress
    from sandbox.serving import Content, Server


# The path is the caller's: without `site` the interpreter starts sooner and runs no .pth file.
_BOOT = """
import gc, sys
gc.disable()
sys.path[:] = sys.argv[8:]
del sys.argv[8:]
from sandbox.spawner import main
main()
"""

# A spawner that was asked to end needs a moment to kill its cell; then it is killed itself.
_PATIENCE_MS = 2000
# Seconds for a server's greeting. It gives that at once, unless it is being started.
_GREETING_PATIENCE = 10.0
# struct ucred of unix(7): pid, uid, gid, of 32 bits each.
_CREDENTIALS = 12
# How often progress is shown.
_TICK_MS = 200
# What the kernel says of a socket whose other side is gone, to whoever sends and receives.
_GONE = (BrokenPipeError, ConnectionResetError)

# All sockets of this process, for those that are forked from it; and what is held while some are
# made, so that none is forked before they are here.
_living: set[_weakref.ReferenceType[_Channel]] = set()
_making = _thread.RLock()


class _Channel(socket.socket):
    """A socket that a process which is forked from this one has no copy of.

    It has no ``__init__`` of its own, in which a handler of a signal could lose a descriptor.
    """


def _make_channel() -> _Channel:
    """Return a socket of its own."""
    with _making:
        channel = _Channel(socket.AF_UNIX, socket.SOCK_STREAM)
        _living.add(_weakref.ref(channel, _living.discard))
    return channel


def _make_pair() -> tuple[_Channel, _Channel]:
    """Return two sockets that are connected."""
    with _making:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # In one step, too: each descriptor is of a socket at any time.
        ours, theirs = map(
            _Channel,
            (socket.AF_UNIX, socket.AF_UNIX),
            (socket.SOCK_STREAM, socket.SOCK_STREAM),
            (0, 0),
            map(socket.socket.detach, pair),
        )
        for channel in (ours, theirs):
            _living.add(_weakref.ref(channel, _living.discard))
    return ours, theirs


def _leave_all() -> None:
    """Close a forked process's copies of all sockets, which are for nobody there.

    Otherwise a spawner and its cell would live as long as that process, whatever becomes of the one
    that they are of.
    """
    for reference in tuple(_living):
        channel = reference()
        if channel is not None:
            with suppress(OSError):
                channel.close()
    _living.clear()
    _making.release()


os.register_at_fork(
    before=_making.acquire, after_in_parent=_making.release, after_in_child=_leave_all
)


class Connection:
    """A connection to a spawner, which runs one cell at a time; more run on others.

    It is of the process that made it. In one that was forked from that, it is closed already, which
    leaves the other process's as it is.
    """

    def __init__(self, channel: socket.socket) -> None:
        """Take over a connected socket."""
        self._channel = channel
        self._owner = os.getpid()
        # Whether the next message of either side begins something new.
        self._at_rest = True

    def run(
        self,
        plan: Plan,
        cell: int,
        sources: Sequence[int],
        on_start: Callable[[], None] = lambda: None,
        content: Callable[[], Content] | None = None,
        progress: Callable[[], Progress | None] = lambda: None,
    ) -> Outcome:
        """Run a cell and wait for its end.

        Args:
            plan: What the cell is promised.
            cell: A descriptor of the cell's bytes, which nobody can change any more.
            sources: The descriptors to grant, in the order of the plan's grants.
            on_start: Called when the cell's process is in its jail and holds copies of them.
            content: Returns what to serve at the plan's ``content``, if that is set; called when
                the cell asks for something.
            progress: Returns what shows that the cell is compiled, if anything; called if it has
                to be.

        After an exception, the connection is good for nothing but :meth:`close`, which ends the
        cell.

        Raises:
            SpawnerError: If the spawner ends before it tells how the cell ended; in a process that
                was forked from the one that it is of; if a run before ended with an exception.
            OSError: If this process has no descriptor or memory left for what is sent or received.
        """
        self._check_owner()
        self._check_rest()
        running: list[int] = []
        server = None if content is None else _server(content, plan)
        sent = [cell, *sources]
        try:
            if server is not None:
                sent.append(server.theirs.fileno())
            order = plan.encode()
            self._at_rest = False
            self._send(order, sent)
            while (message := self._receive_serving(server, running)) is not None:
                payload, fds = message
                running += fds
                if payload == wire.STARTED:
                    on_start()
                elif payload == wire.COMPILING:
                    self._show(progress)
                elif payload == wire.COMPILED:
                    self._send(wire.GO_ON)
                elif server is not None and server.out_of_time:
                    self._at_rest = True
                    return limit("cpu", "while ww served its content")
                else:
                    return self._outcome(payload)
        finally:
            try:
                if server is not None:
                    server.close()
            finally:
                try:
                    _end(running)
                finally:
                    # A handler of a signal may have kept it from that.
                    wire.close_all(running)
        raise SpawnerError("the spawner ended before the cell did")

    def compile(
        self, plan: Plan, cell: int, progress: Callable[[], Progress | None] = lambda: None
    ) -> tuple[Outcome, bool]:
        """Put a cell's compiled form into the cache, unless it is there, and run nothing.

        Args:
            plan: The cell's; what it says of grants does not matter.
            cell: As for :meth:`run`.
            progress: As for :meth:`run`.

        Returns:
            How that went: as a run that ends with exit code 0, whose ``what`` says why the form
            could not be kept, if so; or as a run that fails before the cell starts. And whether the
            cell was compiled.

        Raises:
            SpawnerError: If the spawner ends before it tells; as of :meth:`run`.
            OSError: As of :meth:`run`.
        """
        self._check_owner()
        self._check_rest()
        compiled = False
        order = wire.COMPILE + plan.encode()
        self._at_rest = False
        self._send(order, [cell])
        while (message := self._receive()) is not None:
            if message[0] != wire.COMPILING:
                return self._outcome(message[0]), compiled
            compiled = True
            self._show(progress)
        raise SpawnerError("the spawner ended before the compilation did")

    def _check_rest(self) -> None:
        """Hold that what comes next is of what is asked next."""
        if not self._at_rest:
            raise SpawnerError("the connection to the spawner broke before; the cell did not run")

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message.

        Raises:
            SpawnerError: If the connection has ended.
            OSError: As of :func:`sandbox.wire.send`, for any other reason.
        """
        try:
            wire.send(self._channel, message, fds)
        except OSError as error:
            self._raise_if_gone(error, _GONE)
            raise

    def _receive(self) -> tuple[bytes, list[int]] | None:
        """Receive a message; see :func:`sandbox.wire.receive`.

        Raises:
            SpawnerError: If the connection has ended inside it, or it breaks the form.
            OSError: As of that, for any other reason.
        """
        try:
            return wire.receive(self._channel)
        except (wire.CutOffError, wire.FormError) as error:
            raise _broken(error) from error
        except OSError as error:
            self._raise_if_gone(error, ConnectionResetError)
            raise

    def _raise_if_gone(
        self, error: OSError, kinds: type[OSError] | tuple[type[OSError], ...]
    ) -> None:
        """Raise another error in place of one that tells that the connection has ended.

        What it is that this process lacks is for the caller to know; and so is what a handler of a
        signal raises, which may be an OSError too, but hardly one of the kernel's of these kinds.
        """
        if error.errno and (isinstance(error, kinds) or self._channel.fileno() < 0):
            raise _broken(error) from error

    def _outcome(self, payload: bytes) -> Outcome:
        """Return the outcome that a message is, after which the connection is at rest."""
        try:
            outcome = Outcome.decode(payload)
        except ValueError as error:
            raise _broken(error) from error
        self._at_rest = True
        return outcome

    def _show(self, progress: Callable[[], Progress | None]) -> None:
        """Show that a cell is compiled, until there is something else to hear of the spawner."""
        begun = time.monotonic()
        shown = progress()
        if shown is None:
            return
        message = select.poll()
        message.register(self._channel, select.POLLIN)
        try:
            while not message.poll(_TICK_MS):
                shown.show(time.monotonic() - begun)
        finally:
            shown.end()

    def _receive_serving(
        self, server: Server | None, running: Sequence[int]
    ) -> tuple[bytes, list[int]] | None:
        """Receive the spawner's next message, and serve content until it comes.

        Args:
            server: What serves it.
            running: A pidfd of the cell's process, as soon as there is one.
        """
        if server is not None:
            server.give_up_theirs()  # it was sent
            channel = self._channel.fileno()
            if channel < 0:
                raise SpawnerError("the connection to the spawner was closed")
            message, either = select.poll(), select.poll()
            message.register(channel, select.POLLIN)
            either.register(channel, select.POLLIN)
            if server.is_open:
                either.register(server, select.POLLIN)
            while server.is_open and channel not in dict(either.poll()):
                # Before the cell's end, there is one other message that can wait.
                server.serve(lambda: bool(running and message.poll(0)))
            if server.out_of_time:
                _kill(running)
        return self._receive()

    def is_open(self) -> bool:
        """Tell whether it can run a cell: whether it runs none, and the other side is there.

        That is as far as can be seen before the other side is asked.
        """
        channel = self._channel.fileno()
        if channel < 0 or not self._at_rest:
            return False
        gone = select.poll()
        gone.register(channel, select.POLLRDHUP)
        return not gone.poll(0)

    def hang_up(self) -> None:
        """Have the cell that runs on it end, without waiting; :meth:`close` is still to follow."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection, and the cell that runs on it, and wait until that is gone.

        From another thread than the one that runs the cell it ends that too: :meth:`run` raises.
        """
        if self._owner != os.getpid():
            self._channel.close()
            return
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
            gone = select.poll()
            gone.register(self._channel, select.POLLRDHUP)
            gone.poll(_PATIENCE_MS)
            # One that somebody has stopped does not answer; a thread that waits for it goes on.
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()

    def _check_owner(self) -> None:
        """Hold that this process is the one that it is of."""
        if self._owner != os.getpid():
            raise SpawnerError(
                f"the spawner is process {self._owner}'s, which this one was forked from: start"
                " one here"
            )


class Spawner(Connection):
    """A spawner process, which lives until :meth:`close`, or as long as its starter.

    It is a connection by itself, the first. Start it before the cell is known: the two take their
    time side by side.
    """

    def __init__(self, pid: int, door: socket.socket) -> None:
        """Wrap a process that :meth:`start` made."""
        self.pid = pid
        self._door = door
        self._owner = os.getpid()
        self._process = -1
        try:
            self._process = os.pidfd_open(pid)
            super().__init__(self._enter())
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """End a process that nobody will have."""
        _end_all(self._door)
        with suppress(ProcessLookupError, ChildProcessError):
            # It is our child, and nobody has waited for it.
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self._process >= 0:
            os.close(self._process)

    @classmethod
    def start(
        cls,
        cache: str | None,
        *,
        cache_size: int | None = None,
        jails: int = 0,
        debug: bool = False,
    ) -> Spawner:
        """Start a spawner with an empty environment and no descriptor of the caller's.

        Args:
            cache: Directory for compiled forms, or ``None``.
            cache_size: Bytes that those of cells may have together; ``None`` for no bound.
            jails: How many jails it keeps ready for cells to come. Each is a process, and makes one
                cell start sooner.
            debug: Let the process write tracebacks to the caller's stderr.

        Raises:
            OSError: If the process cannot be started.
        """
        argv, path = _command(cache, cache_size, jails)
        ours, theirs = _make_pair()
        actions = (
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), wire.SPAWNER_FD),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            # Duplicating a descriptor onto itself clears its FD_CLOEXEC (posix_spawn(3)).
            (os.POSIX_SPAWN_DUP2, 2 if debug else 0, 2),
        )
        try:
            pid = os.posix_spawn(
                path,
                argv,
                {},
                file_actions=actions,
                setsid=True,  # a terminal's signals are for ww, which ends its cell itself
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(pid, ours)

    def connect(self) -> Connection:
        """Make another connection, for a cell beside those that run; from any thread.

        Raises:
            SpawnerError: If the spawner has ended; as of :meth:`run`.
            OSError: If there is no descriptor or memory left for one.
        """
        return Connection(self._enter())

    def _enter(self) -> socket.socket:
        """Hand one end of a new connection in at the spawner's door, and return the other.

        Raises:
            SpawnerError: As of :meth:`connect`.
            OSError: Likewise.
        """
        self._check_owner()
        ours, theirs = _make_pair()
        try:
            wire.hand_in(self._door, theirs.fileno())
        except BaseException as error:
            ours.close()
            if isinstance(error, _GONE) or self._door.fileno() < 0:
                raise SpawnerError(f"the spawner has ended: {error}") from error
            raise
        finally:
            theirs.close()
        return ours

    def kill(self) -> None:
        """Have the process end at once, whatever it does; :meth:`close` is still to follow."""
        if self._process >= 0:
            _kill([self._process])

    def close(self) -> None:
        """End the spawner and whatever it still runs, and wait until all of it is gone."""
        if self._owner != os.getpid():
            for channel in (self._channel, self._door):
                with suppress(OSError):
                    channel.close()
        else:
            _end_all(self._channel, self._door)
        # Its number may be somebody else's when it is closed, and this is called again.
        process, self._process = self._process, -1
        if process < 0:
            return
        killed = True
        try:
            if self._owner != os.getpid():
                return
            # One that somebody stopped would never see that.
            signal.pidfd_send_signal(process, signal.SIGCONT)
            ended = select.poll()
            ended.register(process, select.POLLIN)
            if not ended.poll(_PATIENCE_MS):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and SIGCHLD is ignored: nobody needs to wait for it
        finally:
            os.close(process)
        if killed or _in_leader_group():
            # It could not remove the control groups it made, or not this process's own.
            from sandbox import cgroups

            cgroups.sweep()


def connect(path: str) -> Connection:
    """Connect to a server of one's own.

    Args:
        path: That of its socket.

    Raises:
        OSError: As connect(2) says; ECONNREFUSED or ENOENT if there is none.
        SpawnerError: If it is somebody else's, does not answer, or refuses. Nothing was sent.
    """
    channel = _make_channel()
    try:
        channel.settimeout(_GREETING_PATIENCE)
        # Before the server can say anything, so that all it says comes with who says it.
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel.connect(path)
        who = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
        uid: int | None = _uid(who)
        # Whoever made it listen: with socket activation, that may be root for others.
        if uid not in (0, os.geteuid()):
            raise SpawnerError(f"{path}: the server there is uid {uid}'s")
        from sandbox.credentials import is_ambiguous  # most runs have no server to ask

        if is_ambiguous(os.geteuid()):
            raise SpawnerError(
                f"{path}: uid {os.geteuid()} is whoever this user namespace does not know, so"
                " nobody can tell whose the server there is"
            )
        try:
            uid = _sender(channel)
            if uid not in (None, os.geteuid()):
                raise SpawnerError(f"{path}: the server there is uid {uid}'s")
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            message = wire.receive(channel)
        except (TimeoutError, EOFError, ValueError) as error:
            raise SpawnerError(f"{path}: no answer from the server: {error}") from error
        said = b"" if message is None else message[0]
        if said != wire.GREETING:
            reason = said.decode(errors="backslashreplace") or "it says nothing"
            if said.startswith(wire.GREETING[:-1]):
                reason = "it is of another version of ww: restart it"
            raise SpawnerError(f"{path}: the server refuses: {reason}")
        channel.settimeout(None)
    except BaseException:
        channel.close()
        raise
    return Connection(channel)


def _sender(channel: socket.socket) -> int | None:
    """Wait for the first byte on a socket with SO_PASSCRED, and return the uid of who sent it.

    Returns:
        ``None`` if the other side ended the connection without one.

    Raises:
        ValueError: If the kernel does not tell.
        OSError: As recvmsg(2) says.
    """
    space = socket.CMSG_SPACE(_CREDENTIALS)
    data, ancillary, _, _ = channel.recvmsg(1, space, socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return _uid(value)
    raise ValueError("it is not known who sends it")


def _uid(credentials: bytes) -> int:
    """Return the user id of a struct ucred."""
    return int.from_bytes(credentials[4:8], sys.byteorder)


def serve(
    listening: int,
    cache: str | None,
    *,
    cache_size: int | None,
    jails: int,
    connections: int,
    each: int,
    remove: str = "",
    manager: str = "",
) -> NoReturn:
    """Become a server: this process goes on as a spawner, with an empty environment.

    It ends at SIGTERM, SIGINT or SIGHUP, and its cells with it.

    Args:
        listening: A listening unix socket. What is open beside it and standard error is closed.
            Standard error hears of nothing but failures, and once that it serves, if ``remove``
            says where.
        cache: As of :meth:`Spawner.start`.
        cache_size: Likewise.
        jails: Likewise.
        connections: How many it has at most; each runs one cell at a time.
        each: How many of them one client, a process, may have.
        remove: The path of the socket, to be removed in the end; empty if it is not ours.
        manager: ``$NOTIFY_SOCKET`` of a service manager that waits for it to be ready, or empty.

    Raises:
        OSError: As execve(2) says.
    """
    numbers = (connections, each)
    argv, path = _command(cache, cache_size, jails, *numbers, remove, manager)
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1):
        os.dup2(null, target)
    os.dup2(listening, wire.SPAWNER_FD)
    for kept in (2, wire.SPAWNER_FD):
        os.set_inheritable(kept, True)  # to duplicate one onto itself does not (dup(2))
    # What cells are not to have from whoever started this; but nohup(1) is to be heeded.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGHUP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(path, argv, {})  # noqa: S606 - no shell is what is wanted
    raise AssertionError("execve came back")


def _command(
    cache: str | None,
    cache_size: int | None,
    jails: int,
    connections: int = 0,
    each: int = 0,
    remove: str = "",
    manager: str = "",
) -> tuple[list[str], str]:
    """Return the arguments and the program of a spawner's process; see :func:`serve`."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = [root, *(p for p in sys.path if os.path.isabs(p) and p != root)]
    bound = "" if cache_size is None else str(cache_size)
    numbers = [bound, str(jails), str(connections), str(each)]
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, cache or "", *numbers, remove, manager, *path]
    return argv, sys.executable


def _in_leader_group() -> bool:
    """Tell whether the spawner has moved this process into a group that is to go with it.

    That is where only version 2 of control groups is delegated; see :mod:`sandbox.delegation`,
    which costs too much to import for this look.
    """
    try:
        with open("/proc/self/cgroup", "rb", buffering=0) as file:
            return b"/ww-leader\n" in file.read()
    except OSError:
        return False


def _broken(error: Exception) -> SpawnerError:
    """Return what to raise in place of an error that tells that a connection broke."""
    return SpawnerError(f"the connection to the spawner broke: {error}")


def _end_all(*channels: socket.socket) -> None:
    """Close sockets, so that the other side sees their end whoever else has copies of them."""
    for channel in channels:
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        channel.close()


def _end(processes: list[int]) -> None:
    """Kill processes by their pidfds, which are closed, and wait until they are gone.

    After an outcome there is none left. After the spawner's death there may be: the cell's
    process dies with it, unless it has become somebody else's and undone that.
    """
    try:
        _kill(processes)
        for pidfd in processes:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll(_PATIENCE_MS)
    finally:
        wire.close_all(processes)


def _kill(processes: Sequence[int]) -> None:
    """Kill processes by their pidfds, if they still live."""
    for pidfd in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _server(content: Callable[[], Content], plan: Plan) -> Server:
    """Return what answers a cell's requests; imported only where one may make some."""
    from sandbox.serving import Server

    return Server(content, plan.limits)

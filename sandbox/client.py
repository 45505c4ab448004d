"""The runner's side of the spawner: start it, hand it a plan, learn how the cell ended."""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Protocol

from sandbox import wire
from sandbox.errors import SpawnerError
from sandbox.outcome import Outcome, limit
from sandbox.plan import Plan

if TYPE_CHECKING:
    from sandbox.serving import Content, Server

# The path is the caller's: without `site` the interpreter starts sooner and runs no .pth file.
_BOOT = """
import sys
sys.path[:] = sys.argv[3:]
del sys.argv[3:]
from sandbox.spawner import main
main()
"""

# A spawner that was asked to end needs a moment to kill its cell; then it is killed itself.
_PATIENCE_MS = 2000
# How often progress is shown.
_TICK_MS = 200


class Progress(Protocol):
    """What shows people that a cell is being compiled."""

    def show(self, elapsed: float) -> None:
        """Show it now, so many seconds after it has begun; called several times a second."""

    def end(self) -> None:
        """Take away what was shown, because what follows may be written at the same place."""


class Spawner:
    """A spawner process, which lives until :meth:`close`, or as long as its starter.

    Start it before the cell is known: the two take their time side by side.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Wrap a process that :meth:`start` made."""
        self.pid = pid
        self._channel = channel
        self._process = os.pidfd_open(pid)

    @classmethod
    def start(
        cls, cache: str | None, *, cache_size: int | None = None, debug: bool = False
    ) -> "Spawner":
        """Start a spawner with an empty environment and no descriptor of the caller's.

        Args:
            cache: Directory for compiled forms, or ``None``.
            cache_size: Bytes that those of cells may have together; ``None`` for no bound.
            debug: Let the process write tracebacks to the caller's stderr.

        Raises:
            OSError: If the process cannot be started.
        """
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = [root, *(p for p in sys.path if os.path.isabs(p) and p != root)]
        bound = "" if cache_size is None else str(cache_size)
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, cache or "", bound, *path]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        actions = (
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), wire.SPAWNER_FD),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            # Duplicating a descriptor onto itself clears its FD_CLOEXEC (posix_spawn(3)).
            (os.POSIX_SPAWN_DUP2, 2 if debug else 0, 2),
        )
        try:
            pid = os.posix_spawn(
                sys.executable,
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

    def run(
        self,
        plan: Plan,
        cell: int,
        sources: Sequence[int],
        on_start: Callable[[], None] = lambda: None,
        content: "Callable[[], Content] | None" = None,
        progress: "Callable[[], Progress | None]" = lambda: None,
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

        Raises:
            SpawnerError: If the spawner ends before it tells how the cell ended.
        """
        running: list[int] = []
        with ExitStack() as stack:
            stack.callback(_end, running)
            server = None if content is None else _server(content, plan)
            sent = [cell, *sources]
            try:
                if server is not None:
                    stack.enter_context(closing(server))
                    sent.append(server.theirs.fileno())
                wire.send(self._channel, plan.encode(), sent)
                while (message := self._receive(server, running)) is not None:
                    payload, fds = message
                    running += fds
                    if payload == wire.STARTED:
                        on_start()
                    elif payload == wire.COMPILING:
                        self._show(progress)
                    elif payload == wire.COMPILED:
                        wire.send(self._channel, wire.GO_ON)
                    elif server is not None and server.out_of_time:
                        return limit("cpu", "while ww served its content")
                    else:
                        return Outcome.decode(payload)
            except (OSError, EOFError, ValueError) as error:
                raise SpawnerError(f"the connection to the spawner broke: {error}") from error
        raise SpawnerError("the spawner ended before the cell did")

    def compile(
        self, plan: Plan, cell: int, progress: "Callable[[], Progress | None]" = lambda: None
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
            SpawnerError: If the spawner ends before it tells.
        """
        compiled = False
        try:
            wire.send(self._channel, wire.COMPILE + plan.encode(), [cell])
            while (message := wire.receive(self._channel)) is not None:
                if message[0] != wire.COMPILING:
                    return Outcome.decode(message[0]), compiled
                compiled = True
                self._show(progress)
        except (OSError, EOFError, ValueError) as error:
            raise SpawnerError(f"the connection to the spawner broke: {error}") from error
        raise SpawnerError("the spawner ended before the compilation did")

    def _show(self, progress: "Callable[[], Progress | None]") -> None:
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

    def _receive(
        self, server: "Server | None", running: Sequence[int]
    ) -> tuple[bytes, list[int]] | None:
        """Receive the spawner's next message, and serve content until it comes.

        Args:
            server: What serves it.
            running: A pidfd of the cell's process, as soon as there is one.
        """
        if server is not None:
            server.give_up_theirs()  # it was sent
            channel = self._channel.fileno()
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
        return wire.receive(self._channel)

    def close(self) -> None:
        """End the spawner and whatever it still runs, and wait until all of it is gone."""
        self._channel.close()
        killed = True
        try:
            # One that somebody stopped would never see that.
            signal.pidfd_send_signal(self._process, signal.SIGCONT)
            ended = select.poll()
            ended.register(self._process, select.POLLIN)
            if not ended.poll(_PATIENCE_MS):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and SIGCHLD is ignored: nobody needs to wait for it
        finally:
            os.close(self._process)
        if killed or _in_leader_group():
            # It could not remove the control groups it made, or not this process's own.
            from sandbox import cgroups

            cgroups.sweep()


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


def _end(processes: list[int]) -> None:
    """Kill processes by their pidfds, which are closed.

    After an outcome there is none left. After the spawner's death there may be: the cell's
    process dies with it, unless it has become somebody else's and undone that.
    """
    _kill(processes)
    for pidfd in processes:
        os.close(pidfd)


def _kill(processes: Sequence[int]) -> None:
    """Kill processes by their pidfds, if they still live."""
    for pidfd in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _server(content: "Callable[[], Content]", plan: Plan) -> "Server":
    """Return what answers a cell's requests; imported only where one may make some."""
    from sandbox.serving import Server

    return Server(content, plan.limits)

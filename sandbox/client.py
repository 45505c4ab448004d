"""The runner's side of the spawner: start it, hand it a plan, learn how the cell ended."""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from sandbox import wire
from sandbox.errors import SpawnerError
from sandbox.outcome import Outcome
from sandbox.plan import Plan

# The path is the caller's: without `site` the interpreter starts sooner and runs no .pth file.
_BOOT = """
import sys
sys.path[:] = sys.argv[2:]
del sys.argv[2:]
from sandbox.spawner import main
main()
"""

# A spawner that was asked to end needs a moment to kill its cell; then it is killed itself.
_PATIENCE_MS = 2000


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
    def start(cls, cache: str | None, *, debug: bool = False) -> "Spawner":
        """Start a spawner with an empty environment and no descriptor of the caller's.

        Args:
            cache: Directory for compiled forms of the host's own modules, or ``None``.
            debug: Let the process write tracebacks to the caller's stderr.

        Raises:
            OSError: If the process cannot be started.
        """
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = [root, *(p for p in sys.path if os.path.isabs(p) and p != root)]
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, cache or "", *path]
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
    ) -> Outcome:
        """Run a cell and wait for its end.

        Args:
            plan: What the cell is promised.
            cell: A descriptor of the cell's bytes, which nobody can change any more.
            sources: The descriptors to grant, in the order of the plan's grants.
            on_start: Called when the cell's process is in its jail and holds copies of them.

        Raises:
            SpawnerError: If the spawner ends before it tells how the cell ended.
        """
        running: list[int] = []
        try:
            wire.send(self._channel, plan.encode(), [cell, *sources])
            while (message := wire.receive(self._channel)) is not None:
                payload, fds = message
                running += fds
                if payload != wire.STARTED:
                    return Outcome.decode(payload)
                on_start()
        except (OSError, EOFError, ValueError) as error:
            raise SpawnerError(f"the connection to the spawner broke: {error}") from error
        finally:
            _end(running)
        raise SpawnerError("the spawner ended before the cell did")

    def close(self) -> None:
        """End the spawner and whatever it still runs, and wait until all of it is gone."""
        self._channel.close()
        try:
            # One that somebody stopped would never see that.
            signal.pidfd_send_signal(self._process, signal.SIGCONT)
            ended = select.poll()
            ended.register(self._process, select.POLLIN)
            if not ended.poll(_PATIENCE_MS):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and SIGCHLD is ignored: nobody needs to wait for it
        finally:
            os.close(self._process)


def _end(processes: list[int]) -> None:
    """Kill processes by their pidfds, which are closed.

    After an outcome there is none left. After the spawner's death there may be: the cell's
    process dies with it, unless it has become somebody else's and undone that.
    """
    for pidfd in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)

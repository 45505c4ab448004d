"""What this machine gives to a jail, feature by feature: asked of a process of its own.

That process is :mod:`sandbox.probes`. It loads what a spawner loads, and the asker stays without.
"""

import json
import os
import select
import signal
import sys
import time
from typing import Literal, NamedTuple

# ``untested``: it needs another feature, which is not there. ``failed``: the probe itself did.
Status = Literal["ok", "missing", "refused", "untested", "failed"]

# As of a spawner; see sandbox.client.
_BOOT = """
import sys
sys.path[:] = sys.argv[3:]
del sys.argv[3:]
from sandbox.probes import main
main()
"""

# For all probes together: each is bounded by itself, and the sum of these bounds is a long wait.
_PATIENCE = 60.0

# For what it does when it is asked to end.
_CLEANING_MS = 3000

_CHUNK = 1 << 16


class Feature(NamedTuple):
    """What became of one probe.

    Attributes:
        feature: Its name.
        status: Whether the machine gives it.
        needed: Whether no cell can run without it.
        detail: What is there, or what failed; and what a jail is without it.
        errno: The error number of the call that failed, or 0.
        step: The step of the jail that would fail, where its name is another than the feature's.
    """

    feature: str
    status: Status
    needed: bool
    detail: str
    errno: int = 0
    step: str = ""

    def encode(self) -> bytes:
        """Return it as one line, for :func:`probe_features`."""
        return json.dumps(self).encode() + b"\n"


# What the process says when all probes are done.
END = Feature("", "ok", False, "")


def probe_features(uid: int, gid: int) -> list[Feature]:
    """Find out what there is, by doing it in child processes of a child process.

    Args:
        uid: The user id on the host that a cell would run as.
        gid: The group id on the host, likewise.

    Returns:
        The features in the order of the jail's steps. If their process ended before it was done,
        or was too slow, the last one is called ``probes`` and says so.

    Raises:
        OSError: If the process cannot be started.
    """
    reader, writer = os.pipe()
    try:
        pid = _start(uid, gid, writer)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        told = _read_all(reader, time.monotonic() + _PATIENCE)
    finally:
        os.close(reader)  # which asks it to end
        end = _end(pid)
    lines = told.split(b"\n")
    # The last one is empty if all is told, and half a line if not.
    features = [Feature(*json.loads(line)) for line in lines[:-1]]
    if not features or features[-1] != END:
        why = f"the process that probes was not done with it: {end}"
        return [*features, Feature("probes", "failed", True, why)]
    return features[:-1]


def _start(uid: int, gid: int, output: int) -> int:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = [root, *(p for p in sys.path if os.path.isabs(p) and p != root)]
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, str(uid), str(gid), *path]
    actions = (
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    )
    return os.posix_spawn(
        sys.executable,
        argv,
        {},
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _read_all(fd: int, deadline: float) -> bytes:
    """Read until the end or a deadline, whichever comes first."""
    data = bytearray()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
        chunk = os.read(fd, _CHUNK)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _end(pid: int) -> str:
    """Wait for the end of the process, but not for long, and say how it ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return "it has ended"  # SIGCHLD is ignored, so nobody needs to wait for it
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(_CLEANING_MS):
            # What it started goes with it.
            signal.pidfd_send_signal(process, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return "it has ended"
    finally:
        os.close(process)
    code = os.waitstatus_to_exitcode(status)
    return f"it ended with {code}" if code >= 0 else f"it was ended by signal {-code}"

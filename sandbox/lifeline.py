"""The cell's process lives no longer than the spawner.

Two ways, because each has a gap: the kernel forgets PR_SET_PDEATHSIG when ids change, and a
socket's end of file is seen only by who looks.
"""

import os
import select
import signal

import prctl

_GO = b"g"


def let_go(line: int) -> None:
    """Tell a waiting child that its id maps are written; done by the spawner.

    Raises:
        OSError: EPIPE if the child is gone.
    """
    os.write(line, _GO)


def wait(line: int) -> None:
    """Wait in the child until the spawner lets it go on; end the process if the spawner is gone.

    Args:
        line: The child's end of a socket pair.

    Raises:
        OSError: As read(2) says.
    """
    if os.read(line, 1) != _GO:
        os._exit(1)


def tie(line: int) -> None:
    """Have the kernel kill this process when the spawner ends, and end it if that was before.

    The parent's pid says nothing here: it is 0 in a pid namespace of one's own. The socket does.

    Args:
        line: The child's end of a socket pair.

    Raises:
        OSError: As prctl(2) says.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    poller = select.poll()
    poller.register(line, 0)  # a hang-up is always reported
    if poller.poll(0):
        os._exit(1)

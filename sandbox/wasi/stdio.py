"""Where the grants are while a cell runs, with nothing of theirs at 0, 1 and 2."""

import fcntl
import os

from sandbox.grants import LAST_STANDARD, Grant
from sandbox.plan import Plan


def settled(plan: Plan, null: int) -> list[tuple[Grant, int]]:
    """Return where the grants are from now on, and leave /dev/null at 0, 1 and 2.

    Whatever a library writes unasked (the engine when memory runs out, say) goes to 2, and must
    not go to what the cell was granted there. The cell's own numbers are the switch's business.
    """
    grants = []
    for grant in plan.grants:
        fd = grant.target
        if fd <= LAST_STANDARD:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LAST_STANDARD + 1)
        grants.append((grant, fd))
    for number in range(LAST_STANDARD + 1):
        os.dup2(null, number, inheritable=False)
    os.close(null)
    return grants

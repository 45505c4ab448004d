"""The steps of ``--isolation chroot``, where a machine refuses namespaces to root.

It is weaker, and never chosen but by name: the cell's process is one of the host's, in its network
and among its processes. What keeps it from them is that it has no call to reach either. It needs
root, because only root may change its root directory and its ids.
"""

import os

import prctl

from sandbox import syscalls


def leave_files() -> None:
    """Make an empty directory the root, which nobody can fill.

    It is the list of namespaces of a process that has ended: no directory of the host is made, and
    nothing is left of it. chroot(2) says how to get out of a root again, for which it takes the
    capability that is dropped later and a directory outside that is open; the table of descriptors
    is held against the plan after this.

    Raises:
        OSError: EPERM without CAP_SYS_CHROOT; ENOENT where proc is not mounted.
    """
    gone = os.fork()
    if gone == 0:
        # At once: if its parent is killed now, nobody else would end it.
        os._exit(0)
    try:
        os.waitid(os.P_PID, gone, os.WEXITED | os.WNOWAIT)
        empty = os.open(f"/proc/{gone}/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.waitpid(gone, 0)
    try:
        os.fchdir(empty)
        os.chroot(".")
        os.chdir("/")
    finally:
        os.close(empty)


def change_ids(uid: int, gid: int) -> None:
    """Take unprivileged ids and keep the capabilities, which are to be dropped with all traces.

    Args:
        uid: The user id; not 0.
        gid: The group id.

    Raises:
        OSError: EPERM without the capabilities of root.
    """
    # Otherwise the change would take those away that it needs to lock their loss; capabilities(7).
    syscalls.set_securebits(prctl.SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)

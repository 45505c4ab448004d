"""Step 2 and 3: new namespaces for the cell's process, and the ids it has in them."""

import errno
import os

from sandbox import syscalls
from sandbox.policy import Isolation

# The cell's user and group id inside: the kernel's overflow id (/proc/sys/kernel/overflowuid),
# which carries no meaning. There is no id 0 inside, so nothing there can be root.
CELL_ID = 65534
# 32 bits, of which the last number means that there is none (user_namespaces(7)).
_MOST_ID = (1 << 32) - 2

_ALWAYS = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


def flags(isolation: Isolation = "full") -> int:
    """Return the CLONE_NEW* flags of a cell: all that exist here; namespaces(7).

    Time namespaces came with Linux 5.6 and can be left out of a kernel. The clocks in one that
    clone3(2) makes are its parent's (time_namespaces(7): its offsets are fixed by its first
    process), so a kernel without them does not make a weaker jail.

    Args:
        isolation: With ``chroot``, there are none.
    """
    if isolation == "chroot":
        return 0
    time = syscalls.CLONE_NEWTIME if os.path.exists("/proc/self/ns/time") else 0
    return _ALWAYS | time


def proc_directory(pidfd: int) -> str:
    """Return the directory of a process in the proc that is mounted here.

    Its number there is not the one that clone3 returned if proc belongs to another pid namespace
    than this process; the pidfd's entry tells it (proc_pid_fdinfo(5)).

    Raises:
        OSError: ENOENT where proc is not mounted; ESRCH if the process is not seen there.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    pid = int(fields.get("Pid", "-1"))
    if pid <= 0:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), "/proc/PID")
    return f"/proc/{pid}"


def write_id_maps(process: str, uid: int, gid: int) -> None:
    """Map the one id inside to one unprivileged id outside; done by the spawner for a child.

    The order is that of user_namespaces(7): an unprivileged writer must deny setgroups(2)
    before it may write gid_map. It is denied for root too, so that the cell can never drop a
    group that denies it something.

    Args:
        process: The child's directory in proc; it is in its new user namespace and waits.
        uid: The user id on the host; the caller's own, unless the caller is root.
        gid: The group id on the host, likewise.

    Raises:
        OSError: EPERM or EACCES where a security module restricts user namespaces.
    """
    if not 0 < uid <= _MOST_ID or not 0 <= gid <= _MOST_ID:
        # The kernel would drop what is above 32 bits, and what is left could be root.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "/proc/PID/uid_map")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{CELL_ID} {uid} 1"),
        ("gid_map", f"{CELL_ID} {gid} 1"),
    ):
        try:
            fd = os.open(f"{process}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            # The path holds a number that says nothing to the reader of the message.
            raise OSError(error.errno, error.strerror, f"/proc/PID/{name}") from error


def adopt_ids() -> None:
    """Take the mapped ids as real, effective and saved ids.

    Done before anything is created: a file made under an id without a mapping fails with
    EOVERFLOW. No capability is lost here, because no id inside the namespace is 0
    (capabilities(7), "Effect of user ID changes on capabilities").

    Raises:
        OSError: EINVAL if the maps are not what the plan says.
    """
    os.setresgid(CELL_ID, CELL_ID, CELL_ID)
    os.setresuid(CELL_ID, CELL_ID, CELL_ID)

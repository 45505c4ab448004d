"""Step 8: what a process has besides files and ids: session, names, keyring, core dumps."""

import errno
import os
import resource

import prctl

from sandbox import syscalls

_HOST_NAME = "cell"


def rename_host() -> None:
    """Set a host name that says nothing of the host's.

    Raises:
        OSError: As sethostname(2) says.
    """
    syscalls.sethostname(_HOST_NAME)


def leave_keyring() -> None:
    """Leave the caller's session keyring for an empty one.

    Raises:
        OSError: As keyctl(2) says.
    """
    try:
        syscalls.join_new_session_keyring()
    except OSError as error:
        # A kernel without keys (CONFIG_KEYS) has no keyring to leave.
        if error.errno != errno.ENOSYS:
            raise


def isolate(name: str) -> None:
    """Leave the caller's session, terminal, umask and name; forbid core dumps.

    Args:
        name: The process's own, as ps(1) shows it.

    Raises:
        OSError: If any of it fails.
    """
    os.setsid()
    os.umask(0o077)
    prctl.set_name(name)
    _forbid_core_dumps()


def _forbid_core_dumps() -> None:
    """Keep the cell's memory, and ptrace(2), out of others' reach.

    RLIMIT_CORE is 1 and not 0, because a core_pattern that pipes ignores 0 and stops at 1
    (fs/coredump.c); no core file fits into one byte either. Where the caller's limit is 0 already
    it stays so, and being not dumpable has to do.
    """
    prctl.set_dumpable(0)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 1 if most == resource.RLIM_INFINITY else min(1, most)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def prefer_as_oom_victim(process: str) -> None:
    """Let the kernel kill a cell before anything else when memory runs out; proc(5).

    Done by the spawner for its child, which may not open the file after its ids changed.

    Args:
        process: The child's directory in proc.

    Raises:
        OSError: If the file cannot be written.
    """
    fd = os.open(f"{process}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"1000")
    finally:
        os.close(fd)

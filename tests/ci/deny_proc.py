"""A command that may write anywhere but below /proc: an id map is refused to it with EACCES.

    python tests/ci/deny_proc.py command...

As a security module may that confines all of ww: a user namespace can be made, and then nothing
can be done with it. Landlock is one, and asked at the same place of the kernel as others; it also
refuses every mount.
"""

import ctypes
import os
import struct
import sys

# x86-64 and arm64 number these alike; include/uapi/asm-generic/unistd.h
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
# include/uapi/linux/landlock.h
RULE_PATH_BENEATH = 1
ACCESS_FS_WRITE_FILE = 1 << 1
PR_SET_NO_NEW_PRIVS = 38

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: object) -> int:
    """A system call by its number.

    Raises:
        OSError: If the kernel refuses it.
    """
    result: int = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def deny() -> None:
    """Let this process, and all that come of it, write no file below /proc."""
    handled = struct.pack("Q", ACCESS_FS_WRITE_FILE)
    ruleset = call(LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    for name in os.listdir("/"):
        if name == "proc" or os.path.islink(f"/{name}"):
            continue
        parent = os.open(f"/{name}", os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", ACCESS_FS_WRITE_FILE, parent)
        call(LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
        os.close(parent)
    if _LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    call(LANDLOCK_RESTRICT_SELF, ruleset, 0)


if __name__ == "__main__":
    deny()
    os.execvp(sys.argv[1], sys.argv[1:])

"""Step 8: no memory of the process can be written and executed.

Whoever breaks out of the engine can write somewhere in the process. What is missing then is a
place from which to run it.
"""

import os

from sandbox import syscalls
from sandbox.errors import JailError

_CHUNK = 1 << 16
# In the rights of a mapping, after whether it can be read; proc_pid_maps(5).
_BOTH = b"wx"


def freeze(listing: int) -> None:
    """Take the right to write from everything that can be executed.

    What can be both are the trampolines for C code that calls Python (libffi's closures); all
    that this process needs are made.

    Args:
        listing: A descriptor of this process's /proc/self/fd; no path leads there any more.

    Raises:
        OSError: As open(2) and mprotect(2) say.
        JailError: If anything is left, or reading means executing here.
    """
    if syscalls.personality() & syscalls.READ_IMPLIES_EXEC:
        raise JailError("code", "all that can be read can be executed here (setarch -X)")
    for start, end in _writable_code(listing):
        syscalls.make_executable(start, end - start)
    verify(listing)


def verify(listing: int) -> None:
    """Hold that nothing was made after :func:`freeze` that can be written and executed.

    Args:
        listing: As of that.

    Raises:
        OSError: As open(2) says.
        JailError: If something was.
    """
    left = _writable_code(listing)
    if left:
        raise JailError("code", f"memory at {left[0][0]:#x} can be written and executed")


def _writable_code(listing: int) -> list[tuple[int, int]]:
    """Return where the mappings begin and end that can be both; proc_pid_maps(5).

    Raises:
        OSError: As open(2) says.
    """
    maps = os.open("../maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=listing)
    try:
        text = b""
        while data := os.read(maps, _CHUNK):
            text += data
    finally:
        os.close(maps)
    found = []
    # There are hundreds of lines, and one or two of these; paths may hold the letters as well.
    at = text.find(_BOTH)
    while at >= 0:
        line = text[text.rfind(b"\n", 0, at) + 1 : at + len(_BOTH)]
        addresses, _, rights = line.partition(b" ")
        if rights[1:] == _BOTH:
            start, _, end = addresses.partition(b"-")
            found.append((int(start, 16), int(end, 16)))
        at = text.find(_BOTH, at + 1)
    return found

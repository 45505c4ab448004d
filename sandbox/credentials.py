"""What the kernel tells of who is at the other end of a socket, and what that is worth."""

from __future__ import annotations

# As a user namespace shows those that it has no id for, unless the file says otherwise.
_OVERFLOW_UID = 65534
# The one line of /proc/self/uid_map where each id is its own; the last number is none.
_ALL = ["0", "0", "4294967295"]


def is_ambiguous(uid: int) -> bool:
    """Tell whether the kernel shows strangers under a user id, beside the user who has it.

    In a user namespace, everybody whom it does not map is seen as one and the same user. Where each
    has an id, that one is as good as any other.

    Args:
        uid: As this process sees it.
    """
    try:
        with open("/proc/sys/kernel/overflowuid", "rb", buffering=0) as file:
            overflow = int(file.read())
    except OSError:
        overflow = _OVERFLOW_UID
    if uid != overflow:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != _ALL
    except OSError:
        return True  # nobody knows

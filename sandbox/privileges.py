"""Step 10: no privilege, and no way to gain one."""

import errno

import prctl

from sandbox import syscalls
from sandbox.errors import JailError

# include/uapi/linux/securebits.h
_SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6
_SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7
# Root means nothing, changing ids changes no capability, none is kept, none becomes ambient;
# each bit (KEEP_CAPS: its absence) is locked.
_SECUREBITS = (
    prctl.SECBIT_NOROOT
    | prctl.SECBIT_NOROOT_LOCKED
    | prctl.SECBIT_NO_SETUID_FIXUP
    | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | prctl.SECBIT_KEEP_CAPS_LOCKED
    | _SECBIT_NO_CAP_AMBIENT_RAISE
    | _SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
)
# A capability set is a mask of 64 bits (capabilities(7)); the kernel says where its own end.
_CAPABILITY_BITS = 64


def drop_all() -> None:
    """Drop every capability from all five sets, lock that, and set no_new_privs.

    :func:`drop_bounding_set` comes first, and may come long before.

    Raises:
        OSError: As prctl(2) and capset(2) say.
        JailError: If the kernel reports anything else than what was set.
    """
    # python-prctl refuses the ambient securebits, has no ambient set, and empties the other three
    # only of the capabilities it knows by name.
    syscalls.set_securebits(_SECUREBITS)
    syscalls.clear_ambient_capabilities()
    syscalls.clear_capabilities()
    prctl.set_no_new_privs(1)
    _verify()


def drop_bounding_set() -> None:
    """Drop every capability from the set that limits what a program could bring back.

    What the process has meanwhile, it keeps.

    Raises:
        OSError: As prctl(2) says.
        JailError: If the kernel reports that one is left.
    """
    known = frozenset(prctl.ALL_CAPS)  # python-prctl refuses numbers that it has no name for
    for number in range(_CAPABILITY_BITS):
        drop = prctl.capbset_drop if number in known else syscalls.drop_bounding_capability
        try:
            drop(number)
        except OSError as error:
            if error.errno != errno.EINVAL or number == 0:
                raise
            break  # the first number that the kernel does not have, above cap_last_cap; it has 0
    if _bounding_set():
        raise JailError("privileges", "capabilities are left in the bounding set")


def _verify() -> None:
    # The ambient set is a part of the permitted one, always (capabilities(7)).
    # What is gone from the bounding set can never be in it again.
    if any(syscalls.capability_sets()):
        raise JailError("privileges", "capabilities are left after dropping all")
    if prctl.get_securebits() != _SECUREBITS:
        raise JailError("privileges", "the securebits are not as set")
    if not prctl.get_no_new_privs():
        raise JailError("privileges", "no_new_privs is not set")


def _bounding_set() -> list[int]:
    """Return the capabilities that are left in the bounding set."""
    left = []
    for number in range(_CAPABILITY_BITS):
        try:
            if syscalls.has_bounding_capability(number):
                left.append(number)
        except OSError as error:
            if error.errno != errno.EINVAL or number == 0:
                raise
            break
    return left

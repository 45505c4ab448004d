"""A command on a machine that refuses system calls, as a container's seccomp profile does.

    python tests/probes/refuse.py RULES command...

RULES is a JSON array of [name, errno] and [name, errno, argument, bits]: the second form refuses
calls in which the argument (by its position) has all of these bits.
"""

import ctypes
import json
import os
import sys

# seccomp.h of libseccomp
ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000
FLTATR_CTL_NNP = 3
CMP_MASKED_EQ = 7


class ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def refuse(rules: list[list[int | str]]) -> None:
    """Refuse calls to this process, and to all that come of it, for good."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_ALLOW)))
    # Root does without no_new_privs, like a container's manager; others may not.
    needs_it = int(os.geteuid() != 0)
    check(library.seccomp_attr_set(context, FLTATR_CTL_NNP, ctypes.c_uint32(needs_it)))
    for name, error, *condition in rules:
        number = library.seccomp_syscall_resolve_name(str(name).encode())
        compared = (ArgCmp * 1)()
        if condition:
            position, bits = (int(c) for c in condition)
            compared[0] = ArgCmp(position, CMP_MASKED_EQ, bits, bits)
        action = ctypes.c_uint32(ACT_ERRNO | int(error))
        count = ctypes.c_uint(1 if condition else 0)
        check(library.seccomp_rule_add_array(context, action, number, count, compared))
    check(library.seccomp_load(context))


def check(result: int) -> None:
    """Raise what libseccomp returns."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))


if __name__ == "__main__":
    refuse(json.loads(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])

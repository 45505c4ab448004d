"""As refuse.py, for calls that are told apart by the whole of an argument and not by its bits.

    python tests/probes/refuse_exactly.py RULE command...

RULE is a JSON array: [name, errno, [argument, operator, value], ...]. It refuses calls in which
each argument (by its position) is the value, or with the operator "ne", is not. Options of
prctl(2) share bits with each other, so that a mask would refuse one that is made before.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence

from tests.probes.refuse import ACT_ALLOW, ACT_ERRNO, FLTATR_CTL_NNP, ArgCmp, check

# enum scmp_compare of seccomp.h of libseccomp
OPERATORS = {"ne": 1, "eq": 4}


def refuse_exactly(name: str, error: int, *conditions: Sequence[int | str]) -> None:
    """Refuse a call to this process, and to all that come of it, for good."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_ALLOW)))
    # Root does without no_new_privs, like a container's manager; others may not.
    needs_it = ctypes.c_uint32(os.geteuid() != 0)
    check(library.seccomp_attr_set(context, FLTATR_CTL_NNP, needs_it))
    number = library.seccomp_syscall_resolve_name(name.encode())
    compared = (ArgCmp * len(conditions))(
        *(ArgCmp(int(at), OPERATORS[str(how)], int(value), 0) for at, how, value in conditions)
    )
    action, count = ctypes.c_uint32(ACT_ERRNO | error), ctypes.c_uint(len(conditions))
    check(library.seccomp_rule_add_array(context, action, number, count, compared))
    check(library.seccomp_load(context))


if __name__ == "__main__":
    refuse_exactly(*json.loads(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])

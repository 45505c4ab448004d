"""LockPersonality=: the example units have it, and ww works under the filter that it is."""

from __future__ import annotations

import platform
import sys

import pytest

from tests.conftest import EXAMPLES, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"

# What systemd does before it starts a service (seccomp_lock_personality() of its
# src/shared/seccomp-util.c): personality(2) may set what is set, and nothing else, and cannot ask.
LOCKED = """
import ctypes, errno, os, struct, sys
number = {"x86_64": 135, "aarch64": 92}[os.uname().machine]
# struct sock_filter of include/uapi/linux/filter.h: code, how far to jump, a constant
load, is_equal, leave = 0x20, 0x15, 0x06
allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
program = b"".join(
    struct.pack("HBBI", *line)
    for line in (
        (load, 0, 0, 0),  # seccomp_data.nr
        (is_equal, 0, 2, number),  # another call: to the first of the answers
        (load, 0, 0, 16),  # seccomp_data.args[0]
        (is_equal, 0, 1, 0),
        (leave, 0, 0, allow),
        (leave, 0, 0, refuse),
    )
)
buffer = ctypes.create_string_buffer(program)
prog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.create_string_buffer(prog)) == 0  # PR_SET_SECCOMP
if libc.personality(0xFFFFFFFF) != -1 or ctypes.get_errno() != errno.EPERM:
    sys.exit("the filter is not in force")
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the number of the call is not known"
)
def test_a_cell_runs_where_the_personality_is_locked(ww_account: Ww) -> None:
    cell = ww_account.file("hello.wasm", HELLO)
    done = ww_account.call(
        [sys.executable, "-c", LOCKED, *ww_account.command, "run", "--no-stdio", cell]
    )
    assert (done.returncode, done.stderr) == (0, b"")

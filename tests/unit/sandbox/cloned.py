"""Running a function in namespaces like a cell's, with nothing else of the jail around it.

As in the sandbox there are two processes: one in the place of the spawner, under the account that
the test is for, and its child, cloned into new namespaces with the one id mapped.
"""

import errno
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import prctl

from sandbox import mounts, namespaces, syscalls
from tests.conftest import Account

# What the cells of root run as on the host.
ROOTS_CELL_ID = 65534


def cell_id(account: Account) -> int:
    """The user and group on the host of a cell that an account runs."""
    return account.uid or ROOTS_CELL_ID


def answer(act: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """How the kernel answers to a call: "ok", or the name of the error."""
    try:
        act(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def open_answer(path: str, flags: int, **kwargs: Any) -> str:
    """How the kernel answers to open(2); the descriptor is closed again."""

    def act() -> None:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, **kwargs))

    return answer(act)


def forked(body: Callable[[], Any]) -> Any:
    """Run a function in a forked child; return what it returned, by way of JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _report(body, write)
    os.close(write)
    return _collect(read, pid)


def become(account: Account) -> None:
    """Be another account from now on, in no group but its own."""
    if not account.is_own:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        # Or its children's files in /proc would be root's; a program it had started would be too.
        prctl.set_dumpable(1)
    elif os.geteuid() == 0:
        os.setgroups([])


def cloned(body: Callable[[], Any], flags: int | None = None) -> Any:
    """Run a function in new namespaces, ids mapped and mounts private; return what it returned.

    To be called in a forked child only, with the account's ids.
    """
    uid, gid = (ROOTS_CELL_ID, ROOTS_CELL_ID) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    wanted = namespaces.flags() if flags is None else flags
    line, theirs = os.pipe()
    read, write = os.pipe()
    pid, pidfd = syscalls.fork_into(wanted)
    if pid == 0:
        os.close(theirs)
        os.close(read)

        def inside() -> Any:
            assert os.read(line, 1) == b"!"
            namespaces.adopt_ids()
            if wanted & syscalls.CLONE_NEWNS:
                mounts.make_private()
            return body()

        _report(inside, write)
    os.close(line)
    os.close(write)
    namespaces.write_id_maps(namespaces.proc_directory(pidfd), uid, gid)
    os.write(theirs, b"!")
    return _collect(read, pid)


def in_namespaces(account: Account, body: Callable[[], Any], flags: int | None = None) -> Any:
    """Run a function as an account's cell does: see :func:`cloned`."""

    def outside() -> Any:
        become(account)
        return cloned(body, flags)

    return forked(outside)


def _report(body: Callable[[], Any], write: int) -> NoReturn:
    try:
        try:
            told = {"value": body()}
        except BaseException:
            told = {"error": traceback.format_exc()}
        data = json.dumps(told).encode()
        while data:
            data = data[os.write(write, data) :]
    finally:
        os._exit(0)


def _collect(read: int, pid: int) -> Any:
    with open(read, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child ended without a word: {signal.Signals(os.WTERMSIG(status)).name}"
    told = json.loads(data)
    assert "error" not in told, told["error"]
    return told["value"]

"""The spawner: a prepared process that makes a jailed child for each cell.

It is started with an empty environment and holds nothing of its caller's, it loads the engine
before it is asked to run anything, and it keeps to one thread: only such a process may clone a
child into a new user namespace. It serves one connection and ends with it, and so do its cells.
"""

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Container
from typing import NamedTuple, NoReturn

import prctl

from sandbox import descriptors, jail, lifeline, limits, namespaces, session, syscalls, wire
from sandbox.errors import JailError
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from sandbox.wasi.cell import CellHost

# One message from the cell's process; a longer report of a trap is cut there.
_MOST_OUTCOME = 64 << 10

# The cell's process says this when it is in its jail, before it touches the cell's bytes.
_ENTERED = b"entered"
# What it may say before that, and what after, when it may be somebody else's.
_BEFORE = ("jail", "fault")
_AFTER = ("exit", "trap", "rejected", "fault")

# What runs in the jail: gets the plan, and descriptors of the cell's bytes and of /dev/null;
# returns the outcome.
Body = Callable[[Plan, int, int], Outcome]


class _Child(NamedTuple):
    """A cell's process, as the spawner knows it."""

    pidfd: int
    line: socket.socket


def main() -> NoReturn:
    """Be the process: the argument is the cache's directory, or empty for none."""
    channel = socket.socket(fileno=wire.SPAWNER_FD)
    try:
        become_spawner()
    except OSError as error:
        what = f"{error.filename or 'start'}: {error.strerror}"
        _refuse(channel, Outcome("jail", error.errno or 0, what, "spawner"))
    serve(channel, CellHost(sys.argv[1] or None).run)


def become_spawner() -> None:
    """Give up what the caller had: descriptors, working directory, groups, a longer life.

    Raises:
        OSError: If any of it fails.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    descriptors.close_all_above(wire.SPAWNER_FD)
    os.chdir("/")
    # Python's own handler would wait for wasm code to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.geteuid() == 0:
        _drop_groups()
    limits.raise_descriptor_limit()


def _drop_groups() -> None:
    """Drop root's supplementary groups, which a cell may not do itself.

    Raises:
        OSError: EPERM where root is the root of a user namespace that denies it.
    """
    try:
        os.setgroups([])
    except OSError as error:
        raise OSError(error.errno, error.strerror, "setgroups") from error


def _refuse(channel: socket.socket, outcome: Outcome) -> NoReturn:
    """Answer every request with the same outcome: no cell can run from here."""
    while (request := wire.receive(channel)) is not None:
        for fd in request[1]:
            os.close(fd)
        wire.send(channel, outcome.encode())
    os._exit(0)


def serve(channel: socket.socket, body: Body) -> NoReturn:
    """Run a cell for each request, one after the other, until the connection ends.

    Args:
        channel: The connection to the runner; see :mod:`sandbox.client` for what travels on it.
        body: What runs in the jail.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("the spawner has more than one thread")
    # Objects made so far are never collected, so a collection in a child copies no page of theirs.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        while (request := wire.receive(channel)) is not None:
            payload, fds = request
            wire.send(channel, _run(channel, Plan.decode(payload), fds, body).encode())
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the runner is gone, and its cell went with it
    os._exit(0)


def _run(channel: socket.socket, plan: Plan, fds: list[int], body: Body) -> Outcome:
    """Run one cell, from its clone to its end."""
    try:
        child = _spawn(channel, plan, fds, body)
    except JailError as error:
        return Outcome("jail", error.errno, error.what, error.step)
    finally:
        for fd in fds:
            os.close(fd)
    try:
        told = _wait(channel, child)
    finally:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        child.line.close()
    if told is not None:
        return told
    if ended is not None and ended.si_code == os.CLD_EXITED:
        return Outcome("fault", what=f"the cell's process ended by itself, with {ended.si_status}")
    return Outcome("signal", ended.si_status if ended is not None else signal.SIGKILL)


def _spawn(channel: socket.socket, plan: Plan, fds: list[int], body: Body) -> _Child:
    """Clone a child into new namespaces, map its ids, and let it go.

    Raises:
        JailError: If the clone or a step of this side fails; then no child is left.
    """
    if plan.uid == 0:
        raise JailError("id maps", "the cell would run as the host's root")
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise JailError("lifeline", f"socketpair: {error.strerror}", error.errno or 0) from error
    try:
        pid, pidfd = syscalls.fork_into(namespaces.flags())
    except OSError as error:
        ours.close()
        theirs.close()
        raise JailError("namespaces", f"clone3: {error.strerror}", error.errno or 0) from error
    if pid == 0:
        ours.close()
        channel.close()
        _be_cell(plan, fds, theirs.detach(), body)
    theirs.close()
    try:
        process = namespaces.proc_directory(pidfd)
        namespaces.write_id_maps(process, plan.uid, plan.gid)
        session.prefer_as_oom_victim(process)
        lifeline.let_go(ours.fileno())
    except OSError as error:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        ours.close()
        what = f"{error.filename or 'lifeline'}: {error.strerror}"
        raise JailError("id maps", what, error.errno or 0) from error
    return _Child(pidfd, ours)


def _be_cell(plan: Plan, fds: list[int], line: int, body: Body) -> NoReturn:
    """Be the cell's process: jail it, run the body, report, end."""
    try:
        listing = descriptors.open_listing()
        cell, *sources = fds
        targets = {grant.target for grant in plan.grants}
        null = os.dup(0)  # the spawner's, which is /dev/null
        parked = descriptors.park((line, cell, null, listing), targets, listing)
        line = parked[0]
        own = jail.Own(*parked)
        jail.enter(plan, sources, own)
        os.write(line, _ENTERED)
        outcome = body(plan, own.cell, own.null)
    except JailError as error:
        outcome = Outcome("jail", error.errno, error.what, error.step)
    except BaseException as error:
        outcome = Outcome("fault", what=f"{type(error).__name__}: {error}")
    try:
        os.write(line, _fit(outcome).encode())
    finally:
        # No interpreter's end: what it would do belongs to the spawner's copy.
        os._exit(0)


def _fit(outcome: Outcome) -> Outcome:
    """Cut the text so that the encoded outcome (six bytes a character at most) fits a message."""
    return outcome._replace(what=outcome.what[: _MOST_OUTCOME // 6 - 64])


def _wait(channel: socket.socket, child: _Child) -> Outcome | None:
    """Wait until a cell has told how it ended, has ended without, or shall end.

    Returns:
        What the cell's process said, or ``None``: it is to be killed if it still lives, because
        the runner is gone, or closed its side, which asks for the same.
    """
    poller = select.poll()
    for source in (channel, child.line, child.pidfd):
        poller.register(source, select.POLLIN)
    entered = False
    while True:
        ready = dict(poller.poll())
        if child.line.fileno() in ready:
            data = child.line.recv(_MOST_OUTCOME)
            if not data:
                poller.unregister(child.line)  # it will say no more; its end is what counts
            elif data == _ENTERED and not entered:
                entered = True
                wire.send(channel, wire.STARTED, [child.pidfd])
            else:
                return _told(data, _AFTER if entered else _BEFORE)
        elif channel.fileno() in ready or child.pidfd in ready:
            return None


def _told(data: bytes, kinds: Container[str]) -> Outcome:
    """Return what a cell's process said, if that is an outcome it can have come to."""
    try:
        outcome = Outcome.decode(data)
    except ValueError:
        outcome = None
    if outcome is None or outcome.kind not in kinds:
        return Outcome("fault", what="the cell's process reported what cannot be")
    return outcome

"""The process that finds out what this machine allows: it does each thing, in a child.

The functions are those of the jail's steps, so what is said here is what a cell would meet. Each
child is killed when it takes too long, and whatever becomes of it is told, never raised.

Beside the spawner this is the only module that forks: it is the one program of this package that
is not on the way of a cell.
"""

import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn, ParamSpec, TypeVar

import prctl

from sandbox import (
    cgroups,
    descriptors,
    landlock,
    lifeline,
    limits,
    mounts,
    namespaces,
    network,
    privileges,
    seccomp,
    session,
    syscalls,
    wire,
)
from sandbox.errors import JailError
from sandbox.features import END, Feature, Status
from sandbox.policy import Limits

_P = ParamSpec("_P")
_T = TypeVar("_T")

# For one probe. Each takes some milliseconds, and one that hangs is no cell's host.
_PATIENCE_MS = 10_000
_MOST_REPORT = 64 << 10
# A kernel or a filter without the call; ENOSYS and, from a feature that is built in and switched
# off, EOPNOTSUPP.
_MISSING = (errno.ENOSYS, errno.EOPNOTSUPP)

_KINDS = {
    "user": syscalls.CLONE_NEWUSER,
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}

# What each version of Landlock's interface made deniable; landlock(7).
_LANDLOCK = {
    3: "truncation",
    4: "TCP",
    5: "control of devices",
    6: "abstract sockets and signals",
}

# A directory that everybody may read, and that is there; its number in the cell; bytes of /tmp.
_DIRECTORY = "/etc"
_TARGET = 10
_SCRATCH = 1 << 20

# Enough for a process that waits, and for another beside it.
_CGROUP_MEMORY = 64 << 20
_CGROUP_PIDS = 16

# Standard output, a pipe to who asked.
_OUTPUT = 1


class Missing(Exception):
    """The machine does not have a feature."""


class _NobodyReads(Exception):
    """Whoever asked has gone."""


class Ids(NamedTuple):
    """The user and group id on the host that a cell would run as."""

    uid: int
    gid: int


class Probe(NamedTuple):
    """How a feature is tried.

    Attributes:
        feature: Its name.
        act: What is done, in a process of its own; returns what there is to say of it.
        needed: Whether no cell can run without it.
        after: The feature without which this one cannot be tried.
        off: What a jail is without it.
    """

    feature: str
    act: Callable[[Ids], str]
    needed: bool = True
    after: str = ""
    off: str = ""


def main() -> NoReturn:
    """Be the process: the arguments are the ids, and standard output is for what is found.

    When nobody reads that any more, it ends; it is not killed, because it has to clean up.
    """
    ids = Ids(int(sys.argv[1]), int(sys.argv[2]))
    found: dict[str, Status] = {}
    with suppress(BrokenPipeError, _NobodyReads):
        for probe in PROBES:
            missing = probe.after and found[probe.after] != "ok"
            feature = _untested(probe) if missing else _try(probe, ids)
            found[probe.feature] = feature.status
            os.write(_OUTPUT, feature.encode())
    # What a probe left that was killed, and what had to be made of the group that ww is in.
    _try(Probe("control groups", _sweep), ids, to_the_end=True)
    with suppress(BrokenPipeError):
        os.write(_OUTPUT, END.encode())
    os._exit(0)


# --- one child a probe ---------------------------------------------------------------------------


def _untested(probe: Probe) -> Feature:
    detail = f"it cannot be tried without: {probe.after}"
    return Feature(probe.feature, "untested", probe.needed, detail)


def _try(probe: Probe, ids: Ids, *, to_the_end: bool = False) -> Feature:
    """Try one feature in a child, and wait for what it tells or for its end, not too long.

    Args:
        probe: How.
        ids: For whom.
        to_the_end: Go on when nobody reads the output any more.

    Raises:
        _NobodyReads: When that is so.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_child(probe, ids, theirs.detach())
    theirs.close()
    poller = select.poll()
    poller.register(ours, select.POLLIN)
    if not to_the_end:
        poller.register(_OUTPUT, 0)  # an error, as that of a pipe without a reader, is told always
    ready = dict(poller.poll(_PATIENCE_MS))
    answered = ours.fileno() in ready
    told = ours.recv(_MOST_REPORT) if answered else b""
    ours.close()
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if told:
        return Feature(*json.loads(told))
    if ready and not answered:
        raise _NobodyReads
    what = "the probe took too long"
    if answered:
        code = os.waitstatus_to_exitcode(status)
        what = f"the probe ended with {code} and told nothing"
        if code < 0:
            what = f"the probe was ended by {signal.Signals(-code).name}"
    return _describe(probe, "failed", what)


def _be_child(probe: Probe, ids: Ids, line: int) -> NoReturn:
    """Try a feature, tell what became of it, and end."""
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        # The one number that a spawner keeps when it closes what it was started with.
        if line != wire.SPAWNER_FD:
            os.dup2(line, wire.SPAWNER_FD, inheritable=False)
            os.close(line)
        feature = _outcome(probe, ids)
        os.write(wire.SPAWNER_FD, feature.encode()[:_MOST_REPORT])
    finally:
        os._exit(0)


def _outcome(probe: Probe, ids: Ids) -> Feature:
    try:
        detail = _step(probe.feature, probe.act, ids)
    except Missing as error:
        return _describe(probe, "missing", str(error))
    except JailError as error:
        status: Status = "missing" if error.errno in _MISSING else "refused"
        return _describe(probe, status, error.what, error.errno, error.step)
    except BaseException as error:
        return _describe(probe, "failed", f"{type(error).__name__}: {error}")
    return Feature(probe.feature, "ok", probe.needed, detail)


def _describe(probe: Probe, status: Status, what: str, number: int = 0, step: str = "") -> Feature:
    """Return the feature that is not there, with what a jail is without it."""
    at = "" if step in ("", probe.feature) else step
    detail = f"{at}: {what}" if at else what
    if probe.off:
        detail = f"{detail}; without it, {probe.off}"
    return Feature(probe.feature, status, probe.needed, detail, number, at)


def _step(name: str, act: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run one step and give its failure the step's name, as the jail does.

    Raises:
        JailError: If the step fails.
        Missing: If there is nothing that could fail.
    """
    try:
        return act(*args, **kwargs)
    except (JailError, Missing):
        raise
    except OSError as error:
        call = f"{error.filename}: " if error.filename else ""
        what = f"{call}{error.strerror or error}"
        raise JailError(name, what, error.errno or 0) from error


def _in_namespaces(ids: Ids, act: Callable[[], str]) -> str:
    """Do something in a child that is in namespaces like a cell's, under a cell's ids.

    Raises:
        JailError: If it fails, or the way there does.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, pidfd = _step("namespaces", syscalls.fork_into, namespaces.flags())
    if pid == 0:
        ours.close()
        _be_inside(theirs.detach(), act)
    theirs.close()
    try:
        process = _step("id maps", namespaces.proc_directory, pidfd)
        _step("id maps", namespaces.write_id_maps, process, ids.uid, ids.gid)
        _step("id maps", session.prefer_as_oom_victim, process)
        lifeline.let_go(ours.fileno())
        told = ours.recv(_MOST_REPORT)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        ours.close()
    if not told:
        status = "nothing" if ended is None else ended.si_status
        raise RuntimeError(f"the process in the namespaces ended with {status}")
    kind, step, what, number = json.loads(told)
    if kind == "jail":
        raise JailError(step, what, number)
    if kind == "fault":
        raise RuntimeError(what)
    return str(what)


def _be_inside(line: int, act: Callable[[], str]) -> NoReturn:
    """Be the process in the namespaces: wait for the ids, take them, act, tell, end."""
    told: tuple[str, str, str, int]
    try:
        lifeline.wait(line)
        _step("ids", namespaces.adopt_ids)
        _step("lifeline", lifeline.tie, line)
        told = ("ok", "", act(), 0)
    except JailError as error:
        told = ("jail", error.step, error.what, error.errno)
    except BaseException as error:
        told = ("fault", "", f"{type(error).__name__}: {error}", 0)
    try:
        os.write(line, json.dumps(told).encode()[:_MOST_REPORT])
    finally:
        os._exit(0)


# --- the probes ----------------------------------------------------------------------------------


def _spawner(_ids: Ids) -> str:
    # Here and not above: it loads the engine, and where that is damaged, this is where it shows.
    from sandbox.spawner import become_spawner

    become_spawner()
    return "the engine loads"


def _limits(_ids: Ids) -> str:
    listing = descriptors.open_listing()
    limits.apply(Limits(), limits.ceilings([], listing, listing))
    return "enough address space"


def _namespaces(_ids: Ids) -> str:
    flags = namespaces.flags()
    pid, pidfd = syscalls.fork_into(flags)
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    return ", ".join(kind for kind, flag in _KINDS.items() if flags & flag)


def _time(_ids: Ids) -> str:
    if not namespaces.flags() & syscalls.CLONE_NEWTIME:
        raise Missing("this kernel has no time namespaces")
    return "its own; its clocks go with the host's"


def _id_maps(ids: Ids) -> str:
    return _in_namespaces(ids, lambda: f"{namespaces.CELL_ID} inside is {ids.uid} outside")


def _mounts(ids: Ids) -> str:
    def act() -> str:
        _step("mount propagation", mounts.make_private)
        _enter_root({}, {}, 0)
        return "a root of its own, read-only"

    return _in_namespaces(ids, act)


def _enter_root(links: dict[str, int], trees: dict[int, int], scratch: int) -> None:
    """Do the jail's steps from the new root to its seal, in their order."""
    root = _step("root", mounts.make_root)
    proc = _step("proc", mounts.make_proc) if links else None
    _step("attach root", mounts.attach_root, root)
    _step("pivot_root", mounts.leave_old_root)
    places = {"proc": proc is not None, "scratch": scratch > 0}
    _step("furnish root", mounts.furnish, links, list(trees), (), **places)
    paths = {mounts.tree_path(target): tree for target, tree in trees.items()}
    _step("attach", mounts.attach, proc, paths, scratch)
    _step("read-only root", mounts.seal_root)


def _proc(ids: Ids) -> str:
    def act() -> str:
        _step("mount propagation", mounts.make_private)
        _enter_root({"probe": 0}, {}, 0)
        return "one that shows the cell's own process"

    return _in_namespaces(ids, act)


def _directories(ids: Ids) -> str:
    here = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    may_clone = mounts.may_clone()
    cloned = mounts.clone_tree(here, read_only=True) if may_clone else -1

    def act() -> str:
        _step("mount propagation", mounts.make_private)
        tree = cloned
        if not may_clone:
            tree = _step("directories", mounts.reopen_tree, here, read_only=True)
        _enter_root({}, {_TARGET: tree}, _SCRATCH)
        _step("directories", mounts.open_directories, {_TARGET: "/"}, _SCRATCH)
        return "mounts of their own, and a writable /tmp where it is asked for"

    return _in_namespaces(ids, act)


def _network(ids: Ids) -> str:
    try:
        network.prepare()
    except ImportError as error:
        raise Missing(str(error)) from error

    def act() -> str:
        _step("network", network.raise_loopback)
        return "a lo that is up, where it is asked for"

    return _in_namespaces(ids, act)


def _session(ids: Ids) -> str:
    def act() -> str:
        session.rename_host()
        session.leave_keyring()
        session.isolate("cell")
        return "a session, a host name and (where the kernel has keys) a keyring of its own"

    return _in_namespaces(ids, lambda: _step("session", act))


def _privileges(ids: Ids) -> str:
    def act() -> str:
        _step("privileges", privileges.drop_bounding_set)
        _step("privileges", privileges.drop_all)
        return "all are dropped, and locked"

    return _in_namespaces(ids, act)


def _landlock(_ids: Ids) -> str:
    abi = landlock.abi()
    if not abi:
        syscalls.landlock_version()  # for the error, which says more
    here = os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)
    prctl.set_no_new_privs(1)
    landlock.restrict([here], [], [])
    try:
        os.close(os.open(os.path.dirname(__file__), os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        lacks = [what for since, what in _LANDLOCK.items() if since > abi]
        return f"ABI {abi}" + (f", which lacks: {', '.join(lacks)}" if lacks else "")
    raise JailError("landlock", "it is set, and what it forbids can be done")


def _seccomp(_ids: Ids) -> str:
    try:
        first, last = seccomp.build("load"), seccomp.build("run")
    except JailError as error:
        if error.errno:
            raise
        raise Missing(error.what) from error  # the library, and not the kernel
    prctl.set_no_new_privs(1)
    seccomp.install(first)
    seccomp.install(last)
    return "filters can be set"


def _cgroup(controller: str, memory: int | None, pids: int | None) -> str:
    made = cgroups.Cgroup.create(memory, pids)
    if made is None:
        raise Missing(cgroups.reason())
    try:
        pid, pidfd = syscalls.fork_into(0, made.clone_into)
        if pid == 0:
            # Where it does not get in, the status says so.
            with suppress(OSError):
                prctl.set_pdeathsig(signal.SIGKILL)
                cgroups.join(made.joins)
                os._exit(0)
            os._exit(1)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        if ended is None or ended.si_status:
            raise JailError("cgroup", "a process cannot be put into the group that was made for it")
    finally:
        made.remove()
    return next(said for said in cgroups.available() if said.startswith(controller))


def _cgroup_memory(_ids: Ids) -> str:
    return _cgroup("memory", _CGROUP_MEMORY, None)


def _cgroup_pids(_ids: Ids) -> str:
    return _cgroup("pids", None, _CGROUP_PIDS)


def _sweep(_ids: Ids) -> str:
    cgroups.sweep()
    return ""


PROBES: tuple[Probe, ...] = (
    Probe("spawner", _spawner),
    Probe("limits", _limits),
    Probe("namespaces", _namespaces),
    Probe(
        "time namespace",
        _time,
        needed=False,
        after="namespaces",
        off="nothing is lost: clocks go with the host's in any case",
    ),
    Probe("id maps", _id_maps, after="namespaces"),
    Probe("mounts", _mounts, after="id maps"),
    Probe(
        "proc",
        _proc,
        needed=False,
        after="mounts",
        off="no grant can be a pathlink",
    ),
    Probe(
        "directories",
        _directories,
        needed=False,
        after="mounts",
        off="no directory can be granted",
    ),
    Probe(
        "network",
        _network,
        needed=False,
        after="id maps",
        off="--net loopback cannot be had",
    ),
    Probe("session", _session, after="id maps"),
    Probe("privileges", _privileges, after="id maps"),
    Probe(
        "landlock",
        _landlock,
        needed=False,
        off="the mounts and the system call filter alone hold a cell that breaks out of its engine",
    ),
    Probe("seccomp", _seccomp),
    Probe(
        "cgroup memory",
        _cgroup_memory,
        needed=False,
        after="namespaces",
        off="memory is limited in the engine and by RLIMIT_DATA, and not by what is really used",
    ),
    Probe(
        "cgroup pids",
        _cgroup_pids,
        needed=False,
        after="namespaces",
        off="processes are limited by RLIMIT_NPROC and by the system call filter",
    ),
)

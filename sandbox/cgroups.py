"""Step 1: the control group of a cell's process, which limits its memory and its processes.

It is one directory of the version 2 hierarchy, where a part of that is delegated to us, or one of
each version 1 hierarchy; cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. The
spawner makes it and removes it. Its name says which spawner that is, so that :func:`sweep` can
remove what one left that was killed.
"""

import errno
import functools
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from sandbox import delegation, hierarchies
from sandbox.hierarchies import Group

CONTROLLERS: Final = ("memory", "pids")

# The number of the pid namespace, the spawner's pid there, when that process began, a count.
_NAME = re.compile(r"ww-([0-9]+)-([0-9]+)-([0-9]+)-[0-9]+")

# How long what is still in a group may take to end after SIGKILL. A process that waits for a disk
# or a network file system can take any time.
_PATIENCE = 2.0
_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.02
# How often to look where we are, when each time another ww moves us meanwhile.
_LOOKS = 5


class _Files(NamedTuple):
    """How one version calls things.

    Attributes:
        memory: The limit of memory.
        unlimited: What is no limit of it.
        no_swap: What forbids swap, best first: a file, and what is written to it. ``{}`` is the
            limit of memory: version 1 counts memory and swap together.
        whole: What makes the kernel kill all processes of the group and not one, or "".
        killed: Where it counts the processes that it killed for want of memory.
        peak: The most memory that was in use at a time.
        join: Where a process puts itself in, or "" where that is for clone3(2) to do.
        polled: Whether poll(2) tells of a change of ``pids.events``.
    """

    memory: str
    unlimited: str
    no_swap: tuple[tuple[str, str], ...]
    whole: str
    killed: str
    peak: str
    join: str
    polled: bool


_FILES: Final = {
    1: _Files(
        memory="memory.limit_in_bytes",
        unlimited="-1",
        no_swap=(("memory.memsw.limit_in_bytes", "{}"), ("memory.swappiness", "0")),
        whole="",
        killed="memory.oom_control",
        peak="memory.max_usage_in_bytes",
        join="tasks",
        polled=False,
    ),
    2: _Files(
        memory="memory.max",
        unlimited="max",
        no_swap=(("memory.swap.max", "0"),),
        whole="memory.oom.group",
        killed="memory.events",
        peak="memory.peak",
        join="",
        polled=True,
    ),
}


class Place(NamedTuple):
    """Where groups can be made.

    Attributes:
        version: Of the hierarchies.
        memory: The group in which a cell's group for the controller of that name is made.
        pids: Likewise. The same where there is one hierarchy for both.
    """

    version: int
    memory: Group
    pids: Group


class _Room:
    """What this process found out, once: where groups can be made, or why there is no place."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.place: Place | None = None
        self.reason = ""
        try:
            place = _find()
            _sweep_names({place.memory, place.pids})
            # A file system that is mounted read-only and a security module show themselves here.
            _try(place)
            self.place = place
        except delegation.Unusable as error:
            self.reason = str(error)
        except OSError as error:
            self.reason = f"{error.filename or 'control groups'}: {error.strerror}"


_room: _Room | None = None


def _own_room() -> _Room:
    """Return what this process found out; one that was forked finds out anew."""
    global _room
    if _room is None or _room.pid != os.getpid():
        _room = _Room()
    return _room


def available() -> tuple[str, ...]:
    """Return the controllers that limit a cell here, each with its place; empty where none do.

    In a delegated group of version 2 this makes room for cells' groups, as :meth:`Cgroup.create`
    does; :func:`sweep` undoes it when this process has ended.
    """
    place = _own_room().place
    if place is None:
        return ()
    return tuple(
        f"{name}: version {place.version}, in {group.path}"
        for name, group in zip(CONTROLLERS, (place.memory, place.pids), strict=True)
    )


def reason() -> str:
    """Return why there is no control group for a cell here, or an empty string if there is."""
    return _own_room().reason


class Cgroup:
    """The control group of one cell's process.

    A child that is to be in it from its first instruction is cloned with :attr:`clone_into`, and
    calls :func:`join` with :attr:`joins` first of all. That is fast. A process that is moved by
    another, as :meth:`add` does, makes the kernel wait until all processors have seen it: 5 to
    15 ms.
    """

    def __init__(self, place: Place) -> None:
        """Wrap nothing; use :meth:`create`."""
        self._files = _FILES[place.version]
        self._memory: _Directory | None = None
        self._pids: _Directory | None = None
        self._events: int | None = None
        self._limits: tuple[int | None, int | None] = (None, None)
        # What :func:`join` takes: descriptors that are open as long as the group is there.
        self.joins: list[int] = []

    @classmethod
    def create(
        cls, memory: int | None, pids: int | None, place: Place | None = None
    ) -> "Cgroup | None":
        """Make a group.

        Args:
            memory: Bytes that the processes in it may use in all, kernel memory and files in
                memory included; ``None`` for no limit.
            pids: How many processes and threads there may be.
            place: Where to make it, if not where this process found that it can.

        Returns:
            The group; ``None`` where this machine lets us make none (see :func:`reason`).

        Raises:
            OSError: If it fails this time, though it is possible here.
        """
        place = place or _own_room().place
        if place is None:
            return None
        made = cls(place)
        try:
            made._make(place, _new_name(), memory, pids)
        except BaseException:
            made.remove()
            raise
        return made

    def _make(self, place: Place, name: str, memory: int | None, pids: int | None) -> None:
        if place.memory == place.pids:
            self._memory = self._pids = _Directory(place.memory, name)
        else:
            # A hierarchy costs time, so none is used that limits nothing.
            if memory is not None:
                self._memory = _Directory(place.memory, name)
            if pids is not None:
                self._pids = _Directory(place.pids, name)
        self._limits = memory, pids
        if self._memory is not None and memory is not None:
            self._limit_memory(self._memory, memory, rises=False)
            if self._files.whole:
                self._memory.write(self._files.whole, "1")
        if self._pids is not None and pids is not None:
            self._pids.write("pids.max", str(pids))
            if self._files.polled:
                self._events = self._pids.open("pids.events", os.O_RDONLY)
                # Only what happens after the first reading counts as a change (fs/kernfs/file.c).
                os.pread(self._events, 256, 0)
        if self._files.join:
            self.joins = [d.open(self._files.join, os.O_WRONLY) for d in self._directories()]

    def limit(self, memory: int | None, pids: int | None) -> None:
        """Set other limits than it was made with, before what they are for begins.

        Args:
            memory: As of :meth:`create`, with a limit.
            pids: Likewise.

        Raises:
            OSError: EBUSY if more memory is in use already; as write(2) says.
        """
        before, self._limits = self._limits, (memory, pids)
        if self._memory is not None and memory != before[0]:
            rises = memory is None or (before[0] is not None and memory > before[0])
            self._limit_memory(self._memory, memory, rises=rises)
        if self._pids is not None and pids != before[1]:
            self._pids.write("pids.max", "max" if pids is None else str(pids))

    def _limit_memory(self, directory: "_Directory", memory: int | None, *, rises: bool) -> None:
        text = self._files.unlimited if memory is None else str(memory)
        # Version 1 has a limit of memory and one of both together, which is never the lower one.
        if rises:
            self._forbid_swap(directory, text)
        directory.write(self._files.memory, text)
        if not rises:
            self._forbid_swap(directory, text)

    def _forbid_swap(self, directory: "_Directory", memory: str) -> None:
        for name, value in self._files.no_swap:
            try:
                directory.write(name, value.format(memory))
                break
            except FileNotFoundError:
                continue  # this kernel does not count swap (swapaccount=0)

    def _directories(self) -> Iterator["_Directory"]:
        if self._memory is not None:
            yield self._memory
        if self._pids is not None and self._pids is not self._memory:
            yield self._pids

    @property
    def clone_into(self) -> int | None:
        """What clone3(2) takes with CLONE_INTO_CGROUP, or ``None`` where :func:`join` does it."""
        if self._files.join or self._memory is None:
            return None
        return self._memory.fd

    def add(self, pid: int) -> None:
        """Put another process in.

        Raises:
            OSError: ESRCH if there is none.
        """
        for directory in self._directories():
            directory.write("cgroup.procs", str(pid))

    @property
    def pids_events(self) -> int | None:
        """A descriptor for poll(2): POLLPRI when the number of processes met its limit.

        It stays ready until :meth:`pids_exceeded` is called. ``None`` where no such event exists,
        as in version 1.
        """
        return self._events

    def pids_exceeded(self) -> bool:
        """Tell whether a process or thread was refused because there were too many.

        Raises:
            OSError: If the file cannot be read.
        """
        if self._events is not None:
            return _count(os.pread(self._events, 256, 0), "max") > 0
        return self._pids is not None and _count(self._pids.read("pids.events"), "max") > 0

    def oom_killed(self) -> bool:
        """Tell whether the kernel killed a process of it because memory ran out.

        Raises:
            OSError: If the file cannot be read.
        """
        if self._memory is None:
            return False
        return _count(self._memory.read(self._files.killed), "oom_kill") > 0

    def peak_memory(self) -> int | None:
        """Return the most bytes that were in use at a time, if the kernel tells (2: Linux 5.19)."""
        if self._memory is None:
            return None
        with suppress(OSError, ValueError):
            return int(self._memory.read(self._files.peak))
        return None

    def remove(self) -> bool:
        """Kill whatever is in it, wait for its end, and remove it; to be called once.

        Returns:
            Whether it is gone. If not, a process in it cannot die yet, and the next
            :func:`sweep` after this spawner's end tries again.
        """
        for fd in (*self.joins, *([] if self._events is None else [self._events])):
            os.close(fd)
        self.joins, self._events = [], None
        gone = [directory.remove() for directory in self._directories()]
        self._memory = self._pids = None
        return all(gone)


def join(joins: Sequence[int]) -> None:
    """Put this process in a group, unless clone3(2) did; called in the child, before all else.

    The descriptors were opened by the spawner, so it works in a new user namespace. A process with
    one thread that moves itself needs no lock that all others must have seen
    (cgroup_procs_write_start() of kernel/cgroup/cgroup.c).

    Args:
        joins: The group's :attr:`Cgroup.joins`.

    Raises:
        OSError: ENODEV if the group is gone.
    """
    for fd in joins:
        os.write(fd, b"0")


class _Directory:
    """One directory of ours among control groups."""

    def __init__(self, parent: Group, name: str, *, make: bool = True) -> None:
        self.name = name
        self._parent = parent
        if make:
            # For nobody else to look into or to lock.
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            self.fd = os.open(name, flags, dir_fd=parent.fd)
        except BaseException:
            if make:
                os.rmdir(name, dir_fd=parent.fd)
            raise

    def open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.fd)

    def write(self, name: str, text: str) -> None:
        fd = self.open(name, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        fd = self.open(name, os.O_RDONLY)
        try:
            return _read_all(fd)
        finally:
            os.close(fd)

    def remove(self) -> bool:
        """Remove it, and kill what is in it first if there is something; closes it as well."""
        deadline, pause = 0.0, _FIRST_PAUSE
        try:
            while not self._is_gone():
                # It may be that nobody is in it: a process leaves some time after it was waited
                # for, because the last of it is done when its processor has left it.
                now = time.monotonic()
                deadline = deadline or now + _PATIENCE
                if now > deadline:
                    return False
                with suppress(OSError):
                    self._kill()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(self.fd)

    def _is_gone(self) -> bool:
        """Remove it if nobody is in it."""
        try:
            os.rmdir(self.name, dir_fd=self._parent.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _kill(self) -> None:
        """Send SIGKILL to all that is in it."""
        with suppress(FileNotFoundError):
            self.write("cgroup.kill", "1")  # version 2, since Linux 5.14
        with suppress(FileNotFoundError):
            self.write("pids.max", "0")  # who forks faster than it is killed forks no more
        pidfds = []
        for pid in self._processes():
            with suppress(OSError):
                pidfds.append((pid, os.pidfd_open(pid)))
        # A number that is still here belongs to the process that the descriptor names.
        present = set(self._processes())
        for pid, pidfd in pidfds:
            if pid in present:
                with suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def _processes(self) -> list[int]:
        # 0 stands for a process outside our pid namespace.
        return [pid for pid in map(int, self.read("cgroup.procs").split()) if pid > 0]


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while chunk := os.read(fd, 1 << 16):
        data += chunk
    return bytes(data)


def _count(text: bytes, key: str) -> int:
    """Return a number of a file of lines of a key and a number; 0 if it is not there."""
    for line in text.decode().split("\n"):
        match line.split():
            case [name, value] if name == key:
                return int(value)
    return 0


# --- where groups can be made --------------------------------------------------------------------


def _find() -> Place:
    """Find where groups can be made, and make room for them.

    Raises:
        delegation.Unusable: If it is nowhere.
        OSError: If proc is not mounted, or a step fails.
    """
    for _ in range(_LOOKS):
        standing = hierarchies.stand(CONTROLLERS)
        kept: tuple[Group, ...] = ()
        try:
            place = _choose(standing)
            kept = (place.memory, place.pids)
            if place.version == 2 and standing.unified is not None:
                # It may be the leader that this process counts on, by a lock that is lost when any
                # descriptor of it is closed; see delegation._count_on().
                kept += (standing.unified,)
        except delegation.Moved:
            pass
        else:
            return place
        finally:
            standing.close(kept)
    raise delegation.Unusable("others that run ww come and go too fast")


def _choose(standing: hierarchies.Standing) -> Place:
    """Choose version 2 if it can be used, and else version 1.

    Raises:
        delegation.Unusable: If neither can.
        delegation.Moved: If this process is not there any more.
        OSError: If a step fails.
    """
    reasons = []
    if standing.unified is not None:
        try:
            base = delegation.make_room(standing.unified, CONTROLLERS)
            return Place(2, base, base)
        except delegation.Unusable as error:
            reasons.append(f"version 2: {error}")
    elif standing.shut:
        reasons.append(f"version 2: {standing.shut}")
    missing = [name for name in CONTROLLERS if name not in standing.legacy]
    if len(missing) < len(CONTROLLERS) or not reasons:
        refused = [
            group.path
            for group in standing.legacy.values()
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=group.fd, effective_ids=True)
        ]
        if not missing and not refused:
            return Place(1, standing.legacy["memory"], standing.legacy["pids"])
        if missing:
            reasons.append(f"version 1: not mounted for {', '.join(missing)}")
        if refused:
            reasons.append(f"version 1: not writable: {', '.join(refused)}")
    raise delegation.Unusable("; ".join(reasons))


def _try(place: Place) -> None:
    """Make a group and remove it."""
    name = _new_name()
    for parent in {place.memory, place.pids}:
        _Directory(parent, name).remove()


_numbers = itertools.count(1)


def _new_name() -> str:
    return f"{_prefix(os.getpid())}-{next(_numbers)}"


@functools.cache
def _prefix(pid: int) -> str:
    """Return what the names of this process's groups begin with; see :data:`_NAME`."""
    return f"ww-{_pid_namespace()}-{pid}-{_stat('self').began}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


# --- what dead spawners left ---------------------------------------------------------------------


class _Stat(NamedTuple):
    """What proc_pid_stat(5) says of a process: its state, and when it began, in ticks."""

    state: str
    began: int


def _stat(process: str) -> _Stat:
    with open(f"/proc/{process}/stat", "rb") as file:
        # The name is in brackets and may hold brackets and spaces itself.
        fields = file.read().rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), int(fields[19]))


def _lives(pid: int, began: int) -> bool:
    """Tell whether a spawner lives; if in doubt, it does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = _stat(str(pid))
    except OSError:
        return True
    # One that nobody waited for is dead, and its number is taken.
    return stat.state not in "ZX" and stat.began == began


def sweep() -> None:
    """Remove the groups of spawners that live no more, and whatever runs in them.

    For the runner, after its spawner's end. What belongs to a living spawner is not touched, nor
    what was made in another pid namespace, of whose processes nothing is known here.
    """
    with suppress(OSError, delegation.Unusable):
        standing = hierarchies.stand(CONTROLLERS)
        try:
            _sweep_names(set(standing.legacy.values()))
            if standing.unified is not None:
                for base in delegation.bases(standing.unified):
                    try:
                        _sweep_names({base})
                        delegation.leave(base, CONTROLLERS)
                    finally:
                        os.close(base.fd)
        finally:
            standing.close()


def _sweep_names(parents: set[Group]) -> None:
    """Remove the groups of dead spawners that are right below some groups."""
    # The numbers in the names mean nothing if the proc that is mounted here counts otherwise.
    if os.readlink("/proc/self") != str(os.getpid()):
        return
    space = _pid_namespace()
    for parent in parents:
        for name in os.listdir(parent.fd):
            found = _NAME.fullmatch(name)
            if not found or int(found[1]) != space or _lives(int(found[2]), int(found[3])):
                continue
            with suppress(OSError):
                _Directory(parent, name, make=False).remove()

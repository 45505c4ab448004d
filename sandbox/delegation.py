"""Making room for cells' control groups in a group of the version 2 hierarchy that is ours.

A group that gives controllers to the groups below it cannot hold processes itself (cgroups(7),
"No internal processes"), and ww and its spawner are in it. So everything in it moves to one group
below, the leader, and the cells' groups are made beside that. The last ww that leaves undoes it.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from sandbox.hierarchies import Group

LEADER: Final = "ww-leader"

# While one moves what is in a group, more can be forked into it.
_ROUNDS = 50
# How long another ww may take over the same.
_PATIENCE = 2.0
_PAUSE = 0.005
# struct flock of fcntl(2): type, whence, start, length, pid.
_FLOCK = "hhqqi"


# The process that counts on a leader, if it is this one; see _count_on().
_follower = 0
# Whether the session that this process is in is a spawner's own.
_own_session = True


class Unusable(Exception):
    """There is no control group that we may divide, and this is why."""


class Moved(Exception):
    """Another ww moved this process while it looked where it is; it is to look again."""


def share_session() -> None:
    """Note that this process was not given a session of its own: others there are not ww's."""
    global _own_session
    _own_session = False


def make_room(own: Group, needs: Sequence[str]) -> Group:
    """Make it possible to make groups with some controllers, near this process's own group.

    Args:
        own: The group that this process is in.
        needs: The controllers.

    Returns:
        The group to make them in; its descriptor stays open.

    Raises:
        Unusable: If it cannot be; then nothing is changed.
        Moved: If this process is not in that group any more.
        OSError: If a step fails that should not.
    """
    parent = _parent(own)
    if parent is not None:
        if os.path.basename(own.path) == LEADER:
            return _follow(own, parent, needs)
        # As systemd's DelegateSubgroup= has it: the service was put below what it may divide.
        if _is_marked(parent) and not _read(parent, "cgroup.procs"):
            with suppress(OSError, Unusable):
                _check(parent, needs)
                _enable(parent, needs)
                return parent
        os.close(parent.fd)
    _check(own, needs)
    try:
        # The root of the hierarchy may hold processes.
        _enable(own, needs)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _lead(own, needs)
    return own


def bases(own: Group) -> Iterator[Group]:
    """Open the groups in which :func:`make_room` may have made room; the caller closes them."""
    yield own._replace(fd=os.dup(own.fd))
    parent = _parent(own)
    if parent is not None:
        if os.path.basename(own.path) == LEADER or _is_marked(parent):
            yield parent
        else:
            os.close(parent.fd)


def leave(base: Group, needs: Sequence[str]) -> None:
    """Undo :func:`make_room`, unless a spawner still counts on it or other groups are there.

    A process does not undo what it made itself: it asks for this when another has ended.

    Raises:
        Unusable: If another ww is at it for too long.
        OSError: If a step fails; the leader stays then.
    """
    if os.getpid() == _follower:
        return  # the kernel tells nobody of his own lock
    try:
        leader = _open_leader(base)
    except FileNotFoundError:
        return
    try:
        if not _is_followed(leader) and _subgroups(base) == [LEADER]:
            _undo(base, leader, needs)
    finally:
        os.close(leader.fd)  # and the lock goes with it


def _follow(leader: Group, base: Group, needs: Sequence[str]) -> Group:
    """Count on the leader that another ww made, in which this process was born."""
    try:
        held = _open_leader(base)
    except FileNotFoundError:
        # Another ww, the last that left, moved everything back meanwhile.
        os.close(base.fd)
        raise Moved from None
    if not _is_same(held, leader) or os.getpid() not in _processes(held):
        os.close(held.fd)
        os.close(base.fd)
        raise Moved
    _check(base, needs)
    _enable(base, needs)
    _count_on(held)
    return base


def _lead(base: Group, needs: Sequence[str]) -> None:
    """Make the leader, move all there that is in its parent, and let that give controllers.

    Raises:
        Unusable: If there is something that we may not move.
        OSError: If a step fails.
    """
    _refuse_strangers(base)
    # For nobody else to look into or to lock.
    with suppress(FileExistsError):
        os.mkdir(LEADER, 0o700, dir_fd=base.fd)
    leader = _open_leader(base)
    try:
        for _ in range(_ROUNDS):
            _refuse_strangers(base)
            _move_all(base, leader)
            try:
                _enable(base, needs)
                break
            except OSError as error:
                if error.errno != errno.EBUSY:  # something was forked into it meanwhile
                    raise
        else:
            raise Unusable(f"{base.path} fills faster than it can be emptied")
    except BaseException:
        with suppress(OSError):
            if not _is_followed(leader) and _subgroups(base) == [LEADER]:
                _undo(base, leader, needs)
        os.close(leader.fd)
        raise
    _count_on(leader)


def _undo(base: Group, leader: Group, needs: Sequence[str]) -> None:
    """Move everything back; the leader's lock is ours."""
    with suppress(FileNotFoundError):
        _write(base, "cgroup.subtree_control", " ".join(f"-{name}" for name in needs))
    for _ in range(_ROUNDS):
        _move_all(leader, base)
        try:
            os.rmdir(LEADER, dir_fd=base.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(_PAUSE)
        else:
            return


# --- the leader's locks --------------------------------------------------------------------------
#
# flock(2) is for the time of a change. The lock of fcntl(2) says that a spawner counts on the
# leader: that one belongs to the process, so its children do not inherit it, and it goes when the
# process ends, however that is.


def _open_leader(base: Group) -> Group:
    """Open the leader and lock it for a change.

    Raises:
        FileNotFoundError: If there is none.
        Unusable: If another ww holds the lock for too long.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        leader = Group(os.open(LEADER, flags, dir_fd=base.fd), f"{base.path}/{LEADER}")
        try:
            fcntl.flock(leader.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(LEADER, dir_fd=base.fd, follow_symlinks=False)
            if here.st_ino == os.fstat(leader.fd).st_ino:
                return leader
        except BlockingIOError:
            pass
        except BaseException:
            os.close(leader.fd)
            raise
        os.close(leader.fd)
        if time.monotonic() > deadline:
            raise Unusable(f"{leader.path} is locked by another process")
        time.sleep(_PAUSE)


def _count_on(leader: Group) -> None:
    """Let the leader stay as long as this process lives, and allow others to change it.

    The descriptor is never closed: closing any of the file's drops the lock; fcntl(2).
    """
    global _follower
    fcntl.lockf(leader.fd, fcntl.LOCK_SH)
    _follower = os.getpid()
    fcntl.flock(leader.fd, fcntl.LOCK_UN)


def _is_followed(leader: Group) -> bool:
    """Tell whether another process counts on the leader."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer: bytes = fcntl.fcntl(leader.fd, fcntl.F_GETLK, asked)
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK


# --- what may be done ----------------------------------------------------------------------------


def _check(base: Group, needs: Sequence[str]) -> None:
    """Check that a group has the controllers, and that we may divide it.

    Raises:
        Unusable: If not.
    """
    given = _read(base, "cgroup.controllers").split()
    lacks = [name for name in needs if name not in given]
    if lacks:
        raise Unusable(f"{base.path} has no controller {', '.join(lacks)}")
    for name in (".", "cgroup.procs", "cgroup.subtree_control"):
        if not os.access(name, os.W_OK, dir_fd=base.fd, effective_ids=True):
            raise Unusable(f"{base.path} is not delegated to us: {name} is not writable")


def _refuse_strangers(base: Group) -> None:
    """Check that everything in a group is ours to move.

    All is where systemd says that the group is delegated. Elsewhere it is what is in this
    process's session, which is a spawner's own, and the parent of its leader, which is ww. A server
    may have been started in somebody's session, where nothing but itself is.

    Raises:
        Unusable: If not.
    """
    processes = _processes(base)
    if 0 in processes:
        raise Unusable(f"{base.path} holds processes of another pid namespace")
    if _is_marked(base):
        return
    session = os.getsid(0) if _own_session else -1
    ours = {_parent_of(session)} if _own_session else {os.getpid()}
    for pid in processes:
        with suppress(ProcessLookupError):
            if pid not in ours and os.getsid(pid) != session:
                raise Unusable(f"{base.path} is not delegated, and holds processes beside ww")


def _is_marked(group: Group) -> bool:
    """Tell whether systemd calls a group delegated; systemd.resource-control(5), Delegate=."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group.fd, name) == b"1":
                return True
    return False


def _parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if that is out of sight."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0


# --- files ---------------------------------------------------------------------------------------


def _parent(group: Group) -> Group | None:
    """Open the group above; ``None`` above the root of the mount."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open("..", flags, dir_fd=group.fd)
    if os.fstat(fd).st_dev == os.fstat(group.fd).st_dev:
        return Group(fd, os.path.dirname(group.path))
    os.close(fd)
    return None


def _is_same(one: Group, other: Group) -> bool:
    return os.path.sameopenfile(one.fd, other.fd)


def _subgroups(base: Group) -> list[str]:
    with os.scandir(base.fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _enable(base: Group, needs: Sequence[str]) -> None:
    """Let a group give controllers to those below it.

    Raises:
        OSError: EBUSY if there are processes in it.
    """
    given = _read(base, "cgroup.subtree_control").split()
    lacks = [name for name in needs if name not in given]
    if lacks:
        _write(base, "cgroup.subtree_control", " ".join(f"+{name}" for name in lacks))


def _move_all(source: Group, target: Group) -> None:
    for pid in _processes(source):
        with suppress(ProcessLookupError):
            _write(target, "cgroup.procs", str(pid))


def _processes(group: Group) -> list[int]:
    return [int(pid) for pid in _read(group, "cgroup.procs").split()]


def _read(group: Group, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=group.fd)
    with open(fd, encoding="utf-8") as file:
        return file.read()


def _write(group: Group, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=group.fd)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{group.path}/{name}") from error
    finally:
        os.close(fd)

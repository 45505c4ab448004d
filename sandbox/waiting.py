"""A jail that waits for its plan: making one, and giving it what it is to hold."""

import select
import socket
from typing import NamedTuple

from sandbox import admission, cgroups, lifeline, namespaces, session, watch
from sandbox.admission import Admission
from sandbox.errors import JailError
from sandbox.limits import HOST_MEMORY
from sandbox.order import Order
from sandbox.policy import Limits
from sandbox.zygote import Zygote

# Seconds that a jail may take to get ready where nobody waits for it.
_PATIENCE = 30.0


class Ids(NamedTuple):
    """Who a jailed process is on the host.

    Attributes:
        uid: The user id.
        gid: The group id.
    """

    uid: int
    gid: int


class Waiting(NamedTuple):
    """A jail without a plan.

    Attributes:
        kind: What can be made of it.
        ids: Who its process is.
        child: Its process.
        channel: Our end of the connection through which its plan goes.
    """

    kind: Order
    ids: Ids
    child: watch.Child
    channel: socket.socket

    def admit(self, what: Admission, deadline: float | None) -> None:
        """Give it its plan, and copies of the descriptors that are granted.

        One that does not take them is waited for by :func:`sandbox.watch.wait`, which keeps the
        cell's time.

        Args:
            what: That.
            deadline: When the cell has to end, on the monotonic clock.

        Raises:
            JailError: If the limits of its control group cannot be set, or there is no room for
                the descriptors on their way.
        """
        cgroup = self.child.cgroup
        if cgroup is not None:
            try:
                cgroup.limit(*_bounds(what.plan.limits))
            except OSError as error:
                raise _refused("cgroup", error, "limits") from error
        try:
            admission.admit(self.channel, what, deadline)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass  # it has ended, and says why on its line; or it is stopped
        except OSError as error:
            raise _refused("admission", error, "sendmsg") from error

    def get_ready(self) -> bool:
        """Wait until it has come as far as it can without a plan.

        Returns:
            Whether it has, and did not fail before.
        """
        return watch.first_word(self.child, _PATIENCE) == watch.READY

    def is_alive(self) -> bool:
        """Tell whether one that was ready still waits."""
        poller = select.poll()
        for source in (self.child.line, self.child.pidfd):
            poller.register(source, select.POLLIN)
        return not poller.poll(0)

    def give_up(self) -> JailError | None:
        """End it, and return what it said of a failure, if it said so."""
        self.channel.close()
        try:
            return watch.last_word(self.child)
        finally:
            try:
                self.child.kill()
            finally:
                if self.child.cgroup is not None:
                    self.child.cgroup.remove()


def make(zygote: Zygote, kind: Order, ids: Ids, limits: Limits, *, grouped: bool) -> Waiting:
    """Have a jail made: map its ids, put it into a control group, and let it go.

    Args:
        zygote: What it is cloned from.
        kind: Which kind of jail.
        ids: Who its process is.
        limits: What its cell may use up, as far as that is known.
        grouped: Whether it gets a control group, where the machine gives one.

    Raises:
        JailError: If the clone or a step of this side fails; then no process is left.
    """
    try:
        cgroup = cgroups.Cgroup.create(*_bounds(limits)) if grouped else None
    except OSError as error:
        raise _refused("cgroup", error, "mkdir") from error
    ends: list[socket.socket] = []
    try:
        try:
            for form in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
                ends += socket.socketpair(socket.AF_UNIX, form)
        except OSError as error:
            raise _refused("lifeline", error, "socketpair") from error
        line, its_line, channel, its_channel = ends
        pid, pidfd = zygote.clone(kind, its_line.fileno(), its_channel.fileno(), cgroup)
    except BaseException:
        for end in ends:
            end.close()
        if cgroup is not None:
            cgroup.remove()
        raise
    its_line.close()
    its_channel.close()
    made = Waiting(kind, ids, watch.Child(pid, pidfd, line.detach(), cgroup), channel)
    try:
        process = namespaces.proc_directory(pidfd)
        if kind.isolation == "full":
            namespaces.write_id_maps(process, *ids)
        session.prefer_as_oom_victim(process)
        lifeline.let_go(made.child.line)
    except OSError as error:
        # It may have failed before that, and then this is only what came of it.
        said = made.give_up()
        raise said or _refused("id maps", error, "lifeline") from error
    except BaseException:
        made.give_up()
        raise
    return made


def _bounds(limits: Limits) -> tuple[int | None, int]:
    """Return the limits of a control group: memory in bytes, and processes."""
    memory = limits.memory
    if memory is not None:
        memory += limits.scratch + HOST_MEMORY
    return memory, limits.pids


def _refused(step: str, error: OSError, call: str) -> JailError:
    return JailError(step, f"{error.filename or call}: {error.strerror}", error.errno or 0)

"""The process that jails are cloned from: it holds the engine, and never sees a plan.

It is the spawner's child, and keeps to one thread: only such a process may clone a child into a new
user namespace. What it clones are its siblings, so they are the spawner's to wait for. All that
travels to it is what kind of jail is wanted; a cell's plan and descriptors go from the spawner to
the jail, past it. So what one cell was given cannot be found in the memory of another.
"""

import gc
import os
import signal
import socket
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

import prctl

from sandbox import (
    cgroups,
    descriptors,
    namespaces,
    network,
    seccomp,
    syscalls,
    watch,
)
from sandbox.errors import JailError
from sandbox.inside import Inside
from sandbox.jail import Jail
from sandbox.order import ORDINARY, Order
from sandbox.outcome import Outcome

# Bytes of an order, or of an answer, which may have the text of an error in it.
_MOST_ANSWER = 1 << 16
# The two ends, and what puts a process into its control groups.
_MOST_FDS = 4
# What the process says first.
_READY = b"ready"
# What ps(1) shows of a jail that has no cell yet.
_UNNAMED = "jail"


class Host(Protocol):
    """What compiles cells and runs them."""

    def prepare(self, *, fuel: bool, ahead: bool) -> None:
        """Make what cells need, because it costs more after a clone.

        Args:
            fuel: Whether they count fuel.
            ahead: Whether there are to be rehearsals.
        """

    def rehearse(self, null: int) -> None:
        """Do once what is done with every cell, in a process that waits for one.

        Args:
            null: A descriptor of /dev/null, which is left open.
        """

    def compile(self, inside: Inside) -> Outcome:
        """Compile a cell, in a jail that holds nothing else; exit code 0 is success."""

    def run(self, inside: Inside) -> Outcome:
        """Run a cell, in its jail."""


class Zygote:
    """The process, as the spawner knows it. Its threads may use it at the same time."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Wrap a process that :meth:`start` made."""
        self.pid = pid
        self._channel = channel
        self._turn = threading.Lock()

    @classmethod
    def start(cls, host: Host, *, quiet: bool) -> "Zygote":
        """Make the process, of this one, which has one thread.

        Args:
            host: What compiles cells and runs them.
            quiet: Whether it has no standard error, which then is the spawner's alone.

        Raises:
            OSError: As fork(2) says.
            JailError: If it cannot get ready.
            RuntimeError: If this process has more than one thread.
        """
        if len(os.listdir("/proc/self/task")) != 1:
            raise RuntimeError("the spawner has more than one thread already")
        # Packets: one that cannot be sent whole is not sent at all.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_zygote(theirs, host, quiet=quiet)
        theirs.close()
        made = cls(pid, ours)
        first = _receive(ours)
        if first != _READY:
            made.kill()
            made.wait()
            raise _failure(first)
        return made

    def clone(
        self, kind: Order, line: int, channel: int, cgroup: cgroups.Cgroup | None
    ) -> tuple[int, int]:
        """Have a jail made; it waits until it is let go.

        Args:
            kind: Which.
            line: The jail's end of its line to the spawner.
            channel: Its end of the connection through which its plan comes.
            cgroup: Its control group, where the machine gives one.

        Returns:
            The pid of its process, which is a child of this one; and a pidfd of it.

        Raises:
            JailError: If the clone fails, or what it needs is not there.
        """
        fds = [line, channel]
        into = None if cgroup is None else cgroup.clone_into
        if into is not None:
            fds.append(into)
        elif cgroup is not None:
            fds += cgroup.joins
        payload = (b"into " if into is not None else b"") + kind.encode()
        with self._turn:
            try:
                socket.send_fds(self._channel, [payload], fds)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _failure(b"") from error
            except OSError as error:
                what = f"sendmsg: {error.strerror}"
                raise JailError("spawner", what, error.errno or 0) from error
            try:
                answer = _receive(self._channel)
            except BaseException:
                # The answer would be taken for the next order's.
                self.kill()
                raise
        if not answer.isdigit():
            raise _failure(answer)
        pid = int(answer)
        try:
            # It is our child, and nobody has waited for it: the number is its own.
            return pid, os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise JailError("spawner", f"pidfd_open: {error.strerror}", error.errno or 0) from error

    def kill(self) -> None:
        """End the process, even one that somebody stopped. No jail is made after that."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it is gone, which it was told to be."""
        os.waitpid(self.pid, 0)


def _receive(channel: socket.socket) -> bytes:
    """Receive a packet; empty if there is nobody any more who could send one."""
    try:
        return channel.recv(_MOST_ANSWER)
    except ConnectionResetError:
        return b""


def _failure(answer: bytes) -> JailError:
    """Return what an answer says that is not the one that was hoped for."""
    if not answer:
        return JailError("spawner", "the process that jails are cloned from has ended")
    outcome = Outcome.decode(answer)
    return JailError(outcome.step, outcome.what, outcome.code)


def _be_zygote(channel: socket.socket, host: Host, *, quiet: bool) -> NoReturn:
    """Be the process: clone a jail for each order, until the spawner is gone."""
    try:
        try:
            _leave_spawner(channel.fileno(), quiet=quiet)
        except OSError as error:
            what = f"{error.filename or 'the process that jails are cloned from'}: {error.strerror}"
            channel.send(Outcome("jail", error.errno or 0, what, "lifeline").encode())
            os._exit(1)
        channel.send(_READY)
        # Most cells need these, so they are made while nobody waits. What fails here fails again
        # for the first of them, who is told.
        with suppress(Exception):
            _load(ORDINARY._replace(profiles=ORDINARY.profiles[:2], ahead=False), host)
        # Objects made so far are never collected, so a collection in a child copies none of theirs.
        gc.freeze()
        while True:
            order, fds, _, _ = socket.recv_fds(channel, _MOST_ANSWER, _MOST_FDS)
            if not order:
                break
            try:
                channel.send(_answer(order, fds, host, channel))
            finally:
                for fd in fds:
                    os.close(fd)
    finally:
        os._exit(0)


def _leave_spawner(channel: int, *, quiet: bool) -> None:
    """Give up what is the spawner's, and end when it does.

    Raises:
        OSError: If any of it fails.
    """
    _be_called("zygote")
    os.setsid()  # a terminal's signals are for the spawner, which ends its cells itself
    prctl.set_pdeathsig(signal.SIGKILL)
    if quiet:
        os.dup2(0, 2)
    descriptors.close_all_but({0, 1, 2, channel})


def _be_called(name: str) -> None:
    """Set the name that ps(1) shows, if that can be: it is there for people only."""
    with suppress(OSError):
        prctl.set_name(name)


def _answer(order: bytes, fds: Sequence[int], host: Host, channel: socket.socket) -> bytes:
    """Do what an order says, and return what there is to say of it: a pid, or a failure."""
    try:
        kind = Order.decode(order.removeprefix(b"into "))
        line, connection, *groups = fds
        into = groups.pop() if order.startswith(b"into ") else None
        _load(kind, host)
        try:
            flags = namespaces.flags(kind.isolation)
            pid, pidfd = syscalls.fork_into(flags, into, sibling=True)
        except OSError as error:
            what = f"clone3: {error.strerror}"
            raise JailError("namespaces", what, error.errno or 0) from error
        if pid == 0:
            # First of all: as long as a jail has it, the spawner cannot see that its zygote ended.
            channel.close()
            _be_jailed(kind, host, line, connection, groups)
        os.close(pidfd)
    except JailError as error:
        return Outcome("jail", error.errno, error.what, error.step).encode()
    except Exception as error:
        what = f"{getattr(error, 'filename', None) or type(error).__name__}: "
        what += str(getattr(error, "strerror", None) or error)
        return Outcome("jail", getattr(error, "errno", None) or 0, what, "spawner").encode()
    return str(pid).encode()


def _load(kind: Order, host: Host) -> None:
    """Load what a kind of jail needs, before there is no file to load it from.

    Raises:
        JailError: If it is not installed, or is refused.
        OSError: As reading files says.
    """
    host.prepare(fuel=kind.fuel, ahead=kind.ahead)
    for profile in kind.profiles:
        seccomp.build(profile)
    if "network" in kind.needs:
        try:
            network.prepare()
        except ImportError as error:
            raise JailError("network", str(error)) from error
    if "content" in kind.needs:
        import sandbox.wasi.content
    if "component" in kind.needs:
        import sandbox.wasi.component  # noqa: F401


def _be_jailed(kind: Order, host: Host, line: int, channel: int, groups: Sequence[int]) -> NoReturn:
    """Be a jailed process: jail it, do its work, report, end."""
    jail: Jail | None = None

    def report(outcome: Outcome) -> NoReturn:
        try:
            os.write(line if jail is None else jail.line, _fit(outcome).encode())
        finally:
            # No interpreter's end: what it would do belongs to the zygote's copy.
            os._exit(0)

    try:
        _be_called(_UNNAMED)
        _join(groups)
        listing = descriptors.open_listing()
        null = os.dup(0)  # the spawner's, which is /dev/null
        jail = Jail(kind, line, channel, null, listing)
        jailed = jail

        def seal(also: Collection[int] = ()) -> None:
            jailed.seal(also)
            os.write(jailed.line, watch.ENTERED)

        jail.enter(host.rehearse)
        work = host.compile if kind.name == "compiler" else host.run
        outcome = work(Inside(jail.plan, jail.own, seal, report))
    except JailError as error:
        outcome = Outcome("jail", error.errno, error.what, error.step)
    except BaseException as error:
        outcome = Outcome("fault", what=f"{type(error).__name__}: {error}")
    report(outcome)


def _join(groups: Sequence[int]) -> None:
    """Go into the control group, before anything is used that it should count.

    Raises:
        JailError: If that fails.
    """
    try:
        cgroups.join(groups)
    except OSError as error:
        raise JailError("cgroup", f"join: {error.strerror}", error.errno or 0) from error


def _fit(outcome: Outcome) -> Outcome:
    """Cut the text so that the encoded outcome (four bytes a character at most) fits a message."""
    return outcome._replace(what=outcome.what[: watch.MOST_OUTCOME // 4 - 64])

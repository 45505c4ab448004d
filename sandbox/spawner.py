"""The spawner: a prepared process that makes a jailed child for each cell.

It is started with an empty environment and holds nothing of its caller's, it loads the engine
before it is asked to run anything, and it keeps to one thread: only such a process may clone a
child into a new user namespace. It serves one connection and ends with it, and so do its cells.
"""

import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import NamedTuple, NoReturn, Protocol

import prctl

from sandbox import (
    cgroups,
    compiling,
    descriptors,
    landlock,
    lifeline,
    limits,
    mounts,
    namespaces,
    network,
    seccomp,
    session,
    syscalls,
    watch,
    wire,
)
from sandbox.errors import JailError
from sandbox.inside import Inside, Own
from sandbox.jail import Filters, Jail
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from sandbox.wasi.cell import CellHost


class Host(Protocol):
    """What loads cells, compiles and runs them."""

    def find(self, plan: Plan, code: int) -> int | None:
        """Return a descriptor of a cell's compiled form, if there is one that can be used."""

    def keep(self, plan: Plan, artifact: int) -> str:
        """Keep a compiled form for later, or return why it cannot be kept."""

    def compile(self, inside: Inside) -> Outcome:
        """Compile a cell, in a jail that holds nothing else; exit code 0 is success."""

    def run(self, inside: Inside) -> Outcome:
        """Run a cell, in its jail."""


class Work(NamedTuple):
    """What a jailed process is made for.

    Attributes:
        name: The process's own, as ps(1) shows it.
        plan: What is promised to it.
        fds: What it loads, then the sources of the plan's grants, then what serves its content.
        filters: What system calls remain.
        body: What it does in its jail.
        cloned: Whether the sources of directories are mounts of their own already.
    """

    name: str
    plan: Plan
    fds: Sequence[int]
    filters: Filters
    body: Callable[[Inside], Outcome]
    cloned: bool = False


def main() -> NoReturn:
    """Be the process: the arguments are the cache's directory and bound, or empty for none."""
    channel = socket.socket(fileno=wire.SPAWNER_FD)
    try:
        become_spawner()
        spawner = Spawner(channel, CellHost(sys.argv[1] or None, _number(sys.argv[2])))
    except JailError as error:
        _refuse(channel, Outcome("jail", error.errno, error.what, error.step))
    except OSError as error:
        what = f"{error.filename or 'start'}: {error.strerror}"
        _refuse(channel, Outcome("jail", error.errno or 0, what, "spawner"))
    except Exception as error:
        _refuse(channel, Outcome("jail", 0, f"{type(error).__name__}: {error}", "spawner"))
    spawner.serve()


def _number(text: str) -> int | None:
    return int(text) if text else None


def become_spawner() -> None:
    """Give up what the caller had: descriptors, working directory, groups, a longer life.

    Raises:
        OSError: If any of it fails.
    """
    # The end of the connection is what ends it, and lets it clear up; but one that somebody has
    # stopped would not see that.
    prctl.set_pdeathsig(signal.SIGCONT)
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


class Spawner:
    """The state of the process: its connection, and what it has made ready for cells."""

    def __init__(self, channel: socket.socket, host: Host) -> None:
        """Make ready what every cell needs, because it costs more after a clone.

        Args:
            channel: The connection to the runner; see :mod:`sandbox.client` for what travels on it.
            host: What loads cells and runs them.
        """
        self._channel = channel
        self._host = host
        cgroups.available()  # finds out, and removes what a dead spawner left

    def serve(self) -> NoReturn:
        """Run a cell for each request, one after the other, until the connection ends."""
        if len(os.listdir("/proc/self/task")) != 1:
            raise RuntimeError("the spawner has more than one thread")
        # Objects made so far are never collected, so a collection in a child copies none of theirs.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while (request := wire.receive(self._channel)) is not None:
                payload, fds = request
                plan = Plan.decode(payload.removeprefix(wire.COMPILE))
                only = payload.startswith(wire.COMPILE)
                try:
                    outcome = self._serve_one(plan, fds, only_compile=only)
                except JailError as error:
                    outcome = Outcome("jail", error.errno, error.what, error.step)
                except (BrokenPipeError, ConnectionResetError):
                    raise
                except OSError as error:
                    what = f"{error.filename or 'spawner'}: {error.strerror}"
                    outcome = Outcome("jail", error.errno or 0, what, "spawner")
                finally:
                    _close_all(fds)
                wire.send(self._channel, outcome.encode())
        except (BrokenPipeError, ConnectionResetError, EOFError):
            pass  # the runner is gone, and its cell went with it
        os._exit(0)

    def _serve_one(self, plan: Plan, fds: list[int], *, only_compile: bool = False) -> Outcome:
        """Find or make a cell's compiled form, and run it.

        Args:
            plan: The cell's plan.
            fds: The cell's bytes, the granted descriptors, and the connection for content, if there
                is one; they are closed, and the list emptied, as soon as the cell has its copies.
            only_compile: Do not run it. Then exit code 0 says that its compiled form is there, or
                why it is not kept.

        Raises:
            JailError: If a step on this side fails.
            OSError: EPIPE if the runner is gone.
        """
        if plan.uid == 0:
            raise JailError("id maps", "the cell would run as the host's root")
        if plan.isolation == "chroot":
            _check_chroot(plan)
        if "landlock" in plan.required and not landlock.abi():
            raise JailError("landlock", "it is required, and this kernel does not have it")
        if plan.network == "loopback":
            _prepare_network()
        if plan.content:
            _prepare_content()
        if plan.component:
            _prepare_component()
        code = fds[0]
        wall = plan.limits.wall
        deadline = None if wall is None else time.monotonic() + wall
        artifact = self._host.find(plan, code)
        if artifact is not None and only_compile:
            os.close(artifact)
            return Outcome("exit")
        outcome = Outcome("stale")
        if artifact is not None:
            outcome = self._run(plan, artifact, fds, deadline)
        if outcome.kind == "stale":
            # Not found, or found and refused by the engine, before anything of it ran.
            wire.send(self._channel, wire.COMPILING)
            compiled = self._compile(plan, code, deadline)
            if isinstance(compiled, Outcome):
                return compiled
            lost = self._host.keep(plan, compiled)
            if only_compile:
                os.close(compiled)
                return Outcome("exit", what=lost)
            self._wait_to_go_on()
            outcome = self._run(plan, compiled, fds, deadline)
        return outcome

    def _wait_to_go_on(self) -> None:
        """Wait until the runner shows nothing more of a compilation where the cell may write.

        Raises:
            OSError: EPIPE if the runner is gone.
        """
        wire.send(self._channel, wire.COMPILED)
        if wire.receive(self._channel) is None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _run(self, plan: Plan, artifact: int, fds: list[int], deadline: float | None) -> Outcome:
        """Run a cell from its compiled form, which is closed."""
        with ExitStack() as stack:
            stack.callback(os.close, artifact)
            sources = fds[1:]
            content = [sources.pop()] if plan.content else []
            cloned = os.geteuid() == 0
            if cloned:
                sources = _clone_trees(plan, sources, stack)
            filters = _filters_for(plan)
            given = (artifact, *sources, *content)
            child = self._spawn(Work("cell", plan, given, filters, self._host.run, cloned))

            def started() -> None:
                _close_all(fds)
                wire.send(self._channel, wire.STARTED, [child.pidfd])

            return watch.wait(child, self._channel.fileno(), plan.limits, deadline, started)

    def _compile(self, plan: Plan, code: int, deadline: float | None) -> Outcome | int:
        """Compile a cell in a jail of its own, which holds its bytes and room for the result.

        Returns:
            A descriptor of the sealed artifact; or how the compilation ended, if not well.
        """
        artifact, messages = compiling.new_memory("artifact"), compiling.new_memory("messages")
        try:
            jailed = compiling.plan_for(plan)
            given = (code, artifact, messages)
            filters = _filters("load", "compile")
            child = self._spawn(Work("compiler", jailed, given, filters, self._host.compile))
            outcome = watch.wait(
                child, self._channel.fileno(), jailed.limits, deadline, lambda: None
            )
            failure = compiling.failure(outcome, messages)
            if failure is not None:
                return failure
            compiling.seal(artifact)
            kept, artifact = artifact, -1
            return kept
        finally:
            os.close(messages)
            if artifact >= 0:
                os.close(artifact)

    def _spawn(self, work: Work) -> watch.Child:
        """Clone a child into new namespaces, map its ids, limit it, and let it go.

        Raises:
            JailError: If the clone or a step of this side fails; then no child is left.
        """
        plan = work.plan
        cgroup = _cgroup(plan)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            _remove(cgroup)
            raise JailError(
                "lifeline", f"socketpair: {error.strerror}", error.errno or 0
            ) from error
        try:
            into = None if cgroup is None else cgroup.clone_into
            pid, pidfd = syscalls.fork_into(namespaces.flags(plan.isolation), into)
        except OSError as error:
            ours.close()
            theirs.close()
            _remove(cgroup)
            raise JailError("namespaces", f"clone3: {error.strerror}", error.errno or 0) from error
        if pid == 0:
            ours.close()
            self._channel.close()
            _be_jailed(work, theirs.detach(), cgroup)
        theirs.close()
        child = watch.Child(pid, pidfd, ours.detach(), cgroup)
        try:
            process = namespaces.proc_directory(pidfd)
            if plan.isolation == "full":
                namespaces.write_id_maps(process, plan.uid, plan.gid)
            session.prefer_as_oom_victim(process)
            lifeline.let_go(child.line)
        except OSError as error:
            child.kill()
            _remove(cgroup)
            what = f"{error.filename or 'lifeline'}: {error.strerror}"
            raise JailError("id maps", what, error.errno or 0) from error
        return child


def _close_all(fds: list[int]) -> None:
    """Close descriptors, and forget their numbers."""
    while fds:
        os.close(fds.pop())


def _check_chroot(plan: Plan) -> None:
    """Hold that a plan asks for nothing that the weaker isolation cannot give.

    Raises:
        JailError: If it does.
    """
    if os.geteuid() != 0:
        raise JailError("root", "only root can use --isolation chroot", errno.EPERM)
    for asked, what in (
        (plan.directories, "a directory"),
        (plan.limits.scratch, "--scratch"),
        (plan.network != "none", "--net loopback"),
        (plan.files, "a file of a component"),
    ):
        if asked:
            raise JailError(
                "root",
                f"{what} takes a namespace of its own: leave it out, or use --isolation full",
            )


def _prepare_network() -> None:
    """Load what a cell's network takes, before there is no file to load it from.

    Raises:
        JailError: If it is not installed.
    """
    try:
        network.prepare()
    except ImportError as error:
        raise JailError("network", str(error)) from error


def _prepare_content() -> None:
    """Load what asks for content, before there is no file to load it from."""
    import sandbox.wasi.content  # noqa: F401


def _prepare_component() -> None:
    """Load what runs components, which most cells are not."""
    import sandbox.wasi.component  # noqa: F401


def _filters_for(plan: Plan) -> Filters:
    """Return the filters of a cell's process: the narrowest that serve it.

    Raises:
        JailError: As :func:`_filters`.
    """
    if plan.component:
        return _filters("load-component", "run-component")
    wide = plan.directories or plan.limits.scratch
    return _filters("load", "run-directories" if wide else "run")


def _filters(first: seccomp.Profile, last: seccomp.Profile) -> Filters:
    """Return the filters of a process, compiled now or before.

    Raises:
        JailError: If libseccomp is missing or refuses.
    """
    return Filters(seccomp.build(first), seccomp.build(last))


def _cgroup(plan: Plan) -> cgroups.Cgroup | None:
    """Make a cell's control group, where the machine gives one.

    Raises:
        JailError: If it is required and there is none, or making it fails.
    """
    if plan.isolation == "chroot" and "cgroup" not in plan.required:
        return None  # where namespaces are refused, nobody delegates control groups either
    bounds = plan.limits
    memory = bounds.memory
    if memory is not None:
        memory += bounds.scratch + limits.HOST_MEMORY
    try:
        made = cgroups.Cgroup.create(memory, bounds.pids)
    except OSError as error:
        what = f"{error.filename or 'mkdir'}: {error.strerror}"
        raise JailError("cgroup", what, error.errno or 0) from error
    if made is None and "cgroup" in plan.required:
        raise JailError("cgroup", "it is required, and none may be made here")
    return made


def _remove(cgroup: cgroups.Cgroup | None) -> None:
    if cgroup is not None:
        cgroup.remove()


def _clone_trees(plan: Plan, sources: list[int], stack: ExitStack) -> list[int]:
    """Replace each granted directory, and each file of a component, by a mount that begins there.

    Raises:
        JailError: If the kernel refuses it.
    """
    replaced = []
    files = set(plan.files)
    for grant, source in zip(plan.grants, sources, strict=True):
        if grant.guest is None and grant not in files:
            replaced.append(source)
            continue
        try:
            tree = mounts.clone_tree(source, read_only="w" not in grant.mode)
        except OSError as error:
            what = f"{grant.name}: {error.filename or 'open_tree'}: {error.strerror}"
            raise JailError("directories", what, error.errno or 0) from error
        stack.callback(os.close, tree)
        replaced.append(tree)
    return replaced


def _be_jailed(work: Work, line: int, cgroup: cgroups.Cgroup | None) -> NoReturn:
    """Be the process: jail it, do its work, report, end."""
    plan = work.plan

    def report(outcome: Outcome) -> NoReturn:
        try:
            os.write(line, _fit(outcome).encode())
        finally:
            # No interpreter's end: what it would do belongs to the spawner's copy.
            os._exit(0)

    try:
        if cgroup is not None:
            _join(cgroup)
        listing = descriptors.open_listing()
        code, *sources = work.fds
        content = [sources.pop()] if plan.content else []
        targets = {grant.target for grant in plan.grants}
        null = os.dup(0)  # the spawner's, which is /dev/null
        parked = descriptors.park((line, code, null, listing, *content), targets, listing)
        own = Own(*parked[:4])
        if content:
            own = own._replace(content=parked[4])
        line = own.line
        jail = Jail(plan, own, work.filters, work.name)

        def seal(also: Collection[int] = ()) -> None:
            jail.seal(also)
            os.write(line, watch.ENTERED)

        jail.enter(sources, cloned=work.cloned)
        outcome = work.body(Inside(plan, jail.own, seal, report))
    except JailError as error:
        outcome = Outcome("jail", error.errno, error.what, error.step)
    except BaseException as error:
        outcome = Outcome("fault", what=f"{type(error).__name__}: {error}")
    report(outcome)


def _join(cgroup: cgroups.Cgroup) -> None:
    """Go into the control group, before anything is used that it should count.

    Raises:
        JailError: If that fails.
    """
    try:
        cgroup.join()
    except OSError as error:
        raise JailError("cgroup", f"join: {error.strerror}", error.errno or 0) from error


def _fit(outcome: Outcome) -> Outcome:
    """Cut the text so that the encoded outcome (six bytes a character at most) fits a message."""
    return outcome._replace(what=outcome.what[: watch.MOST_OUTCOME // 6 - 64])

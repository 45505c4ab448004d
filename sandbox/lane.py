"""One connection to the spawner: its requests, one after the other, each a cell's whole way."""

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol

from sandbox import cgroups, compiling, landlock, mounts, waiting, watch, wire
from sandbox.admission import Admission
from sandbox.errors import JailError
from sandbox.order import Name, check_chroot, order
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from sandbox.ready import ReadyJails
from sandbox.waiting import Ids
from sandbox.zygote import Zygote


class Store(Protocol):
    """What has the compiled forms of cells."""

    def find(self, plan: Plan, code: int) -> int | None:
        """Return a descriptor of a cell's compiled form, if there is one that can be used."""

    def keep(self, plan: Plan, artifact: int) -> str:
        """Keep a compiled form for later, or return why it cannot be kept."""


class Lane:
    """A connection, and what its cells are made of. What is the same for all lanes is shared."""

    def __init__(
        self, channel: socket.socket, store: Store, zygote: Zygote, ready: ReadyJails
    ) -> None:
        """Serve a connection.

        Args:
            channel: The connection to the runner; see :mod:`sandbox.wire` for what travels on it.
            store: What has the compiled forms of cells.
            zygote: What jails are cloned from.
            ready: The jails that are there already.
        """
        self._channel = channel
        self._store = store
        self._zygote = zygote
        self._ready = ready
        self._starting = False
        # Whether the last request's cell was let go.
        self._started = False
        # Control groups of what has ended. Removing one takes longer than the runner should wait.
        self._left: list[cgroups.Cgroup] = []

    def serve(self) -> None:
        """Run a cell for each request, one after the other, until the connection ends."""
        try:
            while (request := wire.receive(self._channel)) is not None:
                payload, fds = request
                self._is_starting(True)
                try:
                    plan = Plan.decode(payload.removeprefix(wire.COMPILE))
                    only = payload.startswith(wire.COMPILE)
                    outcome = self._serve_one(plan, fds, only_compile=only)
                except JailError as error:
                    outcome = Outcome("jail", error.errno, error.what, error.step)
                except (BrokenPipeError, ConnectionResetError):
                    raise
                except OSError as error:
                    what = f"{error.filename or 'spawner'}: {error.strerror}"
                    outcome = self._failure(what, error.errno or 0)
                except Exception as error:
                    # What a runner of another version sends, or a defect: of this connection only.
                    outcome = self._failure(f"{type(error).__name__}: {error}")
                finally:
                    self._is_starting(False)
                    wire.close_all(fds)
                self._started = False
                wire.send(self._channel, outcome.encode())
                self._clear_up()
                self._ready.rest()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            pass  # the runner is gone, and its cell went with it
        except ValueError:
            pass  # what came is no request: whoever sent it hears the connection end
        except OSError as error:
            # No number is left for the descriptors of a request, which is lost.
            with suppress(OSError):
                what = f"recvmsg: {error.strerror}"
                wire.send(self._channel, self._failure(what, error.errno or 0).encode())
        finally:
            self._clear_up()
            self._channel.close()

    def _is_starting(self, yes: bool) -> None:
        """Note whether there is a cell that has not started: until then others had better wait."""
        if yes != self._starting:
            self._starting = yes
            (self._ready.begin if yes else self._ready.end)()

    def _failure(self, what: str, code: int = 0) -> Outcome:
        """Return what a failure of this side comes to: only before the start has nothing run."""
        if self._started:
            return Outcome("fault", what=what)
        return Outcome("jail", code, what, "spawner")

    def _clear_up(self) -> None:
        """Remove what the last cell has left."""
        while self._left:
            self._left.pop().remove()

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
        _check_ids(plan)
        if plan.isolation == "chroot":
            check_chroot(plan)
        if "landlock" in plan.required and not landlock.abi():
            raise JailError("landlock", "it is required, and this kernel does not have it")
        if not fds:
            raise ValueError("a plan without a cell")
        code = fds[0]
        wall = plan.limits.wall
        deadline = None if wall is None else time.monotonic() + wall
        artifact = self._store.find(plan, code)
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
            lost = self._store.keep(plan, compiled)
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
        self._is_starting(False)  # the answer may never come, and nobody else is to wait for it
        answer = wire.receive(self._channel)
        self._is_starting(True)
        if answer is not None:
            wire.close_all(answer[1])
        if answer is None or answer[0] != wire.GO_ON:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _run(self, plan: Plan, artifact: int, fds: list[int], deadline: float | None) -> Outcome:
        """Run a cell from its compiled form, which is closed."""
        with ExitStack() as stack:
            stack.callback(os.close, artifact)
            sources = fds[1:]
            content = sources.pop() if plan.content else None
            cloned = bool(plan.directories or plan.files) and mounts.may_clone()
            if cloned:
                sources = _clone_trees(plan, sources, stack)
            admission = Admission(plan, artifact, sources, content, cloned)
            child = self._jailed("cell", admission, deadline)

            def started() -> None:
                self._started = True
                self._is_starting(False)
                wire.close_all(fds)
                wire.send(self._channel, wire.STARTED, [child.pidfd])

            return self._wait(child, plan, deadline, started)

    def _compile(self, plan: Plan, code: int, deadline: float | None) -> Outcome | int:
        """Compile a cell in a jail of its own, which holds its bytes and room for the result.

        Returns:
            A descriptor of the sealed artifact; or how the compilation ended, if not well.
        """
        artifact = compiling.new_memory("artifact")
        messages = -1
        try:
            messages = compiling.new_messages()
            jailed = compiling.plan_for(plan)
            what = Admission(jailed, code, (artifact, messages), None, cloned=False)
            child = self._jailed("compiler", what, deadline)
            outcome = self._wait(child, jailed, deadline)
            failure = compiling.failure(outcome, messages)
            if failure is not None:
                return failure
            compiling.seal(artifact)
            kept, artifact = artifact, -1
            return kept
        finally:
            for memory in (messages, artifact):
                if memory >= 0:
                    os.close(memory)

    def _wait(
        self,
        child: watch.Child,
        plan: Plan,
        deadline: float | None,
        on_entered: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Wait for the end of a jailed process; see :func:`sandbox.watch.wait`."""
        if child.cgroup is not None:
            self._left.append(child.cgroup)
        return watch.wait(child, self._channel.fileno(), plan.limits, deadline, on_entered)

    def _jailed(self, name: Name, what: Admission, deadline: float | None) -> watch.Child:
        """Take a jail that is ready, or have one made, and give it what it is to hold.

        Raises:
            JailError: If a step of this side fails; then no process is left.
        """
        plan = what.plan
        kind = order(name, plan, cloned=what.cloned)
        ids = Ids(plan.uid, plan.gid)
        jail = self._ready.take(kind, ids)
        if jail is None:
            # Where namespaces are refused, nobody delegates control groups either.
            grouped = plan.isolation != "chroot" or "cgroup" in plan.required
            jail = waiting.make(self._zygote, kind, ids, plan.limits, grouped=grouped)
        try:
            if "cgroup" in plan.required and jail.child.cgroup is None:
                raise JailError("cgroup", "it is required, and none may be made here")
            jail.admit(what, deadline)
        except BaseException:
            jail.give_up()
            raise
        return jail.child


# 32 bits, of which the last number means that there is none; the kernel drops what is above.
_MOST_ID = (1 << 32) - 2


def _check_ids(plan: Plan) -> None:
    """Hold that a cell runs as nobody that means something.

    Raises:
        JailError: If it does not.
    """
    # An ordinary user's group is the caller's own, whichever that is.
    least = 1 if os.geteuid() == 0 else 0
    if not 1 <= plan.uid <= _MOST_ID or not least <= plan.gid <= _MOST_ID:
        raise JailError("id maps", "the cell would run as the host's root, or as nobody there is")


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
        except JailError as error:
            raise JailError(error.step, f"{grant.shown}: {error.what}", error.errno) from error
        except OSError as error:
            what = f"{grant.shown}: {error.filename or 'open_tree'}: {error.strerror}"
            raise JailError("directories", what, error.errno or 0) from error
        stack.callback(os.close, tree)
        replaced.append(tree)
    return replaced

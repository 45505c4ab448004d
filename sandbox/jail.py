"""How a process jails itself: every step in its order, in one function."""

import os
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

from sandbox import (
    chroot,
    code,
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
)
from sandbox.errors import JailError
from sandbox.grants import Grant
from sandbox.inside import Own
from sandbox.plan import Plan

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Filters(NamedTuple):
    """The system call filters of one kind of process, compiled; see :mod:`sandbox.seccomp`.

    Attributes:
        first: From the end of the set-up until the code is loaded.
        last: While code runs that may be hostile; the same or narrower.
    """

    first: bytes
    last: bytes


class Jail:
    """The jail of this process: what :meth:`enter` begins and :meth:`seal` ends."""

    def __init__(self, plan: Plan, own: Own, filters: Filters, name: str) -> None:
        """Describe a jail; nothing happens yet.

        Args:
            plan: What the cell was promised.
            own: ww's own descriptors.
            filters: What system calls remain.
            name: What the process is called.
        """
        self.plan = plan
        self.own = own
        self._filters = filters
        self._name = name

    def enter(self, sources: Sequence[int], *, cloned: bool) -> None:
        """Jail the calling process, which was just cloned into namespaces of its own.

        No step can be skipped, and none is repeated. Whatever fails ends the cell before it
        began: the caller must not go on after an error.

        Args:
            sources: The granted descriptors' present numbers, in the order of the plan's grants.
            cloned: Whether those of directories, and of a component's files, are mounts of their
                own already, made by a spawner that is privileged outside.

        Raises:
            JailError: With the step's name.
        """
        # The spawner cloned this process, and has made what it makes for it when this returns.
        _step("id maps", lifeline.wait, self.own.line)
        present = dict(zip(self.plan.grants, sources, strict=True))
        if self.plan.isolation == "full":
            self._leave_host(present, cloned=cloned)
        else:
            self._leave_files()
        self._take_away(present)

    def _leave_host(self, present: dict[Grant, int], *, cloned: bool) -> None:
        """Get a root, a network and ids of its own, in namespaces that it was cloned into.

        Args:
            present: The granted descriptors; those of directories, and of a component's files, are
                replaced.
            cloned: As of :meth:`enter`.
        """
        plan = self.plan
        links = {g.name: g.target for g in plan.grants if g.pathlink and g.guest is None and g.name}
        targets = [g.target for g in plan.directories]
        files = {g.name: g for g in plan.files if g.name}
        paths = {mounts.tree_path(g.target): g for g in plan.directories}
        paths.update({mounts.file_path(name): grant for name, grant in files.items()})
        scratch = plan.limits.scratch
        _step("ids", namespaces.adopt_ids)
        _step("mount propagation", mounts.make_private)
        trees = {
            path: present[grant]
            if cloned
            else _step(
                "directories",
                mounts.reopen_tree,
                present[grant],
                read_only="w" not in grant.mode,
            )
            for path, grant in paths.items()
        }
        root = _step("root", mounts.make_root, links, targets, list(files), scratch)
        # Without a pathlink nothing needs proc, and what is not there gives nothing away.
        proc = _step("proc", mounts.make_proc) if links else None
        _step("attach root", mounts.attach, root, proc, trees, scratch)
        _step("pivot_root", mounts.leave_old_root)
        _step("read-only root", mounts.seal_root)
        # Without it, a new network namespace holds nothing but a `lo` that is down.
        if plan.network == "loopback":
            _step("network", network.raise_loopback)
        opened, temporary = _step("directories", mounts.open_directories, targets, scratch)
        if temporary is not None:
            self.own = self.own._replace(scratch=self._park(temporary))
        if files:
            modes = {name: grant.mode for name, grant in files.items()}
            granted, directory = _step("files", mounts.open_files, modes)
            self.own = self.own._replace(files=self._park(directory))
            present.update({grant: granted[name] for name, grant in files.items()})
        present.update({grant: opened[grant.target] for grant in plan.directories})
        _step("session", session.rename_host)
        _step("session", session.leave_keyring)

    def _park(self, fd: int) -> int:
        """Move one of ww's own descriptors to a number that no grant has, and return that."""
        targets = {grant.target for grant in self.plan.grants}
        return _step("descriptors", descriptors.park, (fd,), targets, self.own.listing)[0]

    def _leave_files(self) -> None:
        """Get an empty root and unprivileged ids, where the machine gives no namespaces to root."""
        _step("root", chroot.leave_files)
        _step("ids", chroot.change_ids, self.plan.uid, self.plan.gid)

    def _take_away(self, present: dict[Grant, int]) -> None:
        """Give up everything that was not granted."""
        plan, own = self.plan, self.own
        table = [(present[g], g.target, g.cloexec) for g in plan.grants]
        _step("descriptors", descriptors.place, table, self._kept(), own.listing)
        _step("session", session.isolate, self._name)
        _step("limits", self._limit)
        _step("code", code.freeze, own.listing)
        _step("privileges", privileges.drop_all)
        # Changes of ids and privileges undo it, and the filters forbid it.
        _step("lifeline", lifeline.tie, own.line)
        files = [(g.target, g.mode) for g in plan.grants if g.pathlink and g.guest is None]
        files += [(g.target, g.mode) for g in plan.files]
        directories = [(g.target, g.mode) for g in plan.directories]
        if own.scratch >= 0:
            directories.append((own.scratch, "rw"))
        if own.files >= 0:
            directories.append((own.files, "r"))
        _step("landlock", landlock.restrict, [own.code], files, directories)
        # The code is opened by its number from here.
        _step("descriptors", os.fchdir, own.listing)
        _step("seccomp", seccomp.install, self._filters.first)

    def seal(self, also: Collection[int] = ()) -> None:
        """Take away what loading the code needed; to be called before any of it runs.

        Args:
            also: Descriptors beside the planned ones that the code's host has opened and needs.

        Raises:
            JailError: With the step's name.
        """
        own = self.own
        _step("descriptors", os.chdir, "/")
        kept = {fd for fd in self._kept() if fd != own.code}
        targets = {grant.target for grant in self.plan.grants}
        # The code's file goes, and the copy of its descriptor that the engine holds on to.
        _step("descriptors", descriptors.keep_only, {*targets, *kept, *also}, own.listing)
        _step("descriptors", os.close, own.listing)
        _step("seccomp", seccomp.install, self._filters.last)

    def _kept(self) -> list[int]:
        return [fd for fd in self.own if fd >= 0]

    def _limit(self) -> None:
        """Take the measure of what is open now, and set the limits above it."""
        grants = self.plan.grants
        writable = [g.target for g in grants if "w" in g.mode and g.guest is None]
        highest = max([*self._kept(), *(g.target for g in grants)])
        limits.apply(self.plan.limits, limits.ceilings(writable, highest, self.own.listing))


def _step(name: str, act: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run one step and give its failure the step's name.

    Raises:
        JailError: If the step fails, whatever it raises.
    """
    try:
        return act(*args, **kwargs)
    except JailError:
        raise
    except OSError as error:
        call = f"{error.filename}: " if error.filename else ""
        what = f"{call}{error.strerror or os.strerror(error.errno or 0)}"
        raise JailError(name, what, error.errno or 0) from error
    except Exception as error:
        raise JailError(name, repr(error)) from error

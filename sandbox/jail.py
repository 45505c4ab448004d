"""How a process jails itself: every step in its order, in one function."""

import os
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from sandbox import (
    admission,
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
from sandbox.order import Order, profiles
from sandbox.plan import Plan

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Jail:
    """The jail of this process: what :meth:`enter` begins and :meth:`seal` ends.

    Attributes:
        plan: What the cell was promised; from the step at which it comes.
        own: ww's own descriptors, likewise.
    """

    plan: Plan
    own: Own

    def __init__(self, kind: Order, line: int, channel: int, null: int, listing: int) -> None:
        """Describe a jail; nothing happens yet.

        Args:
            kind: What is known of it before its plan.
            line: The socket to the spawner.
            channel: The connection through which the plan comes.
            null: /dev/null.
            listing: From :func:`sandbox.descriptors.open_listing`.
        """
        self._kind = kind
        self.line = line
        self._channel = channel
        self._null = null
        self._listing = listing
        self._present: dict[Grant, int] = {}
        self._cloned = False

    def enter(self, rehearse: Callable[[int], None]) -> None:
        """Jail the calling process, which was just cloned into namespaces of its own.

        No step can be skipped, and none is repeated. Whatever fails ends the cell before it
        began: the caller must not go on after an error.

        Args:
            rehearse: Gets the process ready for a cell while it waits for one; it takes a
                descriptor of /dev/null.

        Raises:
            JailError: With the step's name.
        """
        kind = self._kind
        # The spawner had this process cloned, and has made what it makes for it when this returns.
        _step("id maps", lifeline.wait, self.line)
        own = {0, 1, 2, self.line, self._channel, self._null, self._listing}
        _step("descriptors", descriptors.keep_only, own, self._listing)
        if kind.early:
            self._admit()
        proc = None
        if kind.isolation == "full":
            proc = self._leave_host()
        else:
            self._leave_files()
        if kind.ahead:
            # It may wait for long. When that is over, the same is done again for the cell.
            _step("lifeline", lifeline.tie, self.line)
            _step("rehearsal", rehearse, self._null)
        _step("code", code.freeze, self._listing)
        _step("privileges", privileges.drop_bounding_set)
        if not kind.early:
            self._admit()
        if kind.isolation == "full":
            self._furnish(proc)
        self._take_away()

    def _admit(self) -> None:
        """Wait for the plan and for the descriptors that it grants."""
        what = _step("admission", admission.wait, self.line, self._channel)
        self.plan = what.plan
        self._present = dict(zip(what.plan.grants, what.sources, strict=True))
        self._cloned = what.cloned
        targets = {grant.target for grant in what.plan.grants}
        content = [] if what.content is None else [what.content]
        own = (self.line, what.code, self._null, self._listing, *content)
        parked = _step("descriptors", descriptors.park, own, targets, self._listing)
        self.own = Own(*parked[:4])
        if content:
            self.own = self.own._replace(content=parked[4])
        self.line, self._null, self._listing = self.own.line, self.own.null, self.own.listing

    def _leave_host(self) -> int | None:
        """Get a root, a network and ids of its own, in namespaces that it was cloned into.

        Returns:
            A descriptor of a proc for the root, if this kind of jail has one.
        """
        _step("ids", namespaces.adopt_ids)
        _step("mount propagation", mounts.make_private)
        if self._kind.early:
            self._reopen()
        root = _step("root", mounts.make_root)
        # Without a pathlink nothing needs proc, and what is not there gives nothing away.
        proc = _step("proc", mounts.make_proc) if self._kind.proc else None
        _step("attach root", mounts.attach_root, root)
        _step("pivot_root", mounts.leave_old_root)
        _step("session", session.rename_host)
        _step("session", session.leave_keyring)
        return proc

    def _reopen(self) -> None:
        """Make mounts of their own of what is attached later, while the host's files are there."""
        for grant in (*self.plan.directories, *self.plan.files):
            fd, read_only = self._present[grant], "w" not in grant.mode
            try:
                tree = _step("directories", mounts.reopen_tree, fd, read_only=read_only)
            except JailError as error:
                raise JailError(error.step, f"{grant.shown}: {error.what}", error.errno) from error
            self._present[grant] = tree

    def _furnish(self, proc: int | None) -> None:
        """Fill the new root with what the plan grants, and make it read-only.

        Args:
            proc: A descriptor of a proc for it, which is closed.
        """
        plan, present = self.plan, self._present
        links = {g.name: g.target for g in plan.grants if g.pathlink and g.guest is None and g.name}
        targets = [g.target for g in plan.directories]
        files = {g.name: g for g in plan.files if g.name}
        paths = {mounts.tree_path(g.target): g for g in plan.directories}
        paths.update({mounts.file_path(name): grant for name, grant in files.items()})
        trees = {path: present[grant] for path, grant in paths.items()}
        scratch = plan.limits.scratch
        if proc is not None and not links:
            os.close(proc)
            proc = None
        places = {"proc": proc is not None, "scratch": scratch > 0}
        _step("furnish root", mounts.furnish, links, targets, list(files), **places)
        _step("attach", mounts.attach, proc, trees, scratch)
        _step("read-only root", mounts.seal_root)
        # Without it, a new network namespace holds nothing but a `lo` that is down.
        if plan.network == "loopback":
            _step("network", network.raise_loopback)
        shown = {grant.target: grant.shown for grant in plan.directories}
        opened, temporary = _step("directories", mounts.open_directories, shown, scratch)
        if temporary is not None:
            self.own = self.own._replace(scratch=self._park(temporary))
        if files:
            modes = {name: grant.mode for name, grant in files.items()}
            granted, directory = _step("files", mounts.open_files, modes)
            self.own = self.own._replace(files=self._park(directory))
            present.update({grant: granted[name] for name, grant in files.items()})
        present.update({grant: opened[grant.target] for grant in plan.directories})

    def _park(self, fd: int) -> int:
        """Move one of ww's own descriptors to a number that no grant has, and return that."""
        targets = {grant.target for grant in self.plan.grants}
        return _step("descriptors", descriptors.park, (fd,), targets, self.own.listing)[0]

    def _leave_files(self) -> None:
        """Get an empty root and unprivileged ids, where the machine gives no namespaces to root."""
        _step("root", chroot.leave_files)
        _step("ids", chroot.change_ids, self.plan.uid, self.plan.gid)

    def _take_away(self) -> None:
        """Give up everything that was not granted."""
        plan, own = self.plan, self.own
        table = [(self._present[g], g.target, g.cloexec) for g in plan.grants]
        _step("descriptors", descriptors.place, table, self._kept(), own.listing)
        _step("session", session.isolate, self._kind.name)
        _step("limits", self._limit)
        _step("code", code.verify, own.listing)
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
        _step("seccomp", seccomp.install, seccomp.build(self._profiles()[0]))

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
        _step("seccomp", seccomp.install, seccomp.build(self._profiles()[1]))

    def _profiles(self) -> tuple[seccomp.Profile, seccomp.Profile]:
        """Return the first filter and the last, which were compiled before this was cloned."""
        return profiles(self._kind.name, self.plan)

    def _kept(self) -> list[int]:
        return [fd for fd in self.own if fd >= 0]

    def _limit(self) -> None:
        """Take the measure of what is open now, and set the limits above it."""
        grants = self.plan.grants
        writable: list[int] | None
        if any("w" in g.mode for g in self.plan.directories) and not self.plan.component:
            # A file in there may have any size. The host counts what is written, to the byte; only
            # of a component it does not, so that keeps the limit that the kernel can hold.
            writable = None
        else:
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

"""How a process jails itself: every step in its order, in one function."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

from sandbox import descriptors, lifeline, limits, mounts, namespaces, privileges, session
from sandbox.errors import JailError
from sandbox.plan import Plan

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Own(NamedTuple):
    """ww's own descriptors in the cell's process, at numbers that no grant has.

    Attributes:
        line: The socket to the spawner: one byte comes in, the outcome goes out.
        cell: The cell's bytes.
        null: /dev/null, for the numbers at which libraries write messages unasked.
        listing: The list of this process's descriptors; closed by :func:`enter`.
    """

    line: int
    cell: int
    null: int
    listing: int


def enter(plan: Plan, sources: Sequence[int], own: Own) -> None:
    """Jail the calling process, which was just cloned into namespaces of its own.

    No step can be skipped, and none is repeated. Whatever fails ends the cell before it began:
    the caller must not go on after an error.

    Args:
        plan: What the cell was promised.
        sources: The granted descriptors' present numbers, in the order of the plan's grants.
        own: ww's own descriptors.

    Raises:
        JailError: With the step's name.
    """
    links = {g.name: g.target for g in plan.grants if g.pathlink and g.name is not None}
    table = [(s, g.target, g.cloexec) for s, g in zip(sources, plan.grants, strict=True)]

    # The spawner cloned this process into its namespaces and writes the id maps now.
    _step("id maps", lifeline.wait, own.line)
    _step("ids", namespaces.adopt_ids)
    _step("mount propagation", mounts.make_private)
    root = _step("root", mounts.make_root, links)
    # Without a pathlink nothing needs proc, and what is not there gives nothing away.
    proc = _step("proc", mounts.make_proc) if links else None
    _step("attach root", mounts.attach, root, proc)
    _step("pivot_root", mounts.leave_old_root)
    _step("read-only root", mounts.seal_root)
    # The network needs no step: a new network namespace holds nothing but a `lo` that is down.
    _step("descriptors", descriptors.place, table, own[:3], own.listing)
    _step("session", session.isolate)
    _step("limits", limits.apply)
    _step("privileges", privileges.drop_all)
    # Last, because changes of ids and privileges undo it.
    _step("lifeline", lifeline.tie, own.line)


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

"""What kind of jail is made, before anything of a cell's plan is known in there.

The process that is cloned for a jail knows no more than this, whether it waits for a cell that
nobody has asked for yet or its plan follows at once. So a jail that was made in advance serves
every plan of its kind.
"""

import errno
import json
import os
from typing import Any, Literal, NamedTuple

from sandbox import syscalls
from sandbox.errors import JailError
from sandbox.plan import Plan
from sandbox.policy import Isolation
from sandbox.seccomp import Profile

# What a jailed process does, and what ps(1) shows as its name.
Name = Literal["cell", "compiler"]
# What only some cells need, and what cannot be loaded any more when there is no file to load from.
Need = Literal["component", "content", "network"]


class Order(NamedTuple):
    """A kind of jail.

    Attributes:
        name: What its process does.
        isolation: How it is kept apart.
        profiles: The system call filters that it can be given.
        early: Whether the plan has to be there before the host's files are left.
        proc: Whether there is a proc, without which there are no pathlinks.
        needs: What has to be loaded.
        fuel: Whether its engine counts fuel.
        ahead: Whether it is made before there is a cell for it, so that there is time.
    """

    name: Name
    isolation: Isolation
    profiles: tuple[Profile, ...]
    early: bool
    proc: bool
    needs: tuple[Need, ...]
    fuel: bool
    ahead: bool = False

    def serves(self, other: "Order") -> bool:
        """Tell whether a jail of this kind can be used where the other was asked for."""
        return (
            self._replace(
                profiles=other.profiles, proc=other.proc, needs=other.needs, ahead=other.ahead
            )
            == other
            and {*self.profiles} >= {*other.profiles}
            and {*self.needs} >= {*other.needs}
            and self.proc >= other.proc
        )

    def encode(self) -> bytes:
        """Return the order as bytes for :meth:`decode`."""
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Order":
        """Read an order that :meth:`encode` wrote; both sides are the spawner's own."""
        fields: Any = json.loads(data)
        name, isolation, profiles, early, proc, needs, fuel, ahead = fields
        return cls(name, isolation, tuple(profiles), early, proc, tuple(needs), fuel, ahead)


# The kind that serves most cells: those that are core modules without content and network.
ORDINARY = Order(
    name="cell",
    isolation="full",
    profiles=("load", "run", "run-reading", "load-directories", "run-directories"),
    early=False,
    proc=True,
    needs=(),
    fuel=False,
    ahead=True,
)


def order(name: Name, plan: Plan, *, cloned: bool) -> Order:
    """Return the kind of jail that a plan takes.

    Args:
        name: What is to be done with the cell.
        plan: Its plan.
        cloned: Whether the spawner, being root, has copied the mounts of what is granted.
    """
    cell = name == "cell"
    needs: list[Need] = []
    if plan.component:
        needs.append("component")
    if cell and plan.content:
        needs.append("content")
    if plan.network == "loopback":
        needs.append("network")
    early = plan.isolation == "chroot" or (not cloned and bool(plan.directories or plan.files))
    return Order(
        name=name,
        isolation=plan.isolation,
        profiles=profiles(name, plan),
        early=early,
        proc=any(g.pathlink and g.guest is None and g.name for g in plan.grants),
        needs=tuple(needs),
        fuel=plan.limits.fuel is not None,
    )


def profiles(name: Name, plan: Plan) -> tuple[Profile, Profile]:
    """Return the filters of a jailed process: the narrowest that serve it.

    Returns:
        The one from the end of the set-up until the code is loaded; and the one while code runs
        that may be hostile, which is the same or narrower.
    """
    if name == "compiler":
        return "load", "compile"
    if plan.component:
        return "load-component", "run-component"
    if plan.limits.scratch or any("w" in grant.mode for grant in plan.directories):
        return "load-directories", "run-directories"
    return "load", "run-reading" if plan.directories else "run"


def check_chroot(plan: Plan) -> None:
    """Hold that a plan asks for nothing that the weaker isolation cannot give.

    Args:
        plan: What is to be run, or as much of it as is known.

    Raises:
        JailError: If it does.
    """
    if os.geteuid() != 0:
        raise JailError("root", "only root can use --isolation chroot", errno.EPERM)
    if not syscalls.capability_sets()[0] >> syscalls.CAP_KILL & 1:
        # The cell has another user id, and no namespace of which this process is the owner.
        raise JailError(
            "root",
            "without CAP_KILL nobody could end the cell: have it kept, or use --isolation full",
            errno.EPERM,
        )
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

"""The frozen plan of one cell: the message from the runner to the spawner."""

from __future__ import annotations

from sandbox.encoding import encode
from sandbox.grants import FIRST_PREOPEN, LAST_STANDARD, Grant
from sandbox.policy import ISOLATIONS, NETWORKS, Limits
from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from sandbox.policy import Isolation, Network

# How a component begins: magic number, version and layer (component-model/design/mvp/Binary.md).
COMPONENT_MAGIC: Final = b"\0asm\x0d\0\x01\0"

# A SHA-256 in hexadecimal digits. It becomes a file's name, so nothing else may pass for one.
_DIGEST_LENGTH: Final = 64
_HEXADECIMAL: Final = frozenset("0123456789abcdef")


class Plan(Record):
    """Everything the spawner is told about a cell, but for the descriptors that travel with it.

    Attributes:
        grants: The cell's descriptors, in target order.
        argv: The cell's arguments; the first is its name.
        env: The cell's whole environment.
        uid: The user id on the host that the cell's process runs as; never 0.
        gid: The group id on the host: an ordinary caller's own, whichever that is.
        digest: The SHA-256 of the cell's bytes, as hexadecimal digits; its compiled form is kept
            under it.
        limits: What it may use up.
        network: What its network namespace holds: a ``lo`` that is down, or one that is up.
        required: Which of :data:`sandbox.policy.FEATURES` must not be missing.
        isolation: How it is kept apart.
        content: The path at which the cell finds a read-only directory whose content the runner
            serves; empty for none. If there is one, the connection for it is the last descriptor
            that travels with the plan.
        terminals: The targets of terminals that the cell may know to be some.
        component: Whether the cell is a component and not a core module.
        invoke: The function of a core module to call in place of ``_start``; empty for that.
        trap_unknown: Whether functions that it imports and nobody offers trap when they are
            called; otherwise such a cell is rejected.
    """

    grants: tuple[Grant, ...]
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    uid: int
    gid: int
    digest: str
    limits: Limits = Limits()
    network: Network = "none"
    required: tuple[str, ...] = ()
    isolation: Isolation = "full"
    content: str = ""
    terminals: tuple[int, ...] = ()
    component: bool = False
    invoke: str = ""
    trap_unknown: bool = False

    @property
    def files(self) -> tuple[Grant, ...]:
        """The grants that a component finds as files, because it knows no numbers."""
        if not self.component:
            return ()
        return tuple(g for g in self.grants if g.guest is None and g.target > LAST_STANDARD)

    @property
    def directories(self) -> tuple[Grant, ...]:
        """The grants of directories, in the order of the numbers at which libraries find them."""
        found = [grant for grant in self.grants if grant.guest is not None]
        return tuple(sorted(found, key=lambda grant: grant.preopen))

    @property
    def scratch_preopen(self) -> int:
        """The number of the writable /tmp, if there is one: after the directories."""
        return FIRST_PREOPEN + len(self.directories)

    @property
    def content_preopen(self) -> int:
        """The number of the directory of served content, if there is one: after that of /tmp."""
        return self.scratch_preopen + (1 if self.limits.scratch else 0)

    @property
    def root_preopen(self) -> int:
        """The number of the directory that holds the pathlinks, if there are any: the last."""
        return self.content_preopen + (1 if self.content else 0)

    def encode(self) -> bytes:
        """Return the plan as bytes for :meth:`decode`."""
        return encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Read a plan that :meth:`encode` wrote.

        Raises:
            ValueError: If the bytes are not a plan.
        """
        import json

        fields: Any = json.loads(data)
        try:
            grants, argv, env, uid, gid, digest, limits, network, required, *rest = fields
            isolation, content, terminals, component, invoke, trap_unknown = rest
            if isolation not in ISOLATIONS or network not in NETWORKS:
                raise ValueError("not a plan: a word that is none")
            if (
                not isinstance(digest, str)
                or len(digest) != _DIGEST_LENGTH
                or not _HEXADECIMAL.issuperset(digest)
            ):
                raise ValueError("not a plan: a digest that is none")
            if not all(limit is None or isinstance(limit, (int, float)) for limit in limits):
                raise ValueError("not a plan: a limit that is no number")
            return cls(
                grants=tuple(Grant(*grant) for grant in grants),
                argv=tuple(argv),
                env=tuple((key, value) for key, value in env),
                uid=int(uid),
                gid=int(gid),
                digest=str(digest),
                limits=Limits(*limits),
                network=network,
                required=tuple(required),
                isolation=isolation,
                content=str(content),
                terminals=tuple(terminals),
                component=bool(component),
                invoke=str(invoke),
                trap_unknown=bool(trap_unknown),
            )
        except TypeError as error:
            raise ValueError(f"not a plan: {error}") from error

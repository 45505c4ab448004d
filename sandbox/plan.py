"""The frozen plan of one cell: the message from the runner to the spawner."""

import json
from typing import Any, NamedTuple

from sandbox.grants import Grant


class Plan(NamedTuple):
    """Everything the spawner is told about a cell, but for the descriptors that travel with it.

    Attributes:
        grants: The cell's descriptors, in target order.
        argv: The cell's arguments; the first is its name.
        env: The cell's whole environment.
        uid: The user id on the host that the cell's process runs as; never 0.
        gid: The group id on the host: an ordinary caller's own, whichever that is.
    """

    grants: tuple[Grant, ...]
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    uid: int
    gid: int

    def encode(self) -> bytes:
        """Return the plan as bytes for :meth:`decode`."""
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """Read a plan that :meth:`encode` wrote.

        Raises:
            ValueError: If the bytes are not a plan.
        """
        fields: Any = json.loads(data)
        try:
            grants, argv, env, uid, gid = fields
            return cls(
                grants=tuple(Grant(*grant) for grant in grants),
                argv=tuple(argv),
                env=tuple((key, value) for key, value in env),
                uid=int(uid),
                gid=int(gid),
            )
        except TypeError as error:
            raise ValueError(f"not a plan: {error}") from error

"""The words of which plans and outcomes are made, as types.

They are in a module of their own because a run has no use for types, and :mod:`typing` takes three
milliseconds to import. Whoever wants one all the same gets it from where it belongs.
"""

from typing import Literal

# What a cell may do with a descriptor, and what it is granted as.
Mode = Literal["r", "w", "rw"]
FdType = Literal["stream", "file", "socket"]

Network = Literal["none", "loopback"]

# How a cell is kept apart: by everything, or, where the machine refuses namespaces to root, by an
# empty root directory in their place.
Isolation = Literal["full", "chroot"]

# How a cell ended; see :class:`sandbox.outcome.Outcome`.
Kind = Literal["exit", "trap", "signal", "rejected", "limit", "isolation", "jail", "fault", "stale"]

# What ended a cell, as the status events name it.
LimitName = Literal["wall", "cpu", "fuel", "memory", "host-memory", "output", "pids"]

"""What a cell may use up, and what of the jail it cannot do without."""

from typing import Final, Literal, NamedTuple

Network = Literal["none", "loopback"]

# How a cell is kept apart: by everything, or, where the machine refuses namespaces to root, by an
# empty root directory in their place.
Isolation = Literal["full", "chroot"]

# What ended a cell, as the status events name it.
LimitName = Literal["wall", "cpu", "fuel", "memory", "host-memory", "output", "pids"]


class Limits(NamedTuple):
    """What a cell may use up. ``None`` is no limit, and never a default but for fuel.

    Attributes:
        wall: Seconds from the spawner's receipt of the plan, the compilation included.
        cpu: Seconds of processor time, user and system, of the cell's process.
        fuel: Units of the engine's fuel, about one for an instruction. Counting costs speed, so
            it is done only where there is a limit.
        memory: Bytes of all linear memories of the cell together.
        table_elements: Elements of each of its tables.
        output: Bytes that it may write in all, to whatever it was granted.
        pids: Processes and threads.
        nofile: Descriptors that it may have open beside its grants.
        scratch: Bytes of the writable /tmp; 0 for none.
    """

    wall: float | None = 3600.0
    cpu: int | None = 3600
    fuel: int | None = None
    memory: int | None = 1 << 30
    table_elements: int = 10_000_000
    output: int | None = 1 << 30
    pids: int = 16
    nofile: int = 256
    scratch: int = 0


# Features that the jail uses where the kernel has them, and that a caller may insist on.
FEATURES: Final = ("landlock", "cgroup")

"""What a cell may use up, and what of the jail it cannot do without."""

from __future__ import annotations

from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandbox.words import Isolation as Isolation
    from sandbox.words import LimitName as LimitName
    from sandbox.words import Network as Network
else:

    def __getattr__(name: str) -> object:
        """Import a type when it is asked for; PEP 562."""
        if name not in ("Isolation", "LimitName", "Network"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sandbox import words

        return getattr(words, name)


# All values of these types; the first is the default.
NETWORKS: Final[tuple[Network, ...]] = ("none", "loopback")
ISOLATIONS: Final[tuple[Isolation, ...]] = ("full", "chroot")


class Limits(Record):
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

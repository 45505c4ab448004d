"""What the jail is told about descriptors: grants, in the form both sides agree on."""

from __future__ import annotations

from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox.words import FdType as FdType
    from sandbox.words import Mode as Mode
else:

    def __getattr__(name: str) -> object:
        """Import a type when it is asked for; PEP 562."""
        if name not in ("FdType", "Mode"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sandbox import words

        return getattr(words, name)


class Grant(Record):
    """One descriptor of the cell, as promised.

    The source descriptor is not part of it: descriptors travel beside the plan, in the
    order of its grants, and their numbers on the way mean nothing.

    Attributes:
        target: The descriptor's number in the cell, 0 to 65534.
        name: The name it was granted by; ``None`` for stdio that merely passes through,
            which is not listed in ``WW_FDS``.
        mode: What the cell may do with it, at most what the kernel's access mode allows.
        type: ``stream``, ``file`` or ``socket``.
        move: The runner closes its own copy as soon as the cell holds one.
        cloexec: The descriptor carries FD_CLOEXEC inside the cell's process.
        pathlink: The jail's root holds a symbolic link ``name`` to it.
        guest: Of a directory, the path by which the cell's C library finds it; ``None`` for
            everything else.
        preopen: Of a directory, the number at which the cell's C library finds it, from
            :data:`FIRST_PREOPEN` up; it may be the target too. 0 for everything else.
    """

    target: int
    name: str | None
    mode: Mode
    type: FdType
    move: bool = False
    cloexec: bool = True
    pathlink: bool = False
    guest: str | None = None
    preopen: int = 0

    @property
    def shown(self) -> str:
        """What to call it in an error: by what its user knows it."""
        return f"the directory granted as {self.guest}" if self.guest else f"the file {self.name}"


# The numbers of standard input, output and error end here; unistd.h.
LAST_STANDARD = 2
# C libraries for WASI look for directories from this number up, until one is not open.
FIRST_PREOPEN = 3

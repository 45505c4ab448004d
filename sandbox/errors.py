"""What can go wrong between a plan and a running cell.

Every error can be pickled with what it says: a cell may run in another process than who waits for
it.
"""


class SandboxError(Exception):
    """A failure of the sandbox that says what failed; the base of its errors."""


class JailError(SandboxError):
    """A step of the jail's set-up failed, so no cell ran.

    Attributes:
        step: The step's name, as in the ordered list of :func:`sandbox.jail.enter`.
        errno: The error number of the call that failed, or 0 where a check found a difference.
        what: The call and what the kernel said of it.
    """

    def __init__(self, step: str, what: str, errno: int = 0) -> None:
        super().__init__(step, what, errno)
        self.step = step
        self.what = what
        self.errno = errno

    def __str__(self) -> str:
        """``STEP: WHAT``."""
        return f"{self.step}: {self.what}"


class SpawnerError(SandboxError):
    """The spawner could not be started, or it ended before it told how the cell ended.

    Whether the cell ran then is not known.
    """


class GrantError(SandboxError):
    """What was asked to be granted cannot be; nothing ran.

    Attributes:
        where: Where it was asked for.
        what: What is wrong with it.
        hint: What can be done about it, or the empty string.
        usage: Whether what was asked contradicts itself or what else was asked; otherwise, the
            kernel contradicts it.
    """

    def __init__(self, where: str, what: str, hint: str = "", *, usage: bool = False) -> None:
        super().__init__(where, what, hint, usage)
        self.where = where
        self.what = what
        self.hint = hint
        self.usage = usage

    def __str__(self) -> str:
        """``WHERE: WHAT (HINT)``."""
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle it with what it was made of; ``usage`` goes by its name."""
        return _grant_error, self.args


def _grant_error(where: str, what: str, hint: str, usage: bool) -> GrantError:
    return GrantError(where, what, hint, usage=usage)


class CellError(SandboxError):
    """A cell did not come to an end of its own making.

    Attributes:
        cell: Its name.
        what: What happened.
    """

    def __init__(self, cell: str, what: str) -> None:
        super().__init__(cell, what)
        self.cell = cell
        self.what = what

    def __str__(self) -> str:
        """``CELL: WHAT``."""
        return f"{self.cell}: {self.what}"


class CellRejected(CellError):
    """It is no program that can run here, and nothing of it ran."""


class HostError(CellError):
    """The host failed at something that a cell may ask of it: a defect, and not the cell's."""


class CellKilled(CellError):
    """Somebody who waited for it had it killed."""

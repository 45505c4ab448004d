"""What can go wrong between a plan and a running cell."""


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
        super().__init__(f"{step}: {what}")
        self.step = step
        self.what = what
        self.errno = errno


class SpawnerError(SandboxError):
    """The spawner could not be started, or it ended before it told how the cell ended."""

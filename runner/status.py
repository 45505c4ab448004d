"""``--status-fd``: what becomes of a run, as JSON lines for a program.

A cell can end with any exit code; this says which ones were its own.
"""

from __future__ import annotations

import os

from runner.errors import EXIT_GRANT, WwError
from runner.output import write
from sandbox import granting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.grants.plan import GrantPlan
    from runner.inherited import Inherited
    from sandbox import Outcome

_ORIGIN = "--status-fd"


class Status:
    """Where events go; with no descriptor, nowhere."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._told = False

    def start(self, address: str) -> None:
        """Tell that the plan stands and the cell is about to be looked for."""
        self._event({"event": "start", "cell": address, "pid": os.getpid()})

    def server(self, path: str) -> None:
        """Tell that a server runs the cell, by the path of its socket."""
        self._event({"event": "server", "socket": path})

    def grants(self, plan: GrantPlan) -> None:
        """Tell each named grant, in target order."""
        for entry in plan.entries:
            if entry.grant.name is not None:
                self._event({"event": "grant", **entry.facts(), "source": entry.source})

    def ended(self, outcome: Outcome, code: int) -> None:
        """Tell how the cell ended, and the exit code of ww."""
        extra: dict[str, object] = {"step": outcome.step} if outcome.step else {}
        if outcome.kind == "signal":
            extra = {"signal": outcome.code}
        if outcome.limit:
            extra = {"limit": outcome.limit}
        if outcome.usage is not None:
            wall, cpu, memory = outcome.usage
            extra["usage"] = {"wall": round(wall, 6), "cpu": round(cpu, 6), "memory": memory}
        self._exit(code, outcome.kind, outcome.what, extra)

    def ended_by(self, number: int) -> None:
        """Tell that a signal to ww ended the run."""
        self._exit(128 + number, "signal", "ww was asked to end", {"signal": number})

    def failed(self, what: str, code: int) -> None:
        """Tell that no cell came to an end, and why, unless :meth:`ended` has told it.

        If that cannot be written, nothing is said of it: there is an error to be told already.
        """
        if self._told:
            return
        try:
            self._exit(code, "error", what, {})
        except WwError:
            return

    def _exit(self, code: int, reason: str, what: str, extra: Mapping[str, object]) -> None:
        self._told = True
        event: dict[str, object] = {"event": "exit", "code": code, "reason": reason, **extra}
        if what:
            event["what"] = what
        self._event(event)

    def _event(self, event: Mapping[str, object]) -> None:
        """Write one line.

        Raises:
            WwError: If it cannot be written: whoever asked for it relies on it.
        """
        if self._fd is None:
            return
        import json

        data = (json.dumps(event) + "\n").encode()
        try:
            write(self._fd, data)
        except OSError as error:
            fd, self._fd = self._fd, None
            raise WwError(_ORIGIN, f"fd {fd} cannot be written: {error.strerror}") from error


def open_status(fd: int | None, inherited: Inherited) -> Status:
    """Check the descriptor that ``--status-fd`` names.

    Raises:
        WwError: With code 65 if it was not inherited, or is not open for writing.
    """
    if fd is None:
        return Status(None)
    if fd not in inherited.sources:
        raise WwError(_ORIGIN, f"fd {fd} is not open", hint=f"open it: {fd}>FILE", code=EXIT_GRANT)
    found = granting.describe(fd)
    if found.mode is None or "w" not in found.mode or found.directory:
        raise WwError(_ORIGIN, f"fd {fd}, a {found.what}, is not open for writing", code=EXIT_GRANT)
    return Status(fd)

"""What a component can be granted: it knows no numbers of descriptors.

It has 0, 1 and 2 as standard input, output and error, directories at their paths, and files as
``/fd/NAME``. Whatever else was granted would not reach it, and is refused here.
"""

import fcntl
import os
import stat
from collections.abc import Iterable

from sandbox.errors import GrantError
from sandbox.granting.planned import PlannedGrant
from sandbox.grants import LAST_STANDARD

_STDIN = 0
_FILES = "/fd"


def check_component(entries: Iterable[PlannedGrant]) -> None:
    """Hold that all that is granted reaches a component, and as it was promised.

    Args:
        entries: What is granted.

    Raises:
        GrantError: For a grant that would not.
    """
    every = tuple(entries)
    if any(not entry.is_directory and entry.grant.target > LAST_STANDARD for entry in every):
        _check_no_directory_at_files(every)
    for entry in every:
        what = _refusal(entry)
        if what:
            raise GrantError(
                entry.origin,
                f"the cell is a component, and {what}",
                hint="docs/cells.md says what can be granted to one",
            )


def _check_no_directory_at_files(entries: Iterable[PlannedGrant]) -> None:
    """Hold that no directory takes the place of the files, or of one of them.

    Raises:
        GrantError: Of usage.
    """
    for entry in entries:
        path = os.path.normpath("/" + (entry.grant.guest or "").lstrip("/"))
        if entry.is_directory and (path == _FILES or path.startswith(f"{_FILES}/")):
            raise GrantError(
                entry.origin,
                f"a component has its files in {_FILES}: no directory can be there beside them",
                hint="give it another path, as in --dir HOST:GUEST or guest='/PATH'",
                usage=True,
            )


def _refusal(entry: PlannedGrant) -> str:
    """Return why a grant would not reach a component; empty if it would."""
    grant = entry.grant
    if grant.pathlink:
        return f"has no pathlinks: a file is /fd/{grant.name} to it"
    if entry.is_directory and grant.target <= LAST_STANDARD:
        return "it has standard streams at 0, 1 and 2, and no directory"
    if entry.is_directory:
        return "" if "r" in grant.mode else "a directory can be granted to it as r or rw only"
    if grant.target <= LAST_STANDARD:
        needed = "r" if grant.target == _STDIN else "w"
        if needed not in grant.mode:
            return f"its descriptor {grant.target} needs mode={needed}"
        if grant.target == _STDIN and _would_not_wait(entry.source):
            return (
                "its standard input is in non-blocking mode: where there is nothing to read yet, "
                "it would end"
            )
        return ""
    if "r" not in grant.mode:
        return "a file can be granted to it as r or rw only, but for its standard output and error"
    state = None if entry.source is None else os.fstat(entry.source)
    if state is None or not stat.S_ISREG(state.st_mode):
        return (
            f"a {entry.what} can be granted to it as standard input, output or error only "
            "(target=0, 1 or 2)"
        )
    if "w" in grant.mode and fcntl.fcntl(entry.source or 0, fcntl.F_GETFL) & os.O_APPEND:
        return "a file that is open for appending can be granted to it as r only: it could cut it"
    if not state.st_nlink:
        return "a file is opened anew by its name, and this one was deleted or never had any"
    return ""


def _would_not_wait(source: int | None) -> bool:
    """Tell whether a read of a descriptor fails where others wait.

    The engine's WASI takes that for the end. The mode is not this program's to change: it is of the
    open file, which others may share.
    """
    if source is None or stat.S_ISREG(os.fstat(source).st_mode):
        return False
    return bool(fcntl.fcntl(source, fcntl.F_GETFL) & os.O_NONBLOCK)

"""Where a cell finds its directories: the numbers and the paths that its C library goes by.

wasi-libc and its like ask for preopened directories from :data:`sandbox.FIRST_PREOPEN` up, until
a number is not open, and open every path beneath one of them. So the directories have such numbers
too, beside their targets: first the granted ones, in order of declaration, then the writable /tmp,
then the content that is served, then the root directory, if there are pathlinks in it.
"""

from __future__ import annotations

from sandbox.errors import GrantError
from sandbox.grants import FIRST_PREOPEN
from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from sandbox.granting.request import GrantRequest

TMP: Final = "/tmp"  # noqa: S108 - the cell's own
"""Where the cell finds its writable directory."""

_ROOT: Final = "/"


class Preopen(Record):
    """A directory of the cell.

    Attributes:
        number: The number at which a C library finds it.
        guest: The path beneath which it opens files in it.
        name: The name of its grant; None if it is the jail's own.
        what: What it is, and who brought it, for errors.
    """

    number: int
    guest: str
    name: str | None
    what: str


def plan_preopens(
    requests: Sequence[GrantRequest], *, scratch: bool, content: str = ""
) -> tuple[Preopen, ...]:
    """Number the cell's directories, and hold that nothing else is where one of them is.

    Args:
        requests: In order of declaration. Those with a guest path are of directories.
        scratch: Whether the cell has a writable /tmp.
        content: The path at which it has content that is served; empty for none.

    Raises:
        GrantError: Of usage, if two of them have one path, or a target or a pathlink is in the
            place of one.
    """
    found: list[tuple[str, str | None, str]] = [
        (request.guest, request.name, f"the directory '{request.name}' of {request.origin}")
        for request in requests
        if request.guest is not None
    ]
    if scratch:
        found.append((TMP, None, "the writable /tmp of its scratch space (--scratch)"))
    if content:
        found.append((content, None, "the content that is served (--with-ipfs)"))
    link = next((request for request in requests if request.pathlink), None)
    if link is not None:
        what = f"the directory that holds the pathlink '{link.name}' of {link.origin}"
        found.append((_ROOT, None, what))
    preopens = tuple(Preopen(number, *each) for number, each in enumerate(found, FIRST_PREOPEN))
    _check_paths(requests, preopens)
    _check_targets(requests, preopens)
    return preopens


def guest_path(path: str) -> str:
    """Return a path of the cell in its shortest form: ``/data`` for ``/data/`` and ``//data/.``.

    Raises:
        ValueError: If it cannot be one; says why.
    """
    if "\0" in path:
        raise ValueError("it holds a NUL character")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid UTF-8") from None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("'..' leads out of it")
    top = "/" if path.startswith("/") else ""
    return top + "/".join(parts) or "."


def _check_paths(requests: Iterable[GrantRequest], preopens: Sequence[Preopen]) -> None:
    """Hold that one path leads to one thing."""
    # The jail's own first: who asked for the path is to blame, and not who could not.
    taken: dict[str, Preopen] = {}
    for preopen in sorted(preopens, key=lambda preopen: preopen.name is not None):
        first = taken.setdefault(_key(preopen.guest), preopen)
        if first is not preopen:
            origin = next(request.origin for request in requests if request.name == preopen.name)
            raise GrantError(
                origin,
                f"'{preopen.name}' cannot be at '{preopen.guest}': there is {first.what}",
                hint="give one of them another path, as in --dir HOST:GUEST or guest='/PATH'",
                usage=True,
            )
    for request in requests:
        if request.pathlink and request.name in taken:
            raise GrantError(
                request.origin,
                f"a pathlink cannot be '/{request.name}': there is {taken[request.name].what}",
                hint="rename the grant",
                usage=True,
            )


def _key(guest: str) -> str:
    """Return what C libraries compare: ``data`` and ``/data`` are one to them, and ``.`` and /."""
    return "" if guest == "." else guest.removeprefix("/")


def _check_targets(requests: Iterable[GrantRequest], preopens: Sequence[Preopen]) -> None:
    """Hold that asked targets are not numbers of directories, but for the own one."""
    by_number = {preopen.number: preopen for preopen in preopens}
    for request in requests:
        preopen = None if request.target is None else by_number.get(request.target)
        if preopen is not None and preopen.name != request.name:
            raise GrantError(
                request.origin,
                f"target {request.target} cannot be granted: there the cell finds {preopen.what}",
                hint="choose another target",
                usage=True,
            )

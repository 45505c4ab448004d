"""Where a cell finds its directories: the numbers and the paths that its C library goes by.

wasi-libc and its like ask for preopened directories from :data:`sandbox.FIRST_PREOPEN` up, until
a number is not open, and open every path beneath one of them. So the directories have such numbers
too, beside their targets: first the granted ones, in order of declaration, then the writable /tmp,
then the content at /ipfs, then the root directory, if there are pathlinks in it.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from runner.errors import EXIT_USAGE, WwError
from runner.grants.model import Request
from sandbox import FIRST_PREOPEN

_TMP: Final = "/tmp"  # noqa: S108 - the cell's own
_ROOT: Final = "/"
IPFS: Final = "/ipfs"
"""Where the cell finds content by its address."""


class Preopen(NamedTuple):
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
    requests: Sequence[Request], *, scratch: bool, ipfs: bool = False
) -> tuple[Preopen, ...]:
    """Number the cell's directories, and hold that nothing else is where one of them is.

    Args:
        requests: In order of declaration. Those with a guest path are of directories.
        scratch: Whether the cell has a writable /tmp.
        ipfs: Whether it has /ipfs.

    Raises:
        WwError: With code 2, if two of them have one path, or a target or a pathlink is in the
            place of one.
    """
    found: list[tuple[str, str | None, str]] = [
        (request.guest, request.name, f"the directory '{request.name}' of {request.origin}")
        for request in requests
        if request.guest is not None
    ]
    if scratch:
        found.append((_TMP, None, "the writable /tmp of --scratch"))
    if ipfs:
        found.append((IPFS, None, "the content of --with-ipfs"))
    link = next((request for request in requests if request.pathlink), None)
    if link is not None:
        what = f"the directory that holds the pathlink '{link.name}' of {link.origin}"
        found.append((_ROOT, None, what))
    preopens = tuple(Preopen(number, *each) for number, each in enumerate(found, FIRST_PREOPEN))
    _check_paths(requests, preopens)
    _check_targets(requests, preopens)
    return preopens


def _check_paths(requests: Iterable[Request], preopens: Sequence[Preopen]) -> None:
    """Hold that one path leads to one thing."""
    # The jail's own first: who asked for the path is to blame, and not who could not.
    taken: dict[str, Preopen] = {}
    for preopen in sorted(preopens, key=lambda preopen: preopen.name is not None):
        first = taken.setdefault(_key(preopen.guest), preopen)
        if first is not preopen:
            origin = next(request.origin for request in requests if request.name == preopen.name)
            raise WwError(
                origin,
                f"'{preopen.name}' cannot be at '{preopen.guest}': there is {first.what}",
                hint="give one of them another path, as in --dir HOST:GUEST",
                code=EXIT_USAGE,
            )
    for request in requests:
        if request.pathlink and request.name in taken:
            raise WwError(
                request.origin,
                f"a pathlink cannot be '/{request.name}': there is {taken[request.name].what}",
                hint="rename the grant",
                code=EXIT_USAGE,
            )


def _key(guest: str) -> str:
    """Return what C libraries compare: ``data`` and ``/data`` are one to them, and ``.`` and /."""
    return "" if guest == "." else guest.removeprefix("/")


def _check_targets(requests: Iterable[Request], preopens: Sequence[Preopen]) -> None:
    """Hold that asked targets are not numbers of directories, but for the own one."""
    by_number = {preopen.number: preopen for preopen in preopens}
    for request in requests:
        preopen = None if request.target is None else by_number.get(request.target)
        if preopen is not None and preopen.name != request.name:
            raise WwError(
                request.origin,
                f"target {request.target} cannot be granted: there the cell finds {preopen.what}",
                hint="choose another target",
                code=EXIT_USAGE,
            )

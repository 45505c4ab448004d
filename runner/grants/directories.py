"""The flag ``--dir``: directories that ww opens itself, because the user named them."""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from runner.errors import EXIT_GRANT, WwError
from runner.grants.model import Request, shown
from runner.grants.options import fail
from sandbox import Mode, granting

_MODES: Final[dict[str, Mode]] = {"ro": "r", "rw": "rw"}
_SYNTAX: Final = "write --dir HOST[:GUEST][:ro|rw]; for a path with a colon, --fd NAME=3 3<HOST"


class Directory(NamedTuple):
    """A ``--dir HOST[:GUEST][:ro|rw]``.

    Attributes:
        host: The directory, as the user typed it.
        guest: The path at which the cell finds it, without needless slashes and dots.
        mode: ``r`` or ``rw``.
        name: The name it is granted by, from its position.
        origin: The flag and its position, for errors.
    """

    host: str
    guest: str
    mode: Mode
    name: str
    origin: str


def parse_directories(values: Iterable[str]) -> list[Directory]:
    """Read the values of all ``--dir`` flags, in their order.

    Raises:
        WwError: With code 2 for the first value that is not well formed.
    """
    return [_parse(value, position) for position, value in enumerate(values, 1)]


def _parse(value: str, position: int) -> Directory:
    """Read one value; no colon can be a part of either path."""
    origin = f"--dir #{position}"
    paths = value.split(":")
    mode = _MODES.get(paths[-1]) if len(paths) > 1 else None
    if mode is not None:
        del paths[-1]
    host, *guests = paths
    if not host:
        fail(origin, 1, "the directory is missing", _SYNTAX)
    if "\0" in host:
        fail(origin, 1, f"{shown(host)} cannot be a directory", _SYNTAX)
    column = len(host) + 2
    if len(guests) > 1:
        column += len(guests[0]) + 1
        fail(origin, column, f"{shown(guests[1])} is neither ro nor rw", _SYNTAX)
    if not guests:
        guest = _guest(host, 1, origin, f"write --dir {host}:GUEST to give it another path")
    else:
        guest = _guest(guests[0], column, origin, "a path such as /data")
    return Directory(host, guest, mode or "r", f"dir{position}", origin)


def _guest(path: str, column: int, origin: str, hint: str) -> str:
    """Return a path of the cell in its shortest form: ``/data`` for ``/data/`` and ``//data/.``."""
    what = f"{shown(path)} cannot be a path in the cell: "
    if not path:
        fail(origin, column, "the path in the cell is missing", hint)
    try:
        return granting.guest_path(path)
    except ValueError as error:
        fail(origin, column, f"{what}{error}", hint)


def open_directories(directories: Iterable[Directory]) -> list[Request]:
    """Open each, and grant it. Symbolic links are followed: the user named them.

    Raises:
        WwError: With code 65 if one is not there, is no directory, or may not be read. What has
            been opened is closed then.
    """
    requests: list[Request] = []
    try:
        for directory in directories:
            fd = _open(directory)
            requests.append(
                Request(
                    name=directory.name,
                    source=fd,
                    origin=directory.origin,
                    mode=directory.mode,
                    guest=directory.guest,
                )
            )
    except BaseException:
        for request in requests:
            os.close(request.source)
        raise
    return requests


def _open(directory: Directory) -> int:
    try:
        return os.open(directory.host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WwError(
            directory.origin,
            f"{shown(directory.host)} cannot be opened: {error.strerror}",
            hint="it must be a directory that you can read",
            code=EXIT_GRANT,
        ) from error

"""The rules for names that hold in every UnixFS directory, sharded or not, and plain directories.

UnixFS itself allows any string. A name here must be one that a directory on Linux can hold, so
that what is listed can be extracted, and that one name never stands for two entries.
"""

from __future__ import annotations

from runner.content.errors import ContentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.content.dagpb import Link

MAX_NAME_LENGTH = 255
"""Bytes of the longest name: NAME_MAX of Linux, limits.h."""


def check_name(name: str) -> None:
    """Check one name.

    Raises:
        ContentError: It is empty, ``.``, ``..``, too long, or has a slash or a NUL in it.
    """
    if name in ("", ".", ".."):
        raise ContentError(f"a directory entry is named {name!r}")
    if "/" in name or "\0" in name:
        raise ContentError(f"the name of a directory entry has a slash or a NUL: {name!r}")
    if len(name.encode()) > MAX_NAME_LENGTH:
        raise ContentError(
            f"the name of a directory entry is longer than {MAX_NAME_LENGTH} bytes: "
            f"{name[:32]!r}..."
        )


def entries(links: Iterable[Link]) -> dict[str, Link]:
    """Return the entries of a plain directory, by name.

    Args:
        links: The links of its node.

    Raises:
        ContentError: A name breaks the rules of :func:`check_name` or is there twice.
    """
    by_name: dict[str, Link] = {}
    for link in links:
        check_name(link.name)
        if link.name in by_name:
            raise ContentError(f"the directory has two entries named {link.name!r}")
        by_name[link.name] = link
    return by_name

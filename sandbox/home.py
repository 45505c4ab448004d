"""Where what can be made anew is kept, and how much of it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

CACHE_SIZE: Final = 2 << 30
"""Bytes of compiled forms, unless somebody says otherwise: some of the largest interpreters, and
hundreds of ordinary cells."""


def cache_home(environ: Mapping[str, str]) -> str | None:
    """Return the directory for compiled forms, or ``None`` if there is no home.

    ``$WW_HOME/cache``, else ``$XDG_CACHE_HOME/ww``, else ``~/.cache/ww`` (XDG base directory
    specification: relative paths in its variables are ignored).
    """
    for variable, rest in (("WW_HOME", "cache"), ("XDG_CACHE_HOME", "ww"), ("HOME", ".cache/ww")):
        base = environ.get(variable, "")
        if os.path.isabs(base):
            return os.path.join(base, rest)
    return None

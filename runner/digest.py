"""SHA-256, by what is the sooner done with it.

hashlib brings in OpenSSL, and loading that takes as long as the interpreter's own function needs
for half a megabyte. OpenSSL's is several times as fast from there on.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Bytes up to which it is not worth to load OpenSSL for them.
_SMALL = 512 << 10
_CHUNK = 1 << 20

_hashed = 0


def sha256(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 of some bytes."""
    return bytes(_function(len(data))(data).digest())


def sha256_of(file: int) -> str:
    """Return the SHA-256 of all of a file, in hexadecimal digits.

    Args:
        file: Its descriptor, whose position is not used and not changed.
    """
    digest = _function(os.fstat(file).st_size)()
    at = 0
    while chunk := os.pread(file, _CHUNK, at):
        digest.update(chunk)
        at += len(chunk)
    return str(digest.hexdigest())


def _function(size: int) -> Callable[..., Any]:
    """Return the function for so many more bytes: OpenSSL's, or the interpreter's own."""
    global _hashed
    _hashed += size
    if _hashed <= _SMALL and "hashlib" not in sys.modules:
        name = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
        try:
            own: Callable[..., Any] = __import__(name).sha256
        except ImportError:
            pass
        else:
            return own
    from hashlib import sha256

    return sha256

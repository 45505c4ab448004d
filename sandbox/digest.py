"""The digest of a cell's bytes, for whoever compiles it."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _function() -> "Callable[[bytes], Any]":
    """Return the interpreter's own SHA-256: hashlib's brings OpenSSL, which takes milliseconds."""
    name = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
    try:
        module = __import__(name)
    except ImportError:
        module = __import__("hashlib")
    function: Callable[[bytes], Any] = module.sha256
    return function


# Found before there is a cell: a compiler's jail has nothing left to import.
_sha256 = _function()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes, as hexadecimal digits."""
    return str(_sha256(data).hexdigest())

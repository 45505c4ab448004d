"""A file that is written whole and is on the disk then, or is not touched."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from runner.content.blockstore import fsync


@contextlib.contextmanager
def replacing(path: str, mode: int, temporary: str = "") -> Iterator[BinaryIO]:
    """Write a file beside the one of that path, which it replaces at the end of the block.

    If the block raises an error, nothing is left but what was there. A process that is killed
    leaves the temporary file.

    Args:
        path: What is written, no symbolic link.
        mode: Its permissions, but for the umask.
        temporary: The path of the temporary file, for whoever keeps others from using it, and so
            overwrites what a killed process has left. By default ``.ww-`` and a random number.

    Raises:
        OSError: It cannot be written.
    """
    directory = os.path.dirname(path) or "."
    if temporary:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    else:
        temporary = os.path.join(directory, f".ww-{os.urandom(8).hex()}")
    # Within the block, because a signal may raise as soon as the file is there.
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(file, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync(directory)

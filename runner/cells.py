"""Where a cell's bytes come from, and the sealed copy in which they travel.

A cell is handed on as a descriptor of memory that nobody can change any more, and never as a
path, which could name something else by the time it is opened.
"""

import fcntl
import os
import stat
from collections.abc import Mapping

from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, EXIT_USAGE, WwError

# Bytes of the largest cell. The largest in use, CPython with its numeric libraries, has 99 MiB.
MAX_SIZE = 256 << 20

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK = 1 << 20


def open_cell(address: str, environ: Mapping[str, str]) -> int:
    """Find a cell and return its bytes, sealed.

    Args:
        address: ``/ipfs/CID[/PATH]``; a path with a slash in it; or a name to look up in PATH.
        environ: ww's own environment, for PATH and the place of the blockstore.

    Returns:
        A descriptor of a sealed memory file (memfd_create(2)) at position 0, close-on-exec.

    Raises:
        WwError: 127 if there is no such cell, 126 if it is no file that can be read, 66 if it
            is too large, 2 for a malformed path, 1 if its content is damaged.
    """
    if not address:
        raise WwError("CELL", "it is empty", code=EXIT_USAGE)
    if address.startswith(("/ipfs/", "/ipns/")):
        return _from_content(address, environ)
    path = (
        address
        if "/" in address or address in (".", "..")
        else _search(address, environ.get("PATH", os.defpath))
    )
    return _from_file(path)


def _new_memory() -> int:
    return os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _seal(memory: int) -> None:
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(memory, 0, os.SEEK_SET)


def _from_content(address: str, environ: Mapping[str, str]) -> int:
    from runner.content.blockstore import Blockstore, store_home
    from runner.content.resolver import resolve_file

    file = resolve_file(Blockstore(store_home(environ)), address, max_size=MAX_SIZE)
    memory = _new_memory()
    try:
        file.copy_to(memory)
        _seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _search(name: str, path: str) -> str:
    """Return the first executable file of that name on PATH, as execvp(3) looks for it.

    Raises:
        WwError: 127 if there is none.
    """
    for directory in path.split(os.pathsep):
        candidate = os.path.join(directory or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    hint = f"write ./{name} for the file here" if os.path.isfile(name) else ""
    raise WwError(
        name,
        "there is no executable file of that name on PATH",
        hint=hint or "name a cell by /ipfs/CID, by a path, or by a name on PATH",
        code=EXIT_NOT_FOUND,
    )


def _from_file(path: str) -> int:
    try:
        # Not blocking: a FIFO in the cell's place must not make ww wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise WwError(path, "there is no such file", code=EXIT_NOT_FOUND) from None
    except OSError as error:
        raise WwError(path, f"it cannot be read: {error.strerror}", code=EXIT_CANNOT_RUN) from None
    memory = _new_memory()
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise WwError(path, "it is not a regular file", code=EXIT_CANNOT_RUN)
        total = 0
        while count := os.sendfile(memory, fd, None, _CHUNK):
            total += count
            if total > MAX_SIZE:
                raise WwError(
                    path, f"it is larger than {MAX_SIZE} bytes, the most of a cell", code=EXIT_LIMIT
                )
        _seal(memory)
    except BaseException:
        os.close(memory)
        raise
    finally:
        os.close(fd)
    return memory

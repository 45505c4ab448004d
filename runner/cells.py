"""Where a cell's bytes come from, and the sealed copy in which they travel.

A cell is handed on as a descriptor of memory that nobody can change any more, and never as a
path, which could name something else by the time it is opened.
"""

from __future__ import annotations

import fcntl
import os
import stat

from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from sandbox import COMPONENT_MAGIC, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from runner.content.resolver import File


# Bytes of the largest cell. The largest in use, CPython with its numeric libraries, has 99 MiB.
MAX_SIZE = 256 << 20

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK = 1 << 20

# What follows the length of a CAR's header, which has one to three bytes: a map in CBOR. Version 2
# begins with a header that has no roots.
_CAR_HEADERS = (b"\xa2eroots", b"\xa2gversion", b"\xa1gversion")
_CAR_LENGTHS = range(1, 4)


class FetchOptions(Record):
    """What the user says of where content may come from. What is not said is for variables to say.

    Attributes:
        ipfs: The address of a node, or ``off``.
        gateways: URLs of trustless gateways.
        offline: Whether to ask nobody over a connection.
        dnslink: Whether a domain's DNSLink may be taken for true.
        insecure: Whether a node may be reached over a network without TLS.
        max_size: Bytes of the largest file, or of all files together.
        progress: Whether a fetch is told where stderr is no terminal, and how.
    """

    ipfs: str | None = None
    gateways: tuple[str, ...] = ()
    offline: bool = False
    dnslink: bool = False
    insecure: bool = False
    max_size: int = MAX_SIZE
    progress: Literal["", "plain", "json"] = ""


_NOTHING_SAID = FetchOptions()


def open_cell(address: str, environ: Mapping[str, str], fetch: FetchOptions = _NOTHING_SAID) -> int:
    """Find a cell and return its bytes, sealed.

    Args:
        address: ``/ipfs/CID[/PATH]``; a path with a slash in it; or a name to look up in PATH.
            After the path of a CAR file may follow ``#CID[/PATH]``, what to take from it, or
            ``#/PATH``, what is below its only root.
        environ: ww's own environment, for PATH, the place of the blockstore, and sources.
        fetch: What the user says of sources, and of the largest size.

    Returns:
        A descriptor of a sealed memory file (memfd_create(2)) at position 0, close-on-exec.

    Raises:
        WwError: 127 if there is no such cell, 126 if it is no file that can be read, 66 if it
            is too large, 2 for a malformed path, 1 if its content is damaged.
    """
    if not address:
        raise WwError("CELL", "it is empty", code=EXIT_USAGE)
    if address.startswith(("/ipfs/", "/ipns/")):
        return _from_content(address, environ, fetch)
    path = (
        address
        if "/" in address or address in (".", "..")
        else _search(address, environ.get("PATH", os.defpath))
    )
    return _from_file(path, fetch.max_size)


def is_component(cell: int) -> bool:
    """Tell whether a cell is a component and not a core module, by how it begins.

    Args:
        cell: A descriptor of its bytes.
    """
    return os.pread(cell, len(COMPONENT_MAGIC), 0) == COMPONENT_MAGIC


def _new_memory() -> int:
    return os.memfd_create("cell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _seal(memory: int) -> None:
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(memory, 0, os.SEEK_SET)


def _from_content(address: str, environ: Mapping[str, str], fetch: FetchOptions) -> int:
    from runner.content.resolver import parse_path, resolve_file
    from runner.content.sources import find_path, open_content

    with open_content(environ, fetch, address=address) as blocks:
        path = find_path(address, blocks, fetch)
        blocks.prepare(parse_path(path))
        file = resolve_file(blocks, path, max_size=fetch.max_size)
        blocks.announce(file.size)
        return _copy(file)


def _copy(file: File) -> int:
    """Return a sealed copy of a file of verified content."""
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
    hint = f"write ./{name} for the file here" if os.path.isfile(name) else _as_address(name)
    raise WwError(
        name,
        "there is no executable file of that name on PATH",
        hint=hint or "name a cell by /ipfs/CID, by a path, or by a name on PATH",
        code=EXIT_NOT_FOUND,
    )


def _as_address(text: str) -> str:
    """Return the hint to write an address as such, or an empty string where it is none."""
    from runner.content.cid import Cid
    from runner.content.errors import ContentError

    for space in ("ipfs", "ipns"):
        for prefix in (f"{space}://", f"{space}/"):
            if text.startswith(prefix):
                return f"write /{space}/{text.removeprefix(prefix)}"
    try:
        Cid.parse(text.partition("/")[0])
    except ContentError:
        return ""
    return f"write /ipfs/{text}"


def _from_file(path: str, max_size: int) -> int:
    path, selection = _split(path)
    try:
        # Not blocking: a FIFO in the cell's place must not make ww wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        hint = _as_address(path)
        raise WwError(path, "there is no such file", hint=hint, code=EXIT_NOT_FOUND) from None
    except OSError as error:
        raise WwError(path, f"it cannot be read: {error.strerror}", code=EXIT_CANNOT_RUN) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise WwError(path, "it is not a regular file", code=EXIT_CANNOT_RUN)
        if _is_car(os.pread(fd, 16, 0)):
            return _from_car(fd, path, selection or "", max_size)
        if selection is not None:
            raise WwError(
                path,
                "it is not a CAR file, so nothing can be taken from it with #",
                code=EXIT_CANNOT_RUN,
            )
        return _from_program(fd, path, max_size)
    finally:
        os.close(fd)


def _split(path: str) -> tuple[str, str | None]:
    """Cut a path from what is to be taken from the CAR file there.

    A file is what its whole name says, also if that has a # in it.
    """
    if not os.path.lexists(path):
        for at, sign in enumerate(path):
            if sign == "#" and os.path.isfile(path[:at]):
                return path[:at], path[at + 1 :]
    return path, None


def _is_car(head: bytes) -> bool:
    return any(head[length:].startswith(_CAR_HEADERS) for length in _CAR_LENGTHS)


def _from_car(fd: int, path: str, selection: str, max_size: int) -> int:
    from runner.content.carfile import CarFile
    from runner.content.resolver import IsDirectory, resolve_file

    car = CarFile(fd, path)
    try:
        file = resolve_file(car, str(car.path_of(selection)), max_size=max_size)
    except IsDirectory as error:
        # As it would be added here, where no /ipfs/ path was written.
        error.hint = f"name a file in it: {path}#{selection.rstrip('/')}/FILE"
        raise
    return _copy(file)


def _from_program(fd: int, path: str, max_size: int) -> int:
    memory = _new_memory()
    try:
        total = 0
        while count := os.sendfile(memory, fd, None, _CHUNK):
            total += count
            if total > max_size:
                raise WwError(
                    path,
                    f"it is larger than {max_size} bytes, the most of a cell",
                    hint="allow more with --max-size",
                    code=EXIT_LIMIT,
                )
        _seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory

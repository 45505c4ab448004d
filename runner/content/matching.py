"""Whether a file on disk has a CID, which depends on how it is cut into blocks."""

import os
import stat

from runner.content import multihash
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.importer import (
    KUBO_CIDV1,
    UNIXFS_V0_2015,
    UNIXFS_V1_2025,
    Profile,
    import_path,
    import_stream,
)
from runner.content.varint import Buffer
from runner.errors import EXIT_CANNOT_RUN, EXIT_NOT_FOUND, WwError

_PROFILES = (
    ("unixfs-v0-2015", UNIXFS_V0_2015),
    ("ipfs add --cid-version 1", KUBO_CIDV1),
    ("unixfs-v1-2025", UNIXFS_V1_2025),
    ("ipfs add --raw-leaves", Profile(0, True, 256 * 1024, 174, False)),
    ("ipfs add --cid-version 1 --chunker size-1048576", Profile(1, True, 1 << 20, 174, False)),
)
"""What is known to be in use, the most likely first."""


class _Nowhere:
    """Takes the blocks of an import and keeps none."""

    def put(self, cid: Cid, data: Buffer, *, verified: bool = False) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""


_NOWHERE = _Nowhere()


def find_match(cid: Cid, path: str) -> str:
    """Return how a file or a directory is to be cut to have a CID.

    Args:
        cid: The address.
        path: The file; a symbolic link is followed.

    Returns:
        The way, in words: ``as unixfs-v0-2015 makes it``.

    Raises:
        WwError: It does not have the CID in any way that is known; or it cannot be read (code
            EXIT_CANNOT_RUN), or is not there (EXIT_NOT_FOUND).
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        code = EXIT_NOT_FOUND if missing else EXIT_CANNOT_RUN
        raise WwError(path, f"cannot read: {error.strerror}", code=code) from None
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            return _match(cid, path, None)
        if not stat.S_ISREG(status.st_mode):
            raise WwError(path, "is neither a file nor a directory", code=EXIT_CANNOT_RUN)
        if cid.codec == RAW:
            return _match_raw(cid, path, file, status.st_size)
        return _match(cid, path, file)
    except OSError as error:
        raise WwError(path, f"cannot read: {error.strerror}", code=EXIT_CANNOT_RUN) from None
    finally:
        os.close(file)


def _match_raw(cid: Cid, path: str, file: int, size: int) -> str:
    """Compare with a raw block, which is the bytes of the file themselves, whatever the hash."""
    if size > MAX_BLOCK_SIZE:
        raise _other(cid, path, f"it has {size} bytes, and this is the CID of a single raw block")
    with open(file, "rb", closefd=False) as stream:
        if not multihash.matches(cid.multihash, stream.read(MAX_BLOCK_SIZE + 1)):
            raise _other(cid, path, "its hash is another")
    return "as a single raw block"


def _match(cid: Cid, path: str, file: int | None) -> str:
    """Compare with all that a file, or a directory if that is None, can be cut into."""
    if cid.codec != DAG_PB:
        raise _other(cid, path, f"codec 0x{cid.codec:x} is not that of its root")
    if multihash.decode(cid.multihash)[0] != multihash.SHA2_256:
        raise _other(cid, path, "only sha2-256 can be compared, except for a single raw block")
    ways = [
        (f"{name}, with hidden entries," if hidden else name, profile, hidden)
        for hidden in ((False,) if file is not None else (False, True))
        for name, profile in _PROFILES
    ]
    ways.sort(key=lambda way: way[1].cid_version != cid.version)
    found = ""
    for name, profile, hidden in ways:
        other = _cut(path, file, profile, hidden=hidden)
        # By the hash: the same block may be written as version 0 and as version 1.
        if (other.codec, other.multihash) == (cid.codec, cid.multihash):
            return f"as {name} makes it"
        found = found or f"as {name} makes it, it has {other}"
    tried = "; ".join(name for name, _ in _PROFILES)
    each = ", each with and without hidden entries" if file is None else ""
    raise _other(cid, path, f"{found}; tried: {tried}{each}")


def _cut(path: str, file: int | None, profile: Profile, *, hidden: bool) -> Cid:
    """Return the CID of a file, or of a directory if that is None, cut in one way.

    Raises:
        WwError: It cannot be read, or holds what content cannot (code EXIT_CANNOT_RUN).
    """
    try:
        if file is None:
            # With a slash at the end, so that a symbolic link is followed.
            return import_path(_NOWHERE, os.path.join(path, ""), profile=profile, hidden=hidden)
        os.lseek(file, 0, os.SEEK_SET)
        return import_stream(_NOWHERE, file, path, profile)
    except WwError as error:
        # Nothing is imported here, whatever the hint says.
        hint = "compare a copy without it" if error.hint else ""
        raise WwError(error.where, error.what, hint=hint, code=EXIT_CANNOT_RUN) from None


def _other(cid: Cid, path: str, why: str) -> WwError:
    return WwError(path, f"does not have the CID {cid}", hint=why)

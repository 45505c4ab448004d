"""The folder of a Kubo repository, whose blocks are read and never written.

Kubo need not run, and may run and write meanwhile: a block is renamed to its place when it is
whole.
"""

import os
import stat

from runner.content import multibase
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.cid import Cid
from runner.content.source import Source, SourceError

_LAYOUT = b"/repo/flatfs/shard/v1/next-to-last/2"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Repository(Source):
    """The blocks of one repository."""

    def __init__(self, path: str, *, named: bool = True) -> None:
        """Describe it; nothing is read yet.

        Args:
            path: The folder, which holds another one named ``blocks``.
            named: Whether the user has named it.
        """
        self.name = f"repository {path}"
        self.named = named
        self._blocks = os.path.join(path, "blocks")
        self._checked = False

    def get(self, cid: Cid) -> bytes | None:
        """Return a block; see :meth:`Source.get`."""
        self._check_layout()
        name = multibase.encode_base32_upper(cid.multihash)
        try:
            return _read(f"{self._blocks}/{name[-3:-1]}/{name}.data", MAX_BLOCK_SIZE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from None

    def _check_layout(self) -> None:
        if self._checked:
            return
        try:
            layout = _read(os.path.join(self._blocks, "SHARDING"), 1024)
        except (FileNotFoundError, NotADirectoryError):
            what = "it is no Kubo repository: there is no blocks/SHARDING in it"
            raise SourceError(what, gone=True) from None
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", gone=True) from None
        if layout.strip() != _LAYOUT:
            raise SourceError(f"its layout is not {_LAYOUT.decode()}", gone=True)
        self._checked = True


def _read(path: str, most: int) -> bytes:
    """Return a file's bytes, one more than the most if there are more.

    Raises:
        OSError: It cannot be read.
    """
    file = os.open(path, _FLAGS)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError
        data = os.read(file, min(status.st_size, most) + 1)
        while len(data) <= most and (more := os.read(file, most + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(file)

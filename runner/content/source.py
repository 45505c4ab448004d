"""Where blocks can be had that are not in the store: what every source has to offer.

A source is trusted for nothing. Whatever it returns is held against its hash by
:mod:`runner.content.fetch` before anything uses it.

A package can bring a source of its own by an entry point of the group ``wetware.sources``. It names
a function that takes the environment (a mapping of strings) and returns a :class:`Source`, or None
if there is nothing to ask::

    [project.entry-points."wetware.sources"]
    mine = "my_package:make_source"

It is asked after all the other sources.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from runner.content.cid import Cid
from runner.content.resolver import ContentPath

ENTRY_POINTS = "wetware.sources"
"""The group of entry points that are factories of sources."""

MAX_RECORD_SIZE = 10 * 1024
"""Bytes of the largest IPNS record (https://specs.ipfs.tech/ipns/ipns-record/)."""

Watch = Callable[[int], None]
"""Is told how many bytes have arrived; called from any thread."""


class SourceError(Exception):
    """A source did not do what it was asked for, for another reason than not having it.

    Attributes:
        text: What happened, to be shown behind the name of the source: ``connection refused``.
        gone: Whether there is no use in asking it anything else in this run.
    """

    def __init__(self, text: str, *, gone: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.gone = gone


class Absent(SourceError):
    """A source does not have what it was asked for, and says more than that."""


class Stream(Protocol):
    """The bytes of one answer, as they arrive."""

    def read(self, size: int, /) -> bytes:
        """Return up to that many bytes, and none only at the end.

        Raises:
            SourceError: They do not arrive, or not fast enough.
        """

    def close(self) -> None:
        """Take no more of it. Another thread may be reading meanwhile: that ends soon."""


class Source(ABC):
    """Something that can be asked for blocks.

    :meth:`get` is called from several threads at once, and may wait: as long as it likes, because
    nobody waits for it who has been told to stop.

    Attributes:
        name: What it is called in messages: ``gateway https://example.org``.
        named: Whether the user has named it, rather than it having been found. What becomes of a
            source that nobody has named is told only where nothing else has the content.
    """

    name: str
    named: bool = True

    @abstractmethod
    def get(self, cid: Cid) -> bytes | None:
        """Return what this source says that a block is, not verified.

        Args:
            cid: The block; never one with an identity hash.

        Returns:
            The bytes, or None if it does not have the block.

        Raises:
            Absent: It does not have the block, and says why.
            SourceError: It cannot tell.
        """

    def car(self, path: ContentPath, *, everything: bool = False) -> Stream | None:
        """Ask for all the blocks that a path needs, in one request, as a CAR of version 1.

        Blocks come parents first: those on the way to what the path names, and then those of the
        file, or of the directory's own list of names.

        Args:
            path: The path.
            everything: Whether to have all that is below a directory, too.

        Returns:
            The CAR, or None if this source has no such request, or none for this path.

        Raises:
            Absent: It does not have the content, not even its root.
            SourceError: It cannot tell, which says nothing of single blocks.
        """
        return None

    def ipns(self, name: str) -> bytes | None:
        """Return what this source says that the IPNS record of a name is, not verified.

        Args:
            name: The name as a CID of the codec libp2p-key, in base36.

        Returns:
            At most :data:`MAX_RECORD_SIZE` bytes, or None if it has none.

        Raises:
            SourceError: It cannot tell.
        """
        return None

    def dnslink(self, name: str) -> str | None:
        """Return what a domain's DNSLink says, as this source believes: nothing verifies it.

        Args:
            name: The domain.

        Returns:
            A path that begins with /ipfs/ or /ipns/, or None if this source does not look such
            things up, or there is none.

        Raises:
            SourceError: It cannot tell.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End all requests that are under way, and keep no connection. May be called twice."""

"""What content is read from: anything that returns a block for its CID."""

from collections.abc import Iterable
from typing import Protocol

from runner.content.cid import Cid


class Blocks(Protocol):
    """Blocks by their CIDs: the store, a CAR file, or whatever sources a user has.

    All of its methods are for one thread.
    """

    def get(self, cid: Cid) -> bytes:
        """Return a block whose hash has been verified.

        A CID with an identity hash is its own block.

        Raises:
            WwError: There is no such block (code EXIT_NOT_FOUND), it is damaged, or it cannot be
                read.
        """

    def expect(self, cids: Iterable[Cid]) -> None:
        """Take note of blocks that will be asked for next, in this order.

        This is a hint. Where blocks come from afar, it lets several be on their way at once.
        """

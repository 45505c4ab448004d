"""Blocks of a large file read and verified before they are asked for, in a thread.

Reading and hashing release the interpreter's lock, so they go on while what was read before is
written somewhere. Whatever goes wrong ahead is found again, and told, by whoever asks.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from runner.content.cid import Cid

_ROOM = 8  # blocks that were read and that nobody has taken yet


class Ahead:
    """Some blocks on their way, in the order in which they will be taken."""

    def __init__(self, read: Callable[[Cid], bytes | None], cids: Sequence[Cid]) -> None:
        """Begin to read.

        Args:
            read: Returns a verified block, or None; called in the thread.
            cids: What is going to be asked for.
        """
        self._expected = deque(cids)
        self._found: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_ROOM)
        self._stopped = False
        threading.Thread(target=self._work, args=(read, tuple(cids)), daemon=True).start()

    def _work(self, read: Callable[[Cid], bytes | None], cids: Sequence[Cid]) -> None:
        for cid in cids:
            self._room.acquire()
            if self._stopped:
                return
            try:
                block = read(cid)
            except Exception:
                block = None
            self._found.put(block)

    def take(self, cid: Cid) -> bytes | None:
        """Return a block; or None, if it is not the next or could not be read."""
        if self._stopped or not self._expected or self._expected[0] != cid:
            return None
        self._expected.popleft()
        block = self._found.get()
        self._room.release()
        return block

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        self._room.release()

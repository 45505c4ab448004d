"""The sources of one run: whom to ask, what each has failed at, what is true of what it sends."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from runner.content import multihash
from runner.content.blockstore import MAX_BLOCK_SIZE
from runner.content.car import CarError, WrongBlock
from runner.content.cid import Cid
from runner.content.source import Absent, Source, SourceError
from runner.errors import WwError

MAX_FAILURES = 3
"""Requests in a row that a source may fail before it is not asked any more."""

ABSENT = "does not have it"


class Found(NamedTuple):
    """What came of a search.

    Attributes:
        block: The block, verified, or None.
        source: The name of the source that had it.
        reasons: Why the sources before that one, or all, do not have it: by their names.
    """

    block: bytes | None
    source: str
    reasons: dict[str, str]


class Asking:
    """Sources in their order. All methods may be called from any thread.

    Attributes:
        warnings: What the user is to be told; whoever tells it removes it.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.warnings: deque[str] = deque()
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._lost: dict[Source, str] = {}
        self._failures: dict[Source, int] = {}  # in a row

    def close(self) -> None:
        """End all requests."""
        for source in self._sources:
            source.close()

    @property
    def sources(self) -> list[Source]:
        """The sources that may still be asked, in their order."""
        return [source for source in self._sources if source not in self._lost]

    @property
    def lost(self) -> dict[str, str]:
        """Why sources are not asked any more: by their names."""
        return {source.name: why for source, why in dict(self._lost).items()}

    def search(self, cid: Cid, sources: Sequence[Source] | None = None) -> Found:
        """Look for a block.

        Args:
            cid: The block.
            sources: Whom to ask, rather than everybody.
        """
        reasons: dict[str, str] = {}
        for source in self._sources if sources is None else sources:
            if source in self._lost:
                reasons[source.name] = self._lost[source]
                continue
            try:
                block = source.get(cid)
                if block is not None:
                    # What a plugin goes on writing to would not stay verified.
                    block = bytes(block)
            except Exception as error:  # a source may be anybody's code
                reasons[source.name] = self.fail(source, error)
                continue
            self.succeed(source)
            if block is None:
                reasons[source.name] = ABSENT
            elif len(block) > MAX_BLOCK_SIZE:
                reasons[source.name] = self.lose(
                    source, f"it sent more than {MAX_BLOCK_SIZE} bytes as block {cid}"
                )
            elif not multihash.matches(cid.multihash, block):
                reasons[source.name] = self.lose(source, _wrong(cid))
            else:
                return Found(block, source.name, reasons)
        return Found(None, "", reasons)

    def succeed(self, source: Source) -> None:
        """Take note that a source has answered."""
        with self._lock:
            self._failures.pop(source, None)

    def fail(self, source: Source, error: Exception) -> str:
        """Take note that a source has failed, and return what it failed at.

        Args:
            source: The source.
            error: What it, or the reading of what it sent, has raised.
        """
        if isinstance(error, WrongBlock):
            return self.lose(source, _wrong(error.cid))
        if isinstance(error, Absent):
            self.succeed(source)
            return error.text
        if isinstance(error, SourceError):
            text = error.text
        elif isinstance(error, (CarError, WwError)):
            text = str(error)
        else:
            text = f"{type(error).__name__}: {error}"
        with self._lock:
            self._failures[source] = self._failures.get(source, 0) + 1
            many = self._failures[source] >= MAX_FAILURES
        if many or getattr(error, "gone", False):
            self.lose(source, text, told=source.named)
        return text

    def lose(self, source: Source, text: str, *, told: bool = True) -> str:
        """Ask a source no more in this run, and return why.

        Args:
            source: The source.
            text: Why.
            told: Whether the user is to be told, even if somebody else has all that is needed.
        """
        with self._lock:
            if source not in self._lost:
                self._lost[source] = text
                if told:
                    self.warnings.append(f"{source.name}: {text}; it is not asked again")
        return text


def _wrong(cid: Cid) -> str:
    return f"it sent other bytes than those of block {cid}"

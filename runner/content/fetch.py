"""Blocks from the store, and what is not there from sources, each verified before it is used.

The first source that has a block wins; they are asked in the order in which they are given. Two
ways lead to blocks:

*A stream*: one request for all that a path needs (:meth:`Fetched.prepare`). Its blocks arrive in
the order in which they are read, so each is hashed once, kept, and handed on.

*Single blocks*: what no stream brings, several requests at a time, as :meth:`Fetched.expect` says
what will be needed next.

Everything that waits for a source does so in a thread. The one who asked waits in short steps, so
that a signal, or the end of whoever wanted the block, is noticed at once.

A source that sends bytes with another hash than was asked for is not asked again: it is broken or
lies. What was verified stays in the store, whatever happens next, so that another try begins where
this one ended.
"""

from __future__ import annotations

from itertools import islice

from runner.content import dagpb
from runner.content.blockstore import DamagedBlock
from runner.content.errors import ContentError
from runner.content.resolver import DEFAULT_MAX_SIZE, ContentPath, find_entry, load_node
from runner.errors import EXIT_LIMIT, EXIT_NOT_FOUND, WwError
from runner.suppress import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self, TypeVar

    from runner.content.asking import Asking, Found
    from runner.content.background import Arrivals, Arrived, Crew, Done, End
    from runner.content.blockstore import Blockstore
    from runner.content.cid import Cid
    from runner.content.shown import Shown
    from runner.content.source import Source, Watch

    Answer = TypeVar("Answer")


AT_ONCE = 8
"""Single blocks that are asked for at a time."""

_STEP = 0.1  # seconds that are waited at a time
_MOST_EXPECTED = 8192  # as many as a node of a file may link
_MOST_FAILED = 1024  # blocks that are known to be nowhere, though nobody has asked for them yet
_CAR_OVERHEAD = 8 << 20  # bytes of a stream, beside the content and a sixteenth of it
_CHECK = "check the address, or export the content into this store"


class OverBudget(WwError):
    """More would be fetched than all blocks may have that are asked for one by one."""


class Fetched:
    """Blocks that are in the store, or that a source has. For one thread; close it after use.

    Attributes:
        store: The store. What is fetched is put into it.
        pulse: Called before each block is returned, and in short steps while a source is waited
            for; what it raises ends the wait.
    """

    def __init__(
        self,
        store: Blockstore,
        make_sources: Callable[[Watch], Sequence[Source]],
        *,
        warn: Callable[[str], None] = lambda text: None,
        note: Callable[[str], None] = lambda text: None,
        make_shown: Callable[[], Shown | None] = lambda: None,
        max_size: int = DEFAULT_MAX_SIZE,
        no_sources: str = "",
    ) -> None:
        """Describe it; nobody is asked before a block is missing.

        Args:
            store: The store.
            make_sources: Returns the sources, in the order in which they are to be asked. It is
                called when the first block is missing. What it is given is to be told of the bytes
                that arrive.
            warn: Tells the user of a source that is not asked any more.
            note: Shows the user a line, for :meth:`tell`.
            make_shown: Returns what tells the user how far it is. It is called before the sources
                are made.
            max_size: Bytes of the largest file that will be read, which bounds what is taken from
                one stream.
            no_sources: What the user can do where there are no sources, for the error.
        """
        self.store = store
        self.pulse: Callable[[], None] = lambda: None
        self._make_sources = make_sources
        self._warn = warn
        self._note = note
        self._make_shown = make_shown
        self._shown: Shown | None = None
        self._passed = 0
        self._size = 0
        self._max_size = max_size
        self._left = self._most()  # bytes of single blocks that may still be fetched
        self._no_sources = no_sources
        self._made: Asking | None = None
        self._crew: Crew | None = None
        self._under_way: dict[object, Cid] = {}  # multihash -> CID
        self._failed: dict[bytes, dict[str, str]] = {}  # multihash -> why each source has it not
        self._expected: list[Cid] = []  # the next one is the last
        self._arrivals: Arrivals | None = None
        self._due: set[bytes] = set()  # multihashes of what the stream may still bring

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, and let others remove blocks from the store again."""
        arrivals = self._arrivals
        self._end_stream()
        asking = self._made
        if asking is not None:
            self._tell()
            asking.close()
            self._made = None
        if arrivals is not None:
            arrivals.join()
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()
        self._under_way.clear()
        self._failed.clear()
        self._expected.clear()
        if self._shown is not None:
            self._shown.end()
            self._shown = None
        self.store.close()

    @property
    def sources(self) -> list[Source]:
        """The sources that may still be asked, in their order."""
        return self._asking.sources

    @property
    def _asking(self) -> Asking:
        if self._made is None:
            from runner.content.asking import Asking

            watch: Watch = _ignore
            self._shown = self._make_shown()
            if self._shown is not None:
                watch = self._shown.arrived
                self._shown.passed(self._passed)
                self._shown.of(self._size)
            self._made = Asking(self._make_sources(watch))
        return self._made

    # --- as Blocks ---

    def expect(self, cids: Iterable[Cid]) -> None:
        """Take note of blocks that will be asked for next, before any that were expected so far."""
        self._expected += reversed(list(islice(cids, _MOST_EXPECTED)))
        del self._expected[:-_MOST_EXPECTED]

    def get(self, cid: Cid) -> bytes:
        """Return a block, verified.

        Raises:
            WwError: Neither the store nor a source has it (code EXIT_NOT_FOUND), or the store
                cannot be read or written.
        """
        self.pulse()
        try:
            block = self.store.get(cid)
        except DamagedBlock as error:
            block = self._fetch_again(cid, error)
        except WwError as error:
            if error.code != EXIT_NOT_FOUND:
                raise
            block = self._fetch(cid)
        self._passed += len(block)
        if self._shown is not None:
            self._shown.passed(len(block))
        return block

    def announce(self, size: int) -> None:
        """Take note of how many bytes will be read, for whoever waits.

        Args:
            size: Bytes of all files together.
        """
        self._size = size
        if self._shown is not None:
            self._shown.of(size)

    # --- as what asks sources other questions ---

    def ask(self, question: Callable[[Source], Answer | None]) -> Iterator[tuple[str, Answer]]:
        """Ask each source something, in their order, and yield what they say, not verified.

        Args:
            question: Asks a source; it is called in another thread, and may raise SourceError.

        Yields:
            The name and the answer of each source that has one.
        """
        from functools import partial

        for source in self.sources:
            done = self._wait(partial(question, source))
            if done.error is not None:
                self._asking.fail(source, done.error)
            elif done.result is not None:
                yield source.name, done.result
            self._tell()

    # --- streams ---

    def prepare(self, path: ContentPath, *, everything: bool = False) -> None:
        """Ask for all that a path needs in one request, unless the store has its root.

        Args:
            path: What will be read next.
            everything: Whether all that is below a directory will be read, too.

        Raises:
            WwError: What the path names is not there, or as :meth:`get`.
        """
        self._end_stream()
        self._left = self._most()
        while (missing := self._first_missing(path)) is not None:
            if not self._get_root(missing, everything=everything):
                return  # reading will tell why
            if self._arrivals is not None:
                return  # the rest comes with it

    def _get_root(self, path: ContentPath, *, everything: bool) -> bool:
        """Get the root of a path, and with it all else that the path needs, if that can be had.

        Returns:
            Whether the root has come.
        """
        from functools import partial

        from runner.content.background import Arrived
        from runner.content.source import Absent

        reasons: dict[str, str] = {}
        for source in self.sources:
            first = self._open_stream(source, path, everything=everything)
            if isinstance(first, Arrived):
                return True
            if isinstance(first.error, Absent):
                reasons[source.name] = first.error.text
                continue
            # It may have no streams, or fail at them only.
            done = self._wait(partial(self._asking.search, path.root, [source]))
            self._tell()
            if done.error is not None:
                raise done.error
            found: Found = done.result
            if found.block is not None:
                self._spend(path.root, len(found.block))
                self._keep(path.root, found.block, found.source)
                return True
            reasons |= found.reasons
        # So that nobody is asked the same again a moment later.
        self._failed[path.root.multihash] = reasons
        return False

    def _first_missing(self, path: ContentPath) -> ContentPath | None:
        """Return the path from the first block on the way that the store does not have."""
        cid = path.root
        for index, name in enumerate(path.names):
            if not self.store.has(cid):
                return ContentPath(cid, path.names[index:])
            above = ContentPath(path.root, path.names[:index])
            cid = find_entry(self, load_node(self, cid, above), name, above)
        return None if self.store.has(cid) else ContentPath(cid, ())

    def _open_stream(self, source: Source, path: ContentPath, *, everything: bool) -> Arrived | End:
        """Begin a stream, and return what comes first: its root, unless it ends before that."""
        from runner.content.background import Arrivals

        most = self._most()
        self._due = {path.root.multihash}
        if self._shown is not None:
            self._shown.asked(source.name)
        self._arrivals = Arrivals(source, path, everything=everything, max_size=most)
        return self._next_arrival(self._arrivals)

    def _from_stream(self, cid: Cid) -> bytes | None:
        """Return a block that the stream brings, or None if it does not."""
        from runner.content.background import Arrived

        while self._arrivals is not None and cid.multihash in self._due:
            item = self._next_arrival(self._arrivals)
            if isinstance(item, Arrived) and item.cid.multihash == cid.multihash:
                return item.block
        return None

    def _next_arrival(self, arrivals: Arrivals) -> Arrived | End:
        """Return the next block of the stream, and keep it; or its end, and close it."""
        from runner.content.background import End

        while (item := arrivals.take(_STEP)) is None:
            self._step()
        if isinstance(item, End):
            self._end_stream()
            if item.error is None:
                self._asking.succeed(arrivals.source)
            else:
                self._asking.fail(arrivals.source, item.error)
            self._tell()
            return item
        self._asking.succeed(arrivals.source)
        self._due.discard(item.cid.multihash)
        with suppress(ContentError):  # whoever reads it will find out
            self._due.update(cid.multihash for cid in dagpb.leads_to(item.cid, item.block))
        # A stream has a bound of its own: what one wastes is not taken from what others may bring.
        self._keep(item.cid, item.block, arrivals.source.name)
        return item

    def _end_stream(self) -> None:
        arrivals, self._arrivals = self._arrivals, None
        self._due.clear()
        if arrivals is not None:
            arrivals.close()

    # --- single blocks ---

    def _fetch(self, cid: Cid) -> bytes:
        """Return a block that the store does not have.

        Raises:
            WwError: No source has it, or the store cannot be written.
        """
        block = self._from_stream(cid)
        return self._single(cid) if block is None else block

    def _fetch_again(self, cid: Cid, damaged: DamagedBlock) -> bytes:
        """Return a block that was damaged in the store."""
        if not self.sources:
            raise damaged
        try:
            block = self._fetch(cid)
        except WwError as error:
            if error.code != EXIT_NOT_FOUND:
                raise
            damaged.what += f"; {error.what}"
            raise damaged from None
        self._asking.warnings.append(f"{damaged.where}: {damaged.what}; it was fetched again")
        self._tell()
        return block

    def _single(self, cid: Cid) -> bytes:
        """Ask for a block and, beside it, for those that are expected next.

        Raises:
            WwError: No source has it, or the store cannot be written.
        """
        if (reasons := self._failed.pop(cid.multihash, None)) is not None:
            raise self._missing(cid, reasons)
        if not self.sources and cid.multihash not in self._under_way:
            raise self._missing(cid, self._asking.lost)
        self._start(cid)
        while True:
            self._start_expected()
            done = self._next_done()
            found = self._settle(done)
            if done.key != cid.multihash:
                continue
            if found is None or found.block is None:
                raise self._missing(cid, self._failed.pop(cid.multihash, {}))
            return found.block

    def _start(self, cid: Cid) -> None:
        if cid.multihash not in self._under_way:
            from functools import partial

            self._under_way[cid.multihash] = cid
            self._crew_at_work.start(cid.multihash, partial(self._asking.search, cid))

    def _start_expected(self) -> None:
        while len(self._under_way) < AT_ONCE and self._expected:
            cid = self._expected.pop()
            key = cid.multihash
            if not (key in self._due or key in self._failed or self.store.has(cid)):
                self._start(cid)

    @property
    def _crew_at_work(self) -> Crew:
        if self._crew is None:
            from runner.content.background import Crew

            self._crew = Crew(AT_ONCE)
        return self._crew

    def _wait(self, call: Callable[[], object]) -> Done:
        """Have a call made in the background, and wait for it."""
        key = object()
        self._crew_at_work.start(key, call)
        while (done := self._next_done()).key is not key:
            self._settle(done)
        return done

    def _next_done(self) -> Done:
        while (done := self._crew_at_work.take(_STEP)) is None:
            self._step()
        return done

    def _settle(self, done: Done) -> Found | None:
        """Keep the block that a search has found, or why nobody has it."""
        cid = self._under_way.pop(done.key, None)
        if cid is None:
            return None  # a call whose wait was ended
        if done.error is not None:
            raise done.error
        found: Found = done.result
        if found.block is not None:
            self._spend(cid, len(found.block))
            self._keep(cid, found.block, found.source)
        else:
            if len(self._failed) >= _MOST_FAILED:
                self._failed.clear()
            self._failed[cid.multihash] = found.reasons
        self._tell()
        return found

    def _most(self) -> int:
        """Return how many bytes of blocks content may take: its own, and what links them."""
        return self._max_size + self._max_size // 16 + _CAR_OVERHEAD

    def _spend(self, cid: Cid, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise OverBudget(
                f"block {cid}",
                f"with it, more than {self._most()} bytes of blocks would be fetched",
                hint="--max-size bounds what content may take",
                code=EXIT_LIMIT,
            )

    def _keep(self, cid: Cid, block: bytes, source: str) -> None:
        self.store.put(cid, block, verified=True)
        if self._shown is not None:
            self._shown.verified(len(block), source)
            self._shown.show()

    # --- the user ---

    def _step(self) -> None:
        """Do what is to be done again and again while a source is waited for."""
        self.pulse()
        self._tell()
        if self._shown is not None:
            self._shown.show()

    def tell(self, text: str) -> None:
        """Show a line to the user, on stderr and in front of whatever is shown there."""
        if self._shown is not None:
            self._shown.clear()
        self._note(text)

    def _tell(self) -> None:
        warnings = self._asking.warnings
        while warnings:
            if self._shown is not None:
                self._shown.clear()
            self._warn(warnings.popleft())

    def _missing(self, cid: Cid, reasons: dict[str, str]) -> WwError:
        self._tell()
        what = f"not in the store {self.store.home}"
        if not reasons:
            return WwError(
                f"block {cid}", what, hint=self._no_sources or _CHECK, code=EXIT_NOT_FOUND
            )
        said = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        return WwError(
            f"block {cid}", f"{what}, nor anywhere else: {said}", hint=_CHECK, code=EXIT_NOT_FOUND
        )


def _ignore(_count: int) -> None:
    pass

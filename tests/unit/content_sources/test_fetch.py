"""The store first, then sources in their order; nothing is believed that is not verified."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.content import unixfs
from runner.content.asking import MAX_FAILURES
from runner.content.blockstore import MAX_BLOCK_SIZE, Blockstore, DamagedBlock
from runner.content.cid import RAW, Cid
from runner.content.fetch import AT_ONCE, Fetched
from runner.content.importer import PROFILES, import_path
from runner.content.resolver import ContentPath, parse_path, resolve_file
from runner.content.source import Absent, Source, SourceError
from runner.errors import EXIT_FAILURE, EXIT_LIMIT, EXIT_NOT_FOUND, WwError
from tests.content.dags import block_files, put_directory, put_file, put_raw
from tests.unit.content_sources.stub import FailingSource, MemorySource, blocks_of

BLOCK = b"a block"
CID = Cid.of(BLOCK, codec=RAW)
ABSENT = Cid.of(b"absent", codec=RAW)
PROFILE = PROFILES["unixfs-v1-2025"]


class Content:
    """A file of some blocks, in a store of its own."""

    def __init__(self, home: Path, chunks: int = 20) -> None:
        self.store = Blockstore(str(home))
        self.leaves = [b"%d " % number * 1000 for number in range(chunks)]
        self.cids = [put_raw(self.store, leaf) for leaf in self.leaves]
        pairs = zip(self.cids, map(len, self.leaves), strict=True)
        self.root = put_file(self.store, pairs)
        self.path = ContentPath(self.root, ())
        self.bytes = b"".join(self.leaves)

    @property
    def blocks(self) -> dict[bytes, bytes]:
        return blocks_of(self.store)

    @property
    def car(self) -> list[tuple[Cid, bytes]]:
        return [(cid, self.store.get(cid)) for cid in (self.root, *self.cids)]


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return Content(tmp_path / "origin")


class Opened(Fetched):
    """As it is, with what it has told."""

    warnings: list[str]


@contextmanager
def opened(home: Path, *sources: Source, max_size: int = 1 << 28) -> Iterator[Opened]:
    warnings: list[str] = []
    with Opened(
        Blockstore(str(home)), lambda watch: sources, warn=warnings.append, max_size=max_size
    ) as blocks:
        blocks.warnings = warnings
        yield blocks


def read(blocks: Fetched, path: ContentPath) -> bytes:
    blocks.prepare(path)
    return b"".join(resolve_file(blocks, str(path)).chunks())


def kept(home: Path) -> int:
    return len(block_files(home))


# --- one block -----------------------------------------------------------------------------------


def test_what_the_store_has_is_asked_of_nobody(tmp_path: Path) -> None:
    def never(watch: object) -> Sequence[Source]:
        raise AssertionError("the sources are made")

    with Blockstore(str(tmp_path)) as store:
        put_raw(store, BLOCK)
    with Fetched(Blockstore(str(tmp_path)), never) as blocks:
        assert blocks.get(CID) == BLOCK
        assert blocks.get(Cid.parse("bafkqabtimvwgy3yk")) == b"hello\n"
        blocks.prepare(ContentPath(CID, ()))
        blocks.expect([ABSENT])


def test_the_first_source_that_has_a_block_is_the_last_one_that_is_asked(tmp_path: Path) -> None:
    one, two, three = (
        MemorySource("one", {}),
        MemorySource("two", {CID.multihash: BLOCK}),
        MemorySource("three", {CID.multihash: BLOCK}),
    )
    with opened(tmp_path, one, two, three) as blocks:
        assert blocks.get(CID) == BLOCK
        # The second time, the store has it.
        assert blocks.get(CID) == BLOCK
    assert (one.asked, two.asked, three.asked) == ([CID], [CID], [])
    assert kept(tmp_path) == 1
    assert all(source.closed for source in (one, two, three))
    assert blocks.warnings == []


@pytest.mark.parametrize("sent", [b"other bytes", b"", BLOCK + b"\0", BLOCK[:-1]])
def test_a_wrong_block_names_itself_and_its_source_which_is_not_asked_again(
    tmp_path: Path, sent: bytes
) -> None:
    other = Cid.of(b"another", codec=RAW)
    liar = MemorySource("liar", {CID.multihash: sent, other.multihash: b"another"})
    honest = MemorySource("honest", {CID.multihash: BLOCK, other.multihash: b"another"})
    with opened(tmp_path, liar, honest) as blocks:
        assert blocks.get(CID) == BLOCK
        assert blocks.get(other) == b"another"
        assert [source.name for source in blocks.sources] == ["honest"]
    assert (liar.asked, honest.asked) == ([CID], [CID, other])
    why = f"liar: it sent other bytes than those of block {CID}"
    assert blocks.warnings == [f"{why}; it is not asked again"]
    with opened(tmp_path / "2", liar) as blocks, pytest.raises(WwError) as caught:
        blocks.get(CID)
    assert why in str(caught.value)
    assert kept(tmp_path / "2") == 0


def test_a_block_that_is_too_large_is_not_even_hashed(tmp_path: Path) -> None:
    large = bytes(MAX_BLOCK_SIZE + 1)
    cid = Cid.of(large, codec=RAW)
    source = MemorySource("source", {cid.multihash: large})
    with opened(tmp_path, source) as blocks, pytest.raises(WwError, match="more than 2097152"):
        blocks.get(cid)


def test_the_error_says_who_was_asked_and_why_each_does_not_have_it(tmp_path: Path) -> None:
    sources = (
        MemorySource("one", {}),
        FailingSource("two", SourceError("connection refused", gone=True)),
        FailingSource("three", Absent("does not have it: not found")),
        FailingSource("four", ZeroDivisionError("by zero")),
        MemorySource("five", {ABSENT.multihash: b"wrong"}),
    )
    with opened(tmp_path, *sources) as blocks:
        for _ in range(2):
            with pytest.raises(WwError) as caught:
                blocks.get(ABSENT)
            assert caught.value.code == EXIT_NOT_FOUND
            assert caught.value.where == f"block {ABSENT}"
            assert caught.value.what == (
                f"not in the store {tmp_path}, nor anywhere else: one: does not have it; "
                "two: connection refused; three: does not have it: not found; "
                "four: ZeroDivisionError: by zero; "
                f"five: it sent other bytes than those of block {ABSENT}"
            )
    assert sources[1].asked == 1


def test_a_source_that_fails_again_and_again_is_not_asked_again(tmp_path: Path) -> None:
    failing = FailingSource("failing", SourceError("too slow"))
    has = {CID.multihash: BLOCK}
    cids = [Cid.of(b"%d" % number, codec=RAW) for number in range(MAX_FAILURES + 2)]
    has |= {cid.multihash: b"%d" % number for number, cid in enumerate(cids)}
    with opened(tmp_path, failing, MemorySource("other", has)) as blocks:
        for cid in cids:
            blocks.get(cid)
    assert failing.asked == MAX_FAILURES
    assert blocks.warnings == ["failing: too slow; it is not asked again"]


def test_what_becomes_of_a_source_that_nobody_has_named_is_not_told(tmp_path: Path) -> None:
    quiet = FailingSource("quiet", SourceError("connection refused", gone=True), named=False)
    with opened(tmp_path, quiet, MemorySource("other", {CID.multihash: BLOCK})) as blocks:
        assert blocks.get(CID) == BLOCK
        assert blocks.warnings == []
        with pytest.raises(WwError, match="quiet: connection refused; other: does not have it"):
            blocks.get(ABSENT)
    # But a lie is.
    liar = MemorySource("liar", {CID.multihash: b"x"}, named=False)
    with opened(tmp_path / "2", liar) as blocks, pytest.raises(WwError):
        blocks.get(CID)
    assert len(blocks.warnings) == 1


def test_a_damaged_block_of_the_store_is_fetched_again(tmp_path: Path) -> None:
    with Blockstore(str(tmp_path)) as store:
        put_raw(store, BLOCK)
        damaged = Path(store.path(CID))
    damaged.write_bytes(b"damaged")
    with opened(tmp_path) as blocks, pytest.raises(DamagedBlock):
        blocks.get(CID)
    damaged.write_bytes(b"damaged")
    with opened(tmp_path, MemorySource("source", {})) as blocks:
        with pytest.raises(DamagedBlock, match="source: does not have it") as caught:
            blocks.get(CID)
        assert caught.value.code == EXIT_FAILURE
    damaged.write_bytes(b"damaged")
    with opened(tmp_path, MemorySource("source", {CID.multihash: BLOCK})) as blocks:
        assert blocks.get(CID) == BLOCK
    assert damaged.read_bytes() == BLOCK
    (warning,) = blocks.warnings
    assert warning.startswith(f"block {CID}: damaged")
    assert warning.endswith("it was fetched again")


def test_what_is_raised_while_a_source_is_waited_for_ends_the_wait(tmp_path: Path) -> None:
    over = threading.Event()
    asked = threading.Event()

    class Hanging(MemorySource):
        def get(self, cid: Cid) -> bytes | None:
            asked.set()
            over.wait(30)
            return BLOCK

        def close(self) -> None:
            over.set()

    class Enough(BaseException):
        pass

    def end_when_asked() -> None:
        if asked.is_set():
            raise Enough

    with opened(tmp_path, Hanging("hanging", {})) as blocks:
        blocks.pulse = end_when_asked
        with pytest.raises(Enough):
            blocks.get(CID)
        assert not over.is_set()
        # And later it goes on where it was.
        blocks.pulse = over.set
        assert blocks.get(CID) == BLOCK


# --- many blocks ---------------------------------------------------------------------------------


def test_as_many_blocks_are_under_way_as_may_be_and_each_is_asked_for_once(
    tmp_path: Path, content: Content
) -> None:
    class Slow(MemorySource):
        """Answers when as many have asked as can."""

        def __init__(self) -> None:
            super().__init__("slow", content.blocks)
            self.together = threading.Barrier(AT_ONCE, timeout=20)
            self.most = self.now = 0
            self.lock = threading.Lock()

        def get(self, cid: Cid) -> bytes | None:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            # The root comes alone, and the last ones may be fewer.
            if cid in content.cids[:16]:
                self.together.wait()
            with self.lock:
                self.now -= 1
            return super().get(cid)

    source = Slow()
    with opened(tmp_path, source) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert source.most == AT_ONCE == 8
    assert sorted(source.asked) == sorted({content.root, *content.cids})
    # The second time, nobody is asked.
    with opened(tmp_path, idle := MemorySource("idle", {})) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert idle.asked == []
    assert idle.asked_car == []


def test_what_is_missing_in_the_middle_is_named_and_the_rest_stays(
    tmp_path: Path, content: Content
) -> None:
    have = content.blocks
    del have[content.cids[10].multihash]
    with opened(tmp_path, MemorySource("source", have)) as blocks:
        with pytest.raises(WwError) as caught:
            read(blocks, content.path)
        assert caught.value.where == f"block {content.cids[10]}"
        assert caught.value.code == EXIT_NOT_FOUND
    assert kept(tmp_path) >= 11
    # The next try asks for nothing that is there.
    source = MemorySource("source", content.blocks)
    with opened(tmp_path, source) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert not set(source.asked) & {content.root, *content.cids[:10]}


def test_a_source_that_lies_in_the_middle_is_left_for_the_next(
    tmp_path: Path, content: Content
) -> None:
    lies = content.blocks
    lies[content.cids[5].multihash] = b"x"
    honest = MemorySource("honest", content.blocks)
    with opened(tmp_path, MemorySource("liar", lies), honest) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert content.cids[5] in honest.asked
    assert len(blocks.warnings) == 1


def test_what_is_expected_is_bounded(tmp_path: Path) -> None:
    with opened(tmp_path) as blocks:
        for _ in range(3):
            blocks.expect(Cid.of(b"%d" % number, codec=RAW) for number in range(10_000))
        assert len(blocks._expected) == 8192
        assert blocks._expected[-1] == Cid.of(b"0", codec=RAW)


# --- streams -------------------------------------------------------------------------------------


def test_a_stream_brings_all_in_one_request(tmp_path: Path, content: Content) -> None:
    source = MemorySource("source", {}, car=content.car)
    with opened(tmp_path, source) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert source.asked_car == [(content.path, False)]
    assert source.asked == []
    assert kept(tmp_path) == len(content.blocks)


@pytest.mark.parametrize("everything", [True, False])
def test_a_stream_is_asked_for_from_the_first_block_that_is_missing(
    tmp_path: Path, content: Content, everything: bool
) -> None:
    below = put_directory(content.store, [("file", content.root)])
    root = put_directory(content.store, [("below", below)])
    path = ContentPath(root, ("below", "file"))
    car = [(cid, content.store.get(cid)) for cid in (root, below)] + content.car
    for have, asked in (
        ((), path),
        ((root,), ContentPath(below, ("file",))),
        ((root, below), content.path),
    ):
        home = tmp_path / f"{len(have)}"
        with Blockstore(str(home)) as store:
            for cid in have:
                store.put(cid, content.store.get(cid))
        source = MemorySource("source", {}, car=car[len(have) :])
        with opened(home, source) as blocks:
            blocks.prepare(path, everything=everything)
            assert b"".join(resolve_file(blocks, str(path)).chunks()) == content.bytes
        assert source.asked_car == [(asked, everything)]
        assert source.asked == []


def test_who_has_no_stream_of_a_path_is_asked_for_its_blocks_and_then_for_a_stream(
    tmp_path: Path, content: Content
) -> None:
    """As a node: it exports what is below a CID."""
    root = put_directory(content.store, [("file", content.root)])

    class Node(MemorySource):
        def car(self, path: ContentPath, *, everything: bool = False) -> Any:
            stream = super().car(path, everything=everything)
            return None if path.names else stream

    node = Node("node", content.blocks, car=content.car)
    with opened(tmp_path, node) as blocks:
        assert read(blocks, ContentPath(root, ("file",))) == content.bytes
    assert node.asked == [root]
    assert [path for path, _ in node.asked_car] == [ContentPath(root, ("file",)), content.path]


def test_what_a_stream_lacks_comes_as_single_blocks(tmp_path: Path, content: Content) -> None:
    car = [pair for pair in content.car if pair[0] not in (content.cids[3], content.cids[19])]
    first = MemorySource("first", {}, car=car)
    second = MemorySource("second", content.blocks)
    with opened(tmp_path, first, second) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert sorted(second.asked) == sorted([content.cids[3], content.cids[19]])
    assert blocks.warnings == []


def test_a_wrong_block_in_a_stream_ends_it_and_its_source(tmp_path: Path, content: Content) -> None:
    car = content.car
    car[5] = (car[5][0], b"x")
    liar = MemorySource("liar", content.blocks, car=car)
    honest = MemorySource("honest", content.blocks, car=content.car)
    with opened(tmp_path, liar, honest) as blocks:
        assert read(blocks, content.path) == content.bytes
    assert liar.asked == []
    # What came before it is used.
    assert not set(honest.asked) & {content.root, *content.cids[:4]}
    assert blocks.warnings == [
        f"liar: it sent other bytes than those of block {car[5][0]}; it is not asked again"
    ]


def test_the_next_source_is_asked_where_the_first_has_not_even_the_root(
    tmp_path: Path, content: Content
) -> None:
    sources = (
        MemorySource("empty", {}, car=[]),
        MemorySource("absent", {}, car=Absent("does not have it: not found")),
        MemorySource("failing", {}, car=SourceError("too slow")),
        MemorySource("other", {}, car=[(CID, BLOCK)]),
        MemorySource("has", {}, car=content.car),
    )
    with opened(tmp_path, *sources) as blocks:
        assert read(blocks, content.path) == content.bytes
    # Who has said that it does not have it is not asked in another way.
    assert [len(source.asked) for source in sources] == [1, 0, 1, 1, 0]
    assert kept(tmp_path) == len(content.blocks)


def test_nobody_is_asked_twice_for_what_is_nowhere(tmp_path: Path) -> None:
    sources = (MemorySource("one", {}), MemorySource("two", {}, car=Absent("not here")))
    with opened(tmp_path, *sources) as blocks:
        with pytest.raises(WwError, match="one: does not have it; two: not here") as caught:
            read(blocks, ContentPath(ABSENT, ()))
        assert caught.value.code == EXIT_NOT_FOUND
    assert [len(source.asked) for source in sources] == [1, 0]


def test_a_file_that_is_too_large_ends_its_stream(tmp_path: Path, content: Content) -> None:
    source = MemorySource("source", {}, car=content.car)
    path = str(content.path)
    with opened(tmp_path, source) as blocks:
        blocks.prepare(content.path)
        with pytest.raises(WwError) as caught:
            resolve_file(blocks, path, max_size=len(content.bytes) - 1)
        assert caught.value.code == EXIT_LIMIT
    assert kept(tmp_path) == 1


def test_a_stream_is_read_no_further_than_its_content_can_be_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
) -> None:
    # A directory, of which nothing tells the size before it is read.
    monkeypatch.setattr("runner.content.fetch._CAR_OVERHEAD", 0)
    cids = [put_raw(content.store, b"%d" % number * 1000) for number in range(50)]
    root = put_directory(content.store, [(f"{cid}", cid) for cid in cids])
    car = [(cid, content.store.get(cid)) for cid in (root, *cids)]
    source = MemorySource("source", content.blocks, car=car)
    with opened(tmp_path, source, max_size=20_000) as blocks:
        blocks.prepare(ContentPath(root, ()), everything=True)
        with pytest.raises(WwError) as caught:
            [blocks.get(cid) for cid in cids]
    # Nor is the rest fetched, though somebody asks for it.
    assert caught.value.code == EXIT_LIMIT
    assert "--max-size" in caught.value.hint
    assert 0 < len(source.asked) < 50


def test_what_one_stream_wastes_is_not_taken_from_what_others_may_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
) -> None:
    # The file is in a directory, and the source sends all of that.
    monkeypatch.setattr("runner.content.fetch._CAR_OVERHEAD", 0)
    size = len(content.bytes)
    beside = put_raw(content.store, bytes(size))
    root = put_directory(content.store, [("a", beside), ("b", content.root)])
    car = [(cid, content.store.get(cid)) for cid in (root, beside, content.root, *content.cids)]
    source = MemorySource("source", blocks_of(content.store), car=car)
    with opened(tmp_path, source, max_size=size) as blocks:
        assert read(blocks, ContentPath(root, ("b",))) == content.bytes


def test_a_buffer_that_a_source_uses_again_does_not_change_what_was_verified(
    tmp_path: Path,
) -> None:
    class Reusing(MemorySource):
        buffer = bytearray()

        def get(self, cid: Cid) -> bytes | None:
            self.buffer[:] = super().get(cid) or b""
            return self.buffer  # type: ignore[return-value]

    source = Reusing("source", {CID.multihash: BLOCK})
    with opened(tmp_path, source) as blocks:
        block = blocks.get(CID)
        source.buffer[:] = b"evil!!!"
        assert block == BLOCK


def test_a_source_that_returns_no_bytes_fails_and_the_next_is_asked(tmp_path: Path) -> None:
    wrong = MemorySource("wrong", {CID.multihash: "text"})  # type: ignore[dict-item]
    right = MemorySource("right", {CID.multihash: BLOCK})
    with opened(tmp_path, wrong, right) as blocks:
        assert blocks.get(CID) == BLOCK


def test_a_stream_of_something_else_is_not_waited_for(tmp_path: Path, content: Content) -> None:
    over = threading.Event()

    class Endless:
        def read(self, size: int, /) -> bytes:
            over.wait(30)
            raise SourceError("closed")

        def close(self) -> None:
            over.set()

    class Slow(MemorySource):
        def car(self, path: ContentPath, *, everything: bool = False) -> Any:
            return Joined(super().car(path, everything=everything))

    class Joined:
        """The root, and then nothing for a long time."""

        def __init__(self, first: Any) -> None:
            self.parts = [first, Endless()]

        def read(self, size: int, /) -> bytes:
            while True:
                data: bytes = self.parts[0].read(size)
                if data:
                    return data
                self.parts.pop(0)

        def close(self) -> None:
            over.set()

    source = Slow("slow", {CID.multihash: BLOCK}, car=content.car[:1])
    with opened(tmp_path, source) as blocks:
        blocks.prepare(content.path)
        assert blocks.get(CID) == BLOCK
        assert not over.is_set()


def test_a_sharded_directory_is_read_with_several_requests_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(6000):
        (folder / f"a rather long name of a file, to make the directory large {number}").touch()
    origin = Blockstore(str(tmp_path / "origin"))
    root = import_path(origin, str(folder), profile=PROFILE)
    from runner.content.resolver import list_entries, load_node

    threads: set[int] = set()

    class Noting(MemorySource):
        def get(self, cid: Cid) -> bytes | None:
            threads.add(threading.get_ident())
            return super().get(cid)

    source = Noting("source", blocks_of(origin))
    with opened(tmp_path / "home", source) as blocks:
        path = ContentPath(root, ())
        node = load_node(blocks, root, path)
        assert node.data.type == unixfs.HAMT_SHARD
        assert sum(1 for _ in list_entries(blocks, node, path)) == 6000
    assert len(threads) == AT_ONCE
    assert len(source.asked) == len(set(source.asked))


# --- other questions -----------------------------------------------------------------------------


def test_sources_are_asked_other_questions_in_their_order(tmp_path: Path) -> None:
    class Knowing(MemorySource):
        def ipns(self, name: str) -> bytes | None:
            return f"{self.name} of {name}".encode()

    sources = (
        MemorySource("silent", {}),
        FailingSource("gone", SourceError("refused", gone=True)),
        Knowing("one", {}),
        Knowing("two", {}),
    )
    gone = sources[1]

    def question(source: Source) -> bytes | None:
        if source is gone:
            return gone.get(CID)
        return source.ipns("k51")

    with opened(tmp_path, *sources) as blocks:
        answers = blocks.ask(question)
        assert next(answers) == ("one", b"one of k51")
        assert list(answers) == [("two", b"two of k51")]
        assert list(blocks.ask(lambda source: source.dnslink("example.org"))) == []
        assert [source.name for source in blocks.sources] == ["silent", "one", "two"]


def test_the_store_is_let_go_of_at_the_end(tmp_path: Path) -> None:
    from runner.content.gc import collect

    source = MemorySource("source", {CID.multihash: BLOCK})
    with opened(tmp_path, source) as blocks:
        blocks.get(CID)
        with pytest.raises(WwError):
            collect(str(tmp_path), max_size=0, wait=0, dry_run=False)
    collect(str(tmp_path), max_size=0, wait=0, dry_run=False)
    assert kept(tmp_path) == 0
    blocks.close()
    threads = [thread for thread in threading.enumerate() if thread.daemon]
    assert threads == []


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("not a directory")
    source = MemorySource("source", {CID.multihash: BLOCK})
    with opened(home, source) as blocks, pytest.raises(WwError, match="Not a directory") as caught:
        blocks.get(CID)
    assert caught.value.code == EXIT_FAILURE
    assert os.path.isfile(home)


def test_a_path_that_leads_nowhere_is_told_before_anything_is_read(
    tmp_path: Path, content: Content
) -> None:
    root = put_directory(content.store, [("file", content.root)])
    with opened(tmp_path, MemorySource("source", content.blocks)) as blocks:
        with pytest.raises(WwError, match=r"/other: no such file or directory") as caught:
            blocks.prepare(parse_path(f"/ipfs/{root}/other"))
        assert caught.value.code == EXIT_NOT_FOUND

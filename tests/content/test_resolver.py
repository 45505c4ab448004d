"""Paths, and the verified bytes of files."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import hamt, resolver, unixfs
from runner.content.blockstore import Blockstore
from runner.content.cid import RAW, Cid
from runner.content.dagpb import Link
from runner.content.importer import import_path
from runner.content.resolver import DEFAULT_MAX_SIZE, MAX_DEPTH, parse_path, resolve_file
from runner.errors import (
    EXIT_CANNOT_RUN,
    EXIT_FAILURE,
    EXIT_LIMIT,
    EXIT_NOT_FOUND,
    EXIT_USAGE,
    WwError,
)
from tests.content.dags import (
    MemoryStore,
    block_files,
    put_block,
    put_directory,
    put_file,
    put_node,
    put_raw,
)

SOME = "bafkreidon73zkcrwdb5iafqtijxildoonbwnpv7dyd6ef3qdgads2jc4su"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def read(store: Blockstore, path: str, **limits: int) -> bytes:
    file = resolve_file(store, path, **limits)
    content = b"".join(file.chunks())
    assert len(content) == file.size
    return content


def refusal(store: Blockstore, path: str, **limits: int) -> WwError:
    with pytest.raises(WwError) as caught:
        read(store, path, **limits)
    assert str(caught.value).isprintable()
    return caught.value


class TestPaths:
    def test_a_cid_alone_and_a_path_below_it(self) -> None:
        assert parse_path(f"/ipfs/{SOME}") == (Cid.parse(SOME), ())
        assert parse_path(f"/ipfs/{SOME}/bin/a b").names == ("bin", "a b")
        assert str(parse_path(f"/ipfs/{SOME}/bin/main.wasm")) == f"/ipfs/{SOME}/bin/main.wasm"

    def test_one_slash_at_the_end_is_allowed(self) -> None:
        assert parse_path(f"/ipfs/{SOME}/") == parse_path(f"/ipfs/{SOME}")
        assert parse_path(f"/ipfs/{SOME}/bin/") == parse_path(f"/ipfs/{SOME}/bin")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/",
            "/ipfs",
            "/ipfs/",
            "/ipfs//",
            SOME,
            f"ipfs/{SOME}",
            f"/IPFS/{SOME}",
            f"/ipns/{SOME}",
            f"ipfs://{SOME}",
            f" /ipfs/{SOME}",
            "/ipfs/foo",
            f"/ipfs/{SOME}x",
            f"/ipfs/{SOME} ",
            f"/ipfs/{SOME}//a",
            f"/ipfs/{SOME}/a//",
            f"/ipfs/{SOME}/./a",
            f"/ipfs/{SOME}/../a",
            f"/ipfs/{SOME}/a/..",
            f"/ipfs/{SOME}/a\0b",
            f"/ipfs/{SOME}/\udcff",
            f"/ipfs/{SOME}/" + "x" * 256,
            f"/ipfs/{SOME}/" + "x/" * 2100,
            "/ipfs/" + "b" * 600,
            "/ipfs/\x1b[31m",
        ],
    )
    def test_other_paths_are_refused_as_a_mistake_of_usage(self, text: str) -> None:
        with pytest.raises(WwError, match="not a valid path") as caught:
            parse_path(text)
        assert caught.value.code == EXIT_USAGE
        assert "/ipfs/CID" in caught.value.hint
        assert str(caught.value).isprintable()

    @given(st.text(max_size=80))
    def test_random_text_is_refused_or_comes_back(self, text: str) -> None:
        try:
            path = parse_path("/ipfs/" + text)
        except WwError:
            return
        assert parse_path(str(path)) == path


class TestWalking:
    def test_a_file_is_found_in_directories(self, store: MemoryStore) -> None:
        file = put_raw(store, b"cell")
        inner = put_directory(store, [("main.wasm", file), ("other", put_raw(store, b""))])
        root = put_directory(store, [("bin", inner)])
        assert read(store, f"/ipfs/{root}/bin/main.wasm") == b"cell"
        assert read(store, f"/ipfs/{root}/bin/other") == b""

    def test_a_file_is_found_in_a_sharded_directory(self, store: MemoryStore) -> None:
        files = {f"file {number}": str(number).encode() for number in range(1000)}
        links = [Link(put_raw(store, data), name, 0) for name, data in files.items()]
        root = hamt.build(links, lambda block: put_block(store, block)).cid
        for name in ("file 0", "file 7", "file 999"):
            assert read(store, f"/ipfs/{root}/{name}") == files[name]
        assert refusal(store, f"/ipfs/{root}/file 1000").code == EXIT_NOT_FOUND

    def test_a_directory_where_a_file_is_wanted_is_refused(self, store: MemoryStore) -> None:
        root = put_directory(store, [("a", put_raw(store, b"x"))])
        error = refusal(store, f"/ipfs/{root}")
        assert error.code == EXIT_CANNOT_RUN
        assert "is a directory" in error.what
        shard = hamt.build([], lambda block: put_block(store, block)).cid
        assert "is a directory" in refusal(store, f"/ipfs/{shard}").what

    def test_a_missing_name_is_shown_with_the_path_up_to_it(self, store: MemoryStore) -> None:
        root = put_directory(store, [("bin", put_directory(store, []))])
        error = refusal(store, f"/ipfs/{root}/bin/nope/deeper")
        assert error.code == EXIT_NOT_FOUND
        assert error.where == f"/ipfs/{root}/bin/nope"

    def test_a_path_through_a_file_is_refused(self, store: MemoryStore) -> None:
        root = put_directory(store, [("a", put_raw(store, b"x"))])
        error = refusal(store, f"/ipfs/{root}/a/b")
        assert (error.code, error.where) == (EXIT_NOT_FOUND, f"/ipfs/{root}/a")
        assert "is not a directory" in error.what

    def test_a_symbolic_link_is_refused_at_the_end_and_on_the_way(self, store: MemoryStore) -> None:
        link = put_node(store, [], unixfs.Data(unixfs.SYMLINK, b"target"))
        root = put_directory(store, [("link", link), ("target", put_raw(store, b"x"))])
        for path in (f"/ipfs/{root}/link", f"/ipfs/{root}/link/x", f"/ipfs/{link}"):
            error = refusal(store, path)
            assert error.code == EXIT_CANNOT_RUN
            assert "symbolic link" in error.what

    def test_a_missing_block_is_named(self, store: MemoryStore) -> None:
        missing = Cid.of(b"missing", codec=RAW)
        root = put_directory(store, [("a", missing)])
        for path in (f"/ipfs/{root}/a", f"/ipfs/{missing}"):
            error = refusal(store, path)
            assert error.code == EXIT_NOT_FOUND
            assert str(missing) in str(error)

    def test_another_codec_is_refused_without_asking_for_the_block(
        self, store: MemoryStore
    ) -> None:
        cbor = Cid.of(b"\xa0", codec=0x71)
        error = refusal(store, f"/ipfs/{cbor}")
        assert error.code == EXIT_CANNOT_RUN
        assert "0x71" in error.what

    def test_metadata_is_refused(self, store: MemoryStore) -> None:
        cid = put_node(store, [], unixfs.Data(unixfs.METADATA, b"x"))
        assert "metadata" in refusal(store, f"/ipfs/{cid}").what

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "é" * 128])
    def test_a_directory_with_an_impossible_name_is_refused(
        self, store: MemoryStore, name: str
    ) -> None:
        file = put_raw(store, b"x")
        root = put_directory(store, [("good", file), (name, file)])
        error = refusal(store, f"/ipfs/{root}/good")
        assert error.code == EXIT_FAILURE
        assert f"block {root} is malformed" in error.what

    def test_a_directory_with_one_name_twice_is_refused(self, store: MemoryStore) -> None:
        root = put_directory(
            store,
            [("a", put_raw(store, b"1")), ("b", put_raw(store, b"x")), ("a", put_raw(store, b"2"))],
        )
        error = refusal(store, f"/ipfs/{root}/b")
        assert "two entries named 'a'" in error.what

    def test_a_malformed_block_is_named(self, store: MemoryStore) -> None:
        for block in (b"junk", b"\x0a\x01\x08", b"", b"\x0a\x02\x08\x09"):
            bad = put_block(store, block)
            root = put_directory(store, [("a", bad)])
            error = refusal(store, f"/ipfs/{root}/a")
            assert error.code == EXIT_FAILURE
            assert f"block {bad} is malformed" in error.what

    @given(st.binary(max_size=100))
    def test_any_block_is_a_file_or_refused(self, block: bytes) -> None:
        store = MemoryStore()
        root = put_block(store, block)
        for path in (f"/ipfs/{root}", f"/ipfs/{root}/name"):
            # Anything but this one error is a failure.
            with contextlib.suppress(WwError):
                read(store, path)


class TestFiles:
    def test_a_file_of_many_levels_comes_back(self, store: MemoryStore) -> None:
        left = put_file(store, [(put_raw(store, b"ab"), 2), (put_raw(store, b"c"), 1)])
        root = put_file(store, [(left, 3), (put_raw(store, b"d"), 1)])
        assert read(store, f"/ipfs/{root}") == b"abcd"

    def test_data_in_an_inner_node_comes_before_that_of_its_links(self, store: MemoryStore) -> None:
        data = unixfs.Data(unixfs.FILE, b"ab", 3, (1,))
        root = put_node(store, [Link(put_raw(store, b"c"), "", 0)], data)
        assert read(store, f"/ipfs/{root}") == b"abc"

    def test_leaves_may_be_raw_files_or_unixfs_raw_and_need_not_say_their_size(
        self, store: MemoryStore
    ) -> None:
        leaves = [
            put_raw(store, b"a"),
            put_node(store, [], unixfs.Data(unixfs.RAW, b"b", 1)),
            put_node(store, [], unixfs.Data(unixfs.FILE, b"c")),
        ]
        root = put_file(store, [(leaf, 1) for leaf in leaves])
        assert read(store, f"/ipfs/{root}") == b"abc"

    def test_the_size_is_known_before_any_leaf_is_read(self, store: MemoryStore) -> None:
        root = put_file(store, [(Cid.of(b"not here", codec=RAW), 8)])
        assert resolve_file(store, f"/ipfs/{root}").size == 8

    @pytest.mark.parametrize(
        ("sizes", "filesize", "message"),
        [
            ((1,), 1, "2 links and 1 block sizes"),
            ((1, 1, 1), 3, "2 links and 3 block sizes"),
            ((1, 1), 3, "the file size is 3, and its parts add up to 2"),
            ((1, 1), 1, "the file size is 1, and its parts add up to 2"),
            ((2, 0), 2, "a part of a file is empty"),
        ],
    )
    def test_a_node_that_contradicts_itself_is_refused_before_the_first_byte(
        self, store: MemoryStore, sizes: tuple[int, ...], filesize: int, message: str
    ) -> None:
        leaf = Link(put_raw(store, b"a"), "", 0)
        root = put_node(store, [leaf, leaf], unixfs.Data(unixfs.FILE, None, filesize, sizes))
        with pytest.raises(WwError, match=message) as caught:
            resolve_file(store, f"/ipfs/{root}")
        assert caught.value.code == EXIT_FAILURE
        assert f"block {root} is malformed" in caught.value.what

    def test_a_child_of_another_size_than_promised_is_refused(self, store: MemoryStore) -> None:
        for content, promised in ((b"abc", 2), (b"a", 2), (b"", 2)):
            leaf = put_raw(store, content)
            root = put_file(store, [(leaf, promised)])
            error = refusal(store, f"/ipfs/{root}")
            assert f"block {leaf} is malformed" in error.what
            assert f"{promised} were promised" in error.what

    def test_an_inner_node_of_another_size_than_promised_is_refused(
        self, store: MemoryStore
    ) -> None:
        inner = put_file(store, [(put_raw(store, b"abc"), 3)])
        root = put_file(store, [(inner, 2)])
        assert f"block {inner} is malformed" in refusal(store, f"/ipfs/{root}").what

    def test_a_part_that_is_not_a_file_is_refused(self, store: MemoryStore) -> None:
        for kind in (unixfs.DIRECTORY, unixfs.SYMLINK, unixfs.HAMT_SHARD, unixfs.METADATA):
            part = put_node(store, [], unixfs.Data(kind, b"x", 1))
            root = put_file(store, [(part, 1)])
            assert "a part of a file is not a file" in refusal(store, f"/ipfs/{root}").what

    def test_a_part_of_another_codec_is_refused(self, store: MemoryStore) -> None:
        root = put_file(store, [(Cid.of(b"\xa0", codec=0x71), 1)])
        assert "0x71" in refusal(store, f"/ipfs/{root}").what

    def test_a_missing_leaf_is_named_and_what_came_before_it_is_verified(
        self, store: MemoryStore
    ) -> None:
        missing = Cid.of(b"b", codec=RAW)
        root = put_file(store, [(put_raw(store, b"a"), 1), (missing, 1)])
        chunks = resolve_file(store, f"/ipfs/{root}").chunks()
        assert next(chunks) == b"a"
        with pytest.raises(WwError, match=str(missing)) as caught:
            next(chunks)
        assert caught.value.code == EXIT_NOT_FOUND


class TestBombs:
    def test_a_file_above_the_limit_is_refused_by_what_its_root_says(
        self, store: MemoryStore
    ) -> None:
        root = put_file(store, [(Cid.of(b"not here", codec=RAW), 8)])
        assert resolve_file(store, f"/ipfs/{root}", max_size=8).size == 8
        with pytest.raises(WwError, match="8 bytes, and the limit is 7") as caught:
            resolve_file(store, f"/ipfs/{root}", max_size=7)
        assert caught.value.code == EXIT_LIMIT

    def test_one_block_named_over_and_over_is_stopped_by_the_limit(
        self, store: MemoryStore
    ) -> None:
        block, size = put_raw(store, bytes(1000)), 1000
        for _ in range(4):
            block, size = put_file(store, [(block, size)] * 174), size * 174
        assert size > DEFAULT_MAX_SIZE
        with pytest.raises(WwError) as caught:
            resolve_file(store, f"/ipfs/{block}")
        assert caught.value.code == EXIT_LIMIT

    def test_one_block_named_over_and_over_within_the_limit_is_as_large_as_it_said(
        self, store: MemoryStore
    ) -> None:
        block, size = put_raw(store, b"x"), 1
        for _ in range(2):
            block, size = put_file(store, [(block, size)] * 174), size * 174
        assert read(store, f"/ipfs/{block}") == b"x" * size

    def test_a_root_that_says_less_than_its_parts_hold_is_refused(self, store: MemoryStore) -> None:
        block, size = put_raw(store, bytes(1000)), 1000
        for _ in range(3):
            block, size = put_file(store, [(block, size)] * 174), size * 174
        root = put_file(store, [(block, 1)])
        assert "1 were promised" in refusal(store, f"/ipfs/{root}").what

    def test_more_blocks_than_any_honest_file_has_are_refused(
        self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resolver, "MAX_BLOCKS", 1000)
        block, size = put_raw(store, b"x"), 1
        for _ in range(3):
            block, size = put_file(store, [(block, size)] * 174), size * 174
        error = refusal(store, f"/ipfs/{block}")
        assert error.code == EXIT_LIMIT
        assert "more than 1000 blocks" in error.what

    def test_more_links_than_any_honest_node_has_are_refused(self, store: MemoryStore) -> None:
        leaf = put_raw(store, b"x")
        root = put_file(store, [(leaf, 1)] * (resolver.MAX_LINKS + 1))
        assert "more than 8192 links" in refusal(store, f"/ipfs/{root}").what
        root = put_file(store, [(leaf, 1)] * resolver.MAX_LINKS)
        assert read(store, f"/ipfs/{root}") == b"x" * resolver.MAX_LINKS

    @pytest.mark.parametrize(("depth", "accepted"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
    def test_depth_is_limited(self, store: MemoryStore, depth: int, accepted: bool) -> None:
        block = put_raw(store, b"x")
        for _ in range(depth - 1):
            block = put_file(store, [(block, 1)])
        if accepted:
            assert read(store, f"/ipfs/{block}") == b"x"
        else:
            error = refusal(store, f"/ipfs/{block}")
            assert error.code == EXIT_FAILURE
            assert "blocks deep" in error.what

    def test_a_very_deep_file_does_not_exhaust_the_stack(self, store: MemoryStore) -> None:
        block = put_raw(store, b"x")
        for _ in range(20_000):
            block = put_file(store, [(block, 1)])
        assert "blocks deep" in refusal(store, f"/ipfs/{block}").what

    def test_a_size_near_two_to_the_63_is_only_too_large(self, store: MemoryStore) -> None:
        root = put_file(store, [(put_raw(store, b"x"), 2**63 - 1)])
        assert refusal(store, f"/ipfs/{root}").code == EXIT_LIMIT


class TestOnDisk:
    @pytest.fixture
    def content(self) -> bytes:
        return os.urandom(1_000_000)

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Blockstore:
        return Blockstore(str(tmp_path / "store"))

    @pytest.fixture
    def cid(self, disk: Blockstore, tmp_path: Path, content: bytes) -> Cid:
        (tmp_path / "source").write_bytes(content)
        return import_path(disk, str(tmp_path / "source"))

    def test_a_file_is_copied_to_a_descriptor(
        self, disk: Blockstore, cid: Cid, content: bytes, tmp_path: Path
    ) -> None:
        with (tmp_path / "copy").open("wb") as copy:
            resolve_file(disk, f"/ipfs/{cid}").copy_to(copy.fileno())
        assert (tmp_path / "copy").read_bytes() == content

    def test_a_copy_goes_through_a_pipe(self, disk: Blockstore, cid: Cid, content: bytes) -> None:
        import threading

        reading, writing = os.pipe()
        with open(reading, "rb") as reader:
            found: list[bytes] = []
            thread = threading.Thread(target=lambda: found.append(reader.read()))
            thread.start()
            resolve_file(disk, f"/ipfs/{cid}").copy_to(writing)
            os.close(writing)
            thread.join()
        assert found == [content]

    def test_a_descriptor_that_cannot_be_written_is_an_error_of_ww(
        self, disk: Blockstore, cid: Cid
    ) -> None:
        with (
            open("/dev/full", "wb", buffering=0) as full,
            pytest.raises(WwError, match="cannot write the copy: No space left"),
        ):
            resolve_file(disk, f"/ipfs/{cid}").copy_to(full.fileno())

    def test_any_damaged_block_is_refused_and_named(
        self, disk: Blockstore, cid: Cid, content: bytes
    ) -> None:
        for path in block_files(disk.home):
            whole = Path(path).read_bytes()
            for damage in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b""):
                Path(path).write_bytes(damage)
                error = refusal(disk, f"/ipfs/{cid}")
                assert error.code == EXIT_FAILURE
                assert "damaged" in error.what
                assert path in error.what
            Path(path).write_bytes(whole)
        assert read(disk, f"/ipfs/{cid}") == content

    def test_swapped_blocks_are_refused(self, disk: Blockstore, cid: Cid) -> None:
        links, _ = unixfs.decode_node(disk.get(cid))
        first, second = disk.path(links[0].cid), disk.path(links[1].cid)
        os.rename(first, first + ".swap")
        os.rename(second, first)
        os.rename(first + ".swap", second)
        assert f"block {links[0].cid}" in refusal(disk, f"/ipfs/{cid}").where

    def test_a_missing_block_is_named_with_the_store(self, disk: Blockstore, cid: Cid) -> None:
        leaf = unixfs.decode_node(disk.get(cid))[0][3].cid
        os.unlink(disk.path(leaf))
        error = refusal(disk, f"/ipfs/{cid}")
        assert error.code == EXIT_NOT_FOUND
        assert error.where == f"block {leaf}"
        assert disk.home in error.what

"""CAR version 1: read strictly and in bounded memory; as a file; into the store and out of it."""

import io
import os
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.content import car, carfile, carstore, cbor, dagpb, hamt, multihash, unixfs, varint
from runner.content.blockstore import MAX_BLOCK_SIZE, Blockstore
from runner.content.car import (
    MAX_HEADER_SIZE,
    MAX_ROOTS,
    MAX_SECTION_SIZE,
    CarError,
    TooLarge,
    UnknownVersion,
    WrongBlock,
    read_car,
    write_car,
)
from runner.content.carfile import CarFile
from runner.content.carstore import export_blocks, import_car
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.dagpb import Link
from runner.content.errors import ContentError
from runner.content.importer import import_path
from runner.content.resolver import ContentPath, parse_path
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, EXIT_USAGE, WwError
from tests.content.dags import MemoryStore, put_block, put_directory, put_file, put_raw

ROOM = 1 << 30
DAG_CBOR = 0x71

Block = tuple[Cid, bytes]


def raw(data: bytes) -> Block:
    return Cid.of(data, codec=RAW), data


def pb(data: bytes, version: int = 0) -> Block:
    return Cid.of(data, codec=DAG_PB, version=version), data


def identity(data: bytes) -> Block:
    return Cid(1, RAW, b"\0" + varint.encode(len(data)) + data), data


def framed(content: bytes) -> bytes:
    return varint.encode(len(content)) + content


def header(roots: Sequence[Cid]) -> bytes:
    return framed(cbor.encode({"roots": list(roots), "version": 1}))


def section(cid: Cid | bytes, data: bytes) -> bytes:
    return framed(bytes(cid) + data)


def archive(roots: Sequence[Cid], blocks: Iterable[Block]) -> bytes:
    return header(roots) + b"".join(section(*block) for block in blocks)


ONE, TWO = raw(b"one"), raw(b"two")
LINKS = pb(dagpb.encode([Link(ONE[0], "1", 3), Link(TWO[0], "2", 3)], None))
SMALL = archive([LINKS[0]], [LINKS, ONE, TWO])


class Stream:
    """A stream that gives what it likes of what is asked for, and says how much that was."""

    def __init__(self, data: bytes, pieces: Iterable[int] = ()) -> None:
        self._stream = io.BytesIO(data)
        self._pieces = iter(pieces)
        self.largest = 0
        self.total = 0

    def read(self, size: int, /) -> bytes:
        self.largest = max(self.largest, size)
        data = self._stream.read(min(size, next(self._pieces, size)))
        self.total += len(data)
        return data


def blocks_of(data: bytes) -> list[Block]:
    return list(read_car(io.BytesIO(data), max_size=ROOM))


# --- what is read ---------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_specification() -> None:
    expected = (
        # {"roots": [CID], "version": 1}, in 58 bytes
        "3aa265726f6f747381d82a582500" + bytes(ONE[0]).hex() + "6776657273696f6e01"
        # the CID and three bytes
        "27" + bytes(ONE[0]).hex() + b"one".hex()
    )
    out = io.BytesIO()
    write_car(out, [ONE[0]], [ONE])
    assert out.getvalue().hex() == expected
    read = read_car(io.BytesIO(out.getvalue()), max_size=ROOM)
    assert read.roots == (ONE[0],)
    assert list(read) == [ONE]


HASHES = st.sampled_from(sorted(multihash._FUNCTIONS))


@st.composite
def some_blocks(draw: st.DrawFn) -> list[Block]:
    found: dict[bytes, Block] = {}
    for data in draw(st.lists(st.binary(max_size=300), max_size=6)):
        version, code = draw(st.integers(0, 1)), draw(HASHES)
        if version == 0:
            cid = Cid.of(data, codec=DAG_PB, version=0)
        else:
            codec = draw(st.sampled_from((RAW, DAG_PB, DAG_CBOR, 0x0129, 0x300001)))
            size, function = multihash._FUNCTIONS[code]
            cid = Cid(1, codec, varint.encode(code) + varint.encode(size) + function(data))
        found.setdefault(cid.multihash, (cid, data))
    return list(found.values())


@given(some_blocks(), st.lists(st.integers(1, 50), max_size=60))
def test_what_is_written_is_read_however_the_stream_is_cut(
    blocks: list[Block], pieces: list[int]
) -> None:
    out = io.BytesIO()
    roots = tuple(cid for cid, _ in blocks[:2])
    write_car(out, roots, blocks)
    read = read_car(Stream(out.getvalue(), pieces), max_size=len(out.getvalue()))
    assert read.roots == roots
    assert list(read) == blocks
    assert read.seen == {cid.multihash for cid, _ in blocks}


def test_no_roots_and_a_root_that_is_not_there_are_for_the_caller_to_judge() -> None:
    assert read_car(io.BytesIO(archive([], [ONE])), max_size=ROOM).roots == ()
    absent = read_car(io.BytesIO(header([TWO[0]])), max_size=ROOM)
    assert absent.roots == (TWO[0],)
    assert list(absent) == []


def test_a_block_is_handed_out_once_and_its_copies_are_counted() -> None:
    read = read_car(io.BytesIO(archive([], [ONE, TWO, ONE, ONE])), max_size=ROOM)
    assert list(read) == [ONE, TWO]
    assert read.duplicates == 2


def test_a_copy_that_is_wrong_is_refused_as_any_block() -> None:
    with pytest.raises(WrongBlock):
        blocks_of(archive([], [ONE]) + section(ONE[0], b"two"))


def test_a_block_that_is_its_own_address_is_checked_and_passed_over() -> None:
    inline = identity(b"in the CID")
    assert blocks_of(archive([inline[0]], [inline, ONE])) == [ONE]
    with pytest.raises(WrongBlock):
        blocks_of(header([]) + section(inline[0], b"in the cid"))
    out = io.BytesIO()
    write_car(out, [inline[0]], [inline, ONE])
    assert out.getvalue() == archive([inline[0]], [ONE])


def test_an_empty_block_is_a_block() -> None:
    assert blocks_of(archive([], [raw(b"")])) == [raw(b"")]


def test_what_came_before_a_fault_has_been_handed_out() -> None:
    read = iter(read_car(io.BytesIO(archive([], [ONE]) + b"\x27"), max_size=ROOM))
    assert next(read) == ONE
    with pytest.raises(CarError):
        next(read)


# --- what is refused ------------------------------------------------------------------------------

AFTER = header([])
V1 = b"\x01\x55\x12\x20"


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (b"", 0, "it is empty"),
        (b"\x00", 0, "a header is empty"),
        (b"\x38", 0, "cut off"),
        (b"\x80\x00" + bytes(9), 0, "longer than its value needs"),
        (b"\xff" * 4, 0, "a varint is cut off"),
        (b"\xff" * 12, 0, "more than 32768 bytes"),
        (varint.encode(MAX_HEADER_SIZE + 1) + bytes(9), 0, "more than 32768 bytes"),
        (b"<!DOCTYPE html><html><body>an error of a gateway</body></html>", 0, "is not one"),
        (framed(b"\xa2") + bytes(9), 0, "is not one"),
        (framed(cbor.encode([1])) + bytes(9), 0, "no version"),
        (framed(cbor.encode({"roots": []})), 0, "no version"),
        (framed(cbor.encode({"version": 1})), 0, "other keys"),
        (framed(cbor.encode({"version": 1, "root": []})), 0, "other keys"),
        (framed(cbor.encode({"version": 1, "roots": [], "more": 1})), 0, "other keys"),
        (framed(cbor.encode({"version": 1, "roots": {}})), 0, "not a list of CIDs"),
        (framed(cbor.encode({"version": 1, "roots": [b"one"]})), 0, "not a list of CIDs"),
        (framed(cbor.encode({"version": 1, "roots": []}) + b"\x00"), 0, "left over"),
        (framed(b"\xa2\x67version\x01\x65roots\x80"), 0, "out of order"),
        (AFTER + b"\x00", len(AFTER), "a section is empty"),
        (AFTER + b"\x00" * 64, len(AFTER), "a section is empty"),
        (AFTER + section(*ONE) + b"\x00", len(AFTER) + 40, "a section is empty"),
        (AFTER + b"\x03\x01\x55\x00", len(AFTER), "no room for a CID"),
        (AFTER + b"\x80", len(AFTER), "a varint is cut off"),
        (AFTER + b"\xa7\x00" + section(*ONE), len(AFTER), "longer than its value needs"),
        (AFTER + b"\xa7\x00\x01\x55\xff", len(AFTER), "longer than its value needs"),
        (AFTER + varint.encode(MAX_SECTION_SIZE + 1) + bytes(9), len(AFTER), "more than 2097352"),
        (AFTER + b"\xff" * 12, len(AFTER), "more than 2097352"),
        (AFTER + b"\xff" * 8 + b"\x7f" + bytes(9), len(AFTER), "more than 2097352"),
        (AFTER + section(*ONE)[:-1], len(AFTER), "cut off"),
        (AFTER + framed(V1), len(AFTER), "longer than its section"),
        (AFTER + framed(V1 + bytes(31)) + bytes(99), len(AFTER), "longer than its section"),
        (AFTER + framed(b"\x12\x20" + bytes(31)) + bytes(9), len(AFTER), "longer than its section"),
        (AFTER + framed(b"\x02\x55\x12\x20" + bytes(32)), len(AFTER), "CID version 2 is unknown"),
        (AFTER + framed(b"\x00\x55\x12\x20" + bytes(32)), len(AFTER), "CID version 0 is unknown"),
        (AFTER + framed(b"\x12\x40" + bytes(64)), len(AFTER), "CID version 18 is unknown"),
        (AFTER + framed(b"\x81\x00\x55\x12\x20" + bytes(32)), len(AFTER), "than its value needs"),
        (AFTER + framed(b"\x01\x55\x92\x00\x20" + bytes(32)), len(AFTER), "than its value needs"),
        (AFTER + framed(b"\x01" + b"\xff" * 99), len(AFTER), "more than 9 bytes"),
        (AFTER + framed(b"\x01\x55\x11\x14" + bytes(20)), len(AFTER), "sha1 is not accepted"),
        (AFTER + framed(b"\x01\x55\x12\x14" + bytes(20)), len(AFTER), "cut to 20 of 32"),
        (AFTER + framed(b"\x01\x55\x00\x81\x01" + bytes(129)), len(AFTER), "more than 128 bytes"),
        (AFTER + framed(b"\x01\x55\x12\xf4\x03" + bytes(500)), len(AFTER), "or than any CID"),
        (AFTER + section(ONE[0], b"two"), len(AFTER), f"block {ONE[0]} do not have the hash"),
        (archive([], [ONE]) + section(LINKS[0], b"x"), len(AFTER) + 40, "do not have the hash"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(
    data: bytes, offset: int, message: str
) -> None:
    with pytest.raises(CarError, match=message) as caught:
        blocks_of(data)
    assert caught.value.offset == offset
    assert f"at byte {offset}: " in str(caught.value)


def test_a_wrong_block_is_named() -> None:
    with pytest.raises(WrongBlock) as caught:
        blocks_of(AFTER + section(TWO[0], b"one"))
    assert caught.value.cid == TWO[0]


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("0aa16776657273696f6e02") + bytes(40),  # the pragma of CAR version 2
        framed(cbor.encode({"version": 2, "roots": []})),
        framed(cbor.encode({"version": 0, "roots": []})),
        framed(cbor.encode({"version": True, "roots": []})),
        framed(cbor.encode({"version": "1", "roots": []})),
    ],
)
def test_another_version_is_told(data: bytes) -> None:
    with pytest.raises(UnknownVersion, match="only version 1 is read"):
        blocks_of(data)


def test_roots_are_limited() -> None:
    roots = [raw(bytes([number]))[0] for number in range(MAX_ROOTS + 1)]
    assert len(read_car(io.BytesIO(header(roots[:-1])), max_size=ROOM).roots) == MAX_ROOTS
    with pytest.raises(CarError, match="more than 64 roots"):
        blocks_of(header(roots))


def test_the_largest_block_passes_and_a_larger_one_does_not() -> None:
    largest = raw(bytes(MAX_BLOCK_SIZE))
    assert blocks_of(archive([], [largest])) == [largest]
    with pytest.raises(CarError, match="more than 2097152 bytes"):
        blocks_of(archive([], [raw(bytes(MAX_BLOCK_SIZE + 1))]))


def test_the_size_is_limited_to_the_byte() -> None:
    assert len(list(read_car(io.BytesIO(SMALL), max_size=len(SMALL)))) == 3
    read = read_car(io.BytesIO(SMALL), max_size=len(SMALL) - 1)
    blocks = iter(read)
    assert [next(blocks), next(blocks)] == [LINKS, ONE]
    with pytest.raises(TooLarge, match=r"more than \d+ bytes") as caught:
        next(blocks)
    assert caught.value.offset == len(SMALL) - len(section(*TWO))


def test_sections_are_limited_copies_included() -> None:
    stream = io.BytesIO(archive([], [ONE] * 5))
    assert list(read_car(stream, max_size=ROOM, max_sections=5)) == [ONE]
    with pytest.raises(TooLarge, match="more than 4 sections"):
        list(read_car(io.BytesIO(archive([], [ONE] * 5)), max_size=ROOM, max_sections=4))


@pytest.mark.parametrize("block", [ONE, identity(b""), identity(b"some")])
def test_a_stream_without_an_end_is_ended(block: Block) -> None:
    class Endless(Stream):
        def read(self, size: int, /) -> bytes:
            while not (data := super().read(size)):
                self._stream = io.BytesIO(section(*block))
            return data

    stream = Endless(AFTER)
    with pytest.raises(TooLarge):
        list(read_car(stream, max_size=100_000, max_sections=5000))
    assert stream.total <= 100_000 + 8


def test_nothing_is_asked_for_that_a_length_only_claims() -> None:
    stream = Stream(AFTER + varint.encode(MAX_SECTION_SIZE) + bytes(ONE[0]) + b"one")
    with pytest.raises(CarError, match=r"cut off|more than 2097152"):
        list(read_car(stream, max_size=ROOM))
    assert stream.largest <= MAX_SECTION_SIZE


def test_memory_is_that_of_one_section() -> None:
    size, count = 1 << 20, 24
    blocks = [raw(bytes([number]) * size) for number in range(count)]
    data = archive([], blocks)
    del blocks
    stream = io.BytesIO(data)
    tracemalloc.start()
    try:
        found = sum(len(block) for _, block in read_car(stream, max_size=ROOM))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == size * count
    assert peak < 3 * size


# --- any bytes ------------------------------------------------------------------------------------


def check_never_more_than_an_error(data: bytes) -> None:
    """Whatever the bytes: verified blocks and no error but the one, asking for no more than may be.

    And a file of the same bytes has the same blocks, as far as both can be read.
    """
    stream = Stream(data)
    found: dict[bytes, bytes] = {}
    failed = False
    try:
        for cid, block in read_car(stream, max_size=len(data)):
            assert multihash.matches(cid.multihash, block)
            found[cid.multihash] = block
    except ContentError:
        failed = True
    assert stream.largest <= MAX_SECTION_SIZE
    file = os.memfd_create("car")
    try:
        os.write(file, data)
        try:
            index = CarFile(file, "file")
        except WwError:
            assert failed
            return
        for hashed, block in found.items():
            assert index.get(Cid(1, RAW, hashed)) == block
    finally:
        os.close(file)


@given(st.binary(max_size=200))
def test_any_bytes_are_blocks_or_an_error(data: bytes) -> None:
    check_never_more_than_an_error(data)
    check_never_more_than_an_error(AFTER + data)
    check_never_more_than_an_error(AFTER + framed(b"\x01" + data))


@given(some_blocks(), st.data())
def test_a_damaged_car_is_blocks_or_an_error(blocks: list[Block], data: st.DataObject) -> None:
    whole = bytearray(archive([cid for cid, _ in blocks[:1]], blocks))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        end = data.draw(st.integers(at, min(len(whole), at + 6)))
        whole[at:end] = data.draw(st.binary(max_size=6))
        if not whole:
            break
    check_never_more_than_an_error(bytes(whole))


def test_a_car_that_ends_early_is_refused_unless_it_ends_with_a_section() -> None:
    whole = archive([LINKS[0]], [LINKS, ONE, identity(b"x"), TWO])
    ends = {len(archive([LINKS[0]], []))}
    for block in (LINKS, ONE, identity(b"x"), TWO):
        ends.add(max(ends) + len(section(*block)))
    for length in range(len(whole)):
        if length in ends:
            blocks_of(whole[:length])
        else:
            with pytest.raises(CarError):
                blocks_of(whole[:length])


def test_every_changed_bit_is_found_where_a_hash_or_a_length_covers_it() -> None:
    start = len(header([LINKS[0]]))
    for at in range(start, len(SMALL)):
        for bit in range(8):
            changed = bytearray(SMALL)
            changed[at] ^= 1 << bit
            try:
                blocks = blocks_of(bytes(changed))
            except ContentError:
                continue
            # The codec is all that no hash covers.
            assert [block for _, block in blocks] == [LINKS[1], b"one", b"two"]


# --- one DAG --------------------------------------------------------------------------------------


def wanted(data: bytes, root: Cid, **options: int) -> tuple[car.Car, list[Block]]:
    read = read_car(io.BytesIO(data), max_size=ROOM, wanted=root, **options)
    return read, list(read)


def test_only_what_is_below_the_wanted_root_is_handed_out() -> None:
    other = raw(b"other")
    read, blocks = wanted(archive([], [other, LINKS, ONE, other, TWO]), LINKS[0])
    assert blocks == [LINKS, ONE, TWO]
    assert (read.extras, read.duplicates) == (2, 0)


def test_the_wanted_root_counts_and_not_that_of_the_header() -> None:
    read, blocks = wanted(archive([LINKS[0]], [LINKS, ONE, TWO]), TWO[0])
    assert blocks == [TWO]
    assert read.extras == 2


def test_what_is_not_wanted_is_verified_and_bounded() -> None:
    others = [raw(bytes([number])) for number in range(5)]
    assert wanted(archive([], others), ONE[0], max_extras=5)[0].extras == 5
    with pytest.raises(TooLarge, match="more than 4 blocks that were not asked for"):
        wanted(archive([], others), ONE[0], max_extras=4)
    with pytest.raises(WrongBlock):
        wanted(AFTER + section(TWO[0], b"wrong"), ONE[0])


def test_what_comes_again_and_again_is_bounded_where_one_dag_is_wanted() -> None:
    assert wanted(archive([], [ONE] * 5), ONE[0], max_extras=4)[0].duplicates == 4
    with pytest.raises(TooLarge, match="more than 3 blocks that came before"):
        wanted(archive([], [ONE] * 5), ONE[0], max_extras=3)
    # All of a CAR may have them: it is the user's own file.
    assert blocks_of(archive([], [ONE] * 2000)) == [ONE]


def test_a_buffer_that_is_used_again_does_not_change_what_was_verified() -> None:
    class Reusing:
        """Returns one buffer again and again, as a plugin's stream may."""

        def __init__(self, data: bytes) -> None:
            self._file = io.BytesIO(data)
            self._buffer = bytearray()

        def read(self, size: int, /) -> bytes:
            self._buffer[:] = self._file.read(size)
            return self._buffer  # type: ignore[return-value]

    blocks = list(read_car(Reusing(archive([], [ONE, TWO])), max_size=ROOM))
    assert blocks == [ONE, TWO]


def test_a_malformed_node_leads_nowhere() -> None:
    broken = pb(b"\xff")
    assert wanted(archive([], [broken, ONE]), broken[0])[1] == [broken]


def test_a_node_that_is_its_own_address_leads_on() -> None:
    inner = dagpb.encode([Link(ONE[0], "", 3)], None)
    outer = dagpb.encode([Link(identity(inner)[0]._replace(codec=DAG_PB), "", 3)], None)
    root = identity(outer)[0]._replace(codec=DAG_PB)
    read, blocks = wanted(archive([], [ONE, TWO]), root)
    assert blocks == [ONE]
    assert read.extras == 1


def test_the_links_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(car, "MAX_SECTIONS", 2)
    with pytest.raises(TooLarge, match="more than 2 links"):
        wanted(SMALL, LINKS[0])


# --- what is written ------------------------------------------------------------------------------


def test_nothing_is_written_that_would_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="roots"):
        write_car(io.BytesIO(), [ONE[0]] * (MAX_ROOTS + 1), [])
    with pytest.raises(ValueError, match="does not fit"):
        write_car(io.BytesIO(), [], [raw(bytes(MAX_BLOCK_SIZE + 1))])
    monkeypatch.setattr(car, "MAX_SECTIONS", 1)
    with pytest.raises(ValueError, match="does not fit"):
        write_car(io.BytesIO(), [], [ONE, TWO])


# --- a file ---------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator["Files"]:
    made = Files(tmp_path / "file.car")
    yield made
    made.close()


class Files:
    """CAR files of given bytes, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: list[int] = []

    def car(self, data: bytes) -> CarFile:
        self.path.write_bytes(data)
        self._opened.append(os.open(self.path, os.O_RDONLY))
        return CarFile(self._opened[-1], "file.car")

    def close(self) -> None:
        for fd in self._opened:
            os.close(fd)


def test_a_file_gives_its_blocks_in_any_order(files: Files) -> None:
    opened = files.car(SMALL)
    assert opened.roots == (LINKS[0],)
    for cid, data in (TWO, LINKS, ONE, identity(b"anything")):
        assert opened.get(cid) == data
    # By its multihash, as in the store.
    assert opened.get(Cid(1, DAG_CBOR, ONE[0].multihash)) == b"one"


def test_a_block_that_a_file_has_not_is_named(files: Files) -> None:
    opened = files.car(archive([], [ONE]))
    with pytest.raises(WwError, match=f"block {TWO[0]}: not in file.car") as caught:
        opened.get(TWO[0])
    assert caught.value.code == EXIT_NOT_FOUND


def test_of_two_sections_of_a_block_the_first_counts(files: Files) -> None:
    assert files.car(archive([], [ONE, (ONE[0], b"bad")])).get(ONE[0]) == b"one"


def test_a_block_of_a_file_is_verified_when_it_is_read_and_each_time(files: Files) -> None:
    opened = files.car(archive([], [ONE, TWO]))
    assert opened.get(ONE[0]) == b"one"
    files.path.write_bytes(archive([], [(ONE[0], b"eno"), TWO]))
    with pytest.raises(WwError, match=f"block {ONE[0]}: damaged: file.car"):
        opened.get(ONE[0])
    assert opened.get(TWO[0]) == b"two"
    os.truncate(files.path, len(AFTER) + 5)
    with pytest.raises(WwError, match="damaged"):
        opened.get(TWO[0])


def test_a_file_that_is_cut_off_in_a_block_is_refused(files: Files) -> None:
    files.car(SMALL)
    with pytest.raises(WwError, match=r"file.car: malformed CAR, at byte \d+: it is cut off"):
        files.car(SMALL[:-1])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (SMALL + b"\x00", 1),
        (bytes.fromhex("0aa16776657273696f6e02"), EXIT_CANNOT_RUN),
        (b"", 1),
    ],
)
def test_what_is_wrong_with_a_file_decides_the_exit_code(
    files: Files, data: bytes, code: int
) -> None:
    with pytest.raises(WwError) as caught:
        files.car(data)
    assert caught.value.code == code


def test_the_index_of_a_file_is_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carfile, "MAX_SECTIONS", 3)
    files.car(SMALL)
    with pytest.raises(WwError, match="more than 3 sections") as caught:
        files.car(SMALL + section(*ONE))
    assert caught.value.code == EXIT_LIMIT


def test_what_is_selected_is_a_path(files: Files) -> None:
    root = str(LINKS[0])
    opened = files.car(archive([LINKS[0], LINKS[0]], [LINKS]))
    assert str(opened.path_of("")) == f"/ipfs/{root}"
    assert str(opened.path_of("/a/b")) == f"/ipfs/{root}/a/b"
    assert str(opened.path_of(f"{ONE[0]}")) == f"/ipfs/{ONE[0]}"
    assert str(opened.path_of(f"{ONE[0]}/a")) == f"/ipfs/{ONE[0]}/a"
    for malformed in ("nonsense", "/a//b", "/../a"):
        with pytest.raises(WwError) as caught:
            opened.path_of(malformed)
        assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize("roots", [[], [ONE[0], TWO[0]]])
def test_without_one_root_something_must_be_selected(files: Files, roots: list[Cid]) -> None:
    opened = files.car(archive(roots, [ONE, TWO]))
    assert str(opened.path_of(str(TWO[0]))) == f"/ipfs/{TWO[0]}"
    for selection in ("", "/a"):
        with pytest.raises(WwError, match=f"it names {len(roots)} roots") as caught:
            opened.path_of(selection)
        assert caught.value.code == EXIT_CANNOT_RUN


# --- into the store -------------------------------------------------------------------------------


def imported(store: Blockstore, data: bytes, max_size: int = ROOM) -> carstore.Imported:
    return import_car(store, io.BytesIO(data), "file.car", max_size=max_size)


def test_an_import_stores_every_block_and_counts_what_is_under_no_root(tmp_path: Path) -> None:
    other = raw(b"other")
    with Blockstore(str(tmp_path)) as store:
        done = imported(store, archive([LINKS[0], LINKS[0]], [TWO, other, LINKS, ONE, ONE]))
        assert done == carstore.Imported((LINKS[0],), blocks=4, extras=1)
        for cid, data in (LINKS, ONE, TWO, other):
            assert store.get(cid) == data


def test_an_import_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    synced: list[set[bytes]] = []
    monkeypatch.setattr(store, "sync", lambda: synced.append(set(store.blocks)))
    imported(store, SMALL)
    assert synced[-1] == {cid.multihash for cid, _ in (LINKS, ONE, TWO)}


def test_an_import_is_complete_with_what_the_store_has() -> None:
    store = MemoryStore()
    store.put(*ONE)
    assert imported(store, archive([LINKS[0]], [LINKS, TWO])).extras == 0


def test_an_import_that_lacks_a_block_names_it_and_keeps_the_others(tmp_path: Path) -> None:
    with Blockstore(str(tmp_path)) as store:
        with pytest.raises(WwError, match=f"file.car: incomplete: .*{LINKS[0]} .* {TWO[0]}"):
            imported(store, archive([ONE[0], LINKS[0]], [LINKS, ONE]))
        assert store.get(LINKS[0]) == LINKS[1]
        assert store.get(ONE[0]) == b"one"


def test_a_block_that_only_another_codec_would_call_a_leaf_is_walked() -> None:
    as_raw = raw(LINKS[1])
    with pytest.raises(WwError, match="incomplete"):
        imported(MemoryStore(), archive([LINKS[0]], [as_raw]))


def test_an_import_stops_at_a_wrong_block_and_keeps_those_before(tmp_path: Path) -> None:
    with Blockstore(str(tmp_path)) as store:
        with pytest.raises(WwError, match=f"file.car: malformed CAR, at byte .*{TWO[0]}"):
            imported(store, archive([ONE[0]], [ONE, (TWO[0], b"wrong")]))
        assert store.has(ONE[0])
        assert not store.has(TWO[0])


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (archive([], [ONE]), 1, "names no roots"),
        (archive([ONE[0]], []), 1, "incomplete"),
        (SMALL[:-1], 1, "cut off"),
        (archive([Cid(1, DAG_CBOR, ONE[0].multihash)], [ONE]), EXIT_CANNOT_RUN, "codec is 0x71"),
        (bytes.fromhex("0aa16776657273696f6e02"), EXIT_CANNOT_RUN, "version 2"),
        (archive([pb(b"\xff")[0]], [pb(b"\xff")]), 1, "malformed"),
    ],
)
def test_what_is_wrong_with_an_import_is_told(data: bytes, code: int, message: str) -> None:
    with pytest.raises(WwError, match=message) as caught:
        imported(MemoryStore(), data)
    assert caught.value.code == code


def test_the_size_of_an_import_is_limited_and_can_be_raised() -> None:
    with pytest.raises(WwError, match="raise --max-size") as caught:
        imported(MemoryStore(), SMALL, max_size=len(SMALL) - 1)
    assert caught.value.code == EXIT_LIMIT
    assert imported(MemoryStore(), SMALL, max_size=len(SMALL)).blocks == 3


def test_the_links_of_an_import_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carstore, "MAX_LINKS", 1)
    with pytest.raises(WwError, match="more than 1 links") as caught:
        imported(MemoryStore(), SMALL)
    assert caught.value.code == EXIT_LIMIT


# --- out of the store -----------------------------------------------------------------------------


def exported(store: Blockstore, cid: Cid, scope: Literal["all", "entity"] = "all") -> list[Block]:
    return list(export_blocks(store, parse_path(f"/ipfs/{cid}"), cid, scope))


def test_an_export_is_depth_first_with_each_block_once() -> None:
    store = MemoryStore()
    a, b, c = (put_raw(store, data) for data in (b"a", b"b", b"c"))
    inner = put_file(store, [(a, 1), (b, 1), (a, 1)])
    outer = put_file(store, [(c, 1), (inner, 3), (inner, 3), (b, 1)])
    root = put_directory(store, [("x", outer), ("y", inner)])
    assert [cid for cid, _ in exported(store, root)] == [root, outer, c, inner, a, b]


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 1))
def test_what_is_exported_is_imported_and_exported_again(files: list[bytes], cut: int) -> None:
    store = MemoryStore()
    parts = [put_raw(store, data) for data in files]
    root = put_directory(store, [(str(number), cid) for number, cid in enumerate(parts)])
    out = io.BytesIO()
    write_car(out, [root], exported(store, root))
    copy = MemoryStore()
    done = import_car(copy, Stream(out.getvalue(), [cut + 1] * 99), "stdin", max_size=ROOM)
    assert done.roots == (root,)
    assert done.extras == 0
    again = io.BytesIO()
    write_car(again, [root], exported(copy, root))
    assert again.getvalue() == out.getvalue()


def test_one_block_under_two_codecs_is_one_section() -> None:
    store = MemoryStore()
    leaf = put_block(store, b"")
    root = put_directory(store, [("node", leaf), ("raw", Cid(1, RAW, leaf.multihash))])
    assert [cid for cid, _ in exported(store, root)] == [root, leaf]


def test_the_entity_of_a_file_is_all_of_it_and_that_of_a_directory_only_itself() -> None:
    store = MemoryStore()
    leaf = put_raw(store, b"a")
    file = put_file(store, [(leaf, 1)])
    root = put_directory(store, [("file", file)])
    assert [cid for cid, _ in exported(store, root, "entity")] == [root]
    assert [cid for cid, _ in exported(store, file, "entity")] == [file, leaf]
    assert [cid for cid, _ in exported(store, leaf, "entity")] == [leaf]


def test_the_entity_of_a_sharded_directory_is_every_shard_and_no_entry() -> None:
    store = MemoryStore()
    entry = put_raw(store, b"entry")
    names = [f"name-{number}" for number in range(600)]
    root = hamt.build([Link(entry, name, 5) for name in names], lambda b: put_block(store, b)).cid
    shards = [cid for cid, _ in exported(store, root, "entity")]
    assert len(shards) > 100
    assert set(shards) == {cid for cid, _ in exported(store, root)} - {entry}
    # And that is enough to list it.
    copy = MemoryStore()
    for cid, block in exported(store, root, "entity"):
        copy.put(cid, block)
    found = hamt.entries(*unixfs.decode_node(copy.get(root)), copy.get)
    assert sorted(link.name for link in found) == sorted(names)


def test_a_sharded_directory_that_is_malformed_is_no_entity() -> None:
    store = MemoryStore()
    shard = unixfs.Data(unixfs.HAMT_SHARD, data=b"", hash_type=0x22, fanout=7)
    root = put_block(store, dagpb.encode((), unixfs.encode(shard)))
    with pytest.raises(WwError, match="malformed"):
        exported(store, root, "entity")


def test_a_block_that_is_missing_ends_an_export() -> None:
    store = MemoryStore()
    store.put(*LINKS)
    with pytest.raises(WwError) as caught:
        exported(store, LINKS[0])
    assert caught.value.code == EXIT_NOT_FOUND


def test_an_export_has_no_more_blocks_than_an_import_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    for block in (LINKS, ONE, TWO):
        store.put(*block)
    monkeypatch.setattr(carstore, "MAX_SECTIONS", 3)
    assert len(exported(store, LINKS[0])) == 3
    monkeypatch.setattr(carstore, "MAX_SECTIONS", 2)
    with pytest.raises(WwError, match="more than 2 blocks") as caught:
        exported(store, LINKS[0])
    assert caught.value.code == EXIT_LIMIT


@pytest.mark.parametrize("version", [0, 1])
def test_a_large_file_passes_through_a_car(tmp_path: Path, version: int) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(300_000))
    (tmp_path / "in").write_bytes(content)
    with Blockstore(str(tmp_path / "one")) as store:
        root = import_path(store, str(tmp_path / "in"), cid_version=version)
        with open(tmp_path / "out.car", "wb") as out:
            path = ContentPath(root, ())
            write_car(out, [root], export_blocks(store, path, root, "all"))
    with Blockstore(str(tmp_path / "two")) as store, open(tmp_path / "out.car", "rb") as stream:
        assert import_car(store, stream, "out.car", max_size=ROOM).roots == (root,)
        again = import_path(MemoryStore(), str(tmp_path / "in"), cid_version=version)
        assert again == root
        from runner.content.resolver import resolve_file

        assert b"".join(resolve_file(store, f"/ipfs/{root}").chunks()) == content

"""How much a cell has written: to the byte, and of files also what it only reserves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.wasi.files import File
from sandbox.wasi.meter import Meter, OutputLimit

KIB = 1 << 10


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 800 KiB, whose first half is a hole."""
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.pwrite(file, b"x" * 400 * KIB, 400 * KIB)
    os.fsync(file)  # some file systems give the blocks then
    yield file
    os.close(file)


def test_space_that_is_reserved_in_a_hole_counts_though_there_are_blocks_behind_it(fd: int) -> None:
    with pytest.raises(OutputLimit):
        File(fd, "rw", Meter(400 * KIB - 1)).allocate(0, 400 * KIB)
    meter = Meter(400 * KIB)
    File(fd, "rw", meter).allocate(0, 400 * KIB)
    with pytest.raises(OutputLimit):
        meter.charge(1)


def test_space_behind_the_end_counts_and_what_is_there_does_not_count_again(fd: int) -> None:
    os.posix_fallocate(fd, 0, 400 * KIB)
    os.fsync(fd)
    meter = Meter(100 * KIB)
    file = File(fd, "rw", meter)
    file.allocate(0, 800 * KIB)
    file.allocate(700 * KIB, 200 * KIB)
    with pytest.raises(OutputLimit):
        file.allocate(900 * KIB, 1)


def test_without_a_limit_nothing_is_too_much(fd: int) -> None:
    meter = Meter(None)
    for _ in range(3):
        meter.need((1 << 63) - 1)
        meter.charge((1 << 63) - 1)
    assert [bytes(part) for part in meter.cut([memoryview(b"abc")])] == [b"abc"]
    # The kernel may say that it is too large, or take it.
    try:
        File(fd, "rw", meter).set_size((1 << 63) - 1)
    except OSError:
        assert os.fstat(fd).st_size == 800 * KIB


def test_what_is_left_is_cut_to_the_byte_over_several_buffers() -> None:
    meter = Meter(5)
    cut = meter.cut([memoryview(b"abc"), memoryview(b"def"), memoryview(b"ghi")])
    assert [bytes(part) for part in cut] == [b"abc", b"de", b""]
    meter.charge(5)
    with pytest.raises(OutputLimit):
        meter.cut([memoryview(b"x")])

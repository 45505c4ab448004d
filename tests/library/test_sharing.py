"""What several cells share at a time: an open file is put back as the first of them found it."""

import fcntl
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Cell, Limits, Sandbox, as_before, grant, sharing
from tests.library.conftest import Pipe


@pytest.fixture
def shared() -> Iterator[tuple[int, int]]:
    """Two descriptors of one open file."""
    reader, writer = os.pipe()
    copy = os.dup(writer)
    yield writer, copy
    for fd in (reader, writer, copy):
        os.close(fd)


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_a_file_is_as_before_when_the_last_has_ended(
    shared: tuple[int, int], first_ends_first: bool
) -> None:
    first = as_before([shared[0]])
    os.set_blocking(shared[0], False)
    second = as_before([shared[1]])
    ends = [first, second] if first_ends_first else [second, first]
    ends[0].__exit__()
    assert not os.get_blocking(shared[0])  # it is still the other's
    ends[1].__exit__()
    assert os.get_blocking(shared[0])


def test_another_open_file_of_the_same_keeps_its_own_flags(tmp_path: Path) -> None:
    path = tmp_path / "file"
    flags = os.O_RDWR | os.O_CREAT
    plain, other = os.open(path, flags), os.open(path, flags | os.O_NONBLOCK | os.O_APPEND)
    try:
        before = fcntl.fcntl(other, fcntl.F_GETFL)
        with as_before([plain]):
            os.set_blocking(plain, False)
            with as_before([other]):
                os.set_blocking(other, True)
            assert fcntl.fcntl(other, fcntl.F_GETFL) == before
        assert os.get_blocking(plain)
        for number in (plain, other):
            assert fcntl.fcntl(number, fcntl.F_GETSIG) == 0  # what tells them apart is put back
    finally:
        os.close(plain)
        os.close(other)


def test_one_that_is_forgotten_holds_nothing_up(shared: tuple[int, int]) -> None:
    forgotten = as_before([shared[0]])
    with as_before([shared[1]]):
        os.set_blocking(shared[0], False)
        del forgotten
        gc.collect()
    assert os.get_blocking(shared[0])
    assert not sharing._running


def test_cells_that_share_a_file_at_a_time_leave_it_as_it_was(sandbox: Sandbox, tool: Cell) -> None:
    reader, writer = os.pipe()
    go_on = [os.pipe(), os.pipe()]
    pipes = [Pipe(), Pipe()]
    results = []

    def run(at: int, *args: str) -> None:
        offers = [
            grant("FILE", writer),
            grant("OUT", pipes[at].writer, move=True),
            grant("GO", go_on[at][0], move=True),
        ]
        limits = Limits(wall=30)
        results.append(sandbox.run(tool, [*args, "tell=OUT", "wait=GO"], offers, limits=limits))

    first = threading.Thread(target=run, args=(0, "hasten=FILE"))
    second = threading.Thread(target=run, args=(1,))
    try:
        first.start()
        pipes[0].wait_for_word()
        assert not os.get_blocking(writer)
        second.start()
        pipes[1].wait_for_word()
        for (_, go), thread in zip(go_on, (first, second), strict=True):
            os.write(go, b"x")
            thread.join()
        assert [result.describe() for result in results] == ["exit code 0"] * 2
        assert os.get_blocking(writer)
    finally:
        for _, go in go_on:
            os.close(go)
        first.join()
        second.join()
        for pipe in pipes:
            pipe.close()
        os.close(reader)
        os.close(writer)

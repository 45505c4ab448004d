"""Granted pipes: data, their two kinds of end, and who holds them open."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.conftest import BuildFunction, Ww
from tests.wasi.remote_cell import (
    EAGAIN,
    EINVAL,
    ENOTCAPABLE,
    EPIPE,
    FT_UNKNOWN,
    NONBLOCK,
    OK,
    PATIENCE,
    R,
    Right,
    W,
    remote,
)

ANY_RIGHTS = Right.FD_FDSTAT_SET_FLAGS | Right.FD_FILESTAT_GET | Right.POLL_FD_READWRITE


class Pipe:
    """A pipe whose ends can be closed one by one."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def close_out(self) -> None:
        os.close(self.out)
        self.out = -1

    def close_into(self) -> None:
        os.close(self.into)
        self.into = -1


@contextmanager
def a_pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    try:
        yield pipe
    finally:
        for fd in (pipe.out, pipe.into):
            if fd >= 0:
                os.close(fd)


def reached_its_end(fd: int) -> bool:
    """Whether everybody has closed the other end; does not wait."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False
    finally:
        os.set_blocking(fd, True)


def test_data_goes_through_whole_and_in_order(ww_account: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as inward, a_pipe() as outward:
        fds = {3: inward.out, 4: outward.into}
        with remote(ww_account, c_cell("remote"), "--fd", "in=3", "--fd", "out=4", fds=fds) as cell:
            os.write(inward.into, b"0123456789")
            assert cell.read(10, 3, 0, 4) == (OK, b"0123456")
            assert cell.read(10, 0) == (OK, b"")
            assert cell.read(10, 100) == (OK, b"789")
            assert cell.write(11, b"ab", b"", b"cde") == (OK, 5)
            assert os.read(outward.out, 100) == b"abcde"
            assert cell.write(11, b"") == (OK, 0)
            assert cell.write(11) == (OK, 0)
            assert cell.read(10) == (OK, b"")


def test_a_pipe_is_of_unknown_type_with_the_rights_of_its_end(
    ww: Ww, c_cell: BuildFunction
) -> None:
    with a_pipe() as pipe:
        fds = {3: pipe.out, 4: pipe.into}
        with remote(ww, c_cell("remote"), "--fd", "a=3", "--fd", "b=4", fds=fds) as cell:
            for number, right, source in ((10, R, pipe.out), (11, W, pipe.into)):
                errno, stat = cell.fdstat(number)
                assert errno == OK
                assert stat is not None
                assert stat == (FT_UNKNOWN, 0, ANY_RIGHTS | right, 0)
                found = cell.filestat(number)[1]
                assert found is not None
                actual = os.fstat(source)
                assert (found.ino, found.dev) == (actual.st_ino, actual.st_dev)
                assert (found.filetype, found.size, found.nlink) == (FT_UNKNOWN, 0, 1)
                for name, *numbers in (
                    ("fd_filestat_set_size", 0),
                    ("fd_filestat_set_times", 0, 0, 1),
                    ("fd_allocate", 0, 1),
                    ("fd_sync",),
                    ("fd_datasync",),
                ):
                    errno = cell.raw(str(name), number, *map(int, numbers))
                    assert (name, errno) == (name, ENOTCAPABLE)


def test_the_writers_end_is_the_readers_end_of_file(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe, remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.out}) as cell:
        os.write(pipe.into, b"last")
        pipe.close_into()
        assert cell.read(10, 100) == (OK, b"last")
        assert cell.read(10, 100) == (OK, b"")
        assert cell.read(10, 100) == (OK, b"")


def test_a_reader_waits_for_data(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe, remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.out}) as cell:
        vectors, count, buffer = cell.put_vectors([10])
        cell.tell(f"call fd_read 10 {vectors} {count} {cell.scratch + 0x8000}")
        os.write(pipe.into, b"now")
        assert cell.answer() == "fd_read 0"
        assert cell.peek(buffer, 3) == b"now"


def test_writing_without_a_reader_is_epipe_and_no_death(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe:
        # Moved, or ww would be the reader; neither way may it be SIGPIPE.
        flags = ("--fd", "p=3,move=true")
        with remote(ww, c_cell("remote"), *flags, fds={3: pipe.into}) as cell:
            assert cell.write(10, b"x") == (OK, 1)
            pipe.close_out()
            for _ in range(2):
                assert cell.write(10, b"x") == (EPIPE, None)
            assert cell.raw("fd_close", 10) == OK


def test_ending_with_stdout_gone_is_the_cells_own_business(ww: Ww, c_cell: BuildFunction) -> None:
    with (
        a_pipe() as pipe,
        remote(
            ww, c_cell("remote"), "--fd", "o=3,target=1", fds={3: pipe.into}, control=(20, 21)
        ) as cell,
    ):
        pipe.close_out()
        assert cell.write(1, b"x") == (EPIPE, None)
        assert cell.end() == 0


def test_a_read_that_would_wait_is_eagain_when_nonblocking(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe, remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.out}) as cell:
        assert cell.raw("fd_fdstat_set_flags", 10, NONBLOCK) == OK
        assert cell.read(10, 10) == (EAGAIN, None)
        os.write(pipe.into, b"data")
        assert cell.read(10, 10) == (OK, b"data")
        assert cell.read(10, 10) == (EAGAIN, None)
        # It is a property of the open file: the host has it too.
        assert not os.get_blocking(pipe.out)
        pipe.close_into()
        assert cell.read(10, 10) == (OK, b"")


def test_a_pipe_that_comes_nonblocking_says_so(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe:
        os.set_blocking(pipe.out, False)
        with remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.out}) as cell:
            stat = cell.fdstat(10)[1]
            assert stat is not None
            assert stat.flags == NONBLOCK
            assert cell.read(10, 10) == (EAGAIN, None)
            assert cell.raw("fd_fdstat_set_flags", 10, 0) == OK
            assert os.get_blocking(pipe.out)


def test_a_full_pipe_takes_what_fits_when_nonblocking(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe:
        os.set_blocking(pipe.into, False)
        with remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.into}) as cell:
            errno, size = cell.write(10, b"x" * 100_000)
            assert errno == OK
            assert size is not None
            assert 0 < size < 100_000
            assert cell.write(10, b"x" * 100_000) == (EAGAIN, None)
            assert len(os.read(pipe.out, 200_000)) == size


def test_a_whole_memory_goes_through_a_pipe_while_it_is_read(ww: Ww, c_cell: BuildFunction) -> None:
    data = bytes(index * 7 % 256 for index in range(300_000))
    with a_pipe() as pipe, remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: pipe.into}) as cell:
        vectors, count, buffer = cell.put_vectors([100_000, 1, 199_999], data)
        cell.tell(f"call fd_write 10 {vectors} {count} {cell.scratch + 0x8000}")
        received = b""
        while len(received) < len(data):
            received += os.read(pipe.out, 1 << 20)
        assert cell.answer() == "fd_write 0"
        assert cell.peek(buffer, 4) == data[:4]
    assert received == data


@pytest.mark.parametrize("end", ["reading", "writing"])
def test_flags_of_files_are_not_for_pipes(ww: Ww, c_cell: BuildFunction, end: str) -> None:
    with a_pipe() as pipe:
        source = pipe.out if end == "reading" else pipe.into
        with remote(ww, c_cell("remote"), "--fd", "p=3", fds={3: source}) as cell:
            assert cell.raw("fd_fdstat_set_flags", 10, 2) == EINVAL
            assert cell.raw("fd_fdstat_set_flags", 10, 16) == EINVAL


def test_a_moved_pipe_ends_when_the_cell_closes_it_while_ww_lives(
    ww_account: Ww, c_cell: BuildFunction
) -> None:
    with a_pipe() as pipe:
        flags = ("--fd", "p=3,move=true")
        with remote(ww_account, c_cell("remote"), *flags, fds={3: pipe.into}) as cell:
            pipe.close_into()
            assert cell.write(10, b"x") == (OK, 1)
            assert os.read(pipe.out, 10) == b"x"
            assert not reached_its_end(pipe.out)
            assert cell.raw("fd_close", 10) == OK
            # Nobody else has it, or this would wait for the end of ww.
            ended(pipe.out)
            assert cell.process.poll() is None
            assert cell.fdstat(1)[0] == OK


def lost_its_reader(fd: int) -> None:
    """Wait until the last reader is gone; poll(2) calls that an error."""
    poller = select.poll()
    poller.register(fd, 0)
    assert poller.poll(PATIENCE * 1000) == [(fd, select.POLLERR)], "the pipe is still read"


def ended(fd: int) -> None:
    """Wait for the end of file."""
    ready, _, _ = select.select([fd], [], [], PATIENCE)
    assert ready, "the pipe did not end"
    assert os.read(fd, 1) == b""


def test_a_pipe_that_was_not_moved_ends_with_ww(ww: Ww, c_cell: BuildFunction) -> None:
    with a_pipe() as pipe:
        flags = ("--fd", "p=3,move=false")
        with remote(ww, c_cell("remote"), *flags, fds={3: pipe.into}) as cell:
            pipe.close_into()
            assert cell.write(10, b"x") == (OK, 1)
            assert os.read(pipe.out, 10) == b"x"
            assert cell.raw("fd_close", 10) == OK
            # ww keeps its own: however often the cell is asked, there is no end.
            for _ in range(20):
                assert cell.fdstat(1)[0] == OK
                assert not reached_its_end(pipe.out)
            assert cell.end() == 0
            assert reached_its_end(pipe.out)


def test_a_moved_pipe_lets_the_writer_see_that_the_cell_stopped_reading(
    ww: Ww, c_cell: BuildFunction
) -> None:
    with (
        a_pipe() as pipe,
        remote(ww, c_cell("remote"), "--fd", "p=3,move=true", fds={3: pipe.out}) as cell,
    ):
        pipe.close_out()
        os.write(pipe.into, b"x")
        assert cell.read(10, 10) == (OK, b"x")
        assert cell.raw("fd_close", 10) == OK
        lost_its_reader(pipe.into)
        with pytest.raises(BrokenPipeError):
            os.write(pipe.into, b"x")


def test_two_cells_can_be_a_pipeline(ww: Ww, c_cell: BuildFunction) -> None:
    with ExitStack() as stack:
        pipe = stack.enter_context(a_pipe())
        wasm = c_cell("remote")
        writer = stack.enter_context(remote(ww, wasm, "--fd", "p=3,move=true", fds={3: pipe.into}))
        reader = stack.enter_context(remote(ww, wasm, "--fd", "p=3,move=true", fds={3: pipe.out}))
        pipe.close_into()
        pipe.close_out()
        assert writer.write(10, b"from one to the other") == (OK, 21)
        assert reader.read(10, 100) == (OK, b"from one to the other")
        assert writer.end() == 0
        assert reader.read(10, 100) == (OK, b"")

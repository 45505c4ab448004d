"""The cache of compiled forms: what is put in comes out whole, and nothing else does."""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import compiling
from sandbox.wasi.artifacts import Cache
from tests.conftest import CAN_BE_ROOT
from tests.features import needs

NAME = "0123abcd-ef.cwasm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Cache:
    return Cache(str(folder))


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def keep(cache: Cache, content: bytes, name: str = NAME) -> None:
    memory = compiling.new_memory("artifact")
    with open(memory, "wb", buffering=0) as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
        cache.keep(name, memory)


def found(cache: Cache, name: str = NAME) -> bytes | None:
    fd = cache.find(name)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        assert not os.get_inheritable(fd)
        return file.read()


def test_what_is_kept_is_found_with_something_at_its_end(cache: Cache, folder: Path) -> None:
    for content in (b"", b"machine code", os.urandom((1 << 20) + 1)):
        keep(cache, content)
        whole = found(cache)
        assert whole is not None
        assert whole[:-16] == content
        assert os.listdir(folder) == [NAME]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), place=st.integers(0, 300), bit=st.integers(0, 7))
def test_no_bit_of_a_file_can_be_another(
    cache: Cache, folder: Path, content: bytes, place: int, bit: int
) -> None:
    keep(cache, content)
    data = bytearray((folder / NAME).read_bytes())
    data[place % len(data)] ^= 1 << bit
    (folder / NAME).unlink()
    (folder / NAME).write_bytes(data)
    assert found(cache) is None


@pytest.mark.parametrize("size", range(28))
def test_no_part_of_a_file_is_found(cache: Cache, folder: Path, size: int) -> None:
    keep(cache, b"machine code")
    data = (folder / NAME).read_bytes()
    assert len(data) == 28
    (folder / NAME).unlink()
    (folder / NAME).write_bytes(data[:size])
    assert found(cache) is None


def test_a_name_that_was_not_kept_is_not_found(cache: Cache) -> None:
    assert found(cache) is None
    keep(cache, b"one")
    assert found(cache, "another") is None


def test_a_second_one_under_the_same_name_replaces_the_first(cache: Cache) -> None:
    keep(cache, b"first")
    held = cache.find(NAME)
    assert held is not None
    keep(cache, b"second")
    whole = found(cache)
    assert whole is not None
    assert whole.startswith(b"second")
    # Whoever has the first open goes on with it.
    with open(held, "rb") as file:
        assert file.read().startswith(b"first")


def test_without_a_directory_there_is_nothing_and_no_error() -> None:
    cache = Cache(None)
    keep(cache, b"x")
    assert found(cache) is None


def test_the_directory_and_the_files_are_for_nobody_else_to_write(
    cache: Cache, folder: Path
) -> None:
    before = os.umask(0)
    try:
        keep(cache, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # A cell's process opens it again, as another user.
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o444


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_neither_read_nor_written(
    cache: Cache, folder: Path, mode: int
) -> None:
    keep(cache, b"x")
    folder.chmod(mode)
    assert found(cache) is None
    keep(cache, b"y", "another")
    assert os.listdir(folder) == [NAME]


@pytest.mark.parametrize("mode", [0o464, 0o446])
def test_a_file_that_others_can_write_is_not_found(cache: Cache, folder: Path, mode: int) -> None:
    keep(cache, b"x")
    (folder / NAME).chmod(mode)
    assert found(cache) is None


@needs("root", CAN_BE_ROOT, "only root can give a file away")
@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_belongs_to_another_is_not_found(cache: Cache, folder: Path, what: str) -> None:
    keep(cache, b"x")
    os.chown(folder if what == "directory" else folder / NAME, 65532, 65532)
    assert found(cache) is None


def _link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o444)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("become", [_link, _fifo, _directory, _dangling])
def test_what_is_no_regular_file_is_not_found_and_not_waited_for(
    cache: Cache, folder: Path, become: Callable[[Path], None]
) -> None:
    keep(cache, b"x")
    become(folder / NAME)
    assert found(cache) is None
    keep(cache, b"y")
    # A directory stays; everything else makes way.
    assert (found(cache) is None) == (become is _directory)
    if become is _link:
        assert (folder / "real").read_bytes().startswith(b"x")
    if become is _dangling:
        assert not (folder / "nowhere").exists()


def test_a_name_cannot_be_found_through_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", Path("/dev/null"), Path("/proc/none")):
        cache = Cache(str(path))
        keep(cache, b"x")
        assert found(cache) is None


@pytest.mark.parametrize("call", ["write", "link", "open", "fchmod", "makedirs"])
def test_what_goes_wrong_while_it_is_stored_leaves_nothing_and_is_no_error(
    cache: Cache, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.mkdir(mode=0o700)
    memory = compiling.new_memory("artifact")
    with open(memory, "wb", buffering=0) as file:
        file.write(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            cache.keep(NAME, memory)
    assert os.listdir(folder) == []
    assert found(cache) is None


def test_a_write_that_takes_only_a_part_is_gone_on_with(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    memory = compiling.new_memory("artifact")
    content = os.urandom(5000)
    with open(memory, "wb", buffering=0) as file:
        file.write(content)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:999]))
            cache.keep(NAME, memory)
    whole = found(cache)
    assert whole is not None
    assert whole[:-16] == content


def test_what_cannot_be_mapped_from_where_it_lies_is_copied_into_memory(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, b"machine code")
    plain = cache.find(NAME)
    assert plain is not None
    assert os.fstat(plain).st_ino == (folder / NAME).stat().st_ino
    os.close(plain)

    class NoExec:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(os, "fstatvfs", lambda fd: NoExec)
    copied = cache.find(NAME)
    assert copied is not None
    assert os.fstat(copied).st_nlink == 0
    with open(copied, "rb") as file:
        assert os.pread(copied, 1000, 0) == (folder / NAME).read_bytes()
        assert file.readable()


def test_the_end_of_a_file_says_its_size_and_checksum(cache: Cache, folder: Path) -> None:
    # The form is held because an older or newer ww finds the same files.
    keep(cache, b"machine code")
    size, checksum, mark = struct.unpack("<QI4s", (folder / NAME).read_bytes()[-16:])
    assert (size, checksum, mark) == (12, zlib.crc32(b"machine code"), b"ww1\n")

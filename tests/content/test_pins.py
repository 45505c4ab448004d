"""Pins on disk."""

import os
import stat
from pathlib import Path

import pytest

from runner.content import gc, pins
from runner.content.blockstore import Blockstore
from runner.content.cid import DAG_PB, RAW, Cid
from runner.content.pins import Pin
from runner.errors import WwError
from tests.content.dags import put_raw

ONE = Cid.of(b"one", codec=DAG_PB, version=0)
TWO = Cid.of(b"two", codec=RAW)


def file_of(home: Path, cid: Cid) -> Path:
    return home / "pins" / str(Cid(1, cid.codec, cid.multihash))


def test_a_pin_is_listed_as_it_was_given_until_it_is_removed(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert pins.pins(home) == []
    pins.add(home, TWO, "b\n\udcff")
    pins.add(home, ONE, "a")
    assert pins.pins(home) == [Pin(ONE, "a"), Pin(TWO, "b\n\udcff")]
    assert pins.remove(home, ONE)
    assert not pins.remove(home, ONE)
    assert pins.pins(home) == [Pin(TWO, "b\n\udcff")]


def test_one_content_has_one_pin_whatever_the_version_of_its_cid(tmp_path: Path) -> None:
    home = str(tmp_path)
    pins.add(home, ONE, "first")
    other = Cid(1, ONE.codec, ONE.multihash)
    pins.add(home, other, "second")
    assert pins.pins(home) == [Pin(other, "second")]
    assert pins.remove(home, ONE)
    assert pins.pins(home) == []


def test_a_name_is_cut_and_a_pin_is_for_its_owner_alone(tmp_path: Path) -> None:
    pins.add(str(tmp_path), ONE, "x" * 1000)
    assert len(pins.pins(str(tmp_path))[0].name) == pins.MAX_NAME_LENGTH
    assert stat.S_IMODE((tmp_path / "pins").stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(tmp_path, ONE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"cid": 1, "name": ""}',
        b'{"cid": "Qm", "name": "x"}',
        b"[" * 60_000,
        b"\xff",
        f'{{"cid": "{TWO}", "name": "x"}}'.encode(),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_pin_holds_by_its_name_whatever_became_of_its_content(
    tmp_path: Path, content: bytes
) -> None:
    pins.add(str(tmp_path), ONE, "a")
    file_of(tmp_path, ONE).write_bytes(content)
    (pin,) = pins.pins(str(tmp_path))
    assert (pin.cid.codec, pin.cid.multihash) == (ONE.codec, ONE.multihash)
    assert pin.name == ""


def test_a_directory_in_place_of_a_pin_holds_too(tmp_path: Path) -> None:
    file_of(tmp_path, ONE).mkdir(parents=True)
    assert [pin.cid.multihash for pin in pins.pins(str(tmp_path))] == [ONE.multihash]


def test_a_file_whose_name_is_no_cid_is_an_error_because_it_may_have_been_a_pin(
    tmp_path: Path,
) -> None:
    pins.add(str(tmp_path), ONE)
    (tmp_path / "pins" / "notes.txt").touch()
    with pytest.raises(WwError, match=r"notes\.txt: its name is not that of a pin"):
        pins.pins(str(tmp_path))


def test_what_a_dead_writer_left_is_no_pin(tmp_path: Path) -> None:
    pins.add(str(tmp_path), ONE)
    (tmp_path / "pins" / ".0123456789abcdef").touch()
    assert len(pins.pins(str(tmp_path))) == 1


def test_what_a_dead_writer_left_goes_with_a_collection(tmp_path: Path) -> None:
    gc.collect(str(tmp_path))  # without any store
    with Blockstore(str(tmp_path)) as store:
        pins.add(str(tmp_path), put_raw(store, b"kept"))
    (tmp_path / "pins" / ".0123456789abcdef").touch()
    gc.collect(str(tmp_path), dry_run=True)
    assert len(os.listdir(tmp_path / "pins")) == 2
    gc.collect(str(tmp_path))
    assert len(os.listdir(tmp_path / "pins")) == len(pins.pins(str(tmp_path))) == 1


def test_a_pin_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.add(str(tmp_path), TWO)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WwError, match="cannot write the pin: No space left"):
            pins.add(str(tmp_path), ONE)
    assert os.listdir(tmp_path / "pins") == [str(TWO)]


def test_a_pin_is_on_the_disk_with_its_directory_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    pins.add(str(tmp_path), ONE)
    directory = str(tmp_path / "pins")
    assert os.path.dirname(synced[1]) == directory  # the file, before it has its name
    assert synced == [str(tmp_path), synced[1], directory]


def test_an_interrupt_just_after_a_file_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.add(str(tmp_path), TWO, "before")
    before = sorted(os.listdir(tmp_path / "pins"))
    real = os.open

    def interrupted(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            os.close(fd)
            raise KeyboardInterrupt
        return fd

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pins.add(str(tmp_path), ONE, "a")
    assert sorted(os.listdir(tmp_path / "pins")) == before

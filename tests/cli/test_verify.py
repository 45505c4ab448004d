"""`ww verify`, as a user types it."""

import os
from pathlib import Path

import pytest

from runner.content.cid import DAG_PB, Cid
from tests.conftest import Ww

HELLO_V0 = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
HELLO_V1 = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


@pytest.fixture
def hello(ww: Ww) -> Path:
    return ww.file("hello", b"hello world")


def verify(ww: Ww, cid: str, file: Path | str) -> str:
    """What it says of a file that has the CID; without making a store."""
    done = ww.run("verify", cid, file)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert os.listdir(ww.home) == []
    return done.stdout.decode()


def refusal(ww: Ww, cid: str, file: Path | str, code: int = 1) -> str:
    done = ww.run("verify", cid, file)
    assert (done.returncode, done.stdout) == (code, b""), done.stdout
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


def test_a_file_that_has_the_cid(ww: Ww, hello: Path) -> None:
    said = verify(ww, HELLO_V0, hello)
    assert said == f"{hello}: has the CID {HELLO_V0}, as unixfs-v0-2015 makes it\n"
    assert verify(ww, f"/ipfs/{HELLO_V0}", hello) == said
    assert "as a single raw block" in verify(ww, HELLO_V1, hello)


def test_the_version_and_the_base_of_the_cid_do_not_matter(ww: Ww, hello: Path) -> None:
    cid = Cid.parse(HELLO_V0)
    assert "unixfs-v0-2015" in verify(ww, str(Cid(1, DAG_PB, cid.multihash)), hello)
    assert "raw" in verify(ww, f"f{bytes(Cid.parse(HELLO_V1)).hex()}", hello)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "unixfs-v0-2015"),
        (("--cid-version", "1"), "ipfs add --cid-version 1"),
        (("--profile", "unixfs-v1-2025"), "unixfs-v1-2025"),
    ],
)
def test_it_says_how_the_file_was_cut(ww: Ww, flags: tuple[str, ...], said: str) -> None:
    file = ww.file("file", os.urandom(3 << 20))
    elsewhere = {"WW_HOME": str(ww.root / "elsewhere")}
    address = ww.run("export", *flags, file, env=elsewhere).stdout.decode().strip()
    assert f", as {said} makes it" in verify(ww, address, file)
    with file.open("r+b") as stream:
        stream.seek(2_000_000)
        stream.write(b"x" * 8)
    likely = "ipfs add --cid-version 1" if "baf" in address else "unixfs-v0-2015"
    assert f"as {likely} makes it, it has " in refusal(ww, address, file)


def test_directories_with_and_without_hidden_entries(ww: Ww) -> None:
    (ww.tmp / "d").mkdir()
    ww.file("d/a", b"a")
    ww.file("d/.hidden", b"h")
    (ww.tmp / "link").symlink_to("d")
    elsewhere = {"WW_HOME": str(ww.root / "elsewhere")}
    for flags, said in (
        ((), "as unixfs-v0-2015 makes it"),
        (("--hidden",), "as unixfs-v0-2015, with hidden entries, makes it"),
        (("--hidden", "--cid-version", "1"), "as ipfs add --cid-version 1, with hidden entries,"),
    ):
        address = ww.run("export", *flags, "d", env=elsewhere).stdout.decode().strip()
        assert said in verify(ww, address, "d")
        assert said in verify(ww, address, "link")


def test_other_hash_functions_for_a_single_raw_block(ww: Ww, hello: Path) -> None:
    import hashlib

    digest = hashlib.blake2b(b"hello world", digest_size=32).digest()
    raw = Cid.from_bytes(b"\x01\x55\xa0\xe4\x02\x20" + digest)
    assert "as a single raw block" in verify(ww, str(raw), hello)
    node = Cid.from_bytes(b"\x01\x70\xa0\xe4\x02\x20" + digest)
    assert "only sha2-256 can be compared" in refusal(ww, str(node), hello)
    inlined = Cid.from_bytes(b"\x01\x55\x00\x0bhello world")
    assert "as a single raw block" in verify(ww, str(inlined), hello)


def test_a_file_that_has_another_cid(ww: Ww, hello: Path) -> None:
    other = ww.file("other", b"hello worlD")
    error = refusal(ww, HELLO_V0, other)
    assert error.startswith(f"ww: error: {other}: does not have the CID {HELLO_V0} (as ")
    assert "unixfs-v1-2025" in error
    assert "its hash is another" in refusal(ww, HELLO_V1, other)
    large = ww.file("large", bytes((2 << 20) + 1))
    assert "a single raw block" in refusal(ww, HELLO_V1, large)
    assert HELLO_V1 in refusal(ww, HELLO_V1, ww.tmp)


def test_what_cannot_be_compared(ww: Ww, hello: Path) -> None:
    assert "missing: cannot read" in refusal(ww, HELLO_V0, "missing", 127)
    os.mkfifo(ww.tmp / "fifo")
    assert "neither a file nor a directory" in refusal(ww, HELLO_V0, "fifo", 126)
    assert refusal(ww, HELLO_V0, "", 2) == "ww: error: FILE: it is empty\n"
    assert refusal(ww, "", hello, 2) == "ww: error: CID: it is empty\n"
    assert "CID: 'hello'" in refusal(ww, "hello", hello, 2)
    assert "/ipfs/" not in refusal(ww, f"/ipfs/{HELLO_V0}/x", hello, 2).partition("'")[0]
    cbor = str(Cid(1, 0x71, Cid.parse(HELLO_V0).multihash))
    assert "codec 0x71 is not that of its root" in refusal(ww, cbor, hello)


def test_what_cannot_be_read_is_told_from_what_has_another_cid(ww: Ww, hello: Path) -> None:
    assert "No such file" in refusal(ww, HELLO_V0, "nothing", 127)
    assert "neither a file nor a directory" in refusal(ww, HELLO_V0, "/dev/null", 126)
    assert "(it is: ww verify CID FILE)" in refusal(ww, str(hello), HELLO_V0, 2)
    # It can be opened, and its first page cannot be read.
    assert "cannot read: " in refusal(ww, HELLO_V1, "/proc/self/mem", 126)
    assert "cannot read: " in refusal(ww, HELLO_V0, "/proc/self/mem", 126)


def test_a_directory_with_what_has_no_address_cannot_be_compared(ww: Ww) -> None:
    (ww.tmp / "pipes").mkdir()
    os.mkfifo(ww.tmp / "pipes" / "fifo")
    (ww.tmp / "names").mkdir()
    with open(os.fsencode(ww.tmp / "names") + b"/\xff", "wb"):
        pass
    hint = "(compare a copy without it)\n"
    error = refusal(ww, HELLO_V0, "pipes", 126)
    assert error == f"ww: error: pipes/fifo: not a file, a directory or a symbolic link {hint}"
    error = refusal(ww, HELLO_V0, "names", 126)
    assert error == f"ww: error: names/\\udcff: its name is not UTF-8 {hint}"

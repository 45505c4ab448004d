"""Cells by name, typed as a user types it, against servers that say whatever the test wants."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import EXAMPLES, Ww
from tests.content import ipns_records as records
from tests.content.ipns_records import DAY, HELLO, OTHER, ed25519, make, rsa

CELL = EXAMPLES / "hello" / "hello.wasm"
HOUR = DAY // 24
NAME = str(ed25519().name)
X = f"/ipns/{NAME}"


class Peer:
    """A gateway, and the RPC of a node, that know nothing but names."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.asked: list[str] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address = urlsplit(self.path)
                query = parse_qs(address.query)
                if address.path.startswith("/ipns/") and query["format"] == ["ipns-record"]:
                    self.send_record(address.path.removeprefix("/ipns/"))
                else:
                    self.answer(404, b"", "text/plain")

            def do_POST(self) -> None:
                address = urlsplit(self.path)
                (name,) = parse_qs(address.query).get("arg", [""])
                name = name.removeprefix("/ipns/")
                if address.path == "/api/v0/name/get":
                    self.send_record(name)
                elif address.path == "/api/v0/name/resolve" and name in peer.links:
                    peer.asked.append(name)
                    answer = json.dumps({"Path": peer.links[name]}).encode()
                    self.answer(200, answer, "application/json")
                else:
                    answer = b'{"Message": "not found", "Code": 0, "Type": "error"}'
                    self.answer(500, answer, "application/json")

            def send_record(self, name: str) -> None:
                peer.asked.append(name)
                if name in peer.records:
                    kind = "application/vnd.ipfs.ipns-record"
                    self.answer(200, peer.records[name], kind)
                else:
                    self.answer(404, b"", "text/plain")

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    server = Peer()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[Peer]:
    server = Peer()
    yield server
    server.close()


@pytest.fixture
def cell(ww: Ww) -> str:
    return ww.export(CELL)


def publish(
    peer: Peer,
    value: str,
    key: records.Key | None = None,
    *,
    sequence: int = 0,
    expires_in: int = DAY,
    ttl: int = HOUR,
) -> None:
    key = key or ed25519()
    peer.records[str(key.name)] = make(
        value, key, sequence=sequence, validity=time.time_ns() + expires_in, ttl=ttl
    )


def remembered(ww: Ww) -> Path:
    return ww.home / "ipns" / NAME


def let_time_pass(ww: Ww, nanoseconds: int) -> None:
    """What is remembered was confirmed so much earlier."""
    path = remembered(ww)
    confirmed = path.stat().st_mtime_ns - nanoseconds
    os.utime(path, ns=(confirmed, confirmed))


@pytest.mark.parametrize(
    ("key", "flag"), [(ed25519(), "--gateway"), (rsa(), "--ipfs")], ids=["Ed25519", "RSA"]
)
def test_a_cell_is_run_by_its_name(
    ww: Ww, cell: str, peer: Peer, key: records.Key, flag: str
) -> None:
    publish(peer, cell, key)
    done = ww.run("run", flag, peer.url, f"/ipns/{key.name}")
    assert done.returncode == 0, done.stderr
    assert b"Granted: ()" in done.stdout
    assert done.stderr.decode() == f"resolved /ipns/{key.name} -> {cell}\n"
    assert peer.asked == [str(key.name)]


def test_the_second_run_asks_nobody(ww: Ww, cell: str, peer: Peer) -> None:
    publish(peer, cell)
    for _ in range(2):
        done = ww.run("run", "--gateway", peer.url, X)
        assert done.returncode == 0, done.stderr
        assert done.stderr.decode() == f"resolved {X} -> {cell}\n"
    assert ww.run("resolve", X).returncode == 0  # there is nobody to ask
    assert peer.asked == [NAME]
    let_time_pass(ww, HOUR)
    assert ww.run("resolve", "--gateway", peer.url, X).returncode == 0
    assert peer.asked == [NAME, NAME]


def test_names_are_resolved_and_imported(ww: Ww, peer: Peer, tmp_path: Path) -> None:
    folder = ww.tmp / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"of a")
    root = ww.export(folder)
    publish(peer, root)
    done = ww.run("resolve", "--gateway", peer.url, f"{X}/a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == ww.run("resolve", f"{root}/a").stdout.decode().strip()
    assert done.stderr.decode() == f"resolved {X}/a -> {root}/a\n"
    done = ww.run("import", "--gateway", peer.url, f"{X}/a", "out")
    assert done.returncode == 0, done.stderr
    assert (ww.tmp / "out").read_bytes() == b"of a"
    assert done.stderr.decode() == f"resolved {X}/a -> {root}/a\n"


def forge(record: bytes) -> bytes:
    """The last byte of the signature of version 2 is another one."""
    data = record.rindex(b"J")  # the tag of the field after it
    while record[data - 66 : data - 64] != b"B@":
        data = record.rindex(b"J", 0, data)
    return record[: data - 1] + bytes((record[data - 1] ^ 1,)) + record[data:]


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("forged", b"its signature is wrong"),
        ("of another key", b"its signature is wrong"),
        ("expired", b"it has expired at "),
        ("of a path", b"is not a path"),
        ("too large", b""),
        ("empty", b""),
    ],
)
def test_what_its_owner_has_not_signed_is_refused(
    ww: Ww, peer: Peer, other: Peer, attack: str, why: bytes
) -> None:
    publish(peer, HELLO, expires_in=-1 if attack == "expired" else DAY)
    good = peer.records[NAME]
    peer.records[NAME] = {
        "forged": forge(good),
        "of another key": make(HELLO, ed25519(2), validity=time.time_ns() + DAY),
        "expired": good,
        "of a path": make("/etc/passwd", validity=time.time_ns() + DAY),
        "too large": good + bytes(10 * 1024),
        "empty": b"",
    }[attack]
    done = ww.run("resolve", "--gateway", peer.url, X)
    assert done.returncode in ((1,) if why else (1, 127))
    assert done.stdout == b""
    assert why in done.stderr
    assert peer.url.encode() in done.stderr
    assert not remembered(ww).exists()

    publish(other, HELLO)
    done = ww.run("resolve", "--gateway", peer.url, "--gateway", other.url, X)
    assert done.stdout.decode() == f"{HELLO}\n"
    assert done.stderr.decode().endswith(f"resolved {X} -> {HELLO}\n")


def test_nothing_runs_by_a_record_that_is_refused(ww: Ww, cell: str, peer: Peer) -> None:
    publish(peer, cell)
    peer.records[NAME] = forge(peer.records[NAME])
    done = ww.run("run", "--gateway", peer.url, X)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"its signature is wrong" in done.stderr


def test_no_source_brings_an_older_record_again(ww: Ww, cell: str, peer: Peer) -> None:
    publish(peer, HELLO, sequence=2)
    assert ww.run("resolve", "--gateway", peer.url, X).returncode == 0
    let_time_pass(ww, HOUR)
    publish(peer, cell, sequence=1)
    done = ww.run("run", "--gateway", peer.url, X)
    assert (done.returncode, done.stdout) == (1, b"")
    assert (
        b"it is older, of sequence 1, than one that was seen before, of sequence 2" in done.stderr
    )
    publish(peer, OTHER, sequence=3)
    done = ww.run("resolve", "--gateway", peer.url, X)
    assert done.stdout.decode() == f"{OTHER}\n"


def test_offline_uses_what_is_remembered_and_says_so(ww: Ww, peer: Peer) -> None:
    done = ww.run("resolve", "--offline", "--gateway", peer.url, X)
    assert done.returncode == 127
    assert b"no record is remembered" in done.stderr
    publish(peer, HELLO, sequence=4)
    assert ww.run("resolve", "--gateway", peer.url, X).returncode == 0
    let_time_pass(ww, 2 * HOUR)
    done = ww.run("resolve", "--offline", "--gateway", peer.url, X)
    assert done.stdout.decode() == f"{HELLO}\n"
    said, resolved = done.stderr.decode().splitlines()
    assert said.startswith(f"{X}: --offline: the record remembered since ")
    assert "of sequence 4" in said
    assert resolved == f"resolved {X} -> {HELLO}"
    assert peer.asked == [NAME]


def test_a_domain_is_believed_only_if_the_user_says_so_and_of_a_node(ww: Ww, peer: Peer) -> None:
    peer.links["cells.example.org"] = HELLO
    address = "/ipns/cells.example.org"
    done = ww.run("resolve", "--ipfs", peer.url, address)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--dnslink" in done.stderr
    done = ww.run("resolve", "--dnslink", "--gateway", peer.url, address)
    assert (done.returncode, done.stdout) == (127, b"")
    assert peer.asked == []
    done = ww.run("resolve", "--dnslink", "--ipfs", peer.url, address)
    assert done.stdout.decode() == f"{HELLO}\n"
    said, resolved = done.stderr.decode().splitlines()
    assert said.startswith(f"{address}: a DNSLink is not verified; this is what node ")
    assert resolved == f"resolved {address} -> {HELLO}"
    assert peer.asked == ["cells.example.org"]


def test_a_record_that_nobody_has_is_127(ww: Ww, peer: Peer) -> None:
    done = ww.run("run", "--gateway", peer.url, X)
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"nobody has its record" in done.stderr
    done = ww.run("resolve", X)
    assert done.returncode == 127
    assert b"nobody to ask" in done.stderr


@pytest.mark.parametrize("name", ["", "bafkqaaa", "a..b"])
def test_what_is_no_name_is_2(ww: Ww, name: str) -> None:
    done = ww.run("resolve", f"/ipns/{name}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not a valid path" in done.stderr


def test_without_the_package_for_signatures_the_error_says_what_to_install(
    ww: Ww, peer: Peer
) -> None:
    publish(peer, HELLO)
    code = (
        "import sys; sys.modules['cryptography'] = None; "
        "from runner.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "resolve", "--gateway", peer.url]
    done = ww.call([*command, X])
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"pip install 'wetware[ipns]'" in done.stderr
    assert peer.asked == []
    assert ww.call([*command, HELLO]).returncode == 0


def test_what_a_record_says_cannot_steer_a_terminal(ww: Ww, peer: Peer) -> None:
    publish(peer, f"{HELLO}/\x1b[2J")
    done = ww.run("resolve", "--gateway", peer.url, X)
    assert done.returncode != 0
    assert b"\x1b" not in done.stderr
    assert b"\\x1b[2J" in done.stderr

"""ww itself, with a gateway of the tests behind it."""

from __future__ import annotations

import json
import os
import pty
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.content.addresses import DEFAULT_NODE
from runner.content.blockstore import Blockstore
from runner.content.car import write_car
from runner.content.cid import RAW, Cid
from runner.content.importer import PROFILES, import_path
from runner.content.walk import below
from runner.errors import EXIT_LIMIT, EXIT_NOT_FOUND, EXIT_USAGE
from tests.conftest import EXAMPLES, BuildFunction, Ww
from tests.content.dags import block_files
from tests.unit.content_sources.stub import Handler, Stub
from tests.wasi.remote_cell import ENOENT, R, remote

HELLO = EXAMPLES / "hello" / "hello.wasm"
GREETING = b"Hello from a cell."
ABSENT = Cid.of(b"absent", codec=RAW)


class Gateway(Stub):
    """A trustless gateway with the blocks of one store."""

    def __init__(self, home: Path) -> None:
        self.store = Blockstore(str(home))
        # Set by a test that wants to see a fetch in the middle.
        self.reached_middle = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(self.serve)

    def add(self, path: Path, profile: str = "unixfs-v0-2015") -> str:
        return f"/ipfs/{import_path(self.store, str(path), profile=PROFILES[profile])}"

    def serve(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        cid = Cid.parse(path.split("/")[2])
        if not self.store.has(cid):
            handler.answer(404)
        elif "format=raw" in query:
            handler.answer(200, self.store.get(cid), "application/vnd.ipld.raw")
        else:
            handler.send_response(200)
            handler.send_header("Content-Type", "application/vnd.ipld.car")
            handler.send_header("Connection", "close")
            handler.end_headers()
            cids = list(below(self.store.get, cid, set(), leaves=False))
            write_car(handler.wfile, [cid], ((cid, self.store.get(cid)) for cid in cids[:-1]))
            handler.wfile.flush()
            self.reached_middle.set()
            self.go_on.wait(30)
            write_car(_Sections(handler), [cid], [(cids[-1], self.store.get(cids[-1]))])
            handler.close_connection = True


class _Sections:
    """Writes the sections of a CAR and not its header, which is what is written first."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._began = False

    def write(self, data: bytes, /) -> None:
        if self._began:
            self._handler.wfile.write(data)
        self._began = True


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "gateway") as server:
        yield server


def test_a_cell_is_fetched_once_and_then_nobody_is_asked(ww: Ww, gateway: Gateway) -> None:
    address = gateway.add(HELLO)
    for asked in (1, 0):
        gateway.asked.clear()
        done = ww.run("run", "--gateway", gateway.url, address)
        assert (done.returncode, done.stderr) == (0, b"")
        assert GREETING in done.stdout
        assert len(gateway.asked) == asked
    done = ww.run("run", "--offline", address, env={"WW_GATEWAYS": gateway.url})
    assert done.returncode == 0, done.stderr
    assert len(block_files(ww.home)) == len(block_files(gateway.store.home))


@pytest.mark.parametrize(
    "command",
    [
        ("import", "PATH", "-o", "out"),
        ("store", "cat", "PATH"),
        ("resolve", "PATH/hello.wasm"),
        ("cache", "warm", "PATH"),
    ],
)
def test_the_other_commands_fetch_too(ww: Ww, gateway: Gateway, command: tuple[str, ...]) -> None:
    folder = ww.tmp / "folder"
    folder.mkdir()
    (folder / "hello.wasm").write_bytes(HELLO.read_bytes())
    address = gateway.add(folder if command[0] == "resolve" else HELLO)
    done = ww.run(
        *(part.replace("PATH", address) for part in command), env={"WW_GATEWAYS": gateway.url}
    )
    assert done.returncode == 0, done.stderr
    assert gateway.asked != []
    if command[0] == "import":
        assert (ww.tmp / "out").read_bytes() == HELLO.read_bytes()


def test_offline_asks_nobody(ww: Ww, gateway: Gateway) -> None:
    address = gateway.add(HELLO)
    done = ww.run("run", "--offline", "--gateway", gateway.url, address)
    assert (done.returncode, done.stdout) == (EXIT_NOT_FOUND, b"")
    assert b"nobody else is asked, for --offline" in done.stderr
    assert gateway.asked == []


def test_the_default_node_is_no_reason_to_complain(ww: Ww, gateway: Gateway) -> None:
    done = ww.run("run", "--gateway", gateway.url, gateway.add(HELLO), env={"WW_IPFS": ""})
    assert (done.returncode, done.stderr) == (0, b"")
    done = ww.run("run", f"/ipfs/{ABSENT}", env={"WW_IPFS": ""})
    assert done.returncode == EXIT_NOT_FOUND
    assert f"nor anywhere else: node {DEFAULT_NODE}: ".encode() in done.stderr


def test_a_node_that_the_user_has_named_is_one(ww: Ww, gateway: Gateway) -> None:
    nobody = "/ip4/127.0.0.1/tcp/1/http"
    done = ww.run("run", "--gateway", gateway.url, "--ipfs", nobody, gateway.add(HELLO))
    assert done.returncode == 0
    warning = f"ww: warning: node {nobody}: Connection refused; it is not asked again\n"
    assert done.stderr.decode() == warning


def test_a_node_far_away_is_not_asked_in_the_clear(ww: Ww) -> None:
    done = ww.run("run", "--ipfs", "http://192.0.2.1:5001", f"/ipfs/{ABSENT}")
    assert done.returncode == EXIT_NOT_FOUND
    assert b"192.0.2.1 is in a private network, and is asked there with TLS or" in done.stderr


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (("--ipfs", "nonsense"), "--ipfs"),
        (("--gateway", "nonsense"), "--gateway"),
        (("--max-size", "0"), "--max-size"),
        (("--max-size", "large"), "--max-size"),
    ],
)
def test_a_malformed_flag_is_told_also_where_it_is_not_needed(
    ww: Ww, flags: tuple[str, str], where: str
) -> None:
    done = ww.run("run", *flags, ww.export(HELLO))
    assert (done.returncode, done.stdout) == (EXIT_USAGE, b"")
    assert done.stderr.startswith(f"ww: error: {where}: ".encode())


def test_a_cell_may_be_as_large_as_the_user_says(ww: Ww, gateway: Gateway) -> None:
    size = HELLO.stat().st_size
    for cell in (gateway.add(HELLO), HELLO):
        for most, code in ((size, 0), (size - 1, EXIT_LIMIT)):
            done = ww.run("run", "--max-size", f"{most}", "--gateway", gateway.url, cell)
            assert done.returncode == code, done.stderr


def test_a_running_cell_makes_nobody_be_asked_and_so_tells_nobody_anything(
    ww: Ww, gateway: Gateway, c_cell: BuildFunction
) -> None:
    address = gateway.add(ww.file("file", b"some content " * 100_000))
    ww.env["WW_GATEWAYS"] = gateway.url
    with remote(ww, c_cell("remote"), "--with-ipfs") as cell:
        assert cell.open(address.removeprefix("/ipfs/"), R) == (ENOENT, None)
        assert cell.open(f"{ABSENT}", R) == (ENOENT, None)
    assert not gateway.asked


# --- what is shown -------------------------------------------------------------------------------


def large(ww: Ww, gateway: Gateway) -> str:
    return gateway.add(ww.file("large", os.urandom(1 << 20)))


def test_nothing_is_shown_where_there_is_no_terminal(ww: Ww, gateway: Gateway) -> None:
    done = ww.run("import", "--gateway", gateway.url, large(ww, gateway), "-o", "out")
    assert (done.returncode, done.stderr) == (0, b"")


def test_plain_lines_are_shown_if_asked_for(ww: Ww, gateway: Gateway) -> None:
    address = large(ww, gateway)
    done = ww.run("import", "--gateway", gateway.url, "--progress", address, "-o", "out")
    assert done.returncode == 0
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("ww: fetched 1.0 MiB in ")
    assert last.endswith(f" s, from gateway {gateway.url}: {address}")
    done = ww.run("import", "--gateway", gateway.url, "--progress", address, "-o", "again")
    assert (done.returncode, done.stderr) == (0, b"")


def test_json_is_shown_if_asked_for(ww: Ww, gateway: Gateway) -> None:
    address = large(ww, gateway)
    done = ww.run("import", "--gateway", gateway.url, "--progress-json", address, "-o", "out")
    assert done.returncode == 0
    told = json.loads(done.stderr.splitlines()[-1])
    assert (told["event"], told["state"], told["address"]) == ("fetch", "done", address)
    assert told["sources"] == [f"gateway {gateway.url}"]
    assert told["bytes"] > 1 << 20
    assert told["received"] > told["bytes"]


def test_a_terminal_shows_how_far_it_is_and_nothing_afterwards(ww: Ww, gateway: Gateway) -> None:
    gateway.go_on.clear()
    address = large(ww, gateway)
    master, terminal = pty.openpty()
    try:
        command = ("import", "--gateway", gateway.url, address, "-o", "out")
        with ww.popen(*command, stderr=terminal, env={"TERM": "xterm"}) as process:
            os.close(terminal)
            shown = b""
            # The last block is held back until something is shown.
            while f"gateway {gateway.url}".encode() not in shown:
                shown += os.read(master, 4096)
            gateway.go_on.set()
            assert process.communicate(timeout=30)[0] == b"out\n"
            assert process.returncode == 0
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:
                break
    finally:
        os.close(master)
    assert b"ww: fetching " in shown
    assert shown.endswith(b"\r\x1b[K")

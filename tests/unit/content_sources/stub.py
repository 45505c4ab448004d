"""HTTP servers of the tests, and sources in memory."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from runner.content.blockstore import Blockstore
from runner.content.car import write_car
from runner.content.cid import Cid
from runner.content.resolver import ContentPath
from runner.content.source import Source, SourceError


class Asked(NamedTuple):
    """A request."""

    method: str
    target: str
    headers: dict[str, str]
    connection: tuple[Any, ...]


Answering = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the function of its server."""

    protocol_version = "HTTP/1.1"
    server: Stub

    def answer(
        self, status: int, body: bytes = b"", kind: str = "text/plain", **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, tuple(self.client_address))
        with self.server.lock:
            self.server.asked.append(asked)
        self.server.answering(self)

    do_GET = do_POST = do_CONNECT = _serve  # noqa: N815 - as http.server has it

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class Stub(ThreadingHTTPServer):
    """A server on loopback. Use it in a `with` block; it notes what it is asked."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, answering: Answering, address: Any = ("127.0.0.1", 0)) -> None:
        self.answering = answering
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        super().__init__(address, Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def targets(self) -> list[str]:
        return [asked.target for asked in self.asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class SocketStub(Stub):
    """The same on a unix socket."""

    address_family = 1  # AF_UNIX

    def __init__(self, answering: Answering, path: Path) -> None:
        super().__init__(answering, str(path))

    def server_bind(self) -> None:
        # HTTPServer's own wants a host and a port.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> Any:
        request, _ = super().get_request()
        return request, ("", 0)


class MemorySource(Source):
    """A source that has some blocks, and notes what it is asked."""

    def __init__(
        self,
        name: str,
        blocks: dict[bytes, bytes],
        *,
        car: list[tuple[Cid, bytes]] | Exception | None = None,
        named: bool = True,
    ) -> None:
        self.name = name
        self.named = named
        self.blocks = blocks
        self.asked: list[Cid] = []
        self.asked_car: list[tuple[ContentPath, bool]] = []
        self.closed = False
        self._car = car

    def get(self, cid: Cid) -> bytes | None:
        self.asked.append(cid)
        return self.blocks.get(cid.multihash)

    def car(self, path: ContentPath, *, everything: bool = False) -> Any:
        self.asked_car.append((path, everything))
        if isinstance(self._car, Exception):
            raise self._car
        if self._car is None:
            return None
        out = _Joined()
        write_car(out, [path.root], self._car)
        return out

    def close(self) -> None:
        self.closed = True


class FailingSource(Source):
    """A source that fails, always in the same way."""

    def __init__(self, name: str, error: Exception, *, named: bool = True) -> None:
        self.name = name
        self.named = named
        self.error = error
        self.asked = 0

    def get(self, cid: Cid) -> bytes | None:
        self.asked += 1
        raise self.error


class _Joined:
    """What was written, to be read again."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.closed = False

    def write(self, data: bytes, /) -> None:
        self._data += data

    def read(self, size: int, /) -> bytes:
        if self.closed:
            raise SourceError("closed")
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def close(self) -> None:
        self.closed = True


def blocks_of(store: Blockstore) -> dict[bytes, bytes]:
    """All blocks of a store, by their multihashes."""
    from runner.content.gc import blocks

    found = {}
    for block in blocks(store.home):
        assert block.cid is not None
        found[block.cid.multihash] = store.get(block.cid)
    return found

"""HTTP as sources need it: bounded in time, in bytes, and in where it may lead.

Messages are read by :mod:`http.client`; everything around them is here, because a server may be
hostile, slow or gone:

- connecting takes :attr:`Limits.connect` seconds at most; after that, no wait for the next byte is
  longer than :attr:`Limits.idle`, and what arrives has to come at :attr:`Limits.rate` on average;
- an answer has no more bytes than the caller says, its head and its frame included;
- nothing is ever decompressed: what is asked for is asked for as it is;
- redirects are followed where the caller wants that, at most :data:`MAX_REDIRECTS`, never from
  https to http, and never from the world into a private network or into this machine;
- who asks to be asked again later is obeyed, if that is soon and not too often.
"""

import contextlib
import http.client
import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runner.content.addresses import Endpoint
from runner.content.net import LOOPBACK, PUBLIC, named_reach, open_socket
from runner.content.source import SourceError, Watch

if TYPE_CHECKING:
    import ssl

    from runner.content.proxies import Proxies

MAX_REDIRECTS: Final = 5
MAX_TRIES: Final = 3
"""How often one request is made, if the server asks for that or drops the connection."""

MAX_PAUSE: Final = 10.0
"""Seconds after which a server may want to be asked again; a longer time is too long."""

_HEAD_SIZE = 256 << 10  # bytes of all that comes before an answer's body
_FRAME_FACTOR = 8  # how many times its body an answer may have on the wire, in small chunks
_DISCARDED = 16 << 10  # bytes that are read of what nobody wants, to keep the connection
_BUFFER = 64 << 10
_MOST_IDLE = 8  # connections that are kept for the next request
_PAUSE = 1.0  # seconds, if the server does not say

_REDIRECTS = (301, 302, 303, 307, 308)
_TOO_MANY_REQUESTS, _UNAVAILABLE = 429, 503


class Limits(NamedTuple):
    """How long is waited.

    Attributes:
        connect: Seconds for a connection, and as much again for TLS.
        idle: Seconds for the next byte.
        rate: Bytes a second that an answer has to come at, on average over each period of
            :attr:`idle` seconds of waiting.
    """

    connect: float = 5.0
    idle: float = 30.0
    rate: int = 1024


class _TooMuch(Exception):
    """An answer has more bytes on the wire than any honest one."""


class _Dropped(Exception):
    """A server has closed the connection instead of answering."""


class _Wire(io.RawIOBase):
    """What arrives on a connection, with an eye on how much and how fast.

    Attributes:
        sock: What it is read from.
        allowance: Bytes that may still come.
        count: Bytes that have come of this answer.
    """

    def __init__(self, sock: socket.socket, limits: Limits, watch: Watch) -> None:
        super().__init__()
        self.sock = sock
        self.allowance = 0
        self.count = 0
        self._limits = limits
        self._watch = watch
        self._period = (0.0, 0)  # seconds waited, and bytes that came

    def begin(self) -> None:
        """Begin to measure a new answer."""
        self.allowance = _HEAD_SIZE
        self.count = 0
        self._period = (0.0, 0)

    def close(self) -> None:
        """Stay open: what ends is an answer, and there may be another."""

    def readable(self) -> bool:
        """Tell that this is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io.RawIOBase has it
        """Read what is there, or wait for it."""
        if self.allowance <= 0:
            raise _TooMuch
        begin = time.monotonic()
        count = self.sock.recv_into(memoryview(buffer)[: self.allowance])
        # Neither the wait for the first byte is counted, which says nothing of a rate, nor the time
        # between two reads, which is ours.
        if self.count:
            self._measure(time.monotonic() - begin, count)
        self.allowance -= count
        self.count += count
        self._watch(count)
        return count

    def _measure(self, seconds: float, count: int) -> None:
        waited, came = self._period[0] + seconds, self._period[1] + count
        if waited > self._limits.idle:
            if came < self._limits.rate * waited:
                raise SourceError(f"it is too slow: {int(came / waited)} bytes a second")
            waited, came = 0.0, 0
        self._period = (waited, came)


class _Connection:
    """One connection; what comes on it is read by one thread at a time.

    Attributes:
        origin: Whom it leads to, as :func:`_origin` has it.
        reach: How far away that is.
        absolute: Whether it leads to a proxy, which is to be told the whole URL.
        used: Whether it has carried an answer before.
        wire: What comes on it.
    """

    def __init__(
        self,
        sock: socket.socket,
        origin: tuple[object, ...],
        reach: int,
        limits: Limits,
        watch: Watch,
        *,
        absolute: bool = False,
    ) -> None:
        self.origin = origin
        self.reach = reach
        self.absolute = absolute
        self.wire = _Wire(sock, limits, watch)
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what http.client reads from; its end leaves the connection as it is."""
        return io.BufferedReader(self.wire, _BUFFER)

    def exchange(self, method: str, request: bytes) -> http.client.HTTPResponse:
        """Send a request, and read the head of the answer."""
        self.wire.begin()
        self._sock.sendall(request)
        answer = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        answer.begin()
        return answer

    def secure(self, context: "ssl.SSLContext", host: str, limits: Limits) -> None:
        """Go on with TLS."""
        self._sock.settimeout(limits.connect)
        # Not while it is wrapped: this way the whole handshake has one deadline.
        self._sock = context.wrap_socket(
            self._sock, server_hostname=host, do_handshake_on_connect=False
        )
        self._sock.do_handshake()
        self._sock.settimeout(limits.idle)
        self.wire.sock = self._sock

    def abort(self) -> None:
        """End whatever waits on it, in any thread."""
        with contextlib.suppress(OSError):
            # Not that of TLS, which would let a reader go on without TLS.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it. Nobody may be reading."""
        self._sock.close()


class Response:
    """An answer. Its body is read by one thread, and may be closed by any.

    Attributes:
        status: HTTP's status.
        media_type: What the body is said to be, in lower case and without parameters.
        reach: How far away its sender is.
    """

    def __init__(
        self, client: "Client", connection: _Connection, answer: http.client.HTTPResponse
    ) -> None:
        self.status = answer.status
        self.media_type = answer.headers.get_content_type()
        self.reach = connection.reach
        self._client = client
        self._connection: _Connection | None = connection
        self._answer = answer
        self._most: int | None = 0
        self._count = 0
        self._closed = False
        self._lock = threading.Lock()

    def header(self, name: str) -> str:
        """Return a header, or the empty string."""
        return self._answer.headers.get(name, "")

    def read(self, most: int) -> bytes:
        """Return the whole body, and close the answer.

        Args:
            most: The most bytes to accept.

        Raises:
            SourceError: It does not arrive, or is larger.
        """
        try:
            self._begin(most)
            parts = []
            while part := self.read1((self._answer.length or _BUFFER) + 1):
                parts.append(part)
            return b"".join(parts)
        finally:
            self.close()

    def stream(self) -> "Body":
        """Return the body as a stream, of which its reader takes as much as it likes.

        Raises:
            SourceError: It is not as it was asked for.
        """
        try:
            self._begin(None)
        except BaseException:
            self.close()
            raise
        return Body(self)

    def _begin(self, most: int | None) -> None:
        for name, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
            value = self.header(name).strip().lower()
            if value not in ("", plain):
                raise SourceError(f"its answer is encoded as {value[:32]}, against the request")
        if most is not None and (self._answer.length or 0) > most:
            raise _too_large(most)
        self._most = most

    def read1(self, size: int) -> bytes:
        """Return bytes of the body as soon as there are any; none at its end.

        Args:
            size: The most bytes to return.

        Raises:
            SourceError: They do not arrive, or too many do.
        """
        with self._lock:
            if self._closed or self._connection is None:
                self._release(reusable=False)
                return b""
            answer, wire = self._answer, self._connection.wire
            wire.allowance = _HEAD_SIZE + _FRAME_FACTOR * (self._count + size) - wire.count
            try:
                data = answer.read1(size)
                if not data and answer.length:
                    raise SourceError("its answer is cut off")
                self._count += len(data)
                if self._most is not None and self._count > self._most:
                    raise _too_large(self._most)
            except Exception as error:
                self._release(reusable=False)
                raise explained(error, self._client.limits) from None
            if answer.length == 0 or answer.isclosed():
                self._release(reusable=not answer.will_close)
            return data

    def discard(self) -> None:
        """Close the answer, whose body nobody wants, and keep the connection if that is cheap."""
        # What does not say how long it is could go on for as long as it likes.
        if self._answer.length is not None:
            with contextlib.suppress(SourceError):
                self.read(_DISCARDED)
        self.close()

    def close(self) -> None:
        """Take no more of it."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            self._release(reusable=False)
            self._lock.release()
        elif (connection := self._connection) is not None:
            connection.abort()  # the reader closes it

    def _release(self, *, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._answer.close()
            self._client.take_back(connection, reusable=reusable and not self._closed)


class Body:
    """The body of an answer, as a stream."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._buffered = io.BufferedReader(_Raw(response), _BUFFER)

    def read(self, size: int, /) -> bytes:
        """Return that many bytes, and less only at the end.

        Raises:
            SourceError: They do not arrive.
        """
        return self._buffered.read(size)

    def close(self) -> None:
        """Take no more of it; may be called from any thread."""
        self._response.close()


class _Raw(io.RawIOBase):
    """The body of an answer, for io.BufferedReader."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self._response = response

    def readable(self) -> bool:
        """Tell that this is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io.RawIOBase has it
        """Read what is there, or wait for it."""
        data = self._response.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Client:
    """Asks one server, and those to whom it redirects. May be used by several threads at once.

    Attributes:
        limits: How long is waited.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        watch: Watch,
        limits: Limits | None = None,
        proxies: "Proxies | None" = None,
        follows: bool = False,
        private: bool = False,
    ) -> None:
        """Describe it; no connection is made yet.

        Args:
            endpoint: The server.
            watch: Is told of the bytes that arrive.
            limits: How long to wait.
            proxies: Where to find proxies; None for no proxy.
            follows: Whether to follow redirects.
            private: Whether to talk to nobody but this machine, except with TLS.
        """
        self.limits = limits or Limits()
        self._endpoint = endpoint
        self._watch = watch
        self._proxies = proxies
        self._follows = follows
        self._private = private
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._context: ssl.SSLContext | None = None
        self._not_before = 0.0
        self._closed = threading.Event()

    def close(self) -> None:
        """End all requests, and keep no connection."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
            self._open.difference_update(idle)
            for connection in self._open:
                connection.abort()
        for connection in idle:
            connection.close()

    def request(self, method: str, target: str, accept: str = "*/*") -> Response:
        """Make a request, and return the head of the answer.

        Args:
            method: GET or POST.
            target: The path and the query, escaped, below the endpoint's own path.
            accept: The media types to ask for.

        Raises:
            SourceError: There is no answer.
        """
        for tries in range(1, MAX_TRIES + 1):
            self._hold()
            try:
                response = self._follow(method, self._endpoint.path + target, accept)
            except _Dropped:
                text, busy = "it closed the connection instead of answering", False
                continue
            pause = _asked_pause(response)
            if pause is None:
                return response
            text, busy = f"it answered {response.status}", True
            response.discard()
            if pause > MAX_PAUSE:
                raise SourceError(f"{text}, to be asked again in {pause:.0f} s", gone=True)
            if tries < MAX_TRIES:
                self._not_before = time.monotonic() + pause
        raise SourceError(f"{text}, {MAX_TRIES} times", gone=busy)

    def _hold(self) -> None:
        """Wait as long as the server wants all of this client's threads to wait."""
        while (seconds := self._not_before - time.monotonic()) > 0:
            if self._closed.wait(seconds):
                break
        if self._closed.is_set():
            raise SourceError("it is not asked any more")

    def _follow(self, method: str, target: str, accept: str) -> Response:
        hop, least = self._endpoint, LOOPBACK
        for _ in range(MAX_REDIRECTS + 1):
            response = self._exchange(method, hop, target, accept, least)
            if response.status not in _REDIRECTS or not self._follows:
                return response
            from runner.content.net import redirected

            location = response.header("location")
            response.discard()
            hop, target = redirected(hop, target, location)
            least = max(least, response.reach)
        raise SourceError(f"it redirects more than {MAX_REDIRECTS} times")

    def _exchange(
        self, method: str, hop: Endpoint, target: str, accept: str, least: int
    ) -> Response:
        """Make a request over a connection that is there, or else over a new one."""
        connection = self._take_idle(hop, least)
        if connection is not None:
            with contextlib.suppress(_Dropped):
                return self._talk(connection, method, hop, target, accept)
        return self._talk(self._connect(hop, least), method, hop, target, accept)

    def _talk(
        self, connection: _Connection, method: str, hop: Endpoint, target: str, accept: str
    ) -> Response:
        request = _head(method, hop, target, accept, absolute=connection.absolute)
        try:
            answer = connection.exchange(method, request)
        except BaseException as error:
            self.take_back(connection, reusable=False)
            if isinstance(error, ConnectionError):
                raise _Dropped from None
            if isinstance(error, Exception):
                raise explained(error, self.limits) from None
            raise
        return Response(self, connection, answer)

    def _take_idle(self, hop: Endpoint, least: int) -> _Connection | None:
        origin = _origin(hop)
        with self._lock:
            for connection in self._idle:
                if connection.origin == origin and connection.reach >= least:
                    self._idle.remove(connection)
                    return connection
        return None

    def take_back(self, connection: _Connection, *, reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        with self._lock:
            if reusable and not self._closed.is_set() and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
            self._open.discard(connection)
        connection.close()

    def _connect(self, hop: Endpoint, least: int) -> _Connection:
        """Make a new connection.

        Args:
            hop: Whom to.
            least: How near that may be.

        Raises:
            SourceError: It cannot be made, or may not.
        """
        proxy = None if self._proxies is None else self._proxies.of(hop)
        # Only TLS protects what goes over a network.
        most = LOOPBACK if self._private and not hop.secure else PUBLIC
        if proxy is None:
            sock, reach = open_socket(hop, least=least, most=most, timeout=self.limits.connect)
        else:
            # The proxy looks up the name, so the name has to tell.
            reach = named_reach(hop.host, least=least, most=most)
            sock, _ = open_socket(proxy, timeout=self.limits.connect)
        sock.settimeout(self.limits.idle)
        connection = _Connection(
            sock,
            _origin(hop),
            reach,
            self.limits,
            self._watch,
            absolute=proxy is not None and not hop.secure,
        )
        with self._lock:
            self._open.add(connection)
        try:
            if proxy is not None and hop.secure:
                self._tunnel(connection, hop, proxy)
            if hop.secure:
                connection.secure(self._tls(), hop.host, self.limits)
        except BaseException as error:
            self.take_back(connection, reusable=False)
            if isinstance(error, TimeoutError):
                raise SourceError(
                    f"no connection with TLS within {self.limits.connect:g} s", gone=True
                ) from None
            if isinstance(error, Exception):
                raise SourceError(explained(error, self.limits).text, gone=True) from None
            raise
        if self._closed.is_set():
            connection.abort()
        return connection

    def _tunnel(self, connection: _Connection, hop: Endpoint, proxy: Endpoint) -> None:
        authority = f"{_bracketed(hop.host)}:{hop.port}"
        lines = [
            f"CONNECT {authority} HTTP/1.1",
            f"Host: {authority}",
            *_credentials(proxy, "Proxy-"),
        ]
        answer = connection.exchange("CONNECT", _encoded(lines))
        if answer.status != http.client.OK:
            raise SourceError(f"the proxy {proxy.text} answered {answer.status}")
        answer.close()

    def _tls(self) -> "ssl.SSLContext":
        with self._lock:
            if self._context is None:
                import ssl

                self._context = ssl.create_default_context()
                self._context.set_alpn_protocols(["http/1.1"])
            return self._context


def explained(error: Exception, limits: Limits) -> SourceError:
    """Return what an error says of a source.

    Args:
        error: What was raised while a connection was used.
        limits: How long was waited.
    """
    match error:
        case SourceError():
            return error
        case TimeoutError():
            return SourceError(f"nothing came from it for {limits.idle:g} s")
        case _TooMuch():
            return SourceError("its answer has more bytes than it may have")
        case http.client.IncompleteRead():
            return SourceError("its answer is cut off")
        case OSError():
            verify = getattr(error, "verify_message", "")
            return SourceError(verify or error.strerror or str(error))
        case http.client.HTTPException() | ValueError():
            return SourceError("its answer is not HTTP")
        case _:
            raise error


def _too_large(most: int) -> SourceError:
    return SourceError(f"its answer has more than {most} bytes")


def _asked_pause(response: Response) -> float | None:
    """Return the seconds after which the server wants to be asked again, or None."""
    after = response.header("retry-after").strip()
    if response.status == _TOO_MANY_REQUESTS and not after:
        return _PAUSE
    if response.status not in (_TOO_MANY_REQUESTS, _UNAVAILABLE) or not after:
        return None
    if after.isdecimal():
        return float(after[:9])  # a longer one is too long whatever else is in it
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return _PAUSE


def _origin(hop: Endpoint) -> tuple[object, ...]:
    return (hop.secure, hop.host, hop.port, hop.socket)


def _head(method: str, hop: Endpoint, target: str, accept: str, *, absolute: bool) -> bytes:
    authority = _bracketed(hop.host)
    if hop.port not in (0, 443 if hop.secure else 80):
        authority += f":{hop.port}"
    lines = [
        f"{method} {f'http://{authority}' if absolute else ''}{target} HTTP/1.1",
        f"Host: {authority}",
        "User-Agent: ww",
        f"Accept: {accept}",
        "Accept-Encoding: identity",
        *_credentials(hop),
    ]
    if method == "POST":
        lines.append("Content-Length: 0")
    return _encoded(lines)


def _credentials(endpoint: Endpoint, prefix: str = "") -> list[str]:
    if not endpoint.credentials:
        return []
    import base64

    encoded = base64.b64encode(endpoint.credentials.encode()).decode()
    return [f"{prefix}Authorization: Basic {encoded}"]


def _encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""The client of HTTP: how long, how much, how often, and where it leads."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from email.utils import formatdate
from pathlib import Path

import pytest

from runner.content import http, net
from runner.content.addresses import Endpoint, parse_gateway, parse_node
from runner.content.http import Client, Limits
from runner.content.proxies import Proxies
from runner.content.source import SourceError
from tests.unit.content_sources.stub import Answering, Handler, SocketStub, Stub

QUICK = Limits(connect=5, idle=0.3, rate=1 << 20)
PATIENT = Limits(connect=5, idle=20, rate=1)


def client(server: Stub | str, **options: object) -> "closing[Client]":
    url = server if isinstance(server, str) else server.url
    arguments: dict[str, object] = {"watch": lambda count: None, "limits": PATIENT, **options}
    return closing(Client(parse_gateway(url, "a test"), **arguments))  # type: ignore[arg-type]


def text(body: bytes) -> Answering:
    return lambda handler: handler.answer(200, body)


class Raw:
    """A server that says what it is told to say, whatever it is asked. Use it in a `with` block."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                self._talk(connection)

    def __enter__(self) -> "Raw":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def says(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


# --- requests ------------------------------------------------------------------------------------


def test_a_request_says_what_is_wanted_and_no_more() -> None:
    with Stub(text(b"x")) as server, client(server.url + "/below") as asking:
        assert asking.request("GET", "/a?b=c", "text/plain").read(10) == b"x"
        assert asking.request("POST", "/d").read(10) == b"x"
    get, post = server.asked
    assert (get.method, get.target) == ("GET", "/below/a?b=c")
    assert get.headers == {
        "host": server.url.removeprefix("http://"),
        "user-agent": "ww",
        "accept": "text/plain",
        "accept-encoding": "identity",
    }
    assert (post.method, post.headers["content-length"]) == ("POST", "0")


def test_a_password_goes_to_its_own_server_only() -> None:
    with Stub(text(b"x")) as other:
        to = other.url + "/there"
        with Stub(lambda handler: handler.answer(302, Location=to)) as server:
            url = server.url.replace("http://", "http://me:word@")
            with client(url, follows=True) as asking:
                assert asking.request("GET", "/").read(10) == b"x"
    assert server.asked[0].headers["authorization"] == "Basic bWU6d29yZA=="
    assert "authorization" not in other.asked[0].headers


def test_a_connection_carries_one_request_after_the_other() -> None:
    with Stub(text(b"x" * 100_000)) as server, client(server) as asking:
        for _ in range(3):
            assert len(asking.request("GET", "/").read(100_000)) == 100_000
        asking.request("GET", "/").discard()
    assert len({asked.connection for asked in server.asked[:3]}) == 1


def test_an_answer_that_is_not_read_to_its_end_costs_its_connection() -> None:
    with Stub(text(b"x" * 1_000_000)) as server, client(server) as asking:
        stream = asking.request("GET", "/").stream()
        assert stream.read(10) == b"x" * 10
        stream.close()
        assert len(stream.read(1_000_000)) < http._BUFFER
        assert len(asking.request("GET", "/").read(1_000_000)) == 1_000_000
    assert len({asked.connection for asked in server.asked}) == 2


def test_a_connection_that_the_server_has_closed_meanwhile_is_made_anew() -> None:
    def once(handler: Handler) -> None:
        handler.answer(200, b"x")
        handler.close_connection = True

    with Stub(once) as server, client(server) as asking:
        for number in range(3):
            assert asking.request("GET", f"/{number}").read(10) == b"x"
    assert server.targets == ["/0", "/1", "/2"]


def test_a_unix_socket_is_asked(tmp_path: Path) -> None:
    endpoint = parse_node(f"unix://{tmp_path}/s", "a test")
    assert isinstance(endpoint, Endpoint)
    with SocketStub(text(b"x"), tmp_path / "s") as server:
        with closing(Client(endpoint, watch=lambda count: None, private=True)) as asking:
            assert asking.request("POST", "/a").read(10) == b"x"
        assert server.asked[0].headers["host"] == "localhost"
    with closing(Client(endpoint._replace(socket="/nowhere"), watch=lambda count: None)) as asking:
        with pytest.raises(SourceError, match="No such file") as caught:
            asking.request("POST", "/a")
        assert caught.value.gone


def test_the_bytes_that_arrive_are_counted() -> None:
    counts: list[int] = []
    with Stub(text(b"x" * 1000)) as server, client(server, watch=counts.append) as asking:
        asking.request("GET", "/").read(1000)
    assert 1000 < sum(counts) < 2000


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 70_000])
def test_a_body_may_have_as_many_bytes_as_are_allowed_and_no_more(body: bytes) -> None:
    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
        for part in parts:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    ends = says(b"HTTP/1.1 200 OK\r\n\r\n" + body)
    with Stub(text(body)) as server, Stub(chunked) as other, Raw(ends) as third:
        for url in (server.url, other.url, third.url):
            with client(url) as asking:
                assert asking.request("GET", "/").read(len(body)) == body
                if body:
                    with pytest.raises(SourceError, match=f"more than {len(body) - 1} bytes"):
                        asking.request("GET", "/").read(len(body) - 1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nhalf", "cut off|not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhalf", "cut off|not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "encoded as gzip"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx", "encoded as br"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, "not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, "more bytes"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes, why: str) -> None:
    with Raw(says(answer)) as server, client(server.url) as asking:
        with pytest.raises(SourceError, match=why) as caught:
            asking.request("GET", "/").read(1 << 20)
        assert not caught.value.gone


def test_chunks_of_one_byte_are_read_and_endless_frames_are_not() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def frames(connection: socket.socket) -> None:
        connection.sendall(head + b"1\r\nx\r\n")
        while True:
            connection.sendall(b"1;" + b"y" * 30_000 + b"\r\nx\r\n")

    small = says(head + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n")
    with Raw(small) as server, client(server.url) as asking:
        assert asking.request("GET", "/").read(5_000) == b"x" * 5_000
    with Raw(frames) as server, client(server.url) as asking:
        stream = asking.request("GET", "/").stream()
        with pytest.raises(SourceError, match="more bytes than it may have"):
            all(iter(lambda: stream.read(1000), b""))


# --- how long ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n\r\nhalf"])
def test_nobody_waits_longer_than_the_limit_for_the_next_byte(sent: bytes) -> None:
    over = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.sendall(sent)
        over.wait(30)

    with Raw(hang) as server, client(server.url, limits=QUICK) as asking:
        try:
            with pytest.raises(SourceError, match=r"nothing came from it for 0\.3 s"):
                asking.request("GET", "/").read(1000)
        finally:
            over.set()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_drips_is_given_up(head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(3000):
            connection.sendall(b"x")
            time.sleep(0.01)

    with (
        Raw(drip) as server,
        client(server.url, limits=QUICK) as asking,
        pytest.raises(SourceError, match=r"too slow: \d+ bytes a second"),
    ):
        asking.request("GET", "/").read(1 << 20)


def test_the_time_between_two_reads_is_not_the_servers() -> None:
    with Stub(text(b"x" * 1_000_000)) as server, client(server, limits=QUICK) as asking:
        stream = asking.request("GET", "/").stream()
        read = 0
        for _ in range(4):
            read += len(stream.read(100_000))
            time.sleep(QUICK.idle / 2)
        read += len(stream.read(1_000_000))
        assert read == 1_000_000


def test_a_client_that_is_closed_ends_the_waits_of_other_threads() -> None:
    arrived, over = threading.Event(), threading.Event()

    def hang(handler: Handler) -> None:
        arrived.set()
        over.wait(30)

    errors: list[SourceError] = []

    def wait() -> None:
        try:
            asking.request("GET", "/")
        except SourceError as error:
            errors.append(error)

    with Stub(hang) as server, client(server) as asking:
        thread = threading.Thread(target=wait)
        thread.start()
        assert arrived.wait(20)
        asking.close()
        thread.join(20)
        assert not thread.is_alive()
        over.set()
    assert len(errors) == 1


def test_a_stream_that_is_closed_ends_the_wait_of_its_reader() -> None:
    over = threading.Event()

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.wfile.flush()
        over.wait(30)

    with Stub(half) as server, client(server) as asking:
        stream = asking.request("GET", "/").stream()
        assert stream.read(4) == b"half"
        ended = threading.Event()

        def read() -> None:
            with suppress(SourceError):
                stream.read(6)
            ended.set()

        thread = threading.Thread(target=read)
        thread.start()
        while not stream._response._lock.locked():
            time.sleep(0.001)
        stream.close()
        assert ended.wait(20)
        thread.join()
        over.set()


# --- how often -----------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, none of which takes its time."""
    made: list[float] = []
    now = time.monotonic()

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None or timeout < 0.5:
                return super().wait(timeout)
            made.append(round(timeout))
            return True

    class Clock:
        monotonic = staticmethod(lambda: now)
        time = staticmethod(time.time)

    monkeypatch.setattr(threading, "Event", Event)
    monkeypatch.setattr(http, "time", Clock)
    return made


def busy(times: int, status: int, **headers: str) -> Answering:
    left = [times]

    def answer(handler: Handler) -> None:
        left[0] -= 1
        if left[0] >= 0:
            handler.answer(status, b"busy", **headers)
        else:
            handler.answer(200, b"x")

    return answer


def test_who_is_busy_is_asked_again_when_it_wants_to_be(pauses: list[float]) -> None:
    for status, headers, pause in (
        (429, {"Retry-After": "2"}, 2),
        (503, {"Retry-After": "10"}, 10),
        (429, {}, 1),
        (503, {"Retry-After": formatdate(time.time() + 8, usegmt=True)}, 8),
    ):
        pauses.clear()
        with Stub(busy(2, status, **headers)) as server, client(server) as asking:
            assert asking.request("GET", "/").read(10) == b"x"
            assert len(server.asked) == 3
        assert [pytest.approx(pause, abs=1)] * 2 == pauses


def test_who_is_always_busy_is_asked_three_times(pauses: list[float]) -> None:
    with Stub(busy(9, 429)) as server, client(server) as asking:
        with pytest.raises(SourceError, match="it answered 429, 3 times") as caught:
            asking.request("GET", "/")
        assert caught.value.gone
        assert len(server.asked) == 3
    assert pauses == [1, 1]


@pytest.mark.parametrize(
    "after",
    ["11", "999999999999", formatdate(time.time() + 86_400)],
    ids=["seconds", "many-seconds", "date"],
)
def test_nobody_waits_for_who_is_busy_for_long(after: str) -> None:
    with Stub(busy(9, 503, Retry_After=after)) as server, client(server) as asking:
        with pytest.raises(SourceError, match=r"it answered 503, to be asked again in [0-9]+ s"):
            asking.request("GET", "/")
        assert len(server.asked) == 1


def test_a_server_in_trouble_that_names_no_time_is_not_asked_again() -> None:
    with Stub(busy(9, 503)) as server, client(server) as asking:
        answer = asking.request("GET", "/")
        assert answer.status == 503
        answer.discard()
    assert len(server.asked) == 1


def test_who_drops_the_connection_is_asked_three_times() -> None:
    drops = []

    def drop(connection: socket.socket) -> None:
        drops.append(connection)

    with (
        Raw(drop) as server,
        client(server.url) as asking,
        pytest.raises(SourceError, match="closed the connection instead of answering, 3 times"),
    ):
        asking.request("GET", "/")
    assert len(drops) == 3


def test_who_is_not_there_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with client(url) as asking:
        with pytest.raises(SourceError, match="Connection refused") as caught:
            asking.request("GET", "/")
        assert caught.value.gone


# --- where it leads ------------------------------------------------------------------------------


def hop(count: int) -> Answering:
    def answer(handler: Handler) -> None:
        number = int(handler.path.removeprefix("/"))
        if number < count:
            handler.answer(301 + number % 2, Location=f"/{number + 1}")
        else:
            handler.answer(200, b"x")

    return answer


def test_five_redirects_are_followed_and_no_sixth() -> None:
    with Stub(hop(5)) as server, client(server, follows=True) as asking:
        assert asking.request("GET", "/0").read(10) == b"x"
    with Stub(hop(6)) as server, client(server, follows=True) as asking:
        with pytest.raises(SourceError, match="more than 5 times"):
            asking.request("GET", "/0")
        assert len(server.asked) == 6


def test_redirects_are_not_followed_where_nobody_wants_that() -> None:
    with Stub(hop(1)) as server, client(server) as asking:
        answer = asking.request("POST", "/0")
        assert answer.status == 301
        answer.discard()
    assert len(server.asked) == 1


def test_a_redirect_leads_no_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub(text(b"x")) as near:
        to = near.url.replace("127.0.0.1", "127.0.0.9")
        with Stub(lambda handler: handler.answer(302, Location=to)) as far:
            near.server_close()
            for first, second, why in (
                (net.PUBLIC, net.PRIVATE, "from the public network to 127.0.0.9, in a private"),
                (net.PUBLIC, net.LOOPBACK, "from the public network to 127.0.0.9, in this machine"),
                (net.PRIVATE, net.LOOPBACK, "from a private network to 127.0.0.9, in this machine"),
                (net.PRIVATE, net.PUBLIC, "Connection refused"),
            ):
                reaches = {"127.0.0.1": first, "127.0.0.9": second}
                monkeypatch.setattr(net, "reach_of", reaches.__getitem__)
                refused = pytest.raises(SourceError, match=why)
                with client(far, follows=True) as asking, refused:
                    asking.request("GET", "/")


def test_a_connection_that_is_kept_is_not_a_way_around_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The same server is asked directly first, so that there is a connection to it.
    reaches = {"127.0.0.1": net.PRIVATE, "127.0.0.9": net.PUBLIC}
    monkeypatch.setattr(net, "reach_of", reaches.__getitem__)
    with Stub(text(b"x"), ("0.0.0.0", 0)) as near:
        port = near.server_address[1]

        def send_back(handler: Handler) -> None:
            handler.answer(302, Location=f"http://127.0.0.1:{port}/near")

        with Stub(send_back, ("0.0.0.0", 0)) as far, client(near, follows=True) as asking:
            assert asking.request("GET", "/").read(10) == b"x"
            # From here on, it is a request to the other one.
            asking._endpoint = parse_gateway(f"http://127.0.0.9:{far.server_address[1]}", "a test")
            with pytest.raises(SourceError, match="in a private network"):
                asking.request("GET", "/far")
        assert near.targets == ["/"]


def test_who_is_for_this_machine_only_is_not_asked_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Stub(text(b"x")) as server:
        for reach in (net.PRIVATE, net.PUBLIC):
            monkeypatch.setattr(net, "reach_of", lambda number, reach=reach: reach)
            with client(server, private=True) as asking:
                with pytest.raises(SourceError, match="with TLS or --ipfs-insecure only") as caught:
                    asking.request("POST", "/")
                assert caught.value.gone
            with client(server) as asking:
                assert asking.request("POST", "/").read(10) == b"x"
    assert len(server.asked) == 2


# --- proxies -------------------------------------------------------------------------------------


def test_a_proxy_is_asked_for_the_whole_url() -> None:
    with Stub(text(b"x")) as proxy:
        environ = {"http_proxy": proxy.url.replace("//", "//me:word@")}
        with client("http://gate.example/x", proxies=Proxies(environ)) as asking:
            assert asking.request("GET", "/y").read(10) == b"x"
    assert proxy.targets == ["http://gate.example/x/y"]
    assert proxy.asked[0].headers["host"] == "gate.example"


def test_a_proxy_is_asked_for_a_tunnel_where_there_is_tls() -> None:
    def refuse(handler: Handler) -> None:
        handler.answer(403)

    with Stub(refuse) as proxy:
        environ = {"https_proxy": proxy.url.replace("//", "//me:word@")}
        with client("https://gate.example/x", proxies=Proxies(environ)) as asking:
            with pytest.raises(SourceError, match=f"the proxy {proxy.url} answered 403") as caught:
                asking.request("GET", "/y")
            assert caught.value.gone
    (asked,) = proxy.asked
    assert (asked.method, asked.target) == ("CONNECT", "gate.example:443")
    assert asked.headers["proxy-authorization"] == "Basic bWU6d29yZA=="


def test_a_redirect_through_a_proxy_leads_no_nearer_either() -> None:
    for location in ("http://10.0.0.1/", "http://localhost/", "http://printer/"):

        def answer(handler: Handler, location: str = location) -> None:
            handler.answer(302, Location=location)

        with Stub(answer) as proxy:
            environ = {"http_proxy": proxy.url}
            refused = pytest.raises(SourceError, match="it redirects from the public network")
            asked = client("http://gate.example", proxies=Proxies(environ), follows=True)
            with asked as asking, refused:
                asking.request("GET", "/")
            assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "http://a.example", None),
        ({"http_proxy": "http://p:1"}, "http://a.example", "http://p:1"),
        ({"http_proxy": "p:1"}, "http://a.example", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://a.example", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "https://a.example", "http://p:1"),
        # A header of a request, in a program that a web server starts.
        ({"HTTP_PROXY": "http://p:1"}, "http://a.example", None),
        ({"https_proxy": "", "HTTPS_PROXY": "http://p:1"}, "https://a.example", None),
        ({"http_proxy": "http://p:1"}, "http://localhost:5001", None),
        ({"http_proxy": "http://p:1"}, "http://127.0.0.1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "http://a.example", None),
        ({"http_proxy": "http://p:1", "no_proxy": "x, .example"}, "http://a.example", None),
        ({"http_proxy": "http://p:1", "no_proxy": "example"}, "http://a.example", None),
        ({"http_proxy": "http://p:1", "no_proxy": "b.example"}, "http://a.example", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,x/y"}, "http://10.1.1.1", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "a.example:80"}, "http://a.example", None),
    ],
)
def test_the_environment_says_which_proxy(
    environ: dict[str, str], url: str, proxy: str | None
) -> None:
    found = Proxies(environ).of(parse_gateway(url, "a test"))
    assert (None if found is None else found.text) == proxy


@pytest.mark.parametrize("proxy", ["socks5://p:1", "https://p:1", "http://"])
def test_a_proxy_of_another_kind_is_an_error(proxy: str) -> None:
    with pytest.raises(SourceError, match=r"the proxy of \$http_proxy"):
        Proxies({"http_proxy": proxy}).of(parse_gateway("http://a.example", "a test"))

"""How far away an address is, and where redirects may lead."""

import socket
import time

import pytest

from runner.content import net
from runner.content.addresses import parse_gateway
from runner.content.net import LOOPBACK, PRIVATE, PUBLIC, named_reach, reach_of, redirected
from runner.content.source import SourceError


@pytest.mark.parametrize(
    ("number", "reach"),
    [
        *(("127.0.0.1", LOOPBACK), ("127.255.0.1", LOOPBACK), ("::1", LOOPBACK)),
        *(("0.0.0.0", LOOPBACK), ("::", LOOPBACK), ("::ffff:127.0.0.1", LOOPBACK)),
        *(("10.0.0.1", PRIVATE), ("192.168.1.1", PRIVATE), ("172.16.0.1", PRIVATE)),
        *(("169.254.169.254", PRIVATE), ("fe80::1%eth0", PRIVATE), ("fd00::1", PRIVATE)),
        *(("100.64.0.1", PRIVATE), ("224.0.0.1", PRIVATE), ("255.255.255.255", PRIVATE)),
        # An address in another one.
        *(("::ffff:10.0.0.1", PRIVATE), ("64:ff9b::a00:1", PRIVATE), ("2002:a00:1::", PRIVATE)),
        # They are routed out, whatever is in them.
        *(("64:ff9b::7f00:1", PRIVATE), ("2002:7f00:1::1", PRIVATE), ("fec0::2", PRIVATE)),
        *(("::127.0.0.1", PRIVATE), ("::10.0.0.1", PRIVATE), ("64:ff9b:1::808:808", PRIVATE)),
        *(("::8.8.8.8", PUBLIC), ("64:ff9b::808:808", PUBLIC)),
        *(("8.8.8.8", PUBLIC), ("2606:4700::1111", PUBLIC), ("::ffff:8.8.8.8", PUBLIC)),
    ],
)
def test_an_address_tells_how_far_away_it_is(number: str, reach: int) -> None:
    assert reach_of(number) == reach


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        *(("localhost", LOOPBACK), ("x.localhost", LOOPBACK), ("127.0.0.1", LOOPBACK)),
        *(("printer", PRIVATE), ("printer.local", PRIVATE), ("10.0.0.1", PRIVATE)),
        *(("gate.example", PUBLIC), ("8.8.8.8", PUBLIC), ("1.2.3.4.example", PUBLIC)),
        # Other ways to write the same.
        *(("localhost.", LOOPBACK), ("LocalHost", LOOPBACK), ("x.LOCALHOST.", LOOPBACK)),
        *(("127.1", LOOPBACK), ("0x7f000001", LOOPBACK), ("2130706433", LOOPBACK), ("0", LOOPBACK)),
        *(("0177.0.0.1", LOOPBACK), ("127.0.0.1.", LOOPBACK), ("10.1", PRIVATE)),
        *(("printer.lan.", PRIVATE), ("printer.", PRIVATE), ("8.8.2056", PUBLIC)),
        *(("::1", LOOPBACK), ("fe80::1%eth0", PRIVATE)),
    ],
)
def test_a_name_that_a_proxy_looks_up_tells_as_much_as_it_can(host: str, reach: int) -> None:
    assert named_reach(host, least=LOOPBACK, most=PUBLIC) == reach


GATE = parse_gateway("https://gate.example/x", "a test")


@pytest.mark.parametrize(
    ("location", "where", "target"),
    [
        ("/b?c=d", "https://gate.example/x", "/b?c=d"),
        ("b", "https://gate.example/x", "/x/ipfs/b"),
        ("?q", "https://gate.example/x", "/x/ipfs/CID?q"),
        ("//other.example/b", "https://other.example", "/b"),
        ("https://other.example:1", "https://other.example:1", "/"),
        ("https://me:word@other.example/b#f", "https://other.example", "/b"),
        ("/a b/\u00e4%20", "https://gate.example/x", "/a%20b/%C3%A4%20"),
        ("/a\r\nX: y", "https://gate.example/x", "/a%0D%0AX:%20y"),
    ],
)
def test_a_redirect_leads_to_a_url(location: str, where: str, target: str) -> None:
    new, found = redirected(GATE, "/x/ipfs/CID", location)
    assert (new.text, found) == (where, target)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://gate.example/x", "from https to http"),
        ("file:///etc/passwd", "no URL"),
        ("ftp://gate.example/", "no URL"),
        ("https://[::1", "no URL"),
        ("https://x:99999/", "no URL"),
        ("", "nowhere"),
    ],
)
def test_a_redirect_leads_nowhere_else(location: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        redirected(GATE, "/x/ipfs/CID", location)


def test_the_password_stays_where_it_is_for() -> None:
    gate = parse_gateway("https://me:word@gate.example", "a test")
    assert redirected(gate, "/a", "/b")[0].credentials == "me:word"
    for other in ("https://other.example/b", "https://gate.example:444/b"):
        assert redirected(gate, "/a", other)[0].credentials == ""


def test_a_name_that_nobody_answers_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_args: object, **_kwargs: object) -> list[object]:
        time.sleep(1)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(SourceError, match=r"name was not found within 0\.05 s") as caught:
        net.open_socket(GATE, timeout=0.05)
    assert caught.value.gone


def test_a_name_that_does_not_exist_is_told() -> None:
    nowhere = parse_gateway("https://nowhere.invalid", "a test")
    with pytest.raises(SourceError, match="name was not found"):
        net.open_socket(nowhere, timeout=20)


def test_the_second_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def two(*_args: object, **_kwargs: object) -> list[object]:
            return [
                (socket.AF_INET, 0, 0, "", ("127.0.0.2", port)),
                (socket.AF_INET, 0, 0, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        sock, reach = net.open_socket(GATE, timeout=5)
        with sock:
            assert sock.getpeername() == ("127.0.0.1", port)
        assert reach == LOOPBACK

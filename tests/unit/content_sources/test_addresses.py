"""Addresses of nodes and gateways."""

from pathlib import Path

import pytest

from runner.content.addresses import (
    DEFAULT_NODE,
    Endpoint,
    Folder,
    Malformed,
    parse_api_file,
    parse_gateway,
    parse_node,
)
from runner.errors import EXIT_USAGE, WwError


@pytest.mark.parametrize(
    ("text", "secure", "host", "port"),
    [
        (DEFAULT_NODE, False, "127.0.0.1", 5001),
        ("/ip4/127.0.0.1/tcp/5001", False, "127.0.0.1", 5001),
        ("/ip6/::1/tcp/5001/http", False, "::1", 5001),
        ("/dns/Node.Example/tcp/443/https", True, "node.example", 443),
        ("/dns4/node/tcp/1/tls/http", True, "node", 1),
        ("/dns6/node/tcp/65535/http", False, "node", 65535),
        # Where a server listens on all addresses, it is asked on loopback.
        ("/ip4/0.0.0.0/tcp/5001", False, "127.0.0.1", 5001),
        ("/ip6/::/tcp/5001", False, "::1", 5001),
        ("http://localhost:5001", False, "localhost", 5001),
        ("http://localhost:5001/api/v0", False, "localhost", 5001),
        ("http://localhost", False, "localhost", 80),
        ("https://node.example", True, "node.example", 443),
        ("https://[::1]:1", True, "::1", 1),
    ],
)
def test_a_node_is_named_by_a_multiaddr_or_a_url(
    text: str, secure: bool, host: str, port: int
) -> None:
    endpoint = parse_node(text, "--ipfs")
    assert isinstance(endpoint, Endpoint)
    assert endpoint[1:] == (secure, host, port, "", "", "")


@pytest.mark.parametrize(
    "text",
    ["/unix/run/node.sock", "/unix/run/node.sock/http", "/unix/%2Frun%2Fnode.sock/http"],
)
def test_a_node_is_named_by_a_socket(text: str) -> None:
    endpoint = parse_node(text, "--ipfs")
    assert isinstance(endpoint, Endpoint)
    assert endpoint.socket == "/run/node.sock"
    assert endpoint.text == text


def test_a_socket_may_be_a_url_and_have_spaces_in_its_path() -> None:
    endpoint = parse_node("unix:///run/my node.sock", "--ipfs")
    assert isinstance(endpoint, Endpoint)
    assert endpoint.socket == "/run/my node.sock"


def test_a_node_is_named_by_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_node("./my repo", "--ipfs") == Folder(str(tmp_path / "my repo"))
    assert parse_node("/home/user/.ipfs", "--ipfs") == Folder("/home/user/.ipfs")
    assert parse_node(".", "--ipfs") == Folder(str(tmp_path))


def test_off_is_no_node() -> None:
    assert parse_node("off", "--ipfs") is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "node", "OFF", "localhost:5001", "ftp://node/", "http://", "http:///x"),
        *("http://a b/", "http://node:0", "http://node:65536", "http://node:x", "http://[::1"),
        *("http://node/?q", "http://node/#f", "http://node?", "http://n\u00f6de", "http://no\nde"),
        *("/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/5001", "/ip4/::1/tcp/1", "/ip6/1.2.3.4/tcp/1"),
        *("/ip4/1.2.3/tcp/1", "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/65536"),
        *("/ip4/127.0.0.1/tcp/-1", "/ip4/127.0.0.1/tcp/\u0661", "/ip4/127.0.0.1/tcp/1/ws"),
        *("/dns//tcp/1", "/dns/a b/tcp/1", "/unix/", "unix://relative", "/x\0y"),
        "/" + "x" * 5000,
    ],
)
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(WwError) as caught:
        parse_node(text, "--ipfs")
    assert caught.value.code == EXIT_USAGE
    assert caught.value.where == "--ipfs"
    assert len(str(caught.value)) < 600


def test_a_password_is_used_and_never_shown() -> None:
    endpoint = parse_gateway("https://me:s%40cret@gate.example/x/", "--gateway")
    assert endpoint.credentials == "me:s@cret"
    assert endpoint.path == "/x"
    assert endpoint.text == "https://gate.example/x"
    with pytest.raises(WwError) as caught:
        parse_gateway("https://me:secret@gate.example/?x", "--gateway")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["off", "/ip4/127.0.0.1/tcp/80", "./x", "gate.example"])
def test_a_gateway_is_a_url_only(text: str) -> None:
    with pytest.raises(WwError, match="WW_GATEWAYS: "):
        parse_gateway(text, "WW_GATEWAYS")


def test_the_file_of_a_running_node_is_read() -> None:
    assert parse_api_file("/ip4/127.0.0.1/tcp/5001\n").port == 5001
    assert parse_api_file("unix:///run/x.sock").socket == "/run/x.sock"
    for text in ("", "\n", "off", "/home/user"):
        with pytest.raises(Malformed):
            parse_api_file(text)

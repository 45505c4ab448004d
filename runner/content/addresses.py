"""Addresses of nodes and gateways, as people write them.

Nothing here opens a connection or looks up a name.
"""

from __future__ import annotations

import os

from runner.errors import EXIT_USAGE, WwError, printable
from sandbox import Record

DEFAULT_NODE = "/ip4/127.0.0.1/tcp/5001/http"
"""Where Kubo's RPC listens unless it is told otherwise."""

OFF = "off"

_PORTS = {"http": 80, "https": 443}
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_SECURITY = {(): False, ("http",): False, ("https",): True, ("tls", "http"): True}
_MAX_LENGTH = 4096
_MAX_PORT = 0xFFFF
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
# Where a server listens on every address, it is asked on this machine's own.
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Endpoint(Record):
    """Where an HTTP server listens.

    Attributes:
        text: The address for messages, without what is secret.
        secure: Whether to use TLS.
        host: A name or a number, without brackets; empty with a socket.
        port: The TCP port.
        socket: The path of a unix socket, or the empty string.
        path: What all paths of requests begin with, without a slash at its end.
        credentials: ``USER:PASSWORD`` for HTTP's Basic scheme, or the empty string.
    """

    text: str
    secure: bool = False
    host: str = ""
    port: int = 0
    socket: str = ""
    path: str = ""
    credentials: str = ""


class Folder(Record):
    """A Kubo repository on disk.

    Attributes:
        path: Its absolute path.
    """

    path: str


class Malformed(ValueError):
    """An address that breaks the rules; the text says which."""


def parse_node(text: str, where: str) -> Endpoint | Folder | None:
    """Read the address of an IPFS node.

    Args:
        text: A multiaddr (``/ip4/127.0.0.1/tcp/5001/http``, ``/unix/PATH``), a URL (``http://``,
            ``https://``, ``unix://PATH``), the path of a Kubo repository, or ``off``.
        where: Where it was given, for messages.

    Returns:
        None for ``off``.

    Raises:
        WwError: It is none of these (code EXIT_USAGE).
    """
    try:
        _check_text(text)
        if text == OFF:
            return None
        if "://" in text:
            return parse_rpc_url(text)
        if text.startswith("/") and text.split("/")[1] in (*_HOSTS, "unix"):
            return parse_multiaddr(text)
        if "/" in text or text in (".", ".."):
            return Folder(os.path.abspath(text))
        raise Malformed("it is neither a multiaddr, nor a URL, nor the path of a repository")
    except Malformed as error:
        raise WwError(
            where,
            f"'{_shown(text)}': {error}",
            hint=f"write {DEFAULT_NODE}, http://HOST:PORT, /unix/PATH, a Kubo repository's path, "
            "or off",
            code=EXIT_USAGE,
        ) from None


def parse_gateway(text: str, where: str) -> Endpoint:
    """Read the address of a gateway: a URL, of which a path is the prefix of all requests.

    Raises:
        WwError: It is none (code EXIT_USAGE).
    """
    try:
        _check_text(text)
        return parse_url(text)
    except Malformed as error:
        raise WwError(
            where,
            f"'{_shown(text)}': {error}",
            hint="write https://HOST or http://HOST:PORT",
            code=EXIT_USAGE,
        ) from None


def parse_api_file(text: str) -> Endpoint:
    """Read what Kubo writes into the file ``api`` of its repository: where its RPC listens.

    Raises:
        Malformed: It is no address.
    """
    text = text.strip()
    _check_text(text)
    return parse_rpc_url(text) if "://" in text else parse_multiaddr(text)


def parse_rpc_url(text: str) -> Endpoint:
    """Read the URL of an RPC: http, https, or ``unix://PATH``.

    Raises:
        Malformed: It is none.
    """
    if text.startswith("unix://"):
        return _socket(text, text.removeprefix("unix://"))
    endpoint = parse_url(text)
    return endpoint._replace(path=endpoint.path.removesuffix("/api/v0"))


def parse_multiaddr(text: str) -> Endpoint:
    """Read a multiaddr of an HTTP server: a host and a TCP port, or a unix socket.

    Raises:
        Malformed: It is none.
    """
    protocol, _, rest = text.removeprefix("/").partition("/")
    if protocol == "unix":
        path = f"/{rest}".removesuffix("/http")
        if path[1:4].lower() == "%2f":
            # Newer multiaddrs have the whole path as one escaped part.
            from urllib.parse import unquote

            path = unquote(path[1:])
        return _socket(text, path)
    host, *others = rest.split("/")
    if protocol not in _HOSTS or len(others) < 2 or others[0] != "tcp":
        raise Malformed("a multiaddr that is not /ip4, /ip6 or /dns with /tcp, nor /unix")
    secure = _SECURITY.get(tuple(others[2:]))
    if secure is None:
        raise Malformed(f"/{'/'.join(others[2:])} is not http, nor https")
    digits = others[1]
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 5:
        raise Malformed("its port is not a number")
    host = _checked_host(host.lower())
    if protocol.startswith("ip") and _ip_version(host) != int(protocol[2]):
        raise Malformed(f"'{host}' is not an address for /{protocol}")
    return Endpoint(text, secure, _UNSPECIFIED.get(host, host), _checked_port(int(digits)), path="")


def parse_url(text: str) -> Endpoint:
    """Read the URL of an HTTP server, without a query.

    Raises:
        Malformed: It is none.
    """
    from urllib.parse import unquote, urlsplit

    if not text.isascii() or not text.isprintable() or " " in text:
        raise Malformed("it has a character that no URL has")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # What Python says of it quotes what may be a part of a password.
        raise Malformed("its host or port is malformed") from None
    if parts.scheme not in _PORTS:
        raise Malformed("its scheme is neither http nor https")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise Malformed("it has a query or a fragment")
    host = _checked_host(host)
    port = _checked_port(_PORTS[parts.scheme] if port is None else port)
    path = parts.path.rstrip("/")
    shown = f"[{host}]" if ":" in host else host
    if port != _PORTS[parts.scheme]:
        shown += f":{port}"
    secret = ""
    if "@" in parts.netloc:
        secret = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return Endpoint(
        f"{parts.scheme}://{shown}{path}",
        parts.scheme == "https",
        host,
        port,
        path=path,
        credentials=secret,
    )


def _socket(text: str, path: str) -> Endpoint:
    if not path.startswith("/") or path.endswith("/"):
        raise Malformed("the path of its socket is not an absolute one")
    return Endpoint(text, host="localhost", socket=path)


def _shown(text: str) -> str:
    """Return what was written as it may be shown: without a password."""
    return printable(text.rpartition("@")[2][:200])


def _check_text(text: str) -> None:
    if not text:
        raise Malformed("it is empty")
    if len(text) > _MAX_LENGTH:
        raise Malformed(f"it is longer than {_MAX_LENGTH} characters")
    if "\0" in text:
        raise Malformed("it has a NUL in it")


def _checked_host(host: str) -> str:
    if ":" in host:
        _ip_version(host)
    elif not host or not _HOST_CHARACTERS.issuperset(host):
        raise Malformed(f"'{host}' is not the name of a host")
    return host


def _ip_version(host: str) -> int:
    import ipaddress

    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        raise Malformed(f"'{host}' is not an IP address") from None


def _checked_port(port: int) -> int:
    if not 0 < port <= _MAX_PORT:
        raise Malformed(f"{port} is not the number of a port")
    return port

"""Connections, and how far away they lead: to this machine, into a private network, or out."""

import ipaddress
import queue
import socket
import threading
import time
from typing import Any, Final, NamedTuple

from runner.content.addresses import Endpoint, Malformed, parse_url
from runner.content.source import SourceError

LOOPBACK: Final = 0
PRIVATE: Final = 1
PUBLIC: Final = 2

_WORDS = ("this machine", "a private network", "the public network")
_LEAST_TIME = 1.0  # seconds for one address of a name, if there are others
# Of IPv6 with an IPv4 address in its last 32 bits: translated (RFC 6052), and as it was once meant
# to be compatible (RFC 4291, section 2.5.5.1).
_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_LOCAL_NAMES = (".local", ".internal", ".intranet", ".lan", ".home.arpa", ".test")
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


class _Address(NamedTuple):
    """Where a socket is connected to.

    Attributes:
        family: As for socket.socket.
        at: As for socket.connect.
        reach: How far away that is.
    """

    family: int
    at: Any
    reach: int


def reach_of(number: str) -> int:
    """Return how far away an IP address is."""
    address = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return reach_of(str(address.ipv4_mapped))
    if address.is_loopback or address.is_unspecified:
        return LOOPBACK
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.sixtofour
        if inner is None and any(address in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            # Somebody else takes it there: it leaves this machine in any case.
            return max(reach_of(str(inner)), PRIVATE)
        if address.is_site_local or address in _LOCAL_NAT64:
            return PRIVATE
    return PUBLIC if address.is_global and not address.is_multicast else PRIVATE


def named_reach(host: str, *, least: int, most: int) -> int:
    """Return how far away a host is that somebody else will look up, as its name tells.

    Raises:
        SourceError: It is nearer or farther than it may be.
    """
    name = host.lower().removesuffix(".")
    number = _as_number(name)
    if number:
        reach = reach_of(number)
    elif name == "localhost" or name.endswith(".localhost"):
        reach = LOOPBACK
    elif "." not in name or name.endswith(_LOCAL_NAMES):
        reach = PRIVATE
    else:
        reach = PUBLIC
    _check_reach(host, reach, least, most)
    return reach


def _as_number(host: str) -> str:
    """Return a host as an IP address, if it is one however it is written; else nothing."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            # 127.1, 0x7f000001 and the like, as the looking up of names takes them (inet(3)).
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return ""
    return host


def open_socket(
    endpoint: Endpoint, *, timeout: float, least: int = LOOPBACK, most: int = PUBLIC
) -> tuple[socket.socket, int]:
    """Connect to an endpoint, and return the socket and how far away it leads.

    Args:
        endpoint: Whom to connect to.
        timeout: Seconds for all of it.
        least: How near that may be.
        most: How far away.

    Raises:
        SourceError: It cannot be done, or leads where it may not.
    """
    deadline = time.monotonic() + timeout
    addresses = _addresses(endpoint, timeout)
    refused = SourceError("its name has no address", gone=True)
    for index, address in enumerate(addresses):
        remaining = deadline - time.monotonic()
        others = len(addresses) - index - 1
        if others:
            remaining = min(remaining, max(remaining / (others + 1), _LEAST_TIME))
        try:
            _check_reach(endpoint.host, address.reach, least, most)
            return _connected(address, remaining), address.reach
        except TimeoutError:
            refused = SourceError(f"no connection within {timeout:g} s", gone=True)
        except OSError as error:
            refused = SourceError(error.strerror or str(error), gone=True)
        except SourceError as error:
            refused = error
    raise refused


def _check_reach(host: str, reach: int, least: int, most: int) -> None:
    if reach < least:
        raise SourceError(f"it redirects from {_WORDS[least]} to {host}, in {_WORDS[reach]}")
    if reach > most:
        raise SourceError(
            f"{host} is in {_WORDS[reach]}, and is asked there with TLS or --ipfs-insecure only",
            gone=True,
        )


def _connected(address: _Address, seconds: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(seconds, 0.001))  # 0 would mean not to wait at all
        sock.connect(address.at)
        if address.family != socket.AF_UNIX:
            # Requests are small, and each is waited for.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(endpoint: Endpoint, timeout: float) -> list[_Address]:
    if endpoint.socket:
        return [_Address(socket.AF_UNIX, endpoint.socket, LOOPBACK)]
    return [
        _Address(family, at, reach_of(str(at[0])))
        for family, _, _, _, at in _looked_up(endpoint.host, endpoint.port, timeout)
    ]


def _looked_up(host: str, port: int, timeout: float) -> list[Any]:
    """Look up a name, in a thread: the library does that without an end in sight."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    try:
        ipaddress.ip_address(host)
    except ValueError:
        threading.Thread(target=look_up, daemon=True).start()
    else:
        look_up()
    try:
        found = answer.get(timeout=timeout)
    except queue.Empty:
        raise SourceError(f"its name was not found within {timeout:g} s", gone=True) from None
    if isinstance(found, Exception):
        why = getattr(found, "strerror", None) or found
        raise SourceError(f"its name was not found: {why}", gone=True)
    return list(found)


def redirected(hop: Endpoint, target: str, location: str) -> tuple[Endpoint, str]:
    """Return where a redirect leads: whom to ask, and for what.

    Args:
        hop: Who has sent it.
        target: What was asked for.
        location: What it says.

    Raises:
        SourceError: It is malformed, or leads from https to http.
    """
    from urllib.parse import quote, urljoin, urlsplit

    shown = f"[{hop.host}]" if ":" in hop.host else hop.host
    base = f"{'https' if hop.secure else 'http'}://{shown}:{hop.port or 80}"
    try:
        # As browsers do it, a space or anything beyond ASCII counts as escaped.
        parts = urlsplit(urljoin(base + target, quote(location.strip(), safe=_URL_CHARACTERS)))
        new = parse_url(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
    except (Malformed, ValueError) as error:
        raise SourceError(f"it redirects to what is no URL: {error}") from None
    if not location:
        raise SourceError("it redirects to nowhere")
    if hop.secure and not new.secure:
        raise SourceError(f"it redirects from https to {new.text}")
    if (new.secure, new.host, new.port) == (hop.secure, hop.host, hop.port or 80):
        new = hop
    elif hop.socket:
        raise SourceError(f"it redirects from a socket to {new.text}")
    path = parts.path or "/"
    return new, f"{path}?{parts.query}" if parts.query else path

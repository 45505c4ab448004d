"""New connections, tried by a native program in the cell's place."""

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from sandbox import landlock
from tests.conftest import BuildFunction, Ww
from tests.features import needs
from tests.jail.inside import AT, LAST, SAVED, call, perform

STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
# include/linux/socket.h
FAMILIES = {
    "unix": (1, STREAM, 0),
    "inet": (2, STREAM, 0),
    "inet datagram": (2, DGRAM, 0),
    "ax25": (3, SEQPACKET, 0),
    "inet6": (10, STREAM, 0),
    "key": (15, RAW, 2),
    "netlink": (16, RAW, 0),
    "netfilter": (16, RAW, 12),
    "packet": (17, RAW, 0),
    "rds": (21, SEQPACKET, 0),
    "can": (29, RAW, 1),
    "tipc": (30, SEQPACKET, 0),
    "bluetooth": (31, RAW, 1),
    "alg": (38, SEQPACKET, 0),
    "nfc": (39, RAW, 0),
    "vsock": (40, STREAM, 0),
    "kcm": (41, DGRAM, 0),
    "qipcrtr": (42, DGRAM, 0),
    "smc": (43, STREAM, 0),
    "xdp": (44, RAW, 0),
    "mptcp": (2, STREAM, 262),
    "icmp": (2, DGRAM, 1),
    "a family that does not exist": (99, STREAM, 0),
}
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_that_makes_a_socket_is_ended(ww_account: Ww, program: Path, family: str) -> None:
    attack = call("socket", *FAMILIES[family])
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


@pytest.mark.parametrize(
    "attack",
    [
        call("socketpair", 1, STREAM, 0, AT),
        call("connect", 9, b"\1\0\0host", 7),
        call("bind", 9, b"\1\0\0name", 7),
        call("listen", 9, 1),
    ],
)
def test_a_granted_socket_cannot_be_connected_or_bound_anew(
    ww_account: Ww, program: Path, attack: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as granted:
        tried = perform(
            ww_account,
            "filtered",
            program,
            attack,
            flags=["--fd", "s=3,target=9"],
            fds={3: granted},
        )
    assert tried.is_killed_at(attack)


def test_packets_cannot_be_made_by_hand_nor_interfaces_changed(
    ww_account: Ww, program: Path
) -> None:
    up = b"lo".ljust(16, b"\0") + struct.pack("H", IFF_UP) + bytes(22)
    tried = perform(
        ww_account,
        "native",
        program,
        call("socket", 17, RAW, 0),
        call("socket", 2, RAW, 1),
        call("socket", 10, RAW, 58),
        call("socket", 2, DGRAM, 0),
        call("ioctl", LAST, SIOCSIFFLAGS, up),
    )
    results = tried.all()
    assert results[0][1] in (errno.EPERM, errno.EAFNOSUPPORT)
    assert results[1] == (-1, errno.EPERM)
    assert results[2][1] in (errno.EPERM, errno.EAFNOSUPPORT)
    assert results[3][0] >= 0
    assert results[4] == (-1, errno.EPERM)


def inet(port: int, address: str = "127.0.0.1") -> bytes:
    return struct.pack("=H", 2) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)


def test_no_server_of_the_host_can_be_reached_without_a_filter(
    ww_account: Ww, program: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        tried = perform(
            ww_account,
            "native",
            program,
            call("socket", 2, STREAM, 0),
            call("connect", LAST, inet(server.getsockname()[1]), 16),
            call("socket", 2, DGRAM, 0),
            call("sendto", LAST, "x", 1, 0, inet(datagrams.getsockname()[1]), 16),
            call("sendto", LAST, "x", 1, 0, inet(53, "10.0.0.1"), 16),
        )
        server.setblocking(False)
        datagrams.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)
    results = tried.all()
    assert results[1][0] == -1
    assert results[1][1] in (errno.EACCES, errno.ENETUNREACH)
    assert results[3] == results[4] == (-1, errno.ENETUNREACH)


@needs("landlock", landlock.abi() >= 4, "this kernel's Landlock knows nothing of TCP")
def test_with_a_loopback_no_port_can_be_bound_or_reached_without_a_filter(
    ww_account: Ww, program: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tried = perform(
            ww_account,
            "native",
            program,
            call("socket", 2, STREAM, 0),
            call("connect", LAST, inet(server.getsockname()[1]), 16),
            call("bind", LAST, inet(8080), 16),
            flags=["--net", "loopback"],
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert tried.all()[1:] == [(-1, errno.EACCES)] * 2


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET])
def test_an_abstract_socket_of_the_host_cannot_be_reached(
    ww_account: Ww, program: Path, kind: int
) -> None:
    name = f"\0ww-test-{os.getpid()}-{kind}"
    address = b"\1\0" + name.encode()
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(name)
        if kind != DGRAM:
            server.listen()
        tried = perform(
            ww_account,
            "native",
            program,
            call("socket", 1, kind, 0),
            call("save"),
            call("connect", SAVED, address, len(address)),
            call("sendto", SAVED, "x", 1, 0, address, len(address)),
        )
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1) if kind == DGRAM else server.accept()
    results = tried.all()
    assert results[2] in ((-1, errno.ECONNREFUSED), (-1, errno.EPERM))
    assert results[3][0] == -1

"""A cell's `lo` that is brought up, from a process that has no files and one thread."""

import errno
import fcntl
import os
import socket
import struct
import sys
from typing import Any

import pytest

from sandbox import mounts, network, syscalls
from tests.conftest import Account
from tests.unit.sandbox.cloned import become, cloned, forked, in_namespaces

SIOCGIFFLAGS = 0x8913
IFF_UP = 0x1


def _flags(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
    flags: int = struct.unpack("16sH22x", answer)[1]
    return flags


def _into_an_empty_root() -> None:
    mounts.attach_root(mounts.make_root())
    mounts.leave_old_root()
    mounts.seal_root()


def _exchange(family: socket.AddressFamily, address: str) -> str:
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        peer, _ = server.accept()
        with peer:
            client.sendall(b"through lo")
            return peer.recv(64).decode()


def test_lo_carries_both_families_and_nothing_else_is_there(account: Account) -> None:
    def inside() -> dict[str, Any]:
        _into_an_empty_root()
        before = _flags("lo") & IFF_UP
        network.raise_loopback()
        return {
            "before": before,
            "after": _flags("lo") & IFF_UP,
            "interfaces": [name for _, name in socket.if_nameindex()],
            "v4": _exchange(socket.AF_INET, "127.0.0.1"),
            "v6": _exchange(socket.AF_INET6, "::1"),
        }

    network.prepare()
    told = in_namespaces(account, inside)
    assert told["before"] == 0
    assert told["after"] == IFF_UP
    assert "lo" in told["interfaces"]
    assert told["v4"] == told["v6"] == "through lo"


def test_no_other_interface_is_brought_up(account: Account) -> None:
    """Kernels with tunnels compiled in give each namespace devices of them, all down."""

    def inside() -> dict[str, int]:
        network.raise_loopback()
        return {name: _flags(name) & IFF_UP for _, name in socket.if_nameindex()}

    network.prepare()
    assert [name for name, up in in_namespaces(account, inside).items() if up] == ["lo"]


def test_no_route_leads_anywhere_else(account: Account) -> None:
    def inside() -> str:
        network.raise_loopback()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            try:
                client.connect(("192.0.2.1", 9))
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        return "ok"

    network.prepare()
    assert in_namespaces(account, inside) == "ENETUNREACH"


def test_it_opens_no_file_starts_no_thread_and_leaves_nothing_open(account: Account) -> None:
    """In its jail the process has neither files to open nor leave to clone."""

    def prepared() -> list[Any]:
        network.prepare()
        threads = len(os.listdir("/proc/self/task"))

        def inside() -> list[Any]:
            modules = set(sys.modules)
            opened: list[Any] = []
            sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else 0)
            descriptors = os.listdir("/proc/self/fd")
            network.raise_loopback()
            network.raise_loopback()
            paths = [path for path in opened if not isinstance(path, int)]
            return [
                paths,
                sorted(set(sys.modules) - modules),
                os.listdir("/proc/self/fd") == descriptors,
                len(os.listdir("/proc/self/task")),
            ]

        become(account)
        return [threads, *cloned(inside)]

    threads, *inside = forked(prepared)
    assert threads == 1
    paths, modules, same_descriptors, threads_inside = inside
    assert paths == []
    assert modules == []
    assert same_descriptors
    assert threads_inside == 1


def test_a_loopback_that_does_not_come_up_is_an_error(account: Account) -> None:
    def inside() -> int | None:
        import pyroute2

        pyroute2.IPRoute.link = lambda *args, **kwargs: ()
        with pytest.raises(OSError) as error:
            network.raise_loopback()
        return error.value.errno

    network.prepare()
    assert in_namespaces(account, inside) == errno.ENODEV


def test_without_the_right_to_it_it_says_so(account: Account) -> None:
    """Also that of the library's errors none passes that is no OSError."""

    def inside() -> list[Any]:
        syscalls.clear_capabilities()
        with pytest.raises(OSError) as error:
            network.raise_loopback()
        return [error.value.errno, error.value.filename, _flags("lo") & IFF_UP]

    network.prepare()
    assert in_namespaces(account, inside) == [errno.EPERM, "lo", 0]

"""Granted sockets: connected ones of every type, listening ones, and what a peer sends along."""

from __future__ import annotations

import array
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import BuildFunction, FdSource, Ww
from tests.wasi.remote_cell import (
    DATA_TRUNCATED,
    EAGAIN,
    EBADF,
    EINVAL,
    ENOTCAPABLE,
    EPIPE,
    ESPIPE,
    EV_READ,
    EV_WRITE,
    FT_DGRAM,
    FT_STREAM,
    NONBLOCK,
    OK,
    PATIENCE,
    PEEK,
    SHUT_RD,
    SHUT_WR,
    WAITALL,
    Errno,
    R,
    Ready,
    Remote,
    Right,
    W,
    remote,
    shared_ww,
)

ANY_RIGHTS = Right.FD_FDSTAT_SET_FLAGS | Right.FD_FILESTAT_GET | Right.POLL_FD_READWRITE


def a_pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    ours, its = socket.socketpair(type=kind)
    ours.settimeout(PATIENCE)
    return ours, its


class Kept(NamedTuple):
    """A cell with a listening socket at 10, and its path."""

    cell: Remote
    path: str


@pytest.fixture(scope="module")
def kept(
    account_folders: Path, c_cell: BuildFunction, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    path = str(tmp_path_factory.mktemp("s") / "s")
    ww = shared_ww(account_folders, "sockets")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with remote(ww, c_cell("remote"), "--fd", "s=3", fds={3: listening}) as cell:
            yield Kept(cell, path)


@pytest.fixture
def peer(kept: Kept) -> Iterator[socket.socket]:
    """The other end of the stream that the cell has at 3; nobody else has either."""
    kept.cell.raw("fd_close", 3)
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(PATIENCE)
        made.connect(kept.path)
        assert kept.cell.accept(10) == (OK, 3)
        yield made


@pytest.fixture
def cell(kept: Kept, peer: socket.socket) -> Remote:
    return kept.cell


def test_a_stream_goes_both_ways_with_either_pair_of_calls(
    cell: Remote, peer: socket.socket
) -> None:
    peer.sendall(b"0123456789")
    assert cell.read(3, 2, 1) == (OK, b"012")
    assert cell.recv(3, 2, 0, 1) == (OK, (b"345", 0))
    assert cell.recv(3, 100) == (OK, (b"6789", 0))
    assert cell.write(3, b"ab", b"c") == (OK, 3)
    assert cell.send(3, b"de", b"", b"f") == (OK, 3)
    assert peer.recv(100) == b"abcdef"


def test_fdstat_tells_the_type_and_the_rights(cell: Remote, peer: socket.socket) -> None:
    expected = ANY_RIGHTS | R | W | Right.SOCK_SHUTDOWN
    assert cell.fdstat(3) == (OK, (FT_STREAM, 0, expected, 0))
    stat = cell.filestat(3)[1]
    assert stat is not None
    assert (stat.filetype, stat.size) == (FT_STREAM, 0)


def test_peeking_leaves_the_data(cell: Remote, peer: socket.socket) -> None:
    peer.sendall(b"data")
    assert cell.recv(3, 2, flags=PEEK) == (OK, (b"da", 0))
    assert cell.recv(3, 100, flags=PEEK) == (OK, (b"data", 0))
    assert cell.recv(3, 100) == (OK, (b"data", 0))


def test_waitall_waits_for_all_of_it(cell: Remote, peer: socket.socket) -> None:
    peer.sendall(b"first")
    vectors, count, buffer = cell.put_vectors([4, 8])
    at = cell.scratch + 0x8000
    cell.tell(f"call sock_recv 3 {vectors} {count} {WAITALL} {at} {at + 4}")
    peer.sendall(b" second")
    assert cell.answer() == "sock_recv 0"
    assert cell.peek(buffer, 12) == b"first second"


def test_waitall_ends_early_at_the_end(cell: Remote, peer: socket.socket) -> None:
    peer.sendall(b"all")
    peer.shutdown(socket.SHUT_WR)
    assert cell.recv(3, 100, flags=WAITALL) == (OK, (b"all", 0))
    assert cell.recv(3, 100, flags=WAITALL) == (OK, (b"", 0))
    assert cell.read(3, 100) == (OK, b"")


@pytest.mark.parametrize("flags", [4, 8, 1 << 15, PEEK | 4])
def test_receiving_flags_that_do_not_exist_are_einval(
    cell: Remote, peer: socket.socket, flags: int
) -> None:
    peer.sendall(b"data")
    assert cell.recv(3, 100, flags=flags) == (EINVAL, None)
    assert cell.recv(3, 100) == (OK, (b"data", 0))


def test_sending_flags_do_not_exist_at_all(cell: Remote, peer: socket.socket) -> None:
    for flags in (1, 2, 0x40, 0x4000):
        assert cell.send(3, b"X", flags=flags) == (EINVAL, None)
    assert cell.send(3, b"data") == (OK, 4)
    assert peer.recv(100) == b"data"


def test_shutting_down_writing_is_the_peers_end_and_leaves_reading(
    cell: Remote, peer: socket.socket
) -> None:
    assert cell.write(3, b"last") == (OK, 4)
    assert cell.raw("sock_shutdown", 3, SHUT_WR) == OK
    assert peer.recv(100) == b"last"
    assert peer.recv(100) == b""
    assert cell.write(3, b"x") == (EPIPE, None)
    assert cell.send(3, b"x") == (EPIPE, None)
    peer.sendall(b"still")
    assert cell.recv(3, 100) == (OK, (b"still", 0))


def test_shutting_down_reading_is_an_end_and_leaves_writing(
    cell: Remote, peer: socket.socket
) -> None:
    assert cell.raw("sock_shutdown", 3, SHUT_RD) == OK
    assert cell.read(3, 10) == (OK, b"")
    assert cell.write(3, b"still") == (OK, 5)
    assert peer.recv(100) == b"still"


def test_shutting_down_both_is_both(cell: Remote, peer: socket.socket) -> None:
    assert cell.raw("sock_shutdown", 3, SHUT_RD | SHUT_WR) == OK
    assert cell.read(3, 10) == (OK, b"")
    assert cell.send(3, b"x") == (EPIPE, None)
    assert peer.recv(100) == b""


def test_shutting_down_nothing_or_what_there_is_not_is_einval(
    cell: Remote, peer: socket.socket
) -> None:
    for how in (0, 4, 7, 255):
        assert cell.raw("sock_shutdown", 3, how) == EINVAL
    assert cell.write(3, b"open") == (OK, 4)
    assert peer.recv(100) == b"open"


def test_a_connected_socket_accepts_nothing(cell: Remote) -> None:
    assert cell.accept(3)[0] in (ENOTCAPABLE, EINVAL)


def test_sending_to_a_peer_that_left_is_epipe_and_no_death(
    cell: Remote, peer: socket.socket
) -> None:
    peer.close()
    assert cell.write(3, b"x") == (EPIPE, None)
    assert cell.send(3, b"x") == (EPIPE, None)
    assert cell.read(3, 10) == (OK, b"")
    assert cell.fdstat(3)[0] == OK


def test_closing_in_the_cell_is_the_peers_end(cell: Remote, peer: socket.socket) -> None:
    assert cell.raw("fd_close", 3) == OK
    assert peer.recv(1) == b""
    assert cell.recv(3, 1)[0] == EBADF
    assert cell.raw("sock_shutdown", 3, SHUT_WR) == EBADF


def test_nonblocking_is_eagain(cell: Remote, peer: socket.socket) -> None:
    assert cell.raw("fd_fdstat_set_flags", 3, NONBLOCK) == OK
    stat = cell.fdstat(3)[1]
    assert stat is not None
    assert stat.flags == NONBLOCK
    assert cell.read(3, 1) == (EAGAIN, None)
    assert cell.recv(3, 1) == (EAGAIN, None)
    assert cell.recv(3, 1, flags=PEEK) == (EAGAIN, None)
    peer.sendall(b"x")
    assert cell.recv(3, 1) == (OK, (b"x", 0))


def test_a_host_that_polls_its_own_end_does_not_make_the_cells_nonblocking(
    cell: Remote, peer: socket.socket
) -> None:
    peer.setblocking(False)
    vectors, count, buffer = cell.put_vectors([10])
    at = cell.scratch + 0x8000
    cell.tell(f"call sock_recv 3 {vectors} {count} 0 {at} {at + 4}")
    peer.sendall(b"late")
    assert cell.answer() == "sock_recv 0"
    assert cell.peek(buffer, 4) == b"late"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_messages_keep_their_borders_and_a_cut_one_says_so(
    ww: Ww, c_cell: BuildFunction, kind: socket.SocketKind
) -> None:
    ours, its = a_pair(kind)
    with ours, its, remote(ww, c_cell("remote"), "--fd", "s=3", fds={3: its}) as cell:
        stat = cell.fdstat(10)[1]
        assert stat is not None
        assert stat.filetype == FT_DGRAM
        assert Right(stat.rights) == ANY_RIGHTS | R | W | Right.SOCK_SHUTDOWN
        for message in (b"whole", b"to be cut", b"split in two", b"peeked", b"", b"after"):
            ours.send(message)
        assert cell.recv(10, 100) == (OK, (b"whole", 0))
        assert cell.recv(10, 5) == (OK, (b"to be", DATA_TRUNCATED))
        assert cell.recv(10, 5, 100) == (OK, (b"split in two", 0))
        assert cell.recv(10, 2, flags=PEEK) == (OK, (b"pe", DATA_TRUNCATED))
        assert cell.recv(10, 100) == (OK, (b"peeked", 0))
        assert cell.recv(10, 100) == (OK, (b"", 0))
        assert cell.read(10, 2) == (OK, b"af")
        assert cell.send(10, b"one ", b"message") == (OK, 11)
        assert cell.write(10, b"an", b"other") == (OK, 7)
        assert ours.recv(100) == b"one message"
        assert ours.recv(100) == b"another"
        errno, size = cell.send(10, bytes(900_000))
        assert errno in (Errno.MSGSIZE, Errno.NOBUFS)
        assert size is None


def test_no_vectors_at_all_are_an_empty_message(ww: Ww, c_cell: BuildFunction) -> None:
    ours, its = a_pair(socket.SOCK_DGRAM)
    with ours, its, remote(ww, c_cell("remote"), "--fd", "s=3", fds={3: its}) as cell:
        assert cell.send(10) == (OK, 0)
        assert ours.recv(100) == b""
        ours.send(b"dropped")
        assert cell.recv(10) == (OK, (b"", DATA_TRUNCATED))


@pytest.mark.parametrize("call", ["sock_recv", "fd_read"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_descriptor_that_a_peer_sends_along_does_not_arrive(
    ww: Ww, c_cell: BuildFunction, tmp_path: Path, kind: socket.SocketKind, call: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    ours, its = a_pair(kind)
    out, into = os.pipe()
    with ours, its, open(secret, "rb") as file, open(out, "rb", buffering=0) as reading:
        flags = ("--fd", "s=3,target=20")
        with remote(ww, c_cell("remote"), *flags, fds={3: its}) as cell:
            rights = array.array("i", [file.fileno(), into])
            ours.sendmsg([b"bytes"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            if call == "sock_recv":
                errno, got = cell.recv(20, 100)
                assert errno == OK
                assert got is not None
                assert got[0] == b"bytes"
            else:
                assert cell.read(20, 100) == (OK, b"bytes")
            for number in range(3, 200):
                if number != 20:
                    assert cell.raw("fd_close", number) == EBADF
            # Nor does the cell's process hold it unseen: closed here, the pipe has no writer.
            os.close(into)
            ready, _, _ = select.select([reading], [], [], PATIENCE)
            assert ready, "somebody holds the descriptor that was sent"
            assert reading.read(1) == b""


# --- listening sockets --------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=PATIENCE)


def test_a_listening_socket_accepts_and_does_nothing_else(
    ww_account: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    with remote(ww_account, c_cell("remote"), "--fd", "web=3", fds={3: listener}) as cell:
        errno, stat = cell.fdstat(10)
        assert errno == OK
        assert stat is not None
        assert stat.filetype == FT_STREAM
        assert Right(stat.rights) == ANY_RIGHTS | Right.SOCK_ACCEPT
        assert cell.read(10, 1)[0] == EBADF
        assert cell.write(10, b"x")[0] == EBADF
        assert cell.recv(10, 1)[0] == EBADF
        assert cell.send(10, b"x")[0] == EBADF
        assert cell.seek(10, 1)[0] == ESPIPE
        # Shutting it down would end it for everyone who shares it.
        assert cell.raw("sock_shutdown", 10, SHUT_RD) == ENOTCAPABLE

        with connect(listener) as client:
            assert cell.accept(10) == (OK, 3)
            stat = cell.fdstat(3)[1]
            assert stat is not None
            assert (stat.filetype, stat.flags) == (FT_STREAM, 0)
            assert Right(stat.rights) == ANY_RIGHTS | R | W | Right.SOCK_SHUTDOWN
            client.sendall(b"hello")
            assert cell.recv(3, 100) == (OK, (b"hello", 0))
            assert cell.send(3, b"good day") == (OK, 8)
            assert client.recv(100) == b"good day"
            assert cell.raw("fd_close", 3) == OK
            assert client.recv(1) == b""
        # The listening one is still there, and the number can be had again.
        with connect(listener):
            assert cell.accept(10) == (OK, 3)


def test_accepted_numbers_are_the_lowest_free_and_never_a_grants(
    ww: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    flags = ["--fd", "web=3,target=4"]
    for number in (5, 7):
        flags += ["--fd", f"f{number}=6,target={number}"]
    fds: dict[int, FdSource] = {3: listener, 6: ww.file("f", b"file")}
    clients = [connect(listener) for _ in range(6)]
    try:
        with remote(ww, c_cell("remote"), *flags, fds=fds) as cell:
            accepted = [cell.accept(4)[1] for _ in clients]
            assert accepted == [3, 6, 8, 9, 10, 11]
            numbered = list(zip([3, 6, 8, 9, 10, 11], clients, strict=True))
            for number, client in numbered:
                client.sendall(b"to %d" % number)
            for number, _ in numbered:
                assert cell.read(number, 100) == (OK, b"to %d" % number)
            assert cell.pread(5, 0, 10) == (OK, b"file")
            assert cell.raw("fd_close", 8) == OK
            with connect(listener):
                assert cell.accept(4) == (OK, 8)
    finally:
        for client in clients:
            client.close()


def test_accepting_nothing_is_eagain_when_nonblocking(
    ww: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    with remote(ww, c_cell("remote"), "--fd", "web=3", fds={3: listener}) as cell:
        assert cell.raw("fd_fdstat_set_flags", 10, NONBLOCK) == OK
        assert cell.accept(10) == (EAGAIN, None)
        with connect(listener):
            # Linux does not pass the flag on to what is accepted: accept(2).
            errno, number = cell.accept(10)
            assert errno == OK
            assert number is not None
            stat = cell.fdstat(number)[1]
            assert stat is not None
            assert stat.flags == 0
        with connect(listener) as client:
            errno, number = cell.accept(10, NONBLOCK)
            assert errno == OK
            assert number is not None
            stat = cell.fdstat(number)[1]
            assert stat is not None
            assert stat.flags == NONBLOCK
            assert cell.read(number, 1) == (EAGAIN, None)
            client.sendall(b"x")
            assert cell.poll(Ready(1, EV_READ, number))[0] == OK
            assert cell.read(number, 10) == (OK, b"x")
        assert cell.accept(10) == (EAGAIN, None)


def test_accepting_with_flags_that_do_not_exist_is_einval_and_costs_no_connection(
    ww: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    with (
        connect(listener) as client,
        remote(ww, c_cell("remote"), "--fd", "web=3", fds={3: listener}) as cell,
    ):
        for flags in (1, 2, 8, 16, 32, 1 << 15):
            assert cell.accept(10, flags) == (EINVAL, None)
        assert cell.raw("sock_accept", 10, 0, 0xFFFFFFF0) == Errno.FAULT
        errno, number = cell.accept(10)
        assert errno == OK
        assert number is not None
        client.sendall(b"x")
        assert cell.read(number, 10) == (OK, b"x")


@pytest.mark.parametrize("mode", ["r", "w"])
def test_what_is_accepted_has_the_mode_of_the_listening_socket(
    ww: Ww, c_cell: BuildFunction, listener: socket.socket, mode: str
) -> None:
    flags = ("--fd", f"web=3,mode={mode}")
    with (
        connect(listener) as client,
        remote(ww, c_cell("remote"), *flags, fds={3: listener}) as cell,
    ):
        errno, number = cell.accept(10)
        if mode == "w":
            assert errno == ENOTCAPABLE
            return
        assert errno == OK
        assert number is not None
        client.sendall(b"x")
        assert cell.read(number, 10) == (OK, b"x")
        assert cell.write(number, b"x")[0] == EBADF
        assert cell.send(number, b"x")[0] == EBADF
        assert cell.raw("sock_shutdown", number, SHUT_WR) == ENOTCAPABLE
        assert cell.raw("fd_fdstat_set_rights", number, R | W, 0) == ENOTCAPABLE


def test_readiness_to_accept_can_be_polled(
    ww: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    with remote(ww, c_cell("remote"), "--fd", "web=3", fds={3: listener}) as cell:
        cell.tell_poll(Ready(7, EV_READ, 10))
        with connect(listener):
            errno, events = cell.poll_answer(1)
            assert errno == OK
            assert events is not None
            assert [(event.userdata, event.error, event.type) for event in events] == [
                (7, OK, EV_READ)
            ]
            assert events[0].nbytes > 0
            assert cell.accept(10)[0] == OK
        errno, events = cell.poll(Ready(8, EV_WRITE, 10))
        assert errno == OK
        assert events is not None
        assert events[0].error != OK


def test_a_server_in_c_echoes_to_real_clients_with_accept_and_poll(
    ww_account: Ww, c_cell: BuildFunction, listener: socket.socket
) -> None:
    """Several at once, each with its own data; the cell prints the number of each."""
    fds: dict[int, FdSource] = {3: listener, 4: ww_account.file("f", b"file")}
    flags = ("--fd", "web=3", "--fd", "f=4")
    with ww_account.popen(
        "run", *flags, c_cell("echo"), "10", "4", stdout=subprocess.PIPE, fds=fds
    ) as process:
        try:
            clients = [connect(listener) for _ in range(4)]
            for index, client in enumerate(clients):
                client.sendall(b"client %d " % index * 5000)
            for index, client in enumerate(clients):
                expected = b"client %d " % index * 5000
                client.shutdown(socket.SHUT_WR)
                received = b""
                while part := client.recv(1 << 16):
                    received += part
                assert received == expected
                client.close()
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, err
    lines = out.decode().split("\n")
    numbers = [int(line.split()[2]) for line in lines if line.startswith("accept 0 ")]
    assert len(numbers) == 4
    # 11 is a grant, though the numbers of ended connections may come again.
    assert not {0, 1, 2, 10, 11} & set(numbers)
    assert sum(line.startswith("close 0 ") for line in lines) == 4

"""``--fdctl PATH``, from honest peers and from all others: all descriptors or none."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import EXIT_GRANT, WwError
from runner.grants.handoff import Channel, Received, receive
from tests.conftest import CAN_BE_ROOT, REPO, Account
from tests.features import needs
from tests.unit.handoff.peers import (
    PATIENCE,
    Talk,
    connecting,
    forms,
    greeted,
    honest,
    listening,
    new_socket,
    null_fds,
    open_fds,
    send,
)

ORIGIN = "--fdctl #1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder / "handoff.sock"


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def channel(path: Path, limit: int = 16, *, timeout: float = PATIENCE) -> Channel:
    return Channel(str(path), ORIGIN, timeout, limit)


def close(received: Received) -> None:
    for fd in received.sources:
        os.close(fd)


def refused(where: Channel) -> WwError:
    with pytest.raises(WwError) as caught:
        receive(where)
    assert caught.value.code == EXIT_GRANT, caught.value
    assert caught.value.where.startswith(ORIGIN)
    return caught.value


# Honest peers


def test_each_form_is_a_request_for_the_descriptor_at_its_place(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greeted(connection)
        one, other = os.pipe()
        send(
            connection,
            b'((fd :name "in" :mode "r" :target 5 :move true) (fd (name "out") (type "stream")))',
            [one, other],
        )
        os.close(one)
        os.close(other)
        send(connection, b"(end)")

    with listening(path, talk):
        received = receive(channel(path))
    first, second = received.requests
    assert received.sources == {first.source, second.source}
    assert (first.name, first.mode, first.target, first.move) == ("in", "r", 5, True)
    assert (second.name, second.type, second.cloexec) == ("out", "stream", True)
    assert first.origin == f"{ORIGIN} (message 1):1:2"
    # They really are the two ends, each under its own name.
    os.write(second.source, b"through")
    assert os.read(first.source, 10) == b"through"
    for fd in received.sources:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    close(received)


def test_several_messages_add_up_in_their_order(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greeted(connection)
        with null_fds(3) as fds:
            send(connection, forms("a", "b"), fds[:2])
            send(connection, forms("c"), fds[2:])
            send(connection, b"(end)")

    with listening(path, talk):
        received = receive(channel(path))
    assert [request.name for request in received.requests] == ["a", "b", "c"]
    assert received.requests[2].origin == f"{ORIGIN} (message 2):1:1"
    close(received)


def test_no_descriptor_at_all_is_fine(path: Path) -> None:
    with listening(path, honest()):
        assert receive(channel(path)) == Received((), frozenset())


@pytest.mark.parametrize("count", [253, 256])
def test_as_many_as_max_admits_are_received(path: Path, count: int) -> None:
    def talk(connection: socket.socket) -> None:
        greeted(connection, limit=count)
        names = [f"n{i}" for i in range(count)]
        with null_fds(count) as fds:
            send(connection, forms(*names[:253]), fds[:253])
            if count > 253:
                send(connection, forms(*names[253:]), fds[253:])
            send(connection, b"(end)")

    with listening(path, talk):
        received = receive(channel(path, count))
    assert len(received.sources) == len(received.requests) == count
    close(received)


def test_a_path_longer_than_an_address_can_be_reached(path: Path) -> None:
    folder = path.parent
    for _ in range(3):
        folder = folder / ("d" * 60)
        folder.mkdir()
    where = folder / "handoff.sock"
    assert len(str(where)) > 108
    shortcut = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    short = Path("/proc/self/fd") / str(shortcut) / where.name
    with connecting(short, honest("a")):
        close(receive(channel(where)._replace(listen=True)))
    with listening(short, honest("a")):
        close(receive(channel(where)))
    os.close(shortcut)


# A side that does not keep to the protocol


def sends(*messages: tuple[bytes, int]) -> Talk:
    """A peer that reads the greeting and sends payloads, each with so many descriptors."""

    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        for payload, count in messages:
            with null_fds(count) as fds:
                send(connection, payload, fds)

    return talk


@pytest.mark.parametrize(
    ("talk", "what"),
    [
        (sends(), "left before it sent (end)"),
        (sends((forms("a"), 1)), "left before it sent (end)"),
        (sends((b"", 1), (b"(end)", 0)), "left before it sent (end)"),
        (sends((forms("a"), 2)), "has 1 (fd ...) forms and 2 descriptors"),
        (sends((forms("a", "b"), 1)), "has 2 (fd ...) forms and 1 descriptors"),
        (sends((forms("a"), 0)), "has 1 (fd ...) forms and 0 descriptors"),
        (sends((b"()", 0)), "has 0 (fd ...) forms and 0 descriptors"),
        (sends((b"()", 3)), "has 0 (fd ...) forms and 3 descriptors"),
        (sends((b" ; nothing", 1)), "has 0 (fd ...) forms and 1 descriptors"),
        (sends((forms("a"), 1), (forms("b"), 2)), "message 2 has 1 (fd ...) forms and 2"),
        (sends((forms("a"), 1), (b"(end)", 1)), "a descriptor came with (end)"),
        (sends((b"(end) ", 0)), ""),
        (sends((forms(*"abcde"), 5)), "sent more than 4"),
        (sends((forms("a", "b", "c"), 3), (forms("d", "e"), 2)), "sent more than 4"),
        (sends((forms("a"), 253)), "sent more than 4"),
        (sends((forms("a") + b" " * 65536, 1)), "longer than 65536 bytes"),
        (sends((b"(" * 65536, 1)), ""),
        (sends((b"\xff", 1)), "UTF-8"),
        (sends((b'(fd :name "a" :fd 3)', 1)), "no key 'fd'"),
        (sends((b'(fd :name "a b")', 1)), "legal name"),
        (sends((b'(fd :name "a" :target -1)', 1)), "target"),
        (sends((b'(def x 1)(fd :name "a")', 1)), ""),
        (sends((b'(env "HOME")', 1)), ""),
    ],
)
def test_whoever_does_not_keep_to_the_protocol_is_refused(
    path: Path, talk: Talk, what: str
) -> None:
    with listening(path, talk):
        error = refused(channel(path, 4))
    assert what in error.what


def test_an_error_in_a_table_names_the_message_the_line_and_the_column(path: Path) -> None:
    talk = sends((forms("a"), 1), (b'\n  (fd :name "b" :colour 3)', 1))
    with listening(path, talk):
        error = refused(channel(path))
    assert error.where == f"{ORIGIN} (message 2):2:17"


def test_a_peer_that_leaves_without_reading_the_greeting_is_refused(path: Path) -> None:
    # The unread message makes the kernel reset the connection when this side is closed.
    def talk(connection: socket.socket) -> None:
        with null_fds(1) as fds:
            send(connection, forms("a"), fds)
        connection.recv(1, socket.MSG_PEEK)  # the greeting is there by now, and stays unread

    with listening(path, talk):
        error = refused(channel(path))
    assert "reset" in error.what


def test_descriptors_that_find_no_room_in_this_process_are_refused(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    over = threading.Event()

    def talk(connection: socket.socket) -> None:
        greeted(connection, limit=256)
        with null_fds(100) as fds:
            # Room for some of them only: the kernel installs those, and cuts the message.
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 4, hard))
            send(connection, forms(*(f"n{i}" for i in range(100))), fds)
            over.wait(PATIENCE)  # their numbers must stay taken until then

    try:
        with listening(path, talk):
            error = refused(channel(path, 256))
            over.set()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "descriptors of a message were lost" in error.what


# Slow peers. The deadline is short, and the peer never gets done, however slow the machine is.


def hold(over: threading.Event) -> None:
    over.wait(PATIENCE)


def test_a_silent_peer_is_refused_at_the_deadline(path: Path) -> None:
    over = threading.Event()
    with listening(path, lambda _: hold(over)):
        error = refused(channel(path, timeout=0.1))
        over.set()
    assert "not done within 0.1 s" in error.what


def test_the_deadline_is_for_the_whole_exchange_and_not_for_each_message(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        with null_fds(1) as fds:
            while True:
                send(connection, forms("a"), fds)
                time.sleep(0.05)

    # 256 of them take more than 12 s, and no two are as far apart as the deadline is away.
    with listening(path, talk):
        error = refused(channel(path, 256, timeout=0.5))
    assert "not done within 0.5 s" in error.what


def test_a_peer_that_does_not_accept_is_refused_at_the_deadline(path: Path) -> None:
    with new_socket() as listener, new_socket() as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        error = refused(channel(path, timeout=0.1))
    assert "temporarily unavailable" in error.what


# Nobody there


def test_without_a_socket_the_error_says_what_to_start(path: Path) -> None:
    error = refused(channel(path))
    assert "No such file" in error.what
    assert "start it first" in error.hint


def test_a_socket_that_nobody_listens_on_is_refused(path: Path) -> None:
    with new_socket() as dead:
        dead.bind(str(path))
    assert "Connection refused" in refused(channel(path)).what


def test_a_stream_socket_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert "SOCK_SEQPACKET" in refused(channel(path)).hint


def test_what_is_no_socket_is_said_to_be_none(path: Path) -> None:
    path.touch()
    for other in (path, path.parent):
        assert refused(channel(other)).what == f"{other}: it is no socket"


def test_a_name_too_long_for_an_address_is_refused(path: Path) -> None:
    refused(channel(path.parent / ("x" * 200)))
    refused(channel(path.parent / ("x" * 200))._replace(listen=True))


def test_what_is_missing_is_the_business_of_the_side_that_makes_it(path: Path) -> None:
    nowhere = channel(path.parent / "no" / "such")
    assert "the side with listen=true makes the socket" in refused(nowhere).hint
    error = refused(nowhere._replace(listen=True))
    assert "No such file" in error.what
    assert "its directory; make that first" in error.hint


# listen=true


def test_a_listener_serves_one_peer_and_takes_the_socket_away(path: Path) -> None:
    seen: list[int] = []

    def talk(connection: socket.socket) -> None:
        greeted(connection)
        # Answered only after it was accepted, and then the path is gone already.
        seen.append(int(path.exists()))
        with null_fds(1) as fds:
            send(connection, forms("a"), fds)
        send(connection, b"(end)")

    with connecting(path, talk):
        received = receive(channel(path)._replace(listen=True))
    assert [request.name for request in received.requests] == ["a"]
    assert seen == [0]
    assert list(path.parent.iterdir()) == []
    close(received)


def test_the_socket_admits_its_owner_only_whatever_the_umask(path: Path) -> None:
    modes: list[int] = []

    def work() -> None:
        while not path.exists():
            time.sleep(0.01)
        modes.append(stat.S_IMODE(path.stat().st_mode))
        with new_socket() as connection:
            connection.connect(str(path))

    before = os.umask(0)
    thread = threading.Thread(target=work)
    try:
        thread.start()
        refused(channel(path)._replace(listen=True))
    finally:
        os.umask(before)
        thread.join()
    assert modes == [0o600]


def test_an_existing_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("precious")
    error = refused(channel(path)._replace(listen=True))
    assert "in use" in error.what
    assert "exists already" in error.hint
    assert path.read_text() == "precious"


def test_a_dangling_link_is_refused_and_not_followed(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    refused(channel(path)._replace(listen=True))
    assert path.is_symlink()
    assert not (path.parent / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o720, 0o770])
def test_a_directory_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    error = refused(channel(path)._replace(listen=True))
    assert "others can write its directory" in error.what
    assert not path.exists()


@needs("root", CAN_BE_ROOT, "gives a directory away")
def test_a_directory_of_another_user_is_refused(path: Path, account_folders: Path) -> None:
    os.chown(path.parent, 65532, 65532)
    assert "others can write" in refused(channel(path)._replace(listen=True)).what


def test_no_directory_is_refused(path: Path) -> None:
    refused(channel(path.parent / "none" / "x")._replace(listen=True))
    path.touch()
    refused(channel(path / "x")._replace(listen=True))


def test_a_listener_to_whom_nobody_comes_takes_the_socket_away(path: Path) -> None:
    error = refused(channel(path, timeout=0.1)._replace(listen=True))
    assert "not done within" in error.what
    assert not path.exists()


def test_a_listener_that_is_interrupted_as_soon_as_the_socket_is_there_takes_it_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(listener: socket.socket, address: str) -> None:
        bind(listener, address)
        assert path.is_socket()
        raise KeyboardInterrupt

    bind = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", interrupted)
    with pytest.raises(KeyboardInterrupt):
        receive(channel(path)._replace(listen=True))
    assert not path.exists()


def test_a_listener_whose_peer_lies_takes_the_socket_away(path: Path) -> None:
    with connecting(path, sends((forms("a"), 2))):
        refused(channel(path)._replace(listen=True))
    assert not path.exists()


# Other users

PEER = """
import socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if sys.argv[1] == "listen":
    connection.bind(sys.argv[2])
    connection.listen()
    print("ready", flush=True)
    connection, _ = connection.accept()
else:
    connection.connect(sys.argv[2])
connection.settimeout(60)
print("said" if connection.recv(100) else "silence", flush=True)
"""


@pytest.fixture
def shared(account_folders: Path, ordinary_account: Account) -> Iterator[Path]:
    """A folder that both root and the ordinary account get into; nobody else writes there."""
    folder = account_folders / "handoff"
    folder.mkdir(mode=0o755)
    yield folder
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def start_peer(account: Account, how: str, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", PEER, how, str(path)]
    return account.popen(command, env={}, cwd="/", stdout=subprocess.PIPE)


@needs("root", CAN_BE_ROOT, "only root can start another user's process")
def test_another_user_that_listens_is_refused_before_anything_is_said(
    shared: Path, ordinary_account: Account
) -> None:
    os.chown(shared, ordinary_account.uid, ordinary_account.gid)
    with start_peer(ordinary_account, "listen", shared / "x") as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == b"ready\n"
        error = refused(channel(shared / "x"))
        assert peer.stdout.readline() == b"silence\n"
    assert f"belongs to user {ordinary_account.uid}" in error.what


@needs("root", CAN_BE_ROOT, "only root can start another user's process")
def test_another_user_that_connects_is_refused(shared: Path, ordinary_account: Account) -> None:
    path = shared / "x"
    peers = []

    def work() -> None:
        while not path.exists():
            time.sleep(0.01)
        path.chmod(0o666)  # else it could not even connect
        peers.append(start_peer(ordinary_account, "connect", path))

    thread = threading.Thread(target=work)
    thread.start()
    error = refused(channel(path)._replace(listen=True))
    thread.join()
    with peers[0] as peer:
        said, _ = peer.communicate(timeout=PATIENCE)
    assert said == b"silence\n"
    assert f"belongs to user {ordinary_account.uid}" in error.what
    assert not path.exists()


# In a user namespace that maps one id, the one that stands for all others.
AS_NOBODY = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
TAKER = """
import sys
from runner.errors import WwError
from runner.grants.handoff import Channel, receive
try:
    receive(Channel(sys.argv[1], "--fdctl #1", 60, listen=sys.argv[2] == "listen"))
except WwError as error:
    sys.exit(f"{error.code} {error.what}")
"""


@needs("root", CAN_BE_ROOT, "only root can start another user's process")
@pytest.mark.parametrize("how", ["listen", "connect"])
def test_where_strangers_look_like_oneself_nobody_is_believed(
    shared: Path, ordinary_account: Account, how: str
) -> None:
    path = shared / "x"
    os.chown(shared, ordinary_account.uid, ordinary_account.gid)
    command = [*AS_NOBODY, sys.executable, "-c", TAKER, str(path), how]
    env = {"PYTHONPATH": str(REPO)}
    with new_socket() as stranger:
        if how == "connect":
            stranger.bind(str(path))
            path.chmod(0o666)
            stranger.listen()
        with ordinary_account.popen(command, env=env, cwd="/", stderr=subprocess.PIPE) as process:
            _, said = process.communicate(timeout=PATIENCE)
    assert said.decode() == f"65 {path}: the kernel shows strangers as user 65534 here, too\n"


RECEIVER = """
import sys
from runner.grants.handoff import Channel, receive
print(*(request.name for request in receive(Channel(sys.argv[1], "--fdctl #1", 60)).requests))
"""


@needs("root", CAN_BE_ROOT, "only root can be root")
def test_root_may_hand_over_to_anybody(shared: Path, ordinary_account: Account) -> None:
    path = shared / "x"
    with listening(path, honest("a", "b")):
        path.chmod(0o666)
        done = ordinary_account.popen(
            [sys.executable, "-c", RECEIVER, str(path)],
            env={},
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = done.communicate(timeout=PATIENCE)
    assert said == b"a b\n"

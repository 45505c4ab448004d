"""Where a server listens, how `ww run` finds it, and what happens where it cannot be used."""

import json
import os
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import SpawnerError, connect, wire
from tests.conftest import (
    CAN_BE_ROOT,
    EXAMPLES,
    ORDINARY_ID,
    REPO,
    Account,
    Leftovers,
    Ww,
)
from tests.features import needs
from tests.serve.serving import Server, serving, socket_of, waiting

HELLO = EXAMPLES / "hello" / "hello.wasm"
OVERFLOW_ID = int(Path("/proc/sys/kernel/overflowuid").read_text())
needs_root = needs("root", CAN_BE_ROOT, "only root can be another user")


def used(ww: Ww, *flags: str, env: dict[str, str] | None = None) -> tuple[str | None, str]:
    """Run a cell: the path of the server that ran it, if one did; and what ww said."""
    end, told = os.pipe()
    with open(end, "rb") as events, open(told, "wb") as writer:
        done = ww.run("run", "--status-fd", "9", *flags, HELLO, fds={9: writer}, env=env)
        writer.close()
        found = [json.loads(line) for line in events]
    assert (done.returncode, done.stdout[:5]) == (0, b"Hello"), done
    servers = [event["socket"] for event in found if event["event"] == "server"]
    return (servers[0] if servers else None), done.stderr.decode()


# --- where it listens -----------------------------------------------------------------------------


def test_the_socket_and_its_directory_are_the_owners_alone_and_gone_after_a_clean_stop(
    ww_account: Ww, leftovers: type[Leftovers]
) -> None:
    with leftovers(ww_account):
        with serving(ww_account) as server:
            folder, found = server.path.parent.stat(), server.path.lstat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert stat.S_IMODE(folder.st_mode) == 0o700
            assert {found.st_uid, folder.st_uid} == {ww_account.account.uid}
            assert used(ww_account) == (str(server.path), "")
            assert server.end() == (0, "")
            assert not server.path.exists()
        assert used(ww_account) == (None, "")


def test_it_listens_and_is_looked_for_in_the_runtime_directory(ww_account: Ww) -> None:
    folder = ww_account.root / "runtime"
    folder.mkdir()
    os.chown(folder, ww_account.account.uid, ww_account.account.gid)
    env = {"XDG_RUNTIME_DIR": str(folder), "WW_SOCKET": ""}
    path = folder / "ww" / "spawner.sock"
    process = ww_account.popen("serve", "--jails", "0", env=env)
    with process:
        server = Server(process, path)
        assert server.line() == f"ww: serving at {path}\n"
        assert used(ww_account, env=env) == (str(path), "")
        assert used(ww_account, "--no-serve", env=env) == (None, "")
        assert used(ww_account, env={**env, "WW_SOCKET": "off"}) == (None, "")
        # Another path than an absolute one is to be ignored.
        assert used(ww_account, env={**env, "XDG_RUNTIME_DIR": "runtime"})[0] != str(path)
        assert server.end(signal.SIGINT) == (0, "")


def test_the_variable_names_it_and_the_flag_goes_before(ww: Ww) -> None:
    named = ww.root / "named.sock"
    with serving(ww, "--jails", "0", path=named, env={"WW_SOCKET": "/nonexistent/x"}):
        assert used(ww) == (str(named), "")
    process = ww.popen("serve", "--jails", "0", env={"WW_SOCKET": "relative.sock"})
    with process:
        server = Server(process, ww.tmp / "relative.sock")
        assert server.line() == f"ww: serving at {server.path}\n"
        assert used(ww, env={"WW_SOCKET": "relative.sock"}) == ("relative.sock", "")
        assert server.end(signal.SIGHUP) == (0, "")
        assert not server.path.exists()


def test_without_a_place_it_says_what_to_name(ww: Ww, ordinary_account: Account) -> None:
    user = ww.as_user(ordinary_account)
    for env in ({"WW_SOCKET": ""}, {"WW_SOCKET": "off", "XDG_RUNTIME_DIR": "/run"}):
        done = user.run("serve", env=env)
        assert done.returncode == 2
        assert done.stderr.startswith(b"ww: error: ww serve: there is no place for its socket")
        assert b"--socket PATH" in done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("flags", [["--jails", "-1"], ["--clients", "0"], ["--per-client", "x"]])
def test_what_cannot_be_is_an_error_of_usage(ww: Ww, flags: list[str]) -> None:
    done = ww.run("serve", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ww: error: ww serve: Invalid value for '{flags[0]}'".encode())


def test_a_second_server_does_not_take_the_place_of_one_that_lives(ww_account: Ww) -> None:
    with serving(ww_account, "--jails", "0") as server:
        done = ww_account.run("serve", "--socket", server.path)
        assert done.returncode == 1
        said = f"ww: error: {server.path}: a server is there already (end it first"
        assert done.stderr.decode().startswith(said)
        assert used(ww_account) == (str(server.path), "")


def test_a_socket_that_a_killed_server_left_is_replaced(ww_account: Ww) -> None:
    with serving(ww_account, "--jails", "0") as server:
        server.process.kill()
        server.ended()
        assert server.path.exists()
        assert used(ww_account) == (None, "")
        with serving(ww_account, "--jails", "0") as other:
            assert used(ww_account) == (str(other.path), "")


def test_what_is_no_socket_is_left_alone(ww: Ww) -> None:
    path = ww.file("precious", b"text")
    done = ww.run("serve", "--socket", path)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"ww: error: {path}: there is something else than a so")
    assert path.read_bytes() == b"text"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere/at/all", "/nowhere/at: the socket cannot be made: No such file or directory"),
        ("x" * 120, ": the socket cannot be made: AF_UNIX path too long"),
    ],
    ids=["directory", "long"],
)
def test_a_socket_that_cannot_be_made_is_an_error_of_one_line(ww: Ww, path: str, said: str) -> None:
    done = ww.run("serve", "--socket", path)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_of_many_that_start_at_once_one_serves(ww: Ww) -> None:
    path = socket_of(ww)
    started = [ww.popen("serve", "--jails", "0", "--socket", path) for _ in range(4)]
    first = [Server(process, path).line() for process in started]
    assert sorted("already" in line for line in first) == [False, True, True, True]
    for process, line in zip(started, first, strict=True):
        with process:
            if "serving" in line:
                assert Server(process, path).end() == (0, "")
            else:
                assert process.wait(30) == 1


def test_one_that_ends_does_not_remove_the_socket_of_its_successor(ww: Ww) -> None:
    with serving(ww, "--jails", "0") as server:
        server.path.unlink()
        with serving(ww, "--jails", "0") as successor:
            server.end()
            assert used(ww) == (str(successor.path), "")


def test_nohup_is_heeded(ww: Ww) -> None:
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *ww.command]
    with serving(ww, "--jails", "0", command=nohup) as server:
        server.process.send_signal(signal.SIGHUP)
        assert used(ww) == (str(server.path), "")
        assert server.end() == (0, "")


# --- who may use it -------------------------------------------------------------------------------


def greeting(path: Path) -> bytes:
    """What a server says to whoever this process is."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        message = wire.receive(client)
        assert message is not None
        return message[0]


@contextmanager
def as_other() -> Iterator[None]:
    """Be another user, as far as a socket tells its peer."""
    os.setegid(ORDINARY_ID)
    os.seteuid(ORDINARY_ID)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@needs_root
def test_another_user_is_refused_even_where_the_socket_lets_everybody_in(
    ww: Ww, ordinary_account: Account
) -> None:
    ww.root.chmod(0o755)
    with serving(ww, "--jails", "0") as server:
        server.path.parent.chmod(0o755)
        server.path.chmod(0o666)
        with as_other():
            assert greeting(server.path) == b"this server is for uid 0 only"
            with pytest.raises(SpawnerError, match="the server there is uid 0's"):
                connect(str(server.path))
        user = ww.as_user(ordinary_account)
        served, said = used(user, env={"WW_SOCKET": str(server.path)})
        assert served is None
        assert said == (
            f"ww: warning: {server.path}: the server there is uid 0's (so ww runs without it)\n"
        )
        assert greeting(server.path) == wire.GREETING


@needs_root
def test_root_does_not_use_the_server_of_another_user(ww: Ww, ordinary_account: Account) -> None:
    user = ww.as_user(ordinary_account)
    with serving(user, "--jails", "0") as server:
        assert used(user) == (str(server.path), "")
        served, said = used(ww, env={"WW_SOCKET": str(server.path)})
        assert served is None
        assert f"the server there is uid {ORDINARY_ID}'s" in said
        assert greeting(server.path) == f"this server is for uid {ORDINARY_ID} only".encode()


# The first user of a user namespace that maps one id, and it is the one that stands for all others.
AS_NOBODY = ("unshare", "--user", f"--map-user={OVERFLOW_ID}", f"--map-group={OVERFLOW_ID}")
CONNECTING = """
import sys
from sandbox.client import connect
try:
    connect(sys.argv[1]).close()
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@needs_root
def test_where_strangers_look_like_oneself_a_server_refuses_everybody(
    ww: Ww, ordinary_account: Account
) -> None:
    user = ww.as_user(ordinary_account)
    refusal = f"the kernel shows strangers as uid {OVERFLOW_ID} here, too"
    with serving(user, "--jails", "0", command=[*AS_NOBODY, *user.command]) as server:
        server.path.parent.chmod(0o755)
        server.path.chmod(0o666)
        # Root is none of the namespace's, and nor is who has its one id outside.
        assert greeting(server.path) == refusal.encode()
        served, said = used(user)
        assert served is None
        assert refusal in said


@needs_root
def test_where_strangers_look_like_oneself_no_server_is_used(
    ww: Ww, ordinary_account: Account
) -> None:
    user = ww.as_user(ordinary_account)
    for owner in (ww, user):
        with serving(owner, "--jails", "0") as server:
            ww.root.chmod(0o755)
            server.path.parent.chmod(0o755)
            server.path.chmod(0o666)
            command = [*AS_NOBODY, sys.executable, "-c", CONNECTING, str(server.path)]
            done = user.call(command, env={"PYTHONPATH": str(REPO)})
            assert done.returncode == 1
            assert done.stderr.decode().startswith(
                f"SpawnerError: {server.path}: uid {OVERFLOW_ID} is whoever this user namespace "
            ), done.stderr


@needs_root
def test_who_listens_is_not_enough_for_trust_it_is_who_answers(ww: Ww) -> None:
    # As with socket activation by root for a service of another user's.
    path = socket_of(ww)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(ORDINARY_ID, ORDINARY_ID, ORDINARY_ID)
                connection, _ = listening.accept()
                wire.send(connection, wire.GREETING)
                connection.recv(1)
            finally:
                os._exit(0)
        with pytest.raises(SpawnerError, match=f"the server there is uid {ORDINARY_ID}'s"):
            connect(str(path))
        os.waitpid(child, 0)


# --- what refuses, or is no server ----------------------------------------------------------------


@contextmanager
def saying(path: Path, message: bytes | None) -> Iterator[None]:
    """Be a server of some other kind: it says this to everybody, or nothing."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if message is not None:
                        connection.sendall(message)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink()


def said(text: bytes) -> bytes:
    return struct.pack("=II", len(text), 0) + text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (said(b"busy: all is taken"), "the server refuses: busy: all is taken"),
        (said(wire.GREETING[:-1] + b"9"), "of another version of ww: restart it"),
        (None, "the server refuses: it says nothing"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer from the server: message of"),
        (said(b"\x1b[2J\xff"), r"refuses: \x1b[2J\xff ("),
    ],
    ids=["busy", "version", "silent", "foreign", "hostile"],
)
def test_a_server_that_cannot_be_used_is_told_of_where_it_was_named(
    ww: Ww, message: bytes | None, reason: str
) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(ww.root / "run"), "WW_SOCKET": ""}
    path = ww.root / "run" / "ww" / "spawner.sock"
    path.parent.parent.mkdir()
    with saying(path, message):
        served, warning = used(ww, env={"WW_SOCKET": str(path)})
        assert served is None
        assert warning.startswith(f"ww: warning: {path}: ")
        assert reason in warning
        assert warning.endswith("(so ww runs without it)\n")
        assert warning.count("\n") == 1
        # Nobody has asked for this one.
        assert used(ww, env=runtime) == (None, "")
        assert reason in used(ww, "--debug", env=runtime)[1]
        assert used(ww, "--no-serve", env={"WW_SOCKET": str(path)}) == (None, "")


def test_a_warning_that_cannot_be_written_is_no_reason_not_to_run(ww: Ww) -> None:
    path = ww.root / "run" / "spawner.sock"
    with saying(path, said(b"busy")):
        command = ["bash", "-c", 'exec "$@" 2>/dev/full', "bash", *ww.command, "run", str(HELLO)]
        done = ww.call(command, env={"WW_SOCKET": str(path)})
    assert (done.returncode, done.stdout[:5]) == (0, b"Hello")


def test_a_file_in_its_place_is_no_server(ww: Ww) -> None:
    path = ww.file("plain")
    assert used(ww, env={"WW_SOCKET": str(path)}) == (None, "")
    assert used(ww, env={"WW_SOCKET": str(path / "below")})[0] is None
    assert "path too long" in used(ww, env={"WW_SOCKET": "/" + "x" * 200})[1]


# --- how many -------------------------------------------------------------------------------------


def test_each_client_has_so_many_connections_and_all_together(ww_account: Ww) -> None:
    with serving(ww_account, "--jails", "0", "--clients", "3", "--per-client", "2") as server:
        path = str(server.path)
        with as_user(ww_account.account):
            mine = [connect(path), connect(path)]
            with pytest.raises(SpawnerError, match="busy: this client has 2 connections"):
                connect(path)
        with waiting(ww_account):
            # Three of three; it is as for a client that has none yet.
            served, said = used(ww_account)
            assert served is None
            assert "busy: it has 3 connections, the most it takes" in said
            with as_user(ww_account.account):
                for _ in range(20):
                    # When close() returns, the place is free.
                    mine.pop().close()
                    mine.append(connect(path))
        for connection in mine:
            connection.close()
        assert used(ww_account) == (path, "")


@contextmanager
def as_user(account: Account) -> Iterator[None]:
    if account.is_own:
        yield
    else:
        with as_other():
            yield

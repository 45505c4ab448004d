"""A server at a service manager's socket: the units, and the real systemd-socket-activate."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Ww, need_command
from tests.serve.serving import PATIENCE, Server, waiting
from tests.unit.systemd.test_example_units import CONFLICTS

HELLO = EXAMPLES / "hello" / "hello.wasm"
UNITS = EXAMPLES / "serve"


@pytest.mark.parametrize("manager", ["--user", "--system"])
def test_the_units_are_ones_that_systemd_reads(manager: str, tmp_path: Path) -> None:
    program = need_command("systemd-analyze")
    for unit in ("ww-serve.socket", "ww-serve.service"):
        text = (UNITS / unit).read_text()
        # It wants the program to be there.
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/ww", shutil.which("true") or ""))
    done = subprocess.run(
        [program, "verify", manager, "--recursive-errors=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_socket_of_the_units_is_where_ww_looks() -> None:
    text = (UNITS / "ww-serve.socket").read_text()
    # %t is $XDG_RUNTIME_DIR for a user's manager, and /run for the system's; systemd.unit(5).
    assert "ListenStream=%t/ww/spawner.sock\nSocketMode=0600\nDirectoryMode=0700\n" in text


# With these, systemd makes mounts for a service, or keeps it from making a jail.
BREAKING = {
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "ProtectSystem"),
    *("ProtectHome", "ProtectControlGroups", "ProtectKernelModules", "ReadOnlyPaths"),
    *("InaccessiblePaths", "TemporaryFileSystem", "BindPaths", "RootDirectory", "DynamicUser"),
}


def test_no_setting_that_breaks_jails_or_their_directories_is_in_the_service() -> None:
    lines = (UNITS / "ww-serve.service").read_text().splitlines()
    settings = {line.partition("=")[0] for line in lines if line[:1].isalpha()}
    assert "NoNewPrivileges" in settings
    assert not settings & (BREAKING | CONFLICTS)
    document = (EXAMPLES.parent / "docs" / "serve.md").read_text()
    assert {name for name in BREAKING if f"`{name}=`" not in document} == set()


# --- descriptors ----------------------------------------------------------------------------------


@contextmanager
def listening(ww: Ww) -> Iterator[socket.socket]:
    """A socket as a service manager makes it, which outlives those who serve at it."""
    path = ww.root / "activated.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        os.chown(path, ww.account.uid, ww.account.gid)
        ww.env["WW_SOCKET"] = str(path)
        try:
            yield made
        finally:
            del ww.env["WW_SOCKET"]
            assert path.exists()  # it is not the server's to remove
            path.unlink()


def activated(
    ww: Ww, *flags: str, fds: Mapping[int, socket.socket], said: str = "1", **env: str
) -> Server:
    """Start a server as a service manager does; it is to be ended."""
    script = f'LISTEN_PID=$$ LISTEN_FDS={said} exec "$@"'
    command = ["sh", "-c", script, "sh", *ww.command, "serve", *flags]
    process = ww.start(command, stdout=subprocess.DEVNULL, fds=fds, env=env)
    return Server(process, Path(ww.env.get("WW_SOCKET", "none")))


def served(out: bytes) -> bool:
    """Whether the events of a run on its standard output tell of a server."""
    lines = [json.loads(line) for line in out.splitlines() if line.startswith(b'{"event')]
    assert lines[-1]["code"] == 0, out
    return any(line["event"] == "server" for line in lines)


RUN = ("run", "--status-fd", "1", HELLO)


def test_a_restart_does_not_lose_the_socket_nor_who_connects_meanwhile(ww_account: Ww) -> None:
    with listening(ww_account) as kept:
        first = activated(ww_account, "--jails", "1", fds={3: kept})
        with first.process:
            assert served(ww_account.run(*RUN).stdout)
            with waiting(ww_account) as run:
                assert first.end() == (0, "")
                code, err = run.ended()
                assert (code, run.marks()) == (1, 1)
                assert "was stopped or has failed" in err
        with ww_account.popen(*RUN) as early:
            # It has connected when the kernel has it at the door.
            assert select.select([kept], [], [], PATIENCE)[0]
            second = activated(ww_account, "--jails", "0", fds={3: kept})
            with second.process:
                out, err_ = early.communicate(timeout=PATIENCE)
                assert err_ == b""
                assert served(out)
                assert served(ww_account.run(*RUN).stdout)
                assert second.end() == (0, "")


def test_the_service_manager_is_told_when_it_is_ready_and_when_it_ends(ww: Ww) -> None:
    path = ww.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, listening(ww) as kept:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        server = activated(ww, "--jails", "0", fds={3: kept}, NOTIFY_SOCKET=str(path))
        with server.process:
            assert manager.recv(100) == b"READY=1"
            assert served(ww.run(*RUN).stdout)
            server.process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert server.ended() == (0, "")


def test_systemd_socket_activate_starts_it_when_a_run_comes(ww_account: Ww) -> None:
    program = need_command("systemd-socket-activate")
    path = ww_account.root / "demand.sock"
    kept = [f"-E{key}={value}" for key, value in ww_account.environment().items()]
    command = [program, "-l", str(path), *kept, *ww_account.command, "serve", "--jails", "1"]
    with ww_account.start(command, stdout=subprocess.DEVNULL) as process:
        server = Server(process, path)
        assert server.line().startswith("Listening on ")
        assert served(ww_account.run(*RUN, env={"WW_SOCKET": str(path)}).stdout)
        assert served(ww_account.run(*RUN, env={"WW_SOCKET": str(path)}).stdout)
        code, err = server.end(signal.SIGTERM)
        assert code == 0
        assert "ww:" not in err
        assert path.exists()


@pytest.mark.parametrize(
    ("kind", "said", "flags", "wrong"),
    [
        ("tcp", "1", (), "fd 3 is a socket of the network, and not a unix socket"),
        ("packets", "1", (), "fd 3 is a unix socket, but no stream socket"),
        ("silent", "1", (), "fd 3 is a unix socket that does not listen"),
        ("file", "1", (), "fd 3 is no socket"),
        ("unix", "2", (), "2 sockets were passed (LISTEN_PID="),
        ("unix", "0", (), "LISTEN_FDS is '0'"),
        ("unix", "1", ("--socket", "x"), "the socket is the service manager's"),
    ],
)
def test_what_is_no_socket_for_a_server_is_an_error_of_usage(
    ww: Ww, kind: str, said: str, flags: tuple[str, ...], wrong: str
) -> None:
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    form = socket.SOCK_SEQPACKET if kind == "packets" else socket.SOCK_STREAM
    with socket.socket(family, form) as made, open("/dev/null") as null:
        if kind == "tcp":
            made.bind(("127.0.0.1", 0))
        else:
            made.bind(str(ww.root / "passed.sock"))
        if kind != "silent":
            made.listen()
        given = {3: null if kind == "file" else made, 4: made}
        server = activated(ww, *flags, fds=given, said=said)  # type: ignore[arg-type]
        code, err = server.ended()
    assert code == 2
    assert err.startswith(f"ww: error: socket activation: {wrong}"), err
    assert err.count("\n") == 1


def test_descriptors_that_are_meant_for_another_process_are_not_taken(ww: Ww) -> None:
    with listening(ww) as kept:
        script = 'LISTEN_PID=1 LISTEN_FDS=1 exec "$@"'
        done = ww.call(["sh", "-c", script, "sh", *ww.command, "serve"], fds={3: kept})
    assert done.returncode == 2
    assert b"socket activation: the descriptors are for process 1 (LISTEN_PID)" in done.stderr

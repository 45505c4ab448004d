"""A cell behind the real `systemd-socket-activate`, through `ww run --use-systemd-fds`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import REPO, BuildFunction, Ww, need_command

PATIENCE = 60.0

# What the module makes of what systemd-socket-activate passes, as runner.__main__ calls it.
PROGRAM = """
from runner.inherited import capture
inherited = capture()
import json, os
from runner.errors import WwError
from runner.grants.systemd import take_listen_fds
try:
    found = take_listen_fds(os.environ, inherited)
    result = {"fds": [r[:2] for r in found.requests], "aliases": found.aliases}
except WwError as error:
    result = {"error": str(error), "code": error.code}
result["left"] = [key for key in os.environ if key.startswith("LISTEN_")]
print(json.dumps(result), flush=True)
"""


def free_address() -> tuple[str, int]:
    """An address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        return host, port


class Activated:
    """systemd-socket-activate in front of a command: it starts that at the first connection."""

    def __init__(self, process: subprocess.Popen[bytes], addresses: list[tuple[str, int]]) -> None:
        self.process = process
        self.addresses = addresses

    def connect(self, index: int = 0) -> socket.socket:
        return socket.create_connection(self.addresses[index], PATIENCE)

    def talk(self, text: bytes, index: int = 0) -> bytes:
        """Be one client: send, and read to the end."""
        with self.connect(index) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                return stream.read()

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.decode(), err.decode()


@contextlib.contextmanager
def activated(
    ww: Ww, command: Sequence[str | Path], *, sockets: int = 1, options: Sequence[str] = ()
) -> Iterator[Activated]:
    program = need_command("systemd-socket-activate")
    addresses = [free_address() for _ in range(sockets)]
    listen = [word for host, port in addresses for word in ("-l", f"{host}:{port}")]
    # Its children have only the variables that it is told to pass on.
    kept = [f"-E{key}={value}" for key, value in ww.environment().items()]
    process = ww.start([program, *listen, *options, *kept, *command])
    with process:
        try:
            wait_until_listening(process, sockets)
            yield Activated(process, addresses)
        finally:
            process.kill()


def wait_until_listening(process: subprocess.Popen[bytes], sockets: int) -> None:
    """It says `Listening on ADDRESS as N.` on stderr for each socket."""
    assert process.stderr is not None
    seen = b""
    while seen.count(b"Listening on") < sockets:
        assert select.select([process.stderr], [], [], PATIENCE)[0], seen
        more = os.read(process.stderr.fileno(), 4096)
        assert more, seen
        seen += more


def seen_by_the_module(
    ww: Ww, *, sockets: int = 1, options: Sequence[str] = (), wrapper: Sequence[str] = ()
) -> dict[str, object]:
    command = [*wrapper, sys.executable, "-c", PROGRAM]
    options = [*options, f"-EPYTHONPATH={REPO}"]
    with activated(ww, command, sockets=sockets, options=options) as behind, behind.connect():
        _, out, err = behind.finish()
    assert out, err
    result: dict[str, object] = json.loads(out)
    return result


@pytest.mark.parametrize(
    ("sockets", "options", "aliases"),
    [
        (1, [], {}),  # systemd-socket-activate calls it unknown
        (1, ["--fdname=web"], {"web": "listen0"}),
        (2, ["--fdname=web:db"], {"web": "listen0", "db": "listen1"}),
        (2, ["--fdname=web:web"], {"web0": "listen0", "web1": "listen1"}),
    ],
)
def test_the_module_understands_what_systemd_passes(
    ww: Ww, sockets: int, options: list[str], aliases: dict[str, str]
) -> None:
    assert seen_by_the_module(ww, sockets=sockets, options=options) == {
        "fds": [[f"listen{index}", 3 + index] for index in range(sockets)],
        "aliases": aliases,
        "left": [],
    }


@pytest.mark.parametrize("wrapper", [["env"], ["sh", "-c", 'exec "$@"', "sh"]])
def test_a_program_that_execs_may_stand_between(ww: Ww, wrapper: list[str]) -> None:
    assert seen_by_the_module(ww, wrapper=wrapper)["fds"] == [["listen0", 3]]


def test_a_shell_that_stays_between_is_named_with_both_process_ids(ww: Ww) -> None:
    result = seen_by_the_module(ww, wrapper=["sh", "-c", '"$@"; true', "sh"])
    assert result["code"] == 65
    assert "start ww with exec" in str(result["error"])
    assert result["left"] == []


# The whole way


def test_a_cell_serves_clients_by_socket_activation(ww_account: Ww, c_cell: BuildFunction) -> None:
    cell = ww_account.file("serve.wasm", c_cell("serve"))
    command: list[str | Path] = [*ww_account.command, "run", "--use-systemd-fds", cell, "2"]
    with activated(ww_account, command, options=["--fdname=web"]) as behind:
        assert behind.talk(b"one") == b"WW_FD_LISTEN0=10\none"
        assert behind.talk(b"two" * 9999) == b"WW_FD_LISTEN0=10\n" + b"two" * 9999
        code, out, _ = behind.finish()
    assert (code, out) == (0, "")


def test_a_target_can_be_given_by_the_name_of_the_socket_unit(
    ww: Ww, c_cell: BuildFunction
) -> None:
    cell = ww.file("serve.wasm", c_cell("serve"))
    command: list[str | Path] = [
        *(*ww.command, "run", "--fd-map", "db=21", "--use-systemd-fds=web"),
        *("--fd-map", "web0=20", "--fd-verbose", cell, "2"),
    ]
    with activated(ww, command, sockets=2, options=["--fdname=http:db"]) as behind:
        assert behind.talk(b"a", 0) == b"WW_FD_WEB0=20\na"
        assert behind.talk(b"b", 1) == b"WW_FD_WEB1=21\nb"
        code, _, err = behind.finish()
    assert code == 0
    assert err.splitlines()[-2:] == [
        "grant fd name=web0 num=20 type=socket mode=rw move=false cloexec=true",
        "grant fd name=web1 num=21 type=socket mode=rw move=false cloexec=true",
    ]


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({}, "LISTEN_PID is not set"),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "for process 1 (LISTEN_PID)"),
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, "no process id"),
    ],
)
def test_without_activation_the_run_is_refused(
    ww: Ww, c_cell: BuildFunction, environment: dict[str, str], what: str
) -> None:
    done = ww.run("run", "--use-systemd-fds", c_cell("serve"), "1", env=environment)
    assert done.returncode == 65
    assert done.stderr.startswith(b"ww: error: --use-systemd-fds: ")
    assert what in done.stderr.decode()

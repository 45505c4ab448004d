"""The units of examples/systemd under a running systemd, and the same as a user's own."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import CAN_BE_ROOT, BuildFunction, Ww
from tests.features import needs
from tests.vm.guest.units import ACCOUNT, PROGRAM, Units, processes_of, state, systemctl

PATIENCE = 300
"""Seconds for an answer; only one that hangs reaches them."""

CELL = Path("/usr/local/lib/ww/serve.wasm")
SERVICE, SOCKET = "ww-echo.service", "ww-echo.socket"
ADDRESS = ("127.0.0.1", 7007)

for_root = needs("root", CAN_BE_ROOT, "installs units of the system")
for_users = pytest.mark.skipif(CAN_BE_ROOT, reason="of the manager of an ordinary user")


def talk(text: bytes, address: tuple[str, int] = ADDRESS) -> bytes:
    """Be one client: send, and read to the end."""
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return stream.read()


@contextmanager
def listening(c_cell: BuildFunction, changes: str = "") -> Iterator[None]:
    """What the README of the units does, up to the socket that listens."""
    with Units("systemd", {SERVICE: changes} if changes else {}):
        CELL.parent.mkdir(exist_ok=True)
        shutil.copy(c_cell("serve"), CELL)
        CELL.chmod(0o644)
        systemctl("start", SOCKET)
        yield


@for_root
def test_a_client_starts_the_service_and_is_served(c_cell: BuildFunction) -> None:
    with listening(c_cell):
        assert state(SERVICE, "ActiveState") == "inactive"
        assert talk(b"hello\n") == b"WW_FD_LISTEN0=10\nhello\n"
        assert state(SERVICE, "ActiveState") == "active"
        main = int(state(SERVICE, "MainPID"))
        assert talk(b"again\n") == b"WW_FD_LISTEN0=10\nagain\n"
        assert int(state(SERVICE, "MainPID")) == main
        assert os.stat(f"/proc/{main}").st_uid != 0


@for_root
def test_a_service_that_was_stopped_leaves_nothing_and_is_started_again(
    c_cell: BuildFunction,
) -> None:
    with listening(c_cell):
        talk(b"one")
        assert processes_of(ACCOUNT)
        systemctl("stop", SERVICE)
        assert processes_of(ACCOUNT) == set()
        # 143: ww was told to end.
        assert state(SERVICE, "ExecMainStatus") in ("143", "15")
        assert state(SOCKET, "ActiveState") == "active"
        assert talk(b"two") == b"WW_FD_LISTEN0=10\ntwo"


@for_root
def test_the_next_client_after_the_last_starts_it_again(c_cell: BuildFunction) -> None:
    shorter = (
        f"[Service]\nExecStart=\nExecStart={PROGRAM} run --use-systemd-fds"
        f" --fd-map echo=10 {CELL} 2\n"
    )
    with listening(c_cell, shorter):
        for number in range(5):
            text = str(number).encode()
            assert talk(text) == b"WW_FD_LISTEN0=10\n" + text


@for_root
def test_with_a_delegated_group_the_services_cell_has_one_of_its_own(
    c_cell: BuildFunction,
) -> None:
    changes = (
        "[Service]\nDelegate=yes\nProtectControlGroups=no\nExecStart=\n"
        f"ExecStart={PROGRAM} run --use-systemd-fds --fd-map echo=10 --require cgroup"
        f" --timeout none {CELL} 100\n"
    )
    with listening(c_cell, changes):
        assert talk(b"x") == b"WW_FD_LISTEN0=10\nx"
        group = Path("/sys/fs/cgroup" + state(SERVICE, "ControlGroup"))
        names = sorted(entry.name for entry in group.iterdir() if entry.is_dir())
        assert len(names) == 2, names
        assert names[1] == "ww-leader"
        assert names[0].startswith("ww-")
        assert (group / names[0] / "cgroup.procs").read_text()
        systemctl("stop", SERVICE)
        assert not group.exists()


@for_users
def test_a_users_own_socket_starts_ww(ww: Ww, c_cell: BuildFunction) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    cell = ww.file("serve.wasm", c_cell("serve"))
    unit = f"ww-test-{os.getpid()}"
    bus = {key: os.environ[key] for key in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")}
    settings = [f"--setenv={key}={value}" for key, value in ww.environment().items()]
    done = ww.call(
        [
            *("systemd-run", "--quiet", "--user", f"--unit={unit}", *settings),
            f"--socket-property=ListenStream=127.0.0.1:{address[1]}",
            "--socket-property=FileDescriptorName=echo",
            *ww.command,
            *("run", "--use-systemd-fds", "--fd-map", "echo=10", str(cell), "100"),
        ],
        env=bus,
    )
    assert done.returncode == 0, done.stderr
    try:
        assert talk(b"hello", address) == b"WW_FD_LISTEN0=10\nhello"
    finally:
        ww.call(["systemctl", "--user", "stop", f"{unit}.socket", f"{unit}.service"], env=bus)

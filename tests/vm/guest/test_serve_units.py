"""The units of examples/serve under a running systemd: a server that keeps jails ready."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLES, Ww
from tests.vm.guest.units import Units, state, systemctl

HELLO = EXAMPLES / "hello" / "hello.wasm"
FOLDER = "serve"


@contextmanager
def listening() -> Iterator[tuple[str, str, str]]:
    """The socket's unit is started: the names of both units, and the path of the socket."""
    with Units(FOLDER) as units:
        (listener,) = (name for name in units.names if name.endswith(".socket"))
        service = listener.removesuffix(".socket") + ".service"
        assert service in units.names
        systemctl("start", listener)
        path, kind = state(listener, "Listen").rsplit(" ", 1)
        assert kind == "(Stream)"
        yield listener, service, path


def told(ww: Ww, path: str, *flags: str) -> tuple[int, list[dict[str, Any]], bytes]:
    """Run a cell with the server at a path: the exit code, the events, and stderr."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as events, os.fdopen(writer, "wb") as status:
        done = ww.run(
            *("run", "--status-fd", "3", *flags, str(HELLO)),
            fds={3: status},
            env={"WW_SOCKET": path},
            timeout=300,
        )
        status.close()
        return done.returncode, [json.loads(line) for line in events], done.stderr


def started(ww: Ww, path: str) -> None:
    """Have the socket start a server, and see that it serves.

    A slow machine may take longer to start it than ww waits; ww then says so, and runs without it.
    """
    for _ in range(5):
        code, events, errors = told(ww, path)
        assert code == 0, errors
        if {"event": "server", "socket": path} in events:
            return
        assert b"timed out" in errors
    pytest.fail("no run was served")


def test_the_first_run_starts_the_server_and_is_served(ww: Ww) -> None:
    with listening() as (_, service, path):
        assert state(service, "ActiveState") == "inactive"
        started(ww, path)
        code, events, errors = told(ww, path)
        assert (code, errors) == (0, b"")
        assert {"event": "server", "socket": path} in events
        assert state(service, "ActiveState") == "active"
        assert state(service, "NRestarts") == "0"


def test_a_stopped_server_leaves_nothing_and_its_socket_starts_another(ww: Ww) -> None:
    with listening() as (listener, service, path):
        started(ww, path)
        group = Path("/sys/fs/cgroup" + state(service, "ControlGroup"))
        systemctl("stop", service)
        assert state(service, "Result") == "success"
        assert not group.exists()
        assert state(listener, "ActiveState") == "active"
        started(ww, path)


def test_the_cells_of_a_server_have_control_groups_of_what_its_unit_delegates(ww: Ww) -> None:
    with listening() as (_, service, path):
        started(ww, path)
        assert state(service, "Delegate") == "yes"
        code, events, errors = told(ww, path, "--require", "cgroup")
        assert (code, errors) == (0, b"")
        assert {"event": "server", "socket": path} in events

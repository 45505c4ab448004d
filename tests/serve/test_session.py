"""A server in somebody's session divides no control group that others of that session are in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.unit.sandbox.test_delegation import Base, base

# The fixture of another module, which pytest finds here.
__all__ = ["base"]

# Does what a server does that was started from a shell; tests/unit/sandbox/test_delegation.py has
# a spawner, in a session of its own.
SERVER = """
import os, sys
from sandbox import delegation, hierarchies
delegation.share_session()
sys.stdin.readline()
try:
    print(delegation.make_room(hierarchies.stand(()).unified, sys.argv[1:]).path, flush=True)
except delegation.Unusable as error:
    print(f"Unusable: {error}", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def server(base: Base) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *base.needs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(REPO)},
    ) as process:
        yield process
        process.kill()


def room(server: subprocess.Popen[bytes], base: Base) -> str:
    assert server.stdin is not None
    assert server.stdout is not None
    (Path(base.path) / "cgroup.procs").write_text(str(server.pid))
    server.stdin.write(b"go\n")
    server.stdin.flush()
    return server.stdout.readline().decode().strip()


def test_where_it_is_alone_it_makes_room(base: Base, server: subprocess.Popen[bytes]) -> None:
    assert os.getsid(server.pid) != server.pid
    assert room(server, base) == str(base.path)
    assert base.members(base.leader) == {server.pid}
    server.kill()
    server.wait()


def test_who_shares_its_session_is_not_moved(base: Base, server: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            assert os.getsid(other.pid) == os.getsid(server.pid)
            (base.path / "cgroup.procs").write_text(str(other.pid))
            assert room(server, base).startswith("Unusable: ")
            assert base.members() == {other.pid, server.pid}
            assert base.is_untouched()
        finally:
            other.kill()
            server.kill()
            server.wait()

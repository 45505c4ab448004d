"""A client names the digest that its cell's compiled form is kept under: it can name no other's."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from sandbox.client import connect
from sandbox.errors import SpawnerError
from sandbox.outcome import Outcome
from sandbox.plan import Plan
from tests.conftest import EXAMPLES, Leftovers, Ww
from tests.serve.serving import Server, serving, wat

LeftoversFixture = Callable[..., Leftovers]

HONEST = (EXAMPLES / "hello" / "hello.wasm").read_bytes()
EVIL = wat("(call $write (i32.const 1) (i32.const 8))")
COMPONENT = bytes(wat2wasm("(component)"))


@contextmanager
def memory(code: bytes) -> Iterator[int]:
    fd = os.memfd_create("cell")
    try:
        os.write(fd, code)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def ask(server: Server, code: bytes, digest: str, *, compiles: bool, component: bool) -> Outcome:
    """What becomes of some bytes under a digest."""
    id_ = os.geteuid() or 65534
    connection = connect(str(server.path))
    try:
        with memory(code) as cell, open(os.devnull, "r+b") as null:
            plan = Plan((), ("x",), (), id_, os.getegid() or 65534, digest, component=component)
            if compiles:
                return connection.compile(plan, cell)[0]
            return connection.run(plan, cell, [null.fileno()] * len(plan.grants))
    finally:
        connection.close()


def kept(ww: Ww) -> dict[Path, bytes]:
    """All compiled forms, the host's own modules among them, wherever they are."""
    return {path: path.read_bytes() for path in ww.root.rglob("*.cwasm")}


@pytest.mark.parametrize("compiles", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("code", [EVIL, COMPONENT], ids=["module", "component"])
def test_no_bytes_are_kept_or_run_under_the_digest_of_others(
    ww: Ww, leftovers: LeftoversFixture, code: bytes, known: bool, compiles: bool
) -> None:
    cell = ww.file("honest.wasm", HONEST)
    digest = hashlib.sha256(HONEST).hexdigest()
    with leftovers(ww), serving(ww, "--jails", "0") as server:
        if known:
            assert ww.run("run", cell).stdout.startswith(b"Hello from a cell.")
        before = kept(ww)
        # First as what it is not, which the form that is there does not load as.
        for component in (code is not COMPONENT, code is COMPONENT):
            outcome = ask(server, code, digest, compiles=compiles, component=component)
            # With a form that is there, the honest cell may have run.
            assert outcome.kind == "fault" or (known and outcome.kind == "exit"), outcome
        assert kept(ww) == before
        for _ in range(2):
            done = ww.run("run", cell)
            assert done.stdout.startswith(b"Hello from a cell."), done.stderr


@pytest.mark.parametrize(
    "digest", ["../escaped", "switch-97d91349", "", "a" * 63, "A" * 64, "a" * 63 + "/"]
)
def test_what_is_no_digest_is_no_request(ww: Ww, leftovers: LeftoversFixture, digest: str) -> None:
    cell = ww.file("honest.wasm", HONEST)
    with leftovers(ww), serving(ww, "--jails", "0") as server:
        before = kept(ww)
        for compiles in (True, False):
            try:
                outcome = ask(server, EVIL, digest, compiles=compiles, component=False)
            except SpawnerError:
                continue
            assert (outcome.kind, outcome.step) == ("jail", "spawner")
        assert kept(ww) == before
        assert ww.run("run", cell).returncode == 0

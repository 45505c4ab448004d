"""Nothing of one cell can be seen by the next, nor found where the next one comes from."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CAN_BE_ROOT, BuildFunction, Ww
from tests.features import needs
from tests.probes.variant import BARE, NATIVE
from tests.serve.serving import ONCE, Notes, serving, waiting

# A secret reads like a name: it can be a variable's, a grant's, a path's.
_LONGEST = 64 << 20
needs_root = needs("root", CAN_BE_ROOT, "only root reads the memory of another's process")


@pytest.fixture
def secret() -> str:
    return f"s{uuid.uuid4().hex}"


def readable(pid: int) -> Iterator[bytes]:
    """The memory of a process, part by part, but for what reserves address space only."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if rights[0] != "r" or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            for at in range(start, end, _LONGEST):
                memory.seek(at)
                with suppress(OSError):  # beyond the end of a file that is mapped
                    yield memory.read(min(_LONGEST, end - at))


def holds(pid: int, text: str) -> bool:
    """Whether a process has it in its memory."""
    return any(text.encode() in part for part in readable(pid))


def private_grants(ww: Ww, secret: str) -> tuple[list[str], dict[int, Any]]:
    """Flags and descriptors that have the secret in all that a plan can hold."""
    place = ww.tmp / f"dir-{secret}"
    place.mkdir(exist_ok=True)
    os.chown(place, ww.account.uid, ww.account.gid)
    flags = [
        *("--env", f"SECRET={secret}", "--env", f"{secret}=x", "--scratch", "1M"),
        *("--fd", f"{secret}=3,pathlink=true,target=77"),
    ]
    if ww.account.uid == 0:
        # An ordinary user's cell with a directory has no jail that was ready.
        flags += ["--dir", f"{place}:/d{secret}"]
    return flags, {3: ww.file(f"file-{secret}", secret.encode())}


@needs_root
def test_a_secret_of_one_cell_is_neither_in_a_jail_that_waits_nor_where_jails_come_from(
    ww_account: Ww, secret: str
) -> None:
    # What compiles a cell has a jail of another kind.
    assert ww_account.run("run", ww_account.file("once.wasm", ONCE)).returncode == 0
    notes = Notes(ww_account)
    with serving(ww_account, "--jails", "2", command=notes.command()) as server:
        before = notes.ready(2)
        flags, _ = private_grants(ww_account, secret)
        at = flags.index("--fd")
        del flags[at : at + 2]  # its number is the log's
        with waiting(ww_account, *flags) as run:
            (cell,) = server.cells()
            assert cell in before
            # What looks for it would find it: it is where it belongs.
            assert holds(cell, secret)
            for pid in (server.zygote(), *notes.ready(2, without=[cell])):
                assert not holds(pid, secret)
            run.let_go()
            assert run.ended() == (0, "")
        with waiting(ww_account, name="next"):
            (cell,) = server.cells()
            assert not holds(cell, secret)
            assert not holds(server.zygote(), secret)
        assert server.end() == (0, "")


def test_native_code_in_the_next_jail_finds_its_own_grants_only(
    ww_account: Ww, native_probe: BuildFunction, secret: str
) -> None:
    probe = native_probe("probe")
    notes = Notes(ww_account)
    with serving(ww_account, "--jails", "2", command=notes.command(NATIVE + BARE)) as server:
        before = notes.ready(2)
        flags, fds = private_grants(ww_account, secret)
        first = ww_account.run("run", *flags, probe, "report", fds=fds)
        assert secret in first.stdout.decode()
        again = ww_account.run("run", probe, "report")
        assert again.stdout.startswith(b"{")
        assert secret not in (again.stdout + again.stderr).decode()
        _, _, told = again.stdout.partition(b"\n")
        assert {*json.loads(told)["fds"]} == {"0", "1", "2"}
        # They were of those that waited, and each served once.
        notes.ready(2, without=before)
        assert server.end() == (0, "")


def test_no_file_of_the_last_cell_is_in_the_next_ones_scratch(
    ww_account: Ww, c_cell: BuildFunction, secret: str
) -> None:
    libc = c_cell("libc")
    with serving(ww_account, "--jails", "1") as server:
        for _ in range(2):
            done = ww_account.run(
                *("run", "--scratch", "64K", libc),
                *("opendir /tmp", f"fputs /tmp/{secret} w {secret}", f"fread /tmp/{secret}"),
            )
            assert done.returncode == 0
            first, *rest = done.stdout.decode().splitlines()
            assert first == "opendir 0 . .."
            assert rest[-1] == f"fread 0 {secret}"
        assert server.end() == (0, "")

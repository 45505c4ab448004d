"""The store when processes work on it at once, and when one of them is killed at any point."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.content import pins
from runner.content.blockstore import Blockstore
from runner.content.cid import Cid
from runner.content.gc import collect
from runner.content.importer import import_path
from runner.content.resolver import resolve_file
from tests.conftest import EXAMPLES, BuildFunction, Ww
from tests.content.dags import block_files

ROOT = Path(__file__).parents[2]
HELLO = EXAMPLES / "hello" / "hello.wasm"
CAT = EXAMPLES / "cat-fds" / "cat-fds.wasm"


def check_whole(home: Path) -> None:
    """Every file under a block's name has the bytes that the name stands for."""
    import base64
    import hashlib

    for path in block_files(home):
        name = os.path.basename(path).removesuffix(".data")
        digest = hashlib.sha256(Path(path).read_bytes()).digest()
        assert base64.b32decode(name + "=" * (-len(name) % 8)) == b"\x12\x20" + digest


def content(home: Path, cid: Cid | str) -> bytes:
    with Blockstore(str(home)) as store:
        return b"".join(resolve_file(store, f"/ipfs/{cid}").chunks())


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- killed in the middle ------------------------------------------------------------------------

# Kills itself at a call of a function of `os`, in the middle of what that does.
EXPORT_AND_DIE = """
import os, signal, sys
from runner.content import pins
from runner.content.blockstore import Blockstore
from runner.content.importer import import_path

home, source, function, when, count = *sys.argv[1:5], int(sys.argv[5])
real = getattr(os, function)

def deadly(*arguments, **options):
    global count
    if count == 1 and when == "half":
        real(arguments[0], arguments[1][:len(arguments[1]) // 2])
    if count == 1 and when != "after":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    count -= 1  # of calls that did something
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

with Blockstore(home) as store:
    setattr(os, function, deadly)
    cid = import_path(store, source)
    pins.add(home, cid, "source")
print(cid)
"""


@pytest.mark.parametrize(
    ("function", "when", "count"),
    [
        ("mkdir", "after", 1),  # the store is begun
        ("mkdir", "after", 2),
        ("mkdir", "after", 3),
        ("write", "half", 1),  # its layout is written
        ("rename", "before", 1),
        ("write", "half", 2),  # blocks are
        ("write", "after", 3),
        ("rename", "before", 3),
        ("rename", "after", 3),
        ("write", "half", 5),  # the root
        ("rename", "after", 6),
        ("fsync", "before", 6),
        ("fsync", "before", 15),  # the pin is written, and has no name yet
        ("fsync", "after", 16),
    ],
)
def test_a_writer_killed_at_a_point_leaves_a_whole_store(
    tmp_path: Path, function: str, when: str, count: int
) -> None:
    home = tmp_path / "store"
    source = tmp_path / "source"
    source.write_bytes(random.Random(2015).randbytes(700_000))  # three leaves and a root
    process = python(EXPORT_AND_DIE, home, source, function, when, count)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    check_whole(home)
    with Blockstore(str(home)) as store:
        cid = import_path(store, str(source))
        pins.add(str(home), cid)
    assert content(home, cid) == source.read_bytes()
    assert os.listdir(home / "blocks" / ".temp") == []
    check_whole(home)
    assert collect(str(home)).kept == 4


COLLECT_AND_DIE = """
import os, signal, sys
from runner.content.gc import collect

def deadly(path, real=os.unlink, left=[3]):
    real(path)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

os.unlink = deadly
collect(sys.argv[1])
"""


def test_a_collection_killed_in_the_middle_leaves_what_is_pinned_and_no_lock(
    tmp_path: Path,
) -> None:
    home = tmp_path / "store"
    for name in ("pinned", "other"):
        (tmp_path / name).write_bytes(os.urandom(1_200_000))
    with Blockstore(str(home)) as store:
        other = import_path(store, str(tmp_path / "other"))
        pinned = import_path(store, str(tmp_path / "pinned"))
        pins.add(str(home), pinned)
    before = len(block_files(home))
    process = python(COLLECT_AND_DIE, home)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(block_files(home)) == before - 3
    check_whole(home)
    assert content(home, pinned) == (tmp_path / "pinned").read_bytes()
    collect(str(home))
    with Blockstore(str(home)) as store:
        assert import_path(store, str(tmp_path / "other")) == other
    assert content(home, other) == (tmp_path / "other").read_bytes()


EXTRACT_AND_DIE = """
import os, signal, sys
from runner.content.blockstore import Blockstore
from runner.content.extract import Options, extract
from runner.content.resolver import parse_path

def deadly(file, data, real=os.write):
    real(file, data[:len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

os.write = deadly
extract(Blockstore(sys.argv[1]), parse_path(sys.argv[2]), sys.argv[3], Options())
"""


def test_an_import_killed_in_the_middle_leaves_no_half_of_its_target(tmp_path: Path) -> None:
    home = tmp_path / "store"
    source = tmp_path / "source"
    source.write_bytes(os.urandom(700_000))
    with Blockstore(str(home)) as store:
        cid = import_path(store, str(source))
    out = tmp_path / "out"
    out.mkdir()
    process = python(EXTRACT_AND_DIE, home, f"/ipfs/{cid}", out / "target")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = os.listdir(out)
    assert left.startswith(".ww-import-")


# --- at once -------------------------------------------------------------------------------------


def test_exports_and_runs_of_the_same_and_of_different_cids_at_once(ww: Ww) -> None:
    cells = [ww.export(HELLO)]
    changed = bytearray(HELLO.read_bytes())
    # A custom section of a name and no content: another CID, the same program.
    changed += b"\x00\x05\x04name"
    cells.append(ww.export(ww.file("other.wasm", bytes(changed))))
    assert cells[0] != cells[1]
    files = [ww.file(f"file{number}", os.urandom(900_000)) for number in range(2)]
    started = []
    for _ in range(2):
        started += [ww.popen("run", cell) for cell in cells]
        started += [ww.popen("export", file) for file in files]
        started += [ww.popen("export", HELLO)]
    outputs = []
    for process in started:
        with process:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            outputs.append(out)
    half = len(outputs) // 2
    assert outputs[:half] == outputs[half:]
    assert outputs[0] == outputs[1]
    assert outputs[4].decode().strip() == cells[0]
    check_whole(ww.home)
    for file, out in zip(files, outputs[2:4], strict=True):
        assert content(ww.home, out.decode().strip().removeprefix("/ipfs/")) == file.read_bytes()


EXPORT_MANY = """
import sys
from runner.content import pins
from runner.content.blockstore import Blockstore
from runner.content.importer import import_path
from runner.content.resolver import resolve_file

home, *sources = sys.argv[1:]
for source in sources:
    # What is not pinned is there as long as the store is not closed.
    with Blockstore(home) as store:
        cid = import_path(store, source, cid_version=1)
        data = b"".join(resolve_file(store, f"/ipfs/{cid}").chunks())
        assert data == open(source, "rb").read()
    with Blockstore(home) as store:
        cid = import_path(store, source)
        pins.add(home, cid)
    print(cid, flush=True)
"""

COLLECT_MANY = """
import select, sys
from runner.content.gc import collect

removed = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    removed += len(collect(sys.argv[1], wait=60).removed)
print(removed)
"""


def test_a_collection_during_exports_loses_nothing_of_them(tmp_path: Path) -> None:
    home = tmp_path / "store"
    common = os.urandom(300_000)  # blocks that one export finds where another has put them
    sources = []
    for number in range(6):
        source = tmp_path / f"source{number}"
        source.write_bytes(common + os.urandom(300_000))
        sources.append(source)
    collector = python(COLLECT_MANY, home)
    exporters = [python(EXPORT_MANY, home, *order) for order in (sources, sources[::-1])]
    outputs = [exporter.communicate(timeout=120)[0].split() for exporter in exporters]
    assert [exporter.returncode for exporter in exporters] == [0, 0]
    # What it has removed by now counts; the rest of the unpinned blocks goes here.
    removed = int(collector.communicate("", timeout=120)[0])
    assert collector.returncode == 0
    removed += len(collect(str(home)).removed)
    assert removed >= 6 * 2
    assert outputs[0] == outputs[1][::-1]
    for source, cid in zip(sources, outputs[0], strict=True):
        assert content(home, cid) == source.read_bytes()
    check_whole(home)


def test_a_run_holds_the_store_no_longer_than_it_reads_its_cell(ww: Ww) -> None:
    cell = ww.export(CAT, "--no-pin")
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        flags = ("--fd", "input=3,mode=r", "--fd", "output=4,mode=w")
        output = ww.file("output")
        with output.open("wb") as target:
            process = ww.popen("run", *flags, cell, fds={3: source, 4: target})
        with process:
            assert process.stderr is not None
            assert process.stderr.readline() == b"input=10 output=11\n"  # it runs, and waits
            done = ww.run("store", "gc", "--wait", "0")
            assert done.returncode == 0, done.stderr
            assert block_files(ww.home) == []
            sink.write(b"still here")
            sink.close()
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert output.read_bytes() == b"still here"


def test_a_run_that_serves_content_holds_the_store(ww: Ww, c_cell: BuildFunction) -> None:
    address = ww.export(ww.file("data", b"data"))
    with ww.popen("run", "--with-ipfs", c_cell("content"), "spin", address) as process:
        deadline = time.monotonic() + 60
        while True:
            done = ww.run("store", "gc", "--wait", "0")
            if done.returncode:
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert b"the store is in use by process" in done.stderr
    assert b"--with-ipfs" in done.stderr
    assert done.returncode == 1
    assert ww.run("store", "gc", "--wait", "60").returncode == 0

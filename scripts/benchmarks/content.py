"""The rows of content: verifying it, building it, and fetching it."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from runner.cells import open_cell
from runner.content.cid import Cid
from runner.content.matching import find_match
from scripts.benchmarks import processes
from scripts.benchmarks.contest import Comparison, Row, Target
from scripts.benchmarks.setting import Setting

_STORE = "blockstore to sealed memory"
_CAR = "CAR file to sealed memory"
_BYTES = "hashlib, bytes in memory"
_FILE = "hashlib, from the file"
_DELAY = 0.06  # seconds until a gateway's answer begins
_FAR_BYTES = 45_600_000


@contextmanager
def verify(setting: Setting) -> Iterator[Row]:
    """Verify and assemble a large cell from the blockstore, and from a CAR file."""
    mib = setting.choose(4, 100, 100)
    path, data = _made(setting, mib << 20)
    address = setting.ours.export(path)
    car = _car(setting, address)
    yield Row(
        "verify",
        f"a cell of {mib} MiB, verified and put together from its blocks",
        "s",
        {
            _STORE: _timed(lambda: _read(address, len(data), setting.ours.environment)),
            _CAR: _timed(lambda: _read(str(car), len(data), setting.ours.environment)),
            **_hashes(path, data),
        },
        [
            Comparison(_STORE, _BYTES, Target(1.5)),
            Comparison(_STORE, _FILE),
            Comparison(_CAR, _BYTES, Target(1.67)),
        ],
        setting.choose(1, 9, 25),
    )
    path.unlink()
    car.unlink()


@contextmanager
def build(setting: Setting) -> Iterator[Row]:
    """Cut a file into blocks and compute its CID, without keeping any of them."""
    mib = setting.choose(4, 100, 100)
    path, data = _made(setting, mib << 20)
    cids = {
        f"CIDv{version}": Cid.parse(
            setting.ours.export(path, "--cid-version", version).removeprefix("/ipfs/")
        )
        for version in ("0", "1")
    }

    def built(cid: Cid) -> Callable[[], float]:
        return _timed(lambda: find_match(cid, str(path)))

    yield Row(
        "build",
        f"the CID of a file of {mib} MiB, as ww verify computes it",
        "s",
        {**{name: built(cid) for name, cid in cids.items()}, **_hashes(path, data)},
        [
            Comparison("CIDv0", _BYTES, Target(2)),
            Comparison("CIDv1", _BYTES, Target(1.25)),
            Comparison("CIDv0", _FILE),
        ],
        setting.choose(1, 9, 25),
    )
    path.unlink()


@contextmanager
def far(setting: Setting) -> Iterator[Row]:
    """Fetch a large cell from a gateway that takes its time to answer."""
    size = setting.choose(1 << 20, _FAR_BYTES, _FAR_BYTES)
    path, _ = _made(setting, size)
    address = setting.ours.export(path, "--profile", "unixfs-v1-2025")
    car = _car(setting, address)
    homes = (setting.work / f"far-{number}" for number in itertools.count())
    opener = build_opener(ProxyHandler({}))
    expected = hashlib.sha256(car.read_bytes()).digest()
    command = [sys.executable, "-m", "scripts.benchmarks.far", str(car), str(_DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None  # noqa: S101 - it is a pipe
            url = f"http://127.0.0.1:{int(gateway.stdout.readline())}"

            def ours() -> float:
                home = next(homes)
                environment = {**setting.ours.environment, "WW_HOME": str(home)}
                taken = _timed(lambda: _read(address, size, {**environment, "WW_GATEWAYS": url}))()
                shutil.rmtree(home)
                return taken

            def peer() -> None:
                with opener.open(url) as answer:
                    if hashlib.sha256(answer.read()).digest() != expected:
                        raise RuntimeError("the hash is another one")

            yield Row(
                "far",
                f"a cell of {size / 1e6:.1f} MB, from a gateway that answers after {_DELAY:g} s",
                "s",
                {"fetched, stored and verified": ours, "urllib and hashlib": _timed(peer)},
                [Comparison("fetched, stored and verified", "urllib and hashlib")],
                setting.choose(1, 9, 25),
            )
        finally:
            gateway.kill()
    path.unlink()
    car.unlink()


def _made(setting: Setting, size: int) -> tuple[Path, bytes]:
    """Return a file of so many random bytes, and these."""
    data = os.urandom(size)
    path = setting.work / "content"
    path.write_bytes(data)
    return path, data


def _car(setting: Setting, address: str) -> Path:
    """Return a CAR file of what is at an address."""
    path = setting.work / "content.car"
    command = setting.ours.command("car", "export", address, "-o", str(path))
    processes.run(command, setting.ours.environment)
    return path


def _read(address: str, size: int, environment: Mapping[str, str]) -> None:
    """Open a cell, and close it."""
    cell = open_cell(address, environment)
    try:
        if os.fstat(cell).st_size != size:
            raise RuntimeError("the cell has another size")
    finally:
        os.close(cell)


def _hashes(path: Path, data: bytes) -> dict[str, Callable[[], float]]:
    """Return what only hashes: bytes, and those of a file."""
    expected = hashlib.sha256(data).digest()

    def check(found: bytes) -> None:
        if found != expected:
            raise RuntimeError("the hash is another one")

    def from_file() -> None:
        with path.open("rb") as file:
            check(hashlib.file_digest(file, "sha256").digest())

    return {
        _BYTES: _timed(lambda: check(hashlib.sha256(data).digest())),
        _FILE: _timed(from_file),
    }


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return what does the work and returns the seconds that it took."""

    def measure() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return measure

"""What has to be known of the machine to make sense of a figure."""

import datetime
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.benchmarks.peers import Peers


def describe(repo: Path, peers: Peers) -> dict[str, object]:
    """Return the date, the machine, and the version of all that takes part.

    Args:
        repo: This tree.
        peers: Those that ww is compared with.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "processors": len(os.sched_getaffinity(0)),
        "memory": f"{_memory() >> 20} MiB",
        "account": "root" if os.geteuid() == 0 else "ordinary user",
        "versions": {
            "ww": f"{_version('wetware')} {_revision(repo)}".strip(),
            "python": platform.python_version(),
            "wasmtime (ours)": _version("wasmtime"),
            **peers.versions(),
        },
    }


class Others:
    """How much of the processors everything else on the machine uses, since this was made.

    It is right only while no child of this process runs, or is still to be waited for.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._busy = _busy() - _own()

    def share(self) -> float:
        """Return the share, from 0 to 1; what the kernel does in its own threads is part of it."""
        elapsed = time.monotonic() - self._begun
        used = _busy() - _own() - self._busy
        return max(0.0, used / (elapsed * (os.cpu_count() or 1)))


def _busy() -> float:
    """Return the seconds that all processors have been busy; proc(5)."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _waiting, irq, softirq, steal, *_ = file.readline().split()[1:]
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Return the seconds that this process has used, and those children that have ended."""
    return sum(os.times()[:4])


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "CPU part"):
                return value.strip()
    return "unknown"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision(repo: Path) -> str:
    """Return the commit of a tree, and whether it has been changed since."""
    command = ["git", "-C", str(repo), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()

"""What has to be known of the machine to make sense of a figure."""

import datetime
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.benchmarks.peers import Peers

# Seconds: until the kernel has cleared up after jails, and of looking.
_SETTLE, _LOOK = 0.3, 0.5


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


def others() -> float:
    """Return the share of the processors that are busy while this program does nothing.

    It is looked at for a moment only, and the processors' time is not told apart by who used it:
    much of what a peer uses ends up with the machine's first process.
    """
    time.sleep(_SETTLE)
    begun, busy = time.monotonic(), _busy()
    time.sleep(_LOOK)
    return (_busy() - busy) / ((time.monotonic() - begun) * (os.cpu_count() or 1))


def _busy() -> float:
    """Return the seconds that all processors have been busy; proc(5)."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _waiting, irq, softirq, steal, *_ = file.readline().split()[1:]
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / os.sysconf("SC_CLK_TCK")


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

"""All rows by their names."""

from scripts.benchmarks import content, memory, scaling, startup, work
from scripts.benchmarks.setting import Make

ROWS: dict[str, Make] = {
    "warm": startup.warm,
    "warm-ready": startup.warm_ready,
    "throughput": startup.throughput,
    "run": startup.run,
    "run-served": startup.run_served,
    "first-byte": startup.first_byte,
    "copy-pipe-64k": work.copy("pipe", 1 << 16),
    "copy-pipe-4k": work.copy("pipe", 1 << 12),
    "copy-file-64k": work.copy("file", 1 << 16),
    "copy-file-4k": work.copy("file", 1 << 12),
    "call": work.call,
    "compute": work.compute(whole=False),
    "compute-run": work.compute(whole=True),
    "verify": content.verify,
    "build": content.build,
    "far": content.far,
    "memory": memory.idle,
    "grants": scaling.grants,
    "at-once": scaling.at_once,
    "size": scaling.size,
}


def chosen(names: list[str]) -> list[str]:
    """Return the names of rows that were asked for, in their order; all of them for none.

    Raises:
        KeyError: If there is no row of a name, and none that begins with it and a dash.
    """
    known = list(ROWS)
    found: set[str] = set()
    for name in names:
        matching = {row for row in known if row == name or row.startswith(f"{name}-")}
        if not matching:
            raise KeyError(name)
        found |= matching
    return [row for row in known if not names or row in found]

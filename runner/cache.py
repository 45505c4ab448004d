"""The cache of compiled forms: what is in it, and filling it before a cell is run."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runner.cells import FetchOptions, is_component, open_cell
from runner.digest import sha256_of
from runner.errors import EXIT_FAILURE, EXIT_JAIL, WwError, printable
from runner.output import print_on_stderr, print_on_stdout
from runner.spawners import cache_size, start
from runner.supervise import compiling, exit_code
from runner.units import size_shown
from sandbox import Cache, Entry, Isolation, Limits, Plan, Spawner, SpawnerError, cache_home

# The last second of the year 9999: a file's time may be anything, and people's calendars end.
_END_OF_TIME = 253402300799


def place(environ: Mapping[str, str]) -> str:
    """Return the directory of the cache.

    Raises:
        WwError: If the environment names none.
    """
    directory = cache_home(environ)
    if directory is None:
        raise WwError("cache", "there is no place for it", hint="set WW_HOME or HOME")
    return directory


def listing(environ: Mapping[str, str], *, as_json: bool) -> list[str]:
    """Return the lines that tell what is in the cache.

    Raises:
        WwError: If there is no place for one; with code 2 if its bound is not well formed.
        OSError: As :meth:`sandbox.Cache.entries`.
    """
    directory, bound = place(environ), cache_size(environ)
    entries = Cache(directory).entries()
    total = sum(entry.size for entry in entries)
    if as_json:
        found = [
            {
                "digest": entry.digest,
                "size": entry.size,
                "last_used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_used(entry))),
                "file": entry.name,
            }
            for entry in entries
        ]
        told = {"directory": directory, "bound": bound, "total": total, "entries": found}
        return [json.dumps(told, indent=2)]
    rows = [
        f"{entry.digest}  {size_shown(entry.size):>9}  "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(_used(entry)))}"
        for entry in entries
    ]
    of = ", without a bound" if bound is None else f" of {size_shown(bound)}"
    return [*rows, f"total {size_shown(total)}{of}"]


def _used(entry: Entry) -> float:
    return min(max(entry.used, 0), _END_OF_TIME)


def clear(environ: Mapping[str, str]) -> str:
    """Remove everything from the cache, and return a line that tells what that was.

    Raises:
        WwError: If there is no place for one.
        OSError: As :meth:`sandbox.Cache.clear`.
    """
    entries = Cache(place(environ)).clear()
    return f"removed {len(entries)}, {size_shown(sum(entry.size for entry in entries))}"


class Warming(NamedTuple):
    """How cells are compiled that nobody runs now.

    Attributes:
        uid: The user id on the host that the compiler runs as.
        gid: The group id, likewise.
        limits: What it may use up for each.
        isolation: How it is kept apart.
        fetch: Where content may come from, and whether to tell of what takes its time.
        debug: Whether the spawner may write tracebacks to stderr.
    """

    uid: int
    gid: int
    limits: Limits
    isolation: Isolation
    fetch: FetchOptions
    debug: bool


def warm(addresses: Sequence[str], how: Warming, environ: Mapping[str, str]) -> int:
    """Compile cells into the cache, and tell of each what was done.

    One that fails does not keep the others from it.

    Args:
        addresses: As for :func:`runner.cells.open_cell`.
        how: The limits and so on.
        environ: ww's own environment.

    Returns:
        The exit code of the first that failed, or 0.

    Raises:
        WwError: If none can be compiled here; with code 2 if a variable is not well formed.
        Ended: If a signal asked for that.
    """
    place(environ)
    spawner = start(environ, debug=how.debug)
    code = 0
    try:
        for address in addresses:
            try:
                done = _warm_one(spawner, address, how, environ)
            except WwError as error:
                if error.code == EXIT_JAIL:
                    raise  # it would be the same for all
                print_on_stderr([f"ww: error: {error}"])
                code = code or error.code
            else:
                print_on_stdout([f"{done} {printable(address)}"])
    except SpawnerError as error:
        raise WwError(
            "spawner",
            str(error),
            hint="run 'ww cache warm --debug' to see why",
        ) from error
    finally:
        spawner.close()
    return code


def _warm_one(spawner: Spawner, address: str, how: Warming, environ: Mapping[str, str]) -> str:
    """Compile a cell unless the cache has its form, and return a word for what was done.

    Raises:
        WwError: If it cannot be found or compiled, or its form cannot be kept.
        SpawnerError: If the spawner ended.
    """
    cell = open_cell(address, environ, how.fetch)
    try:
        plan = Plan(
            grants=(),
            argv=(address,),
            env=(),
            uid=how.uid,
            gid=how.gid,
            digest=sha256_of(cell),
            limits=how.limits,
            isolation=how.isolation,
            component=is_component(cell),
        )
        shown = compiling(address, cell, environ, forced=how.fetch.progress == "plain")
        outcome, compiled = spawner.compile(plan, cell, shown)
    finally:
        os.close(cell)
    exit_code(address, outcome)
    if outcome.what:
        raise WwError(
            address, f"it was compiled, but is not kept: {outcome.what}", code=EXIT_FAILURE
        )
    return "compiled" if compiled else "cached"

"""Run Python that nobody has read, by CPython built for WASI, each program in a jail of its own.

    python examples/generated-python/run.py PYTHON_WASM [SCRIPT...]

Without a script, it runs some that a language model might write: useful ones, broken ones, and ones
that try what they should not.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox import Cell, CellExecutor, Limits, Result, SandboxError, grant

TABLE = b"name,amount\nann,3\nbob,4\nann,5\n"

SCRIPTS: Mapping[str, str] = {
    "adds up": (
        "import csv, collections\n"
        "totals = collections.Counter()\n"
        "for row in csv.DictReader(open('/table')):\n"
        "    totals[row['name']] += int(row['amount'])\n"
        "print(dict(totals))\n"
    ),
    "is broken": "print(undefined)\n",
    "never ends": "while True: pass\n",
    "takes memory": "x = bytearray(1 << 30)\n",
    "looks around": "import os; print(os.listdir('/'), sorted(os.environ))\n",
    "reads a file": "print(open('/etc/passwd').read())\n",
    "changes its data": "open('/table', 'w')\n",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80))\n",
}

# Compiling the interpreter takes longer, and more memory, than any of the programs may; once it is
# in the cache, what is left are these.
COMPILING = Limits(wall=600, memory=4 << 30)
RUNNING = Limits(wall=10, memory=256 << 20, output=64 << 10)


def report(name: str, result: Result) -> str:
    """Return two lines on one program: how it ended, and what it wrote."""
    usage = result.usage
    used = f"{usage.cpu:.2f} s, {usage.memory >> 20} MiB" if usage is not None else ""
    said = (result.stdout if result.ok else result.stderr).decode(errors="replace").strip()
    last = said.splitlines()[-1] if said else ""
    return f"{name:<17} {result.describe():<15} {used:<16}\n    {last}"


def run(python: Path, scripts: Mapping[str, str]) -> None:
    """Run every script, with the table as /table and nothing else.

    Raises:
        SandboxError: If nothing can run here.
        OSError: If the interpreter cannot be read.
    """
    offers = [grant("table", TABLE, pathlink=True)]
    with Cell.load(python, "python") as cell, CellExecutor() as executor:
        executor.submit(cell, ["-c", ""], limits=COMPILING).result().check()
        futures = {
            name: executor.submit(cell, ["-c", script], offers, limits=RUNNING)
            for name, script in scripts.items()
        }
        for name, future in futures.items():
            print(report(name, future.result()))


def main(argv: Sequence[str]) -> int:
    """Be the program."""
    if len(argv) < 2:
        print("usage: run.py PYTHON_WASM [SCRIPT...]", file=sys.stderr)
        return 2
    try:
        given = {path: Path(path).read_text() for path in argv[2:]}
        run(Path(argv[1]), given or SCRIPTS)
    except (SandboxError, OSError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

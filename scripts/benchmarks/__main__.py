"""The command line of scripts/bench, which prints the help; it has installed what can be had."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from scripts.benchmarks import machine, report
from scripts.benchmarks.cells import Cells
from scripts.benchmarks.contest import Missing, Result, take_turns
from scripts.benchmarks.ours import Ours
from scripts.benchmarks.peers import Peers
from scripts.benchmarks.report import Report
from scripts.benchmarks.rows import ROWS, chosen
from scripts.benchmarks.setting import Mode, Setting

_REPO = Path(__file__).resolve().parents[2]
_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder in it, see tempfile


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        die(message, 2)


def die(message: str, code: int = 1) -> NoReturn:
    """End with one line of error."""
    print(f"bench: error: {message}", file=sys.stderr)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for, and return 1 if our own side failed somewhere."""
    parser = _Parser(prog="bench", add_help=False, allow_abbrev=False)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--short", dest="mode", action="store_const", const="short")
    modes.add_argument("--full", dest="mode", action="store_const", const="full")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--from", dest="source", metavar="FILE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--no-install", action="store_true")
    parser.add_argument("rows", nargs="*")
    asked = parser.parse_args(arguments)
    try:
        names = chosen(asked.rows)
    except KeyError as error:
        die(f"there is no row {error} (see --list)", 2)
    if asked.list:
        print("\n".join(names))
        return 0
    if asked.source:
        whole = Report.decode(Path(asked.source).read_text(encoding="utf-8"))
        whole.results = [result for result in whole.results if result.row in names]
        for line in _all_lines(whole):
            print(line)
    else:
        whole = measure(names, asked.mode or "usual")
        if asked.json:
            Path(asked.json).write_text(whole.encode(), encoding="utf-8")
    if asked.plot:
        try:
            report.plot(whole, asked.plot)
        except ImportError:
            die("--plot needs matplotlib in the environment that runs this")
    ours = {(r.row, c.ours) for r in whole.results for c in r.comparisons}
    return int(any((r.row, name) in ours for r in whole.results for name in r.failed))


def _all_lines(whole: Report) -> list[str]:
    body = [line for result in whole.results for line in report.lines(result)]
    return [*report.heading(whole.machine), *body, *report.ending(whole)]


def measure(names: Sequence[str], mode: Mode) -> Report:
    """Measure rows, and print each as soon as it is done."""
    # So that what is made for it is removed, however it ends.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    build = Path(os.environ.get("WW_TEST_BUILD", _REPO / "build"))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        # The jails of the peers have other users than this one.
        work.chmod(0o755)
        memory = work
        if os.access(_MEMORY, os.W_OK):
            place = tempfile.TemporaryDirectory(prefix="benchmark-", dir=_MEMORY)
            memory = Path(stack.enter_context(place))
            memory.chmod(0o755)
        peers = Peers(build / "bench" / "peers", work)
        setting = Setting(mode, Ours(work / "home"), peers, Cells(_REPO, work), work, memory)
        whole = Report(machine.describe(_REPO, peers), mode, [])
        _show(report.heading(whole.machine))
        for name in names:
            before = machine.others() if mode != "short" else 0.0
            result = _measure(setting, name)
            result.others = max(before, machine.others()) if mode != "short" else 0.0
            whole.results.append(result)
            _show(report.lines(result))
    _show(report.ending(whole))
    return whole


def _measure(setting: Setting, name: str) -> Result:
    try:
        with ROWS[name](setting) as row:
            return take_turns(row, warm_up=setting.mode != "short")
    except Missing as reason:
        # Of both sides: the cell, say.
        return Result(name, "not measured", "s", absent={"cell": str(reason)})


def _show(text: Iterable[str]) -> None:
    for line in text:
        print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)  # whoever read the result has enough of it

"""One command line from its beginning to its exit code."""

from __future__ import annotations

import os
import sys

from runner.commands.state import DEBUG, HEAD_START, INHERITED
from runner.errors import WwError
from runner.output import print_on_stdout, report
from runner.signals import signal
from runner.spawners import HeadStart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.inherited import Inherited


def run_program(inherited: Inherited) -> int:
    """Run the command line of this process and return its exit code.

    Args:
        inherited: The descriptors that this process was started with.
    """
    head_start = HeadStart()
    state: dict[str, Any] = {INHERITED: inherited, DEBUG: False, HEAD_START: head_start}
    try:
        try:
            return _run(state)
        finally:
            head_start.give_up()
    except WwError as error:
        return report(error, debug=state[DEBUG])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # the reader has seen enough: nothing is to be said
    except OSError as error:
        where = str(error.filename) if error.filename else "system"
        return report(WwError(where, error.strerror or str(error)), debug=state[DEBUG])
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        failure = WwError("internal", what, hint="this is a defect of ww; see it with --debug")
        return report(failure, debug=state[DEBUG])


def _run(state: dict[str, Any]) -> int:
    """Run it: a plain ``ww run`` at once, everything else by way of click."""
    command, *args = sys.argv[1:] or [""]
    if command == "run":
        state[HEAD_START].begin(args, os.environ)
        # Not before: all that follows takes place while the spawner gets ready.
        from runner.commands import plain

        values = plain.read(args, os.environ)
        if values is not None:
            from runner.launch import launch

            state[DEBUG] = values.pop("debug")
            return launch(values, state[INHERITED], state[HEAD_START], debug=state[DEBUG])
    from contextlib import redirect_stdout
    from io import BytesIO, TextIOWrapper

    from runner.cli import run_click

    # Help, versions and completions, which click prints by itself: what fails there would be an
    # error without a place, and is to be one of stdout as with any other result.
    printed = TextIOWrapper(BytesIO(), "utf-8", "backslashreplace")
    try:
        with redirect_stdout(printed):
            return run_click(state)
    finally:
        printed.seek(0)
        if text := printed.read():
            print_on_stdout(text.removesuffix("\n").split("\n"))

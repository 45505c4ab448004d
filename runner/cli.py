"""The command line of ww: its commands, as click reads them."""

import importlib
import signal
from typing import Any

import click

from runner.errors import EXIT_USAGE, WwError
from runner.output import STDERR, report, write_lines

# The module and the name of each command. Only that of the command in use is imported.
_COMMANDS = {
    "cache": ("runner.commands.cache", "cache"),
    "car": ("runner.commands.car", "car"),
    "doctor": ("runner.commands.doctor", "doctor"),
    "export": ("runner.commands.export", "export"),
    "grants": ("runner.commands.grants", "grants"),
    "import": ("runner.commands.import_", "import_"),
    "resolve": ("runner.commands.resolve", "resolve"),
    "run": ("runner.commands.run", "run"),
    "send-fds": ("runner.commands.send_fds", "send_fds"),
    "serve": ("runner.commands.serve", "serve"),
    "store": ("runner.commands.store", "store"),
    "verify": ("runner.commands.verify", "verify"),
}


def run_click(state: dict[str, Any]) -> int:
    """Run the command line of this process and return its exit code.

    Args:
        state: What :mod:`runner.program` keeps for all commands.

    Raises:
        Exception: Whatever the command raises, but for what click has to say.
    """
    try:
        result = ww.main(prog_name="ww", standalone_mode=False, obj=state)
        return int(result or 0)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        write_lines(STDERR, [error.format_message()])
        return EXIT_USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ww"
        what = error.format_message().rstrip(".")
        return report(WwError(command, what, hint=f"see '{command} --help'", code=EXIT_USAGE))
    except click.Abort:
        return 128 + signal.SIGINT


class _Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, or ``None``."""
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wetware", prog_name="ww")
def ww() -> None:
    """Run WebAssembly cells with nothing but the file descriptors you grant.

    \b
    ww export hello.wasm
    ww run /ipfs/CID
    ww run --fd input=3,mode=r --fd output=4,mode=w /ipfs/CID 3<in.txt 4>out.txt
    """

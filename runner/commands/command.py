"""What every command of ww is to click: one whose errors say which command they are of."""

import signal

import click

from runner.commands.state import INHERITED
from runner.errors import EXIT_USAGE, WwError
from runner.output import STDOUT


class Command(click.Command):
    """A command that is named in what is said of its arguments.

    Attributes:
        prints: Whether it has a result that goes to stdout.
    """

    prints = True

    def invoke(self, ctx: click.Context) -> object:
        """Run it.

        Raises:
            click.exceptions.Exit: After SIGINT, and where nobody reads the output any more, with
                the code of that signal. click would end a line that nobody has begun, and exit
                with 1.
            WwError: If all went well but for stdout, which was closed from the beginning.
        """
        try:
            code: object = super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(128 + signal.SIGINT) from None
        except BrokenPipeError:
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from None
        if not code and self.prints and STDOUT in ctx.find_root().obj[INHERITED].nulled:
            raise WwError("stdout", "it is closed", hint="give it a file, or /dev/null")
        return code

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            click.UsageError: With this command's context, which click's parser leaves out where an
                option lacks its value.
            WwError: If an argument is empty, as that of an unset variable is in a shell: what
                comes later could name it in no message. Those that there may be several of are
                the command's to judge.
        """
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        for parameter in self.params:
            if isinstance(parameter, click.Argument) and ctx.params.get(parameter.name) == "":
                name = parameter.human_readable_name.strip("[]")
                raise WwError(name, "it is empty", code=EXIT_USAGE)
        return rest


class Silent(Command):
    """A command that writes nothing on stdout."""

    prints = False


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

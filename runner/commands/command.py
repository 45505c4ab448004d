"""What every command of ww is to click: one whose errors say which command they are of."""

import signal

import click


class Command(click.Command):
    """A command that is named in what is said of its arguments."""

    def invoke(self, ctx: click.Context) -> object:
        """Run it.

        Raises:
            click.exceptions.Exit: After SIGINT, and where nobody reads the output any more, with
                the code of that signal. click would end a line that nobody has begun, and exit
                with 1.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            end = signal.SIGINT
        except BrokenPipeError:
            end = signal.SIGPIPE
        raise click.exceptions.Exit(128 + end)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            click.UsageError: With this command's context, which click's parser leaves out where an
                option lacks its value.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

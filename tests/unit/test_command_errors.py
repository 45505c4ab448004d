"""What is said of a wrong command line names the command that it is of."""

from collections.abc import Iterator

import click
import pytest

from runner.cli import ww


def _leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _leaves(command, (*path, name))
        else:
            yield (*path, name)


def _found(words: tuple[str, ...]) -> click.Command:
    command: click.Command = ww
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


COMMANDS = sorted(_leaves(ww))
LACKING = [
    (*words, parameter.opts[0])
    for words in COMMANDS
    for parameter in _found(words).params
    if isinstance(parameter, click.Option) and not parameter.is_flag
]


@pytest.mark.parametrize(
    "line", [*((*words, "--nonsense") for words in COMMANDS), *LACKING], ids=" ".join
)
def test_the_command_is_named(line: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError) as raised:
        ww.main(list(line), prog_name="ww", standalone_mode=False, obj={})
    assert raised.value.ctx is not None
    assert raised.value.ctx.command_path == " ".join(("ww", *line[:-1]))


def test_there_are_commands_of_commands_and_options_with_values() -> None:
    assert {("run",), ("store", "gc")} <= set(COMMANDS)
    assert {("serve", "--socket"), ("car", "export", "-o")} <= set(LACKING)

"""What ww writes on its own stdout and stderr."""

import os

from runner.errors import WwError

STDOUT, STDERR = 1, 2


def write_lines(fd: int, lines: list[str]) -> None:
    """Write lines at once and unbuffered: what fails, fails here and not at the program's end.

    Raises:
        OSError: As write(2) says.
    """
    write(fd, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))


def write(fd: int, data: bytes) -> None:
    """Write all of it, and wait for room where there is none.

    Raises:
        OSError: As write(2) says.
    """
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            _wait(fd)


def _wait(fd: int) -> None:
    """Wait until there is room. Whoever shares a pipe may have set O_NONBLOCK, as Node.js does."""
    import select

    room = select.poll()
    room.register(fd, select.POLLOUT)
    room.poll()


def print_on_stdout(lines: list[str]) -> None:
    """Write a command's result.

    Raises:
        BrokenPipeError: If nobody reads it any more.
        WwError: If it cannot be written otherwise.
    """
    _print(STDOUT, "stdout", lines)


def print_on_stderr(lines: list[str]) -> None:
    """Write what the user asked to see beside a result.

    Raises:
        BrokenPipeError: If nobody reads it any more.
        WwError: If it cannot be written otherwise.
    """
    _print(STDERR, "stderr", lines)


def report(error: WwError, *, debug: bool = False) -> int:
    """Write an error as one line, with the backtrace of a cell below it, and return its code.

    Args:
        error: The error.
        debug: Whether to write, before that, where in ww it was raised.
    """
    lines = [f"ww: error: {error}", *getattr(error, "__notes__", ())]
    if debug:
        import traceback

        lines.insert(0, traceback.format_exc().rstrip())
    try:
        write_lines(STDERR, lines)
    except OSError:
        return error.code  # stderr is gone: the code has to say it
    return error.code


def _print(fd: int, name: str, lines: list[str]) -> None:
    try:
        write_lines(fd, lines)
    except BrokenPipeError:
        raise  # the reader has seen enough, which is nobody's mistake
    except OSError as error:
        raise WwError(name, f"it cannot be written: {error.strerror}") from error

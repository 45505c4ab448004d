"""The one kind of error that ``ww`` reports to its user, and the exit codes it ends with."""

EXIT_FAILURE = 1  # any failure of ww that has no code of its own
EXIT_USAGE = 2  # flag or table syntax, unknown or double name, double target
EXIT_GRANT = 65  # a grant was refused: EX_DATAERR of sysexits.h
EXIT_LIMIT = 66  # a limit was hit
EXIT_JAIL = 67  # the jail could not be set up as asked, or the cell broke its isolation
EXIT_CANNOT_RUN = 126  # the cell is not something ww can run, as in a shell
EXIT_NOT_FOUND = 127  # the cell was not found, as in a shell
EXIT_TRAP = 134  # the cell trapped: 128 + SIGABRT


class WwError(Exception):
    """A failure with a place, a cause and a remedy, shown as one line on stderr.

    Attributes:
        where: What the error is about: a flag and its position (``--fd #2``), a file with
            line and column, a block's CID.
        what: What is wrong with it.
        hint: What the user can do, or the empty string.
        code: The exit code of ``ww``.
    """

    def __init__(self, where: str, what: str, *, hint: str = "", code: int = EXIT_FAILURE) -> None:
        super().__init__(where, what, hint, code)
        self.where = where
        self.what = what
        self.hint = hint
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes; the default would call the class as nobody may."""
        return _restore, (type(self), self.args), self.__dict__

    def __str__(self) -> str:
        """``WHERE: WHAT (HINT)``, on one line and free of control characters."""
        text = f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")
        return printable(text)


def _restore(kind: type[WwError], args: tuple[object, ...]) -> WwError:
    """Make an error whose attributes come later, as :mod:`pickle` needs it."""
    return kind.__new__(kind, *args)


def printable(text: str) -> str:
    """Escape what is not printable, so that hostile text cannot steer a terminal or forge a line.

    Args:
        text: Any text; it may hold control characters, escape sequences or surrogates.

    Returns:
        The text with each unprintable character written as a Python escape.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

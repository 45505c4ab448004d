"""What runs cells: a spawner of one's own, which is started, or a server, which is found."""

from __future__ import annotations

import os
import sys

from runner.errors import WwError, printable
from runner.output import STDERR, write_lines
from sandbox import CACHE_SIZE, Spawner, SpawnerError, cache_home, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox import Connection

# Where the server is: a path, or OFF for none.
SOCKET = "WW_SOCKET"
OFF = "off"
# Below $XDG_RUNTIME_DIR, or below /run for root.
_SOCKET_NAME = "ww/spawner.sock"

_CACHE_SIZE = "WW_CACHE_SIZE"

# With these nothing is run, or not by a spawner like others.
NOT_USUAL = frozenset(("--debug", "--explain", "--help", "-h", "--no-serve"))


class HeadStart:
    """A spawner that gets ready while ww reads its command line, or a server that was found.

    Nothing of a run is known to it, and if none comes of the command line, it ends unused.
    """

    def __init__(self) -> None:
        self._spawner: Connection | None = None
        # Why a server that is there was not used.
        self._refusal = ""

    def begin(self, args: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it, if the command line looks as if there would be something to run.

        Whatever is wrong, is for :meth:`take` to tell, when it is its turn.

        Args:
            args: What follows ``ww run``.
            environ: ww's own environment.
        """
        # They may be the cell's arguments, too. Then it starts when that is known.
        if not args or not NOT_USUAL.isdisjoint(args):
            return
        try:
            self._spawner = self._find_or_start(environ, debug=False)
        except WwError:
            return

    def take(self, environ: Mapping[str, str], *, debug: bool, server: bool = True) -> Connection:
        """Return what runs a cell, for the caller to close.

        Args:
            environ: ww's own environment.
            debug: Whether it may write tracebacks to stderr.
            server: Whether it may be a server's.

        Raises:
            WwError: As :func:`start`.
        """
        taken, self._spawner = self._spawner, None
        if taken is None:
            if server:
                taken = self._find_or_start(environ, debug=debug)
            else:
                taken = start(environ, debug=debug)
        refusal, self._refusal = self._refusal, ""
        # One that nobody has asked for by name need not be of use.
        if refusal and (debug or environ.get(SOCKET)):
            try:
                write_lines(STDERR, [f"ww: warning: {printable(refusal)} (so ww runs without it)"])
            except OSError:
                return taken  # stderr is gone, and the cell can do without this line
        return taken

    def _find_or_start(self, environ: Mapping[str, str], *, debug: bool) -> Connection:
        """Return a connection to the server, if there is one, or else a spawner.

        Raises:
            WwError: As :func:`start`.
        """
        if environ.get(_CACHE_SIZE):
            cache_size(environ)  # whether it is well formed must not depend on a server
        path = socket_path(environ)
        if path is not None:
            try:
                return connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            except OSError as error:
                self._refusal = f"{path}: {error.strerror or error}"
            except SpawnerError as error:
                self._refusal = str(error)
        return start(environ, debug=debug)

    def give_up(self) -> None:
        """End the spawner, unless it was taken."""
        spawner, self._spawner = self._spawner, None
        if spawner is not None:
            discard(spawner)


def socket_path(environ: Mapping[str, str]) -> str | None:
    """Return where the socket of the server is that runs cells for this user, if there is one.

    Returns:
        ``$WW_SOCKET``, unless that is ``off``; else ``ww/spawner.sock`` in ``$XDG_RUNTIME_DIR``, or
        for root in ``/run``; or None.
    """
    named = environ.get(SOCKET)
    if named:
        return None if named == OFF else named
    folder = environ.get("XDG_RUNTIME_DIR", "")
    # Another path than an absolute one is to be ignored, says the XDG Base Directory Specification.
    if folder.startswith("/"):
        return f"{folder}/{_SOCKET_NAME}"
    return f"/run/{_SOCKET_NAME}" if os.geteuid() == 0 else None


def start(environ: Mapping[str, str], *, debug: bool) -> Spawner:
    """Start a spawner that uses the cache.

    Raises:
        WwError: If it cannot be started; with code 2 if a variable is not well formed.
    """
    cache, most = cache_home(environ), cache_size(environ)
    try:
        return Spawner.start(cache, cache_size=most, debug=debug)
    except OSError as error:
        raise WwError(sys.executable, f"the spawner cannot be started: {error.strerror}") from error


def discard(spawner: Connection) -> None:
    """End a spawner that has run nothing: at once, because it may still be getting ready.

    Of a server, only the connection ends.
    """
    if isinstance(spawner, Spawner):
        spawner.kill()
    spawner.close()


def cache_size(environ: Mapping[str, str]) -> int | None:
    """Return how many bytes the compiled forms of cells may have together, ``$WW_CACHE_SIZE``.

    Returns:
        ``None`` for no bound.

    Raises:
        WwError: With code 2 if that is not well formed.
    """
    text = environ.get(_CACHE_SIZE)
    if not text:
        return CACHE_SIZE
    if text == "none":
        return None
    from runner.limits import size

    return size(text, _CACHE_SIZE)

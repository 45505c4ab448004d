"""``ww serve``: the socket at which it is found, and becoming the server."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

from runner.errors import EXIT_USAGE, WwError
from runner.grants.systemd import FIRST, VARIABLES, take_listen_fds
from runner.inherited import Inherited
from runner.spawners import OFF, SOCKET, cache_size, socket_path
from sandbox import cache_home, serve

# What a service manager tells with, and is told by; sd_listen_fds(3), sd_notify(3).
_ACTIVATION = ("LISTEN_PID", "LISTEN_FDS")
_MANAGER = "NOTIFY_SOCKET"
_WHERE = "socket activation"
# Connections that wait to be accepted: more than there are clients, who would be refused.
_BACKLOG = 4096
# Seconds that another server may take to make its socket.
_PATIENCE = 5.0
_PAUSE = 0.02


class Bounds(NamedTuple):
    """How much a server does.

    Attributes:
        jails: How many jails it keeps ready.
        clients: How many connections it has at most; each runs one cell at a time.
        per_client: How many of them one process may have.
    """

    jails: int
    clients: int
    per_client: int


class Listening(NamedTuple):
    """A listening socket.

    Attributes:
        fd: Its descriptor.
        path: Its path, if it was made here, and is to be removed in the end; else empty.
    """

    fd: int
    path: str


def become_server(
    environ: MutableMapping[str, str], inherited: Inherited, named: str | None, bounds: Bounds
) -> NoReturn:
    """Go on as a server, which ends with exit code 0 when a signal asks it to.

    Args:
        environ: ww's own environment.
        inherited: What ww was started with.
        named: The path of the socket, if the command line says it.
        bounds: How much it does.

    Raises:
        WwError: With code 2 if there is no place for the socket, or what the service manager
            passed is none; with code 1 if another server is there, or the socket cannot be made.
        OSError: If this process cannot become another.
    """
    cache, most = cache_home(environ), cache_size(environ)
    if any(name in environ for name in _ACTIVATION):
        listening = _passed(environ, inherited, named)
    else:
        listening = _made(_place(environ, named))
    serve(
        listening.fd,
        cache,
        cache_size=most,
        jails=bounds.jails,
        connections=bounds.clients,
        each=bounds.per_client,
        remove=listening.path,
        manager=environ.get(_MANAGER, ""),
    )


def _place(environ: MutableMapping[str, str], named: str | None) -> str:
    """Return where the socket is to be.

    Raises:
        WwError: With code 2 if nothing says that.
    """
    path = named or socket_path(environ)
    if path is None:
        off = f", and {SOCKET}={OFF} asks for none" if environ.get(SOCKET) == OFF else ""
        raise WwError(
            "ww serve",
            f"there is no place for its socket{off}",
            hint="name one with --socket PATH, or set XDG_RUNTIME_DIR",
            code=EXIT_USAGE,
        )
    return os.path.abspath(path)


# --- a socket of a service manager's --------------------------------------------------------------


def _passed(
    environ: MutableMapping[str, str], inherited: Inherited, named: str | None
) -> Listening:
    """Return the socket that a service manager passed.

    Raises:
        WwError: With code 2 if it is none that a server can have, or there is more than one.
    """
    said = [f"{key}={environ[key]}" for key in VARIABLES if key in environ]
    try:
        passed = take_listen_fds(environ, inherited).requests
    except WwError as error:
        raise _unusable(error.what, error.hint) from error
    if named is not None:
        raise _unusable("the socket is the service manager's", "leave --socket out")
    if len(passed) != 1:
        what = f"{len(passed)} sockets were passed ({' '.join(said)})"
        raise _unusable(what, "name one ListenStream= in the .socket unit")
    problem = _problem(FIRST)
    if problem:
        raise _unusable(
            f"fd {FIRST} is {problem}",
            "a server takes ListenStream= with a path, without Accept=yes",
        )
    return Listening(FIRST, "")


def _problem(fd: int) -> str:
    """Return what a descriptor is, if it is no listening unix stream socket, or nothing."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return "no socket"
    with socket.socket(fileno=os.dup(fd)) as found:
        if found.family != socket.AF_UNIX:
            return "a socket of the network, and not a unix socket"
        if found.type != socket.SOCK_STREAM:
            return "a unix socket, but no stream socket"
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "a unix socket that does not listen"
    return ""


def _unusable(what: str, hint: str) -> WwError:
    return WwError(_WHERE, what, hint=hint, code=EXIT_USAGE)


# --- a socket of our own --------------------------------------------------------------------------


def _made(path: str) -> Listening:
    """Make a listening socket, for nobody but its owner.

    Its directory is made if it is missing, with mode 0700. A socket that a dead server left is
    replaced.

    Raises:
        WwError: With code 1 if a server is there, or it cannot be made.
    """
    folder = os.path.dirname(path)
    try:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        with _locked(folder):
            _make_way(path)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o177)
            try:
                made.bind(path)
            finally:
                os.umask(before)
            made.listen(_BACKLOG)
    except OSError as error:
        # Python itself refuses a path that is too long, and gives no number.
        where = folder if error.filename == folder else path
        raise WwError(where, f"the socket cannot be made: {error.strerror or error}") from error
    return Listening(made.detach(), path)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep others from making a server's socket in a directory.

    Raises:
        OSError: ETIMEDOUT if another holds it for too long; as open(2) says.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = "another process keeps it locked"
                    raise OSError(errno.ETIMEDOUT, what, folder) from None
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)


def _make_way(path: str) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        WwError: If somebody does, or there is something else.
        OSError: As unlink(2) says.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise WwError(path, "there is something else than a socket", hint="it is left alone")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.setblocking(False)
            asked.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:
        pass  # so many wait there that it has no room for one more
    raise WwError(path, "a server is there already", hint="end it first, or use --socket PATH")

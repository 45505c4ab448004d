"""The sandbox as a Python object: run a cell, and have what it wrote."""

import errno
import os
import threading
import warnings
import weakref
from collections.abc import Iterable
from typing import Self, Unpack

from sandbox.client import Connection, Spawner, connect
from sandbox.errors import SpawnerError
from sandbox.home import CACHE_SIZE, cache_home
from sandbox.library.cell import CellSource
from sandbox.library.job import House, Job
from sandbox.library.offer import Offer
from sandbox.library.options import Options
from sandbox.library.pool import Busy, Pool, Root, Run, comes_to_end, has_ended
from sandbox.library.result import Result
from sandbox.policy import FEATURES, ISOLATIONS, Isolation

# Where root runs cells, they are nobody, as of the program ``ww``: user_namespaces(7).
_NOBODY = 65534

DEFAULT_CACHE = "default"
"""Stands for the cache that the program ``ww`` uses too."""


class Sandbox:
    """Runs cells, each in a jail of its own, made by a spawner that lives as long as this.

    Any number of threads may use one sandbox at the same time; each cell that runs beside others
    has a connection of its own, which is kept for the next. One that is forgotten without
    :meth:`close` is closed with a :class:`ResourceWarning`. If the spawner ends, whatever it ran
    fails with :class:`sandbox.SpawnerError`, and the next run starts another::

        with Sandbox() as sandbox:
            result = sandbox.run("hello.wasm", ["world"])
            print(result.stdout.decode(), result.exit_code)
    """

    def __init__(
        self,
        *,
        spawner: Spawner | None = None,
        server: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = DEFAULT_CACHE,
        cache_size: int | None = CACHE_SIZE,
        jails: int = 1,
        isolation: Isolation = "full",
        required: Iterable[str] = (),
        uid: int | None = None,
        gid: int | None = None,
        debug: bool = False,
    ) -> None:
        """Start a spawner, or use one that runs; it gets ready while this returns.

        Args:
            spawner: One to use, which stays the caller's and is not started anew.
            server: The socket of a running ``ww serve`` to use. The cache, the jails in advance and
                ``debug`` are its own.
            cache: The directory for compiled forms, which nobody else may write; a relative path is
                taken from the working directory of now. By default it is that of the program
                ``ww`` (``$WW_HOME/cache``, ``$XDG_CACHE_HOME/ww``, ``~/.cache/ww``). With
                ``None``, every run compiles its cell.
            cache_size: Bytes that they may have together; ``None`` for no bound.
            jails: How many jails are kept ready for cells to come; each is a process.
            isolation: How cells are kept apart.
            required: What of :data:`sandbox.FEATURES` must not be missing.
            uid: The user id on the host that cells run as, where root runs them; by default 65534.
            gid: The group id, likewise.
            debug: Let the spawner write tracebacks to this process's stderr.

        Raises:
            OSError: If the spawner cannot be started, or the server is not there.
            SpawnerError: If the server is not to be trusted.
            ValueError: If the arguments contradict each other; if cells would run as root.
            TypeError: If a uid or gid is no number.
        """
        if spawner is not None and server is not None:
            raise ValueError("spawner and server are both given, and cells run by one of them")
        self._house = _house(uid, gid, isolation, required)
        directory = _directory(cache)

        def start() -> Root:
            if spawner is not None:
                return _Borrowed(spawner)
            if server is not None:
                return _Server(os.fspath(server))
            return _Own(
                Spawner.start(
                    directory,
                    cache_size=cache_size,
                    jails=jails,
                    debug=debug,
                )
            )

        pool = self._pool = Pool(start)
        # Until the end of the program only, which is the spawner's too.
        weakref.finalize(self, _forget, pool).atexit = False
        self._guard = threading.RLock()  # close() may be called in a handler of a signal
        self._runs: set[Run] = set()

    def run(
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> Result:
        """Run a cell and wait for its end.

        Args:
            cell: A prepared :class:`sandbox.Cell`, which costs least to run again; or bytes, a path
                or an open descriptor, which are copied and digested each time.
            args: Its arguments, after its name.
            grants: What it is granted, beside standard input, output and error; see
                :func:`sandbox.grant`.
            **options: ``stdin``, ``env``, ``limits``, ``network``, ``invoke``,
                ``unknown_imports_trap``; see :class:`sandbox.Options`.

        Returns:
            How it ended, whichever way: a non-zero exit code, a trap or a limit is no error.

        Raises:
            GrantError: If what is granted cannot be, so that nothing ran.
            CellRejected: If the cell is no program that can run here.
            JailError: If a step of the jail's set-up failed, so that no cell ran.
            HostError: If the host failed.
            SpawnerError: If the spawner ended before the cell did.
            CellKilled: If the sandbox was closed meanwhile.
            OSError: If a path cannot be opened, or there is no descriptor or memory left.
            ValueError: If an argument, a variable or a limit cannot be.
            TypeError: If something is of another kind than it has to be.
        """
        run = self.prepare(cell, args, grants, **options)
        try:
            with self._guard:
                self._runs |= {run}
            return run.execute()
        finally:
            with self._guard:
                self._runs -= {run}

    def prepare(
        self,
        cell: CellSource,
        args: Iterable[str] = (),
        grants: Iterable[Offer] = (),
        **options: Unpack[Options],
    ) -> Run:
        """Return a run that is to be executed, for whoever wants to be able to kill it.

        It holds copies of all descriptors that it was given, until it was executed or abandoned.

        Raises:
            SpawnerError: If there is no spawner, and none can be started.
            GrantError: As :meth:`run`.
            OSError: Likewise.
            ValueError: Likewise.
        """
        generation = self._pool.generation()
        return Run(Job(cell, args, grants, **options), generation, self._house, keep=self)

    def close(self) -> None:
        """End the spawner, if it is this sandbox's own, and kill what still runs.

        When this returns, the spawner has ended, whichever thread ran something. In a process that
        was forked from this sandbox's, nothing is ended: there it closes that process's copies.
        """
        self._pool.close()
        if not self._pool.is_own:
            return
        with self._guard:
            runs = tuple(self._runs)
        # All of them first: each may take its time.
        for run in runs:
            run.condemn()
        for run in runs:
            run.kill(wait=False)  # the thread that runs it may take longer than the spawner
        self._pool.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget(pool: Pool) -> None:
    """Close what a sandbox had that nobody has any more."""
    if pool.is_closed:
        return
    pool.close()
    if pool.is_own:
        warnings.warn(
            "a sandbox was not closed: use it with `with`, or call close()",
            ResourceWarning,
            stacklevel=2,
        )


def _directory(cache: str | os.PathLike[str] | None) -> str | None:
    """Return the directory for compiled forms, as an absolute path.

    Raises:
        ValueError: If it is an empty text, which is no path.
    """
    if cache is None:
        return None
    if cache == DEFAULT_CACHE:
        return cache_home(os.environ)
    path = os.fsdecode(cache)
    if not path:
        raise ValueError("cache is empty: give a directory, or None to keep nothing")
    return os.path.abspath(path)


# 32 bits, of which the last number means that there is none.
_MOST_ID = (1 << 32) - 2


def _house(
    uid: int | None, gid: int | None, isolation: Isolation, required: Iterable[str]
) -> House:
    """Return what all runs have in common.

    Raises:
        ValueError: If cells would run as root; for a number or a word that is none.
        TypeError: If a uid or gid is no number.
    """
    own = os.geteuid()
    if uid is None:
        uid = own or _NOBODY
    if gid is None:
        gid = os.getegid() if own else _NOBODY
    features = tuple(required)
    for words, legal in (((isolation,), ISOLATIONS), (features, FEATURES)):
        for word in words:
            if word not in legal:
                raise ValueError(f"{word!r} is none of {', '.join(legal)}")
    for name, number in (("uid", uid), ("gid", gid)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} is {number!r}, and no number")
        if not 0 <= number <= _MOST_ID:
            raise ValueError(f"{name} cannot be {number}: they are 0 to {_MOST_ID}")
    if not uid or not (gid or own):
        raise ValueError("cells never run as the host's root: give another uid or gid")
    return House(uid, gid, isolation, features)


class _Own:
    """A spawner that was started for a sandbox."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner

    def connect(self) -> Connection:
        return self._spawner.connect()

    def is_alive(self) -> bool:
        return not has_ended(self._spawner.pid)

    def has_ended(self) -> bool:
        return comes_to_end(self._spawner.pid)

    def close(self) -> None:
        self._spawner.close()


class _Borrowed(_Own):
    """One that is somebody else's to close."""

    def is_alive(self) -> bool:
        return True  # nobody may start another in its place, so its own error is the better one

    def close(self) -> None:
        pass


# What this process lacks when it cannot make a connection, whatever the server does.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
# How a server's refusal begins that has enough connections; see sandbox.door.
_BUSY = ": the server refuses: busy: "


class _Server:
    """A spawner that is reached by its socket."""

    def __init__(self, path: str) -> None:
        """Remember where it is.

        Raises:
            OSError: If it is not there.
            SpawnerError: If it is not to be trusted.
        """
        self._path = path
        try:
            connect(path).close()
        except OSError as error:
            if error.errno is None:  # the path cannot be one, or nobody answers
                raise type(error)(f"{path}: {error}") from error
            raise OSError(error.errno, error.strerror, path) from error

    def connect(self) -> Connection:
        try:
            return connect(self._path)
        except OSError as error:
            if error.errno in _SHORT:
                raise
            raise SpawnerError(f"{self._path}: {error.strerror or error}") from error
        except SpawnerError as error:
            if _BUSY in str(error):
                raise Busy(*error.args) from None
            raise

    def is_alive(self) -> bool:
        return True  # it may be started again at any time

    def has_ended(self) -> bool:
        return True  # it is the only reason for which it ends a connection

    def close(self) -> None:
        pass

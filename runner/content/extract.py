"""Content brought out to disk: a file, a directory or a symbolic link, whole or not at all.

Everything is made in a staging directory beside its target, and moved when it is complete and on
the disk: a loss of power leaves no name of what is not all there. No name
that exists is ever replaced: a file gets its name by link(2), a directory by renaming it onto one
that mkdir(2) has just made. What is made is reached by descriptors of its directories and is never
followed, so neither the content nor somebody who exchanges directories meanwhile leads out of it.

Modes and times that content may hold are not applied, so there is no setuid bit: what comes out
has the modes that any new file has (umask(2)), and the execute bits only if those are asked for.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from runner.content import unixfs
from runner.content.blocks import Blocks
from runner.content.resolver import (
    DEFAULT_MAX_SIZE,
    ContentPath,
    File,
    Node,
    file_size,
    list_entries,
    load_node,
)
from runner.content.walk import find_node
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, WwError

MAX_OPEN_NAMES = 1 << 18
"""Names in the directories that are open at once, one below the other: they are in memory."""

MAX_ENTRIES = 1 << 18
"""Files, directories and links of one extraction. Their number says nothing about their size, so
this bounds the work on a small DAG that names one directory again and again."""

MAX_DIRECTORY_DEPTH = 128
"""Directories in one another. Each holds a descriptor while it is made; an import has this limit
too."""

_AHEAD = 256  # entries of a directory that are expected before the first is made
_MAX_TARGET = 4095  # bytes of what a symbolic link holds: PATH_MAX without the NUL, limits.h
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Options(NamedTuple):
    """How content is brought out.

    Attributes:
        executable: Whether files may be executed by whom the umask allows to.
        symlinks: Whether symbolic links are made. They are as the content has them, and may lead
            anywhere for whoever follows them later.
        max_size: Bytes that all files may have together.
    """

    executable: bool = False
    symlinks: bool = False
    max_size: int = DEFAULT_MAX_SIZE


def extract(store: Blocks, path: ContentPath, destination: str, options: Options) -> str:
    """Bring out what a path names.

    Into a destination that is a directory already goes a file under the last name of its path, and
    of a directory what is in it. Anything else is created as the destination, with the directories
    above it that are missing.

    Args:
        store: Where the blocks are.
        path: What to bring out.
        destination: Where to. With a slash at its end it is a directory, existing or not.
        options: How.

    Returns:
        The path of what was made, or of the directory that the entries went into.

    Raises:
        WwError: Something exists already, or cannot be written; a symbolic link is met and not
            asked for; a limit is hit (code EXIT_LIMIT); or as for any content. Nothing is left
            behind then.
    """
    node = find_node(store, path)
    _check_kind(node, path, options)
    work = _Extraction(store, options)
    into = os.path.isdir(destination)
    is_directory = _is_directory(node)
    if is_directory and into:
        _merge(work, node, path, destination)
        return destination
    if into or (destination.endswith("/") and not is_directory):
        target = os.path.join(destination, path.names[-1] if path.names else str(path.root))
    else:
        target = destination.rstrip("/")
    _create(work, node, path, target)
    return target


def _create(work: "_Extraction", node: Node, path: ContentPath, target: str) -> None:
    """Make one new file, directory or symbolic link."""
    above, _, last = target.rpartition("/")
    name = os.fsencode(last)
    if last in ("", ".", ".."):
        raise WwError(target, "is not a name that can be created")
    parent = above or ("/" if target.startswith("/") else ".")
    with _made(parent) as directory:
        _check_absent(directory, name, target)
        with _staging(directory, parent) as staging:
            work.add(staging, name, node, path, 0)
            _place(staging, directory, name, target)
        _keep_names(directory, target)


def _merge(work: "_Extraction", node: Node, path: ContentPath, destination: str) -> None:
    """Put the entries of a directory into one that exists: all of them or none."""
    try:
        directory = os.open(destination, _DIRECTORY_FLAGS)
    except OSError as error:
        raise WwError(destination, f"cannot be opened: {error.strerror}") from None
    try:
        with _staging(directory, destination) as staging:
            names = []
            for name, child, below in work.entries(node, path, 0):
                _check_absent(directory, name, os.path.join(destination, os.fsdecode(name)))
                work.add(staging, name, child, below, 1)
                names.append(name)
            with contextlib.ExitStack() as undo:
                for name in names:
                    undo.callback(_take_back, staging, directory, name)
                    _place(staging, directory, name, os.path.join(destination, os.fsdecode(name)))
                _keep_names(directory, destination)
                undo.pop_all()
    finally:
        os.close(directory)


class _Extraction:
    """What is made in the staging directory, and how much of it there is."""

    def __init__(self, store: Blocks, options: Options) -> None:
        self._store = store
        self._options = options
        self._size = 0
        self._count = 0
        self._names = 0

    def add(self, parent: int, name: bytes, node: Node, path: ContentPath, depth: int) -> None:
        """Make what a node is.

        Args:
            parent: A descriptor of the directory where it is made.
            name: Its name there.
            node: The node.
            path: Where it was found, for messages.
            depth: Directories above it.
        """
        _check_kind(node, path, self._options)
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise WwError(
                str(path), f"more than {MAX_ENTRIES} files and directories", code=EXIT_LIMIT
            )
        try:
            if _is_directory(node):
                self._add_directory(parent, name, node, path, depth)
            elif node.data.type == unixfs.SYMLINK:
                os.symlink(_link_target(node, path), name, dir_fd=parent)
            else:
                self._add_file(parent, name, node, path)
        except OSError as error:
            raise WwError(str(path), f"cannot be written: {error.strerror}") from None

    def entries(
        self, node: Node, path: ContentPath, depth: int
    ) -> Iterator[tuple[bytes, Node, ContentPath]]:
        """Yield the entries of a directory: the name, the node, and where that is.

        Args:
            node: The directory.
            path: Where it was found.
            depth: Directories above it.
        """
        if depth >= MAX_DIRECTORY_DEPTH:
            raise WwError(
                str(path), f"more than {MAX_DIRECTORY_DEPTH} directories deep", code=EXIT_LIMIT
            )
        # The names of all directories that are open, one below the other, are in memory.
        self._names += len(node.links)
        if self._names > MAX_OPEN_NAMES:
            raise WwError(
                str(path),
                f"more than {MAX_OPEN_NAMES} names in it and the directories above it",
                code=EXIT_LIMIT,
            )
        links = list_entries(self._store, node, path)
        while some := list(islice(links, _AHEAD)):
            self._store.expect(link.cid for link in some)
            for link in some:
                below = ContentPath(path.root, (*path.names, link.name))
                yield link.name.encode(), load_node(self._store, link.cid, below), below
        self._names -= len(node.links)

    def _add_directory(
        self, parent: int, name: bytes, node: Node, path: ContentPath, depth: int
    ) -> None:
        os.mkdir(name, dir_fd=parent)
        directory = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
        try:
            for child_name, child, below in self.entries(node, path, depth):
                self.add(directory, child_name, child, below, depth + 1)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _add_file(self, parent: int, name: bytes, node: Node, path: ContentPath) -> None:
        size = file_size(node, path)
        self._size += size
        if self._size > self._options.max_size:
            raise WwError(
                str(path),
                f"with this file the size is {self._size} bytes, "
                f"and the limit is {self._options.max_size}",
                hint="allow more with --max-size",
                code=EXIT_LIMIT,
            )
        mode = 0o777 if self._options.executable else 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, mode, dir_fd=parent)
        try:
            File(self._store, path, node, size).copy_to(file)
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def _made(path: str) -> Iterator[int]:
    """Open a directory, made if it is missing; what was made goes again if the block fails."""
    made: list[str] = []
    try:
        try:
            _make_missing(path, made)
            directory = os.open(path, _DIRECTORY_FLAGS)
        except (FileExistsError, NotADirectoryError) as error:
            raise WwError(
                error.filename or path, "is no directory", hint="give another DEST"
            ) from None
        except OSError as error:
            where = error.filename or path
            raise WwError(where, f"cannot be created or opened: {error.strerror}") from None
        try:
            yield directory
        finally:
            os.close(directory)
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something into it
                os.rmdir(parent)
        raise


def _make_missing(path: str, made: list[str]) -> None:
    missing = []
    while not os.path.isdir(path or "."):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    for parent in reversed(missing):
        made.append(parent)  # a signal may raise as soon as it is there
        try:
            os.mkdir(parent)
        except OSError as error:
            made.pop()
            if not isinstance(error, FileExistsError) or not os.path.isdir(parent):
                raise


@contextlib.contextmanager
def _staging(directory: int, shown: str) -> Iterator[int]:
    """Make a directory that nobody else can enter, and remove it with all that is left in it."""
    name = f".ww-import-{os.urandom(8).hex()}"
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
            staging = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as error:
            raise WwError(shown, f"cannot be written: {error.strerror}") from None
        try:
            yield staging
        finally:
            os.close(staging)
    finally:
        shutil.rmtree(name, ignore_errors=True, dir_fd=directory)


def _place(staging: int, directory: int, name: bytes, shown: str) -> None:
    """Give what is complete its name, which nothing else may have."""
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=staging).st_mode):
            _place_directory(staging, directory, name)
        else:
            _place_file(staging, directory, name)
    except FileExistsError:
        raise _exists(shown) from None
    except OSError as error:
        raise WwError(shown, f"cannot be created: {error.strerror}") from None


def _place_directory(staging: int, directory: int, name: bytes) -> None:
    made = True  # a signal may raise as soon as it is there
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except OSError:
            made = False
            raise
        # Onto an empty directory only: what anybody has put into it meanwhile is not replaced.
        os.rename(name, name, src_dir_fd=staging, dst_dir_fd=directory)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=directory)
        raise


def _place_file(staging: int, directory: int, name: bytes) -> None:
    try:
        os.link(name, name, src_dir_fd=staging, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # The file system has no links: take the name first, and then put the file there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=directory))
        try:
            os.rename(name, name, src_dir_fd=staging, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise


def _keep_names(directory: int, shown: str) -> None:
    """Wait until the names of what was placed are on the disk, as what they name is before."""
    try:
        os.fsync(directory)
    except OSError as error:
        raise WwError(shown, f"cannot be written to the disk: {error.strerror}") from None


def _take_back(staging: int, directory: int, name: bytes) -> None:
    """Undo :func:`_place`, if it was done: what is in the staging directory is removed with it."""
    with contextlib.suppress(OSError):
        placed = os.lstat(name, dir_fd=directory)
        try:
            ours = os.path.samestat(placed, os.lstat(name, dir_fd=staging))
        except FileNotFoundError:
            os.rename(name, name, src_dir_fd=directory, dst_dir_fd=staging)
        else:
            if ours:
                os.unlink(name, dir_fd=directory)


def _check_absent(directory: int, name: bytes, shown: str) -> None:
    """Refuse a name that exists, before any work is done for it."""
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WwError(shown, f"cannot be created: {error.strerror}") from None
    raise _exists(shown)


def _exists(shown: str) -> WwError:
    return WwError(
        shown, "exists already, and nothing is overwritten", hint="choose another place with -o"
    )


def _is_directory(node: Node) -> bool:
    return node.data.type in (unixfs.DIRECTORY, unixfs.HAMT_SHARD)


def _check_kind(node: Node, path: ContentPath, options: Options) -> None:
    """Refuse what cannot be made, or is not to be."""
    if node.data.type == unixfs.METADATA:
        raise WwError(str(path), "is UnixFS metadata, not a file", code=EXIT_CANNOT_RUN)
    if node.data.type == unixfs.SYMLINK and not options.symlinks:
        raise WwError(
            str(path),
            "is a symbolic link, which may lead anywhere",
            hint="allow links with --symlinks",
            code=EXIT_CANNOT_RUN,
        )


def _link_target(node: Node, path: ContentPath) -> bytes:
    target = bytes(node.data.data or b"")
    if not target or b"\0" in target or len(target) > _MAX_TARGET:
        raise WwError(
            str(path), f"a symbolic link cannot hold these {len(target)} bytes: {target[:32]!r}"
        )
    return target

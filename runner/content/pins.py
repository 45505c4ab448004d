"""Pins: what a garbage collection must not remove, each with everything below it.

``HOME/pins/CID`` is a file for each. Its name is the CID as version 1 in base32, which is all that
counts: what is in it, the CID as the user knows it and a name for people, is for being listed.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from runner.content.blockstore import fsync
from runner.content.cid import Cid
from runner.content.errors import ContentError
from runner.content.replacing import replacing
from runner.errors import WwError

MAX_NAME_LENGTH = 255
"""Characters of the longest name that is kept."""

_MAX_FILE_SIZE = 1 << 16


class Pin(NamedTuple):
    """One pin.

    Attributes:
        cid: The root of what is pinned, as the user has given it.
        name: What the user knows it by, or the empty string.
    """

    cid: Cid
    name: str


def add(home: str, cid: Cid, name: str = "") -> None:
    """Pin what is in a store, and wait until that is on the disk. A pin that is there is replaced.

    The caller has found or put all the blocks, and still holds the store
    (:meth:`runner.content.blockstore.Blockstore.hold`), so that they are there when the pin is.

    Args:
        home: The directory of the store.
        cid: The root of what is pinned.
        name: A name for people.

    Raises:
        WwError: It cannot be written.
    """
    text = json.dumps({"cid": str(cid), "name": name[:MAX_NAME_LENGTH]})
    directory = os.path.join(home, "pins")
    path = os.path.join(directory, _file_name(cid))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
            fsync(home)
        with replacing(path, 0o600) as file:
            file.write(text.encode())
    except OSError as error:
        raise WwError(path, f"cannot write the pin: {error.strerror}") from None


def remove(home: str, cid: Cid) -> bool:
    """Remove a pin; the blocks stay until the next garbage collection.

    Returns:
        Whether there was one.

    Raises:
        WwError: It cannot be removed.
    """
    path = os.path.join(home, "pins", _file_name(cid))
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WwError(path, f"cannot remove the pin: {error.strerror}") from None
    return True


def remove_leftovers(home: str) -> None:
    """Remove what processes have left that died while they wrote a pin.

    The caller has the store for itself, so nobody is writing one.

    Raises:
        WwError: They cannot be removed.
    """
    directory = os.path.join(home, "pins")
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WwError(directory, f"cannot remove what is left there: {error.strerror}") from None


def pins(home: str) -> list[Pin]:
    """Return the pins of a store, in the order of their names and then of their CIDs.

    Raises:
        WwError: They cannot be read, or there is a file whose name is not a CID: it may have been
            a pin, so nothing may be removed before somebody has looked at it.
    """
    return sorted(_read(os.path.join(home, "pins")), key=lambda pin: (pin.name, str(pin.cid)))


def _read(directory: str) -> Iterator[Pin]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WwError(directory, f"cannot read the pins: {error.strerror}") from None
    for name in names:
        if name.startswith("."):
            continue  # being written, or left by a process that died while it did
        path = os.path.join(directory, name)
        try:
            cid = Cid.parse(name)
        except ContentError as error:
            raise WwError(
                path, f"its name is not that of a pin: {error}", hint="move it elsewhere"
            ) from None
        yield _described(path, cid)


def _described(path: str, cid: Cid) -> Pin:
    """Return a pin as its file describes it, if that can be understood."""
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(_MAX_FILE_SIZE))
        shown = Cid.parse(str(said["cid"]))
        if (shown.codec, shown.multihash) == (cid.codec, cid.multihash):
            return Pin(shown, str(said["name"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return Pin(cid, "")


def _file_name(cid: Cid) -> str:
    return str(Cid(1, cid.codec, cid.multihash))

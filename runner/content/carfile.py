"""A CAR file as a place of blocks: found by an index, read where they lie, verified at every read.

The first pass reads the frame of the file and no block. So a cell is run from the file with one
hash over each of its blocks, nothing is copied into the store, and a block that nobody asks for
costs nothing. The file may change meanwhile: what is then read is refused for its hash.
"""

import os
import sys
from collections.abc import Iterable

from runner.content import multihash
from runner.content.car import MAX_SECTIONS, CarError, Sections, TooLarge, UnknownVersion
from runner.content.cid import Cid
from runner.content.errors import ContentError
from runner.content.resolver import ContentPath, parse_path
from runner.errors import EXIT_CANNOT_RUN, EXIT_FAILURE, EXIT_LIMIT, EXIT_NOT_FOUND, WwError

# Bytes read at a time for the index: the frame of a section and little of its block.
_FRAME = 256
_OFFSET_BITS = 64


class CarFile:
    """The blocks of one CAR file. The descriptor stays the caller's, and open while this is used.

    Memory is bounded by the index: a multihash and a number for each block, of which there are at
    most :data:`runner.content.car.MAX_SECTIONS`.

    Attributes:
        roots: The roots that its header names, each once.
    """

    def __init__(self, fd: int, shown: str) -> None:
        """Read the frame of the file.

        Args:
            fd: A descriptor of a regular file; its position is changed.
            shown: The file's path, for messages.

        Raises:
            WwError: The file is malformed (code EXIT_FAILURE), has too many sections (EXIT_LIMIT),
                is of another version (EXIT_CANNOT_RUN), or cannot be read.
        """
        self._fd = fd
        self._shown = shown
        # Offset and size of a block in one number, which takes a third of the memory of a pair.
        self._index: dict[bytes, int] = {}
        try:
            self.roots = self._read_frame()
        except CarError as error:
            raise car_error(shown, error) from None
        except OSError as error:
            raise WwError(shown, f"cannot read: {error.strerror}", code=EXIT_CANNOT_RUN) from None

    def _read_frame(self) -> tuple[Cid, ...]:
        end = os.fstat(self._fd).st_size
        with open(self._fd, "rb", buffering=_FRAME, closefd=False) as stream:
            stream.seek(0)
            sections = Sections(stream, max_size=sys.maxsize, max_sections=MAX_SECTIONS)
            while section := sections.next():
                # Of two sections with one multihash, the first counts.
                place = section.size << _OFFSET_BITS | section.offset
                self._index.setdefault(section.cid.multihash, place)
                stream.seek(section.size, os.SEEK_CUR)
                sections.passed(section.size, end)
        return tuple(dict.fromkeys(sections.roots))

    def expect(self, cids: Iterable[Cid]) -> None:
        """Take note of what will be asked for next; a file needs no such hint."""

    def get(self, cid: Cid) -> bytes:
        """Return a block whose hash has been verified.

        Raises:
            WwError: There is no such block (code EXIT_NOT_FOUND), or it has the wrong bytes
                (EXIT_FAILURE), or it cannot be read.
        """
        if cid.multihash[0] == multihash.IDENTITY:
            return multihash.decode(cid.multihash)[1]
        place = self._index.get(cid.multihash)
        if place is None:
            raise WwError(
                f"block {cid}",
                f"not in {self._shown}",
                hint="the file does not hold all of the content; have it exported again",
                code=EXIT_NOT_FOUND,
            )
        data = self._read(place & (1 << _OFFSET_BITS) - 1, place >> _OFFSET_BITS)
        if not multihash.matches(cid.multihash, data):
            raise WwError(
                f"block {cid}",
                f"damaged: {self._shown} does not have the bytes that the CID names",
                hint="have the file sent again",
            )
        return data

    def _read(self, offset: int, size: int) -> bytes:
        """Return the bytes at a place, or less if the file has become shorter."""
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise WwError(self._shown, f"cannot read: {error.strerror}") from None
        return data

    def path_of(self, selection: str) -> ContentPath:
        """Return the path of what somebody selects in the file.

        Args:
            selection: ``CID`` or ``CID/NAME/...``; ``/NAME/...``, below the only root; or nothing,
                for that root itself.

        Raises:
            WwError: It is malformed (code EXIT_USAGE), or takes a root to be the only one that is
                not (EXIT_CANNOT_RUN).
        """
        if selection and not selection.startswith("/"):
            return parse_path(f"/ipfs/{selection}")
        if len(self.roots) != 1:
            roots = ", ".join(map(str, self.roots[:2])) + ", ..." * (len(self.roots) > 2)
            raise WwError(
                self._shown,
                f"it names {len(self.roots)} roots" + (f": {roots}" if roots else ""),
                hint="say what to take from it: FILE#CID or FILE#CID/PATH",
                code=EXIT_CANNOT_RUN,
            )
        return parse_path(f"/ipfs/{self.roots[0]}{selection}")


def car_error(shown: str, error: ContentError) -> WwError:
    """Return the error of a CAR as one for the user.

    Args:
        shown: What the CAR was read from.
        error: What is wrong with it.
    """
    hint, code = "", EXIT_FAILURE
    if isinstance(error, UnknownVersion):
        hint, code = "have it exported as version 1", EXIT_CANNOT_RUN
    elif isinstance(error, TooLarge):
        code = EXIT_LIMIT
    return WwError(shown, str(error), hint=hint, code=code)

"""What travels between the one who submits a cell and the worker that runs it.

All of it is data: bytes, text, numbers, and tuples and mappings of these. No descriptor and no
path of one machine is in it, because neither means anything on another.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self, TypedDict, cast

from runner.errors import WwError
from sandbox import CellFailed, Limits, Network, Offer, Outcome, Result, Usage

MAX_BYTES = 256 << 20
"""Bytes that one job may bring along. The scheduler keeps them in memory until the job is done."""


class ClusterError(WwError):
    """The cluster, and not the cell, failed: its scheduler or too many of its workers were lost."""


class Options(TypedDict, total=False):
    """The options of a run that travel; as :class:`sandbox.Options`, with bytes for ``stdin``."""

    stdin: bytes
    env: Mapping[str, str] | None
    limits: Limits
    network: Network
    invoke: str
    unknown_imports_trap: bool


class Job(NamedTuple):
    """One cell to run.

    Attributes:
        address: ``/ipfs/CID[/PATH]``.
        args: Its arguments, after its name.
        grants: What it is granted; the source of each is bytes.
        options: All else.
    """

    address: str
    args: tuple[str, ...]
    grants: tuple[Offer, ...]
    options: Options


class ClusterResult(NamedTuple):
    """How a cell ended, and what it wrote; as :class:`sandbox.Result`, and more.

    Attributes:
        outcome: How it ended.
        stdout: What it wrote there.
        stderr: What it wrote there.
        files: By the names of the writable grants, what their files hold at the cell's end.
        worker: The address of the worker that ran it.
    """

    outcome: Outcome
    stdout: bytes
    stderr: bytes
    files: Mapping[str, bytes]
    worker: str

    @property
    def exit_code(self) -> int | None:
        """The exit code; ``None`` unless the cell ended by itself."""
        return self.result.exit_code

    @property
    def ok(self) -> bool:
        """Whether the cell ended by itself with exit code 0."""
        return self.result.ok

    @property
    def usage(self) -> Usage | None:
        """What the cell has used, if a process ran."""
        return self.result.usage

    @property
    def result(self) -> Result:
        """The same without what only a cluster tells."""
        return Result(self.outcome, self.stdout, self.stderr)

    def check(self) -> Self:
        """Return this, if :attr:`ok`.

        Raises:
            CellFailed: It is not. Its ``result`` is this, with all that a cluster tells.
        """
        if not self.ok:
            raise CellFailed(cast("Result", self))  # which has all of one, and more
        return self

    def describe(self) -> str:
        """Say in a few words what ended it: ``exit code 3``, ``limit wall``, ``trap: ...``."""
        return self.result.describe()


class Answer(NamedTuple):
    """What a worker says of a job.

    An error is not raised on the worker. Dask can run again what raised, and a cell that was
    refused would be refused again.

    Attributes:
        said: How the cell ended; or why it was refused, or did not come to an end.
        worker: The address of the worker that says so.
    """

    said: ClusterResult | Exception
    worker: str

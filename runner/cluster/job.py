"""What travels between the one who submits a cell and the worker that runs it.

All of it is data: bytes, text, numbers, and tuples and mappings of these. No descriptor and no
path of one machine is in it, because neither means anything on another.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Self, TypedDict, cast, get_args

from runner.errors import WwError
from sandbox import (
    NETWORKS,
    CellFailed,
    GrantError,
    GrantRequest,
    Limits,
    Mode,
    Network,
    Offer,
    Outcome,
    Result,
    Usage,
    granting,
)

MAX_BYTES = 256 << 20
"""Bytes that one job may bring along. The scheduler keeps them in memory until the job is done."""


_MODES: Final = (None, *get_args(Mode))
# The types of options, for those that are of one.
_KINDS: Final = {"limits": Limits, "invoke": str, "unknown_imports_trap": bool}


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


def check_args(args: Iterable[str]) -> tuple[str, ...]:
    """Return arguments as they travel.

    Raises:
        TypeError: They are one text, or not all of them are texts.
    """
    if isinstance(args, str):
        raise TypeError("args are many texts, and this is one: write [text]")
    found = tuple(args)
    for arg in found:
        _check_type("an argument", arg, str)
    return found


def check_options(options: Mapping[str, object]) -> None:
    """Hold that options are some that there are, of their types; ``stdin`` is not looked at.

    All else that a sandbox refuses of them is for the worker's to say; see docs/cluster.md.

    Raises:
        TypeError: They are not.
        ValueError: There is no such network.
    """
    for name, value in options.items():
        if name in _KINDS:
            _check_type(name, value, _KINDS[name])
        elif name not in Options.__annotations__:
            raise TypeError(f"{name!r} is not an option of a run")
    env = options.get("env")
    if env is not None:
        if not isinstance(env, Mapping):
            raise TypeError(f"env has to be a mapping, and not of type {type(env).__name__}")
        for key, value in env.items():
            _check_type("the name of a variable", key, str)
            _check_type(f"the variable {key}", value, str)
    network = options.get("network", NETWORKS[0])
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}, and not one of {', '.join(NETWORKS)}")


def check_grants(grants: Iterable[Offer]) -> tuple[Offer, ...]:
    """Return grants, which keep the rules among themselves; their sources are not looked at.

    The worker asks the same again, and holds them against its kernel.

    Raises:
        TypeError: They are one grant, or not all of them are grants.
        GrantError: They do not keep the rules.
    """
    if isinstance(grants, Offer):
        raise TypeError("grants are many offers, and this is one: write [offer]")
    offers = tuple(grants)
    for offer in offers:
        _check_type("a grant", offer, Offer)
    requests = [_request(offer, number) for number, offer in enumerate(offers)]
    # How many numbers there are is for the worker's machine to say.
    granting.check_requests(requests, granting.MAX_TARGETS)
    return offers


def _request(offer: Offer, number: int) -> GrantRequest:
    """Return a grant as the rules ask for it.

    Args:
        offer: The grant.
        number: What stands for its descriptor; no other has the same.

    Raises:
        GrantError: Something of it is of a wrong type, or its mode is none.
    """
    origin = f"grant {offer.name!r}"
    for part, value, kinds in (
        ("name", offer.name, str),
        ("type", offer.type, str | None),
        ("target", offer.target, int | None),
        ("move", offer.move, bool),
        ("cloexec", offer.cloexec, bool),
        ("pathlink", offer.pathlink, bool),
    ):
        if not isinstance(value, kinds) or (part == "target" and isinstance(value, bool)):
            raise GrantError(origin, f"{part} cannot be {value!r}", usage=True)
    if offer.mode not in _MODES:
        raise GrantError(origin, f"mode={offer.mode} is none of r, w and rw", usage=True)
    return GrantRequest(offer.name, number, origin, target=offer.target, pathlink=offer.pathlink)


def _check_type(what: str, value: object, kind: type) -> None:
    """Hold that a value is of a type."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} has to be of type {kind.__name__}, and not {type(value).__name__}")


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

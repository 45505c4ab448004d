"""How a cell ended, told apart by cause."""

from __future__ import annotations

from sandbox.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from sandbox.words import Kind as Kind
    from sandbox.words import LimitName
else:

    def __getattr__(name: str) -> object:
        """Import a type when it is asked for; PEP 562."""
        if name != "Kind":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sandbox import words

        return words.Kind


# All values of these types.
KINDS: Final[tuple[Kind, ...]] = (
    *("exit", "trap", "signal", "rejected", "limit", "isolation", "jail", "fault", "stale"),
)
LIMIT_NAMES: Final[tuple[LimitName, ...]] = (
    *("wall", "cpu", "fuel", "memory", "host-memory", "output", "pids"),
)
# Between the fields; the last one may hold it too.
_BETWEEN = "\0"
# Exit codes, signals and error numbers alike are below it: MAX_ERRNO of include/linux/err.h.
_MOST_CODE = 4095


class Usage(Record):
    """What a cell used. Setting up its jail is counted, and its compilation is not.

    Attributes:
        wall: Seconds, from when its jail was given to it until its process had ended.
        cpu: Seconds of processor time, user and system.
        memory: The most bytes at a time: what its control group counted, if it had one that tells,
            else what of its process was in memory, which includes what it shares with others.
    """

    wall: float
    cpu: float
    memory: int


class Outcome(Record):
    """How one cell ended.

    Attributes:
        kind: ``exit``: the cell ended by itself. ``trap``: it did what WebAssembly forbids.
            ``signal``: its process was ended by a signal. ``rejected``: it is not a program
            that can run here. ``limit``: it used up what it was allowed. ``isolation``: it called
            what no cell has a reason to call, and the kernel ended it. ``jail``: no cell ran,
            because a step of the set-up failed. ``fault``: the host failed at something the cell
            may ask of it. ``stale``: its compiled form is of no use any more, so no cell ran;
            the spawner compiles it again, and nobody else sees this.
        code: The exit code (``exit``), the signal's number (``signal``) or the error number
            of the step that failed (``jail``, 0 where a check found a difference); else 0.
        what: The trap's message with its backtrace, the reason of a rejection, or what failed.
        step: The name of the set-up step that failed (``jail``), else empty.
        limit: Which of :class:`sandbox.policy.Limits` it was (``limit``), else empty.
        usage: What the cell used, or ``None`` if none ran.
    """

    kind: Kind
    code: int = 0
    what: str = ""
    step: str = ""
    limit: str = ""
    usage: Usage | None = None

    def encode(self) -> bytes:
        """Return the outcome as bytes for :meth:`decode`."""
        usage = "" if self.usage is None else "{!r} {!r} {}".format(*self.usage)
        fields = (self.kind, str(self.code), self.step, self.limit, usage, self.what)
        return _BETWEEN.join(fields).encode(errors="surrogatepass")

    @classmethod
    def decode(cls, data: bytes) -> Outcome:
        """Read what :meth:`encode` wrote, from a process that may be the cell's captive.

        Raises:
            ValueError: If the bytes are not an outcome.
        """
        fields = data.decode(errors="surrogatepass").split(_BETWEEN, 5)
        if len(fields) == 6:
            name, number, step, limit, usage, what = fields
            kind = next((kind for kind in KINDS if kind == name), None)
            code = _number(number)
            if kind and code <= _MOST_CODE and limit in ("", *LIMIT_NAMES):
                return cls(kind, code, what, step, limit, _usage(usage))
        raise ValueError("not an outcome")


def _usage(text: str) -> Usage | None:
    """Read what a cell used.

    Raises:
        ValueError: If it is not that.
    """
    if not text:
        return None
    wall, cpu, memory = text.split(" ")
    return Usage(float(wall), float(cpu), _number(memory))


def _number(text: str) -> int:
    """Read a number in plain decimal digits.

    Raises:
        ValueError: If it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError("not a number")
    return int(text)


def limit(name: LimitName, what: str = "") -> Outcome:
    """Return the outcome of a cell that one of its limits ended."""
    return Outcome("limit", what=what, limit=name)

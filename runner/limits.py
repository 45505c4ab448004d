"""The flags that limit a cell: their values to numbers, and back for people."""

from __future__ import annotations

from runner.errors import EXIT_USAGE, WwError
from sandbox import Limits, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, NoReturn

# The longest time: poll(2) counts milliseconds in an int, which ends after 24.8 days.
MAX_SECONDS: Final = 2_000_000
# The largest size, 1 PiB: sums of some of them stay far below what a long holds.
MAX_SIZE: Final = 1 << 50
MAX_COUNT: Final = (1 << 63) - 1

_NONE: Final = "none"
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZES: Final = {"": 1, **_UNITS, **{f"{unit}iB": size for unit, size in _UNITS.items()}}
_TIMES: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_DIGITS: Final = frozenset("0123456789")
_MAX_DIGITS: Final = 19  # of MAX_COUNT; int() takes its time over thousands
_MAX_FRACTION: Final = 3

_SIZE_HINT: Final = f"bytes, or with K, M or G for 1024, 1024^2, 1024^3; at most {MAX_SIZE >> 30}G"
_TIME_HINT: Final = f"seconds, as 90 or 0.5, or with s, m or h; at most {MAX_SECONDS}"


def seconds(text: str, flag: str, least: float = 0.001) -> float:
    """Read a time: ``90``, ``0.5``, ``15m``, ``1.5h``.

    Args:
        text: The value.
        flag: The flag, for errors.
        least: The shortest time that it may be.

    Raises:
        WwError: With code 2 for anything else, and for more than :data:`MAX_SECONDS`.
    """
    digits, unit = _cut(text)
    whole, dot, fraction = digits.partition(".")
    legal = is_number(whole) and unit in _TIMES
    if dot:
        legal = legal and 1 <= len(fraction) <= _MAX_FRACTION and _DIGITS.issuperset(fraction)
    if not legal:
        _fail(flag, text, "time", _TIME_HINT)
    value = float(digits) * _TIMES[unit]
    if not least <= value <= MAX_SECONDS:
        _fail(flag, text, "time that can be", _TIME_HINT)
    return value


def whole_seconds(text: str, flag: str) -> int:
    """Read a time, and round it up.

    Raises:
        WwError: As :func:`seconds`.
    """
    value = seconds(text, flag)
    whole = int(value)
    return whole + (whole < value)


def size(text: str, flag: str, least: int = 0) -> int:
    """Read a number of bytes: ``65536``, ``64K``, ``64KiB``, ``2G``.

    Args:
        text: The value.
        flag: The flag, for errors.
        least: The smallest size that it may be.

    Raises:
        WwError: With code 2 for anything else, and for more than :data:`MAX_SIZE`.
    """
    digits, unit = _cut(text)
    if not is_number(digits) or unit not in _SIZES:
        _fail(flag, text, "size", _SIZE_HINT)
    value = int(digits) * _SIZES[unit]
    if not least <= value <= MAX_SIZE:
        _fail(flag, text, "size that can be", _SIZE_HINT)
    return value


def count(text: str, flag: str, least: int, most: int) -> int:
    """Read a plain number.

    Raises:
        WwError: With code 2 for anything else, and for one out of range.
    """
    hint = f"a number from {least} to {most} in plain decimal digits"
    if not is_number(text):
        _fail(flag, text, "number", hint)
    value = int(text)
    if not least <= value <= most:
        _fail(flag, text, "number that can be", hint)
    return value


def _cut(text: str) -> tuple[str, str]:
    """Cut a number from its unit."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return digits, text[len(digits) :]


def is_number(text: str) -> bool:
    """Whether a text is a number in plain decimal digits; ``int`` alone takes much more."""
    if not 1 <= len(text) <= _MAX_DIGITS or not _DIGITS.issuperset(text):
        return False
    return text[0] != "0" or text == "0"


def _fail(flag: str, text: str, what: str, hint: str) -> NoReturn:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise WwError(flag, f"'{shown}' is no {what}", hint=hint, code=EXIT_USAGE)


def seconds_text(value: float) -> str:
    """Write a time as short as it can be, so that :func:`seconds` reads it back."""
    for unit in ("h", "m"):
        if value and value % _TIMES[unit] == 0:
            return f"{value / _TIMES[unit]:.0f}{unit}"
    return f"{value:.3f}".rstrip("0").rstrip(".") + "s"


def size_text(value: int) -> str:
    """Write a size as short as it can be, so that :func:`size` reads it back."""
    for unit in ("G", "M", "K"):
        if value and value % _UNITS[unit] == 0:
            return f"{value // _UNITS[unit]}{unit}"
    return str(value)


class Flag(Record):
    """A flag for one limit.

    Attributes:
        name: The flag.
        field: The field of :class:`sandbox.Limits`.
        metavar: What its value is.
        help: What it limits.
        read: From its value, and its name for errors.
        text: From the limit.
        optional: Whether there may be no limit at all.
    """

    name: str
    field: str
    metavar: str
    help: str
    read: Callable[[str, str], float]
    text: Callable[[Any], str]
    optional: bool = False

    def shown(self, limits: Limits) -> str:
        """Write this limit, or that there is none."""
        value = getattr(limits, self.field)
        return _NONE if value is None else self.text(value)


FLAGS: Final = (
    Flag(
        "--timeout",
        "wall",
        "TIME",
        "End the cell after so many seconds, its compilation included; with s, m or h",
        seconds,
        seconds_text,
        optional=True,
    ),
    Flag(
        "--cpu-time",
        "cpu",
        "TIME",
        "End it after so many seconds of processor time, rounded up to whole ones",
        whole_seconds,
        seconds_text,
        optional=True,
    ),
    Flag(
        "--fuel",
        "fuel",
        "N",
        "End it after about N instructions; counting makes it slower",
        lambda text, flag: count(text, flag, 1, MAX_COUNT),
        str,
        optional=True,
    ),
    Flag(
        "--memory",
        "memory",
        "SIZE",
        "Bytes of its memory; with K, M or G",
        lambda text, flag: size(text, flag, 1),
        size_text,
        optional=True,
    ),
    Flag(
        "--table-elements",
        "table_elements",
        "N",
        "Elements of each of its tables",
        # A table has no more: WebAssembly core specification, validation of limits.
        lambda text, flag: count(text, flag, 0, (1 << 32) - 1),
        str,
    ),
    Flag(
        "--output",
        "output",
        "SIZE",
        "Bytes that it may write in all",
        size,
        size_text,
        optional=True,
    ),
    Flag(
        "--pids",
        "pids",
        "N",
        "Processes and threads",
        # PID_MAX_LIMIT of the kernel's include/linux/threads.h.
        lambda text, flag: count(text, flag, 1, 1 << 22),
        str,
    ),
    Flag(
        "--nofile",
        "nofile",
        "N",
        "Descriptors that it may have open beside its grants",
        lambda text, flag: count(text, flag, 0, 1 << 16),
        str,
    ),
    Flag(
        "--scratch",
        "scratch",
        "SIZE",
        "Give it a writable /tmp of so many bytes, in memory, that ends with it",
        size,
        size_text,
    ),
)


def read_limits(values: Mapping[str, str | None]) -> Limits:
    """Read the values of all limits that are given; the others have their defaults.

    Args:
        values: By the fields of :class:`sandbox.Limits`; None where a flag is not given.

    Raises:
        WwError: With code 2 for the first that is not well formed.
    """
    limits: dict[str, Any] = {}
    for flag in FLAGS:
        text = values.get(flag.field)
        if text == _NONE and flag.optional:
            limits[flag.field] = None
        elif text is not None:
            limits[flag.field] = flag.read(text, flag.name)
    return Limits(**limits)

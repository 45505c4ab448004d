"""What can be said of a run beside its cell and its grants, and what of it cannot be.

It is checked when a run is asked for: before anything is held here, or sent to another machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypedDict

from sandbox import granting
from sandbox.library.offer import Source
from sandbox.policy import NETWORKS, Limits, Network

# Bytes of all arguments and variables. A plan is a message of at most 64 MiB, where one byte may
# take six.
_MOST_TEXT: Final = 8 << 20
_SHOWN: Final = 70  # characters of a text that cannot be, in an error
# As of the flags of ``ww run``: poll(2) counts milliseconds in an int; what is added up of sizes
# fits into a long.
_MOST_SECONDS: Final = 2_000_000
_MOST_COUNT: Final = 1 << 50
_MAY_BE_NONE: Final = frozenset({"wall", "cpu", "fuel", "memory", "output"})


class Options(TypedDict, total=False):
    """What can be said of a run, beside the cell, its arguments and its grants.

    Attributes:
        stdin: What the cell can read from its standard input: bytes, a path, or an open
            descriptor, which is shared; nothing by default.
        env: Variables for it, beside those that tell of its grants. Nothing of this process's own
            environment reaches it.
        limits: What it may use up. ``output`` also bounds the memory that its standard output and
            error take in this process, so it has to be a number unless both are granted.
        network: What its network namespace holds: a ``lo`` that is down, or one that is up.
        invoke: The function of a core module to call in place of ``_start``; empty for that.
        unknown_imports_trap: Whether functions that it imports and nobody offers trap when they
            are called; otherwise such a cell is rejected.
    """

    stdin: Source
    env: Mapping[str, str] | None
    limits: Limits
    network: Network
    invoke: str
    unknown_imports_trap: bool


DEFAULTS: Final[Options] = {
    "stdin": b"",
    "env": None,
    "limits": Limits(),
    "network": NETWORKS[0],
    "invoke": "",
    "unknown_imports_trap": False,
}
"""The value of each option that is not said."""

_KINDS: Final = {"limits": Limits, "invoke": str, "unknown_imports_trap": bool}


def check_options(args: Iterable[str], options: Options) -> tuple[str, ...]:
    """Hold that a run can be given these arguments and options; ``stdin`` is not looked at.

    Returns:
        The arguments.

    Raises:
        TypeError: If something is of another type than it has to be, or there is no such option.
        ValueError: If an argument, a variable, a limit or the network cannot be.
    """
    if isinstance(args, str):
        raise TypeError("args are many texts, and this is one: write [text]")
    texts = tuple(args)
    for text in texts:
        check_type("an argument", text, str)
    for name, value in options.items():
        if name in _KINDS:
            check_type(name, value, _KINDS[name])
        elif name not in DEFAULTS:
            raise TypeError(f"{name!r} is not an option of a run")
    settled: Options = {**DEFAULTS, **options}
    _check_texts(texts, _checked_env(settled["env"]), settled["invoke"])
    _check_limits(settled["limits"])
    network = settled["network"]
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}, and not one of {', '.join(NETWORKS)}")
    return texts


def check_type(what: str, value: object, kind: type) -> None:
    """Hold that a value is of a type.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{what} has to be of type {kind.__name__}, and not {type(value).__name__}")


def _checked_env(env: object) -> Mapping[str, str]:
    """Return variables, all of whose names and values are texts."""
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"env has to be a mapping, and not of type {type(env).__name__}")
    for key, value in env.items():
        check_type("the name of a variable", key, str)
        check_type(f"the variable {key}", value, str)
    return env


def _check_texts(args: Sequence[str], env: Mapping[str, str], invoke: str) -> None:
    """Hold that texts can reach a cell, and variables do not stand in the way of its grants."""
    total = 0
    for text in (*args, *env, *env.values(), invoke):
        if "\0" in text:
            raise ValueError(f"a NUL character cannot reach a cell: {text[:_SHOWN]!r}")
        total += len(text.encode())  # UnicodeEncodeError, a ValueError: WASI strings are UTF-8
    if total > _MOST_TEXT:
        raise ValueError(
            f"arguments and variables are {total} bytes together, more than {_MOST_TEXT}: give"
            " them as the standard input or as a grant"
        )
    for key in env:
        if not key or "=" in key:
            raise ValueError(f"{key!r} is no name of a variable")
        if key == granting.TABLE or key.startswith(granting.KEPT_PREFIX):
            raise ValueError(f"the variable {key} is kept for grants")


def _check_limits(limits: Limits) -> None:
    """Hold that limits are numbers that the kernel and the engine can count to."""
    for name, value in limits._asdict().items():
        if value is None:
            legal = name in _MAY_BE_NONE
        elif name == "wall":
            legal = isinstance(value, (int, float)) and 0 <= value <= _MOST_SECONDS
        else:
            most = _MOST_SECONDS if name == "cpu" else _MOST_COUNT
            legal = isinstance(value, int) and 0 <= value <= most
        if not legal or isinstance(value, bool):
            raise ValueError(f"limits.{name} cannot be {value!r}")

"""The descriptors of systemd socket activation: ``--use-systemd-fds``.

The rules are those of sd_listen_fds(3). It takes whatever it finds if ``LISTEN_PID`` matches;
here everything is checked first, because these descriptors are granted.
"""

import os
from collections import Counter
from collections.abc import Mapping, MutableMapping
from typing import Final, NamedTuple

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.model import Request, is_name, number, shown
from runner.inherited import Inherited

ORIGIN: Final = "--use-systemd-fds"
DEFAULT_PREFIX: Final = "listen"
FIRST: Final = 3  # SD_LISTEN_FDS_START
# What one message can carry, SCM_MAX_FD of the kernel's include/net/scm.h. It bounds the loop
# over a number that comes from outside.
MAX_COUNT: Final = 253
VARIABLES: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

# What systemd calls a descriptor that nobody has named, sd_listen_fds_with_names(3).
_NAMELESS: Final = "unknown"


class ListenFds(NamedTuple):
    """What systemd has passed.

    Attributes:
        requests: One for each descriptor, by number, named PREFIX0, PREFIX1 and so on.
        aliases: What else some of them may be called, each with the name of its request.
    """

    requests: tuple[Request, ...]
    aliases: dict[str, str]


def take_listen_fds(
    environ: MutableMapping[str, str],
    inherited: Inherited,
    prefix: str = DEFAULT_PREFIX,
    *,
    pid: int | None = None,
) -> ListenFds:
    """Read what the environment says about passed descriptors, and remove it there.

    It is removed even if there is an error: the descriptors are close-on-exec by now, so it is
    true for no program that is started from here.

    Args:
        environ: The environment of this process, as ``os.environ``.
        inherited: What ww was started with.
        prefix: The first part of the names.
        pid: The id of this process, if not that of the caller.

    Raises:
        WwError: With code 2 if the prefix makes no legal names. With code 65 if the descriptors
            are another process's, their number or their names make no sense, or one of them
            was not inherited.
    """
    found = {key: value for key in VARIABLES if (value := environ.pop(key, None)) is not None}
    if not is_name(f"{prefix}{MAX_COUNT - 1}"):
        raise WwError(
            ORIGIN,
            f"{shown(prefix)} cannot begin a name",
            hint="a prefix is an ASCII letter, then up to 59 letters, digits, '_' and '-'",
            code=EXIT_USAGE,
        )
    _check_pid(found, os.getpid() if pid is None else pid)
    _check_pidfd_id(found)
    count = _count(found)
    for fd in range(FIRST, FIRST + count):
        _check_inherited(fd, count, inherited)
    names = [f"{prefix}{index}" for index in range(count)]
    requests = tuple(
        Request(name, fd, f"{ORIGIN} (fd {fd})") for fd, name in enumerate(names, FIRST)
    )
    return ListenFds(requests, _aliases(found, names))


def _check_pid(found: Mapping[str, str], own: int) -> None:
    """Hold that the descriptors are meant for this process, and not for one that started it."""
    text = found.get("LISTEN_PID")
    if text is None:
        raise _refusal(
            "LISTEN_PID is not set: systemd has passed nothing",
            "start ww from a .socket unit, or with systemd-socket-activate",
        )
    pid = number(text)
    if pid is None:
        raise _refusal(f"LISTEN_PID is {shown(text)}, which is no process id")
    if pid != own:
        raise _refusal(
            f"the descriptors are for process {pid} (LISTEN_PID), and ww is process {own}",
            "start ww with exec: a shell or sudo between systemd and ww has another id",
        )


def _check_pidfd_id(found: Mapping[str, str]) -> None:
    """Hold the same by a number that no other process has until the machine starts again.

    It is the inode of a pidfd, since Linux 6.9; before that, systemd passes none that means
    anything, and all pidfds have one inode.
    """
    text = found.get("LISTEN_PIDFDID")
    if text is None:
        return
    pidfd = os.pidfd_open(os.getpid())
    try:
        if not os.readlink(f"/proc/self/fd/{pidfd}").startswith("pidfd:"):
            return
        number_of_own = os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)
    if text != str(number_of_own):
        raise _refusal(
            f"the descriptors are for a process with another LISTEN_PIDFDID, {shown(text)}",
            "the variables are left from one that had ww's id before",
        )


def _count(found: Mapping[str, str]) -> int:
    text = found.get("LISTEN_FDS")
    if text is None:
        raise _refusal("LISTEN_FDS is not set, but LISTEN_PID is")
    count = number(text)
    if count is None or not 1 <= count <= MAX_COUNT:
        raise _refusal(f"LISTEN_FDS is {shown(text)}", f"it must be 1 to {MAX_COUNT}")
    return count


def _check_inherited(fd: int, count: int, inherited: Inherited) -> None:
    if fd in inherited.sources:
        return
    state = "close-on-exec" if fd in inherited.close_on_exec else "not open"
    raise _refusal(
        f"LISTEN_FDS is {count}, but fd {fd} is {state}",
        f"{FIRST} to {FIRST + count - 1} must reach ww; does a program between close them?",
    )


def _aliases(found: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """Find what the descriptors may be called beside PREFIX0, PREFIX1 and so on.

    The socket units' names are theirs to choose: the default is the unit's own with its dot, and
    no name here. Such a descriptor has no alias. But a word that could mean two of them is an
    error, because the order of the descriptors differs from boot to boot.
    """
    text = found.get("LISTEN_FDNAMES")
    if text is None:
        return {}
    given = text.split(":")
    if len(given) != len(names):
        raise _refusal(
            f"LISTEN_FDNAMES has {len(given)} names for {len(names)} descriptors",
            "with systemd-socket-activate, write --fdname=NAME:NAME with one for each socket",
        )
    times = Counter(given)
    seen: Counter[str] = Counter()
    aliases: dict[str, str] = {}
    for word, name in zip(given, names, strict=True):
        alias = word
        if times[word] > 1:
            alias = f"{word}{seen[word]}"
            seen[word] += 1
        if word == _NAMELESS or not is_name(alias) or alias == name:
            continue
        if alias in names or alias in aliases:
            raise _refusal(
                f"'{alias}' could be two descriptors: by LISTEN_FDNAMES {name}, but also another",
                f"choose another FileDescriptorName=, or {ORIGIN}=PREFIX",
            )
        aliases[alias] = name
    return aliases


def _refusal(what: str, hint: str = "") -> WwError:
    return WwError(ORIGIN, what, hint=hint, code=EXIT_GRANT)

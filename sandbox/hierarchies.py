"""Where this process stands among the control groups, and where their file systems are mounted.

Nothing is changed here. See cgroups(7), and proc_pid_cgroup(5) and proc_pid_mountinfo(5) for the
two files that tell it.
"""

import os
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

_PROC = "/proc/self"
# What the kernel writes for space, tab, newline, backslash and number sign (fs/proc_namespace.c).
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, as far as it matters here.

    Attributes:
        device: The number that stat(2) gives for files in it.
        root: Which directory of the file system is mounted.
        point: Where.
        kind: The file system's name.
        options: Its own options; a version 1 hierarchy names its controllers there.
    """

    device: int
    root: str
    point: str
    kind: str
    options: frozenset[str]


class Group(NamedTuple):
    """A control group's directory.

    Attributes:
        fd: A descriptor of it.
        path: Where it was found, for messages.
    """

    fd: int
    path: str


class Standing(NamedTuple):
    """Which control groups this process is in.

    Attributes:
        unified: The group of the version 2 hierarchy, if that is mounted.
        legacy: The groups by version 1 controller, as far as these are mounted. Controllers that
            share a hierarchy share a group.
        shut: Why its group of version 2 cannot be opened though that is mounted, or "".
    """

    unified: Group | None
    legacy: dict[str, Group]
    shut: str = ""

    def close(self, kept: Collection[Group] = ()) -> None:
        """Close the descriptors, but for those of some groups."""
        groups = {*self.legacy.values(), *([self.unified] if self.unified else [])}
        for group in groups.difference(kept):
            os.close(group.fd)


def stand(controllers: Iterable[str], proc: str = _PROC) -> Standing:
    """Find the groups of this process.

    Args:
        controllers: The version 1 controllers that matter.
        proc: This process's directory in proc.

    Raises:
        OSError: ENOENT where proc is not mounted, or the kernel has no control groups.
    """
    member = read_memberships(_read(f"{proc}/cgroup"))
    mounts = read_mounts(_read(f"{proc}/mountinfo"))
    shut: list[OSError] = []
    unified = _open("", member, [m for m in mounts if m.kind == "cgroup2"], shut)
    legacy: dict[str, Group] = {}
    for controller in controllers:
        places = [m for m in mounts if m.kind == "cgroup" and controller in m.options]
        found = _open(controller, member, places, [])
        if found is None:
            continue
        shared = next((g for g in legacy.values() if g.path == found.path), None)
        if shared is not None:
            os.close(found.fd)
        legacy[controller] = shared or found
    why = f"{shut[0].filename}: {shut[0].strerror}" if shut and unified is None else ""
    return Standing(unified, legacy, why)


def read_memberships(text: str) -> dict[str, str]:
    """Return the path of this process's group by controller; "" is the version 2 hierarchy.

    Args:
        text: The content of /proc/PID/cgroup. Lines that are not of its form are passed over.
    """
    found: dict[str, str] = {}
    for line in text.split("\n"):
        match line.split(":", 2):
            case [_, controllers, path] if path.startswith("/"):
                for controller in controllers.split(","):
                    found.setdefault(controller, path)
    return found


def read_mounts(text: str) -> list[Mount]:
    """Return the mounts that hold control groups, in the order of the file.

    Args:
        text: The content of /proc/PID/mountinfo. Lines that are not of its form are passed over.
    """
    found = []
    for line in text.split("\n"):
        # Optional fields stand between the sixth and a hyphen.
        before, separator, after = line.partition(" - ")
        match (*before.split(" ")[:5], *after.split(" ")[:3]):
            case [_, _, device, root, point, ("cgroup" | "cgroup2") as kind, _, options]:
                number = _device(device)
                if separator and number is not None:
                    names = frozenset(options.split(","))
                    found.append(Mount(number, _unescape(root), _unescape(point), kind, names))
    return found


def _device(text: str) -> int | None:
    major, _, minor = text.partition(":")
    # Not isdigit(), which is true of more than int() takes; and makedev() takes 32 bits of each.
    if not re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", text):
        return None
    return os.makedev(int(major), int(minor))


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def locate(path: str, mount: Mount) -> str | None:
    """Return where a group is found through a mount, or ``None`` if it is not below its root.

    In a cgroup namespace a path outside of it begins with "/..", which leads nowhere.
    """
    if ".." in path.split("/") or ".." in mount.root.split("/"):
        return None
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    return f"{mount.point}{path[len(root) :]}".rstrip("/") or "/"


def _open(
    controller: str, member: dict[str, str], mounts: list[Mount], shut: list[OSError]
) -> Group | None:
    """Open this process's group through the first mount that shows it; note what would not open."""
    if controller not in member:
        return None
    for mount in mounts:
        path = locate(member[controller], mount)
        if path is None:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            # The group was removed, or a directory above it is not for us.
            shut.append(error)
            continue
        # Something else may be mounted over it.
        if os.fstat(fd).st_dev == mount.device:
            return Group(fd, path)
        os.close(fd)
    return None


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()

"""What a user can do about a jail that the machine refuses: the one setting that mends it."""

import errno
import os

# How many ids a container usually has, from /etc/subuid: enough for 65534 to be one of them.
_USUAL_IDS = 65536

_SYSCTL = {
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "AppArmor restricts user namespaces here: run 'sudo sysctl -w "
        "kernel.apparmor_restrict_unprivileged_userns=0', or give ww a profile with 'userns,'",
    ),
    "/proc/sys/kernel/unprivileged_userns_clone": (
        "0",
        "user namespaces are switched off here: run 'sudo sysctl -w "
        "kernel.unprivileged_userns_clone=1'",
    ),
    "/proc/sys/user/max_user_namespaces": (
        "0",
        "user namespaces are switched off here: run 'sudo sysctl -w "
        "user.max_user_namespaces=15000'",
    ),
}


def remedy(step: str, number: int) -> str:
    """Return a hint for a step of the jail that failed, or an empty string.

    It goes by evidence on this machine, not by guesses from the error alone.

    Args:
        step: The step's name, as :func:`sandbox.jail.enter` orders them.
        number: The error number.
    """
    if step in ("spawner", "id maps") and number == errno.EPERM and _root_of_few_ids():
        return (
            "this root is one of a user namespace that does not have the cell's id: run ww as an "
            "ordinary user, or map more ids into the namespace"
        )
    if step in ("namespaces", "id maps"):
        return _user_namespaces(number)
    if step == "proc" and number == errno.EPERM:
        return (
            "parts of /proc are covered here, as in a container, so no new one may be mounted; "
            "run without pathlink, or let the container have an unmasked /proc"
        )
    if step == "limits":
        return "lift it for ww: ulimit -v unlimited; a cell's memory is limited otherwise"
    if step == "session" and number == errno.EDQUOT:
        return "the user's kernel key quota is used up: raise kernel.keys.maxkeys with sysctl"
    return ""


def _root_of_few_ids() -> bool:
    """Tell whether this is root in a user namespace that maps few ids; user_namespaces(7)."""
    counts = [int(line.split()[2]) for line in _read("/proc/self/uid_map").splitlines()]
    return os.geteuid() == 0 and sum(counts) < _USUAL_IDS


def _user_namespaces(number: int) -> str:
    if number == errno.ENOSYS:
        return "a container's seccomp profile hides clone3, or Linux is older than 5.3"
    if number == errno.EPERM and not _root_is_mounted():
        return "ww is in a chroot, where no user namespace may be made: run it outside"
    for path, (value, hint) in _SYSCTL.items():
        if _read(path) == value:
            return hint
    if "Seccomp:\t2" in _read("/proc/self/status"):
        return "a seccomp filter, as a container's, forbids namespaces: run ww with one that allows"
    if number == errno.ENOSPC:
        return "too many namespaces exist already, or nesting is forbidden here"
    return ""


def _root_is_mounted() -> bool:
    """Tell whether the root directory is a mount point, as it is but in a chroot."""
    return any(line.split()[4] == "/" for line in _read("/proc/self/mountinfo").splitlines())


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""

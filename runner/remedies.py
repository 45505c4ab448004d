"""What a user can do about a jail that the machine refuses: the one setting that mends it.

It goes by evidence on this machine, and not by guesses from the error alone; a run that fails and
``ww doctor`` say the same.
"""

import ctypes
import errno
import mmap
import os

# How many ids a container usually has, from /etc/subuid: enough for 65534 to be one of them.
_USUAL_IDS = 65536

_APPARMOR_SYSCTL = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
_DEBIAN_SYSCTL = "/proc/sys/kernel/unprivileged_userns_clone"
# One for each kind of namespace; namespaces(7), "The /proc/sys/user directory".
_COUNTS = tuple(
    f"max_{kind}_namespaces"
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
)
# Linux's own default depends on the memory; this is what distributions set.
_USUAL_COUNT = 15000

# Steps that need a privilege in the new user namespace, which a security module can withhold.
_PRIVILEGED = (
    "ids",
    "mount propagation",
    "root",
    "proc",
    "attach root",
    "pivot_root",
    "attach",
    "read-only root",
    "directories",
    "network",
    "session",
    "privileges",
)
_REFUSED = (errno.EPERM, errno.EACCES)

# The versions of Linux that first had all of a step's calls.
_SINCE = {
    "namespaces": "5.3",  # clone3
    "root": "5.2",  # fsopen
    "read-only root": "5.12",  # mount_setattr
    "directories": "5.12",
    "proc": "5.8",  # subset=pid
    "landlock": "5.13",
    "seccomp": "3.17",
}

# What in a systemd unit takes a step's calls away, beside SystemCallFilter=; systemd.exec(5).
_UNIT_SETTINGS = {
    "namespaces": "RestrictNamespaces=",
    "session": "ProtectHostname=",
}

_SCOPE = "systemd-run --user --scope -p Delegate=yes"

# include/uapi/linux/capability.h
_CAP_SYS_ADMIN = 21
# With them root drops its groups, and maps the cell's id, which is not its own.
_CAPS_OF_IDS = {"CAP_SETGID": 6, "CAP_SETUID": 7}


def remedy(step: str, number: int) -> str:
    """Return a hint for a step of the jail that failed, or an empty string.

    Args:
        step: The step's name, as :meth:`sandbox.jail.Jail.enter` orders them, ``spawner`` or
            ``cgroup``.
        number: The error number, or 0 where none came from the kernel.
    """
    if number == errno.ENOENT and step in ("spawner", "id maps") and not _exists("/proc/self/fd"):
        return "no /proc is mounted here, as in a bare chroot: mount -t proc proc /proc"
    if step in ("spawner", "id maps") and number == errno.EPERM and _root_of_few_ids():
        return (
            "this root is one of a user namespace that does not have the cell's id: run ww as an "
            "ordinary user, or map more ids into the namespace"
        )
    if step in ("spawner", "id maps") and number == errno.EPERM and (lack := _root_lacks()):
        return (
            f"this root lacks {lack}, as in a container with dropped capabilities: run ww as an "
            "ordinary user, or do not drop that (docker and podman: --cap-add)"
        )
    match step:
        case "namespaces" | "id maps":
            return _user_namespaces(step, number)
        case "limits":
            return (
                "lift it for ww: ulimit -v unlimited, or ulimit -s 8192; "
                "a cell's memory is limited otherwise"
            )
        case "landlock":
            return _landlock(number)
        case "seccomp":
            return _seccomp(number)
        case "spawner" if not number and not _may_make_code():
            return (
                "no memory may be made executable here, and the engine compiles: lift that for ww "
                "(a systemd unit: MemoryDenyWriteExecute=no)"
            )
        case "cgroup" | "cgroup memory" | "cgroup pids":
            return _cgroup()
        case "session" if number == errno.EDQUOT:
            return "the user's kernel key quota is used up: raise kernel.keys.maxkeys with sysctl"
        case "network" if not number:
            return "pyroute2 is not installed beside ww: run scripts/install again"
        case "network" if number == errno.EAFNOSUPPORT:
            return "ww may open no netlink socket; of a systemd unit: RestrictAddressFamilies="
        # A filter that forbids mounts would have met the root's before.
        case "proc" if number == errno.EPERM and _proc_is_covered():
            return (
                "parts of /proc are covered here, as in a container, so no new one may be mounted; "
                "run without pathlink, or start the container with an unmasked /proc (docker and "
                "podman: --security-opt unmask=ALL or systempaths=unconfined)"
            )
    if number == errno.ENOSYS:
        return _no_call(step)
    if step in _PRIVILEGED and number in _REFUSED:
        hint = _withheld(step)
        if not hint and (step, number) == ("directories", errno.EACCES):
            return (
                "the cell's user may not read it, who is 65534 where root runs ww: "
                "see chmod(1), or --uid"
            )
        return hint
    # It may forbid anything: to open what has no path in its eyes, for one.
    return _confined() if number in _REFUSED else ""


def _root_of_few_ids() -> bool:
    """Tell whether this is root in a user namespace that maps few ids; user_namespaces(7)."""
    counts = [int(line.split()[2]) for line in _read("/proc/self/uid_map").splitlines()]
    return os.geteuid() == 0 and sum(counts) < _USUAL_IDS


def _root_lacks() -> str:
    """Return which of its capabilities over ids this root has not, if it is root."""
    if os.geteuid() != 0:
        return ""
    return " and ".join(name for name, number in _CAPS_OF_IDS.items() if not _capable(number))


def _user_namespaces(step: str, number: int) -> str:
    if number == errno.ENOSYS:
        return _no_call(step)
    if number == errno.EPERM and not _root_is_mounted():
        return "ww is in a chroot, where no user namespace may be made: run it outside"
    for name in _COUNTS:
        if number == errno.ENOSPC and _read(f"/proc/sys/user/{name}") == "0":
            return (
                f"namespaces are switched off here: run 'sudo sysctl -w user.{name}={_USUAL_COUNT}'"
            )
    if number in _REFUSED and (hint := _withheld(step)):
        return hint
    if number == errno.EACCES:
        # The kernel itself says EPERM.
        return f"a security module forbids it: {_read('/sys/kernel/security/lsm') or 'unknown'}"
    if number == errno.ENOSPC:
        return (
            "nesting is forbidden here, as by 'bwrap --disable-userns': run ww outside of it; or "
            "too many namespaces exist already"
        )
    if step == "namespaces" and number == errno.EPERM:
        # A chroot whose root is a mount does not show.
        return "the kernel allows none in a chroot: if this is one, run ww outside of it"
    return ""


def _withheld(step: str) -> str:
    """Explain why something is refused that the kernel alone would allow."""
    # Neither setting is for who administers the machine; a container's root does not.
    if not _administers():
        if _read(_DEBIAN_SYSCTL) == "0":
            return (
                "user namespaces are switched off here: run 'sudo sysctl -w "
                "kernel.unprivileged_userns_clone=1'"
            )
        if _read(_APPARMOR_SYSCTL) == "1":
            return (
                "AppArmor restricts user namespaces here: run 'sudo sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0', or give ww a profile with "
                "'userns,'"
            )
    if _filtered():
        return _lift("a system call filter, as a container's, forbids it", step)
    return _confined()


def _confined() -> str:
    """Name the AppArmor profile that ww is under, which may have refused; apparmor(7)."""
    profile = _apparmor_profile()
    if not profile:
        return ""
    return (
        f"the AppArmor profile '{profile}' may forbid it: run ww under another (docker and "
        "podman: --security-opt apparmor=unconfined)"
    )


def _no_call(step: str) -> str:
    """Explain ENOSYS: a filter can answer with it, and so does a kernel without the call."""
    if _filtered():
        return _lift("a system call filter, as a container's, hides it", step)
    since = _SINCE.get(step)
    return f"Linux {since} or newer has it, and this is {os.uname().release}" if since else ""


def _lift(what: str, step: str) -> str:
    unit = ", ".join(filter(None, (_UNIT_SETTINGS.get(step, ""), "SystemCallFilter=")))
    return (
        f"{what}: run ww under one that allows it (docker and podman: --security-opt "
        f"seccomp=unconfined; a systemd unit: {unit})"
    )


def _landlock(number: int) -> str:
    if number in _REFUSED or (number in (0, errno.ENOSYS) and _filtered()):
        return _lift("a system call filter, as a container's, may hide it", "landlock")
    modules = _read("/sys/kernel/security/lsm")
    if number == errno.EOPNOTSUPP or (modules and "landlock" not in modules.split(",")):
        first = f"landlock,{modules}" if modules else "landlock,..."
        return f"if this kernel has it, it is switched off: boot with lsm={first}"
    return f"Linux {_SINCE['landlock']} or newer can have it, and this is {os.uname().release}"


def _seccomp(number: int) -> str:
    if not number:
        return "install the library libseccomp: apt-get install libseccomp2"
    if number in (errno.EINVAL, errno.ENOSYS) and not _filtered():
        return "this kernel has no system call filters (CONFIG_SECCOMP_FILTER)"
    return _lift("a system call filter, as a container's, forbids another", "seccomp")


def _cgroup() -> str:
    """Tell how ww comes to a control group that it may divide; systemd.resource-control(5)."""
    if _is_empty("/sys/fs/cgroup"):
        return "no control groups are mounted: mount -t cgroup2 none /sys/fs/cgroup"
    if _exists("/run/systemd/system"):
        scope = _SCOPE if os.geteuid() else _SCOPE.replace(" --user", "")
        return f"have systemd delegate one: {scope} ww run ..."
    return "have a control group delegated to ww, with the controllers memory and pids"


def _filtered() -> bool:
    """Tell whether a system call filter is upon ww, and so upon the jail; proc_pid_status(5)."""
    return "Seccomp:\t2" in _read("/proc/self/status")


def _capable(number: int) -> bool:
    """Tell whether ww has a capability, in the user namespace that it is in; proc_pid_status(5)."""
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & 1 << number)
    return False


def _administers() -> bool:
    """Tell whether ww has root's right over the machine, and not over a namespace only."""
    return _capable(_CAP_SYS_ADMIN) and not _root_of_few_ids()


def _may_make_code() -> bool:
    """Tell whether memory that was written may be made executable, by doing it; mprotect(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        page = ctypes.c_char.from_buffer(memory)
        start = ctypes.c_void_p(ctypes.addressof(page))
        made = libc.mprotect(start, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC)
        # The memory cannot be unmapped while something refers to it.
        del page
    return bool(made == 0)


def _apparmor_profile() -> str:
    """Return the name of ww's AppArmor profile, or an empty string if none confines it."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        # "name (mode)"; other security modules write labels of another form to the second one.
        name, _, mode = _read(path).partition(" (")
        if mode in ("enforce)", "kill)", "prompt)"):
            return name
    return ""


def _root_is_mounted() -> bool:
    """Tell whether the root directory is a mount point, as it is but in a chroot."""
    return "/" in _mount_points()


def _proc_is_covered() -> bool:
    """Tell whether something is mounted below /proc."""
    return any(point.startswith("/proc/") for point in _mount_points())


def _mount_points() -> list[str]:
    return [line.split()[4] for line in _read("/proc/self/mountinfo").splitlines()]


def _is_empty(directory: str) -> bool:
    try:
        return not os.listdir(directory)
    except OSError:
        return True


def _exists(path: str) -> bool:
    return os.path.exists(path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip("\n")
    except OSError:
        return ""

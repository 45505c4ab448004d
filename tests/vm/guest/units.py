"""Units of examples/, installed as their README says, and taken away again.

Root has those of the system, an ordinary user those of their own manager.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import CAN_BE_ROOT, EXAMPLES

FOLDER = Path("/etc/systemd/system" if CAN_BE_ROOT else "~/.config/systemd/user").expanduser()
MANAGER = [] if CAN_BE_ROOT else ["--user"]
# There is one of each unit, one port and one account: one test at a time has them.
LOCK = "/tmp/units-of-examples"
PROGRAM = Path(sys.executable).parent / "ww"
ACCOUNT = "ww"
_EXEC = re.compile(r"^(Exec\w+=)\S*/ww(?= )", re.MULTILINE)


def systemctl(*words: str, check: bool = True) -> str:
    """Ask the manager; its answer."""
    done = subprocess.run(
        ["systemctl", *MANAGER, "--no-pager", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"systemctl {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def state(unit: str, name: str) -> str:
    """A property of a unit."""
    return systemctl("show", "--value", f"--property={name}", unit)


def journal(unit: str) -> str:
    """What a unit has said, for a test that failed."""
    command = ["journalctl", *MANAGER, "--no-pager", "--output=cat", "--unit", unit]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


class Units:
    """`with Units("systemd"):` the units of examples/systemd are installed, and none is started.

    They start the `ww` of this tree, wherever theirs is, and the account that they name exists.
    """

    def __init__(self, folder: str, changes: Mapping[str, str] | None = None) -> None:
        """Take the units of a folder.

        Args:
            folder: Its name, in examples/.
            changes: Drop-ins (systemd.unit(5)) by unit.
        """
        found = [*(EXAMPLES / folder).glob("*.service"), *(EXAMPLES / folder).glob("*.socket")]
        self.sources = sorted(found)
        self.names = [path.name for path in self.sources]
        self._changes = changes or {}

    def __enter__(self) -> Self:
        self._lock = os.open(LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if CAN_BE_ROOT:
            make_account()
        FOLDER.mkdir(parents=True, exist_ok=True)
        for source in self.sources:
            text = _EXEC.sub(rf"\g<1>{PROGRAM}", source.read_text())
            (FOLDER / source.name).write_text(text)
        for unit, text in self._changes.items():
            folder = FOLDER / f"{unit}.d"
            folder.mkdir()
            (folder / "test.conf").write_text(text)
        systemctl("daemon-reload")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for name in self.names:
                print(f"--- {name}\n{journal(name)}")
        # The sockets first: they would start the services again.
        for name in sorted(self.names, key=lambda name: not name.endswith(".socket")):
            systemctl("stop", name, check=False)
            systemctl("reset-failed", name, check=False)
            (FOLDER / name).unlink()
            shutil.rmtree(FOLDER / f"{name}.d", ignore_errors=True)
        systemctl("daemon-reload")
        os.close(self._lock)


def make_account() -> None:
    """Make the account that the units name, if nobody has."""
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([*command, ACCOUNT], check=True)


def processes_of(account: str) -> set[int]:
    """The processes that an account has."""
    uid = pwd.getpwnam(account).pw_uid
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                found.add(int(entry))
        except FileNotFoundError:
            continue
    return found

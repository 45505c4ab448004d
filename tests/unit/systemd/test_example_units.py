"""The example units: systemd finds nothing wrong, and no setting stands that breaks ww."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, need_command

UNITS = EXAMPLES / "systemd"

# docs/systemd.md says what each of them breaks.
CONFLICTS = {
    *("MemoryDenyWriteExecute", "RestrictNamespaces", "SystemCallFilter", "ProtectHostname"),
    # Only with pathlinks, and only on kernels that want to see all of /proc for another one.
    *("ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset"),
}


def settings(unit: str) -> dict[str, str]:
    lines = (UNITS / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    program = need_command("systemd-analyze")
    # It wants the programs to exist: what stands at /usr/local/bin is not this test's matter.
    for unit in ("ww-echo.socket", "ww-echo.service"):
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/ww", shutil.which("true") or ""))
    done = subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_unit_would_be_found(tmp_path: Path) -> None:
    """Without a running systemd too: else the test above would say nothing."""
    program = need_command("systemd-analyze")
    unit = tmp_path / "x.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nNoNewPrivilege=yes\n")
    done = subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
    )
    assert "NoNewPrivilege" in done.stderr


def test_no_setting_that_breaks_ww_is_in_the_service() -> None:
    assert not CONFLICTS & set(settings("ww-echo.service"))


def test_the_flags_use_the_name_that_the_socket_gives() -> None:
    name = settings("ww-echo.socket")["FileDescriptorName"]
    assert f"--fd-map {name}=" in settings("ww-echo.service")["ExecStart"]


def test_the_service_is_not_ended_by_limits_that_are_meant_for_programs() -> None:
    text = (UNITS / "ww-echo.service").read_text()
    assert "--timeout none --cpu-time none --output none" in text


@pytest.mark.parametrize("setting", sorted(CONFLICTS))
def test_the_document_says_what_each_conflicting_setting_breaks(setting: str) -> None:
    assert f"`{setting}=" in (EXAMPLES.parent / "docs" / "systemd.md").read_text()

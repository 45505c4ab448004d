"""A plugin of pytest's that tells of a failure when it happens, not only when all is done.

In a machine that runs for an hour, and may be ended before that, the names are wanted early.
"""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the test and the last of what it said."""
    if report.failed:
        _tell(f"{report.nodeid} ({report.when}, {report.duration:.1f} s)", report.longreprtext)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Print what cannot be imported: nothing is run then."""
    if report.failed:
        _tell(report.nodeid, report.longreprtext)


def _tell(what: str, text: str) -> None:
    last = text.strip().splitlines()[-12:]
    print(f"\nfailed: {what}")
    print("\n".join(f"    {line}" for line in last), flush=True)

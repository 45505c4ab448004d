"""What is tested in the test machine only: `scripts/vm/run` sets WW_VM there."""

from __future__ import annotations

import os

# They need control groups of version 2 and a running systemd, and install units: that is nothing
# for the machine that somebody works at.
collect_ignore_glob = [] if os.environ.get("WW_VM") else ["test_*.py"]

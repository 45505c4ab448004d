"""What the tests of the WASI host share beside tests/conftest.py."""

from pathlib import Path

import pytest

from tests.conftest import Ww
from tests.wasi.remote_cell import shared_ww


@pytest.fixture
def ww(account_folders: Path) -> Ww:
    """One `ww` for all tests here: hundreds of runs, none of which is about its store."""
    return shared_ww(account_folders, "wasi")

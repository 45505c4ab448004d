"""The code in docs/library.md runs as it stands there."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, REPO

TEXT = (REPO / "docs" / "library.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_there_is_code() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_document_runs(
    number: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hello", "cat-fds"):
        shutil.copy(EXAMPLES / name / f"{name}.wasm", tmp_path)
    monkeypatch.chdir(tmp_path)
    # What the default cache follows from.
    monkeypatch.setenv("WW_HOME", str(cache))
    exec(compile(BLOCKS[number], f"docs/library.md #{number}", "exec"), {"__name__": "document"})

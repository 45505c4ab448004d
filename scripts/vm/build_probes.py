"""Build every C program of the tests here, so that nothing is compiled in the test machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import CELL_FLAGS, PROBE_FLAGS, PROBES, compile_c


def main() -> None:
    """Build what is not in build/test-cells yet."""
    for source in sorted((PROBES / "native").glob("*.c")):
        compile_c(source, PROBE_FLAGS, "")
    for source in sorted((PROBES / "cells").glob("*.c")):
        # A command has main(); what has none is a reactor, as the tests build it.
        is_command = re.search(r"^int main\(", source.read_text(), re.MULTILINE)
        flags = CELL_FLAGS if is_command else (*CELL_FLAGS, "-mexec-model=reactor")
        compile_c(source, flags, ".wasm")


if __name__ == "__main__":
    main()

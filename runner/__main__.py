"""The program ``ww``; ``python -m runner`` is the same."""

from __future__ import annotations

import gc
import os

from runner.errors import WwError
from runner.inherited import capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Objects between two collections of garbage. With the usual 700, the imports of a run cause a
# dozen, which take a millisecond and find nothing; with this, they cause none.
_COLLECT_AFTER = 50_000


def main() -> NoReturn:
    """Run ``ww`` and end the process with its exit code."""
    try:
        inherited = capture()
    except WwError as error:
        os.write(2, f"ww: error: {error}\n".encode(errors="backslashreplace"))
        os._exit(error.code)
    gc.set_threshold(_COLLECT_AFTER)
    # Not before: only what was open until here can be granted.
    from runner.program import run_program

    code = run_program(inherited)
    # All is done and closed; the interpreter's own end would only take time.
    os._exit(code)


if __name__ == "__main__":
    main()

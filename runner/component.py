"""What a component can be granted: it knows no numbers of descriptors.

The sandbox gives it 0, 1 and 2 as standard input, output and error, directories at their paths, and
files as ``/fd/NAME``. Whatever else was granted would not reach it, and is refused here.
"""

from runner.errors import EXIT_USAGE, WwError
from runner.grants.plan import GrantPlan, Refusals
from sandbox import granting


def check(grants: GrantPlan, *, ipfs: bool, invoke: str) -> None:
    """Hold that all that is granted reaches a component, and as it was promised.

    Args:
        grants: The plan.
        ipfs: Whether it has /ipfs.
        invoke: The function that is to be called, if any.

    Raises:
        WwError: 65 for a grant that would not; 2 for a flag that means nothing to a component.
    """
    for asked, flag in ((ipfs, "--with-ipfs"), (invoke, "--invoke")):
        if asked:
            raise WwError(
                flag,
                "the cell is a component, and this is for core modules only",
                hint="build the cell for wasm32-wasip1",
                code=EXIT_USAGE,
            )
    with Refusals():
        granting.check_component(grants.entries)

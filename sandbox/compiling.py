"""What the compilation of a cell is given, and what its end means.

A compiler is a large program that reads hostile input: it can need time and memory out of all
proportion, and a defect in it would run the input's code. So it works in a jail like a cell's,
which holds the input, room for the result, and room for what the compiler says when it gives up.
"""

import fcntl
import os
from typing import Final

from sandbox.grants import Grant
from sandbox.outcome import Outcome, limit
from sandbox.plan import Plan
from sandbox.policy import Limits

# The numbers of the two in the compilation's process.
ARTIFACT: Final = 1
MESSAGES: Final = 2

# Bytes of the largest compiled form. CPython with its numeric libraries has 241 MiB.
_MOST_ARTIFACT = 1 << 30
# Bytes of what is kept of what it says: one page.
_MOST_SAID = 4096
# What a program of Rust says before it ends itself for want of memory: its standard library
# (library/alloc), or a panic of its arenas (the crate bumpalo).
_NO_MEMORY = (b"memory allocation of ", b"\nout of memory\n")
# Of what it says more, only how to learn more.
_ADVICE = "note: "
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def plan_for(plan: Plan) -> Plan:
    """Return the plan of the jail in which a cell is compiled: the same ids and limits, no grants.

    Args:
        plan: The cell's own.
    """
    bounds = Limits(
        wall=plan.limits.wall,
        cpu=plan.limits.cpu,
        fuel=plan.limits.fuel,
        memory=plan.limits.memory,
        output=_MOST_ARTIFACT,
        pids=1,
        nofile=0,
    )
    return Plan(
        grants=(
            Grant(ARTIFACT, None, "w", "file"),
            Grant(MESSAGES, None, "w", "file"),
        ),
        argv=plan.argv[:1],
        env=(),
        uid=plan.uid,
        gid=plan.gid,
        digest=plan.digest,
        limits=bounds,
        required=plan.required,
        isolation=plan.isolation,
        component=plan.component,
    )


def new_memory(name: str) -> int:
    """Return a descriptor of an empty memory file, close-on-exec; memfd_create(2).

    Raises:
        OSError: As memfd_create(2) says.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def new_messages() -> int:
    """Return a descriptor of a memory file of a fixed size, for what the compiler says.

    What is in there when nothing was said are zeros. Without a control group, its memory is counted
    nowhere, so it cannot grow.

    Raises:
        OSError: As memfd_create(2) says.
    """
    memory = new_memory("messages")
    try:
        os.ftruncate(memory, _MOST_SAID)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(memory)
        raise
    return memory


def seal(memory: int) -> None:
    """Forbid every change of a memory file, after whoever could write it has ended.

    Raises:
        OSError: EBUSY if somebody has it mapped for writing.
    """
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)


def failure(outcome: Outcome, messages: int) -> Outcome | None:
    """Return how a compilation failed, as the cell's own outcome; ``None`` if it did not.

    Args:
        outcome: How the compilation's process ended.
        messages: What it wrote to its standard error.
    """
    if outcome.kind == "exit" and not outcome.code:
        return None
    said = os.pread(messages, _MOST_SAID, 0).partition(b"\0")[0]
    if outcome.limit == "host-memory" or any(sign in said for sign in _NO_MEMORY):
        return limit("memory", "while it was compiled")
    if outcome.kind == "limit":
        return outcome._replace(what="while it was compiled")
    if outcome.kind in ("signal", "isolation"):
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        cause = " ".join(line for line in lines if line and not line.startswith(_ADVICE))
        return Outcome("rejected", what="the compiler gave up on it" + (cause and f": {cause}"))
    if outcome.kind in ("exit", "trap", "stale"):
        # It may be its input's captive, and the cell has not run.
        return Outcome("fault", what="the compiler reported what cannot be")
    return outcome

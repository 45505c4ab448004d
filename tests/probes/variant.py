"""`ww` with a spawner that was tampered with: the whole program otherwise.

    python tests/probes/variant.py PATCH ww-arguments...

PATCH is Python source that the spawner's process runs before it begins. The product has no such
opening: this replaces the text that it hands to the interpreter.
"""

import sys

import runner.__main__
from sandbox import client

BEGIN = "from sandbox.spawner import main\nmain()\n"

# The spawner runs a native program in the cell's place. Before, it tells which descriptors are
# close-on-exec, and clears that, because the program could not see them otherwise.
NATIVE = """
import fcntl, json, os, resource, socket
from sandbox import spawner, wire

def execute(plan, cell, null):
    flags = {}
    for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        try:
            flags[fd] = fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            pass
    text = json.dumps({"flags": flags, "own": [cell, null]}) + "\\n"
    if plan.argv[-1] == "report":
        os.write(1, text.encode())
    for grant in plan.grants:
        os.set_inheritable(grant.target, True)
    os.execve(cell, list(plan.argv), dict(plan.env))

def main():
    spawner.become_spawner()
    spawner.serve(socket.socket(fileno=wire.SPAWNER_FD), execute)

main()
"""


def tampered(patch: str) -> None:
    """Have the next spawner of this process run `patch` first."""
    if BEGIN not in client._BOOT:
        raise RuntimeError("sandbox.client has changed: this file must follow")
    client._BOOT = client._BOOT.replace(BEGIN, f"{patch}\n{BEGIN}")


if __name__ == "__main__":
    tampered(NATIVE if sys.argv[1] == "native" else sys.argv[1])
    del sys.argv[1]
    runner.__main__.main()

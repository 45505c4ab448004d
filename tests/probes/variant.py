"""`ww` with a spawner that was tampered with: the whole program otherwise.

    python tests/probes/variant.py PATCH ww-arguments...

PATCH is Python source that the spawner's process runs before it begins, or `native` or `filtered`.
The product has no such opening: this replaces the text that it hands to the interpreter.
"""

import sys

import runner.__main__
from sandbox import client

BEGIN = "from sandbox.spawner import main\nmain()\n"

# The spawner runs a native program in the cell's place. Before, it tells which descriptors are
# close-on-exec, and clears that, because the program could not see them otherwise.
NATIVE = """
import fcntl, json, os, resource, socket
from sandbox import seccomp, spawner, watch, wire

install = seccomp.install

class Native:
    def find(self, plan, code):
        return os.dup(code)

    def run(self, inside):
        plan, own = inside.plan, inside.own
        os.chdir("/")
        os.close(own.listing)
        flags = {}
        for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
            try:
                flags[fd] = fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                pass
        text = json.dumps({"flags": flags, "own": [own.code, own.null]}) + "\\n"
        if plan.argv[-1] == "report":
            os.write(1, text.encode())
        for grant in plan.grants:
            os.set_inheritable(grant.target, True)
        if own.content >= 0:
            os.set_inheritable(own.content, True)
        os.write(own.line, watch.ENTERED)
        confine(plan)
        os.execve(own.code, list(plan.argv), dict(plan.env))

def main():
    spawner.become_spawner()
    spawner.Spawner(socket.socket(fileno=wire.SPAWNER_FD), Native()).serve()
"""
# Without a system call filter: what is in its way are the other layers, each on its own.
BARE = """
seccomp.install = lambda program: None

def confine(plan):
    pass

main()
"""
# With the filters of a cell that runs, but for the calls with which a program begins: these are
# what becomes of a cell that has broken out of the engine.
FILTERED = """
BEGINNING = ("execveat", "arch_prctl", "set_tid_address", "set_robust_list", "rseq")
allowed, fatal = seccomp.allowed, seccomp.fatal

def wider(profile, machine):
    names = [name for name in BEGINNING if machine == "x86_64" or name != "arch_prctl"]
    return (*allowed(profile, machine), *map(seccomp.Call, names))

seccomp.allowed = wider
seccomp.fatal = lambda profile: tuple(
    call for call in fatal(profile) if call.name not in BEGINNING
)

def confine(plan):
    wide = plan.directories or plan.limits.scratch
    install(seccomp.build("run-directories" if wide else "run"))

main()
"""


def tampered(patch: str) -> None:
    """Have the next spawner of this process run `patch` first."""
    if BEGIN not in client._BOOT:
        raise RuntimeError("sandbox.client has changed: this file must follow")
    client._BOOT = client._BOOT.replace(BEGIN, f"{patch}\n{BEGIN}")


if __name__ == "__main__":
    patches = {"native": NATIVE + BARE, "filtered": NATIVE + FILTERED}
    tampered(patches.get(sys.argv[1], sys.argv[1]))
    del sys.argv[1]
    runner.__main__.main()

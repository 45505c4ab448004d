"""`ww` with a spawner that was tampered with: the whole program otherwise.

    python tests/probes/variant.py [--server] PATCH ww-arguments...

With `--server`, the spawner is a server of that `ww run` alone: a child of ww's, as its own would
be, with jails that are ready before the cell is asked for.

PATCH is Python source that the spawner's process runs before it begins, or `native` or `filtered`.
The product has no such opening: this replaces the text that it hands to the interpreter.
"""

import fcntl
import os
import signal
import socket
import sys
from contextlib import suppress

import runner.__main__
from sandbox import cache_home, client

BEGIN = "from sandbox.spawner import main\nmain()\n"

# The spawner runs a native program in the cell's place. Before, it tells which descriptors are
# close-on-exec, and clears that, because the program could not see them otherwise.
NATIVE = """
import fcntl, json, os, resource, socket
from sandbox import seccomp, spawner, watch

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

    def prepare(self, *, fuel, ahead):
        pass

    def rehearse(self, null):
        pass

spawner.CellHost = lambda *args: Native()
main = spawner.main
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
from sandbox.order import profiles

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
    install(seccomp.build(profiles("cell", plan)[1]))

main()
"""

# It ends with the ww that it is for, removes its socket when that has come, and serves it from
# jails that are ready.
FOR_ONE = """
import os, signal, time
import prctl
from sandbox import spawner
from sandbox.door import Public

become, accept, begin = spawner.become_spawner, Public.accept, spawner.Spawner._begin

def tied():
    become()
    prctl.set_pdeathsig(signal.SIGTERM)

def accept_one(self, present):
    guest = accept(self, present)
    if guest is not None:
        os.unlink({path!r})
    return guest

def begin_when_ready(self, guest):
    deadline = time.monotonic() + 10
    while len(self._ready._jails) < {jails} and time.monotonic() < deadline:
        time.sleep(0.002)
    begin(self, guest)

spawner.become_spawner, Public.accept = tied, accept_one
spawner.Spawner._begin = begin_when_ready
"""
READY_JAILS = 2


def serve_one(patch: str) -> None:
    """Start a tampered server for this process, which is to become ww, and have it end with that.

    A spawner that ww starts itself fails.
    """
    # In nobody's folder, and by no name that ww could have chosen: see tests.conftest.Leftovers.
    path = f"/tmp/served-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(path)
        made.listen()
        # Where one of 0, 1, 2 is closed, it has taken that place, which is for ww to find closed.
        listening = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 3)
    server = os.fork()
    if server == 0:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDWR), 2)
        tampered(FOR_ONE.format(path=path, jails=READY_JAILS))
        tampered(patch)
        cache = cache_home(os.environ)
        client.serve(
            listening,
            cache,
            cache_size=None,
            jails=READY_JAILS,
            connections=2,
            each=2,
        )
    os.close(listening)
    tampered("raise SystemExit('this is not the server')")
    os.environ["WW_SOCKET"] = path
    end = os._exit

    def end_both(code: int) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(server, signal.SIGCONT)
            os.kill(server, signal.SIGTERM)
            os.waitpid(server, 0)
        with suppress(FileNotFoundError):
            os.unlink(path)
        end(code)

    os._exit = end_both  # type: ignore[assignment]


def tampered(patch: str) -> None:
    """Have the next spawner of this process run `patch` first."""
    if BEGIN not in client._BOOT:
        raise RuntimeError("sandbox.client has changed: this file must follow")
    client._BOOT = client._BOOT.replace(BEGIN, f"{patch}\n{BEGIN}")


if __name__ == "__main__":
    served = sys.argv[1] == "--server"
    if served:
        del sys.argv[1]
    patches = {"native": NATIVE + BARE, "filtered": NATIVE + FILTERED}
    chosen = patches.get(sys.argv[1], sys.argv[1])
    del sys.argv[1]
    if served and sys.argv[1:2] == ["run"]:
        serve_one(chosen)
    else:
        tampered(chosen)
    runner.__main__.main()

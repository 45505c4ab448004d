"""The parts of the kernel where its holes are found, other gates into it, and executable memory."""

import errno
import mmap
import platform
import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Ww
from tests.features import needs
from tests.jail.inside import AT, SAVED, call, perform, variant

X86 = platform.machine() == "x86_64"
only_x86 = needs("x86-64", X86, "another machine has no such gate")

READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
PRIVATE, SHARED, ANONYMOUS = mmap.MAP_PRIVATE, mmap.MAP_SHARED, mmap.MAP_ANONYMOUS
GROWSDOWN = 0x01000000  # PROT_GROWSDOWN of include/uapi/asm-generic/mman-common.h
PAGE = mmap.PAGESIZE


@pytest.fixture
def program(native_probe: BuildFunction) -> Path:
    return native_probe("attacks")


# --- calls that end the process -------------------------------------------------------------------

MACHINERY = (
    call("io_uring_setup", 1, bytes(120)),
    call("io_uring_enter", 0, 0, 0, 0, None, 0),
    call("io_uring_register", 0, 0, None, 0),
    call("bpf", 5, bytes(128), 128),
    call("userfaultfd", 1),
    call("perf_event_open", bytes(128), 0, -1, -1, 0),
    call("fanotify_init", 0, 0),
    call("io_setup", 1, AT),
    call("vmsplice", 1, None, 0, 0),
)
KEYS = (
    call("add_key", "user", "ww-test", "x", 1, -4),
    call("request_key", "user", "ww-test", None, 0),
    call("keyctl", 0, -3, 0),
    call("keyctl", 11, 1, AT, 64),
)
HOST = (
    call("init_module", AT, 1, ""),
    call("finit_module", 0, "", 0),
    call("kexec_load", 0, 0, None, 0),
    call("reboot", 0, 0, 0, None),
    call("syslog", 3, AT, 1),
    call("swapon", "/a", 0),
    call("settimeofday", bytes(16), None),
    call("clock_settime", 0, bytes(16)),
    call("sethostname", "taken", 5),
    call("setdomainname", "taken", 5),
)
CODE = (
    call("personality", 0x0400000),
    call("personality", 0xFFFFFFFF),
    call("pkey_mprotect", 0, PAGE, READ | EXEC, -1),
    call("remap_file_pages", 0, PAGE, 0, 0, 0),
    call(453, 0, PAGE, 0),  # map_shadow_stack
)
FILTERS = (
    call("seccomp", 1, 0, b"\0" * 16),
    call("seccomp", 1, 8, b"\0" * 16),  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    call("seccomp", 0, 0, None),
)


@pytest.mark.parametrize("attack", [*MACHINERY, *KEYS, *HOST, *CODE, *FILTERS])
def test_a_cell_that_reaches_for_the_kernel_is_ended(
    ww_account: Ww, program: Path, attack: str
) -> None:
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


@only_x86
@pytest.mark.parametrize(
    "attack", [call("iopl", 3), call("modify_ldt", 0, AT, 16), call("fork"), call("vfork")]
)
def test_a_cell_that_uses_what_only_x86_has_is_ended(
    ww_account: Ww, program: Path, attack: str
) -> None:
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_the_machines_clock_name_and_kernel_cannot_be_changed_without_a_filter(
    ww_account: Ww, program: Path
) -> None:
    tried = perform(ww_account, "native", program, *HOST)
    outcome = dict(zip(HOST, tried.refusals(), strict=True))
    # What the kernel was built without is not there either.
    absent = {what for what, error in outcome.items() if error == errno.ENOSYS}
    assert all("module" in what or "kexec" in what or "swapon" in what for what in absent)
    assert {error for what, error in outcome.items() if what not in absent} == {errno.EPERM}


def test_measuring_the_machine_takes_a_privilege_that_no_cell_has(
    ww_account: Ww, program: Path
) -> None:
    attributes = struct.pack("II", 0, 128) + bytes(120)  # of the hardware's cycles, kernel included
    tried = perform(
        ww_account,
        "native",
        program,
        call("perf_event_open", attributes, -1, 0, -1, 0),
        call("fanotify_init", 0, 0),
        call("open_by_handle_at", 0, b"\x08\0\0\0\1\0\0\0" + bytes(8), 0),
    )
    refused = tried.refusals()
    assert refused[0] in (errno.EACCES, errno.EPERM)
    assert refused[1] in (errno.EPERM, errno.ENOSYS)
    assert refused[2] in (errno.EPERM, errno.ESTALE)


# --- other gates ----------------------------------------------------------------------------------

X32 = 0x40000000
GETPID_OF_32_BITS = 20


@only_x86
@pytest.mark.parametrize("number", [0, 1, 39, 59, 101, 512, 520, 545])
def test_a_number_of_x32_ends_the_process(ww_account: Ww, program: Path, number: int) -> None:
    # Also where the kernel has no x32: the filter comes first.
    attack = call(X32 | number, 0, 0, 0)
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


@only_x86
@pytest.mark.parametrize("number", [GETPID_OF_32_BITS, 1, 2, 4, 11, 26])
def test_the_gate_of_32_bit_programs_ends_the_process(
    ww_account: Ww, program: Path, number: int
) -> None:
    plain = perform(ww_account, "native", program, call("gate-32", GETPID_OF_32_BITS))
    if plain.results != [(1, 0)]:
        pytest.skip("this kernel has no such gate, and ends whoever tries it")
    attack = call("gate-32", number)
    assert perform(ww_account, "filtered", program, attack).is_killed_at(attack)


def test_a_number_that_no_kernel_has_is_refused(ww_account: Ww, program: Path) -> None:
    # Not 335 and 336 of x86, which the kernel does not show to filters: uretprobe(2) and uprobe(2)
    # end with SIGILL whoever did not get there through a trampoline of the kernel's.
    calls = [call(number) for number in (400, 999, 0x0FFFFFFF)]
    tried = perform(ww_account, "filtered", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)


def test_what_is_neither_needed_nor_an_attack_is_refused(ww_account: Ww, program: Path) -> None:
    calls = [
        call("memfd_create", "x", 0),
        call("inotify_init1", 0),
        call("shmget", 0, 4096, 0o1600),
        call("semget", 0, 1, 0o1600),
        call("msgget", 0, 0o1600),
        call("mq_open", "x", 0o102, 0o600, None),
        call("mlock", AT, PAGE),
        call("prctl", 4, 1),  # PR_SET_DUMPABLE
        call("prctl", 1, 0),  # PR_SET_PDEATHSIG
        call("prctl", 28, 0),  # PR_SET_SECUREBITS
        call("prctl", 22, 2, AT),  # PR_SET_SECCOMP
        call("prctl", 0x59616D61, -1),  # PR_SET_PTRACER
        call("prctl", 36, 1),  # PR_SET_CHILD_SUBREAPER
        call("prctl", 35, 1, 0, 0, 0),  # PR_SET_MM
        call("prctl", 47, 2, 21, 0, 0),  # PR_CAP_AMBIENT
        call("setsid"),
        call("sched_setaffinity", 0, 8, b"\1" + bytes(7)),
        call("chdir", "/"),
        call("readlinkat", -100, "/proc/self/exe", AT, 64),
        call("faccessat", -100, "/etc/passwd", 0),
        call("statx", -100, "/etc/passwd", 0, 0xFFF, AT),
        call("truncate", "/x", 0),
        call("unlinkat", -100, "/x", 0),
        call("mkdirat", -100, "/x", 0o700),
        call("futex", AT, 6, 1, None, None, 0),  # FUTEX_LOCK_PI
        call("madvise", AT, PAGE, 100),  # MADV_HWPOISON
    ]
    tried = perform(ww_account, "filtered", program, *calls)
    assert tried.refusals() == [errno.EPERM] * len(calls)


# --- executable memory ----------------------------------------------------------------------------


def test_no_memory_can_be_made_executable(ww_account: Ww, program: Path) -> None:
    private = PRIVATE | ANONYMOUS
    calls = [
        call("mmap", 0, PAGE, READ | WRITE | EXEC, private, -1, 0),
        call("mmap", 0, PAGE, READ | EXEC, private, -1, 0),
        call("mmap", 0, PAGE, EXEC, private, -1, 0),
        call("mmap", 0, PAGE, 1 << 32 | READ | EXEC, private, -1, 0),
        call("mmap", 0, PAGE, READ | EXEC, PRIVATE, 9, 0),
        call("mmap", 0, PAGE, READ | WRITE, SHARED | ANONYMOUS, -1, 0),
        call("mmap", 0, PAGE, READ, PRIVATE, 9, 0),
        call("mmap", 0, PAGE, READ, SHARED, 9, 0),
    ]
    tried = perform(
        ww_account,
        "filtered",
        program,
        *calls,
        flags=["--fd", "a=3,target=9"],
        fds={3: ww_account.file("given", bytes(PAGE))},
    )
    assert tried.refusals() == [errno.EPERM] * len(calls)


def test_what_was_written_cannot_be_made_executable(ww_account: Ww, program: Path) -> None:
    tried = perform(
        ww_account,
        "filtered",
        program,
        call("mmap", 0, 4 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0),
        call("save"),
        call("poke", SAVED, 0x9090909090909090),
        call("mprotect", SAVED, PAGE, READ | EXEC),
        call("mprotect", SAVED, PAGE, READ | WRITE | EXEC),
        call("mprotect", SAVED, PAGE, EXEC),
        call("mprotect", SAVED, PAGE, READ | EXEC | GROWSDOWN),
        call("mprotect", SAVED, PAGE, 1 << 32 | READ | EXEC),
        call("mremap", SAVED, PAGE, 8 * PAGE, 1, 0),
        call("mremap", SAVED, PAGE, PAGE, 3, SAVED),
        call("mprotect", SAVED, PAGE, READ),
    )
    results = tried.all()
    assert results[0][0] > 0
    assert results[2] == (0, 0)
    assert results[3:-1] == [(-1, errno.EPERM)] * 7
    assert results[-1] == (0, 0)


def test_the_program_cannot_be_changed_by_way_of_its_memory_file(
    ww_account: Ww, program: Path
) -> None:
    flags, fds = ["--fd", "a=3,pathlink=true"], {3: Path("/dev/null")}
    attack = call("change-through-mem")
    # A read-only proc, and Landlock, which gives no right to any file of it; then the filter.
    tried = perform(ww_account, "native", program, attack, flags=flags, fds=fds)
    assert tried.refusals()[0] in (errno.EROFS, errno.EACCES)
    tried = perform(ww_account, "filtered", program, attack, flags=flags, fds=fds)
    assert tried.refusals() == [errno.EPERM]


# Where the jail forbids it, and again when the cell's code is there, which is mapped in between.
MAPS = """
import os
from sandbox import code, jail, limits

freeze, ceilings, seal = code.freeze, limits.ceilings, jail.Jail.seal
kept = []

def both(text):
    rights = [line.split()[1][:3] for line in text.splitlines()]
    return len(rights), rights.count(b"rwx") + rights.count(b"-wx"), rights.count(b"r-x")

def read(fd):
    os.lseek(fd, 0, 0)
    text = b""
    while part := os.read(fd, 65536):
        text += part
    return text

def after_freezing(listing):
    before = os.open("../maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=listing)
    kept.append(both(read(before)))
    freeze(listing)
    kept.append(both(read(before)))
    os.close(before)

def after_placing(writable, descriptors, listing):
    # From here on nothing is closed before the code is there, and soon nothing can be opened.
    kept.append(os.open("../maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=listing))
    return ceilings(writable, descriptors, listing)

def before_sealing(self, also=()):
    maps = kept.pop()
    kept.append(both(read(maps)))
    os.close(maps)
    print(*kept, sep="\\n", flush=True)
    seal(self, also)

code.freeze = after_freezing
limits.ceilings = after_placing
jail.Jail.seal = before_sealing
"""


def test_no_memory_of_a_cells_process_is_writable_and_executable(ww_account: Ww) -> None:
    hello = EXAMPLES / "hello" / "hello.wasm"
    # Compiled here, in a jail that has nowhere to print to.
    assert ww_account.run("run", hello).returncode == 0
    done = ww_account.call([*variant(MAPS), "run", hello])
    assert (done.returncode, done.stderr) == (0, b"")
    before, frozen, loaded = [
        tuple(int(number) for number in line.strip("()").split(", "))
        for line in done.stdout.decode().splitlines()[:3]
    ]
    for mappings, writable, executable in (frozen, loaded):
        assert mappings > 20
        assert executable > 0
        assert writable == 0
    # There was one before, or this step of the jail would be for nothing; and the cell's own code
    # is there at the end.
    assert before[1] > 0
    assert loaded[2] > frozen[2]


# --- keys -----------------------------------------------------------------------------------------

# What becomes ww has a key in each of its keyrings; SERIAL among the arguments is its number.
WITH_KEY = """
import ctypes, os, platform, sys
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(keyctl, 1, None)
serial = -1
for ring in (-4, -5, -3):
    key = libc.syscall(add_key, b"user", b"ww-test-secret", b"secret", 6, ring)
    serial = key if ring == -3 else serial
assert libc.syscall(keyctl, 10, -3, b"user", b"ww-test-secret", 0) == serial > 0
os.execv(sys.argv[1], [a.replace("SERIAL", str(serial)) for a in sys.argv[1:]])
"""


def test_no_key_of_the_callers_can_be_found_or_read_without_a_filter(
    ww_account: Ww, program: Path
) -> None:
    searches = [call("keyctl", 10, ring, "user", "ww-test-secret", 0) for ring in (-1, -2, -3)]
    searches += [call("keyctl", 10, ring, "user", "ww-test-secret", 0) for ring in (-4, -5)]
    direct = ["keyctl|11|SERIAL|@|64", "keyctl|2|SERIAL|#78|1", "keyctl|8|SERIAL|-3"]
    tried = perform(
        ww_account,
        "native",
        program,
        *searches,
        *direct,
        call("request_key", "user", "ww-test-secret", None, 0),
        before=[sys.executable, "-c", WITH_KEY],
    )
    refused = tried.refusals()
    assert set(refused[:5]) <= {errno.ENOKEY, errno.EACCES}
    assert refused[5:8] == [errno.EACCES] * 3
    assert refused[8] == errno.ENOKEY

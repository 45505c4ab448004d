"""What a native program finds when it takes the cell's place in the jail."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from sandbox import landlock
from sandbox.granting import HEADROOM
from tests.conftest import CAN_BE_ROOT, EXAMPLES, BuildFunction, Ww
from tests.features import needs
from tests.jail.inside import MOUNTS_ONLY, report, running, variant, when_in_jail, zygote_of

needs_landlock = needs("landlock", landlock.abi() > 0, "this kernel has no Landlock")
ALL_ZERO = "0" * 16


@pytest.fixture
def probe(native_probe: BuildFunction) -> Path:
    return native_probe("probe")


@pytest.fixture
def inside(ww_account: Ww, probe: Path) -> dict[str, Any]:
    return report(ww_account, probe)


def test_the_cell_is_the_first_process_of_its_pid_namespace(inside: dict[str, Any]) -> None:
    assert (inside["pid"], inside["ppid"]) == (1, 0)


def test_no_capability_is_in_any_set(inside: dict[str, Any]) -> None:
    sets = ("effective", "permitted", "inheritable", "bounding", "ambient")
    assert {name: inside[f"cap_{name}"] for name in sets} == dict.fromkeys(sets, ALL_ZERO)


def test_no_new_privs_is_set_and_the_securebits_are_locked(inside: dict[str, Any]) -> None:
    assert inside["no_new_privs"] == 1
    # NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE set and locked; KEEP_CAPS clear and locked.
    assert inside["securebits"] == 0b11101111


def kept_groups(ww: Ww) -> list[int]:
    """The supplementary groups that a cell keeps: an ordinary user's, who may not drop them."""
    own = ww.account.is_own and ww.account.uid != 0
    return os.getgroups() if own else []


def test_the_ids_inside_are_nobodys_and_no_group_is_named(ww_account: Ww, probe: Path) -> None:
    inside = report(ww_account, probe)
    assert inside["uids"] == [65534] * 3
    assert inside["gids"] == [65534] * 3
    assert inside["groups"] == [65534] * len(kept_groups(ww_account))


def test_the_network_is_a_lo_that_is_down(inside: dict[str, Any]) -> None:
    assert {name: i["up"] for name, i in inside["interfaces"].items()} == {"lo": False}


def test_the_root_is_empty_and_cannot_be_written(ww_account: Ww, probe: Path) -> None:
    inside = report(ww_account, probe, layer=MOUNTS_ONLY)
    assert inside["root"] == []
    mount = inside["root_mount"]
    assert all(mount[flag] for flag in ("rdonly", "nosuid", "nodev", "noexec"))
    assert 0 < mount["blocks"] * mount["block_size"] <= 1 << 16
    assert 0 < mount["files"] <= 1 << 17


@needs_landlock
def test_neither_the_root_nor_proc_can_be_listed_or_read(ww_account: Ww, probe: Path) -> None:
    found = report(ww_account, probe, "--fd", "db=3,pathlink=true", fds={3: Path("/dev/null")})
    assert found["root"] is None
    assert found["proc"] is None
    assert {found[name] for name in ("status", "mountinfo", "uid_map", "cgroup")} == {None}


def test_the_working_directory_is_the_root(inside: dict[str, Any]) -> None:
    assert inside["cwd"] == "/"


def test_the_session_is_its_own_without_a_terminal(inside: dict[str, Any]) -> None:
    assert (inside["sid"], inside["pgid"], inside["controlling_terminal"]) == (1, 1, False)
    assert (inside["umask"], inside["hostname"]) == (0o077, "cell")


def test_no_core_is_dumped_and_no_memory_locked(inside: dict[str, Any]) -> None:
    assert inside["rlimits"]["CORE"] == [1, 1]
    assert inside["rlimits"]["MEMLOCK"] == [0, 0]


def test_a_caller_without_core_dumps_can_run_cells(ww_account: Ww) -> None:
    # As under LimitCORE=0 of a systemd unit: the hard limit cannot be raised to the usual 1.
    hello = EXAMPLES / "hello" / "hello.wasm"
    done = ww_account.shell(f"ulimit -Hc 0; exec ww run {hello}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_caller_with_too_little_address_space_is_told_so(ww_account: Ww) -> None:
    hello = EXAMPLES / "hello" / "hello.wasm"
    done = ww_account.shell(f"ulimit -v 6000000; exec ww run {hello}")
    assert done.returncode == 67
    assert done.stderr.startswith(b"ww: error: jail: limits: the address space is limited to ")


def test_a_recursion_without_end_is_a_trap_though_the_callers_stack_is_small(
    ww_account: Ww,
) -> None:
    text = """(module (memory (export "memory") 1)
      (func $deeper (param i64) (result i64)
        (i64.add (i64.const 1) (call $deeper (i64.add (local.get 0) (i64.const 1)))))
      (func (export "_start") (drop (call $deeper (i64.const 0)))))"""
    cell = ww_account.file("cell.wasm", bytes(wasmtime.wat2wasm(text)))
    for limit in ("-Ss 512", "-Ss 8192"):
        done = ww_account.shell(f"ulimit {limit}; exec ww run {cell}")
        assert (limit, done.returncode) == (limit, 134), done.stderr
    done = ww_account.shell(f"ulimit -s 1024; exec ww run {cell}")
    assert done.returncode == 67
    assert done.stderr.startswith(b"ww: error: jail: limits: the stack is limited to 1048576 bytes")
    assert b"ulimit -s 8192" in done.stderr


def test_the_kernel_kills_it_with_its_spawner(inside: dict[str, Any]) -> None:
    assert inside["pdeathsig"] == 9


def test_the_session_keyring_is_its_own(ww_account: Ww, probe: Path) -> None:
    one, other = (report(ww_account, probe)["session_keyring"] for _ in range(2))
    assert one != other


def test_no_signal_is_blocked_and_only_those_of_writing_are_ignored(inside: dict[str, Any]) -> None:
    assert inside["signals_blocked"] == []
    assert set(inside["signals_ignored"]) == {13, 25}  # SIGPIPE and SIGXFSZ are errnos instead


def test_the_environment_holds_the_grants_and_nothing_else(ww_account: Ww, probe: Path) -> None:
    plain = report(ww_account, probe)["environ"]
    assert plain == ["WW_FDS=()"]
    more = report(ww_account, probe, "--env", "A=b c", "--fd", "x=3", fds={3: Path("/dev/null")})
    assert sorted(more["environ"]) == [
        "A=b c",
        'WW_FDS=((x (fd 10) (mode "r") (type "stream")))',
        "WW_FD_X=10",
    ]


def test_the_descriptors_are_exactly_the_plan(ww_account: Ww, probe: Path) -> None:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    given = ww_account.file("given")
    with ours, theirs, given.open("r+b") as file:
        found = report(
            ww_account,
            probe,
            *("--fd", "file=3,target=4", "--fd", "pipe=4,target=3"),
            *("--fd", "sock=5,target=900", "--fd", "auto=6"),
            fds={3: file, 4: reader, 5: theirs, 6: Path("/dev/zero"), 7: writer, 8: file, 99: file},
        )
        inode = {name: os.fstat(fd).st_ino for name, fd in _numbers(file, reader, theirs)}
    os.close(reader)
    os.close(writer)
    assert sorted(map(int, found["fds"])) == [0, 1, 2, 3, 4, 10, 900]
    assert found["fds"]["4"]["inode"] == inode["file"]
    assert found["fds"]["3"]["inode"] == inode["pipe"]
    assert found["fds"]["900"]["inode"] == inode["socket"]


def _numbers(file: Any, pipe: int, sock: socket.socket) -> list[tuple[str, int]]:
    return [("file", file.fileno()), ("pipe", pipe), ("socket", sock.fileno())]


def test_ww_keeps_a_line_to_the_spawner_the_cell_and_dev_null_beside_the_grants(
    ww_account: Ww, probe: Path
) -> None:
    placed = report(ww_account, probe, "--fd", "a=3,target=7", fds={3: Path("/dev/null")})["placed"]
    line = set(map(int, placed["flags"])) - {0, 1, 2, 7, *placed["own"]}
    assert len(line) == 1
    assert min(line | set(placed["own"])) > 7
    assert all(placed["flags"][str(fd)] & 1 for fd in line | set(placed["own"]))


def test_cloexec_is_as_granted(ww_account: Ww, probe: Path) -> None:
    flags = report(
        ww_account,
        probe,
        *("--fd", "default=3,target=20", "--fd", "off=3,target=21,cloexec=false"),
        *("--fd", "on=3,target=22,cloexec=true"),
        fds={3: Path("/dev/null")},
    )["placed"]["flags"]
    assert {n: flags[n] for n in ("20", "21", "22")} == {"20": 1, "21": 0, "22": 1}


def test_ninety_grants_in_a_cycle_arrive_in_order(ww_account: Ww, probe: Path) -> None:
    numbers = list(range(10, 100))
    files = [ww_account.file(f"n{n}") for n in numbers]
    flags = [
        text
        for i, n in enumerate(numbers)
        for text in ("--fd", f"g{n}={n},target={numbers[(i + 1) % len(numbers)]}")
    ]
    found = report(ww_account, probe, *flags, fds=dict(zip(numbers, files, strict=True)))
    assert [found["fds"][str(n)]["inode"] for n in numbers] == [
        files[i - 1].stat().st_ino for i in range(len(numbers))
    ]


def test_as_many_grants_as_the_limit_of_open_files_leaves_room_for_arrive(
    ww_account: Ww, probe: Path
) -> None:
    given = ww_account.file("given")
    most = 256 - HEADROOM
    for count, code in ((most, 0), (most + 1, 65)):
        flags = " ".join(f"--fd n{i}=3" for i in range(count))
        command = " ".join([*variant("native")])
        done = ww_account.call(
            ["bash", "-c", f"ulimit -n 256; exec {command} run {flags} {probe} report 3<{given}"]
        )
        if code:
            assert (done.returncode, done.stdout) == (code, b"")
        else:
            assert done.stdout.count(b'"inode": %d,' % given.stat().st_ino) == count


def test_a_closed_stdio_is_dev_null_in_the_cell(ww_account: Ww, probe: Path) -> None:
    command = " ".join([*variant("native"), "run", str(probe), "report"])
    done = ww_account.call(["bash", "-c", f"{command} <&- 2>&-"])
    assert b'"fds": {"0": ' in done.stdout
    null = os.stat("/dev/null").st_ino
    assert done.stdout.count(b'"inode": %d,' % null) == 2


def test_a_pathlink_is_the_only_entry_beside_proc(ww_account: Ww, probe: Path) -> None:
    found = report(
        ww_account,
        probe,
        *("--fd", "db=3,target=12,pathlink=true"),
        fds={3: ww_account.file("db", b"content")},
        layer=MOUNTS_ONLY,
    )
    assert sorted(found["root"]) == ["db", "proc"]
    assert found["links"] == {"db": "/proc/self/fd/12"}


def test_proc_shows_the_cell_alone_and_cannot_be_written(ww_account: Ww, probe: Path) -> None:
    fds = {3: Path("/dev/null")}
    found = report(ww_account, probe, "--fd", "db=3,pathlink=true", fds=fds, layer=MOUNTS_ONLY)
    assert sorted(found["proc"]) == ["1", "self", "thread-self"]
    assert all(found["proc_mount"][flag] for flag in ("rdonly", "nosuid", "nodev", "noexec"))
    assert found["threads"] == 1
    assert found["setgroups"] == "deny"
    assert found["uid_map"].split()[0::2] == ["65534", "1"]
    mounts = [line.split() for line in found["mountinfo"].splitlines()]
    assert [mount[4] for mount in mounts] == ["/", "/proc"]
    assert {"hidepid=invisible", "subset=pid"} <= {*mounts[1][-1].split(",")}


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}


def test_its_host_id_is_unprivileged_and_never_roots(ww_account: Ww, probe: Path) -> None:
    command = [*variant("native"), "run", str(probe), "sleep", "60"]
    own = ww_account.account.uid
    with running(ww_account, command) as (_, _, cell):
        when_in_jail(cell)
        status = _status(cell)
    assert set(status["Uid"]) == {str(own or 65534)}
    assert set(status["Gid"]) == {str(ww_account.account.gid or 65534)}
    assert sorted(map(int, status["Groups"])) == sorted(kept_groups(ww_account))


@needs("root", CAN_BE_ROOT, "only root can have groups that it may drop")
def test_roots_supplementary_groups_are_dropped(ww: Ww, probe: Path) -> None:
    groups = ["setpriv", "--groups", "4,24,27"]
    with running(ww, [*groups, *variant("native"), "run", str(probe), "sleep", "60"]) as found:
        when_in_jail(found[2])
        assert _status(found[2])["Groups"] == []


@needs("root", CAN_BE_ROOT, "only root can choose the cell's id")
def test_root_chooses_the_host_id(ww: Ww, probe: Path) -> None:
    with running(
        ww, [*variant("native"), "run", "--uid", "7777", str(probe), "sleep", "60"]
    ) as found:
        when_in_jail(found[2])
        status = _status(found[2])
    assert set(status["Uid"]) == set(status["Gid"]) == {"7777"}


def test_every_namespace_is_its_own(ww_account: Ww, probe: Path) -> None:
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    found = report(ww_account, probe, "--fd", "db=3,pathlink=true", fds={3: Path("/dev/null")})
    for kind in kinds:
        assert found["namespaces"][kind] != os.readlink(f"/proc/self/ns/{kind}"), kind


def test_it_is_the_first_to_go_when_memory_runs_out(ww_account: Ww, probe: Path) -> None:
    with running(ww_account, [*variant("native"), "run", str(probe), "sleep", "60"]) as (
        _,
        _,
        cell,
    ):
        when_in_jail(cell)
        assert Path(f"/proc/{cell}/oom_score_adj").read_text().strip() == "1000"


def test_the_spawner_has_an_empty_environment_and_clones_from_one_thread(
    ww_account: Ww, probe: Path
) -> None:
    command = [*variant("native"), "run", str(probe), "sleep", "60"]
    with running(ww_account, command, env={"SECRET": "x"}) as (_, spawner, cell):
        when_in_jail(cell)
        # Read as the account that runs it: root needs no permission, a user owns it.
        zygote = zygote_of(spawner)
        for process in (spawner, zygote):
            assert Path(f"/proc/{process}/environ").read_bytes() == b""
            assert os.readlink(f"/proc/{process}/cwd") == "/"
        assert len(os.listdir(f"/proc/{zygote}/task")) == 1


def test_what_jails_are_cloned_from_never_sees_what_a_cell_is_given(
    ww_account: Ww, probe: Path
) -> None:
    secret = ww_account.file("secret")
    words = ("an-argument-of-the-cell", "a-variable-of-the-cell")
    command = [
        *(*variant("native"), "run", "--fd", "a=3", "--env", f"WORD={words[1]}"),
        *(str(probe), "sleep", "60", words[0]),
    ]
    with running(ww_account, command, fds={3: secret}) as (_, spawner, cell):
        when_in_jail(cell)
        held, memory = _held(zygote_of(spawner)), _memory(zygote_of(spawner))
        theirs = _memory(spawner)
    assert held <= {"/dev/null"} | {name for name in held if name.startswith("socket:")}
    for word in words:
        assert word.encode() not in memory
        assert word.encode() in theirs  # it would be found


def _memory(pid: int) -> bytes:
    """All of a process's memory that it can write."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            addresses, rights, *_ = line.split()
            start, end = (int(number, 16) for number in addresses.split("-"))
            if rights.startswith("rw") and end - start < 1 << 28:
                memory.seek(start)
                with suppress(OSError):
                    found += memory.read(end - start)
    return found


def test_the_spawner_holds_no_descriptor_of_the_callers(ww_account: Ww, probe: Path) -> None:
    secret = ww_account.file("secret")
    command = [*variant("native"), "run", "--fd", "a=3", str(probe), "sleep", "60"]
    with running(ww_account, command, fds={3: secret, 4: secret}) as (_, spawner, cell):
        when_in_jail(cell)
        # It closes its copies when the cell tells that it has its own, which is a little later.
        deadline = time.monotonic() + 10
        while str(secret) in (held := _held(spawner)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert str(secret) not in held


def _held(pid: int) -> set[str]:
    folder, found = f"/proc/{pid}/fd", set()
    for fd in os.listdir(folder):
        with suppress(FileNotFoundError):  # it was closed in between
            found.add(os.readlink(f"{folder}/{fd}"))
    return found


WASI_CALLS = """(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $c (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $a (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "done\\n")
  (func (export "_start")
    (drop (call $c (i32.const 0) (i64.const 0) (i32.const 64)))
    (drop (call $r (i32.const 64) (i32.const 8)))
    (drop (call $y))
    (drop (call $a (i32.const 64) (i32.const 72)))
    (i32.store (i32.const 0) (i32.const 8)) (i32.store (i32.const 4) (i32.const 5))
    (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
    (loop $l (br $l))))"""


@needs("root", CAN_BE_ROOT, "only root sees into what is not dumpable")
def test_a_webassembly_cell_has_one_thread_and_only_its_descriptors(ww_account: Ww) -> None:
    cell = ww_account.file("calls.wasm", bytes(wasmtime.wat2wasm(WASI_CALLS)))
    command = [*ww_account.command, "run", "--fd", "a=3,target=40", str(cell)]
    with running(ww_account, command, fds={3: Path("/dev/null")}) as (process, _, pid):
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert _status(pid)["Threads"] == ["1"]
        held = {
            int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
        }
    # What libraries write to 2 unasked goes nowhere: the cell's own three are at other numbers.
    assert {held.pop(number) for number in (0, 1, 2)} == {"/dev/null"}
    assert held.pop(40) == "/dev/null"
    kinds = sorted(name.split(":")[0] for name in held.values())
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"]  # stdin, stdout, stderr and the line

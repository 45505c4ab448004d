"""Every way to grant a descriptor, typed as a user types it; and what tells of it."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLES, BuildFunction, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"


def granted(out: bytes) -> str:
    """What the example cell was told of its grants."""
    (line,) = [li for li in out.decode().splitlines() if li.startswith("Granted: ")]
    return line.removeprefix("Granted: ")


@pytest.fixture
def cell(ww_account: Ww) -> str:
    return ww_account.export(HELLO)


# The examples of the system that this one reimplements


def test_a_basic_mapping(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(f"ww run --fd db=3 {cell} 3<>db")
    assert granted(done.stdout) == '((db (fd 10) (mode "rw") (type "file")))'


def test_options_and_several_fds(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(
        "python3 -c 'import socket, subprocess, sys; a, b = socket.socketpair(); "
        'subprocess.run(sys.argv[1:4] + [f"db={a.fileno()},mode=rw,type=socket,target=10"] + '
        "sys.argv[4:], pass_fds=[a.fileno(), 4])' "
        f"ww run --fd --fd cache=4,mode=r,type=file {cell} 4</etc/hostname"
    )
    assert done.returncode == 0, done.stderr
    assert granted(done.stdout) == (
        '((db (fd 10) (mode "rw") (type "socket")) (cache (fd 11) (mode "r") (type "file")))'
    )


def test_a_mapping_is_overridden_whatever_the_order(ww_account: Ww, cell: str) -> None:
    for flags in ("--fd db=3 --fd-map db=20", "--fd-map db=20 --fd db=3"):
        done = ww_account.shell(f"ww run {flags} {cell} 3<>db")
        assert granted(done.stdout) == '((db (fd 20) (mode "rw") (type "file")))'


def test_fdctl_inherit(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(f"ww run --fdctl inherit:5 {cell} 5</etc/hostname")
    assert granted(done.stdout) == '((inherit_5 (fd 10) (mode "r") (type "file")))'


TABLE = """
(
  (fd :name "stdin"  :fd 0 :mode "r" :target 0)
  (fd :name "stdout" :fd 1 :mode "w" :target 1)
  (fd :name "logs"   :fd 5 :mode "w" :type "file" :target 9)
)
"""
OTHER_FORM = """
(
  (fd (name "stdin")  (fd 0) (mode "r") (target 0))
  (fd (name "stdout") (fd 1) (mode "w") (target 1))
  (fd (name "stderr") (fd 2) (mode "w") (target 2))
  (fd (name "cache")  (fd 4) (mode "rw") (type "file") (target 11))
)
"""


@pytest.mark.parametrize("value", ["@imports", "imports"])
def test_a_table_from_a_file(ww_account: Ww, cell: str, value: str) -> None:
    ww_account.file("imports", OTHER_FORM.encode())
    done = ww_account.shell(f"ww run --fd-from {value} {cell} 4<>cache")
    assert done.returncode == 0, done.stderr
    assert granted(done.stdout).endswith('(cache (fd 11) (mode "rw") (type "file")))')


def test_a_table_from_stdin_leaves_dev_null_there_and_says_so(ww_account: Ww, cell: str) -> None:
    ww_account.file("caps.sexp", TABLE.encode())
    done = ww_account.shell(f"ww run --fd-from - {cell} 5>log <caps.sexp")
    assert done.returncode == 0, done.stderr
    assert granted(done.stdout) == (
        '((stdin (fd 0) (mode "r") (type "stream")) (stdout (fd 1) (mode "w") (type "stream"))'
        ' (logs (fd 9) (mode "w") (type "file")))'
    )
    assert done.stderr.startswith(b"ww: warning: --fd-from -: stdin was the table")


def test_fd_verbose(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(f"ww run --fd-verbose --fd db=3 {cell} 3<>db")
    assert done.stderr == b"grant fd name=db num=10 type=file mode=rw move=false cloexec=true\n"


# What goes together


def test_all_sources_make_one_plan(ww_account: Ww, cell: str) -> None:
    ww_account.file("t", b'(fd :name "table" :fd 6 :mode "r")')
    done = ww_account.shell(
        f"ww run --fd-from @t --fd table,target=30 --fdctl inherit:5,name=five --fd-map five=31 "
        f"--fd plain=3 {cell} 3<>a 5<>b 6<>c"
    )
    assert granted(done.stdout) == (
        '((plain (fd 10) (mode "rw") (type "file")) (table (fd 30) (mode "r") (type "file"))'
        ' (five (fd 31) (mode "rw") (type "file")))'
    )


def test_one_name_from_two_sources_is_refused_with_both_origins(ww: Ww) -> None:
    ww.file("t", b'\n (fd :name "db" :fd 3)')
    done = ww.shell(f"ww run --fd-from @t --fd db=3 {HELLO} 3<>a")
    assert done.returncode == 2
    assert b"t:2:2" in done.stderr
    assert b"--fd #1" in done.stderr


def test_a_validation_in_a_table_holds_for_flags_too(ww: Ww) -> None:
    ww.file("t", b'(def validate-fd-access (name fd mode type) (= mode "r"))')
    assert ww.shell(f"ww run --fd-from @t --fd db=3,mode=r {HELLO} 3<>a").returncode == 0
    done = ww.shell(f"ww run --fd-from @t --fd db=3 {HELLO} 3<>a")
    assert done.returncode == 65
    assert b"--fd #1: 'db' is refused by the validation at t:1:1" in done.stderr


def test_a_table_sees_only_the_variables_it_may(ww: Ww) -> None:
    ww.file("t", b'(fd :name (env "NAME" "none") :fd 3)')
    line = f"NAME=chosen ww run --fd-from @t {{}} {HELLO} 3<>a"
    assert granted(ww.shell(line.format("")).stdout).startswith("((none ")
    allowed = ww.shell(line.format("--table-env NAME"))
    assert granted(allowed.stdout).startswith("((chosen ")


# Sockets that hand over


def test_a_command_hands_descriptors_to_the_ww_it_starts(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(
        f"ww send-fds ./s --fd db=3,mode=r,target=40 -- ww run --fdctl ./s {cell} 3<>db"
    )
    assert done.returncode == 0, done.stderr
    assert granted(done.stdout) == '((db (fd 40) (mode "r") (type "file")))'
    assert not (ww_account.tmp / "s").exists()


def test_a_ww_that_listens_is_handed_descriptors(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(
        f"ww run --fdctl ./s,listen=true,timeout=60 {cell} & ww send-fds ./s,timeout=60 "
        "--fd db=3 3<>db; wait $!"
    )
    assert done.returncode == 0, done.stderr
    assert granted(done.stdout) == '((db (fd 10) (mode "rw") (type "file")))'


def test_nobody_at_the_socket_is_65(ww: Ww) -> None:
    done = ww.shell(f"ww run --fdctl ./nobody {HELLO}")
    assert done.returncode == 65
    assert done.stderr.startswith(b"ww: error: --fdctl #1: ")


def test_a_signal_while_waiting_for_a_peer_leaves_no_socket(ww_account: Ww) -> None:
    done = ww_account.shell(
        f"ww run --fdctl ./s,listen=true,timeout=60 {HELLO} & "
        "while ! [ -S s ]; do sleep 0.01; done; kill $!; wait $!"
    )
    assert done.returncode == 143
    assert not (ww_account.tmp / "s").exists()


def test_what_a_peer_hands_over_cannot_be_named_by_its_number(ww: Ww) -> None:
    # 3 to 19: one of them is what the peer's descriptor gets here.
    flags = " ".join(f"--fd n{fd}={fd},mode=r" for fd in range(3, 20))
    line = f"ww send-fds ./s --fd db=3 -- ww run {flags} --fdctl ./s {HELLO} 3</etc/hostname"
    done = ww.shell(line)
    assert done.returncode == 65
    assert b"is not open" in done.stderr


# systemd


def test_the_flag_for_systemd_does_not_eat_the_cell(ww_account: Ww, cell: str) -> None:
    start = "import os,sys; os.environ['LISTEN_PID']=str(os.getpid()); os.execvp('ww',sys.argv[1:])"
    ww_account.file("start.py", start.encode())
    for flags in (
        "--use-systemd-fds",
        "--fd-verbose --use-systemd-fds",
        "--fd x=4 --use-systemd-fds",
        "--use-systemd-fds=listen",
    ):
        done = ww_account.shell(
            f"LISTEN_FDS=1 python3 start.py ww run {flags} {cell} 3</etc/hostname 4</dev/null"
        )
        assert done.returncode == 0, done.stderr
        assert '(listen0 (fd 10) (mode "r") (type "file"))' in granted(done.stdout) or (
            "x=4" in flags and "listen0" in granted(done.stdout)
        )


def test_the_flag_after_the_cell_is_the_cells(ww: Ww) -> None:
    done = ww.run("run", HELLO, "--use-systemd-fds")
    assert done.returncode == 0
    assert b"--use-systemd-fds" in done.stdout


# Telling


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_status_tells_start_grants_and_exit(ww_account: Ww, cell: str) -> None:
    done = ww_account.shell(f"ww run --status-fd 9 --fd db=3 {cell} 3<>db 9>status")
    assert done.returncode == 0
    start, grant, end = events(ww_account.tmp / "status")
    assert (start["event"], start["cell"]) == ("start", cell)
    assert (grant["event"], grant["name"], grant["target"]) == ("grant", "db", 10)
    used: Any = end.pop("usage")
    assert end == {"event": "exit", "code": 0, "reason": "exit"}
    assert used["wall"] > 0 < used["cpu"]
    assert used["memory"] > 1 << 20


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [("exit 67", 67, "exit"), ("unreachable", 134, "trap")],
)
def test_status_tells_a_cells_own_code_from_wws(
    ww: Ww, c_cell: BuildFunction, what: str, code: int, reason: str
) -> None:
    done = ww.shell(f"ww run --status-fd 9 {c_cell('process')} {what} 9>status")
    assert done.returncode == code
    end = events(ww.tmp / "status")[-1]
    assert (end["code"], end["reason"]) == (code, reason)


def test_status_tells_an_error_of_ww_once(ww: Ww) -> None:
    assert ww.shell("ww run --status-fd 9 ./missing.wasm 9>status").returncode == 127
    (end,) = [e for e in events(ww.tmp / "status") if e["event"] == "exit"]
    assert (end["code"], end["reason"]) == (127, "error")
    refused = ww.shell(f"ww run --status-fd 9 --fd a=7 {HELLO} 9>status")
    assert refused.returncode == 65
    assert events(ww.tmp / "status")[-1]["code"] == 65


def test_status_tells_the_end_where_nobody_reads_what_ww_says(ww: Ww) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with (ww.tmp / "status").open("wb") as status:
        flags = ("--status-fd", "9", "--fd-verbose", "--fd", "a=5")
        with ww.popen(
            *("run", *flags, HELLO), fds={5: Path("/dev/null"), 9: status}, stderr=writer
        ) as process:
            os.close(writer)
            process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGPIPE
    (end,) = events(ww.tmp / "status")
    assert (end["event"], end["code"], end["reason"]) == ("exit", 141, "error")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_status_tells_the_signal_that_ended_ww_however_soon_another_follows(
    ww: Ww, second: signal.Signals
) -> None:
    (ww.tmp / "private").mkdir(mode=0o700)
    for _ in range(4):
        with (ww.tmp / "status").open("wb") as status:
            flags = ("--status-fd", "9", "--fdctl", "private/socket,listen=true")
            with ww.popen("run", *flags, HELLO, fds={9: status}) as process:
                while not (ww.tmp / "private" / "socket").exists():
                    time.sleep(0.01)
                process.send_signal(signal.SIGQUIT)
                process.send_signal(second)
                process.communicate(timeout=60)
        # Of two that come at once, either may be seen first.
        number = process.returncode - 128
        assert number in (signal.SIGQUIT, second)
        (end,) = events(ww.tmp / "status")
        assert (end["code"], end["signal"]) == (process.returncode, number)


def test_status_and_a_table_wait_where_they_would_have_to(ww: Ww) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    status_reader, status_writer = os.pipe2(os.O_NONBLOCK)
    filled = b"x" * (1 << 16)
    os.write(status_writer, filled)
    flags = ("--status-fd", "9", "--fd-from", "-")
    with ww.popen("run", *flags, HELLO, stdin=reader, fds={9: status_writer}) as process:
        os.close(reader)
        os.close(status_writer)
        time.sleep(0.2)
        os.write(writer, b'(fd :name "a" :fd 2 :target 12)')
        os.close(writer)
        time.sleep(0.2)
        os.set_blocking(status_reader, True)
        with open(status_reader, "rb") as status:
            said = status.read()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert granted(out).count("(fd 12)") == 1
    assert [json.loads(line)["event"] for line in said[len(filled) :].splitlines()] == [
        *("start", "grant", "exit"),
    ]


def test_status_to_what_cannot_be_written_is_65(ww: Ww) -> None:
    assert ww.shell(f"ww run --status-fd 9 {HELLO}").returncode == 65
    assert ww.shell(f"ww run --status-fd 9 {HELLO} 9</dev/null").returncode == 65


def test_grants_check_prints_the_table_or_its_mistake(ww: Ww) -> None:
    ww.file("good", b'(for (i (range 0 2)) (fd :name (str "n" i) :fd (+ 3 i)))')
    done = ww.run("grants", "check", "good")
    assert done.returncode == 0
    assert done.stdout.decode().split() == [
        *("(", "(fd", ":name", '"n0"', ":fd", "3)"),
        *("(fd", ":name", '"n1"', ":fd", "4)", ")"),
    ]
    assert [g["name"] for g in json.loads(ww.run("grants", "check", "--json", "good").stdout)] == [
        "n0",
        "n1",
    ]
    ww.file("bad", b'\n(fd :name "a" :fd 3 :colour "red")')
    done = ww.run("grants", "check", "bad")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"ww: error: bad:2:21: ")
    ww.file("twice", b'(fd :name "a" :fd 3) (fd :name "a" :fd 4)')
    assert ww.run("grants", "check", "twice").returncode == 2
    assert ww.run("grants", "check", "./missing").returncode == 2


def test_python_without_asserts_refuses_the_same(ww: Ww) -> None:
    import sys

    ww.file("bad", b'(fd :name "a" :fd 1_0)')
    for flags in (["--fd-from", "bad"], ["--fd-map", "x=3"], ["--use-systemd-fds"]):
        plain = ww.call([sys.executable, "-m", "runner", "run", *flags, HELLO])
        without = ww.call([sys.executable, "-O", "-m", "runner", "run", *flags, HELLO])
        assert plain.returncode in (2, 65)
        assert (plain.returncode, plain.stderr) == (without.returncode, without.stderr)

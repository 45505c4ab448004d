"""`ww run` and `ww export` as a user types them, in a real shell with real redirections."""

import json
import os
import pty
import socket
import struct
import sys
import termios
import zlib

import pytest
import wasmtime

from tests.conftest import EXAMPLES, REPO, BuildFunction, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"
CAT_FDS = EXAMPLES / "cat-fds" / "cat-fds.wasm"
LIBC_START = '(memory (export "memory") 1) (func (export "_start")'


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


# The whole way


def test_a_cell_copies_one_granted_file_to_another_and_sees_the_promised_numbers(
    ww_account: Ww,
) -> None:
    path = ww_account.export(CAT_FDS)
    ww_account.file("in.txt", b"content of in.txt\n")
    done = ww_account.shell(
        "printf hi | ww run --fd input=3,mode=r --fd output=4,mode=w,target=20 "
        f"{path} 3<in.txt 4>out.txt 5</etc/passwd"
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"input=10 output=20\n"
    assert (ww_account.tmp / "out.txt").read_bytes() == b"content of in.txt\n"


def test_a_large_file_is_copied_whole_through_pipes(ww_account: Ww) -> None:
    path = ww_account.export(CAT_FDS)
    content = os.urandom(3 << 20)
    ww_account.file("in", content)
    done = ww_account.shell(
        f"ww run --fd input=3 --fd output=4 {path} 3< <(cat in) 4> >(cat >out) 2>/dev/null; wait"
    )
    assert done.returncode == 0
    out = ww_account.tmp / "out"
    # The process substitution may still be writing when the shell ends.
    for _ in range(500):
        if out.stat().st_size == len(content):
            break
        ww_account.call(["sleep", "0.01"])
    assert out.read_bytes() == content


def test_fd_verbose_prints_each_grant_in_target_order(ww_account: Ww) -> None:
    path = ww_account.export(HELLO)
    ww_account.file("db")
    done = ww_account.shell(f"ww run --fd db=3 --fd-verbose {path} 3<>db")
    assert done.stderr == b"grant fd name=db num=10 type=file mode=rw move=false cloexec=true\n"
    more = ww_account.shell(
        f"ww run --fd b=3,mode=r,move=true --fd a=4,target=5 --fd-verbose {path} 3<>db 4</dev/null"
    )
    assert more.stderr.decode().splitlines() == [
        "grant fd name=a num=5 type=stream mode=r move=false cloexec=true",
        "grant fd name=b num=10 type=file mode=r move=true cloexec=true",
    ]


def test_the_order_of_flags_does_not_matter(ww: Ww) -> None:
    ww.file("f")
    one = ww.shell(f"ww run --fd-verbose --fd a=3 --fd b=4,target=10 {HELLO} 3<f 4<f")
    other = ww.shell(f"ww run --fd b=4,target=10 --fd a=3 --fd-verbose {HELLO} 3<f 4<f")
    assert one.stderr == other.stderr
    assert b"name=a num=11" in one.stderr


def test_python_m_runner_is_the_same_program(ww: Ww) -> None:
    for args in (["--help"], ["run", str(HELLO)], ["run", "./no.wasm"], ["run", "--bad"]):
        one = ww.run(*args)
        other = ww.call([sys.executable, "-m", "runner", *args])
        assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
        assert one.stderr == other.stderr


def test_python_without_asserts_makes_no_difference(ww: Ww) -> None:
    for args in (["run", str(HELLO)], ["run", "--fd", "a=9", str(HELLO)], ["run", "--fd", "=3"]):
        plain = ww.call([sys.executable, "-m", "runner", *args])
        without = ww.call([sys.executable, "-O", "-m", "runner", *args])
        assert (plain.returncode, plain.stdout, plain.stderr) == (
            without.returncode,
            without.stdout,
            without.stderr,
        )


# Finding the cell


def test_a_cell_is_found_by_cid_by_path_and_by_a_name_on_path(ww_account: Ww) -> None:
    path = ww_account.export(HELLO)
    ww_account.file("hello.wasm", HELLO)
    ww_account.file("greet", HELLO, mode=0o755)
    expected = ww_account.run("run", path)
    assert expected.stdout
    assert expected.returncode == 0
    for line in ("ww run ./hello.wasm", "ww run $PWD/hello.wasm", "PATH=$PATH:$PWD ww run greet"):
        done = ww_account.shell(line)
        assert (done.returncode, done.stdout) == (0, expected.stdout), line


def test_a_file_in_a_directory_is_found_by_its_path_below_the_cid(ww: Ww) -> None:
    (ww.tmp / "dir" / "sub").mkdir(parents=True)
    (ww.tmp / "dir" / "sub" / "hello.wasm").write_bytes(HELLO.read_bytes())
    for version in ("0", "1"):
        path = ww.export(ww.tmp / "dir", "--cid-version", version)
        done = ww.run("run", f"{path}/sub/hello.wasm")
        assert (done.returncode, done.stderr) == (0, b"")
        missing = ww.run("run", f"{path}/sub/nothing.wasm")
        assert missing.returncode == 127
        directory = ww.run("run", f"{path}/sub")
        assert directory.returncode == 126


def test_the_cid_of_the_example_is_kubos(ww: Ww) -> None:
    # What `ipfs add` of Kubo 0.22 prints is compared in tests/content for many files; this one
    # holds that the command prints what that code finds.
    ww.file("empty")
    assert ww.export(ww.tmp / "empty") == "/ipfs/QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
    assert (
        ww.export(ww.tmp / "empty", "--cid-version", "1")
        == "/ipfs/bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    )


def test_a_changed_block_is_refused_and_named(ww_account: Ww) -> None:
    path = ww_account.export(HELLO, "--cid-version", "1")
    blocks = [p for p in ww_account.home.rglob("*.data") if p.stat().st_size]
    assert len(blocks) == 1
    blocks[0].chmod(0o600)
    data = bytearray(blocks[0].read_bytes())
    data[100] ^= 1
    blocks[0].write_bytes(data)
    done = ww_account.run("run", path)
    assert (done.returncode, done.stdout) == (1, b"")
    line = done.stderr.decode()
    assert path.removeprefix("/ipfs/") in line
    assert str(blocks[0]) in line
    # And exporting it again mends it, as the error says.
    assert ww_account.export(HELLO, "--cid-version", "1") == path
    assert ww_account.run("run", path).returncode == 0


# Programs that nobody here wrote


def test_quickjs_runs_by_its_cid(ww_account: Ww, foreign_cell: BuildFunction) -> None:
    path = ww_account.export(foreign_cell("quickjs"))
    done = ww_account.run("run", path, "-e", "console.log([3, 1, 2].sort().join(), 6 * 7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1,2,3 42\n", b"")


def test_quickjs_opens_a_granted_file_by_its_pathlink(ww: Ww, foreign_cell: BuildFunction) -> None:
    script = "console.log(std.loadFile('/data').trim().toUpperCase())"
    done = ww.run(
        *("run", "--fd", "data=3,mode=r,pathlink=true", ww.export(foreign_cell("quickjs"))),
        *("--std", "-e", script),
        fds={3: ww.file("data", b"granted\n")},
    )
    assert (done.returncode, done.stdout) == (0, b"GRANTED\n"), done.stderr


def test_a_rust_command_reads_its_input(ww_account: Ww, foreign_cell: BuildFunction) -> None:
    path = ww_account.export(foreign_cell("clock"))
    done = ww_account.run("run", path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["unix_ms"] > 1_700_000_000_000
    echo = ww_account.run("run", ww_account.export(foreign_cell("echo")), stdin=b"{}")
    assert echo.returncode == 0
    assert b"echo" in echo.stdout


def test_resvg_draws_from_one_pathlink_to_another(
    ww_account: Ww, foreign_cell: BuildFunction
) -> None:
    picture = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="2" height="1">'
        b'<rect width="1" height="1" fill="#ff0000"/></svg>'
    )
    ww_account.file("in.svg", picture)
    path = ww_account.export(foreign_cell("resvg"))
    done = ww_account.shell(
        "ww run --fd svg=3,mode=r,pathlink=true --fd png=4,mode=w,pathlink=true "
        f"{path} /svg /png 3<in.svg 4>out.png"
    )
    assert done.returncode == 0, done.stderr
    assert _pixels((ww_account.tmp / "out.png").read_bytes()) == [(255, 0, 0, 255), (0, 0, 0, 0)]


def _pixels(png: bytes) -> list[tuple[int, ...]]:
    """Decode a picture of one row without filter."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += 12 + size
    row = zlib.decompress(data)
    assert row[0] in (0, 1)  # no filter, or the difference to the pixel on the left
    values = list(row[1:])
    if row[0] == 1:
        for i in range(4, len(values)):
            values[i] = (values[i] + values[i - 4]) & 0xFF
    return [tuple(values[i : i + 4]) for i in range(0, len(values), 4)]


# Bad input: one line, the documented code, nothing left

BAD_CELLS = {
    "not wasm": b"#!/bin/sh\necho hi\n",
    "empty": b"",
    "truncated": HELLO.read_bytes()[:60],
    "text format": b'(module (memory (export "memory") 1) (func (export "_start")))',
    "no _start": wat('(memory (export "memory") 1)'),
    "foreign import": wat(f'(import "env" "launch" (func)) {LIBC_START})'),
    "another WASI": wat(f'(import "wasi_unstable" "fd_write" (func)) {LIBC_START})'),
    "component": b"\0asm\x0d\0\x01\0",
}


@pytest.mark.parametrize("kind", BAD_CELLS)
def test_what_is_no_cell_is_126_in_one_line(ww_account: Ww, kind: str) -> None:
    cell = ww_account.file("bad.wasm", BAD_CELLS[kind])
    done = ww_account.run("run", cell)
    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.startswith(f"ww: error: {cell}: ".encode())
    assert done.stderr.count(b"\n") == 1


def test_an_import_that_is_not_offered_is_named(ww: Ww) -> None:
    done = ww.run("run", ww.file("bad.wasm", BAD_CELLS["foreign import"]))
    assert b"env::launch" in done.stderr
    assert b"--unknown-imports-trap" in done.stderr


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/ipfs/QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH", 127),
        ("/ipfs/notacid", 2),
        ("/ipfs/", 2),
        ("./missing.wasm", 127),
        ("missing", 127),
        ("/dev/null", 126),
        ("/", 126),
        ("./fifo", 126),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(ww: Ww, address: str, code: int) -> None:
    os.mkfifo(ww.tmp / "fifo")
    done = ww.run("run", address)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"ww: error: ")
    assert done.stderr.count(b"\n") == 1
    assert address.rstrip("/").removeprefix("/ipfs/").encode() in done.stderr


@pytest.mark.parametrize(
    ("flags", "redirections", "code", "words"),
    [
        ("--fd a=3", "", 65, "fd 3 is not open"),
        ("--fd a=3,mode=w", "3</dev/null", 65, "mode=w is asked"),
        ("--fd a=3,mode=rw", "3< <(:)", 65, "mode=rw is asked"),
        ("--fd a=3,type=socket", "3</dev/null", 65, "type=socket is asked"),
        ("--fd a=3,type=stream", "3</etc/hostname", 65, "type=stream is asked"),
        ("--fd a=3,mode=w", "3</", 65, "directory"),
        ("--fd a=3 --fd b=4,target=3", "3</ 4</dev/null", 2, "the directory 'a' of --fd #1"),
        ("--dir ./missing:/x", "", 65, "--dir #1"),
        ("--dir /dev/null", "", 65, "Not a directory"),
        ("--dir /:/..", "", 2, "--dir #1: column 3"),
        ("--dir /:/a --dir /:/a", "", 2, "--dir #2"),
        ("--timeout 0", "", 2, "--timeout: '0'"),
        ("--memory 1e9", "", 2, "--memory: '1e9'"),
        ("--pids none", "", 2, "--pids: 'none'"),
        ("--grace -1", "", 2, "--grace: '-1'"),
        ("--net host", "", 2, "--net"),
        ("--require magic", "", 2, "--require"),
        ("--fd a=3 --fd a=4", "3</dev/null 4</dev/null", 2, "'a'"),
        ("--fd a=3,target=9 --fd b=4,target=9", "3</dev/null 4</dev/null", 2, "9"),
        ("--fd my-db=3 --fd my_db=4", "3</dev/null 4</dev/null", 2, "MY_DB"),
        ("--fd =3", "", 2, "column 1"),
        ("--fd db=3,mode", "", 2, "column 6"),
        ("--fd db=3,mode=r,mode=w", "", 2, "column 13"),
        ("--fd a=3,target=999999999", "3</dev/null", 2, "999999999"),
        ("--fd a=1_0", "", 2, "1_0"),
        ("--env A", "", 2, "--env #1"),
        ("--env WW_FDS=x", "", 2, "WW_FDS"),
        ("--uid 0", "", 2, "--uid"),
        ("--uid 1_000", "", 2, "'1_000' is not a number in plain decimal digits"),
        ("--uid 01", "", 2, "'01' is not a number in plain decimal digits"),
        ("--status-fd ٣", "3>x", 2, "'٣' is not a number in plain decimal digits"),
        ("--nonsense", "", 2, "--nonsense"),
    ],
)
def test_a_wrong_flag_or_grant_is_an_error_of_one_line(
    ww: Ww, flags: str, redirections: str, code: int, words: str
) -> None:
    done = ww.shell(f"ww run {flags} {HELLO} {redirections}")
    assert (done.returncode, done.stdout) == (code, b"")
    line = done.stderr.decode()
    assert line.startswith("ww: error: ")
    assert line.count("\n") == 1
    assert words in line


CID_V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        (f"/ipfs/{CID_V0[:-1]}", 2, "a CID that begins with Qm has 46 characters, and this has 45"),
        ("/ipfs/", 2, "the CID is missing"),
        (CID_V0, 127, f"(write /ipfs/{CID_V0})"),
        (f"{CID_V0}/cell.wasm", 127, f"(write /ipfs/{CID_V0}/cell.wasm)"),
        (f"ipfs://{CID_V0}", 127, f"(write /ipfs/{CID_V0})"),
        (f"ipfs/{CID_V0}", 127, f"(write /ipfs/{CID_V0})"),
        ("ipns://example.org", 127, "(write /ipns/example.org)"),
        ("./nothing.wasm", 127, "./nothing.wasm: there is no such file\n"),
    ],
)
def test_a_mistaken_address_is_told_with_the_right_one(
    ww: Ww, address: str, code: int, said: str
) -> None:
    done = ww.run("run", address)
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_descriptor_of_events_is_not_granted_to_the_cell(ww: Ww) -> None:
    with (ww.tmp / "events").open("wb") as events:
        flags = ("--status-fd", "3", "--fd", "out=3,mode=w")
        done = ww.run("run", *flags, HELLO, fds={3: events})
    assert done.returncode == 65
    assert b"fd 3 is granted to the cell, which could write events of its own" in done.stderr
    for number, grant in (("1", "log=1,target=10"), ("2", "stderr,move=true")):
        done = ww.run("run", "--status-fd", number, "--fd", grant, HELLO)
        assert done.returncode == 65
        assert b"is granted to the cell" in done.stderr
    # What only passes through is the caller's to share.
    done = ww.run("run", "--status-fd", "2", HELLO)
    assert json.loads(done.stderr.splitlines()[-1])["code"] == 0


@pytest.mark.parametrize(
    "line", ["store path", "run --explain {hello}", "store ls", "verify {cid} {file}", "--help"]
)
def test_a_reader_that_is_gone_ends_a_command_as_sigpipe_would(ww: Ww, line: str) -> None:
    file = ww.file("file", b"hello world")
    address = ww.export(file)
    said = line.format(hello=HELLO, cid=address, file=file)
    done = ww.shell(f"ww {said} | true; echo ${{PIPESTATUS[0]}}")
    # What is written before `true` has ended is in the pipe.
    assert (done.stdout, done.stderr) in ((b"141\n", b""), (b"0\n", b""))
    reading, writing = os.pipe()
    os.close(reading)
    process = ww.start([*ww.command, *said.split()], stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    "line", ["export {hello}", "store ls", "store cat {cid}", "car export {cid}", "doctor"]
)
def test_a_result_that_nobody_can_get_is_an_error(ww: Ww, line: str) -> None:
    said = line.format(hello=HELLO, cid=ww.export(ww.file("file", b"hello world")))
    done = ww.shell(f"ww {said} >&-")
    assert (done.returncode, done.stderr.startswith(b"ww: error: stdout: it is closed (")) == (
        1,
        True,
    )
    assert ww.shell(f"ww {said} >/dev/null").returncode == 0


@pytest.mark.parametrize("variables", ["", "WW_WITH_IPFS=0 "], ids=["plain", "by click"])
def test_a_command_without_a_result_needs_no_stdout(ww: Ww, variables: str) -> None:
    done = ww.shell(f"{variables}ww run {HELLO} >&-")
    assert (done.returncode, done.stderr) == (0, b"")
    done = ww.shell(f"{variables}ww run --explain {HELLO} >&-")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ww: error: stdout: it is closed")


def test_an_empty_path_is_named_as_such(ww: Ww) -> None:
    for command, what in (("run", b"CELL"), ("export", b"PATH")):
        done = ww.run(command, "")
        assert (done.returncode, done.stderr) == (2, b"ww: error: %s: it is empty\n" % what)


@pytest.mark.parametrize("variables", ["", "WW_WITH_IPFS=0 "], ids=["plain", "by click"])
@pytest.mark.parametrize("flag", ["--invoke ''", "--invoke="])
def test_no_function_to_call_is_not_taken_for_the_start(ww: Ww, variables: str, flag: str) -> None:
    done = ww.shell(f"{variables}ww run {flag} {HELLO}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"ww: error: --invoke: it is empty\n"


def test_the_help_names_every_kind_of_cell(ww: Ww) -> None:
    words = " ".join(ww.run("run", "--help").stdout.decode().split())
    for kind in ("/ipfs/CID[/PATH]", "/ipns/NAME[/PATH]", "./cell.car#/PATH", "on PATH"):
        assert kind in words


def test_a_flag_without_its_value_is_the_commands_error(ww: Ww) -> None:
    done = ww.run("run", "--fd")
    assert done.returncode == 2
    assert done.stderr.startswith(b"ww: error: ww run: Option '--fd' requires an argument")


def test_no_traceback_is_shown_but_with_debug(ww: Ww) -> None:
    plain = ww.run("run", "./missing.wasm")
    assert b"Traceback" not in plain.stderr
    debug = ww.run("run", "--debug", "./missing.wasm")
    assert b"Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)
    assert debug.returncode == plain.returncode


def test_hostile_names_cannot_forge_a_line_or_steer_the_terminal(ww: Ww) -> None:
    done = ww.run("run", "./a\nww: error: forged\x1b[2J")
    assert done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr


def test_arguments_after_the_cell_are_the_cells(ww: Ww) -> None:
    done = ww.run("run", HELLO, "--help", "--fd", "x")
    assert done.returncode == 0
    assert b"Usage" not in done.stdout


def test_an_argument_that_is_not_utf8_is_refused(ww: Ww) -> None:
    done = ww.shell(f"ww run {HELLO} $'\\xff'")
    assert done.returncode == 2
    assert b"ARGS #1" in done.stderr


def test_a_store_that_cannot_be_written_is_an_error_of_one_line(ww: Ww) -> None:
    done = ww.run("export", HELLO, env={"WW_HOME": "/proc/nowhere"})
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


def test_export_to_a_full_stdout_fails(ww: Ww) -> None:
    done = ww.shell(f"ww export {HELLO} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ww: error: stdout: ")


@pytest.mark.parametrize("line", ["--help", "--version", "run --help"])
def test_help_to_a_full_stdout_fails_as_any_other_result(ww: Ww, line: str) -> None:
    done = ww.shell(f"ww {line} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"ww: error: stdout: it cannot be written: No space left on device\n"


def test_completions_for_a_shell_are_printed(ww: Ww) -> None:
    said = {"_WW_COMPLETE": "zsh_complete", "COMP_WORDS": "ww ru", "COMP_CWORD": "1"}
    done = ww.run(env=said)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"plain\nrun\n")
    assert ww.run(env={"_WW_COMPLETE": "zsh_source"}).stdout.startswith(b"#compdef ww\n")


def test_a_cell_that_is_larger_than_a_file_may_be_is_told_with_the_limit(ww: Ww) -> None:
    size = HELLO.stat().st_size
    done = ww.shell(f"ulimit -f {size // 1024 // 2}; ww run --status-fd 9 {HELLO} 9>status")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"ww: error: {HELLO}: ww's copy of it cannot be written: File too large "
        "(the limit on the size of files is too low: see ulimit -f)\n"
    )
    end = json.loads((ww.tmp / "status").read_text().splitlines()[-1])
    assert (end["code"], end["reason"]) == (1, "error")
    assert end["what"].startswith(f"{HELLO}: ww's copy of it")


def test_a_limit_that_leaves_ww_no_descriptors_is_the_jails_error(ww: Ww) -> None:
    for flags, own in (("", 40), ("--fd a=3", 40), ("--scratch 1M --with-ipfs", 42)):
        done = ww.shell(f"ulimit -n {own - 1}; ww run {flags} {HELLO} 3</dev/null")
        assert (done.returncode, done.stdout) == (67, b"")
        assert done.stderr.decode() == (
            f"ww: error: ulimit -n: it is too low: ww needs {own} descriptors itself, and may have "
            f"{own - 1} open (raise the hard limit on open files)\n"
        )
    assert ww.shell(f"ulimit -n 40; ww run {HELLO}").returncode == 0


def test_a_cell_on_a_full_stdout_gets_the_error_and_not_ww(ww: Ww) -> None:
    done = ww.shell(f"ww run {HELLO} >/dev/full; echo $?")
    assert done.stdout.strip() != b""
    assert b"Traceback" not in done.stderr


def test_without_stderr_the_exit_code_still_tells(ww: Ww) -> None:
    assert ww.shell("ww run ./missing.wasm 2>&-").returncode == 127
    assert ww.shell("ww run ./missing.wasm 2>/dev/full").returncode == 127


def test_no_stdio_gives_the_cell_dev_null(ww: Ww) -> None:
    done = ww.run("run", "--no-stdio", HELLO, stdin=b"unread")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_cell_runs_on_a_terminal_and_leaves_its_settings(ww: Ww) -> None:
    controller, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        with ww.popen("run", HELLO, stdin=terminal, stdout=terminal, stderr=terminal) as process:
            assert process.wait(60) == 0
        assert termios.tcgetattr(terminal) == before
        assert os.read(controller, 100).strip()
    finally:
        os.close(controller)
        os.close(terminal)


def test_ww_starts_where_the_working_directory_cannot_be_read(ww_account: Ww) -> None:
    folder = ww_account.tmp / "gone"
    folder.mkdir()
    os.chown(folder, ww_account.account.uid, ww_account.account.gid)
    done = ww_account.shell(f"rmdir $PWD; ww run {HELLO}", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_cache_of_compiled_modules_is_used_only_if_nobody_else_can_write_it(ww: Ww) -> None:
    assert ww.run("run", HELLO).returncode == 0
    (artifact, *_) = (ww.home / "cache").glob("switch-*.cwasm")
    damaged = bytearray(artifact.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    artifact.chmod(0o600)
    artifact.write_bytes(damaged)
    assert ww.run("run", HELLO).returncode == 0  # noticed, and made anew
    assert artifact.read_bytes() != damaged
    # A file that others may write is not believed, whatever it holds.
    data = bytes(len(damaged) - 16)
    forged = data + struct.pack("<QI4s", len(data), zlib.crc32(data), b"ww1\n")
    artifact.chmod(0o600)
    artifact.write_bytes(forged)
    artifact.chmod(0o622)
    assert ww.run("run", HELLO).returncode == 0
    assert artifact.read_bytes() != forged


def test_a_connected_socket_may_be_declared_a_stream(ww: Ww) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = ww.run("run", "--fd-verbose", "--fd", "s=3,type=stream", HELLO, fds={3: theirs})
    assert b"type=stream mode=rw" in done.stderr


def test_the_readmes_first_run_is_true(ww: Ww) -> None:
    text = (REPO / "README.md").read_text()
    block = text.split("## First run", 1)[1].split("```console\n", 1)[1].split("```", 1)[0]
    lines = block.replace("\\\n", "").splitlines()
    commands = [line[2:] for line in lines if line.startswith("$ ")]
    expected = [line for line in lines if not line.startswith("$ ")]
    (ww.tmp / "examples").symlink_to(EXAMPLES)
    done = ww.shell("exec 2>&1; " + "; ".join(commands))
    assert done.stdout.decode().splitlines() == expected

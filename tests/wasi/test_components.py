"""Components (WASI preview 2) in the jail: what reaches them, what does not, and every limit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BUILD, CAN_BE_ROOT, BuildFunction, Leftovers, Ww, need_command
from tests.features import lacks, needs
from tests.jail.inside import variant

NPM = Path(os.environ.get("WW_TEST_NPM", BUILD / "npm")) / "tests" / "components"


@pytest.fixture(scope="session")
def component(c_cell: BuildFunction) -> Path:
    """tests/probes/cells/component.c as a component."""
    module = c_cell("component")
    made = module.with_suffix(".component.wasm")
    if not made.exists():
        tool = NPM / "node_modules" / "@bytecodealliance" / "jco" / "src" / "jco.js"
        if not tool.is_file():
            lacks("npm", f"{tool} is missing (scripts/test installs it with npm)")
        unfinished = made.with_suffix(f".{os.getpid()}")
        command = [need_command("node"), str(tool), "new", str(module), "--wasi-command", "-o"]
        subprocess.run([*command, str(unfinished)], check=True, capture_output=True)
        unfinished.rename(made)
    return made


@pytest.fixture
def run(ww_account: Ww, component: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs the component with flags of ww before it, and acts behind it."""

    def go(
        *acts: str, flags: tuple[str | Path, ...] = (), **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        cell = ww_account.file("cell.wasm", component)
        return ww_account.run("run", *flags, cell, *acts, **options)  # type: ignore[arg-type]

    return go


Run = Callable[..., subprocess.CompletedProcess[bytes]]


def test_it_has_arguments_the_environment_and_standard_streams_and_nothing_is_left(
    run: Run, ww_account: Ww, leftovers: type[Leftovers]
) -> None:
    run()  # makes the store's directories
    with leftovers(ww_account):
        done = run(
            *("say:a b", "env:K", "env:HOME", "env:WW_FDS", "copy", "complain", "nap"),
            flags=("--env", "K=v"),
            stdin=b"from stdin",
        )
    assert done.stdout == b"a b\nv\n(none)\n()\nfrom stdin"
    assert done.stderr == b"complaint\n"
    assert done.returncode == 0


def test_its_failure_is_exit_code_1_and_its_trap_134(run: Run) -> None:
    assert run("fail").returncode == 1
    trapped = run("trap")
    assert trapped.returncode == 134
    assert b"unreachable" in trapped.stderr


def test_without_stdio_it_reads_nothing_and_writes_nowhere(run: Run) -> None:
    done = run("copy", "say:lost", "complain", flags=("--no-stdio",), stdin=b"text")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_pipe_can_be_its_standard_output(run: Run) -> None:
    read, write = os.pipe()
    with open(read, "rb") as end:
        with open(write, "wb") as other:
            flags = ("--no-stdio", "--fd", "log=5,mode=w,target=1")
            assert run("say:to the pipe", flags=flags, fds={5: other}).returncode == 0
        assert end.read() == b"to the pipe\n"


@pytest.fixture
def directory(ww_account: Ww) -> Path:
    made = ww_account.tmp / "granted"
    made.mkdir()
    (made / "file").write_bytes(b"text")
    (made / "out").symlink_to("/etc/passwd")
    (made / "up").symlink_to("../beside")
    ww_account.file("beside", b"secret", 0o666)
    # What root's cell may do here is what nobody may.
    made.chmod(0o777)
    (made / "file").chmod(0o666)
    if not ww_account.account.is_own:
        os.chown(made, ww_account.account.uid, ww_account.account.gid)
    return made


def test_a_directory_for_reading_is_read_and_never_changed(run: Run, directory: Path) -> None:
    acts = ("list:/d", "read:/d/file", "write:/d/file", "create:/d/new")
    done = run(*acts, flags=("--dir", f"{directory}:/d"))
    lines = done.stdout.decode().splitlines()
    assert sorted(lines[0].split()[2:]) == ["file", "out", "up"]
    assert lines[1] == "read /d/file: [text]"
    assert not any(line.endswith(": ok") for line in lines)
    assert (directory / "file").read_bytes() == b"text"
    assert not (directory / "new").exists()


def test_a_directory_for_writing_can_be_changed(run: Run, directory: Path) -> None:
    acts = ("create:/d/new", "write:/d/file", "names")
    done = run(*acts, flags=("--dir", f"{directory}:/d:rw"))
    assert done.stdout.decode().splitlines() == [
        *("create /d/new: ok", "write /d/file: ok", "mkdir sub: ok", "rename sub: ok"),
        *("stat moved: ok", "rmdir moved: ok", "symlink link: ok", "read /d/link: [written]"),
        "unlink link: ok",
    ]
    assert (directory / "new").read_bytes() == b"written"


def test_a_file_in_a_writable_directory_can_be_appended_to(run: Run, directory: Path) -> None:
    done = run("append:/d/file", flags=("--dir", f"{directory}:/d:rw"))
    assert done.stdout == b"write /d/file: ok\n"
    assert (directory / "file").read_bytes() == b"textwritten"


def test_a_file_granted_for_appending_cannot_be_cut_by_being_opened_anew(
    ww: Ww, component: Path
) -> None:
    with open(ww.file("log", b"text", 0o666), "ab+") as log:
        done = ww.run("run", "--fd", "log=3,mode=rw", component, "write:/fd/log", fds={3: log})
    assert done.returncode == 65
    assert b"open for appending" in done.stderr
    assert (ww.tmp / "log").read_bytes() == b"text"


@pytest.mark.parametrize("guest", ["/fd", "/fd/log", "fd/", "/./fd"])
def test_no_directory_takes_the_place_of_the_files(
    ww: Ww, component: Path, directory_of: Path, guest: str
) -> None:
    flags = ("--dir", f"{directory_of}:{guest}", "--fd", "log=3,mode=r")
    done = ww.run("run", *flags, component, "list:/fd", fds={3: ww.file("f")})
    assert done.returncode == 2, done.stdout
    assert b"no directory can be there beside them" in done.stderr


def test_a_directory_is_no_standard_stream(ww: Ww, component: Path, directory_of: Path) -> None:
    fd = os.open(directory_of, os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = ww.run("run", "--fd", "d=3,mode=r,target=1", component, "say:x", fds={3: fd})
    finally:
        os.close(fd)
    assert done.returncode == 65
    assert b"it has standard streams at 0, 1 and 2" in done.stderr


@pytest.fixture
def directory_of(ww: Ww) -> Path:
    made = ww.tmp / "some"
    made.mkdir(exist_ok=True)
    return made


def test_no_name_leads_out_of_a_directory(run: Run, directory: Path) -> None:
    acts = ("read:/d/out", "read:/d/up", "read:/d/../beside", "read:/etc/passwd", "list:/")
    done = run(*acts, flags=("--dir", f"{directory}:/d:rw"))
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(acts)
    assert b"secret" not in done.stdout
    assert b"root" not in done.stdout


def test_files_are_where_their_names_say_each_with_its_mode(run: Run, ww_account: Ww) -> None:
    one, two = ww_account.file("1", b"one", 0o666), ww_account.file("2", b"two", 0o666)
    acts = ("list:/fd", "read:/fd/one", "write:/fd/one", "write:/fd/two", "read:/fd/two")
    with open(one, "r+b") as first, open(two, "r+b") as second:
        done = run(
            *(*acts, "create:/fd/new"),
            flags=("--fd", "one=3,mode=r", "--fd", "two=4,mode=rw"),
            fds={3: first, 4: second},
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert sorted(lines[0].split()[2:]) == ["one", "two"]
    assert lines[1] == "read /fd/one: [one]"
    assert lines[2].startswith("write /fd/one: ")
    assert lines[2] != "write /fd/one: ok"
    assert lines[3:5] == ["write /fd/two: ok", "read /fd/two: [written]"]
    assert not lines[5].endswith("ok")
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"written")


@needs("root", CAN_BE_ROOT, "only root's cell runs as another user")
def test_a_file_that_its_user_may_not_open_by_a_path_is_refused_before_anything_runs(
    ww: Ww, component: Path
) -> None:
    private = ww.file("private", b"secret", 0o600)
    done = ww.run("run", "--fd", "a=3,mode=r", component, "read:/fd/a", fds={3: private})
    assert done.returncode == 67
    assert b"jail: files: the file granted as a, which a component opens by a path" in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--fd", "a=3,mode=r"), b"a pipe (read end) can be granted to it as standard input"),
        (("--fd", "a=4,mode=w"), b"a file can be granted to it as r or rw only"),
        (("--fd", "a=4,mode=r,pathlink=true"), b"has no pathlinks: a file is /fd/a to it"),
        (("--no-stdio", "--fd", "a=4,mode=w,target=0"), b"its descriptor 0 needs mode=r"),
        (("--no-stdio", "--fd", "a=4,mode=r,target=2"), b"its descriptor 2 needs mode=w"),
    ],
)
def test_what_would_not_reach_it_as_promised_is_refused(
    ww: Ww, component: Path, flags: tuple[str, ...], reason: bytes
) -> None:
    read, write = os.pipe()
    with open(read, "rb") as end, open(write, "wb"), open(ww.file("f"), "r+b") as file:
        done = ww.run("run", *flags, component, "say:hello", fds={3: end, 4: file})
    assert done.returncode == 65, done.stderr
    assert reason in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("flags", [("--with-ipfs",), ("--invoke", "run")])
def test_what_is_for_core_modules_only_is_wrong_usage(
    ww: Ww, component: Path, flags: tuple[str, ...]
) -> None:
    done = ww.run("run", *flags, component)
    assert done.returncode == 2
    assert f"{flags[0]}: the cell is a component".encode() in done.stderr


@pytest.mark.parametrize(
    ("act", "flag", "value"),
    [
        ("loop", "--timeout", "1"),
        ("loop", "--cpu-time", "1"),
        ("loop", "--fuel", "1000000"),
        ("grow", "--memory", "20M"),
        ("spam", "--output", "100K"),
    ],
)
def test_every_limit_ends_it_and_is_named(run: Run, act: str, flag: str, value: str) -> None:
    done = run(act, flags=(flag, value))
    assert done.returncode == 66, done.stderr
    assert f"set with {flag}".encode() in done.stderr
    if flag == "--output":
        assert len(done.stdout) == 100 << 10


def test_a_scratch_directory_is_its_own(run: Run) -> None:
    done = run("create:/tmp/x", "read:/tmp/x", flags=("--scratch", "1M"))
    assert done.stdout == b"create /tmp/x: ok\nread /tmp/x: [written]\n"


def test_the_second_time_it_is_not_compiled(run: Run, ww_account: Ww) -> None:
    run()
    kept = {path: path.stat().st_ino for path in (ww_account.home / "cache").glob("*.cwasm")}
    done = ww_account.run("cache", "warm", ww_account.tmp / "cell.wasm")
    assert done.stdout.startswith(b"cached ")
    assert run("say:again").stdout == b"again\n"
    assert kept == {p: p.stat().st_ino for p in (ww_account.home / "cache").glob("*.cwasm")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(component)", b"it exports no interface 'wasi:cli/run'"),
        ('(component (import "wasi:http/types@0.2.0" (instance)))', None),
        (
            '(component (import "x:y/z" (instance (export "f" (func)))))',
            b"x:y/z",
        ),
    ],
)
def test_a_component_that_is_no_command_here_is_rejected(
    ww: Ww, text: str, reason: bytes | None
) -> None:
    import wasmtime

    done = ww.run("run", ww.file("c.wasm", bytes(wasmtime.wat2wasm(text))))
    assert done.returncode == 126, done.stderr
    assert (reason or b"wasi:cli/run") in done.stderr


def test_a_damaged_component_is_rejected(ww: Ww, component: Path) -> None:
    whole = component.read_bytes()
    for damaged in (whole[:8] + b"\xff" * 64, whole[: len(whole) // 2]):
        done = ww.run("run", ww.file("c.wasm", damaged))
        assert done.returncode == 126, done.stderr


@needs("root", CAN_BE_ROOT, "only root can use --isolation chroot")
def test_in_the_weaker_isolation_it_has_its_standard_streams_only(ww: Ww, component: Path) -> None:
    weak = ("run", "--isolation", "chroot")
    assert ww.run(*weak, component, "say:hello", "list:/").stdout.startswith(b"hello\n")
    done = ww.run(*weak, "--fd", "a=3,mode=r", component, "read:/fd/a", fds={3: ww.file("f")})
    assert done.returncode == 67
    assert b"a file of a component" in done.stderr


@pytest.mark.parametrize(
    ("function", "step"), [("mounts.open_files", "files"), ("descriptors.park", "descriptors")]
)
def test_a_step_of_its_own_that_fails_ends_it_before_it_begins(
    run: Run, ww_account: Ww, leftovers: type[Leftovers], component: Path, function: str, step: str
) -> None:
    module, name = function.split(".")
    patch = f"""
from sandbox import {module}
real = {module}.{name}
def fail(first, *rest):
    # Only the jail parks a single one.
    if {name!r} == "park" and len(first) > 1:
        return real(first, *rest)
    raise OSError(28, "no room", "made up")
{module}.{name} = fail
"""
    run()
    file = ww_account.file("f", b"text", 0o666)
    cell = ww_account.file("cell.wasm", component)
    with leftovers(ww_account):
        done = ww_account.call(
            [*variant(patch), "run", "--fd", "a=3,mode=r", cell, "say:hello"], fds={3: file}
        )
    assert done.returncode == 67
    assert f"jail: {step}: made up: no room".encode() in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("kind", ["component", "core module"])
def test_no_grant_takes_the_number_of_what_the_jail_opens_itself(
    ww: Ww, component: Path, c_cell: BuildFunction, kind: str
) -> None:
    cell = component if kind == "component" else c_cell("component")
    file = ww.file("f", b"text", 0o666)
    for target in range(4, 20):
        flags = ("--scratch", "1M", "--fd", f"a=3,mode=r,target={target}")
        done = ww.run("run", *flags, cell, "create:/tmp/x", "read:/tmp/x", fds={3: file})
        assert done.stdout == b"create /tmp/x: ok\nread /tmp/x: [written]\n", (target, done.stderr)

"""``--explain``: the whole plan, for people and for programs, and nothing is run."""

import json

import pytest

from tests.conftest import EXAMPLES, Ww

HELLO = EXAMPLES / "hello" / "hello.wasm"


def test_explain_prints_the_plan_and_runs_nothing(ww: Ww) -> None:
    done = ww.shell(f"ww run --explain --fd db=3,mode=r --fd out=4 {HELLO} a 3<>db 4>out")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "fd 10: db from fd 3 (regular file, --fd #1) type=file mode=r of rw" in text
    # The descriptor itself could do more.
    assert "enforced by the host; the kernel only keeps the descriptor from being opened" in text
    assert (
        "fd 11: out from fd 4 (regular file, --fd #2) type=file mode=w of w, enforced by the "
        in text
    )
    assert "Hello" not in text


def test_explain_as_json_says_the_same(ww: Ww) -> None:
    done = ww.shell(f"ww run --explain --json --fd db=3,mode=r --env A=b {HELLO} x 3<>db")
    plan = json.loads(done.stdout)
    assert plan["cell"] == str(HELLO)
    assert plan["args"] == ["x"]
    assert plan["env"]["A"] == "b"
    (db,) = [grant for grant in plan["grants"] if grant["name"] == "db"]
    assert (db["source"], db["target"], db["mode"], db["actual"]) == (3, 10, "r", "rw")
    assert db["enforced_by"].startswith("the host; the kernel only ")
    assert "guest" not in db
    assert plan["jail"]["uid"] > 0


def test_what_is_called_and_what_becomes_of_unknown_imports_is_said(ww: Ww) -> None:
    def explained(*flags: str) -> tuple[list[str], dict[str, object]]:
        lines = ww.run("run", "--explain", *flags, HELLO).stdout.decode().splitlines()
        return lines, json.loads(ww.run("run", "--explain", "--json", *flags, HELLO).stdout)

    lines, plan = explained()
    assert "unknown imports: refused" in lines
    assert not any(line.startswith("invoke") for line in lines)
    assert (plan["invoke"], plan["unknown_imports"]) == ("", "refused")
    lines, plan = explained("--invoke", "add", "--unknown-imports-trap")
    assert {"invoke: add", "unknown imports: trap when called"} <= set(lines)
    assert (plan["invoke"], plan["unknown_imports"]) == ("add", "trap when called")


def test_explain_refuses_what_a_run_would(ww: Ww) -> None:
    assert ww.shell(f"ww run --explain --fd db=3 {HELLO}").returncode == 65
    assert ww.shell(f"ww run --json {HELLO}").returncode == 2


def test_a_directory_is_shown_with_its_path_its_number_and_who_holds_it_back(
    ww_account: Ww,
) -> None:
    (ww_account.tmp / "d").mkdir(mode=0o755)
    flags = "--fd data=3 --dir d:/w:rw"
    done = ww_account.shell(f"ww run --explain {flags} {HELLO} 3<d")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert (
        "fd 10: data from fd 3 (directory, --fd #1) type=file mode=r of rw at /data and fd 3, "
        "enforced by the kernel (read-only mount) and the host"
    ) in lines
    (writable,) = [line for line in lines if line.startswith("fd 11: dir1 from ")]
    assert "(directory, --dir #1) type=file mode=rw of rw at /w and fd 4, enforced by" in writable
    assert "jail: root: a read-only tmpfs with the granted directories" in lines
    plan = json.loads(ww_account.shell(f"ww run --explain --json {flags} {HELLO} 3<d 4<>f").stdout)
    found = {g["name"]: (g.get("guest"), g.get("preopen")) for g in plan["grants"]}
    assert found == {None: (None, None), "data": ("/data", 3), "dir1": ("/w", 4)}
    assert '(dir1 (fd 11) (mode "rw") (type "file"))' in plan["env"]["WW_FDS"]


def test_a_directory_that_may_not_be_read_is_refused(ww_account: Ww) -> None:
    (ww_account.tmp / "d").mkdir(mode=0)
    done = ww_account.run("run", "--explain", "--dir", "d", HELLO)
    if ww_account.account.uid:
        assert (done.returncode, done.stdout) == (65, b"")
        assert b"--dir #1: 'd' cannot be opened: Permission denied" in done.stderr
    else:
        assert done.returncode == 0


def test_limits_and_the_rest_of_the_jail_are_shown(ww: Ww) -> None:
    flags = "--timeout 1.5m --cpu-time none --fuel 5 --memory 64MiB --output 0 --scratch 1M "
    flags += "--net loopback --require cgroup --require landlock --require cgroup --grace 2"
    lines = ww.shell(f"ww run --explain {flags} {HELLO}").stdout.decode().splitlines()
    assert [line for line in lines if line.startswith(("limit", "grace", "required"))] == [
        "limit: --timeout 90s",
        "limit: --cpu-time none",
        "limit: --fuel 5",
        "limit: --memory 64M",
        "limit: --table-elements 10000000",
        "limit: --output 0",
        "limit: --pids 16",
        "limit: --nofile 256",
        "limit: --scratch 1M",
        "grace: 2s",
        "required: cgroup",
        "required: landlock",
    ]
    assert "jail: root: a read-only tmpfs with a writable /tmp" in lines
    assert "jail: network: a lo that is up, and nobody else's" in lines
    plan = json.loads(ww.shell(f"ww run --explain --json {flags} {HELLO}").stdout)
    assert plan["limits"] == {
        "wall": 90.0,
        "cpu": None,
        "fuel": 5,
        "memory": 64 << 20,
        "table_elements": 10_000_000,
        "output": 0,
        "pids": 16,
        "nofile": 256,
        "scratch": 1 << 20,
    }
    assert (plan["network"], plan["grace"]) == ("loopback", 2.0)
    assert plan["required"] == ["cgroup", "landlock"]
    assert plan["jail"]["isolation"] == "full"


def test_it_says_whose_end_is_the_cells(ww: Ww) -> None:
    for flag, whose in (("", "ww"), ("--die-with-parent", "ww, and the process that started it")):
        lines = ww.shell(f"ww run --explain {flag} {HELLO}").stdout.decode().splitlines()
        assert f"ends with: {whose}" in lines


def test_without_flags_the_limits_are_finite(ww: Ww) -> None:
    plan = json.loads(ww.run("run", "--explain", "--json", HELLO).stdout)
    assert [name for name, value in plan["limits"].items() if value is None] == ["fuel"]
    assert (plan["network"], plan["required"], plan["grace"]) == ("none", [], 0.0)
    assert plan["jail"]["root"] == "a read-only tmpfs with nothing in it"


@pytest.mark.parametrize(
    ("flag", "default"), [("--timeout", "1h"), ("--memory", "1G"), ("--fuel", "none")]
)
def test_the_help_shows_each_default(ww: Ww, flag: str, default: str) -> None:
    words = " ".join(ww.run("run", "--help").stdout.decode().split())
    part = words[words.index(f"{flag} ") :]
    assert f"(default {default}; none: no limit)" in part[: part.index(" --", 1)]

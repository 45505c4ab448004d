"""``--explain``: the whole plan, for people and for programs, and nothing is run."""

import json
import socket
import time

import pytest

from tests.conftest import EXAMPLES, Ww
from tests.content.ipns_records import DAY, ed25519, make

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


# Of the right form; nobody has it.
CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
KEY = "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r"


@pytest.mark.parametrize(
    ("args", "env"),
    [
        ([""], {}),
        (["/ipfs/foo"], {}),
        ([f"/ipfs/{CID}//a"], {}),
        (["/ipns/foo"], {}),
        ([f"/ipns/{KEY}/.."], {}),
        (["/ipns/example.org"], {}),
        (["--gateway", "foo", f"/ipfs/{CID}"], {}),
        (["--gateway", "foo", f"/ipns/{KEY}"], {}),
        (["--ipfs", "foo", f"/ipfs/{CID}"], {}),
        ([f"/ipfs/{CID}"], {"WW_HOME": "relative"}),
        (["--invoke", "", str(HELLO)], {}),
        ([str(HELLO)], {"WW_CACHE_SIZE": "foo"}),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_what_a_run_refuses_for_its_flags_alone_is_refused_in_the_same_words(
    ww: Ww, args: list[str], env: dict[str, str]
) -> None:
    run, explained = (ww.run("run", *more, *args, env=env) for more in ([], ["--explain"]))
    assert (explained.returncode, explained.stdout) == (2, b"")
    assert (explained.returncode, explained.stderr) == (run.returncode, run.stderr)


@pytest.mark.parametrize(
    "flag", ["--net=loopback", "--scratch=1M", "--dir=.:/d", ""], ids=["net", "scratch", "dir", "-"]
)
def test_what_the_weaker_isolation_cannot_give_is_refused_in_the_same_words(
    ww_account: Ww, flag: str
) -> None:
    args = ["--isolation", "chroot", *([flag] if flag else []), str(HELLO)]
    run, explained = (ww_account.run("run", *more, *args) for more in ([], ["--explain"]))
    assert (explained.returncode, explained.stderr) == (run.returncode, run.stderr)
    refused = bool(flag or ww_account.account.uid)
    assert explained.returncode == (67 if refused else 0)
    assert (explained.stdout == b"") is refused


@pytest.mark.parametrize(
    "args",
    [
        ["--gateway", "foo", str(HELLO)],  # which nobody would ask
        ["./nothing.wasm"],
        [f"/ipfs/{CID}/a"],
        [f"/ipns/{KEY}/a"],
        ["--dnslink", "/ipns/example.org/a"],
    ],
    ids=" ".join,
)
def test_what_only_a_run_can_tell_is_explained(ww: Ww, args: list[str]) -> None:
    done = ww.run("run", "--explain", *args)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f"cell: {args[-1]}\n".encode())


@pytest.mark.parametrize("address", [f"/ipfs/{CID}", f"/ipns/{KEY}", "/ipns/example.org"])
def test_explain_asks_nobody_and_leaves_nothing(ww: Ww, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        flags = ("--explain", "--dnslink", "--ipfs", url, "--gateway", url, "--with-ipfs")
        done = ww.run("run", *flags, address)
        assert (done.returncode, done.stderr) == (0, b"")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert list(ww.home.iterdir()) == []


def test_what_a_name_stood_for_once_decides_nothing(ww: Ww) -> None:
    (ww.home / "ipns").mkdir()
    record = make("/ipns/example.org", validity=time.time_ns() + DAY)
    (ww.home / "ipns" / str(ed25519().name)).write_bytes(record)
    done = ww.run("run", "--explain", f"/ipns/{ed25519().name}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_value_can_forge_a_line_of_the_plan(ww: Ww) -> None:
    forged = "a\nforged 1T\x1b[2J"  # no colon: --dir has its own use for one
    (ww.tmp / forged).mkdir()
    args = ["--env", f"A={forged}", "--invoke", forged, "--dir", f"{forged}:/{forged}"]
    done = ww.run("run", "--explain", *args, forged, forged)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    shown = r"a\nforged 1T\x1b[2J"
    told = {f"cell: {shown}", f"arg: {shown}", f"env: A={shown}", f"invoke: {shown}"}
    assert told <= set(lines)
    assert any(f" at /{shown} and fd 3, " in line for line in lines)
    assert not any(line.startswith("forged") for line in lines)
    assert "\x1b" not in done.stdout.decode()
    # A program is told what it is, exactly.
    plan = json.loads(ww.run("run", "--explain", "--json", *args, forged, forged).stdout)
    assert (plan["cell"], plan["args"], plan["invoke"]) == (forged, [forged], forged)
    assert plan["env"]["A"] == forged
    assert [grant["guest"] for grant in plan["grants"] if "guest" in grant] == [f"/{forged}"]


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
    for flag, whose in (("", "ww"), ("--die-with-parent", "ww or of what started it")):
        lines = ww.shell(f"ww run --explain {flag} {HELLO}").stdout.decode().splitlines()
        assert f"until: the end of {whose}" in lines


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

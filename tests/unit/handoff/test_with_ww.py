"""The whole way: `ww send-fds` and `ww run --fdctl`, and a real cell."""

from __future__ import annotations

from tests.conftest import EXAMPLES, Ww
from tests.unit.handoff.peers import PATIENCE

CAT_FDS = EXAMPLES / "cat-fds" / "cat-fds.wasm"
HELLO = EXAMPLES / "hello" / "hello.wasm"


def test_a_cell_works_with_what_was_handed_over(ww_account: Ww) -> None:
    path = ww_account.export(CAT_FDS)
    ww_account.file("in", b"through two sockets")
    done = ww_account.shell(
        "ww send-fds ./s --fd input=3,mode=r --fd output=4,target=20 -- "
        f"ww run --fdctl ./s,timeout=60 {path} 3<in 4>out"
    )
    assert (done.returncode, done.stderr) == (0, b"input=10 output=20\n")
    assert (ww_account.tmp / "out").read_bytes() == b"through two sockets"
    assert not (ww_account.tmp / "s").exists()


def test_a_ww_that_listens_is_waited_for(ww: Ww) -> None:
    ww.file("in", b"text")
    command = ("send-fds", "./s,timeout=60", "--fd", "input=3", "--fd", "output=1")
    with ww.popen(*command, fds={3: ww.tmp / "in"}) as sender:
        done = ww.run("run", "--fdctl", "./s,listen=true,timeout=60", CAT_FDS, timeout=PATIENCE)
        out, err = sender.communicate(timeout=PATIENCE)
    assert (done.returncode, sender.returncode, out) == (0, 0, b"text"), (done.stderr, err)


def test_flags_map_and_decorate_what_is_handed_over(ww: Ww) -> None:
    done = ww.shell(
        "ww send-fds ./s --fd a=3 --fd b=3 -- ww run --fd-map b=30 --fdctl ./s,timeout=60 "
        f"--fd a,mode=r --fd-verbose {HELLO} 3<>/dev/null"
    )
    assert done.stderr.decode().splitlines()[:2] == [
        "grant fd name=a num=10 type=stream mode=r move=false cloexec=true",
        "grant fd name=b num=30 type=stream mode=rw move=false cloexec=true",
    ]


def test_a_number_of_a_flag_is_never_a_descriptor_that_was_handed_over(ww: Ww) -> None:
    # It would be the lowest free number, 3, which nobody has opened for this ww.
    done = ww.shell(
        "ww send-fds ./s --fd a=3 -- ww run --fd-verbose --fd db=3 --fdctl ./s,timeout=60 "
        f"{HELLO} 3</dev/null"
    )
    assert done.returncode == 65
    assert b"--fd #1: fd 3 is not open" in done.stderr


def test_inherit_grants_a_number_without_a_socket(ww: Ww) -> None:
    done = ww.shell(
        f"ww run --fd-verbose --fdctl inherit:5 --fdctl inherit:5,name=x,target=4 {HELLO} 5<&0"
    )
    assert done.stderr.decode().splitlines()[:2] == [
        "grant fd name=x num=4 type=stream mode=r move=false cloexec=true",
        "grant fd name=inherit_5 num=10 type=stream mode=r move=false cloexec=true",
    ]


def test_without_a_supervisor_nothing_runs(ww: Ww) -> None:
    done = ww.run("run", "--fdctl", "./nobody", HELLO)
    assert (done.returncode, done.stdout) == (65, b"")
    assert done.stderr.startswith(b"ww: error: --fdctl #1: ./nobody: No such file or directory (")


def test_the_help_of_each_side_is_its_own(ww: Ww) -> None:
    words = {
        command: " ".join(ww.run(command, "--help").stdout.decode().split())
        for command in ("run", "send-fds")
    }
    assert "Grant the descriptor NUM under a name." in words["run"]
    assert "from another flag" in words["run"]
    assert "Send the descriptor NUM under a name." in words["send-fds"]
    assert "from another flag" not in words["send-fds"]


def test_an_empty_command_or_path_is_named_as_such(ww: Ww) -> None:
    for args, what in (
        (("./s", "--", ""), b"COMMAND"),
        (("./s", "--fd", "a=0", "--", "", "true"), b"COMMAND"),
        (("",), b"PATH"),
        (("", "--", "true"), b"PATH"),
    ):
        done = ww.run("send-fds", *args)
        assert (done.returncode, done.stderr) == (2, b"ww: error: %s: it is empty\n" % what)
    # An empty argument of the command is its own business.
    done = ww.run("send-fds", "./s", "--", "sh", "-c", "exit 7", "")
    assert (done.returncode, done.stderr) == (7, b"")

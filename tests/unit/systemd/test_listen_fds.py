"""What LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES may say, and what comes of each."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.model import Request, is_name
from runner.grants.systemd import ListenFds, take_listen_fds
from runner.inherited import Inherited

PID = 4711
ALL = Inherited(frozenset({0, 1, 2, *range(3, 3 + 253)}))


def environ(**variables: str) -> dict[str, str]:
    named = {f"LISTEN_{key.upper()}": value for key, value in variables.items()}
    return {"HOME": "/", **named}


def take(prefix: str = "listen", inherited: Inherited = ALL, **variables: str) -> ListenFds:
    """Read them, and hold that none is left."""
    environment = environ(**variables)
    try:
        return take_listen_fds(environment, inherited, prefix, pid=PID)
    finally:
        assert environment == {"HOME": "/"}


def refused(
    code: int = EXIT_GRANT, prefix: str = "listen", inherited: Inherited = ALL, **variables: str
) -> WwError:
    with pytest.raises(WwError) as caught:
        take(prefix, inherited, **variables)
    assert caught.value.code == code
    assert caught.value.where == "--use-systemd-fds"
    return caught.value


def own_id(pidfs: bool = False) -> str:
    """The inode of a pidfd of this process, or with `pidfs` nothing where it tells nobody apart."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        if pidfs and not os.readlink(f"/proc/self/fd/{pidfd}").startswith("pidfd:"):
            return ""
        return str(os.fstat(pidfd).st_ino)
    finally:
        os.close(pidfd)


def test_each_descriptor_is_a_request_named_by_its_position() -> None:
    assert take(pid="4711", fds="2") == ListenFds(
        (
            Request("listen0", 3, "--use-systemd-fds (fd 3)"),
            Request("listen1", 4, "--use-systemd-fds (fd 4)"),
        ),
        {},
    )


def test_the_prefix_is_the_users_choice() -> None:
    found = take("web-", pid="4711", fds="1", fdnames="http")
    assert [request.name for request in found.requests] == ["web-0"]
    assert found.aliases == {"http": "web-0"}


def test_the_caller_is_the_process_unless_another_is_named() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    assert take_listen_fds(environment, ALL).requests[0].source == 3


def test_as_many_as_one_message_of_systemd_carries_are_taken() -> None:
    assert len(take(pid="4711", fds="253").requests) == 253


def test_only_the_variables_of_the_protocol_are_removed() -> None:
    environment = {**environ(pid="4711", fds="1", fdnames="a", pidfdid=own_id()), "LISTENER": "x"}
    take_listen_fds(environment, ALL, pid=PID)
    assert environment == {"HOME": "/", "LISTENER": "x"}


# LISTEN_PID


def test_a_foreign_pid_is_named_beside_the_own_and_the_remedy_is_exec() -> None:
    error = refused(pid="815", fds="1")
    assert "815" in error.what
    assert "4711" in error.what
    assert error.hint.startswith("start ww with exec")


def test_the_same_pid_of_another_process_is_refused() -> None:
    assert len(take(pid="4711", fds="1", pidfdid=own_id()).requests) == 1
    for other in (str(int(own_id()) + 1), f"0{own_id()}", "", "x"):
        if own_id(pidfs=True):
            error = refused(pid="4711", fds="1", pidfdid=other)
            assert "another LISTEN_PIDFDID" in error.what
        else:  # Linux before 6.9 gives all of them one
            assert len(take(pid="4711", fds="1", pidfdid=other).requests) == 1


def test_without_a_pid_systemd_has_passed_nothing() -> None:
    assert "LISTEN_PID is not set" in refused(fds="1").what
    assert "LISTEN_PID is not set" in refused().what


@pytest.mark.parametrize(
    "pid", ["", "x", "-1", "+4711", " 4711", "04711", "4_711", "٤٧١١", "9" * 99]
)
def test_a_pid_that_is_no_number_is_refused(pid: str) -> None:
    assert "no process id" in refused(pid=pid, fds="1").what


# LISTEN_FDS


@pytest.mark.parametrize(
    "count", ["0", "-1", "254", "1000000000", "9" * 5000, "", "x", "01", "1.0", "1_0", "٣", " 1"]
)
def test_a_count_that_cannot_be_is_refused(count: str) -> None:
    assert "LISTEN_FDS is '" in refused(pid="4711", fds=count).what


def test_a_missing_count_is_refused() -> None:
    assert "LISTEN_FDS is not set" in refused(pid="4711").what


def test_every_descriptor_must_have_been_inherited() -> None:
    some = Inherited(frozenset({0, 1, 2, 3, 5}), close_on_exec=frozenset({4}))
    assert "but fd 4 is close-on-exec" in refused(inherited=some, pid="4711", fds="3").what
    some = Inherited(frozenset({0, 1, 2, 3}), close_on_exec=frozenset({9}))
    error = refused(inherited=some, pid="4711", fds="3")
    assert "but fd 4 is not open" in error.what
    assert "3 to 5" in error.hint


# LISTEN_FDNAMES


@pytest.mark.parametrize(
    ("names", "aliases"),
    [
        ("web:db", {"web": "listen0", "db": "listen1"}),
        ("web:web", {"web0": "listen0", "web1": "listen1"}),
        ("unknown:web", {"web": "listen1"}),
        ("unknown:unknown", {}),
        ("ww.socket:web", {"web": "listen1"}),
        ("ww.socket:ww.socket", {}),
        (":", {}),
        ("a b:web", {"web": "listen1"}),
        ("é:web", {"web": "listen1"}),
        ("x" * 64 + ":web", {"web": "listen1"}),
        ("x" * 63 + ":" + "x" * 63, {}),  # numbered, they are too long
        ("listen0:web", {"web": "listen1"}),
        ("web:web:db", {"web0": "listen0", "web1": "listen1", "db": "listen2"}),
        ("web:db:web", {"web0": "listen0", "db": "listen1", "web1": "listen2"}),
    ],
)
def test_a_legal_name_is_an_alias_and_a_shared_one_is_numbered(
    names: str, aliases: dict[str, str]
) -> None:
    count = names.count(":") + 1
    assert take(pid="4711", fds=str(count), fdnames=names).aliases == aliases


@pytest.mark.parametrize("names", ["a:b", "a", "", "a:b:c:d"])
def test_names_must_be_as_many_as_descriptors(names: str) -> None:
    error = refused(pid="4711", fds="3", fdnames=names)
    assert f"LISTEN_FDNAMES has {names.count(':') + 1} names for 3 descriptors" in error.what


@pytest.mark.parametrize(
    "names",
    [
        "listen1:listen0",  # the position of one is the name of another
        "web:web:web1",
        "web1:web:web",
        "db:listen0",
    ],
)
def test_a_word_that_could_be_two_descriptors_is_refused(names: str) -> None:
    count = names.count(":") + 1
    error = refused(pid="4711", fds=str(count), fdnames=names)
    assert "could be two descriptors" in error.what


# The prefix


@pytest.mark.parametrize("prefix", ["", "0", "a b", "é", "-", "_", "x" * 61, "a=b", "a\udcff"])
def test_a_prefix_that_begins_no_name_is_wrong_usage(prefix: str) -> None:
    error = refused(EXIT_USAGE, prefix, pid="4711", fds="1")
    assert "cannot begin a name" in error.what
    assert str(error).isprintable()


def test_the_longest_prefix_leaves_room_for_the_largest_position() -> None:
    for request in take("x" * 60, pid="4711", fds="253").requests:
        assert is_name(request.name)


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["4711", "1", "2", "3", "web", "web:web", "a:b:c", "listen1:x", "unknown"]),
)


@given(st.dictionaries(st.sampled_from(["pid", "fds", "fdnames", "pidfdid"]), TEXTS), TEXTS)
@example({"pid": "4711", "fds": "2", "fdnames": "web:web"}, "listen")
def test_whatever_the_environment_says_comes_to_requests_or_to_one_error(
    variables: dict[str, str], prefix: str
) -> None:
    try:
        found = take(prefix, ALL, **variables)
    except WwError as error:
        found = None
        text = str(error)
    else:
        text = ""
    assert text.isprintable()
    if found is not None:
        names = {request.name for request in found.requests}
        assert all(map(is_name, [*names, *found.aliases]))
        assert set(found.aliases.values()) <= names
        assert not names & set(found.aliases)
        assert len(set(found.aliases.values())) == len(found.aliases)

"""The library call `send_fds`: to a ww that receives, and to whatever else may be there."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import EXIT_GRANT, EXIT_USAGE, WwError
from runner.grants.handoff import Channel, Received, receive, send_fds
from runner.grants.model import Request
from tests.conftest import PROBE_FLAGS, REPO, compile_c
from tests.unit.handoff.peers import (
    PATIENCE,
    Talk,
    beside,
    connecting,
    listening,
    null_fds,
    offer,
    open_fds,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder / "handoff.sock"


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def receive_when_ready(where: Channel) -> Received:
    """Receive from a peer that is only about to listen."""
    while True:
        try:
            return receive(where)
        except WwError as error:
            if not re.search("No such file|Connection refused", error.what):
                raise
            threading.Event().wait(0.01)


def received(path: Path, offers: list[Request], *, sender_listens: bool, limit: int) -> Received:
    """One handoff between the two sides of this module."""

    def work() -> None:
        send_fds(str(path), offers, listen=sender_listens, timeout=PATIENCE)

    where = Channel(str(path), "--fdctl #1", PATIENCE, limit, listen=not sender_listens)
    with beside(work):
        return receive_when_ready(where)


@pytest.mark.parametrize("sender_listens", [False, True])
def test_what_is_offered_arrives_with_every_field(path: Path, sender_listens: bool) -> None:
    one, other = os.pipe()
    offers = [
        offer("in", one, mode="r", type="stream", target=0, move=True),
        offer("a-name_1", other, cloexec=False, pathlink=True),
    ]
    got = received(path, offers, sender_listens=sender_listens, limit=16)
    for request, sent in zip(got.requests, offers, strict=True):
        assert request._replace(source=sent.source, origin=sent.origin) == sent
        assert fcntl.fcntl(request.source, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.path.sameopenfile(request.source, sent.source)
    # The sender's own stay open: they are not its caller's to lose.
    for fd in (one, other, *got.sources):
        os.close(fd)
    assert not path.exists()


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["r", "w", "rw"]),
        "type": st.sampled_from(["stream", "file", "socket"]),
        "target": st.integers(0, 65534),
        "cloexec": st.booleans(),
        "pathlink": st.booleans(),
    },
)


@given(
    st.lists(
        st.tuples(NAMES, FIELDS),
        max_size=20,
        unique_by=(
            lambda pair: pair[0].upper().replace("-", "_"),
            lambda pair: pair[1].get("target", pair[0]),
        ),
    ).filter(
        # What the rules of grants forbid beside a pathlink is not this test's subject.
        lambda pairs: all(n != "proc" and f.get("target") != 3 for n, f in pairs)
    )
)
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_legal_offers_arrive_as_they_are(
    path: Path, pairs: list[tuple[str, dict[str, object]]]
) -> None:
    with null_fds(1) as fds:
        offers = [offer(name, fds[0], **fields) for name, fields in pairs]
        got = received(path, offers, sender_listens=False, limit=256)
        assert [r._replace(source=fds[0], origin="test") for r in got.requests] == offers
        for fd in got.sources:
            os.close(fd)


def test_more_than_one_message_holds_are_sent_in_several(path: Path) -> None:
    with null_fds(1) as fds:
        # As long as a form can be: a payload's limit is not hit before the descriptors' is.
        offers = [
            offer(f"{'n' * 60}{i:03}", fds[0], mode="rw", type="stream", target=65000 + i)._replace(
                cloexec=False, pathlink=True
            )
            for i in range(256)
        ]
        got = received(path, offers, sender_listens=True, limit=256)
        assert [r._replace(source=fds[0], origin="test") for r in got.requests] == offers
        for fd in got.sources:
            os.close(fd)


def test_nothing_can_be_sent_too(path: Path) -> None:
    assert received(path, [], sender_listens=False, limit=1) == Received((), frozenset())


# Others in ww's place


def refused(path: Path, talk: Talk) -> str:
    with null_fds(2) as fds, listening(path, talk):
        offers = [offer("a", fds[0]), offer("b", fds[1])]
        with pytest.raises(WwError) as caught:
            send_fds(str(path), offers, timeout=PATIENCE)
    assert caught.value.code == EXIT_GRANT, caught.value
    assert caught.value.where == "send_fds"
    return caught.value.what


def says(*messages: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        for message in messages:
            connection.send(message)
        # Until the sender has left: what it sends must not be lost for want of a reader.
        while connection.recv(65536):
            pass

    return talk


@pytest.mark.parametrize(
    "greeting",
    [
        *(b"hello", b"(end)", b"(ww-fdctl 2 (max 16))", b"(ww-fdctl 1 (max 16)) "),
        *(b"(ww-fdctl 1 (max -1))", b"(ww-fdctl 1 (max 016))", b"(ww-fdctl 1 (max ))"),
        *(b"(ww-fdctl 1 (max 1_6))", b"\xff\xfe", b"16", b"x" * 10000),
        "(ww-fdctl 1 (max ٣))".encode(),
    ],
)
def test_a_greeting_that_is_none_is_refused(path: Path, greeting: bytes) -> None:
    assert "the other side says" in refused(path, says(greeting))


def test_more_than_the_other_side_takes_is_refused_here(path: Path) -> None:
    what = refused(path, says(b"(ww-fdctl 1 (max 1))"))
    assert "2 descriptors are offered, and the other side takes 1" in what


def test_a_receiver_that_leaves_at_once_is_refused(path: Path) -> None:
    assert "left before it asked" in refused(path, lambda _: None)


def test_a_receiver_that_leaves_before_it_has_read_everything_is_refused(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.send(b"(ww-fdctl 1 (max 16))")
        connection.recv(1, socket.MSG_PEEK)  # something is there, and stays unread

    assert re.search("reset|pipe", refused(path, talk))


def test_a_receiver_that_talks_on_is_refused(path: Path) -> None:
    what = refused(path, says(b"(ww-fdctl 1 (max 16))", b"more"))
    assert "talks after (end)" in what


def test_descriptors_of_a_receiver_are_closed_at_once(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        with null_fds(3) as fds:
            socket.send_fds(connection, [b"(ww-fdctl 1 (max 1))"], fds)
        connection.recv(65536)

    refused(path, talk)  # and the fixture counts


def test_a_silent_receiver_is_refused_at_the_deadline(path: Path) -> None:
    over = threading.Event()
    with null_fds(1) as fds, listening(path, lambda _: hold(over)):
        with pytest.raises(WwError, match="not done within") as caught:
            send_fds(str(path), [offer("a", fds[0])], timeout=0.1)
        over.set()
    assert caught.value.code == EXIT_GRANT


def hold(over: threading.Event) -> None:
    over.wait(PATIENCE)


def test_nobody_there_is_refused_at_the_deadline(path: Path) -> None:
    with pytest.raises(WwError, match="No such file"):
        send_fds(str(path), [], timeout=0.1)
    with pytest.raises(WwError, match="not done within"):
        send_fds(str(path), [], timeout=0.1, listen=True)
    assert not path.exists()


def test_what_is_no_socket_is_not_waited_for(path: Path) -> None:
    path.touch()
    with pytest.raises(WwError, match="it is no socket"):
        send_fds(str(path), [], timeout=PATIENCE)


def test_a_descriptor_that_is_not_open_is_refused(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.send(b"(ww-fdctl 1 (max 16))")
        connection.recv(65536)

    with listening(path, talk), pytest.raises(WwError, match="Bad file descriptor") as caught:
        send_fds(str(path), [offer("a", 9999)], timeout=PATIENCE)
    assert caught.value.code == EXIT_GRANT


@pytest.mark.parametrize(
    "offers",
    [
        [offer("a", 0), offer("a", 1)],
        [offer('a" :fd 3', 0)],
        [offer("a", 0, target=5), offer("b", 1, target=5)],
        [offer("a", 0, move=True), offer("b", 0)],
    ],
)
def test_offers_that_contradict_each_other_are_refused_before_anybody_is_met(
    path: Path, offers: list[Request]
) -> None:
    with pytest.raises(WwError) as caught:
        send_fds(str(path), offers)
    assert caught.value.code == EXIT_USAGE


# The documented example


@pytest.fixture
def supervisor(tmp_path: Path) -> Path:
    """Its source."""
    text = (REPO / "docs" / "handoff.md").read_text()
    found = re.search(r"```c\n(.*?)```", text, re.DOTALL)
    assert found is not None
    source = tmp_path / "supervisor.c"
    source.write_text(found[1])
    return source


def test_the_supervisor_in_c_of_the_document_hands_over(path: Path, supervisor: Path) -> None:
    program = str(compile_c(supervisor, PROBE_FLAGS, ""))

    def work() -> None:
        assert os.spawnv(os.P_WAIT, program, [program, str(path), str(supervisor)]) == 0

    with beside(work):
        got = receive_when_ready(Channel(str(path), "--fdctl #1", PATIENCE))
    (request,) = got.requests
    assert (request.name, request.mode) == ("config", "r")
    assert os.read(request.source, 1 << 16).decode() == supervisor.read_text()
    os.close(request.source)


@pytest.mark.parametrize("standard", ["c17", "gnu17"])
def test_the_supervisor_in_c_of_the_document_is_one_for_glibc_too(
    supervisor: Path, standard: str
) -> None:
    # Its headers declare less than musl's unasked, and Clang 16 and GCC 14 take that for an error.
    target = ("-target", f"{platform.machine()}-linux-gnu", f"-std={standard}")
    compile_c(supervisor, (*target, "-Wall", "-Werror=implicit-function-declaration"), "")


def test_the_bytes_of_an_offer_are_the_documented_ones(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.send(b"(ww-fdctl 1 (max 16))")
        payload, fds, _, _ = socket.recv_fds(connection, 65536, 16)
        assert payload == b'(fd :name "a" :target 7)'
        assert len(fds) == 1
        os.close(fds[0])
        assert connection.recv(100) == b"(end)"

    with null_fds(1) as fds, connecting(path, talk):
        send_fds(str(path), [offer("a", fds[0], target=7)], listen=True, timeout=PATIENCE)

"""What travels between the runner, the spawner and the cell's process."""

import errno
import json
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import FdType, Grant, Mode, Outcome, Plan, admission, wire
from sandbox.admission import Admission
from sandbox.outcome import Kind, Usage
from sandbox.policy import FEATURES, Isolation, LimitName, Limits, Network

GRANTS = st.builds(
    Grant,
    target=st.integers(0, 65534),
    name=st.none() | st.text(max_size=10),
    mode=st.sampled_from(get_args(Mode)),
    type=st.sampled_from(get_args(FdType)),
    move=st.booleans(),
    cloexec=st.booleans(),
    pathlink=st.booleans(),
    guest=st.none() | st.text(max_size=10),
    preopen=st.integers(0, 65534),
)
COUNT = st.integers(0, 2**63 - 1)
LIMITS = st.builds(
    Limits,
    wall=st.none() | st.floats(0, 1e9, allow_nan=False),
    cpu=st.none() | COUNT,
    fuel=st.none() | COUNT,
    memory=st.none() | COUNT,
    table_elements=COUNT,
    output=st.none() | COUNT,
    pids=COUNT,
    nofile=COUNT,
    scratch=COUNT,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLANS = st.builds(
    Plan,
    grants=st.lists(GRANTS, max_size=5).map(tuple),
    argv=st.lists(TEXT, max_size=4).map(tuple),
    env=st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple),
    uid=st.integers(1, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    limits=LIMITS,
    network=st.sampled_from(get_args(Network)),
    required=st.lists(st.sampled_from(FEATURES), unique=True).map(tuple),
    isolation=st.sampled_from(get_args(Isolation)),
    content=TEXT,
    terminals=st.lists(st.integers(0, 65534), max_size=3).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(PLANS)
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    assert Plan.decode(plan.encode()) == plan


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_plan_is_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        Plan.decode(data)


SECONDS = st.floats(0, 1e9)


@given(
    st.builds(
        Outcome,
        kind=st.sampled_from(get_args(Kind)),
        code=st.integers(0, 4095),
        what=st.text(),
        step=st.text(st.characters(exclude_characters="\0")),
        limit=st.sampled_from(["", *get_args(LimitName)]),
        usage=st.none() | st.builds(Usage, SECONDS, SECONDS, st.integers(0, 1 << 60)),
    )
)
def test_an_outcome_is_read_as_it_was_written(outcome: Outcome) -> None:
    assert Outcome.decode(outcome.encode()) == outcome


FIELDS = st.sampled_from([*get_args(Kind), *get_args(LimitName), "", "0", "0.5 0.5 1"]) | st.text()


@given(st.binary() | st.lists(FIELDS, max_size=7).map(lambda fields: "\0".join(fields).encode()))
def test_what_is_no_outcome_is_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        outcome = Outcome.decode(data)
        assert outcome.kind in get_args(Kind)
        assert 0 <= outcome.code <= 4095
        assert outcome.limit in ("", *get_args(LimitName))


def test_a_plan_of_another_version_is_refused() -> None:
    plan = Plan((), (), (), 1, 1, "ab" * 32)
    fields = json.loads(plan.encode())
    assert Plan.decode(json.dumps(fields).encode()) == plan
    others: list[object] = [fields[:-1], [*fields, ""], [], {}, None, [None] * len(fields)]
    for other in others:
        with pytest.raises(ValueError):
            Plan.decode(json.dumps(other).encode())


@pytest.mark.parametrize(
    "digest",
    [
        *("", "ab" * 31, "ab" * 33, "AB" * 32, "/" * 64, f"../{'ab' * 30}a", "switch-97d91349"),
        *(f"{'ab' * 31}a\n", f"{'ab' * 31}a\0", ["ab"] * 64, None, 7),
    ],
)
def test_what_is_no_digest_names_no_file(digest: object) -> None:
    fields = json.loads(Plan((), (), (), 1, 1, "ab" * 32).encode())
    fields[5] = digest
    with pytest.raises(ValueError, match="not a plan"):
        Plan.decode(json.dumps(fields).encode())


def test_the_order_of_directories_is_that_of_their_first_numbers() -> None:
    grants = (
        Grant(9, "c", "r", "file", guest="/c", preopen=4),
        Grant(10, "f", "r", "file"),
        Grant(11, "a", "rw", "file", guest="/a", preopen=3),
    )
    plan = Plan(grants, (), (), 1, 1, "00")
    assert [grant.name for grant in plan.directories] == ["a", "c"]
    assert (plan.scratch_preopen, plan.root_preopen) == (5, 5)
    plan = plan._replace(limits=Limits(scratch=1))
    assert (plan.scratch_preopen, plan.root_preopen) == (5, 6)
    plan = plan._replace(content="/ipfs")
    assert (plan.scratch_preopen, plan.content_preopen, plan.root_preopen) == (5, 6, 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 60000,
        b"exit\0-1\0\0\0\0",
        b"exit\x005000\0\0\0\0",
        b"exit\0" + b"0" * 60000 + b"\0\0\0\0",
        b"exit\0zero\0\0\0\0",
        b"exit\x000.5\0\0\0\0",
        b"exit\0 1\0\0\0\0",
        "exit\0\u0661\0\0\0\0".encode(),
        b"escape\x000\0\0\0\0",
        b"limit\x000\0\0time\0\0",
        b"exit\x000\0\0\0",
        b"exit\x000",
        b"exit\x000\0\0\x000.5 0.5\0",
        b"exit\x000\0\0\x000.5 0.5 -1\0",
        b"exit\x000\0\0\x000.5 0.5 1 1\0",
        b"exit\x000\0\0\0a b 1\0",
        b'["exit", 0, "", "", "", null]',
        b"\xff\xfe",
    ],
)
def test_a_forged_outcome_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Outcome.decode(data)


@pytest.mark.parametrize("count", [0, 1, 253, 254, 400])
def test_any_number_of_descriptors_arrives_in_order_and_close_on_exec(
    pair: tuple[socket.socket, socket.socket], count: int
) -> None:
    sent = [os.memfd_create(str(n)) for n in range(count)]
    before = open_count()
    sender = threading.Thread(target=wire.send, args=(pair[0], b"payload", sent))
    sender.start()
    message = wire.receive(pair[1])
    sender.join()
    assert message is not None
    payload, received = message
    try:
        assert payload == b"payload"
        assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in sent]
        assert not any(os.get_inheritable(fd) for fd in received)
    finally:
        for fd in received:
            os.close(fd)
    assert open_count() == before
    for fd in sent:
        os.close(fd)


def test_a_large_payload_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    payload = os.urandom(5 << 20)
    sender = threading.Thread(target=wire.send, args=(pair[0], payload))
    sender.start()
    assert wire.receive(pair[1]) == (payload, [])
    sender.join()


def test_the_end_before_a_message_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert wire.receive(pair[1]) is None


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 12])
def test_the_end_inside_a_message_is_an_error(
    pair: tuple[socket.socket, socket.socket], cut: int
) -> None:
    whole = struct.pack("=II", 5, 0) + b"12345"
    pair[0].sendall(whole[:cut])
    pair[0].close()
    with pytest.raises(EOFError):
        wire.receive(pair[1])


def test_an_announced_size_beyond_the_bound_is_refused(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].sendall(struct.pack("=II", wire.MAX_PAYLOAD + 1, 0))
    with pytest.raises(ValueError, match="more than"):
        wire.receive(pair[1])


@pytest.mark.parametrize(("announced", "sent"), [(2, 1), (1, 2), (300, 253)])
def test_a_count_of_descriptors_that_does_not_match_leaves_none_open(
    pair: tuple[socket.socket, socket.socket], announced: int, sent: int
) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    before = open_count()
    pair[0].sendall(struct.pack("=II", 0, announced))
    socket.send_fds(pair[0], [b"\0"], [null] * sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises((ValueError, EOFError)):
        wire.receive(pair[1])
    assert open_count() == before
    os.close(null)


def test_what_finds_no_number_left_is_told_and_leaves_none_open(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    wire.send(pair[0], b"payload", fds)
    for fd in fds[2:]:
        os.close(fd)
    before = open_count()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[1] + 5, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            wire.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    assert open_count() == before
    wire.close_all(fds[:2])


def test_one_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    os.close(fds[1])
    before = open_count()
    wire.close_all(fds)
    assert (fds, open_count()) == ([], before - 2)


def test_the_end_of_the_other_side_is_an_error_where_it_would_be_a_signal(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[1].close()
    null = os.open("/dev/null", os.O_RDONLY)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(BrokenPipeError):
            wire.send(pair[0], b"payload", [null])
        with pytest.raises(BrokenPipeError):
            wire.hand_in(pair[0], null)
    finally:
        signal.signal(signal.SIGPIPE, before)
        os.close(null)


@pytest.mark.parametrize("left", [0.05, -1.0])
def test_a_jail_that_does_not_read_its_plan_keeps_nobody_longer_than_the_cells_time(
    pair: tuple[socket.socket, socket.socket], left: float
) -> None:
    plan = Plan((), ("x" * (8 << 20),), (), 1, 1, "00")
    code = os.memfd_create("code")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        admission.admit(pair[0], Admission(plan, code, (), None, False), began + left)
    assert time.monotonic() - began < 20
    os.close(code)

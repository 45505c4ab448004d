"""The limits of a process: what is set, and that none can be raised again."""

import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import pytest

from sandbox import limits
from sandbox.descriptors import open_listing
from sandbox.errors import JailError
from sandbox.limits import HOST_MEMORY, Ceilings
from sandbox.policy import Limits
from tests.unit.sandbox.cloned import forked

NONE = resource.RLIM_INFINITY
BOUNDS = Limits(cpu=77, memory=5 << 20, output=1000, pids=9, nofile=30)
ABOVE = Ceilings(data=100 << 20, files=500, descriptors=12)


def all_limits() -> dict[str, tuple[int, int]]:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def after(bounds: Limits, before: Callable[[], None] = lambda: None) -> dict[str, tuple[int, int]]:
    """The limits of a process to which those were applied."""

    def body() -> Any:
        before()
        limits.apply(bounds, ABOVE)
        return all_limits()

    return {name: (soft, hard) for name, (soft, hard) in forked(body).items()}


def test_every_limit_is_counted_from_what_is_there() -> None:
    found = after(BOUNDS)
    expected = {
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_NICE": 0,
        "RLIMIT_NPROC": 9 + 1,  # so that a control group is hit first
        "RLIMIT_CPU": 2 * 77,  # for when the spawner cannot end it
        "RLIMIT_FSIZE": 1500,
        "RLIMIT_DATA": (105 << 20) + HOST_MEMORY,
    }
    assert {name: found[name] for name in expected} == {
        name: (value, value) for name, value in expected.items()
    }
    # Those that it may have, and some for the host itself.
    soft, hard = found["RLIMIT_NOFILE"]
    assert soft == hard
    assert 13 + 30 < soft < 13 + 30 + 100


def test_what_has_no_limit_is_left_as_it_was() -> None:
    names = ("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_STACK")
    before = all_limits()
    found = after(Limits(cpu=None, memory=None, output=None))
    assert {name: found[name] for name in names} == {name: before[name] for name in names}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (resource.RLIMIT_NPROC, 3),
        (resource.RLIMIT_NOFILE, 20),
        (resource.RLIMIT_CPU, 50),
        (resource.RLIMIT_FSIZE, 10),
        (resource.RLIMIT_DATA, 64 << 20),
    ],
)
def test_a_limit_of_the_callers_that_is_lower_stays(kind: int, value: int) -> None:
    found = after(BOUNDS, lambda: resource.setrlimit(kind, (value, value)))
    assert (value, value) in found.values()
    names = [name for name in found if getattr(resource, name) == kind]
    assert [found[name] for name in names] == [(value, value)] * len(names)


def test_a_soft_limit_of_the_callers_that_is_lower_than_its_hard_one_does_not_count() -> None:
    # Whoever may raise it means no harm by it: that is what soft limits are for.
    found = after(BOUNDS, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 5000)))
    assert found["RLIMIT_FSIZE"] == (1500, 1500)


def test_no_limit_can_be_raised_by_whoever_has_no_privilege(ordinary_account: Any) -> None:
    def body() -> Any:
        os.setgroups([]) if os.geteuid() == 0 else None
        os.setresuid(*[ordinary_account.uid] * 3)
        limits.apply(BOUNDS, ABOVE)
        raised = []
        for name, (_, hard) in all_limits().items():
            if hard == NONE:
                continue
            try:
                resource.setrlimit(getattr(resource, name), (hard, hard + 1))
                raised.append(name)
            except (ValueError, PermissionError):
                pass
        return raised

    assert forked(body) == []


@pytest.mark.parametrize(
    ("limit", "value", "flag"),
    [("RLIMIT_AS", 8 << 30, "ulimit -v"), ("RLIMIT_STACK", 1 << 20, "ulimit -s")],
)
def test_too_little_room_for_the_engine_is_an_error_that_says_so(
    limit: str, value: int, flag: str
) -> None:
    def body() -> Any:
        resource.setrlimit(getattr(resource, limit), (value, value))
        try:
            limits.apply(BOUNDS, ABOVE)
        except JailError as error:
            return [error.step, str(error)]
        return None

    step, text = forked(body)
    assert step == "limits"
    assert str(value) in text
    assert flag in text


@pytest.mark.parametrize("soft", [512 << 10, 8 << 20])
def test_the_stack_may_grow_as_far_as_the_engine_believes(soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    found = after(BOUNDS, lambda: resource.setrlimit(resource.RLIMIT_STACK, (soft, hard)))
    assert found["RLIMIT_STACK"] == (8 << 20, hard)


def test_enough_address_space_is_left_alone() -> None:
    room = 64 << 30
    found = after(BOUNDS, lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)))
    assert found["RLIMIT_AS"] == (room, room)


def test_the_processor_time_that_was_used_up_ends_the_process() -> None:
    pid = os.fork()
    if pid == 0:
        limits.apply(Limits(cpu=1, memory=None), ABOVE)
        # The first process of a pid namespace does not get SIGXCPU; here it would.
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True:
            pass
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)


def test_memory_beyond_the_limit_is_refused() -> None:
    def body() -> Any:
        listing = open_listing()
        above = limits.ceilings([], 10, listing)
        limits.apply(Limits(memory=16 << 20), above)
        kept = bytearray(16 << 20)  # what it may have, and more is for the host itself
        try:
            # Well beyond it: a test run that is large itself may give some back meanwhile.
            bytearray(HOST_MEMORY + (512 << 20))
        except MemoryError:
            return len(kept)
        return None

    assert forked(body) == 16 << 20


def test_what_there_is_already_is_measured(tmp_path: Any) -> None:
    sizes = {"empty": 0, "small": 10, "large": 1 << 40}
    fds = []
    for name, size in sizes.items():
        fd = os.open(tmp_path / name, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, size)
        fds.append(fd)
    listing = open_listing()
    try:
        found = limits.ceilings(fds, 42, listing)
        assert found.files == 1 << 40
        assert found.descriptors == 42
        assert limits.ceilings([], 42, listing).files == 0
        more = bytearray(64 << 20)
        grown = limits.ceilings(fds, 42, listing).data - found.data
        assert 60 << 20 < grown < 80 << 20
        assert len(more)
        before = len(os.listdir("/proc/self/fd"))
        limits.ceilings(fds, 42, listing)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for fd in (*fds, listing):
            os.close(fd)


def test_the_limit_of_descriptors_is_raised_as_far_as_it_goes() -> None:
    def body() -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        limits.raise_descriptor_limit()
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert forked(body) == [512, 512]

"""What a compilation is given, and what its end means for the cell."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox import Grant, Limits, Plan, compiling
from sandbox.outcome import Outcome, limit

PLAN = Plan(
    grants=(Grant(3, "a", "rw", "file", pathlink=True), Grant(12, "d", "r", "file", guest="/d")),
    argv=("cell", "secret"),
    env=(("KEY", "secret"),),
    uid=1000,
    gid=1001,
    digest="ab" * 32,
    limits=Limits(wall=5, cpu=6, fuel=7, memory=8, table_elements=9, output=10, pids=11, nofile=12),
    network="loopback",
    required=("landlock",),
)


def test_a_compilation_is_given_two_files_and_nothing_of_the_cells() -> None:
    plan = compiling.plan_for(PLAN._replace(limits=PLAN.limits._replace(scratch=1 << 20)))
    assert [(g.target, g.name, g.mode, g.pathlink, g.guest) for g in plan.grants] == [
        (1, None, "w", False, None),
        (2, None, "w", False, None),
    ]
    assert plan.argv == ("cell",)
    assert plan.env == ()
    assert plan.network == "none"
    assert plan.directories == ()
    assert plan.limits.scratch == 0


def test_a_compilation_runs_as_the_cell_and_under_its_limits() -> None:
    plan = compiling.plan_for(PLAN)
    assert (plan.uid, plan.gid, plan.digest) == (1000, 1001, "ab" * 32)
    assert plan.required == ("landlock",)
    bounds = plan.limits
    assert (bounds.wall, bounds.cpu, bounds.fuel, bounds.memory) == (5, 6, 7, 8)
    assert (bounds.pids, bounds.nofile) == (1, 0)
    assert bounds.output == 1 << 30
    without = compiling.plan_for(
        PLAN._replace(limits=Limits(wall=None, cpu=None, memory=None, output=None))
    )
    assert without.limits.output == 1 << 30
    assert (without.limits.wall, without.limits.memory) == (None, None)


def test_it_is_a_plan_like_any_other() -> None:
    plan = compiling.plan_for(PLAN)
    assert Plan.decode(plan.encode()) == plan


@pytest.fixture
def memory() -> Iterator[int]:
    fd = compiling.new_memory("test")
    yield fd
    os.close(fd)


def test_what_is_sealed_cannot_be_changed_by_anybody_any_more(memory: int) -> None:
    assert not os.get_inheritable(memory)
    os.write(memory, b"artifact")
    compiling.seal(memory)
    again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
    try:
        for fd in (memory, again):
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            for size in (0, 100):
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, size)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, 8, mmap.MAP_SHARED)
            with pytest.raises(PermissionError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    finally:
        os.close(again)
    assert os.pread(memory, 100, 0) == b"artifact"


def test_what_somebody_has_mapped_to_write_cannot_be_sealed(memory: int) -> None:
    os.write(memory, b"artifact")
    with mmap.mmap(memory, 8, mmap.MAP_SHARED), pytest.raises(OSError):
        compiling.seal(memory)


def failure(outcome: Outcome, said: bytes = b"") -> Outcome | None:
    memory = compiling.new_messages()
    try:
        # Linux 6.12 writes nothing where not all has room.
        os.write(memory, said[: os.fstat(memory).st_size])
        return compiling.failure(outcome, memory)
    finally:
        os.close(memory)


def test_what_the_compiler_says_has_no_more_room_than_is_read() -> None:
    memory = compiling.new_messages()
    try:
        size = os.fstat(memory).st_size
        assert 0 < size <= 1 << 16
        assert os.write(memory, bytes(size)) == size
        with pytest.raises(PermissionError):
            os.write(memory, b"x")
        for other in (size + 1, size - 1, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(memory, other)
        with pytest.raises(PermissionError):
            os.posix_fallocate(memory, 0, size + 1)
        assert os.fstat(memory).st_size == size
    finally:
        os.close(memory)


def test_success_is_no_failure_whatever_was_said() -> None:
    assert failure(Outcome("exit", 0)) is None
    assert failure(Outcome("exit", 0), b"memory allocation of 5 bytes failed\n") is None


@pytest.mark.parametrize("name", ["wall", "cpu", "output", "pids", "memory"])
def test_a_limit_is_the_cells_with_the_time_when(name: Any) -> None:
    assert failure(limit(name)) == limit(name, "while it was compiled")


OUT_OF_MEMORY = [
    b"memory allocation of 24000048 bytes failed\nnote: run with `RUST_BACKTRACE=1`\n",
    b"\nthread '<unnamed>' (1) panicked at /x/bumpalo-3.20.2/src/lib.rs:2445:5:\nout of memory\n",
]


@pytest.mark.parametrize("said", OUT_OF_MEMORY)
@pytest.mark.parametrize("number", [6, 11])
def test_a_compiler_that_ended_for_want_of_memory_is_the_memory_limit(
    said: bytes, number: int
) -> None:
    expected = limit("memory", "while it was compiled")
    assert failure(Outcome("signal", number), said) == expected


def test_a_compiler_that_the_kernel_killed_for_memory_is_the_memory_limit() -> None:
    assert failure(limit("host-memory")) == limit("memory", "while it was compiled")


def test_a_compiler_that_was_killed_has_given_up_and_its_words_are_the_reason() -> None:
    gave_up = "the compiler gave up on it"
    for outcome in (Outcome("signal", 11), Outcome("isolation", what="a call")):
        assert failure(outcome) == Outcome("rejected", what=gave_up)
        assert failure(outcome, b"\n\n") == Outcome("rejected", what=gave_up)
        said = b"\nthread 'x' panicked at y:\n  assertion failed\nnote: run with\n"
        assert failure(outcome, said) == Outcome(
            "rejected", what=f"{gave_up}: thread 'x' panicked at y: assertion failed"
        )
        told = failure(outcome, b"\xff\xfe" * 100_000)
        assert told is not None
        assert len(told.what) <= 5000


@pytest.mark.parametrize(
    "outcome",
    [Outcome("exit", 1), Outcome("exit", 255), Outcome("trap", what="x"), Outcome("stale")],
)
def test_a_compiler_cannot_say_that_the_cell_has_run(outcome: Outcome) -> None:
    told = failure(outcome)
    assert told is not None
    assert (told.kind, told.code) == ("fault", 0)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("rejected", what="it is not a WebAssembly module"),
        Outcome("jail", 1, "mount: no", "proc"),
        Outcome("fault", what="KeyError"),
    ],
)
def test_everything_else_is_the_cells_outcome_as_it_is(outcome: Outcome) -> None:
    assert failure(outcome) == outcome

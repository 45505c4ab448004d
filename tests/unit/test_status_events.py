"""The events of ``--status-fd``: what a program is told of how a run ended."""

import json
import os

import pytest

from runner.errors import EXIT_GRANT, WwError
from runner.grants.plan import GrantPlan, PlannedGrant
from runner.inherited import Inherited
from runner.status import Status, open_status
from sandbox import Grant, Outcome, Usage


def events(*outcomes: tuple[Outcome, int], plan: GrantPlan | None = None) -> list[object]:
    reader, writer = os.pipe()
    status = Status(writer)
    if plan is not None:
        status.grants(plan)
    for outcome, code in outcomes:
        status.ended(outcome, code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.parametrize(
    ("outcome", "code", "rest"),
    [
        (Outcome("exit", 7), 7, {"reason": "exit"}),
        (Outcome("limit", limit="wall"), 66, {"reason": "limit", "limit": "wall"}),
        (
            Outcome("limit", what="after 5 s", limit="cpu"),
            66,
            {"reason": "limit", "limit": "cpu", "what": "after 5 s"},
        ),
        (
            Outcome("isolation", what="it called ptrace"),
            67,
            {"reason": "isolation", "what": "it called ptrace"},
        ),
        (
            Outcome("exit", usage=Usage(0.1234567, 0.5, 4096)),
            0,
            {"reason": "exit", "usage": {"wall": 0.123457, "cpu": 0.5, "memory": 4096}},
        ),
        (Outcome("signal", 9), 137, {"reason": "signal", "signal": 9}),
        (Outcome("jail", 1, "no", "proc"), 67, {"reason": "jail", "step": "proc", "what": "no"}),
    ],
)
def test_an_end_is_told_with_its_reason(
    outcome: Outcome, code: int, rest: dict[str, object]
) -> None:
    assert events((outcome, code)) == [{"event": "exit", "code": code, **rest}]


def test_a_directory_is_told_with_its_path_and_its_number() -> None:
    directory = Grant(10, "data", "r", "file", guest="/data", preopen=3)
    file = Grant(11, "db", "r", "file")
    entries = tuple(PlannedGrant(grant, 5, "o", "rw", "w") for grant in (directory, file))
    told = events(plan=GrantPlan(entries))
    common = {"event": "grant", "mode": "r", "type": "file", "move": False, "cloexec": True}
    common |= {"pathlink": False, "source": 5}
    assert told == [
        {**common, "target": 10, "name": "data", "guest": "/data", "preopen": 3},
        {**common, "target": 11, "name": "db"},
    ]


def test_events_cannot_go_to_a_directory() -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(WwError) as caught:
            open_status(fd, Inherited(frozenset({fd})))
    finally:
        os.close(fd)
    assert caught.value.code == EXIT_GRANT

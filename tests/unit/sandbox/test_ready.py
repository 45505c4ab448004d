"""Which jails are made in advance, where one or the other cannot be made."""

import threading
from typing import cast

import pytest

from sandbox import ready
from sandbox.order import Order
from sandbox.ready import ReadyJails
from sandbox.waiting import Ids, Waiting

PATIENCE = 60
MANY = 1 << 20


class Jail:
    """What stands for a jail that waits."""

    def get_ready(self) -> bool:
        return True

    def give_up(self) -> None:
        pass


@pytest.mark.parametrize("failures", [1, 3])
def test_a_jail_with_a_proc_is_tried_again_some_time_after_one_failed(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(ready, "_PAUSE", 0.001)
    monkeypatch.setattr(ready, "_WITHOUT_PROC", 0.01)
    asked: list[bool] = []
    enough = threading.Event()

    def make(kind: Order, _ids: Ids) -> Waiting:
        asked.append(kind.proc)
        if kind.proc and asked.count(True) <= failures:
            raise OSError
        if kind.proc:
            enough.set()
        return cast("Waiting", Jail())

    jails = ReadyJails(MANY, make)
    try:
        assert enough.wait(PATIENCE)
    finally:
        jails.close()
    # Without it at once, and for some time.
    assert asked[:2] == [True, False]
    assert asked.count(False) >= failures

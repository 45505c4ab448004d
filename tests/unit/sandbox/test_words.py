"""The values of a type are known without the type."""

from typing import get_args

from sandbox.outcome import KINDS, LIMIT_NAMES
from sandbox.policy import ISOLATIONS, NETWORKS
from sandbox.words import Isolation, Kind, LimitName, Network


def test_all_values_are_named() -> None:
    assert get_args(Isolation) == ISOLATIONS
    assert get_args(Kind) == KINDS
    assert get_args(LimitName) == LIMIT_NAMES
    assert get_args(Network) == NETWORKS

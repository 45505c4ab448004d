"""How one row is measured: contestants that take turns, and their figures side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Measure = Callable[[], float]
"""Does the work once, and returns its figure."""


# Rounds of which quartiles say something.
_ENOUGH = 4


class Missing(Exception):
    """Something that a contestant needs is not there; the text says what."""


class Target(NamedTuple):
    """What a ratio is to reach.

    Attributes:
        bound: The ratio.
        later: A better one, which is to be reached after that.
        least: Whether the ratio is to be at least so much, and not at most.
    """

    bound: float
    later: float | None = None
    least: bool = False

    def reached(self, ratio: float) -> bool:
        """Tell whether a ratio is as good as the bound."""
        return ratio >= self.bound if self.least else ratio <= self.bound

    def __str__(self) -> str:
        """Return it as people write it: ``<= 1.5, then 1``."""
        sign = ">=" if self.least else "<="
        return f"{sign} {self.bound:g}" + (f", then {self.later:g}" if self.later else "")


class Comparison(NamedTuple):
    """Two contestants of a row whose figures are compared.

    Attributes:
        ours: The name of the one that is divided.
        peer: The name of the one that it is divided by.
        target: What the ratio is to reach, if anything.
    """

    ours: str
    peer: str
    target: Target | None = None


class Row(NamedTuple):
    """What is measured together.

    Attributes:
        name: By which it is asked for.
        what: What is done, in a few words.
        unit: The unit of all its figures.
        contestants: Who does it: each a measure, or why it is not there.
        comparisons: Whose figures are compared.
        rounds: How often each takes its turn.
    """

    name: str
    what: str
    unit: str
    contestants: Mapping[str, Measure | Missing]
    comparisons: Sequence[Comparison]
    rounds: int


@dataclass
class Result:
    """What came of a row.

    Attributes:
        row: The row's name.
        what: What was done.
        unit: The unit of the samples.
        samples: The figures of each contestant, one for each round.
        absent: Why the others have none.
        failed: Those of ``absent`` that were there, and failed.
        others: The share of the processors that something else used before and after it.
        comparisons: Whose figures are compared.
    """

    row: str
    what: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    others: float = 0.0
    comparisons: Sequence[Comparison] = ()

    def median(self, name: str) -> float | None:
        """Return the median of a contestant's figures, if it has some."""
        return statistics.median(self.samples[name]) if self.samples.get(name) else None

    def ratio(self, comparison: Comparison) -> float | None:
        """Return the median of the ratios of the single rounds, if both have figures.

        Both figures of a round were taken one right after the other. So a machine that gets slower
        or faster in between does not change it, as it may change the ratio of the medians.
        """
        ratios = self._ratios(comparison)
        return statistics.median(ratios) if ratios else None

    def spread(self, comparison: Comparison) -> tuple[float, float] | None:
        """Return the quartiles of the ratios of the single rounds, where there are enough."""
        ratios = self._ratios(comparison)
        if len(ratios) < _ENOUGH:
            return None
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    def _ratios(self, comparison: Comparison) -> list[float]:
        ours = self.samples.get(comparison.ours, ())
        peer = self.samples.get(comparison.peer, ())
        return [one / other for one, other in zip(ours, peer, strict=False) if other]


def take_turns(row: Row, *, warm_up: bool = True) -> Result:
    """Measure a row: in each round, everybody has one turn.

    What changes on the machine meanwhile so meets all of them alike. The order is reversed in every
    other round, so that nobody always follows the same one.

    Args:
        row: What is measured.
        warm_up: Begin with a round that is not counted: it loads files and fills caches.
    """
    result = Result(row.name, row.what, row.unit, comparisons=row.comparisons)
    present: dict[str, Measure] = {}
    for name, contestant in row.contestants.items():
        if isinstance(contestant, Missing):
            result.absent[name] = str(contestant)
        else:
            present[name] = contestant
            result.samples[name] = []
    for number in range(0 if warm_up else 1, row.rounds + 1):
        for name in list(present)[:: -1 if number % 2 else 1]:
            try:
                sample = present[name]()
            except (Missing, OSError, RuntimeError) as error:
                # One that fails once has no figure: its other rounds would not be comparable.
                del present[name], result.samples[name]
                result.absent[name] = str(error)
                if not isinstance(error, Missing):
                    result.failed.append(name)
                continue
            if number:
                result.samples[name].append(sample)
    return result

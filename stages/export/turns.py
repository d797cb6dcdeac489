"""Times of several things that take turns, so that what slows the machine slows all alike. Imports no torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

FEWEST_PASSES, MOST_PASSES = 5, 30
_BUDGET_S = 15.0
"""What all turns together may take where the fewest do not take more."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of what was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the median and the quartiles; of a single value itself."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_json(self) -> dict[str, float]:
        """Return the three to 4 significant digits."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Turns:
    """What each side took in each turn, in seconds."""

    of_side: tuple[tuple[float, ...], ...]

    @property
    def passes(self) -> int:
        """How many turns there were."""
        return len(self.of_side[0])

    def seconds(self, side: int) -> float:
        """Return the median of a side."""
        return statistics.median(self.of_side[side])

    def milliseconds(self, side: int) -> Spread:
        """Return the median and the quartiles of a side."""
        return Spread.of([1000 * seconds for seconds in self.of_side[side]])

    def ratio(self, side: int, other: int) -> Spread:
        """Return a side's time divided by another's, turn by turn: what slows a whole turn down cancels."""
        return Spread.of([mine / theirs for mine, theirs in zip(self.of_side[side], self.of_side[other], strict=True)])


def take_turns(sides: Sequence[Callable[[], float]], passes: int | None = None, *, warm_up: int = 1) -> Turns:
    """Run sides in turns; every other turn goes backwards, so that none always follows the same one.

    Args:
        sides: each returns how long it took, in seconds.
        passes: timed turns; None takes as many as fit into a quarter of a minute, within bounds.
        warm_up: turns before that, which do not count.
    """
    found: list[list[float]] = [[] for _ in sides]
    places, turn = list(range(len(sides))), 0
    while passes is None or turn < warm_up + passes:
        started_at = time.perf_counter()
        for place in places if turn % 2 == 0 else reversed(places):
            found[place].append(sides[place]())
        turn += 1
        if passes is None and turn >= warm_up:
            passes = max(FEWEST_PASSES, min(MOST_PASSES, int(_BUDGET_S / (time.perf_counter() - started_at))))
    return Turns(tuple(tuple(times[warm_up:]) for times in found))

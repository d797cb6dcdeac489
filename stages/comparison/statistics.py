"""Means over seeds with honest intervals. Pure Python, imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_NORMAL_975 = 1.959963984540054
_T_975 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)
"""97.5 % quantiles of Student's t for 1 … 9 degrees of freedom, from scipy.stats.t.ppf."""


class Estimate(NamedTuple):
    """A mean over seeds and how well it is known."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval of the mean; None for a single value, which shows no spread."""
    n: int


class Difference(NamedTuple):
    """Mean difference to a baseline over the seeds both have."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval of the mean difference; None for a single seed."""
    seeds: tuple[int, ...]

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0; never for a single seed."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def t_quantile_975(degrees_of_freedom: int) -> float:
    """Return Student's t at 97.5 %, to 1e-5.

    Source: tabulated up to 9 degrees; above, the expansion of Abramowitz and Stegun 1964, 26.7.5.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"{degrees_of_freedom} degrees of freedom; at least 1 is needed, that is two values")
    if degrees_of_freedom <= len(_T_975):
        return _T_975[degrees_of_freedom - 1]
    z, v = _NORMAL_975, degrees_of_freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, start=1))


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % t-interval, which assumes the values to be independent and roughly normal."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, t_quantile_975(n - 1) * math.sqrt(variance / n), n)


def compare_paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the mean of value minus baseline over common seeds, or None when no seed is common.

    Pairing takes out what a seed does to both rows (its initial weights, its order of images), so the interval is
    narrower than that of two separate means, and right where those would overlap.

    Args:
        values: by seed.
        baseline: by seed.
    """
    seeds = tuple(sorted(values.keys() & baseline.keys()))
    if not seeds:
        return None
    estimate = estimate_mean([values[seed] - baseline[seed] for seed in seeds])
    return Difference(estimate.mean, estimate.half_width, seeds)

"""Means over seeds with honest intervals, and what so few seeds can show. Pure Python, imports no torch."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_NORMAL_975 = 1.959963984540054
_T_975 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)
"""97.5 % quantiles of Student's t for 1 … 9 degrees of freedom, from scipy.stats.t.ppf."""
ERROR_RATE = 0.05
POWER = 0.8
"""Share of experiments that are to show a difference that is there."""
_INTEGRATION_STEPS = 1000


class Estimate(NamedTuple):
    """A mean over seeds and how well it is known."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval of the mean; None for a single value, which shows no spread."""
    n: int


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float


class Difference(NamedTuple):
    """Mean difference to a baseline over the seeds both have."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval of the mean difference (paired t over seeds); None for a single seed."""
    seeds: tuple[int, ...]
    p: float | None = None
    """Two-sided p value of the paired t test over seeds; None for a single seed."""
    holm: float | None = None
    """The same adjusted by Holm over all differences of the table, of the headline metric only."""
    images: Interval | None = None
    """95 % interval of the paired bootstrap over the reported images, of the headline metric; None without them."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval over seeds leaves out 0; never for a single seed."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    @property
    def may_be_chance(self) -> bool:
        """Whether so many rows, or other images, could give the like without an effect."""
        by_images = self.images is not None and self.images.low <= 0 <= self.images.high
        return not self.is_clear or (self.holm is not None and self.holm >= ERROR_RATE) or by_images


class Noise(NamedTuple):
    """What seeds alone do to the headline metric."""

    floor: float
    """Standard deviation over the seeds of one row, pooled over rows."""
    detectable: float
    """Smallest true difference that so many seeds show with 80 % power at 95 %."""
    seeds: int
    """Of most rows."""


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


def compute_t_p_value(t: float, degrees_of_freedom: int) -> float:
    """Return the two-sided p value of Student's t, to 1e-14.

    Source: the finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"{degrees_of_freedom} degrees of freedom; at least 1 is needed, that is two values")
    angle = math.atan2(abs(t), math.sqrt(degrees_of_freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2
    term = cosine if odd else 1.0
    total = term if degrees_of_freedom > 1 else 0.0
    for power in range(2 + odd, degrees_of_freedom - 1, 2):
        term *= (power - 1) / power * cosine**2
        total += term
    inside = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return min(1.0, max(0.0, 1 - inside))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that hold for all tests at once: with those below 0.05, one is wrong in at most 5 % of tables.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted


@functools.cache
def find_detectable_effect(n: int) -> float:
    """Return the smallest mean difference, in its standard deviations, that a paired t test of n pairs shows.

    The d with P(|T| > t) = POWER at the 5 % level, where T has the noncentral t distribution of n - 1 degrees of
    freedom and noncentrality d·√n; 3.26 for three pairs. The chance is integrated over the estimated deviation.

    Source: Johnson and Welch 1940, "Applications of the non-central t-distribution".
    """
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _compute_power(middle, n - 1) > POWER else (middle, high)
    return high / math.sqrt(n)


def _compute_power(noncentrality: float, degrees_of_freedom: int) -> float:
    """Return P(|T| > t_0.975): the mean over s, the estimated by the true deviation, of what the normal then gives."""
    v, critical = degrees_of_freedom, t_quantile_975(degrees_of_freedom)
    step = (1 + 9 / math.sqrt(v)) / _INTEGRATION_STEPS
    scale = math.log(2) + v / 2 * math.log(v / 2) - math.lgamma(v / 2)

    def weigh(s: float) -> float:
        density = math.exp(scale + (v - 1) * math.log(s) - v * s * s / 2)
        return density * sum(math.erfc((critical * s + sign * noncentrality) / math.sqrt(2)) / 2 for sign in (-1, 1))

    return step * math.fsum(weigh((place + 0.5) * step) for place in range(_INTEGRATION_STEPS))


def measure_noise(rows: Iterable[Estimate], differences: Iterable[Difference]) -> Noise | None:
    """Return how much seeds alone move a metric, None where no row has two seeds.

    What can be detected is that of the paired differences, as they scatter over all rows; without any, of differences
    between independent runs, whose variance is twice that of one.

    Args:
        rows: the metric of every row.
        differences: those of the rows that are compared.
    """
    own = [(row.half_width, row.n) for row in rows if row.half_width is not None]
    paired = [(each.half_width, len(each.seeds)) for each in differences if each.half_width is not None]
    if not own:
        return None
    floor = _pool_deviations(own)
    seeds = statistics.mode(sorted(n for _, n in paired or own))
    deviation = _pool_deviations(paired) if paired else math.sqrt(2) * floor
    return Noise(floor, find_detectable_effect(seeds) * deviation, seeds)


def _pool_deviations(intervals: Sequence[tuple[float, int]]) -> float:
    """Return the standard deviation behind several t-intervals (half width, n), each weighted by n - 1."""
    variances = [(half_width / t_quantile_975(n - 1)) ** 2 * n for half_width, n in intervals]
    weights = [n - 1 for _, n in intervals]
    weighed = (variance * weight for variance, weight in zip(variances, weights, strict=True))
    return math.sqrt(math.fsum(weighed) / sum(weights))


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
    return Difference(estimate.mean, estimate.half_width, seeds, _find_p_value(estimate))


def _find_p_value(estimate: Estimate) -> float | None:
    """Return the p value of a mean against 0, from its interval; None for a single value."""
    if estimate.half_width is None:
        return None
    if estimate.half_width == 0:
        return float(estimate.mean == 0)
    degrees_of_freedom = estimate.n - 1
    return compute_t_p_value(
        t_quantile_975(degrees_of_freedom) * estimate.mean / estimate.half_width, degrees_of_freedom
    )

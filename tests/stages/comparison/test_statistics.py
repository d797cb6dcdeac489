"""Intervals, p values and power equal scipy's; one value has none."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from stages.comparison.statistics import (
    adjust_holm,
    compare_paired,
    compute_t_p_value,
    estimate_mean,
    find_detectable_effect,
    measure_noise,
    t_quantile_975,
)

VALUES, OTHERS = [0.61, 0.64, 0.59, 0.66], [0.60, 0.61, 0.60, 0.62]


@pytest.mark.parametrize("degrees", [*range(1, 60), 100, 1000, 10**6])
def test_quantiles_equal_scipy(degrees):
    assert t_quantile_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-5)


def test_interval_equals_scipy():
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    found = estimate_mean(VALUES)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(expected), abs=1e-7)


def test_paired_interval_equals_scipy():
    expected = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.95)
    found = compare_paired(dict(enumerate(VALUES)), dict(enumerate(OTHERS)))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(expected), abs=1e-7)
    assert found.p == pytest.approx(stats.ttest_rel(VALUES, OTHERS).pvalue, abs=1e-7)
    assert found.is_clear == (found.p < 0.05)


def test_only_common_seeds_are_compared():
    found = compare_paired({0: 0.5, 1: 0.7, 2: 9.0}, {1: 0.6, 0: 0.5, 7: 9.0})
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(0.05)
    assert compare_paired({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_interval_and_is_never_clear():
    assert estimate_mean([0.5]) == (0.5, None, 1)
    found = compare_paired({0: 1.0}, {0: 0.0})
    assert not found.is_clear
    assert (found.half_width, found.p) == (None, None)


def test_equal_values_have_an_interval_of_zero_width():
    assert estimate_mean([0.25, 0.25, 0.25]).half_width == 0
    assert compare_paired({0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.75}).p == 1
    assert compare_paired({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5}).p == 0


@pytest.mark.parametrize("degrees", [*range(1, 12), 29, 30, 400])
@pytest.mark.parametrize("t", [-3.0, 0.0, 0.1, 1.0, 2.5, 12.0, 300.0])
def test_p_values_equal_scipy(t, degrees):
    assert compute_t_p_value(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), abs=1e-13)


def reject_one_after_the_other(p_values, level):
    """Holm's procedure in his own words: which hypotheses fall at a level."""
    rejected, left = set(), dict(enumerate(p_values))
    while left:
        smallest = min(left, key=left.get)
        if left.pop(smallest) > level / (len(p_values) - len(rejected)):
            break
        rejected.add(smallest)
    return rejected


def test_holm_rejects_what_the_sequential_procedure_rejects():
    draw = random.Random(0)
    for _ in range(200):
        p_values = [draw.random() ** 4 for _ in range(draw.randint(1, 9))]
        adjusted = adjust_holm(p_values)
        for level in (0.01, 0.05, 0.2, 0.7):
            assert {place for place, p in enumerate(adjusted) if p <= level} == reject_one_after_the_other(
                p_values, level
            )


def test_holm_by_hand():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]
    assert adjust_holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 50])
def test_detectable_effect_has_the_power_it_says(n):
    effect, critical = find_detectable_effect(n), stats.t.ppf(0.975, n - 1)
    noncentral = stats.nct(n - 1, effect * math.sqrt(n))
    assert noncentral.sf(critical) + noncentral.cdf(-critical) == pytest.approx(0.8, abs=1e-4)


def test_noise_is_the_pooled_deviation_over_seeds():
    rows = [[0.5, 0.52, 0.54], [0.6, 0.6], [0.7]]
    squares = [(value - sum(row) / len(row)) ** 2 for row in rows for value in row]
    found = measure_noise(map(estimate_mean, rows), [])
    assert found.floor == pytest.approx(math.sqrt(sum(squares) / 3), abs=1e-7)
    assert found.seeds == 2
    assert found.detectable == pytest.approx(find_detectable_effect(2) * math.sqrt(2) * found.floor)


def test_what_is_detectable_follows_the_paired_differences():
    base = {0: 0.4, 1: 0.5, 2: 0.6}
    rows = [{0: 0.41, 1: 0.52, 2: 0.63}, {0: 0.40, 1: 0.49, 2: 0.61}]
    noise = measure_noise(
        (estimate_mean(list(row.values())) for row in (base, *rows)), [compare_paired(row, base) for row in rows]
    )
    deviations = [[row[seed] - base[seed] for seed in base] for row in rows]
    pooled = math.sqrt(sum(stats.tvar(each) for each in deviations) / 2)
    assert noise.detectable == pytest.approx(find_detectable_effect(3) * pooled, rel=1e-6)
    assert noise.floor == pytest.approx(0.1, abs=0.011), "pairing has taken most of it out of the differences"


def test_one_seed_has_no_noise():
    assert measure_noise([estimate_mean([0.5]), estimate_mean([0.6])], [compare_paired({0: 1.0}, {0: 0.5})]) is None


@pytest.mark.parametrize(
    "call", [lambda: estimate_mean([]), lambda: t_quantile_975(0), lambda: compute_t_p_value(1.0, 0)]
)
def test_nothing_has_no_mean(call):
    with pytest.raises(ValueError, match="at least"):
        call()

"""Intervals equal scipy's; one value has none."""

from __future__ import annotations

import pytest
from scipy import stats

from stages.comparison.statistics import compare_paired, estimate_mean, t_quantile_975

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
    assert found.is_clear == (stats.ttest_rel(VALUES, OTHERS).pvalue < 0.05)


def test_only_common_seeds_are_compared():
    found = compare_paired({0: 0.5, 1: 0.7, 2: 9.0}, {1: 0.6, 0: 0.5, 7: 9.0})
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(0.05)
    assert compare_paired({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_interval_and_is_never_clear():
    assert estimate_mean([0.5]) == (0.5, None, 1)
    assert not compare_paired({0: 1.0}, {0: 0.0}).is_clear


def test_equal_values_have_an_interval_of_zero_width():
    assert estimate_mean([0.3, 0.3, 0.3]).half_width == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("call", [lambda: estimate_mean([]), lambda: t_quantile_975(0)])
def test_nothing_has_no_mean(call):
    with pytest.raises(ValueError, match="at least"):
        call()

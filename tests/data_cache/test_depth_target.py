"""Laws of the depth target: near is large, per-image scale comes from the whole map, nothing invalid gets a number."""

import numpy as np
import pytest

from data_cache.depth_map import compute_depth_stats
from data_cache.depth_target import TARGET_MODES, compute_inverse_depth_target
from data_cache.errors import UserError
from data_cache.sample import DepthKind

RELATIVE, METRIC = DepthKind.RELATIVE, DepthKind.METRIC


def make_target(raw, kind, mode="robust", max_depth_m=None):
    stored = np.asarray(raw, np.float16)
    stats = compute_depth_stats(stored, kind, max_depth_m)
    return compute_inverse_depth_target(stored.astype(np.float32), stats, kind, max_depth_m, mode)


@pytest.fixture
def distances():
    return np.random.default_rng(0).uniform(0.5, 70, (40, 50)).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("mode", TARGET_MODES)
def test_nearer_never_gets_less(distances, mode):
    target = make_target(distances, METRIC, mode, 80.0).inverse_depth.ravel()
    assert (np.diff(target[np.argsort(distances.ravel())]) <= 0).all()
    if mode != "metric":
        relative = make_target(1 / distances, RELATIVE, mode).inverse_depth.ravel()
        assert (np.diff(relative[np.argsort(distances.ravel())]) <= 0).all()


@pytest.mark.parametrize("mode", [mode for mode in TARGET_MODES if mode != "metric"])
def test_metres_and_their_inverse_give_the_same_target(distances, mode):
    metric = make_target(distances, METRIC, mode).inverse_depth
    relative = make_target(1 / distances, RELATIVE, mode).inverse_depth
    # percentiles of 1/d and 1/percentiles of d interpolate between the same two pixels, not quite equally
    # and 1/d is rounded to float16 in its turn
    np.testing.assert_allclose(metric, relative, atol=4e-3)


def test_robust_against_its_formula(distances):
    low, high = np.percentile(1 / distances.astype(np.float64), (2, 98))
    expected = np.clip((1 / distances - low) / (high - low), 0, 1)
    np.testing.assert_allclose(make_target(distances, METRIC).inverse_depth, expected, atol=2e-3)


def test_minmax_reaches_both_ends(distances):
    target = make_target(distances, METRIC, "minmax").inverse_depth
    assert target.min() == 0
    assert target.max() == pytest.approx(1)
    assert target.flat[distances.argmin()] == target.max()


def test_zscore_has_zero_mean_and_unit_deviation(distances):
    sky = distances.copy()
    sky[:10] = 80
    target = make_target(sky, METRIC, "zscore", 80.0)
    assert target.inverse_depth[target.valid].mean() == pytest.approx(0, abs=1e-5)
    assert target.inverse_depth[target.valid].std() == pytest.approx(1, abs=1e-5)


def test_metric_is_one_over_metres(distances):
    np.testing.assert_allclose(make_target(distances, METRIC, "metric").inverse_depth, 1 / distances, rtol=1e-6)


@pytest.mark.parametrize("mode", TARGET_MODES)
def test_what_is_shown_twice_as_large_is_half_as_far(distances, mode):
    stats, shown = compute_depth_stats(distances.astype(np.float16), METRIC, None), 2.0
    zoomed = compute_inverse_depth_target(distances, stats, METRIC, None, mode, zoom=shown).inverse_depth
    nearer = (distances / 2).astype(np.float16)
    expected = compute_inverse_depth_target(
        nearer.astype(np.float32), compute_depth_stats(nearer, METRIC, None), METRIC, None, mode
    )
    np.testing.assert_allclose(zoomed, expected.inverse_depth, atol=2e-3)


def test_distances_are_floored_at_a_thousandth_of_the_median():
    raw = np.full((10, 10), 20.0)
    raw[0, 0] = 1e-5
    assert make_target(raw, METRIC, "metric").inverse_depth.max() == pytest.approx(1 / 0.02)


def test_log_survives_zeros():
    raw = np.linspace(0, 500, 400).reshape(20, 20)
    target = make_target(raw, RELATIVE, "log").inverse_depth
    assert np.isfinite(target).all()
    assert (target.min(), target.max()) == (0, 1)


@pytest.mark.parametrize("mode", TARGET_MODES)
def test_crops_get_the_numbers_of_the_whole(distances, mode):
    stats = compute_depth_stats(distances.astype(np.float16), METRIC, 60.0)
    whole = compute_inverse_depth_target(distances, stats, METRIC, 60.0, mode)
    part = compute_inverse_depth_target(distances[5:20, 7:30], stats, METRIC, 60.0, mode)
    np.testing.assert_array_equal(part.inverse_depth, whole.inverse_depth[5:20, 7:30])
    np.testing.assert_array_equal(part.valid, whole.valid[5:20, 7:30])


@pytest.mark.parametrize("mode", TARGET_MODES)
@pytest.mark.parametrize("kind", DepthKind)
def test_invalid_pixels_are_marked_and_zero(mode, kind):
    if mode == "metric" and kind is RELATIVE:
        pytest.skip("refused, tested below")
    raw = np.linspace(1, 80, 64, dtype=np.float32).reshape(8, 8)
    raw[0, :4] = np.nan, np.inf, -np.inf, 0
    target = make_target(raw, kind, mode, 80.0 if kind is METRIC else None)
    expected = np.isfinite(raw) & (((raw > 0) & (raw < 79.6)) if kind is METRIC else True)
    np.testing.assert_array_equal(target.valid, expected)
    assert (target.inverse_depth[~target.valid] == 0).all()
    assert np.isfinite(target.inverse_depth).all()


@pytest.mark.parametrize("mode", [mode for mode in TARGET_MODES if mode != "metric"])
@pytest.mark.parametrize("kind", DepthKind)
@pytest.mark.filterwarnings("error")
def test_maps_without_spread_become_zero(mode, kind):
    target = make_target(np.full((4, 5), 7.0), kind, mode)
    assert target.valid.all()
    assert (target.inverse_depth == 0).all()


@pytest.mark.parametrize("mode", TARGET_MODES)
@pytest.mark.filterwarnings("error")
def test_maps_without_a_number_are_all_invalid(mode):
    target = make_target(np.full((4, 5), np.nan), METRIC, mode)
    assert not target.valid.any()
    assert (target.inverse_depth == 0).all()


def test_metric_target_needs_metres():
    with pytest.raises(UserError, match="'metric' needs an estimator that gives metres"):
        make_target(np.ones((4, 4)), RELATIVE, "metric")


def test_unknown_modes_are_named():
    with pytest.raises(UserError, match=r"unknown depth target 'zscor' \(did you mean 'zscore'\?\)"):
        make_target(np.ones((4, 4)), RELATIVE, "zscor")

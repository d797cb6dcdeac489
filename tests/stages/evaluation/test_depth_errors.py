"""Depth errors: hand-computed cases and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_cache.datasets import open_dataset
from data_cache.depth_map import compute_depth_stats
from data_cache.depth_target import compute_inverse_depth_target
from data_cache.errors import UserError
from data_cache.sample import DepthKind
from stages.evaluation.depth_errors import FLOOR, DepthErrors


def errors(depth, target, valid=None, target_mode="robust"):
    depth, target = torch.tensor(depth).reshape(1, 1, -1), torch.tensor(target).reshape(1, 1, -1)
    scores = DepthErrors(target_mode)
    scores.update(
        depth,
        target,
        torch.ones_like(target, dtype=torch.bool) if valid is None else torch.tensor(valid).reshape(1, 1, -1),
    )
    return scores.compute()


def test_case_by_hand_of_an_absolute_target():
    metrics = errors(
        [0.5, 0.02, 0.6], [0.5, 0.04, 0.5], target_mode="metric"
    )  # 25 m are no reason to leave a pixel out
    assert metrics["depth_mse"] == pytest.approx((0 + 0.0004 + 0.01) / 3, abs=1e-7)
    assert metrics["depth_absrel"] == pytest.approx((0 + 0.5 + 0.2) / 3, abs=1e-6)
    assert metrics["depth_delta1"] == pytest.approx(2 / 3)  # 0.04/0.02 = 2 is outside 1.25


def test_alignment_forgives_scale_but_squared_error_does_not():
    metrics = errors([0.25, 0.2, 0.1], [0.5, 0.4, 0.2])
    assert (metrics["depth_absrel"], metrics["depth_delta1"]) == (pytest.approx(0, abs=1e-6), 1.0)
    assert metrics["depth_mse"] > 0.01


def test_invalid_pixels_count_nowhere():
    assert errors([0.5, 9.0], [0.5, 0.1], [True, False]) == {"depth_mse": 0.0, "depth_absrel": 0.0, "depth_delta1": 1.0}


def test_far_pixels_count_for_squared_error_only():
    metrics = errors([0.5, 0.3], [0.5, FLOOR / 2])
    assert metrics["depth_absrel"] == 0 and metrics["depth_mse"] > 0


def test_nonpositive_predictions_stay_finite():
    assert all(torch.isfinite(torch.tensor(value)) for value in errors([-1.0, 0.0, -2.0], [0.5, 0.5, 0.5]).values())


def test_pixels_are_pooled_for_squared_error_and_images_for_ratios():
    scores = DepthErrors("metric")
    target, valid = torch.full((2, 1, 4), 0.5), torch.ones(2, 1, 4, dtype=torch.bool)
    valid[1, 0, 1:] = False
    depth = torch.tensor([[[0.5] * 4], [[1.0] * 4]])
    scores.update(depth, target, valid)
    assert scores.compute() == {"depth_mse": 0.05, "depth_absrel": 0.5, "depth_delta1": 0.5}


def test_no_valid_pixel_gives_no_score():
    assert errors([0.5], [0.5], [False]) == {}


@pytest.mark.parametrize("mode", ["minmax", "zscore", "metric"])
def test_the_same_prediction_scores_the_same_in_every_linear_target(mode):
    """Ratios of `robust` targets are the reference; of the others no more pixels may be left out."""
    scenes = open_dataset("scenes", None, "val", size=(48, 64), counts={"val": 4})
    found = {}
    for name in ("robust", mode):
        scores = DepthErrors(name)
        for index in range(4):
            stored = scenes.read_depth(index).astype(np.float16)
            stats = compute_depth_stats(stored, DepthKind.METRIC, None)
            raw = stored.astype(np.float32)
            target = compute_inverse_depth_target(raw, stats, DepthKind.METRIC, None, name)
            worse = 1 / np.maximum(1 / raw + 0.05 * np.sin(np.arange(64)), 1e-3)  # off by as much of 1/m everywhere
            predicted = compute_inverse_depth_target(worse, stats, DepthKind.METRIC, None, name)
            scores.update(*(torch.from_numpy(array)[None] for array in (predicted.inverse_depth, *target)))
        found[name] = scores.compute()
    if mode == "metric":
        assert found[mode]["depth_delta1"] < 1 and 0 < found[mode]["depth_absrel"] < 1
    else:
        assert found[mode]["depth_absrel"] == pytest.approx(found["robust"]["depth_absrel"], rel=0.1)
        assert found[mode]["depth_delta1"] == pytest.approx(found["robust"]["depth_delta1"], abs=0.03)


def test_a_target_without_spread_counts_for_squared_error_only():
    assert errors([0.1, 0.2], [0.0, 0.0], target_mode="zscore").keys() == {"depth_mse"}


def test_an_unknown_target_is_named():
    with pytest.raises(UserError, match=r"unknown depth target 'zscor' \(did you mean 'zscore'\?\)"):
        DepthErrors("zscor")

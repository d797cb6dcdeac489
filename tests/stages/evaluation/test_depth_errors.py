"""Depth errors: hand-computed cases and invariances."""

from __future__ import annotations

import pytest
import torch

from stages.evaluation.depth_errors import FLOOR, DepthErrors


def errors(depth, target, valid=None, **options):
    depth, target = torch.tensor(depth).reshape(1, 1, -1), torch.tensor(target).reshape(1, 1, -1)
    scores = DepthErrors(**options)
    scores.update(
        depth,
        target,
        torch.ones_like(target, dtype=torch.bool) if valid is None else torch.tensor(valid).reshape(1, 1, -1),
    )
    return scores.compute()


def test_case_by_hand_without_alignment():
    metrics = errors([0.5, 0.2, 0.6], [0.5, 0.4, 0.5], align_median=False)
    assert metrics["depth_mse"] == pytest.approx((0 + 0.04 + 0.01) / 3, abs=1e-7)
    assert metrics["depth_absrel"] == pytest.approx((0 + 0.5 + 0.2) / 3, abs=1e-6)
    assert metrics["depth_delta1"] == pytest.approx(2 / 3)  # 0.4/0.2 = 2 is outside 1.25


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
    scores = DepthErrors(align_median=False)
    target, valid = torch.full((2, 1, 4), 0.5), torch.ones(2, 1, 4, dtype=torch.bool)
    valid[1, 0, 1:] = False
    depth = torch.tensor([[[0.5] * 4], [[1.0] * 4]])
    parts = [DepthErrors(align_median=False) for _ in range(2)]
    scores.update(depth, target, valid)
    for index, part in enumerate(parts):
        part.update(depth[index : index + 1], target[index : index + 1], valid[index : index + 1])
    parts[0].merge(parts[1])
    assert parts[0].compute() == scores.compute() == {"depth_mse": 0.05, "depth_absrel": 0.5, "depth_delta1": 0.5}


def test_no_valid_pixel_gives_no_score():
    assert errors([0.5], [0.5], [False]) == {}

"""Boundary F1 against a definition by distance transforms, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from data_cache.sample import IGNORE_INDEX
from stages.evaluation.boundary import MIN_TOLERANCE_PX, TOLERANCE, BoundaryScores


def score(predictions: Tensor, labels: Tensor, classes: int) -> float:
    scores = BoundaryScores(classes)
    scores.update(predictions, labels)
    return scores.compute()


def blobs(classes: int, size: tuple[int, int], seed: int, first: int = 0) -> Tensor:
    """A coarse random label map, enlarged: regions with outlines."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(first, classes, (size[0] // 8 + 1, size[1] // 8 + 1), generator=draw)
    return coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]].unsqueeze(0)


def oracle(prediction: np.ndarray, label: np.ndarray, classes: int) -> float:
    """One image, class by class, with an exact Euclidean distance transform."""
    tolerance = max(MIN_TOLERANCE_PX, TOLERANCE * math.hypot(*label.shape))
    prediction = np.where(label == IGNORE_INDEX, IGNORE_INDEX, prediction)
    scores = []
    for c in range(classes):
        edges = [mask & ~binary_erosion(mask, border_value=1) for mask in (label == c, prediction == c)]
        if not any(edge.any() for edge in edges):
            continue
        shares = []
        for mine, other in (edges, edges[::-1]):
            near = distance_transform_edt(~other) <= tolerance if other.any() else np.zeros_like(other)
            shares.append(near[mine].mean() if mine.any() else 0.0)
        scores.append(2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0)
    return float(np.mean(scores))


@pytest.mark.parametrize("size", [(32, 45), (260, 400)])  # tolerance 2 px, and 3.6 px
@pytest.mark.parametrize("classes", [4, 70])  # 70 classes need two 64-bit words
def test_equals_distance_transforms(size, classes):
    first = max(0, classes - 10)
    label, prediction = blobs(classes, size, 0, first), blobs(classes, size, 0, first)
    shift = torch.roll(prediction, (2, 4), dims=(1, 2))
    shift[:, :9, :9] = first
    label[:, 5:20, 10:30] = IGNORE_INDEX
    expected = oracle(shift[0].numpy(), label[0].numpy(), classes)
    assert 0.1 < expected < 0.99
    assert score(shift, label, classes) == pytest.approx(expected, abs=1e-9)


def test_shift_within_the_tolerance_is_free_and_beyond_it_is_not():
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 16:48, 16:48] = 1
    assert score(torch.roll(label, 2, dims=2), label, 2) == 1.0
    assert score(torch.roll(label, 3, dims=2), label, 2) < 1.0


def test_void_hides_the_prediction():
    label = blobs(3, (32, 32), 1)
    label[:, 8:24, 8:24] = IGNORE_INDEX
    noisy = torch.where(label == IGNORE_INDEX, blobs(3, (32, 32), 2), label)
    assert score(noisy, label, 3) == 1.0


def test_missing_every_boundary_scores_zero_and_no_boundary_at_all_is_zero_not_nan():
    label = blobs(3, (32, 32), 1)
    assert score(torch.zeros_like(label), label, 3) == 0.0
    assert score(torch.zeros_like(label), torch.zeros_like(label), 3) == 0.0


def test_images_weigh_alike_however_batched():
    label, prediction = (
        torch.cat([blobs(3, (32, 32), s) for s in range(3)]),
        torch.cat([blobs(3, (32, 32), s) for s in (0, 4, 2)]),
    )
    whole, parts = BoundaryScores(3), BoundaryScores(3)
    whole.update(prediction, label)
    parts.update(prediction[:1], label[:1])
    parts.update(prediction[1:], label[1:])
    assert parts.compute() == whole.compute()
    assert whole.compute() == pytest.approx(
        np.mean([oracle(p.numpy(), y.numpy(), 3) for p, y in zip(prediction, label, strict=True)])
    )

"""How sure a difference is over images: a paired bootstrap of the pooled mIoU. Imports no torch.

Intervals over seeds tell whether another training would give the same, intervals over images whether other images
would; neither holds what the other does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_cache.image_scores import ImageScores
from stages.comparison.statistics import Interval

REPLICATES = 2000
SEED = 0
_WEIGHTS_AT_ONCE = 1 << 22


def pool_miou(scores: ImageScores, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return (R,), the mean IoU of each of R splits: counts pooled, classes with an empty union skipped.

    Args:
        scores: of N images.
        weights: (R, N), how often an image is in a split; None is the split as it is.
    """
    counts = np.concatenate([scores.tp, scores.tp + scores.fp + scores.fn], axis=1).astype(np.float64)
    pooled = counts.sum(axis=0, keepdims=True) if weights is None else weights @ counts
    hits, union = np.split(pooled, 2, axis=1)
    mean: NDArray[np.float64] = (hits / np.maximum(union, 1)).sum(axis=1) / np.maximum((union > 0).sum(axis=1), 1)
    return mean


def replicate_miou(scores: ImageScores, replicates: int = REPLICATES) -> NDArray[np.float64]:
    """Return (R,), the mean IoU of splits whose images are drawn with replacement; the same draws for every run.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 6.
    """
    images = len(scores.image_ids)
    at_once = max(1, _WEIGHTS_AT_ONCE // images)
    parts = [(first, min(at_once, replicates - first)) for first in range(0, replicates, at_once)]
    return np.concatenate([pool_miou(scores, _draw_weights(images, *part)) for part in parts])


@functools.lru_cache(maxsize=1)
def _draw_weights(images: int, first: int, number: int) -> NDArray[np.float64]:
    """Return (number, images): how often each image was drawn in these replicates; each row is multinomial."""
    drawn = np.random.default_rng((SEED, first)).integers(images, size=(number, images))
    drawn += np.arange(number)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=number * images).reshape(number, images).astype(np.float64)


def find_interval(differences: Sequence[NDArray[np.float64]]) -> Interval:
    """Return the 95 % percentile interval of the mean over seeds, of (R,) differences of each seed.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    low, high = np.percentile(np.mean(differences, axis=0), (2.5, 97.5))
    return Interval(float(low), float(high))

"""Images as points among which distances mean something: scaled features, depth maps in miniature. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_cache.depth_target import DepthTarget

MINIATURE_SIDE = 8
"""Cells along each side of a miniature."""


def standardise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale features (N, D) so that each has mean 0 and deviation 1 over the images, and two images are about 1 apart.

    A feature that is the same everywhere becomes 0. Source: Hoyer et al. 2021 scale each channel so; that the distance
    does not grow with the number of features is ours.
    """
    wide = features.astype(np.float64)
    spread = wide.std(axis=0)
    scaled = (wide - wide.mean(axis=0)) / np.where(spread > 1e-6 * np.abs(wide).max(axis=0), spread, np.inf)
    return (scaled / np.sqrt(2 * features.shape[1])).astype(np.float32)


def shrink_map(target: DepthTarget) -> NDArray[np.float32]:
    """Return a map's mean inverse depth in each of 8×8 cells, row by row: what is near, and where.

    Pixels that are not valid do not count; a cell without any other counts as infinitely far, as sky is.
    """
    sums = _add_up_cells(np.where(target.valid, target.inverse_depth, 0))
    counts = _add_up_cells(target.valid.astype(np.float64))
    return (sums / np.maximum(counts, 1)).astype(np.float32).ravel()


def _add_up_cells(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (8, 8) sums; a map with fewer pixels along a side has some in several cells."""
    wide = values.astype(np.float64)
    for axis, length in enumerate(values.shape):
        wide = np.add.reduceat(wide, np.arange(MINIATURE_SIDE) * length // MINIATURE_SIDE, axis=axis)
    return wide

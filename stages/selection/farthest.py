"""Greedy k-centre: which images to label next, so that no image is far from a labelled one. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class FarthestPoints:
    """Images in the order in which they are to be labelled: always the one farthest from those that are taken already.

    What is taken later changes nothing of what was taken before, so a smaller budget's images are the first of a larger
    one's.

    Args:
        features: (N, D), finite; images that look alike lie close to each other.
        covered: rows that count as taken from the beginning: images with labels.

    Source: Sener & Savarese 2018 (k-centre), Hoyer et al. 2021, section 3.4 (on features of a depth network). There the
    first image is drawn at random; here it is the one nearest to the mean of all, if none is taken. Equally far images
    come in the order of their rows.
    """

    def __init__(self, features: NDArray[np.float32], covered: Iterable[int] = ()) -> None:
        self._features = np.asarray(features, np.float64)
        self._distances = np.full(len(features), np.inf)
        self._free = np.ones(len(features), bool)
        for row in covered:
            self._take(row)

    @property
    def taken(self) -> list[int]:
        """Rows that are covered or picked, in their order."""
        found: list[int] = np.flatnonzero(~self._free).tolist()
        return found

    def pick(self, count: int, bonus: NDArray[np.float64] | None = None) -> list[int]:
        """Take so many more rows, or as many as are left, and return them in order.

        Args:
            bonus: (N,) added to each row's distance to the nearest one taken; what is difficult counts as far away.
        """
        picked = []
        for _ in range(min(count, int(self._free.sum()))):
            picked.append(self._find_farthest(0.0 if bonus is None else bonus))
            self._take(picked[-1])
        return picked

    def _find_farthest(self, bonus: NDArray[np.float64] | float) -> int:
        distances = self._distances
        if self._free.all():
            distances = -np.linalg.norm(self._features - self._features.mean(axis=0), axis=1)
        return int(np.argmax(np.where(self._free, distances + bonus, -np.inf)))

    def _take(self, row: int) -> None:
        self._free[row] = False
        np.minimum(self._distances, np.linalg.norm(self._features - self._features[row], axis=1), out=self._distances)

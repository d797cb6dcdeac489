"""Errors of predicted depth against the inverse-depth target the network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.05
"""Target values below this are left out of the ratio metrics.

The default target is scaled per image to [0, 1] and clipped, so at least 2 % of it is exactly 0, where a ratio is
meaningless; just above 0 a ratio measures the clipping. Squared error has no such limit and uses every valid pixel.
"""


class DepthErrors:
    """Running errors on the *normalised inverse-depth target* (large = near), not on metres.

    ``depth_mse`` is the mean squared error over all valid pixels of the split: the quantity training minimises.
    ``depth_absrel`` is the mean of |d - t| / t and ``depth_delta1`` the share of pixels with max(d/t, t/d) < 1.25, both
    over valid pixels with t >= FLOOR, per image, then averaged over images. Because the target is inverse depth scaled
    per image, they tell whether depth was learnt; they do not compare with figures that were computed in metres.

    Args:
        align_median: multiply each prediction by median(t) / median(d) first, as is usual where the scale is unknown
            (relative depth); False for targets with an absolute scale.

    Source: Eigen et al. 2014, section 4.3 (errors); Zhou et al. 2017, section 4.2 (median scaling).
    """

    def __init__(self, *, align_median: bool = True) -> None:
        self.align_median = align_median
        self._squared_error = 0.0
        self._num_pixels = 0
        self._absrel = 0.0
        self._delta1 = 0.0
        self._num_images = 0

    def update(self, depth: Tensor, inverse_depth: Tensor, depth_valid: Tensor) -> None:
        """Score one batch.

        Args:
            depth: (B, H, W), the network's output.
            inverse_depth: (B, H, W), the target.
            depth_valid: (B, H, W) bool.
        """
        for predicted, target, valid in zip(depth.double(), inverse_depth.double(), depth_valid, strict=True):
            self._squared_error += float(((predicted - target)[valid] ** 2).sum())
            self._num_pixels += int(valid.sum())
            counted = valid & (target >= FLOOR)
            if counted.any():
                self._add_ratios(predicted[counted], target[counted])

    def _add_ratios(self, predicted: Tensor, target: Tensor) -> None:
        if self.align_median and float(predicted.median()) > 0:
            predicted = predicted * (target.median() / predicted.median())
        predicted = predicted.clamp(min=1e-3)  # a negative depth is simply far: keep the ratio finite
        self._absrel += float(((predicted - target).abs() / target).mean())
        self._delta1 += float((torch.maximum(predicted / target, target / predicted) < 1.25).double().mean())
        self._num_images += 1

    def merge(self, other: DepthErrors) -> None:
        """Add the errors of another part of the split."""
        self._squared_error += other._squared_error
        self._num_pixels += other._num_pixels
        self._absrel += other._absrel
        self._delta1 += other._delta1
        self._num_images += other._num_images

    def compute(self) -> dict[str, float]:
        """Return the depth metrics by name; empty when no pixel had a valid target, because 0 would mean perfect."""
        if not self._num_pixels:
            return {}
        metrics = {"depth_mse": self._squared_error / self._num_pixels}
        if self._num_images:
            metrics["depth_absrel"] = self._absrel / self._num_images
            metrics["depth_delta1"] = self._delta1 / self._num_images
        return metrics

"""Errors of predicted depth against the inverse-depth target the network was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_cache.depth_target import TARGET_MODES
from data_cache.errors import unknown_name

FLOOR = 0.05
"""Ratios leave out what is below this, in units of an image's near range (0 = its far end, 1 = its near end).

Inverse depth that is scaled per image is 0 at its far end, where a ratio is meaningless, and just above 0 a ratio
measures the scaling. Squared error has no such limit and uses every valid pixel.
"""
_UNIT_RANGE = ("robust", "log")
"""Targets that run from 0 to 1 between the percentiles of an image already."""
_ABSOLUTE = ("metric",)
"""Targets with a unit of their own: ratios are of depth itself, of every valid pixel, and nothing is aligned."""


class DepthErrors:
    """Running errors on the inverse-depth target (large = near), not on metres.

    ``depth_mse`` is the mean squared error over all valid pixels of the split, in the units of the target: the quantity
    training minimises. ``depth_absrel`` is the mean of |d - t| / t and ``depth_delta1`` the share of pixels with
    max(d/t, t/d) < 1.25, both per image, then averaged over images, of prediction d and target t in units in which a
    ratio means the same for every target:

    * ``robust`` and ``log`` as they are, from 0 to 1 over an image; pixels with t >= FLOOR;
    * ``minmax`` and ``zscore`` brought to the same range first, 0 and 1 at the 2nd and 98th percentile of the target,
      because neither their zero nor their unit says where far begins;
    * ``metric`` as it is, 1/m, all valid pixels: max(d/t, t/d) is the same for 1/m and for m.

    Where the scale is per image each prediction is first multiplied by median(t) / median(d), as is usual. The figures
    tell whether depth was learnt; only those of ``metric`` targets compare with figures computed in metres.

    Args:
        target: one of ``depth_target.TARGET_MODES``.

    Source: Eigen et al. 2014, section 4.3 (errors); Zhou et al. 2017, section 4.2 (median scaling).
    """

    def __init__(self, target: str = "robust") -> None:
        if target not in TARGET_MODES:
            raise unknown_name("depth target", target, TARGET_MODES)
        self._target = target
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
            if valid.any():
                self._add_ratios(predicted[valid], target[valid])

    def _add_ratios(self, predicted: Tensor, target: Tensor) -> None:
        """Add the ratios of an image, given its valid pixels."""
        absolute = self._target in _ABSOLUTE
        if not absolute and self._target not in _UNIT_RANGE:
            far, near = np.percentile(target.cpu().numpy(), (2, 98))
            if near <= far:  # a map without spread has no range
                return
            predicted, target = (predicted - far) / (near - far), ((target - far) / (near - far)).clamp(0, 1)
        counted = target > 0 if absolute else target >= FLOOR
        if not counted.any():
            return
        predicted, target = predicted[counted], target[counted]
        if not absolute and float(predicted.median()) > 0:
            predicted = predicted * (target.median() / predicted.median())
        # a negative depth is simply far: keep the ratio finite
        predicted = predicted.clamp(min=1e-3 * (float(target.median()) if absolute else 1.0))
        self._absrel += float(((predicted - target).abs() / target).mean())
        self._delta1 += float((torch.maximum(predicted / target, target / predicted) < 1.25).double().mean())
        self._num_images += 1

    def compute(self) -> dict[str, float]:
        """Return the depth metrics by name; empty when no pixel had a valid target, because 0 would mean perfect."""
        if not self._num_pixels:
            return {}
        metrics = {"depth_mse": self._squared_error / self._num_pixels}
        if self._num_images:
            metrics["depth_absrel"] = self._absrel / self._num_images
            metrics["depth_delta1"] = self._delta1 / self._num_images
        return metrics

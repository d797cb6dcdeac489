"""Errors of predicted depth against the inverse-depth target the network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from data_cache.depth_target import TARGET_MODES
from data_cache.errors import unknown_name
from data_cache.ranks import sum_over_ranks
from stages.evaluation.counting import add_one_by_one

FLOOR = 0.05
"""Ratios leave out what is below this, in units of an image's near range (0 = its far end, 1 = its near end).

Inverse depth that is scaled per image is 0 at its far end, where a ratio is meaningless, and just above 0 a ratio
measures the scaling. Squared error has no such limit and uses every valid pixel.
"""
_UNIT_RANGE = ("robust", "log")
"""Targets that run from 0 to 1 between the percentiles of an image already."""
_DELTA = 1.25
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
        device: of the depth that is scored.

    Source: Eigen et al. 2014, section 4.3 (errors); Zhou et al. 2017, section 4.2 (median scaling).
    """

    def __init__(self, target: str = "robust", *, device: torch.device | str = "cpu") -> None:
        if target not in TARGET_MODES:
            raise unknown_name("depth target", target, TARGET_MODES)
        self._target = target
        self._totals = torch.zeros(5, dtype=torch.float64, device=device)
        """Squared error, valid pixels, sum of absrel, of delta1, images with these two."""

    def update(self, depth: Tensor, inverse_depth: Tensor, depth_valid: Tensor) -> Tensor:
        """Score one batch; waits for nothing.

        Args:
            depth: (B, H, W), the network's output.
            inverse_depth: (B, H, W), the target.
            depth_valid: (B, H, W) bool.

        Returns:
            (B, 3) float64: mse, absrel and delta1 of each image, NaN where an image has none.
        """
        predicted, target, valid = depth.flatten(1).double(), inverse_depth.flatten(1).double(), depth_valid.flatten(1)
        squared_error = torch.where(valid, predicted - target, 0.0).square_().sum(dim=1)
        pixels, (absrel, delta1, has_ratios) = valid.sum(dim=1), self._compute_ratios(predicted, target, valid)
        self._totals = add_one_by_one(
            self._totals, torch.stack([squared_error, pixels, absrel, delta1, has_ratios], dim=1)
        )
        ratios = torch.where(has_ratios.bool(), torch.stack([absrel, delta1]), torch.nan)
        return torch.cat([(squared_error / pixels).unsqueeze(1), ratios.T], dim=1)  # 0/0 is NaN

    def _compute_ratios(self, predicted: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return absrel and delta1 of each image (B, P), and whether it has them; each (B,) float64, 0 without."""
        absolute = self._target in _ABSOLUTE
        if not absolute and self._target not in _UNIT_RANGE:
            far, near = _find_range(target, valid)
            valid = valid & (near > far)  # a map without spread has no range
            predicted, target = (predicted - far) / (near - far), ((target - far) / (near - far)).clamp(0, 1)
        counted = valid & (target > 0 if absolute else target >= FLOOR)
        middle, predicted_middle = (_find_median(values, counted) for values in (target, predicted))
        if not absolute:
            predicted = predicted * torch.where(predicted_middle > 0, middle / predicted_middle, 1.0)
        # a negative depth is simply far: keep the ratio finite
        predicted = torch.maximum(predicted, 1e-3 * (middle if absolute else torch.ones_like(middle)))
        pixels = counted.sum(dim=1).clamp(min=1)
        absrel = torch.where(counted, (predicted - target).abs() / target, 0.0).sum(dim=1) / pixels
        close = torch.maximum(predicted / target, target / predicted) < _DELTA
        return absrel, (close & counted).sum(dim=1) / pixels.double(), counted.any(dim=1).double()

    def sum_over_ranks(self) -> None:
        """Add what the other ranks have scored."""
        self._totals = sum_over_ranks(self._totals)

    def compute(self) -> dict[str, float]:
        """Return the depth metrics by name; empty when no pixel had a valid target, because 0 would mean perfect."""
        squared_error, pixels, absrel, delta1, images = self._totals.tolist()
        if not pixels:
            return {}
        metrics = {"depth_mse": squared_error / pixels}
        return metrics | ({"depth_absrel": absrel / images, "depth_delta1": delta1 / images} if images else {})


def _find_median(values: Tensor, counted: Tensor) -> Tensor:
    """Return (B, 1), the median of the counted pixels of each image of (B, P); nan without any."""
    return torch.where(counted, values, torch.nan).nanmedian(dim=1, keepdim=True).values


def _find_range(target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 2nd and 98th percentile of each image's valid pixels, (B, 1) each, interpolated as numpy does."""
    ordered = torch.where(valid, target, torch.inf).sort(dim=1).values
    last = valid.sum(dim=1, keepdim=True).clamp(min=1) - 1
    places = last * torch.tensor([0.02, 0.98], dtype=torch.float64, device=target.device)
    lower, upper = (ordered.gather(1, end.long()) for end in (places.floor(), places.ceil()))
    far, near = torch.lerp(lower, upper, places - places.floor()).split(1, dim=1)
    return far, near

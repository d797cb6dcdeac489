"""The shared vocabulary of data: shapes, ranges and units, written down once."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # datasets and stores are readable without torch
    from torch import Tensor

IGNORE_INDEX = 255
"""Label of void pixels: never trained on, never scored."""

SMALLEST_INPUT_PX = 64
"""Every network takes images with sides of at least this, at any size."""


class DepthKind(StrEnum):
    """What the numbers of a raw depth map mean."""

    RELATIVE = "relative"
    """Inverse depth up to an unknown scale and shift; large = near."""
    METRIC = "metric"
    """Distance along the optical axis in metres; large = far."""


class Sample(NamedTuple):
    """One image with its targets, after the joint geometry.

    Depth is absent (``None``) when no store was given or the phase does not ask for it.
    """

    image_id: str
    image: Tensor
    """(3, H, W) float32, normalised by the network's mean and std."""
    seg_labels: Tensor
    """(H, W) int64, class index in [0, C) or IGNORE_INDEX."""
    inverse_depth: Tensor | None
    """(H, W) float32; in the default target mode in [0, 1] with 1 = near. 0 where invalid."""
    depth_valid: Tensor | None
    """(H, W) bool; False on padding, non-finite and sky-saturated pixels."""


class Batch(NamedTuple):
    """Samples stacked along a leading batch axis; shapes as in ``Sample`` with (B, …)."""

    image_ids: tuple[str, ...]
    images: Tensor
    seg_labels: Tensor
    inverse_depth: Tensor | None
    depth_valid: Tensor | None

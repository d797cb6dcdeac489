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


class PackedBatch(NamedTuple):
    """A batch as it travels from files to the device, in a quarter of the bytes of the ``Batch`` it becomes there.

    ``unpacking.unpack`` makes that one. Depth is absent when no store was given or the phase does not ask for it. Where
    several ranks share a batch, each has its rows of the tensors and the ids of all images.
    """

    image_ids: tuple[str, ...]
    images: Tensor
    """(B, 3, H, W) uint8 RGB, channels last in memory; 0 where the canvas is empty. Of evaluation float32 in [0, 255]
    where images were resized, as nothing that runs a model rounds them then."""
    seg_labels: Tensor
    """(B, H, W) uint8, class index in [0, C) or IGNORE_INDEX; of evaluation at the labels' own size."""
    inverse_depth: Tensor | None = None
    """(B, H, W), of the labels' size, NaN where invalid: on padding, non-finite and sky-saturated pixels. float16 in
    training, float32 in evaluation, whose scores are not rounded. In the default target mode in [0, 1], 1 = near."""
    placed: Tensor | None = None
    """(B, 4) int32: top, left, height and width of each image on its canvas; None where all are as large as that."""
    jitter: Tensor | None = None
    """(B, 3) float32: factors of brightness, contrast and saturation; None where colours stay."""
    num_labelled: int | None = None
    """The first so many images have labels, the others are void everywhere; None where all have. Like the ids it counts
    the images of all ranks: this one's rows are ``ranks.own_rows``."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the ids and the count, in order."""
        return self[1:6]


class Batch(NamedTuple):
    """What networks, losses and metrics are given."""

    image_ids: tuple[str, ...]
    images: Tensor
    """(B, 3, H, W) float32, normalised by the network's mean and std; 0, the mean, where the canvas is empty."""
    seg_labels: Tensor
    """(B, H, W) int64, class index in [0, C) or IGNORE_INDEX."""
    inverse_depth: Tensor | None
    """(B, H, W) float32; 0 where invalid."""
    depth_valid: Tensor | None
    """(B, H, W) bool."""
    inside: Tensor | None
    """(B, H, W) bool: where an image lies on its canvas; None where all are as large as that."""
    num_labelled: int
    """The first so many images, of all ranks, have labels, the others are void everywhere."""

    @property
    def mixes(self) -> bool:
        """Whether some images have labels and others have not."""
        return 0 < self.num_labelled < len(self.image_ids)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the ids and the count, in order."""
        return self[1:6]

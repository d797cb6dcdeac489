"""The frame of the networks that are an encoder followed by a decoder and a head, once per task."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from data_cache.errors import UserError
from stages.networks.framing import crop_maps
from stages.networks.interface import Network, Outputs


class BranchedNetwork(Network):
    """Runs ``encoder`` once, then ``<task>_decoder`` and ``<task>_head`` of each task asked for.

    A subclass sets those attributes, and where its strides need it overrides ``prepare`` and ``restore``.
    """

    smallest_input_px = 32
    one_value_px: float = 0
    """Up to this side the deepest map is one pixel, behind which batch norm cannot train on a single image."""

    def forward(self, images: Tensor, *, seg: bool = True, depth: bool = True, seg_rows: int | None = None) -> Outputs:
        """Run the encoder once and then the branches asked for; the arguments are those of every network."""
        if not torch.compiler.is_exporting():
            self.check_size(images, len(images) if seg_rows is None else seg_rows)
        features = self.encoder(self.prepare(images))
        size = images.shape[-2:]
        seg_logits, inverse_depth = None, None
        auxiliary: tuple[Tensor, ...] = ()
        if seg:
            labelled = features if seg_rows is None else take_rows(features, seg_rows)
            decoded = self.seg_decoder(labelled)
            seg_logits = self.restore(self.seg_head(decoded), size)
        if depth and self.has_depth:
            inverse_depth = self.restore(self.depth_head(self.depth_decoder(features)), size).squeeze(1)
        if seg and self.training:
            auxiliary = self.compute_auxiliary(labelled, decoded, size)
        return Outputs(seg_logits, inverse_depth, auxiliary)

    def check_size(self, images: Tensor, fewest: int) -> None:
        """Raise UserError when images are too small for the strides, or a single one too small for batch norm.

        Args:
            fewest: the images that a branch is run on.
        """
        height, width = images.shape[-2:]
        least = self.smallest_input_px
        if min(height, width) < least:
            raise UserError(
                f"images of {height}x{width} px are too small for {self.describe()} (at least {least} px a side); "
                f"pad or resize them to at least {max(height, least)}x{max(width, least)}"
            )
        if self.training and fewest == 1 and max(height, width) <= self.one_value_px:
            larger = "" if self.one_value_px == math.inf else f" or a crop side above {self.one_value_px}"
            raise UserError(
                f"{self.describe()} cannot train on a single image of {height}x{width} px, because its batch norm "
                f"would see one value per channel; set batch_size to at least 2{larger}"
            )

    def describe(self) -> str:
        """Return what messages call this network."""
        return type(self).__name__

    def prepare(self, images: Tensor) -> Tensor:
        """Return what the encoder is fed."""
        return images

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Return a head's (B, C, h, w) output at the (H, W) of the images; cuts off what ``prepare`` added."""
        return crop_maps(maps, size)

    def compute_auxiliary(self, features: Any, decoded: Any, size: torch.Size) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return auxiliary logits from what encoder and segmentation decoder made; asked for in training mode only."""
        return ()


def take_rows(features: Any, rows: int) -> Any:
    """Return the first rows of every tensor in (named) tuples and lists; what is no tensor stays as it is."""
    if isinstance(features, Tensor):
        return features[:rows]
    if not isinstance(features, tuple | list):
        return features
    taken = [take_rows(each, rows) for each in features]
    return type(features)(*taken) if hasattr(features, "_fields") else type(features)(taken)

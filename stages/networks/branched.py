"""The frame of the networks that are an encoder followed by a decoder and a head, once per task."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.interface import Normalisation, Outputs
from stages.networks.parts import Part
from stages.networks.spec import NetworkSpec


class BranchedNetwork(nn.Module):
    """Runs ``encoder`` once, then ``<task>_decoder`` and ``<task>_head`` of each task asked for.

    A subclass sets those attributes, and where its strides need it overrides ``prepare`` and ``restore``.
    """

    aux_weight: float = 0.0
    uncopied: frozenset[str] = frozenset()
    copy_remedy: str = ""
    """Option that gives the decoders something to copy, where this network was built without."""
    spec: NetworkSpec
    num_classes: int
    normalisation: Normalisation

    smallest_input_px: ClassVar[int] = 32
    """Shorter sides are refused: nothing would be left of them in the deepest feature map."""
    one_value_px: int = 0
    """Up to this side the deepest map is one pixel, behind which batch norm cannot train on a single image."""
    tile_grid_px: ClassVar[int] = 32
    """Windows of a tiled image must start on multiples of this to see the pooling grid of the whole image."""
    global_context: ClassVar[bool] = False
    """Whether every pixel sees the whole image, so that tiles can never equal it."""
    rounding_outliers: ClassVar[float] = 0.0
    """Share of logits that another runtime's rounding may move far, because it decides between equal alternatives."""

    encoder: nn.Module
    seg_decoder: nn.Module
    seg_head: nn.Module
    depth_decoder: nn.Module
    depth_head: nn.Module

    def parts(self) -> dict[Part, nn.Module]:
        """Return each part's module; the depth parts are missing when built without them."""
        modules = {part: getattr(self, (part.name or "").lower(), None) for part in Part}
        return {part: module for part, module in modules.items() if module is not None}

    def forward(self, images: Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
        """Run the encoder once and then the branches asked for.

        Args:
            images: (B, 3, H, W), normalised by ``normalisation``.
            seg: whether to compute segmentation logits.
            depth: whether to compute depth; without a depth branch there is none.

        Returns:
            Outputs at the size of the images.

        Raises:
            UserError: when a side is shorter than ``smallest_input_px``, or too short to train on a single image.
        """
        depth = depth and hasattr(self, "depth_head")
        if not torch.compiler.is_exporting():
            self.check_size(images)
        features = self.encoder(self.prepare(images))
        size = images.shape[-2:]
        seg_logits = self.restore(self.seg_head(self.seg_decoder(features)), size) if seg else None
        inverse_depth = self.restore(self.depth_head(self.depth_decoder(features)), size) if depth else None
        return Outputs(
            seg_logits,
            None if inverse_depth is None else inverse_depth.squeeze(1),
            self.compute_auxiliary(features, size) if seg and self.training else (),
        )

    def check_size(self, images: Tensor) -> None:
        """Raise UserError when images are too small for the strides, or a single one too small for batch norm."""
        height, width = images.shape[-2:]
        least = self.smallest_input_px
        if min(height, width) < least:
            raise UserError(
                f"images of {height}x{width} px are too small for {type(self).__name__} (at least {least} px a side); "
                f"pad or resize them to at least {max(height, least)}x{max(width, least)}"
            )
        if self.training and images.shape[0] == 1 and max(height, width) <= self.one_value_px:
            raise UserError(
                f"{type(self).__name__} cannot train on a single image of {height}x{width} px, because its batch norm "
                "would see one value per channel; set batch_size to at least 2 or a crop side above "
                f"{self.one_value_px}"
            )

    def prepare(self, images: Tensor) -> Tensor:
        """Return what the encoder is fed."""
        return images

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Return a head's (B, C, h, w) output at the (H, W) of the images; cuts off what ``prepare`` added."""
        return maps[..., : size[0], : size[1]]

    def compute_auxiliary(self, features: Any, size: torch.Size) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return auxiliary logits; asked for in training mode only."""
        return ()

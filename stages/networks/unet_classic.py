"""The U-Net of 2015 trained from scratch: with batch norm and padding, and as published, without either.

Source: Ronneberger et al. 2015, fig. 1; the padded variant with batch norm is the multi-path feature-fusion paper's
baseline. Differs: depth branch added; the unpadded network mirrors the image's border inside, so that its output has
the input's size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import IMAGENET
from stages.networks.framing import mirror_pad, pad_to_multiple
from stages.networks.interface import Outputs

WIDTH = 64
DEPTH = 5
"""Stages; widths double from each to the next: 64-128-256-512-1024."""
GRID_PX = 16
"""Side of a deepest pixel: 4 poolings."""


class UNetClassic(BranchedNetwork):
    """Contracting path; per task an expanding path, which copies, and a 1×1 head."""

    small_options = ({"width": 8},)

    smallest_input_px = GRID_PX
    one_value_px = GRID_PX
    tile_grid_px = GRID_PX
    padded = True

    def __init__(self, num_classes: int, *, with_depth: bool = True, width: int = WIDTH) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            width: channels of the first stage, ours: 64 is the paper's, less is quicker.

        Raises:
            UserError: for a width that is not possible.
        """
        super().__init__()
        if width < 1:
            raise UserError(f"width {width} is not possible; give at least 1 (the paper has {WIDTH})")
        self.num_classes = num_classes
        self.normalisation = IMAGENET
        self.encoder = ContractingPath(width, padded=self.padded)
        self.seg_decoder = ExpandingPath(width, padded=self.padded)
        self.seg_head = nn.Conv2d(width, num_classes, 1)
        if with_depth:
            self.depth_decoder = ExpandingPath(width, padded=self.padded)
            self.depth_head = nn.Conv2d(width, 1, 1)

    def prepare(self, images: Tensor) -> Tensor:
        """Mirror images up to a multiple of 16 px."""
        return pad_to_multiple(images, GRID_PX)


class UNetValid(UNetClassic):
    """The published U-Net without padding or batch norm: every output pixel comes from real or mirrored pixels only.

    That makes it exact in tiles. 572 px in give 388 px out; ``forward`` mirrors the missing 92 px on each side.
    """

    padded = False
    one_value_px = 0
    valid_border_px = 92
    """What unpadded convolutions cut off on each side; (572 − 388) / 2."""

    def prepare(self, images: Tensor) -> Tensor:
        """Mirror the border by 92 px, and on the right and bottom on to a size that every pooling halves evenly."""
        height, width = images.shape[-2:]
        before = self.valid_border_px
        return mirror_pad(images, before, self.compute_border_after(height), before, self.compute_border_after(width))

    def compute_border_after(self, size: int) -> int:
        """Return how many pixels must follow 92 + ``size`` of them: at least 92, the sum being 12 modulo 16."""
        border = self.valid_border_px
        least = border + size + border
        return border + (least - 12 + GRID_PX - 1) // GRID_PX * GRID_PX + 12 - least

    def forward_valid(self, windows: Tensor, *, seg: bool = True, depth: bool = True) -> Outputs:
        """Run the network as published, on windows that bring their own border.

        Args:
            windows: (B, 3, h, w), each side 12 modulo 16 and at least 188.
            seg: whether to compute segmentation logits.
            depth: whether to compute depth; without a depth branch there is none.

        Returns:
            Outputs 184 px smaller each way: those of the window without its 92 px border.
        """
        features = self.encoder(windows)
        return Outputs(
            self.seg_head(self.seg_decoder(features)) if seg else None,
            self.depth_head(self.depth_decoder(features)).squeeze(1) if depth and self.has_depth else None,
        )


class ContractingPath(nn.Module):
    """Five stages of two 3×3 convolutions, with max pooling between."""

    def __init__(self, width: int, *, padded: bool) -> None:
        super().__init__()
        widths = [3, *(width * 2**stage for stage in range(DEPTH))]
        self.stages = nn.ModuleList(_build_stage(before, after, padded=padded) for before, after in pairwise(widths))
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage, shallowest first."""
        features = [self.stages[0](images)]
        for stage in list(self.stages)[1:]:
            features.append(stage(self.pool(features[-1])))
        return features


class ExpandingPath(nn.Module):
    """Four stages: 2×2 up-convolution that halves the channels, the skip's centre, two 3×3 convolutions."""

    def __init__(self, width: int, *, padded: bool) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in reversed(range(DEPTH - 1))]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in widths)
        self.stages = nn.ModuleList(_build_stage(2 * after, after, padded=padded) for after in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map all stages' outputs to (B, width, h, w) at the finest resolution."""
        *skips, maps = features
        for up, stage, skip in zip(self.ups, self.stages, reversed(skips), strict=True):
            maps = up(maps)
            maps = stage(torch.cat([_crop_centre(skip, maps), maps], 1))
        return maps


def _build_stage(in_channels: int, out_channels: int, *, padded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv2d(channels, out_channels, 3, padding=int(padded), bias=not padded)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # section 3: standard deviation √(2/N)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        layers += [convolution, *([nn.BatchNorm2d(out_channels)] if padded else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _crop_centre(skip: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return skip[..., top : top + height, left : left + width]

"""A network of your own: replace the layers, keep the names of the parts.

pipeline check-network REFERENCE
pipeline run --network REFERENCE --schedule depth-first --copy-weights
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.branched import BranchedNetwork
from stages.networks.interface import Normalisation


class Skeleton(BranchedNetwork):
    """Two scales and a skip.

    BranchedNetwork runs encoder, then decoder and head of each branch that is asked for, and brings a head's output to
    the size of the images. Padding inside, for strides that need it, goes to ``prepare`` and ``restore``.
    """

    smallest_input_px = 8  # images with a shorter side are refused with a message

    # Arguments with defaults are the network's options: `--set network.width=32`, or the keys of a recipe's [network].
    def __init__(self, num_classes: int, *, with_depth: bool = True, width: int = 16) -> None:
        """Build the network; ``width`` is the channels of the first convolution."""
        super().__init__()
        self.num_classes = num_classes
        # Mean and standard deviation of RGB in [0, 1] that images are normalised by.
        self.normalisation = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        # All weights lie in these five parts. First the segmentation, so that the seed gives it the same weights with
        # and without a depth branch; the two decoders are alike, so that one can be copied onto the other.
        self.encoder = Encoder(width)
        self.seg_decoder = Decoder(width)
        self.seg_head = nn.Conv2d(width, num_classes, 1)
        if with_depth:
            self.depth_decoder = Decoder(width)
            self.depth_head = nn.Conv2d(width, 1, 1)


class Encoder(nn.Module):
    """From images (B, 3, H, W) to whatever the decoders take."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = build_block(3, width)
        self.coarse = nn.Sequential(nn.MaxPool2d(4), build_block(width, 2 * width))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps at full and at quarter size."""
        fine = self.fine(images)
        return fine, self.coarse(fine)


class Decoder(nn.Module):
    """From the encoder's maps to what a head takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = build_block(3 * width, width)

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Return (B, width, H, W)."""
        fine, coarse = features
        return self.join(torch.cat([F.interpolate(coarse, fine.shape[-2:], mode="bilinear"), fine], dim=1))


def build_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a convolution with batch norm."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

"""SegNet: VGG16 with batch norm, and a mirrored decoder that unpools to the positions the encoder pooled from.

Source: Badrinarayanan et al. 2017, with the widths of its reference prototxt. Differs: depth branch added.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import IMAGENET
from stages.networks.vgg import WIDTH, build_vgg16_features, load_vgg16

DECODER_WIDTHS = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
"""Output channels of each stage's convolutions, deepest first; the last convolution of all is the head."""


class Pooled(NamedTuple):
    """What the encoder hands on: its end, and where each pool's maxima lay."""

    end: Tensor
    """(B, 512, ⌈H/32⌉, ⌈W/32⌉)."""
    indices: list[Tensor]
    """Per pool, shallowest first: the flat position of each maximum in the map that was pooled."""
    sizes: list[tuple[int, int]]
    """Per pool, shallowest first: (height, width) of the map that was pooled; keeps odd sizes."""


class SegNet(BranchedNetwork):
    """VGG16-BN; per task a decoder of twelve convolutions, which copies, and the last convolution as head.

    Both decoders unpool with the same indices. Of two values that are equal but for rounding, another runtime may take
    the other one's place, which moves every logit that sees it.
    """

    small_options = ({"width": 8, "encoder_weights": "none"},)

    rounding_outliers = 0.02  # measured at full width, 360×480, random weights: 0.006 around the one place that moved

    def __init__(
        self, num_classes: int, *, with_depth: bool = True, encoder_weights: str = "imagenet", width: int = WIDTH
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder_weights: ``imagenet``, ``none``, or a safetensors file of VGG16 with batch norm.
            width: channels of the first stage, ours: 64 is the paper's, less is quicker.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__()
        self.num_classes = num_classes
        self.normalisation = IMAGENET
        features = build_vgg16_features(width=width, batch_norm=True)
        load_vgg16(features, [], encoder_weights)
        self.encoder = SegNetEncoder(features)
        last = DECODER_WIDTHS[-1][-1] * width // WIDTH or 1
        self.seg_decoder = SegNetDecoder(width)
        self.seg_head = _build_convolution(last, num_classes)
        if with_depth:
            self.depth_decoder = SegNetDecoder(width)
            self.depth_head = _build_convolution(last, 1)


class SegNetEncoder(nn.Module):
    """VGG16-BN's features, whose pools remember the positions of their maxima.

    Pools round up as Caffe's do, so that the last row and column of an odd map are pooled and come back.
    """

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Pooled:
        """Map (B, 3, H, W) to the end of stage 5 and the five pools' records."""
        maps, indices, sizes = images, [], []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                sizes.append((maps.shape[-2], maps.shape[-1]))
                maps, positions = F.max_pool2d(maps, 2, ceil_mode=True, return_indices=True)
                indices.append(positions)
            else:
                maps = layer(maps)
        return Pooled(maps, indices, sizes)


class SegNetDecoder(nn.Module):
    """Five stages of unpooling followed by 3×3 convolutions with batch norm and ReLU.

    Args:
        width: channels at the end; 64 is the paper's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = DECODER_WIDTHS[0][0] * width // WIDTH or 1
        for widths in DECODER_WIDTHS:
            layers: list[nn.Module] = []
            for paper_width in widths:
                out_channels = paper_width * width // WIDTH or 1
                layers += [_build_convolution(channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(True)]
                channels = out_channels
            self.stages.append(nn.Sequential(*layers))

    def forward(self, pooled: Pooled) -> Tensor:
        """Return (B, width, H, W) at the size of the images, odd sizes included."""
        maps = pooled.end
        for stage, indices, size in zip(self.stages, reversed(pooled.indices), reversed(pooled.sizes), strict=True):
            maps = stage(F.max_unpool2d(maps, indices, [2, 2], output_size=size))
        return maps


def _build_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # the prototxt's "msra"
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer

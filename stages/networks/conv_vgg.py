"""VGG16 turned convolutional with one bilinear step back to the image: the FCN-8s report's baseline without skips.

Source: the FCN-8s report, ConvolutionalVGGwithUpsample. Differs: depth branch added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import IMAGENET
from stages.networks.fcn import SCORE_STD
from stages.networks.framing import crop_maps, pad_to_multiple, resize_bilinear
from stages.networks.vgg import FC_WIDTH, WIDTH, FullyConvolutional, build_vgg16_features, compute_channels, load_vgg16

STRIDE = 32


class ConvVgg(BranchedNetwork):
    """VGG16 features; per task fc6 7×7 and fc7 1×1 (the decoder, which copies) and a 1×1 score layer (the head)."""

    small_options = ({"width": 8, "fc_width": 16, "encoder_weights": "none"},)

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder_weights: str = "imagenet",
        score_std: float = SCORE_STD,
        width: int = WIDTH,
        fc_width: int = FC_WIDTH,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder_weights: ``imagenet``, ``none``, or a safetensors file of VGG16; its classifier fills fc6 and fc7.
            score_std: as in FCN: practically 0, so that the first loss is ln C.
            width: channels of VGG's first stage, ours: 64 is VGG16, less is quicker.
            fc_width: channels of fc6 and fc7, ours: 4096 is VGG16.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__()
        self.num_classes = num_classes
        self.normalisation = IMAGENET
        self.encoder = build_vgg16_features(width=width)
        self.seg_decoder = FullyConvolutional(compute_channels(width), fc_width, padding=3)
        self.seg_head = _build_score_layer(fc_width, num_classes, score_std)
        copies = [self.seg_decoder]
        if with_depth:
            self.depth_decoder = FullyConvolutional(compute_channels(width), fc_width, padding=3)
            self.depth_head = _build_score_layer(fc_width, 1, score_std)
            copies.append(self.depth_decoder)
        load_vgg16(self.encoder, copies, encoder_weights)

    def prepare(self, images: Tensor) -> Tensor:
        """Mirror images up to a multiple of 32 px."""
        return pad_to_multiple(images, STRIDE)

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Upsample the scores 32 times and cut off what was mirrored."""
        padded = (STRIDE * maps.shape[-2], STRIDE * maps.shape[-1])
        return crop_maps(resize_bilinear(maps, padded), size)


def _build_score_layer(in_channels: int, num_channels: int, std: float) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, num_channels, 1)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer

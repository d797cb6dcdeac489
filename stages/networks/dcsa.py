"""A convolutional encoder with deformable-convolution self-attention (DCSA) inside, a 1×1 head and bilinear upsampling.

Source: the DCSA paper, ResNet with deformable-convolution self-attention. Differs: depth branch and optional U-Net
decoders added; encoders other than ResNet, which the paper allows in a sentence, are VGG and MobileNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.branched import BranchedNetwork
from stages.networks.deformable_attention import (
    AttentionOptions,
    Gate,
    Place,
    check_attention_options,
    insert_attention,
)
from stages.networks.dilated_encoder import build_encoder
from stages.networks.encoders import find_normalisation
from stages.networks.framing import resize_bilinear

Decoder = Literal["none", "unet"]
_SMALL_ENCODER = {"encoder": "tu-resnet10t", "encoder_weights": "none"}


class DeepestFeature(nn.Module):
    """Stands where a decoder would be and has no weights: hands on the deepest feature map."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the last of the maps."""
        return features[-1]


class DcsaNetwork(BranchedNetwork):
    """Encoder with attention modules, and per task a 1×1 convolution whose output is enlarged bilinearly.

    As in the paper there is no decoder, so nothing but the head belongs to a task. The decoder parts exist, so that
    every phase can be run, but have no weights, and copying one is refused. ``decoder = "unet"`` gives each task a
    U-Net decoder, which can be copied.
    """

    small_options = (
        {"reduction": 8, "output_stride": 16, "modulated": True, **_SMALL_ENCODER},
        {
            "reduction": 8,
            "decoder": "unet",
            "decoder_channels": [16, 16, 8, 8, 8],
            **_SMALL_ENCODER,
            "encoder": "resnet18",
        },
    )

    global_context = True

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder: str = "resnet50",
        encoder_weights: str = "imagenet",
        output_stride: int = 8,
        place: Place = "inside",
        gate: Gate = "spatial",
        reduction: int | None = None,
        modulated: bool = False,
        scale_attention: bool = False,
        gain: float = 1.0,
        decoder: Decoder = "none",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder: a ResNet, VGG or MobileNet of smp, or with ``tu-`` in front of timm.
            encoder_weights: ``imagenet``, ``none``, or the path of a safetensors file of the encoder without attention.
            output_stride: 8, 16 or 32; VGG cannot be dilated and has 32.
            place: ``inside`` every block, or ``after_stage``; ``none`` leaves the attention out, for comparison.
            gate: ``spatial`` (one map) or ``elementwise`` (a map per channel, with reduction 1).
            reduction: Query and Value have 1/reduction of the channels; by default 2 inside, 4 after a stage, and 1 for
                the elementwise gate.
            modulated: deformable convolutions of version 2, which also scale their taps.
            scale_attention: multiplies the softmax weights by their number.
            gain: factor on each module's output; 2 makes up for gates that start at one half.
            decoder: ``none`` as in the paper, or ``unet``. Ours.
            decoder_channels: of the U-Net decoder, deepest first.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__()
        self.num_classes = num_classes
        self.normalisation = find_normalisation(encoder, encoder_weights)
        self.one_value_px = output_stride
        if reduction is None:
            reduction = 1 if gate == "elementwise" else 2 if place == "inside" else 4  # 4 keeps wide stages affordable
        check_attention_options(gate, reduction)
        self.encoder = build_encoder(encoder, encoder_weights, output_stride=output_stride)
        options = AttentionOptions(reduction, gate, modulated, scale_attention, gain)
        self.fresh_in_encoder = insert_attention(self.encoder, encoder, place, options)
        channels: Sequence[int] = self.encoder.out_channels  # type: ignore[assignment]
        self.seg_decoder = _build_decoder(decoder, channels, decoder_channels)
        self.seg_head = _build_head(decoder, channels, decoder_channels, num_classes)
        if with_depth:
            self.depth_decoder = _build_decoder(decoder, channels, decoder_channels)
            self.depth_head = _build_head(decoder, channels, decoder_channels, 1)

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Enlarge a head's output to the size of the images."""
        return resize_bilinear(maps, size)


def _build_decoder(decoder: Decoder, channels: Sequence[int], decoder_channels: Sequence[int]) -> nn.Module:
    if decoder == "none":
        return DeepestFeature()
    stages = len(channels) - 1
    if len(decoder_channels) != stages or min(decoder_channels) < 1:
        raise UserError(
            f"decoder_channels {list(decoder_channels)} are not possible; give {stages} positive numbers, deepest "
            "first, for example [256, 128, 64, 32, 16]"
        )
    built = UnetDecoder(channels, decoder_channels, n_blocks=stages)
    initialize_decoder(built)
    return built


def _build_head(
    decoder: Decoder, channels: Sequence[int], decoder_channels: Sequence[int], num_channels: int
) -> nn.Module:
    if decoder == "none":
        head = nn.Conv2d(channels[-1], num_channels, 1)
    else:
        head = SegmentationHead(decoder_channels[-1], num_channels, kernel_size=3)
    initialize_head(head)
    return head

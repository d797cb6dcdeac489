"""PSPNet: a dilated encoder, its deepest map pooled at four scales, an optional auxiliary head while training.

Source: Zhao et al. 2017 (smp's class of that name pools the stride-8 map of a shallower encoder instead). Differs:
depth branch added; batch norm of the 1×1 pool takes its running statistics for a batch of one (smp leaves it out there,
which is 1,024 parameters less; kept, every larger batch computes what the paper's network does).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from data_cache.errors import Notice, UserError
from stages.networks.atrous import build_conv
from stages.networks.branched import BranchedNetwork
from stages.networks.dilated_encoder import build_encoder
from stages.networks.encoders import find_normalisation
from stages.networks.framing import resize_bilinear

BINS = (1, 2, 3, 6)  # section 3.1
DECODER_CHANNELS = 512  # reference code
DROPOUT = 0.1  # the same
AUX_WEIGHT = 0.4  # section 3.2
AUX_REDUCTION = 4  # reference code: the auxiliary head has a quarter of its input's channels
EFFECTIVE_PX = 500
"""Below this side the pyramid has little to pool. Source: the segmentation lecture, slide on PSPNet."""


class PspNet(BranchedNetwork):
    """Dilated encoder; per task pyramid pooling and a 3×3 bottleneck (the decoder, which copies) and a 1×1 head.

    The auxiliary head belongs to the segmentation head and is run in training mode only.
    """

    small_options = ({"encoder": "resnet18", "decoder_channels": 16, "encoder_weights": "none", "aux": True},)

    global_context = True

    seg_head: PspHead

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder: str = "resnet50",
        encoder_weights: str = "imagenet",
        output_stride: int = 8,
        decoder_channels: int = DECODER_CHANNELS,
        aux: bool = False,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder: smp's name, or ``tu-`` and a timm name; the paper's is a ResNet.
            encoder_weights: ``imagenet`` (or another published set), ``none``, or the path of a safetensors file.
            output_stride: to which the encoder is dilated: 8 as in the paper, 16 or 32.
            decoder_channels: of the bottleneck, ours: 512 is the paper's, less is quicker.
            aux: whether an auxiliary head on the last stage but one is trained along.

        Raises:
            UserError: for an encoder that cannot be dilated, values that are not possible, weights that cannot be had.
        """
        super().__init__()
        if decoder_channels < 1:
            raise UserError(f"decoder_channels {decoder_channels} is not possible; the paper has {DECODER_CHANNELS}")
        self.num_classes = num_classes
        self.normalisation = find_normalisation(encoder, encoder_weights)
        self.aux_weight = AUX_WEIGHT if aux else 0.0
        self.one_value_px = output_stride
        self.encoder = build_encoder(encoder, encoder_weights, output_stride=output_stride)
        stage3, stage4 = self.encoder.out_channels[-2:]  # type: ignore[index]
        self.seg_decoder = PyramidPooling(stage4, decoder_channels)
        self.seg_head = PspHead(decoder_channels, num_classes, aux_in_channels=stage3 if aux else None)
        if with_depth:
            self.depth_decoder = PyramidPooling(stage4, decoder_channels)
            self.depth_head = PspHead(decoder_channels, 1, aux_in_channels=None)

    def prepare(self, images: Tensor) -> Tensor:
        """Warn about images too small for a pyramid to help; they are used as they are."""
        height, width = images.shape[-2:]
        if not torch.compiler.is_compiling() and min(height, width) < EFFECTIVE_PX:
            warnings.warn(
                f"PSPNet's pyramid is effective from {EFFECTIVE_PX}x{EFFECTIVE_PX} px; these images have "
                f"{height}x{width}. Use larger images or crops, or another network",
                Notice,
                stacklevel=2,
            )
        return images

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Upsample a head's output to the images."""
        return resize_bilinear(maps, (size[0], size[1]))

    def compute_auxiliary(self, features: list[Tensor], decoded: Tensor, size: torch.Size) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return the auxiliary logits, if there is such a head."""
        if self.seg_head.aux is None:
            return ()
        return (self.restore(self.seg_head.aux(features[-2]), size),)


class PyramidPooling(nn.Module):
    """The deepest map beside its averages over 1, 2×2, 3×3 and 6×6 regions, fused by a 3×3 convolution.

    Args:
        in_channels: of the deepest map.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        branch_channels = in_channels // len(BINS)
        self.branches = nn.ModuleList(build_conv(in_channels, branch_channels, pooled=bins == 1) for bins in BINS)
        concatenated = in_channels + len(BINS) * branch_channels
        self.bottleneck = nn.Sequential(build_conv(concatenated, out_channels, 3), nn.Dropout2d(DROPOUT))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features to (B, out_channels, h, w) at the size of the deepest."""
        deepest = features[-1]
        size = (deepest.shape[-2], deepest.shape[-1])
        pooled = [
            resize_bilinear(branch(pool_regions(deepest, bins)), size)
            for branch, bins in zip(self.branches, BINS, strict=True)
        ]
        return self.bottleneck(torch.cat([deepest, *pooled], 1))


class PspHead(nn.Module):
    """The 1×1 score layer and, for segmentation if asked for, the auxiliary head."""

    def __init__(self, in_channels: int, num_channels: int, *, aux_in_channels: int | None) -> None:
        super().__init__()
        self.score = nn.Conv2d(in_channels, num_channels, 1)
        self.aux = None
        if aux_in_channels is not None:
            hidden = aux_in_channels // AUX_REDUCTION
            self.aux = nn.Sequential(
                build_conv(aux_in_channels, hidden, 3), nn.Dropout2d(DROPOUT), nn.Conv2d(hidden, num_channels, 1)
            )

    def forward(self, fused: Tensor) -> Tensor:
        """Return the scores; the auxiliary head is called by the network."""
        return self.score(fused)


def pool_regions(maps: Tensor, bins: int) -> Tensor:
    """Average (B, C, h, w) over bins×bins regions; equals ``F.adaptive_avg_pool2d`` and can be exported at any size.

    Two matrix products with 0/1 rows that are made from the shape: exporters turn adaptive pooling with a dynamic size
    into something that is silently wrong at other sizes (torch 2.15).
    """
    height, width = maps.shape[-2:]
    rows, columns = (_region_membership(size, bins, maps) for size in (height, width))
    sums = rows @ maps @ columns.mT
    return sums / (rows.sum(1)[:, None] * columns.sum(1))


def _region_membership(size: int, bins: int, like: Tensor) -> Tensor:
    """Return (bins, size): 1 where region i, from ⌊i·size/bins⌋ to before ⌈(i+1)·size/bins⌉, holds the position."""
    positions = torch.arange(size, device=like.device)
    region = torch.arange(bins, device=like.device)[:, None]
    starts = region * size // bins
    ends = ((region + 1) * size + bins - 1) // bins
    return ((positions >= starts) & (positions < ends)).to(like.dtype)

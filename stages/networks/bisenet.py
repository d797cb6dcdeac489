"""BiSeNet on ResNet18, and the same with multi-path feature fusion (MFF), each with a depth branch.

Source: Yu et al. 2018, figure 2, in the shape of CoinCheung's implementation, whose weight counts these meet; Park and
Heo 2021 for the fusion. Differs: depth branch added; where the fusion's features enter, the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from stages.networks.atrous import ChannelGate, MultiRateBranch, build_conv, check_width, pool_globally
from stages.networks.branched import BranchedNetwork
from stages.networks.dilated_encoder import build_encoder
from stages.networks.encoders import find_normalisation
from stages.networks.framing import resize_bilinear


class TwoPaths(NamedTuple):
    """What both branches read: the spatial path at 1/8 of the image, the context path at 1/8, 1/16 and 1/32."""

    spatial: Tensor
    context8: Tensor
    context16: Tensor
    context32: Tensor


class Fused(NamedTuple):
    """What the heads read."""

    features: Tensor
    """(B, 2·width, H/8, W/8)."""
    context8: Tensor
    """(B, width, H/8, W/8), for the first auxiliary head."""
    context16: Tensor
    """(B, width, H/16, W/16), for the second."""


class FusionBranches(NamedTuple):
    """Which stages of the context path the feature fusion also reads; see the arguments of ``BiSeNetMff``."""

    entry: bool = False
    middle: bool = False
    dilated: bool = True
    rates: Sequence[int] = (3, 6, 9)  # Park & Heo 2021, section 3


class TwoPathEncoder(nn.Module):
    """A backbone with small features, and beside it three strided convolutions that keep detail.

    Source: Yu et al. 2018, figure 2a.
    """

    def __init__(self, encoder: str, encoder_weights: str, width: int) -> None:
        super().__init__()
        self.context_path = build_encoder(encoder, encoder_weights)
        self.spatial_path = nn.Sequential(
            build_conv(3, width // 2, 7, stride=2),
            build_conv(width // 2, width // 2, 3, stride=2),
            build_conv(width // 2, width // 2, 3, stride=2),
            build_conv(width // 2, width),
        )
        initialize_decoder(self.spatial_path)
        self.context_channels: tuple[int, ...] = tuple(self.context_path.out_channels[3:])  # type: ignore[index]

    def forward(self, images: Tensor) -> TwoPaths:
        """Map (B, 3, H, W) to both paths."""
        return TwoPaths(self.spatial_path(images), *self.context_path(images)[3:])


class AttentionRefinement(nn.Module):
    """3×3 convolution whose channels are then multiplied by weights. Source: Yu et al. 2018, figure 2b."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = build_conv(in_channels, out_channels, 3)
        self.gate = ChannelGate(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w)."""
        features = self.conv(features)
        return features * self.gate(features)


class FeatureFusion(nn.Module):
    """Concatenation, 1×1 convolution, channel weights with a skip. Source: Yu et al. 2018, figure 2c."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = build_conv(in_channels, out_channels)
        self.gate = ChannelGate(out_channels)

    def forward(self, *features: Tensor) -> Tensor:
        """Map maps of one size to (B, out, h, w)."""
        fused = self.conv(torch.cat(features, dim=1))
        return fused * self.gate(fused) + fused


class BiSeNetDecoder(nn.Module):
    """Refines the context path from 1/32 to 1/8, fuses it with the spatial path and the branches, and convolves 3×3."""

    def __init__(self, context_channels: Sequence[int], width: int, branches: FusionBranches) -> None:
        super().__init__()
        channels8, channels16, channels32 = context_channels
        self.pooled = build_conv(channels32, width, pooled=True)
        self.refine32 = AttentionRefinement(channels32, width)
        self.refine16 = AttentionRefinement(channels16, width)
        self.smooth32 = build_conv(width, width, 3)
        self.smooth16 = build_conv(width, width, 3)
        self.entry = _build_branch(channels8, width, branches) if branches.entry else None
        self.middle = _build_branch(channels16, width, branches) if branches.middle else None
        self.fuse = FeatureFusion((2 + branches.entry + branches.middle) * width, 2 * width)
        self.convolve = build_conv(2 * width, 2 * width, 3)
        initialize_decoder(self)

    def forward(self, paths: TwoPaths) -> Fused:
        """Return what the heads read."""
        # "nearest" as in CoinCheung's, by size instead of factor so that odd sizes fit. The spatial path sets the size:
        # it keeps ceil(H/8), and so does a ResNet, but VGG and others round down.
        size = paths.spatial.shape[-2:]
        deep = self.refine32(paths.context32) + self.pooled(pool_globally(paths.context32))
        deep = self.smooth32(F.interpolate(deep, size=paths.context16.shape[-2:], mode="nearest"))
        context = self.refine16(paths.context16) + deep
        context = self.smooth16(F.interpolate(context, size=size, mode="nearest"))
        maps = [paths.spatial, context]
        if self.entry is not None:
            maps.append(resize_bilinear(self.entry(paths.context8), size))
        if self.middle is not None:
            maps.append(resize_bilinear(self.middle(paths.context16), size))
        return Fused(self.convolve(self.fuse(*maps)), context, deep)


class BiSeNetHead(nn.Module):
    """1×1 convolution on the fused features; with ``auxiliary`` also two heads on the context path, for training.

    Source: CoinCheung's BiSeNetOutput: the auxiliary heads have a 3×3 convolution of half the width.
    """

    def __init__(self, width: int, num_channels: int, *, auxiliary: bool) -> None:
        super().__init__()
        self.classify = nn.Conv2d(2 * width, num_channels, 1)
        initialize_head(self.classify)
        self.auxiliary = nn.ModuleList()
        for _ in range(2 if auxiliary else 0):
            convolve, classify = build_conv(width, width // 2, 3), nn.Conv2d(width // 2, num_channels, 1)
            initialize_decoder(convolve)
            initialize_head(classify)
            self.auxiliary.append(nn.Sequential(convolve, classify))

    def forward(self, fused: Fused) -> Tensor:
        """Return the main output (B, C, H/8, W/8)."""
        return self.classify(fused.features)

    def compute_auxiliary(self, fused: Fused) -> list[Tensor]:
        """Return the outputs of the auxiliary heads at 1/8 and 1/16; none when built without them."""
        return [head(maps) for head, maps in zip(self.auxiliary, (fused.context8, fused.context16), strict=False)]


class _BiSeNet(BranchedNetwork):
    """What both networks below are; they differ in their branches alone.

    The auxiliary heads are part of the segmentation head and run in training mode only. Any size works: the paths are
    resized to each other and the logits to the image. A batch of one trains, because the norms behind a global pooling
    then use their running statistics (``PooledBatchNorm2d``).
    """

    small_options = ({"width": 16, "encoder": "tu-resnet10t", "encoder_weights": "none"},)

    global_context = True
    one_value_px = 32

    seg_head: BiSeNetHead

    def __init__(
        self,
        num_classes: int,
        with_depth: bool,
        branches: FusionBranches,
        *,
        encoder: str,
        encoder_weights: str,
        width: int,
        auxiliary: bool,
    ) -> None:
        super().__init__()
        check_width("width", width, multiple=2)
        self.num_classes = num_classes
        self.normalisation = find_normalisation(encoder, encoder_weights)
        self.aux_weight = 1.0 if auxiliary else 0.0  # CoinCheung's loss: main + both auxiliary
        paths = TwoPathEncoder(encoder, encoder_weights, width)
        self.encoder = paths
        self.fresh_in_encoder = ("spatial_path",)
        self.seg_decoder = BiSeNetDecoder(paths.context_channels, width, branches)
        self.seg_head = BiSeNetHead(width, num_classes, auxiliary=auxiliary)
        if with_depth:
            self.depth_decoder = BiSeNetDecoder(paths.context_channels, width, branches)
            self.depth_head = BiSeNetHead(width, 1, auxiliary=False)

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Enlarge a head's output to the size of the images."""
        return resize_bilinear(maps, size)

    def compute_auxiliary(self, features: TwoPaths, decoded: Fused, size: torch.Size) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return the logits of the auxiliary heads."""
        return tuple(resize_bilinear(logits, size) for logits in self.seg_head.compute_auxiliary(decoded))


class BiSeNet(_BiSeNet):
    """Two-path real-time segmentation network with a depth decoder on the same two paths.

    Source: Yu et al. 2018, figure 2. Differs: depth branch added.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder: str = "resnet18",
        encoder_weights: str = "imagenet",
        width: int = 128,
        auxiliary: bool = True,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder: ``resnet18`` (the paper's); ours: any encoder of smp with five stages.
            encoder_weights: ``imagenet``, ``none``, or the path of a safetensors file.
            width: channels of the context path, even; the spatial path has half as many inside and the fusion twice as
                many. Ours: the reference has 128.
            auxiliary: whether to build the two heads that only training uses.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__(
            num_classes,
            with_depth,
            FusionBranches(),
            encoder=encoder,
            encoder_weights=encoder_weights,
            width=width,
            auxiliary=auxiliary,
        )


class BiSeNetMff(_BiSeNet):
    """BiSeNet whose feature fusion also reads multi-rate branches of the context path at 1/8 and 1/16.

    Source: Park & Heo 2021, table 3. Differs: the paper says nothing of where the branches go; here they join the input
    of the feature fusion module, and the deepest stage keeps its own module as the exit flow keeps ASPP in DeepLab.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        entry: bool = True,
        middle: bool = True,
        dilated: bool = True,
        branch_rates: Sequence[int] = (3, 6, 9),
        encoder: str = "resnet18",
        encoder_weights: str = "imagenet",
        width: int = 128,
        auxiliary: bool = True,
    ) -> None:
        """Build the network; the options not named here are those of ``BiSeNet``.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            entry: whether there is a branch on the stage at 1/8.
            middle: whether there is a branch on the stage at 1/16.
            dilated: False puts 1×1 convolutions in the place of the branches.
            branch_rates: dilation in the branches.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__(
            num_classes,
            with_depth,
            FusionBranches(entry, middle, dilated, branch_rates),
            encoder=encoder,
            encoder_weights=encoder_weights,
            width=width,
            auxiliary=auxiliary,
        )


def _build_branch(in_channels: int, width: int, branches: FusionBranches) -> nn.Module:
    if not branches.dilated:
        return build_conv(in_channels, width)
    return MultiRateBranch(in_channels, width, branches.rates)

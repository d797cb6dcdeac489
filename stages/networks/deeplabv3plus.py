"""DeepLabV3+ on Xception65, and the same with multi-path feature fusion (MFF), each with a depth branch.

Source: Chen et al. 2018; Park & Heo 2021 for the fusion. Differs: depth branch added; the inside of a fusion branch,
which the paper leaves open, is three 3×3 convolutions and a 1×1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.atrous import MultiRateBranch, build_atrous_pyramid, build_conv, check_width
from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import find_normalisation
from stages.networks.framing import resize_bilinear
from stages.networks.xception import TapChannels, Taps, build_tapped_encoder, choose_stride_plan

RATES = (6, 12, 18)  # Chen et al. 2018, section 4, for a deepest map at 1/16
RATES_AT_8 = (12, 24, 36)  # the same, for 1/8


class BackboneChoice(NamedTuple):
    """Which encoder; see the arguments of ``DeepLabV3Plus``."""

    encoder: str
    encoder_weights: str
    stride_plan: str
    low_level_channels: int


class Paths(NamedTuple):
    """What the convolutions of the decoder read."""

    low_level: Tensor
    maps: tuple[Tensor, ...]
    """Fusion branches and pyramid, each at its own resolution."""


class FusionPlan(NamedTuple):
    """Which paths there are and what they are made of; see the arguments of ``DeepLabV3PlusMff``."""

    width: int
    rates: Sequence[int]
    """Empty for those that belong to the stride plan."""
    entry: bool = False
    middle: bool = False
    dilated: bool = True
    branch_rates: Sequence[int] = (3, 6, 9)  # Park & Heo 2021, section 3
    with_1x1: bool = False
    with_pool: bool = False
    separable: bool = False

    @property
    def num_paths(self) -> int:
        """Number of maps that are concatenated to the low-level feature."""
        return self.entry + self.middle + 1


class PathFusion(nn.Module):
    """A path for each tap: multi-rate branches on entry and middle flow, the atrous pyramid on the exit flow.

    Without dilation all of them are 1×1 convolutions, the pyramid too: "at each level" says the paper of its figure 7.
    """

    def __init__(self, channels: TapChannels, plan: FusionPlan) -> None:
        super().__init__()
        self.entry = _build_branch(channels.entry, plan) if plan.entry else None
        self.middle = _build_branch(channels.middle, plan) if plan.middle else None
        self.exit = (
            build_atrous_pyramid(channels.exit, plan.width, plan.rates)
            if plan.dilated
            else build_conv(channels.exit, plan.width)
        )
        initialize_decoder(self)

    def forward(self, taps: Taps) -> Paths:
        """Run every path at the resolution of its tap."""
        maps = [] if self.entry is None else [self.entry(taps.entry)]
        if self.middle is not None:
            maps.append(self.middle(taps.middle))
        return Paths(taps.low_level, (*maps, self.exit(taps.exit)))


class SharedFusionEncoder(nn.Module):
    """The backbone together with paths that both tasks use."""

    def __init__(self, backbone: nn.Module, fusion: PathFusion) -> None:
        super().__init__()
        self.backbone = backbone
        self.fusion = fusion

    def forward(self, images: Tensor) -> Paths:
        """Map (B, 3, H, W) to the paths."""
        return self.fusion(self.backbone(images))


class DeepLabDecoder(nn.Module):
    """Brings all paths to the size of the low-level feature, concatenates them, refines with two 3×3 convolutions.

    Args:
        low_level_channels: channels of the low-level tap.
        low_level_width: to which a 1×1 convolution reduces them.
        plan: the width and number of the paths.
        fusion: the paths of this decoder; None when they are shared and it is given ``Paths``.
    """

    def __init__(
        self, low_level_channels: int, low_level_width: int, plan: FusionPlan, fusion: PathFusion | None
    ) -> None:
        super().__init__()
        self.reduce = build_conv(low_level_channels, low_level_width)
        self.in_channels = low_level_width + plan.num_paths * plan.width
        self.refine = nn.Sequential(
            build_conv(self.in_channels, plan.width, 3),
            nn.Dropout(0.5),  # this and the next as in jfzhang95's DeepLab, whose weight counts these meet
            build_conv(plan.width, plan.width, 3),
            nn.Dropout(0.1),
        )
        initialize_decoder(self)
        self.fusion = fusion

    def forward(self, features: Any) -> Tensor:
        """Map ``Taps``, or ``Paths`` where they are shared, to (B, width, H/4, W/4)."""
        paths: Paths = features if self.fusion is None else self.fusion(features)
        low_level = self.reduce(paths.low_level)
        size = low_level.shape[-2:]
        return self.refine(torch.cat([low_level, *(resize_bilinear(each, size) for each in paths.maps)], dim=1))


class _DeepLab(BranchedNetwork):
    """What both networks below are; they differ in their plan alone.

    Any size works: paths are resized to the low-level feature, logits to the image. A batch of one trains, because the
    norm behind the pyramid's image pooling then uses its running statistics (``PooledBatchNorm2d``).
    """

    global_context = True

    def __init__(
        self,
        num_classes: int,
        with_depth: bool,
        choice: BackboneChoice,
        plan: FusionPlan,
        *,
        low_level_width: int,
        share_aspp: bool,
    ) -> None:
        super().__init__()
        check_width("width", plan.width)
        check_width("low_level_width", low_level_width)
        _check_branch_options(plan)
        self.num_classes = num_classes
        self.normalisation = find_normalisation(choice.encoder, choice.encoder_weights)
        stride_plan = choose_stride_plan(choice.encoder, choice.encoder_weights, choice.stride_plan)
        if not plan.rates:
            plan = plan._replace(rates=RATES_AT_8 if stride_plan == "os8" else RATES)
        backbone = build_tapped_encoder(**choice._replace(stride_plan=stride_plan)._asdict())
        channels: TapChannels = backbone.channels
        self.encoder = SharedFusionEncoder(backbone, PathFusion(channels, plan)) if share_aspp else backbone
        self.fresh_in_encoder = ("fusion",) if share_aspp else ()

        def build_decoder() -> DeepLabDecoder:
            fusion = None if share_aspp else PathFusion(channels, plan)
            return DeepLabDecoder(channels.low_level, low_level_width, plan, fusion)

        self.seg_decoder = build_decoder()
        self.seg_head = _build_head(plan.width, num_classes)
        if with_depth:
            self.depth_decoder = build_decoder()
            self.depth_head = _build_head(plan.width, 1)

    @staticmethod
    def settle_options(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that follow from others; ``auto`` strides follow from whether weights are pretrained."""
        encoder, weights = options["encoder"], options["encoder_weights"]
        return {"stride_plan": choose_stride_plan(encoder, weights, options["stride_plan"])}

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Enlarge a head's output fourfold, to the size of the images."""
        return resize_bilinear(maps, size)


class DeepLabV3Plus(_DeepLab):
    """Xception65 with low-level feature, atrous pyramid and the DeepLabV3+ decoder, once per task.

    Source: Chen et al. 2018, with the plain convolutions of jfzhang95's implementation, which the paper of the fusion
    trained by. Differs: depth branch added.
    """

    small_options = ({"width": 8, "low_level_width": 4, "encoder": "tu-resnet10t", "encoder_weights": "none"},)

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder: str = "tu-xception65",
        encoder_weights: str = "imagenet",
        stride_plan: str = "auto",
        low_level_channels: int = 256,
        low_level_width: int = 48,
        width: int = 256,
        rates: Sequence[int] | None = None,
        share_aspp: bool = False,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder: ``tu-xception65`` (the paper's), 41 or 71; ours: any encoder of smp that can be dilated.
            encoder_weights: ``imagenet``, ``none``, or the path of a safetensors file.
            stride_plan: key of ``STRIDE_PLANS``; ``auto`` is ``8-8-16-b`` with pretrained weights and ``8-8-16-a``
                without, and ``os16`` for encoders other than Xception.
            low_level_channels: 256 (TensorFlow's and timm's tap) or 128 (the NVIDIA lineage's), for Xceptions.
            low_level_width: channels of the low-level feature after its 1×1 convolution.
            width: channels of every path and of the decoder. Ours: the paper has 256.
            rates: dilation in the atrous pyramid; by default 6, 12, 18, and 12, 24, 36 at stride plan ``os8``.
            share_aspp: whether both tasks share the pyramid, which then belongs to the encoder.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__(
            num_classes,
            with_depth,
            BackboneChoice(encoder, encoder_weights, stride_plan, low_level_channels),
            FusionPlan(width, rates or ()),
            low_level_width=low_level_width,
            share_aspp=share_aspp,
        )


class DeepLabV3PlusMff(_DeepLab):
    """DeepLabV3+ whose decoder also reads multi-rate branches of the entry and middle flow.

    Source: Park & Heo 2021, equations 1 and 2: 48 + 3·256 = 816 channels at a quarter of the image.
    """

    small_options = ({"width": 8, "share_aspp": True, "encoder": "resnet18", "encoder_weights": "none"},)

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        entry: bool = True,
        middle: bool = True,
        dilated: bool = True,
        branch_rates: Sequence[int] = (3, 6, 9),
        with_1x1: bool = False,
        with_pool: bool = False,
        separable: bool = False,
        encoder: str = "tu-xception65",
        encoder_weights: str = "imagenet",
        stride_plan: str = "auto",
        low_level_channels: int = 256,
        low_level_width: int = 48,
        width: int = 256,
        rates: Sequence[int] | None = None,
        share_aspp: bool = False,
    ) -> None:
        """Build the network; the options not named here are those of ``DeepLabV3Plus``.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            entry: whether there is a branch on the entry flow (table 1 of the paper).
            middle: whether there is a branch on the middle flow.
            dilated: False puts 1×1 convolutions in the place of all branches and of the pyramid (table 2, figure 7).
            branch_rates: dilation in the branches.
            with_1x1: also a 1×1 convolution in each branch. Ours.
            with_pool: also an image pooling in each branch. Ours.
            separable: depthwise-separable convolutions in the branches. Ours.
            share_aspp: whether both tasks share pyramid and branches, which then belong to the encoder.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__(
            num_classes,
            with_depth,
            BackboneChoice(encoder, encoder_weights, stride_plan, low_level_channels),
            FusionPlan(width, rates or (), entry, middle, dilated, branch_rates, with_1x1, with_pool, separable),
            low_level_width=low_level_width,
            share_aspp=share_aspp,
        )


def _check_branch_options(plan: FusionPlan) -> None:
    idle = [option for option in ("with_1x1", "with_pool", "separable") if getattr(plan, option)]
    if idle and not plan.dilated:
        raise UserError(f"with dilated = false a branch is one 1×1 convolution; drop {', '.join(idle)}")


def _build_branch(in_channels: int, plan: FusionPlan) -> nn.Module:
    if not plan.dilated:
        return build_conv(in_channels, plan.width)
    return MultiRateBranch(
        in_channels,
        plan.width,
        plan.branch_rates,
        with_1x1=plan.with_1x1,
        with_pool=plan.with_pool,
        separable=plan.separable,
    )


def _build_head(width: int, num_channels: int) -> nn.Conv2d:
    head = nn.Conv2d(width, num_channels, 1)
    initialize_head(head)
    return head

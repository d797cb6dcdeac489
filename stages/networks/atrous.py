"""Blocks of the multi-scale networks: convolution with norm, atrous pyramid, multi-rate branch, channel attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPPSeparableConv
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, ASPPConv

from data_cache.errors import UserError
from data_cache.ranks import world_size
from stages.networks.framing import resize_bilinear


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm behind a global pooling, which leaves one value per image and channel.

    A batch of one has then no variance, and torch's batch norm refuses it. Here such a batch is normalised by the
    running statistics, as in evaluation mode, and does not move them; weight and bias learn as ever. Larger batches,
    names and number of weights are those of ``nn.BatchNorm2d``.
    """

    def forward(self, pooled: Tensor) -> Tensor:
        """Normalise (B, C, 1, 1)."""
        if self.training and pooled.shape[0] == 1 and world_size() == 1:  # of several ranks each brings one
            return F.batch_norm(pooled, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(pooled)


def build_conv(
    in_channels: int, out_channels: int, kernel_px: int = 1, *, stride: int = 1, pooled: bool = False
) -> nn.Sequential:
    """Build convolution without bias, batch norm, ReLU; an odd kernel keeps ceil(size / stride).

    Args:
        in_channels: channels it reads.
        out_channels: channels it makes.
        kernel_px: side of the kernel, odd.
        stride: of the convolution.
        pooled: whether the input is one value per channel (see ``PooledBatchNorm2d``).
    """
    norm = PooledBatchNorm2d if pooled else nn.BatchNorm2d
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_px, stride=stride, padding=kernel_px // 2, bias=False),
        norm(out_channels),
        nn.ReLU(),
    )


def pool_globally(features: Tensor) -> Tensor:
    """Return (B, C, 1, 1), the mean over rows and columns; unlike adaptive pooling it exports for every size."""
    return features.mean((-2, -1), keepdim=True)


class ImagePooling(nn.Sequential):
    """Global mean, 1×1 convolution, norm, ReLU, spread over the map again."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(*build_conv(in_channels, out_channels, pooled=True))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w), the same value everywhere."""
        pooled = super().forward(pool_globally(features))
        return pooled.expand(-1, -1, *features.shape[-2:])


def build_atrous_pyramid(in_channels: int, out_channels: int, rates: Sequence[int] = (6, 12, 18)) -> nn.Module:
    """Build DeepLab's atrous spatial pyramid: 1×1, 3×3 at each rate, image pooling; concat, 1×1, dropout 0.5.

    It is torchvision's, whose pooling branch is replaced by one that trains on a batch of one.

    Args:
        in_channels: channels of the encoder's deepest map.
        out_channels: of every branch and of the result.
        rates: dilation of the 3×3 convolutions; three of them.

    Source: Chen et al. 2018, section 3; 15,535,104 weights for 2048 → 256.
    """
    pyramid = ASPP(in_channels, check_rates("rates", rates), out_channels)
    pyramid.convs[-1] = ImagePooling(in_channels, out_channels)
    return pyramid


class MultiRateBranch(nn.Module):
    """One path of the multi-path feature fusion: parallel 3×3 convolutions of several rates, concat, 1×1.

    At rates 3, 6, 9 the receptive fields are 7, 13 and 19 px of the map.

    Args:
        in_channels: channels of the encoder stage it reads.
        out_channels: of every convolution and of the result.
        rates: dilation of the 3×3 convolutions.
        with_1x1: also a 1×1 convolution beside them. Ours: the paper lists none here.
        with_pool: also an image pooling. Ours: the paper lists none here.
        separable: depthwise-separable 3×3 convolutions. Ours.

    Source: Park & Heo 2021, section 3. Differs: the inside of a branch is not given there, so it follows ASPP.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int] = (3, 6, 9),
        *,
        with_1x1: bool = False,
        with_pool: bool = False,
        separable: bool = False,
    ) -> None:
        super().__init__()
        convolution = ASPPSeparableConv if separable else ASPPConv
        self.convs = nn.ModuleList()
        if with_1x1:
            self.convs.append(build_conv(in_channels, out_channels))
        for rate in check_rates("branch_rates", rates):
            self.convs.append(convolution(in_channels, out_channels, rate))
        if with_pool:
            self.convs.append(ImagePooling(in_channels, out_channels))
        self.project = build_conv(len(self.convs) * out_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w)."""
        return self.project(torch.cat([conv(features) for conv in self.convs], dim=1))


class ChannelGate(nn.Module):
    """Weights per channel between 0 and 1: global mean, 1×1 convolution, norm, sigmoid.

    Source: Yu et al. 2018 (BiSeNet), the attention of figures 2b and 2c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = PooledBatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, 1, 1) weights for (B, C, h, w) features."""
        return self.norm(self.conv(pool_globally(features))).sigmoid()


def check_rates(option: str, rates: Sequence[int]) -> tuple[int, ...]:
    """Return the rates; UserError unless they are at least one positive number."""
    if not rates or any(not isinstance(rate, int) or rate < 1 for rate in rates):
        raise UserError(
            f"{option} {list(rates)!r} are not possible; give positive whole numbers, for example [6, 12, 18]"
        )
    return tuple(rates)


def check_width(option: str, width: int, multiple: int = 1) -> None:
    """Raise UserError unless a number of channels is a positive multiple."""
    if width < 1 or width % multiple:
        what = "a positive number" if multiple == 1 else f"a positive multiple of {multiple}"
        raise UserError(f"{option} {width} is not possible; give {what}")


__all__ = [
    "ChannelGate",
    "ImagePooling",
    "MultiRateBranch",
    "PooledBatchNorm2d",
    "build_atrous_pyramid",
    "build_conv",
    "check_rates",
    "check_width",
    "pool_globally",
    "resize_bilinear",
]

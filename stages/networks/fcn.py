"""FCN-32s, -16s and -8s: VGG16 turned convolutional, class scores at three strides, deconvolutions between them.

Source: Long et al. 2015 and its reference code (the "at-once" variants, whose skips are scaled); the FCN-8s report,
which trains the deconvolutions. Differs: depth branch added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_cache.errors import UserError
from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import IMAGENET
from stages.networks.framing import crop_maps, pad_to_multiple
from stages.networks.vgg import FC_WIDTH, WIDTH, FullyConvolutional, build_vgg16_features, compute_channels, load_vgg16

Padding = Literal["aligned", "caffe"]
Head = Literal["full", "pool5"]
DepthBranch = Literal["light", "full"]

POOL4_SCALE = 0.01  # reference code, voc-fcn8s-atonce: scales the pool's features, so also what their gradient is worth
POOL3_SCALE = 0.0001  # the same
CAFFE_PADDING_PX = 100  # reference code: enough for the unpadded fc6 at any image size
CAFFE_CROPS_PX = {32: 19, 16: 27, 8: 31}  # reference code: offset of the image in the finest score map, by its stride
CAFFE_POOL_CROPS_PX = {"pool4": 5, "pool3": 9}  # the same for the skips

SCORE_STD = 1e-7
"""Spread of the fresh score layers, ours; the papers start them at 0.

At exactly 0 no gradient passes them, so a first step would leave encoder and deconvolutions untouched. At 1e-7 the
first loss still is ln C to five decimals, and an optimiser that normalises gradients (Adam) moves every part at once.
"""


class Fcn(BranchedNetwork):
    """VGG16 with scores at stride 32 and, by ``finest_stride``, skips from pool4 and pool3.

    The encoder ends at pool5, or with the ``light`` depth branch at fc7. A decoder holds the score layers, in the
    ``full`` depth branch behind an fc6 and fc7 of its own; a head holds the deconvolutions. What is as wide as the
    classes never copies, which leaves fc6 and fc7: a ``light`` branch has nothing to copy.
    """

    small_options: Sequence[Mapping[str, Any]] = ({"width": 8, "fc_width": 16, "encoder_weights": "none"},)

    finest_stride: ClassVar[int]

    def __init__(
        self,
        num_classes: int,
        *,
        with_depth: bool = True,
        encoder_weights: str = "imagenet",
        padding: Padding = "aligned",
        head: Head = "full",
        depth_branch: DepthBranch = "light",
        train_deconvolutions: bool = True,
        score_std: float = SCORE_STD,
        width: int = WIDTH,
        fc_width: int = FC_WIDTH,
    ) -> None:
        """Build the network.

        Args:
            num_classes: number of segmentation classes.
            with_depth: whether to build the depth branch.
            encoder_weights: ``imagenet``, ``none``, or a safetensors file of VGG16; its classifier fills fc6 and fc7.
            padding: ``caffe`` pads the image by 100 px and crops, as the reference does; ``aligned`` keeps every map
                in register with the image, which is the same network on about half the pixels.
            head: ``pool5`` scores pool5 without fc6 and fc7.
            depth_branch: ``light`` shares fc6 and fc7 between the tasks; ``full`` gives each its own, which can be
                copied (schedules with ``--copy-weights`` need it).
            train_deconvolutions: whether the bilinear kernels learn (the report) or stay (the reference).
            score_std: see ``SCORE_STD``; 0 is the papers' value.
            width: channels of VGG's first stage, ours: 64 is VGG16, less is quicker.
            fc_width: channels of fc6 and fc7, ours: 4096 is VGG16.

        Raises:
            UserError: for values that are not possible, and weights that cannot be had.
        """
        super().__init__()
        _check_choices(padding, head, score_std)
        self.num_classes = num_classes
        self.normalisation = IMAGENET
        self.padding = padding
        aligned = padding == "aligned"
        channels = compute_channels(width)
        own_fc = depth_branch == "full" and head == "full"

        def build_fc() -> FullyConvolutional:
            return FullyConvolutional(channels, fc_width, padding=3 if aligned else 0)

        def build_decoder(num_channels: int) -> FcnDecoder:
            widths = {"fr": fc_width if head == "full" else channels, "pool4": channels, "pool3": channels // 2 or 1}
            used = dict(list(widths.items())[: self._num_scores])
            return FcnDecoder(used, num_channels, fc=build_fc() if own_fc else None, score_std=score_std)

        def build_head(num_channels: int) -> FcnHead:
            return FcnHead(num_channels, self._num_scores, aligned=aligned, learnt=train_deconvolutions)

        features = build_vgg16_features(width=width, first_padding=1 if aligned else CAFFE_PADDING_PX)
        if not aligned:
            _round_pools_up(features)
        self.encoder = FcnEncoder(features, fc=build_fc() if head == "full" and not own_fc else None)
        self.seg_decoder = build_decoder(num_classes)
        self.seg_head = build_head(num_classes)
        if with_depth:
            self.depth_decoder = build_decoder(1)
            self.depth_head = build_head(1)
        self.copyable_form_helps = head == "full"
        self.uncopied = frozenset(f"scores.{name}" for name in self.seg_decoder.scores.state_dict())
        copies = [module for module in self.modules() if isinstance(module, FullyConvolutional)]
        load_vgg16(features, copies, encoder_weights)

    def prepare(self, images: Tensor) -> Tensor:
        """Mirror images up to a multiple of 32 px; ``caffe`` padding takes any size."""
        return pad_to_multiple(images, 32) if self.padding == "aligned" else images

    def restore(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Crop the finest scores to the images."""
        offset = 0 if self.padding == "aligned" else CAFFE_CROPS_PX[self.finest_stride]
        return crop_maps(maps, size, offset)

    @property
    def _num_scores(self) -> int:
        return {32: 1, 16: 2, 8: 3}[self.finest_stride]


class Fcn32s(Fcn):
    """FCN whose only scores are those at stride 32."""

    finest_stride = 32


class Fcn16s(Fcn):
    """FCN with a skip from pool4."""

    finest_stride = 16


class Fcn8s(Fcn):
    """FCN with skips from pool4 and pool3."""

    small_options = (
        *Fcn.small_options,
        {"width": 8, "fc_width": 16, "encoder_weights": "none", "padding": "caffe", "depth_branch": "full"},
        {"width": 8, "encoder_weights": "none", "head": "pool5", "train_deconvolutions": False},
    )

    finest_stride = 8


class FcnEncoder(nn.Module):
    """VGG16's features, optionally with fc6 and fc7 on them; hands on pool3, pool4 and its end."""

    def __init__(self, features: nn.Sequential, fc: FullyConvolutional | None) -> None:
        super().__init__()
        self.features = features
        self.fc = fc

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what lies at strides 8, 16 and 32."""
        pools = []
        maps = images
        for layer in self.features:
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(maps)
        _, _, pool3, pool4, pool5 = pools
        return pool3, pool4, pool5 if self.fc is None else self.fc(pool5)


class FcnDecoder(nn.Module):
    """One task's score layers, optionally behind an fc6 and fc7 of its own.

    Args:
        widths: channels that each score layer reads, deepest first.
        num_channels: scores per pixel.
        fc: this task's fc6 and fc7.
        score_std: spread of the fresh weights.
    """

    def __init__(
        self, widths: dict[str, int], num_channels: int, *, fc: FullyConvolutional | None, score_std: float
    ) -> None:
        super().__init__()
        self.fc = fc
        self.scores = nn.ModuleDict({name: nn.Conv2d(width, num_channels, 1) for name, width in widths.items()})
        for name, parameter in self.scores.named_parameters():
            nn.init.normal_(parameter, std=score_std if name.endswith("weight") else 0.0)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Return the score maps, deepest first."""
        pool3, pool4, end = features
        inputs = {"fr": end if self.fc is None else self.fc(end)}
        if "pool4" in self.scores:
            inputs["pool4"] = POOL4_SCALE * pool4
        if "pool3" in self.scores:
            inputs["pool3"] = POOL3_SCALE * pool3
        return [self.scores[name](maps) for name, maps in inputs.items()]


class FcnHead(nn.Module):
    """Deconvolutions from stride 32 to the image, each skip's scores added on the way.

    Args:
        num_channels: scores per pixel.
        num_scores: 1 to 3 score maps.
        aligned: whether each deconvolution keeps its output in register with its input; otherwise skips are cropped.
        learnt: whether the kernels are parameters.
    """

    def __init__(self, num_channels: int, num_scores: int, *, aligned: bool, learnt: bool) -> None:
        super().__init__()
        factors = [2] * (num_scores - 1) + [2 ** (6 - num_scores)]
        self.deconvolutions = nn.ModuleList(
            BilinearDeconvolution(num_channels, factor, aligned=aligned, learnt=learnt) for factor in factors
        )
        self._crops = [0, 0] if aligned else list(CAFFE_POOL_CROPS_PX.values())

    def forward(self, scores: list[Tensor]) -> Tensor:
        """Return the finest scores; with ``caffe`` padding they reach beyond the image on all sides."""
        fused = scores[0]
        for deconvolution, skip, crop in zip(self.deconvolutions, scores[1:], self._crops, strict=False):
            upsampled = deconvolution(fused)
            height, width = upsampled.shape[-2:]
            fused = upsampled + skip[..., crop : crop + height, crop : crop + width]
        return self.deconvolutions[-1](fused)


class BilinearDeconvolution(nn.Module):
    """A transposed convolution that starts as bilinear upsampling by ``factor``, each channel for itself.

    Args:
        num_channels: in and out.
        factor: stride; the kernel is twice as wide.
        aligned: whether half a factor is cut off on each side, which makes the inside equal to ``F.interpolate``.
        learnt: whether the kernel, dense over channels, is a parameter; otherwise it is a buffer.
    """

    def __init__(self, num_channels: int, factor: int, *, aligned: bool, learnt: bool) -> None:
        super().__init__()
        self._factor = factor
        self._padding = factor // 2 if aligned else 0
        kernel = compute_bilinear_kernel(factor)
        weight = torch.zeros(num_channels, num_channels, 2 * factor, 2 * factor)
        diagonal = torch.arange(num_channels)
        weight[diagonal, diagonal] = kernel
        self.weight: Tensor
        if learnt:
            self.weight = nn.Parameter(weight)
        else:  # not a parameter without gradient: phases switch the gradient of every parameter they train
            self.register_buffer("weight", weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, factor·h, factor·w), one factor larger each way when not aligned."""
        return F.conv_transpose2d(maps, self.weight, stride=self._factor, padding=self._padding)


def compute_bilinear_kernel(factor: int) -> Tensor:
    """Return the (2f, 2f) kernel with which a transposed convolution of stride f upsamples bilinearly, f even."""
    distance = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return torch.outer(1 - distance, 1 - distance)


def _round_pools_up(features: nn.Sequential) -> None:
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # Caffe's rounding


def _check_choices(padding: Padding, head: Head, score_std: float) -> None:
    if padding == "caffe" and head == "pool5":
        raise UserError(
            'padding "caffe" makes room for the unpadded fc6, which head "pool5" leaves out; '
            'use padding "aligned" with it'
        )
    if not 0 <= score_std < float("inf"):
        raise UserError(f"score_std {score_std} must be finite and at least 0 (the paper's)")

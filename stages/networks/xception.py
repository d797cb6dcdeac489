"""Encoders that hand out four taps for DeepLab: timm's aligned Xception with chosen strides, and smp's encoders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import timm
from segmentation_models_pytorch.encoders._utils import replace_strides_with_dilation
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from data_cache.errors import UserError, unknown_name
from stages.networks.dilated_encoder import build_encoder
from stages.networks.encoder_weights import (
    build_no_connection_error,
    is_weights_file,
    match_weights,
    read_encoder_file,
    resolve_smp_weights,
)


class Taps(NamedTuple):
    """What the fusion reads; with a stride plan of 8-8-16 at 1/4, 1/8, 1/8 and 1/16 of the image."""

    low_level: Tensor
    entry: Tensor
    middle: Tensor
    exit: Tensor


class TapChannels(NamedTuple):
    """Channels of each tap."""

    low_level: int
    entry: int
    middle: int
    exit: int


class TappedEncoder(nn.Module):
    """Maps images (B, 3, H, W) to ``Taps``."""

    channels: TapChannels


STRIDE_PLANS = {
    "8-8-16-a": "block 2 keeps 1/4, middle flow undilated at 1/8, exit flow strided to 1/16",
    "8-8-16-b": "ImageNet receptive fields: middle flow dilated by 2 at 1/8, exit flow strided to 1/16",
    "os16": "entry and middle flow as the encoder has them, 1/16 at the end",
    "os8": "all of 1/8 from the entry flow on, dilated by 2 and 4",
}
"""How the encoder gets its strides. The fusion paper gives the strides 8, 8, 16 but not where; both are ours."""

STRIDED_BLOCKS = {"xception41": (0, 1, 2), "xception65": (0, 1, 2), "xception71": (0, 2, 4)}
"""Entry-flow blocks of timm's aligned Xceptions whose last convolution halves the resolution; the second has the
low-level tap, the third ends the entry flow. The middle flow follows, and the last two blocks are the exit flow."""

LOW_LEVEL_TAPS = (256, 128)
"""Channels of the low-level feature: 256 in TensorFlow's DeepLab (the input of the second block's strided convolution),
128 in the NVIDIA lineage (the first block's output)."""


def choose_stride_plan(encoder: str, encoder_weights: str, stride_plan: str) -> str:
    """Resolve ``auto``: plan B for pretrained Xceptions, plan A from scratch, os16 for other encoders.

    Raises:
        UserError: for an unknown plan.
    """
    if stride_plan != "auto":
        if stride_plan not in STRIDE_PLANS:
            raise unknown_name("stride_plan", stride_plan, ["auto", *STRIDE_PLANS])
        return stride_plan
    if not is_xception(encoder):
        return "os16"
    return "8-8-16-a" if encoder_weights == "none" else "8-8-16-b"


def is_xception(encoder: str) -> bool:
    """Whether the name is one of timm's aligned Xceptions, with or without a tag of its weights."""
    return encoder.startswith("tu-") and _architecture(encoder) in STRIDED_BLOCKS


def build_tapped_encoder(
    encoder: str, encoder_weights: str, *, stride_plan: str, low_level_channels: int
) -> TappedEncoder:
    """Build an encoder with taps.

    Args:
        encoder: ``tu-xception65`` (or 41, 71), or any encoder of smp that can be dilated.
        encoder_weights: ``imagenet``, ``none``, or the path of a safetensors file.
        stride_plan: key of ``STRIDE_PLANS``.
        low_level_channels: 256 or 128, for Xceptions; others hand out their stage at 1/4.

    Returns:
        The encoder, drawn at random or loaded.

    Raises:
        UserError: for combinations that do not exist, and weights that cannot be had.
    """
    if is_xception(encoder):
        return XceptionEncoder(encoder, encoder_weights, stride_plan, low_level_channels)
    if low_level_channels != LOW_LEVEL_TAPS[0]:
        raise UserError(
            f"encoder {encoder!r} has no choice of low_level_channels, which Xceptions have; drop {low_level_channels}"
        )
    return StagedEncoder(encoder, encoder_weights, stride_plan)


class XceptionEncoder(TappedEncoder):
    """timm's aligned Xception with taps behind entry, middle and exit flow.

    Weights have timm's names in every stride plan, so that one file fits all.

    Source: Chen et al. 2018, figure 4; the strides 8/8/16 are those of the multi-path feature fusion paper, section 3.
    """

    def __init__(self, encoder: str, encoder_weights: str, stride_plan: str, low_level_channels: int) -> None:
        super().__init__()
        if low_level_channels not in LOW_LEVEL_TAPS:
            raise UserError(
                f"low_level_channels {low_level_channels} is not possible; an Xception offers "
                f"{' and '.join(map(str, LOW_LEVEL_TAPS))}"
            )
        self._low_level_channels = low_level_channels
        _, self._low_level_block, self._entry_end = STRIDED_BLOCKS[_architecture(encoder)]
        published = resolve_smp_weights(encoder, encoder_weights)
        output_stride = {"8-8-16-a": 32, "8-8-16-b": 8, "os16": 16, "os8": 8}[stride_plan]
        try:
            self.model = timm.create_model(
                encoder.removeprefix("tu-"),
                pretrained=bool(published),
                num_classes=0,
                global_pool="",
                output_stride=output_stride,
            )
        except OSError as error:
            raise build_no_connection_error(encoder, error) from error
        if is_weights_file(encoder_weights):
            load_xception_file(self.model, encoder, Path(encoder_weights))
        if stride_plan == "8-8-16-a":
            _set_stride(self.model.blocks[self._low_level_block], 1)
            _set_dilation(self.model.blocks[-1], 2)
        elif stride_plan == "8-8-16-b":
            _set_stride(self.model.blocks[-2], 2)
            _set_dilation(self.model.blocks[-1], 2)  # timm left 4, which was right for 1/8
        entry = self.model.blocks[self._entry_end].out_channels
        self.channels = TapChannels(low_level_channels, entry, entry, self.model.num_features)

    def forward(self, images: Tensor) -> Taps:
        """Map (B, 3, H, W) to the taps."""
        taps: dict[str, Tensor] = {}
        features = self.model.stem(images)
        last = len(self.model.blocks) - 1
        for index, block in enumerate(self.model.blocks):
            if index == self._low_level_block and self._low_level_channels != 128:
                features, taps["low_level"] = _run_with_tap(block, features)
            else:
                features = block(features)
            if index == 0 and self._low_level_channels == 128:
                taps["low_level"] = features
            if index == self._entry_end:
                taps["entry"] = features
            if index == last - 2:
                taps["middle"] = features
        return Taps(**taps, exit=features)


class StagedEncoder(TappedEncoder):
    """Any encoder of smp with its stages at 1/4, 1/8, 1/16 and 1/32 as taps, dilated by the stride plan.

    Ours, for small experiments: the stage at 1/8 stands for the entry flow, the next for the middle flow.
    """

    def __init__(self, encoder: str, encoder_weights: str, stride_plan: str) -> None:
        super().__init__()
        output_stride = {"os16": 16, "os8": 8}.get(stride_plan, 32)
        self.model = build_encoder(encoder, encoder_weights, output_stride=output_stride, can_stay_undilated=False)
        if output_stride == 32:
            if not isinstance(self.model, ResNet):
                raise UserError(
                    f"encoder {encoder!r} has no stride_plan {stride_plan!r}, which Xceptions and smp's ResNets have; "
                    'choose "os16" or "os8"'
                )
            _replan_resnet(self.model, dilate_middle=stride_plan == "8-8-16-b")
        self.channels = TapChannels(*self.model.out_channels[2:])  # type: ignore[index]

    def forward(self, images: Tensor) -> Taps:
        """Map (B, 3, H, W) to the taps."""
        return Taps(*self.model(images)[2:])


def load_xception_file(model: nn.Module, encoder: str, file: Path) -> None:
    """Load a safetensors file into a timm Xception: timm's own, one of ``pipeline fetch``, or an export of a network.

    Raises:
        UserError: when the file is missing, no safetensors file, or of another architecture; shows both key sets.
    """
    weights = {_rename(key): value for key, value in read_encoder_file(file).items()}
    model.load_state_dict(match_weights(encoder, file, model.state_dict(), weights))


def _rename(key: str) -> str:
    """Turn smp's flattened name ``model.blocks_1.…`` or ours ``model.blocks.1.…`` into timm's ``blocks.1.…``."""
    return re.sub(r"^(stem|blocks)_(\d+)\.", r"\1.\2.", key.removeprefix("backbone.").removeprefix("model."))


def _architecture(encoder: str) -> str:
    return encoder.removeprefix("tu-").split(".")[0]


def _run_with_tap(block: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return a block's output and the input of its last, strided, convolution."""
    *first, last = block.stack
    tapped = features
    for layer in first:
        tapped = layer(tapped)
    return last(tapped) + block.shortcut(features), tapped


def _set_stride(block: Any, stride: int) -> None:
    block.stack.conv3.conv_dw.stride = (stride, stride)
    block.shortcut.conv.stride = (stride, stride)


def _set_dilation(block: Any, dilation: int) -> None:
    for convolution in (block.stack.conv1, block.stack.conv2, block.stack.conv3):
        convolution.conv_dw.dilation = convolution.conv_dw.padding = (dilation, dilation)


def _replan_resnet(resnet: ResNet, *, dilate_middle: bool) -> None:
    """Give a torchvision ResNet the plan 8-8-16: layer3 unstrided, layer4 strided and dilated by 2."""
    first = resnet.layer3[0]
    if dilate_middle:
        replace_strides_with_dilation(resnet.layer3, 2)
    else:
        (first.conv1 if isinstance(first, BasicBlock) else first.conv2).stride = (1, 1)
        first.downsample[0].stride = (1, 1)
    replace_strides_with_dilation(resnet.layer4, 2)
    first = resnet.layer4[0]
    (first.conv1 if isinstance(first, BasicBlock) else first.conv2).stride = (2, 2)
    first.downsample[0].stride = (2, 2)

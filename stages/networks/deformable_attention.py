"""Deformable-convolution self-attention (DCSA) and the places in a convolutional encoder where it can stand.

Source: the DCSA paper, ResNet with deformable-convolution self-attention, a design without numbers. What it leaves open
follows polarized self-attention (Liu et al. 2021), whose structure it says it takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from timm.models._efficientnet_blocks import InvertedResidual as TimmInvertedResidual
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG
from torchvision.ops import DeformConv2d, deform_conv2d

from data_cache.errors import UserError

Gate = Literal["spatial", "elementwise"]
Place = Literal["inside", "after_stage", "none"]

KERNEL_TAPS = 9  # of a 3×3 kernel

TIMM_BLOCKS = (TimmBasicBlock, TimmBottleneck, TimmInvertedResidual)


class DeformableConv(DeformConv2d):
    """3×3 deformable convolution that learns from its input where each tap samples.

    The offsets start at zero, so that a new one equals a plain convolution; modulated, half of one. torchvision's
    kernels know no bfloat16 (0.29), so sampling happens in float32, or float64 for such input.

    Args:
        channels: in and out.
        modulated: whether each tap is also multiplied by a number between 0 and 1 (version 2).

    Source: Dai et al. 2017; modulated: Zhu et al. 2019.
    """

    def __init__(self, channels: int, *, modulated: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        self.modulated = modulated
        self.offsets = nn.Conv2d(channels, KERNEL_TAPS * (3 if modulated else 2), 3, padding=1)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and precision."""
        exact = torch.float64 if features.dtype == torch.float64 else torch.float32
        steering = self.offsets(features).to(exact)
        offsets, mask = steering, None
        if self.modulated:
            offsets, mask = steering.split([2 * KERNEL_TAPS, KERNEL_TAPS], dim=1)
            mask = mask.sigmoid()
        sampled = deform_conv2d(
            features.to(exact), offsets, self.weight.to(exact), padding=self.padding, dilation=self.dilation, mask=mask
        )
        return sampled.to(features.dtype)


class DeformableSelfAttention(nn.Module):
    """Gates a feature map: K · σ(Σ_d softmax(mean_hw DC(Q))_d · DC(V)_d), with K, Q, V from one 1×1 convolution.

    There is no skip inside: the block around it has one. As the gate starts near one half, so does the output's scale.

    Args:
        channels: C, of input, Key and output.
        reduction: Query and Value have C / reduction channels.
        gate: ``spatial`` sums the weighted Value over its channels to one map; ``elementwise`` keeps them, which needs
            reduction 1 and hardly gates, because softmax weights are about 1/C.
        modulated: whether the deformable convolutions scale their taps.
        scale_attention: multiplies the softmax weights by their number, so that their mean is 1.
        gain: factor on the output; 2 makes up for the gate's start at one half.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        gate: Gate = "spatial",
        modulated: bool = False,
        scale_attention: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        check_attention_options(gate, reduction)
        inner = max(1, channels // reduction)
        self.widths = (channels, inner, inner)
        self.gate = gate
        self.scale = gain
        self.attention_scale = float(inner) if scale_attention else 1.0
        self.project = nn.Conv2d(channels, sum(self.widths), 1, bias=False)
        self.deform_query = DeformableConv(inner, modulated=modulated)
        self.deform_value = DeformableConv(inner, modulated=modulated)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        key, query, value = self.project(features).split(self.widths, dim=1)
        pooled = self.deform_query(query).mean((-2, -1), keepdim=True)
        weighted = self.attention_scale * pooled.softmax(dim=1) * self.deform_value(value)
        gate = weighted.sum(dim=1, keepdim=True) if self.gate == "spatial" else weighted
        return self.scale * key * gate.sigmoid()


class AttentionOptions(NamedTuple):
    """The arguments of ``DeformableSelfAttention`` besides its width."""

    reduction: int
    gate: Gate = "spatial"
    modulated: bool = False
    scale_attention: bool = False
    gain: float = 1.0


class Slot(NamedTuple):
    """A layer in front of or behind which the attention goes."""

    parent: nn.Module
    name: str
    width: int
    before: bool


def insert_attention(encoder: nn.Module, name: str, place: Place, options: AttentionOptions) -> tuple[str, ...]:
    """Put attention modules into an encoder in place, whose feature maps keep their shapes.

    ``inside`` is in front of the last convolution of every block, where a bottleneck has its 3×3 convolution, norm and
    ReLU behind it: ResNets (of smp and timm) and MobileNets; in VGG between every two convolutions of a stage.
    ``after_stage`` is behind the stages at 1/4, 1/8, 1/16 and 1/32, in VGG in front of all five poolings. ``none`` is
    nowhere, which makes the network that the attention is compared with.

    Args:
        encoder: as smp builds it, its weights loaded already: the names of its weights change.
        name: of the encoder, for the message.
        place: see above.
        options: of every module.

    Returns:
        The names of the modules in the encoder.

    Raises:
        UserError: for an encoder of another family.
    """
    if place == "none":
        return ()
    slots = list(_find_slots_inside(encoder) if place == "inside" else _find_slots_after_stages(encoder))
    if not slots:
        raise UserError(
            f"the attention has no place {place!r} in encoder {name!r}; it goes into ResNets (resnet18 … resnet152, "
            "tu-resnet…), VGGs and MobileNets"
        )
    for slot in slots:
        layer = getattr(slot.parent, slot.name)
        attention = DeformableSelfAttention(slot.width, **options._asdict())
        pair = [("attention", attention), ("layer", layer)]
        setattr(slot.parent, slot.name, nn.Sequential(OrderedDict(pair if slot.before else reversed(pair))))
    return tuple(name for name, module in encoder.named_modules() if isinstance(module, DeformableSelfAttention))


def check_attention_options(gate: Gate, reduction: int) -> None:
    """Raise UserError for values that are not possible or do not go together."""
    if reduction < 1:
        raise UserError(f"reduction {reduction} is not possible; give a positive number")
    if gate == "elementwise" and reduction != 1:
        raise UserError(
            f"gate 'elementwise' multiplies the Value with the Key, so both need the same width; set reduction = 1 "
            f"instead of {reduction}"
        )


def _find_slots_inside(encoder: Any) -> Iterator[Slot]:
    if isinstance(encoder, VGG):
        yield from _find_slots_between_vgg_convolutions(encoder.features)
        return
    for block in encoder.modules():
        if isinstance(block, Bottleneck | TimmBottleneck):
            yield Slot(block, "conv3", block.conv3.in_channels, before=True)
        elif isinstance(block, BasicBlock | TimmBasicBlock):
            yield Slot(block, "conv2", block.conv2.in_channels, before=True)
        elif isinstance(block, InvertedResidual):  # torchvision's: expansion, depthwise, projection, norm
            yield Slot(block.conv, str(len(block.conv) - 2), block.conv[-2].in_channels, before=True)
        elif isinstance(block, TimmInvertedResidual):
            yield Slot(block, "conv_pwl", block.conv_pwl.in_channels, before=True)


def _find_slots_between_vgg_convolutions(features: nn.Sequential) -> Iterator[Slot]:
    first_of_stage = True
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            first_of_stage = True
        elif isinstance(layer, nn.Conv2d):
            if not first_of_stage:
                yield Slot(features, str(index), layer.in_channels, before=True)
            first_of_stage = False


def _find_slots_after_stages(encoder: Any) -> Iterator[Slot]:
    if isinstance(encoder, VGG):
        pools = [index for index, layer in enumerate(encoder.features) if isinstance(layer, nn.MaxPool2d)]
        for width, pool in zip(encoder.out_channels, pools, strict=False):
            yield Slot(encoder.features, str(pool - 1), width, before=False)
        return
    widths = encoder.out_channels[2:]
    if isinstance(encoder, ResNet):
        yield from (Slot(encoder, f"layer{n}", width, before=False) for n, width in enumerate(widths, start=1))
    elif isinstance(encoder, MobileNetV2):
        for end, width in zip(encoder._out_indexes[1:], widths, strict=True):
            yield Slot(encoder.features, str(end), width, before=False)
    elif any(isinstance(block, TIMM_BLOCKS) for block in encoder.modules()):
        for path, width in zip(encoder.model.feature_info.module_name()[1:], widths, strict=True):
            parent, _, name = path.rpartition(".")
            yield Slot(encoder.model.get_submodule(parent), name, width, before=False)

"""How images and weights lie in memory while a network learns."""

from __future__ import annotations

import torch
from torch import nn

_BROKEN_CHANNELS = range(2, 16)
"""Input channels at which the gradient of a strided 1x1 convolution writes beyond its memory: tried from 1 to 64."""


def choose_memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the layout to train in: channels last, which is the faster one, unless that spoils memory.

    On a CPU the backward pass of a 1x1 convolution with stride 2 and few input channels does, with images whose
    channels come last: the process dies of a "double free", or goes on with wrong numbers. MobileOne and RepVGG begin
    with one. Seen with torch 2.15; forward passes alone are sound, and so is the other layout.

    Args:
        network: as it will be trained.
        device: where.
    """
    spoils = any(
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels in _BROKEN_CHANNELS
        for module in network.modules()
    )
    return torch.contiguous_format if spoils and device.type == "cpu" else torch.channels_last

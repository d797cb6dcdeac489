"""One forward pass for its answers: which branches run, in what precision, and down to labels at a wanted size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.interface import Network, Outputs
from stages.networks.precision import Dtype, autocast

Precision = Dtype


class Predicted(NamedTuple):
    """What is kept of a forward pass."""

    seg_labels: Tensor
    """(B, H, W) uint8 argmax."""
    depth: Tensor | None
    """(B, H, W) float32; None without a depth branch, or where it was not asked for."""
    probabilities: Tensor | None = None
    """(B, C, H, W) uint8, 255 is certain; None where they were not asked for."""


@contextmanager
def evaluation_mode(network: object) -> Iterator[None]:
    """Put a network into eval mode; afterwards each module is in the mode it was in, frozen parts included."""
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def run_network(
    network: Callable[..., Any], images: Tensor, *, precision: Precision = "float32", depth: bool = False
) -> Outputs:
    """Return one forward pass of a ``Network`` or of a segmentation-only module, in the given precision."""
    with autocast(images.device, precision):
        outputs = network(images, seg=True, depth=depth) if _takes_branches(network) else network(images)
    return outputs if isinstance(outputs, Outputs) else Outputs(outputs, None)


def predict_labels(seg_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, H, W) uint8 argmax labels at ``size``.

    Resized logits are the largest tensor of an evaluation (C times the label map in float32), so they are made for one
    image at a time.
    """
    if tuple(seg_logits.shape[-2:]) == tuple(size):
        return seg_logits.argmax(dim=1).to(torch.uint8)
    resized = (resize_logits(one.unsqueeze(0), size) for one in seg_logits)
    return torch.cat([one.argmax(dim=1).to(torch.uint8) for one in resized])


def resize_logits(seg_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, H, W) logits at ``size``, in float32 where they have to be resized."""
    if tuple(seg_logits.shape[-2:]) == tuple(size):
        return seg_logits
    return F.interpolate(seg_logits.float(), tuple(size), mode="bilinear")


def resize_depth(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, H, W) float32 depth at ``size``."""
    depth = depth.float()
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth.unsqueeze(1), tuple(size), mode="bilinear").squeeze(1)


def _takes_branches(network: Callable[..., Any]) -> bool:
    """Return whether calls take ``seg=`` and ``depth=`` as a ``Network``'s do; exported modules take images only."""
    if isinstance(network, Network):
        return True
    call = network.forward if isinstance(network, nn.Module) else network
    return {"seg", "depth"} <= set(inspect.signature(call).parameters)

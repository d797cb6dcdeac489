"""Taking the depth branch off a trained network, and offering what is left as a plain images → logits module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.networks import rebuild_network
from stages.networks.interface import Network


class SegmentationOnly(nn.Module):
    """A network as a module from images (B, 3, H, W) to logits (B, C, H, W)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the segmentation logits, running no depth branch."""
        seg_logits = self.network(images, depth=False).seg_logits
        assert seg_logits is not None
        return seg_logits


def build_stripped(network: Network) -> Network:
    """Return a network of the same class built ``with_depth=False`` with the same weights.

    The copy has the device, the dtypes and the training mode of the original, and shares no memory with it. The global
    random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        stripped = rebuild_network(network.spec.without_depth().without_pretrained())
    stripped.spec = network.spec.without_depth()
    stripped.normalisation = network.normalisation  # some published weights have their own; none were asked for here
    first = next(network.parameters())
    stripped.to(device=first.device, dtype=first.dtype)
    weights = network.state_dict()
    stripped.load_state_dict({name: weights[name] for name in stripped.state_dict()})
    return stripped.train(network.training)

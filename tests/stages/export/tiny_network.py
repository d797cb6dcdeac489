"""The smallest network with what exporting can go wrong at: batch norm, a map resized to another's size, a skip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks import NETWORKS, NetworkEntry, build_network
from stages.networks.branched import BranchedNetwork
from stages.networks.encoders import IMAGENET
from stages.networks.interface import Network


class TinyNetwork(BranchedNetwork):
    """Four convolutions from the images to the scores."""

    def __init__(self, num_classes: int, *, with_depth: bool = True, width: int = 8) -> None:
        """Build the network; ``width`` is the channels of the first convolution."""
        super().__init__()
        self.num_classes, self.normalisation = num_classes, IMAGENET
        self.encoder, self.seg_decoder = _Encoder(width), _Decoder(width)
        self.seg_head = nn.Conv2d(width, num_classes, 1)
        if with_depth:
            self.depth_decoder, self.depth_head = _Decoder(width), nn.Conv2d(width, 1, 1)


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        return fine, self.coarse(fine)


class _Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.ReLU())

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        fine, coarse = features
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.join(torch.cat([coarse, fine], dim=1))


@contextmanager
def registered(network: type[TinyNetwork] = TinyNetwork, name: str = "tiny") -> Iterator[None]:
    """Have a network in the table, from which exporting builds its copies."""
    NETWORKS[name] = NetworkEntry(network.__module__, network.__name__, "", "")
    try:
        yield
    finally:
        del NETWORKS[name]


def build_tiny(num_classes: int, *, name: str = "tiny", width: int = 8) -> Network:
    """Return it with weights that are always the same, while it is registered."""
    torch.manual_seed(0)
    return build_network(name, num_classes, width=width).eval()

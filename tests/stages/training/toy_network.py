"""The smallest network with all that can go wrong in training: batch-norm, dropout, 1×1 heads, auxiliary logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data_cache.sample import IGNORE_INDEX, PackedBatch
from stages.networks.interface import Network, Normalisation, Outputs

NUM_CLASSES = 4


class ToyNetwork(Network):
    """Encoder and two decoders of one convolution each."""

    def __init__(self, *, with_depth: bool = True, aux: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_classes = NUM_CLASSES
        self.normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.aux_weight = 0.4 if aux else 0.0
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)
        )
        self.seg_decoder = _decoder()
        self.seg_head = nn.Conv2d(8, NUM_CLASSES, 1)
        if with_depth:
            self.depth_decoder = _decoder()
            self.depth_head = nn.Conv2d(8, 1, 1)
        self.runs = {"seg": 0, "depth": 0}

    def forward(self, images: Tensor, *, seg: bool = True, depth: bool = True, seg_rows: int | None = None) -> Outputs:
        features = self.encoder(images)
        seg_logits = self.seg_head(self.seg_decoder(features[:seg_rows])) if seg else None
        estimated = self.depth_head(self.depth_decoder(features))[:, 0] if depth else None
        self.runs["seg"] += seg
        self.runs["depth"] += depth
        aux = (seg_logits * 0.5,) if seg_logits is not None and self.aux_weight and self.training else ()
        return Outputs(seg_logits, estimated, aux)


def build_toy(seed: int = 0, **options: bool | float) -> ToyNetwork:
    """Return a toy network whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return ToyNetwork(**options)  # type: ignore[arg-type]


def make_batch(step: int, *, size: int = 2, side: int = 16, with_depth: bool = True) -> PackedBatch:
    """Return the batch of a step: noise whose labels and depth can be read off its channels."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = (images[:, 0] > 127).byte() + 2 * (images[:, 1] > 127).byte()
    labels[:, :2] = IGNORE_INDEX
    inverse_depth = (images[:, 2] / 255).half()
    inverse_depth[:, :, :3] = torch.nan
    ids = tuple(f"image-{step}-{index}" for index in range(size))
    return PackedBatch(ids, images, labels, inverse_depth if with_depth else None)


def batches_from(first_step: int, **options: Any) -> Iterator[PackedBatch]:
    """Yield batches for ever, as a pure function of the step."""
    step = first_step
    while True:
        yield make_batch(step, **options)
        step += 1


def _decoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

"""What the scores of an evaluation cost beside the inference they are of: the camvid recipe's network and images.

The inference is float32, as that of an evaluation always is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.experiment.config import load_config
from stages.evaluation.boundary import BoundaryScores
from stages.evaluation.metrics import SegCounts
from stages.evaluation.per_image import ImageLog
from stages.evaluation.tiling import predict
from stages.networks import build_network
from tests.benchmarks.drawings import draw_mask, draw_surface
from tests.benchmarks.harness import Goal, Line, alternate

CLASSES, SIZE, BATCH = 11, (360, 480), 4
WHY = "boundary F1 visits every pixel some forty times; counts and void masks are integer passes without threads"


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the line of this bench."""
    config = load_config("camvid")
    torch.manual_seed(0)
    network = build_network(config.network.name, CLASSES, **config.network.options)
    network.to(memory_format=torch.channels_last).eval()
    size = (64, 64) if small else SIZE
    rng = np.random.default_rng(0)
    masks = [np.asarray(draw_mask(draw_surface(size, rng), CLASSES)) for _ in range(BATCH)]
    labels = torch.from_numpy(np.stack(masks)).long()
    guesses = torch.where(torch.rand(labels.shape) < 0.9, labels, labels.roll(9, dims=-1)).byte()  # like a network's
    images = torch.randn(BATCH, 3, *size).to(memory_format=torch.channels_last)
    counts, boundary = SegCounts(CLASSES, background=None), BoundaryScores(CLASSES)
    log = ImageLog([str(number) for number in range(CLASSES)], with_depth=False)

    @torch.inference_mode()
    def infer() -> None:
        predict(network, images, size, depth=False)

    @torch.inference_mode()
    def score() -> None:
        log.add(("image",) * BATCH, counts.update(guesses, labels), boundary.update(guesses, labels), None)

    turns = alternate([score, infer], 2 if small else 12)
    scoring, inference = (1e3 * turns.seconds(side) / BATCH for side in range(2))
    yield Line(
        "evaluation's metrics / inference (ResNet18 U-Net, 360×480, 11 classes)", turns.ratio(0, 1),
        Goal(at_most=0.03), f"{scoring:.1f} and {inference:.0f} ms per image, inference in float32", WHY,
    )  # fmt: skip

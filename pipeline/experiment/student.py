"""A small network that learns the depth of some images, and how wrong it is about others: which ones are difficult."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_cache.datasets.interface import SegmentationDataset
from data_cache.depth_target import compute_inverse_depth_target
from data_cache.loaders import batch_of_step
from data_cache.sample import IGNORE_INDEX, PackedBatch
from data_cache.split_depth import SplitDepth
from data_cache.transforms import Box, Geometry, to_float16, transform_depth, transform_image
from data_cache.unpacking import unpack
from pipeline.experiment.devices import choose_device
from pipeline.experiment.training import StepDisplay
from pipeline.session import Session
from stages.evaluation.forward import evaluation_mode
from stages.networks import build_network
from stages.networks.interface import Network
from stages.networks.precision import autocast, resolve_dtype
from stages.training.loop import train_phase
from stages.training.schedule import DEPTH_BRANCH, ENCODER, Phase
from stages.training.settings import LossSettings, TrainingSettings


class Lesson(NamedTuple):
    """An image and its depth."""

    dataset: SegmentationDataset
    store: SplitDepth
    at: int
    """Its index in both."""


SIZE = (96, 128)
"""(height, width) to which every image is brought, px."""
STEPS = 200
BATCH_SIZE = 8
_SEED = 0
_PHASE = Phase("student", ENCODER | DEPTH_BRANCH, depth=1.0)
_NETWORK: dict[str, Any] = {
    "encoder": "tu-resnet10t",
    "encoder_weights": "none",
    "decoder_channels": [64, 32, 16, 16, 16],
}


def measure_errors(lessons: Sequence[Lesson], taught: Sequence[int], session: Session, device: str) -> NDArray:
    """Return (N,) how wrong a network is about the depth of each image that it did not learn from, 0 for the others.

    The error is the mean over valid pixels of |log(1 + found) - log(1 + target)|, of inverse depth in [0, 1]. The
    network is always the same one, whatever a recipe trains: rows of a table must not get different images by it.

    Args:
        lessons: all images.
        taught: rows of those that it learns from.
    """
    place = choose_device(device)
    torch.manual_seed(_SEED)
    network = build_network("unet", 2, **_NETWORK)
    kept = [_read(lessons[row]) for row in taught]
    with session.console.progress(f"a student learns the depth of {len(taught)} images", STEPS) as advance:
        train_phase(
            network,
            _PHASE,
            lambda first_step: (_draw(kept, step) for step in range(first_step, STEPS)),
            total_steps=STEPS,
            seed=_SEED,
            key="",
            settings=TrainingSettings(lr=1e-3, lr_schedule="poly"),
            losses=LossSettings(),
            device=place,
            dtype=resolve_dtype("auto", str(place)),
            on_step=StepDisplay(advance),
        )
    errors = np.zeros(len(lessons))
    others = sorted(set(range(len(lessons))).difference(taught))
    with session.console.progress("how difficult the others are to it", len(others)) as advance:
        for start in range(0, len(others), 4 * BATCH_SIZE):
            rows = others[start : start + 4 * BATCH_SIZE]
            errors[rows] = _examine(network, [_read(lessons[row]) for row in rows], place)
            advance(start + len(rows))
    return errors


def _read(lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Return an image (3, H, W) uint8 and its inverse depth (H, W) float16, NaN where invalid; no mask is opened."""
    dataset, store, at = lesson
    image, found, made = dataset.read_image(at), store.read(at), store.provenance
    target = compute_inverse_depth_target(found.raw, found.stats, made.kind, made.max_depth_m)
    geometry = Geometry(Box(0, 0, *image.shape[:2]), SIZE, (0, 0), SIZE, flip=False)
    inverse, valid = torch.from_numpy(target.inverse_depth), torch.from_numpy(target.valid)
    whole = Box(0, 0, *inverse.shape)
    return transform_image(image, geometry), to_float16(transform_depth(inverse, valid, whole, geometry))


def _draw(kept: Sequence[tuple[Tensor, Tensor]], step: int) -> PackedBatch:
    """Return the batch of a step, each image mirrored or not."""
    _, indices = batch_of_step(step, len(kept), BATCH_SIZE, _SEED)
    flips = np.random.default_rng((_SEED, step)).random(len(indices)) < 0.5
    chosen = [[each.flip(-1) if flip else each for each in kept[i]] for i, flip in zip(indices, flips, strict=True)]
    return _pack([(image, depth) for image, depth in chosen])


def _pack(read: Sequence[tuple[Tensor, Tensor]]) -> PackedBatch:
    images, depths = (torch.stack(each) for each in zip(*read, strict=True))
    labels = torch.full((len(images), *SIZE), IGNORE_INDEX, dtype=torch.uint8)
    return PackedBatch(("",) * len(images), images.contiguous(memory_format=torch.channels_last), labels, depths)


@torch.inference_mode()
def _examine(network: Network, read: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> NDArray:
    batch = unpack(_pack(read), network.normalisation, device)
    assert batch.inverse_depth is not None and batch.depth_valid is not None
    with evaluation_mode(network), autocast(device, resolve_dtype("auto", str(device))):
        found = network(batch.images, seg=False).depth
    assert found is not None
    wrong = (found.float().clamp_min(0).log1p() - batch.inverse_depth.log1p()).abs() * batch.depth_valid
    return (wrong.sum((1, 2)) / batch.depth_valid.sum((1, 2)).clamp_min(1)).double().cpu().numpy()

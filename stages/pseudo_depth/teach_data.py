"""What a teaching step is fed: images and the depth a dataset owns, as the estimator would say it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.geometry import resize_image
from stages.pseudo_depth.model_folder import Preprocessing


@dataclass(frozen=True)
class TeachOptions:
    """How to teach; a stopped teaching goes on only with the options it began with."""

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate: linear warm-up over a twentieth of the steps, then a cosine to 0; 1e-5 for large teachers."""
    weight_decay: float = 0.05
    """AdamW's, on matrices and kernels only."""
    jitter: float = 0.2
    """Strength of random brightness, contrast and colour; 0 switches it off."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    anchor: float | None = None
    """Weight of the plain difference for relative estimators; None means 0.1 from nothing, 0 for a given estimator."""
    input_size: int | None = None
    """Side in pixels the images are brought to; None means the estimator's recommended size (98 from nothing)."""
    seed: int = 0
    """Of weights, order and augmentation."""
    precision: str = "auto"
    """``auto``, ``bfloat16`` or ``float32``; weights, losses and updates are float32 in each."""
    checkpoint_every: int = 200
    """Steps between saved states."""

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, field) < 1:
                raise UserError(f"teaching needs {field} of at least 1, got {getattr(self, field)}")
        if not self.lr > 0:
            raise UserError(f"teaching needs a positive lr, got {self.lr}")


class TeachBatch(NamedTuple):
    """One step's images and targets."""

    images: Tensor
    """(B, 3, h, w) uint8."""
    target: Tensor
    """(B, H, W) float32: normalised inverse depth, or metres."""
    valid: Tensor
    """(B, H, W) bool."""


def iterate_batches(
    dataset: SegmentationDataset,
    spec: EstimatorSpec,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    options: TeachOptions,
    first_step: int,
) -> Iterator[TeachBatch]:
    """Yield the batches of the remaining steps; one is read while another trains, each a pure function of its step."""

    def read(step: int) -> TeachBatch:
        return _read_batch(dataset, spec, preprocessing, size, options, step)

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[TeachBatch] | None = pool.submit(read, first_step) if first_step < options.steps else None
        for step in range(first_step, options.steps):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(read, step + 1) if step + 1 < options.steps else None
            yield batch


def _read_batch(
    dataset: SegmentationDataset,
    spec: EstimatorSpec,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    options: TeachOptions,
    step: int,
) -> TeachBatch:
    rng = np.random.default_rng([options.seed, step])
    images, targets, valids = [], [], []
    for index in _choose_indices(len(dataset), step, options):
        image = resize_image(dataset.read_image(index), size, mode=preprocessing.resampling)
        target, valid = _read_target(dataset, index, spec, size)
        if rng.random() < options.flip:
            image, target, valid = image.flip(-1), target.flip(-1), valid.flip(-1)
        images.append(_jitter(image, options.jitter, rng))
        targets.append(target)
        valids.append(valid)
    return TeachBatch(torch.stack(images), torch.stack(targets), torch.stack(valids))


def _choose_indices(num_images: int, step: int, options: TeachOptions) -> list[int]:
    """Return the step's images: one permutation per epoch, each image once before any comes again."""
    indices = []
    for position in range(step * options.batch_size, (step + 1) * options.batch_size):
        epoch, place = divmod(position, num_images)
        indices.append(int(_permutation(num_images, options.seed, epoch)[place]))
    return indices


def _permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, num_images]).permutation(num_images)


def _read_target(
    dataset: SegmentationDataset, index: int, spec: EstimatorSpec, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Read ground-truth depth as the estimator would say it, at the input size.

    Returns:
        Target (h, w) float32: metres for metric estimators, else inverse depth with the 2nd percentile at 0 and the
        98th at 1 (the sky, infinitely far, counts as inverse depth 0). Valid (h, w) bool.
    """
    depth = dataset.read_depth(index)
    if spec.kind is DepthKind.METRIC:
        valid = np.isfinite(depth) & (depth > 0)
        if spec.max_depth_m is not None:
            valid &= depth <= spec.max_depth_m
        values = np.where(valid, depth, 0)
    else:
        metric = dataset.ground_truth_depth_kind is DepthKind.METRIC
        valid = ~np.isnan(depth) & (depth > 0) if metric else np.isfinite(depth)
        values = np.divide(1, depth, out=np.zeros_like(depth), where=valid) if metric else np.where(valid, depth, 0)
        low, high = np.percentile(values[valid], (2, 98)) if valid.any() else (0.0, 1.0)
        values = (values - low) / max(high - low, 1e-6)
    mask = torch.from_numpy(valid)[None, None].float()
    target = torch.from_numpy(np.where(valid, values, 0).astype(np.float32))[None, None]
    if target.shape[-2:] != size:
        target = interpolate(target, size=size, mode="bilinear", align_corners=False)
        # a pixel that took anything from an invalid one is invalid itself
        mask = interpolate(mask, size=size, mode="bilinear", align_corners=False)
    return target[0, 0], mask[0, 0] > 1 - 1e-4


def _jitter(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Return uint8 pixels with random contrast, brightness and colour cast, one of each per image."""
    if strength == 0:
        return image
    draws = rng.uniform(-strength, strength, 5)
    gain = torch.tensor((1 + draws[0]) * (1 + 0.5 * draws[1:4]), dtype=torch.float32).view(3, 1, 1)
    return ((image.float() - 128) * gain + 128 * (1 + draws[4])).clamp(0, 255).to(torch.uint8)  # uint8 would wrap

"""What a teaching step is fed: images and the depth a dataset owns, as the estimator would say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.loaders import batch_of_step
from data_cache.ranks import share_of
from data_cache.sample import IGNORE_INDEX, DepthKind, PackedBatch
from stages.networks.precision import Precision
from stages.pseudo_depth.aliases import EstimatorSpec
from stages.pseudo_depth.geometry import compute_input_size, resize_image
from stages.pseudo_depth.model_folder import LARGEST_SIZE_PX, Preprocessing

_BOUNDS = {
    "steps": (1, 1e8), "batch_size": (1, 65536), "lr": (1e-12, 1000), "weight_decay": (0, 1000), "jitter": (0, 1),
    "flip": (0, 1), "input_size": (1, LARGEST_SIZE_PX), "seed": (0, 2**62),
}  # fmt: skip


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
    input_size: int | None = None
    """Side in pixels the images are brought to; None means the estimator's recommended size (98 from nothing)."""
    seed: int = 0
    """Of weights, order and augmentation."""
    precision: Precision = "auto"
    """``auto``, ``bfloat16``, ``float16`` or ``float32``; weights, losses and updates are float32 in each."""

    def __post_init__(self) -> None:
        for field, (low, high) in _BOUNDS.items():
            value = getattr(self, field)
            if value is not None and not low <= value <= high:  # nan is in no range
                raise UserError(f"teaching needs {field} from {low:g} to {high:g}, got {value}")


def batches_from(
    dataset: SegmentationDataset, spec: EstimatorSpec, preprocessing: Preprocessing, options: TeachOptions
) -> Callable[[int], Iterator[PackedBatch]]:
    """Return the function from a first step to the batches from there to the end, each a pure function of its step.

    All images are brought to one size, that of the first. The target is normalised inverse depth, or metres.
    """
    height, width = dataset.read_image(0).shape[:2]
    size = compute_input_size((height, width), recommended=spec.recommended_size, multiple=spec.size_multiple)

    def iterate(first_step: int) -> Iterator[PackedBatch]:
        with ThreadPoolExecutor(max_workers=1) as pool:  # one batch is read while another trains
            ahead: Future[PackedBatch] | None = None
            for step in range(first_step, options.steps + 1):
                ready = ahead
                if step < options.steps:
                    ahead = pool.submit(_read_batch, dataset, spec, preprocessing, size, options, step)
                if ready:
                    yield ready.result()

    return iterate


def _read_batch(
    dataset: SegmentationDataset,
    spec: EstimatorSpec,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    options: TeachOptions,
    step: int,
) -> PackedBatch:
    rng = np.random.default_rng([options.seed, step])
    images, targets = [], []
    _, whole_batch = batch_of_step(step, len(dataset), options.batch_size, options.seed)
    draws = [_draw(options, rng) for _ in whole_batch]  # of all, so that they do not depend on the number of ranks
    rows = share_of(len(whole_batch))
    indices = [whole_batch[row] for row in rows]
    for index, (flips, colours) in zip(indices, (draws[row] for row in rows), strict=True):
        pixels = dataset.read_image(index)
        image = resize_image(pixels, size, mode=preprocessing.resampling)
        depth = dataset.read_matching_depth(index, pixels.shape[:2])
        target, valid = _make_target(depth, dataset.ground_truth_depth_kind, spec, size)
        if flips:
            image, target, valid = image.flip(-1), target.flip(-1), valid.flip(-1)
        images.append(_jitter(image, colours))
        targets.append(target.where(valid, torch.nan))
    return PackedBatch(
        tuple(dataset.image_ids[index] for index in whole_batch),
        torch.stack(images).contiguous(memory_format=torch.channels_last),
        torch.full((len(indices), *size), IGNORE_INDEX, dtype=torch.uint8),
        torch.stack(targets),
    )


def _make_target(
    depth: NDArray[np.float32], kind: DepthKind | None, spec: EstimatorSpec, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return ground-truth depth (h, w) as the estimator would say it, at the input size.

    Returns:
        Target (h, w) float32: metres for metric estimators, else inverse depth with the 2nd percentile at 0 and the
        98th at 1 (the sky, infinitely far, counts as inverse depth 0). Valid (h, w) bool.
    """
    if spec.kind is DepthKind.METRIC:
        valid = np.isfinite(depth) & (depth > 0)
        if spec.max_depth_m is not None:
            valid &= depth <= spec.max_depth_m
        values = np.where(valid, depth, 0)
    else:
        metric = kind is DepthKind.METRIC
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


def _draw(options: TeachOptions, rng: np.random.Generator) -> tuple[bool, NDArray[np.float64] | None]:
    """Return whether an image is flipped, and how its colours change: five numbers, or None for not at all."""
    return rng.random() < options.flip, rng.uniform(-options.jitter, options.jitter, 5) if options.jitter else None


def _jitter(image: Tensor, draws: NDArray[np.float64] | None) -> Tensor:
    """Return uint8 pixels with random contrast, brightness and colour cast, one of each per image."""
    if draws is None:
        return image
    gain = torch.tensor((1 + draws[0]) * (1 + 0.5 * draws[1:4]), dtype=torch.float32).view(3, 1, 1)
    return ((image.float() - 128) * gain + 128 * (1 + draws[4])).clamp(0, 255).to(torch.uint8)  # uint8 would wrap

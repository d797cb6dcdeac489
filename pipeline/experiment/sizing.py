"""How large crops, batches and budgets can be on a machine, for images of certain sizes. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from data_cache.order import steps_per_epoch
from data_cache.settings import LARGEST_SCALE, Size

_MULTIPLE = 32
"""Crops are multiples of the strides of usual encoders."""
_SMALLEST_CROP = 64
_WHOLE_IMAGES = 4.0
"""Images of at most so many times the pixels of a crop are trained on and scored at their own size."""
_FAR_APART = 1.25
"""Shapes (width / height) that differ by more share no fixed size but a square."""
_LARGE_GPU_BYTES = 14_000_000_000


class Machine(NamedTuple):
    """What computes."""

    name: str
    """For people."""
    gpu_bytes: int | None
    """Memory of the GPU; None without one."""


class Sizing(NamedTuple):
    """Keys of a recipe, and why."""

    crop: Size
    scale: tuple[float, float]
    at_crop_size: bool
    """Whether images enter at the crop's size (``evaluation.size = "recipe"``)."""
    batch_size: int
    epochs: int
    evaluation_batch: int
    crop_reason: str
    epochs_reason: str


def choose_sizes(sizes: Counter[Size], num_train: int, machine: Machine) -> Sizing:
    """Choose for images of these sizes.

    Args:
        sizes: number of images by (height, width), px.
        num_train: images of the training split.
        machine: where it will run.
    """
    area, batch, steps = _choose_budget(machine)
    heights, widths = ([size[side] for size in sizes.elements()] for side in (0, 1))
    height, width = sorted(heights)[len(heights) // 2], sorted(widths)[len(widths) // 2]
    shapes = [wide / high for high, wide in sizes]
    mixed = max(shapes) / min(shapes) > _FAR_APART
    batch = max(1, min(batch, num_train))
    per_epoch = steps_per_epoch(num_train, batch)
    epochs = max(1, round(steps / per_epoch))
    per_phase = f"{epochs * per_epoch} steps a phase, for {machine.name}"
    if max(high * wide for high, wide in sizes) <= _WHOLE_IMAGES * area:
        crop = (
            _fit(min(heights), min(widths), area) if not mixed else _fit(min(height, width), min(height, width), area)
        )
        reason = f"images of {_describe(sizes)} are scored whole; a crop of this size fits {machine.name}"
        return Sizing(crop, (0.75, 1.25), False, batch, epochs, 4 if len(sizes) == 1 else 1, reason, per_phase)
    crop = _fit(height, width, area) if not mixed else _fit(min(height, width), min(height, width), area)
    zoom = max(math.sqrt(crop[0] * crop[1] / (height * width)), 1 / LARGEST_SCALE)
    scale = round(max(0.8 * zoom, 1 / LARGEST_SCALE), 4), round(1.5 * zoom, 4)
    reason = (
        f"images of {_describe(sizes)} are too large for {machine.name}: they are shrunk to {zoom:.0%} for training "
        "and prediction, and what is then smaller than a few pixels is lost; a larger crop (and scale) keeps more"
    )
    return Sizing(crop, scale, True, batch, epochs, 4, reason, per_phase)


def _choose_budget(machine: Machine) -> tuple[int, int, int]:
    """Return pixels of a crop, images of a batch, and steps of a phase."""
    if machine.gpu_bytes is None:
        return 240 * 320, 4, 600
    return (512 * 512, 16, 4000) if machine.gpu_bytes >= _LARGE_GPU_BYTES else (384 * 384, 8, 3000)


def _fit(height: int, width: int, area: int) -> Size:
    """Return the largest crop of a shape that has at most so many pixels and is no larger than the image."""
    shrink = min(1.0, math.sqrt(area / (height * width)))
    sides = (max(_SMALLEST_CROP, int(side * shrink) // _MULTIPLE * _MULTIPLE) for side in (height, width))
    return next(sides), next(sides)


def _describe(sizes: Counter[Size]) -> str:
    (height, width), _ = sizes.most_common(1)[0]
    return f"{width} x {height} px" + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")

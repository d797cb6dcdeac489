"""How often each class occurs in a split, and the loss weights that make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_cache.datasets.interface import SegmentationDataset
from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX


class ClassCount(NamedTuple):
    """Labelled pixels, counted over a split."""

    pixels: int
    """Of this class."""
    pixels_around: int
    """Of any class, in the images where this one occurs."""


def count_classes(dataset: SegmentationDataset) -> list[ClassCount]:
    """Read every mask of a split once and return the counts of each class; void does not count."""
    num_classes = len(dataset.classes)
    pixels, around = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for index in range(len(dataset)):
        labels = dataset.read_labels(index)
        counts = np.bincount(labels[labels != IGNORE_INDEX].ravel(), minlength=num_classes)
        pixels += counts
        around += np.where(counts > 0, counts.sum(), 0)
    return [ClassCount(int(own), int(total)) for own, total in zip(pixels, around, strict=True)]


def compute_median_frequency_weights(counts: Sequence[ClassCount]) -> tuple[float, ...]:
    """Return median(frequency) / frequency per class; the frequency is over the images where the class occurs.

    Returns:
        One weight per class, rounded to six digits; 0 for classes that never occur, which no pixel can ask for.

    Raises:
        UserError: no pixel is labelled.

    Source: Eigen & Fergus 2015, section 6.3.2, as used by SegNet (Badrinarayanan et al. 2017, section 4).
    """
    frequencies = [count.pixels / count.pixels_around if count.pixels else None for count in counts]
    present = [frequency for frequency in frequencies if frequency is not None]
    if not present:
        raise UserError("no pixel of the training split is labelled, so its classes have no median frequency")
    median = float(np.median(present))
    return tuple(0.0 if frequency is None else round(median / frequency, 6) for frequency in frequencies)

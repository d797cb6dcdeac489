"""How often each class occurs in a split, and the loss weights that make up for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX


class ClassCount(NamedTuple):
    """Labelled pixels, counted over a split."""

    pixels: int
    """Of this class."""
    pixels_around: int
    """Of any class, in the images where this one occurs."""


def count_classes(num_classes: int, images: Iterable[Mapping[int, int]]) -> list[ClassCount]:
    """Return the counts of each class of a split; void does not count.

    Args:
        images: labelled pixels of each image by train id.
    """
    counts = [ClassCount(0, 0)] * num_classes
    for pixels in images:
        labelled = {train_id: count for train_id, count in pixels.items() if train_id != IGNORE_INDEX}
        for train_id, count in labelled.items():
            own, around = counts[train_id]
            counts[train_id] = ClassCount(own + count, around + sum(labelled.values()))
    return counts


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

"""How many batches make an epoch: one rule for plans, loaders and learning-rate schedules. Imports no torch."""

from __future__ import annotations


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches in a split; a split smaller than one batch makes one smaller batch."""
    return max(1, num_images // batch_size)

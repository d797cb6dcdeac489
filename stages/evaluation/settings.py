"""What is measured, on which images. Imports no torch."""

from __future__ import annotations

from typing import Literal

from data_cache.settings import LARGEST_BATCH, Decides, Section, setting

EVALUATION_VERSION = 3
"""Raised by hand when a metric is added or repaired, so that older runs are scored anew from their weights."""


class EvaluationSettings(Section):
    """How finished weights are scored."""

    split: str = setting("val", Decides.SCORES)
    """Reported split; nothing is selected on it."""
    size: Literal["original", "recipe"] = setting("original", Decides.SCORES)
    """Whether images enter at their own size or at the crop's size; labels keep their own either way."""
    batch_size: int = setting(8, Decides.NOTHING, ge=1, le=LARGEST_BATCH)
    """Images per forward pass."""
    panels: int = setting(4, Decides.NOTHING, ge=0, le=1000)
    """Qualitative panels written per run."""

"""``scales.csv`` beside exported depth maps: what they mean, and how 16-bit numbers become the raw ones again.

A PNG holds ``1 + round(65534 * (raw - min) / (max - min))``, and 0 where the raw number is not finite.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_cache.content import MissingText, read_text
from data_cache.errors import UserError
from data_cache.sample import DepthKind

SCALES_FILE = "scales.csv"
_COLUMNS = ("image", "min", "max", "kind")
_STEPS = 65534
_LARGEST = 1 << 28
"""Bytes: a million images with long names."""


class DepthScales(NamedTuple):
    """What is written beside exported maps."""

    kind: DepthKind | None
    """What the raw numbers mean; None in files of older versions."""
    ranges: Mapping[str, tuple[float, float]]
    """Least and largest finite raw number by image."""

    def restore(self, image_id: str, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the raw numbers of a PNG's steps (h, w), nan where they are.

        Raises:
            UserError: the image is not among these.
        """
        if image_id not in self.ranges:
            raise UserError(f"{SCALES_FILE} has no line for the depth map of image {image_id!r}; export the maps again")
        low, high = self.ranges[image_id]
        return np.asarray(low + (steps.astype(np.float64) - 1) / _STEPS * (high - low), np.float32)

    def describe(self, image_id: str) -> str:
        """Return what the raw numbers of an image's PNG depend on besides the file, in words."""
        return f"scaled to {self.ranges.get(image_id)}"


def to_steps(raw: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint16]:
    """Return what a PNG holds of raw numbers (h, w), of which the finite ones lie from ``low`` to ``high``."""
    with np.errstate(invalid="ignore"):  # what is not finite becomes 0 below
        steps = np.round(_STEPS * ((raw - low) / ((high - low) or 1.0)))
    return np.where(np.isfinite(raw), 1 + steps, 0).astype(np.uint16)


def format_scales(kind: DepthKind, ranges: Iterable[tuple[str, float, float]]) -> str:
    """Return the text of the file."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(_COLUMNS)
    rows.writerows((*row, str(kind)) for row in ranges)
    return text.getvalue()


def read_scales(path: Path) -> DepthScales | None:
    """Return what a file says; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        text = read_text(path, largest_bytes=_LARGEST, remedy="export the maps again")
    except MissingText:
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        ranges = {row["image"]: (float(row["min"]), float(row["max"])) for row in rows}
        kinds = {DepthKind(row["kind"]) for row in rows if row.get("kind")}
    except (csv.Error, KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{path} is damaged ({problem}); export the maps again") from problem
    if len(kinds) > 1:
        raise UserError(f"{path} holds maps of several kinds ({', '.join(sorted(kinds))}); export them apart")
    return DepthScales(next(iter(kinds), None), ranges)

"""What each image of a split scored, kept while the totals are counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_cache.image_scores import ImageScores
from data_cache.ranks import gather_over_ranks, gather_tensors

_BATCHES_AT_ONCE = 64
_BETWEEN = "\0"
"""Between ids; no name of a file holds it."""
KINDS = ("tp", "fp", "fn", "void")
"""Pixels that are counted per class; the last are predictions where the truth is void."""
VALUES = ("boundary_f1", "depth_mse", "depth_absrel", "depth_delta1")


class ImageLog:
    """The scores of every image so far, in some hundred bytes each.

    Args:
        classes: names of the C classes.
        with_depth: whether depth is scored.
    """

    def __init__(self, classes: Sequence[str], *, with_depth: bool) -> None:
        self._classes = classes
        self._num_values = len(VALUES) if with_depth else 1
        self._image_ids: list[str] = []
        """Of many images in one text, in which they take a fifth of the bytes."""
        self._counts: list[NDArray[np.integer]] = []
        self._values: list[NDArray[np.float64]] = []
        self._waiting: list[tuple[Sequence[str], Tensor, Tensor]] = []

    def add(self, image_ids: Sequence[str], counts: Tensor, boundary_f1: Tensor, depth: Tensor | None) -> None:
        """Note the images of one batch; nothing waits for the device but one batch in many.

        Args:
            counts: (B, 4, C) int64 as in KINDS.
            boundary_f1: (B,); NaN where there is none.
            depth: (B, 3) as in the rest of VALUES, likewise; None where it is not scored.
        """
        values = boundary_f1.unsqueeze(1)
        self._waiting.append((image_ids, counts, values if depth is None else torch.cat([values, depth], dim=1)))
        if len(self._waiting) >= _BATCHES_AT_ONCE:
            self._read()

    def _read(self) -> None:
        """Fetch what waits on the device; counts take as few bytes as they need."""
        if not self._waiting:
            return
        image_ids, *tensors = zip(*self._waiting, strict=True)
        counts, values = (torch.cat(each).cpu().numpy() for each in tensors)
        self._waiting = []
        self._image_ids.append(_BETWEEN.join(image_id for batch in image_ids for image_id in batch))
        self._counts.append(counts.astype(np.min_scalar_type(int(counts.max()))))
        self._values.append(values)

    def gather_over_ranks(self) -> None:
        """Append the images of the other ranks, in the order of the ranks."""
        self._read()
        everyone: list[list[str]] = gather_over_ranks(self._list_image_ids())
        lengths = [len(image_ids) for image_ids in everyone]
        counts, values = self._concatenate()
        self._counts = _gather_rows(counts.astype(np.int64), lengths)
        self._values = _gather_rows(values, lengths)
        self._image_ids = [_BETWEEN.join(image_ids) for image_ids in everyone if image_ids]

    def _list_image_ids(self) -> list[str]:
        return [image_id for text in self._image_ids for image_id in text.split(_BETWEEN)]

    def _concatenate(self) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Return (N, 4, C) counts and the values, (N, 4) with depth and (N, 1) without."""
        none = np.zeros((0, len(KINDS), len(self._classes)), np.uint8), np.zeros((0, self._num_values))
        return np.concatenate([none[0], *self._counts]), np.concatenate([none[1], *self._values])

    def compute(self) -> ImageScores:
        """Return the scores of all images."""
        self._read()
        counts, values = self._concatenate()
        tp, fp, fn, void = (counts[:, place].astype(np.int64) for place in range(len(KINDS)))
        truth, union = (tp + fn).sum(axis=1), tp + fp + fn
        with np.errstate(invalid="ignore"):  # 0/0 is NaN where an image has no labelled pixel
            iou = tp / np.maximum(union, 1)
            miou, accuracy = iou.sum(axis=1) / (union > 0).sum(axis=1), tp.sum(axis=1) / truth
        missing = np.full((len(values), len(VALUES) - self._num_values), np.nan)
        ids, classes = np.array(self._list_image_ids(), dtype=str), np.array(self._classes, dtype=str)
        return ImageScores(ids, classes, tp, fp, fn, void, miou, accuracy, *np.hstack([values, missing]).T.copy())


def _gather_rows(rows: NDArray, lengths: Sequence[int]) -> list[NDArray]:
    """Return the rows of every rank, of which each has its own number."""
    padded = np.zeros((max(lengths), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    everyone = gather_tensors(torch.from_numpy(padded))
    return [found[:length].numpy() for found, length in zip(everyone, lengths, strict=True)]

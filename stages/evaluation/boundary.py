"""Boundary F1: how well the outlines of regions are found, however large the regions are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data_cache.ranks import sum_over_ranks
from data_cache.sample import IGNORE_INDEX
from stages.evaluation.counting import add_one_by_one, count_cells

TOLERANCE = 0.0075  # of the image diagonal: Csurka et al. 2013, section 3
MIN_TOLERANCE_PX = 2.0  # ours: on small images 0.75 % of the diagonal is less than the annotation is worth
_WORDS = ((8, torch.uint8), (15, torch.int16), (31, torch.int32), (63, torch.int64))
"""Bits of a type that can be set without meeting its sign."""


class BoundaryScores:
    """Running mean over images of the boundary F1 of Csurka et al. 2013.

    Per image and class, the boundary is the set of the class's pixels with a 4-neighbour of another label (the frame of
    the image is no boundary). Precision is the share of predicted boundary pixels within the tolerance (Euclidean) of a
    true boundary pixel of the same class, recall the reverse, F1 = 2PR/(P+R). F1 is averaged over the classes with a
    boundary in truth or prediction, then over the images that have any; 0 when no image has.

    Void pixels are void in the prediction too, so what is predicted there changes nothing. The rim of a void region
    belongs to the boundary of the classes around it: on VOC, whose objects all lie in a void band, these rims are the
    only object boundaries there are.

    Args:
        num_classes: C; labels and predictions are in [0, C), labels may be IGNORE_INDEX.
        device: of both.

    Source: Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?"
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self._totals = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum over images, and the number of images with a boundary."""
        self._words = _list_words(num_classes, device)

    def update(self, predictions: Tensor, seg_labels: Tensor) -> None:
        """Score one batch of (B, H, W) predictions and labels; waits for nothing."""
        truth = seg_labels.to(torch.uint8)
        predicted = torch.where(truth == IGNORE_INDEX, truth, predictions.to(torch.uint8))
        tolerance_px = max(MIN_TOLERANCE_PX, TOLERANCE * math.hypot(*truth.shape[-2:]))
        edges = _edges(truth), _edges(predicted)
        near = self._find_near(truth, predicted, *edges, tolerance_px)
        (num_truth, found), (num_predicted, right) = (
            self._per_class(labels, *where) for labels, *where in zip((truth, predicted), edges, near, strict=True)
        )
        precision = right / num_predicted.clamp(min=1)
        recall = found / num_truth.clamp(min=1)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)  # 0 of a class without a boundary
        present = ((num_truth + num_predicted) > 0).sum(dim=1)
        values = torch.stack([f1.sum(dim=1) / present.clamp(min=1), (present > 0).double()], dim=1)
        self._totals = add_one_by_one(self._totals, values)

    def sum_over_ranks(self) -> None:
        """Add what the other ranks have scored."""
        self._totals = sum_over_ranks(self._totals)

    def compute(self) -> float:
        """Return the mean boundary F1 in [0, 1]."""
        total, images = self._totals.tolist()
        return float(total / images) if images else 0.0

    def _per_class(self, labels: Tensor, edges: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Count each class's boundary pixels and those of them that are near the other's; each (B, C) float64."""
        images, classes = len(labels), self.num_classes
        image = torch.arange(images, device=labels.device).view(-1, 1, 1)
        nowhere = images * classes * 2
        cells = torch.where(edges, (image * classes + labels) * 2 + near, nowhere)
        counts = count_cells(cells, nowhere + 1)[:-1].view(images, classes, 2).double()
        return counts.sum(dim=2), counts[..., 1]

    def _find_near(
        self, truth: Tensor, predicted: Tensor, truth_edges: Tensor, predicted_edges: Tensor, tolerance_px: float
    ) -> tuple[Tensor, Tensor]:
        """Return which (B, H, W) boundary pixels are near the boundary of the same class in the other map, for both.

        A pixel lies on the boundary of no class but its own, so one bit per class lets a single dilation serve all.
        """
        near = torch.zeros_like(truth_edges), torch.zeros_like(truth_edges)
        for bit_of in self._words:
            bits = bit_of[truth.int()] * truth_edges, bit_of[predicted.int()] * predicted_edges
            near[0].logical_or_((_or_over_disk(bits[1], tolerance_px) & bits[0]) != 0)
            near[1].logical_or_((_or_over_disk(bits[0], tolerance_px) & bits[1]) != 0)
        return near


def _list_words(num_classes: int, device: torch.device | str) -> list[Tensor]:
    """Return the bit of each label in as few words as hold all classes, each (256,); 0 for labels of other words.

    Words are as narrow as can be: dilation moves all of them through memory many times.
    """
    width, kind = next((width, kind) for width, kind in _WORDS if width >= num_classes or kind is _WORDS[-1][1])
    words = []
    for first in range(0, num_classes, width):
        classes = torch.arange(first, min(first + width, num_classes), device=device)
        bit_of = torch.zeros(256, dtype=kind, device=device)
        bit_of[first : first + len(classes)] = (1 << (classes - first)).to(kind)
        words.append(bit_of)
    return words


def _edges(labels: Tensor) -> Tensor:
    """Return (B, H, W) bool: labelled pixels with a 4-neighbour of another label."""
    edges = torch.zeros_like(labels, dtype=torch.bool)
    vertical = labels[:, 1:] != labels[:, :-1]
    horizontal = labels[:, :, 1:] != labels[:, :, :-1]
    edges[:, 1:] |= vertical
    edges[:, :-1] |= vertical
    edges[:, :, 1:] |= horizontal
    edges[:, :, :-1] |= horizontal
    return edges & (labels != IGNORE_INDEX)


def _or_over_disk(bits: Tensor, radius_px: float) -> Tensor:
    """Return each pixel's bitwise or over the Euclidean disk around it; (B, H, W) of any integer type.

    The disk is a stack of columns: the column at horizontal distance x reaches sqrt(r² - x²) up and down. Columns are
    grown from the rim inwards, so the whole costs 4r passes over the image instead of one per pixel of the disk.
    """
    column, reach = bits.clone(), 0
    disk = torch.zeros_like(bits)
    for offset in range(math.floor(radius_px), -1, -1):
        for step in range(reach + 1, math.floor(math.sqrt(radius_px**2 - offset**2)) + 1):
            column[:, step:] |= bits[:, :-step]
            column[:, :-step] |= bits[:, step:]
            reach = step
        if offset:
            disk[:, :, offset:] |= column[:, :, :-offset]
            disk[:, :, :-offset] |= column[:, :, offset:]
        else:
            disk |= column
    return disk

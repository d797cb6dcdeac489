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

    def update(self, predictions: Tensor, seg_labels: Tensor) -> Tensor:
        """Score one batch of (B, H, W) predictions and labels; waits for nothing.

        Returns:
            (B,) float64: F1 of each image, NaN where an image has no boundary.
        """
        truth = seg_labels.to(torch.uint8)
        predicted = torch.where(truth == IGNORE_INDEX, truth, predictions.to(torch.uint8))
        tolerance_px = max(MIN_TOLERANCE_PX, TOLERANCE * math.hypot(*truth.shape[-2:]))
        edges = _edges(truth), _edges(predicted)
        near = self._find_near(truth, predicted, *edges, tolerance_px)
        num_truth, found = self._count(truth, edges[0], near[0])
        num_predicted, right = self._count(predicted, edges[1], near[1])
        precision = right / num_predicted.clamp(min=1)
        recall = found / num_truth.clamp(min=1)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)  # 0 of a class without a boundary
        present = ((num_truth + num_predicted) > 0).sum(dim=1)
        of_images = f1.sum(dim=1) / present.clamp(min=1)
        self._totals = add_one_by_one(self._totals, torch.stack([of_images, (present > 0).double()], dim=1))
        return torch.where(present > 0, of_images, torch.nan)

    def sum_over_ranks(self) -> None:
        """Add what the other ranks have scored."""
        self._totals = sum_over_ranks(self._totals)

    def compute(self) -> float:
        """Return the mean boundary F1 in [0, 1]."""
        total, images = self._totals.tolist()
        return float(total / images) if images else 0.0

    def _count(self, labels: Tensor, edges: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Count each class's boundary pixels and those of them that are near the other's; each (B, C) float64."""
        image = torch.arange(len(labels), device=labels.device, dtype=torch.int32).view(-1, 1, 1)
        kind = edges.view(torch.uint8) + near.view(torch.uint8)  # only edges are near: 0, 1 or 2
        cells = labels.int().mul_(3).add_(kind).add_(image * (256 * 3))
        counts = count_cells(cells, len(labels) * 256 * 3).view(-1, 256, 3)[:, : self.num_classes].double()
        return counts[..., 1] + counts[..., 2], counts[..., 2]

    def _find_near(
        self, truth: Tensor, predicted: Tensor, truth_edges: Tensor, predicted_edges: Tensor, tolerance_px: float
    ) -> tuple[Tensor, Tensor]:
        """Return which (B, H, W) boundary pixels are near the boundary of the same class in the other map, for both.

        A pixel lies on the boundary of no class but its own, so one bit per class lets a single dilation serve all.
        """
        near = torch.zeros_like(truth_edges), torch.zeros_like(truth_edges)
        width, kind = next((width, kind) for width, kind in _WORDS if width >= min(self.num_classes, _WORDS[-1][0]))
        for first in range(0, self.num_classes, width):
            of_truth = _bits_of(truth, truth_edges, first, width, kind)
            of_predicted = _bits_of(predicted, predicted_edges, first, width, kind)
            near[0].logical_or_((_or_over_disk(of_predicted, tolerance_px) & of_truth) != 0)
            near[1].logical_or_((_or_over_disk(of_truth, tolerance_px) & of_predicted) != 0)
        return near


def _bits_of(labels: Tensor, where: Tensor, first: int, width: int, kind: torch.dtype) -> Tensor:
    """Return a word (B, H, W) with the bit of each label from ``first`` on, 0 for other labels and elsewhere.

    Words are as narrow as can be: dilation moves them through memory many times.
    """
    place = labels - first  # uint8: what is below wraps around to far above
    bit = torch.ones((), dtype=kind, device=labels.device) << place.clamp(max=width).to(kind)
    return bit.mul_((where & (place < width)).to(kind))


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

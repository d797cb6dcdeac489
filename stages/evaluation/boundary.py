"""Boundary F1: how well the outlines of regions are found, however large the regions are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data_cache.sample import IGNORE_INDEX

TOLERANCE = 0.0075  # of the image diagonal: Csurka et al. 2013, section 3
MIN_TOLERANCE_PX = 2.0  # ours: on small images 0.75 % of the diagonal is less than the annotation is worth
_CLASSES_PER_WORD = 62  # bits of an int64 that can be set without meeting its sign


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

    Source: Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?"
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._sum = 0.0
        self._num_images = 0

    def update(self, predictions: Tensor, seg_labels: Tensor) -> None:
        """Score one batch of (B, H, W) predictions and labels."""
        truth = seg_labels.long()
        predicted = torch.where(truth == IGNORE_INDEX, IGNORE_INDEX, predictions.long())
        tolerance_px = max(MIN_TOLERANCE_PX, TOLERANCE * math.hypot(*truth.shape[-2:]))
        truth_edges, predicted_edges = _edges(truth), _edges(predicted)
        num_truth = self._per_class(truth, truth_edges)
        num_predicted = self._per_class(predicted, predicted_edges)
        found = self._per_class(truth, self._near(truth, truth_edges, predicted, predicted_edges, tolerance_px))
        right = self._per_class(predicted, self._near(predicted, predicted_edges, truth, truth_edges, tolerance_px))
        precision = right / num_predicted.clamp(min=1)
        recall = found / num_truth.clamp(min=1)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        present = (num_truth + num_predicted) > 0
        for image_f1, image_present in zip(f1, present, strict=True):
            if image_present.any():
                self._sum += float(image_f1[image_present].mean())
                self._num_images += 1

    def compute(self) -> float:
        """Return the mean boundary F1 in [0, 1]."""
        return self._sum / self._num_images if self._num_images else 0.0

    def _per_class(self, labels: Tensor, where: Tensor) -> Tensor:
        """Count the pixels of each class where ``where`` (B, H, W) holds, as (B, C) float64 on the CPU."""
        images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1).expand_as(labels)
        cells = (images * self.num_classes + labels)[where]
        counts = torch.bincount(cells, minlength=len(labels) * self.num_classes)
        return counts.view(len(labels), self.num_classes).cpu().double()

    def _near(self, labels: Tensor, edges: Tensor, other: Tensor, other_edges: Tensor, tolerance_px: float) -> Tensor:
        """Return (B, H, W) bool: boundary pixels of ``labels`` near the boundary of the same class in ``other``.

        A pixel lies on the boundary of no class but its own, so one bit per class lets a single dilation serve all.
        """
        near = torch.zeros_like(edges)
        for first in range(0, self.num_classes, _CLASSES_PER_WORD):
            here = (other >= first) & (other < first + _CLASSES_PER_WORD) & other_edges
            bits = torch.where(here, torch.ones_like(other) << (other - first).clamp(0, _CLASSES_PER_WORD), 0)
            dilated = _or_over_disk(bits, tolerance_px)
            mine = (labels >= first) & (labels < first + _CLASSES_PER_WORD) & edges
            near |= mine & ((dilated >> (labels - first).clamp(0, _CLASSES_PER_WORD) & 1) == 1)
        return near


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
    """Return each pixel's bitwise or over the Euclidean disk around it; (B, H, W) int64.

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

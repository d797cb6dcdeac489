"""Segmentation metrics of every convention in use, from one confusion matrix and running per-image means.

The same predictions score differently under different conventions (pooled or per image, classes or pixels weighted
equally, void ignored or not), so each convention has a name of its own and all are reported side by side. Per class c,
TP, FP and FN count pixels over the whole split; p is the share of labelled pixels that are right; C classes:

==========================  ==============================================================================
``miou_macro``              mean of TP/(TP+FP+FN) over classes with a non-empty union — the headline
``miou_micro``              sum of TP / sum of (TP+FP+FN) = p / (2 - p): pixels weigh, not classes
``miou_micro_imagewise``    mean over images of p_i / (2 - p_i): the best reading of the pseudo-depth paper's mIoU
``miou_imagewise_macro``    mean over images of the mean IoU over the classes in truth or prediction of that image
``pixel_acc``               p
``acc_binary``              (TP+TN)/(TP+FP+FN+TN) averaged over classes = 1 - 2(1-p)/C: the paper's acc. Not pixel
                            accuracy: with 21 classes and nothing right it is still 0.905
``iiou_macro_fg``           mean IoU over foreground classes with a non-empty union
``iiou_micro_fg``           sum of TP / sum of (TP+FP+FN), both over foreground classes
``fwiou``                   IoU weighted by the class's share of labelled pixels
==========================  ==============================================================================

Foreground is every class but the background class. Data sets without one (CamVid, Cityscapes, scenes) have only
foreground: there ``iiou_macro_fg`` equals ``miou_macro`` and ``iiou_micro_fg`` equals ``miou_micro``. This "iIoU" is
the paper's (objects without background), not Cityscapes' instance-weighted one.

A mean over nothing (no foreground class in truth or prediction, say) is 0, never NaN.

Source: the formulas of each paper, see the docstrings; Long et al. 2015 for the pooled conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from data_cache.sample import IGNORE_INDEX

HEADLINE = "miou_macro"
SEG_METRICS = (
    "miou_macro", "miou_micro", "miou_micro_imagewise", "miou_imagewise_macro", "pixel_acc", "acc_binary",
    "iiou_macro_fg", "iiou_micro_fg", "fwiou", "boundary_f1",
)  # fmt: skip
"""Every segmentation metric, in the order of tables; ``boundary_f1`` is computed by ``boundary.py``."""
DEPTH_METRICS = ("depth_mse", "depth_absrel", "depth_delta1")
"""Every depth metric, computed by ``depth_errors.py``."""

VoidRule = Literal["ignore", "fp"]
"""What a prediction on a void pixel counts as: nothing, or a false positive of the predicted class."""

BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "bg"})


class MetricPreset(NamedTuple):
    """How one publication reads "mIoU", "iIoU" and "acc"."""

    void_as: VoidRule
    miou: str
    iiou: str
    acc: str


PRESETS = {
    "standard": MetricPreset("ignore", miou="miou_macro", iiou="iiou_macro_fg", acc="pixel_acc"),
    "paper-002": MetricPreset("fp", miou="miou_micro_imagewise", iiou="iiou_macro_fg", acc="acc_binary"),
}
"""``paper-002`` is the recipe that is consistent with every printed row of the pseudo-depth paper."""


class ClassScore(NamedTuple):
    """One row of the per-class table."""

    name: str
    iou: float | None
    """In [0, 1]; None when the class is in neither truth nor prediction."""
    acc: float | None
    """Share of the class's true pixels that were found (recall); None when the truth has none."""
    pixels: int
    """Labelled pixels of this class in the truth."""


def find_background(class_names: Sequence[str]) -> int | None:
    """Return the index of the class that is called background, or None when every class is an object of interest."""
    return next((index for index, name in enumerate(class_names) if name.lower() in BACKGROUND_NAMES), None)


class SegCounts:
    """Everything the metrics need, in memory that grows with neither the number nor the size of images.

    Counts are int64 and per-image values are added one by one in order, so how images are batched changes no digit.

    Args:
        num_classes: C, at most 255 (255 is void).
        background: class left out of the foreground metrics; None when every class is foreground.
    """

    def __init__(self, num_classes: int, *, background: int | None = None) -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"num_classes {num_classes} must be between 1 and {IGNORE_INDEX}, the label of void")
        if background is not None and not 0 <= background < num_classes:
            raise ValueError(
                f"background class {background} is not one of the {num_classes} classes 0…{num_classes - 1}"
            )
        self.num_classes = num_classes
        self.background = background
        self.confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64)
        """[truth, prediction] over labelled pixels."""
        self.void_predictions = torch.zeros(num_classes, dtype=torch.int64)
        """Predicted classes on void pixels; used only where void counts as false positive."""
        self.num_images = 0
        """Images seen, unlabelled ones included."""
        self._num_labelled_images = 0
        self._imagewise: dict[VoidRule, list[float]] = {"ignore": [0.0, 0.0], "fp": [0.0, 0.0]}  # sums of micro, macro

    def update(self, predictions: Tensor, seg_labels: Tensor) -> None:
        """Count one batch; batches may differ in size and resolution.

        Args:
            predictions: (B, H, W) class index in [0, C), any integer type; not looked at differently on void pixels.
            seg_labels: (B, H, W) class index in [0, C) or IGNORE_INDEX.
        """
        counts = self._count(predictions, seg_labels)
        self.confusion += counts[:, :-1].sum(dim=0)
        self.void_predictions += counts[:, -1].sum(dim=0)
        self.num_images += len(counts)
        for image_counts in counts:
            confusion, void = image_counts[:-1], image_counts[-1]
            if not confusion.any():
                continue  # an unlabelled image says nothing about the network
            self._num_labelled_images += 1
            for rule, sums in self._imagewise.items():
                extra = void if rule == "fp" else torch.zeros_like(void)
                true_positive, union = _intersection_and_union(confusion, extra)
                sums[0] += _ratio(true_positive.sum(), union.sum())
                sums[1] += _mean_iou(true_positive, union)

    def _count(self, predictions: Tensor, seg_labels: Tensor) -> Tensor:
        """Return (B, C + 1, C) pixel counts [image, truth, prediction] on the CPU; the last truth row is void."""
        if predictions.shape != seg_labels.shape or predictions.ndim != 3:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and labels {tuple(seg_labels.shape)} must both be (B, H, W)"
            )
        classes = self.num_classes
        labels = seg_labels.long()
        void = labels == IGNORE_INDEX
        _check_ids("prediction", predictions, classes)
        _check_ids("label", labels.masked_fill(void, 0), classes)
        images = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
        cells = (images * (classes + 1) + labels.masked_fill(void, classes)) * classes + predictions
        counts = torch.bincount(cells.flatten(), minlength=len(labels) * (classes + 1) * classes)
        return counts.view(-1, classes + 1, classes).cpu()

    def merge(self, other: SegCounts) -> None:
        """Add the counts of another part of the split, as counted by another process."""
        self.confusion += other.confusion
        self.void_predictions += other.void_predictions
        self.num_images += other.num_images
        self._num_labelled_images += other._num_labelled_images
        for rule, sums in other._imagewise.items():
            self._imagewise[rule] = [mine + theirs for mine, theirs in zip(self._imagewise[rule], sums, strict=True)]

    @property
    def labelled_pixels(self) -> int:
        """Pixels that are not void."""
        return int(self.confusion.sum())

    def compute(self, void_as: VoidRule = "ignore") -> dict[str, float]:
        """Return every metric of this module by name, each in [0, 1] and finite."""
        extra = self.void_predictions if void_as == "fp" else torch.zeros_like(self.void_predictions)
        true_positive, union = _intersection_and_union(self.confusion, extra)
        truth = self.confusion.sum(dim=1)
        foreground = torch.arange(self.num_classes) != (-1 if self.background is None else self.background)
        wrong = int(union.sum() - true_positive.sum())  # sum over classes of FP + FN
        scored_pixels = int(truth.sum() + extra.sum())
        iou = true_positive.double() / union.clamp(min=1)
        micro_imagewise, imagewise_macro = (
            total / self._num_labelled_images if self._num_labelled_images else 0.0
            for total in self._imagewise[void_as]
        )
        return {
            "miou_macro": _mean_iou(true_positive, union),
            "miou_micro": _ratio(true_positive.sum(), union.sum()),
            "miou_micro_imagewise": micro_imagewise,
            "miou_imagewise_macro": imagewise_macro,
            "pixel_acc": _ratio(true_positive.sum(), truth.sum()),
            "acc_binary": 1 - wrong / (self.num_classes * scored_pixels) if scored_pixels else 0.0,
            "iiou_macro_fg": _mean_iou(true_positive[foreground], union[foreground]),
            "iiou_micro_fg": _ratio(true_positive[foreground].sum(), union[foreground].sum()),
            "fwiou": float((truth.double() / truth.sum().clamp(min=1) * iou).sum()),
        }

    def per_class(self, class_names: Sequence[str]) -> list[ClassScore]:
        """Return one row per class, in class order."""
        true_positive, union = _intersection_and_union(self.confusion, torch.zeros_like(self.void_predictions))
        truth = self.confusion.sum(dim=1)
        return [
            ClassScore(name, hits / joint if joint else None, hits / pixels if pixels else None, pixels)
            for name, hits, joint, pixels in zip(
                class_names, true_positive.tolist(), union.tolist(), truth.tolist(), strict=True
            )
        ]


def _check_ids(what: str, ids: Tensor, classes: int) -> None:
    if ids.numel() and (ids.min() < 0 or ids.max() >= classes):
        found = sorted({int(value) for value in ids.unique()} - set(range(classes)))
        raise ValueError(f"{what}s {found} are outside the {classes} classes 0…{classes - 1} (void is {IGNORE_INDEX})")


def _intersection_and_union(confusion: Tensor, extra_predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Return TP and TP+FP+FN, both (C,) int64; extra predictions (C,) count as false positives."""
    true_positive = confusion.diagonal()
    return true_positive, confusion.sum(dim=0) + extra_predictions + confusion.sum(dim=1) - true_positive


def _ratio(part: Tensor, whole: Tensor) -> float:
    return int(part) / int(whole) if int(whole) else 0.0


def _mean_iou(true_positive: Tensor, union: Tensor) -> float:
    """Return the mean IoU over classes with a non-empty union; 0 when there is none."""
    present = union > 0
    return float((true_positive[present].double() / union[present]).mean()) if present.any() else 0.0

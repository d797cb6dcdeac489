"""The formulas of the segmentation metrics, from one confusion matrix and running per-image means.

What each name means stands in ``data_cache/metrics.py``; here is how it is computed. Data sets without a background
class (CamVid, Cityscapes, scenes) have only foreground: there ``iiou_macro_fg`` equals ``miou_macro`` and
``iiou_micro_fg`` equals ``miou_micro``. A mean over nothing (no foreground class in truth or prediction, say) is 0,
never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from data_cache.sample import IGNORE_INDEX

VoidRule = Literal["ignore", "fp"]
"""What a prediction on a void pixel counts as: nothing, or a false positive of the predicted class."""
_VOID_RULES: tuple[VoidRule, ...] = get_args(VoidRule)

BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "bg"})


class Counts(NamedTuple):
    """Pixels of a split, or of one image, by class; each (C,) int64."""

    true_positive: Tensor
    union: Tensor
    """TP + FP + FN."""
    truth: Tensor
    """Labelled pixels: TP + FN."""
    predicted_on_void: Tensor
    """Of the union: predictions on void pixels, where these count as false positives; else 0."""
    is_foreground: Tensor
    """(C,) bool."""


def _acc_binary(counts: Counts) -> float:
    wrong = int(counts.union.sum() - counts.true_positive.sum())  # sum over classes of FP + FN
    scored_pixels = int(counts.truth.sum() + counts.predicted_on_void.sum())
    return 1 - wrong / (len(counts.truth) * scored_pixels) if scored_pixels else 0.0


def _fwiou(counts: Counts) -> float:
    iou = counts.true_positive.double() / counts.union.clamp(min=1)
    return float((counts.truth.double() / counts.truth.sum().clamp(min=1) * iou).sum())


def _micro_iou(counts: Counts) -> float:
    return _ratio(counts.true_positive, counts.union)


def _macro_iou(counts: Counts) -> float:
    """Return the mean IoU over classes with a non-empty union; 0 when there is none."""
    present = counts.union > 0
    return float((counts.true_positive[present].double() / counts.union[present]).mean()) if present.any() else 0.0


def _foreground(counts: Counts) -> Counts:
    return Counts(*(values[counts.is_foreground] for values in counts))


POOLED: dict[str, Callable[[Counts], float]] = {
    "miou_macro": _macro_iou,
    "miou_micro": _micro_iou,
    "pixel_acc": lambda counts: _ratio(counts.true_positive, counts.truth),
    "acc_binary": _acc_binary,
    "iiou_macro_fg": lambda counts: _macro_iou(_foreground(counts)),
    "iiou_micro_fg": lambda counts: _micro_iou(_foreground(counts)),
    "fwiou": _fwiou,
}
"""Name → formula on the counts of the whole split; each in [0, 1]."""
IMAGEWISE: dict[str, Callable[[Counts], float]] = {
    "miou_micro_imagewise": _micro_iou,
    "miou_imagewise_macro": _macro_iou,
}
"""Name → formula on the counts of one image; the metric is its mean over the images with a labelled pixel."""


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
        self._sums: dict[VoidRule, dict[str, float]] = {rule: dict.fromkeys(IMAGEWISE, 0.0) for rule in _VOID_RULES}

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
            for rule, sums in self._sums.items():
                of_image = self._by_class(confusion, void, rule)
                for name in sums:
                    sums[name] += IMAGEWISE[name](of_image)

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

    @property
    def labelled_pixels(self) -> int:
        """Pixels that are not void."""
        return int(self.confusion.sum())

    def compute(self, void_as: VoidRule = "ignore") -> dict[str, float]:
        """Return every metric of ``POOLED`` and ``IMAGEWISE`` by name, each finite and in [0, 1]."""
        pooled = self._by_class(self.confusion, self.void_predictions, void_as)
        images = max(1, self._num_labelled_images)
        return {name: formula(pooled) for name, formula in POOLED.items()} | {
            name: total / images for name, total in self._sums[void_as].items()
        }

    def _by_class(self, confusion: Tensor, void_predictions: Tensor, void_as: VoidRule) -> Counts:
        """Return the counts that formulas take from (C, C) pixels [truth, prediction] and (C,) predictions on void."""
        on_void = void_predictions if void_as == "fp" else torch.zeros_like(void_predictions)
        true_positive, truth = confusion.diagonal(), confusion.sum(dim=1)
        union = confusion.sum(dim=0) + on_void + truth - true_positive
        is_foreground = torch.arange(self.num_classes) != (-1 if self.background is None else self.background)
        return Counts(true_positive, union, truth, on_void, is_foreground)

    def per_class(self, class_names: Sequence[str]) -> list[ClassScore]:
        """Return one row per class, in class order."""
        true_positive, union, truth, *_ = self._by_class(self.confusion, self.void_predictions, "ignore")
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


def _ratio(part: Tensor, whole: Tensor) -> float:
    return int(part.sum()) / int(whole.sum()) if int(whole.sum()) else 0.0

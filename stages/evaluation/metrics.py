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

from data_cache.ranks import sum_over_ranks
from data_cache.sample import IGNORE_INDEX
from stages.evaluation.counting import add_one_by_one, count_cells

VoidRule = Literal["ignore", "fp"]
"""What a prediction on a void pixel counts as: nothing, or a false positive of the predicted class."""
VOID_RULES: tuple[VoidRule, ...] = get_args(VoidRule)


class Counts(NamedTuple):
    """Pixels of a split, or of each of several images, by class; each (C,) or (B, C) int64."""

    true_positive: Tensor
    union: Tensor
    """TP + FP + FN."""
    truth: Tensor
    """Labelled pixels: TP + FN."""
    predicted_on_void: Tensor
    """Of the union: predictions on void pixels, where these count as false positives; else 0."""
    is_foreground: Tensor
    """(C,) bool."""


def _acc_binary(counts: Counts) -> Tensor:
    wrong = (counts.union - counts.true_positive).sum(-1)  # sum over classes of FP + FN
    scored_pixels = (counts.truth + counts.predicted_on_void).sum(-1)
    accuracy = 1 - wrong.double() / (counts.truth.shape[-1] * scored_pixels).clamp(min=1)
    return torch.where(scored_pixels > 0, accuracy, 0.0)


def _fwiou(counts: Counts) -> Tensor:
    iou = counts.true_positive.double() / counts.union.clamp(min=1)
    return (counts.truth.double() / counts.truth.sum(-1, keepdim=True).clamp(min=1) * iou).sum(-1)


def _micro_iou(counts: Counts) -> Tensor:
    return _ratio(counts.true_positive, counts.union)


def _macro_iou(counts: Counts) -> Tensor:
    """Return the mean IoU over classes with a non-empty union; 0 when there is none."""
    iou = counts.true_positive.double() / counts.union.clamp(min=1)  # 0 where the union is empty
    return iou.sum(-1) / (counts.union > 0).sum(-1).clamp(min=1)


def _foreground(counts: Counts) -> Counts:
    return Counts(*(values[..., counts.is_foreground] for values in counts))


POOLED: dict[str, Callable[[Counts], Tensor]] = {
    "miou_macro": _macro_iou,
    "miou_micro": _micro_iou,
    "pixel_acc": lambda counts: _ratio(counts.true_positive, counts.truth),
    "acc_binary": _acc_binary,
    "iiou_macro_fg": lambda counts: _macro_iou(_foreground(counts)),
    "iiou_micro_fg": lambda counts: _micro_iou(_foreground(counts)),
    "fwiou": _fwiou,
}
"""Name → formula on the counts of the whole split; each in [0, 1]."""
IMAGEWISE: dict[str, Callable[[Counts], Tensor]] = {
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


class SegCounts:
    """Everything the metrics need, in memory that grows with neither the number nor the size of images.

    Counts are int64 and per-image values are added one by one in order, so how images are batched changes no digit.
    All of it stays on the device until ``compute``: an update waits for nothing.

    Args:
        num_classes: C, at most 255 (255 is void).
        background: class left out of the foreground metrics; None when every class is foreground.
        device: of the predictions and labels.
    """

    def __init__(self, num_classes: int, *, background: int | None = None, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"num_classes {num_classes} must be between 1 and {IGNORE_INDEX}, the label of void")
        if background is not None and not 0 <= background < num_classes:
            raise ValueError(
                f"background class {background} is not one of the {num_classes} classes 0…{num_classes - 1}"
            )
        self.num_classes = num_classes
        self.background = background
        self.confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
        """[truth, prediction] over labelled pixels."""
        self.void_predictions = torch.zeros(num_classes, dtype=torch.int64, device=device)
        """Predicted classes on void pixels; used only where void counts as false positive."""
        self._images = torch.zeros(2, dtype=torch.int64, device=device)
        """Images seen, and those of them that have a labelled pixel."""
        self._sums = torch.zeros((len(VOID_RULES), len(IMAGEWISE)), dtype=torch.float64, device=device)
        self._strange = torch.zeros(IGNORE_INDEX - num_classes, dtype=torch.int64, device=device)
        """How often each label occurred that is neither a class nor void."""
        self._largest = torch.zeros((), dtype=torch.int64, device=device)
        """The largest prediction."""

    def update(self, predictions: Tensor, seg_labels: Tensor) -> Tensor:
        """Count one batch; batches may differ in size and resolution.

        Returns:
            (B, 4, C) int64 of each image: TP, FP and FN of the labelled pixels, and predictions on void ones.

        Args:
            predictions: (B, H, W) class index in [0, C), any integer type; not looked at differently on void pixels.
            seg_labels: (B, H, W) class index in [0, C) or IGNORE_INDEX. Others are refused by ``compute``.
        """
        counts = self._count(predictions, seg_labels)
        confusion, void = counts[:, : self.num_classes], counts[:, IGNORE_INDEX]
        labelled = confusion.flatten(1).any(dim=1)  # an unlabelled image says nothing about the network
        self.confusion = self.confusion + confusion.sum(dim=0)
        self.void_predictions = self.void_predictions + void.sum(dim=0)
        self._images = self._images + torch.stack([torch.ones_like(labelled), labelled]).sum(dim=1)
        of_images = [self._by_class(confusion, void, rule) for rule in VOID_RULES]
        values = torch.stack([torch.stack([each(of) for each in IMAGEWISE.values()], -1) for of in of_images], 1)
        self._sums = add_one_by_one(self._sums, torch.where(labelled.view(-1, 1, 1), values, 0.0))
        tp, union, truth, *_ = of_images[VOID_RULES.index("ignore")]
        return torch.stack([tp, union - truth, truth - tp, void], dim=1)

    def _count(self, predictions: Tensor, seg_labels: Tensor) -> Tensor:
        """Return (B, 256, C) pixel counts [image, truth, prediction]; the last row is void, others from C on wrong."""
        if predictions.shape != seg_labels.shape or predictions.ndim != 3:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and labels {tuple(seg_labels.shape)} must both be (B, H, W)"
            )
        classes, images = self.num_classes, len(seg_labels)
        self._largest = torch.maximum(self._largest, predictions.amax())
        image = torch.arange(images, device=seg_labels.device, dtype=torch.int32).view(-1, 1, 1)
        cells = seg_labels.to(torch.uint8).int().mul_(classes).add_(image * (256 * classes))
        cells.add_(predictions.clamp(max=classes - 1))
        counts = count_cells(cells, images * 256 * classes).view(images, 256, classes)
        self._strange = self._strange + counts[:, classes:IGNORE_INDEX].sum(dim=(0, 2))
        return counts

    def sum_over_ranks(self) -> None:
        """Count what the other ranks have counted as well."""
        self.confusion = sum_over_ranks(self.confusion)
        self.void_predictions = sum_over_ranks(self.void_predictions)
        self._images = sum_over_ranks(self._images)
        self._sums = sum_over_ranks(self._sums)

    @property
    def num_images(self) -> int:
        """Images seen, unlabelled ones included."""
        return int(self._images[0])

    @property
    def labelled_pixels(self) -> int:
        """Pixels that are not void."""
        return int(self.confusion.sum())

    def compute(self, void_as: VoidRule = "ignore") -> dict[str, float]:
        """Return every metric of ``POOLED`` and ``IMAGEWISE`` by name, each finite and in [0, 1].

        Raises:
            ValueError: a prediction or a label was outside the classes.
        """
        strange = [self.num_classes + place for place in self._strange.nonzero().flatten().tolist()]
        found = [f"labels {strange}"] * bool(strange)
        found += [f"predictions up to {int(self._largest)}"] * bool(self._largest >= self.num_classes)
        if found:
            classes = f"{self.num_classes} classes 0…{self.num_classes - 1} (void is {IGNORE_INDEX})"
            raise ValueError(f"{' and '.join(found)} are outside the {classes}")
        pooled = self._by_class(self.confusion, self.void_predictions, void_as)
        means = self._sums[VOID_RULES.index(void_as)] / self._images[1].clamp(min=1)
        return {name: float(formula(pooled)) for name, formula in POOLED.items()} | dict(
            zip(IMAGEWISE, means.tolist(), strict=True)
        )

    def _by_class(self, confusion: Tensor, void_predictions: Tensor, void_as: VoidRule) -> Counts:
        """Return the counts that formulas take from (…, C, C) pixels [truth, prediction] and (…, C) on void."""
        on_void = void_predictions if void_as == "fp" else torch.zeros_like(void_predictions)
        true_positive, truth = confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(dim=-1)
        union = confusion.sum(dim=-2) + on_void + truth - true_positive
        classes = torch.arange(self.num_classes, device=confusion.device)
        is_foreground = classes != (-1 if self.background is None else self.background)
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


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part.sum(-1).double() / whole.sum(-1).clamp(min=1)

"""The same predictions under every convention that publications score by; what void counts as changes each.

``data_cache/metrics.py`` says what the metrics of an evaluation mean; here those join them that are only ever read to
understand a published figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from data_cache.errors import unknown_name
from data_cache.image_scores import ImageScores
from data_cache.metrics import METRICS
from stages.evaluation.metrics import IMAGEWISE, POOLED, VOID_RULES, Counts, VoidRule

ALL = "all"


class ConventionScore(NamedTuple):
    """A score of the same predictions by one convention."""

    name: str
    void_ignored: float
    """Pixels without a label count for nothing."""
    void_as_fp: float
    """A prediction on them counts as a false positive of its class, as where void was never told to the metric."""
    what: str


def _iou_of_present(counts: Counts) -> Tensor:
    """Return the mean IoU over the classes in the truth."""
    iou = counts.true_positive.double() / counts.union.clamp(min=1)
    present = counts.truth > 0
    return torch.where(present, iou, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def _spread_over(classes: int) -> Callable[[Counts], Tensor]:
    """Return one-vs-rest accuracy as if the mean were over so many classes."""
    return lambda counts: 1 - (1 - POOLED["acc_binary"](counts)) * counts.truth.shape[-1] / classes


def _mean_over_images_first(counts: Counts) -> Tensor:
    """Return the mean over classes of each class's mean IoU over the images that have it."""
    iou, has_class = counts.true_positive.double() / counts.union.clamp(min=1), counts.union > 0
    of_classes = iou.sum(dim=0) / has_class.sum(dim=0).clamp(min=1)
    return of_classes.sum() / has_class.any(dim=0).sum().clamp(min=1)


_POOLED = POOLED | {"acc_binary_20": _spread_over(20), "acc_binary_21": _spread_over(21)}
_IMAGEWISE = IMAGEWISE | {"miou_imagewise_present": _iou_of_present}
_BY_IMAGE = {"class_iou_imagewise": _mean_over_images_first}
"""Name → formula on the counts of all images at once."""
_EXPLAINED = {
    "acc_binary_20": "one-vs-rest accuracy as if there were 20 classes: 1-2(1-p)/20; a reading of the pseudo-depth "
    "paper's acc that its failed rows rule out",
    "acc_binary_21": "the same with 21 classes, VOC's 20 and background: the reading that fits",
    "miou_imagewise_present": "mean over images of the mean IoU over the classes in the truth of that image; the other "
    "reading of Park & Heo 2021",
    "class_iou_imagewise": "mean over classes of the mean over the images that have the class in truth or prediction; "
    "Park & Heo 2021, figure 5",
}
CONVENTIONS = {
    **{name: f"{METRICS[name].convention} ({METRICS[name].source})" for name in (*POOLED, *IMAGEWISE)},
    **{name: _EXPLAINED[name] for name in (*_POOLED, *_IMAGEWISE, *_BY_IMAGE) if name in _EXPLAINED},
}
"""Name → what it is."""
PAPER_NOTE = (
    "consistent with every printed row of the pseudo-depth paper (pipeline paper-check): mIoU as miou_micro_imagewise, "
    "iIoU as iiou_macro_fg, acc as acc_binary_21, each with void as false positive"
)


def choose_conventions(wanted: str) -> list[str]:
    """Return the conventions that a comma-separated text names, all for ``all``.

    Raises:
        UserError: one is unknown.
    """
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in (ALL, *CONVENTIONS):
            raise unknown_name("convention", name, (ALL, *CONVENTIONS))
    return [name for name in CONVENTIONS if ALL in names or name in names]


def score_by_conventions(scores: ImageScores, names: list[str], *, background: int | None) -> list[ConventionScore]:
    """Return the predictions' scores by conventions.

    Args:
        scores: of each image.
        names: of CONVENTIONS.
        background: index of the class that is left out of the foreground metrics, None without one.
    """
    ignored, as_fp = (_compute(_count_images(scores, rule, background=background)) for rule in VOID_RULES)
    return [ConventionScore(name, ignored[name], as_fp[name], CONVENTIONS[name]) for name in names]


def _count_images(scores: ImageScores, void_as: VoidRule, *, background: int | None) -> Counts:
    """Return the counts of every image, (N, C) each."""
    tp, fp, fn, void = (torch.from_numpy(values) for values in (scores.tp, scores.fp, scores.fn, scores.void))
    on_void = void if void_as == "fp" else torch.zeros_like(tp)
    is_foreground = torch.arange(tp.shape[1]) != (-1 if background is None else background)
    return Counts(tp, tp + fp + fn + on_void, tp + fn, on_void, is_foreground)


def _compute(images: Counts) -> dict[str, float]:
    is_labelled = images.truth.any(dim=1)
    pooled = _change(images, lambda counts: counts.sum(dim=0))
    labelled = _change(images, lambda counts: counts[is_labelled])  # the others say nothing about the network
    formulas = (
        {name: formula(pooled) for name, formula in _POOLED.items()}
        | {name: formula(labelled).mean() for name, formula in _IMAGEWISE.items()}
        | {name: formula(labelled) for name, formula in _BY_IMAGE.items()}
    )
    return {name: float(value) for name, value in formulas.items()}


def _change(counts: Counts, change: Callable[[Tensor], Tensor]) -> Counts:
    *values, is_foreground = counts
    return Counts._make([*map(change, values), is_foreground])

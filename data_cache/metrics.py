"""Every score by its name: what it is, which way is better, and where its definition comes from. Imports no torch.

The one declaration of a metric. Evaluation computes what stands here (``stages/evaluation``), and tables, pages, cards,
files and help show it in this order and in these words; it lies here because both read it and stages do not import each
other. To add a metric: an entry here, its formula there, and the evaluation version raised.

The same predictions score differently under different conventions (counts pooled over the split or taken per image,
classes or pixels weighted equally), so each convention has a name of its own and all are reported side by side. Per
class, TP, FP and FN count pixels; p is the share of labelled pixels that are right; C classes. Foreground is every
class but background; where no class is called that, all are foreground.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """One way to score."""

    label: str
    """A few words, for headings and axes."""
    convention: str
    """What is counted and how it is averaged, as a phrase."""
    source: str
    """Where the definition comes from, or which publication reports it."""
    higher_is_better: bool = True
    unit: str = "fraction"
    left_out: str = "void"
    """Pixels that count for nothing."""
    main: bool = False
    """Whether it is among the few that people read first."""
    digits: int = 3
    """Decimal places shown to people."""

    @property
    def arrow(self) -> str:
        """The direction of better scores."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        """The same in words."""
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def explain(self) -> str:
        """Return everything about it as one phrase."""
        return (
            f"{self.label}: {self.convention}; {self.left_out} left out ({self.direction}; {self.unit}; {self.source})"
        )


HEADLINE = "miou_macro"
BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "bg"})
"""What people call the class that is no object, in small letters."""
FOREGROUND = ("iiou_macro_fg", "iiou_micro_fg")
"""Metrics of all classes but background."""
IMAGES_FILE = "images.npz"
"""In the folder of a run: what each image scored, see ``data_cache/image_scores.py``."""
_RATIO = "over pixels whose target is not nearly 0, per image, then over images"

METRICS = {
    "miou_macro": Metric(
        "mIoU",
        "mean of TP/(TP+FP+FN) over the classes in truth or prediction, counts pooled over the split",
        "Long et al. 2015",
        main=True,
    ),
    "miou_micro": Metric(
        "pixel mIoU",
        "sum of TP / sum of (TP+FP+FN) = p/(2-p), counts pooled over the split: pixels weigh, not classes",
        "a candidate for the pseudo-depth paper's mIoU",
    ),
    "miou_micro_imagewise": Metric(
        "pixel mIoU per image",
        "mean over images of p/(2-p): pixels weigh within an image, images weigh equally",
        "the best reading of the pseudo-depth paper's mIoU",
        main=True,
    ),
    "miou_imagewise_macro": Metric(
        "mIoU per image",
        "mean over images of the mean IoU over the classes in truth or prediction of that image",
        "Park & Heo 2021, as its text says",
    ),
    "pixel_acc": Metric("pixel accuracy", "p, counts pooled over the split", "Long et al. 2015", main=True),
    "acc_binary": Metric(
        "one-vs-rest accuracy",
        "(TP+TN)/(TP+FP+FN+TN) averaged over classes = 1-2(1-p)/C, no pixel accuracy: 0.905 with 21 classes and "
        "nothing right",
        "the pseudo-depth paper's acc",
    ),
    "iiou_macro_fg": Metric(
        "foreground mIoU",
        "mean IoU over foreground classes, counts pooled over the split; not Cityscapes' instance-weighted iIoU",
        "the pseudo-depth paper's iIoU, objects without background",
        main=True,
    ),
    "iiou_micro_fg": Metric(
        "foreground pixel mIoU",
        "sum of TP / sum of (TP+FP+FN), both over foreground classes, counts pooled over the split",
        "another reading of the pseudo-depth paper's iIoU",
    ),
    "fwiou": Metric(
        "frequency-weighted IoU",
        "IoU weighted by the class's share of labelled pixels, counts pooled over the split",
        "Long et al. 2015",
    ),
    "boundary_f1": Metric(
        "boundary F1",
        "F1 of the classes' outlines within 0.75 % of the image diagonal (at least 2 px), mean over classes, then over "
        "images",
        "Csurka et al. 2013",
    ),
    "depth_mse": Metric(
        "depth MSE",
        "mean squared error of the inverse-depth target over all valid pixels of the split",
        "Eigen et al. 2014",
        higher_is_better=False,
        unit="squared target units",
        left_out="invalid depth",
        main=True,
        digits=4,  # on a target in [0, 1] it is small
    ),
    "depth_absrel": Metric(
        "depth relative error",
        f"mean of |d-t|/t of the inverse-depth target {_RATIO}",
        "Eigen et al. 2014",
        higher_is_better=False,
        unit="ratio",
        left_out="invalid depth",
    ),
    "depth_delta1": Metric(
        "depth within 25 %",
        f"share with max(d/t, t/d) < 1.25 of the inverse-depth target {_RATIO}",
        "Eigen et al. 2014",
        left_out="invalid depth",
    ),
}
"""Name → declaration, in the order of every table."""


def main_metrics() -> tuple[str, ...]:
    """Return the names of those that people read first."""
    return tuple(name for name, metric in METRICS.items() if metric.main)


def find_background(class_names: Sequence[str]) -> int | None:
    """Return the index of the class that is called background, or None when every class is an object of interest."""
    return next((index for index, name in enumerate(class_names) if name.lower() in BACKGROUND_NAMES), None)


def in_declared_order(scores: dict[str, float]) -> dict[str, float]:
    """Return scores in the order of ``METRICS``.

    Raises:
        ValueError: a score is not declared.
    """
    if undeclared := scores.keys() - METRICS.keys():
        raise ValueError(f"metrics without a declaration in data_cache/metrics.py: {', '.join(sorted(undeclared))}")
    return {name: scores[name] for name in METRICS if name in scores}


def explain_metrics(names: Iterable[str] = METRICS) -> list[str]:
    """Return a line on each metric, or on all: its name, which way is better, and everything about it."""
    return [f"{name} {METRICS[name].arrow} {METRICS[name].explain()}" for name in names]

"""What the scores printed in the pseudo-depth paper can have meant: its numbers against each other.

The paper defines neither its mIoU nor its iIoU, and its acc is (TP+TN)/(TP+FP+FN+TN). Of a micro IoU m the share of
right pixels is p = 2m/(1+m), and acc is then 1 - 2(1-p)/C: so two printed columns check each other. Pure Python.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

CLASSES = (20, 21)
"""VOC's objects, without and with background."""
COLLAPSED_BELOW = 0.1
"""mIoU of rows in which the segmentation decoder was not trained."""
_HALF_DIGIT = 0.5e-4
_CUT_DIGITS = 3
_SIMULATED_IMAGES = 100_000


Scores = tuple[float, float, float]
"""mIoU, iIoU and acc of a row, as printed."""


class Span(NamedTuple):
    """The least and the most that printed digits leave open."""

    low: float
    high: float


class CheckedRow(NamedTuple):
    """One printed row, its mIoU taken for pooled micro IoU."""

    name: str
    table: int
    miou: float
    p: float
    """Share of right pixels."""
    acc: float
    predicted: dict[int, float]
    """acc by the number of classes."""
    classes: Span
    """Number of classes that the printed acc would need."""
    background_iou: float
    """What background would score if mIoU were the mean over 21 classes and iIoU over the 20 objects."""

    @property
    def collapsed(self) -> bool:
        """Whether segmentation failed altogether."""
        return self.miou < COLLAPSED_BELOW


class Fit(NamedTuple):
    """acc of the healthy rows of table 3 as a straight line over mIoU, the suspect left out."""

    rows: tuple[str, ...]
    largest_residual: float
    predicted: dict[str, float]
    """acc of the suspect, by method."""
    of_table_2: dict[str, Span]
    """acc that the methods predict for rows that are only in table 2."""


class Simulation(NamedTuple):
    """Scores of drawn images whose shares of right pixels are Beta-distributed as a row requires."""

    row: str
    mean: float
    """Of an image's accuracy on labelled pixels."""
    deviation: float
    miou: float
    acc: float


class Misprint(NamedTuple):
    """A printed figure that no other row agrees with."""

    row: str
    printed: float
    predicted: float
    likely: float
    """The figure nearest to the prediction that differs from the printed one in one digit."""
    needed_miou: Span
    """Micro IoU that the printed acc would need, by the number of classes."""

    @property
    def sentence(self) -> str:
        """What is to be said about it."""
        return (
            f"acc {self.printed:.4f} of {self.row} is a misprint: it would need a micro IoU of "
            f"{self.needed_miou.low:.2f}, and the other rows imply {self.predicted:.4f}; the nearest figure with one "
            f"other digit is {self.likely:.4f}"
        )


class PaperCheck(NamedTuple):
    """Everything that follows from the printed rows."""

    rows: tuple[CheckedRow, ...]
    void_share: dict[str, dict[str, Span]]
    """Share of void pixels that explains a collapsed row: reading → row → share."""
    spread: dict[str, Span]
    """Deviation of the share of right pixels over images that explains a healthy row, with void as false positive."""
    simulation: Simulation
    fit: Fit
    misprint: Misprint

    def list_findings(self) -> list[str]:
        """Return what follows, a sentence for each step."""
        drawn, fit = self.simulation, self.fit
        impossible = [row.background_iou for row in self.rows if not 0 <= row.background_iou <= 1]
        healthy = [row.classes for row in self.rows if row.table == 3 and row.name in fit.rows]
        collapsed = [row.classes for row in self.rows if row.collapsed]
        shares = [
            f"{100 * low:.1f} to {100 * high:.1f} %"
            for low, high in (_join(spans.values()) for spans in self.void_share.values())
        ]
        others = ", ".join(
            f"{row.acc:.3f} (cut) of {row.name}, predicted {_show(fit.of_table_2[row.name], 4)}"
            for row in self.rows
            if row.name in fit.of_table_2
        )
        return [
            "mIoU and iIoU are no means over 21 classes and 20 objects: background would score "
            f"{_show(_span(impossible), 2)} in {len(impossible)} of "
            f"{len(self.rows)} rows, and an IoU lies between 0 and 1.",
            "Pixel-weighted scores fit to the third digit, but of no single number of classes: healthy rows need "
            f"{_show(_join(healthy), 2)}, collapsed rows "
            f"{_show(_join(collapsed), 2)}; so counts were not simply pooled.",
            "Consistent with every row: the mean over images, 21 classes, void as false positive. Collapsed rows then "
            f"need {shares[0]} void, about what VOC has (with 20 classes {shares[1]}, or {shares[2]} with void as true "
            "negative), and healthy rows a deviation of the share of right pixels over images of "
            f"{_show(_join(self.spread.values()), 3)}.",
            f"{_SIMULATED_IMAGES:,} images drawn so for {drawn.row} (accuracy by a Beta distribution of mean "
            f"{drawn.mean:.4f} and deviation {drawn.deviation:.3f}) score mIoU {drawn.miou:.3f} and acc "
            f"{drawn.acc:.4f}; this is consistency, no proof.",
            f"{self.misprint.sentence}. The line through the other {len(fit.rows)} healthy rows of table 3 misses none "
            f"by more than {fit.largest_residual:.0e}; outside of them, {others}.",
        ]


def _span(values: Iterable[float]) -> Span:
    found = list(values)
    return Span(min(found), max(found))


def _join(spans: Iterable[Span]) -> Span:
    """Return the span over several."""
    return _span(end for span in spans for end in span)


def _show(span: Span, digits: int) -> str:
    return f"{span.low:.{digits}f} to {span.high:.{digits}f}"


def check_paper(printed: Mapping[str, Scores], table_2: Collection[str]) -> PaperCheck:
    """Hold the printed scores of the pseudo-depth paper against each other.

    Args:
        printed: every row; of rows in both tables, as in table 3.
        table_2: names of the rows of table 2, which cuts acc after three digits.
    """
    rows = [_check_row(name, printed[name], 2) for name in table_2]
    rows += [
        _check_row(name, scores, 3)
        for name, scores in printed.items()
        if name not in table_2 or round(scores[2], _CUT_DIGITS) != scores[2]  # table 3 has four digits
    ]
    third = [row for row in rows if row.table == 3]
    usual = statistics.median(row.classes.low for row in third)
    (suspect,) = [row for row in third if row.classes.low > 2 * usual]
    healthy = [row for row in third if not row.collapsed and row is not suspect]
    readings = {
        "21 classes, void as false positive": _void_as_fp(21),
        "20 classes, void as false positive": _void_as_fp(20),
        "20 classes, void as true negative": _void_as_tn(20),
    }
    void_share = {
        reading: {row.name: _find_void(row, formula) for row in third if row.collapsed}
        for reading, formula in readings.items()
    }
    void = statistics.fmean(statistics.fmean(span) for span in next(iter(void_share.values())).values())
    only_2 = [row for row in rows if row.table == 2 and row.name != suspect.name]
    return PaperCheck(
        rows=tuple(rows),
        void_share=void_share,
        spread={row.name: _find_spread(row, void) for row in (*only_2, *healthy)},
        simulation=_simulate(healthy[-1], void),
        fit=(fit := _fit(healthy, suspect, only_2)),
        misprint=_find_misprint(suspect, next(iter(fit.predicted.values()))),
    )


def _check_row(name: str, scores: Scores, table: int) -> CheckedRow:
    miou, iiou, acc = scores
    if table == 2:  # table 2 cuts: the row of both tables has 0.9974 in one and 0.997 in the other
        acc = math.floor(acc * 10**_CUT_DIGITS + 1e-9) / 10**_CUT_DIGITS
    p = 2 * miou / (1 + miou)
    predicted = {classes: 1 - 2 * (1 - p) / classes for classes in CLASSES}
    needed = Span(*(2 * (1 - p) / (1 - each) for each in _read_acc(acc, table)))
    return CheckedRow(name, table, miou, p, acc, predicted, needed, 21 * miou - 20 * iiou)


def _read_acc(acc: float, table: int) -> Span:
    """Return what a printed acc can stand for: cut in table 2, taken as it is in table 3."""
    return Span(acc, acc + 10**-_CUT_DIGITS) if table == 2 else Span(acc, acc)


def _void_as_fp(classes: int) -> Callable[[float, float], float]:
    """Return void share by (p, acc): predictions on void are false positives and nothing is false negative there."""
    return lambda p, acc: 2 - classes * (1 - acc) / (1 - p)


def _void_as_tn(classes: int) -> Callable[[float, float], float]:
    """Return void share by (p, acc): void pixels count as right for every class."""
    return lambda p, acc: 1 - classes * (1 - acc) / 2 / (1 - p)


def _find_void(row: CheckedRow, formula: Callable[[float, float], float]) -> Span:
    """Return the shares that the rounding of both printed figures leaves open."""
    return _span(
        formula(2 * miou / (1 + miou), acc)
        for miou in (row.miou - _HALF_DIGIT, row.miou + _HALF_DIGIT)
        for acc in (row.acc - _HALF_DIGIT, row.acc + _HALF_DIGIT)
    )


def _find_right(acc: float, void: float) -> float:
    """Return the mean share of right pixels, of all, by acc with 21 classes and void as false positive."""
    return (2 - void - 21 * (1 - acc)) / 2


def _find_spread(row: CheckedRow, void: float) -> Span:
    """Return the deviation over images that lifts the mean of their IoU to the printed mIoU.

    With a the share of right pixels of an image, its IoU is a/(2-v-a), a convex function f; the mean over images is
    f(mean) + f''(mean)·variance/2 to second order.
    """

    def solve(acc: float) -> float:
        right, whole = _find_right(acc, void), 2 - void
        lift = row.miou - right / (whole - right)
        return math.sqrt(max(0.0, lift) * (whole - right) ** 3 / whole)

    return Span(*sorted(solve(acc) for acc in _read_acc(row.acc, row.table)))


def _simulate(row: CheckedRow, void: float) -> Simulation:
    """Draw images whose accuracy has the mean and deviation that a row requires; score them as the paper may have."""
    mean, deviation = (value / (1 - void) for value in (_find_right(row.acc, void), _find_spread(row, void).low))
    strength = mean * (1 - mean) / deviation**2 - 1
    draw = random.Random(0)
    right = [draw.betavariate(mean * strength, (1 - mean) * strength) * (1 - void) for _ in range(_SIMULATED_IMAGES)]
    whole = 2 - void
    miou = statistics.fmean(share / (whole - share) for share in right)
    acc = 1 - statistics.fmean(whole - 2 * share for share in right) / 21
    return Simulation(row.name, mean, deviation, miou, acc)


def _fit(rows: Sequence[CheckedRow], suspect: CheckedRow, others: Sequence[CheckedRow]) -> Fit:
    """Return what the other rows predict, by a line over mIoU, one over p, and their mean number of classes."""
    accs = [row.acc for row in rows]
    over_miou = statistics.linear_regression([row.miou for row in rows], accs)
    over_p = statistics.linear_regression([row.p for row in rows], accs)
    classes = statistics.fmean(row.classes.low for row in rows)
    methods: dict[str, Callable[[CheckedRow], float]] = {
        "line over mIoU": lambda row: over_miou.intercept + over_miou.slope * row.miou,
        "line over p": lambda row: over_p.intercept + over_p.slope * row.p,
        "mean number of classes": lambda row: 1 - 2 * (1 - row.p) / classes,
    }
    line = methods["line over mIoU"]
    return Fit(
        rows=tuple(row.name for row in rows),
        largest_residual=max(abs(line(row) - row.acc) for row in rows),
        predicted={name: method(suspect) for name, method in methods.items()},
        of_table_2={row.name: _span(method(row) for method in methods.values()) for row in others},
    )


def _find_misprint(row: CheckedRow, predicted: float) -> Misprint:
    digits = f"{row.acc:.4f}"
    slips = [
        float(digits[:place] + digit + digits[place + 1 :])
        for place in range(2, len(digits))
        for digit in "0123456789"
        if digit != digits[place]
    ]
    rights = [1 - classes * (1 - row.acc) / 2 for classes in CLASSES]
    likely = min(slips, key=lambda slip: abs(slip - predicted))
    return Misprint(row.name, row.acc, predicted, likely, _span(p / (2 - p) for p in rights))

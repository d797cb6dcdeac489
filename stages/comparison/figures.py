"""The figures of the report, as HTML and SVG of our own: marks stretch with the page, text stays text at its size.

Marks are drawn in a square of 100 x 100 that takes any shape; their widths, and the dots, which are lines of no length
with round ends, are in pixels of the screen. Colours are classes of the page's style, so they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data_cache.escaping import html_text
from data_cache.metrics import HEADLINE, METRICS
from stages.comparison.answer import signed
from stages.comparison.losses import LossCurves, PhaseSpan, Points
from stages.comparison.rows import Row
from stages.comparison.statistics import Estimate
from stages.comparison.table import Table

NUM_SERIES = 5
"""Colours that the style has for rows side by side; the first is grey, for the baseline."""
TERMS = {"seg": 1, "depth": 2}
"""Colours of losses; others have the third."""
FEW_POINTS = 12
"""A curve of so few points shows each of them."""
MAX_TICKS = 5


class Axis(NamedTuple):
    """A range of numbers, and where in it one lies."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return the place of a number in per cent of the axis, cut to it."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return round(100 * min(1.0, max(0.0, (at - low) / ((high - low) or 1.0))), 2)

    def ticks(self) -> list[float]:
        """Return round numbers within it, at most MAX_TICKS."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            found = [10.0**decade for decade in decades]
            return found[:: -(-len(found) // MAX_TICKS)] if found else [self.low, self.high]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(span / MAX_TICKS))
        step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= MAX_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * place, 12) + 0.0 for place in range(first, last + 1)]


def fit_scores(estimates: Iterable[Estimate], values: Iterable[float]) -> Axis:
    """Return an axis around single values of the headline metric; intervals that are far wider are cut at its ends.

    It never leaves what the metric can be, and shows at least a tenth, or two nearly equal rows would look far apart.
    """
    values = [*values, *(estimate.mean for estimate in estimates)]
    low, high = min(values), max(values)
    margin = max(0.75 * (high - low), 0.05)
    return Axis(max(0.0, low - margin), min(1.0, high + margin))


def draw_scores(table: Table) -> str:
    """Return each row's seeds as dots, its mean as a line with its interval, and its baseline as a dashed line.

    Rows without the headline metric are left out; at least one has it.
    """
    pairs = [(label, row) for label, row in table.labelled if HEADLINE in row.metrics]
    seeds = [value for _, row in pairs for value in row.by_seed(HEADLINE).values()]
    axis = fit_scores([row.metrics[HEADLINE] for _, row in pairs], seeds)
    ticks = axis.ticks()
    bases = table.bases
    lines = [_draw_row(label, row, axis, ticks, is_base=row in bases) for label, row in pairs]
    name = f"{METRICS[HEADLINE].label}, {METRICS[HEADLINE].direction}"
    labels = "".join(f'<span style="left:{axis.place(tick):g}%">{_number(tick)}</span>' for tick in ticks)
    lines.append(f'<div class="row axis"><span class="name">{name}</span><div class="ticks">{labels}</div></div>')
    return f'<div class="rows">{"".join(lines)}</div>'


def _draw_row(label: str, row: Row, axis: Axis, ticks: Sequence[float], *, is_base: bool) -> str:
    estimate, values = row.metrics[HEADLINE], list(row.by_seed(HEADLINE).values())
    series = "s0" if is_base or row.base is None else "s1"
    marks = [_line(axis.place(tick), 0, axis.place(tick), 100, "grid") for tick in ticks]
    guide = row if is_base else row.base
    if guide is not None:
        at = axis.place(guide.metrics[HEADLINE].mean)
        marks.append(_line(at, 0, at, 100, "guide"))
    words, cut = [f"mean {estimate.mean:.3f}"], ""
    if estimate.half_width is not None:
        low, high = estimate.mean - estimate.half_width, estimate.mean + estimate.half_width
        marks.append(_line(axis.place(low), 50, axis.place(high), 50, f"interval {series}"))
        words.append(f"95 % interval {max(low, 0):.3f} to {min(high, 1):.3f}")
        cut = ('<span class="cut left">‹</span>' if low < axis.low else "") + (
            '<span class="cut right">›</span>' if high > axis.high else ""
        )
    at = axis.place(estimate.mean)
    marks += [_dot(axis.place(value), 50, f"seed {series}") for value in values]
    marks.append(_line(at, 16, at, 84, f"mean {series}"))
    words.append("seeds " + ", ".join(f"{value:.3f}" for value in values))
    found = row.differences.get(HEADLINE)
    difference = ""
    if found is not None:
        spread = "" if found.half_width is None else f"<small>±{found.half_width:.3f}</small>"
        difference = f'<span class="{_verdict(found.mean, found.is_clear)}">{signed(found.mean)}{spread}</span>'
    return (
        f'<div class="row{" base" if is_base else ""}"><span class="name">{html_text(label)}</span>'
        f'<div class="strip">{_svg(marks, "; ".join(words))}{cut}</div>'
        f'<span class="value"><b>{estimate.mean:.3f}</b> {difference}</span></div>'
    )


def _verdict(mean: float, is_clear: bool) -> str:
    return ("up" if mean > 0 else "down") if is_clear else "even"


def draw_classes(classes: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Return per-class IoU as bars side by side under one legend.

    Args:
        classes: in the order drawn.
        rows: row name and IoU in [0, 1] by class; at most NUM_SERIES, the baseline first.
    """
    groups = []
    for name in classes:
        bars = "".join(
            f'<div class="bar s{place}"><i style="width:{100 * scores[name]:.1f}%"></i><span>{scores[name]:.3f}</span>'
            "</div>"
            if name in scores
            else '<div class="bar absent"><span>in neither truth nor prediction</span></div>'
            for place, (_, scores) in enumerate(rows)
        )
        groups.append(f'<div class="group"><span class="name">{html_text(name)}</span><div>{bars}</div></div>')
    return draw_legend([label for label, _ in rows]) + f'<div class="bars">{"".join(groups)}</div>'


class Series(NamedTuple):
    """Rows that differ in how many masks they had."""

    name: str
    points: tuple[tuple[float, Estimate], ...]
    """Masks, and the headline metric, in rising order of masks."""


def draw_fractions(series: Sequence[Series], ticks: Mapping[float, str]) -> str:
    """Return the headline metric over the masks that were used, on a log scale.

    Args:
        series: the baseline first, if there is one; at most NUM_SERIES.
        ticks: masks and what they are called; at least two.
    """
    x = Axis(min(ticks) / 1.15, max(ticks) * 1.15, log=True)
    estimates = [estimate for each in series for _, estimate in each.points]
    widths = [estimate.half_width or 0.0 for estimate in estimates]
    ends = [estimate.mean + side * width for estimate, width in zip(estimates, widths, strict=True) for side in (-1, 1)]
    y = Axis(max(0.0, min(ends) - 0.01), min(1.0, max(ends) + 0.01))
    levels = [(100 - y.place(tick), _number(tick)) for tick in y.ticks()]
    marks = [_line(0, at, 100, at, "grid") for at, _ in levels]
    for number, each in enumerate(series):
        kind = f"s{number}"
        places = [
            (x.place(masks) + number - (len(series) - 1) / 2, 100 - y.place(found.mean)) for masks, found in each.points
        ]
        marks.append(f'<polyline class="line {kind}" points="{" ".join(f"{a:g},{b:g}" for a, b in places)}"/>')
        for (at, level), (_, found) in zip(places, each.points, strict=True):
            width = found.half_width or 0.0
            low, high = (100 - y.place(found.mean + side * width) for side in (-1, 1))
            marks += [_line(at, low, at, high, f"interval {kind}"), _dot(at, level, f"seed {kind}")]
    words = "; ".join(
        f"{each.name}: " + ", ".join(f"{found.mean:.3f} with {ticks[masks]}" for masks, found in each.points)
        for each in series
    )
    names = "".join(f'<span style="left:{x.place(masks):g}%">{html_text(text)}</span>' for masks, text in ticks.items())
    labels = "".join(f'<span style="top:{at:g}%">{text}</span>' for at, text in levels)
    return (
        f'{draw_legend([each.name for each in series])}<div class="curve tall"><div class="y">{labels}</div>'
        f'{_svg(marks, words)}<div class="ticks">{names}</div></div>'
    )


def draw_legend(labels: Sequence[str], series: Sequence[int] | None = None) -> str:
    """Return what the colours of series stand for."""
    chips = zip(labels, series or range(len(labels)), strict=True)
    items = "".join(f'<li><i class="chip s{place}"></i>{html_text(label)}</li>' for label, place in chips)
    return f'<ul class="legend">{items}</ul>'


def draw_losses(curves: Mapping[str, LossCurves]) -> str:
    """Return a small figure per row: unweighted losses on one log scale over the run's steps, phases marked."""
    found = {name: each.curves for name, each in curves.items()}
    return _draw_runs(curves, found, _fit_log(found), "{} loss")


def draw_gradients(curves: Mapping[str, LossCurves]) -> tuple[str, str]:
    """Return figures of what two losses ask of the encoder: the cosine of their gradients, and their norms."""
    norms = {name: each.norms for name, each in curves.items()}
    cosines = {name: each.cosines for name, each in curves.items()}
    return (
        _draw_runs(curves, cosines, Axis(-1, 1), "{} of the gradients"),
        _draw_runs(curves, norms, _fit_log(norms), "norm under the {} loss"),
    )


def draw_validation(curves: Mapping[str, LossCurves]) -> str:
    """Return a figure per row of what its weights scored while they were trained."""
    found = {name: each.scores for name, each in curves.items()}
    values = [value for terms in found.values() for points in terms.values() for _, value in points]
    return _draw_runs(curves, found, Axis(0, min(1.0, 1.1 * max((v for v in values if v == v), default=1.0))), "{}")


def _fit_log(found: Mapping[str, Mapping[str, Points]]) -> Axis:
    """Return whole decades around all values."""
    values = [value for terms in found.values() for points in terms.values() for _, value in points if value > 0]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    return Axis(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9), log=True)


def _draw_runs(
    runs: Mapping[str, LossCurves], found: Mapping[str, Mapping[str, Points]], axis: Axis, words: str
) -> str:
    terms = list(dict.fromkeys(term for each in found.values() for term in each))
    legend = draw_legend([words.format(term) for term in terms], [TERMS.get(term, 3) for term in terms])
    figures = (_draw_run(name, runs[name].phases, found[name], axis) for name in runs)
    return f'{legend}<div class="curves">{"".join(figures)}</div>'


def _draw_run(name: str, spans: Sequence[PhaseSpan], curves: Mapping[str, Points], axis: Axis) -> str:
    last = max([phase.last_step for phase in spans] or [1])
    steps = Axis(0, last)
    ticks = [(100 - axis.place(tick), _number(tick)) for tick in axis.ticks()]
    marks = [_line(0, at, 100, at, "grid") for at, _ in ticks]
    bounds = (steps.place(phase.first_step) for phase in spans if phase.first_step)
    marks += [_line(at, 0, at, 100, "bound") for at in bounds]
    for term, points in curves.items():
        marks += _draw_curve(points, steps, axis, f"s{TERMS.get(term, 3)}")
    labels = "".join(f'<span style="top:{at:g}%">{text}</span>' for at, text in ticks)
    phases = "".join(
        f'<span style="width:{(phase.last_step - phase.first_step) / last:.2%}">{html_text(phase.name)}</span>'
        for phase in spans
    )
    words = f"{', '.join(curves)} of {name} over {last} steps, phases {', '.join(phase.name for phase in spans)}"
    return (
        f'<div class="curve"><h3>{html_text(name)}</h3><div class="y">{labels}</div>{_svg(marks, words)}'
        f'<div class="phases">{phases}</div><div class="end">{last:,} steps</div></div>'
    )


def _draw_curve(points: Points, x: Axis, y: Axis, series: str) -> list[str]:
    """Return the stretches of a curve between its gaps; where there are few points, these, too.

    A value of 0 has no place on a log scale, and is a gap in it.
    """
    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if math.isnan(value) or (y.log and value <= 0):
            stretches.append([])
        else:
            stretches[-1].append((x.place(step), 100 - y.place(value)))
    marks = []
    for stretch in filter(None, stretches):
        marks.append(f'<polyline class="line {series}" points="{" ".join(f"{a:g},{b:g}" for a, b in stretch)}"/>')
        if len(stretch) <= FEW_POINTS:
            marks += [_dot(*point, f"point {series}") for point in stretch]
    return marks


def _svg(marks: Iterable[str], words: str) -> str:
    """Return marks as a picture that is also described in words."""
    return (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{html_text(words)}">'
        f"{''.join(marks)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'


def _dot(x: float, y: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x:g} {y:g}h0"/>'


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")

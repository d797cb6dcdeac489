"""The figures of the report, as inline SVG. The only file that imports matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_cache.escaping import printable_text, width_of
from data_cache.metrics import HEADLINE, METRICS
from stages.comparison.losses import LossCurves
from stages.comparison.rows import Row
from stages.comparison.table import Table

INK, MUTED, RULE = "#1f2430", "#7a8291", "#e3e6eb"
SERIES = ("#9aa3b2", "#2f6db5", "#d0722b", "#3f8f6b")
"""Grey for the baseline, then the rows that are held against it; they differ in grey print too."""
MIN_SCORE_RANGE = 0.1
"""The score axis shows at least this much, or two nearly equal rows would look far apart."""
LOSS_COLOURS = {"seg": "#2f6db5", "depth": "#d0722b"}
"""Other terms have the last colour of SERIES."""
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "svg.fonttype": "none",  # text stays text: the page's own font, and it can be searched
    "axes.edgecolor": "#c5cad3",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def draw_scores(table: Table) -> str:
    """Return each row's seeds as dots, its mean as a bar with its interval, and the baseline as a line.

    Rows without the headline metric are left out; at least one has it.
    """
    labels, rows = zip(*(pair for pair in table.labelled if HEADLINE in pair[1].metrics), strict=True)
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 0.55 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            _draw_row(axes, place, row, is_baseline=row in table.bases)
        if len(table.bases) == 1:
            axes.axvline(
                table.bases[0].metrics[HEADLINE].mean, color=SERIES[0], linewidth=1, linestyle=(0, (4, 3)), zorder=1
            )
        axes.set_yticks(range(len(rows)), list(map(printable_text, labels)))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low, high = axes.get_xlim()
        widen = max(0.0, MIN_SCORE_RANGE - (high - low)) / 2
        axes.set_xlim(low - widen, high + widen)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{HEADLINE} ({METRICS[HEADLINE].label}, {METRICS[HEADLINE].direction})")
        return _to_svg(figure, "scores")


def _draw_row(axes: Axes, place: int, row: Row, *, is_baseline: bool) -> None:
    estimate = row.metrics[HEADLINE]
    colour = MUTED if is_baseline else SERIES[1]
    if estimate.half_width is not None:
        ends = (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width)
        axes.plot(ends, (place, place), color=colour, linewidth=2, alpha=0.45, solid_capstyle="butt", zorder=2)
    values = list(row.by_seed(HEADLINE).values())
    axes.scatter(values, [place] * len(values), s=22, color=colour, alpha=0.6, linewidths=0, zorder=3)
    axes.scatter([estimate.mean], [place], s=120, marker="|", color=colour, linewidths=2.4, zorder=4)


def draw_classes(classes: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Return per-class IoU as grouped bars.

    Args:
        classes: in the order drawn.
        rows: row name and IoU in [0, 1] by class; at most as many as SERIES has colours, the baseline first.
    """
    bar = 0.8 / len(rows)
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        drawn = []
        for index, (_, scores) in enumerate(rows):
            values = [scores.get(name, 0.0) for name in classes]
            places = [place + (index - (len(rows) - 1) / 2) * bar for place in range(len(classes))]
            drawn.append(axes.bar(places, values, bar * 0.86, color=SERIES[index])[0])
        names = [printable_text(name) for name in classes]
        slanted = max(map(width_of, names), default=0) * len(names) > 90
        axes.set_xticks(
            range(len(names)),
            names,
            rotation=35 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else None,
        )
        axes.tick_params(axis="x", labelcolor=INK)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.6, len(classes) - 0.4)
        axes.set_ylabel("IoU")
        axes.grid(visible=False, axis="x")
        labels = [printable_text(row) for row, _ in rows]  # given by hand: matplotlib hides labels that begin with "_"
        figure.legend(drawn, labels, loc="outside upper left", ncols=len(rows), handlelength=0.9, handleheight=0.9)
        return _to_svg(figure, "classes")


def draw_losses(curves: Mapping[str, LossCurves]) -> str:
    """Return one small figure per row: unweighted losses on a log scale over the run's steps, phases marked."""
    columns = min(3, len(curves))
    num_lines = -(-len(curves) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 0.35 + 1.55 * num_lines), layout="constrained")
        grid = figure.subplots(num_lines, columns, squeeze=False, sharey=True)
        for axes, (name, found) in zip(grid.flat, curves.items(), strict=False):
            _draw_run_losses(axes, name, found)
        for axes in list(grid.flat)[len(curves) :]:
            axes.set_visible(False)
        terms = dict.fromkeys(term for found in curves.values() for term in found.curves)
        handles = [grid.flat[0].plot([], [], color=LOSS_COLOURS.get(term, SERIES[3]))[0] for term in terms]
        labels = [printable_text(f"{term} loss") for term in terms]
        figure.legend(handles, labels, loc="outside upper left", ncols=len(terms), handlelength=1.4)
        return _to_svg(figure, "losses")


def _draw_run_losses(axes: Axes, name: str, found: LossCurves) -> None:
    for term, points in found.curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=LOSS_COLOURS.get(term, SERIES[3]), linewidth=1.2)
    for phase in found.phases:
        if phase.first_step:
            axes.axvline(phase.first_step, color="#b4bac5", linewidth=0.8)
        middle = (phase.first_step + phase.last_step) / 2
        axes.text(
            middle,
            0.97,
            printable_text(phase.name),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            color=MUTED,
            fontsize=7.5,
        )
    axes.set_title(printable_text(name))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")  # matplotlib's own writes powers as formulas
    axes.minorticks_off()
    axes.margins(y=0.25)
    axes.tick_params(labelsize=7.5, labelcolor=MUTED)
    axes.set_xlim(0, found.phases[-1].last_step if found.phases else 1)
    axes.locator_params(axis="x", nbins=4)


def _to_svg(figure: Figure, name: str) -> str:
    """Return an ``<svg>`` element that scales with the page; equal figures give equal text."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the text stays text: the page's fonts have it
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (xmlns(:\w+)?|width|height)="[^"]*"', "", head)  # inline SVG needs no namespaces: no addresses
    return f"{head}>{rest}".replace("xlink:href", "href")

"""One self-contained page about several runs: what was found, how sure it is, what it cost, how to repeat it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

from data_cache.errors import UserError
from data_cache.escaping import html_text
from data_cache.images import read_image
from data_cache.metrics import HEADLINE, METRICS, explain_metrics
from data_cache.outputs import write_page
from stages.comparison.figures import SERIES, draw_classes, draw_losses, draw_scores
from stages.comparison.formats import (
    Column,
    Value,
    describe_directions,
    metric_column,
    read_cells,
    read_columns,
    show_cell,
)
from stages.comparison.losses import read_losses
from stages.comparison.page import PHASE_KINDS, Cell, build_figure, build_page, build_section, build_table_element
from stages.comparison.rows import FACTS, Row
from stages.comparison.statistics import Difference, estimate_mean
from stages.comparison.table import Table

PANELS_PER_ROW = 3
"""Panels (image, truth, prediction, depth) shown of the baseline and of the best row."""
_ABSENT = '<span class="absent">–</span>'


def write_report(
    table: Table,
    out: Path,
    *,
    title: str = "Did pseudo depth help?",
    overwrite: bool = False,
    on_wait: Callable[[str], None] | None = None,
) -> Path:
    """Write one HTML file with style, figures and images inside it; it opens anywhere and loads nothing.

    Losses and panels are read from the runs' folders; a section whose files are missing says so.

    Raises:
        UserError: the table is empty, a log is damaged, or ``write_page`` refuses the place.
    """
    if not table.rows:
        raise UserError("no runs to report on; train some with: pipeline run, or pipeline table schedules")
    chosen = _choose_rows(table)
    sections = [
        f'<p class="answer">{_answer(table)}</p>',
        _score_section(table),
        _class_section(table, chosen),
        _metric_section(table),
        _training_section(table),
        _panel_section(chosen),
        _run_section(table),
    ]
    page = build_page(title, _facts(table), [section for section in sections if section])
    write_page(page, out, overwrite=overwrite, on_wait=on_wait)
    return out


def _facts(table: Table) -> str:
    before = {"split": "split ", "recipe": "recipe "}
    words = [before.get(fact, "") + ", ".join(sorted({row.fact(fact) for row in table.rows})) for fact in FACTS]
    num_runs = sum(len(row.runs) for row in table.rows)
    return " · ".join([*words, f"{len(table.rows)} rows, {num_runs} runs"])


def _find_base(table: Table) -> Row | None:
    return next((row for row in table.bases if HEADLINE in row.metrics), None)


def _rank(table: Table) -> list[tuple[str, Row]]:
    """Return the rows that have the headline metric with their labels, the best first."""
    scored = [(label, row) for label, row in table.labelled if HEADLINE in row.metrics]
    return sorted(scored, key=lambda pair: -pair[1].metrics[HEADLINE].mean)


def _choose_rows(table: Table) -> list[tuple[str, Row]]:
    """Return the rows looked at closely: the baseline, then the best on its data, as many as there are colours."""
    base = _find_base(table)
    ranked = sorted(_rank(table), key=lambda pair: pair[1] is not base)
    return [pair for pair in ranked if pair[1].is_measured_as(ranked[0][1])][: len(SERIES)]


def _answer(table: Table) -> str:
    """Return what the table says about the best row, with its uncertainty, as a sentence of HTML."""
    ranked, base = _rank(table), _find_base(table)
    compared = [pair for pair in ranked if HEADLINE in pair[1].differences and pair[1].base is base]
    if not compared or base is None:
        return "".join(
            f"<b>{html_text(label)}</b>: {row.metrics[HEADLINE].mean:.3f} {HEADLINE}." for label, row in ranked[:1]
        )
    base_label = next(label for label, row in ranked if row is base)
    label, best = compared[0]
    found = best.differences[HEADLINE]
    text = (
        f"Of the rows compared with <b>{html_text(base_label)}</b> the best is <b>{html_text(label)}</b> with "
        f"{best.metrics[HEADLINE].mean:.3f} {HEADLINE}, a difference of {found.mean:+.3f}"
    )
    if found.half_width is None:
        return f"{text} on one seed, which cannot tell an effect from chance."
    verdict = "leaves out 0" if found.is_clear else "includes 0: chance alone could explain it"
    is_longer = found.mean > 0 and best.total_steps > base.total_steps
    text += f"&nbsp;±&nbsp;{found.half_width:.3f} over {len(found.seeds)} paired seeds"
    return f"{text}. The interval {verdict}{'. It also trained longer' if is_longer else ''}."


def _score_section(table: Table) -> str:
    kinds = ["baseline" if row in table.bases else "" for row in table.rows]
    directions = describe_directions(table.main_metrics)
    figure = f"{HEADLINE} of every row: dots are seeds, bars 95 % intervals of the mean"
    notes = "".join(f"<li>{html_text(note)}.</li>" for note in table.notes)
    return build_section(
        "Scores",
        f"{directions[:1].upper()}{directions[1:]}.",
        build_figure(draw_scores(table), figure) if _rank(table) else "",
        _build_table(read_columns(table), kinds),
        f'<ol class="notes">{notes}</ol>' if notes else "",
    )


def _metric_section(table: Table) -> str:
    """Return every metric of every row, and what each of them is."""
    found = [name for name in METRICS if any(name in row.metrics for row in table.rows)]
    columns = [Column("row", tuple(label for label, _ in table.labelled), "text")]
    for name in found:
        means = [row.metrics[name].mean if name in row.metrics else None for row in table.rows]
        columns.append(metric_column(name, means))
    return build_section(
        "Every metric",
        "The same predictions under every convention, means over seeds; the CSV and JSON of pipeline compare have the "
        "intervals, too.",
        _build_table(columns),
        '<ul class="notes">' + "".join(f"<li>{html_text(line)}.</li>" for line in explain_metrics(found)) + "</ul>",
    )


def _build_table(columns: Sequence[Column], row_kinds: Sequence[str] = ()) -> str:
    heads = [Cell(html_text(column.title).replace("_", "_<wbr>"), column.kind) for column in columns]
    rows = [[Cell(_show(*cell), cell[0].kind) for cell in row] for row in read_cells(columns)]
    return build_table_element(heads, rows, row_kinds=row_kinds)


def _show(column: Column, value: Value) -> str:
    """Return a cell as HTML; a difference is coloured where it is clear."""
    if value is None:
        return _ABSENT
    mean, spread = map(html_text, show_cell(column, value))
    if isinstance(value, Difference):
        better = (value.mean > 0) == METRICS[column.metric].higher_is_better
        mean = f'<span class="{("up" if better else "down") if value.is_clear else "even"}">{mean}</span>'
    return mean + (f'<span class="spread">±{spread}</span>' if spread else "")


def _class_section(table: Table, chosen: Sequence[tuple[str, Row]]) -> str:
    scores = {label: found for label, row in table.labelled if (found := _class_scores(row))}
    if not scores:
        return ""
    names = (found.name for row in table.rows for run in row.runs for found in run.per_class)
    classes = [name for name in dict.fromkeys(names) if any(name in found for found in scores.values())]
    heads = [Cell("row"), *(Cell(html_text(name)) for name in classes)]
    body = [
        [Cell(html_text(label)), *(_heat_cell(found.get(name)) for name in classes)] for label, found in scores.items()
    ]
    bars = [(label, scores[label]) for label, _ in chosen if label in scores]
    return build_section(
        "Classes",
        "IoU per class, mean over seeds: the baseline beside the best rows, then every row.",
        build_figure(draw_classes(classes, bars), "IoU per class") if bars else "",
        build_table_element(heads, body, kind="heat"),
    )


def _class_scores(row: Row) -> dict[str, float]:
    """Return the mean IoU of each class over the seeds in which it occurs."""
    values: dict[str, list[float]] = {}
    for run in row.runs:
        for found in run.per_class:
            if found.iou is not None:
                values.setdefault(found.name, []).append(found.iou)
    return {name: estimate_mean(found).mean for name, found in values.items()}


def _heat_cell(value: float | None) -> Cell:
    if value is None:
        return Cell(_ABSENT)
    return Cell(f"{value:.3f}", style=f"background: rgba(47, 109, 181, {0.05 + 0.45 * value:.3f})")


def _training_section(table: Table) -> str:
    longest = max(row.total_steps for row in table.rows) or 1
    bars = []
    for label, row in table.labelled:
        phases = "".join(
            f'<span class="{phase.name if phase.name in PHASE_KINDS else ""}" '
            f'style="width: {phase.steps / longest:.2%}">{html_text(phase.name)}</span>'
            for phase in row.first.phases
        )
        seconds = sum(phase.elapsed_s for phase in row.first.phases)
        bars.append(f'<div>{html_text(label)}</div><div class="bar">{phases}</div>')
        bars.append(f'<div class="total">{row.total_steps} steps · {seconds:.0f} s</div>')
    curves = {label: read_losses(row.first.folder) for label, row in table.labelled if row.first.folder}
    found = {label: curve for label, curve in curves.items() if curve is not None and curve.curves}
    return build_section(
        "Training",
        "Optimiser steps per phase, and unweighted losses on a log scale, of the first seed of each row. Seconds are "
        "those of the training itself, whether this run did it or an earlier one it shares the phase with.",
        f'<div class="budget">{"".join(bars)}</div>',
        build_figure(draw_losses(found), "Unweighted training losses of every row") if found else "",
        _missing("metrics.jsonl", [label for label, _ in table.labelled if label not in found]),
    )


def _panel_section(chosen: Sequence[tuple[str, Row]]) -> str:
    shown, missing = [], []
    for label, row in chosen[:2]:
        folder = row.first.folder
        files = sorted((folder / "panels").glob("*.png"))[:PANELS_PER_ROW] if folder else []
        if files:
            shown.append(f"<h3>{html_text(label)}, seed {row.seeds[0]}</h3>" + "".join(map(_embed_png, files)))
        else:
            missing.append(label)
    return build_section(
        "Images",
        "The same images for each row; target and predicted depth share one scale, bright is near.",
        *shown,
        _missing("panels", missing),
    )


def _missing(what: str, labels: Sequence[str]) -> str:
    return f'<p class="hint">No {what} for: {html_text(", ".join(labels))}.</p>' if labels else ""


def _embed_png(file: Path) -> str:
    """Return the image inside the page, or what is wrong with it: a damaged one costs the page nothing else."""
    try:
        read_image(file)
    except UserError as problem:
        return f'<p class="hint">Not shown: {html_text(str(problem))}.</p>'
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<figure><img alt="{html_text(file.stem)}" src="data:image/png;base64,{data}"></figure>'


def _run_section(table: Table) -> str:
    runs = [(label, run) for label, row in table.labelled for run in row.runs]
    columns = [
        Column("row", tuple(label for label, _ in runs)),
        Column("seed", tuple(run.seed for _, run in runs)),
        Column("time", tuple(run.started_at for _, run in runs), "text"),
        Column("parameters", tuple(f"{run.parameters:,}" if run.parameters else None for _, run in runs)),
        Column(
            "phases reused",
            tuple(f"{sum(phase.reused for phase in run.phases)} of {len(run.phases)}" for _, run in runs),
        ),
        Column("folder", tuple(run.folder.name if run.folder else None for _, run in runs), "text"),
    ]
    commands = "\n".join(dict.fromkeys(html_text(run.command) for _, run in runs if run.command))
    return build_section(
        "Runs",
        "Each run and the command lines that repeat them.",
        _build_table(columns),
        f"<pre>{commands}</pre>" if commands else '<p class="hint">The runs recorded no command lines.</p>',
    )

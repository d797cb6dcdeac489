"""One self-contained page about several runs: what was found, how sure it is, what it cost, how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_cache.errors import UserError
from data_cache.escaping import html_text
from data_cache.metrics import HEADLINE, METRICS, explain_metrics
from data_cache.outputs import write_page
from stages.comparison.answer import Answer, Name, find_answer
from stages.comparison.figures import (
    NUM_SERIES,
    Series,
    draw_classes,
    draw_fractions,
    draw_gradients,
    draw_losses,
    draw_scores,
    draw_validation,
)
from stages.comparison.formats import (
    Column,
    Value,
    describe_directions,
    metric_column,
    read_cells,
    read_columns,
    show_cell,
)
from stages.comparison.identity import join_values, show_value
from stages.comparison.label_fraction import describe_savings, find_curves
from stages.comparison.losses import read_losses
from stages.comparison.page import (
    Cell,
    Section,
    build_details,
    build_figure,
    build_list,
    build_page,
    build_section,
    build_table_element,
)
from stages.comparison.pictures import Illustrations, build_image_section, build_proof_section, build_store_section
from stages.comparison.row_name import RowName
from stages.comparison.rows import FACTS, Row
from stages.comparison.statistics import Difference, Estimate, estimate_mean
from stages.comparison.table import Table

TITLE = "Did pseudo depth help?"
MAX_CURVES = 16
"""Rows whose losses are drawn."""
MAX_BAR_CLASSES = 40
"""Classes that are drawn as bars; of more the table tells."""
_ABSENT = '<span class="absent">–</span>'


def write_report(
    table: Table,
    out: Path,
    *,
    title: str = TITLE,
    illustrations: Illustrations | None = None,
    overwrite: bool = False,
    on_wait: Callable[[str], None] | None = None,
) -> Path:
    """Write one HTML file with style, script, figures and images inside it; it opens anywhere and loads nothing.

    Losses are read from the runs' folders; what is missing is said.

    Raises:
        UserError: the table is empty, a log is damaged, or ``write_page`` refuses the place.
    """
    if not table.rows:
        raise UserError("no runs to report on; train some with: pipeline run, or pipeline table schedules")
    shown, answer = illustrations or Illustrations(), find_answer(table)
    chosen = _choose_rows(table, answer)
    sections = [
        _build_scores(table),
        _build_fractions(table),
        _build_classes(table, chosen),
        _build_confusion(answer),
        build_image_section(shown) if shown.about_strips else None,
        _build_training(table, chosen),
        build_store_section(shown),
        build_proof_section(shown),
        _build_runs(table),
    ]
    opening = f'<p class="answer">{_show_answer(answer)}</p><p class="facts">{html_text(_describe_facts(table))}</p>'
    page = build_page(title, opening, [section for section in sections if section])
    write_page(page, out, overwrite=overwrite, on_wait=on_wait)
    return out


def _describe_facts(table: Table) -> str:
    before = {"split": "split ", "recipe": "recipe "}
    words = [before.get(fact, "") + ", ".join(sorted({row.fact(fact) for row in table.rows})) for fact in FACTS]
    num_runs = sum(len(row.runs) for row in table.rows)
    seen = (
        f"with {noise.seeds} seeds no difference below {noise.detectable:.3f} is seen" if (noise := table.noise) else ""
    )
    return " · ".join(filter(None, [*words, f"{len(table.rows)} rows, {num_runs} runs", seen]))


def _show_answer(answer: Answer) -> str:
    verdict = f'<span class="verdict">{answer.verdict}:</span> ' if answer.verdict else ""
    words = (f"<b>{html_text(word)}</b>" if isinstance(word, Name) else html_text(word) for word in answer.words)
    return verdict + "".join(words)


def _choose_rows(table: Table, answer: Answer) -> list[tuple[str, Row]]:
    """Return the rows looked at closely: those of the answer, then the best of their data, as colours allow."""
    chosen = list(answer.rows)
    ranked = sorted(
        ((label, row) for label, row in table.labelled if HEADLINE in row.metrics),
        key=lambda pair: -pair[1].metrics[HEADLINE].mean,
    )
    chosen += [pair for pair in ranked if not any(pair[1].runs is row.runs for _, row in chosen)]
    return [pair for pair in chosen if pair[1].is_measured_as(chosen[0][1])][:NUM_SERIES]


def _build_scores(table: Table) -> Section:
    kinds = ["baseline" if row in table.bases else "" for row in table.rows]
    caption = f"{HEADLINE} of every row: dots are seeds, upright lines their means, bars 95 % intervals of the mean"
    caption += "; the dashed line is the baseline's mean, ‹ and › say that an interval goes on."
    directions = describe_directions(table.main_metrics)
    has_any = any(HEADLINE in row.metrics for row in table.rows)
    return build_section(
        "Scores",
        "",
        build_figure(draw_scores(table), caption) if has_any else "",
        _build_table(read_columns(table), kinds),
        f'<p class="hint">{directions[:1].upper()}{directions[1:]}; a heading sorts the table.</p>',
        build_list(table.notes),
        build_details(
            "Every metric",
            '<p class="hint">The same predictions under every convention, means over seeds; the CSV and JSON of '
            "pipeline compare have the intervals, too.</p>",
            *_build_metrics(table),
        ),
    )


def _build_metrics(table: Table) -> tuple[str, str]:
    """Return every metric of every row, and what each of them is."""
    found = [name for name in METRICS if any(name in row.metrics for row in table.rows)]
    columns = [Column("row", tuple(label for label, _ in table.labelled), "text")]
    for name in found:
        means = [row.metrics[name].mean if name in row.metrics else None for row in table.rows]
        columns.append(metric_column(name, means))
    return _build_table(columns), build_list(explain_metrics(found))


def _build_table(columns: Sequence[Column], row_kinds: Sequence[str] = ()) -> str:
    heads = [Cell(html_text(column.title).replace("_", "_<wbr>"), column.kind) for column in columns]
    rows = [[Cell(_show(*cell), cell[0].kind, sort=_sort_key(cell[1])) for cell in row] for row in read_cells(columns)]
    return build_table_element(heads, rows, kind="sortable", row_kinds=row_kinds)


def _sort_key(value: Value) -> str:
    return "" if value is None else repr(value.mean) if isinstance(value, Estimate | Difference) else str(value)


def _show(column: Column, value: Value) -> str:
    """Return a cell as HTML; a difference is coloured where it is clear."""
    if value is None:
        return _ABSENT
    mean, spread = map(html_text, show_cell(column, value))
    if column.kind == "difference":
        mean = mean.replace("-", "−")
    if isinstance(value, Difference):
        better = (value.mean > 0) == METRICS[column.metric].higher_is_better
        mean = f'<span class="{("up" if better else "down") if value.is_clear else "even"}">{mean}</span>'
    return mean + (f"<small>±{spread}</small>" if spread else "")


def _build_fractions(table: Table) -> Section | None:
    """Return the headline metric over the share of the masks, for rows that have several; None where none has."""
    curves = find_curves(table)
    if not curves:
        return None
    series = [
        Series(curve.name, tuple((share, row.metrics[HEADLINE]) for share, _, row in curve.points))
        for curve in curves[:NUM_SERIES]
    ]
    points = [point for curve in curves for point in curve.points]
    counted = all(point.row.labelled_images is not None for point in points)
    ticks = {point.share: f"{point.row.labelled_images:,}" if counted else point.text for point in points}
    what = "number of labelled images" if counted else "share of the training images whose masks were used"
    hint = f"{METRICS[HEADLINE].label} over the {what}, on a logarithmic scale, with 95 % intervals over seeds."
    drawn = {id(point.row) for curve in curves[:NUM_SERIES] for point in curve.points}
    absent = [label for label, row in table.labelled if RowName.parse(row.name).share and id(row) not in drawn]
    hint += f" Not drawn: {', '.join(absent)}." if absent else ""
    saved = describe_savings(curves)
    return build_section("Masks", hint, f"<p>{html_text(saved)}</p>" if saved else "", draw_fractions(series, ticks))


def _build_classes(table: Table, chosen: Sequence[tuple[str, Row]]) -> Section | None:
    scores = {label: found for label, row in table.labelled if (found := _score_classes(row))}
    if not scores:
        return None
    names = (found.name for row in table.rows for run in row.runs for found in run.per_class)
    classes = [name for name in dict.fromkeys(names) if any(name in found for found in scores.values())]
    heads = [Cell("row"), *(Cell(html_text(name)) for name in classes)]
    body = [
        [Cell(html_text(label)), *(_heat_cell(found.get(name)) for name in classes)] for label, found in scores.items()
    ]
    bars = [(label, scores[label]) for label, _ in chosen if label in scores]
    every = build_table_element(heads, body, kind="heat sortable")
    if not bars or len(classes) > MAX_BAR_CLASSES:
        return build_section("Classes", "IoU per class, mean over seeds.", every)
    rest = len(scores) - len(bars)
    hint = "IoU per class, mean over seeds, of the rows that the answer names and the best besides"
    hint += f"; the other {rest} are in the table below." if rest else "."
    return build_section("Classes", hint, draw_classes(classes, bars), build_details("Every row", every))


def _score_classes(row: Row) -> dict[str, float]:
    """Return the mean IoU of each class over the seeds in which it occurs."""
    values: dict[str, list[float]] = {}
    for run in row.runs:
        for found in run.per_class:
            if found.iou is not None:
                values.setdefault(found.name, []).append(found.iou)
    return {name: estimate_mean(found).mean for name, found in values.items()}


def _heat_cell(value: float | None, shown: str | None = None) -> Cell:
    if value is None:
        return Cell(_ABSENT, sort="")
    return Cell(shown or f"{value:.3f}", style=f"background:rgba(var(--heat),{0.04 + 0.5 * value:.2f})")


def _build_confusion(answer: Answer) -> Section | None:
    """Return what the best row took each class for, counted over its seeds."""
    best = next((pair for pair in answer.rows[1:2] or answer.rows[:1]), None)
    counts = [run.confusion for run in best[1].runs if run.confusion] if best else []
    if not best or not counts:
        return None
    classes = [found.name for found in best[1].first.per_class]
    if any([len(classes), *map(len, matrix)] != [len(matrix)] * (len(matrix) + 1) for matrix in counts):
        return None
    pixels = [[sum(each) for each in zip(*lines, strict=True)] for lines in zip(*counts, strict=True)]
    heads = [Cell("truth ↓ predicted →"), *(Cell(html_text(name)) for name in classes)]
    body = [
        [Cell(html_text(name)), *(_share_cell(count, sum(line)) for count in line)]
        for name, line in zip(classes, pixels, strict=True)
        if sum(line)
    ]
    hint = f"What {best[0]} took the pixels of each class for, in per cent of the class, over its seeds."
    return build_section("Confusion", hint, build_table_element(heads, body, kind="heat"))


def _share_cell(count: int, total: int) -> Cell:
    share = count / total
    return _heat_cell(share, f"{100 * share:.0f}" if share >= 0.005 else '<span class="absent">·</span>')


def _build_training(table: Table, chosen: Sequence[tuple[str, Row]]) -> Section:
    longest = max(row.total_steps for row in table.rows) or 1
    bars = []
    for label, row in table.labelled:
        phases = "".join(
            f'<span class="{html_text(phase.name) if phase.name in ("seg", "depth") else ""}" '
            f'style="width:{phase.steps / longest:.2%}">{html_text(phase.name)}</span>'
            for phase in row.first.phases
        )
        seconds = sum(phase.elapsed_s for phase in row.first.phases)
        bars.append(
            f'<div class="row"><span class="name">{html_text(label)}</span><div class="steps">{phases}</div>'
            f'<span class="value even">{row.total_steps:,} steps · {seconds:,.0f} s</span></div>'
        )
    return build_section(
        "Training",
        "Optimiser steps per phase of the first seed of each row. Seconds are those of the training itself, whether "
        "this run did it or an earlier one it shares the phase with.",
        f'<div class="budget">{"".join(bars)}</div>',
        *_build_curves(table, chosen),
    )


def _build_curves(table: Table, chosen: Sequence[tuple[str, Row]]) -> Iterable[str]:
    logs = {label: read_losses(row.first.folder) for label, row in table.labelled if row.first.folder}
    found = {label: log for label, log in logs.items() if log is not None and log.curves}
    if len(found) > MAX_CURVES:
        found = {label: found[label] for label, _ in chosen if label in found}
        yield f'<p class="hint">Losses of {len(found)} of {len(table.rows)} rows, those of the classes above.</p>'
    if found:
        caption = "Unweighted training losses on one log scale: means between two lines of the log, of the first seed."
        logged = (value for log in found.values() for points in log.curves.values() for _, value in points)
        caption += " A loss of 0 is not drawn." if any(value == 0 for value in logged) else ""
        yield build_figure(draw_losses(found), caption)
    scored = {label: log for label, log in logs.items() if log is not None and log.scores}
    if scored:
        where = "the images that weights were chosen on, where they were, else of the reported split"
        yield build_figure(draw_validation(scored), f"Scores while training (--val-every): mIoU of {where}.")
    looked = {label: log for label, log in logs.items() if log is not None and log.cosines}
    if looked:
        cosines, norms = draw_gradients(looked)
        yield build_figure(
            cosines, "What both losses ask of the encoder in joint phases: 1 is the same, −1 the opposite."
        )
        yield build_figure(norms, "Norms of both gradients on the encoder, on one log scale.")
    silent = [label for label, log in logs.items() if log is not None and not log.curves]
    absent = [label for label, _ in table.labelled if logs.get(label) is None]
    for words, labels in (
        ("No losses were logged, because training.log_every is more than the steps of any phase", silent),
        ("There is no metrics.jsonl", absent),
    ):
        yield f'<p class="hint">{words}: {html_text(", ".join(labels))}.</p>' if labels else ""


def _build_runs(table: Table) -> Section:
    runs = [(label, run) for label, row in table.labelled for run in row.runs]
    columns = [
        Column("row", tuple(label for label, _ in runs), "text"),
        Column("seed", tuple(run.seed for _, run in runs)),
        Column("time", tuple(run.started_at for _, run in runs), "text"),
        Column("parameters", tuple(f"{run.parameters:,}" if run.parameters else None for _, run in runs)),
        Column(
            "phases reused",
            tuple(f"{sum(phase.reused for phase in run.phases)} of {len(run.phases)}" for _, run in runs),
        ),
        Column("folder", tuple(run.folder.name if run.folder else None for _, run in runs), "text"),
    ]
    facts = [{**run.environment, **(run.identity.numerics if run.identity else {})} for _, run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    machine = "".join(
        f"<dt>{html_text(name)}</dt><dd>{html_text(join_values(show_value(each.get(name)) for each in facts))}</dd>"
        for name in names
    )
    commands = "\n".join(dict.fromkeys(html_text(run.command) for _, run in runs if run.command))
    return build_section(
        "Runs",
        "The command lines that repeat them.",
        f"<pre>{commands}</pre>" if commands else '<p class="hint">The runs recorded no command lines.</p>',
        build_details("Every run", _build_table(columns)),
        build_details("Versions and numerics", f"<dl>{machine}</dl>") if machine else "",
    )

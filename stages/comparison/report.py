"""One self-contained page about several runs: what was found, how sure it is, what it cost, how to repeat it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from data_cache.errors import UserError
from stages.comparison.figures import SERIES, draw_classes, draw_losses, draw_scores
from stages.comparison.formats import PAPER_TITLES
from stages.comparison.losses import read_losses
from stages.comparison.page import build_figure, build_page, build_section
from stages.comparison.statistics import Difference, Estimate, estimate_mean
from stages.comparison.table import HEADLINE, Row, Table, label_rows

_ABSENT = '<span class="absent">–</span>'


def write_report(
    table: Table,
    out: Path,
    *,
    title: str = "Did pseudo depth help?",
    panels_per_row: int = 3,
    written_at: datetime | None = None,
) -> Path:
    """Write one HTML file with style, figures and pictures inside it; it opens anywhere and loads nothing.

    Losses and panels are read from the runs' folders; a section whose files are missing says so.

    Args:
        panels_per_row: qualitative pictures shown of the baseline and of the best row.
        written_at: shown in the footer.

    Raises:
        UserError: the table is empty, or a log is damaged.
    """
    if not table.rows:
        raise UserError("no runs to report on; train some with: pipeline run, or pipeline table schedules")
    chosen = _choose_rows(table)
    sections = [
        f'<p class="answer">{_answer(table)}</p>',
        build_section("Scores", "", _score_figure(table), _score_table(table), _notes(table)),
        _class_section(table, chosen),
        _training_section(table),
        _panel_section(chosen, panels_per_row),
        _run_section(table),
    ]
    footer = f"Written {written_at.isoformat(sep=' ', timespec='minutes')}." if written_at else "Self-contained page."
    page = build_page(title, _facts(table), [section for section in sections if section], footer)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    partial.write_text(page, encoding="utf8")
    partial.replace(out)
    return out


def _facts(table: Table) -> str:
    words = []
    for fact, before in (("dataset", ""), ("split", "split "), ("recipe", "recipe "), ("network", "")):
        values = sorted({str(getattr(row, fact)) for row in table.rows})
        words.append(before + ", ".join(values))
    num_runs = sum(len(row.runs) for row in table.rows)
    return " · ".join([*words, f"{len(table.rows)} rows, {num_runs} runs"])


def _choose_rows(table: Table) -> list[tuple[str, Row]]:
    """Return the rows looked at closely with their labels: the baseline, then the best, as many as colours."""
    labelled = list(zip(label_rows(table.rows), table.rows, strict=True))
    scored = [(label, row) for label, row in labelled if HEADLINE in row.metrics]
    base = [(label, row) for label, row in scored if row.name == table.baseline][:1]
    others = sorted((pair for pair in scored if pair not in base), key=lambda pair: -pair[1].metrics[HEADLINE].mean)
    return [*base, *others][: len(SERIES)]


def _answer(table: Table) -> str:
    """Return what the table says about the best row, with its uncertainty, as a sentence of HTML."""
    scored = sorted((row for row in table.rows if HEADLINE in row.metrics), key=lambda row: -row.metrics[HEADLINE].mean)
    compared = [row for row in scored if HEADLINE in row.differences]
    if not compared:
        return "".join(f"<b>{escape(row.name)}</b>: {row.metrics[HEADLINE].mean:.3f} {HEADLINE}." for row in scored[:1])
    best = compared[0]
    found = best.differences[HEADLINE]
    base_steps = {row.total_steps for row in table.rows if row.name == table.baseline}
    text = (
        f"The best row besides <b>{escape(str(table.baseline))}</b> is <b>{escape(best.name)}</b> with "
        f"{best.metrics[HEADLINE].mean:.3f} {HEADLINE}, a difference of {found.mean:+.3f}"
    )
    if found.half_width is None:
        return f"{text} on one seed, which cannot tell an effect from chance."
    verdict = "leaves out 0" if found.is_clear else "includes 0: chance alone could explain it"
    longer = ". It also trained longer" if found.mean > 0 and best.total_steps > max(base_steps) else ""
    text += f"&nbsp;±&nbsp;{found.half_width:.3f} over {len(found.seeds)} paired seeds"
    return f"{text}. The interval {verdict}{longer}."


def _score_figure(table: Table) -> str:
    return build_figure(draw_scores(table), f"{HEADLINE} of every row: dots are seeds, bars 95 % intervals of the mean")


def _score_table(table: Table) -> str:
    paper = table.paper_columns
    varying = [fact for fact in ("dataset", "network") if len({getattr(row, fact) for row in table.rows}) > 1]
    heads = [f'<th rowspan="2" class="text">{fact}</th>' for fact in ("row", *varying)]
    heads += ['<th rowspan="2">seeds</th>', '<th rowspan="2">steps</th>']
    for metric in table.main_metrics:
        kind = ' class="headline"' if metric == HEADLINE else ""
        heads.append(f'<th rowspan="2"{kind}>{metric.replace("_", "_<wbr>")}</th>')
        if metric in table.compared_metrics and table.baseline:
            heads.append(f'<th rowspan="2">vs {escape(table.baseline)}</th>')
    if paper:
        heads.append(f'<th class="group" colspan="{len(paper)}">paper, as printed</th>')
    lower = "".join(f"<th>{PAPER_TITLES[column]}</th>" for column in paper)
    body = "".join(_score_row(row, table, varying) for row in table.rows)
    return _scrolling(f"<thead><tr>{''.join(heads)}</tr><tr>{lower}</tr></thead><tbody>{body}</tbody>")


def _scrolling(rows: str, kind: str = "") -> str:
    """Return a table that scrolls by itself where the window is narrow."""
    return f'<div class="scroll"><table class="{kind}">{rows}</table></div>'


def _score_row(row: Row, table: Table, varying: Sequence[str]) -> str:
    cells = [
        f"<td>{escape(row.name)}</td>",
        *(f'<td class="text">{escape(getattr(row, fact))}</td>' for fact in varying),
    ]
    cells += [f"<td>{len(row.seeds)}</td>", f"<td>{row.total_steps}</td>"]
    for metric in table.main_metrics:
        kind = ' class="headline"' if metric == HEADLINE else ""
        digits = 4 if metric == "depth_mse" else 3
        cells.append(f"<td{kind}>{_number(row.metrics.get(metric), digits)}</td>")
        if metric in table.compared_metrics and table.baseline:
            cells.append(f"<td>{_signed(row.differences.get(metric))}</td>")
    cells += [
        f'<td class="paper">{row.paper[key]:.5g}</td>' if key in row.paper else f"<td>{_ABSENT}</td>"
        for key in table.paper_columns
    ]
    kind = ' class="baseline"' if row.name == table.baseline else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _number(found: Estimate | None, digits: int) -> str:
    if found is None:
        return _ABSENT
    spread = "" if found.half_width is None else f'<span class="spread">±{found.half_width:.{digits}f}</span>'
    return f"{found.mean:.{digits}f}{spread}"


def _signed(found: Difference | None) -> str:
    if found is None:
        return _ABSENT
    kind = ("up" if found.mean > 0 else "down") if found.is_clear else "even"
    spread = "" if found.half_width is None else f'<span class="spread">±{found.half_width:.3f}</span>'
    return f'<span class="{kind}">{found.mean:+.3f}</span>{spread}'


def _notes(table: Table) -> str:
    return (
        f'<ol class="notes">{"".join(f"<li>{escape(note)}.</li>" for note in table.notes)}</ol>' if table.notes else ""
    )


def _class_section(table: Table, chosen: Sequence[tuple[str, Row]]) -> str:
    scores = {label: _class_scores(row) for label, row in zip(label_rows(table.rows), table.rows, strict=True)}
    scores = {label: found for label, found in scores.items() if found}
    if not scores:
        return ""
    names = (found.name for row in table.rows for run in row.runs for found in run.per_class)
    classes = [name for name in dict.fromkeys(names) if any(name in found for found in scores.values())]
    heads = "".join(f"<th>{escape(name)}</th>" for name in classes)
    body = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(_heat_cell(found.get(name)) for name in classes)}</tr>"
        for label, found in scores.items()
    )
    bars = [(label, scores[label]) for label, _ in chosen if label in scores]
    return build_section(
        "Classes",
        "IoU per class, mean over seeds: the baseline beside the best rows, then every row.",
        build_figure(draw_classes(classes, bars), "IoU per class") if bars else "",
        _scrolling(f"<thead><tr><th>row</th>{heads}</tr></thead><tbody>{body}</tbody>", "heat"),
    )


def _class_scores(row: Row) -> dict[str, float]:
    """Return the mean IoU of each class over the seeds in which it occurs."""
    values: dict[str, list[float]] = {}
    for run in row.runs:
        for found in run.per_class:
            if found.iou is not None:
                values.setdefault(found.name, []).append(found.iou)
    return {name: estimate_mean(found).mean for name, found in values.items()}


def _heat_cell(value: float | None) -> str:
    if value is None:
        return f"<td>{_ABSENT}</td>"
    return f'<td style="background: rgba(47, 109, 181, {0.05 + 0.45 * value:.3f})">{value:.3f}</td>'


def _training_section(table: Table) -> str:
    longest = max(row.total_steps for row in table.rows) or 1
    bars = []
    labels = label_rows(table.rows)
    for label, row in zip(labels, table.rows, strict=True):
        run = row.runs[0]
        phases = "".join(
            f'<span class="{name}" style="width: {steps / longest:.2%}">{name}</span>'
            for name, steps in ((escape(phase.name), phase.steps) for phase in run.phases)
        )
        seconds = sum(phase.elapsed_s for phase in run.phases)
        bars.append(f'<div>{escape(label)}</div><div class="bar">{phases}</div>')
        bars.append(f'<div class="total">{row.total_steps} steps · {seconds:.0f} s</div>')
    firsts = [(label, row.runs[0].folder) for label, row in zip(labels, table.rows, strict=True)]
    curves = {label: read_losses(folder) for label, folder in firsts if folder}
    found = {name: curve for name, curve in curves.items() if curve is not None and curve.curves}
    missing = [label for label in labels if label not in found]
    drawn = build_figure(draw_losses(found), "Unweighted training losses of every row") if found else ""
    said = f'<p class="hint">No metrics.jsonl for: {escape(", ".join(missing))}.</p>' if missing else ""
    return build_section(
        "Training",
        "Optimiser steps per phase, and unweighted losses on a log scale, of the first seed of each row. Seconds are "
        "those of the training itself, whether this run did it or an earlier one it shares the phase with.",
        f'<div class="budget">{"".join(bars)}</div>',
        drawn,
        said,
    )


def _panel_section(chosen: Sequence[tuple[str, Row]], panels_per_row: int) -> str:
    shown, missing = [], []
    for label, row in chosen[:2]:
        folder = row.runs[0].folder
        files = sorted((folder / "panels").glob("*.png"))[:panels_per_row] if folder else []
        if not files:
            missing.append(label)
            continue
        shown.append(f"<h3>{escape(label)}, seed {row.seeds[0]}</h3>" + "".join(map(_embed_png, files)))
    said = f'<p class="hint">No panels for: {escape(", ".join(missing))}.</p>' if missing else ""
    return build_section(
        "Pictures",
        "The same images for each row; target and predicted depth share one scale, bright is near.",
        *shown,
        said,
    )


def _embed_png(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<figure><img alt="{escape(file.stem)}" src="data:image/png;base64,{data}"></figure>'


def _run_section(table: Table) -> str:
    body = "".join(
        f'<tr><td>{escape(row.name)}</td><td>{run.seed}</td><td class="text">{escape(run.started_at)}</td>'
        f"<td>{f'{run.parameters:,}' if run.parameters else _ABSENT}</td>"
        f"<td>{sum(phase.reused for phase in run.phases)} of {len(run.phases)}</td>"
        f'<td class="text">{escape(run.folder.name) if run.folder else _ABSENT}</td></tr>'
        for row in table.rows
        for run in row.runs
    )
    heads = (
        '<th>row</th><th>seed</th><th class="text">time</th><th>parameters</th><th>phases reused</th>'
        '<th class="text">folder</th>'
    )
    commands = "\n".join(dict.fromkeys(run.command for row in table.rows for run in row.runs if run.command))
    return build_section(
        "Runs",
        "Each run and the command lines that repeat them.",
        _scrolling(f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"),
        f"<pre>{escape(commands)}</pre>" if commands else '<p class="hint">The runs recorded no command lines.</p>',
    )

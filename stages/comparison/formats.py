"""A table as text, Markdown, CSV, JSON or LaTeX. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data_cache.escaping import csv_text, latex_text, markdown_text, printable_text, width_of
from data_cache.metrics import HEADLINE, METRICS, explain_metrics
from stages.comparison.rows import FACTS, label_rows, varying_facts
from stages.comparison.statistics import Difference, Estimate
from stages.comparison.table import PAPER_COLUMNS, Table

TEXT_WIDTH = 120
EMPTY = "–"

Value = str | int | float | Estimate | Difference | None


@dataclass(frozen=True)
class Column:
    """One column of a table for reading."""

    title: str
    values: tuple[Value, ...]
    kind: Literal["text", "count", "metric", "headline", "difference", "paper"] = "count"
    metric: str = ""
    """Name of the metric that a column of metrics or differences is of."""
    digits: int = 3
    importance: int = 9
    """Where the table is too wide, columns go in rising order of this."""


def read_columns(table: Table) -> list[Column]:
    """Return the columns for people: what distinguishes the rows, then the main metrics, then the paper's scores."""
    rows = table.rows
    facts = varying_facts(rows)
    columns = [Column("row", tuple(label_rows(rows, shown=facts)), "text")]
    apart = len({row.name for row in rows}) == len(rows)  # by their names, without these columns
    for fact in facts:
        columns.append(Column(fact, tuple(row.fact(fact) for row in rows), "text", importance=2 if apart else 5))
    columns.append(Column("seeds", tuple(len(row.seeds) for row in rows), importance=6))
    columns.append(Column("steps", tuple(row.total_steps for row in rows), importance=7))
    for place, name in enumerate(table.main_metrics):
        column = metric_column(name, [row.metrics.get(name) for row in rows])
        columns.append(column if name == HEADLINE else replace(column, importance=4 - place // 2))
        if name in table.compared_metrics and table.baseline:
            differences = tuple(row.differences.get(name) for row in rows)
            columns.append(Column(f"{name} vs {table.baseline}", differences, "difference", name, METRICS[name].digits))
    for name in table.paper_columns:
        scores = tuple(row.paper.get(name) for row in rows)
        columns.append(
            Column(f"paper {PAPER_COLUMNS[name]}", scores, "paper", digits=_printed_digits(scores), importance=8)
        )
    return columns


def metric_column(name: str, values: Sequence[Value]) -> Column:
    """Return the column of a metric, with an arrow in its heading where lower is better."""
    metric = METRICS[name]
    title = name if metric.higher_is_better else f"{name}\N{NO-BREAK SPACE}{metric.arrow}"
    return Column(title, tuple(values), "headline" if name == HEADLINE else "metric", name, metric.digits)


def show_cell(column: Column, value: Value, *, between: str = " ± ") -> str:
    """Return a value as plain text, its uncertainty behind ``between``."""
    if value is None:
        return EMPTY
    if isinstance(value, Estimate | Difference):
        sign = "+" if isinstance(value, Difference) else ""
        spread = "" if value.half_width is None else f"{between}{value.half_width:.{column.digits}f}"
        return f"{value.mean:{sign}.{column.digits}f}{spread}"
    return f"{value:.{column.digits}f}" if isinstance(value, float) else str(value)


def describe_common(table: Table) -> str:
    """Return what all rows have in common, as a heading."""
    found = {fact: {row.fact(fact) for row in table.rows} for fact in FACTS}
    return " · ".join(
        ("recipe " if fact == "recipe" else "") + values.pop() for fact, values in found.items() if len(values) == 1
    )


def describe_directions(names: Sequence[str]) -> str:
    """Return which way metrics are better, as a sentence."""
    lower = [name for name in names if not METRICS[name].higher_is_better]
    return "higher is better" + (f", but lower for {', '.join(lower)} (↓)" if lower else "")


def render_text(table: Table, *, width: int = TEXT_WIDTH) -> str:
    """Return the table in fixed-width characters, at most ``width`` of them a line.

    Columns that do not fit are left out, and named below. Differences to the baseline follow the table.
    """
    if not table.rows:
        return "no runs"
    columns = [
        replace(column, title=f"{column.title}*") if column.kind == "headline" else column
        for column in _join_papers(read_columns(table))
        if column.kind != "difference"
    ]
    columns, left_out = _fit(columns, width)
    lines = [printable_text(describe_common(table)), "", *_lay_out(columns), ""]
    for metric in table.compared_metrics:
        lines += _difference_lines(table, metric, width)
    notes = [
        f"* headline metric: {METRICS[HEADLINE].label}, {METRICS[HEADLINE].convention}",
        f"{describe_directions(table.main_metrics)}; what each metric is: pipeline compare --help",
        *table.notes,
    ]
    if left_out:
        notes.append(f"left out for width: {', '.join(left_out)}; --format csv and json show every column")
    for note in notes:
        lines += _wrap(printable_text(note), width)
    return "\n".join(line.rstrip() for line in lines)


def render_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown; the headline metric is bold."""
    columns = read_columns(table)
    titles = [f"**{column.title}**" if column.kind == "headline" else markdown_text(column.title) for column in columns]
    rule = ["---" if column.kind == "text" else "---:" for column in columns]
    body = [[markdown_text(show_cell(column, column.values[index])) for column in columns] for index in _indices(table)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *body)]
    notes = [f"- {markdown_text(note)}" for note in (*table.notes, *explain_metrics(table.main_metrics))]
    return "\n".join([markdown_text(describe_common(table)), "", *lines, "", *notes])


def render_csv(table: Table) -> str:
    """Return one line per row with every column, always the same ones; numbers are not rounded, absent ones empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["name", "label", *FACTS, "baseline", "seeds", "num_seeds", "total_steps", "parameters"]
        + [f"{metric}{part}" for metric in METRICS for part in ("", "_ci95", "_diff", "_diff_ci95")]
        + [f"paper_{column}" for column in PAPER_COLUMNS]
    )
    for label, row in zip(label_rows(table.rows), table.rows, strict=True):
        words = (row.name, label, *(row.fact(fact) for fact in FACTS), row.baseline or "")
        cells: list[object] = [*map(csv_text, words), " ".join(map(str, row.seeds)), len(row.seeds)]
        cells += [row.total_steps, row.first.parameters]
        for metric in METRICS:
            for found in (row.metrics.get(metric), row.differences.get(metric)):
                cells += [None, None] if found is None else [found.mean, found.half_width]
        writer.writerow(cells + [row.paper.get(column) for column in PAPER_COLUMNS])
    return stream.getvalue().rstrip("\n")


def render_json(table: Table) -> str:
    """Return everything, unrounded."""
    return json.dumps(table.to_json(), indent=2, ensure_ascii=False, allow_nan=False)


def render_latex(table: Table) -> str:
    """Return a ``tabular`` in the style of booktabs (``\\usepackage{booktabs}``); notes are comments above it."""

    def cell(column: Column, value: Value) -> str:
        shown = show_cell(column, value)
        is_formula = isinstance(value, Estimate | Difference)
        return "$" + shown.replace("±", r"\pm") + "$" if is_formula else latex_text(shown)

    columns = read_columns(table)
    heads = [
        rf"\textbf{{{latex_text(column.title)}}}" if column.kind == "headline" else latex_text(column.title)
        for column in columns
    ]
    body = [[cell(column, column.values[index]) for column in columns] for index in _indices(table)]
    comments = (describe_common(table), *table.notes, *explain_metrics(table.main_metrics))
    lines = [
        *(f"% {printable_text(line)}" for line in comments),
        rf"\begin{{tabular}}{{{''.join('l' if column.kind == 'text' else 'r' for column in columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "csv": render_csv,
    "json": render_json,
    "latex": render_latex,
}


def _indices(table: Table) -> range:
    return range(len(table.rows))


def _printed_digits(scores: Sequence[float | None]) -> int:
    """Return as many digits, three to five, as the paper printed."""
    values = [score for score in scores if score is not None]
    return next((digits for digits in (3, 4) if all(round(value, digits) == value for value in values)), 5)


def _join_papers(columns: list[Column]) -> list[Column]:
    """Put several columns of a paper's scores into one narrow one."""
    papers = [column for column in columns if column.kind == "paper"]
    if len(papers) < 2:
        return columns
    names = [column.title.removeprefix("paper ") for column in papers]
    cells = [
        " ".join(EMPTY if value is None else f"{value:.3f}".removeprefix("0") for value in values)
        if any(value is not None for value in values)
        else EMPTY
        for values in zip(*(column.values for column in papers), strict=True)
    ]
    joined = Column("paper\n" + " ".join(f"{name:>4}" for name in names).strip(), tuple(cells), "paper", importance=3)
    return [*(column for column in columns if column.kind != "paper"), joined]


def _difference_lines(table: Table, metric: str, width: int) -> list[str]:
    """Return the paired differences of a metric as lines of text."""
    labels = map(printable_text, label_rows(table.rows))
    labelled = zip(labels, table.rows, strict=True)
    compared = [(label, row.differences[metric]) for label, row in labelled if metric in row.differences]
    if not compared:
        return []
    name_width = max(width_of(label) for label, _ in compared)
    lines = [f"{metric} minus that of {printable_text(table.baseline or '')}, paired by seed:"]
    for label, found in compared:
        spread = "one seed, no interval" if found.half_width is None else f"±{found.half_width:.3f}"
        verdict = "" if found.half_width is None or found.is_clear else "  (may be chance)"
        value = f"{found.mean:+.3f} {spread}{verdict}"
        in_one = f"  {label}{' ' * (name_width - width_of(label))}  {value}"
        lines += [in_one] if width_of(in_one) <= width else [f"  {label}", f"    {value}"]
    return [*lines, ""]


def _lay_out(columns: Sequence[Column]) -> list[str]:
    """Return header lines, a rule and one line per row; long metric names take two header lines."""
    heads = [_split_title(column.title) for column in columns]
    cells = [[_compact(column, value) for value in column.values] for column in columns]
    widths = [max(map(width_of, (*head, *found))) for head, found in zip(heads, cells, strict=True)]

    def line(parts: Sequence[str]) -> str:
        padded = []
        for part, size, column in zip(parts, widths, columns, strict=True):
            gap = " " * (size - width_of(part))
            padded.append(part + gap if column.kind == "text" else gap + part)
        return "  ".join(padded)

    upper, lower = zip(*heads, strict=True)
    rule = "  ".join("─" * size for size in widths)
    return [*([line(upper)] if any(upper) else []), line(lower), rule, *map(line, zip(*cells, strict=True))]


def _compact(column: Column, value: Value) -> str:
    return printable_text(show_cell(column, value, between="±").replace("±0.", "±."))


def _split_title(title: str) -> tuple[str, str]:
    """Return upper and lower header line of a title, broken at its last underscore before the twelfth character."""
    upper, newline, lower = title.partition("\n")
    if newline:
        return upper, lower
    at = title.rfind("_", 1, 12) if len(title) > 11 else -1
    return (title[:at], title[at:]) if at > 0 else ("", title)


def _fit(columns: list[Column], width: int) -> tuple[list[Column], list[str]]:
    """Drop the least important columns until a line fits; return the others and the dropped titles."""
    kept, dropped = list(columns), []
    while len(kept) > 1 and max(map(width_of, _lay_out(kept))) > width:
        least = min(reversed(kept), key=lambda column: column.importance)
        kept.remove(least)
        dropped.append(least.title.rstrip("*").split("\n")[0])
    return kept, dropped


def _wrap(note: str, width: int) -> list[str]:
    """Return a note as lines of at most ``width`` columns, continued under its text."""
    lines, current = [], ""
    for word in note.split(" "):
        if current and width_of(current) + 1 + width_of(word) > width:
            lines.append(current)
            current = "  " + word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]

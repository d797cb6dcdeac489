"""A table as text, Markdown, CSV, JSON or LaTeX. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_cache.escaping import csv_text, json_text, latex_text, markdown_text, printable_text, width_of
from data_cache.metrics import HEADLINE, METRICS, explain_metrics
from stages.comparison.label_fraction import describe_savings, find_curves
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
    seen = [row.images_seen or {} for row in rows]
    if any(each.get("unlabelled") for each in seen):
        shown = tuple(f"{each['labelled']} + {each['unlabelled']}" if each else None for each in seen)
        columns.append(Column("masks + others seen", shown, importance=3))
    for place, name in enumerate(table.main_metrics):
        column = metric_column(name, [row.metrics.get(name) for row in rows])
        columns.append(column if name == HEADLINE else replace(column, importance=4 - place // 2))
        if name in table.compared_metrics and table.baseline:
            differences = tuple(row.differences.get(name) for row in rows)
            title = f"{name} vs {table.base_name}"
            columns.append(Column(title, differences, "difference", name, METRICS[name].digits))
            columns += _describe_certainty(differences)
    for name in table.paper_columns:
        scores = tuple(row.paper.get(name) for row in rows)
        digits = _printed_digits([score for score in scores if score is not None])
        columns.append(Column(f"paper {PAPER_COLUMNS[name]}", scores, "paper", digits=digits, importance=8))
    return columns


def _describe_certainty(differences: Sequence[Difference | None]) -> list[Column]:
    """Return what is known of differences besides their mean and interval over seeds, by its name; [] without any."""
    figures = [_show_certainty(found) if found else {} for found in differences]
    names = dict.fromkeys(name for each in figures for name in each)
    return [Column(name, tuple(each.get(name) for each in figures), "difference") for name in names]


def _show_certainty(found: Difference) -> dict[str, str]:
    """Return p values and the interval over images by their names, as people read them."""
    shown = {"p": found.p, "Holm p": found.holm}
    words = {name: f"{p:.3f}" if p >= 0.001 else "<0.001" for name, p in shown.items() if p is not None}
    if found.images is not None:
        words["over images"] = f"{found.images.low:+.3f} to {found.images.high:+.3f}"
    return words if found.holm is not None else {}


def metric_column(name: str, values: Sequence[Value]) -> Column:
    """Return the column of a metric, with an arrow in its heading where lower is better."""
    metric = METRICS[name]
    title = name if metric.higher_is_better else f"{name}\N{NO-BREAK SPACE}{metric.arrow}"
    return Column(title, tuple(values), "headline" if name == HEADLINE else "metric", name, metric.digits)


def read_cells(columns: Sequence[Column]) -> list[list[tuple[Column, Value]]]:
    """Return the table row by row, each value beside its column."""
    return [
        list(zip(columns, values, strict=True)) for values in zip(*(column.values for column in columns), strict=True)
    ]


def show_cell(column: Column, value: Value) -> tuple[str, str]:
    """Return a value as plain text, and half of its interval's width, "" where it has none."""
    if value is None:
        return EMPTY, ""
    if isinstance(value, Estimate | Difference):
        sign = "+" if isinstance(value, Difference) else ""
        spread = "" if value.half_width is None else f"{value.half_width:.{column.digits}f}"
        return f"{value.mean:{sign}.{column.digits}f}", spread
    return f"{value:.{column.digits}f}" if isinstance(value, float) else str(value), ""


def describe_common(table: Table) -> str:
    """Return what all rows have in common, as a heading."""
    varying = varying_facts(table.rows)
    return " · ".join(
        ("recipe " if fact == "recipe" else "") + row.fact(fact)
        for row in table.rows[:1]
        for fact in FACTS
        if fact not in varying
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
    every = [
        replace(column, title=f"{column.title}*") if column.kind == "headline" else column
        for column in _join_papers(read_columns(table))
    ]
    columns, left_out = _fit([column for column in every if column.kind != "difference"], width)
    lines = [printable_text(describe_common(table)), "", *_lay_out(columns), ""]
    for column in every:
        if column.kind == "difference":
            lines += _lay_out_differences(table, column, width)
    if saved := describe_savings(find_curves(table)):
        lines += [*_wrap(printable_text(saved), width), ""]
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
    body = [[markdown_text(" ± ".join(filter(None, show_cell(*cell)))) for cell in row] for row in read_cells(columns)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *body)]
    notes = [f"- {markdown_text(note)}" for note in (*table.notes, *explain_metrics(table.main_metrics))]
    saved = describe_savings(find_curves(table))
    lines += ["", markdown_text(saved)] if saved else []
    return "\n".join([markdown_text(describe_common(table)), "", *lines, "", *notes])


def list_record_columns() -> list[str]:
    """Return the names of what ``list_records`` tells of a row."""
    return [
        "name", "label", *FACTS, "baseline", "seeds", "num_seeds", "total_steps",
        "images_labelled", "images_unlabelled", "parameters",
        *(f"{metric}{part}" for metric in METRICS for part in ("", "_ci95", "_diff", "_diff_ci95", "_diff_p")),
        *(f"{HEADLINE}_diff_{part}" for part in ("holm", "images_low", "images_high")),
        *(f"paper_{column}" for column in PAPER_COLUMNS),
    ]  # fmt: skip


def list_records(table: Table) -> list[dict[str, str | int | float | None]]:
    """Return one flat record per row with every column, always the same ones; numbers are not rounded.

    ``<metric>`` is the mean over seeds, ``_ci95`` half its 95 % interval, ``_diff`` the paired difference to the row
    ``baseline`` with its own half interval and p; shares are in [0, 1]. None where there is none: intervals take seeds.
    """
    columns, records = list_record_columns(), []
    for label, row in table.labelled:
        seen, seeds = row.images_seen or {}, " ".join(map(str, row.seeds))
        cells: list[Any] = [row.name, label, *(row.fact(fact) for fact in FACTS), row.baseline, seeds, len(row.seeds)]
        cells += [row.total_steps, seen.get("labelled"), seen.get("unlabelled"), row.first.parameters]
        for metric in METRICS:
            estimate, found = row.metrics.get(metric), row.differences.get(metric)
            cells += [None, None] if estimate is None else [estimate.mean, estimate.half_width]
            cells += [None, None, None] if found is None else [found.mean, found.half_width, found.p]
        headline = row.differences.get(HEADLINE)
        cells += [headline and headline.holm, *((headline and headline.images) or (None, None))]
        cells += [row.paper.get(column) for column in PAPER_COLUMNS]
        records.append(dict(zip(columns, cells, strict=True)))
    return records


def render_csv(table: Table) -> str:
    """Return ``list_records`` as lines, absent values empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(list_record_columns())
    for record in list_records(table):
        writer.writerow([csv_text(value) if isinstance(value, str) else value for value in record.values()])
    return stream.getvalue().rstrip("\n")


def render_json(table: Table) -> str:
    """Return everything, unrounded."""
    return json_text(summarise(table), indent=2)


def summarise(table: Table) -> dict[str, Any]:
    """Return everything as JSON values, with what follows from the rows together: ``label_fraction`` where it does."""
    curves = find_curves(table)
    if not curves:
        return table.to_json()
    points = [
        {"curve": curve.name, "share": point.share, "labelled_images": point.row.labelled_images}
        | {"row": point.row.name, **point.row.metrics[HEADLINE]._asdict()}
        for curve in curves
        for point in curve.points
    ]
    return table.to_json() | {"label_fraction": {"points": points, "saved": describe_savings(curves)}}


def render_latex(table: Table) -> str:
    """Return a ``tabular`` in the style of booktabs (``\\usepackage{booktabs}``); notes are comments above it."""

    def cell(column: Column, value: Value) -> str:
        shown, spread = show_cell(column, value)
        if not isinstance(value, Estimate | Difference):
            return latex_text(shown)
        return rf"${shown} \pm {spread}$" if spread else f"${shown}$"

    columns = read_columns(table)
    heads = [
        rf"\textbf{{{latex_text(column.title)}}}" if column.kind == "headline" else latex_text(column.title)
        for column in columns
    ]
    body = [[cell(*each) for each in row] for row in read_cells(columns)]
    lines = [" & ".join(cells) + r" \\" for cells in (heads, *body)]
    comments = (describe_common(table), *table.notes, *explain_metrics(table.main_metrics))
    return "\n".join(
        [
            *(f"% {printable_text(line)}" for line in comments),
            rf"\begin{{tabular}}{{{''.join('l' if column.kind == 'text' else 'r' for column in columns)}}}",
            *(r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"),
            r"\end{tabular}",
        ]
    )


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "csv": render_csv,
    "json": render_json,
    "latex": render_latex,
}


def _printed_digits(scores: Sequence[float]) -> int:
    """Return as many digits, three to five, as the paper printed."""
    return next((digits for digits in (3, 4) if all(round(score, digits) == score for score in scores)), 5)


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


def _lay_out_differences(table: Table, column: Column, width: int) -> list[str]:
    """Return a column of paired differences as lines of text."""
    found = [
        (printable_text(label if row.baseline == table.base_name else f"{label} - {row.baseline}"), value)
        for (label, row), value in zip(table.labelled, column.values, strict=True)
        if isinstance(value, Difference)
    ]
    heading = [f"{column.metric} minus that of {printable_text(table.base_name)}, paired by seed:"] if found else []
    name_width = max((width_of(label) for label, _ in found), default=0)
    words = []
    for _, difference in found:
        mean, spread = show_cell(column, difference)
        words.append([f"{mean} {f'±{spread}' if spread else 'one seed, no interval'}"])
        words[-1] += [f"{name} {shown}" for name, shown in _show_certainty(difference).items()]
        words[-1] += ["(may be chance)"] if spread and difference.may_be_chance else []
    labels = [f"  {label}{' ' * (name_width - width_of(label))}" for label, _ in found]
    lines = ["  ".join([label, *of_row]) for label, of_row in zip(labels, words, strict=True)]
    if any(width_of(line) > width for line in lines):  # then every row takes two lines
        lines = [
            line
            for (label, _), of_row in zip(found, words, strict=True)
            for line in (f"  {label}", *(f"    {part}" for part in _wrap("  ".join(of_row), width - 4)))
        ]
    return [*heading, *lines, ""] if lines else []


def _lay_out(columns: Sequence[Column]) -> list[str]:
    """Return header lines, a rule and one line per row; long metric names take two header lines."""
    upper, lower = zip(*(_split_title(column.title) for column in columns), strict=True)
    body = [[_show_short(*cell) for cell in row] for row in read_cells(columns)]
    widths = [max(map(width_of, shown)) for shown in zip(upper, lower, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        gaps = [" " * (size - width_of(cell)) for size, cell in zip(widths, cells, strict=True)]
        return "  ".join(
            cell + gap if column.kind == "text" else gap + cell
            for cell, gap, column in zip(cells, gaps, columns, strict=True)
        )

    rule = "  ".join("─" * size for size in widths)
    return [*([line(upper)] if any(upper) else []), line(lower), rule, *map(line, body)]


def _show_short(column: Column, value: Value) -> str:
    shown, spread = show_cell(column, value)
    return printable_text(shown) + (f"±{spread.removeprefix('0')}" if spread else "")


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

"""A table as text, Markdown, CSV, JSON or LaTeX. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.comparison.statistics import Difference, Estimate
from stages.comparison.table import HEADLINE, METRICS, PAPER_COLUMNS, Row, Table, label_rows

TEXT_WIDTH = 120
EMPTY = "–"
PAPER_TITLES = {"miou": "mIoU", "iiou": "iIoU", "acc": "acc"}


@dataclass(frozen=True)
class Column:
    """One column of a table for reading."""

    title: str
    cells: tuple[str, ...]
    is_number: bool = True
    importance: int = 9
    """Where the table is too wide, columns go in rising order of this."""


def render_text(table: Table, *, width: int = TEXT_WIDTH) -> str:
    """Return the table in fixed-width characters, at most ``width`` of them a line.

    Columns that do not fit are left out, and named below. Differences to the baseline follow the table.
    """
    if not table.rows:
        return "no runs"
    columns, left_out = _fit(_reading_columns(table, _compact, paper_in_one=True), width)
    lines = [_describe_common(table), "", *_lay_out(columns), ""]
    for metric in table.compared_metrics:
        lines += _difference_lines(table, metric, width)
    notes = [f"* headline metric: {HEADLINE}", *table.notes]
    if left_out:
        notes.append(f"left out for width: {', '.join(left_out)}; --format csv and json show every column")
    for note in notes:
        lines += _wrap(note, width)
    return "\n".join(line.rstrip() for line in lines)


def render_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown; the headline metric is bold."""
    columns = _reading_columns(table, _spaced, difference=True)
    rule = ["---:" if column.is_number else "---" for column in columns]
    titles = [f"**{column.title[:-1]}**" if column.title.endswith("*") else column.title for column in columns]
    body = [[column.cells[index] for column in columns] for index in range(len(table.rows))]
    lines = ["| " + " | ".join(map(_escape_markdown, line)) + " |" for line in [titles, *body]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    notes = [f"- {_escape_markdown(note)}" for note in table.notes]
    return "\n".join([_describe_common(table), "", *lines, *([""] if notes else []), *notes])


def render_csv(table: Table) -> str:
    """Return one line per row with every column, always the same ones; numbers are not rounded, absent ones empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    facts = ("name", "recipe", "dataset", "split", "network", "settings", "baseline")
    writer.writerow(
        [*facts, "seeds", "num_seeds", "total_steps", "parameters"]
        + [f"{metric}{part}" for metric in METRICS for part in ("", "_ci95", "_diff", "_diff_ci95")]
        + [f"paper_{column}" for column in PAPER_COLUMNS]
    )
    for row in table.rows:
        cells: list[object] = [getattr(row, fact) for fact in facts]
        cells += [" ".join(map(str, row.seeds)), len(row.seeds), row.total_steps, row.parameters]
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
    columns = _reading_columns(table, _latex_number, difference=True)
    titles = [
        rf"\textbf{{{_escape_latex(column.title[:-1])}}}" if column.title.endswith("*") else _escape_latex(column.title)
        for column in columns
    ]
    rows = [
        " & ".join(column.cells[i] if column.is_number else _escape_latex(column.cells[i]) for column in columns)
        + r" \\"
        for i in range(len(table.rows))
    ]
    lines = [
        *(f"% {line}" for line in (_describe_common(table), *table.notes)),
        rf"\begin{{tabular}}{{{''.join('r' if column.is_number else 'l' for column in columns)}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
        *rows,
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

Number = Estimate | Difference


def _reading_columns(
    table: Table, number: Callable[[Number | None, int], str], *, difference: bool = False, paper_in_one: bool = False
) -> list[Column]:
    """Return the columns for people: what distinguishes the rows, then the main metrics, then the paper's scores."""
    rows = table.rows
    columns = [Column("row", tuple(row.name for row in rows), is_number=False)]
    for fact in ("dataset", "split", "recipe", "network", "settings"):
        values = tuple(str(getattr(row, fact)) for row in rows)
        if len(set(values)) > 1 and (fact != "settings" or len({_apart(row) for row in rows}) < len(rows)):
            told_apart = len({row.name for row in rows}) == len(rows)  # by their names, without this column
            columns.append(Column(fact, values, is_number=False, importance=2 if told_apart else 5))
    columns.append(Column("seeds", tuple(str(len(row.seeds)) for row in rows), importance=6))
    columns.append(Column("steps", tuple(str(row.total_steps) for row in rows), importance=7))
    for place, metric in enumerate(table.main_metrics):
        star, importance = ("*", 9) if metric == HEADLINE else ("", 4 - place // 2)
        cells = tuple(number(row.metrics.get(metric), _digits(metric)) for row in rows)
        columns.append(Column(metric + star, cells, importance=importance))
    for metric in table.compared_metrics if difference and table.baseline else ():
        cells = tuple(number(row.differences.get(metric), _digits(metric)) for row in rows)
        columns.append(Column(f"{metric} vs {table.baseline}", cells))
    return columns + _paper_columns(table, in_one=paper_in_one)


def _apart(row: Row) -> tuple[str, ...]:
    """Return what distinguishes a row without its settings hash."""
    return (row.name, row.dataset, row.split, row.recipe, row.network)


def _paper_columns(table: Table, *, in_one: bool) -> list[Column]:
    """Return what the paper printed, in one narrow column or in one each; none where it printed nothing."""
    rows, present = table.rows, table.paper_columns
    single = {column: _paper_cells(rows, column) for column in present}
    if not in_one or len(present) == 1:
        return [Column(f"paper {PAPER_TITLES[column]}", cells, importance=8) for column, cells in single.items()]
    joined = tuple(
        " ".join(f"{row.paper[column]:.3f}".removeprefix("0") if column in row.paper else EMPTY for column in present)
        if row.paper
        else EMPTY
        for row in rows
    )
    titles = " ".join(f"{PAPER_TITLES[column]:>4}" for column in present).strip()
    return [Column(f"paper\n{titles}", joined, importance=3)] if present else []


def _paper_cells(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    """Return a column with as many digits, three to five, as the paper printed."""
    values = [row.paper[column] for row in rows if column in row.paper]
    digits = next((count for count in (3, 4) if all(round(value, count) == value for value in values)), 5)
    return tuple(f"{row.paper[column]:.{digits}f}" if column in row.paper else EMPTY for row in rows)


def _describe_common(table: Table) -> str:
    """Return what all rows have in common, as a heading."""
    words = []
    for fact, before in (("dataset", ""), ("split", ""), ("recipe", "recipe "), ("network", "")):
        values = {str(getattr(row, fact)) for row in table.rows}
        if len(values) == 1:
            words.append(before + values.pop())
    return " · ".join(words)


def _difference_lines(table: Table, metric: str, width: int) -> list[str]:
    """Return the paired differences of a metric as lines of text."""
    labelled = zip(label_rows(table.rows), table.rows, strict=True)
    compared = [(label, row.differences[metric]) for label, row in labelled if metric in row.differences]
    if not compared:
        return []
    name_width = max(len(label) for label, _ in compared)
    lines = [f"{metric} minus that of {table.baseline}, paired by seed:"]
    for label, found in compared:
        spread = "one seed, no interval" if found.half_width is None else f"±{found.half_width:.3f}"
        verdict = "" if found.half_width is None or found.is_clear else "  (may be chance)"
        value = f"{found.mean:+.3f} {spread}{verdict}"
        in_one = f"  {label:<{name_width}}  {value}"
        lines += [in_one] if len(in_one) <= width else [f"  {label}", f"    {value}"]
    return [*lines, ""]


def _lay_out(columns: Sequence[Column]) -> list[str]:
    """Return header lines, a rule and one line per row; long metric names take two header lines."""
    heads = [_split_title(column.title) for column in columns]
    widths = [max(map(len, (*head, *column.cells))) for head, column in zip(heads, columns, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(size) if column.is_number else cell.ljust(size)
            for cell, size, column in zip(cells, widths, columns, strict=True)
        )

    upper, lower = zip(*heads, strict=True)
    body = [line([column.cells[index] for column in columns]) for index in range(len(columns[0].cells))]
    rule = "  ".join("─" * size for size in widths)
    return [*([line(upper)] if any(upper) else []), line(lower), rule, *body]


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
    while len(kept) > 1 and max(map(len, _lay_out(kept))) > width:
        least = min(reversed(kept), key=lambda column: column.importance)
        kept.remove(least)
        dropped.append(least.title.rstrip("*").split("\n")[0])
    return kept, dropped


def _wrap(note: str, width: int) -> list[str]:
    """Return a note as lines of at most ``width`` characters, continued under its text."""
    lines, current = [], ""
    for word in note.split(" "):
        if current and len(current) + 1 + len(word) > width:
            lines.append(current)
            current = "  " + word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]


def _digits(metric: str) -> int:
    return 4 if metric == "depth_mse" else 3  # a mean squared error on [0, 1] is small


def _compact(found: Number | None, digits: int) -> str:
    if found is None:
        return EMPTY
    spread = "" if found.half_width is None else f"±{found.half_width:.{digits}f}".replace("±0.", "±.")
    return f"{found.mean:.{digits}f}{spread}"


def _spaced(found: Number | None, digits: int) -> str:
    if found is None:
        return EMPTY
    spread = "" if found.half_width is None else f" ± {found.half_width:.{digits}f}"
    return f"{found.mean:{'+' if isinstance(found, Difference) else ''}.{digits}f}{spread}"


def _latex_number(found: Number | None, digits: int) -> str:
    return "--" if found is None else "$" + _spaced(found, digits).replace("±", r"\pm") + "$"


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "·": r"$\cdot$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)

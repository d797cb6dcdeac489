"""Runs side by side, as a table or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_cache.errors import UserError, unknown_name
from pipeline.experiment.tables import TABLES, TableSpec, find_table, paper_scores, tables_of
from pipeline.session import Result, Session
from stages.comparison.formats import FORMATS
from stages.comparison.record import RunRecord
from stages.comparison.table import Table, build_table

SCHEDULES = TABLES["schedules"]


def compare_runs(
    session: Session, references: Sequence[str], form: str, baseline: str | None, table: str | None = None
) -> Result:
    """Put runs side by side.

    Args:
        references: runs; none means all finished ones.
        form: key of ``FORMATS``.
        baseline: row name; None is the table's own.
        table: name of a table, of whose rows the runs must be; None takes any.

    Returns:
        ``rows``, ``baseline``, ``headline``, ``notes``.
    """
    spec = find_table(table) if table else None
    compared = tabulate(find_folders(session, references, spec), spec, baseline)
    return Result(compared.to_json(), FORMATS[form](compared))


def report_runs(
    session: Session, references: Sequence[str], out: Path | None, baseline: str | None, table: str | None = None
) -> Result:
    """Write one self-contained page about runs; arguments as in ``compare_runs``.

    Returns:
        ``report``, ``rows``.
    """
    from stages.comparison.report import write_report

    spec = find_table(table) if table else None
    compared = tabulate(find_folders(session, references, spec), spec, baseline)
    titles = [found.title for found in tables_of(row.name for row in compared.rows) if found is not SCHEDULES]
    out = out or session.workspace.root / (f"report-{table}.html" if table else "report.html")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the file, for example {out / 'report.html'}")
    file = write_report(compared, out, title=titles[0]) if len(titles) == 1 else write_report(compared, out)
    return Result({"report": str(file), "rows": compared.to_json()["rows"]}, f"report: {file}")


def find_folders(session: Session, references: Sequence[str], table: TableSpec | None = None) -> list[Path]:
    """Return the named runs, or all finished ones (of a table's rows); UserError when there is none."""
    if references:
        return [session.workspace.find_run(reference) for reference in references]
    folders = session.workspace.finished_runs()
    if not folders:
        raise UserError(f"no finished run in {session.workspace.runs}; train one with: pipeline run")
    if table is None:
        return folders
    of_table = [folder for folder in folders if RunRecord.from_json(folder).name in table.order]
    if not of_table:
        raise UserError(
            f"no finished run in {session.workspace.runs} is of a row of this table: {', '.join(table.order)}"
        )
    return of_table


def tabulate(folders: Sequence[Path], table: TableSpec | None = None, baseline: str | None = None) -> Table:
    """Build the table of runs with the papers' scores beside ours.

    Args:
        folders: of the runs.
        table: whose order, baseline and metrics count; None takes them of the one table that all rows are of, and
            where there is none, of the table of schedules.
        baseline: row name; None is the table's own.
    """
    records = [RunRecord.from_json(folder) for folder in folders]
    names = [record.name for record in records]
    if baseline is not None and baseline not in names:
        raise unknown_name("baseline row", baseline, set(names))
    tables = tables_of(names)
    chosen = table or (tables[0] if len(tables) == 1 else SCHEDULES)
    in_order = (chosen, *(each for each in tables if each is not chosen))
    return build_table(
        records,
        paper={name: paper_scores(name) for name in names},
        baseline=baseline or chosen.baseline,
        order=[name for each in in_order for name in each.order],
        notes=[note for each in tables if (note := _find_note(each, records))],
        metrics=chosen.metrics,
        compared_metrics=chosen.compared_metrics,
    )


def _find_note(table: TableSpec, records: Sequence[RunRecord]) -> str:
    """Return what must be said about a table's paper column, when there is one, and when there never is any."""
    names = {record.name for record in records if not record.own_schedule}
    shown = any(paper_scores(name) for name in table.order if name in names)
    return table.note if shown or not any(row.paper for row in table.rows) else ""

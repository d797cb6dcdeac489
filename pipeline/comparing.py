"""Runs side by side, as a table or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_cache.errors import UserError
from pipeline.session import Result, Session
from pipeline.tables import paper_scores
from stages.comparison.formats import FORMATS
from stages.comparison.record import RunRecord
from stages.comparison.table import Table, build_table
from stages.training.schedules import TABLE_ROWS


def compare_runs(session: Session, references: Sequence[str], form: str, baseline: str) -> Result:
    """Put runs side by side.

    Returns:
        ``rows``, ``baseline``, ``headline``, ``notes``.
    """
    table = tabulate(find_folders(session, references), baseline)
    return Result(table.to_json(), FORMATS[form](table))


def report_runs(session: Session, references: Sequence[str], out: Path | None, baseline: str) -> Result:
    """Write one self-contained page about runs.

    Returns:
        ``report``, ``rows``.
    """
    from stages.comparison.report import write_report

    folders = find_folders(session, references)
    table = tabulate(folders, baseline)
    file = write_report(table, out or session.workspace.root / "report.html")
    return Result({"report": str(file), "rows": table.to_json()["rows"]}, f"report: {file}")


def find_folders(session: Session, references: Sequence[str]) -> list[Path]:
    """Return the named runs, or all finished ones; UserError when there is none."""
    if references:
        return [session.workspace.find_run(reference) for reference in references]
    folders = session.workspace.finished_runs()
    if not folders:
        raise UserError(f"no finished run in {session.workspace.runs}; train one with: pipeline run")
    return folders


def tabulate(folders: Sequence[Path], baseline: str | None = "seg-only", order: Sequence[str] = TABLE_ROWS) -> Table:
    """Build the table of runs with the paper's scores beside ours."""
    records = [RunRecord.from_json(folder) for folder in folders]
    paper = {record.name: paper_scores(record.name) for record in records}
    return build_table(records, paper=paper, baseline=baseline, order=order)

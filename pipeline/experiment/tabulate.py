"""From folders of runs to the table that compares them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_cache.errors import UserError, unknown_name
from data_cache.files import read_json
from pipeline.experiment.tables import TABLES, TableSpec, paper_scores, tables_of
from pipeline.session import Session
from stages.comparison.record import RunRecord
from stages.comparison.table import Table, build_table
from stages.evaluation.settings import EVALUATION_VERSION

SCHEDULES = TABLES["schedules"]


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


def freshen(folders: Sequence[Path], session: Session) -> None:
    """Score anew the runs that another version of the metrics scored; those that cannot be are named.

    Torch is imported only where there is such a run.
    """
    outdated = [folder for folder in folders if is_outdated(read_json(folder / "run.json"))]
    if outdated:
        from pipeline.experiment.scoring import refresh_outdated

        refresh_outdated(outdated, session)


def is_outdated(record: Mapping[str, Any]) -> bool:
    """Whether a run was scored by another version of the metrics."""
    return bool(record.get("evaluation", {}).get("version") != EVALUATION_VERSION)


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

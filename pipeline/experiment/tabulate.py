"""From folders of runs to the table that compares them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError, unknown_name
from data_cache.metrics import IMAGES_FILE
from pipeline.experiment.table_spec import TableSpec
from pipeline.experiment.tables import TABLES, tables_of
from pipeline.session import Session
from stages.comparison.identity import differing
from stages.comparison.obstacles import describe_differences, group_runs
from stages.comparison.record import RunRecord
from stages.comparison.table import Design, Table, build_table
from stages.evaluation.settings import EVALUATION_VERSION

SCHEDULES = TABLES["schedules"]
_TOLD = ("device", "dtype")
_SHOWN = 5
"""Runs of a group that a message names."""


class FoundRuns(NamedTuple):
    """Finished runs, and which others could not be read."""

    records: list[RunRecord]
    notes: list[str]
    """Runs that are left out, and why."""


def find_runs(session: Session, references: Sequence[str], table: TableSpec | None = None) -> FoundRuns:
    """Return the named runs, or all finished ones (of a table's rows); scored by this version of the metrics.

    Of all runs, one whose record is damaged is left out with a note, and costs the others nothing.

    Raises:
        UserError: there is none, or one that was named is damaged.
    """
    if references:
        named = [RunRecord.from_json(session.workspace.find_run(reference)) for reference in references]
        return FoundRuns(freshen(named, session), [])
    found, notes = _read_all(session)
    of_table = [record for record in found if table is None or record.name in table.order]
    if not of_table:
        assert table is not None
        raise UserError(
            f"no finished run in {session.workspace.runs} is of a row of this table: {', '.join(table.order)}"
        )
    return FoundRuns(freshen(of_table, session), notes)


def find_newest(session: Session) -> Path:
    """Return the folder of the newest run whose record can be read; newer ones are named.

    Raises:
        UserError: there is none.
    """
    found, notes = _read_all(session)
    for note in notes:
        session.console.info(note)
    folder = found[-1].folder
    assert folder is not None, "it was read from there"
    return folder


def _read_all(session: Session) -> FoundRuns:
    """Return all finished runs, last the one that was asked for last; UserError when there is none."""
    found, notes = [], []
    for folder in session.workspace.finished_runs():
        try:
            found.append(RunRecord.from_json(folder))
        except UserError as problem:
            notes.append(f"run {folder.name} is left out: {problem}")
    if not found:
        reasons = "".join(f"\n{note}" for note in notes)
        raise UserError(f"no finished run in {session.workspace.runs}; train one with: pipeline run{reasons}")
    return FoundRuns(found, notes)


def freshen(records: Sequence[RunRecord], session: Session) -> list[RunRecord]:
    """Score anew the runs that an earlier version of the metrics scored; those that cannot be are named.

    Torch is imported only where there is such a run.
    """
    outdated = [record.folder for record in records if record.folder and is_outdated(record)]
    if not outdated:
        return list(records)
    from pipeline.experiment.scoring import refresh_outdated

    refresh_outdated(outdated, session)
    return [RunRecord.from_json(record.folder) if record.folder in outdated else record for record in records]


def is_outdated(record: RunRecord) -> bool:
    """Whether a run was scored by an earlier version of the metrics, or lacks what they say of each image."""
    missing = record.folder is not None and not (record.folder / IMAGES_FILE).exists()
    return record.evaluation < EVALUATION_VERSION or missing


def check_one_place(records: Sequence[RunRecord]) -> None:
    """Raise UserError for runs of which one table would mix data, splits, classes or numerics."""
    groups = group_runs(records)
    if len(groups) == 1:
        return
    lines = []
    for group in groups:
        names = [run.folder.name if run.folder else run.name for run in group]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        numerics = group[0].identity.numerics if group[0].identity else {}
        words = [group[0].place, f"split {group[0].split}", *(str(numerics[key]) for key in _TOLD if key in numerics)]
        lines.append(f"  {', '.join(words)}: {' '.join(names[:_SHOWN])}{more}")
    found = [group[0] for group in groups if group[0].identity]
    differ = describe_differences(found, differing([run.identity.place() for run in found if run.identity]))
    raise UserError(
        f"these runs cannot stand in one table: they differ in {differ}. Name the runs of one group, keep to a table "
        "with --table, or see all, without differences, with: pipeline compare --across\n" + "\n".join(lines)
    )


def tabulate(
    records: Sequence[RunRecord],
    table: TableSpec | None = None,
    baseline: str | None = None,
    notes: Sequence[str] = (),
    *,
    paper: bool = False,
) -> Table:
    """Build the table of runs, with a paper's scores beside ours where they are of the paper's data set.

    Runs of different data, splits or numerics stand in groups one under another, and nothing is compared.

    Args:
        records: of the runs.
        table: whose order, baselines and metrics count; None takes them of the one table that all rows are of, and
            where there is none, of the table of schedules; a row of another table is compared as that says.
        baseline: row name; None is the table's own.
        notes: what a reader must know besides.
        paper: whether the papers' scores stand beside ours whatever those are of.
    """
    names = [record.name for record in records]
    if baseline is not None and baseline not in names:
        raise unknown_name("baseline row", baseline, set(names))
    tables = [table] if table else tables_of(names)
    chosen = tables[0] if len(tables) == 1 else SCHEDULES
    in_order = (chosen, *(each for each in tables if each is not chosen))
    groups = group_runs(records)
    trained_on = {name: {record.dataset for record in records if record.name == name} for name in names}
    figures = {
        row.name: row.paper
        for each in in_order
        for row in each.rows
        if row.paper and each.paper and (paper or trained_on.get(row.name) == {each.paper.dataset})
    }
    return build_table(
        [record for group in groups for record in group],
        paper=figures,
        baseline=(baseline or chosen.baseline) if len(groups) == 1 else None,
        order=[name for each in in_order for name in each.order] if len(groups) == 1 else (),
        notes=[*notes, *(note for each in tables for note in _find_notes(each, figures, records))],
        metrics=chosen.metrics,
        compared_metrics=chosen.compared_metrics,
        design=Design(
            {} if baseline else {row.name: row.baseline or each.baseline for each in in_order for row in each.rows},
            {row.name: row.controls for each in in_order for row in each.rows if row.controls},
            {row.name: row.declared for each in in_order for row in each.rows},
        ),
    )


def _find_notes(
    table: TableSpec, figures: Mapping[str, Mapping[str, float]], records: Sequence[RunRecord]
) -> list[str]:
    """Return what must be said about a table, and about its paper's scores where they are shown."""
    names = {record.name for record in records if not record.own_schedule} & figures.keys()
    shown = table.paper is not None and any(row.name in names for row in table.rows)
    return [note for note in (table.paper.note if table.paper and shown else "", table.note) if note]

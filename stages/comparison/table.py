"""Rows side by side, each compared with a baseline where the two can be compared. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_cache.metrics import HEADLINE, METRICS, main_metrics
from stages.comparison.certainty import judge_differences
from stages.comparison.identity import describe_differences
from stages.comparison.notes import gather_notes, write_notes
from stages.comparison.record import RunRecord
from stages.comparison.rows import Row, label_rows
from stages.comparison.statistics import Noise, compare_paired, estimate_mean

PAPER_COLUMNS = {"miou": "mIoU", "iiou": "iIoU", "acc": "acc"}
"""Scores that papers print, and what they call them."""


@dataclass(frozen=True)
class Table:
    """Rows side by side, and what a reader must know to judge them."""

    rows: tuple[Row, ...]
    baseline: str | None
    """Name of the baseline where any row is compared with one."""
    notes: tuple[str, ...]
    main_metrics: tuple[str, ...]
    """What people read first."""
    compared_metrics: tuple[str, ...]
    """Those of ``main_metrics`` whose differences to the baseline people read, too."""
    noise: Noise | None = None
    """What seeds alone do to the headline metric; None where no row has two."""

    @property
    def bases(self) -> list[Row]:
        """Those rows that others are compared with."""
        return [row for row in self.rows if any(other.base is row for other in self.rows)]

    @property
    def paper_columns(self) -> tuple[str, ...]:
        """Those of PAPER_COLUMNS that any row has."""
        return tuple(column for column in PAPER_COLUMNS if any(column in row.paper for row in self.rows))

    @property
    def labelled(self) -> list[tuple[str, Row]]:
        """Rows behind labels that tell them apart."""
        return list(zip(label_rows(self.rows), self.rows, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; numbers are fractions, not per cent, and not rounded."""
        return {
            "headline": HEADLINE,
            "baseline": self.baseline,
            "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
            "noise": None if self.noise is None else self.noise._asdict(),
            "rows": [row.to_json() | {"label": label} for label, row in self.labelled],
            "notes": list(self.notes),
        }


def build_table(
    runs: Iterable[RunRecord],
    *,
    paper: Mapping[str, Mapping[str, float]] | None = None,
    baseline: str | None = "seg-only",
    order: Sequence[str] = (),
    notes: Sequence[str] = (),
    metrics: tuple[str, ...] | None = None,
    compared_metrics: tuple[str, ...] = (HEADLINE,),
) -> Table:
    """Group runs into rows and compare each with the baseline, paired by seed.

    Runs are one row when name, network and the whole identity agree; of two runs of one row and seed the later one
    counts. What keeps runs of one name apart is said in the notes.

    Args:
        paper: row name → the paper's scores by PAPER_COLUMNS; schedules of a recipe's own get none.
        baseline: row name; a row is compared with a baseline row that has its data, split, numerics and evaluation: the
            one of its own network and settings, or the only one there is, if need be of the same recipe.
        order: row names in the order wanted; others follow in order of appearance.
        notes: what a reader must know besides, for instance what the paper's scores are of.
        metrics: those of METRICS that people read first; None takes those declared so.
        compared_metrics: those of them whose differences to the baseline they read, too.
    """
    groups: dict[str, dict[int, RunRecord]] = {}
    num_dropped = 0
    for run in runs:
        seeds = groups.setdefault(run.row_key, {})
        num_dropped += run.seed in seeds
        if run.seed not in seeds or run.started_at >= seeds[run.seed].started_at:
            seeds[run.seed] = run
    rows = [_build_row([seeds[seed] for seed in sorted(seeds)], paper or {}) for seeds in groups.values()]
    places = {name: place for place, name in enumerate(order)}
    rows.sort(key=lambda row: places.get(row.name, len(places)))
    compared, reasons = zip(*(_compare_row(row, rows, baseline) for row in rows), strict=True) if rows else ((), ())
    judged = judge_differences(compared)
    own = [row for row in rows if row.first.own_schedule and row.first.identity and (paper or {}).get(row.name)]
    return Table(
        rows=judged.rows,
        baseline=baseline if any(row.baseline for row in compared) else None,
        notes=(
            *judged.notes,
            *write_notes(judged.rows, compared_metrics),
            *gather_notes(zip(label_rows(rows), reasons, strict=True), f"no difference to {baseline} for "),
            *gather_notes(
                (row.name, "phases of the recipe's own, so no paper's scores stand beside them") for row in own
            ),
            *notes,
            *([f"{num_dropped} earlier runs of the same row and seed are left out"] if num_dropped else []),
        ),
        main_metrics=main_metrics() if metrics is None else metrics,
        compared_metrics=compared_metrics,
        noise=judged.noise,
    )


def _build_row(runs: Sequence[RunRecord], paper: Mapping[str, Mapping[str, float]]) -> Row:
    values = {name: [run.metrics[name] for run in runs if name in run.metrics] for name in METRICS}
    return Row(
        name=runs[0].name,
        runs=tuple(runs),
        metrics={name: estimate_mean(found) for name, found in values.items() if found},
        paper={} if runs[0].own_schedule else dict(paper.get(runs[0].name, {})),
    )


def _compare_row(row: Row, rows: Sequence[Row], baseline: str | None) -> tuple[Row, str]:
    """Return the row with its differences to the baseline row that fits it, or why it has none."""
    called = [other for other in rows if other.name == baseline and other.first.identity]
    if row.name == baseline or row.first.identity is None or not called:
        return row, ""
    fitting = [other for other in called if other.is_measured_as(row)]
    if not fitting:
        return row, describe_differences([row.first, *(other.first for other in called)], measured=True)
    pools = (
        [other for other in fitting if _agree(row.first, other.first)],
        [other for other in fitting if _agree(row.first, other.first, per_phase=False)],
        fitting,
        [other for other in fitting if other.fact("recipe") == row.fact("recipe")],
    )
    chosen = next((pool for pool in pools if len(pool) == 1), None)
    if chosen is None:
        return row, f"{len(fitting)} rows called {baseline} fit it"
    found = {name: compare_paired(row.by_seed(name), chosen[0].by_seed(name)) for name in row.metrics}
    differences = {name: difference for name, difference in found.items() if difference is not None}
    if not differences:
        return row, "no seed in common"
    return replace(row, base=chosen[0], differences=differences), ""


def _agree(one: RunRecord, other: RunRecord, *, per_phase: bool = True) -> bool:
    """Return whether two runs share their network and the settings that both have.

    Args:
        per_phase: whether settings with a value per phase, whose number depends on the schedule, must share one.
    """
    mine, theirs = (run.identity.settings if run.identity else {} for run in (one, other))

    def agrees(name: str) -> bool:
        values = [(settings[name], run.phases) for settings, run in ((mine, one), (theirs, other))]
        if not all(isinstance(value, list) and len(value) == len(phases) for value, phases in values):
            return bool(mine[name] == theirs[name])
        return not per_phase or any(value in theirs[name] for value in mine[name])

    return one.network == other.network and all(map(agrees, mine.keys() & theirs.keys()))

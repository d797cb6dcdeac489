"""Rows side by side, each compared with a baseline where the two can be compared. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from data_cache.metrics import FOREGROUND, HEADLINE, METRICS, find_background, main_metrics
from stages.comparison.certainty import judge_differences
from stages.comparison.notes import gather_notes, write_notes
from stages.comparison.obstacles import describe_differences, find_obstacles
from stages.comparison.record import RunRecord
from stages.comparison.rows import Control, Row, label_rows
from stages.comparison.statistics import Noise, compare_paired, estimate_mean

PAPER_COLUMNS = {"miou": "mIoU", "iiou": "iIoU", "acc": "acc"}
"""Scores that papers print, and what they call them."""


class Design(NamedTuple):
    """What a table says about its rows, by their names."""

    baselines: Mapping[str, str] = {}
    """What a row is compared with, where it is not the table's baseline."""
    controls: Mapping[str, Sequence[str]] = {}
    """Rows that must stay behind, too."""
    changes: Mapping[str, Collection[str]] = {}
    """Keys of the recipe that a row sets: in these it may differ from what it is compared with."""

    def declared(self, *names: str) -> set[str]:
        """Return the keys that any of the rows sets."""
        return {key for name in names for key in self.changes.get(name, ())}


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
        return [row for row in self.rows if any(other.base and other.base.runs is row.runs for other in self.rows)]

    @property
    def base_name(self) -> str:
        """What the differences are to, for headings."""
        names = {row.baseline for row in self.rows if row.baseline}
        return names.pop() if len(names) == 1 else "baseline"

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
    design: Design | None = None,
) -> Table:
    """Group runs into rows and compare each with the baseline, paired by seed.

    Runs are one row when name, network and the whole identity agree; of two runs of one row and seed the later one
    counts. What keeps runs of one name apart is said in the notes.

    Args:
        paper: row name → the paper's scores by PAPER_COLUMNS; schedules of a recipe's own get none.
        baseline: row name; None compares nothing. A row is compared only with a row of this name that has its data,
            split, numerics, network and settings, but for what the design says that the two change.
        order: row names in the order wanted; others follow in order of appearance.
        notes: what a reader must know besides, for instance what the paper's scores are of.
        metrics: those of METRICS that people read first; None takes those declared so.
        compared_metrics: those of them whose differences to the baseline they read, too.
        design: what the table says about single rows.
    """
    design, paper = design or Design(), paper or {}
    groups, num_dropped = _group_runs(list(runs))
    rows = [_build_row([seeds[seed] for seed in sorted(seeds)], paper) for seeds in groups]
    places = {name: place for place, name in enumerate(order)}
    rows.sort(key=lambda row: places.get(row.name, len(places)))
    compared: list[Row] = []
    whys: dict[str, list[tuple[str, str]]] = {}
    for label, row in zip(label_rows(rows), rows, strict=True):
        base = baseline and design.baselines.get(row.name, baseline)
        found, why = _compare_row(row, rows, design, base)
        whys.setdefault(f"no difference to {base} for ", []).append((label, why))
        controls = _hold_against_controls(row, rows, design) if baseline else {}
        compared.append(replace(found, controls=controls) if controls else found)
    judged = judge_differences(compared)
    own = [row.name for row in rows if row.first.own_schedule and row.first.identity and paper.get(row.name)]
    return Table(
        rows=judged.rows,
        baseline=baseline if any(row.baseline for row in compared) else None,
        notes=(
            *judged.notes,
            *write_notes(judged.rows, compared_metrics),
            *(note for begin, reasons in whys.items() for note in gather_notes(reasons, begin)),
            *gather_notes((name, "phases of the recipe's own, so no paper's scores stand beside them") for name in own),
            *notes,
            *([f"{num_dropped} earlier runs of the same row and seed are left out"] if num_dropped else []),
        ),
        main_metrics=_list_metrics(rows) if metrics is None else metrics,
        compared_metrics=compared_metrics,
        noise=judged.noise,
    )


def _list_metrics(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what people read first, of what any row has; where no class is background, every one is foreground."""
    known = [[each.name for each in row.first.per_class] for row in rows]
    alike = bool(known) and all(names and find_background(names) is None for names in known)
    there = {name for row in rows for name in row.metrics} if rows else METRICS.keys()
    return tuple(name for name in main_metrics() if name in there and not (alike and name in FOREGROUND))


def _group_runs(runs: Sequence[RunRecord]) -> tuple[list[dict[int, RunRecord]], int]:
    """Return the latest run of each seed by row, and how many earlier ones there are."""
    groups: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        seeds = groups.setdefault(run.row_key, {})
        if run.seed not in seeds or run.started_at >= seeds[run.seed].started_at:
            seeds[run.seed] = run
    return list(groups.values()), len(runs) - sum(map(len, groups.values()))


def _build_row(runs: Sequence[RunRecord], paper: Mapping[str, Mapping[str, float]]) -> Row:
    values = {name: [run.metrics[name] for run in runs if name in run.metrics] for name in METRICS}
    return Row(
        name=runs[0].name,
        runs=tuple(runs),
        metrics={name: estimate_mean(found) for name, found in values.items() if found},
        paper={} if runs[0].own_schedule else dict(paper.get(runs[0].name, {})),
    )


def _compare_row(row: Row, rows: Sequence[Row], design: Design, baseline: str | None) -> tuple[Row, str]:
    """Return the row with its differences to the baseline row that fits it, or why it has none."""
    called = [other for other in rows if other.name == baseline and other.first.identity]
    if row.name == baseline or row.first.identity is None or not called:
        return row, ""
    obstacles = [find_obstacles(row.first, other.first, design.declared(row.name, other.name)) for other in called]
    fitting = [other for other, found in zip(called, obstacles, strict=True) if not found]
    if not fitting:
        nearest = min(range(len(called)), key=lambda place: len(obstacles[place]))
        return row, describe_differences([row.first, called[nearest].first], obstacles[nearest])
    if len(fitting) > 1:
        return row, f"{len(fitting)} rows called {baseline} fit it"
    compared = row.with_difference(fitting[0])
    return compared, "" if compared.base else "no seed in common"


def _hold_against_controls(row: Row, rows: Sequence[Row], design: Design) -> dict[str, Control]:
    """Return how far a row is before each of its controls that is there and fits it."""
    found: dict[str, Control] = {}
    for name in design.controls.get(row.name, ()):
        fitting = [
            other for other in rows
            if other.name == name and row.first.identity and other.first.identity
            and not find_obstacles(row.first, other.first, design.declared(row.name, name))
        ]  # fmt: skip
        if len(fitting) == 1:
            difference = compare_paired(row.by_seed(HEADLINE), fitting[0].by_seed(HEADLINE))
            found |= {name: Control(fitting[0], difference)} if difference else {}
    return found

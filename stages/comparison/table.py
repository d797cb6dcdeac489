"""Runs grouped into rows: one schedule on one recipe and network, over seeds. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.comparison.record import RunRecord
from stages.comparison.statistics import Difference, Estimate, compare_paired, estimate_mean

HEADLINE = "miou_macro"
METRICS = (
    "miou_macro", "miou_micro", "miou_micro_imagewise", "miou_imagewise_macro", "pixel_acc", "acc_binary",
    "iiou_macro_fg", "iiou_micro_fg", "fwiou", "boundary_f1", "depth_mse", "depth_absrel", "depth_delta1",
)  # fmt: skip
"""Every metric a table can hold, in column order; a test compares them with what evaluation computes."""
MAIN_METRICS = ("miou_macro", "miou_micro_imagewise", "iiou_macro_fg", "pixel_acc", "depth_mse")
"""What people read unless a table has other ones; CSV and JSON hold every metric."""
PAPER_COLUMNS = ("miou", "iiou", "acc")


@dataclass(frozen=True)
class Row:
    """One schedule on one recipe, network and split, over seeds."""

    name: str
    recipe: str
    dataset: str
    network: str
    split: str
    settings: str
    runs: tuple[RunRecord, ...]
    """One per seed, in order of seeds."""
    metrics: Mapping[str, Estimate]
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's scores of this row by PAPER_COLUMNS; empty for rows of our own."""
    baseline: str | None = None
    """Name of the row the differences are to; None for that row itself and where there is none."""
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of one run."""
        return max(run.total_steps for run in self.runs)

    @property
    def parameters(self) -> int | None:
        return self.runs[0].parameters

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return the metric of every seed that has it."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}


@dataclass(frozen=True)
class Table:
    """Rows side by side, and what a reader must know to judge them."""

    rows: tuple[Row, ...]
    baseline: str | None
    """Name of the baseline where any row is compared with one."""
    notes: tuple[str, ...]
    main_metrics: tuple[str, ...] = MAIN_METRICS
    """What people read first."""
    compared_metrics: tuple[str, ...] = (HEADLINE,)
    """Those of ``main_metrics`` whose differences to the baseline people read, too."""

    @property
    def paper_columns(self) -> tuple[str, ...]:
        """Those of PAPER_COLUMNS that any row has."""
        return tuple(column for column in PAPER_COLUMNS if any(column in row.paper for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; numbers are fractions, not per cent, and not rounded."""
        return {
            "headline": HEADLINE,
            "baseline": self.baseline,
            "rows": [row_to_json(row) for row in self.rows],
            "notes": list(self.notes),
        }


def row_to_json(row: Row) -> dict[str, Any]:
    """Return one row as JSON values.

    ``metrics`` holds means, ``intervals`` the half widths of their 95 % intervals (null for one seed), ``by_seed`` the
    single values, ``difference`` the paired difference to ``baseline``; all by metric name.
    """
    return {
        **{key: getattr(row, key) for key in ("name", "recipe", "dataset", "network", "split", "settings")},
        "seeds": list(row.seeds),
        "total_steps": row.total_steps,
        "parameters": row.parameters,
        "metrics": {name: estimate.mean for name, estimate in row.metrics.items()},
        "intervals": {name: estimate.half_width for name, estimate in row.metrics.items()},
        "by_seed": {name: {str(seed): value for seed, value in row.by_seed(name).items()} for name in row.metrics},
        "paper": dict(row.paper),
        "baseline": row.baseline,
        "difference": {
            name: {"mean": found.mean, "half_width": found.half_width, "seeds": list(found.seeds)}
            for name, found in row.differences.items()
        },
    }


def build_table(
    runs: Iterable[RunRecord],
    *,
    paper: Mapping[str, Mapping[str, float]] | None = None,
    baseline: str | None = "seg-only",
    order: Sequence[str] = (),
    notes: Sequence[str] = (),
    main_metrics: tuple[str, ...] = MAIN_METRICS,
    compared_metrics: tuple[str, ...] = (HEADLINE,),
) -> Table:
    """Group runs into rows and compare each with the baseline, paired by seed.

    Runs are one row when recipe, settings, data set, split, network and schedule agree; of two runs of one row and seed
    the later one counts.

    Args:
        paper: row name → the paper's scores by PAPER_COLUMNS.
        baseline: row name; a row is compared with the baseline row of its own recipe, settings and network, or with the
            only one there is on the same data set and split, if need be of the same recipe.
        order: row names in the order wanted; others follow in order of appearance.
        notes: what a reader must know besides, for instance what the paper's scores are of.
        main_metrics: those of METRICS that people read first.
        compared_metrics: those of main_metrics whose differences to the baseline they read, too.
    """
    latest, num_dropped = _latest_per_seed(runs)
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in latest:
        groups.setdefault(_row_key(run), []).append(run)
    rows = [_build_row(group, (paper or {}).get(group[0].name, {})) for group in groups.values()]
    places = {name: place for place, name in enumerate(order)}
    rows.sort(key=lambda row: places.get(row.name, len(places)))
    compared = tuple(_compare_row(row, rows, baseline) for row in rows)
    is_compared = any(row.baseline for row in compared)
    told = (*_build_notes(compared, compared_metrics), *notes, *_dropped_note(num_dropped))
    return Table(compared, baseline if is_compared else None, told, main_metrics, compared_metrics)


def label_rows(rows: Sequence[Row]) -> list[str]:
    """Return each row's name, with as much behind it as tells rows of one name apart."""
    facts = ("network", "recipe", "dataset", "split", "settings")
    labels = []
    for row in rows:
        namesakes = [other for other in rows if other.name == row.name]
        varying = [fact for fact in facts if len({getattr(other, fact) for other in namesakes}) > 1]
        if len(varying) > 1 and varying[-1] == "settings":
            varying.pop()  # a hash says nothing that the other facts do not
        labels.append(" · ".join([row.name, *(getattr(row, fact) for fact in varying)]))
    if len(set(labels)) < len(labels):
        labels = [f"{label} · {row.settings}" for label, row in zip(labels, rows, strict=True)]
    return labels


def _row_key(run: RunRecord) -> tuple[str, ...]:
    return (run.dataset, run.split, run.recipe, run.settings, run.network, run.name)


def _latest_per_seed(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], int]:
    """Return the latest run of each row and seed, in order of first appearance, and how many were dropped."""
    chosen: dict[tuple[str, ...], RunRecord] = {}
    count = 0
    for run in runs:
        count += 1
        key = (*_row_key(run), str(run.seed))
        if key not in chosen or run.started_at >= chosen[key].started_at:
            chosen[key] = run
    return list(chosen.values()), count - len(chosen)


def _build_row(runs: Sequence[RunRecord], paper: Mapping[str, float]) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    first = runs[0]
    values = {name: [run.metrics[name] for run in runs if name in run.metrics] for name in METRICS}
    return Row(
        name=first.name,
        recipe=first.recipe,
        dataset=first.dataset,
        network=first.network,
        split=first.split,
        settings=first.settings,
        runs=tuple(runs),
        metrics={name: estimate_mean(found) for name, found in values.items() if found},
        paper=dict(paper),
    )


def _compare_row(row: Row, rows: Sequence[Row], baseline: str | None) -> Row:
    """Return the row with its differences to the baseline row that fits it, if there is one."""
    candidates = [
        other for other in rows if other.name == baseline and (other.dataset, other.split) == (row.dataset, row.split)
    ]
    same = [other for other in candidates if _row_key(other.runs[0])[:-1] == _row_key(row.runs[0])[:-1]]
    of_recipe = [other for other in candidates if other.recipe == row.recipe]
    chosen = same or next((found for found in (candidates, of_recipe) if len(found) == 1), [])
    if not chosen or chosen[0] is row:
        return row
    found = {name: compare_paired(row.by_seed(name), chosen[0].by_seed(name)) for name in row.metrics}
    differences = {name: difference for name, difference in found.items() if difference is not None}
    return Row(**{**vars(row), "baseline": baseline, "differences": differences}) if differences else row


def _dropped_note(num_dropped: int) -> list[str]:
    return [f"{num_dropped} earlier runs of the same row and seed are left out"] if num_dropped else []


def _build_notes(rows: Sequence[Row], compared_metrics: Sequence[str]) -> list[str]:
    """Return what a reader must know, as sentences."""
    notes = []
    if any(len(row.seeds) > 1 for row in rows):
        notes.append("± is half of the 95 % t-interval of the mean over seeds")
    single = [row.name for row in rows if len(row.seeds) == 1]
    if single:
        which = "every row" if len(single) == len(rows) else ", ".join(dict.fromkeys(single))
        notes.append(f"one seed only ({which}): no interval can be given, and differences may be chance")
    shown = [row.differences[metric] for row in rows for metric in compared_metrics if metric in row.differences]
    num_tested = sum(found.half_width is not None for found in shown)
    if num_tested >= 5:
        notes.append(f"{num_tested} differences at 95 % each: about one in twenty looks clear by chance alone")
    notes += _budget_notes(rows)
    for row in rows:
        if any(run.selection == "best" and run.selection_split == run.split for run in row.runs):
            notes.append(
                f"{row.name}: weights were selected on {row.split}, which is reported here; its scores are too high"
            )
    if len({(row.dataset, row.split) for row in rows}) > 1:
        notes.append("rows are of different data sets or splits; compare only within one")
    return notes


def _budget_notes(rows: Sequence[Row]) -> list[str]:
    """Say so when rows had unlike amounts of training."""
    budgets = [row.total_steps for row in rows]
    if len(set(budgets)) < 2:
        return []
    least, most = min(rows, key=lambda row: row.total_steps), max(rows, key=lambda row: row.total_steps)
    factor = f", {most.total_steps / least.total_steps:.3g} times as many" if least.total_steps else ""
    control = (
        "; seg-only-long is the control of equal budget" if any(row.name == "seg-only-long" for row in rows) else ""
    )
    return [
        f"total steps differ between rows, from {least.total_steps} ({least.name}) to {most.total_steps} "
        f"({most.name}){factor}: a higher score may come from longer training{control}"
    ]
